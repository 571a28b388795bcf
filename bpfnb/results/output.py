"""A session's outputs: segments mapped from the tracer, decoded once into columns, bounded by ``keep``.

The thread that talks to the tracer adds segments. Callers that want rows decode what is new, under the output's lock
and where no signal interrupts them.
"""

from __future__ import annotations

import math
import os
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from bpfnb.errors import ProgramError
from bpfnb.interrupts import new_rlock, uninterrupted
from bpfnb.protocol.schema import PRINTK, PRINTK_LINES, Schema
from bpfnb.protocol.segments import Layout, SegmentReader
from bpfnb.results.arguments import Names, moment, require_times
from bpfnb.results.buckets import HistKind
from bpfnb.results.events.rows import BUDGET, ROWS, RowsTable, require_limits
from bpfnb.results.printk import PrintkTable
from bpfnb.results.queries.tables import table_of
from bpfnb.results.table import BATCH, Table, with_escapes

__all__ = ["Arrivals", "Keep", "Kept", "Output", "Position", "default_keep"]

_MIN_KEEP, _MAX_KEEP = 256 << 20, 4 << 30


def default_keep() -> int:
    """Return how many bytes of rows a session keeps: an eighth of this machine's memory, between 256 MiB and 4 GiB."""
    if not hasattr(os, "sysconf"):
        return _MAX_KEEP  # Windows, where nothing is traced
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(max(memory // 8, _MIN_KEEP), _MAX_KEEP)


OutputKind = Literal["printk", "perf", "ringbuf"]


class Kept(Protocol):
    """What counts towards a session's ``keep``. Its members are used under the lock of ``Keep``."""

    @property
    def nbytes(self) -> int: ...

    def shrink(self, size: int) -> bool:
        """Drop the oldest so that at most ``size`` bytes remain. Return whether anything was dropped."""


class Keep:
    """The limit on the bytes that a session's outputs and snapshots of maps keep together; the largest drops its oldest
    first. ``lock``: one for all of them, since each may have to drop what is another's."""

    def __init__(self, size: int) -> None:
        self.bytes = size
        self.lock = new_rlock()
        self._outputs: weakref.WeakSet[Output] = weakref.WeakSet()
        self._snapshots: weakref.WeakSet[Kept] = weakref.WeakSet()

    def add(self, output: Output) -> None:
        with self.lock:
            self._outputs.add(output)

    def add_snapshots(self, snapshots: Kept) -> None:
        with self.lock:
            self._snapshots.add(snapshots)

    def enforce(self) -> None:
        """Drop the oldest of the largest until all are within the limit."""
        every: list[Kept] = [*self._outputs, *self._snapshots]
        while (taken := sum(kept.nbytes for kept in every)) > self.bytes:
            largest = max(every, key=lambda kept: kept.nbytes)
            others = taken - largest.nbytes
            if not largest.shrink(max(self.bytes - others, self.bytes // (2 * len(every)))):
                return  # a single row is more than the limit

    def enforce_undecoded(self) -> None:
        """Drop the oldest segments undecoded, in case nobody ever asks for a frame."""
        while sum(output.undecoded for output in self._outputs) > self.bytes:
            fullest_first = sorted(self._outputs, key=lambda output: -output.undecoded)
            if not any(output.drop_segment() for output in fullest_first):
                return


class Position(NamedTuple):
    """How far a reader has come in an output. ``row``: the number of its next row among those decoded. ``undecoded``:
    how many the output had dropped undecoded. ``dropped``: how many the reader has missed."""

    row: int = 0
    undecoded: int = 0
    dropped: int = 0


_NO_TIMES: npt.NDArray[np.int64] = np.empty(0, np.int64)


class Arrivals(NamedTuple):
    """Rows that a reader had not seen. ``position``: behind them. ``times``: nanoseconds since 1970; of rows without
    timestamps, when they were decoded. ``groups``: the values of a column. ``edition``: as long as it is the same
    object, a code in ``groups`` stands for the same value; None: codes are of these rows only."""

    position: Position
    times: npt.NDArray[np.int64]
    groups: pd.Categorical[Any] | None = None
    edition: object = None


class Output:
    """One output of a session. ``df`` has all rows kept, oldest first.

    ``kind``     "printk", "perf" or "ringbuf"
    ``owner``    returns the session it is of, while anybody has that
    ``clock``    what column ``time`` is: "submitted" (the kernel's own time of the line or event), "stamp" (when the
                 program reserved room for the event in a ring buffer), the name of the member that has the time, or
                 None, where there is no ``time``. With "submitted" and "stamp" rows are in the order of their times
    ``names``    the columns of ``df``
    ``schema``   where they lie in the tracer's rows; ``epoch_ns``: CLOCK_REALTIME minus CLOCK_MONOTONIC as it began
    ``rows``     rows delivered since the session began, dropped ones included
    ``lost``     events that could not be delivered
    ``dropped``  rows delivered and dropped again, so that the session's rows stay within ``keep`` bytes. Rows are
                 counted from the session's beginning, so row ``dropped`` is the oldest kept
    """

    def __init__(
        self,
        name: str,
        schema: Schema,
        epoch_ns: int,
        keep: Keep,
        kind: OutputKind = "printk",
        *,
        batch: int = BATCH,
    ) -> None:
        self.name = name
        self.kind = kind
        self.owner: Callable[[], Any] = lambda: None
        self._keep = keep
        self._lock = keep.lock
        self.schema = schema
        self.epoch_ns = epoch_ns
        self._segments: deque[SegmentReader] = deque()
        self._table = (
            PrintkTable(epoch_ns, schema, batch=batch)
            if schema in (PRINTK, PRINTK_LINES)
            else Table(schema, epoch_ns, batch=batch)
        )
        self._dropped_undecoded = 0
        self._missed = 0  # rows that came while this process took none
        self._lost = 0
        self._clock_ns = 0  # see Table.now
        self._loss_said = self._drop_said = self._miss_said = False
        self._notes: list[str] = []
        self._notes_said = 0
        keep.add(self)

    def __repr__(self) -> str:
        return self._line(self.rows)

    def __str__(self) -> str:
        """Return the line of ``repr``, and the newest rows."""
        return str(self._newest_table(10))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self) if cycle else str(self))

    def _repr_html_(self) -> str:
        return self._newest_table(10)._repr_html_()

    def table(self, rows: int = ROWS, budget: int = BUDGET) -> RowsTable:
        """Return the ``rows`` newest rows to look at, as ``df.bpf.table()`` shows them: sorted and searched on the
        page."""
        require_limits(rows, budget)
        return RowsTable(self.newest(rows), rows, budget, of=self.rows)

    def _newest_table(self, rows: int) -> RowsTable:
        of = self.rows  # once: the title and the last line have the same number
        return RowsTable(self.newest(rows), rows, title=self._line(of), sorts=False, of=of)

    def _line(self, rows: int) -> str:
        return f"<Output {self.name}: {rows:,} rows, {self.lost:,} lost>"

    def live(self, by: str | None = None, window: float = 60.0) -> Any:
        """Show the output's events per second, live: see Session.live. ProgramError where its session is gone."""
        session = self.owner()
        if session is None:
            raise ProgramError(f"the session of output {self.name} is gone: nothing comes any more")
        return session.live(by=by, output=self.name, window=window)

    @property
    def clock(self) -> str | None:
        return self.schema.clock or self.schema.time or None

    @property
    def names(self) -> tuple[str, ...]:
        return self._table.names

    @property
    @uninterrupted
    def rows(self) -> int:
        """Rows delivered since the session began, dropped ones included."""
        with self._lock:
            return self._dropped_undecoded + self._table.end + sum(s.unread for s in self._segments)

    @property
    @uninterrupted
    def lost(self) -> int:
        with self._lock:
            if self._segments:
                self._lost = max(self._lost, self._segments[-1].lost)
            return self._lost

    @property
    @uninterrupted
    def dropped(self) -> int:
        with self._lock:
            return self._dropped_undecoded + self._table.begin

    @property
    def nbytes(self) -> int:
        """The bytes that the decoded rows take."""
        return self._table.nbytes

    @property
    def undecoded(self) -> int:
        """The bytes that segments not yet decoded may take."""
        return sum(segment.size for segment in self._segments)

    @property
    def df(self) -> pd.DataFrame:
        """The rows kept, as a DataFrame that never changes afterwards.

        ``df.attrs["lost"]`` and ``df.attrs["dropped"]`` count what is not in it. A RuntimeWarning comes with the first
        frame that lacks lost events, with the first that lacks dropped rows, and with the first after the tracer noted
        something (such as another process reading a session's lines). Columns: see table.Table, and for
        bpf_trace_printk printk.PrintkTable.
        """
        frame = self._decoded()
        self.warn_of_loss(frame.attrs["lost"], stacklevel=4)
        if (missed := self._missed) and not self._miss_said:
            self._miss_said = True
            what = f"{missed:,} rows of {self.name} came while this process was too busy to take them"
            warnings.warn(f"{what}: the recording has them, df has not", RuntimeWarning, stacklevel=3)
        if frame.attrs["dropped"] > missed and not self._drop_said:
            self._drop_said = True
            self.warn_of_drops(f"the oldest {frame.attrs['dropped']:,} rows", stacklevel=4)
        return with_escapes(frame)

    def between(self, begin: object = None, end: object = None) -> pd.DataFrame:
        """Return the rows of ``df`` from one time to before another: see Session.between."""
        frame = self.df
        require_times(frame, "between")
        times = frame["time"].to_numpy("M8[ns]").view(np.int64)
        first, last = moment(begin), moment(end)
        chosen = np.ones(len(times), np.bool_)
        if first is not None:
            chosen &= times >= first
        if last is not None:
            chosen &= times < last
        rows: pd.DataFrame = frame[chosen].reset_index(drop=True)
        rows.attrs.update(frame.attrs)
        return with_escapes(rows)

    def rate(self, every: str = "1s", by: Names | None = None, *, top: int | None = None) -> pd.DataFrame:
        """Return events per second, as ``df.bpf.rate`` does: of a recording, of all its rows, also of those that ``df``
        has no room for."""
        found: pd.DataFrame = self.asked().rate(every, by, top=top)
        return found

    def hist(
        self,
        column: str,
        by: Names | None = None,
        kind: HistKind = "log2",
        bins: int | Sequence[float] | None = None,
        unit: str | None = None,
        *,
        top: int | None = None,
    ) -> pd.DataFrame:
        """Return how many values of a column lie in each bucket, as ``df.bpf.hist`` does; see ``rate``."""
        found: pd.DataFrame = self.asked().hist(column, by, kind, bins, unit, top=top)
        return found

    def top(self, by: Names, n: int = 10, value: str | None = None, agg: str | None = None) -> pd.DataFrame:
        """Return the largest groups, as ``df.bpf.top`` does; see ``rate``."""
        found: pd.DataFrame = self.asked().top(by, n, value, agg)
        return found

    def asked(
        self,
        between: tuple[object, object] | None = None,
        convert: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
    ) -> Any:
        """Return what has the methods ``rate``, ``hist`` and ``top`` of ``df.bpf``, of the rows of some time,
        ``convert``ed."""
        from bpfnb.results.accessor import EventsAccessor  # which is above us: rates reads outputs

        frame = self.df if between is None else self.between(*between)
        return EventsAccessor(convert(frame) if convert else frame)

    def source(self) -> Any:
        """Return the rows as SQL's table."""
        return self.arrow()

    def arrow(self) -> pa.Table:
        """Return the rows kept as a pyarrow.Table that shares memory with ``df``: see Session.arrow. Warns as ``df``
        does."""
        return table_of(self.df, nan_is_missing=False)

    def __arrow_c_stream__(self, requested_schema: object = None) -> Any:
        """Return ``arrow()`` as what Arrow's other libraries take: polars.DataFrame(output), and so on."""
        return self.arrow().__arrow_c_stream__(requested_schema)

    def warn_of_loss(self, lost: int, *, stacklevel: int) -> None:
        """Warn of what the tracer noted, and of lost events, if nobody has been warned of them."""
        notes, self._notes_said = self._notes[self._notes_said :], len(self._notes)
        for note in notes:
            warnings.warn(f"{self.name}: {note}", RuntimeWarning, stacklevel=stacklevel)
        if lost and not self._loss_said:
            self._loss_said = True
            why = "" if self._notes else ": they came faster than they could be taken"
            warnings.warn(f"{lost:,} events of {self.name} were lost{why}", RuntimeWarning, stacklevel=stacklevel)

    def warn_of_drops(self, which: str, *, stacklevel: int) -> None:
        limit = f"keep is {self._keep.bytes:,} bytes (set by --keep, or keep= of bpfnb.trace)"
        warnings.warn(f"{which} of {self.name} were dropped: {limit}", RuntimeWarning, stacklevel=stacklevel)

    @uninterrupted
    def _decoded(self) -> pd.DataFrame:
        with self._lock:
            self._decode()
            frame = self._table.frame()
            frame.attrs.update(lost=self.lost, dropped=self.dropped)
            return frame

    @uninterrupted
    def raw(self, column: str) -> pd.Series[Any]:
        """Return a category column of ``df`` before its values were given names, row for row: a category of ``bytes``,
        the char arrays as they are with all their NULs; or of the numbers of an enum's constants.

        KeyError for an unknown column, ValueError for one that ``df`` has as it is.
        """
        with self._lock:
            self._decode()
            return self._table.raw(column)

    @uninterrupted
    def since(self, position: Position, by: str | None) -> Arrivals:
        """Return the times of the rows that follow a position, and their values in column ``by``."""
        with self._lock:
            self._decode()
            if position.row == self._table.end:  # five times a second for each panel of a quiet session
                return Arrivals(self._after(position, position.row), _NO_TIMES)
            times, groups = self._table.since(position.row, by)
            return Arrivals(self._after(position, self._table.end), times, groups, self._table.edition(by))

    def now(self) -> int:
        """Return the present on the clock of the rows' times, in nanoseconds since 1970. That clock differs from the
        system's once somebody has set this, and is another host's where the rows are."""
        for segment in tuple(self._segments)[-1:]:
            self._clock_ns = segment.clock_ns
        return self._table.now(self._clock_ns)

    @uninterrupted
    def end(self) -> Position:
        """Return the position of a reader that begins with the next row."""
        with self._lock:
            self._decode()
            return Position(self._table.end, self._dropped_undecoded)

    @uninterrupted
    def read(self, position: Position, most: int | None = None) -> tuple[pd.DataFrame, Position]:
        """Return the rows that follow a position, at most so many, and the position after them.

        ``attrs["lost"]`` counts the events lost so far, ``attrs["dropped"]`` the rows dropped before this reader had
        them. Nobody is warned.
        """
        with self._lock:
            self._decode()
            begin = max(position.row, self._table.begin)
            end = self._table.end if most is None else min(begin + most, self._table.end)
            after = self._after(position, end)
            frame = self._table.part(begin, end)
            frame.attrs.update(lost=self.lost, dropped=after.dropped)
            return frame, after

    def _after(self, position: Position, end: int) -> Position:
        """Return the position at row ``end`` of a reader that was at ``position``."""
        missed = max(self._table.begin - position.row, 0) + self._dropped_undecoded - position.undecoded
        return Position(end, self._dropped_undecoded, position.dropped + missed)

    @uninterrupted
    def newest(self, rows: int) -> pd.DataFrame:
        """Return the newest rows, at most so many, oldest first. Nobody is warned."""
        with self._lock:
            self._decode()
            return self._table.part(max(self._table.end - rows, self._table.begin), self._table.end)

    def has_more(self, position: Position) -> bool:
        """Return whether there are rows behind a position. Takes no lock, and so costs little to ask often."""
        return self._table.end > position.row or any(segment.unread for segment in tuple(self._segments))

    def note(self, text: str) -> None:
        """Warn with the next ``df``."""
        self._notes.append(text)

    @uninterrupted
    def add_segment(self, layout: Layout, fd: int, epoch_ns: int | None = None, missed: int = 0) -> None:
        """Add a new segment, by its descriptor. The one before it is complete. ``epoch_ns``: for its rows' times.
        ``missed``: rows before it that only the session's recorder got; they count as dropped."""
        segment = SegmentReader(fd, self.schema, layout, epoch_ns)
        with self._lock:
            self._segments.append(segment)
            self._dropped_undecoded += missed
            self._missed += missed
            self._keep.enforce_undecoded()

    def shrink(self, size: int) -> bool:
        """Drop the oldest rows so that at most ``size`` bytes remain. Return whether any were dropped."""
        before = self._table.begin
        self._table.shrink(size)
        return self._table.begin > before

    def drop_segment(self) -> bool:
        """Drop the oldest segment undecoded, unless only two are left. Return whether that was done."""
        if len(self._segments) <= 2:
            return False
        self._dropped_undecoded += self._segments.popleft().unread
        return True

    @uninterrupted
    def finish(self, deadline: float = math.inf) -> None:
        """Decode everything and let go of the shared memory, at the session's end. What is not decoded by ``deadline``
        (of time.monotonic) stays until somebody asks for it."""
        with self._lock:
            while self._segments and time.monotonic() < deadline:
                self._lost = self.lost
                self._clock_ns = self._segments[-1].clock_ns
                self._decode(1)
                if not self._segments[0].unread:
                    self._segments.popleft()

    def _decode(self, most: int | None = None) -> None:
        """Decode what is new, in at most ``most`` segments. Complete segments that were read are closed."""
        unread = sum(segment.unread for segment in self._segments)
        if unread:
            self._table.reserve(unread)  # for all, though but some are read now
        for _ in range(min(len(self._segments), most or len(self._segments))):
            segment = self._segments[0]
            if segment.read(self._table.append):
                self._keep.enforce()
            if len(self._segments) > 1:
                self._lost = max(self._lost, segment.lost)
                self._segments.popleft()
