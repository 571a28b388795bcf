"""capable: capabilities that are asked for, by whom, and whether the task has them.

A row is a check by the kernel, not a use: many checks only find out whether more than usual is allowed. What it cannot
see: security modules that refuse what this check granted; without fexit, whether the check is to be audited
(``audit`` is then left out).
"""

from __future__ import annotations

from collections.abc import Set

import pandas as pd

from bpfnb.errors import UnsupportedError
from bpfnb.results.decode import values, with_decoded
from bpfnb.results.presentation import Rows
from bpfnb.tools.tool import Column, Option, Spec, Tool, clock

__all__ = ["TOOL"]

_SOURCE = r"""
#include <linux/sched.h>

struct event_t {
    char comm[TASK_COMM_LEN];
    u32 uid, pid, tid;
    int cap, ret;
    bool audit;
};
BPF_RINGBUF_OUTPUT(events, 256);

static __always_inline int check(int cap, u32 options, int ret) {
    struct event_t event = {};
    u64 id = bpf_get_current_pid_tgid();

    if (!bpfnb_selected() || (FAILED && !ret))
        return 0;
    event.uid = bpf_get_current_uid_gid();
    event.pid = id >> 32;
    event.tid = id;
    bpf_get_current_comm(&event.comm, sizeof(event.comm));
    event.cap = cap;
    event.ret = ret;
    event.audit = !(options & 2);  // CAP_OPT_NOAUDIT (include/linux/security.h)
    events.ringbuf_output(&event, sizeof(event), 0);
    return 0;
}
"""

# Since Linux 6.14 (commit d48da4d5ed7b).
_TRACEPOINT = "TRACEPOINT_PROBE(capability, cap_capable) { return check(args->cap, 0, args->ret); }"
_FEXIT = r"""
KRETFUNC_PROBE(cap_capable, const struct cred *cred, struct user_namespace *namespace, int cap, u32 options, int ret) {
    return check(cap, options, ret);
}
"""

_CAP_CAPABLE, _CAP_CAPABLE_FEXIT = "tracepoint:capability:cap_capable", "fexit:cap_capable"
_WITHOUT_AUDIT = ["time", "uid", "pid", "tid", "comm", "cap", "name", "ret", "ret_errno"]


def _build(failed: bool, has: Set[str]) -> Spec:
    flags = [f"-DFAILED={int(failed)}"]
    if _CAP_CAPABLE_FEXIT in has:
        return Spec(_SOURCE + _FEXIT, Rows(_convert), cflags=flags)
    if _CAP_CAPABLE in has:
        return Spec(_SOURCE + _TRACEPOINT, Rows(_convert), cflags=flags, columns=_WITHOUT_AUDIT)
    raise UnsupportedError(f"capable needs {_CAP_CAPABLE_FEXIT} or {_CAP_CAPABLE}, and this kernel has neither")


def _convert(events: pd.DataFrame) -> pd.DataFrame:
    return with_decoded(events.assign(name=values(events["cap"], "capability")), {"ret": "errno"})


TOOL = Tool(
    "capable",
    "process",
    __doc__,
    columns=[
        Column("time", "TIME", "when", show=clock),
        Column("uid", "UID", "the task's user", width=6),
        Column("pid", "PID", "the process"),
        Column("tid", "TID", "the thread"),
        Column("comm", "COMM", "the thread's name", width=16),
        Column("cap", "CAP", "the capability's number", width=4),
        Column("name", "NAME", "its name", width=22),
        Column("ret", "RET", "0 where the task has it, else -1 (EPERM)", width=3),
        Column("ret_errno", "", "the error's name"),
        Column("audit", "AUDIT", "whether the check is to be audited", width=5, show=lambda audit: str(int(audit))),
    ],
    build=_build,
    options=[Option("failed", False, "only what a task does not have", short="x")],
    hooks=[_CAP_CAPABLE, _CAP_CAPABLE_FEXIT],
)
