"""fsslower: reads, writes, opens and syncs of regular files that took long, with the file's whole path.

It measures system calls, so that it needs no probe inside a file system: read, write, open, fsync and their relatives.
A time has all that the call did, such as looking up the path of an open, and waiting for another thread's use of the
file. What it cannot see: files that are read through mmap, sendfile, splice or io_uring, and reads of the kernel's own;
opens that fail; system calls of 32-bit programs. "R" and "W" of the page cache are seen as well as those of the disk.
"""

from __future__ import annotations

import pandas as pd

from bpfnb.results.presentation import Rows
from bpfnb.tools.file import _calls
from bpfnb.tools.file._paths import READ_PATH, paths
from bpfnb.tools.tool import Column, Option, Spec, Tool, clock

__all__ = ["TOOL"]

_SOURCE = (
    _calls.CALLS
    + READ_PATH
    + r"""
struct event_t {
    u64 off, lat;
    s64 result;
    u32 pid, tid, t;
    char comm[TASK_COMM_LEN], fs[16];
    u32 size;
    u8 text[];
};
struct buffer_t {
    struct event_t event;
    u8 text[ROOM];
};
BPF_PERF_OUTPUT(events);
BPF_PERCPU_ARRAY(buffers, struct buffer_t, 1);

RAW_TRACEPOINT_PROBE(sys_exit) {
    u64 now = bpf_ktime_get_ns(), id = bpf_get_current_pid_tgid();
    struct call_t call = {};
    char type[16] __attribute__((aligned(8))) = {};
    int zero = 0;

    if (!ends(&call, ctx->args[1], type) || now - call.since < MIN_NS)
        return 0;
    struct buffer_t *buffer = buffers.lookup(&zero);
    if (!buffer)
        return 0;
    struct event_t *event = &buffer->event;
    event->off = call.offset;
    event->lat = now - call.since;
    event->result = ctx->args[1];
    event->pid = id >> 32;
    event->tid = id;
    event->t = call.op;
    bpf_get_current_comm(&event->comm, sizeof(event->comm));
    __builtin_memcpy(event->fs, type, sizeof(event->fs));
    read_file_path(&event->size, event->text, call.file);
    u64 size = sizeof(*event) + event->size;
    asm volatile("" : "+r"(size));  // the verifier is to see that what is compared is what is used
    if (size < sizeof(*buffer))
        events.perf_submit(ctx, event, size);
    return 0;
}
"""
)


def _build(min_ms: float, type: str | None) -> Spec:
    flags = [f"-DMIN_NS={max(int(min_ms * 1e6), 0)}ULL", *_calls.flags(type)]
    return Spec(_SOURCE, Rows(_convert), cflags=flags)


def _convert(events: pd.DataFrame) -> pd.DataFrame:
    moved = events["result"].where((events["result"] > 0) & events["t"].isin([ord("R"), ord("W")]), 0)
    return events.assign(
        t=pd.Categorical([chr(t) for t in events["t"]], categories=list("RWOS")),
        bytes=moved,
        lat=pd.to_timedelta(events["lat"].astype("int64")),
        filename=paths(events),
        error=events["result"].clip(upper=0).astype("int32"),
    )


TOOL = Tool(
    "fsslower",
    "file",
    __doc__,
    columns=[
        Column("time", "TIME", "when the call ended", show=clock),
        Column("comm", "COMM", "name of the thread", width=16),
        Column("pid", "PID", "its process"),
        Column("tid", "", "the thread"),
        Column("fs", "FS", "the file system's kind, such as ext4"),
        Column("t", "T", "R read, W write, O open, S sync", width=2),
        Column("bytes", "BYTES", "how many were read or written", "bytes"),
        Column("off", "OFF_KB", "where in the file, at the beginning", "bytes", show=lambda off: f"{off // 1024}"),
        Column(
            "lat", "LAT(ms)", "how long the call took", "timedelta", show=lambda lat: f"{lat.total_seconds() * 1e3:.2f}"
        ),
        Column("error", "", "0, or the number of an error, negative"),
        Column("filename", "FILENAME", "the file's path, from the root of all mounts", width=40),
    ],
    build=_build,
    options=[
        Option("min_ms", 10.0, "only calls of at least so many milliseconds; 0: all", short="m"),
        Option("type", None, "only files of this kind of file system, such as ext4", short="T"),
    ],
)
