"""What was imported: like a session that has ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from bpfnb import views
from bpfnb.errors import ProgramError, UnknownName, near_or_all
from bpfnb.imports.lines import Lines
from bpfnb.results.table import with_bars, with_escapes

__all__ = ["Format", "Imported", "Part"]


@dataclass(frozen=True)
class Format:
    """A kind of file. ``fits``: whether these lines are of it; ``read``: makes a session of them, and notes which
    were of use."""

    name: str
    fits: Callable[[Lines], bool]
    read: Callable[[Lines], Imported]


@dataclass(frozen=True)
class Part:
    """An output or a map: its name and its rows."""

    name: str
    df: pd.DataFrame

    def __repr__(self) -> str:
        return f"<{self.name}: {len(self.df):,} rows>"


class _Parts(dict[str, Part]):
    def __missing__(self, name: str) -> Part:
        raise UnknownName(f"there is no {name!r}{near_or_all(name, self)}")


def _parts(frames: dict[str, pd.DataFrame]) -> _Parts:
    return _Parts({name: Part(name, _shown(frame)) for name, frame in frames.items()})


@dataclass
class Imported:
    """What another tool has written. ``bpfnb.open`` makes these.

    ``df``        the rows: of bcc's tools in the columns of bpfnb's tool of that name; of bpftrace the lines that were
                  printed, else its only map
    ``kind``      "bpftrace" or the tool's name
    ``outputs``, ``maps``   by name, each with ``df``
    ``lost``      events that the other tool has said were lost
    ``notes``     what is to be said of it, one line each
    """

    name: str
    kind: str
    outputs: Mapping[str, Part] = field(default_factory=_Parts)
    maps: Mapping[str, Part] = field(default_factory=_Parts)
    lost: int = 0
    notes: tuple[str, ...] = ()
    state: str = "stopped"

    @classmethod
    def made(
        cls, lines: Lines, kind: str, outputs: dict[str, pd.DataFrame], maps: dict[str, pd.DataFrame], lost: int = 0
    ) -> Imported:
        """Make one of frames by name."""
        notes = ("its last line was cut off, and is not in it",) if lines.torn.strip() else ()
        return cls(lines.path.stem, kind, _parts(outputs), _parts(maps), lost, notes)

    @property
    def df(self) -> pd.DataFrame:
        """Return the rows. ProgramError where several maps have results, and nothing else has."""
        parts = list(self.outputs.values()) or list(self.maps.values())
        if len(parts) == 1:
            return parts[0].df
        if not parts:
            raise ProgramError(f"{self.name} has no results")
        names = ", ".join(f"maps[{part.name!r}].df" for part in parts)
        raise ProgramError(f"{self.name} has several results: {names}")

    def flame(self, map: str | None = None, **options: Any) -> Any:
        """Return a flame graph of stacks: see Session.flame for ``value``, ``by`` and others."""
        return views.flame(self.df if map is None else self.maps[map].df, **options)

    def __repr__(self) -> str:
        parts = [*self.outputs.values(), *self.maps.values()]
        rows = ", ".join(f"{part.name}: {len(part.df):,} rows" for part in parts) or "nothing"
        return f"<Imported {self.name}, of {self.kind}: {rows}, {self.lost:,} lost>"


def _shown(frame: pd.DataFrame) -> pd.DataFrame:
    return with_bars(frame) if {"low", "high", "label", "count"} <= set(frame.columns) else with_escapes(frame)
