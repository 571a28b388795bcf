"""tcptop: what each process sends and receives, by TCP connection.

Bytes are those that the process's calls sent and received, without headers. What it cannot see: data that is received
by splice() or TCP_ZEROCOPY_RECEIVE. Before Linux 6.3 it needs kprobes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pandas as pd

from bpfnb.errors import UnsupportedError
from bpfnb.results.maps.map import Map
from bpfnb.results.presentation import Table
from bpfnb.tools.net._sockets import CONNECTION, with_addresses
from bpfnb.tools.tool import Column, Spec, Tool

__all__ = ["TOOL"]

_COUNTING = (
    CONNECTION
    + r"""
struct key_t {
    struct connection_t at;
    u32 pid;
    char comm[TASK_COMM_LEN];
};
struct total_t { u64 rx, tx; };
BPF_HASH(totals, struct key_t, struct total_t);

static inline int count(struct sock *sk, long rx, long tx) {
    struct total_t none = {}, *total;
    struct key_t key = {};

    if (rx + tx <= 0 || !is_tcp(sk) || !bpfnb_selected() || !ends_of(sk, &key.at))
        return 0;
    key.pid = bpf_get_current_pid_tgid() >> 32;
    bpf_get_current_comm(&key.comm, sizeof(key.comm));
    total = totals.lookup_or_try_init(&key, &none);
    if (!total)
        return 0;
    __sync_fetch_and_add(&total->rx, rx);
    __sync_fetch_and_add(&total->tx, tx);
    return 0;
}
"""
)
# Linux kernel commit 6e6eda44b939 ("sock: add tracepoint for send recv length") (in v6.3)
_TRACEPOINT = "tracepoint:sock:sock_send_length"
_AT_TRACEPOINTS = r"""
RAW_TRACEPOINT_PROBE(sock_send_length) {
    struct sock *sk = (struct sock *)ctx->args[0];

    return count(sk, 0, (int)ctx->args[1]);
}

RAW_TRACEPOINT_PROBE(sock_recv_length) {
    struct sock *sk = (struct sock *)ctx->args[0];

    return ctx->args[2] & MSG_PEEK ? 0 : count(sk, (int)ctx->args[1], 0);
}
"""
# What was sent and received is known when the function returns: the socket is kept until then. sendfile() comes by
# tcp_sendpage() there. tcp_cleanup_rbuf() would not do: it is called for data that was only looked at, as well.
_RECEIVE = "kprobe:tcp_recvmsg"
_SENDERS = ("tcp_sendmsg", "tcp_sendpage")
_AT_FUNCTIONS = r"""
BPF_HASH(calls, u64, struct sock *);  // by the thread

static inline int begins(struct sock *sk) {
    u64 thread = bpf_get_current_pid_tgid();

    calls.update(&thread, &sk);
    return 0;
}

static inline int ends(long bytes, bool sent) {
    u64 thread = bpf_get_current_pid_tgid();
    struct sock **known = calls.lookup(&thread), *sk;

    if (!known)
        return 0;
    sk = *known;
    calls.delete(&thread);
    return sent ? count(sk, 0, bytes) : count(sk, bytes, 0);
}

int send_begins(struct pt_regs *ctx, struct sock *sk) {
    return begins(sk);
}

int send_ends(struct pt_regs *ctx) {
    return ends((int)PT_REGS_RC(ctx), true);
}

/* Linux kernel commit ec095263a965 ("net: remove noblock parameter from recvmsg() entities") (in v5.19) */
int kprobe__tcp_recvmsg(struct pt_regs *ctx, struct sock *sk) {
#if LINUX_VERSION_CODE >= KERNEL_VERSION(5, 19, 0)
    int flags = PT_REGS_PARM4(ctx);
#else
    int flags = PT_REGS_PARM5(ctx);
#endif

    return flags & MSG_PEEK ? 0 : begins(sk);
}

int kretprobe__tcp_recvmsg(struct pt_regs *ctx) {
    return ends((int)PT_REGS_RC(ctx), false);
}
"""


def _build(has: Collection[str]) -> Spec:
    flags = ["-DMSG_PEEK=2"]
    if _TRACEPOINT in has:
        return Spec(_COUNTING + _AT_TRACEPOINTS, Table(_totals), cflags=flags)
    if _RECEIVE not in has:
        raise UnsupportedError("tcptop needs Linux 6.3, or kprobes")
    attach = [(f"kprobe:{name}", "send_begins") for name in _SENDERS if f"kprobe:{name}" in has]
    attach += [(f"kretprobe:{name}", "send_ends") for name in _SENDERS if f"kprobe:{name}" in has]
    return Spec(_COUNTING + _AT_FUNCTIONS, Table(_totals), attach, flags)


def _totals(maps: Mapping[str, Map]) -> pd.DataFrame:
    frame = with_addresses(maps["totals"].df, {"laddr": "at.laddr", "raddr": "at.raddr"})
    frame = frame.rename(columns={"at.lport": "lport", "at.rport": "rport"})
    by_size = (frame["rx"] + frame["tx"]).sort_values(ascending=False, kind="stable")
    return frame.loc[by_size[by_size > 0].index].reset_index(drop=True)


TOOL = Tool(
    "tcptop",
    "net",
    __doc__,
    columns=[
        Column("pid", "PID", "the process that sent and received"),
        Column("comm", "COMM", "the name of its thread", width=16),
        Column("ip", "", "4 or 6"),
        Column("laddr", "LADDR", "its own address", width=16),
        Column("lport", "LPORT", "its own port", width=6),
        Column("raddr", "RADDR", "the other side's address", width=16),
        Column("rport", "RPORT", "the other side's port", width=6),
        Column("rx", "RX_KB", "what it received", "bytes", show=lambda size: f"{size // 1024}"),
        Column("tx", "TX_KB", "what it sent", "bytes", show=lambda size: f"{size // 1024}"),
    ],
    build=_build,
    view="table",
    hooks=[_TRACEPOINT, _RECEIVE, *(f"kprobe:{name}" for name in _SENDERS)],
    interval=1,
)
