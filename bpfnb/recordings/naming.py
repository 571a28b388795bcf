"""The names that a recording needs: those of every code address that anybody may ask for later, on a machine that knows
none of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

import pandas as pd

from bpfnb.errors import BpfnbError
from bpfnb.protocol.messages import MapInfo
from bpfnb.results import stacks
from bpfnb.results.maps.map import Map
from bpfnb.results.presentation import Presentation, Table

__all__ = ["Asked", "Owners", "ask_all"]

_OWNERS = ("tgid", "pid")
Write = Callable[[int, Sequence[int], Sequence[str], Sequence[str]], None]


class Asked:
    """Has names found, and hands each that is new on to ``write``: process, addresses, names, modules.

    ``failed``: why some could not be found, as the tracer that knew them is gone; or "".
    """

    def __init__(self, resolve: stacks.Resolve, write: Write) -> None:
        self._resolve, self._write = resolve, write
        self._known: dict[tuple[int, int], tuple[str, str]] = {}
        self.failed = ""

    def __call__(self, pid: int, addresses: Sequence[int]) -> tuple[Sequence[str], Sequence[str]]:
        new = [address for address in dict.fromkeys(addresses) if (pid, address) not in self._known]
        if new and not self.failed:
            try:
                names, modules = self._resolve(pid, new)
            except BpfnbError as error:
                self.failed = error.message
            else:
                self._write(pid, new, names, modules)
                self._known.update(zip(((pid, a) for a in new), zip(names, modules, strict=True), strict=True))
        found = [self._known.get((pid, address), (stacks.UNKNOWN, "")) for address in addresses]
        return [name for name, _ in found], [module for _, module in found]


class Owners:
    """Which process has which stacks, of rows that come in pieces: each pair once."""

    def __init__(self) -> None:
        self._rows = pd.DataFrame()

    def add(self, rows: pd.DataFrame) -> None:
        columns = _stack_columns(rows)
        if columns:
            wanted = [*columns, *_owner_columns(rows)]
            self._rows = pd.concat([self._rows, rows[wanted].drop_duplicates()]).drop_duplicates(ignore_index=True)

    def frame(self) -> pd.DataFrame:
        return self._rows


def ask_all(
    maps: Mapping[str, Map], rows: Iterable[pd.DataFrame], presentation: Presentation | None, process: int = 0
) -> None:
    """Ask for all names that are needed for what ``maps`` and ``rows`` can be shown as: ``df``, the map's ``symbols``
    and ``folded``, flame graphs. The maps ask an ``Asked``. ``process``: the one that the session was about, if any."""
    if isinstance(presentation, Table):
        with suppress(BpfnbError):
            presentation.compute(maps)
    keeping = [map_ for map_ in maps.values() if map_.kind == "stack_trace"]
    if not keeping:
        return
    counting = [_entries(map_) for map_ in maps.values() if map_.kind != "stack_trace" and has_stacks(map_.info)]
    for kept in keeping:
        for pid in {0, process}:
            with suppress(BpfnbError):
                kept.symbols(pid)
        for counts in (*counting, *rows):
            _ask_for(kept, counts)


def has_stacks(info: MapInfo) -> bool:
    """Return whether a map keeps stacks, or has their numbers."""
    sides = [side for side in (info.key, info.value) if side]
    names = [column.name.lower() for side in sides for column in side.columns]
    return info.kind == "stack_trace" or any("stack" in name for name in names)


def _entries(map_: Map) -> pd.DataFrame:
    with suppress(BpfnbError):
        return map_.df
    return pd.DataFrame()


def _ask_for(kept: Map, counts: pd.DataFrame) -> None:
    """Ask for the names of each column of stacks by itself: which is the kernel's need not be clear."""
    for column in _stack_columns(counts):
        owners: list[str | None] = [*_owner_columns(counts)]
        for owner in owners or [None]:
            with suppress(BpfnbError):
                kept.folded(counts, user=column, owner=owner, by=[])


def _stack_columns(rows: pd.DataFrame) -> list[str]:
    return [name for name in _integers(rows) if "stack" in name.lower()]


def _owner_columns(rows: pd.DataFrame) -> list[str]:
    """Return the columns that may tell whose a stack is, members of a struct in a struct too."""
    return [name for name in _integers(rows) if name.rpartition(".")[2] in _OWNERS]


def _integers(rows: pd.DataFrame) -> list[str]:
    return [str(name) for name, dtype in rows.dtypes.items() if pd.api.types.is_integer_dtype(dtype)]
