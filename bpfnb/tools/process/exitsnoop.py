"""exitsnoop: processes as they end, with their age and exit status.

A process is shown when the last of its threads has ended, so threads are not counted as processes. What it cannot see:
processes that ended before it was attached.
"""

from __future__ import annotations

import pandas as pd

from bpfnb.results.presentation import Rows
from bpfnb.tools.tool import Column, Option, Spec, Tool

__all__ = ["TOOL"]

_SOURCE = r"""
#include <linux/sched.h>

struct event_t {
    char pcomm[TASK_COMM_LEN];
    u32 pid, ppid, tid;
    u64 age;
    int exit_code;
};
BPF_RINGBUF_OUTPUT(events, 64);

RAW_TRACEPOINT_PROBE(sched_process_exit) {
    struct task_struct *task = (struct task_struct *)ctx->args[0];
    struct event_t event = {};
    u64 id = bpf_get_current_pid_tgid();

    if (!bpfnb_selected_task(task) || task->signal->live.counter > 0)
        return 0;  // another thread of the process still lives
    event.exit_code = task->exit_code;
    if (FAILED && event.exit_code == 0)
        return 0;
    event.pid = id >> 32;
    event.tid = id;
    event.ppid = task->real_parent->tgid;
    event.age = bpf_ktime_get_ns() - task->group_leader->start_time;
    bpf_get_current_comm(&event.pcomm, sizeof(event.pcomm));
    events.ringbuf_output(&event, sizeof(event), 0);
    return 0;
}
"""


def _build(failed: bool) -> Spec:
    return Spec(_SOURCE, Rows(_convert), cflags=[f"-DFAILED={int(failed)}"])


def _convert(events: pd.DataFrame) -> pd.DataFrame:
    return events.assign(age=pd.to_timedelta(events["age"]))


TOOL = Tool(
    "exitsnoop",
    "process",
    __doc__,
    columns=[
        Column("time", "TIME", "when it ended"),
        Column("pcomm", "PCOMM", "name of the thread that ended last", width=16),
        Column("pid", "PID", "the process"),
        Column("ppid", "PPID", "its parent"),
        Column("tid", "TID", "the thread that ended last"),
        Column(
            "age", "AGE(s)", "time since it was started", "timedelta", show=lambda age: f"{age.total_seconds():.2f}"
        ),
        Column("exit_code", "EXIT_CODE", "the wait status", width=12),
    ],
    build=_build,
    options=[Option("failed", False, "only those that did not end with status 0", short="x")],
)
