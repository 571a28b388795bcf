"""Tables: rows decoded into columns that grow, and DataFrames over them.

Pure: no tracer, no kernel. A DataFrame that was handed out never changes.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb.errors import ProgramError, escape, printable
from bpfnb.protocol.schema import Column, Rows, Schema
from bpfnb.results.columns.base import Batch, ColumnBuffer
from bpfnb.results.columns.categories import CategoryColumn
from bpfnb.results.columns.kinds import column_buffer, shown
from bpfnb.results.columns.numeric import NumberColumn, TimeColumn
from bpfnb.results.columns.text import PANDAS
from bpfnb.results.distributions.bars import bars_html, bars_text, is_histogram

__all__ = ["BATCH", "Table", "named_columns", "with_bars", "with_escapes"]

BATCH = 1 << 14  # rows decoded at a time: few enough for a processor's cache, which every column then reads them from

Ints = npt.NDArray[np.int64]


class Table:
    """The rows of an output, as columns.

    ``frame()`` has the schema's columns in their order, by their types in protocol.schema:

        Number, BitField   numpy's own dtype: uint32, int8, float64, bool ...
        Enum          category of str: the constants' names in declared order, then numbers that are no constant's. A
                      BitField of an enumeration as well
        Text          category of str, cut at the first NUL
        Tail          str, cut at the first NUL; or ArrowDtype(large_binary), whose values are bytes
        Bytes         ArrowDtype(large_binary), whose values are bytes
        Wide          object: Python integers
        NumberArray   a column an element, "slots[0]" and on; of more than 1,024 elements as Bytes

    When the schema names a time, ``time`` (datetime64[ns, UTC]) comes first: its nanoseconds plus ``epoch_ns``, which
    ``append`` may change for the rows to come. Every member of the struct is a column as well, whatever it is called;
    one called "time" is then shown as "time_".

    ``names``: the columns as shown. Rows are counted from the first ever appended: ``begin`` is the oldest kept,
    ``end`` the next to come. ``nbytes``: what the rows kept take.
    """

    def __init__(self, schema: Schema, epoch_ns: int, *, batch: int = BATCH) -> None:
        """``batch``: how many rows are decoded at a time."""
        self._batch_rows = batch
        self._schema = schema
        self._epoch_ns = epoch_ns
        self._columns = self._plan()
        self._arrivals = None if schema.time else _Arrivals()
        self._frame: pd.DataFrame | None = None
        self._settled = True
        self.names = tuple(self._columns)
        self.begin = self.end = 0

    @property
    def nbytes(self) -> int:
        return sum(column.nbytes for column in self._columns.values())

    def reserve(self, rows: int) -> None:
        """Make room for ``rows`` more rows at once: columns that grow step by step are copied at each."""
        for column in self._columns.values():
            column.reserve(rows)

    def append(self, rows: Rows, text: npt.NDArray[np.uint8], begin: int, epoch_ns: int | None = None) -> None:
        """Add rows of the schema; the first one's text begins at ``text[begin]``. Neither array is kept."""
        if epoch_ns is not None:
            self._epoch_ns = epoch_ns
        if not len(rows):
            return
        self._settle()
        self._frame = None
        self._settled = False
        for first in range(0, len(rows), self._batch_rows):
            batch, begin = self._batch(rows[first : first + self._batch_rows], text, begin)
            for column in self._columns.values():
                column.append(batch)
        if self._arrivals:
            self._arrivals.add(self.end + len(rows))
        self.end += len(rows)
        self._settled = True

    def frame(self) -> pd.DataFrame:
        """Return the rows kept, oldest first. Writing into it changes nothing else; appending does not change it."""
        self._settle()
        if self._frame is None:
            self._frame = self._build()
        # pandas 3 copies lazily, on the first write; before, a shallow copy would share our arrays for writing.
        return self._frame.copy(deep=PANDAS < (3, 0))

    def part(self, begin: int, end: int) -> pd.DataFrame:
        """Return the rows from number ``begin`` to ``end``, which must be kept, as ``frame`` returns all."""
        self._settle()
        start, stop = begin - self.begin, end - self.begin
        frame = self._build(start, stop)
        frame.index = pd.RangeIndex(stop - start)
        return frame.copy(deep=PANDAS < (3, 0))

    def raw(self, name: str) -> pd.Series[Any]:
        """Return a category column before its values were given names: a category of the char arrays' bytes, NULs and
        what follows them included, or of the constants' numbers.

        KeyError for an unknown column, ValueError for one of another kind, which is raw already.
        """
        self._settle()
        if name not in self._columns:
            raise KeyError(f"no column {name!r}: there are {', '.join(self.names)}")
        column = self._columns[name]
        if not isinstance(column, CategoryColumn):
            raise ProgramError(f"column {name!r} is no category: the frame has its values as they are")
        return pd.Series(column.raw(), name=name, copy=False)

    def since(self, row: int, by: str | None) -> tuple[Ints, pd.Categorical[Any] | None]:
        """Return times (nanoseconds since 1970) of the rows from ``row`` on, and their values in column ``by``.

        Rows without timestamps use the time they were decoded.
        """
        self._settle()
        start = min(max(row, self.begin), self.end) - self.begin
        times = self._arrivals.since(self.begin + start) if self._arrivals else self._clock().since(start)
        return times, None if by is None else self._columns[by].groups(start)

    def edition(self, by: str | None) -> object:
        """Return an object that is the same as long as a code of ``since`` stands for the same value; None where that
        differs from call to call."""
        return None if by is None else self._columns[by].edition

    def now(self, clock_ns: int = 0) -> int:
        """Return the present on the clock of the rows' times, in nanoseconds since 1970. ``clock_ns``: how far the
        CLOCK_MONOTONIC of their host is ahead of this machine's."""
        return time.time_ns() if self._arrivals else time.monotonic_ns() + clock_ns + self._epoch_ns

    def shrink(self, keep: int) -> None:
        """Drop the oldest rows when all take more than ``keep`` bytes, until about three quarters of that remain.

        A quarter at a time, since what remains is copied; at least one row stays.
        """
        while (taken := self.nbytes) > keep and (rows := self.end - self.begin) > 1:
            self._frame = None
            self._settled = False
            self.begin = self.end - max(rows * keep * 3 // (taken * 4), 1)
            self._settle()

    def _settle(self) -> None:
        """Take every column to ``begin`` and ``end``: after rows were dropped, or an append was interrupted."""
        if self._settled:
            return
        for name, column in self._columns.items():
            self._columns[name] = column.part(self.begin, self.end)  # one by one: only one is there twice
        if self._arrivals:
            self._arrivals.trim(self.begin, self.end)
        self._settled = True

    def _plan(self) -> dict[str, ColumnBuffer]:
        members = named_columns(self._schema)
        clock = members.pop("time", None) if self._schema.time else None
        columns: dict[str, ColumnBuffer] = {}
        if clock:
            columns["time"] = TimeColumn(clock, lambda: self._epoch_ns)
        return columns | {name: column_buffer(column) for name, column in members.items()}

    def _clock(self) -> NumberColumn:
        clock = self._columns["time"]
        assert isinstance(clock, TimeColumn)
        return clock

    def _batch(self, rows: Rows, text: npt.NDArray[np.uint8], begin: int) -> tuple[Batch, int]:
        """Return the rows with their text, and where the text of the next row begins."""
        at = self._schema.text_end
        if at < 0:
            return Batch(rows), begin
        ends = rows[:, at : at + 8].view(np.int64)[:, 0]
        end = int(ends[-1])
        return Batch(rows, text[begin:end], np.concatenate([[begin], ends]) - begin), end

    def _build(self, start: int = 0, stop: int | None = None) -> pd.DataFrame:
        columns = {name: column.values(start, stop) for name, column in self._columns.items()}
        return pd.DataFrame(columns, copy=False)


def named_columns(schema: Schema) -> dict[str, Column]:
    """Return the columns of a schema by the names that a frame has them under, in its order. Where it has a clock, that
    is ``time``, the first."""
    columns: dict[str, Column] = {}
    members = list(shown(schema.columns))
    for clock in [column for column in members if column.name == schema.time]:
        columns["time"] = clock
        if schema.clock:
            members.remove(clock)
    names = {member.name for member in members}
    for member in members:
        name = member.name
        while name in columns or (name != member.name and name in names):
            name += "_"
        columns[name] = member
    return columns


class _Arrivals:
    """The times at which rows without timestamps were decoded."""

    def __init__(self) -> None:
        self._ends: list[int] = []  # the number after the last row of those that came together
        self._times: list[int] = []

    def add(self, end: int) -> None:
        self._ends.append(end)
        self._times.append(time.time_ns())

    def since(self, row: int) -> Ints:
        """Return the times of the rows from ``row`` on, in nanoseconds since 1970."""
        first = bisect_right(self._ends, row)
        return np.repeat(np.array(self._times[first:], np.int64), np.diff([row, *self._ends[first:]]))

    def trim(self, begin: int, end: int) -> None:
        """Forget all but the rows from ``begin`` to ``end``."""
        kept = slice(bisect_right(self._ends, begin), bisect_right(self._ends, end))
        self._ends, self._times = self._ends[kept], self._times[kept]


# --- shown --------------------------------------------------------------------------------------------------------


def with_escapes(frame: pd.DataFrame) -> pd.DataFrame:
    """Have a frame's to_html, to_string and repr show control characters and marks of direction as escapes. Return it.

    Names and messages come from other processes. The values stay as they are. Frames made of this one are plain ones,
    but in a notebook with the magics all are shown so.
    """
    # A class has no reference to the frame: functions in its __dict__ would keep it alive, or outlive it.
    frame.__class__ = _EscapedFrame
    return frame


class _AnyFrame(type):
    """Has every DataFrame be an instance: pandas compares the types of frames, in assert_frame_equal and equals."""

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, pd.DataFrame)


class _EscapedFrame(pd.DataFrame, metaclass=_AnyFrame):
    @property
    def _constructor(self) -> Callable[..., pd.DataFrame]:
        return pd.DataFrame

    def __reduce__(self) -> Any:
        return self.copy(deep=False).__reduce__()

    def to_html(self, *args: Any, **options: Any) -> Any:
        return _escaped(super().to_html(*args, **options))

    def to_string(self, *args: Any, **options: Any) -> Any:
        return _escaped(super().to_string(*args, **options))

    def _repr_html_(self) -> Any:
        return _escaped(super()._repr_html_())  # type: ignore[misc]


def with_bars(frame: pd.DataFrame) -> pd.DataFrame:
    """Have a frame of buckets be shown with bars, by its repr and in a notebook. Return it. ``to_html`` and
    ``to_string`` make a table, as of any frame, and frames made of this one are plain ones."""
    frame.__class__ = _BarsFrame
    return frame


class _BarsFrame(_EscapedFrame):
    def __repr__(self) -> str:
        if not is_histogram(self):
            return super().__repr__()
        return f"{bars_text(self)}\n\n[{_size(self)}]"

    def _repr_html_(self) -> Any:
        if not is_histogram(self):
            return super()._repr_html_()
        return f'{bars_html(self)}<div style="opacity:.68">{escape(_size(self))}</div>'


def _size(frame: pd.DataFrame) -> str:
    names = printable(", ".join(map(str, frame.columns[:8])))
    more = ", ..." if len(frame.columns) > 8 else ""
    return f"{len(frame):,} rows x {len(frame.columns):,} columns: {names[:300]}{more}"


def _escaped(text: str | None) -> str | None:
    return text if text is None else printable(text, keep="\n\t")
