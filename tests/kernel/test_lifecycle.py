"""However it ends, nothing of ours stays: stop, replacement, errors, kill -9 of either side, kernel restart."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from leaks import bpf_ids, instances
from processes import alive, children, descriptors, objects, parent
from waiting import until

import bpfnb
from bpfnb.hosts import default_host

_libc = ctypes.CDLL(None)
COUNT = 'int count(void *ctx) { bpf_trace_printk("x\\n"); return 0; }'
ATTACH = {"syscall:getpgid": "count"}
TESTS = str(Path(__file__).parents[1])


def mine(session: bpfnb.Session) -> int:
    df = session.df
    return int((df.pid == os.getpid()).sum())


def tracer() -> int:
    return default_host.connect().hello().pid


def compiler(worker: int) -> int:
    """The process that compiles for a worker."""
    (child,) = children(worker)
    return child


def processes(worker: int) -> list[int]:
    return [worker, parent(worker), compiler(worker)]


def objects_of(pid: int) -> dict[str, set[int]]:
    """The BPF objects a process holds, by kind."""
    held = objects(pid)
    return {kind: {number for of, number in held if of == kind} for kind in ("program", "map", "link")}


def gone_within(seconds: float, pids: list[int], objects: dict[str, set[int]], owner: int) -> list[str]:
    """What of a killed notebook's is still there after so many seconds; [] when all of it went."""
    deadline = time.monotonic() + seconds
    while True:
        left = [f"process {pid}" for pid in pids if alive(pid)]
        left += [f"{kind} {i}" for kind, ids in objects.items() for i in ids & bpf_ids(kind)]
        left += [name for name in instances(owner) if name.startswith(f"bpfnb-{owner}-")]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


NOTEBOOK = f"""
import bpfnb, sys, time, os, threading
from bpfnb.hosts import default_host
s = bpfnb.trace({COUNT!r}, name="s", attach={ATTACH!r})
HELD = os.fork() if "fork" in sys.argv else 1
if HELD == 0:
    time.sleep(60)  # a child that keeps the notebook's descriptors open
    os._exit(0)
print(default_host.connect().hello().pid, HELD, flush=True)
sys.stdin.readline()
"""


@contextmanager
def notebook(*options: str) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """Another process tracing: it, its tracer's process id and that of its forked child (or 1)."""
    process = subprocess.Popen(
        [sys.executable, "-c", NOTEBOOK, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        worker, child = map(int, process.stdout.readline().split())
        yield process, worker, child
    finally:
        process.kill()
        process.communicate()


@pytest.mark.portable
def test_stop_detaches_and_says_all() -> None:
    before = {kind: bpf_ids(kind) for kind in ("program", "link")}
    session = bpfnb.trace(COUNT, name="s", attach=ATTACH)
    assert bpfnb.sessions() == {"s": session}
    assert objects_of(tracer())["program"] - before["program"]
    for _ in range(1000):
        _libc.getpgid(0)
    session.stop()
    assert mine(session) == 1000
    session.stop()  # again is no harm
    _libc.getpgid(0)
    assert (session.state, mine(session), bpfnb.sessions()) == ("stopped", 1000, {})
    assert not objects_of(tracer())["program"] - before["program"]


@pytest.mark.portable
def test_the_same_name_replaces() -> None:
    first = bpfnb.trace(COUNT, name="s", attach=ATTACH)
    second = bpfnb.trace(COUNT, name="s", attach=ATTACH)
    assert (first.state, second.state) == ("stopped", "running")
    assert bpfnb.sessions() == {"s": second}
    second.stop()


@pytest.mark.parametrize(
    ("source", "attach", "error"),
    [
        ("int count(void *ctx) { return 0", ATTACH, bpfnb.CompileError),
        ("int count(void *ctx) { return nothing; }", ATTACH, bpfnb.CompileError),
        ("int count(int *ctx) { return *(int *)0; }", ATTACH, bpfnb.VerifierError),
        (COUNT, {"syscall:nothing": "count"}, bpfnb.AttachError),
        (COUNT, {"syscall:getpgid": "count", "tracepoint:no:such": "count"}, bpfnb.AttachError),
        ("", ATTACH, bpfnb.ProgramError),
    ],
)
def test_an_error_leaves_the_old_session_running(
    source: str, attach: dict[str, str], error: type[bpfnb.BpfnbError]
) -> None:
    with bpfnb.trace(COUNT, name="s", attach=ATTACH) as session:
        held = descriptors(tracer())
        with pytest.raises(error) as caught:
            bpfnb.trace(source, name="s", attach=attach)
        assert len(str(caught.value).splitlines()) == 1
        assert bpfnb.sessions() == {"s": session}
        _libc.getpgid(0)
        until(lambda: len(descriptors(tracer())) <= len(held))  # the guard opens one for some milliseconds
    assert mine(session) == 1


def test_a_killed_notebook_leaves_nothing() -> None:
    with notebook() as (process, worker, _):
        held, others = objects_of(worker), processes(worker)
        assert held["program"]
        process.kill()
        assert gone_within(2, others, held, worker) == []


def test_a_killed_notebook_with_a_living_child_leaves_nothing() -> None:
    """A forked child keeps the socket open, so the tracer must notice the death itself."""
    with notebook("fork") as (process, worker, child):
        held, others = objects_of(worker), processes(worker)
        process.kill()
        try:
            assert gone_within(2, others, held, worker) == []
            assert alive(child)
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.ends_tracer
@pytest.mark.parametrize("victim", ["worker", "supervisor", "both politely", "compiler"])
def test_a_dead_tracer_is_one_clear_error(victim: str) -> None:
    session = bpfnb.trace(COUNT, name="s", attach=ATTACH)
    _libc.getpgid(0)
    deadline = time.monotonic() + 2
    while not mine(session) and time.monotonic() < deadline:
        time.sleep(0.01)
    worker = tracer()
    held, others = objects_of(worker), processes(worker)
    number = signal.SIGTERM if "politely" in victim else signal.SIGKILL
    for pid in {"worker": others[:1], "supervisor": others[1:2], "compiler": others[2:]}.get(victim, others[:2]):
        os.kill(pid, number)
    assert session.wait(10)
    assert gone_within(2, others, held, worker) == []
    assert (session.state, mine(session), bpfnb.sessions()) == ("failed", 1, {})
    assert "the tracer process ended" in repr(session)
    session.stop()  # no harm, no error
    with bpfnb.trace(COUNT, name="s", attach=ATTACH) as again:  # and a new tracer is there at once
        _libc.getpgid(0)
    assert mine(again) == 1
    assert tracer() != worker


@pytest.mark.ends_tracer
def test_a_request_to_a_dead_tracer_raises() -> None:
    """Killed in the middle of a request: whoever waits hears of it."""
    dying = default_host.connect()
    worker = dying.hello().pid
    os.kill(worker, signal.SIGSTOP)
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -9 {worker}"])
    with pytest.raises(bpfnb.TracerDied, match="ended"):
        bpfnb.trace(COUNT, name="s", attach=ATTACH)
    killer.wait()
    assert bpfnb.sessions() == {}


def test_an_interrupted_start_attaches_nothing() -> None:
    """Ctrl-C while the tracer compiles: the session that arrives afterwards is undone."""
    code = f"""
import os, signal, sys, threading, time
sys.path.insert(0, {TESTS!r})
import bpfnb, processes
from bpfnb.hosts import default_host
pid = default_host.connect().hello().pid
os.kill(pid, signal.SIGSTOP)
threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    bpfnb.trace({COUNT!r}, name="s", attach={ATTACH!r})
except KeyboardInterrupt:
    print("interrupted")
os.kill(pid, signal.SIGCONT)
seen = 0
for _ in range(300):  # it may have been loaded before it was undone
    time.sleep(0.01)
    programs = [number for kind, number in processes.objects(pid) if kind == "program"]
    seen = 0 if programs else seen + 1
    if seen == 100:
        break
print(bpfnb.sessions(), programs)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "interrupted\n{} []\n"


def test_a_forked_child_does_not_touch_the_parents_tracer() -> None:
    with bpfnb.trace(COUNT, name="s", attach=ATTACH) as session:
        pid = os.fork()
        if pid == 0:
            default_host.close()  # what atexit would do
            os._exit(0 if bpfnb.sessions() == {} else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        _libc.getpgid(0)
    assert (session.state, mine(session)) == ("stopped", 1)


def test_two_hosts_trace_side_by_side() -> None:
    """Each with a tracer of its own; closing one leaves the other."""
    with bpfnb.trace(COUNT, name="s", attach=ATTACH) as here:
        with bpfnb.Host() as host:
            there = host.trace(COUNT, name="s", attach=ATTACH)
            second = host.connect().hello().pid
            assert second != tracer()
            _libc.getpgid(0)
            ending = processes(second)
        assert (there.state, mine(there)) == ("stopped", 1)
        assert gone_within(2, ending, {}, second) == []
        assert here.state == "running"
        _libc.getpgid(0)
    assert mine(here) == 2


@pytest.mark.ends_tracer
def test_closing_ends_both_processes() -> None:
    worker = tracer()
    all_of_it = processes(worker)
    default_host.close()
    assert gone_within(2, all_of_it, {}, worker) == []
    assert not children() & set(all_of_it)


@pytest.mark.portable
def test_the_tracer_keeps_only_what_it_needs() -> None:
    """CAP_DAC_READ_SEARCH (2), CAP_PERFMON (38) and CAP_BPF (39), for it and for all it might start.

    CAP_IPC_LOCK (14) is at hand for perf buffers, CAP_SYS_PTRACE (19) for names, CAP_SYS_ADMIN (21) for attaching; but
    they are not in force.
    """
    worker = tracer()
    for pid in processes(worker):
        fields = dict(
            line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
        )
        for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"):
            held = {c for c in range(64) if int(fields[name], 16) >> c & 1}
            extra = {14, 19, 21} if name in ("CapPrm", "CapBnd") else set()
            assert held <= {2, 38, 39} | extra, name
        assert fields["NoNewPrivs"] == "1"


def test_nothing_listens_and_nobody_else_is_let_in() -> None:
    """The tracer's sockets are the pair it was born with and one to its compiling process: unnamed, not to be found."""
    sockets = {t[8:-1] for t in descriptors(tracer()).values() if t.startswith("socket:")}
    assert len(sockets) == 2
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    assert [len(line) for line in lines if line[6] in sockets] == [7, 7], (
        "a named socket has an eighth column, its path"
    )


def test_sessions_that_come_and_go_do_not_disturb_one_that_stays() -> None:
    stop = threading.Event()
    made = [0]

    def storm() -> None:
        while not stop.is_set():
            _libc.getpgid(0)
            made[0] += 1
            if made[0] % 100 == 0:
                subprocess.run(["/bin/true"], check=True)  # names change meanwhile

    with bpfnb.trace(COUNT, name="stays", attach=ATTACH) as stays:
        thread = threading.Thread(target=storm)
        thread.start()
        try:
            for _ in range(8):
                with bpfnb.trace(COUNT, name="goes", attach=ATTACH) as goes:
                    deadline = time.monotonic() + 5
                    while not len(goes.df) and time.monotonic() < deadline:
                        time.sleep(0.01)
                assert goes.lost == 0
                assert len(goes.df)
        finally:
            stop.set()
            thread.join()
    df = stays.df
    tid = df.pid.mode()[0]  # the storm's thread
    assert int((df.pid == tid).sum()) == made[0]
    assert set(df[df.pid == tid].comm) == {Path("/proc/self/comm").read_text().rstrip("\n")}
    assert df.time.is_monotonic_increasing
    assert stays.lost == 0
