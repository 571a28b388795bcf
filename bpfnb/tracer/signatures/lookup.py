"""Types, members and constants of this kernel by name, for who writes C: from its BTF, without that of modules."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from bpfnb.protocol.messages import Member, NamesFound, TypeDescribed
from bpfnb.tracer.signatures.kernel import BtfFolder, kernel_types
from bpfnb.tracer.signatures.members import Place, reach, struct_at
from bpfnb.tracer.signatures.types import KernelTypes

__all__ = ["describe_type", "find_names"]

_MAX_PATH = 32
_MAX_ANSWER = 5000  # members, or names


def describe_type(
    request: int, name: str, path: Sequence[str], limit: int, folder: BtfFolder = kernel_types
) -> TypeDescribed:
    """Return what DescribeType asks for. SetupError where the kernel's BTF is broken."""
    types = folder.kernel()
    number = types.number(name) if types else 0
    if not types or not number or len(path) > _MAX_PATH:
        return TypeDescribed(request)
    place = reach(types, Place(types.of(number), number), path)
    if not place or not place.number:
        return TypeDescribed(request)
    members = _members(types, place)
    limit = min(limit, _MAX_ANSWER)
    return TypeDescribed(
        request,
        place.type.text,
        types.meaning(place.number),
        place.type.size,
        tuple(members[:limit]),
        max(len(members) - limit, 0),
    )


def _members(types: KernelTypes, place: Place) -> list[Member]:
    if place.type.kind == "enum":
        return [Member(name, "", value) for name, value in place.type.values]
    struct = struct_at(types, place)
    if struct < 0:
        return []
    return [Member(m.name, types.of(m.type_id).text, m.bit // 8, m.width) for m in types.laid_out(struct)]


def find_names(request: int, start: str, limit: int, folder: BtfFolder = kernel_types) -> NamesFound:
    """Return what FindNames asks for. SetupError where the kernel's BTF is broken."""
    types = folder.kernel()
    names = types.names if types else []
    first = bisect.bisect_left(names, (start,))
    last = first
    while last < len(names) and names[last][0].startswith(start):
        last += 1
    limit = min(limit, _MAX_ANSWER)
    chosen = names[first:last][:limit]
    columns = zip(*chosen, strict=True) if chosen else ((), (), ())
    found, kinds, values = map(tuple, columns)
    return NamesFound(request, found, kinds, values, max(last - first - limit, 0))
