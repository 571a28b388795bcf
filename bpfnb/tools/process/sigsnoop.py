"""sigsnoop: signals as they are generated, by whom and for whom, and whether they are delivered.

All signals: of kill and its like, of the kernel, of timers and terminals. What it cannot see: the sender of a signal
that the kernel generates in an interrupt: ``pid`` and ``comm`` are then of whoever was on the CPU.
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
    char comm[TASK_COMM_LEN], tcomm[TASK_COMM_LEN];
    u32 pid, tpid, ttid;
    int sig, code, result;
};
BPF_RINGBUF_OUTPUT(events, 64);

RAW_TRACEPOINT_PROBE(signal_generate) {
    struct kernel_siginfo *info = (struct kernel_siginfo *)ctx->args[1];
    struct task_struct *target = (struct task_struct *)ctx->args[2];
    struct event_t event = {};

    if (!bpfnb_selected())
        return 0;
    event.sig = ctx->args[0];
    if (SIGNAL && event.sig != SIGNAL)
        return 0;
    event.pid = bpf_get_current_pid_tgid() >> 32;
    bpf_get_current_comm(&event.comm, sizeof(event.comm));
    event.tpid = target->tgid;
    event.ttid = target->pid;
    bpf_probe_read_kernel(&event.tcomm, sizeof(event.tcomm), &target->comm);
    // SEND_SIG_NOINFO and SEND_SIG_PRIV (include/linux/sched/signal.h): there is no info
    event.code = (u64)info == 0 ? SI_USER : (u64)info == 1 ? SI_KERNEL : info->si_code;
    event.result = ctx->args[4];
    events.ringbuf_output(&event, sizeof(event), 0);
    return 0;
}
"""

# include/trace/events/signal.h, TRACE_SIGNAL_*
_RESULTS = ["delivered", "ignored", "already pending", "overflow", "lost info"]


def _build(signal: int) -> Spec:
    return Spec(_SOURCE, Rows(_convert), cflags=[f"-DSIGNAL={signal}", "-DSI_USER=0", "-DSI_KERNEL=0x80"])


def _convert(events: pd.DataFrame) -> pd.DataFrame:
    result = pd.Categorical.from_codes(events["result"].to_numpy(), categories=pd.Index(_RESULTS))
    return with_decoded(events.assign(result=result), {"sig": "signal"})


TOOL = Tool(
    "sigsnoop",
    "process",
    __doc__,
    columns=[
        Column("time", "TIME", "when it was sent", show=clock),
        Column("pid", "PID", "the process that sent it"),
        Column("comm", "COMM", "name of the thread that sent it", width=16),
        Column("sig", "SIG", "the signal's number", width=4),
        Column("sig_signal", "", "its name"),
        Column("tpid", "TPID", "the process that it is for"),
        Column("ttid", "TTID", "the thread that it is for, or that was picked"),
        Column("tcomm", "TCOMM", "that thread's name", width=16),
        Column("code", "CODE", "si_code: 0 of kill, 128 of the kernel", width=5),
        Column("result", "RESULT", f"what became of it: {', '.join(_RESULTS)}"),
    ],
    build=_build,
    options=[Option("signal", 0, "only this signal, by its number; 0: all", short="s")],
)
