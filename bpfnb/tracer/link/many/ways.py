"""Which of many probes are attached together, because that is cheaper and the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Literal

from msgspec.structs import replace

from bpfnb.language.probes import Probe
from bpfnb.language.program import Program
from bpfnb.tracer.link import kinds, syscall
from bpfnb.tracer.link.many import multi, raw_syscalls

__all__ = ["chosen", "groups", "syscall_mode"]

_MIN_TOGETHER = 10  # members of a pattern: a few tracepoints cost nothing at other system calls


def syscall_mode(program: Program) -> Literal["kprobe", "tracepoint"]:
    """Return what a program's probes on system calls are attached as: all as the same, as the C has to fit."""
    together = any(p.kind in ("syscall", "sysret") and p.way for p in program.probes)
    return "tracepoint" if together else syscall.mode()


def chosen(program: Program, probes: Sequence[Probe], pid: int = 0) -> list[Probe]:
    """Return the probes with their ways, those that are attached together one after the other. ``pid``: the process
    that probes in files are put into, 0 for all."""
    found = [_apart(probe, program) for probe in _linked(_sharing(probes), pid)]
    first: dict[object, int] = {}
    for index, probe in enumerate(found):
        first.setdefault(_group(probe, index), index)
    order = sorted(enumerate(found), key=lambda pair: first[_group(pair[1], pair[0])])
    return [probe for _, probe in order]


def groups(probes: Sequence[Probe]) -> Iterator[list[Probe]]:
    """Yield the probes that are attached together, from those that ``chosen`` has ordered."""
    for _, group in groupby(enumerate(probes), lambda pair: _group(pair[1], pair[0])):
        yield [probe for _, probe in group]


def _group(probe: Probe, index: int) -> object:
    if probe.way == "multi":
        return kinds.spec(probe), probe.kind, probe.requested
    return kinds.spec(probe) if probe.way == "raw_syscalls" else index


def _apart(probe: Probe, program: Program) -> Probe:
    """Give a probe that has no cookie a program of its own, where the program asks for the number."""
    return replace(probe, way="apart") if program.numbered and probe.kind == "rawtracepoint" else probe


def _sharing(probes: Sequence[Probe]) -> list[Probe]:
    """Have system calls that match a pattern, where they are many, share a probe; and have all others seen alike."""
    members: dict[tuple[str, str, str], int] = {}
    for probe in probes:
        if probe.member and raw_syscalls.number_of(probe) is not None:
            members[_of(probe)] = members.get(_of(probe), 0) + 1
    many = {which for which, count in members.items() if count > _MIN_TOGETHER and raw_syscalls.is_possible()}
    found = [
        replace(p, way="raw_syscalls") if raw_syscalls.number_of(p) is not None and _of(p) in many else p
        for p in probes
    ]
    if any(p.way and p.kind in ("syscall", "sysret") for p in found):
        return [replace(p, way="tracepoint") if p.kind in ("syscall", "sysret") and not p.way else p for p in found]
    return found


def _linked(probes: Sequence[Probe], pid: int) -> list[Probe]:
    """Have functions that match a pattern, where they are many, attached by one link. With a process's number such
    links see one of its threads alone before Linux v6.11 (commit 46ba0e49b642)."""
    members = Counter((probe.requested, probe.function) for probe in probes if probe.member)
    many = {which for which, count in members.items() if count > _MIN_TOGETHER}
    return [
        replace(probe, way="multi")
        if probe.member and (probe.requested, probe.function) in many and not pid and multi.is_possible(probe)
        else probe
        for probe in probes
    ]


def _of(probe: Probe) -> tuple[str, str, str]:
    return probe.kind, probe.function, raw_syscalls.event(probe)
