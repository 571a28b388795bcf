"""runqlat: how long threads wait for a CPU, from being ready to run until they run.

A thread waits from its wake-up, or from the moment that another takes its CPU away, until it runs. The idle task is
left out. What it cannot see: waits that began before it was attached; these are not counted. Filters choose by the
thread that waits.
"""

from __future__ import annotations

from bpfnb.tools import histograms
from bpfnb.tools.sched._queue import WAITS
from bpfnb.tools.tool import Column, Option, Spec, Tool

__all__ = ["TOOL"]

_SOURCE = (
    WAITS
    + r"""
struct key_t {
#if PIDS
    u32 pid;
#endif
#if TIDS
    u32 tid;
#endif
#if COMMS
    char comm[TASK_COMM_LEN];
#endif
    u32 slot;
};
BPF_HISTOGRAM(dist, struct key_t);

RAW_TRACEPOINT_PROBE(sched_switch) {
    struct task_struct *prev = (struct task_struct *)ctx->args[1];
    struct task_struct *next = (struct task_struct *)ctx->args[2];
    u64 waited = 0;

    if (bpfnb_selected_task(prev))
        leaves_cpu(prev->pid, ctx->args[0] || ctx->args[3] == TASK_RUNNING);
    if (!gets_cpu(next->pid, &waited))
        return 0;
    struct key_t key = {};
#if PIDS
    key.pid = next->tgid;
#endif
#if TIDS
    key.tid = next->pid;
#endif
#if COMMS
    bpf_probe_read_kernel_str(&key.comm, sizeof(key.comm), next->comm);
#endif
    key.slot = bpf_log2l(waited / UNIT);
    dist.increment(key);
    return 0;
}
"""
)


def _build(milliseconds: bool, pids: bool, tids: bool, comms: bool) -> Spec:
    unit, ns = ("ms", 1_000_000) if milliseconds else ("us", 1_000)
    by = [name for name, wanted in (("pid", pids), ("tid", tids), ("comm", comms)) if wanted]
    flags = [f"-DUNIT={ns}ULL", f"-DPIDS={int(pids)}", f"-DTIDS={int(tids)}", f"-DCOMMS={int(comms)}"]
    columns = [*by, *(column.name for column in histograms.COLUMNS)]
    return Spec(_SOURCE, histograms.durations("dist", unit, by), cflags=flags, columns=columns)


TOOL = Tool(
    "runqlat",
    "sched",
    __doc__,
    columns=[
        Column("pid", "PID", "the process that waited (with pids)"),
        Column("tid", "TID", "the thread that waited (with tids)"),
        Column("comm", "COMM", "its name (with comms)", width=16),
        *histograms.COLUMNS,
    ],
    build=_build,
    options=[
        Option("milliseconds", False, "buckets of milliseconds, not microseconds", short="m"),
        Option("pids", False, "a histogram for each process", short="P"),
        Option("tids", False, "a histogram for each thread", short="L"),
        Option("comms", False, "a histogram for each thread's name", short="C"),
    ],
    view="histogram",
)
