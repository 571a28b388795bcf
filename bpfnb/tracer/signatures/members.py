"""Types along a path of members: ("sk", "__sk_common", "skc_dport")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace

from bpfnb.errors import near_names
from bpfnb.language.signature import Type
from bpfnb.tracer.signatures.types import KernelTypes

__all__ = ["Place", "follow", "place_of", "reach", "struct_at"]

_MAX_NEAR = 2000  # members compared with one that is not there
# Members that are characters up to a NUL, which their type does not say: struct qstr, include/linux/dcache.h.
_STRINGS = frozenset((("qstr", "name"),))


class Place(NamedTuple):
    """Where a path has come to: a type, and its number in the BTF, 0 where that is not known.

    ``stars``: of a pointer whose own type is not in the BTF, how many pointers lead to the numbered type.
    """

    type: Type
    number: int
    stars: int = 0


def place_of(types: KernelTypes | None, type_: Type) -> Place:
    """Return where a path begins that has only C text for its first type: "const struct sock *"."""
    words = [word for word in type_.text.replace("*", " ").split() if word not in ("const", "volatile")]
    return Place(type_, types.number(" ".join(words)) if types else 0, type_.text.count("*"))


def follow(types: KernelTypes | None, start: Place, path: Sequence[str]) -> tuple[tuple[Type, ...], tuple[str, ...]]:
    """Return the types of ``start`` and of each member in turn, and names like the first that is not there."""
    place, found = start, [start.type]
    for name in path:
        step = _element(types, place) if name.isdecimal() else _member(types, place, name)
        if step is None:
            return tuple(found), _near(types, place, name)
        place = step._replace(type=replace(step.type, user=True)) if place.type.user and _leads(step.type) else step
        found.append(place.type)
    return tuple(found), ()


def reach(types: KernelTypes, start: Place, path: Sequence[str]) -> Place | None:
    """Return where a path leads; None where it breaks off."""
    place: Place | None = start
    for name in path:
        place = place and (_element(types, place) if name.isdecimal() else _member(types, place, name))
    return place


def _leads(type_: Type) -> bool:
    return type_.kind in ("pointer", "string") and not type_.count


def struct_at(types: KernelTypes, place: Place) -> int:
    """Return the struct that a place is, or that it points to; -1 where it is neither."""
    if not place.number or place.stars > 1:
        return -1
    target = types.target(place.number)
    if place.stars:
        return place.number if target < 0 else -1
    return place.number if target < 0 else target if place.type.kind != "array" else -1


def _member(types: KernelTypes | None, place: Place, name: str) -> Place | None:
    struct = struct_at(types, place) if types else -1
    if not types or struct < 0:
        return None
    found = types.members(struct).get(name)
    if not found:
        return None
    member, owner = found
    type_ = types.of(member.type_id)
    if member.width:
        type_ = replace(type_, bits=member.width)
    if (types.name(owner), name) in _STRINGS:
        type_ = replace(type_, kind="string")
    return Place(type_, member.type_id)


def _element(types: KernelTypes | None, place: Place) -> Place | None:
    if not types or not place.number:
        return None
    if place.stars:
        to = place.type.to
        return Place(to, place.number, place.stars - 1) if to else None
    target = types.target(place.number)
    return Place(types.of(target), target) if target > 0 else None


def _near(types: KernelTypes | None, place: Place, name: str) -> tuple[str, ...]:
    struct = struct_at(types, place) if types else -1
    if not types or struct < 0 or name.isdecimal():
        return ()
    return tuple(near_names(name, list(types.members(struct))[:_MAX_NEAR]))
