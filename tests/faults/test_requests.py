"""One request does not hold up another; strangers' requests are refused one by one; a notebook that does not read holds
up nobody."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from leaks import bpf_ids, held_elsewhere
from processes import children, objects, threads
from raw import RawTracer
from waiting import until

import bpfnb
from bpfnb.hosts import default_host
from bpfnb.language.program import parse
from bpfnb.protocol import messages

_libc = ctypes.CDLL(None)
PRINTS = 'int f(void *ctx) { bpf_trace_printk("x\\n"); return 0; }'
COUNTS = "BPF_HASH(calls, u32, u64); int f(void *ctx) { u32 k = 0; calls.increment(k); return 0; }"
ATTACH = {"syscall:getpgid": "f"}


@contextmanager
def hung_compile() -> Iterator[int]:
    """A cell whose compiling hangs: its request's number."""
    tracer = default_host.connect()
    (compiler,) = children(tracer.hello().pid)
    number = next(tracer._requests)
    before = children(compiler)
    tracer._connection.send(messages.Load(number, parse("int f(void *ctx) { return 17; }", ATTACH)))
    while not (new := children(compiler) - before):
        time.sleep(0.001)
    for pid in new:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield number
    finally:
        tracer.stop(number)
        deadline = time.monotonic() + 2
        while children(compiler) & new:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def mine(session: bpfnb.Session) -> int:
    df = session.df
    return int((df.pid == threading.get_native_id()).sum())


def quick(act: object, limit: float = 1.0) -> None:
    begun = time.monotonic()
    act()  # type: ignore[operator]
    assert time.monotonic() - begun < limit


def test_a_compile_that_hangs_holds_up_nobody() -> None:
    with bpfnb.trace(COUNTS, name="before", attach=ATTACH) as before, hung_compile():
        _libc.getpgid(0)
        quick(lambda: before.maps["calls"].df)
        assert before.maps["calls"][0] >= 1  # others of this machine may call it too
        with bpfnb.trace(PRINTS, name="s", attach=ATTACH) as meanwhile:  # another cell is compiled
            _libc.getpgid(0)
            quick(meanwhile.stop)
        assert mine(meanwhile) == 1
        quick(lambda: default_host.connect().find_probes("*clone*", 10), 5)
        quick(before.stop)
    assert before.state == "stopped"


def test_a_session_that_is_stopped_while_it_compiles_frees_what_compiles_it() -> None:
    programs = bpf_ids("program")
    with hung_compile() as number:
        quick(lambda: default_host.connect().stop(number))
    assert bpf_ids("program") - programs - held_elsewhere("program", {default_host.connect().hello().pid}) == set()


def test_a_large_map_being_read_holds_up_nobody() -> None:
    """Not even the stop of its own session; and whoever reads it gets it."""
    source = "BPF_ARRAY(large, u64, 6000000); int f(void *ctx) { return 0; }"
    rows: list[int] = []
    with bpfnb.trace(source, name="large", attach=ATTACH) as large:
        with bpfnb.trace(PRINTS, name="s", attach=ATTACH) as session:
            tracer, number = default_host.connect(), large._number
            reader = threading.Thread(target=lambda: rows.append(tracer.read_map(number, "large")[0]))
            reader.start()
            _libc.getpgid(0)
            quick(session.stop)
        assert mine(session) == 1
        quick(large.stop, 2)
        reader.join()
    assert rows == [6_000_000]


def test_detaching_hundreds_of_probes_holds_up_nobody() -> None:
    names = [f"tracepoint:syscalls:{p.name}" for p in sorted(Path("/sys/kernel/tracing/events/syscalls").glob("sys_*"))]
    many = bpfnb.trace("int f(void *ctx) { return 0; }", name="many", attach=dict.fromkeys(names[:150], "f"))
    with bpfnb.trace(PRINTS, name="s", attach=ATTACH) as session:
        stopping = threading.Thread(target=many.stop)
        stopping.start()
        _libc.getpgid(0)
        quick(session.stop)
        stopping.join()
        assert mine(session) == 1
        with bpfnb.trace(PRINTS, name="s2", attach=ATTACH) as second:
            _libc.getpgid(0)
            quick(second.stop)
        assert mine(second) == 1
    deadline = time.monotonic() + 60
    while many.detaching and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not many.detaching


def test_threads_have_no_more_rights_than_the_tracer() -> None:
    """Capabilities are a thread's own: those that answer are started when the rest has been given up."""
    with bpfnb.trace(COUNTS, name="s", attach=ATTACH) as session:
        readers = [threading.Thread(target=lambda: session.maps["calls"].df) for _ in range(8)]
        for reader in readers:
            reader.start()
        default_host.connect().find_probes("*clone*", 10)
        for reader in readers:
            reader.join()
        worker = default_host.connect().hello().pid
        tasks = threads(worker, "status")
        for status in tasks.values():
            fields = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
            effective = {c for c in range(64) if int(fields["CapEff"], 16) >> c & 1}
            assert effective <= {2, 38, 39}
            assert fields["NoNewPrivs"] == "1"
            blocked = int(fields["SigBlk"], 16)
            assert all(blocked >> (s - 1) & 1 for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
        assert len(tasks) > 3  # the main one, the poller, and those that answer


# --- what only strangers send -------------------------------------------------------------------------------------


@contextmanager
def loaded() -> Iterator[tuple[RawTracer, int]]:
    """A tracer, and a session with a map."""
    with RawTracer() as tracer:
        number = tracer.number()
        reply = tracer.ask(messages.Load(number, parse(COUNTS, ATTACH)))
        assert isinstance(reply, messages.Loaded), reply
        yield tracer, number


def test_a_number_used_twice_is_refused() -> None:
    with loaded() as (tracer, number):
        again = tracer.ask(messages.Load(number, parse(COUNTS, ATTACH)))
        assert (again.error, str(number) in again.message) == ("ProgramError", True)
        assert isinstance(tracer.ask(messages.LookupMap(tracer.number(), number, "calls", bytes(4))), messages.MapValue)
        for wrong in (0, -1, 1 << 63):
            assert tracer.ask(messages.RunChecks(wrong)).error == "ProgramError"
        assert isinstance(tracer.ask(messages.Stop(tracer.number(), number)), messages.Stopped)


def test_what_is_not_there_is_a_program_error() -> None:
    with loaded() as (tracer, session):
        before = tracer.descriptors()
        n = tracer.number
        for request in [
            messages.ReadMap(n(), session, "call"),
            messages.ReadMap(n(), session, ""),
            messages.ReadMap(n(), session + 100, "calls"),
            messages.ReadMap(n(), -1, "calls"),
            messages.TakeMap(n(), session, "nothing"),
            messages.TakeMap(n(), session, "calls", -1),
            messages.LookupMap(n(), session, "nothing", b""),
            messages.LookupMap(n(), session, "calls", b"short"),
            messages.WriteMap(n(), session, "nothing", b"", None),
            messages.WriteMap(n(), session, "calls", bytes(4), b"x"),
            messages.ClearMap(n(), session, "nothing"),
            messages.OpenCounter(n(), session, "nothing", "software", "cpu-clock"),
            messages.OpenCounter(n(), session, "calls", "software", "cpu-clock"),
            messages.FindSymbols(n(), 1, (-1,)),
            messages.FindSymbols(n(), 0, (1, -(1 << 63))),
            messages.FindSymbols(n(), -1, (1,)),
            messages.FindSymbols(n(), 1 << 40, (1,)),
            messages.FindProbes(n(), "*", -5),
            messages.ListProbes(n(), "*", -5),
            messages.DescribeProbes(n(), ("syscall:getpgid",), (), -5),
            messages.DescribeProbes(n(), ("syscall:getpgid",), ((),), 10),
            messages.DescribeProbes(n(), ("syscall:getpgid",), (("pid",) * 1000,), 10),
            messages.DescribeProbes(n(), ("syscall:getpgid",) * 20_000, (), 10),
            messages.DescribeProbes(n(), ("syscall:getpgid",), (("pid",),) * 1000, 10),
            messages.DescribeType(n(), "struct sock", (), -5),
            messages.FindNames(n(), "TCP_", -5),
        ]:
            reply = tracer.ask(request)
            assert isinstance(reply, messages.Failed), request
            assert reply.error == "ProgramError", (request, reply)
            assert "\n" not in reply.message
        assert "did you mean calls?" in tracer.ask(messages.ReadMap(n(), session, "call")).message
        assert isinstance(tracer.ask(messages.Stop(n(), 12345)), messages.Stopped)  # as for one that has ended
        until(lambda: tracer.descriptors() <= before)  # the guard opens one for some milliseconds


def test_descriptors_sent_along_are_closed() -> None:
    with loaded() as (tracer, session):
        before = tracer.descriptors()
        read, write = os.pipe()
        for count in (1, 100, 250):
            request = messages.LookupMap(tracer.number(), session, "calls", bytes(4))
            tracer.send(request, [write] * count)
            assert isinstance(tracer.answer(request.request), messages.MapValue)
        os.close(write)
        assert os.read(read, 1) == b""  # nobody has the other end open
        os.close(read)
        until(lambda: tracer.descriptors() <= before)  # the guard opens one for some milliseconds


@pytest.mark.parametrize("what", ["lookups", "maps", "probes"])
def test_a_client_that_never_reads_fills_no_memory_and_holds_up_no_end(what: str) -> None:
    before = {kind: bpf_ids(kind) for kind in ("program", "map", "link")}
    source = "BPF_ARRAY(large, u64, 2000000); int f(void *ctx) { return 0; }"
    tracer = RawTracer()
    session = tracer.number()
    assert isinstance(tracer.ask(messages.Load(session, parse(source, ATTACH))), messages.Loaded)
    tracer.sock.settimeout(2)
    begun = tracer.resident()
    requests = {
        "lookups": lambda: messages.LookupMap(tracer.number(), session, "large", bytes(4)),
        "maps": lambda: messages.ReadMap(tracer.number(), session, "large"),
        "probes": lambda: messages.FindProbes(tracer.number(), "*", 100_000),
    }
    deadline, sent = time.monotonic() + 3, 0
    try:
        while time.monotonic() < deadline and sent < 100_000:
            tracer.send(requests[what]())
            sent += 1
    except TimeoutError:
        pass  # it takes no more requests
    assert sent > 100
    assert tracer.resident() - begun < 400 << 20
    # The end of a session is not held up either: what it is attached by is gone, though nobody reads the answer.
    tracer.sock.close()
    assert tracer.ended_within(4)
    for kind, ids in before.items():
        deadline = time.monotonic() + 3
        while bpf_ids(kind) - ids - held_elsewhere(kind, set()) and time.monotonic() < deadline:
            time.sleep(0.02)
    tracer.close()


def test_a_client_that_never_reads_does_not_hold_up_detaching() -> None:
    with RawTracer() as tracer:
        sessions = [tracer.number() for _ in range(3)]
        for number in sessions:
            assert isinstance(tracer.ask(messages.Load(number, parse(PRINTS, ATTACH))), messages.Loaded)
        links = links_of(tracer.worker)
        assert len(links) == 3
        tracer.sock.setblocking(True)
        for _ in range(200):  # megabytes of answers that nobody takes
            tracer.send(messages.FindProbes(tracer.number(), "*", 100_000))
            if len(list(Path(f"/proc/{tracer.worker}/task").iterdir())) and tracer.resident() > 1 << 30:
                break
        for number in sessions:
            tracer.send(messages.Stop(tracer.number(), number))
        deadline = time.monotonic() + 5
        while links_of(tracer.worker) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert links_of(tracer.worker) == set()
        assert tracer.answer(tracer._number).detaching >= 0  # and read at last, it is all there


def links_of(pid: int) -> set[int]:
    return {number for kind, number in objects(pid) if kind == "link"}
