"""tcpretrans: TCP segments that are sent again.

type is R for a segment of a connection, S for the answer to a connection that is about to be made (SYN-ACK), and L for
a tail loss probe (with lossprobe). It happens in timers and interrupts: pid and comm are of whoever ran on that CPU,
not of the connection's process, and filters choose by them. What it cannot see: what other stacks than the kernel's
send again, such as QUIC.
"""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd

from bpfnb.errors import UnsupportedError
from bpfnb.results.decode import values
from bpfnb.results.presentation import Rows
from bpfnb.tools.net._sockets import CONNECTION, with_addresses
from bpfnb.tools.tool import Column, Option, Spec, Tool, clock

__all__ = ["TOOL"]

_LOSS_PROBE = "kprobe:tcp_send_loss_probe"
_SOURCE = (
    CONNECTION
    + r"""
struct event_t {
    struct connection_t at;
    u32 pid;
    u16 state, type;
    char comm[TASK_COMM_LEN];
};
BPF_RINGBUF_OUTPUT(events, 64);

static inline int sent_again(void *ctx, struct sock *sk, u8 type) {
    struct event_t event = {};

    if (!bpfnb_selected() || !ends_of(sk, &event.at))
        return 0;
    event.at.lport = sk->__sk_common.skc_num;
    event.type = type;
    event.state = sk->__sk_common.skc_state;
    event.pid = bpf_get_current_pid_tgid() >> 32;
    bpf_get_current_comm(&event.comm, sizeof(event.comm));
    events.ringbuf_output(&event, sizeof(event), 0);
    return 0;
}

RAW_TRACEPOINT_PROBE(tcp_retransmit_skb) {
    struct sock *sk = (struct sock *)ctx->args[0];

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 18, 0)
    if ((int)ctx->args[2])
        return 0;  // it could not be sent; before, the tracepoint was passed only when it was
#endif
    return sent_again(ctx, sk, 'R');
}

/* A request for a connection begins like a socket. */
RAW_TRACEPOINT_PROBE(tcp_retransmit_synack) {
    struct sock *sk = (struct sock *)ctx->args[1];

    return sent_again(ctx, sk, 'S');
}
"""
)
_PROBE_SOURCE = r"""
int kprobe__tcp_send_loss_probe(struct pt_regs *ctx, struct sock *sk) {
    return sent_again(ctx, sk, 'L');
}
"""


def _build(lossprobe: bool, has: Collection[str]) -> Spec:
    if lossprobe and _LOSS_PROBE not in has:
        raise UnsupportedError("tcpretrans: lossprobe needs kprobes, and this kernel has none")
    return Spec(_SOURCE + _PROBE_SOURCE * lossprobe, Rows(_convert))


def _convert(events: pd.DataFrame) -> pd.DataFrame:
    found = with_addresses(events, {"laddr": "at.laddr", "raddr": "at.raddr"})
    found = found.rename(columns={"at.lport": "lport", "at.rport": "rport"})
    types = pd.Categorical(found["type"].map(chr), ["R", "S", "L"])
    return found.assign(state=values(found["state"], "tcp_state"), type=types)


TOOL = Tool(
    "tcpretrans",
    "net",
    __doc__,
    columns=[
        Column("time", "TIME", "when", show=clock),
        Column("pid", "PID", "the process that ran on this CPU"),
        Column("comm", "", "the thread's name"),
        Column("ip", "IP", "4 or 6", width=2),
        Column("laddr", "LADDR", "its own address", width=16),
        Column("lport", "LPORT", "its own port", width=6),
        Column("type", "T>", "R, S or L", width=2),
        Column("raddr", "RADDR", "the other side's address", width=16),
        Column("rport", "RPORT", "the other side's port", width=6),
        Column("state", "STATE", "the connection's state", width=12),
    ],
    build=_build,
    options=[Option("lossprobe", False, "tail loss probes as well; needs kprobes", short="l")],
    hooks=[_LOSS_PROBE],
)
