"""biosnoop: requests of block devices, each with the process that made it, and how long it took.

The process is the one that made the request, not the one that issued it to the device. Writes through the page cache
are made by the kernel's own threads, later. What it cannot see: requests made before it was attached; devices without a
queue of requests (zram, brd, some device-mapper targets). Before Linux 6.4 a request that one process begins and others
add to is counted for one of them.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from bpfnb.results.presentation import Rows
from bpfnb.tools.block import _requests
from bpfnb.tools.tool import Column, Option, Spec, Tool, clock

__all__ = ["TOOL"]

_SOURCE = (
    _requests.TRACKING
    + r"""
struct event_t {
    u64 sector, bytes, lat;
    s64 que;
    u32 pid, tid;
    int error;
    u32 t;
    char comm[TASK_COMM_LEN], disk[DISK_NAME_LEN];
};
BPF_RINGBUF_OUTPUT(events, 64);

RAW_TRACEPOINT_PROBE(block_rq_complete) {
    struct request *request = (struct request *)ctx->args[0];
    struct request_t done = {};
    struct event_t event = {};
    u64 now = bpf_ktime_get_ns();

    if (!completes(request, ctx->args[2], request->__data_len, &done))
        return 0;
    event.t = operation(request->cmd_flags, &done);
    event.que = done.issued ? done.issued - done.made : -1;
    event.lat = now - (done.issued ? done.issued : done.made);
    event.sector = done.sector;
    event.bytes = done.bytes;
    event.pid = done.pid;
    event.tid = done.tid;
    event.error = ctx->args[1];
    __builtin_memcpy(event.comm, done.comm, sizeof(event.comm));
    bpf_probe_read_kernel_str(&event.disk, sizeof(event.disk), request->q->disk->disk_name);
    events.ringbuf_output(&event, sizeof(event), 0);
    return 0;
}
"""
)


def _build(disk: str | None, has: frozenset[str]) -> Spec:
    return Spec(_SOURCE, Rows(lambda events: _convert(events, disk)), cflags=_requests.flags(has))


def _convert(events: pd.DataFrame, disk: str | None) -> pd.DataFrame:
    if disk is not None:
        events = events[events["disk"] == disk].reset_index(drop=True)
    return events.assign(
        t=_requests.operation_names(events["t"]),
        que=pd.to_timedelta(events["que"].where(events["que"] >= 0)),
        lat=pd.to_timedelta(events["lat"].astype("int64")),
    )


def _ms(duration: Any) -> str:
    return "-" if pd.isna(duration) else f"{duration.value / 1e6:.3f}"


TOOL = Tool(
    "biosnoop",
    "block",
    __doc__,
    columns=[
        Column("time", "TIME", "when it was done", show=clock),
        Column("comm", "COMM", "name of the thread that made it", width=16),
        Column("pid", "PID", "its process"),
        Column("tid", "", "the thread"),
        Column("disk", "DISK", "the device"),
        Column("t", "T", "R read, W write, D discard, F flush, N another", width=2),
        Column("sector", "SECTOR", "where it begins, in sectors of 512 bytes", width=12),
        Column("bytes", "BYTES", "how many were read or written", "bytes"),
        Column("que", "QUE(ms)", "from making it to issuing it; NaT where it was not issued", "timedelta", show=_ms),
        Column("lat", "LAT(ms)", "from issuing it, else from making it, to its end", "timedelta", show=_ms),
        Column("error", "", "0, or the number of an error, negative"),
    ],
    build=_build,
    options=[Option("disk", None, "only this device, such as vda", short="d")],
    hooks=_requests.HOOKS,
)
