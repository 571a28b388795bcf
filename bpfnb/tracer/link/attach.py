"""From a wished-for probe to an attached one.

Every way of attaching ends in a file descriptor (a perf event or a BPF link) whose close detaches, whatever becomes
of this process. A probe on a syscall is a kprobe where this kernel has kprobes and the syscall's tracepoint where it
has not; rewrite.py gives the program the same meaning in both.
"""

from __future__ import annotations

import errno
import platform
import re
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Literal, NamedTuple

from msgspec.structs import replace

from bpfnb.errors import AttachError, few_descriptors
from bpfnb.language.probes import KINDS, SYSCALL_ENTRIES, Probe
from bpfnb.tracer.compile.engine import Engine
from bpfnb.tracer.kernel import bpf, capabilities, features, perf, tracefs, uapi
from bpfnb.tracer.kernel.btf import FUNC, KERNEL_BTF, Types
from bpfnb.tracer.kernel.cpus import online_cpus
from bpfnb.tracer.kernel.uapi import AttachType, ProgramType
from bpfnb.tracer.link import uprobe, usdt
from bpfnb.tracer.link.link import Link, Place, made, near, on_events, reason, refused
from bpfnb.tracer.link.usdt import Usdt
from bpfnb.tracer.loaded import Loaded, ProgramSpec

__all__ = ["Surroundings", "attach", "has_kprobes", "require", "spec", "syscall_mode", "tail_call"]

_DEFAULT_COUNT = {"software": 1, "hardware": 1_000_000}  # events to a hit, as bpftrace has it

_SYSCALL_PREFIXES = {
    "x86_64": "__x64_sys_",
    "aarch64": "__arm64_sys_",
    "s390x": "__s390x_sys_",
    "riscv64": "__riscv_sys_",
}


class Surroundings(NamedTuple):
    """What probes in files depend on: the notebook's folder ("" where it is not known), and the USDT probes found."""

    folder: str = ""
    usdt: Mapping[Probe, Usdt] = {}


class Target(NamedTuple):
    """What is attached, and with what."""

    engine: Engine
    program: int  # the loaded function's descriptor
    around: Surroundings


def spec(probe: Probe) -> ProgramSpec:
    """Return what a probe needs its function loaded as."""
    if probe.kind in ("syscall", "sysret"):
        return ProgramSpec(probe.function, ProgramType.KPROBE if has_kprobes() else ProgramType.TRACEPOINT)
    type_ = _PROGRAM_TYPES[probe.kind]
    if attach_type := _ATTACH_TYPES.get(probe.kind):
        return ProgramSpec(probe.function, type_, attach_type, probe.target)
    return ProgramSpec(probe.function, type_)


def tail_call(function: str, caller: ProgramSpec) -> ProgramSpec:
    """Return what a function is loaded as, to be called by another: as the same, where that works."""
    return replace(caller, function=function, optional=True)


def require(probe: Probe, folder: str = "") -> None:
    """AttachError where it is known, before anything is compiled, that there is no such probe here."""
    if probe.kind in ("uprobe", "uretprobe"):
        uprobe.require(probe, folder)
    elif probe.kind == "usdt":
        usdt.find(probe, folder)
    elif probe.kind in _REQUIRED:
        _REQUIRED[probe.kind](probe)


def attach(engine: Engine, loaded: Loaded, probe: Probe, around: Surroundings) -> Link:
    """Attach a probe that ``require`` has let pass and whose function is loaded. AttachError when that cannot be."""
    return _WAYS[probe.kind](Target(engine, loaded.programs[spec(probe)], around), probe)


@cache
def has_kprobes() -> bool:
    """Whether this kernel has kprobes (CONFIG_KPROBE_EVENTS): it then offers them as a perf event source."""
    return perf.has_pmu("kprobe")


def syscall_mode() -> Literal["kprobe", "tracepoint"]:
    return "kprobe" if has_kprobes() else "tracepoint"


# --- syscalls: portable -------------------------------------------------------------------------------------------


def _syscall(target: Target, probe: Probe) -> Link:
    exit_ = probe.kind == "sysret"
    if has_kprobes():
        function = _syscall_function(probe)
        place = Place(partial(perf.open_kprobe, function, returning=exit_))
        return on_events(probe, target.program, [place], f"{'kretprobe' if exit_ else 'kprobe'}:{function}")
    event = f"syscalls:sys_{'exit' if exit_ else 'enter'}_{probe.target}"
    note = "this kernel has no kprobes: probes on syscalls are attached to their tracepoints, which see the same calls"
    return on_events(probe, target.program, [Place(partial(_open_tracepoint, event))], f"tracepoint:{event}", note)


def _require_syscall(probe: Probe) -> None:
    # Tracepoints are only those of the table of 64-bit calls.
    if has_kprobes() and not (probe.target in _LIBRARY_CALLS and tracefs.has_event("syscalls")):
        _syscall_function(probe)
    elif not tracefs.has_event(f"syscalls/sys_enter_{probe.target}"):
        raise _no_syscall(probe)


def _syscall_function(probe: Probe) -> str:
    for prefix in (_SYSCALL_PREFIXES.get(platform.machine(), "sys_"), "sys_"):
        if prefix + probe.target in _kernel_functions:
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
    if call := _LIBRARY_CALLS.get(probe.target):
        why = f"this kernel has no syscall {probe.target}: glibc's {probe.target}() makes {call}"
        return refused(probe, why, hint=f"did you mean {probe.kind}:{call}?")
    known = [d.name[len("sys_enter_") :] for d in (tracefs.root() / "events/syscalls").glob("sys_enter_*")]
    close = near(probe.target, known, f"{probe.kind}:")
    return refused(probe, f"this kernel has no syscall {probe.target}", hint=close)


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
        raise refused(probe, "this kernel has no kprobes (CONFIG_KPROBES is off)", hint=_alternative(probe, function))
    if function in _kernel_functions:
        return
    parts = sorted(name for name in _kernel_functions.all() if name.startswith(f"{function}."))
    if parts:
        hint = f"the compiler made it {', '.join(parts[:3])}: {probe.kind}:{parts[0]}"
        raise refused(probe, f"no kernel function is called just {function}", hint=hint)
    raise _no_function(probe, function, _kernel_functions.all())


def _kprobe(target: Target, probe: Probe) -> Link:
    function, _, offset = probe.target.partition("+")
    place = Place(partial(perf.open_kprobe, function, int(offset or "0", 0), returning=probe.kind == "kretprobe"))
    return on_events(probe, target.program, [place], f"{probe.kind}:{probe.target}")


def _require_trampoline(probe: Probe) -> None:
    """fentry, fexit and lsm: the kernel must let programs into its functions, and know the function's type."""
    hook = probe.kind == "lsm"
    function = f"bpf_lsm_{probe.target}" if hook else probe.target
    refusal = _refusal(features.lsm if hook else features.fentry)
    if refusal:
        what = "the hooks of its security modules (lsm)" if hook else "its functions (fentry, fexit)"
        message = f"this kernel does not let programs attach to {what}: {refusal}"
        raise refused(probe, message, hint=_alternative(probe, function))
    btf = KERNEL_BTF.read_bytes()
    if ":" in function or f"\0{function}\0".encode() in btf:  # of a module's function its own BTF knows
        return
    known = [t.name for t in Types(btf, "the kernel's").all if t.kind == FUNC]
    if hook:
        hooks = [name.removeprefix("bpf_lsm_") for name in known if name.startswith("bpf_lsm_")]
        raise refused(probe, f"this kernel has no hook {probe.target}", hint=near(probe.target, hooks, "lsm:"))
    raise _no_function(probe, function, known)


@cache
def _refusal(feature: Callable[[], None]) -> str:
    """Why the kernel refuses what one of features.py tries; "" where it does not."""
    try:
        with capabilities.with_sys_admin():
            feature()
    except OSError as error:
        if few_descriptors(error):  # that says nothing of the kernel
            raise
        return error.strerror or str(error)
    return ""


def _no_function(probe: Probe, function: str, known: Iterable[str]) -> AttachError:
    # A kernel has 100,000 functions and comparing is slow: a name people mistype starts right.
    close = near(function, (name for name in known if name[:2] == function[:2]), f"{probe.kind}:")
    hint = _alternative(probe, function) or close
    return refused(probe, f"no kernel function is called {function}; it may be inlined", hint=hint)


def _alternative(probe: Probe, function: str) -> str | None:
    """What is met where the function is, and is there on this kernel: a hint."""
    function = function.partition(".")[0]  # the compiler's own name for a part of it, as bcc's tools look it up
    if function in _SERVES:
        return f"the syscall it serves: -a syscall:{_SERVES[function]}={probe.function}"
    event = _TRACEPOINTS.get(function, "")
    if not event or not tracefs.has_event(event.replace(":", "/")):
        return None
    return f"a tracepoint stands at this place: -a tracepoint:{event}={probe.function}"


def _trampoline(target: Target, probe: Probe) -> Link:
    return _by_link(probe, partial(bpf.attach_traced, target.program))


def _by_link(probe: Probe, attach: Callable[[], int]) -> Link:
    """Attach by a BPF link alone."""
    try:
        return made(probe, [attach()], f"{probe.kind}:{probe.target}")
    except OSError as error:
        raise reason(probe, error) from None


# --- tracepoints --------------------------------------------------------------------------------------------------


def _require_tracepoint(probe: Probe) -> None:
    if not tracefs.has_event(probe.target.replace(":", "/")):
        call = re.fullmatch(r"(syscalls:sys_(?:enter|exit)_)(\w+)", probe.target)
        entry = SYSCALL_ENTRIES.get(call[2]) if call else None
        close = f"did you mean tracepoint:{call[1]}{entry}?" if call and entry else None
        close = close or near(probe.target, tracefs.tracepoints(), "tracepoint:")
        raise refused(probe, f"this kernel has no tracepoint {probe.target}", hint=close)


def _tracepoint(target: Target, probe: Probe) -> Link:
    return on_events(
        probe, target.program, [Place(partial(_open_tracepoint, probe.target))], f"tracepoint:{probe.target}"
    )


def _open_tracepoint(event: str) -> int:
    return perf.open_tracepoint(tracefs.event_id(event.replace(":", "/")))


def _raw_tracepoint(target: Target, probe: Probe) -> Link:
    try:
        return _by_link(probe, partial(bpf.attach_raw_tracepoint, target.program, probe.target))
    except AttachError as error:
        if error.errno != errno.ENOENT:
            raise
        known = (name.partition(":")[2] for name in tracefs.tracepoints())
        hint = near(probe.target, known, "rawtracepoint:")
        raise refused(probe, f"this kernel has no raw tracepoint {probe.target}", hint=hint) from None


# --- user space ---------------------------------------------------------------------------------------------------


def _uprobe(target: Target, probe: Probe) -> Link:
    return uprobe.uprobe(probe, target.program, target.around.folder)


def _usdt(target: Target, probe: Probe) -> Link:
    return usdt.attach(probe, target.program, target.around.usdt, target.around.folder)


# --- perf events --------------------------------------------------------------------------------------------------


def _profile(target: Target, probe: Probe) -> Link:
    unit, _, number = probe.target.rpartition(":")
    nanoseconds = {"": 0, "hz": 0, "s": 10**9, "ms": 10**6, "us": 10**3}[unit] * int(number)
    frequency = 0 if nanoseconds else int(number)
    most = int(Path("/proc/sys/kernel/perf_event_max_sample_rate").read_text())
    if frequency > most:
        raise refused(probe, f"kernel.perf_event_max_sample_rate allows {most} times a second at most", errno.EINVAL)
    return _perf(
        target,
        probe,
        partial(
            perf.open_event,
            uapi.PERF_TYPE_SOFTWARE,
            uapi.PERF_COUNT_SW_CPU_CLOCK,
            period=nanoseconds,
            frequency=frequency,
        ),
    )


def _counter(target: Target, probe: Probe) -> Link:
    event, _, count = probe.target.partition(":")
    type_ = uapi.PERF_TYPE_SOFTWARE if probe.kind == "software" else uapi.PERF_TYPE_HARDWARE
    config = list(KINDS[probe.kind].events).index(event)  # in the order of the kernel's enum
    return _perf(
        target, probe, partial(perf.open_event, type_, config, period=int(count or _DEFAULT_COUNT[probe.kind]))
    )


def _perf(target: Target, probe: Probe, opening: Callable[..., int]) -> Link:
    """One perf event a CPU that is online, now or later."""
    attached, cpus = f"{probe.kind}:{probe.target}", sorted(online_cpus())
    whole = made(probe, [], attached, f"on {len(cpus)} CPUs")
    parts: dict[int, Link] = {}

    def put_on(cpu: int) -> None:
        new = on_events(probe, target.program, [Place(partial(opening, cpu=cpu))], attached)
        old, parts[cpu] = parts.get(cpu), new
        whole.links.extend(new.links)
        whole.events.extend(new.events)
        if old:  # it is dead
            whole.links[:] = [fd for fd in whole.links if fd not in old.links]
            whole.events[:] = [fd for fd in whole.events if fd not in old.events]
            old.close()

    try:
        for cpu in cpus:
            put_on(cpu)
    except BaseException:
        whole.close()
        raise
    return whole._replace(renew=put_on)


# --- shared -------------------------------------------------------------------------------------------------------


class KernelFunctions:
    """The names in /proc/kallsyms. Modules come and go: what is not there is looked for again, but not all the time."""

    _FRESH = 2.0  # seconds

    def __init__(self, kallsyms: Path = Path("/proc/kallsyms"), clock: Callable[[], float] = time.monotonic) -> None:
        self._kallsyms = kallsyms
        self._clock = clock
        self._names: frozenset[str] = frozenset()
        self._read_at = -self._FRESH

    def __contains__(self, name: str) -> bool:
        return name in self._names or name in self.all()

    def all(self) -> frozenset[str]:
        if self._clock() - self._read_at >= self._FRESH:
            with self._kallsyms.open() as lines:
                self._names = frozenset(line.split(None, 3)[2] for line in lines)
            self._read_at = self._clock()
        return self._names


_kernel_functions = KernelFunctions()


_PROGRAM_TYPES = {
    "kprobe": ProgramType.KPROBE,
    "kretprobe": ProgramType.KPROBE,
    "fentry": ProgramType.TRACING,
    "fexit": ProgramType.TRACING,
    "lsm": ProgramType.LSM,
    "tracepoint": ProgramType.TRACEPOINT,
    "rawtracepoint": ProgramType.RAW_TRACEPOINT,
    "uprobe": ProgramType.KPROBE,
    "uretprobe": ProgramType.KPROBE,
    "usdt": ProgramType.KPROBE,
    "profile": ProgramType.PERF_EVENT,
    "software": ProgramType.PERF_EVENT,
    "hardware": ProgramType.PERF_EVENT,
}

# Of programs that are loaded for one target.
_ATTACH_TYPES = {
    "fentry": AttachType.TRACE_FENTRY,
    "fexit": AttachType.TRACE_FEXIT,
    "lsm": AttachType.LSM_MAC,
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
}

_WAYS: dict[str, Callable[[Target, Probe], Link]] = {
    "syscall": _syscall,
    "sysret": _syscall,
    "kprobe": _kprobe,
    "kretprobe": _kprobe,
    "fentry": _trampoline,
    "fexit": _trampoline,
    "lsm": _trampoline,
    "tracepoint": _tracepoint,
    "rawtracepoint": _raw_tracepoint,
    "uprobe": _uprobe,
    "uretprobe": _uprobe,
    "usdt": _usdt,
    "profile": _profile,
    "software": _counter,
    "hardware": _counter,
}
