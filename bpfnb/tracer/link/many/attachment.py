"""Attach a probe, or several together, with the numbers that their programs ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from bpfnb.errors import AttachError, BpfnbError, UnsupportedError
from bpfnb.language.probes import Probe
from bpfnb.tracer.link import kinds
from bpfnb.tracer.link.kinds import Files
from bpfnb.tracer.link.link import Link
from bpfnb.tracer.link.many import multi, numbers, raw_syscalls
from bpfnb.tracer.loaded import Loaded, ProgramSpec

__all__ = ["attach"]


def attach(
    loaded: Loaded,
    group: Sequence[Probe],
    number: int,
    files: Files,
    places: Mapping[ProgramSpec, int],
    refuse: Callable[[Probe, BpfnbError], None],
) -> Iterator[Link]:
    """Attach probes that belong together (ways.groups), the first of which has a ``number``; yield their links, each as
    soon as it is there. ``refuse``: told of each probe that cannot be attached, and why; it may raise that."""
    first = group[0]
    spec = kinds.spec(first)
    some = False
    try:
        if first.way == "multi":
            for link in multi.attach(group, number, loaded.programs[spec], files.folder, refuse):
                some = True
                yield link
        elif first.way == "raw_syscalls":
            yield raw_syscalls.attach(group, number, places[spec] - numbers.RAW, loaded, loaded.programs[spec])
        else:
            yield kinds.attach(loaded, numbers.numbered(first, number, loaded, places), files)
    except (AttachError, UnsupportedError) as error:
        if some:  # such as no more memory: which of the group are attached is not known here
            raise
        for probe in group:
            refuse(probe, error)
