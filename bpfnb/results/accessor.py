"""``df.bpf``: methods for DataFrames of events: decoded columns, rates, latencies, histograms, top groups, timelines.

    calls.bpf.decode(ret="errno", flags="open")
    calls.bpf.rate("100ms", by="comm")
    calls.bpf.between("kind == 'entry'", "kind == 'exit'", by="tid").bpf.hist("latency")
    reads.bpf.top("comm", value="bytes")

Nothing here changes the frame it is asked about. ``views.events`` adds pictures, and registers both on every DataFrame.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb.errors import ProgramError, near_or_all
from bpfnb.results import rates
from bpfnb.results.arguments import (
    Names,
    fitting_mask,
    names_of,
    numbered,
    require_columns,
    require_once,
    require_times,
)
from bpfnb.results.buckets import HistKind, histogram
from bpfnb.results.decode import with_decoded
from bpfnb.results.distributions.bars import Bars
from bpfnb.results.events.heatmap import heatmap
from bpfnb.results.events.rows import BUDGET, ROWS, RowsTable
from bpfnb.results.events.timeline import timeline
from bpfnb.results.pairs import THREAD, Chosen, pair_up, thread_column
from bpfnb.results.queries.blocks import quantile_of, require_top
from bpfnb.results.table import with_bars

__all__ = ["EventsAccessor"]

Array: TypeAlias = npt.NDArray[Any]
Rows: TypeAlias = "str | Callable[[pd.DataFrame], Any] | pd.Series[Any] | Array | Sequence[bool]"


class EventsAccessor:
    """Decoded columns, rates, latencies, histograms and the largest groups of a DataFrame with one row an event."""

    _methods: tuple[str, ...] = (
        "decode", "rate", "between", "hist", "bars", "top", "heatmap", "timeline", "table",
    )  # fmt: skip

    def __init__(self, frame: pd.DataFrame) -> None:
        self._frame = frame

    def __repr__(self) -> str:
        lines = [f"df.bpf, for a DataFrame of {len(self._frame):,} events; help(df.bpf.between) tells all of one"]
        for name in self._methods:
            method = getattr(self, name)
            summary = (inspect.getdoc(method) or "").partition("\n")[0].replace("``", "")
            lines += [f"  .{name}({', '.join(inspect.signature(method).parameters)})", f"      {summary}"]
        return "\n".join(lines)

    def decode(self, columns: Mapping[str, str] | None = None, /, **kinds: str) -> pd.DataFrame:
        """The frame with numbers' meanings beside them: error numbers, flags, addresses and others, by name.

            opens.bpf.decode(ret="errno", flags="open")         # adds ret_errno: ENOENT; flags_open: O_RDWR|O_CREAT
            connects.bpf.decode(daddr="ip", dport="be16")       # adds daddr_ip: 10.0.0.1; dport_be16: 443
            frame.bpf.decode({"addr.v4": "ip"})                 # columns whose name is no identifier

        A decoded column is called ``<column>_<kind>`` and stands behind its column, which stays as it is. Text is a
        category; numbers are integers, durations timedelta64[ns]. Missing where there is no value: ``errno`` of what is
        no error. Numbers without a name stay numbers, as text. Names are those of this machine; of a recording's ``df``
        those of the machine it was recorded on (``attrs["machine"]``).

        Kinds: errno (what a call returned: negative numbers), error (error numbers of either sign), signal, syscall,
        open, prot, mmap, clone (flags), mode, dev, st_dev, wait, tcp_state, family, socktype, ip, mac, be16, be32,
        be64, capability, block, rwbs, task_state, raw_state, ioprio, duration. docs/reference.md says what each takes
        and shows.

        ValueError for an unknown column or kind, a column that the kind does not take, a value that cannot be one, and
        a decoded column that is there already.
        """
        named = dict(columns or {})
        require_once([*named, *kinds])
        if not (named := named | kinds):
            raise ProgramError('decode which column, and as what? decode(ret="errno")')
        return with_decoded(self._frame, named, self._frame.attrs.get("machine"))

    def rate(self, every: str = "1s", by: Names | None = None, *, top: int | None = None) -> pd.DataFrame:
        """Events per second in each interval of ``every``, with ``by`` a column for each value.

        float64, indexed by time (the intervals' beginnings, without gaps); without ``by`` the single column "rate", of
        several columns for each tuple. ``every`` is a pandas interval ("100ms"). With ``top`` the columns of the so
        many largest, the largest first, and then their others' sum, "other (12)". ValueError for an unknown column or
        interval.
        """
        require_columns(self._frame, ["time", *names_of(by)])
        return rates.rate(numbered(self._frame), every, by, top)

    def between(
        self,
        start: Rows | None = None,
        end: Rows | pd.DataFrame | None = None,
        by: Names | Mapping[str, str] | None = THREAD,
        *,
        time: str = "time",
        start_columns: Names = (),
        end_columns: Names = (),
    ) -> pd.DataFrame:
        """How long it took from one event to the other of the same key, one row a matched pair.

            calls.bpf.between("kind == 'entry'", "kind == 'exit'", by="tid")     # what each call took
            issues.bpf.between(end=completions, by=["dev", "sector"])            # two sessions' frames
            switches.bpf.between("prev_pid != 0", by={"prev_pid": "next_pid"})   # each task's times off the CPU
            opens.bpf.between(by="pid")                                          # each process's pauses between opens
            lines.bpf.between("msg == 'start'", "msg == 'end'")                  # printk lines, by thread

        ``start`` and ``end`` choose rows: a query as in ``df.query``, a mask, or a function of the frame that makes
        one; None is every row. ``end`` may be another DataFrame. ``by`` names the columns that make the key, as
        {in the starts: in the ends} where they differ; None makes all events one key. The key of a function's calls
        is the thread: the threads of a process would end each other's. So unless told, it is column "tid", and for
        the lines of bpf_trace_printk their "pid", which is the thread's number; with other frames ``by`` has to be
        given.

        An end is matched with the most recent start of its key, before or at it, and each event once. So a start
        followed by another start of its key stays unmatched: of recursive calls the innermost is measured. Where
        events were lost (``session.lost``) an end may be given a start that was not its own. Events of the same
        nanosecond happen in the order of their rows, those of two frames starts first. A row that is both a start and
        an end ends what came before it, then starts anew.

        Columns, ordered by start: the key's (named as in the starts), start, end (both as in column ``time``:
        datetime64[ns, UTC]), latency (timedelta64[ns], exact), ``start_columns`` of the start's row, ``end_columns``
        of the end's. ``attrs["unmatched_starts"]`` and ``attrs["unmatched_ends"]`` count the chosen rows in no pair,
        among them those without a key or a time.

        ``time`` may be a column of whole nanoseconds, as bpf_ktime_get_ns() gives them; start and end are then such
        numbers.

        ValueError for no ``by`` where it has to be given, an unknown column, a mask that does not fit, a ``time`` that
        is none, or a column that would be in the result twice; TypeError for a DataFrame as ``start``.
        """
        if isinstance(start, pd.DataFrame):
            raise TypeError("start chooses rows of this frame; another frame is the end: between(end=frame, ...)")
        if by is THREAD:
            by = thread_column([self._frame, end] if isinstance(end, pd.DataFrame) else [self._frame])
        keys = dict(by) if isinstance(by, Mapping) else {name: name for name in names_of(by)}
        of_start, of_end = names_of(start_columns), names_of(end_columns)
        starts = Chosen(self._frame, self._mask(start), keys.keys(), time, of_start)
        if isinstance(end, pd.DataFrame):
            ends = Chosen(end, np.ones(len(end), np.bool_), keys.values(), time, of_end)
            ranks = [np.zeros(len(starts.ns)), np.ones(len(ends.ns))]
        else:
            ends = Chosen(self._frame, self._mask(end), keys.values(), time, of_end)
            ranks = [2 * starts.positions + 1, 2 * ends.positions]
        if starts.clock != ends.clock:
            raise ProgramError(f"column {time!r} is {starts.clock} in the starts, {ends.clock} in the ends")

        return pair_up(starts, ends, ranks, keys, time, of_start, of_end)

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
        """How many values of a column lie in each bucket, in one column of counts or one a value of ``by``.

        Columns: low, high (float64: a bucket holds low <= value < high; infinite where it is open), label (text:
        "[2, 4)"), count (int64), or instead of count a column for each value of ``by``, of several for each tuple.
        A row for each bucket, lowest first, from the first that holds a value to the last. ``attrs["missing"]`` counts
        the rows left out, whose value is NaN, NaT or infinite, or whose ``by`` is missing; the counts add up to all the
        others.

        "log2" has the buckets of bpftrace's hist(): (..., 0) for all negative values, [0], [1], [2, 4), [4, 8) to
        [1K, 2K), where K is 1024, and on. Of floats below 1 they go on downwards, [0.25, 0.5), [0.125, 0.25), over 64
        powers of two at most; what is smaller is in the bucket from 0. "linear" has about ``bins`` buckets (20) of a
        round width: 1, 2 or 5 times a power of ten. Or ``bins`` gives the edges: their buckets are all there, and one
        below and one above them where values lie outside.

        ``unit`` ("ns", "us", "ms", "s") is what a number in the column counts: labels then read "[1.02us, 2.05us)".
        Of a timedelta column it is what is counted, with fractions: ns, unless told. ``bins``, low and high are in
        ``unit``, which ``attrs["unit"]`` names.

        With ``top`` there are columns for the so many largest values of ``by``, and one of the others' sum.

        ValueError for an unknown column, kind or unit, a column without numbers, or bins that make no buckets.
        """
        by = names_of(by)
        require_columns(self._frame, [column, *by])
        return with_bars(histogram(self._frame[column], numbered(self._frame[by]), kind, bins, unit, top))

    def bars(self) -> Bars:
        """The frame's buckets with bars, as bcc and bpftrace show them: of a frame made of what ``hist`` returned.

            calls.bpf.hist("latency")                           # is shown with bars already
            slow = calls.bpf.hist("latency").query("low >= 1000")
            print(slow.bpf.bars())

        A line a bucket: its label, its count and a bar of at most 40 characters; one histogram for each group, the
        largest eight. ValueError for a frame without low, high, label and counts.
        """
        return Bars(self._frame)

    def heatmap(
        self,
        column: str,
        every: str = "1s",
        kind: HistKind = "log2",
        bins: int | Sequence[float] | None = None,
        unit: str | None = None,
    ) -> pd.DataFrame:
        """A histogram of a column for each interval of ``every``, in long form.

        Columns: time (datetime64[ns, UTC]: an interval's beginning; there are no gaps), low, high, label, count (int64)
        of each bucket in each interval, by time and then from the lowest bucket to the highest; the same buckets in all
        of them, those of ``hist``. Rows without a time are left out, too.

        ValueError for what ``hist`` raises it for, and an ``every`` that is none or makes too many intervals.
        """
        require_columns(self._frame, ["time", column])
        require_times(self._frame, "a heat map")
        return heatmap(numbered(self._frame), column, every, kind, bins, unit)

    def timeline(
        self, by: Names = "pid", *, top: int = 20, gap: str | None = None, duration: str | None = None
    ) -> pd.DataFrame:
        """When each process, thread or CPU was active, one row an interval of each.

            switches.bpf.between(by={"prev_pid": "next_pid"}).bpf.timeline("prev_pid")   # who was off the CPU, when
            slow.bpf.timeline("pid")                                                     # of rows with a latency
            reads.bpf.timeline("cpu", gap="1ms")                                         # bursts of events

        A row of the frame lasts from ``start`` to ``end`` where it has these columns, as pairs do. Else it ends at
        ``time`` and lasted as long as the column ``duration`` says or, unless told, the only column of timedeltas;
        where there is none it is a moment. A group's rows that overlap, or follow one another within ``gap``, are one
        interval; unless told, ``gap`` is a thousandth of the time that the frame spans, "0s" joins what overlaps only.

        Columns: those of ``by`` with their dtypes, start, end (datetime64[ns, UTC]), events (int64: how many rows). By
        the values of ``by``, then by time. Only the ``top`` values with most rows; ``attrs["left_out"]`` counts the
        others, ``attrs["missing"]`` the rows without a value or a time.

        ValueError for an unknown column, one without durations, no times, a ``gap`` that is none, a ``top`` below 1.
        """
        names = names_of(by)
        require_columns(self._frame, names)
        if not names:
            raise ProgramError('a timeline of what? by="pid"')
        require_once([*names, "start", "end", "events"])
        return timeline(numbered(self._frame), names, top, gap, duration)

    def top(self, by: Names, n: int = 10, value: str | None = None, agg: str | None = None) -> pd.DataFrame:
        """The ``n`` groups of most events or, with ``value``, of the largest sum, mean, maximum, quantile of a column.

        Columns, largest first: those of ``by`` with their dtypes, then without ``value`` count (int64) and share
        (float64: of all the frame's events, 0 to 1); with it a column named as ``agg`` is: "sum" (unless told),
        "mean", "max", "median" or a percentile, "p99" or "p99.9", in the units of ``value``. Between two values these
        last are interpolated, as in pandas. Equals are in the order they first appear in; rows without a value in
        ``by`` make no group.

        ValueError for an unknown column or ``agg``, no columns at all, an ``n`` below 1, or a ``value`` that cannot be
        aggregated so.
        """
        names = names_of(by)
        require_columns(self._frame, names if value is None else [*names, value])
        agg = agg or ("count" if value is None else "sum")
        require_top(self._frame, names, agg, value, n)
        quantile = quantile_of(agg)

        groups = numbered(self._frame).groupby(names, observed=True, sort=False)
        if value is None:
            sizes = groups.size()
        else:
            sizes = groups[value].agg(agg) if quantile is None else groups[value].quantile(quantile)
        largest = sizes.sort_values(ascending=False, kind="stable").head(n).reset_index(name=agg)
        if value is None:
            largest["share"] = largest["count"] / max(len(self._frame), 1)
        return largest

    def table(self, rows: int = ROWS, budget: int = BUDGET) -> RowsTable:
        """The frame to look at: sorted by a click on a heading, and searched, on the page, without network or kernel.

        Shown are the ``rows`` newest, the newest first; of a frame without ``time`` the first. They are kept in the
        notebook's file, in ``budget`` bytes at most: where that is too little there are fewer, and the table says so.
        Times are in UTC and as short as tells them apart, durations in the unit that suits them. A notebook that is not
        trusted, and GitHub, show the first 20 of them.

        ValueError for numbers below 1.
        """
        return RowsTable(self._frame, rows, budget)

    def _mask(self, rows: Rows | None) -> npt.NDArray[np.bool_]:
        """Return which rows are chosen. Public methods call it directly: a query's @names are two frames up."""
        if rows is None:
            return np.ones(len(self._frame), np.bool_)
        mask: Any = rows
        if isinstance(rows, str):
            try:
                mask = self._frame.eval(rows, level=2)
            except pd.errors.UndefinedVariableError as error:
                name = str(error).split("'")[1]
                raise ProgramError(f"{rows!r}: {error}{near_or_all(name, self._frame.columns)}") from None
        elif callable(rows):
            mask = rows(self._frame)
        return fitting_mask(mask, self._frame, repr(rows) if isinstance(rows, str) else "a choice of rows")
