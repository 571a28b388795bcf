"""Events per second: kept up to date for a panel, or of a DataFrame."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb.errors import ProgramError
from bpfnb.results.arguments import require_times
from bpfnb.results.events.groups import largest
from bpfnb.results.output import Arrivals, Position

__all__ = ["KEPT", "MAX_WINDOW", "MIN_WINDOW", "Life", "RateMeter", "interval", "intervals", "rate", "step_of"]

Ints = npt.NDArray[np.int64]
Codes = npt.NDArray[Any]

MIN_WINDOW, MAX_WINDOW = 10.0, 3600.0  # seconds
KEPT = 3600  # intervals
_STEPS = ((15.0, 0.2), (45.0, 0.5), (300.0, 1.0), (1200.0, 2.0))  # up to which window, seconds of an interval
_LONGEST_STEP = 5.0
_LATE_NS = 150_000_000  # rows are delivered within 50 ms, and a busy machine takes longer
_MIN_PART = 0.25  # of an interval: one that was traced for less says nothing
_BATCH = 1 << 17  # rows counted at a time
_MAX_CELLS = 1 << 20
_MAX_VALUES = 1 << 16
_MAX_NAME = 256  # characters
_MAX_INTERVALS = 10_000_000  # of a frame


class Life(NamedTuple):
    """Since when events are counted, and until when, on the clock of their times: nanoseconds since 1970. ``began`` is
    0 where nobody knows. ``now``: the present, or when it ended."""

    began: int
    now: int
    ended: bool


def step_of(window: float) -> float:
    """Return how long the intervals are, in seconds, that a window of so many seconds is divided into."""
    return next((step for most, step in _STEPS if window <= most), _LONGEST_STEP)


class RateMeter:
    """Events in each interval of an output, and in those of each value of column ``by``, counted from what is new.

    ``source(position, by)`` is Output.since. An interval has a number: it begins ``number * step`` seconds after 1970.
    ``first`` is the oldest known; ``until`` the one after the newest that is over, or after the last of an output that
    has ended. The last KEPT intervals are kept. ``update()`` first.

    ``total``    events seen so far
    ``outside``  of those, how many have a time that lies in the future, or before what is kept
    ``changed``  the oldest interval whose count has changed since ``changed`` was set to None
    ``rounded``  whether values that were rare were forgotten (there were more than 65,536): their events are counted in
                 none of the values since, but in the sums
    """

    def __init__(
        self,
        source: Callable[[Position, str | None], Arrivals],
        by: str | None = None,
        window: float = 60.0,
        *,
        life: Callable[[], Life] = lambda: Life(0, time.time_ns(), False),
        most: int = _MAX_CELLS,
    ) -> None:
        """``most``: how many counts of values are kept."""
        self._source = source
        self._life = life
        self.by = by
        self.window = window
        self.step = step_of(window)
        self._step_ns = round(self.step * 1e9)
        self._position = Position()
        self._counts = _Ring()
        self._values = _Values(most) if by is not None else None
        self._gaps: list[tuple[int, int]] = []
        self._newest_ns: int | None = None
        self._began = 0  # as when it was read first: two clocks are never read at the same time
        self._begun = False
        self.life = life()
        self.first: int | None = None
        self.until = 0
        self.total = self.outside = 0
        self.changed: int | None = None

    @property
    def length(self) -> int:
        """Return how many intervals the window has."""
        return round(self.window / self.step)

    @property
    def rounded(self) -> bool:
        return self._values is not None and self._values.rounded

    def update(self) -> None:
        """Count what has arrived since the last call."""
        life = self._life()  # before the rows are read: all of an interval that is over by now are among them
        new = self._source(self._position, self.by)
        self._counts.advance(life.now // self._step_ns)
        self._began = self._began or life.began
        if len(new.times) and not self._begun:
            self._begun, self._began = True, self._beginning(new, self._began)
        self.life = life._replace(began=self._began)
        if len(new.times):
            self._note_gap(new)
        self.total += new.position.row + new.position.undecoded - self._position.row - self._position.undecoded
        self._position = new.position
        for start in range(0, len(new.times), _BATCH):
            self._count(new, start, start + _BATCH)
            if self._values:
                self._values.tidy(self._counts.oldest, self._counts.until - self.length, 0)
        self._finish()

    def _beginning(self, new: Arrivals, began: int) -> int:
        """Return since when counts are complete: since the session began, or since the oldest row that is kept."""
        kept = new.times[new.times >= self._counts.oldest * self._step_ns]
        oldest = int(kept.min()) if len(kept) else began
        return oldest if new.position.dropped or not began else min(oldest, began)

    def _note_gap(self, new: Arrivals) -> None:
        """Remember which intervals lack rows that were dropped before they were counted."""
        if new.position.dropped > self._position.dropped and self._newest_ns is not None:
            begin, end = self._newest_ns // self._step_ns, int(new.times[0]) // self._step_ns
            self._gaps = [*self._gaps[-99:], (begin, max(begin, end) + 1)]
            self._touch(begin)
        self._newest_ns = int(new.times[-1])

    def _count(self, new: Arrivals, start: int, stop: int) -> None:
        times = new.times[start:stop]
        codes = None if new.groups is None else new.groups.codes[start:stop]
        latest = (self.life.now + 2_000_000_000) // self._step_ns + 1
        for number, part in self._parts(times):
            count = len(times[part])
            if number > latest or not self._counts.add(number, count):
                self.outside += count
                continue
            self.first = number if self.first is None else min(number, self.first)
            self._touch(number)
            if codes is not None and self._values is not None and new.groups is not None:
                self._values.add(number, codes[part], new.groups.categories, new.edition or new.groups)

    def _parts(self, times: Ints) -> Iterator[tuple[int, Any]]:
        """Return the numbers of the intervals, and which of these times lie in each."""
        if np.any(times[1:] < times[:-1]):
            numbers = times // self._step_ns
            order = np.argsort(numbers, kind="stable")
            numbers = numbers[order]
            bounds = [0, *(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1).tolist(), len(numbers)]
            for begin, end in pairwise(bounds):
                yield int(numbers[begin]), order[begin:end]
            return
        begin = 0
        while begin < len(times):
            number = int(times[begin]) // self._step_ns
            end = int(np.searchsorted(times, (number + 1) * self._step_ns))
            yield number, slice(begin, end)
            begin = end

    def _touch(self, number: int) -> None:
        self.changed = number if self.changed is None else min(self.changed, number)

    def _finish(self) -> None:
        """Find out which intervals are over, or after an end which is the last."""
        life = self.life
        if life.ended:
            until = max(-(-life.now // self._step_ns), self._counts.until)
        else:
            until = (life.now - _LATE_NS) // self._step_ns
        if life.began:
            began = life.began // self._step_ns
            self.first = began if self.first is None else min(began, self.first)
        self.until = max(self.until, until)
        self._counts.advance(self.until)
        if self._values:
            self._values.tidy(self._counts.oldest, self.until - self.length, self.until)

    # --- what is known ---

    @property
    def oldest(self) -> int:
        """Return the oldest interval that is known and kept; ``until`` where there is none."""
        return self.until if self.first is None else min(max(self.first, self._counts.oldest), self.until)

    @property
    def gaps(self) -> list[tuple[int, int]]:
        """Return from which interval to before which the counts are too small: rows were dropped uncounted."""
        return [gap for gap in self._gaps if gap[1] > self.oldest]

    def parts(self) -> dict[int, float]:
        """Return the intervals that were traced for a part of their time, and for how many seconds: the first, and the
        last of an output that has ended. 0: for too short a time to say a rate."""
        life, step = self.life, self._step_ns
        ends = [life.began // step] if life.began else []
        ends += [life.now // step] if life.ended else []
        found: dict[int, float] = {}
        for number in ends:
            begin = max(number * step, life.began)
            end = min((number + 1) * step, life.now) if life.ended else (number + 1) * step
            share = (end - begin) / step
            alone = life.ended and self.until - self.oldest <= 2
            if share < 1:
                found[number] = max(share, 0.001) * self.step if share >= _MIN_PART or alone else 0.0
        return found

    def counts(self, first: int, until: int) -> Ints:
        """Return the events in each interval from ``first`` to before ``until``."""
        return self._counts.get(first, until)

    def top(self, most: int, first: int | None = None, until: int | None = None) -> dict[str, int]:
        """Return the most frequent values of ``by`` from interval ``first`` to before ``until``, and their counts, the
        greatest first. By default those of the window before ``self.until``."""
        if self._values is None:
            return {}
        until = self.until if until is None else until
        return self._values.top(most, until - self.length if first is None else first, until)

    def counts_of(self, names: Sequence[str], first: int, until: int) -> Ints:
        """Return the events of these values in each interval from ``first`` to before ``until``, a row a value."""
        if self._values is None:
            return np.zeros((len(names), max(until - first, 0)), np.int64)
        return self._values.get(names, first, until)

    def seconds(self, first: int, until: int) -> npt.NDArray[np.float64]:
        """Return for how long each interval was traced, in seconds; nan where that is too short, or not known."""
        lengths = np.full(until - first, self.step)
        for number, length in self.parts().items():
            if first <= number < until:
                lengths[number - first] = length or np.nan
        for begin, end in [(first, self.oldest), (self.until, until), *self.gaps]:
            lengths[max(begin - first, 0) : max(end - first, 0)] = np.nan
        return lengths

    def rates(self, top: int = 10) -> pd.DataFrame:
        """Return events per second (float64) in each interval of the window, indexed by time (UTC).

        One column "rate", or with ``by`` one for each of the ``top`` most frequent values, and "other" where there are
        more. nan where an interval was not traced, or for too short a time.
        """
        until = self.until
        first = max(until - self.length, 0)
        counts, columns = self.counts(first, until)[None], ["rate"]
        if self.by is not None:
            columns = list(self.top(top))
            shown = self.counts_of(columns, first, until)
            rest = counts - shown.sum(axis=0)
            counts = np.concatenate([shown, rest]) if rest.any() else shown
            columns = [*columns, "other"] if rest.any() else columns
        index = pd.DatetimeIndex(pd.to_datetime(np.arange(first, until) * self._step_ns, utc=True), name="time")
        return pd.DataFrame((counts / self.seconds(first, until)).T, columns=columns, index=index)


class _Ring:
    """Counts of the last intervals. ``until``: the one after the newest; ``oldest``: the oldest there is room for."""

    def __init__(self) -> None:
        self._counts = np.zeros(KEPT, np.int64)
        self.until = 0

    @property
    def oldest(self) -> int:
        return max(self.until - KEPT, 0)

    def advance(self, until: int) -> None:
        if until > self.until:
            self._counts[np.arange(max(self.until, until - KEPT), until) % KEPT] = 0
            self.until = until

    def add(self, number: int, count: int) -> bool:
        """Add to an interval's count. Return whether there is room for it."""
        self.advance(number + 1)
        if number < self.oldest:
            return False
        self._counts[number % KEPT] += count
        return True

    def get(self, first: int, until: int) -> Ints:
        """Return the counts from ``first`` to before ``until``; 0 for those not kept."""
        numbers = np.arange(first, max(first, until))
        return np.where((numbers >= self.oldest) & (numbers < self.until), self._counts[numbers % KEPT], 0)


class _Values:
    """Counts of values in intervals: of those alone that are not 0. Values have numbers, given as they are seen."""

    def __init__(self, most: int) -> None:
        self._most = most  # counts
        self._counts: dict[int, list[tuple[Codes, Ints]]] = {}  # interval -> values' numbers and counts, in pieces
        self._size = 0
        self._names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._edition: object = None
        self._known = np.empty(0, np.int32)  # a category's code + 1 -> the value's number; -1: not seen yet
        self._joined = 0  # intervals before this one are in one piece each
        self._window: tuple[int, int] | None = None  # the intervals that are in _sums
        self._sums = np.empty(0, np.int64)
        self.rounded = False

    def add(self, interval: int, codes: Codes, categories: pd.Index, edition: object) -> None:
        """Count the values of rows of an interval: codes of categories, -1 for none. Codes of one ``edition`` mean the
        same value."""
        if edition is not self._edition:
            self._edition, self._known = edition, np.full(len(categories) + 1, -1, np.int32)
        elif len(self._known) <= len(categories):
            room = np.full(max(len(categories) + 1, len(self._known) * 2), -1, np.int32)
            room[: len(self._known)] = self._known
            self._known = room
        used, counts = _distinct(codes)
        new = used[self._known[used] < 0]
        if len(new):
            self._known[new] = [self._number(name) for name in _names(categories, new - 1)]
        pieces = self._counts.setdefault(interval, [])
        pieces.append((self._known[used], counts))
        self._size += len(used)
        if self._window and self._window[0] <= interval < self._window[1]:
            self._window = None
        if len(pieces) > 8 or interval < self._joined:
            self._join(interval)

    def top(self, most: int, first: int, until: int) -> dict[str, int]:
        """Return the most frequent values; of those that are as frequent the ones that were seen first."""
        sums = self._summed(first, until)
        seen = np.flatnonzero(sums)
        if len(seen) > most:
            least = np.partition(sums[seen], len(seen) - most)[len(seen) - most]
            more, as_many = seen[sums[seen] > least], seen[sums[seen] == least]
            seen = np.concatenate([more, as_many[: most - len(more)]])
        return {self._names[n]: int(sums[n]) for n in seen[np.argsort(-sums[seen], kind="stable")].tolist()}

    def get(self, names: Sequence[str], first: int, until: int) -> Ints:
        counts = np.zeros((len(names) + 1, max(until - first, 0)), np.int64)
        row = np.full(len(self._names), len(names), np.int32)  # the last row: all others
        for place, name in enumerate(names):
            if name in self._numbers:
                row[self._numbers[name]] = place
        for interval in self._between(first, until):
            for numbers, pieces in self._counts[interval]:
                rows = row[numbers]
                ours = rows < len(names)
                counts[rows[ours], interval - first] += pieces[ours]
        return counts[:-1]

    def tidy(self, oldest: int, needed: int, until: int) -> None:
        """Forget what is older than ``oldest``; if there is too much, also what is older than ``needed``, then the
        rarest values. Intervals before ``until`` are over."""
        for interval in range(max(self._joined, oldest), until):
            if interval in self._counts:
                self._join(interval)
        self._joined = max(until, self._joined)
        self._cut(oldest)
        if self._size > self._most:
            self._cut(needed)
        if self._size > self._most or len(self._names) > _MAX_VALUES:
            self._drop_rare()

    def _cut(self, oldest: int) -> None:
        if self._window and self._window[0] < oldest:
            self._window = None
        for interval in [interval for interval in self._counts if interval < oldest]:
            self._size -= sum(len(numbers) for numbers, _ in self._counts.pop(interval))

    def _drop_rare(self) -> None:
        """Keep the most frequent values, so that half of the room is free. Values without a count go first."""
        pieces = [piece for each in self._counts.values() for piece in each]
        numbers = np.concatenate([np.empty(0, np.int32), *(numbers for numbers, _ in pieces)])
        cells = np.bincount(numbers, minlength=len(self._names))
        sums = self._summed(min(self._counts, default=0), max(self._counts, default=0) + 1)
        self._window = None
        order = np.argsort(-sums, kind="stable")[: _MAX_VALUES // 2]
        order = order[np.cumsum(cells[order]) <= self._most // 2]
        order = order[sums[order] > 0]
        self.rounded = self.rounded or len(order) < int(np.count_nonzero(sums))
        moved = np.full(len(self._names), -1, np.int32)
        moved[order] = np.arange(len(order))
        self._names = [self._names[number] for number in order.tolist()]
        self._numbers = {name: number for number, name in enumerate(self._names)}
        self._known = np.where(self._known >= 0, moved[self._known], -1).astype(np.int32)
        self._size = 0
        for interval, each in self._counts.items():
            kept = [(moved[numbers], counts, moved[numbers] >= 0) for numbers, counts in each]
            self._counts[interval] = [(numbers[some], counts[some]) for numbers, counts, some in kept]
            self._size += sum(len(numbers) for numbers, _ in self._counts[interval])

    def _summed(self, first: int, until: int) -> Ints:
        """Return each value's count from ``first`` to before ``until``. As time goes on, only what differs from the
        last call is added and subtracted."""
        if self._window is None or not self._window[0] <= first <= self._window[1] <= until:
            self._window, self._sums = (first, first), np.zeros(len(self._names), np.int64)
        elif len(self._sums) < len(self._names):
            self._sums = np.concatenate([self._sums, np.zeros(len(self._names), np.int64)])[: len(self._names)]
        begin, end = self._window
        for sign, intervals in ((-1, range(begin, first)), (1, range(end, until))):
            for interval in intervals:
                for numbers, counts in self._counts.get(interval, ()):
                    self._sums[numbers] += sign * counts  # a value is once in a piece
        self._window = first, until
        return self._sums

    def _between(self, first: int, until: int) -> list[int]:
        return [interval for interval in self._counts if first <= interval < until]

    def _join(self, interval: int) -> None:
        """Make one piece of an interval's."""
        pieces = self._counts[interval]
        if len(pieces) > 1:
            sums = np.zeros(len(self._names), np.int64)
            for numbers, counts in pieces:
                sums[numbers] += counts
            numbers = np.flatnonzero(sums).astype(np.int32)
            self._size += len(numbers) - sum(len(numbers) for numbers, _ in pieces)
            self._counts[interval] = [(numbers, sums[numbers])]

    def _number(self, name: str) -> int:
        number = self._numbers.setdefault(name, len(self._names))
        if number == len(self._names):
            self._names.append(name)
        return number


def _distinct(codes: Codes) -> tuple[Codes, Ints]:
    """Return the distinct codes + 1 (0: no value), and how often each occurs."""
    if int(codes.max(initial=-1)) > 4 * len(codes) + 1000:
        used, counts = np.unique(codes, return_counts=True)
        return used.astype(np.int64) + 1, counts
    counts = np.bincount(codes + 1)
    used = np.flatnonzero(counts)
    return used, counts[used]


def _names(categories: pd.Index, codes: Ints) -> list[str]:
    """Return the names of values. Only these are decoded."""
    names = iter(categories.take(codes[codes >= 0]).tolist())
    return ["nan" if code < 0 else _short(str(next(names))) for code in codes.tolist()]


def _short(name: str) -> str:
    """Cut a long name. Two that begin alike stay two."""
    if len(name) <= _MAX_NAME:
        return name
    return f"{name[: _MAX_NAME - 20]}... #{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:12]}"


def rate(
    frame: pd.DataFrame,
    every: str = "1s",
    by: str | Sequence[str] | None = None,
    top: int | None = None,
    counts: Ints | None = None,
) -> pd.DataFrame:
    """Return events per second (float64) in intervals of ``every`` (a pandas offset, "100ms"), indexed by time.

    One column for each value of column ``by``, of several for each tuple, or the single column "rate". With ``top`` the
    largest so many, the largest first, and then the sum of the others. ValueError for an unknown column or interval, an
    interval so short that there are too many, or when the frame has no times. The frame has its rows numbered where
    ``top`` is given. ``counts``: how many events each row stands for.
    """
    require_times(frame, "a rate")
    names = [] if by is None else [by] if isinstance(by, str) else list(by)
    if missing := [name for name in names if name not in frame.columns]:
        raise ProgramError(f"no column {missing[0]!r}: there are {', '.join(map(str, frame.columns))}")
    step = interval(every)
    start = frame["time"].dt.floor(step)
    if not names:
        events = _events_of([start], counts).to_frame("rate")
    elif top is not None:
        events = _of_largest(start, frame[names], top, counts)
    else:
        events = _events_of([start, *(frame[name] for name in names)], counts).unstack(names, fill_value=0)
        # Plain: a categorical one takes no further columns.
        name = names[0] if len(names) == 1 else None
        events.columns = pd.Index(list(events.columns), name=name, tupleize_cols=False)
    if len(events):
        events = events.reindex(intervals(pd.DatetimeIndex(events.index), step), fill_value=0)
    events.index.name = "time"
    rates: pd.DataFrame = events / step.total_seconds()
    return rates


def _events_of(keys: Sequence[pd.Series[Any]], counts: Ints | None) -> pd.Series[Any]:
    """Return how many events each combination of keys has."""
    each = pd.Series(1 if counts is None else counts, index=keys[0].index, dtype=np.int64)
    total: pd.Series[Any] = each.groupby(list(keys), observed=True).sum()
    return total


def _of_largest(start: pd.Series[Any], by: pd.DataFrame, top: int, each: Ints | None) -> pd.DataFrame:
    """Count the events in each interval that has any, of the largest groups and of the others together."""
    groups, names = largest(by, top, each)
    at, times = pd.factorize(start, sort=True)
    known = (groups >= 0) & (at >= 0)
    weights = None if each is None else each[known]
    cells = np.bincount(at[known] * len(names) + groups[known], weights, len(times) * len(names))
    # Plain: tuples are names here, not levels.
    columns = pd.Index(names, dtype=object, tupleize_cols=False, name=by.columns[0] if len(by.columns) == 1 else None)
    counts = pd.DataFrame(cells.reshape(len(times), len(names)), index=pd.DatetimeIndex(times), columns=columns)
    return counts[counts.any(axis=1)] if len(names) else counts.iloc[:0]


def intervals(starts: pd.DatetimeIndex, step: pd.Timedelta) -> pd.DatetimeIndex:
    """Return all intervals from the first of ``starts`` to the last, without gaps. ValueError for too many."""
    first, last = starts.min(), starts.max()
    # Not last - first: pandas has no span of more than 292 years, and times made of garbage may be further apart.
    span = last.as_unit("ns").value - first.as_unit("ns").value
    if span // step.as_unit("ns").value >= _MAX_INTERVALS:
        days = f"{span // 86_400_000_000_000:,} days" if span >= 86_400_000_000_000 else last - first
        raise ProgramError(f"these events span {days}: there are too many intervals of {step.total_seconds():g} s")
    return pd.date_range(first, last, freq=step, name="time")


def interval(text: str, at_least: str = "") -> pd.Timedelta:
    """Return an interval written as a pandas offset, "100ms". ValueError for what is none, or less than another."""
    try:
        step = pd.Timedelta(text)
    except (ValueError, TypeError):
        raise ProgramError(f"not an interval: {text!r}; write 1s, 100ms or 2min") from None
    if not step > pd.Timedelta(0):
        raise ProgramError(f"an interval must be longer than nothing, not {text!r}")
    if at_least and step < pd.Timedelta(at_least):
        raise ProgramError(f"an interval of at least {at_least} is needed, not {text!r}")
    return step
