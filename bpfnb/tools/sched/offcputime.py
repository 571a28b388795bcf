"""offcputime: where threads give up or lose the CPU, and how long they are off it, by stack.

The stack is the thread's at the moment that it leaves the CPU, the kernel's part behind the process's. The time is
until it runs again, waiting for a CPU included. The idle task is left out. What it cannot see: times that began before
it was attached, and those that have not ended; frames of programs without frame pointers. Names of a process's
functions are found while it lives.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from bpfnb.results.maps.map import Map
from bpfnb.results.presentation import Table
from bpfnb.tools.stacks import STACKS, STORAGE, TIMES, flags_of, folded, time_flags
from bpfnb.tools.tool import Column, Option, Spec, Tool

__all__ = ["TOOL"]

_SOURCE = (
    r"""
#include <linux/sched.h>
"""
    + STACKS
    + r"""
struct key_t {
    u64 kernel_stack, user_stack;
    u32 pid, tid;
    char comm[TASK_COMM_LEN];
};
struct left_t { u64 since; struct key_t key; };
BPF_HASH(left, u32, struct left_t);
BPF_HASH(times, struct key_t, u64);

RAW_TRACEPOINT_PROBE(sched_switch) {
    struct task_struct *prev = (struct task_struct *)ctx->args[1];
    struct task_struct *next = (struct task_struct *)ctx->args[2];
    u32 goes = prev->pid, comes = next->pid;
    u64 now = bpf_ktime_get_ns();

    struct left_t *before = left.lookup(&comes);
    if (before) {
        u64 passed = now - before->since;
        struct key_t key = before->key;
        if (passed >= MIN_NS && passed <= MAX_NS)
            times.increment(key, passed);
        left.delete(&comes);
    }
    if (!goes || (ctx->args[3] & TASK_DEAD) || !bpfnb_selected_task(prev))
        return 0;
    struct left_t leaves = {};
    leaves.key.pid = prev->tgid;
    leaves.key.tid = goes;
    bpf_get_current_comm(&leaves.key.comm, sizeof(leaves.key.comm));
#if KERNEL
    leaves.key.kernel_stack = stack_of(ctx, 0);
#endif
#if USER
    leaves.key.user_stack = stack_of(ctx, BPF_F_USER_STACK);
#endif
    leaves.since = bpf_ktime_get_ns();
    left.update(&goes, &leaves);
    return 0;
}
"""
)


def _build(
    min_us: int, max_us: int | None, kernel_stacks_only: bool, user_stacks_only: bool, stack_storage_size: int
) -> Spec:
    flags = [
        *flags_of(stack_storage_size),
        *time_flags(min_us, max_us),
        f"-DKERNEL={int(not user_stacks_only)}",
        f"-DUSER={int(not kernel_stacks_only)}",
    ]
    return Spec(_SOURCE, Table(_table, as_is=["stacks"]), cflags=flags)


def _table(maps: Mapping[str, Map]) -> pd.DataFrame:
    counts = maps["times"].df
    by = ["pid", "tid", "comm"]
    frame = folded(counts, maps["stacks"], ["kernel_stack", "user_stack"], "value", by)
    frame = frame.assign(total=pd.to_timedelta(frame["count"]))
    frame.attrs["lost"] = maps["times"].lost + maps["stacks"].lost
    return frame


TOOL = Tool(
    "offcputime",
    "sched",
    __doc__,
    columns=[
        Column("pid", "PID", "the process"),
        Column("tid", "TID", "the thread"),
        Column("comm", "COMM", "its name", width=16),
        Column("stack", "STACK", "where it left the CPU, the outermost function first", width=60),
        Column(
            "total", "TIME(us)", "how long it was off the CPU there", "timedelta", 12,
            lambda total: f"{total.value // 1000}",
        ),
    ],
    build=_build,
    options=[
        *TIMES,
        Option("kernel_stacks_only", False, "without the process's part of the stack", short="K"),
        Option("user_stacks_only", False, "without the kernel's part of the stack", short="U"),
        STORAGE,
    ],
    view="stacks",
)  # fmt: skip
