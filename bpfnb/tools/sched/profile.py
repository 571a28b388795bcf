"""profile: what the CPUs run, by stack: each is looked at so many times a second.

A count is one look at one CPU that found this thread at this stack; of a thread that runs all the time there are
``frequency`` a second. The stack is the process's, with the kernel's part behind it. The idle task is left out. What it
cannot see: what happens between two looks, and while interrupts are off (the look comes when they are on again); frames
of programs without frame pointers. Names of a process's functions are found while it lives.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from bpfnb.errors import ProgramError
from bpfnb.results.maps.map import Map
from bpfnb.results.presentation import Table
from bpfnb.tools.stacks import STACKS, STORAGE, flags_of, folded
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
BPF_HASH(counts, struct key_t, u64, 65536);  // allocated at once: an interrupt cannot wait

int looks(void *ctx) {
    u64 id = bpf_get_current_pid_tgid();
    struct key_t key = {.pid = id >> 32, .tid = id};

    if ((!key.tid && !IDLE) || !bpfnb_selected())
        return 0;
    bpf_get_current_comm(&key.comm, sizeof(key.comm));
#if KERNEL
    key.kernel_stack = stack_of(ctx, 0);
#endif
#if USER
    key.user_stack = stack_of(ctx, BPF_F_USER_STACK);
#endif
    counts.increment(key);
    return 0;
}
"""
)
_BY = ["pid", "tid", "comm"]


def _build(
    frequency: int, idle: bool, kernel_stacks_only: bool, user_stacks_only: bool, stack_storage_size: int
) -> Spec:
    if frequency < 1:
        raise ProgramError(f"profile: frequency must be at least 1 a second, not {frequency}")
    flags = [
        *flags_of(stack_storage_size),
        f"-DIDLE={int(idle)}",
        f"-DKERNEL={int(not user_stacks_only)}",
        f"-DUSER={int(not kernel_stacks_only)}",
    ]
    return Spec(_SOURCE, Table(_table, as_is=["stacks"]), attach=[(f"profile:{frequency}", "looks")], cflags=flags)


def _table(maps: Mapping[str, Map]) -> pd.DataFrame:
    frame = folded(maps["counts"].df, maps["stacks"], ["kernel_stack", "user_stack"], "value", _BY)
    frame.attrs["lost"] = sum(map_.lost for map_ in maps.values())
    return frame


TOOL = Tool(
    "profile",
    "sched",
    __doc__,
    columns=[
        Column("pid", "PID", "the process"),
        Column("tid", "TID", "the thread"),
        Column("comm", "COMM", "its name", width=16),
        Column("stack", "STACK", "what ran, the outermost function first", width=60),
        Column("count", "COUNT", "how often it was found there"),
    ],
    build=_build,
    options=[
        Option("frequency", 49, "looks a second at each CPU", short="F"),
        Option("idle", False, "with the idle task, process 0", short="I"),
        Option("kernel_stacks_only", False, "without the process's part of the stack", short="K"),
        Option("user_stacks_only", False, "without the kernel's part of the stack", short="U"),
        STORAGE,
    ],
    view="stacks",
)
