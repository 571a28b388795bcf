"""Tables: rows decoded into columns that grow, and DataFrames over them; rates of events.

Pure: no tracer, no kernel. A DataFrame that was handed out never changes.
"""

from __future__ import annotations

import time
import weakref
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb.errors import printable
from bpfnb.protocol.schema import PRINTK, PRINTK_LINES, PRINTK_ROW, Rows, Schema
from bpfnb.results.columns.base import Batch, ColumnBuffer
from bpfnb.results.columns.categories import CategoryColumn, EnumColumn, MissingColumn
from bpfnb.results.columns.kinds import column_buffer, shown
from bpfnb.results.columns.numeric import NumberColumn, TimeColumn
from bpfnb.results.columns.strings import StringColumn
from bpfnb.results.columns.text import PANDAS, text_dtype

__all__ = ["BATCH", "PrintkTable", "RateMeter", "Table", "rate", "text_dtype", "with_escapes"]

BATCH = 1 << 14  # rows decoded at a time: few enough for a processor's cache, which every column then reads them from

Ints = npt.NDArray[np.int64]


class Table:
    """The rows of an output, as columns.

    ``frame()`` has the schema's columns in their order, by kind (see schema.Column and the classes of ``columns``):

        number, bits   numpy's own dtype: uint32, int8, float64, bool ...
        enum           category of str: the constants' names in declared order, then numbers that are no constant's
        text           category of str, cut at the first NUL
        tail           str, cut at the first NUL; or ArrowDtype(large_binary), whose values are bytes
        bytes          ArrowDtype(large_binary), whose values are bytes
        wide           object: Python integers
        list           a column an element, "slots[0]" and on; of more than 1,024 elements as "bytes"

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
            raise ValueError(f"column {name!r} is no category: the frame has its values as they are")
        return pd.Series(column.raw(), name=name, copy=False)

    def since(self, row: int, by: str | None) -> tuple[Ints, pd.Categorical[Any] | None]:
        """Return times (nanoseconds since 1970) of the rows from ``row`` on, and their values in column ``by``.

        Rows without timestamps use the time they were decoded.
        """
        self._settle()
        start = min(max(row, self.begin), self.end) - self.begin
        times = self._arrivals.since(self.begin + start) if self._arrivals else self._clock().since(start)
        return times, None if by is None else self._columns[by].groups(start)

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
        columns: dict[str, ColumnBuffer] = {}
        members = list(shown(self._schema.columns))
        for clock in [column for column in members if column.name == self._schema.time]:
            columns["time"] = TimeColumn(clock, lambda: self._epoch_ns)
            if self._schema.clock:
                members.remove(clock)
        names = {member.name for member in members}
        for member in members:
            name = member.name
            while name in columns or (name != member.name and name in names):
                name += "_"
            columns[name] = column_buffer(member)
        return columns

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

    def _build(self) -> pd.DataFrame:
        return pd.DataFrame({name: column.values() for name, column in self._columns.items()}, copy=False)


class PrintkTable(Table):
    """The lines of bpf_trace_printk (schema.PRINTK).

    ``frame()`` has the columns: time (datetime64[ns, UTC]), comm (category: the task's name when it printed), pid
    (int32: the thread's number), cpu (int16), flags (category: as ftrace's irqs-off, need-resched, hard/softirq,
    preempt-depth letters; NA where lines come through a ring buffer), ts (float64: seconds since boot,
    CLOCK_MONOTONIC), msg (string: without the final newline, invalid UTF-8 replaced).
    """

    COLUMNS = ("time", "comm", "pid", "cpu", "flags", "ts", "msg")

    def __init__(self, epoch_ns: int, schema: Schema = PRINTK, *, batch: int = BATCH) -> None:
        super().__init__(schema, epoch_ns, batch=batch)

    def _plan(self) -> dict[str, ColumnBuffer]:
        columns = super()._plan()
        clock = next(column for column in PRINTK.columns if column.name == "mono_ns")
        columns["ts"] = NumberColumn(lambda rows: clock.values(rows) / 1e9, "<f8")
        columns["flags"] = EnumColumn(_state, "<u2", lambda state: latency_format(state >> 8, state & 0xFF))
        if self._schema == PRINTK_LINES:
            columns["flags"] = MissingColumn()
        columns["msg"] = StringColumn()
        return {name: columns[name] for name in self.COLUMNS}


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


class RateMeter:
    """Events per second over the last ``window`` seconds, kept up to date from what is new.

    ``source(row, by)`` is Output.since. ``update()``, then ``rates()``. ``total``: events seen so far. ``last``: the
    newest second with an event (seconds since 1970), or None.
    """

    def __init__(self, source: Callable[..., Any], by: str | None = None, window: int = 60) -> None:
        self._source = source
        self._by = by
        self._window = window
        self._row = 0
        self._counts: dict[str, dict[int, int]] = {}
        self.total = 0
        self.last: int | None = None

    def update(self) -> None:
        """Count what has arrived since the last call."""
        self._row, times, groups = self._source(self._row, self._by)
        if not len(times):
            return
        self.total += len(times)
        seconds = times // 1_000_000_000
        self.last = max(int(seconds.max()), self.last or 0)
        codes = np.zeros(len(times), np.int64) if groups is None else groups.codes.astype(np.int64)
        first, span = int(seconds.min()), int(np.ptp(seconds)) + 1
        cells, counts = np.unique(codes * span + (seconds - first), return_counts=True)
        for cell, count in zip(cells.tolist(), counts.tolist(), strict=True):
            code, second = divmod(cell, span)
            group = "" if groups is None else str(groups.categories[code]) if code >= 0 else "nan"
            of_group = self._counts.setdefault(group, {})
            of_group[first + second] = of_group.get(first + second, 0) + count

    def rates(self, now: float) -> pd.DataFrame:
        """Return the events in each of the last ``window`` whole seconds before ``now`` (seconds since 1970).

        int64, indexed by time (UTC); a column a group seen in that time ("" without ``by``).
        """
        last = int(now)
        seconds = range(last - self._window, last)
        for group, counts in list(self._counts.items()):
            for old in [second for second in counts if second < seconds[0]]:
                del counts[old]
            if not counts:
                del self._counts[group]
        index = pd.to_datetime(np.array(seconds), unit="s", utc=True)
        columns = {name: [counts.get(s, 0) for s in seconds] for name, counts in self._counts.items()}
        return pd.DataFrame(columns, index=index, dtype=np.int64)


def rate(frame: pd.DataFrame, every: str = "1s", by: str | Sequence[str] | None = None) -> pd.DataFrame:
    """Return events per second (float64) in intervals of ``every`` (a pandas offset, "100ms"), indexed by time.

    One column for each value of column ``by``, of several for each tuple, or the single column "rate". ValueError for
    an unknown column or interval, or when the frame has no times.
    """
    if not isinstance(frame.dtypes.get("time"), pd.DatetimeTZDtype):
        raise ValueError(
            "a rate needs times, and these events have none: the ring buffer they came through could not be stamped"
            " (its output's clock is None)"
        )
    names = [] if by is None else [by] if isinstance(by, str) else list(by)
    if missing := [name for name in names if name not in frame.columns]:
        raise ValueError(f"no column {missing[0]!r}: there are {', '.join(map(str, frame.columns))}")
    try:
        step = pd.Timedelta(every)
    except ValueError:
        raise ValueError(f"not an interval: {every!r}; write 1s, 100ms or 2min") from None
    if not step > pd.Timedelta(0):
        raise ValueError(f"an interval must be longer than nothing, not {every!r}")
    start = frame["time"].dt.floor(step)
    if not names:
        counts = start.value_counts(sort=False).sort_index().to_frame("rate")
    else:
        counts = frame.groupby([start, *names], observed=True).size().unstack(names, fill_value=0)
        # Plain: a categorical one takes no further columns.
        name = names[0] if len(names) == 1 else None
        counts.columns = pd.Index(list(counts.columns), name=name, tupleize_cols=False)
    if len(counts):
        counts = counts.reindex(pd.date_range(counts.index[0], counts.index[-1], freq=step, name="time"), fill_value=0)
    counts.index.name = "time"
    rates: pd.DataFrame = counts / step.total_seconds()
    return rates


def latency_format(flags: int, preempt: int) -> str:
    """Write an ftrace record's state as trace_pipe does: "d..2.".

    Kernel: trace_print_lat_fmt() in kernel/trace/trace_output.c, enum trace_flag_type in trace_events.h.
    """
    irqs_off, bh_off = flags & 0x01, flags & 0x80
    irqs = "D" if irqs_off and bh_off else "d" if irqs_off else "b" if bh_off else "."
    # 0x04 need-resched, 0x20 preempt-resched, 0x02 lazy since 6.14 (before: no irq state, on machines long gone)
    need = {0x26: "B", 0x24: "N", 0x22: "L", 0x06: "b", 0x04: "n", 0x02: "l", 0x20: "p"}.get(flags & 0x26, ".")
    nmi, hard, soft = flags & 0x40, flags & 0x08, flags & 0x10
    context = ("Z" if hard else "z") if nmi else "H" if hard and soft else "h" if hard else "s" if soft else "."
    depth = "".join(f"{n:x}" if n else "." for n in (preempt & 0xF, preempt >> 4))
    return irqs + need + context + depth


def _state(rows: Rows) -> npt.NDArray[Any]:
    """Return PRINTK's flags and preempt as one number."""
    flags, preempt = (rows[:, PRINTK_ROW.fields[name][1]] for name in ("flags", "preempt"))  # type: ignore[index]
    return flags.astype(np.uint16) << 8 | preempt


# --- shown --------------------------------------------------------------------------------------------------------


def with_escapes(frame: pd.DataFrame) -> pd.DataFrame:
    """Have a frame's to_html, to_string and repr show control characters and marks of direction as escapes. Return it.

    Names and messages come from other processes. The values stay as they are. Frames made of this one are plain ones,
    but in a notebook with the magics all are shown so.
    """
    for name in ("to_html", "to_string", "_repr_html_"):
        setattr(frame, name, partial(_escaped, weakref.ref(frame), getattr(type(frame), name)))
    return frame


def _escaped(frame: weakref.ref[pd.DataFrame], write: Callable[..., str | None], *args: Any, **options: Any) -> Any:
    text = write(frame(), *args, **options)
    return text if text is None else printable(text, keep="\n\t")
