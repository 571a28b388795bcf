"""What a value is, by its type, its name, and the probe that has it: for one-liners, which decode by themselves."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["kind_of"]

_BY_TYPE = {
    "__be16": "be16",
    "__be32": "be32",
    "__be64": "be64",
    "umode_t": "mode",
    "mode_t": "mode",
    "dev_t": "dev",
    "sa_family_t": "family",
}
_ADDRESSES = re.compile(r"(?:skc?_)?(?:saddr|daddr|raddr|laddr|rcv_saddr|s_addr)(?:_v6|v6|6)?")
_BYTES = re.compile(r"(?:__u8|u8|unsigned char) ?\[(?:4|16)\]")

# System calls' parameters, by the names that tracefs and BTF give them.
_SYSCALLS: Mapping[tuple[str, str], str] = {
    ("open", "flags"): "open",
    ("openat", "flags"): "open",
    ("open_by_handle_at", "flags"): "open",
    ("mmap", "prot"): "prot",
    ("mprotect", "prot"): "prot",
    ("pkey_mprotect", "prot"): "prot",
    ("mmap", "flags"): "mmap",
    ("clone", "clone_flags"): "clone",
    ("unshare", "unshare_flags"): "clone",
    ("setns", "flags"): "clone",
    ("setns", "nstype"): "clone",
    ("kill", "sig"): "signal",
    ("tkill", "sig"): "signal",
    ("tgkill", "sig"): "signal",
    ("rt_sigaction", "sig"): "signal",
    ("rt_sigqueueinfo", "sig"): "signal",
    ("rt_tgsigqueueinfo", "sig"): "signal",
    ("pidfd_send_signal", "sig"): "signal",
    ("socket", "family"): "family",
    ("socketpair", "family"): "family",
    ("socket", "type"): "socktype",
    ("socketpair", "type"): "socktype",
    ("ioprio_set", "ioprio"): "ioprio",
    ("mknod", "dev"): "st_dev",
    ("mknodat", "dev"): "st_dev",
}
# Tracepoints' fields, by category: "" of any.
_FIELDS: Mapping[tuple[str, str], str] = {
    ("signal", "sig"): "signal",
    ("signal", "errno"): "error",
    ("sock", "family"): "family",
    ("tcp", "family"): "family",
    ("sock", "oldstate"): "tcp_state",
    ("sock", "newstate"): "tcp_state",
    ("tcp", "state"): "tcp_state",
    ("tcp", "oldstate"): "tcp_state",
    ("tcp", "newstate"): "tcp_state",
    ("block", "rwbs"): "rwbs",
    ("block", "error"): "error",
    ("sched", "prev_state"): "task_state",
    ("task", "clone_flags"): "clone",
    ("capability", "cap"): "capability",
    ("capability", "ret"): "errno",
    ("syscalls", "ret"): "errno",
    ("raw_syscalls", "ret"): "errno",
    ("raw_syscalls", "id"): "syscall",
    ("tcp", "err"): "error",
}
# Arguments of raw tracepoints.
_RAW: Mapping[tuple[str, str], str] = {
    ("inet_sock_set_state", "oldstate"): "tcp_state",
    ("inet_sock_set_state", "newstate"): "tcp_state",
    ("sched_switch", "prev_state"): "raw_state",
    ("sys_exit", "ret"): "errno",
    ("sys_enter", "id"): "syscall",
}


def kind_of(type_text: str, name: str, probe: str = "") -> str | None:
    """Return the kind that a value is decoded as (``KINDS``), or None for one that is shown as it is.

    ``type_text``: its C type, "umode_t", "__u8[4]". ``name``: the argument's, field's or member's, "retval" for what is
    returned. ``probe``: as -a takes it.
    """
    kind, _, target = probe.partition(":")
    type_text = type_text.replace("const ", "").strip()
    call = _system_call(kind, target)
    if name in ("retval", "errno") and call:
        return "errno" if name == "retval" else "error"  # errno is what a one-liner makes of a result: 2, not -2
    if _ADDRESSES.fullmatch(name) and (type_text == "__be32" or _BYTES.fullmatch(type_text)):
        return "ip"
    if type_text in _BY_TYPE and not (call and type_text == "dev_t"):
        return _BY_TYPE[type_text]
    if call and (found := _SYSCALLS.get((call, name))):
        return found
    if kind == "rawtracepoint":
        return _RAW.get((target, name))
    return _FIELDS.get((target.partition(":")[0], name)) if kind == "tracepoint" else None


def _system_call(kind: str, target: str) -> str:
    """Return the system call of a probe on one, else ""."""
    if kind in ("syscall", "sysret"):
        return target
    found = re.fullmatch(r"syscalls:sys_(?:enter|exit)_(\w+)", target) if kind == "tracepoint" else None
    return found[1] if found else ""
