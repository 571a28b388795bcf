"""A session's rows as they come: one by one as named tuples, or the new ones every so often as a DataFrame.

Rows lie in shared memory that the tracer fills 25 times a second. Nobody is told of new ones: a reader looks, which
takes about a microsecond. So there is no thread here, and no queue. A reader that is slow leaves the rows where ``df``
has them, within the session's ``keep``.
"""

from __future__ import annotations

import keyword
import re
import time
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from bpfnb.interrupts import Flag
from bpfnb.results.output import Output, Position
from bpfnb.results.rates import interval
from bpfnb.results.table import with_escapes

__all__ = ["Batches", "Events", "Source", "field_names"]

_POLL = 0.01  # seconds between two looks for new rows
_MAX_TUPLES = 1 << 14  # made at a time: rows in hand are not within ``keep``


class Source:
    """What is streamed: the rows of an output, ``convert``ed. ``ended``: set once no more come."""

    def __init__(
        self, output: Output, ended: Flag, convert: Callable[[pd.DataFrame], pd.DataFrame] | None = None
    ) -> None:
        self.output = output
        self.ended = ended
        self._convert = convert
        self._drops_said = False
        # Other clocks' rows come in the order of their times.
        self._sorts = output.clock not in (None, "submitted", "stamp")

    def read(self, position: Position, most: int | None, *, stacklevel: int) -> tuple[pd.DataFrame, Position]:
        """Return the rows that follow a position, and the position after them. Warns before it returns any: a warning
        may be an error."""
        frame, after = self.output.read(position, most)
        attrs = dict(frame.attrs)
        if self._sorts and not frame["time"].is_monotonic_increasing:
            frame = frame.sort_values("time", kind="stable", ignore_index=True)
        if self._convert:
            frame = self._convert(frame)
        frame.attrs.update(attrs)
        self.output.warn_of_loss(attrs["lost"], stacklevel=stacklevel)
        if attrs["dropped"] and not self._drops_said:
            self._drops_said = True
            self.output.warn_of_drops(f"{attrs['dropped']:,} not yet read rows", stacklevel=stacklevel)
        return frame, after


# No row may be lost to Ctrl-C. Python looks for signals after a call, as a function begins and where a loop goes back.
# So what was read counts as read only in a statement behind which there is none of these before the return.


class Batches(Iterator[pd.DataFrame]):
    """DataFrames of what is new. For one thread at a time.

    ``dropped``: rows that were dropped before they were read here.
    """

    def __init__(self, source: Source, every: str, new: bool) -> None:
        self._source = source
        self._every = interval(every, at_least="1ms").total_seconds()
        self._due = time.monotonic()
        self._position = source.output.end() if new else Position()

    @property
    def dropped(self) -> int:
        return self._position.dropped

    def __next__(self) -> pd.DataFrame:
        while True:
            ended = self._source.ended.wait(self._due - time.monotonic())
            frame, position = self._source.read(self._position, None, stacklevel=4)
            self._due = max(self._due + self._every, time.monotonic())
            if len(frame):
                with_escapes(frame)
                self._position = position
                return frame
            self._position = position
            if ended:
                raise StopIteration


class Events(Iterator[Any]):
    """Rows as named tuples. For one thread at a time.

    ``dropped``: rows that were dropped before they were read here.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._position = Position()
        self._ready: Iterator[Any] = iter(())
        self._columns: list[str] = []
        self._make: Callable[[Iterable[Any]], Any] = tuple

    @property
    def dropped(self) -> int:
        return self._position.dropped

    def __next__(self) -> Any:
        while True:
            for event in self._ready:
                return event
            self._fill()

    def _fill(self) -> None:
        """Take the next rows; StopIteration where no more come."""
        ended = self._source.ended.is_set()
        if not ended and not self._source.output.has_more(self._position):
            self._source.ended.wait(_POLL)
            return
        frame, position = self._source.read(self._position, _MAX_TUPLES, stacklevel=5)
        if ended and not len(frame) and position == self._position:
            raise StopIteration
        ready = self._tuples(frame)
        self._ready = ready
        self._position = position

    def _tuples(self, frame: pd.DataFrame) -> Iterator[Any]:
        """Return the rows as tuples, which are made without running Python code for each."""
        columns = [str(column) for column in frame.columns]
        if columns != self._columns:
            self._make = partial(tuple.__new__, namedtuple("Event", field_names(columns)))
            self._columns = columns
        rows = zip(*(_python_values(frame.iloc[:, number]) for number in range(len(columns))), strict=True)
        return map(self._make, rows)


def field_names(columns: Iterable[str]) -> list[str]:
    """Return names for a tuple's fields: a column's, with ``_`` for what no name may hold (``slots[0]``: ``slots_0_``)
    and behind a keyword (``from_``). A name that begins with a digit or ``_`` has ``x`` in front."""
    names: list[str] = []
    for column in columns:
        name = re.sub(r"\W", "_", column) or "_"
        if name[0] == "_" or not name.isidentifier():
            name = f"x{name}"
        while name in names or keyword.iskeyword(name):
            name += "_"
        names.append(name)
    return names


def _python_values(column: pd.Series[Any]) -> list[Any]:
    """Return a column's values as Python's: int, float, bool, str, bytes, Timestamp, Timedelta; None for NA and NaT. A
    float's nan stays."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return _category_values(column)
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "iufb":
        values: list[Any] = column.tolist()
        return values
    values = column.astype(object).tolist()
    if column.hasnans or column.isna().any():
        return [None if missing else value for value, missing in zip(values, column.isna().tolist(), strict=True)]
    return values


def _category_values(column: pd.Series[Any]) -> list[Any]:
    """Return a category's values. Of the categories, of which a session may have many, only those are looked at that
    these rows have."""
    used, places = np.unique(column.cat.codes.to_numpy(), return_inverse=True)
    names = np.empty(len(used), object)
    names[:] = _python_values(pd.Series(column.cat.categories.take(np.maximum(used, 0))))
    names[used < 0] = None
    values: list[Any] = names[places].tolist()
    return values
