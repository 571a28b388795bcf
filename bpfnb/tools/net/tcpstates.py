"""tcpstates: state changes of TCP sockets, with how long each was in the state before.

States change in interrupts as well, while any process runs: pid is the process that opened, accepted or closed the
socket, and 0 as long as none has. What it cannot see: whose sockets are that were there before it was attached, until
they are closed. On some kernels (6.1) the first row of a connection that comes in, LISTEN to SYN_RECV, has the ends of
the listening socket. On kernels without kprobes, a connection that io_uring accepted is its process's once that closes
it.
"""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd

from bpfnb.results.decode import values
from bpfnb.results.presentation import Rows
from bpfnb.tools.net._sockets import ACCEPT_HOOK, CONNECTION, OWNERS, accepts, with_addresses
from bpfnb.tools.tool import Column, Spec, Tool, clock

__all__ = ["TOOL"]

_SOURCE = (
    CONNECTION
    + OWNERS
    + r"""
struct event_t {
    u64 skaddr, duration;
    struct connection_t at;
    u32 pid;
    int oldstate, newstate;
    char comm[TASK_COMM_LEN];
};
BPF_RINGBUF_OUTPUT(events, 64);

RAW_TRACEPOINT_PROBE(inet_sock_set_state) {
    struct sock *sk = (struct sock *)ctx->args[0];
    struct event_t event = {};
    u64 key = (u64)sk, now = bpf_ktime_get_ns();
    struct owner_t *owner, unknown = {};

    if (!is_tcp(sk))
        return 0;
    event.skaddr = key;
    event.oldstate = ctx->args[1];
    event.newstate = ctx->args[2];
    owner = owner_of(sk, event.newstate);
    if (!owner) {
        if (event.newstate == TCP_FIN_WAIT1 || event.newstate == TCP_LAST_ACK)
            is_of_current(&unknown);
        unknown.since = now;
        owners.update(&key, &unknown);
        owner = &unknown;
    } else {
        event.duration = owner->since ? now - owner->since : 0;
        owner->since = now;
    }
    if ((owner->pid ? owner->selected : bpfnb_selected()) && ends_of(sk, &event.at)) {
        event.pid = owner->pid;
        __builtin_memcpy(event.comm, owner->comm, sizeof(event.comm));
        events.ringbuf_output(&event, sizeof(event), 0);
    }
    if (event.newstate == TCP_CLOSE)
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
    duration = pd.to_timedelta(found["duration"])
    return found.assign(
        duration=duration.where(found["duration"] > 0),
        oldstate=values(found["oldstate"], "tcp_state"),
        newstate=values(found["newstate"], "tcp_state"),
    )


def _milliseconds(duration: pd.Timedelta) -> str:
    return "" if pd.isna(duration) else f"{duration.value / 1e6:.3f}"


TOOL = Tool(
    "tcpstates",
    "net",
    __doc__,
    columns=[
        Column("time", "TIME", "when", show=clock),
        Column("skaddr", "SKADDR", "the socket, by its address in the kernel", width=16, show=lambda sk: f"{sk:x}"),
        Column("pid", "PID", "the process whose socket it is"),
        Column("comm", "COMM", "the name of its thread that opened, accepted or closed it", width=10),
        Column("ip", "IP", "4 or 6", width=2),
        Column("laddr", "LADDR", "its own address", width=16),
        Column("lport", "LPORT", "its own port", width=6),
        Column("raddr", "RADDR", "the other side's address", width=16),
        Column("rport", "RPORT", "the other side's port", width=6),
        Column("oldstate", "OLDSTATE", "the state before", width=11),
        Column("newstate", "NEWSTATE", "the state now", width=11),
        Column(
            "duration", "MS", "how long it was in the state before, where that is known", "timedelta", 10, _milliseconds
        ),
    ],
    build=_build,
    hooks=[ACCEPT_HOOK],
)
