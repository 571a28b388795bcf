"""oomkill: processes that the kernel kills since there is no more memory, of the machine or of a cgroup.

``fpid`` is who asked for the memory that was not there, ``tpid`` who is killed for it. Which columns there are beside
the first five is up to the kernel: ``pages`` with kprobes, else ``rss`` and ``oom_score_adj``, of Linux 6.10 and newer.
What it cannot see: what a killer of user space does (systemd-oomd): it sends a signal, see sigsnoop.
"""

from __future__ import annotations

from collections.abc import Set

import pandas as pd

from bpfnb.errors import UnsupportedError
from bpfnb.results.presentation import Rows
from bpfnb.tools.tool import Column, Spec, Tool, clock

__all__ = ["TOOL"]

_EVENT = r"""
#include <linux/sched.h>

struct event_t {
    char fcomm[TASK_COMM_LEN], tcomm[TASK_COMM_LEN];
    u32 fpid, tpid;
    u64 pages, rss;
    short oom_score_adj;
};
BPF_RINGBUF_OUTPUT(events, 64);
"""

# The tracepoint has the victim's name and memory since Linux 6.10 (commit 72ba14deb40a).
_TRACEPOINT = r"""
TRACEPOINT_PROBE(oom, mark_victim) {
    struct event_t event = {};

    if (!bpfnb_selected())
        return 0;
    event.fpid = bpf_get_current_pid_tgid() >> 32;
    bpf_get_current_comm(&event.fcomm, sizeof(event.fcomm));
    event.tpid = args->pid;
    TP_DATA_LOC_READ_STR(&event.tcomm, comm, sizeof(event.tcomm));
    event.rss = (args->anon_rss + args->file_rss + args->shmem_rss) * 1024;  // the fields are in units of 1 kB
    event.oom_score_adj = args->oom_score_adj;
    events.ringbuf_output(&event, sizeof(event), 0);
    return 0;
}
"""

_KPROBE = r"""
#include <linux/oom.h>

int kprobe__oom_kill_process(struct pt_regs *ctx, struct oom_control *oc) {
    struct task_struct *victim = oc->chosen;
    struct event_t event = {};

    if (!bpfnb_selected())
        return 0;
    event.fpid = bpf_get_current_pid_tgid() >> 32;
    bpf_get_current_comm(&event.fcomm, sizeof(event.fcomm));
    event.tpid = victim->tgid;
    bpf_probe_read_kernel(&event.tcomm, sizeof(event.tcomm), &victim->comm);
    event.pages = oc->totalpages;
    events.ringbuf_output(&event, sizeof(event), 0);
    return 0;
}
"""

_MARK_VICTIM, _OOM_KILL_PROCESS = "tracepoint:oom:mark_victim", "kprobe:oom_kill_process"
_ALWAYS = ["time", "fpid", "fcomm", "tpid", "tcomm"]


def _build(has: Set[str]) -> Spec:
    if _OOM_KILL_PROCESS in has:
        return Spec(_EVENT + _KPROBE, Rows(_convert), columns=[*_ALWAYS, "pages"])
    if _MARK_VICTIM in has:
        return Spec(_EVENT + _TRACEPOINT, Rows(_convert), columns=[*_ALWAYS, "rss", "oom_score_adj"])
    raise UnsupportedError(f"oomkill needs {_OOM_KILL_PROCESS} or {_MARK_VICTIM}, and this kernel has neither")


def _convert(events: pd.DataFrame) -> pd.DataFrame:
    return events


TOOL = Tool(
    "oomkill",
    "process",
    __doc__,
    columns=[
        Column("time", "TIME", "when", show=clock),
        Column("fpid", "FPID", "the process that asked for memory"),
        Column("fcomm", "FCOMM", "name of its thread", width=16),
        Column("tpid", "TPID", "the process that is killed"),
        Column("tcomm", "TCOMM", "its name", width=16),
        Column("pages", "PAGES", "pages of memory and swap that there are, of the machine or the cgroup"),
        Column("rss", "RSS", "memory that the victim has resident", "bytes", width=12),
        Column("oom_score_adj", "ADJ", "the victim's /proc/PID/oom_score_adj", width=5),
    ],
    build=_build,
    hooks=[_MARK_VICTIM, _OOM_KILL_PROCESS],
)
