"""wakeuptime: who wakes whom, with the waker's stack, and how long the woken had been blocked.

The time is from leaving the CPU, to wait for something, to the wake-up. The waker is what ran where the wake-up was
made: an interrupt shows in the stack, behind the thread that it interrupted. What it cannot see: times that began
before it was attached; frames of programs without frame pointers. Filters choose by the thread that is woken.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from bpfnb.results.maps.map import Map
from bpfnb.results.presentation import Table
from bpfnb.tools.stacks import STACKS, STORAGE, TIMES, flags_of, folded, time_flags
from bpfnb.tools.tool import Column, Spec, Tool

__all__ = ["TOOL"]

# sched_waking is in the waker's context; sched_wakeup may be on the CPU of the woken.
_SOURCE = (
    r"""
#include <linux/sched.h>
"""
    + STACKS
    + r"""
struct key_t {
    u64 kernel_stack, user_stack;
    u32 pid, target_pid;
    char waker[TASK_COMM_LEN], target[TASK_COMM_LEN];
};
BPF_HASH(blocked, u32, u64);
BPF_HASH(times, struct key_t, u64);

RAW_TRACEPOINT_PROBE(sched_switch) {
    struct task_struct *prev = (struct task_struct *)ctx->args[1];
    u32 tid = prev->pid;
    u64 now = bpf_ktime_get_ns(), state = ctx->args[3];

    if (ctx->args[0] || !tid || state == TASK_RUNNING || (state & TASK_DEAD) || !bpfnb_selected_task(prev))
        return 0;
    blocked.update(&tid, &now);
    return 0;
}

RAW_TRACEPOINT_PROBE(sched_waking) {
    struct task_struct *target = (struct task_struct *)ctx->args[0];
    u32 tid = target->pid;
    struct key_t key = {};
    u64 *since = blocked.lookup(&tid);

    if (!since)
        return 0;
    u64 passed = bpf_ktime_get_ns() - *since;
    blocked.delete(&tid);
    if (passed < MIN_NS || passed > MAX_NS)
        return 0;
    key.pid = bpf_get_current_pid_tgid() >> 32;
    key.target_pid = target->tgid;
    bpf_get_current_comm(&key.waker, sizeof(key.waker));
    bpf_probe_read_kernel_str(&key.target, sizeof(key.target), target->comm);
    key.kernel_stack = stack_of(ctx, 0);
    key.user_stack = stack_of(ctx, BPF_F_USER_STACK);
    times.increment(key, passed);
    return 0;
}
"""
)


def _build(min_us: int, max_us: int | None, stack_storage_size: int) -> Spec:
    flags = [
        *time_flags(min_us, max_us),
        *flags_of(stack_storage_size),
    ]
    return Spec(_SOURCE, Table(_table, as_is=["stacks"]), cflags=flags)


def _table(maps: Mapping[str, Map]) -> pd.DataFrame:
    by = ["pid", "waker", "target_pid", "target"]
    frame = folded(maps["times"].df, maps["stacks"], ["kernel_stack", "user_stack"], "value", by)
    frame = frame.assign(total=pd.to_timedelta(frame["count"]))
    frame.attrs["lost"] = maps["times"].lost + maps["stacks"].lost
    return frame


TOOL = Tool(
    "wakeuptime",
    "sched",
    __doc__,
    columns=[
        Column("pid", "PID", "the process that woke; 0: the idle task"),
        Column("waker", "WAKER", "name of its thread", width=16),
        Column("target_pid", "TPID", "the process that was woken"),
        Column("target", "TARGET", "name of its thread", width=16),
        Column("stack", "STACK", "where it was woken, the outermost function first", width=60),
        Column(
            "total", "TIME(us)", "how long the woken had been blocked", "timedelta", 12,
            lambda total: f"{total.value // 1000}",
        ),
    ],
    build=_build,
    options=[
        *TIMES,
        STORAGE,
    ],
    view="stacks",
)  # fmt: skip
