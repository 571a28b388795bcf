"""tcpconnect: TCP connections that processes open, also those that fail.

A row is a connect() whose first packet is sent, or could not be. What it cannot see: a connect() that fails before the
socket has an address, as where there is no route; connections that were open before it was attached. To know the port
that the kernel chooses it looks at every packet that is sent, at about 0.1 us each.
"""

from __future__ import annotations

import pandas as pd

from bpfnb.results.presentation import Rows
from bpfnb.tools.net._sockets import CONNECTION, with_addresses
from bpfnb.tools.tool import Column, Spec, Tool, clock

__all__ = ["TOOL"]

_SOURCE = (
    CONNECTION
    + r"""
struct event_t {
    struct connection_t at;
    u32 pid, uid;
    char comm[TASK_COMM_LEN];
};
BPF_RINGBUF_OUTPUT(events, 64);
BPF_HASH(waiting, u64, struct event_t, 10240);  // until the kernel has chosen a port, by the socket

static inline void has_port(void *ctx, struct sock *sk) {
    u64 key = (u64)sk;
    struct event_t *event = waiting.lookup(&key);

    if (!event)
        return;
    event->at.lport = ntohs(((struct inet_sock *)sk)->inet_sport);
    events.ringbuf_output(event, sizeof(*event), 0);
    waiting.delete(&key);
}

RAW_TRACEPOINT_PROBE(net_dev_queue) {
    struct sk_buff *skb = (struct sk_buff *)ctx->args[0];
    struct sock *sk = skb->sk;

    if (sk && sk->__sk_common.skc_state == TCP_SYN_SENT)
        has_port(ctx, sk);
    return 0;
}

/* The state SYN_SENT is set by connect() itself: this is the thread that connects. */
RAW_TRACEPOINT_PROBE(inet_sock_set_state) {
    struct sock *sk = (struct sock *)ctx->args[0];
    struct event_t event = {};
    u64 key = (u64)sk;

    if (ctx->args[1] == TCP_SYN_SENT)
        has_port(ctx, sk);  // no packet was sent
    if (ctx->args[2] != TCP_SYN_SENT || !is_tcp(sk) || !bpfnb_selected() || !ends_of(sk, &event.at))
        return 0;
    event.pid = bpf_get_current_pid_tgid() >> 32;
    event.uid = bpf_get_current_uid_gid();
    bpf_get_current_comm(&event.comm, sizeof(event.comm));
    if (event.at.lport)  // it was bound
        events.ringbuf_output(&event, sizeof(event), 0);
    else
        waiting.update(&key, &event);
    return 0;
}
"""
)


def _build() -> Spec:
    return Spec(_SOURCE, Rows(_convert))


def _convert(events: pd.DataFrame) -> pd.DataFrame:
    found = with_addresses(events, {"saddr": "at.laddr", "daddr": "at.raddr"})
    return found.rename(columns={"at.lport": "lport", "at.rport": "dport"})


TOOL = Tool(
    "tcpconnect",
    "net",
    __doc__,
    columns=[
        Column("time", "TIME", "when its first packet was sent", show=clock),
        Column("pid", "PID", "the process"),
        Column("comm", "COMM", "the thread's name", width=16),
        Column("uid", "", "its user"),
        Column("ip", "IP", "4 or 6", width=2),
        Column("saddr", "SADDR", "its own address", width=16),
        Column("lport", "LPORT", "its own port", width=6),
        Column("daddr", "DADDR", "the address it connects to", width=16),
        Column("dport", "DPORT", "the port it connects to", width=6),
    ],
    build=_build,
)
