"""The readers of 40-byte events, on the same program: bpfnb, bcc's two buffers with a Python callback, bpftrace, and C
that only copies.

Each reads the events of one producer into a DataFrame. Figures:

    produced        events the producer made; ``producing``: in how many seconds
    delivered       events the reader had when all was over
    lost            events it said it lost; ``unsaid``: neither delivered nor said to be lost
    reader_cpu      seconds of processor time until the events were read: bpfnb's tracer, bcc's whole process, bpftrace
    frame_cpu       seconds of processor time from there to the DataFrame, in the notebook's process
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

import numpy as np
import pandas as pd

import bpfnb
from benchmarks.common import CPUS, LIMIT, TRACEPOINT, Figures, Producer, cpu_of, missing, quiet
from bpfnb.hosts import default_host

__all__ = ["LIMIT_PAGES", "bcc", "bpfnb_cell", "bpftrace", "limit", "no_probe", "perf_cell", "ring_cell"]

FIELDS = ("ts", "pid", "tid", "cpu", "uid", "comm")
_PROGRAM = """
struct event { u64 ts; u32 pid, tid, cpu, uid; char comm[16]; };
OUTPUT
int produce(void *ctx) {
    u64 id = bpf_get_current_pid_tgid();
    if (id >> 32 != PRODUCER) return 0;
    struct event e = {.ts = bpf_ktime_get_ns(), .pid = id >> 32, .tid = id};
    e.cpu = bpf_get_smp_processor_id();
    e.uid = bpf_get_current_uid_gid();
    bpf_get_current_comm(&e.comm, sizeof(e.comm));
    SUBMIT
    return 0;
}
"""
_BPFTRACE = """
tracepoint:%s /pid == %d/ { printf("%%llu %%d %%d %%d %%d %%s\\n", nsecs, pid, tid, cpu, uid, comm); }
"""


def ring_cell(pages: int, *, stamped: bool = True) -> str:
    """``stamped``: False for one whose ring buffer is used by a macro, too, so that bpfnb cannot stamp its events."""
    return ("" if stamped else "#define EVENTS events\n") + _cell(
        f"BPF_RINGBUF_OUTPUT(events, {pages});", "events.ringbuf_output(&e, sizeof(e), 0);"
    )


def perf_cell(size: str = "sizeof(e)") -> str:
    return _cell("BPF_PERF_OUTPUT(events);", f"events.perf_submit(ctx, &e, {size});")


def _cell(output: str, submit: str) -> str:
    return _PROGRAM.replace("OUTPUT", output).replace("SUBMIT", submit)


def flags_for(producer: Producer) -> list[str]:
    """Only our producer's events: others call getppid as well."""
    return [f"-DPRODUCER={producer.pid}"]


def figures(made: tuple[int, float], delivered: int, lost: int, reader_cpu: float, frame_cpu: float) -> Figures:
    produced, producing = made
    cpu = reader_cpu + frame_cpu
    return {
        "produced": produced,
        "producing": producing,
        "rate": produced / producing,
        "delivered": delivered,
        "delivered_rate": delivered / producing,
        "lost": lost,
        "unsaid": produced - delivered - lost,
        "missing_percent": 100 * (1 - delivered / produced),
        "reader_cpu": reader_cpu,
        "frame_cpu": frame_cpu,
        "per_reader_cpu": delivered / reader_cpu if reader_cpu else 0.0,
        "per_cpu": delivered / cpu if cpu else 0.0,
    }


@contextmanager
def plain_bcc(cell: str, flags: list[str]) -> Iterator[Any]:
    """A BPF object of bcc's own, compiled against the headers that bpfnb compiles against."""
    from bpfnb.tracer.compile.engine import Engine

    b = Engine().bcc.BPF(text=cell, cflags=flags)
    try:
        yield b
    finally:
        with suppress(Exception):  # it raises errors where it frees perf buffers, after detaching
            b.cleanup()


def hold_the_gil(length: float) -> None:
    """As one long call into C does that does not let go of it."""
    ctypes.PyDLL(None).usleep(int(length * 1e6))


# --- the contenders -----------------------------------------------------------------------------------------------


def no_probe(**producing: Any) -> Figures:
    with Producer(**producing) as producer:
        return figures(producer.run(), 0, 0, 0, 0)


def bpfnb_cell(cell: str, hold: float = 0, **producing: Any) -> Figures:
    """A session's events as a DataFrame; ``hold``: for so many seconds meanwhile, the notebook holds its GIL."""
    tracer = default_host.connect().hello().pid
    with Producer(**producing) as producer:
        attach = {f"tracepoint:{TRACEPOINT}": "produce"}
        # The guard is on; but on two CPUs a producer that is flat out takes more than a quarter of them.
        with bpfnb.trace(cell, attach=attach, cflags=flags_for(producer), max_cost=1) as session:
            output = session.outputs["events"]
            before, own_before = cpu_of(tracer), time.process_time()
            producer.go()
            if hold:
                hold_the_gil(hold)
            made = producer.wait()
            quiet(lambda: output.rows + output.lost, made[0])
            read = cpu_of(tracer) - before
            frame = output.df
            own = time.process_time() - own_before
            return figures(made, len(frame) + output.dropped, output.lost, read, own)


def bcc(cell: str, pages: int = 0, hold: float = 0, keep: bool = True, **producing: Any) -> Figures:
    """bcc's documented way: a callback that decodes with event(), here into a list, and from there a DataFrame.

    ``pages``: of each CPU's perf buffer; 0: the cell has a ring buffer, of its own size. ``keep``: False for one that
    only counts. ``hold``: for so many seconds meanwhile another thread of the process holds the GIL.
    """
    with Producer(**producing) as producer, plain_bcc(cell, flags_for(producer)) as b:
        events = b["events"]
        rows: list[tuple[Any, ...]] = []
        counts = {"delivered": 0, "lost": 0}

        def collect(_: Any, data: Any, size: int) -> None:
            e = events.event(data)
            rows.append((e.ts, e.pid, e.tid, e.cpu, e.uid, e.comm))

        def tally(_: Any, data: Any, size: int) -> None:
            counts["delivered"] += 1

        def lose(lost: int) -> None:
            counts["lost"] += lost

        callback = collect if keep else tally
        if pages:
            events.open_perf_buffer(callback, page_cnt=pages, lost_cb=lose)
        else:
            events.open_ring_buffer(callback)
        poll: Callable[[int], object] = b.perf_buffer_poll if pages else b.ring_buffer_poll
        b.attach_tracepoint(tp=TRACEPOINT, fn_name="produce")
        before = time.process_time()

        def read() -> None:
            while not producer.done():
                poll(100)
            poll(100)

        producer.go()
        if hold:
            reader = threading.Thread(target=read)
            reader.start()
            hold_the_gil(hold)
            reader.join()
        else:
            read()
        made = producer.wait()
        cpu = time.process_time() - before
        frame = pd.DataFrame(rows, columns=FIELDS)
        delivered = len(frame) if keep else counts["delivered"]
        return figures(made, delivered, counts["lost"], cpu, time.process_time() - before - cpu)


class _Copied(ctypes.Structure):
    """limit.c's struct copied."""

    _fields_ = (("at", ctypes.c_void_p), ("events", ctypes.c_uint64), ("lost", ctypes.c_uint64))


def limit(cell: str, count: int, perf: bool = False) -> Figures:
    """The physical limit: libbpf's own loop over the buffer, and a callback in C that only copies each event.

    The buffers are as large as bpfnb makes them, the memory was written to before, and what there is is read 25 times a
    second, as bpfnb does: a reader that waits for every single event pays for waking up, not for reading.
    """
    if LIMIT not in os.environ:
        raise RuntimeError(missing("a C compiler"))
    memory = np.ones((count + 1) * _ROOM, np.uint8)
    copied = _Copied(at=memory.ctypes.data)
    with Producer(count=count) as producer, plain_bcc(cell, flags_for(producer)) as b:
        consume, free = _libbpf(b["events"].map_fd, perf, copied)
        b.attach_tracepoint(tp=TRACEPOINT, fn_name="produce")
        before = time.process_time()
        producer.go()
        while not producer.done():
            time.sleep(0.04)
            consume()
        consume()
        cpu = time.process_time() - before
        made = producer.wait()
        free()
    rows = memory[: copied.at - memory.ctypes.data].reshape(copied.events, -1)
    assert (np.ascontiguousarray(rows[:, 8:12]).view(np.uint32) == producer.pid).all()
    return figures(made, copied.events, copied.lost, cpu, 0)


_ROOM = 48  # bytes an event: perf fills up to 8
LIMIT_PAGES = 4096  # 16 MiB, as bpfnb's
# struct perf_event_attr as bpfnb's: each event with its time, a wake-up when half of the buffer is full.
_ATTRIBUTES = struct.pack("=IIQQQQQIIQQQQIi", 1, 96, 10, 1, 1 << 2 | 1 << 10, 0, 1 << 14 | 1 << 25, *[0] * 7, 1)


def _libbpf(map_fd: int, perf: bool, copied: _Copied) -> tuple[Callable[[], int], Callable[[], None]]:
    """libbpf's reader of a map, reached through libbcc, which brings it along: to read what there is, and to end."""
    from bpfnb.tracer.compile.engine import Engine

    libbpf, ours, kind = Engine().lib, ctypes.CDLL(os.environ[LIMIT]), "perf" if perf else "ring"
    new, consume, free = (
        getattr(libbpf, f"{kind}_buffer__{name}") for name in ("new_raw" if perf else "new", "consume", "free")
    )
    new.restype, new.argtypes = ctypes.c_void_p, None
    consume.argtypes = free.argtypes = [ctypes.c_void_p]
    if perf:
        attributes = ctypes.create_string_buffer(_ATTRIBUTES)
        pages = ctypes.c_size_t(LIMIT_PAGES // len(CPUS))
        reader = new(map_fd, pages, attributes, ours.copy_sample, ctypes.byref(copied), None)
    else:
        reader = new(map_fd, ours.copy_record, ctypes.byref(copied), None)
    if not reader:
        raise RuntimeError(f"libbpf: {os.strerror(ctypes.get_errno())}")
    return lambda: consume(reader), lambda: free(reader)


def bpftrace(pages: int, **producing: Any) -> Figures:
    """bpftrace -f json into a file, and its lines from there into a DataFrame."""
    if not shutil.which("bpftrace"):
        raise RuntimeError(missing("bpftrace"))
    with Producer(**producing) as producer, tempfile.TemporaryFile("w+") as written:
        with _bpftrace(_BPFTRACE % (TRACEPOINT, producer.pid), pages, written) as pid:
            before = cpu_of(pid)
            made = producer.run()
            quiet(lambda: os.fstat(written.fileno()).st_size)
            cpu = cpu_of(pid) - before
        before = time.process_time()
        frame, lost = _parse(written)
        return figures(made, len(frame), lost, cpu, time.process_time() - before)


@contextmanager
def _bpftrace(program: str, pages: int, written: IO[str]) -> Iterator[int]:
    environment = {**os.environ, "BPFTRACE_PERF_RB_PAGES": str(pages)}
    process = subprocess.Popen(["bpftrace", "-f", "json", "-e", program], stdout=written, env=environment)
    try:
        end = time.monotonic() + 30
        while not os.fstat(written.fileno()).st_size:  # its first line says that it is attached
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError("bpftrace did not start")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def _parse(written: IO[str]) -> tuple[pd.DataFrame, int]:
    rows, lost = [], 0
    written.seek(0)
    for line in written:
        if not line.strip():
            continue
        message = json.loads(line)
        if message["type"] == "printf":
            ts, pid, tid, cpu, uid, comm = message["data"].rstrip("\n").split(" ", 5)
            rows.append((int(ts), int(pid), int(tid), int(cpu), int(uid), comm))
        elif message["type"] == "lost_events":
            lost += message["data"]["events"]
    return pd.DataFrame(rows, columns=FIELDS), lost
