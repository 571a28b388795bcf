"""Maps as they are at one moment: what a table is computed from that nobody is to be warned of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from bpfnb.results.maps.map import Map

__all__ = ["Frozen"]


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
