"""Many functions by one link: kprobe.multi and uprobe.multi.

A program has to be loaded for them. Attaching and detaching takes about as long as that of one probe, and one
descriptor. The kernel takes all functions or none: where it refuses, the halves are tried, and so on to the single ones
that it refuses.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache, partial
from typing import NamedTuple

from bpfnb.errors import AttachError, BpfnbError, few_descriptors
from bpfnb.language.probes import Probe, split_symbol
from bpfnb.tracer.kernel import bpf, capabilities, features
from bpfnb.tracer.kernel.uapi import AttachType
from bpfnb.tracer.link.errors import explained
from bpfnb.tracer.link.link import NUMBER_SHIFT, Link, new_link
from bpfnb.tracer.link.uprobe import code, find, open_target

__all__ = ["MULTI", "attach", "attach_type", "is_possible"]

MULTI = (AttachType.TRACE_KPROBE_MULTI, AttachType.TRACE_UPROBE_MULTI)
_RETURNING = ("kretprobe", "uretprobe")


def attach_type(probe: Probe) -> AttachType:
    """Return what the program of a probe is loaded for."""
    return MULTI[probe.kind in ("uprobe", "uretprobe")]


def is_possible(probe: Probe) -> bool:
    """Return whether this kernel has such links for probes of this kind."""
    if probe.kind in ("kprobe", "kretprobe"):
        return _works(features.kprobe_multi)
    return probe.kind in ("uprobe", "uretprobe") and _works(features.uprobe_multi)


@cache
def _works(feature: Callable[[], None]) -> bool:
    try:
        with capabilities.with_sys_admin():
            feature()
    except OSError as error:
        if few_descriptors(error):  # that says nothing of the kernel
            raise
        return False
    return True


class _Site(NamedTuple):
    """Where a probe goes: a kernel function, or offsets in a file; what the code there begins with; a note."""

    probe: Probe
    attached: str
    offsets: tuple[int, ...] = ()
    code: tuple[bytes, ...] = ()
    note: str = ""


def attach(
    probes: Sequence[Probe], number: int, program: int, folder: str, refuse: Callable[[Probe, BpfnbError], None]
) -> Iterator[Link]:
    """Attach probes of one kind, in one file, whose first has a ``number``; yield the links, one after the other.
    ``refuse``: told of each that cannot be, and why."""
    with ExitStack() as stack:
        if attach_type(probes[0]) == AttachType.TRACE_UPROBE_MULTI:
            sites, path = _in_file(probes, folder, stack, refuse)
            opened = partial(_link_uprobes, program, path)
        else:
            sites = [_Site(probe, f"{probe.kind}:{probe.target}") for probe in probes]
            opened = partial(_link_kprobes, program)
        yield from _halving(sites, number, opened, refuse)


def _in_file(
    probes: Sequence[Probe], folder: str, stack: ExitStack, refuse: Callable[[Probe, BpfnbError], None]
) -> tuple[list[_Site], str]:
    path, _, _ = split_symbol(probes[0].target)
    target = stack.enter_context(open_target(probes[0], path, folder))
    sites = []
    for probe in probes:
        symbol = split_symbol(probe.target)[1]
        try:
            found = find(probe, target, symbol, "")
        except AttachError as error:
            refuse(probe, error)
            continue
        codes = tuple(code(target, offset) for offset in found.offsets)
        sites.append(_Site(probe, f"{probe.kind}:{target.path}:{symbol}", tuple(found.offsets), codes, found.note))
    return sites, f"/proc/self/fd/{target.file.fd}"


_Opening = Callable[[Sequence[_Site], int], int]


def _halving(
    sites: Sequence[_Site], number: int, opened: _Opening, refuse: Callable[[Probe, BpfnbError], None]
) -> Iterator[Link]:
    """Attach all sites, or where the kernel refuses one of them each half."""
    todo = [list(sites)] if sites else []
    while todo:
        some = todo.pop()
        try:
            link = opened(some, number)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise explained(some[0].probe, error) from None
            if len(some) > 1:
                middle = len(some) // 2
                todo += [some[middle:], some[:middle]]
                continue
            why = explained(some[0].probe, error)
            if not isinstance(why, AttachError):
                raise why from None
            refuse(some[0].probe, why)
            continue
        first, *others = (new_link(site.probe, [], site.attached, site.note).info for site in some)
        codes = [begins for site in some for begins in site.code]
        yield Link(first, [link], [], codes, others=tuple(others))
        number += len(some)


def _link_kprobes(program: int, sites: Sequence[_Site], number: int) -> int:
    cookies = [at << NUMBER_SHIFT for at in range(number, number + len(sites))]
    names = [site.probe.target for site in sites]
    return bpf.link_kprobes(program, names, cookies, returning=sites[0].probe.kind in _RETURNING)


def _link_uprobes(program: int, path: str, sites: Sequence[_Site], number: int) -> int:
    pairs = [(offset, at << NUMBER_SHIFT) for at, site in enumerate(sites, number) for offset in site.offsets]
    offsets, cookies = zip(*pairs, strict=True)
    return bpf.link_uprobes(program, path, offsets, cookies, returning=sites[0].probe.kind in _RETURNING)
