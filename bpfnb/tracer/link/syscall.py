"""syscall and sysret: portable probes on system calls.

Where the kernel has kprobes they are kprobes on the call's entry function; where it has not, the call's tracepoints.
rewrite.py gives the program the same meaning in both.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from functools import partial
from typing import Literal

from bpfnb.errors import AttachError
from bpfnb.language.probes import Probe
from bpfnb.tracer.kernel import perf, tracefs
from bpfnb.tracer.kernel.uapi import ProgramType
from bpfnb.tracer.link.errors import near, rejection
from bpfnb.tracer.link.functions import kernel_functions
from bpfnb.tracer.link.kprobe import has_kprobes
from bpfnb.tracer.link.link import Link, Place, on_events
from bpfnb.tracer.link.tracepoint import open_event

__all__ = ["attach", "attach_tracepoint", "mode", "names", "program_type", "require"]

_ENTER = "syscalls:sys_enter_"
_PREFIXES = {
    "x86_64": "__x64_sys_",
    "aarch64": "__arm64_sys_",
    "s390x": "__s390x_sys_",
    "riscv64": "__riscv_sys_",
}
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


def mode() -> Literal["kprobe", "tracepoint"]:
    """Return what probes on system calls are attached as."""
    return "kprobe" if has_kprobes() else "tracepoint"


def program_type() -> ProgramType:
    """Return what their programs are loaded as."""
    return ProgramType.KPROBE if has_kprobes() else ProgramType.TRACEPOINT


def require(probe: Probe) -> None:
    """AttachError where this kernel has no such system call."""
    # Tracepoints are only those of the table of 64-bit calls.
    if has_kprobes() and not (probe.target in _LIBRARY_CALLS and tracefs.has_event("syscalls")):
        _function(probe)
    elif not tracefs.has_event(f"syscalls/sys_enter_{probe.target}"):
        raise _no_syscall(probe)


def attach(probe: Probe, program: int) -> Link:
    """Attach to the call's entry or return."""
    returning = probe.kind == "sysret"
    if has_kprobes():
        function = _function(probe)
        place = Place(partial(perf.open_kprobe, function, returning=returning))
        return on_events(probe, program, [place], f"{'kretprobe' if returning else 'kprobe'}:{function}")
    note = "this kernel has no kprobes: probes on syscalls are attached to their tracepoints, which see the same calls"
    return attach_tracepoint(probe, program, note)


def attach_tracepoint(probe: Probe, program: int, note: str = "") -> Link:
    """Attach to the tracepoint of the call's entry or return."""
    event = f"syscalls:sys_{'exit' if probe.kind == 'sysret' else 'enter'}_{probe.target}"
    return on_events(probe, program, [Place(partial(open_event, event))], f"tracepoint:{event}", note)


def names() -> Iterator[str]:
    """Return the system calls that have tracepoints, which are those of the table of 64-bit calls."""
    return (name.removeprefix(_ENTER) for name in tracefs.tracepoints() if name.startswith(_ENTER))


def _function(probe: Probe) -> str:
    """The call's entry function. AttachError where there is none."""
    for prefix in (_PREFIXES.get(platform.machine(), "sys_"), "sys_"):
        if prefix + probe.target in kernel_functions:
            return prefix + probe.target
    raise _no_syscall(probe)


def _no_syscall(probe: Probe) -> AttachError:
    if call := _LIBRARY_CALLS.get(probe.target):
        why = f"this kernel has no syscall {probe.target}: glibc's {probe.target}() makes {call}"
        return rejection(probe, why, hint=f"did you mean {probe.kind}:{call}?")
    known = [d.name[len("sys_enter_") :] for d in (tracefs.root() / "events/syscalls").glob("sys_enter_*")]
    close = near(probe.target, known, f"{probe.kind}:")
    return rejection(probe, f"this kernel has no syscall {probe.target}", hint=close)
