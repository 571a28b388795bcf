"""biotop: what each process reads from and writes to block devices, and how long that takes.

The process is the one that made the requests. Writes through the page cache are made by the kernel's own threads,
later. What it cannot see: requests made before it was attached; devices without a queue of requests (zram, brd, some
device-mapper targets).
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from bpfnb.results.maps.map import Map
from bpfnb.results.presentation import Table
from bpfnb.tools.block import _requests
from bpfnb.tools.tool import Column, Spec, Tool

__all__ = ["TOOL"]

_SOURCE = (
    _requests.TRACKING
    + r"""
struct key_t {
    u32 pid, d, maj, min;
    char comm[TASK_COMM_LEN], disk[DISK_NAME_LEN];
};
struct total_t { u64 io, bytes, ns; };
BPF_HASH(totals, struct key_t, struct total_t);

RAW_TRACEPOINT_PROBE(block_rq_complete) {
    struct request *request = (struct request *)ctx->args[0];
    struct request_t done = {};
    struct key_t key = {};
    struct total_t none = {};
    u64 now = bpf_ktime_get_ns();

    if (!completes(request, ctx->args[2], request->__data_len, &done))
        return 0;
    u64 began = done.issued ? done.issued : done.made;
    key.pid = done.pid;
    key.d = operation(request->cmd_flags, &done);
    key.maj = request->q->disk->major;
    key.min = request->q->disk->first_minor;
    __builtin_memcpy(key.comm, done.comm, sizeof(key.comm));
    bpf_probe_read_kernel_str(&key.disk, sizeof(key.disk), request->q->disk->disk_name);
    struct total_t *total = totals.lookup_or_try_init(&key, &none);
    if (!total)
        return 0;
    __sync_fetch_and_add(&total->io, 1);
    __sync_fetch_and_add(&total->bytes, done.bytes);
    __sync_fetch_and_add(&total->ns, now > began ? now - began : 0);
    return 0;
}
"""
)


def _build(has: frozenset[str]) -> Spec:
    return Spec(_SOURCE, Table(_totals), cflags=_requests.flags(has))


def _totals(maps: Mapping[str, Map]) -> pd.DataFrame:
    frame = maps["totals"].df
    frame = frame[frame["io"] > 0].sort_values("bytes", ascending=False, kind="stable", ignore_index=True)
    return frame.assign(d=_requests.operation_names(frame["d"]), avg=pd.to_timedelta(frame["ns"] // frame["io"]))


TOOL = Tool(
    "biotop",
    "block",
    __doc__,
    columns=[
        Column("pid", "PID", "the process that made the requests"),
        Column("comm", "COMM", "name of its thread", width=16),
        Column("d", "D", "R read, W write, D discard, F flush, N another", width=2),
        Column("maj", "MAJ", "the device's number, its first part", width=4),
        Column("min", "MIN", "its second part", width=4),
        Column("disk", "DISK", "the device"),
        Column("io", "I/O", "how many requests"),
        Column("bytes", "Kbytes", "how much they read or wrote", "bytes", show=lambda size: f"{size / 1024:.1f}"),
        Column(
            "avg", "AVGms", "time from issuing to the end, on average", "timedelta",
            show=lambda avg: f"{avg.value / 1e6:.2f}",
        ),
    ],
    build=_build,
    view="table",
    hooks=_requests.HOOKS,
    interval=1,
)  # fmt: skip
