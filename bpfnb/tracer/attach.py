"""From a wished-for probe to an attached one.

Every way of attaching ends in a file descriptor (a perf event or a BPF link) whose close detaches, whatever becomes
of this process. A probe on a syscall is a kprobe where this kernel has kprobes and the syscall's tracepoint where it
has not; rewrite.py gives the program the same meaning in both.
"""

from __future__ import annotations

import ctypes
import difflib
import errno
import fcntl
import os
import platform
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from bpfnb.errors import AttachError, UnsupportedError
from bpfnb.program import EVENTS, Probe
from bpfnb.protocol import ProbeInfo
from bpfnb.tracer import tracefs
from bpfnb.tracer.compiler import LoadWish, Module, UsdtWish
from bpfnb.tracer.engine import Engine

__all__ = ["Link", "attach", "has_kprobes", "syscall_mode", "usdt_wish", "wish"]

# BPF program types: include/uapi/linux/bpf.h, enum bpf_prog_type.
_KPROBE, _TRACEPOINT, _PERF_EVENT, _RAW_TRACEPOINT, _TRACING, _LSM = 2, 5, 7, 17, 26, 29
# Perf event types and defaults: include/uapi/linux/perf_event.h.
_TYPE_HARDWARE, _TYPE_SOFTWARE, _CPU_CLOCK = 0, 1, 0
_PERF_EVENT_IOC_DISABLE = 0x2401
_DEFAULT_COUNT = {"software": 1, "hardware": 1_000_000}  # events to a hit, as bpftrace has it

_SYSCALL_PREFIXES = {
    "x86_64": "__x64_sys_",
    "aarch64": "__arm64_sys_",
    "s390x": "__s390x_sys_",
    "riscv64": "__riscv_sys_",
}


class Link(NamedTuple):
    """An attached probe, and the descriptors that hold it."""

    info: ProbeInfo
    fds: list[int]

    def silence(self) -> None:
        """Let it see no more events, at once, where that is possible: detaching waits for every CPU."""
        for fd in self.fds:
            with suppress(OSError):  # no perf event but a BPF link, which can only be closed
                fcntl.ioctl(fd, _PERF_EVENT_IOC_DISABLE)

    def close(self) -> None:
        """Detach. Idempotent."""
        _close_all(self.fds)


class Target(NamedTuple):
    """What is attached, and with what."""

    engine: Engine
    module: Module
    program: int  # the loaded function's descriptor


def wish(engine: Engine, probe: Probe) -> LoadWish:
    """What a probe needs its function loaded as."""
    if probe.kind in ("syscall", "sysret"):
        return LoadWish(probe.function, _KPROBE if has_kprobes() else _TRACEPOINT, probe.function)
    kind = _PROGRAM_TYPES[probe.kind]
    if kind == _TRACING:
        prefix = "kfunc__" if probe.kind == "fentry" else "kretfunc__"
        return LoadWish(probe.function, kind, engine.tracing_name(prefix, probe.target))
    return LoadWish(probe.function, kind, f"lsm__{probe.target}" if kind == _LSM else probe.function)


def usdt_wish(probe: Probe) -> UsdtWish | None:
    """What has to be known of a USDT probe before compiling. AttachError when its file is not there."""
    if probe.kind != "usdt":
        return None
    path, provider, name = probe.target.rsplit(":", 2)
    _require_file(probe, path)
    return UsdtWish(path, f"{provider}:{name}", probe.function, probe.requested)


def attach(engine: Engine, module: Module, probe: Probe) -> Link:
    """Attach a probe whose function is loaded. AttachError when that cannot be."""
    return _WAYS[probe.kind](Target(engine, module, module.programs[wish(engine, probe)]), probe)


@cache
def has_kprobes() -> bool:
    """Whether this kernel has kprobes (CONFIG_KPROBE_EVENTS): it then offers them as a perf event source."""
    return Path("/sys/bus/event_source/devices/kprobe/type").exists()


def syscall_mode() -> Literal["kprobe", "tracepoint"]:
    return "kprobe" if has_kprobes() else "tracepoint"


# --- syscalls: portable -------------------------------------------------------------------------------------------


def _syscall(target: Target, probe: Probe) -> Link:
    exit_ = probe.kind == "sysret"
    if has_kprobes():
        function = _syscall_function(probe)
        fd = _open_kprobe(target, probe, function, 0, exit_)
        return _link(probe, fd, f"{'kretprobe' if exit_ else 'kprobe'}:{function}", "")
    event = f"sys_{'exit' if exit_ else 'enter'}_{probe.target}"
    if not (tracefs.root() / "events/syscalls" / event).is_dir():
        raise _no_syscall(probe)
    fd = _open_tracepoint(target, probe, "syscalls", event)
    note = "this kernel has no kprobes: probes on syscalls are attached to their tracepoints, which see the same calls"
    return _link(probe, fd, f"tracepoint:syscalls:{event}", note)


def _syscall_function(probe: Probe) -> str:
    names = _kernel_functions()
    for prefix in (_SYSCALL_PREFIXES.get(platform.machine(), "sys_"), "sys_"):
        if prefix + probe.target in names:
            return prefix + probe.target
    raise _no_syscall(probe)


def _no_syscall(probe: Probe) -> AttachError:
    known = [d.name[len("sys_enter_") :] for d in (tracefs.root() / "events/syscalls").glob("sys_enter_*")]
    return _absent(probe, f"this kernel has no syscall {probe.target}", (f"syscall:{n}" for n in known))


# --- kernel functions ---------------------------------------------------------------------------------------------


# Tracepoints that are met where well-known functions are, and outlive their renaming and inlining.
_TRACEPOINTS = {
    "blk_account_io_start": "block:block_io_start",
    "blk_account_io_done": "block:block_io_done",
    "blk_start_request": "block:block_rq_issue",
    "blk_mq_start_request": "block:block_rq_issue",
    "finish_task_switch": "sched:sched_switch",
    "try_to_wake_up": "sched:sched_wakeup",
    "ttwu_do_wakeup": "sched:sched_wakeup",
    "wake_up_new_task": "sched:sched_wakeup_new",
    "do_exit": "sched:sched_process_exit",
    "kernel_clone": "sched:sched_process_fork",
    "_do_fork": "sched:sched_process_fork",
    "tcp_set_state": "sock:inet_sock_set_state",
    "tcp_retransmit_skb": "tcp:tcp_retransmit_skb",
    "tcp_rcv_established": "tcp:tcp_probe",
    "tcp_send_active_reset": "tcp:tcp_send_reset",
    "netif_receive_skb": "net:netif_receive_skb",
    "dev_queue_xmit": "net:net_dev_queue",
    "kfree_skb": "skb:kfree_skb",
    "oom_kill_process": "oom:mark_victim",
    "__alloc_pages": "kmem:mm_page_alloc",
    "kmem_cache_alloc": "kmem:kmem_cache_alloc",
    "handle_mm_fault": "exceptions:page_fault_user",
    "mark_page_accessed": "pagemap:mm_lru_activate",
}


def _kprobe(target: Target, probe: Probe) -> Link:
    function, _, offset = probe.target.partition("+")
    if not has_kprobes():
        raise _no_kprobe(probe, "this kernel has no kprobes (CONFIG_KPROBES is off)", function)
    if function not in _kernel_functions():
        parts = sorted(name for name in _kernel_functions() if name.startswith(f"{function}."))
        if parts:
            hint = f"the compiler made it {', '.join(parts[:3])}: {probe.kind}:{parts[0]}"
            raise _no_kprobe(probe, f"no kernel function is called just {function}", function, hint)
        if _alternative(function):
            raise _no_kprobe(probe, f"no kernel function is called {function}; it may be inlined", function)
        known = (f"{probe.kind}:{name}" for name in _kernel_functions())
        raise _absent(probe, f"no kernel function is called {function}; it may be inlined", known)
    fd = _open_kprobe(target, probe, function, int(offset or "0", 0), probe.kind == "kretprobe")
    return _link(probe, fd, f"{probe.kind}:{probe.target}", "")


def _no_kprobe(probe: Probe, message: str, function: str, hint: str | None = None) -> AttachError:
    tracepoint = _alternative(function)
    if not hint and tracepoint:
        hint = f"the tracepoint of this place is {tracepoint}: -a {tracepoint}={probe.function}"
    return AttachError(
        f"{probe.requested}: {message}",
        probe=probe.requested,
        errno=errno.ENOENT,
        hint=hint,
        line=probe.line or None,
    )


def _alternative(function: str) -> str:
    """A tracepoint of this kernel that stands where the function is; "" where none is known."""
    event = _TRACEPOINTS.get(function, "")
    there = event and (tracefs.root() / "events" / event.replace(":", "/")).is_dir()
    return f"tracepoint:{event}" if there else ""


def _open_kprobe(target: Target, probe: Probe, function: str, offset: int, exit_: bool) -> int:
    event = f"bpfnb_{os.getpid()}_{target.program}_{function}".encode()
    attach_kprobe = target.engine.lib.bpf_attach_kprobe
    return _opened(probe, lambda: attach_kprobe(target.program, int(exit_), event, function.encode(), offset, 0))


def _fentry(target: Target, probe: Probe) -> Link:
    fd = _opened(probe, lambda: target.engine.lib.bpf_attach_kfunc(target.program))
    return _link(probe, fd, f"{probe.kind}:{probe.target}", "")


def _lsm(target: Target, probe: Probe) -> Link:
    fd = _opened(probe, lambda: target.engine.lib.bpf_attach_lsm(target.program))
    return _link(probe, fd, f"lsm:{probe.target}", "")


# --- tracepoints --------------------------------------------------------------------------------------------------


def _tracepoint(target: Target, probe: Probe) -> Link:
    category, _, event = probe.target.partition(":")
    if not (tracefs.root() / "events" / category / event).is_dir():
        known = (f"tracepoint:{name}" for name in tracefs.tracepoints())
        raise _absent(probe, f"this kernel has no tracepoint {probe.target}", known)
    return _link(probe, _open_tracepoint(target, probe, category, event), f"tracepoint:{probe.target}", "")


def _open_tracepoint(target: Target, probe: Probe, category: str, event: str) -> int:
    attach_tracepoint = target.engine.lib.bpf_attach_tracepoint
    return _opened(probe, lambda: attach_tracepoint(target.program, category.encode(), event.encode()))


def _raw_tracepoint(target: Target, probe: Probe) -> Link:
    attach_raw_tracepoint = target.engine.lib.bpf_attach_raw_tracepoint
    try:
        fd = _opened(probe, lambda: attach_raw_tracepoint(target.program, probe.target.encode()))
    except AttachError as error:
        if error.errno != errno.ENOENT:
            raise
        known = (f"rawtracepoint:{name.partition(':')[2]}" for name in tracefs.tracepoints())
        raise _absent(probe, f"this kernel has no raw tracepoint {probe.target}", known) from None
    return _link(probe, fd, f"rawtracepoint:{probe.target}", "")


# --- user space ---------------------------------------------------------------------------------------------------


def _uprobe(target: Target, probe: Probe) -> Link:
    path, _, symbol = probe.target.rpartition(":")
    symbol, _, offset = symbol.partition("+")
    _require_file(probe, path)
    try:
        place = target.engine.resolve(path, symbol, int(offset or "0", 0))
    except Exception as error:  # bcc raises nothing more exact
        raise AttachError(f"{probe.requested}: {error}", probe=probe.requested, errno=errno.ENOENT) from None
    fd = _open_uprobe(target, probe, *place, probe.kind == "uretprobe")
    return _link(probe, fd, f"{probe.kind}:{probe.target}", "")


def _usdt(target: Target, probe: Probe) -> Link:
    """At every place the probe is compiled into."""
    wished = usdt_wish(probe)
    assert wished
    fds: list[int] = []
    try:
        for path, address in target.module.places[wished]:
            fds.append(_open_uprobe(target, probe, path.encode(), address, False))
    except BaseException:
        _close_all(fds)
        raise
    return _link(probe, fds, f"usdt:{probe.target}", "")


def _open_uprobe(target: Target, probe: Probe, path: bytes, address: int, exit_: bool) -> int:
    event = f"bpfnb_{os.getpid()}_{target.program}_{address:x}".encode()
    attach_uprobe = target.engine.lib.bpf_attach_uprobe
    return _opened(probe, lambda: attach_uprobe(target.program, int(exit_), event, path, address, -1))


def _require_file(probe: Probe, path: str) -> None:
    if not Path(path).is_file():
        raise AttachError(f"{probe.requested}: there is no file {path}", probe=probe.requested, errno=errno.ENOENT)


# --- perf events --------------------------------------------------------------------------------------------------


def _profile(target: Target, probe: Probe) -> Link:
    unit, _, number = probe.target.rpartition(":")
    nanoseconds = {"": 0, "hz": 0, "s": 10**9, "ms": 10**6, "us": 10**3}[unit] * int(number)
    frequency = 0 if nanoseconds else int(number)
    return _perf(target, probe, _TYPE_SOFTWARE, _CPU_CLOCK, nanoseconds, frequency)


def _counter(target: Target, probe: Probe) -> Link:
    event, _, count = probe.target.partition(":")
    type_ = _TYPE_SOFTWARE if probe.kind == "software" else _TYPE_HARDWARE
    config = list(EVENTS[probe.kind]).index(event)  # in the order of the kernel's enum
    return _perf(target, probe, type_, config, int(count or _DEFAULT_COUNT[probe.kind]), 0)


def _perf(target: Target, probe: Probe, type_: int, config: int, period: int, frequency: int) -> Link:
    """One perf event a CPU that is online."""
    fds: list[int] = []
    try:
        for cpu in sorted(os.sched_getaffinity(0) | _online()):
            fds.append(_opened_perf(target, probe, (type_, config, period, frequency, cpu)))
    except BaseException:
        _close_all(fds)
        raise
    return _link(probe, fds, f"{probe.kind}:{probe.target}", f"on {len(fds)} CPUs")


def _opened_perf(target: Target, probe: Probe, arguments: tuple[int, ...]) -> int:
    type_, config, period, frequency, cpu = arguments
    wide = ctypes.c_ulonglong  # bcc's binding declares no argument types for this call
    attach_perf_event = target.engine.lib.bpf_attach_perf_event
    return _opened(
        probe,
        lambda: attach_perf_event(target.program, type_, config, wide(period), wide(frequency), -1, cpu, -1),
    )


def _online() -> set[int]:
    text = Path("/sys/devices/system/cpu/online").read_text().strip()
    spans = [part.partition("-") for part in text.split(",")]
    return {cpu for first, _, last in spans for cpu in range(int(first), int(last or first) + 1)}


def _close_all(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


# --- shared -------------------------------------------------------------------------------------------------------


def _link(probe: Probe, fds: int | list[int], attached: str, note: str) -> Link:
    kind = attached.partition(":")[0]
    info = ProbeInfo(probe.requested, attached, kind, note, probe.function)
    return Link(info, [fds] if isinstance(fds, int) else fds)


_NOT_TRACEABLE = "the kernel does not let this function be traced (notrace, or part of tracing itself)"
_REASONS = {
    **dict.fromkeys((("kprobe", errno.EINVAL), ("kretprobe", errno.EINVAL)), _NOT_TRACEABLE),
    ("kprobe", errno.EILSEQ): "no instruction begins at this offset",
    ("uprobe", errno.EINVAL): "no instruction that can be traced begins there",
    ("", errno.EBUSY): "it is in use by another tracer",
    ("", errno.EPERM): "not permitted",
    ("", errno.EACCES): "not permitted",
}


def _opened(probe: Probe, call: Callable[[], int]) -> int:
    """A descriptor from bcc's C library. AttachError with the kernel's reason when it is negative."""
    fd = call()
    if fd >= 0:
        return fd
    number = ctypes.get_errno() or -fd
    reason = _REASONS.get((probe.kind, number)) or _REASONS.get(("", number)) or os.strerror(number)
    if probe.kind == "hardware" and number in (errno.ENOENT, errno.EOPNOTSUPP):
        raise UnsupportedError(f"{probe.requested}: this machine has no such hardware counter ({reason})")
    raise AttachError(f"{probe.requested}: {reason}", probe=probe.requested, errno=number, line=probe.line or None)


def _absent(probe: Probe, message: str, known: Iterable[str]) -> AttachError:
    wished = f"{probe.kind}:{probe.target}"
    # A kernel has 100,000 functions and difflib is slow: a name people mistype starts right.
    candidates = [name for name in known if name[: len(probe.kind) + 4] == wished[: len(probe.kind) + 4]]
    near = difflib.get_close_matches(wished, candidates, n=3, cutoff=0.75)
    hint = f"did you mean {' or '.join(near)}?" if near else None
    return AttachError(
        f"{probe.requested}: {message}",
        probe=probe.requested,
        errno=errno.ENOENT,
        hint=hint,
        line=probe.line or None,
    )


@cache
def _kernel_functions() -> frozenset[str]:
    with Path("/proc/kallsyms").open() as lines:
        return frozenset(line.split(None, 3)[2] for line in lines)


_PROGRAM_TYPES = {
    "kprobe": _KPROBE,
    "kretprobe": _KPROBE,
    "fentry": _TRACING,
    "fexit": _TRACING,
    "lsm": _LSM,
    "tracepoint": _TRACEPOINT,
    "rawtracepoint": _RAW_TRACEPOINT,
    "uprobe": _KPROBE,
    "uretprobe": _KPROBE,
    "usdt": _KPROBE,
    "profile": _PERF_EVENT,
    "software": _PERF_EVENT,
    "hardware": _PERF_EVENT,
}

_WAYS: dict[str, Callable[[Target, Probe], Link]] = {
    "syscall": _syscall,
    "sysret": _syscall,
    "kprobe": _kprobe,
    "kretprobe": _kprobe,
    "fentry": _fentry,
    "fexit": _fentry,
    "lsm": _lsm,
    "tracepoint": _tracepoint,
    "rawtracepoint": _raw_tracepoint,
    "uprobe": _uprobe,
    "uretprobe": _uprobe,
    "usdt": _usdt,
    "profile": _profile,
    "software": _counter,
    "hardware": _counter,
}
