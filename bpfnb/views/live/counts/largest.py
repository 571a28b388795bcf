"""Where tables of the largest come from: a map, a table made of maps, a column of events.

found = source.read(Question("count", rate=False, containing="", n=10))
found.frame           the largest, the largest first
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import pandas as pd

from bpfnb.errors import ProgramError, near_or_all, printable
from bpfnb.results.arguments import require_columns
from bpfnb.results.distributions.sources import columns_of
from bpfnb.results.maps.frames import containing
from bpfnb.results.maps.frozen import Frozen, Grown
from bpfnb.results.maps.map import Map
from bpfnb.results.output import Output, Position
from bpfnb.results.presentation import Rows, Table
from bpfnb.views.live.view import ViewSpec

__all__ = ["Found", "Question", "Source", "source_of"]

_BATCH, _MAX_READ = 1 << 18, 1 << 22  # rows of an output read at a time, and in one update
_MAX_VALUES = 500_000  # different ones of a column, counted each by itself


Elapsed = Callable[[], float]
"""Returns for how long a session has run, in seconds."""


class Question(NamedTuple):
    """``sort``: a column of numbers. ``rate``: a second, since the last reading. ``containing``: only rows with this
    text."""

    sort: str
    rate: bool
    containing: str
    n: int


class Found(NamedTuple):
    """The largest, the largest first; of how many; ``seconds``: what rates are over, 0 for totals."""

    frame: pd.DataFrame
    entries: int
    seconds: float


class Source(Protocol):
    """``name``: of what is shown. ``numbers``: columns that it may be sorted by, the usual one first."""

    name: str
    numbers: Sequence[str]
    units: Mapping[str, str]

    def update(self) -> None:
        """Read what there is now."""

    def find(self, question: Question) -> Found:
        """Return the largest of what was read last. Of rates there are none until it was read twice."""


def source_of(spec: ViewSpec) -> Source:
    """Return where a view's rows come from. KeyError for a map or output that is not there, ValueError for a column,
    ProgramError where nothing can be shown."""
    session, presentation = spec.session, spec.session.presentation
    elapsed: Elapsed = lambda: session.elapsed  # noqa: E731
    if spec.map is not None:
        return MapLargest(session.maps, spec.map, spec.value, spec.by, elapsed)
    if spec.output is None and isinstance(presentation, Table):
        return TableLargest(session.maps, presentation, spec.value, spec.by, elapsed)
    if spec.output is None and not session.outputs and session.maps:
        shown = [name for name, map_ in session.maps.items() if map_.info.key and map_.numbers]
        if not shown:
            raise ProgramError(f"{session.name} has no map with keys and numbers")
        return MapLargest(session.maps, shown[0], spec.value, spec.by, elapsed)
    rows = presentation if spec.output is None and isinstance(presentation, Rows) else None
    named = [column for column in (spec.by, spec.value) if column is not None]
    output = session.main_output if rows else session.output_with(*named, output=spec.output)
    by, value = (spec.by, spec.value) if spec.by is not None else (spec.value, None)
    if by is None:
        names = ", ".join(map(str, columns_of(output, rows).columns))
        raise ProgramError(f"the commonest values of which column? by=...; there are {names}")
    return ColumnLargest(output, rows, by, value, elapsed)


class _Clock:
    """Between which two moments something was read."""

    def __init__(self, elapsed: Callable[[], float]) -> None:
        self._elapsed = elapsed
        self._last: float | None = None
        self.seconds = 0.0

    def tick(self) -> None:
        now = self._elapsed()
        self.seconds = now - self._last if self._last is not None else 0.0
        self._last = now


class MapLargest:
    """The largest entries of a map; see Map.largest."""

    units: Mapping[str, str] = {}

    def __init__(self, maps: Mapping[str, Map], name: str, value: str | None, by: str | None, elapsed: Elapsed) -> None:
        self._maps, self.name = maps, name
        _refuse_by(name, by)
        map_ = maps[name]
        if map_.info.key is None or not map_.numbers:
            raise ProgramError(f"{name} is a map of kind {map_.kind}: it has no keys with numbers to sort by")
        self.numbers = _first(value, map_.numbers, f"the values of {name} have no number")
        self._clock = _Clock(elapsed)
        self._now = self._before = maps[name].frozen()
        self._clock.tick()

    def update(self) -> None:
        self._before, self._now = self._now, self._maps[self.name].frozen()
        self._clock.tick()

    def find(self, question: Question) -> Found:
        map_ = self._now.grown_since(self._before) if question.rate else self._now
        frame = map_.largest(question.n, question.sort, question.containing)
        return Found(frame, len(self._now), self._clock.seconds if question.rate else 0.0)


class TableLargest:
    """The first rows of a one-liner's or a tool's table, by one of its numbers."""

    def __init__(
        self, maps: Mapping[str, Map], table: Table, value: str | None, by: str | None, elapsed: Elapsed
    ) -> None:
        self.name = table.title.partition(":")[0] or "count"
        _refuse_by(self.name, by)
        self.units = table.units
        self._table, self._maps = table, maps
        self._clock = _Clock(elapsed)
        self._now = self._before = Frozen(maps)
        self._totals = table.compute(self._now)
        self.numbers = _first(value, _quantities(self._totals), "its table has no number")
        self._clock.tick()

    def update(self) -> None:
        self._before, self._now = self._now, Frozen(self._maps)
        self._totals = self._table.compute(self._now)
        self._clock.tick()

    def find(self, question: Question) -> Found:
        frame = self._totals
        if question.rate:
            frame = self._table.compute(Grown(self._now, self._before, self._table.as_is))
        entries = len(self._totals)
        return Found(_largest(frame, question), entries, self._clock.seconds if question.rate else 0.0)


class ColumnLargest:
    """The commonest values of a column of events; with ``value`` those with the largest sums of another column."""

    def __init__(
        self,
        output: Output,
        rows: Rows | None,
        by: str,
        value: str | None,
        elapsed: Elapsed = time.monotonic,
        most: int = _MAX_VALUES,
    ) -> None:
        self.name = by
        self._output, self._by, self._value = output, by, value
        self._most = most
        self._convert = rows.convert if rows else lambda frame: frame
        self.units = rows.units if rows else {}
        frame = columns_of(output, rows)
        require_columns(frame, [by, *([value] if value is not None else [])])
        if value is not None and frame[value].dtype.kind not in "iufm":
            raise ProgramError(f"column {value!r} is {frame[value].dtype}: there is no sum of it")
        self.numbers: Sequence[str] = [value] if value is not None else ["count"]
        self._position = Position()
        self._clock = _Clock(elapsed)
        self._totals = self._before = pd.Series(dtype="int64")
        self.update()

    def update(self) -> None:
        """ProgramError for more values than can be kept apart."""
        self._before = self._totals
        for _ in range(0, _MAX_READ, _BATCH):
            rows, self._position = self._output.read(self._position, _BATCH)
            if not len(rows):
                break
            if len(self._totals) > self._most:
                raise ProgramError(f"{self._by} has more than {self._most:,} different values: too many to count each")
            frame = self._convert(rows)
            groups = frame.groupby(self._by, observed=True, sort=False)
            sums = groups.size() if self._value is None else groups[self._value].sum()
            sums.index = sums.index.astype(object) if isinstance(sums.index.dtype, pd.CategoricalDtype) else sums.index
            both = pd.concat([self._totals, sums]) if len(self._totals) else sums
            self._totals = both.groupby(level=0, sort=False).sum()
        self._clock.tick()

    def find(self, question: Question) -> Found:
        sums = self._totals
        if question.rate:
            sums = sums.sub(self._before.reindex(sums.index).fillna(type(sums.iloc[0])(0)) if len(sums) else sums)
            sums = sums[sums > type(sums.iloc[0])(0)] if len(sums) else sums
        frame = pd.DataFrame({self._by: sums.index, self.numbers[0]: sums.to_numpy()})
        return Found(_largest(frame, question), len(self._totals), self._clock.seconds if question.rate else 0.0)


def _refuse_by(name: str, by: str | None) -> None:
    if by is not None:
        raise ProgramError(f"{name} cannot be told apart by {printable(str(by))!r:.60}: its rows are its keys")


def _quantities(table: pd.DataFrame) -> list[str]:
    """Return the columns of a table that count something: the last ones, and of them those from "count" on. Numbers
    before them, and those of few bits, are names: of processes, CPUs and the like."""
    names: list[str] = []
    for column in reversed(table.columns):
        kind, size = table[column].dtype.kind, getattr(table[column].dtype, "itemsize", 0)
        if not (kind in "fm" or (kind in "iu" and size == 8)):
            break
        names.insert(0, str(column))
    return names[names.index("count") :] if "count" in names else names


def _largest(frame: pd.DataFrame, question: Question) -> pd.DataFrame:
    """Return the rows with the largest numbers. Only they are sorted."""
    if question.containing:
        found = pd.Series(data=False, index=frame.index)
        for name in frame.columns:
            if frame[name].dtype.kind not in "fm" and name != question.sort:
                found |= containing(frame[name], question.containing)
        frame = frame[found]
    if not len(frame):
        return frame
    return frame.loc[frame[question.sort].nlargest(question.n).index]


def _first(value: str | None, numbers: Sequence[str], what: str) -> Sequence[str]:
    if value is None:
        if not numbers:
            raise ProgramError(what)
        return numbers
    if value not in numbers:
        raise ProgramError(f"{what} {value!r}{near_or_all(value, numbers)}")
    return [value, *(name for name in numbers if name != value)]
