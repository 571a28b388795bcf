"""runqslower: threads that waited for a CPU for long, and whom each had to wait for.

A thread waits from its wake-up, or from the moment that another takes its CPU away, until it runs. prev_comm and
prev_tid are the thread that ran there before it. What it cannot see: waits that began before it was attached. Filters
choose by the thread that waits.
"""

from __future__ import annotations

import pandas as pd

from bpfnb.results.presentation import Rows
from bpfnb.tools.sched._queue import WAITS
from bpfnb.tools.tool import Column, Option, Spec, Tool, clock

__all__ = ["TOOL"]

_SOURCE = (
    WAITS
    + r"""
struct event_t {
    u64 lat;
    u32 pid, tid, prev_tid;
    char comm[TASK_COMM_LEN], prev_comm[TASK_COMM_LEN];
};
BPF_RINGBUF_OUTPUT(events, 64);

RAW_TRACEPOINT_PROBE(sched_switch) {
    struct task_struct *prev = (struct task_struct *)ctx->args[1];
    struct task_struct *next = (struct task_struct *)ctx->args[2];
    struct event_t event = {};

    if (bpfnb_selected_task(prev))
        leaves_cpu(prev->pid, ctx->args[0] || ctx->args[3] == TASK_RUNNING);
    if (!gets_cpu(next->pid, &event.lat) || event.lat < MIN_NS)
        return 0;
    event.pid = next->tgid;
    event.tid = next->pid;
    event.prev_tid = prev->pid;
    bpf_probe_read_kernel_str(&event.comm, sizeof(event.comm), next->comm);
    bpf_probe_read_kernel_str(&event.prev_comm, sizeof(event.prev_comm), prev->comm);
    events.ringbuf_output(&event, sizeof(event), 0);
    return 0;
}
"""
)


def _build(min_us: int) -> Spec:
    return Spec(_SOURCE, Rows(_convert), cflags=[f"-DMIN_NS={max(min_us, 0)}000ULL"])


def _convert(events: pd.DataFrame) -> pd.DataFrame:
    return events.assign(lat=pd.to_timedelta(events["lat"]))


TOOL = Tool(
    "runqslower",
    "sched",
    __doc__,
    columns=[
        Column("time", "TIME", "when it ran at last", show=clock),
        Column("comm", "COMM", "name of the thread that waited", width=16),
        Column("pid", "", "its process"),
        Column("tid", "TID", "the thread"),
        Column("lat", "LAT(us)", "how long it waited", "timedelta", show=lambda lat: f"{lat.value // 1000}"),
        Column("prev_comm", "PREV_COMM", "name of the thread that ran before", width=16),
        Column("prev_tid", "PREV_TID", "that thread; 0 is the idle task"),
    ],
    build=_build,
    options=[Option("min_us", 10_000, "only waits of at least so many microseconds")],
)
