"""syscount: system calls, counted by call, by process, by name of the thread, or by error.

Calls are counted as they return, in the kernel. What it cannot see: calls that never return (exit, exit_group), and
which calls a 32-bit program makes: their numbers are taken for those of 64-bit programs.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from bpfnb.language import syscalls
from bpfnb.results.decode import values
from bpfnb.results.maps.map import Map
from bpfnb.results.presentation import Table
from bpfnb.tools.tool import Column, Option, Spec, Tool

__all__ = ["TOOL"]

_SOURCE = r"""
#include <linux/sched.h>

#define BY_SYSCALL 0
#define BY_PID 1
#define BY_COMM 2
#define BY_ERRNO 3

struct key_t {
    int number;  // of the call, the process, or the error
    char comm[TASK_COMM_LEN];
};
struct value_t {
    u64 count, time;
};
BPF_HASH(counts, struct key_t, struct value_t);
BPF_TABLE("lru_hash", u32, u64, entered, 65536);  // by thread

#if LATENCY
TRACEPOINT_PROBE(raw_syscalls, sys_enter) {
    u32 tid = bpf_get_current_pid_tgid();
    u64 now = bpf_ktime_get_ns();

    if (bpfnb_selected())
        entered.update(&tid, &now);
    return 0;
}
#endif

TRACEPOINT_PROBE(raw_syscalls, sys_exit) {
    u32 tid = bpf_get_current_pid_tgid();
    struct value_t none = {}, *value;
    struct key_t key = {};
    u64 time = 0, *start;
    int failed = args->ret < 0 && args->ret >= -4095;

    if (!bpfnb_selected() || (FAILED && !failed) || (BY == BY_ERRNO && !failed))
        return 0;
    if (LATENCY) {
        start = entered.lookup(&tid);
        if (!start)
            return 0;
        time = bpf_ktime_get_ns() - *start;
        entered.delete(&tid);
    }
    if (BY == BY_SYSCALL)
        key.number = args->id == -1 ? SIGRETURN : args->id;  // a task that returns from a signal's handler forgets it
    if (BY == BY_PID)
        key.number = bpf_get_current_pid_tgid() >> 32;
    if (BY == BY_ERRNO)
        key.number = -args->ret;
    if (BY == BY_PID) {
        struct task_struct *task = (struct task_struct *)bpf_get_current_task(), *leader = task->group_leader;
        bpf_probe_read_kernel(&key.comm, sizeof(key.comm), &leader->comm);
    }
    if (BY == BY_COMM)
        bpf_get_current_comm(&key.comm, sizeof(key.comm));
    value = counts.lookup_or_try_init(&key, &none);
    if (!value)
        return 0;
    __sync_fetch_and_add(&value->count, 1);
    __sync_fetch_and_add(&value->time, time);
    return 0;
}
"""

# The columns that tell the rows apart.
_BY = {"syscall": ["syscall"], "pid": ["pid", "comm"], "comm": ["comm"], "errno": ["errno", "errno_error"]}


def _build(by: str, latency: bool, failed: bool) -> Spec:
    flags = {"BY": list(_BY).index(by), "LATENCY": int(latency), "FAILED": int(failed)}
    flags["SIGRETURN"] = syscalls.numbers()["rt_sigreturn"]
    columns = [*_BY[by], "count", *(["time"] if latency else [])]

    def compute(maps: Mapping[str, Map]) -> pd.DataFrame:
        rows = maps["counts"].df.sort_values("count", ascending=False, kind="stable", ignore_index=True)
        number = rows["number"]
        if by == "syscall":
            rows["syscall"] = values(number, "syscall")
        rows["pid"], rows["errno"], rows["errno_error"] = number, number, values(number, "error")
        return rows.assign(time=pd.to_timedelta(rows["time"].astype("int64")))

    return Spec(_SOURCE, Table(compute), cflags=[f"-D{name}={value}" for name, value in flags.items()], columns=columns)


TOOL = Tool(
    "syscount",
    "process",
    __doc__,
    columns=[
        Column("syscall", "SYSCALL", "the system call", width=22),
        Column("pid", "PID", "the process"),
        Column("comm", "COMM", "the process's name; with by=comm that of the thread", width=16),
        Column("errno", "ERRNO", "the error's number", width=6),
        Column("errno_error", "ERROR", "its name", width=16),
        Column("count", "COUNT", "calls that returned", width=8),
        Column(
            "time",
            "TIME (us)",
            "time from entry to return, of all of them",
            "timedelta",
            width=16,
            show=lambda time: f"{time.value / 1000:.3f}",
        ),
    ],
    build=_build,
    options=[
        Option("by", "syscall", "what is counted by", choices=tuple(_BY)),
        Option("latency", False, "the time of the calls, too", short="L"),
        Option("failed", False, "only calls that failed", short="x"),
    ],
    view="table",
)
