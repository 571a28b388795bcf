"""What tools about TCP have in common: a socket's two ends in C, and their columns."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pandas as pd

from bpfnb.results.decode import values

__all__ = ["ACCEPT_HOOK", "CONNECTION", "OWNERS", "accepts", "with_addresses"]

# IPv4 addresses are mapped into IPv6: one column of 16 bytes for both.
CONNECTION = r"""
#include <net/sock.h>
#include <linux/tcp.h>

#define AF_INET 2
#define AF_INET6 10

struct connection_t {
    u8 laddr[16], raddr[16];
    u16 lport, rport;
};

/* bcc reads members by itself only where it knows whence a pointer comes: not from a map, not through two calls. */
#define READ_KERNEL(to, from) bpf_probe_read_kernel(&(to), sizeof(to), &(from))

/* The ends of a socket; false of one that is of neither IPv4 nor IPv6. */
static inline bool ends_of(struct sock *sk, struct connection_t *c) {
    u16 family = 0, lport = 0, rport = 0;
    u32 local = 0, remote = 0;

    READ_KERNEL(family, sk->__sk_common.skc_family);
    if (family == AF_INET) {
        READ_KERNEL(local, sk->__sk_common.skc_rcv_saddr);
        READ_KERNEL(remote, sk->__sk_common.skc_daddr);
        c->laddr[10] = c->laddr[11] = c->raddr[10] = c->raddr[11] = 0xff;
        __builtin_memcpy(&c->laddr[12], &local, 4);
        __builtin_memcpy(&c->raddr[12], &remote, 4);
    } else if (family == AF_INET6) {
        READ_KERNEL(c->laddr, sk->__sk_common.skc_v6_rcv_saddr);
        READ_KERNEL(c->raddr, sk->__sk_common.skc_v6_daddr);
    } else {
        return false;
    }
    READ_KERNEL(lport, ((struct inet_sock *)sk)->inet_sport);
    READ_KERNEL(rport, sk->__sk_common.skc_dport);
    c->lport = ntohs(lport);
    c->rport = ntohs(rport);
    return true;
}

static inline bool is_tcp(struct sock *sk) {
    u16 protocol = 0;

    READ_KERNEL(protocol, sk->sk_protocol);
    return protocol == IPPROTO_TCP;
}
"""

# Whose a socket is. States change in interrupts, while any process runs. These change in the process's own calls:
# connect(), listen(), close() and shutdown(). What a server accepts is its, from accept() on.
OWNERS = r"""
struct owner_t {
    u64 begin;  // when it was first seen
    u64 since;  // when its state changed
    u32 pid;
    u32 selected;
    char comm[TASK_COMM_LEN];
};
BPF_HASH(owners, u64, struct owner_t, 65536);  // by the socket, until it is closed

static inline void is_of_current(struct owner_t *owner) {
    owner->pid = bpf_get_current_pid_tgid() >> 32;
    owner->selected = bpfnb_selected();
    bpf_get_current_comm(&owner->comm, sizeof(owner->comm));
}

static inline int accepted(void *ctx, struct sock *sk) {
    u64 key = (u64)sk;
    struct owner_t *owner = owners.lookup(&key);

    if (owner)
        is_of_current(owner);
    return 0;
}

/* The owner of a socket whose state changes; NULL of one that was there before. */
static inline struct owner_t *owner_of(struct sock *sk, int state) {
    struct owner_t new = {}, *owner;
    u64 key = (u64)sk;

    if (state == TCP_SYN_SENT || state == TCP_LISTEN || state == TCP_SYN_RECV) {
        new.begin = bpf_ktime_get_ns();
        if (state != TCP_SYN_RECV)
            is_of_current(&new);
        owners.update(&key, &new);
    }
    owner = owners.lookup(&key);
    if (owner && !owner->pid && (state == TCP_FIN_WAIT1 || state == TCP_LAST_ACK))
        is_of_current(owner);
    return owner;
}
"""

ACCEPT_HOOK = "kretprobe:inet_csk_accept"

_AT_FUNCTION = r"""
PROBE("kretprobe:inet_csk_accept")
int on_accept(struct pt_regs *ctx) {
    struct sock *sk = (struct sock *)PT_REGS_RC(ctx);

    return sk && is_tcp(sk) ? accepted(ctx, sk) : 0;
}
"""
_AT_SYSTEM_CALLS = r"""
#include <linux/fs.h>
#include <linux/fdtable.h>
#include <linux/net.h>
#include <linux/sched.h>

PROBE("sysret:accept")
PROBE("sysret:accept4")
int on_accept(struct pt_regs *ctx) {
    struct task_struct *task = (struct task_struct *)bpf_get_current_task();
    long fd = PT_REGS_RC(ctx);
    struct file **files, *file;
    struct socket *socket;
    struct sock *sk;

    if (fd < 0)
        return 0;
    files = task->files->fdt->fd;
    file = *(files + fd);
    socket = file->private_data;
    if (!socket || socket->file != file)
        return 0;  // another thread has closed it by now
    sk = socket->sk;
    return sk && is_tcp(sk) ? accepted(ctx, sk) : 0;
}
"""


def accepts(has: Collection[str]) -> str:
    """Return C that calls accepted(ctx, sk) for each connection, in the thread that accepts it.

    All ways come by the function inet_csk_accept(). Without kprobes what the system calls return is looked up: the
    file, and the socket that it is of.
    """
    return _AT_FUNCTION if ACCEPT_HOOK in has else _AT_SYSTEM_CALLS


def with_addresses(events: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """Return the events with text for addresses, and ``ip``: 4 or 6, as packets are. ``columns``: {name: the event's}.

    An IPv6 socket's connection to a mapped IPv4 address is one of IPv4.
    """
    found = events.assign(**{name: values(events[source], "ip") for name, source in columns.items()})
    any_address = found[next(iter(columns))].astype("str")
    return found.assign(ip=any_address.str.contains(":").map({True: 6, False: 4}).astype("int8"))
