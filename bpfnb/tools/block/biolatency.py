"""biolatency: how long block devices take for requests, as a histogram.

A request's time begins when it is issued to the device, the last time where that is done again, and ends with its last
part. Filters choose by the process that made the request. What it cannot see: requests made before it was attached;
devices without a queue of requests (zram, brd, some device-mapper targets). Times that would be negative are not
counted in the histogram but in attrs["negative"].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from bpfnb.results.maps.map import Map
from bpfnb.results.presentation import Table
from bpfnb.tools import histograms
from bpfnb.tools.block import _requests
from bpfnb.tools.tool import Column, Option, Spec, Tool

__all__ = ["TOOL"]

# The bits are other ones in other kernels; these numbers are ours.
_MARKS = ("Sync", "Metadata", "Priority", "NoMerge", "Idle", "ForcedUnitAccess", "PreFlush", "ReadAhead", "Background")
_NAMES = {0: "Read", 1: "Write", 2: "Flush", 3: "Discard", 5: "SecureErase", 9: "WriteZeros"}

_SOURCE = (
    _requests.TRACKING
    + r"""
struct key_t {
#if DISKS
    char disk[DISK_NAME_LEN];
#endif
#if FLAGS
    u32 op, marks;
#endif
    u32 slot;
};
BPF_HISTOGRAM(dist, struct key_t);
BPF_ARRAY(negative, u64, 1);

static inline u32 marks(u32 flags) {
    return !!(flags & REQ_SYNC) | !!(flags & REQ_META) << 1 | !!(flags & REQ_PRIO) << 2 | !!(flags & REQ_NOMERGE) << 3
        | !!(flags & REQ_IDLE) << 4 | !!(flags & REQ_FUA) << 5 | !!(flags & REQ_PREFLUSH) << 6
        | !!(flags & REQ_RAHEAD) << 7 | !!(flags & REQ_BACKGROUND) << 8;
}

RAW_TRACEPOINT_PROBE(block_rq_complete) {
    struct request *request = (struct request *)ctx->args[0];
    struct request_t done = {};
    struct key_t key = {};
    u64 now = bpf_ktime_get_ns();

    if (!completes(request, ctx->args[2], request->__data_len, &done))
        return 0;
    u64 began = QUEUED || !done.issued ? done.made : done.issued;
    if (now < began) {
        negative.increment(0);
        return 0;
    }
#if DISKS
    bpf_probe_read_kernel_str(&key.disk, sizeof(key.disk), request->q->disk->disk_name);
#endif
#if FLAGS
    u32 flags = request->cmd_flags;
    key.op = operation(flags, &done);
    key.marks = marks(flags);
#endif
    key.slot = bpf_log2l((now - began) / UNIT);
    dist.increment(key);
    return 0;
}
"""
)


def _build(queued: bool, milliseconds: bool, disks: bool, flags: bool, has: frozenset[str]) -> Spec:
    unit, ns = ("ms", 1_000_000) if milliseconds else ("us", 1_000)
    macros = {"UNIT": f"{ns}ULL", "QUEUED": int(queued), "DISKS": int(disks), "FLAGS": int(flags)}
    table = histograms.durations("dist", unit, [*(["disk"] if disks else []), *(["op", "marks"] if flags else [])])

    def compute(maps: Mapping[str, Map]) -> pd.DataFrame:
        frame = table.compute(maps)
        frame = frame.assign(flags=_flags(frame)) if flags else frame
        frame.attrs["negative"] = maps["negative"][0]
        return frame

    by = [name for name, wanted in (("disk", disks), ("flags", flags)) if wanted]
    return Spec(
        _SOURCE,
        Table(compute),
        cflags=[*(f"-D{name}={value}" for name, value in macros.items()), *_requests.flags(has)],
        columns=[*by, *(column.name for column in histograms.COLUMNS)],
    )


def _flags(frame: pd.DataFrame) -> pd.Categorical[Any]:
    """Return what requests are in bcc's words: "Sync-Write"."""
    return pd.Categorical([_words(op, marks) for op, marks in zip(frame["op"], frame["marks"], strict=True)])


def _words(op: int, marks: int) -> str:
    words = [word for bit, word in enumerate(_MARKS) if marks >> bit & 1]
    return "-".join([*reversed(words), _NAMES.get(op, f"Operation{op}")])


TOOL = Tool(
    "biolatency",
    "block",
    __doc__,
    columns=[
        Column("disk", "DISK", "the device (with disks)", width=10),
        Column("flags", "FLAGS", "what the requests are: Read, Sync-Write, ... (with flags)", width=24),
        *histograms.COLUMNS,
    ],
    build=_build,
    options=[
        Option("queued", False, "from the moment that the request was made: with the time in queues", short="Q"),
        Option("milliseconds", False, "buckets of milliseconds, not microseconds", short="m"),
        Option("disks", False, "a histogram for each device", short="D"),
        Option("flags", False, "a histogram for each kind of request", short="F"),
    ],
    view="histogram",
    hooks=_requests.HOOKS,
)
