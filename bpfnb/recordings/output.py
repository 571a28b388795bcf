"""The outputs of a recording: the same as those of a session, over rows that are there."""

from __future__ import annotations

import time
import warnings
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb.errors import ProgramError
from bpfnb.interrupts import new_rlock
from bpfnb.recordings.columns import empty_frame
from bpfnb.recordings.reader import RecordedRows
from bpfnb.results.columns.text import PANDAS
from bpfnb.results.output import Keep, Output, OutputKind
from bpfnb.results.table import Table

__all__ = ["RecordedOutput", "RecordedTable"]

Ints = npt.NDArray[np.int64]


class RecordedTable(Table):
    """The rows of a recording, which are decoded when somebody asks for them. Nothing is appended or dropped.

    ``begin``: how many rows were delivered that are not in the recording, as though they had been the first.
    """

    def __init__(self, rows: RecordedRows, delivered: int) -> None:
        self._rows = rows
        self._epoch_ns = rows.info.epoch_ns
        self._lock = new_rlock()
        self._all: pd.DataFrame | None = None
        self._groups: dict[str, pd.Categorical[Any]] = {}
        self.names = tuple(map(str, empty_frame(rows.info.schema).columns))
        there = rows.rows
        self.end = max(delivered, there)
        self.begin = self.end - there

    @property
    def nbytes(self) -> int:
        return 0  # ``keep`` is about rows that come

    def frame(self) -> pd.DataFrame:
        # pandas 3 copies lazily, on the first write; before, a shallow copy would share our arrays for writing.
        return self._whole().copy(deep=PANDAS < (3, 0))

    def part(self, begin: int, end: int) -> pd.DataFrame:
        rows = self._whole().iloc[begin - self.begin : end - self.begin]
        rows.index = pd.RangeIndex(len(rows))
        return rows.copy(deep=PANDAS < (3, 0))

    def raw(self, name: str) -> pd.Series[Any]:
        if name not in self.names:
            raise KeyError(f"no column {name!r}: there are {', '.join(self.names)}")
        raise ProgramError(f"a recording has column {name!r} as df shows it: what it was before is not recorded")

    def since(self, row: int, by: str | None) -> tuple[Ints, pd.Categorical[Any] | None]:
        start = min(max(row, self.begin), self.end) - self.begin
        return self._times()[start:], None if by is None else self._category(by)[start:]

    def edition(self, by: str | None) -> object:
        return None if by is None else self._category(by)

    def now(self, clock_ns: int = 0) -> int:
        return time.monotonic_ns() + clock_ns + self._epoch_ns

    def shrink(self, keep: int) -> None:
        """Drop nothing: the rows stay in the files."""

    def arrivals(self) -> Ints:
        """Return when each row came, in nanoseconds since 1970, in rising order: no later than it was written. Rows
        without times came when they were written."""
        count = self.end - self.begin
        times = np.array([flush.time for flush in self._rows.flushes], np.int64)
        ends = np.maximum.accumulate(np.array([flush.written for flush in self._rows.flushes], np.int64))
        latest = np.iinfo(np.int64).max
        flushed = np.append(np.maximum.accumulate(times), latest)[np.searchsorted(ends, np.arange(count), side="right")]
        if not self._rows.info.schema.time:
            return flushed
        return cast("Ints", np.minimum(np.maximum.accumulate(self._clock_times()), flushed))

    def _times(self) -> Ints:
        return self._clock_times() if self._rows.info.schema.time else self.arrivals()

    def _clock_times(self) -> Ints:
        return cast("Ints", self._whole()["time"].to_numpy("M8[ns]").view(np.int64))

    def _whole(self) -> pd.DataFrame:
        with self._lock:
            if self._all is None:
                self._all = self._rows.frame()
            return self._all

    def _category(self, by: str) -> pd.Categorical[Any]:
        with self._lock:
            if by not in self._groups:
                column: Any = self._whole()[by].array
                if not isinstance(column, pd.Categorical):
                    codes, values = pd.factorize(column)
                    column = pd.Categorical.from_codes(codes, pd.Index(values), validate=False)
                self._groups[by] = column
            return self._groups[by]


class RecordedOutput(Output):
    """An output of a recording. ``rows``: those that were delivered; ``dropped``: those of them that are not in it."""

    def __init__(self, rows: RecordedRows, delivered: int, lost: int, keep: Keep) -> None:
        info = rows.info
        super().__init__(info.name, info.schema, info.epoch_ns, keep, cast("OutputKind", info.kind))
        self.recorded = rows
        self._lost = lost
        self._table = self.table_of_rows = RecordedTable(rows, delivered)

    def warn_of_drops(self, which: str, *, stacklevel: int) -> None:
        text = f"{self.dropped:,} rows of {self.name} are not in the recording"
        warnings.warn(text, RuntimeWarning, stacklevel=stacklevel)
