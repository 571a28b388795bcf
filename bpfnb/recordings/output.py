"""The outputs of a recording: the same as those of a session, over rows that are there."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from bpfnb.errors import ProgramError
from bpfnb.interrupts import new_rlock
from bpfnb.recordings.columns import empty_frame, frame_of
from bpfnb.recordings.reader import Between, Part, RecordedRows
from bpfnb.results.arguments import moment, require_times
from bpfnb.results.columns.text import PANDAS
from bpfnb.results.output import Keep, Output, OutputKind
from bpfnb.results.queries import sql
from bpfnb.results.queries.blocks import Blocks, Large
from bpfnb.results.queries.reduced import SqlRows, where
from bpfnb.results.table import Table, with_escapes

__all__ = ["RecordedOutput", "RecordedTable"]

Ints = npt.NDArray[np.int64]


class RecordedTable(Table):
    """The newest rows of a recording, which are decoded when somebody asks for them. Nothing is appended or dropped.

    ``there``: how many rows are in the recording, ``kept``: how many of them are here. ``begin``: how many were
    delivered that are not here, as though those that are not in the recording had been the first.
    """

    def __init__(self, rows: RecordedRows, delivered: int, keep: int) -> None:
        """``keep``: how many bytes of the newest rows may be in memory."""
        self._rows = rows
        self._epoch_ns = rows.info.epoch_ns
        self._lock = new_rlock()
        self._all: pd.DataFrame | None = None
        self._groups: dict[str, pd.Categorical[Any]] = {}
        self.names = tuple(map(str, empty_frame(rows.info.schema).columns))
        self.there = rows.rows
        self.end = max(delivered, self.there)
        self.kept = min(self.there, max(keep // _row_size(rows), 1))
        self.begin = self.end - self.kept

    @property
    def nbytes(self) -> int:
        return 0  # ``keep`` is about rows that come

    def frame(self) -> pd.DataFrame:
        # pandas 3 copies lazily, on the first write; before, a shallow copy would share our arrays for writing.
        return self._whole().copy(deep=PANDAS < (3, 0))

    def part(self, begin: int, end: int) -> pd.DataFrame:
        if self._all is None and self.end - begin <= _FEW:  # such as a card shows: all would take long
            rows: pd.DataFrame = self._read(self.end - begin).iloc[: max(end - begin, 0)]
        else:
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
        numbers = np.arange(self.there - self.kept, self.there)
        times = np.array([flush.time for flush in self._rows.flushes], np.int64)
        ends = np.maximum.accumulate(np.array([flush.written for flush in self._rows.flushes], np.int64))
        latest = np.iinfo(np.int64).max
        flushed = np.append(np.maximum.accumulate(times), latest)[np.searchsorted(ends, numbers, side="right")]
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
                self._all = self._read(self.kept)
            return self._all

    def _read(self, count: int) -> pd.DataFrame:
        """Return the newest rows, so many."""
        frame = frame_of(self._rows.info.schema, _taken(deque(self._rows.newest(count))))
        if len(frame) != count:
            raise ProgramError(f"rows of output {self._rows.info.name} cannot be read: its files are damaged")
        return frame

    def _category(self, by: str) -> pd.Categorical[Any]:
        with self._lock:
            if by not in self._groups:
                column: Any = self._whole()[by].array
                if not isinstance(column, pd.Categorical):
                    codes, values = pd.factorize(column)
                    column = pd.Categorical.from_codes(codes, pd.Index(values), validate=False)
                self._groups[by] = column
            return self._groups[by]


def _taken(batches: deque[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Return batches one by one, and keep none: they are large."""
    while batches:
        yield batches.popleft()


def _row_size(rows: RecordedRows) -> int:
    """Return about how many bytes a row takes in memory."""
    fixed = sum(_width(field.type) for field in rows.schema)
    if all(_width(field.type) for field in rows.schema):
        return fixed
    files = sum(part.size for part in rows.parts())
    return fixed + _PACKED * files // max(rows.rows, 1)


_FEW = 1 << 12  # rows
_PACKED = 4  # text takes up to so many times its bytes in a file
_OBJECT = 64  # bytes of a Python integer of 128 bits, with its place in an array


def _width(kind: pa.DataType) -> int:
    """Return the bytes of a value; 0 of text and bytes, which differ."""
    if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        return 0
    if pa.types.is_dictionary(kind):
        return 4
    return _OBJECT if pa.types.is_fixed_size_binary(kind) else max(kind.bit_width // 8, 1)


class RecordedOutput(Output):
    """An output of a recording. ``rows``: those that were delivered; ``dropped``: those of them that are not in ``df``,
    which has the newest that fit into ``keep``.

    ``rate``, ``hist``, ``top``, ``between``, SQL and the Arrow stream are of all rows in the recording.
    """

    def __init__(self, rows: RecordedRows, delivered: int, lost: int, keep: Keep, *, small: int = 1 << 20) -> None:
        """``small``: of so many rows that are all kept, ``df`` is made for any question."""
        info = rows.info
        super().__init__(info.name, info.schema, info.epoch_ns, keep, cast("OutputKind", info.kind))
        self.recorded = rows
        self._lost = lost
        self._small = small
        self._table = self.table_of_rows = RecordedTable(rows, delivered, keep.bytes)

    @property
    def unrecorded(self) -> int:
        """Rows that were delivered and are not in the recording."""
        return self.table_of_rows.end - self.table_of_rows.there

    def warn_of_drops(self, which: str, *, stacklevel: int) -> None:
        table = self.table_of_rows
        if missing := self.unrecorded:
            text = f"{missing:,} rows of {self.name} are not in the recording"
            warnings.warn(text, RuntimeWarning, stacklevel=stacklevel)
        if older := table.there - table.kept:
            text = (
                f"the oldest {older:,} rows of {self.name} are not in df: keep is {self._keep.bytes:,} bytes (keep= of "
                "bpfnb.open). sql, between, rate, hist and top read all of them"
            )
            warnings.warn(text, RuntimeWarning, stacklevel=stacklevel)

    def between(self, begin: object = None, end: object = None) -> pd.DataFrame:
        window = moment(begin), moment(end)
        require_times(empty_frame(self.schema), "between")
        batches: deque[pa.RecordBatch] = deque()
        most, count, dropped = max(self._keep.bytes // _row_size(self.recorded), 1), 0, 0
        for batch in self.recorded.batches(between=window):
            batches.append(batch)
            count += batch.num_rows
            while count > most and len(batches) > 1:
                oldest = batches.popleft().num_rows
                count, dropped = count - oldest, dropped + oldest
        frame = frame_of(self.schema, _taken(batches))
        frame.attrs.update(lost=self.lost, dropped=dropped)
        if dropped:
            text = f"the oldest {dropped:,} rows of this time are left out: keep is {self._keep.bytes:,} bytes"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        return with_escapes(frame)

    def asked(
        self,
        between: tuple[object, object] | None = None,
        convert: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
    ) -> Any:
        table = self.table_of_rows
        if table.there == table.kept <= self._small:
            return super().asked(between, convert)
        window = (None, None) if between is None else (moment(between[0]), moment(between[1]))
        empty = empty_frame(self.schema)
        if window != (None, None):
            require_times(empty, "between")
        if convert:
            return Large(Blocks(convert(empty), lambda columns: map(convert, self._blocks(None, window))))
        read = partial(self._blocks, window=window)
        if not sql.available():
            return Large(Blocks(empty, read))
        count = table.there if window == (None, None) else None
        return Large(SqlRows(empty, self.source(), where(window), Blocks(empty, read), count))

    def source(self) -> Any:
        """Return all rows as SQL's table: Parquet parts where they lie, the others as a stream."""
        files = [part for part in self.recorded.parts() if part.kind == "parquet" and part.file]
        others = [part for part in self.recorded.parts() if part not in files]
        rest = _Stream(self.recorded, others) if others or not files else None
        self.recorded.require_columns(files)
        return sql.Files([str(part.file) for part in files], self.recorded.schema.names, rest)

    def __arrow_c_stream__(self, requested_schema: object = None) -> Any:
        """Return all rows in the recording, batch by batch."""
        return _Stream(self.recorded, self.recorded.parts()).__arrow_c_stream__(requested_schema)

    def _blocks(self, columns: Sequence[str] | None, window: Between) -> Iterator[pd.DataFrame]:
        if columns is not None and not columns:  # rows are to be counted
            columns = self.names[:1]
        for batch in self.recorded.batches(columns=columns, between=window):
            yield frame_of(self.schema, [batch], columns)


class _Stream:
    """Some parts, as Arrow's stream, which can be read again and again."""

    def __init__(self, rows: RecordedRows, parts: Sequence[Part]) -> None:
        self._rows = rows
        self._parts = parts

    def __arrow_c_stream__(self, requested_schema: object = None) -> Any:
        batches = (batch for part in self._parts for batch in self._rows.batches(part))
        reader = pa.RecordBatchReader.from_batches(self._rows.schema, batches)
        return reader.__arrow_c_stream__(requested_schema)
