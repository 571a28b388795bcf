"""Kinds of probe, a row each: what their programs are loaded as, and how they are checked, attached and listed.

KINDS                           the rows, by the names that bpfnb/language/probes.py parses
require(probe)                  AttachError where it is known that there is no such probe here
spec(probe)                     what its function is to be loaded as
attach(loaded, probe, files)    attach it: a Link
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from msgspec.structs import replace

from bpfnb.language.probes import Probe
from bpfnb.tracer.kernel import tracefs
from bpfnb.tracer.kernel.uapi import AttachType, ProgramType
from bpfnb.tracer.link import kprobe, perf_event, syscall, tracepoint, trampoline, uprobe, usdt
from bpfnb.tracer.link.link import Link
from bpfnb.tracer.link.many import multi, raw_syscalls
from bpfnb.tracer.link.usdt import Usdt
from bpfnb.tracer.loaded import Loaded, ProgramSpec

__all__ = ["KINDS", "Files", "Kind", "attach", "require", "spec", "tail_call"]


class Files(NamedTuple):
    """What probes in files depend on: the notebook's folder ("" where it is not known), the USDT probes found, and the
    process that they are put into, 0 for all."""

    folder: str = ""
    usdt: Mapping[Probe, Usdt] = {}
    pid: int = 0


@dataclass(frozen=True)
class Kind:
    """A kind of probe.

    ``program_type``: what programs are loaded as; ``attach_type``: of those that are loaded for one target. ``attach``
    is given the probe and its program's descriptor; the Link it returns detaches when it is closed, and the kernel
    detaches when the process dies. ``require``: None where names cannot be looked up. ``names``: the targets that the
    kernel offers, where it can list them; ``names_in_file`` is given the kind, a path and a pattern, the notebook's
    folder, and what the user wrote. They raise AttachError. ``unavailable``: why no probe of the kind can be attached
    on this kernel, "" where that can be.
    """

    program_type: Callable[[], ProgramType]
    attach: Callable[[Probe, int, Files], Link]
    require: Callable[[Probe, str], None] | None = None
    attach_type: int = 0
    names: Callable[[], Iterable[str]] | None = None
    names_in_file: Callable[[str, str, str, str], list[str]] | None = None
    unavailable: Callable[[], str] | None = None


def require(probe: Probe, folder: str = "") -> None:
    """AttachError where it is known, before anything is compiled, that there is no such probe here."""
    if check := KINDS[probe.kind].require:
        check(probe, folder)


def spec(probe: Probe) -> ProgramSpec:
    """Return what a probe needs its function loaded as."""
    if probe.way == "raw_syscalls":
        shared = f"{probe.kind} {raw_syscalls.event(probe)}"
        return ProgramSpec(probe.function, ProgramType.TRACEPOINT, 0, shared)
    if probe.way == "multi":
        return ProgramSpec(probe.function, ProgramType.KPROBE, multi.attach_type(probe))
    if probe.way == "tracepoint":
        return ProgramSpec(probe.function, ProgramType.TRACEPOINT)
    kind = KINDS[probe.kind]
    target = probe.target if kind.attach_type or probe.way == "apart" else ""
    return ProgramSpec(probe.function, kind.program_type(), kind.attach_type, target)


def tail_call(function: str, caller: ProgramSpec) -> ProgramSpec:
    """Return what a function is loaded as, to be called by another: as the same, where that works."""
    return replace(caller, function=function, optional=True)


def attach(loaded: Loaded, probe: Probe, files: Files) -> Link:
    """Attach a probe that ``require`` has let pass and whose function is loaded. AttachError when that cannot be."""
    program = loaded.programs[spec(probe)]
    if probe.way == "tracepoint":
        return syscall.attach_tracepoint(probe, program)
    return KINDS[probe.kind].attach(probe, program, files)


# --- the rows -----------------------------------------------------------------------------------------------------


def _of_kernel(
    type_: ProgramType,
    attach: Callable[[Probe, int], Link],
    require: Callable[[Probe], None] | None = None,
    attach_type: int = 0,
    names: Callable[[], Iterable[str]] | None = None,
    unavailable: Callable[[], str] | None = None,
) -> Kind:
    """A kind whose probes are in no file."""
    return Kind(
        lambda: type_,
        lambda probe, program, _: attach(probe, program),
        (lambda probe, _: require(probe)) if require else None,
        attach_type,
        names,
        unavailable=unavailable,
    )


def _traced(attach_type: AttachType) -> Kind:
    """A kind of BPF trampolines into functions."""
    names, unavailable = trampoline.functions, trampoline.no_functions
    return _of_kernel(ProgramType.TRACING, trampoline.attach, trampoline.require, attach_type, names, unavailable)


def _kprobe() -> Kind:
    return _of_kernel(
        ProgramType.KPROBE, kprobe.attach, kprobe.require, names=kprobe.names, unavailable=kprobe.unavailable
    )


_SYSCALL = Kind(
    syscall.program_type,
    lambda probe, program, _: syscall.attach(probe, program),
    lambda probe, _: syscall.require(probe),
    names=syscall.names,
)
_UPROBE = Kind(
    lambda: ProgramType.KPROBE,
    lambda probe, program, files: uprobe.attach(probe, program, files.folder, files.pid),
    uprobe.require,
    names_in_file=uprobe.names_in_file,
)
_USDT = Kind(
    lambda: ProgramType.KPROBE,
    lambda probe, program, files: usdt.attach(probe, program, files.folder, files.usdt, files.pid),
    usdt.require,
    names_in_file=usdt.names_in_file,
)
KINDS: dict[str, Kind] = {
    "syscall": _SYSCALL,
    "sysret": _SYSCALL,
    "kprobe": _kprobe(),
    "kretprobe": _kprobe(),
    "fentry": _traced(AttachType.TRACE_FENTRY),
    "fexit": _traced(AttachType.TRACE_FEXIT),
    "lsm": _of_kernel(
        ProgramType.LSM,
        trampoline.attach,
        trampoline.require,
        AttachType.LSM_MAC,
        trampoline.hooks,
        trampoline.no_hooks,
    ),
    "tracepoint": _of_kernel(ProgramType.TRACEPOINT, tracepoint.attach, tracepoint.require, names=tracefs.tracepoints),
    "rawtracepoint": _of_kernel(
        ProgramType.RAW_TRACEPOINT, tracepoint.attach_raw, tracepoint.require_raw, names=tracepoint.raw_names
    ),
    "uprobe": _UPROBE,
    "uretprobe": _UPROBE,
    "usdt": _USDT,
    "profile": _of_kernel(ProgramType.PERF_EVENT, perf_event.attach_profile),
    "software": _of_kernel(ProgramType.PERF_EVENT, perf_event.attach_counter, names=perf_event.software_events),
    "hardware": _of_kernel(
        ProgramType.PERF_EVENT,
        perf_event.attach_counter,
        names=perf_event.hardware_events,
        unavailable=perf_event.no_hardware,
    ),
}
