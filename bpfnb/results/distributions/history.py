"""Counts by group and bucket: of each second of the last hour, and since the start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb.errors import printable
from bpfnb.results.distributions.scales import Array, Ints, Scale, filled

__all__ = ["HOUR", "MAX_GROUPS", "Buckets", "Columns", "History", "top_groups"]

HOUR = 3600  # seconds
MAX_GROUPS = 1000  # told apart: the others are counted together
_OTHER = "other"
_LABEL = 200  # characters
_ROOM = 1 << 16  # more than there are different slots
_SPAN = 1 << 21


class Buckets(NamedTuple):
    """Counts: a row a group, a column a bucket, rising. ``low``, ``high``: a bucket holds low <= number < high."""

    groups: list[str]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    counts: Ints


class Columns(NamedTuple):
    """Counts over time: a row an interval, from ``begin`` (seconds since 1970) on, ``step`` seconds each; a column a
    bucket, rising."""

    begin: int
    step: int
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    counts: Ints


class _Cells(NamedTuple):
    """Counts of some cells: group * _ROOM + place of the slot, each once, rising."""

    cells: Ints
    counts: Ints

    def plus(self, other: _Cells) -> _Cells:
        return _summed(np.concatenate([self.cells, other.cells]), np.concatenate([self.counts, other.counts]))


_NONE = _Cells(np.zeros(0, np.int64), np.zeros(0, np.int64))


class History:
    """Numbers counted in the buckets of a scale. ``newest``: the latest second with a count, or None.

    Rows of the last hour are counted by the second, older ones and those without a time only since the start.
    """

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self.newest: int | None = None
        self.changes = 0  # how often something was counted
        self._groups: list[str] = []
        self._group_of: dict[str | None, int] = {}  # None: of the others
        self._slots: list[int] = []
        self._place_of: dict[int, int] = {}
        self._total = _NONE
        self._seconds: dict[int, _Cells] = {}

    @property
    def total(self) -> int:
        return int(self._total.counts.sum())

    @property
    def oldest(self) -> int | None:
        return min(self._seconds, default=None)

    def add(
        self,
        numbers: Array,
        seconds: Ints | None,
        groups: pd.DataFrame | None = None,
        counts: Ints | None = None,
    ) -> None:
        """Count numbers. ``seconds``: of each, when (since 1970); None: not known. ``groups``: the columns that tell
        groups apart. ``counts``: how often each number was seen, once by default."""
        if not len(numbers):
            return
        self.changes += 1
        weights = np.ones(len(numbers), np.int64) if counts is None else counts
        slots, factor = self.scale.slots(numbers)
        if factor > 1:
            self._merge(factor)
        cells = self._codes(groups, weights, len(numbers)) * _ROOM + self._places(slots)
        self._total = self._total.plus(_summed(cells, weights))
        if seconds is None:
            return
        for second, chosen in _by_second(seconds):
            self._seconds[second] = self._seconds.get(second, _NONE).plus(_summed(cells[chosen], weights[chosen]))
        newest = int(seconds.max())
        self.newest = newest if self.newest is None else max(self.newest, newest)
        for old in [second for second in self._seconds if second <= self.newest - HOUR]:
            del self._seconds[old]

    def since_start(self) -> Buckets:
        return self._buckets(self._total)

    def between(self, begin: int, end: int) -> Buckets:
        """Return the counts of the seconds from ``begin`` to before ``end``."""
        return self._buckets(_joined([cells for second, cells in self._seconds.items() if begin <= second < end]))

    def columns(self, begin: int, end: int, step: int, group: str | None = None) -> Columns:
        """Return the counts of each ``step`` seconds from ``begin`` to ``end``, of one group or of all."""
        width = -(-(end - begin) // step)
        shown = [(second, cells) for second, cells in self._seconds.items() if begin <= second < end]
        places, low, high = self._order()
        counts = np.zeros((width, len(self._slots) + 1), np.int64)
        wanted = self._group_of.get(group, -1) if group is not None else None
        for second, (cells, numbers) in shown:
            chosen = slice(None) if wanted is None else cells // _ROOM == wanted
            np.add.at(counts[(second - begin) // step], cells[chosen] % _ROOM, numbers[chosen])
        counts = counts[:, places]
        used: npt.NDArray[np.bool_] = counts.sum(axis=0) > 0
        span = slice(int(used.argmax()), len(used) - int(used[::-1].argmax())) if used.any() else slice(0)
        return Columns(begin, step, low[span], high[span], counts[:, span])

    def group_totals(self) -> dict[str, int]:
        """Return how much each group has since the start, the largest first."""
        sums = np.bincount(self._total.cells // _ROOM, self._total.counts, minlength=len(self._groups))
        order = np.argsort(-sums, kind="stable").tolist()
        return {self._groups[code]: int(sums[code]) for code in order}

    # --- inside ---

    def _buckets(self, cells: _Cells) -> Buckets:
        counts = np.zeros((len(self._groups), len(self._slots) + 1), np.int64)
        np.add.at(counts, (cells.cells // _ROOM, cells.cells % _ROOM), cells.counts)
        places, low, high = self._order()
        return _spanned(Buckets(list(self._groups), low, high, counts[:, places]))

    def _order(self) -> tuple[Ints, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return all buckets, rising, and the place of each one's slot: of those without a number, behind all others,
        where nothing is counted."""
        slots = np.array(self._slots, np.int64)
        order = np.argsort(slots)
        low, high, at = filled(*self.scale.bounds(slots[order]), self.scale.kind)
        return np.append(order, len(slots))[at], low, high

    def _places(self, slots: Ints) -> Ints:
        """Return the place of each slot; new ones get the next."""
        found, which = _factorized(slots)
        for slot in found.tolist():
            if slot not in self._place_of:
                self._place_of[slot] = len(self._slots)
                self._slots.append(slot)
        places: Ints = np.array([self._place_of[slot] for slot in found.tolist()], np.int64)[which]
        return places

    def _merge(self, factor: int) -> None:
        """Make neighbouring slots one: all that was counted was counted in finer buckets."""
        merged = [slot // factor for slot in self._slots]
        self._slots = sorted(set(merged))
        self._place_of = {slot: place for place, slot in enumerate(self._slots)}
        places = np.array([self._place_of[slot] for slot in merged], np.int64)

        def moved(cells: _Cells) -> _Cells:
            return _summed(cells.cells // _ROOM * _ROOM + places[cells.cells % _ROOM], cells.counts)

        if len(places):
            self._total = moved(self._total)
            self._seconds = {second: moved(cells) for second, cells in self._seconds.items()}

    def _codes(self, groups: pd.DataFrame | None, weights: Ints, rows: int) -> Ints:
        """Return the number of each row's group. Nothing here runs once a row in Python."""
        if groups is None or not len(groups.columns):
            self._group("")
            return np.zeros(rows, np.int64)
        names = list(groups.columns)
        which = groups.groupby(names, observed=True, sort=False, dropna=False).ngroup().to_numpy(np.int64)
        of = int(which.max(initial=-1)) + 1
        first = np.zeros(of, np.int64)
        first[which[::-1]] = np.arange(rows - 1, -1, -1)
        largest = np.argsort(-np.bincount(which, weights, minlength=of), kind="stable")[:MAX_GROUPS]
        codes = np.full(of, -1, np.int64)
        for number, values in zip(largest.tolist(), _texts(groups.iloc[first[largest]]), strict=True):
            codes[number] = self._group(values)
        if (codes < 0).any():
            codes[codes < 0] = self._group(None)
        return codes[which]

    def _group(self, label: str | None) -> int:
        """Return the number of a group; a new one gets the next, if there is room. None: that of all others."""
        if label not in self._group_of:
            if label is not None and len(self._groups) >= MAX_GROUPS:
                return self._group(None)
            self._group_of[label] = len(self._groups)
            self._groups.append(_OTHER if label is None else label)
        return self._group_of[label]


def top_groups(buckets: Buckets, most: int) -> Buckets:
    """Return the largest groups, the largest first, and all others summed into a last one."""
    sums = buckets.counts.sum(axis=1)
    order = np.argsort(-sums, kind="stable")
    order = order[sums[order] > 0]
    counts, names = buckets.counts[order], [buckets.groups[code] for code in order.tolist()]
    if len(names) <= most:
        return buckets._replace(groups=names, counts=counts)
    rest = counts[most:].sum(axis=0, keepdims=True)
    names = [*names[:most], f"{_OTHER} ({len(names) - most:,})"]
    return buckets._replace(groups=names, counts=np.concatenate([counts[:most], rest]))


def _texts(frame: pd.DataFrame) -> list[str]:
    """Return a text for each row of a few: its values, of one column as it is."""
    rows = zip(*(frame.iloc[:, at].tolist() for at in range(frame.shape[1])), strict=True)
    return [", ".join(_text(value) for value in row) for row in rows]


def _text(value: Any) -> str:
    text = printable(str(value))
    return text if len(text) <= _LABEL else text[: _LABEL - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _summed(cells: Ints, counts: Ints) -> _Cells:
    different, which = _factorized(cells)
    sums = np.zeros(len(different), np.int64)
    np.add.at(sums, which, counts)
    return _Cells(different, sums)


def _factorized(numbers: Ints) -> tuple[Ints, Ints]:
    """Return the different numbers, rising, and which of them each is. Not sorted where they lie close together."""
    if not len(numbers):
        return numbers, numbers
    least = int(numbers.min())
    span = int(numbers.max()) - least + 1
    if span > _SPAN:
        different, which = np.unique(numbers, return_inverse=True)
        return different, which.astype(np.int64)
    shifted = numbers - least
    there = np.zeros(span, np.bool_)
    there[shifted] = True
    place: Ints = np.cumsum(there) - 1
    return np.flatnonzero(there) + least, place[shifted]


def _joined(parts: Sequence[_Cells]) -> _Cells:
    if not parts:
        return _NONE
    return _summed(np.concatenate([part.cells for part in parts]), np.concatenate([part.counts for part in parts]))


def _by_second(seconds: Ints) -> list[tuple[int, Any]]:
    """Return the seconds of the last hour, and which rows are of each."""
    first, last = int(seconds.min()), int(seconds.max())
    if first == last:
        return [(first, slice(None))]
    late = np.flatnonzero(seconds > last - HOUR)
    ago = (seconds[late] - (last - HOUR)).astype(np.uint16)  # short: numpy sorts these by counting
    order = np.argsort(ago, kind="stable")
    begins = np.searchsorted(ago[order], np.arange(HOUR + 2, dtype=np.uint16)).tolist()
    parts = ((last - HOUR + number, begins[number], begins[number + 1]) for number in range(HOUR + 1))
    return [(second, late[order[begin:end]]) for second, begin, end in parts if end > begin]


def _spanned(buckets: Buckets) -> Buckets:
    """Return the buckets from the first that has a count to the last."""
    used: npt.NDArray[np.bool_] = buckets.counts.sum(axis=0) > 0
    if not used.any():
        return Buckets(buckets.groups, buckets.low[:0], buckets.high[:0], buckets.counts[:, :0])
    span = slice(int(used.argmax()), len(used) - int(used[::-1].argmax()))
    return Buckets(buckets.groups, buckets.low[span], buckets.high[span], buckets.counts[:, span])
