"""Attach a probe, or several together, with the numbers that their programs ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bpfnb.language.probes import Probe
from bpfnb.tracer.link import kinds
from bpfnb.tracer.link.kinds import Files
from bpfnb.tracer.link.link import Link
from bpfnb.tracer.link.many import numbers, raw_syscalls
from bpfnb.tracer.loaded import Loaded, ProgramSpec

__all__ = ["attach"]


def attach(
    loaded: Loaded, group: Sequence[Probe], number: int, files: Files, places: Mapping[ProgramSpec, int]
) -> Link:
    """Attach probes that belong together (ways.groups). ``number``: of the first. AttachError when that cannot be."""
    first = group[0]
    if first.way == "raw_syscalls":
        spec = kinds.spec(first)
        return raw_syscalls.attach(group, number, places[spec] - numbers.RAW, loaded, loaded.programs[spec])
    return kinds.attach(loaded, numbers.numbered(first, number, loaded, places), files)
