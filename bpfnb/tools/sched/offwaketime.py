"""offwaketime: where threads block and who wakes them, by both stacks, and how long they are off the CPU.

The time is from leaving the CPU, to wait for something, until it runs again. The waker is what ran where the wake-up
was made: an interrupt shows in its stack, behind the thread that it interrupted. What it cannot see: times that began
before it was attached, and those that have not ended; threads that lose the CPU, and do not wait for anything else;
frames of programs without frame pointers. Filters choose by the thread that is woken.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from bpfnb.results.maps.map import Map
from bpfnb.results.presentation import Table
from bpfnb.tools.stacks import STACKS, STORAGE, TIMES, flags_of, named, time_flags
from bpfnb.tools.tool import Column, Spec, Tool

__all__ = ["TOOL"]

_SOURCE = (
    r"""
#include <linux/sched.h>
"""
    + STACKS
    + r"""
struct key_t {
    u64 kernel_stack, user_stack, waker_kernel_stack, waker_user_stack;
    u32 pid, waker_pid;
    char target[TASK_COMM_LEN], waker[TASK_COMM_LEN];
};
struct left_t { u64 since, woken; struct key_t key; };
BPF_HASH(left, u32, struct left_t);
BPF_HASH(times, struct key_t, u64);

RAW_TRACEPOINT_PROBE(sched_switch) {
    struct task_struct *prev = (struct task_struct *)ctx->args[1];
    struct task_struct *next = (struct task_struct *)ctx->args[2];
    u32 goes = prev->pid, comes = next->pid;
    u64 now = bpf_ktime_get_ns(), state = ctx->args[3];

    struct left_t *before = left.lookup(&comes);
    if (before) {
        u64 passed = now - before->since;
        struct key_t key = before->key;
        if (before->woken && passed >= MIN_NS && passed <= MAX_NS)
            times.increment(key, passed);
        left.delete(&comes);
    }
    if (ctx->args[0] || !goes || state == TASK_RUNNING || (state & TASK_DEAD) || !bpfnb_selected_task(prev))
        return 0;
    struct left_t leaves = {};
    leaves.key.pid = prev->tgid;
    bpf_get_current_comm(&leaves.key.target, sizeof(leaves.key.target));
    leaves.key.kernel_stack = stack_of(ctx, 0);
    leaves.key.user_stack = stack_of(ctx, BPF_F_USER_STACK);
    leaves.since = bpf_ktime_get_ns();
    left.update(&goes, &leaves);
    return 0;
}

RAW_TRACEPOINT_PROBE(sched_waking) {
    struct task_struct *target = (struct task_struct *)ctx->args[0];
    u32 tid = target->pid;
    struct left_t *blocked = left.lookup(&tid);

    if (!blocked || blocked->woken)
        return 0;
    blocked->key.waker_pid = bpf_get_current_pid_tgid() >> 32;
    bpf_get_current_comm(&blocked->key.waker, sizeof(blocked->key.waker));
    blocked->key.waker_kernel_stack = stack_of(ctx, 0);
    blocked->key.waker_user_stack = stack_of(ctx, BPF_F_USER_STACK);
    blocked->woken = 1;
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
    times, kept = maps["times"].df, maps["stacks"]
    times = times.assign(
        stack=named(times, kept, ["kernel_stack", "user_stack"], "pid"),
        waker_stack=named(times, kept, ["waker_kernel_stack", "waker_user_stack"], "waker_pid"),
    )
    by = ["pid", "target", "stack", "waker_pid", "waker", "waker_stack"]
    frame = times.groupby(by, as_index=False, observed=True)[["value"]].sum()
    frame = frame.sort_values("value", ascending=False, kind="stable", ignore_index=True)
    frame = frame.assign(total=pd.to_timedelta(frame["value"].astype("int64")))
    frame.attrs["lost"] = maps["times"].lost + maps["stacks"].lost
    return frame


TOOL = Tool(
    "offwaketime",
    "sched",
    __doc__,
    columns=[
        Column("pid", "PID", "the process that was blocked"),
        Column("target", "TARGET", "name of its thread", width=16),
        Column("stack", "STACK", "where it left the CPU, the outermost function first", width=60),
        Column("waker_pid", "WPID", "the process that woke it; 0: the idle task"),
        Column("waker", "WAKER", "name of its thread", width=16),
        Column("waker_stack", "WAKER STACK", "where it was woken, the outermost function first", width=60),
        Column(
            "total", "TIME(us)", "how long it was off the CPU", "timedelta", 12, lambda total: f"{total.value // 1000}"
        ),
    ],
    build=_build,
    options=[
        *TIMES,
        STORAGE,
    ],
    view="stacks",
)
