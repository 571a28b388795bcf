"""Maps as they are at one moment, and what they have grown by since another: what a table is computed from that nobody
is to be warned of, and for which nobody else's drain matters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from bpfnb.results.maps.map import Map

__all__ = ["Frozen", "Growing", "Grown"]

Made = TypeVar("Made")


class Frozen(Mapping[str, Map]):
    """A session's maps, read as they are asked for, each once, whatever was drained."""

    def __init__(self, maps: Mapping[str, Map]) -> None:
        self._maps = maps
        self._read: dict[str, Map] = {}

    def __getitem__(self, name: str) -> Map:
        if name not in self._read:
            self._read[name] = self._maps[name].frozen()
        return self._read[name]

    def as_read(self, name: str) -> Map | None:
        """Return a map as it was when it was asked for; None where it was not."""
        return self._read.get(name)

    def add_unread(self, before: Frozen) -> None:
        """Take the maps that were not asked for from an earlier moment."""
        self._read = {**before._read, **self._read}

    def __iter__(self) -> Iterator[str]:
        return iter(self._maps)

    def __len__(self) -> int:
        return len(self._maps)


class Grown(Mapping[str, Map]):
    """What maps have grown by from one moment to another, where they were not read then all so far. Those of stacks,
    and those named in ``as_is``, are as they are."""

    def __init__(self, now: Frozen, before: Frozen, as_is: Sequence[str] = ()) -> None:
        self._now, self._before = now, before
        self._as_is = as_is
        self._grown: dict[str, Map] = {}

    def __getitem__(self, name: str) -> Map:
        if name not in self._grown:
            now, before = self._now[name], self._before.as_read(name)
            same = before is None or now.kind == "stack_trace" or name in self._as_is
            self._grown[name] = now if same or before is None else now.grown_since(before)
        return self._grown[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now)

    def __len__(self) -> int:
        return len(self._now)


class Growing:
    """A session's maps, read again and again: at first all so far, then what they have grown by since."""

    def __init__(self, maps: Mapping[str, Map], as_is: Sequence[str] = ()) -> None:
        self._maps = maps
        self._as_is = as_is
        self._before: Frozen | None = None

    def read(self, made: Callable[[Mapping[str, Map]], Made]) -> Made:
        """Return what is made of the growth. Where that fails, the next reading has it too."""
        now, before = Frozen(self._maps), self._before
        result = made(now if before is None else Grown(now, before, self._as_is))
        if before is not None:
            now.add_unread(before)
        self._before = now
        return result
