"""killsnoop: signals that processes send by kill, tkill and tgkill, and with what result.

What it cannot see: signals sent in other ways, by the kernel, sigqueue or pidfd_send_signal: sigsnoop has all.
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
    char comm[TASK_COMM_LEN];
    u32 pid;
    int sig, tpid, result;
};
struct call_t {
    int sig, target;
};
BPF_RINGBUF_OUTPUT(events, 64);
BPF_TABLE("lru_hash", u32, struct call_t, calls, 10240);  // by thread: one that kills itself never returns

static __always_inline int enter(int target, int sig) {
    u32 tid = bpf_get_current_pid_tgid();
    struct call_t call = {.sig = sig, .target = target};

    if (bpfnb_selected() && (!SIGNAL || sig == SIGNAL))
        calls.update(&tid, &call);
    return 0;
}

static __always_inline int leave(int ret) {
    u32 tid = bpf_get_current_pid_tgid();
    struct call_t *call = calls.lookup(&tid);
    struct event_t event = {};

    if (!call)
        return 0;
    event.pid = bpf_get_current_pid_tgid() >> 32;
    bpf_get_current_comm(&event.comm, sizeof(event.comm));
    event.sig = call->sig;
    event.tpid = call->target;
    event.result = ret;
    calls.delete(&tid);
    if (!FAILED || ret < 0)
        events.ringbuf_output(&event, sizeof(event), 0);
    return 0;
}

TRACEPOINT_PROBE(syscalls, sys_enter_kill) { return enter(args->pid, args->sig); }
TRACEPOINT_PROBE(syscalls, sys_enter_tkill) { return enter(args->pid, args->sig); }
TRACEPOINT_PROBE(syscalls, sys_enter_tgkill) { return enter(args->pid, args->sig); }
TRACEPOINT_PROBE(syscalls, sys_exit_kill) { return leave(args->ret); }
TRACEPOINT_PROBE(syscalls, sys_exit_tkill) { return leave(args->ret); }
TRACEPOINT_PROBE(syscalls, sys_exit_tgkill) { return leave(args->ret); }
"""


def _build(failed: bool, signal: int) -> Spec:
    return Spec(_SOURCE, Rows(_convert), cflags=[f"-DFAILED={int(failed)}", f"-DSIGNAL={signal}"])


def _convert(events: pd.DataFrame) -> pd.DataFrame:
    return with_decoded(events, {"sig": "signal", "result": "errno"})


TOOL = Tool(
    "killsnoop",
    "process",
    __doc__,
    columns=[
        Column("time", "TIME", "when the call returned", show=clock),
        Column("pid", "PID", "the process that sent it"),
        Column("comm", "COMM", "name of the thread that sent it", width=16),
        Column("sig", "SIG", "the signal's number; 0 only asks whether it could be sent", width=4),
        Column("sig_signal", "", "its name"),
        Column(
            "tpid", "TPID", "whom it is for, as the call has it: a process, of tkill and tgkill a thread, or a group"
        ),
        Column("result", "RESULT", "0, or the error number, negative", width=6),
        Column("result_errno", "", "the error's name"),
    ],
    build=_build,
    options=[
        Option("failed", False, "only those that failed", short="x"),
        Option("signal", 0, "only this signal, by its number; 0: all", short="s"),
    ],
)
