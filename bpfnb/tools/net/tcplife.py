"""tcplife: TCP connections as they end, with what they sent and received, and how long they lasted.

A row is one end of a connection, of the process that opened or accepted it. What it cannot see: connections that were
open before it was attached. pid is 0 of one that no process had accepted; with a filter such a row is shown where it
ended while a selected process ran. tx and rx are data alone: without headers, and what was sent again is counted once.
On kernels without kprobes, a connection that io_uring accepted is its process's once that closes it.
"""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd

from bpfnb.results.presentation import Rows
from bpfnb.tools.net._sockets import ACCEPT_HOOK, CONNECTION, OWNERS, accepts, with_addresses
from bpfnb.tools.tool import Column, Spec, Tool, clock

__all__ = ["TOOL"]

_SOURCE = (
    CONNECTION
    + OWNERS
    + r"""
struct event_t {
    u64 tx, rx, duration;
    struct connection_t at;
    u32 pid;
    char comm[TASK_COMM_LEN];
};
BPF_RINGBUF_OUTPUT(events, 64);

/* The end of the other side's data is counted as a byte received. */
static inline u64 received(struct sock *sk) {
    u64 end = sk->__sk_common.skc_flags >> SOCK_DONE & 1;

    return ((struct tcp_sock *)sk)->bytes_received - end;
}

RAW_TRACEPOINT_PROBE(inet_sock_set_state) {
    struct sock *sk = (struct sock *)ctx->args[0];
    struct tcp_sock *tcp = (struct tcp_sock *)sk;
    struct event_t event = {};
    u64 key = (u64)sk;
    struct owner_t *owner = is_tcp(sk) ? owner_of(sk, ctx->args[2]) : NULL;

    if (!owner || ctx->args[2] != TCP_CLOSE)
        return 0;
    if (ctx->args[1] != TCP_LISTEN && (owner->pid ? owner->selected : bpfnb_selected()) && ends_of(sk, &event.at)) {
        event.tx = tcp->bytes_sent - tcp->bytes_retrans;
        event.rx = received(sk);
        event.duration = bpf_ktime_get_ns() - owner->begin;
        event.pid = owner->pid;
        __builtin_memcpy(event.comm, owner->comm, sizeof(event.comm));
        events.ringbuf_output(&event, sizeof(event), 0);
    }
    owners.delete(&key);
    return 0;
}
"""
)


def _build(has: Collection[str]) -> Spec:
    return Spec(_SOURCE + accepts(has), Rows(_convert))


def _convert(events: pd.DataFrame) -> pd.DataFrame:
    found = with_addresses(events, {"laddr": "at.laddr", "raddr": "at.raddr"})
    found = found.rename(columns={"at.lport": "lport", "at.rport": "rport"})
    return found.assign(duration=pd.to_timedelta(found["duration"]))


TOOL = Tool(
    "tcplife",
    "net",
    __doc__,
    columns=[
        Column("time", "TIME", "when it ended", show=clock),
        Column("pid", "PID", "the process that opened or accepted it"),
        Column("comm", "COMM", "the name of the thread that did", width=16),
        Column("ip", "IP", "4 or 6", width=2),
        Column("laddr", "LADDR", "its own address", width=16),
        Column("lport", "LPORT", "its own port", width=6),
        Column("raddr", "RADDR", "the other side's address", width=16),
        Column("rport", "RPORT", "the other side's port", width=6),
        Column("tx", "TX_KB", "what it sent", "bytes", show=lambda size: f"{size // 1024}"),
        Column("rx", "RX_KB", "what it received", "bytes", show=lambda size: f"{size // 1024}"),
        Column("duration", "MS", "from the first packet to the end", "timedelta", 10, lambda t: f"{t.value / 1e6:.2f}"),
    ],
    build=_build,
    hooks=[ACCEPT_HOOK],
)
