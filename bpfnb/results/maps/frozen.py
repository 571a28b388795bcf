"""Maps as they are at one moment, and what they have grown by since another: what a table is computed from that nobody
is to be warned of, and for which nobody else's drain matters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bpfnb.results.maps.map import Map

__all__ = ["Frozen", "Grown"]


class Frozen(Mapping[str, Map]):
    """A session's maps, read as they are asked for, each once, whatever was drained."""

    def __init__(self, maps: Mapping[str, Map]) -> None:
        self._maps = maps
        self._read: dict[str, Map] = {}

    def __getitem__(self, name: str) -> Map:
        if name not in self._read:
            self._read[name] = self._maps[name].frozen()
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._maps)

    def __len__(self) -> int:
        return len(self._maps)


class Grown(Mapping[str, Map]):
    """What maps have grown by from one moment to another. Those of stacks, and those named in ``as_is``, are as they
    are."""

    def __init__(self, now: Frozen, before: Frozen, as_is: Sequence[str] = ()) -> None:
        self._now, self._before = now, before
        self._as_is = as_is
        self._grown: dict[str, Map] = {}

    def __getitem__(self, name: str) -> Map:
        if name not in self._grown:
            now = self._now[name]
            same = now.kind == "stack_trace" or name in self._as_is
            self._grown[name] = now if same else now.grown_since(self._before[name])
        return self._grown[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now)

    def __len__(self) -> int:
        return len(self._now)
