"""Maps of what was counted since they were last asked for: what a table at intervals is computed from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bpfnb.results.maps.map import Map

__all__ = ["Drained"]


class Drained(Mapping[str, Map]):
    """A session's maps, drained as they are asked for, each once: what they have grown by since the last time. Maps of
    stacks are as they are."""

    def __init__(self, maps: Mapping[str, Map], as_is: Sequence[str] = ()) -> None:
        self._maps = maps
        self._as_is = as_is  # names of further ones that are
        self._taken: dict[str, Map] = {}

    def __getitem__(self, name: str) -> Map:
        if name not in self._taken:
            map_ = self._maps[name]
            self._taken[name] = map_ if map_.kind == "stack_trace" or name in self._as_is else map_.taken()
        return self._taken[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._maps)

    def __len__(self) -> int:
        return len(self._maps)
