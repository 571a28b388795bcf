"""cpudist: how long threads stay on a CPU, or off it, each time.

A stay ends when another thread gets the CPU, whether the thread gave it up or lost it. The idle task is left out. What
it cannot see: stays that began before it was attached, and those that have not ended.
"""

from __future__ import annotations

from bpfnb.tools import histograms
from bpfnb.tools.tool import Column, Option, Spec, Tool

__all__ = ["TOOL"]

_SOURCE = r"""
#include <linux/sched.h>

struct key_t {
#if PIDS
    u32 pid;
#endif
#if TIDS
    u32 tid;
#endif
    u32 slot;
};
BPF_HISTOGRAM(dist, struct key_t);

#if OFFCPU
BPF_HASH(since, u32, u64);
#else
struct stay_t { u64 since; u32 tid; };
BPF_PERCPU_ARRAY(running, struct stay_t, 1);
#endif

static inline void count(u32 pid, u32 tid, u64 since, u64 now) {
    struct key_t key = {};
    if (now < since)
        return;
#if PIDS
    key.pid = pid;
#endif
#if TIDS
    key.tid = tid;
#endif
    key.slot = bpf_log2l((now - since) / UNIT);
    dist.increment(key);
}

RAW_TRACEPOINT_PROBE(sched_switch) {
    struct task_struct *prev = (struct task_struct *)ctx->args[1];
    struct task_struct *next = (struct task_struct *)ctx->args[2];
    u64 now = bpf_ktime_get_ns();
    u32 left = prev->pid, came = next->pid;
#if OFFCPU
    if (left && !(ctx->args[3] & TASK_DEAD) && bpfnb_selected_task(prev))
        since.update(&left, &now);
    u64 *off = since.lookup(&came);
    if (off) {
        count(next->tgid, came, *off, now);
        since.delete(&came);
    }
#else
    struct stay_t *stay = running.lookup(&(int){0});
    if (!stay)
        return 0;
    if (left && stay->tid == left && bpfnb_selected_task(prev))
        count(prev->tgid, left, stay->since, now);
    stay->since = now;
    stay->tid = came;
#endif
    return 0;
}
"""


def _build(off_cpu: bool, milliseconds: bool, pids: bool, tids: bool) -> Spec:
    unit, ns = ("ms", 1_000_000) if milliseconds else ("us", 1_000)
    by = [name for name, wanted in (("pid", pids), ("tid", tids)) if wanted]
    flags = [f"-DUNIT={ns}ULL", f"-DPIDS={int(pids)}", f"-DTIDS={int(tids)}", f"-DOFFCPU={int(off_cpu)}"]
    columns = [*by, *(column.name for column in histograms.COLUMNS)]
    return Spec(_SOURCE, histograms.durations("dist", unit, by), cflags=flags, columns=columns)


TOOL = Tool(
    "cpudist",
    "sched",
    __doc__,
    columns=[
        Column("pid", "PID", "the process (with pids)"),
        Column("tid", "TID", "the thread (with tids)"),
        *histograms.COLUMNS,
    ],
    build=_build,
    options=[
        Option("off_cpu", False, "the time off the CPU: asleep, or waiting for one", short="O"),
        Option("milliseconds", False, "buckets of milliseconds, not microseconds", short="m"),
        Option("pids", False, "a histogram for each process", short="P"),
        Option("tids", False, "a histogram for each thread", short="L"),
    ],
    view="histogram",
)
