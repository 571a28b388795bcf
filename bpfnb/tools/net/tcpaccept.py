"""tcpaccept: TCP connections that processes accept.

A row is a successful accept(), by the process that called it. What it cannot see: connections that wait for an accept()
or are reset before one; on kernels without kprobes those that io_uring accepts, or by the old socketcall().
"""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd

from bpfnb.results.presentation import Rows
from bpfnb.tools.net._sockets import ACCEPT_HOOK, CONNECTION, accepts, with_addresses
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

static inline int accepted(void *ctx, struct sock *sk) {
    struct event_t event = {};

    if (!bpfnb_selected() || !ends_of(sk, &event.at))
        return 0;
    event.pid = bpf_get_current_pid_tgid() >> 32;
    event.uid = bpf_get_current_uid_gid();
    bpf_get_current_comm(&event.comm, sizeof(event.comm));
    events.ringbuf_output(&event, sizeof(event), 0);
    return 0;
}
"""
)


def _build(has: Collection[str]) -> Spec:
    return Spec(_SOURCE + accepts(has), Rows(_convert))


def _convert(events: pd.DataFrame) -> pd.DataFrame:
    found = with_addresses(events, {"raddr": "at.raddr", "laddr": "at.laddr"})
    return found.rename(columns={"at.lport": "lport", "at.rport": "rport"})


TOOL = Tool(
    "tcpaccept",
    "net",
    __doc__,
    columns=[
        Column("time", "TIME", "when accept() returned", show=clock),
        Column("pid", "PID", "the process that accepted it"),
        Column("comm", "COMM", "the thread's name", width=16),
        Column("uid", "", "its user"),
        Column("ip", "IP", "4 or 6", width=2),
        Column("raddr", "RADDR", "the address that it comes from", width=16),
        Column("rport", "RPORT", "the port that it comes from", width=6),
        Column("laddr", "LADDR", "its own address", width=16),
        Column("lport", "LPORT", "its own port", width=6),
    ],
    build=_build,
    hooks=[ACCEPT_HOOK],
)
