"""tcpdrop: TCP packets that the kernel drops, with its reason and the path in the kernel.

stack is a number of session.maps["stacks"]; session.maps["stacks"].folded(session.df) has the functions' names. Most
packets arrive in interrupts: pid and comm are of whoever ran on that CPU, and filters choose by them. What it cannot
see: packets that network cards drop, and TCP in tunnels that are not unpacked yet. Before Linux 6.11 state is missing
of packets that arrive.
"""

from __future__ import annotations

import pandas as pd

from bpfnb.results.decode import values
from bpfnb.results.presentation import Rows
from bpfnb.tools.net._sockets import with_addresses
from bpfnb.tools.tool import Column, Spec, Tool, clock

__all__ = ["TOOL"]

_SOURCE = r"""
#include <linux/skbuff.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <net/sock.h>

#define IPV4 0x0800  /* ETH_P_IP, ETH_P_IPV6 */
#define IPV6 0x86dd
#define FLAGS_AT 13  /* in the header of TCP */
#define SKIPPED 2  /* frames: this program, and what runs it */

struct event_t {
    u8 saddr[16], daddr[16];
    u16 sport, dport;
    u32 pid;
    int stack;
    enum skb_drop_reason reason;
    u16 state, flags;
    char comm[TASK_COMM_LEN];
};
BPF_RINGBUF_OUTPUT(events, 64);
BPF_STACK_TRACE(stacks, 16384);

/* Where the header of TCP is; 0 of other packets. Addresses of IPv4 are mapped into IPv6. */
static inline unsigned char *read_ip(struct sk_buff *skb, struct event_t *event) {
    unsigned char *ip = skb->head + skb->network_header;
    struct ipv6hdr v6 = {};
    struct iphdr v4 = {};

    if (skb->protocol == htons(IPV4)) {
        bpf_probe_read_kernel(&v4, sizeof(v4), ip);
        if (v4.version != 4 || v4.protocol != IPPROTO_TCP)
            return 0;
        event->saddr[10] = event->saddr[11] = event->daddr[10] = event->daddr[11] = 0xff;
        __builtin_memcpy(&event->saddr[12], &v4.saddr, 4);
        __builtin_memcpy(&event->daddr[12], &v4.daddr, 4);
        return ip + 4 * v4.ihl;
    }
    if (skb->protocol == htons(IPV6)) {
        bpf_probe_read_kernel(&v6, sizeof(v6), ip);
        if (v6.version != 6 || v6.nexthdr != IPPROTO_TCP)
            return 0;
        __builtin_memcpy(event->saddr, &v6.saddr, 16);
        __builtin_memcpy(event->daddr, &v6.daddr, 16);
        return ip + sizeof(v6);
    }
    return 0;
}

RAW_TRACEPOINT_PROBE(kfree_skb) {
    struct sk_buff *skb = (struct sk_buff *)ctx->args[0];
    struct event_t event = {};
    struct sock *sk = skb->sk;
    unsigned char *tcp;
    u16 ports[2] = {};
    u8 flags = 0;

    if (!bpfnb_selected() || !(tcp = read_ip(skb, &event)))
        return 0;
    event.reason = ctx->args[2];
    bpf_probe_read_kernel(ports, sizeof(ports), tcp);
    bpf_probe_read_kernel(&flags, sizeof(flags), tcp + FLAGS_AT);
    event.flags = flags;
    event.sport = ntohs(ports[0]);
    event.dport = ntohs(ports[1]);
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 11, 0)
    /* Linux kernel commit c53795d48ee8 ("net: add rx_sk to trace_kfree_skb") (in v6.11) */
    if (!sk)
        sk = (struct sock *)ctx->args[3];
#endif
    if (sk)
        event.state = sk->__sk_common.skc_state;
    event.stack = stacks.get_stackid(ctx, SKIPPED);
    event.pid = bpf_get_current_pid_tgid() >> 32;
    bpf_get_current_comm(&event.comm, sizeof(event.comm));
    events.ringbuf_output(&event, sizeof(event), 0);
    return 0;
}
"""
_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")


def _build() -> Spec:
    return Spec(_SOURCE, Rows(_convert))


def _convert(events: pd.DataFrame) -> pd.DataFrame:
    found = with_addresses(events, {"saddr": "saddr", "daddr": "daddr"})
    names = {value: _flags(value) for value in found["flags"].unique().tolist()}
    return found.assign(
        state=values(found["state"].astype("Int64").where(found["state"] > 0), "tcp_state"),
        flags=found["flags"].map(names).astype("category"),
        reason=found["reason"].cat.rename_categories(lambda name: str(name).removeprefix("SKB_DROP_REASON_")),
    )


def _flags(value: int) -> str:
    return "|".join(name for bit, name in enumerate(_FLAGS) if value >> bit & 1)


TOOL = Tool(
    "tcpdrop",
    "net",
    __doc__,
    columns=[
        Column("time", "TIME", "when", show=clock),
        Column("pid", "PID", "the process that ran on this CPU"),
        Column("comm", "", "the thread's name"),
        Column("ip", "IP", "4 or 6", width=2),
        Column("saddr", "SADDR", "where the packet comes from", width=16),
        Column("sport", "SPORT", "and its port", width=6),
        Column("daddr", "DADDR", "where it goes", width=16),
        Column("dport", "DPORT", "and its port", width=6),
        Column("state", "STATE", "the state of the socket that it is for, where that is known", width=12),
        Column("flags", "(FLAGS)", "the packet's flags", width=12),
        Column("reason", "REASON", "the kernel's reason (enum skb_drop_reason)", width=24),
        Column("stack", "", "the number of its stack trace; negative where it could not be kept"),
    ],
    build=_build,
)
