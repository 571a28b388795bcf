"""Rows of a DataFrame on a timeline: slices and instants on tracks, counters, samples of stacks.

Which columns mean what is decided here, for Perfetto and Chrome alike.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from bpfnb.errors import ProgramError
from bpfnb.exports.arrow import to_arrow
from bpfnb.results.arguments import Names, names_of, require_columns
from bpfnb.results.printk import PrintkTable
from bpfnb.results.rates import interval

__all__ = ["Choice", "Event", "Timeline", "Track", "events"]

Ints = npt.NDArray[np.int64]

# What a slice or instant is called, unless told: the first of these whose columns are all there.
_NAMES = (
    ("t", "path"),
    ("t", "filename"),
    ("t", "disk"),
    ("path",),
    ("filename",),
    ("call",),
    ("syscall",),
    ("args",),
    ("host",),
    ("sig_signal",),
    ("sig",),
    ("oldstate",),  # what lasted
    ("reason",),
    ("daddr", "dport"),
    ("raddr", "rport"),
    ("name",),
    ("fn",),
    ("kind",),
    ("probe",),
    ("msg",),
)
_DURATIONS = ("latency", "lat", "duration", "total")  # what a slice lasted, where a frame has several durations
_MAX_INTERVALS = 1_000_000


@dataclass(frozen=True)
class Choice:
    """What a caller has said; None and (): as ``Timeline`` decides.

    ``name``      columns that name slices and instants
    ``duration``  the column of durations; "" for none: all are instants
    ``track``     columns that make tracks, instead of process and thread
    ``counters``  columns of numbers that become counters
    ``rate``      an interval: events per second become a counter
    """

    name: Names | None = None
    duration: str | None = None
    track: Names | None = None
    counters: Names = ()
    rate: str | None = None


class Track(NamedTuple):
    """Where something stands. ``pid`` and ``tid``: None where there is none; ``other``: a track that is neither's.
    ``lane``: 0, or the number of a further track beside, for what overlaps."""

    pid: int | None
    tid: int | None
    other: str = ""
    lane: int = 0


class Event(NamedTuple):
    """``begin`` and ``end``: nanoseconds since 1970; an instant's are the same, and ``instant`` is true. ``comm``: the
    name of the thread. ``counts``: a counter's values, which make no slice. ``stack``: "main;read", outermost first."""

    track: Track
    begin: int
    end: int
    instant: bool
    name: str
    comm: str
    args: list[tuple[str, Any]]
    stack: str | None = None
    counts: tuple[tuple[str, float | int], ...] = ()


class Timeline:
    """What the columns of a frame mean, as the first frame has them.

    Rows with ``start`` and ``end`` (``df.bpf.between``) are slices; so are rows with a duration, which ended at
    ``time``; all others are instants. They are on the track of column ``tid``'s thread in ``pid``'s process; without
    ``tid`` on the process's; on one named by the number where the process is not known, as of bpf_trace_printk's lines.
    A frame of numbers alone, beside its times, is counters.
    """

    def __init__(self, frame: pd.DataFrame, choice: Choice, title: str) -> None:
        self._title = title
        self.missing = 0  # rows without a time
        names = [str(name) for name in frame.columns]
        self._pairs = {"start", "end"} <= set(names) and all(frame[name].dtype.kind == "M" for name in ("start", "end"))
        if not self._pairs and ("time" not in names or frame["time"].dtype.kind != "M"):
            raise ProgramError(
                "a timeline wants times: columns start and end, or time"
                + (
                    ": stacks that are counted have none; to_pprof, which Perfetto opens too"
                    if "stack" in names
                    else ""
                )
            )
        self._duration = None if self._pairs else _duration(frame, choice.duration)
        counters, named = names_of(choice.counters), names_of(choice.name)
        self._tracked = names_of(choice.track)
        require_columns(frame, [*counters, *named, *self._tracked])
        times = {"start", "end"} if self._pairs else {"time"}
        if not counters and not self._pairs and self._duration is None and _only_numbers(frame, times):
            counters = [name for name in names if name not in times]
        for name in counters:
            if not pd.api.types.is_numeric_dtype(frame[name].dtype):
                raise ProgramError(f"column {name!r} is {frame[name].dtype}: a counter is of numbers")
        self._counters = counters
        self._named = named or next((list(some) for some in _NAMES if set(some) <= set(names)), [])
        lines = set(PrintkTable.COLUMNS) <= set(names)  # their pid is the thread's
        self._pid = "pid" if "pid" in names and not lines else None
        self._tid = "tid" if "tid" in names else "pid" if lines else None
        self._comm = "comm" if "comm" in names else None
        if not self._comm and "pcomm" in names:  # of tools about processes, the process's name
            self._comm, self._tid = "pcomm", None
        self._stack = "stack" if "stack" in names and not pd.api.types.is_numeric_dtype(frame["stack"].dtype) else None
        hidden = {*times, self._duration, self._pid, self._tid, self._stack, *counters}
        self._args = [name for name in names if name not in hidden]
        self._only_counts = bool(counters) and not choice.counters
        self._lanes: dict[Track, list[int]] = {}
        self._rate = _Rate(choice.rate) if choice.rate else None

    def read(self, frame: pd.DataFrame) -> Iterator[Event]:
        """Return a frame's events. Slices of one track and lane do not overlap, and come by time."""
        table = to_arrow(frame, {})
        begin, end, known, instant = self._times(table)
        self.missing += int(len(begin) - known.sum())
        if self._rate:
            self._rate.add(begin[known])
        columns = {name: _values(table.column(name)) for name in table.column_names}
        tracks = self._tracks(columns, len(begin))
        comms = columns[self._comm] if self._comm else [None] * len(begin)
        names = self._texts(columns, len(begin))
        for row in np.lexsort((end, begin)).tolist():
            if not known[row]:
                continue
            track, first, last = tracks[row], int(begin[row]), int(end[row])
            counts = tuple((name, columns[name][row]) for name in self._counters if columns[name][row] is not None)
            comm = str(comms[row] or "")
            if counts:
                yield Event(track._replace(tid=None), last, last, True, "", comm, [], None, counts)
            if self._only_counts:
                continue
            lane = 0 if instant[row] else self._lane(track, first, last)
            args = [(name, columns[name][row]) for name in self._args if columns[name][row] is not None]
            stack = columns[self._stack][row] if self._stack else None
            yield Event(track._replace(lane=lane), first, last, bool(instant[row]), names[row], comm, args, stack)

    def end(self) -> Iterator[Event]:
        """Return the events that are known once all rows are read: those of the rate."""
        if self._rate:
            for moment, value in self._rate.counts():
                counts = ((f"{self._title} events/s", value),)
                yield Event(Track(None, None), moment, moment, True, "", "", [], None, counts)

    def _times(self, table: pa.Table) -> tuple[Ints, Ints, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Return when each row began and ended, whether that is known, and whether it is an instant."""
        if self._pairs:
            begin, known = _nanoseconds(table.column("start"))
            end, ended = _nanoseconds(table.column("end"))
            return begin, end, known & ended & (begin <= end), np.zeros(len(begin), np.bool_)
        end, known = _nanoseconds(table.column("time"))
        if self._duration is None:
            return end, end, known, np.ones(len(end), np.bool_)
        length, lasted = _nanoseconds(table.column(self._duration))
        lasted &= length >= 0
        return np.where(lasted, end - length, end), end, known, ~lasted

    def _tracks(self, columns: dict[str, list[Any]], rows: int) -> list[Track]:
        if self._tracked:
            values = zip(*(columns[name] for name in self._tracked), strict=True)
            return [
                Track(None, None, ", ".join(f"{n} {v}" for n, v in zip(self._tracked, row, strict=True)))
                for row in values
            ]
        pids = columns[self._pid] if self._pid else [None] * rows
        tids = columns[self._tid] if self._tid else [None] * rows
        return [
            Track(None, None, f"thread {tid}") if pid is None and tid is not None
            else Track(pid, tid, "" if pid is not None else self._title)
            for pid, tid in zip(pids, tids, strict=True)
        ]  # fmt: skip

    def _texts(self, columns: dict[str, list[Any]], rows: int) -> list[str]:
        if not self._named:
            return [self._title] * rows
        values = zip(*(columns[name] for name in self._named), strict=True)
        return [" ".join(str(value) for value in row if value is not None) or self._title for row in values]

    def _lane(self, track: Track, begin: int, end: int) -> int:
        """Return the first lane of a track that is free: slices of one track must not overlap."""
        lanes = self._lanes.setdefault(track, [])
        for lane, until in enumerate(lanes):
            if until <= begin:
                lanes[lane] = end
                return lane
        lanes.append(end)
        return len(lanes) - 1


def events(frames: Iterable[pd.DataFrame], choice: Choice, title: str) -> Iterator[Event]:
    """Return the events of frames that all have the same columns."""
    timeline: Timeline | None = None
    for frame in frames:
        if any(name is not None for name in frame.index.names):
            frame = frame.reset_index()
        timeline = timeline or Timeline(frame, choice, title)
        yield from timeline.read(frame)
    if timeline:
        yield from timeline.end()
        if timeline.missing:
            warnings.warn(f"{timeline.missing:,} rows without a time are left out", RuntimeWarning, stacklevel=4)


@dataclass
class _Rate:
    every: str
    _counts: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._step = interval(self.every)

    def add(self, times: Ints) -> None:
        numbers, counts = np.unique(times // self._step.value, return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            self._counts[number] = self._counts.get(number, 0) + count
        if len(self._counts) > _MAX_INTERVALS:
            raise ProgramError(f"there are too many intervals of {self.every}: a longer rate= is needed")

    def counts(self) -> Iterator[tuple[int, float]]:
        """Return the beginnings of intervals, and events per second in them; 0 where none follow at once."""
        for number in sorted(self._counts):
            yield number * self._step.value, self._counts[number] / self._step.total_seconds()
            if number + 1 not in self._counts:
                yield (number + 1) * self._step.value, 0.0


def _duration(frame: pd.DataFrame, wanted: str | None) -> str | None:
    if wanted == "":
        return None
    if wanted is not None:
        require_columns(frame, [wanted])
        if frame[wanted].dtype.kind != "m":
            raise ProgramError(f"column {wanted!r} is {frame[wanted].dtype}, no duration (timedelta64)")
        return wanted
    found = [str(name) for name in frame.columns if frame[name].dtype.kind == "m"]
    if len(found) > 1 and not (preferred := [name for name in _DURATIONS if name in found]):
        raise ProgramError(f"several columns are durations: choose one, duration={' or '.join(map(repr, found))}")
    return preferred[0] if len(found) > 1 else found[0] if found else None


def _only_numbers(frame: pd.DataFrame, times: set[str]) -> bool:
    others = [name for name in frame.columns if name not in times]
    things = {"pid", "tid", "cpu", "uid", "ts"} & set(others)
    return bool(others) and not things and all(frame[name].dtype.kind in "iuf" for name in others)


def _nanoseconds(column: pa.ChunkedArray) -> tuple[Ints, npt.NDArray[np.bool_]]:
    numbers = column.cast(pa.int64())
    return numbers.fill_null(0).to_numpy().astype(np.int64), ~np.asarray(column.is_null())


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Return values for arguments: numbers, truth values and text; durations as nanoseconds, times as ISO text."""
    kind = column.type
    if pa.types.is_duration(kind):
        return list(column.cast(pa.int64()).to_pylist())
    if pa.types.is_timestamp(kind):
        return [None if value is None else value.isoformat() for value in column.to_pandas()]
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return [None if value is None else value.hex() for value in column.to_pylist()]
    return list(column.to_pylist())
