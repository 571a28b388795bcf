"""Both event buffers of this kernel, read by the sources themselves.

Each program is compiled, attached and read in a process of its own (this file, run as a script): bcc leaks. It traces
getpgid(MAGIC | n), which only this file's producers call, and is told by n what to submit.
"""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import resource
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpfnb.errors import BpfnbError
from bpfnb.protocol.schema import Number, Schema, Tail, Text
from bpfnb.protocol.segments import LOST, ROWS, Layout, SegmentWriter, parts
from bpfnb.tracer.compile.engine import Compiled, Engine
from bpfnb.tracer.kernel import capabilities
from bpfnb.tracer.loaded import ProgramSpec
from bpfnb.tracer.read import perf
from bpfnb.tracer.read.perf import PerfBuffers, PerfSource
from bpfnb.tracer.read.poller import HIGH_WATER, Poller
from bpfnb.tracer.read.ringbuf import RingSource

_libc = ctypes.CDLL(None, use_errno=True)
KINDS = ("ring", "perf")
MAGIC = 0x5A << 24
TRACEPOINT = 5  # BPF_PROG_TYPE_TRACEPOINT

# Every submit that fails is counted, every event has a number of its own CPU's.
HEAD = """
#include <uapi/linux/ptrace.h>
struct enter { u64 common; long number; u64 argument; };
struct event { u64 seq; u32 cpu; u32 n; char text[32]; };
BPF_F_TABLE("array", int, u64, lost, 1, 1024);
BPF_PERCPU_ARRAY(seqs, u64, 1);
static inline __attribute__((always_inline)) void failed(void) {
    int zero = 0;
    u64 *count = lost.lookup(&zero);
    if (count) __sync_fetch_and_add(count, 1);
}
static inline __attribute__((always_inline)) int start(struct enter *ctx, struct event *event) {
    int zero = 0;
    u64 *seq = seqs.lookup(&zero);
    if (ctx->argument >> 24 != 0x5A || !seq) return 0;
    event->seq = *seq;
    *seq += 1;
    event->cpu = bpf_get_smp_processor_id();
    event->n = ctx->argument & 0xffffff;
    __builtin_memset(event->text, 'x', sizeof(event->text));
    return 1;
}
"""
CAP_IPC_LOCK = 14  # include/uapi/linux/capability.h
OUTPUTS = {"ring": "BPF_RINGBUF_OUTPUT(events, %d);", "perf": "BPF_PERF_OUTPUT(events);"}
SUBMITS = {"ring": "events.ringbuf_output(&event, SIZE, FLAGS)", "perf": "events.perf_submit(ctx, &event, SIZE)"}
BODY = """
int f(struct enter *ctx) {
    struct event event = {};
    if (!start(ctx, &event)) return 0;
    if (%s) failed();
    return 0;
}
"""
RESERVES = """
int f(struct enter *ctx) {
    struct event event = {};
    if (!start(ctx, &event)) return 0;
    struct event *room = events.ringbuf_reserve(sizeof(event));
    if (!room) { failed(); return 0; }
    *room = event;
    if (event.n % 3) events.ringbuf_submit(room, 0); else events.ringbuf_discard(room, 0);
    return 0;
}
"""
EVENT = Schema(
    (
        Number("seq", 0, "<u8"),
        Number("cpu", 8, "<u4"),
        Number("n", 12, "<u4"),
        Text("text", 16, 32),
    ),
    48,
)
TAILED = Schema((*EVENT.columns[:3], Tail("text", 16, text=True)), 16)


def text_of(kind: str, size: str = "sizeof(event)", pages: int = 16, flags: str = "0", body: str = "") -> str:
    submit = SUBMITS[kind].replace("SIZE", size).replace("FLAGS", flags)
    return HEAD + OUTPUTS[kind].replace("%d", str(pages)) + (body or BODY % submit)


# --- the process that compiles, produces and reads -------------------------------------------------------------------


class Traced:
    """A program, attached, and the source that reads it."""

    def __init__(
        self,
        worker: Worker,
        kind: str,
        text: str,
        schema: Schema,
        sizes: Sequence[int] = (48,),
        buffers: Callable[[int], PerfBuffers] = PerfBuffers,
        **arguments: int,
    ) -> None:
        """``buffers``: makes those of the map; ``arguments``: the source's."""
        self._lib = worker.engine.lib
        self._stack = ExitStack()
        compiled = self._stack.enter_context(worker.compiled(text))
        lost = compiled.table("lost")
        assert lost is not None
        self._lost = memoryview(mmap.mmap(lost, mmap.PAGESIZE, prot=mmap.PROT_READ)).cast("Q")
        self.segments: list[tuple[Layout, mmap.mmap]] = []
        self._writers: list[SegmentWriter] = []
        events, writer = compiled.table("events"), self._open_writer
        assert events is not None
        self.source: RingSource | PerfSource
        if kind == "ring":
            self.source = RingSource(events, schema, writer, lambda: self._lost[0], **arguments)
        else:
            self.source = PerfSource(
                events, schema, writer, lambda: self._lost[0], sizes=sizes, buffers=buffers(events), **arguments
            )
        program = compiled.load(ProgramSpec("f", TRACEPOINT))
        self._link = self._lib.bpf_attach_tracepoint(program, b"syscalls", b"sys_enter_getpgid")
        os.close(program)
        assert self._link >= 0

    def __enter__(self) -> Traced:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()
        for _ in range(2):
            self.source.close()
        for writer in self._writers:
            writer.close()
        self._lost.release()
        self._stack.close()

    def detach(self) -> None:
        if self._link >= 0:
            os.close(self._link)
            self._link = -1

    def finish(self, poller: Poller) -> None:
        """As a session ends."""
        self.detach()
        poller.remove(self.source.fds, last=lambda: self.source.drain(last=True))

    @property
    def lost(self) -> int:
        return int(self._parts()[-1][0][LOST])

    @property
    def count(self) -> int:
        return sum(int(head[ROWS]) for head, _, _ in self._parts())

    def column(self, name: str) -> np.ndarray:
        (column,) = [c for c in self.source.schema.columns if c.name == name]
        values = [column.values(rows[: int(head[ROWS])]) for head, rows, _ in self._parts()]
        return np.concatenate(values)

    def texts(self) -> list[str]:
        found = []
        for head, rows, text in self._parts():
            at = self.source.schema.text_end
            ends = [0, *rows[: int(head[ROWS]), at : at + 8].copy().view(np.int64)[:, 0].tolist()]
            found += [text[a:b].tobytes().decode() for a, b in pairwise(ends)]
        return found

    def by_cpu(self) -> dict[int, list[int]]:
        """The numbers that arrived, of each CPU in the order they came."""
        seqs, cpus = self.column("seq"), self.column("cpu")
        return {int(cpu): seqs[cpus == cpu].tolist() for cpu in np.unique(cpus)}

    def _parts(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        return [parts(memoryview(memory), self.source.schema, layout) for layout, memory in self.segments]

    def _open_writer(self, schema: Schema) -> SegmentWriter:
        self._writers.append(SegmentWriter(schema, lambda layout, fd: self.segments.append((layout, mmap.mmap(fd, 0)))))
        return self._writers[-1]


class Worker:
    """Answers each scenario's name with what it found, or with a traceback."""

    def __init__(self) -> None:
        self.engine = Engine()
        self.engine.compile("int warm(void *ctx) { return 0; }")
        self.poller = Poller()

    @contextmanager
    def compiled(self, text: str) -> Iterator[Compiled]:
        compiled = self.engine.compile(text)
        try:
            yield compiled
        finally:
            self.engine.lib.bpf_module_destroy(compiled._module)

    def serve(self) -> None:
        for line in sys.stdin:
            name, *arguments = json.loads(line)
            before = self._held()
            try:
                answer = SCENARIOS[name](self, *arguments)
            except BaseException:
                answer = {"failed": traceback.format_exc()}
            gc.collect()
            answer["left"] = sorted(self._held() - before)
            print(json.dumps(answer), flush=True)

    def _held(self) -> set[str]:
        """Descriptors by what they are: bcc keeps BTF of its own; and threads."""
        found = {thread.name for thread in threading.enumerate()}
        for fd in Path("/proc/self/fd").iterdir():
            try:
                target = str(fd.readlink())
            except OSError:
                continue  # the listing's own
            if target != "anon_inode:btf":
                found.add(f"{fd.name}: {target}")
        return found


def produce(numbers: range, cpu: int | None = None) -> None:
    """Make the calls, on one CPU if that is said."""
    before = os.sched_getaffinity(0)
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    for n in numbers:
        _libc.getpgid(MAGIC | n)
    os.sched_setaffinity(0, before)


@contextmanager
def producing_elsewhere(cpus: list[int], count: int) -> Iterator[None]:
    """In a process on each of these CPUs, all at once."""
    pids = []
    for cpu in cpus:
        pid = os.fork()
        if pid == 0:
            try:
                produce(range(count), cpu)
            finally:
                os._exit(0)
        pids.append(pid)
    yield
    for pid in pids:
        os.waitpid(pid, 0)


def wait_for(condition: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.0005)


def everything(worker: Worker, kind: str, count: int) -> dict[str, Any]:
    """Two CPUs produce at once, the poller reads."""
    cpus = sorted(os.sched_getaffinity(0))[:2]
    with Traced(worker, kind, text_of(kind, pages=1024), EVENT) as traced:
        worker.poller.add(traced.source.fds, traced.source.drain, needs_polling=traced.source.needs_polling)
        with producing_elsewhere(cpus, count):
            pass
        traced.finish(worker.poller)
        by_cpu = traced.by_cpu()
        times = traced.column(traced.source.schema.time) if kind == "perf" else np.zeros(1, np.int64)
        return {
            "cpus": [sorted(by_cpu), cpus],
            "ordered": all(np.all(np.diff(seqs) > 0) for seqs in by_cpu.values()),
            "distinct": traced.count == sum(len(set(seqs)) for seqs in by_cpu.values()),
            "sum": traced.count + traced.lost,
            "produced": count * len(cpus),
            "late": int(np.sum(times < np.maximum.accumulate(times))),
            "whole": set(traced.column("text").tolist()) == {b"x" * 32},
            "now": time.monotonic_ns() - int(times[-1]),
        }


def turns(worker: Worker, kind: str, count: int) -> dict[str, Any]:
    """A backlog of two CPUs, unequal, read in small turns."""
    cpus = sorted(os.sched_getaffinity(0))[:2]
    with Traced(worker, kind, text_of(kind, pages=1024), EVENT, turn=1 << 17) as traced:
        with producing_elsewhere(cpus, count):
            produce(range(count), cpus[1])
        answers = []
        while not answers or answers[-1] == HIGH_WATER:
            answers.append(traced.source.drain())
        steps = len(answers)
        traced.source.drain(last=True)
        produce(range(count), cpus[0])
        traced.source.drain(last=True)
        times = traced.column(traced.source.schema.time) if kind == "perf" else np.zeros(1, np.int64)
        return {
            "steps": steps,
            "sum": traced.count + traced.lost,
            "sorted": all(np.all(np.diff(seqs) > 0) for seqs in traced.by_cpu().values()),
            "late": int(np.sum(times < np.maximum.accumulate(times))),
        }


def lengths(worker: Worker, kind: str, count: int) -> dict[str, Any]:
    """Each event as long as its number says, from 24 bytes to 39; nobody says so to the source."""
    size = "24 + (event.n & 15)"
    with Traced(worker, kind, text_of(kind, size), EVENT, sizes=()) as traced:
        for begin in range(0, count, 1000):
            produce(range(begin, begin + 1000))
            traced.source.drain(last=True)
        told = traced.column("n").tolist()
        texts = np.char.rstrip(traced.column("text"), b"\0").tolist()
        spare = 7 if kind == "perf" else 0  # bytes that may be what perf pads with, so they are not shown
        return {
            "n": told == list(range(count)),
            "texts": all(
                0 <= 8 + n % 16 - len(t) <= spare and set(t) <= {120} for t, n in zip(texts, told, strict=True)
            ),
            "lost": traced.lost,
        }


def tails(worker: Worker, kind: str, count: int) -> dict[str, Any]:
    """The same events, their text the flexible array of a struct."""
    size = "24 + (event.n & 15)"
    with Traced(worker, kind, text_of(kind, size), TAILED, sizes=()) as traced:
        for begin in range(0, count, 1000):
            produce(range(begin, begin + 1000))
            traced.source.drain(last=True)
        texts = traced.texts()
        spare = 7 if kind == "perf" else 0
        return {
            "n": traced.column("n").tolist() == list(range(count)),
            "texts": all(set(t) <= {"x"} and 0 <= 8 + i % 16 - len(t) <= spare for i, t in enumerate(texts)),
        }


def discards(worker: Worker, count: int) -> dict[str, Any]:
    with Traced(worker, "ring", text_of("ring", body=RESERVES), EVENT) as traced:
        for begin in range(0, count, 900):
            produce(range(begin, begin + 900))
            traced.source.drain()
        return {"n": traced.column("n").tolist() == [n for n in range(count) if n % 3], "lost": traced.lost}


def overflow(worker: Worker, kind: str) -> dict[str, Any]:
    """More than a buffer of 64 KiB takes while nobody reads, three times over."""
    small = partial(PerfBuffers, max_bytes=perf.MIN_BYTES)
    with Traced(worker, kind, text_of(kind), EVENT, buffers=small) as traced:
        answers, delivered = [], []
        cpu = max(os.sched_getaffinity(0))
        for begin in (0, 5000, 10000):
            produce(range(begin, begin + 5000), cpu)
            answers.append(traced.source.drain(last=True))
            delivered.append(traced.count)
        produce(range(15000, 15100), cpu)
        answers.append(traced.source.drain(last=True))
        seqs = traced.column("seq")
        return {
            "answers": answers,
            "delivered": delivered,
            "count": traced.count,
            "lost": traced.lost,
            "ordered": bool(np.all(np.diff(seqs) > 0)),
            "last": seqs[-100:].tolist() == list(range(15000, 15100)),
        }


def delays(worker: Worker, kind: str, flags: str) -> dict[str, Any]:
    """How long single events take to be in the segment, the worst left out: others use this machine too."""
    with Traced(worker, kind, text_of(kind, flags=flags), EVENT) as traced:
        worker.poller.add(traced.source.fds, traced.source.drain, needs_polling=traced.source.needs_polling)
        found = []
        for n in range(10):
            time.sleep(0.013 * (n % 4))
            begin = time.monotonic()
            produce(range(1))
            wait_for(lambda: traced.count > n)  # noqa: B023
            found.append(time.monotonic() - begin)
        traced.finish(worker.poller)
        return {"delays": sorted(found)[:-2], "count": traced.count}


def held_back(worker: Worker) -> dict[str, Any]:
    """Events too young for their place to be sure: they say so for much longer here."""
    with Traced(worker, "perf", text_of("perf"), EVENT, slack_ns=200_000_000) as traced:
        produce(range(3))
        found = [(traced.source.drain(), traced.count)]
        time.sleep(0.21)
        produce(range(3, 4))
        for last in (False, True):
            found.append((traced.source.drain(last=last), traced.count))
        return {"found": found, "n": traced.column("n").tolist()}


def late_cpu(worker: Worker) -> dict[str, Any]:
    """A CPU that is not online at first."""
    first, second = sorted(os.sched_getaffinity(0))[:2]
    of_first = partial(PerfBuffers, online=lambda: {first})
    with Traced(worker, "perf", text_of("perf"), EVENT, buffers=of_first) as traced:
        produce(range(5), second)
        traced.source.drain(last=True)
        before = traced.count, traced.lost
        traced.source.renew(second)
        traced.source.drain()
        for cpu in (first, second):
            produce(range(5), cpu)
        traced.source.drain(last=True)
        after = [traced.count, traced.lost]
        produce(range(3), second)
        traced.source.renew(second)  # as when it was offline meanwhile; what its old buffer holds is not lost
        traced.source.drain()
        produce(range(4), second)
        traced.source.drain(last=True)
        return {"before": before, "after": after, "again": [traced.count, traced.lost]}


def few_descriptors(worker: Worker) -> dict[str, Any]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with worker.compiled(text_of("perf")) as compiled:
        highest = max(int(fd.name) for fd in Path("/proc/self/fd").iterdir())
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, limits[1]))
        try:
            perf.PerfBuffers(compiled.table("events") or -1)
        except BpfnbError as error:
            return {"error": type(error).__name__, "message": error.message, "hint": error.hint}
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    return {"error": "none"}


def little_memory(worker: Worker) -> dict[str, Any]:
    """Without CAP_IPC_LOCK: the sizes of buffers made one after the other, and why there were no more."""
    ours, theirs = os.pipe()
    with worker.compiled(text_of("perf")) as compiled, os.fdopen(ours) as pipe:
        pid = os.fork()
        if pid == 0:
            try:
                os.write(theirs, json.dumps(_as_large_as_may_be(compiled.table("events") or -1)).encode())
            finally:
                os._exit(0)
        os.close(theirs)
        said = pipe.read()
        os.waitpid(pid, 0)
    return dict(json.loads(said))


def _as_large_as_may_be(table: int) -> dict[str, Any]:
    capabilities.drop()
    capabilities.forgo(CAP_IPC_LOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    held: list[perf.PerfBuffers] = []
    while len(held) < 20:
        try:
            held.append(perf.PerfBuffers(table))
        except BpfnbError as error:
            sizes = [buffers.all[0].size for buffers in held]
            return {"error": type(error).__name__, "message": error.message, "sizes": sizes}
    return {"error": "none"}


def pace(worker: Worker) -> dict[str, Any]:
    """How often a source is called in 0.4 s, by what it answers."""
    calls = {}
    for name, answer in (("idle", 0), ("again", True), ("filling", HIGH_WATER)):
        calls[name] = calls_of(worker.poller, answer, needs_polling=True)
    calls["silent"] = calls_of(worker.poller, 0, needs_polling=False)
    return calls


def calls_of(poller: Poller, answer: int, needs_polling: bool) -> int:
    fd = os.eventfd(0)
    made = []
    poller.add([fd], lambda: made.append(1) or answer, needs_polling=needs_polling)
    time.sleep(0.4)
    poller.remove([fd])
    os.close(fd)
    count = len(made)
    time.sleep(0.06)
    assert len(made) == count
    return count


SCENARIOS: dict[str, Callable[..., dict[str, Any]]] = {
    f.__name__: f
    for f in (
        *(everything, turns, lengths, tails, discards, overflow, delays, held_back, late_cpu),
        *(few_descriptors, little_memory, pace),
    )
}

if __name__ == "__main__":
    Worker().serve()
    sys.exit()


# --- the tests -------------------------------------------------------------------------------------------------------

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def run(_tracing: int) -> Iterator[Run]:
    """Runs a scenario in the worker; it may leave nothing behind."""
    worker = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert worker.stdin
    assert worker.stdout

    def answer(*job: object) -> dict[str, Any]:
        worker.stdin.write(json.dumps(job) + "\n")
        worker.stdin.flush()
        found: dict[str, Any] = json.loads(worker.stdout.readline())
        assert "failed" not in found, found["failed"]
        assert not found.pop("left")
        return found

    yield answer
    worker.communicate()


@pytest.mark.portable
@pytest.mark.parametrize("kind", KINDS)
def test_every_event_arrives_once_and_in_order_or_is_counted(run: Run, kind: str) -> None:
    found = run("everything", kind, 40_000)
    assert found["cpus"][0] == found["cpus"][1]
    assert found["ordered"]
    assert found["distinct"]
    assert found["sum"] == found["produced"]
    assert found["whole"]
    # A virtual CPU may be stopped between taking an event's time and making it seen.
    assert found["late"] <= 2
    if kind == "perf":
        assert 0 < found["now"] < 60e9


@pytest.mark.parametrize("kind", KINDS)
def test_a_backlog_is_read_in_turns(run: Run, kind: str) -> None:
    found = run("turns", kind, 20_000)
    assert found["steps"] > 8
    assert found["sum"] == 80_000
    assert found["sorted"]
    assert found["late"] <= 2


@pytest.mark.parametrize("kind", KINDS)
def test_events_of_any_length(run: Run, kind: str) -> None:
    assert run("lengths", kind, 8000) == {"n": True, "texts": True, "lost": 0}
    assert run("tails", kind, 8000) == {"n": True, "texts": True}


def test_discarded_events_are_not_there(run: Run) -> None:
    assert run("discards", 9000) == {"n": True, "lost": 0}


@pytest.mark.portable
@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_is_counted_and_reading_goes_on(run: Run, kind: str) -> None:
    found = run("overflow", kind)
    room = (64 << 10) // {"ring": 56, "perf": 72}[kind]
    assert found["count"] + found["lost"] == 15_100
    assert found["answers"][:3] == [HIGH_WATER] * 3
    assert found["answers"][3] != HIGH_WATER
    assert all(room - 3 <= after - before <= room for before, after in pairwise([0, *found["delivered"]]))
    assert found["ordered"]
    assert found["last"]


@pytest.mark.parametrize(("kind", "flags"), [("ring", "0"), ("ring", "BPF_RB_NO_WAKEUP"), ("perf", "0")])
def test_single_events_arrive_within_a_tenth_of_a_second(run: Run, kind: str, flags: str) -> None:
    found = run("delays", kind, flags)
    assert found["count"] == 10
    assert found["delays"][-1] < 0.1


def test_what_is_too_young_waits_for_the_next_drain(run: Run) -> None:
    assert run("held_back") == {"found": [[1, 0], [1, 3], [0, 4]], "n": [0, 1, 2, 3]}


def test_a_cpu_that_comes_online_is_read(run: Run) -> None:
    assert run("late_cpu") == {"before": [0, 5], "after": [10, 5], "again": [17, 5]}


def test_too_few_descriptors_are_named(run: Run) -> None:
    found = run("few_descriptors")
    assert found["error"] == "SetupError"
    assert f"{os.cpu_count()} CPUs" in found["message"]
    assert "ulimit -n" in found["hint"]


def test_buffers_are_as_large_as_they_may_be(run: Run) -> None:
    found = run("little_memory")
    sizes = found["sizes"]
    assert sizes == sorted(sizes, reverse=True)
    assert all(64 << 10 <= size < 16 << 20 for size in sizes)
    assert found["error"] == "PrivilegeError"
    assert "perf_event_mlock_kb" in found["message"]


def test_sources_are_called_as_often_as_they_ask_for(run: Run) -> None:
    found = run("pace")
    assert found["silent"] == 0
    assert 6 <= found["idle"] <= 12
    assert found["again"] >= 16
    assert found["filling"] >= 100
