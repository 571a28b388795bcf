"""softirqs: time that softirqs take, by kind.

Counts equal those of /proc/softirqs. Hardware interrupts that come meanwhile are in the time. Filters choose by the
task that was interrupted. What it cannot see: softirqs' work that PREEMPT_RT kernels and threaded NAPI do in threads.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from bpfnb.results.maps.map import Map
from bpfnb.results.presentation import Table
from bpfnb.tools import histograms
from bpfnb.tools.tool import Column, Option, Spec, Tool

__all__ = ["TOOL"]

# include/linux/interrupt.h: HI_SOFTIRQ and the following, the same since v4.7
_KINDS = ("hi", "timer", "net_tx", "net_rx", "block", "irq_poll", "tasklet", "sched", "hrtimer", "rcu")

# A CPU runs one softirq at a time, in interrupts and in ksoftirqd: with softirqs off, so they do not nest.
_SOURCE = r"""
#include <linux/interrupt.h>

struct total_t { u64 count, ns, since; };
BPF_PERCPU_ARRAY(totals, struct total_t, 16);
#if DIST
struct key_t { u32 vec; u32 slot; };
BPF_HISTOGRAM(dist, struct key_t);
#endif

RAW_TRACEPOINT_PROBE(softirq_entry) {
    u32 vec = ctx->args[0];
    struct total_t *total = totals.lookup(&vec);
    if (total && bpfnb_selected())
        total->since = bpf_ktime_get_ns();
    return 0;
}

RAW_TRACEPOINT_PROBE(softirq_exit) {
    u64 now = bpf_ktime_get_ns();
    u32 vec = ctx->args[0];
    struct total_t *total = totals.lookup(&vec);

    if (!total || !total->since)
        return 0;
    u64 passed = now - total->since;
    total->since = 0;
    total->count += 1;
    total->ns += passed;
#if DIST
    struct key_t key = {};
    key.vec = vec;
    key.slot = bpf_log2l(passed / 1000);
    dist.increment(key);
#endif
    return 0;
}
"""


def _build(dist: bool) -> Spec:
    flags = [f"-DDIST={int(dist)}"]
    if dist:
        table = histograms.durations("dist", "us", ["vec"])
        columns = ["softirq", *(column.name for column in histograms.COLUMNS)]
        return Spec(_SOURCE, Table(lambda maps: _named(table.compute(maps))), cflags=flags, columns=columns)
    return Spec(_SOURCE, Table(_totals), cflags=flags, columns=["softirq", "count", "total"])


def _totals(maps: Mapping[str, Map]) -> pd.DataFrame:
    frame = maps["totals"].reduced("sum")
    frame = frame[frame["count"] > 0].reset_index(drop=True)
    frame = frame.assign(vec=frame["key"], count=frame["count"].astype("int64"), total=pd.to_timedelta(frame["ns"]))
    return _named(frame)


def _named(frame: pd.DataFrame) -> pd.DataFrame:
    names = [_KINDS[vec] if vec < len(_KINDS) else str(vec) for vec in frame["vec"]]
    return frame.assign(softirq=pd.Categorical(names))


TOOL = Tool(
    "softirqs",
    "sched",
    __doc__,
    columns=[
        Column("softirq", "SOFTIRQ", "which kind", width=16),
        *(column for column in histograms.COLUMNS if column.name != "count"),
        Column("count", "COUNT", "how many were handled"),
        Column(
            "total", "TOTAL_usecs", "how long it took in all", "timedelta", 12, lambda total: f"{total.value // 1000}"
        ),
    ],
    build=_build,
    options=[Option("dist", False, "a histogram of each kind's times", short="d")],
    view="table",
)
