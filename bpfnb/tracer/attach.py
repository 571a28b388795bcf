"""From a wished-for probe to an attached one.

Every way of attaching ends in a file descriptor (a perf event or a BPF link) whose close detaches, whatever becomes
of this process. A probe on a syscall is a kprobe where this kernel has kprobes and the syscall's tracepoint where it
has not; rewrite.py gives the program the same meaning in both.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from bpfnb.errors import AttachError, SetupError, UnsupportedError, did_you_mean
from bpfnb.program import ENTRIES, EVENTS, Probe
from bpfnb.protocol import ProbeInfo
from bpfnb.tracer import features, headers, privileges, tracefs
from bpfnb.tracer.btf import FUNC, Types
from bpfnb.tracer.compiler import LoadWish, Module, UsdtWish
from bpfnb.tracer.elf import UNREADABLE, Elf, opened
from bpfnb.tracer.engine import Engine

__all__ = ["Link", "attach", "has_kprobes", "require", "syscall_mode", "usdt_wish", "wish"]

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
    """What has to be known of a USDT probe before compiling."""
    if probe.kind != "usdt":
        return None
    path, provider, name = probe.target.rsplit(":", 2)
    return UsdtWish(path, f"{provider}:{name}", probe.function, probe.requested)


def require(probe: Probe) -> None:
    """AttachError where it is known, before anything is compiled, that there is no such probe here."""
    if probe.kind in _REQUIRED:
        _REQUIRED[probe.kind](probe)


def attach(engine: Engine, module: Module, probe: Probe) -> Link:
    """Attach a probe that ``require`` has let pass and whose function is loaded. AttachError when that cannot be."""
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
    fd = _open_tracepoint(target, probe, "syscalls", event)
    note = "this kernel has no kprobes: probes on syscalls are attached to their tracepoints, which see the same calls"
    return _link(probe, fd, f"tracepoint:syscalls:{event}", note)


def _require_syscall(probe: Probe) -> None:
    # Tracepoints are only those of the table of 64-bit calls.
    if has_kprobes() and not (probe.target in _LIBRARY_CALLS and _has_tracepoint("syscalls")):
        _syscall_function(probe)
    elif not _has_tracepoint(f"syscalls/sys_enter_{probe.target}"):
        raise _no_syscall(probe)


def _syscall_function(probe: Probe) -> str:
    names = _kernel_functions()
    for prefix in (_SYSCALL_PREFIXES.get(platform.machine(), "sys_"), "sys_"):
        if prefix + probe.target in names:
            return prefix + probe.target
    raise _no_syscall(probe)


# Functions of glibc's that people know as system calls, and the call each makes. Kernels have entry functions for some
# of these, for 32-bit programs of old.
_LIBRARY_CALLS = {
    "recv": "recvfrom",
    "send": "sendto",
    "wait": "wait4",
    "wait3": "wait4",
    "waitpid": "wait4",
    "readdir": "getdents64",
    "sleep": "clock_nanosleep",
    "usleep": "clock_nanosleep",
    "signal": "rt_sigaction",
    "sigwait": "rt_sigtimedwait",
    "sigqueue": "rt_sigqueueinfo",
    "nice": "setpriority",
    "posix_fadvise": "fadvise64",
}


def _no_syscall(probe: Probe) -> AttachError:
    if made := _LIBRARY_CALLS.get(probe.target):
        why = f"this kernel has no syscall {probe.target}: glibc's {probe.target}() makes {made}"
        return _refused(probe, why, hint=f"did you mean {probe.kind}:{made}?")
    known = [d.name[len("sys_enter_") :] for d in (tracefs.root() / "events/syscalls").glob("sys_enter_*")]
    near = _near(probe.target, known, f"{probe.kind}:")
    return _refused(probe, f"this kernel has no syscall {probe.target}", hint=near)


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
    "bprm_execve": "sched:sched_process_exec",
    "do_execveat_common": "sched:sched_process_exec",
}
# Functions that serve one syscall above all.
_SERVES = {
    "do_sys_open": "openat",
    "do_sys_openat2": "openat",
    "do_unlinkat": "unlinkat",
    "do_mkdirat": "mkdirat",
    "do_renameat2": "renameat2",
    "do_nanosleep": "clock_nanosleep",
    "ksys_read": "read",
    "ksys_write": "write",
    "ksys_sync": "sync",
}


def _require_kprobe(probe: Probe) -> None:
    function = probe.target.partition("+")[0]
    if not has_kprobes():
        raise _refused(probe, "this kernel has no kprobes (CONFIG_KPROBES is off)", hint=_alternative(probe, function))
    if function in _kernel_functions():
        return
    parts = sorted(name for name in _kernel_functions() if name.startswith(f"{function}."))
    if parts:
        hint = f"the compiler made it {', '.join(parts[:3])}: {probe.kind}:{parts[0]}"
        raise _refused(probe, f"no kernel function is called just {function}", hint=hint)
    raise _no_function(probe, function, _kernel_functions())


def _kprobe(target: Target, probe: Probe) -> Link:
    function, _, offset = probe.target.partition("+")
    fd = _open_kprobe(target, probe, function, int(offset or "0", 0), probe.kind == "kretprobe")
    return _link(probe, fd, f"{probe.kind}:{probe.target}", "")


def _require_trampoline(probe: Probe) -> None:
    """fentry, fexit and lsm: the kernel must let programs into its functions, and know the function's type."""
    hook = probe.kind == "lsm"
    function = f"bpf_lsm_{probe.target}" if hook else probe.target
    refusal = _refusal(features.lsm if hook else features.fentry)
    if refusal:
        what = "the hooks of its security modules (lsm)" if hook else "its functions (fentry, fexit)"
        message = f"this kernel does not let programs attach to {what}: {refusal}"
        raise _refused(probe, message, hint=_alternative(probe, function))
    btf = headers.KERNEL_BTF.read_bytes()
    if ":" in function or f"\0{function}\0".encode() in btf:  # of a module's function its own BTF knows
        return
    known = [t.name for t in Types(btf, "the kernel's").all if t.kind == FUNC]
    if hook:
        hooks = [name.removeprefix("bpf_lsm_") for name in known if name.startswith("bpf_lsm_")]
        raise _refused(probe, f"this kernel has no hook {probe.target}", hint=_near(probe.target, hooks, "lsm:"))
    raise _no_function(probe, function, known)


@cache
def _refusal(feature: Callable[[], None]) -> str:
    """Why the kernel refuses what one of features.py tries; "" where it does not."""
    try:
        with privileges.attaching():
            feature()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _no_function(probe: Probe, function: str, known: Iterable[str]) -> AttachError:
    # A kernel has 100,000 functions and comparing is slow: a name people mistype starts right.
    near = _near(function, (name for name in known if name[:2] == function[:2]), f"{probe.kind}:")
    hint = _alternative(probe, function) or near
    return _refused(probe, f"no kernel function is called {function}; it may be inlined", hint=hint)


def _alternative(probe: Probe, function: str) -> str | None:
    """What is met where the function is, and is there on this kernel: a hint."""
    function = function.partition(".")[0]  # the compiler's own name for a part of it, as bcc's tools look it up
    if function in _SERVES:
        return f"the syscall it serves: -a syscall:{_SERVES[function]}={probe.function}"
    event = _TRACEPOINTS.get(function, "")
    if not event or not _has_tracepoint(event.replace(":", "/")):
        return None
    return f"a tracepoint stands at this place: -a tracepoint:{event}={probe.function}"


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


def _require_tracepoint(probe: Probe) -> None:
    if not _has_tracepoint(probe.target.replace(":", "/")):
        call = re.fullmatch(r"(syscalls:sys_(?:enter|exit)_)(\w+)", probe.target)
        entry = ENTRIES.get(call[2]) if call else None
        near = f"did you mean tracepoint:{call[1]}{entry}?" if call and entry else None
        near = near or _near(probe.target, tracefs.tracepoints(), "tracepoint:")
        raise _refused(probe, f"this kernel has no tracepoint {probe.target}", hint=near)


def _has_tracepoint(event: str) -> bool:
    return (tracefs.root() / "events" / event).is_dir()


def _tracepoint(target: Target, probe: Probe) -> Link:
    category, _, event = probe.target.partition(":")
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
        known = (name.partition(":")[2] for name in tracefs.tracepoints())
        hint = _near(probe.target, known, "rawtracepoint:")
        raise _refused(probe, f"this kernel has no raw tracepoint {probe.target}", hint=hint) from None
    return _link(probe, fd, f"rawtracepoint:{probe.target}", "")


# --- user space ---------------------------------------------------------------------------------------------------


def _require_uprobe(probe: Probe) -> None:
    _require_file(probe, probe.target.rpartition(":")[0])


def _uprobe(target: Target, probe: Probe) -> Link:
    path, _, symbol = probe.target.rpartition(":")
    symbol, _, offset = symbol.partition("+")
    try:
        place = target.engine.resolve(path, symbol, int(offset or "0", 0))
    except Exception:  # bcc raises nothing more exact
        raise _no_symbol(probe, path, symbol) from None
    fd = _open_uprobe(target, probe, *place, probe.kind == "uretprobe")
    return _link(probe, fd, f"{probe.kind}:{probe.target}", "")


def _no_symbol(probe: Probe, path: str, symbol: str) -> AttachError:
    if "*" in symbol:
        return _refused(probe, "wildcards are not understood: name one function")
    try:
        with opened(path.encode(), nullcontext) as file:
            known = [name for name in Elf(file.read).functions() if name[:1] == symbol[:1]]
    except UNREADABLE:
        return _refused(probe, f"{path} is no program or library (ELF) of this machine")
    return _refused(probe, f"{path} has no function {symbol}", hint=_near(symbol, known, f"{probe.kind}:{path}:"))


def _require_usdt(probe: Probe) -> None:
    path, provider, name = probe.target.rsplit(":", 2)
    _require_file(probe, path)
    with suppress(*UNREADABLE), opened(path.encode(), nullcontext) as file:
        known = Elf(file.read).usdt()
        if f"{provider}:{name}" not in known:
            none = "" if known else ": it was built without USDT probes"
            hint = _near(f"{provider}:{name}", known, f"usdt:{path}:")
            raise _refused(probe, f"{path} has no probe {provider}:{name}{none}", hint=hint)


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
    try:
        return _opened(probe, lambda: attach_uprobe(target.program, int(exit_), event, path, address, -1))
    except BaseException:
        _forget_uprobe(event)
        raise


def _forget_uprobe(event: bytes) -> None:
    """What the kernel refuses bcc tries a second time, by way of a probe in tracefs, and leaves that there (libbpf.c:
    bpf_attach_probe, create_probe_event)."""
    with suppress(OSError, SetupError):  # there is none
        events = os.open(tracefs.root() / "uprobe_events", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            os.write(events, b"-:uprobes/%s_bcc_%d\n" % (event, os.getpid()))
        finally:
            os.close(events)


def _require_file(probe: Probe, path: str) -> None:
    file = Path(path)
    if file.is_dir():
        raise _refused(probe, f"{path} is a directory")
    if not file.is_file():
        raise _refused(probe, f"there is no file {path}", hint=_near_file(file))


def _near_file(file: Path) -> str | None:
    if not file.is_absolute():
        return f"write its whole path{f', {found}' if (found := shutil.which(file)) else ''}"
    with suppress(OSError):
        return _near(file.name, [other.name for other in file.parent.iterdir()], f"{str(file.parent).rstrip('/')}/")
    return None


# --- perf events --------------------------------------------------------------------------------------------------


def _profile(target: Target, probe: Probe) -> Link:
    unit, _, number = probe.target.rpartition(":")
    nanoseconds = {"": 0, "hz": 0, "s": 10**9, "ms": 10**6, "us": 10**3}[unit] * int(number)
    frequency = 0 if nanoseconds else int(number)
    most = int(Path("/proc/sys/kernel/perf_event_max_sample_rate").read_text())
    if frequency > most:
        raise _refused(probe, f"kernel.perf_event_max_sample_rate allows {most} times a second at most", errno.EINVAL)
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
_TOO_FAR = "the function reads beyond this tracepoint's fields, or may not be attached to it"
_REASONS = {
    **dict.fromkeys((("kprobe", errno.EINVAL), ("kretprobe", errno.EINVAL)), _NOT_TRACEABLE),
    ("kprobe", errno.EILSEQ): "no instruction begins at this offset",
    ("uprobe", errno.EINVAL): "no instruction that can be traced begins there",
    ("tracepoint", errno.EACCES): _TOO_FAR,
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
    raise _refused(probe, reason, number)


def _refused(probe: Probe, why: str, number: int = errno.ENOENT, hint: str | None = None) -> AttachError:
    # A probe that was asked for beside the cell has no place in it.
    line = probe.line if ":" not in probe.requested else 0
    return AttachError(f"{probe.requested}: {why}", probe=probe.requested, errno=number, hint=hint, line=line or None)


def _near(name: str, known: Iterable[str], prefix: str) -> str | None:
    """Near names as a hint, each with what it is called by in full."""
    return did_you_mean(name, known, 0.75).replace("mean ", f"mean {prefix}").replace(" or ", f" or {prefix}") or None


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

_REQUIRED: dict[str, Callable[[Probe], None]] = {
    "syscall": _require_syscall,
    "sysret": _require_syscall,
    "kprobe": _require_kprobe,
    "kretprobe": _require_kprobe,
    "fentry": _require_trampoline,
    "fexit": _require_trampoline,
    "lsm": _require_trampoline,
    "tracepoint": _require_tracepoint,
    "uprobe": _require_uprobe,
    "uretprobe": _require_uprobe,
    "usdt": _require_usdt,
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
