"""Updates of maps that the kernel refused: the programs count them, in memory that the notebook has mapped."""

from __future__ import annotations

import mmap
import sys
import warnings

import numpy as np

from bpfnb.protocol.messages import COUNTERS, CountersAdded, MapInfo

__all__ = ["Counters", "total", "warn", "why"]

# The errors of an update that say that the map would not take it. Since locks of maps can give up (Linux v6.15), what
# was EBUSY may be EDEADLK or ETIMEDOUT. A full LPM trie says ENOSPC. EEXIST is a stack's, whose place another has, or
# of a key deleted between two steps of an increment.
# The numbers are Linux's, whatever system this is read on.
_EEXIST, _ENOMEM = 17, 12
_BUSY = (16, 35, 110)  # EBUSY, EDEADLK, ETIMEDOUT
_FULL = (7, 28)  # E2BIG, ENOSPC
_COUNTED = (0, *_FULL, *_BUSY, _ENOMEM, _EEXIST)


class Counters:
    """A session's counters, as they are now. ``keep`` freezes them and lets go of the memory."""

    def __init__(self, message: CountersAdded, fd: int) -> None:
        self._words = np.frombuffer(mmap.mmap(fd, 8 * message.words, prot=mmap.PROT_READ), np.uint64)

    def of(self, info: MapInfo) -> dict[int, int]:
        """Return how many updates of a map failed, by errno; 0 where it is not known."""
        words = self._words[info.counters : info.counters + COUNTERS] if info.counters >= 0 else self._words[:0]
        return {int(number): int(words[number]) for number in np.flatnonzero(words)}

    def keep(self) -> None:
        self._words = self._words.copy()


def total(refused: dict[int, int]) -> int:
    """Return how many of the failed updates the kernel refused."""
    return sum(count for number, count in refused.items() if number in _COUNTED)


def why(info: MapInfo, refused: dict[int, int], declared: str) -> str:
    """Say what was refused and why: "276 updates of m were refused: it is full, with room for 1,024 entries; declare it
    larger (line 1)". ``declared``: where it is, or ""."""
    reasons: dict[str, int] = {}
    for number, count in refused.items():
        if number in _COUNTED:
            reason = _reason(info, number)
            reasons[reason] = reasons.get(reason, 0) + count
    lost = sum(reasons.values())
    text = ", ".join(reason if count == lost else f"{reason} ({count:,})" for reason, count in reasons.items())
    updates = "1 update" if lost == 1 else f"{lost:,} updates"
    return (
        f"{updates} of {info.name} {'was' if lost == 1 else 'were'} refused: {text}{_advice(info, refused, declared)}"
    )


def warn(info: MapInfo, refused: dict[int, int], declared: str) -> None:
    """Warn of it, at the place outside this package that asked for the map."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("bpfnb."):
        level, frame = level + 1, frame.f_back
    warnings.warn(why(info, refused, declared), RuntimeWarning, stacklevel=level)


def _reason(info: MapInfo, number: int) -> str:
    room = f"{info.max_entries:,} {'entry' if info.max_entries == 1 else 'entries'}"
    if info.kind == "stack_trace":
        if number == _EEXIST:
            return f"another stack had the place its hash gives it, in a map of {room}"
        return f"it is full, with room for {info.max_entries:,} stacks"
    if "array" in info.kind and (number in _FULL or not number):
        return f"the index is past its end: it has {room}"
    if number in _FULL:
        return f"it is full, with room for {room}"
    if number == _ENOMEM:
        return "the kernel had no memory at hand"
    if number in _BUSY:
        return "another program was changing it on the same CPU"
    return "the entry was deleted at the same time" if number else "the kernel did not say why"


def _advice(info: MapInfo, refused: dict[int, int], declared: str) -> str:
    larger = refused.keys() & {*_FULL, *((_EEXIST, _ENOMEM) if info.kind == "stack_trace" else ())}
    return f"; declare it larger{declared and f' ({declared})'}" if larger else ""
