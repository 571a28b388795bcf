"""exitsnoop: processes as they end, with their age and exit status.

A process is shown once, when the last of its threads has ended: threads are not counted as processes. What it cannot
see: who killed a process (sigsnoop can), and whether that was for want of memory (oomkill can).
"""

from __future__ import annotations

import pandas as pd

from bpfnb.results.decode import with_decoded
from bpfnb.results.presentation import Rows
from bpfnb.tools.tool import Column, Option, Spec, Tool, clock

__all__ = ["TOOL"]

_SOURCE = r"""
#include <linux/sched.h>

struct event_t {
    char pcomm[TASK_COMM_LEN];
    u32 pid, ppid, tid;
    u64 age;
    int exit_code;
};
#ifndef SIGNAL_GROUP_EXIT
#define SIGNAL_GROUP_EXIT 4
#endif
struct process_t {
    u64 start_time;
    u64 pid;
};
BPF_RINGBUF_OUTPUT(events, 64);
BPF_TABLE("lru_hash", struct process_t, u8, shown, 1024);

RAW_TRACEPOINT_PROBE(sched_process_exit) {
    struct task_struct *task = (struct task_struct *)ctx->args[0], *leader = task->group_leader;
    struct signal_struct *signal = task->signal;
    struct process_t process = {};
    struct event_t event = {};
    u8 one = 1;

    if (!bpfnb_selected() || signal->live.counter > 0)
        return 0;  // another thread of the process still lives
    // Two threads that end at the same time both find that none lives any more.
    process.pid = task->tgid;
    process.start_time = leader->start_time;
    if (shown.insert(&process, &one))
        return 0;

    // As the parent's wait() gets it: of exit_group() and of signals the process's, else that of the first thread.
    event.exit_code = signal->flags & SIGNAL_GROUP_EXIT ? signal->group_exit_code : leader->exit_code;
    if (FAILED && event.exit_code == 0)
        return 0;
    event.pid = task->tgid;
    event.tid = task->pid;
    event.ppid = task->real_parent->tgid;
    event.age = bpf_ktime_get_ns() - process.start_time;
    bpf_probe_read_kernel(&event.pcomm, sizeof(event.pcomm), &leader->comm);
    events.ringbuf_output(&event, sizeof(event), 0);
    return 0;
}
"""


def _build(failed: bool) -> Spec:
    return Spec(_SOURCE, Rows(_convert), cflags=[f"-DFAILED={int(failed)}"])


def _ended(status: int) -> str:
    return f"signal {status & 0x7F}" if status & 0x7F else f"code {status >> 8}" if status else "0"


def _convert(events: pd.DataFrame) -> pd.DataFrame:
    rows = events.assign(age=pd.to_timedelta(events["age"]), exit_code=events["exit_code"].astype("uint32"))
    return with_decoded(rows, {"exit_code": "wait"})


TOOL = Tool(
    "exitsnoop",
    "process",
    __doc__,
    columns=[
        Column("time", "TIME", "when it ended", show=clock),
        Column("pcomm", "PCOMM", "the process's name", width=16),
        Column("pid", "PID", "the process"),
        Column("ppid", "PPID", "its parent"),
        Column("tid", "TID", "the thread that ended last"),
        Column(
            "age", "AGE(s)", "time since it was started", "timedelta", show=lambda age: f"{age.total_seconds():.2f}"
        ),
        Column("exit_code", "EXIT_CODE", "the wait status: exit code * 256 + signal", width=12, show=_ended),
        Column("exit_code_wait", "", "the same in words"),
    ],
    build=_build,
    options=[Option("failed", False, "only those that did not end with status 0", short="x")],
)
