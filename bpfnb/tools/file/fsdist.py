"""fsdist: how long reads, writes, opens and syncs of regular files take, as histograms.

It measures system calls, so that it needs no probe inside a file system: read, write, open, fsync and their relatives.
What it cannot see: files that are read through mmap, sendfile, splice or io_uring, and reads of the kernel's own; opens
that fail; system calls of 32-bit programs.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from bpfnb.results.maps.map import Map
from bpfnb.results.presentation import Table
from bpfnb.tools import histograms
from bpfnb.tools.file import _calls
from bpfnb.tools.tool import Column, Option, Spec, Tool

__all__ = ["TOOL"]

_NAMES = {ord("R"): "read", ord("W"): "write", ord("O"): "open", ord("S"): "fsync"}

_SOURCE = (
    _calls.CALLS
    + r"""
struct key_t { u32 op, slot; };
BPF_HISTOGRAM(dist, struct key_t);

RAW_TRACEPOINT_PROBE(sys_exit) {
    u64 now = bpf_ktime_get_ns();
    struct call_t call = {};
    char type[16] __attribute__((aligned(8))) = {};
    struct key_t key = {};

    if (!ends(&call, ctx->args[1], type))
        return 0;
    key.op = call.op;
    key.slot = bpf_log2l((now - call.since) / UNIT);
    dist.increment(key);
    return 0;
}
"""
)


def _build(type: str | None, milliseconds: bool) -> Spec:
    unit, ns = ("ms", 1_000_000) if milliseconds else ("us", 1_000)
    table = histograms.durations("dist", unit, ["op"])

    def compute(maps: Mapping[str, Map]) -> pd.DataFrame:
        frame = table.compute(maps)
        return frame.assign(operation=pd.Categorical([_NAMES[op] for op in frame["op"]]))

    return Spec(_SOURCE, Table(compute), cflags=[f"-DUNIT={ns}ULL", *_calls.flags(type)])


TOOL = Tool(
    "fsdist",
    "file",
    __doc__,
    columns=[Column("operation", "OPERATION", "read, write, open or fsync", width=10), *histograms.COLUMNS],
    build=_build,
    options=[
        Option("type", None, "only files of this kind of file system, such as ext4", short="T"),
        Option("milliseconds", False, "buckets of milliseconds, not microseconds", short="m"),
    ],
    view="histogram",
)
