"""The probes that a program is attached to: patterns expanded, what is not there left out or refused.

This is done before anything is compiled. What the kernel refuses when it is attached is Skipped's as well.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from bpfnb.errors import AttachError, BpfnbError, Diagnostic, UnsupportedError
from bpfnb.language.probes import Probe
from bpfnb.language.program import Program
from bpfnb.tracer.link import kinds, usdt
from bpfnb.tracer.link.kinds import Files
from bpfnb.tracer.link.many import numbers, ways
from bpfnb.tracer.link.many.names import matches
from bpfnb.tracer.link.usdt import Usdt

__all__ = ["Plan", "Skipped", "expand"]

_MAX_NAMED = 5  # names in a warning


class Skipped:
    """The probes that are left out, and why. ``warnings``: about them, none where the program wants none."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._errors: list[tuple[Probe, BpfnbError]] = []

    def add(self, probe: Probe, error: BpfnbError) -> None:
        """Leave a probe out. Raises the error where the program wants all of its probes."""
        if not probe.optional:
            raise error
        self._errors.append((probe, error))

    def require_some(self, left: Collection[object]) -> None:
        """Raise the first error where nothing is left."""
        if not left and self._errors:
            raise self._errors[0][1]

    def warnings(self) -> list[Diagnostic]:
        """Return a warning for each pattern and each reason, which names what is left out."""
        if self._program.missing == "ignore":
            return []
        groups: dict[tuple[str, str, int], list[str]] = {}
        for probe, error in self._errors:
            why = error.message.removeprefix(f"{probe.label}: ")
            name = probe.name if probe.member else probe.requested
            groups.setdefault((probe.requested, why, error.line or 0), []).append(name)
        return [
            Diagnostic(line, 0, "warning", _left_out(requested, why, names))
            for (requested, why, line), names in groups.items()
        ]


def _left_out(requested: str, why: str, names: Sequence[str]) -> str:
    if names == [requested]:
        return f"{requested} is left out: {why}"
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return f"{requested}: {', '.join(names[:_MAX_NAMED])}{more} {'is' if len(names) == 1 else 'are'} left out: {why}"


class Plan(NamedTuple):
    """``program``: with the probes that are attached, none of them a pattern."""

    program: Program
    files: Files
    skipped: Skipped


def expand(program: Program, folder: str, pid: int = 0) -> Plan:
    """Find what the probes of a program are on this machine. AttachError or UnsupportedError where one is not there.

    ``pid``: the process that probes in files are put into, 0 for all.
    """
    skipped = Skipped(program)
    unsure = {f.name for f in program.functions if f.conditional}
    found: dict[tuple[str, str, str], Probe] = {}
    usdts: dict[Probe, Usdt] = {}
    for requested in program.probes:
        probe = replace(
            requested, way="", optional=program.missing in ("warn", "ignore"), note="", number=0, member=False
        )
        try:
            for one in _members(probe, folder, program) if probe.is_pattern else [probe]:
                if one.kind == "usdt":
                    usdts[one] = usdt.find(one, folder)
                elif not probe.is_pattern and probe.function not in unsure:
                    kinds.require(one, folder)
                found.setdefault((one.kind, one.target, one.function), one)
        except (AttachError, UnsupportedError) as error:
            if probe.function not in unsure or probe.is_pattern:
                skipped.add(probe, error)
            else:
                found.setdefault((probe.kind, probe.target, probe.function), probe)
    skipped.require_some(found)
    expanded = replace(program, probes=tuple(ways.chosen(program, list(found.values()), pid)))
    numbers.require_cookies(expanded)
    return Plan(expanded, Files(folder, usdts, pid), skipped)


def _members(probe: Probe, folder: str, program: Program) -> list[Probe]:
    """Return the probes that a pattern stands for."""
    optional = program.missing != "error"
    return [
        replace(probe, target=match.target, note=match.note, optional=optional, member=True)
        for match in matches(probe, folder)
    ]
