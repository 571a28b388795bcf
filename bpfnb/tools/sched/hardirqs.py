"""hardirqs: time that the handlers of hardware interrupts take.

Each handler is counted by itself, where several share an interrupt. Filters choose by the task that was interrupted.
What it cannot see: interrupts without a handler in /proc/interrupts' numbered rows (timers, calls between CPUs), and
softirqs, which are the tool softirqs.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from bpfnb.results.maps.map import Map
from bpfnb.results.presentation import Table
from bpfnb.tools import histograms
from bpfnb.tools.tool import Column, Option, Spec, Tool

__all__ = ["TOOL"]

# Handlers run with interrupts off, so a CPU runs one at a time.
_SOURCE = r"""
#include <linux/interrupt.h>

struct started_t { u64 since; u32 irq; };
BPF_PERCPU_ARRAY(started, struct started_t, 1);

#if DIST
struct key_t { u32 irq; char hardirq[32]; u32 slot; };
BPF_HISTOGRAM(dist, struct key_t);
#else
struct key_t { u32 irq; char hardirq[32]; };
struct total_t { u64 count, ns; };
BPF_HASH(totals, struct key_t, struct total_t);
#endif

RAW_TRACEPOINT_PROBE(irq_handler_entry) {
    struct started_t *handler = started.lookup(&(int){0});
    if (!handler || !bpfnb_selected())
        return 0;
    handler->irq = ctx->args[0];
    handler->since = bpf_ktime_get_ns();
    return 0;
}

RAW_TRACEPOINT_PROBE(irq_handler_exit) {
    u64 now = bpf_ktime_get_ns();
    struct irqaction *action = (struct irqaction *)ctx->args[1];
    struct started_t *handler = started.lookup(&(int){0});
    struct key_t key = {};

    if (!handler || !handler->since || handler->irq != ctx->args[0])
        return 0;
    u64 passed = now - handler->since;
    handler->since = 0;
    key.irq = ctx->args[0];
    bpf_probe_read_kernel_str(&key.hardirq, sizeof(key.hardirq), action->name);
#if DIST
    key.slot = bpf_log2l(passed / 1000);
    dist.increment(key);
#else
    struct total_t none = {}, *total = totals.lookup_or_try_init(&key, &none);
    if (total) {
        __sync_fetch_and_add(&total->count, 1);
        __sync_fetch_and_add(&total->ns, passed);
    }
#endif
    return 0;
}
"""


def _build(dist: bool) -> Spec:
    flags = [f"-DDIST={int(dist)}"]
    if dist:
        columns = ["irq", "hardirq", *(column.name for column in histograms.COLUMNS)]
        return Spec(_SOURCE, histograms.durations("dist", "us", ["irq", "hardirq"]), cflags=flags, columns=columns)
    return Spec(_SOURCE, Table(_totals), cflags=flags, columns=["irq", "hardirq", "count", "total"])


def _totals(maps: Mapping[str, Map]) -> pd.DataFrame:
    frame = maps["totals"].df.sort_values("irq", kind="stable", ignore_index=True)
    return frame.assign(count=frame["count"].astype("int64"), total=pd.to_timedelta(frame["ns"]))


TOOL = Tool(
    "hardirqs",
    "sched",
    __doc__,
    columns=[
        Column("irq", "IRQ", "the interrupt's number"),
        Column("hardirq", "HARDIRQ", "the handler's name", width=26),
        *(column for column in histograms.COLUMNS if column.name != "count"),
        Column("count", "COUNT", "how often it ran"),
        Column(
            "total", "TOTAL_usecs", "how long it ran in all", "timedelta", 12, lambda total: f"{total.value // 1000}"
        ),
    ],
    build=_build,
    options=[Option("dist", False, "a histogram of each handler's times", short="d")],
    view="table",
)
