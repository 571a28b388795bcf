"""Where numbers for distributions come from: a column of events, a map of buckets, a table of buckets.

source.update(now)        counts what is new into source.history
source.history            what was counted, by second
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd

from bpfnb.errors import ProgramError, near_or_all
from bpfnb.results.arguments import require_columns
from bpfnb.results.buckets import numbers_of
from bpfnb.results.distributions.history import History
from bpfnb.results.distributions.pace import Pace
from bpfnb.results.distributions.scales import Array, Given, Ints, Linear, Scale, Slots, scale_of
from bpfnb.results.maps.frozen import Frozen, Growing
from bpfnb.results.maps.histograms import bucket_column
from bpfnb.results.maps.map import Map
from bpfnb.results.output import Output, Position
from bpfnb.results.presentation import Rows, Table

__all__ = ["UNITS", "ColumnSource", "MapSource", "Source", "TableSource", "Unit", "columns_of"]

Unit = Literal["", "ns", "us", "ms", "s", "bytes"]
UNITS: tuple[Unit, ...] = ("", "ns", "us", "ms", "s", "bytes")

_BATCH = 1 << 18  # rows read at a time
_MAX_ROWS = 1 << 22  # rows read in one update: the rest comes with the next
_BUCKET = ("low", "high", "label", "count")


class Source(Protocol):
    """``name``: of what is counted. ``unit``: of the numbers. ``missing``: rows without a number, which are in no
    bucket. ``by``: what groups are told apart by; ``offers``: what they could be. ``timed``: whether what was before
    the first update is in ``history`` with its times."""

    name: str
    history: History
    unit: Unit
    missing: int
    by: Sequence[str]
    offers: Sequence[str]
    timed: bool

    @property
    def period(self) -> int:
        """Seconds between two readings."""

    def update(self, now: float, last: bool = False) -> None:
        """Count what is new. ``now``: seconds since 1970. ``last``: read, however lately that was done."""


class ColumnSource:
    """A column of an output's rows, or of what a one-liner or tool makes of them.

    ValueError for a column that is not there, or is no number.
    """

    timed = True

    def __init__(
        self, output: Output, rows: Rows | None, column: str, by: str | None, kind: Literal["log2", "linear"]
    ) -> None:
        self._output = output
        self._convert: Callable[[pd.DataFrame], pd.DataFrame] = rows.convert if rows else lambda frame: frame
        self.name = column
        self.by: Sequence[str] = [by] if by is not None else []
        self.missing = 0
        self.history = History(scale_of(kind))
        self._position = Position()
        frame = columns_of(output, rows)
        require_columns(frame, [column, *self.by])
        numbers_of(frame[column], None)
        self.unit = _unit(frame[column], rows)
        self.offers: Sequence[str] = [str(name) for name in frame.columns if _tells_apart(frame[name])]

    @property
    def period(self) -> int:
        return 1

    def update(self, now: float, last: bool = False) -> None:
        for _ in range(0, _MAX_ROWS, _BATCH):
            rows, self._position = self._output.read(self._position, _BATCH)
            if not len(rows):
                return
            frame = self._convert(rows)
            numbers, known = numbers_of(frame[self.name], None)
            self.missing += int(len(known) - known.sum())
            if not known.all():
                frame, numbers = frame[known], numbers[known]
            self.history.add(numbers, _seconds(frame, now), frame[self.by] if self.by else None)


def columns_of(output: Output, rows: Rows | None) -> pd.DataFrame:
    """Return a frame without rows that has the columns of an output, or of what is made of its rows."""
    frame, _ = output.read(Position(), 0)
    return rows.convert(frame) if rows else frame


def _tells_apart(column: pd.Series[Any]) -> bool:
    return isinstance(column.dtype, pd.CategoricalDtype) or column.dtype.kind in "biu"


def _seconds(frame: pd.DataFrame, now: float) -> Ints:
    """Return when rows were, in seconds since 1970; without times of their own, now."""
    if not isinstance(frame.dtypes.get("time"), pd.DatetimeTZDtype):
        return np.full(len(frame), int(now))
    seconds: Ints = pd.DatetimeIndex(frame["time"]).as_unit("ns").asi8 // 1_000_000_000
    return seconds


def _unit(column: pd.Series[Any], rows: Rows | None) -> Unit:
    """Return the unit of a column: by its type, by what a tool says of it, by the end of its name."""
    if column.dtype.kind == "m":
        return "ns"
    told = rows.units.get(str(column.name), "") if rows else str(column.name).rpartition("_")[2]
    return next((unit for unit in UNITS if unit and unit == told), "")


class _Readings:
    """A session's maps, read again and again."""

    timed = False

    def __init__(self, maps: Mapping[str, Map], as_is: Sequence[str] = ()) -> None:
        self._growing = Growing(maps, as_is)
        self._first = True
        self._pace = Pace()

    @property
    def period(self) -> int:
        return self._pace.period

    def update(self, now: float, last: bool = False) -> None:
        if not last and not self._pace.due(now):
            return
        began = time.monotonic()
        second = None if self._first else int(now) - int(not last)
        self._growing.read(lambda maps: self._count(maps, second))
        self._first = False
        self._pace.took(now, time.monotonic() - began)

    def _count(self, maps: Mapping[str, Map], second: int | None) -> None:
        """Count the entries. ``second``: when they were counted in the kernel; None: before the first reading."""
        raise NotImplementedError


class MapSource(_Readings):
    """A map whose keys are buckets and whose values are counts: see Map.hist.

    ProgramError for a map of another form, KeyError for one that is not there.
    """

    missing = 0
    unit: Unit = ""

    def __init__(
        self, maps: Mapping[str, Map], name: str, by: str | None, kind: Literal["log2", "linear"], bucket: str = ""
    ) -> None:
        super().__init__(maps)
        self.name = name
        keys, values = maps[name].columns
        self._bucket = bucket_column(name, keys, bucket)
        self.offers: Sequence[str] = [key for key in keys if key != self._bucket]
        if by is not None and by not in self.offers:
            raise ProgramError(f"{name} cannot be told apart by {by!r}{near_or_all(by, self.offers)}")
        self.by: Sequence[str] = self.offers if by is None else [by]
        scale: Scale = Linear() if kind == "linear" else Slots(name)
        self.history = History(scale)
        frame = maps[name].frozen().reduced("sum")
        if len(values) != 1 or any(frame[column].dtype.kind not in "iu" for column in (self._bucket, values[0])):
            raise ProgramError(f"{name} is no histogram: its buckets and counts must be whole numbers")
        self._value = values[0]

    def _count(self, maps: Mapping[str, Map], second: int | None) -> None:
        frame = maps[self.name].reduced("sum")
        frame = frame[frame[self._value] != 0]
        counts = frame[self._value].to_numpy().astype(np.int64)
        seconds = None if second is None else np.full(len(frame), second)
        self.history.add(frame[self._bucket].to_numpy(), seconds, frame[self.by] if self.by else None, counts)


class TableSource(_Readings):
    """A one-liner's or a tool's table with ``low``, ``high`` and ``count``."""

    missing = 0
    name = "histogram"

    def __init__(self, maps: Mapping[str, Map], table: Table, by: str | None) -> None:
        super().__init__(maps, table.as_is)
        self._compute = table.compute
        frame = table.compute(Frozen(maps))
        if not set(_BUCKET) <= set(frame.columns):
            raise ProgramError("its table has no buckets: a histogram is of a column, of a map, or of hist and latency")
        self.offers: Sequence[str] = [str(name) for name in frame.columns if name not in _BUCKET]
        if by is not None and by not in self.offers:
            raise ProgramError(f"its table cannot be told apart by {by!r}{near_or_all(by, self.offers)}")
        self.by: Sequence[str] = self.offers if by is None else [by]
        durations = frame["low"].dtype.kind == "m" or frame.attrs.get("unit") == "ns"
        self.unit: Unit = "ns" if durations else ""
        self._scale = Given()
        self.history = History(self._scale)

    def _count(self, maps: Mapping[str, Map], second: int | None) -> None:
        frame = self._compute(maps)
        frame = frame[frame["count"] > 0]
        low, high = (_bound(frame[name]) for name in ("low", "high"))
        self._scale.learn(low, high)
        seconds = None if second is None else np.full(len(frame), second)
        self.history.add(low, seconds, frame[self.by] if self.by else None, frame["count"].to_numpy(np.int64))


def _bound(column: pd.Series[Any]) -> Array:
    """Return a bound of buckets as numbers, of durations as nanoseconds."""
    if column.dtype.kind == "m":
        return pd.TimedeltaIndex(column).as_unit("ns").asi8.astype(np.float64)
    return column.to_numpy(np.float64)
