"""Rates, histograms and the largest groups of rows that do not fit into memory: exact, as ``df.bpf`` has them.

A ``Reducer`` sums the rows up: by DuckDB where they lie in files it reads, else block by block in pandas. What is left
is as large as the answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb.errors import ProgramError
from bpfnb.results import rates
from bpfnb.results.arguments import Names, names_of, require_columns, require_known, require_once, require_times
from bpfnb.results.buckets import (
    HistKind,
    checked_unit,
    edges_of,
    inner_edges,
    numbers_of,
    table_of_buckets,
)
from bpfnb.results.events.groups import largest, numbered_groups
from bpfnb.results.table import with_bars

__all__ = [
    "BUCKET",
    "COUNT",
    "VALUE",
    "Blocks",
    "Extent",
    "Reducer",
    "hist",
    "quantile_of",
    "rate",
    "require_top",
    "top",
]

Array = npt.NDArray[Any]
COUNT = "\0count"  # names of our columns, which no column of the rows has
BUCKET = "\0bucket"
VALUE = "\0value"


class Extent(NamedTuple):
    """What there is of a column: ``rows`` in all. ``numbers``: its least and its greatest number, and of those above 0;
    none where it has none."""

    rows: int
    numbers: Array


class Reducer(Protocol):
    """Sums rows up. Groups are the rows with the same values in the columns ``by``, those without a value left out.
    Frames have the columns of ``by`` first, with their dtypes."""

    @property
    def empty(self) -> pd.DataFrame:
        """A frame without rows: the columns and their dtypes."""

    def rows(self) -> int:
        """Return how many rows there are."""

    def rates(self, step_ns: int, by: Sequence[str]) -> pd.DataFrame:
        """Return ``time`` (the beginning of an interval of so many nanoseconds), ``by`` and COUNT."""

    def extent(self, column: str, unit: str | None) -> Extent:
        """Return what a column's numbers are, finite ones."""

    def buckets(self, column: str, unit: str | None, edges: Array, by: Sequence[str]) -> pd.DataFrame:
        """Return ``by``, BUCKET and COUNT: how many numbers lie between ``edges``; from one on is above it.
        Rows without a number have BUCKET -1."""

    def groups(self, by: Sequence[str], value: str | None, agg: str, n: int) -> pd.DataFrame:
        """Return ``by`` and VALUE (the number of rows, or of ``value`` what ``agg`` says), in the order in which the
        groups come first; at least the ``n`` largest of them."""


def rate(rows: Reducer, every: str = "1s", by: Names | None = None, top: int | None = None) -> pd.DataFrame:
    """Return what EventsAccessor.rate does."""
    names = names_of(by)
    require_columns(rows.empty, names)
    require_times(rows.empty, "a rate")
    step = rates.interval(every)
    counted = rows.rates(step.as_unit("ns").value, names)
    return rates.rate(_in_order(counted, rows.empty), every, by, top, counted[COUNT].to_numpy(np.int64))


def hist(
    rows: Reducer,
    column: str,
    by: Names | None = None,
    kind: HistKind = "log2",
    bins: int | Sequence[float] | None = None,
    unit: str | None = None,
    top: int | None = None,
) -> pd.DataFrame:
    """Return what EventsAccessor.hist does."""
    names = names_of(by)
    require_columns(rows.empty, [column, *names])
    dtype = rows.empty[column].dtype
    unit = checked_unit(dtype, kind, unit)
    numbers_of(rows.empty[column], unit)  # its errors
    if kind == "log2" and bins is None and dtype.kind in "biu":  # all powers there are: only those of numbers are shown
        widest = np.uint64 if dtype.kind == "u" else np.int64
        extent = Extent(rows.rows(), np.array([np.iinfo(widest).max], widest))
    else:
        extent = rows.extent(column, unit)
    edges = edges_of(extent.numbers, kind, bins)
    inner = inner_edges(edges, extent.numbers.dtype)
    counted = rows.buckets(column, unit, inner, names)
    each, buckets = counted[COUNT].to_numpy(np.int64), counted[BUCKET].to_numpy(np.int64)
    groups, columns = _groups(_in_order(counted[names], rows.empty), top, each)
    known = buckets >= 0
    counts = np.zeros(len(columns) * (len(edges) - 1), np.int64)
    np.add.at(counts, groups[known] * (len(edges) - 1) + buckets[known], each[known])
    each = each[known]
    missing = extent.rows - int(each.sum())
    table = counts.reshape(len(columns), -1).T
    return with_bars(table_of_buckets(dtype, edges, table, columns, missing, kind, bins, unit))


def _in_order(frame: pd.DataFrame, empty: pd.DataFrame) -> pd.DataFrame:
    """Return a frame whose categories are in the order of the alphabet, behind those that they always begin with: which
    comes first depends on what is read first."""
    columns = {}
    for name in frame.columns:
        if isinstance(frame[name].dtype, pd.CategoricalDtype):
            first = empty[name].cat.categories
            new = sorted(set(frame[name].cat.categories) - set(first))
            columns[name] = frame[name].cat.set_categories(first.append(pd.Index(new, dtype=first.dtype)))
    return frame.assign(**columns)


def _groups(by: pd.DataFrame, top: int | None, counts: Array) -> tuple[Array, pd.Index[Any]]:
    if not len(by.columns):
        return np.zeros(len(counts), np.int64), pd.Index(["count"])
    groups, names = numbered_groups(by) if top is None else largest(by, top, counts)
    return groups, pd.Index(names, dtype=object, tupleize_cols=False)


def top(rows: Reducer, by: Names, n: int = 10, value: str | None = None, agg: str | None = None) -> pd.DataFrame:
    """Return what EventsAccessor.top does."""
    names = names_of(by)
    require_columns(rows.empty, names if value is None else [*names, value])
    agg = agg or ("count" if value is None else "sum")
    require_top(rows.empty, names, agg, value, n)
    sums = rows.groups(names, value, agg, n)
    chosen = sums.sort_values(VALUE, ascending=False, kind="stable").head(n)
    result = chosen.rename(columns={VALUE: agg}).reset_index(drop=True)
    if value is None:
        result["share"] = result[agg] / max(rows.rows(), 1)
    return result


_AGGREGATES = ("count", "sum", "mean", "max", "median")
_QUANTILE = re.compile(r"p(\d+(?:\.\d+)?)")


def require_top(frame: pd.DataFrame, by: Sequence[str], agg: str, value: str | None, n: int) -> None:
    """Check what ``top`` is asked for. ProgramError."""
    quantile_of(agg)
    if (value is None) != (agg == "count"):
        raise ProgramError("agg='count' is of rows and takes no value" if value else f"{agg} of which column? value=")
    if n < 1 or not by:
        raise ProgramError(f"top wants columns to group by and an n of at least 1, not by={list(by)!r}, n={n}")
    require_once([*by, agg] if value else [*by, "count", "share"])
    if value is not None:
        kinds = {"max": "biufmM", "sum": "biufm", "mean": "biufm"}.get(agg, "iufm")
        if (dtype := frame[value].dtype).kind not in kinds:
            raise ProgramError(f"column {value!r} is {dtype}: there is no {agg} of it")


def quantile_of(agg: str) -> float | None:
    """Return the quantile that "p99" or "median" names; None for top's other words. ValueError for the rest."""
    if agg == "median":
        return 0.5
    if isinstance(agg, str) and (found := _QUANTILE.fullmatch(agg)):
        if (percent := float(found[1])) > 100:
            raise ProgramError(f"percentiles go from p0 to p100, with digits behind a point: p99.9; there is no {agg}")
        return percent / 100
    require_known("agg", agg, (*_AGGREGATES, "p99"))
    return None


class Large:
    """The methods of ``df.bpf`` that need no frame: of all rows, however many there are."""

    def __init__(self, rows: Reducer) -> None:
        self._rows = rows

    def rate(self, every: str = "1s", by: Names | None = None, *, top: int | None = None) -> pd.DataFrame:
        return rate(self._rows, every, by, top)

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
        return hist(self._rows, column, by, kind, bins, unit, top)

    def top(self, by: Names, n: int = 10, value: str | None = None, agg: str | None = None) -> pd.DataFrame:
        return top(self._rows, by, n, value, agg)


# --- block by block -----------------------------------------------------------------------------------------------


class Blocks:
    """A Reducer of frames that come one after another: ``read`` returns them, with at least the columns that it is
    asked for."""

    def __init__(self, empty: pd.DataFrame, read: Callable[[Sequence[str]], Iterable[pd.DataFrame]]) -> None:
        self.empty = empty
        self._read = read

    def rows(self) -> int:
        return sum(len(block) for block in self._read([]))

    def rates(self, step_ns: int, by: Sequence[str]) -> pd.DataFrame:
        step = pd.Timedelta(step_ns)

        def part(block: pd.DataFrame) -> pd.DataFrame:
            keys = block[list(by)].copy(deep=False)
            keys.insert(0, _TIME, block["time"].dt.floor(step))
            return _sizes(keys)

        found = self._summed(part, ["time", *by], [_TIME, *by])
        return found.rename(columns={_TIME: "time"})

    def extent(self, column: str, unit: str | None) -> Extent:
        rows, found = 0, [numbers_of(self.empty[column], unit)[0]]
        for block in self._read([column]):
            rows += len(block)
            numbers, known = numbers_of(block[column], unit)
            found.append(_ends(numbers[known]))
        return Extent(rows, _ends(np.concatenate(found)))

    def buckets(self, column: str, unit: str | None, edges: Array, by: Sequence[str]) -> pd.DataFrame:
        def part(block: pd.DataFrame) -> pd.DataFrame:
            numbers, known = numbers_of(block[column], unit)
            buckets = np.searchsorted(edges, numbers, side="right")
            return _sizes(block[list(by)].assign(**{BUCKET: np.where(known, buckets, -1)}))

        return self._summed(part, [column, *by], [*by, BUCKET])

    def groups(self, by: Sequence[str], value: str | None, agg: str, n: int) -> pd.DataFrame:
        if value is None:
            return self._summed(lambda block: _sizes(block[list(by)]), by, by).rename(columns={COUNT: VALUE})
        if (quantile := quantile_of(agg)) is None:
            return self._aggregated(by, value, agg)
        columns = list(dict.fromkeys([*by, value]))
        whole = _joined([block[columns] for block in self._read(columns)], self.empty[columns], by)
        return _named(whole.groupby(list(by), observed=True, sort=False)[value].quantile(quantile), by)

    def _aggregated(self, by: Sequence[str], value: str, agg: str) -> pd.DataFrame:
        """Aggregate each block, and these again. A mean is a sum and a number of values until the end."""
        kinds = ("sum", "count") if agg == "mean" else (agg,)
        names = [f"\0{kind}" for kind in kinds]
        blocks = []
        for block in self._read(list(dict.fromkeys([*by, value]))):
            numbers = block[value]
            if agg == "mean":
                numbers = numbers.astype(np.float64)
            elif agg == "sum":  # pandas would have the smallest type that a block's sums fit into
                numbers = numbers.astype(_SUMMED.get(numbers.dtype.kind, numbers.dtype))
            grouped = numbers.groupby([block[name] for name in by], observed=True, sort=False)
            blocks.append(pd.DataFrame({f"\0{kind}": grouped.agg(kind) for kind in kinds}).reset_index())
        whole = _joined(blocks, self.empty[list(by)].assign(**dict.fromkeys(names, 0)), by)
        grouped_again = whole.groupby(list(by), observed=True, sort=False)[names]
        again = grouped_again.max() if agg == "max" else grouped_again.sum()
        return _named(again[names[0]] / again[names[1]] if agg == "mean" else again[names[0]], by)

    def _summed(
        self, part: Callable[[pd.DataFrame], pd.DataFrame], columns: Sequence[str], by: Sequence[str]
    ) -> pd.DataFrame:
        """Add up what ``part`` counts in each block, ever again, so that no more than the sums are kept."""
        names = [name for name in by if name in self.empty]
        none = part(self.empty)
        sums, waiting = none, 0
        parts: list[pd.DataFrame] = []
        for block in self._read(list(dict.fromkeys(columns))):
            parts.append(part(block))
            waiting += len(parts[-1])
            if waiting > max(len(sums), _ADDED):
                sums, parts, waiting = _added([sums, *parts], none, names, by), [], 0
        return _added([sums, *parts], none, names, by)


def _added(frames: Sequence[pd.DataFrame], none: pd.DataFrame, names: Sequence[str], by: Sequence[str]) -> pd.DataFrame:
    whole = _joined(frames, none, names)
    if not by:
        return pd.DataFrame({COUNT: [int(whole[COUNT].sum())]})
    return whole.groupby(list(by), observed=True, sort=False)[COUNT].sum().reset_index()


_ADDED = 1 << 19  # rows of counts that are added up at once
_TIME = "\0time"
_SUMMED: dict[str, Any] = {"b": np.int64, "i": np.int64, "u": np.uint64}


def _sizes(keys: pd.DataFrame) -> pd.DataFrame:
    if not len(keys.columns):
        return pd.DataFrame({COUNT: [len(keys)]})
    return keys.groupby(list(keys.columns), observed=True, sort=False).size().reset_index(name=COUNT)


def _named(values: pd.Series[Any], by: Sequence[str]) -> pd.DataFrame:
    return values.rename(VALUE).reset_index()


def _ends(numbers: Array) -> Array:
    """Return the least and the greatest of numbers, and of those above 0."""
    positive = numbers[numbers > 0]
    ends = [each for some in (numbers, positive) if len(some) for each in (some.min(), some.max())]
    return np.array(ends, numbers.dtype)


def _joined(frames: Sequence[pd.DataFrame], empty: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Join frames whose categories differ."""
    frames = [frame for frame in frames if len(frame)] or [empty]
    frames = [frame.copy(deep=False) for frame in frames]
    for name in by:
        if isinstance(empty[name].dtype, pd.CategoricalDtype) and len(frames) > 1:
            for frame, column in zip(frames, _one_dtype([frame[name] for frame in frames]), strict=True):
                frame[name] = column
    return pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0].reset_index(drop=True)


def _one_dtype(columns: Sequence[pd.Series[Any]]) -> list[pd.Series[Any]]:
    categories = columns[0].cat.categories
    for column in columns[1:]:
        if not column.cat.categories.equals(categories):
            new = column.cat.categories.difference(categories, sort=False)
            categories = categories.append(new)
    return [column.cat.set_categories(categories) for column in columns]
