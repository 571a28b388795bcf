"""``df.bpf``: what is asked next of a DataFrame of events.

    calls.bpf.rate("100ms", by="comm")
    calls.bpf.between("kind == 'entry'", "kind == 'exit'", by="tid").bpf.hist("latency")
    reads.bpf.top("comm", value="bytes")

Importing this module registers it, on every DataFrame. Nothing here changes the frame it is asked about.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb.errors import near_or_all
from bpfnb.results import table

__all__ = ["EventsAccessor"]

Array: TypeAlias = npt.NDArray[Any]
Names: TypeAlias = str | Sequence[str]
Rows: TypeAlias = "str | Callable[[pd.DataFrame], Any] | pd.Series[Any] | Array | Sequence[bool]"

_METHODS = ("rate", "between", "hist", "top")
_KINDS = ("log2", "linear")
_AGGREGATES = ("count", "sum", "mean", "max", "median")
_QUANTILE = re.compile(r"p(\d+(?:\.\d+)?)")
_NANOSECONDS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
_BINS = 20
_MAX_POWERS = 64  # of buckets of floats: what is smaller than the largest by more counts as next to nothing
_THREAD = "the thread"  # what between() pairs by unless told


@pd.api.extensions.register_dataframe_accessor("bpf")
class EventsAccessor:
    """Rates, latencies, histograms and the largest groups of a DataFrame with one row an event."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self._frame = frame

    def __repr__(self) -> str:
        lines = [f"df.bpf, for a DataFrame of {len(self._frame):,} events; help(df.bpf.between) tells all of one"]
        for name in _METHODS:
            method = getattr(self, name)
            summary = (inspect.getdoc(method) or "").partition("\n")[0].replace("``", "")
            lines += [f"  .{name}({', '.join(inspect.signature(method).parameters)})", f"      {summary}"]
        return "\n".join(lines)

    def rate(self, every: str = "1s", by: Names | None = None) -> pd.DataFrame:
        """Events per second in each interval of ``every``, with ``by`` a column for each value.

        float64, indexed by time (the intervals' beginnings, without gaps); without ``by`` the single column "rate", of
        several columns for each tuple. ``every`` is a pandas interval ("100ms"). ValueError for an unknown column or
        interval.
        """
        _require(self._frame, ["time", *_names(by)])
        return table.rate(_numbered(self._frame), every, by)

    def between(
        self,
        start: Rows | None = None,
        end: Rows | pd.DataFrame | None = None,
        by: Names | Mapping[str, str] | None = _THREAD,
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
        if by is _THREAD:
            by = _thread([self._frame, end] if isinstance(end, pd.DataFrame) else [self._frame])
        keys = dict(by) if isinstance(by, Mapping) else {name: name for name in _names(by)}
        of_start, of_end = _names(start_columns), _names(end_columns)
        starts = _Events(self._frame, self._mask(start), keys.keys(), time, of_start)
        if isinstance(end, pd.DataFrame):
            ends = _Events(end, np.ones(len(end), np.bool_), keys.values(), time, of_end)
            ranks = [np.zeros(len(starts.ns)), np.ones(len(ends.ns))]
        else:
            ends = _Events(self._frame, self._mask(end), keys.values(), time, of_end)
            ranks = [2 * starts.positions + 1, 2 * ends.positions]
        if starts.clock != ends.clock:
            raise ValueError(f"column {time!r} is {starts.clock} in the starts, {ends.clock} in the ends")

        codes = _codes([(starts.rows[a], ends.rows[b]) for a, b in keys.items()], len(starts.ns) + len(ends.ns))
        first, last = _pairs(codes, np.concatenate([starts.ns, ends.ns]), np.concatenate(ranks), len(starts.ns))
        columns = [
            *((name, starts.take(name, first)) for name in keys),
            ("start", starts.take(time, first)),
            ("end", ends.take(time, last)),
            ("latency", (ends.ns[last] - starts.ns[first]).view("m8[ns]")),
            *((name, starts.take(name, first)) for name in of_start),
            *((name, ends.take(name, last)) for name in of_end),
        ]
        _once(name for name, _ in columns)
        pairs = pd.DataFrame(dict(columns))
        pairs.attrs = {"unmatched_starts": starts.chosen - len(pairs), "unmatched_ends": ends.chosen - len(pairs)}
        return pairs

    def hist(
        self,
        column: str,
        by: Names | None = None,
        kind: str = "log2",
        bins: int | Sequence[float] | None = None,
        unit: str | None = None,
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
        ``unit``.

        ValueError for an unknown column, kind or unit, a column without numbers, or bins that make no buckets.
        """
        by = _names(by)
        _require(self._frame, [column, *by])
        _known("kind", kind, _KINDS)
        values = self._frame[column]
        duration = values.dtype.kind == "m"
        if duration:
            unit = unit or "ns"
        if unit is not None:
            _known("unit", unit, _NANOSECONDS)
        numbers, groups, names = _sample(values, _numbered(self._frame[by]), unit)

        edges = _edges(numbers, kind, bins)
        counts = _counts(numbers, edges, groups, len(names))
        span = _span(counts, whole=isinstance(bins, Iterable))
        low, high = edges[:-1][span], edges[1:][span]
        singles = numbers.dtype.kind != "f" and not duration
        labels = _labels(low, high, _writer(kind, unit), singles)
        buckets = pd.DataFrame({"low": low, "high": high}, dtype=np.float64).assign(label=labels)
        table = pd.concat([buckets, pd.DataFrame(counts[span], columns=names)], axis=1)
        table.attrs = {"missing": len(values) - len(numbers)}
        return table

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
        names = _names(by)
        _require(self._frame, names if value is None else [*names, value])
        agg = agg or ("count" if value is None else "sum")
        quantile = _quantile(agg)
        if (value is None) != (agg == "count"):
            raise ValueError("agg='count' is of rows and takes no value" if value else f"{agg} of which column? value=")
        if n < 1 or not names:
            raise ValueError(f"top wants columns to group by and an n of at least 1, not by={by!r}, n={n}")
        _once([*names, agg] if value else [*names, "count", "share"])

        groups = _numbered(self._frame).groupby(names, observed=True, sort=False)
        if value is None:
            sizes = groups.size()
        else:
            _aggregable(self._frame[value], agg)
            sizes = groups[value].agg(agg) if quantile is None else groups[value].quantile(quantile)
        largest = sizes.sort_values(ascending=False, kind="stable").head(n).reset_index(name=agg)
        if value is None:
            largest["share"] = largest["count"] / max(len(self._frame), 1)
        return largest

    def _mask(self, rows: Rows | None) -> npt.NDArray[np.bool_]:
        """Which rows are chosen. Called straight by what the user calls: a query's @names are two frames up."""
        if rows is None:
            return np.ones(len(self._frame), np.bool_)
        mask: Any = rows
        if isinstance(rows, str):
            try:
                mask = self._frame.eval(rows, level=2)
            except pd.errors.UndefinedVariableError as error:
                name = str(error).split("'")[1]
                raise ValueError(f"{rows!r}: {error}{near_or_all(name, self._frame.columns)}") from None
        elif callable(rows):
            mask = rows(self._frame)
        return _fitting(mask, self._frame, repr(rows) if isinstance(rows, str) else "a choice of rows")


class _Events:
    """The chosen rows of a frame that have a key and a time.

    ``chosen``: how many there were, those without included. ``positions``: where in the frame. ``ns``: their times,
    nanoseconds of ``clock``.
    """

    def __init__(
        self, frame: pd.DataFrame, mask: npt.NDArray[np.bool_], keys: Iterable[str], time: str, others: Iterable[str]
    ) -> None:
        needed = [*keys, time]
        _require(frame, [*needed, *others])
        columns = list(dict.fromkeys([*needed, *others]))
        self.chosen = int(mask.sum())
        self.rows = _numbered(frame[columns])[mask].dropna(subset=needed)
        self.positions = self.rows.index.to_numpy()
        self.clock, self.ns = _clock(self.rows[time])

    def take(self, name: str, where: Array) -> Any:
        return self.rows[name].array[where]


# --- pairs ---


def _thread(frames_: Sequence[pd.DataFrame]) -> str:
    """The column that has the thread's number, in all of these."""
    common = [name for name in frames_[0].columns if all(name in frame.columns for frame in frames_)]
    if "tid" in common:
        return "tid"
    if all(set(table.PrintkTable.COLUMNS) <= set(frame.columns) for frame in frames_):
        return "pid"
    keys = [name for name in common if name != "time" and frames_[0][name].dtype.kind in "iubO"]
    keys = [name for name in keys if name not in ("ts", "time_")]
    known = f": {', '.join(map(str, keys))}" if keys else ""
    raise ValueError(
        f"between() wants to know which columns tell whose start an end belongs to, by=...{known}; threads need their"
        " own number (tid: (u32)bpf_get_current_pid_tgid()); by=None is for all events together"
    )


def _clock(column: pd.Series[Any]) -> tuple[str, npt.NDArray[np.int64]]:
    """What kind of time a column is, and its times in nanoseconds."""
    if column.dtype.kind == "M":
        times = pd.DatetimeIndex(column)
        return "datetime64" if times.tz is None else "datetime64 with a timezone", times.as_unit("ns").asi8
    if column.dtype.kind in "iu":
        return "whole nanoseconds", column.to_numpy(np.int64)
    raise ValueError(f"column {column.name!r} is {column.dtype}: times are datetime64 or whole nanoseconds")


def _codes(keys: list[tuple[pd.Series[Any], pd.Series[Any]]], rows: int) -> npt.NDArray[np.int64]:
    """A number for each key, of the starts and then of the ends."""
    if not keys:
        return np.zeros(rows, np.int64)
    table = pd.DataFrame({number: _stacked(*columns) for number, columns in enumerate(keys)})
    codes: Array = table.groupby(list(table.columns), observed=True, sort=False).ngroup().to_numpy(np.int64)
    return codes


def _stacked(upper: pd.Series[Any], lower: pd.Series[Any]) -> pd.Series[Any]:
    if upper.dtype != lower.dtype:  # objects compare exactly; int64 with uint64 would become float64
        upper, lower = upper.astype(object), lower.astype(object)
    return pd.concat([upper, lower], ignore_index=True)


def _pairs(codes: Array, ns: Array, ranks: Array, starts: int) -> tuple[Array, Array]:
    """Of ``starts`` starts and then the ends: which of the first are matched, in their order, with which of the second.

    Events of a key at the same time follow each other by rank. With all in that order, a pair is a start whose very
    next event is an end of the same key.
    """
    order = np.lexsort((ranks, ns, codes))
    codes, is_start = codes[order], order < starts
    found = np.flatnonzero(is_start[:-1] & ~is_start[1:] & (codes[:-1] == codes[1:]))
    first, last = order[found], order[found + 1] - starts
    by_start = np.lexsort((first, ns[first]))
    return first[by_start], last[by_start]


# --- buckets ---


def _sample(values: pd.Series[Any], by: pd.DataFrame, unit: str | None) -> tuple[Array, Array, pd.Index[Any]]:
    """The numbers there are, the number of each one's group, and the groups' names."""
    numbers, known = _numbers(values, unit)
    if not len(by.columns):
        return numbers[known], np.zeros(known.sum(), np.int64), pd.Index(["count"])
    groups, names = _groups(by)
    known = known & (groups >= 0)
    # Plain: a categorical index takes no further columns, and tuples are names here, not levels.
    return numbers[known], groups[known], pd.Index(names, dtype=object, tupleize_cols=False)


def _groups(by: pd.DataFrame) -> tuple[Array, list[Any]]:
    """The number of each row's group, -1 where a value is missing, and the groups' names, in order: of several columns
    tuples."""
    if len(by.columns) == 1:
        groups, names = pd.factorize(by.iloc[:, 0], sort=True)
        return groups, list(names)
    grouped = by.groupby(list(by.columns), observed=True, sort=True)
    return grouped.ngroup().fillna(-1).to_numpy(np.int64), list(grouped.size().index)


def _numbers(column: pd.Series[Any], unit: str | None) -> tuple[Array, npt.NDArray[np.bool_]]:
    """A column as int64, uint64 or float64, and which of them are numbers."""
    known, kind = column.notna().to_numpy(), column.dtype.kind
    if kind == "m":
        ns, size = pd.TimedeltaIndex(column).as_unit("ns").asi8, _NANOSECONDS[unit or "ns"]
        return ns if size == 1 else ns / size, known
    if kind in "biu":
        return column.to_numpy(np.uint64 if kind == "u" else np.int64, na_value=0), known
    if kind == "f":
        floats = column.to_numpy(np.float64, na_value=np.nan)
        return floats, np.isfinite(floats)
    counted = "" if kind == "M" else f"; top({column.name!r}) counts what is in it"
    raise ValueError(f"column {column.name!r} is {column.dtype}: a histogram is of numbers or durations{counted}")


def _edges(numbers: Array, kind: str, bins: int | Sequence[float] | None) -> list[float]:
    """Where buckets begin and end: enough of them that every number is in one."""
    if kind == "log2":
        if bins is not None:
            raise ValueError("bins are for kind='linear'; the powers of two are where they are")
        bits = int(max(numbers.max(initial=0), 0)).bit_length()
        whole = [1 << bit if bit < 1024 else math.inf for bit in range(bits + 1)]
        return [-math.inf, 0, *_fractions(numbers), *whole]
    if isinstance(bins, Iterable):
        edges = np.asarray(bins)
        if edges.ndim != 1 or len(edges) < 2 or edges.dtype.kind not in "iuf" or not np.all(edges[:-1] < edges[1:]):
            raise ValueError(f"bins are at least two rising edges, or how many buckets, not {bins!r}")
        return [-math.inf, *edges.tolist(), math.inf]
    count = _BINS if bins is None else bins
    if count < 1:
        raise ValueError(f"a histogram has at least one bucket, not {count}")
    return _round_edges(numbers, count) if len(numbers) else [0, 1]


def _fractions(numbers: Array) -> list[float]:
    """The powers of two below 1, from the one that is not above any positive number."""
    if numbers.dtype.kind != "f" or not (positive := numbers[numbers > 0]).size:
        return []
    least, most = (math.frexp(number)[1] - 1 for number in (positive.min(), positive.max()))
    return [2.0**power for power in range(max(least, most - _MAX_POWERS), 0)]


def _round_edges(numbers: Array, count: int) -> list[float]:
    """Multiples of a round width; Python's own numbers, so that whole ones of 64 bits stay exact."""
    whole = numbers.dtype.kind != "f"
    least, most = numbers.min().item(), numbers.max().item()
    finest = 1 if whole else max(np.spacing(max(abs(least), abs(most))), 1e-300)  # finer, and edges would coincide
    width = _round_width(max(((most - least) or abs(least)) / count or 1, finest), whole)
    spare = 0 if whole else 1  # an edge may be rounded past the number it was made for
    begin, end = int(least // width) - spare, int(most // width) + 1 + spare
    return [step * width for step in range(begin, end + 1)]


def _round_width(least: float, whole: bool) -> float:
    power = math.floor(math.log10(least))
    unit: float = 10**power if whole else 10.0**power
    return next((times * unit for times in (1, 2, 5) if times * unit >= least), 10 * unit)


def _inner(edges: list[float], dtype: np.dtype[Any]) -> Array:
    """The edges between buckets, in the numbers' own type where they fit: float64 would merge the large ones."""
    inner = edges[1:-1]
    if dtype.kind != "f" and all(isinstance(edge, int) for edge in inner):
        limits = np.iinfo(dtype)
        if all(limits.min <= edge <= limits.max for edge in inner):
            return np.array(inner, dtype)
    return np.array(inner, np.float64)


def _counts(numbers: Array, edges: list[float], groups: Array, of: int) -> Array:
    """How many numbers lie in each bucket (rows), by group (columns, ``of`` of them)."""
    rows = len(edges) - 1
    buckets = np.searchsorted(_inner(edges, numbers.dtype), numbers, side="right")
    return np.bincount(groups * rows + buckets, minlength=of * rows).reshape(of, rows).T


def _span(counts: Array, whole: bool) -> slice:
    """The buckets from the first that holds a value to the last; ``whole``: and all but the open ones."""
    shown = np.flatnonzero(counts.any(axis=1)).tolist()
    if whole:
        shown += [1, len(counts) - 2]
    return slice(min(shown), max(shown) + 1) if shown else slice(0)


# --- labels ---


def _labels(low: list[float], high: list[float], write: Callable[[float, int], str], singles: bool) -> list[str]:
    """Each bucket's label, in as few digits as tell all edges apart. ``singles``: one of a single number shows it."""
    edges = {edge for edge in [*low, *high] if math.isfinite(edge)}
    for digits in range(3, 18):
        text = {edge: write(edge, digits) for edge in edges}
        if len(set(text.values())) == len(edges):
            break
    return [_label(a, b, text, singles) for a, b in zip(low, high, strict=True)]


def _label(low: float, high: float, text: dict[float, str], singles: bool) -> str:
    if math.isinf(low):
        return f"(..., {text[high]})"
    if math.isinf(high):
        return f"[{text[low]}, ...)"
    if singles and high - low == 1 and low % 1 == 0:
        return f"[{text[low]}]"
    return f"[{text[low]}, {text[high]})"


def _writer(kind: str, unit: str | None) -> Callable[[float, int], str]:
    if unit:
        return lambda edge, digits: _duration(edge * _NANOSECONDS[unit], digits)
    return _power_of_two if kind == "log2" else _number


def _number(edge: float, digits: int) -> str:
    if edge % 1 or (isinstance(edge, float) and abs(edge) >= 1e15):
        return f"{edge:.{digits}g}"
    return str(int(edge))


def _power_of_two(edge: float, digits: int) -> str:
    """1024 as 1K, and so on, as bpftrace does."""
    if 0 < edge < 1:
        return f"{edge:.{digits}g}"
    power, edge = 0, int(edge)
    while edge >= 1024 and power < 6:
        power, edge = power + 1, edge // 1024
    return f"{edge}{' KMGTPE'[power].strip()}"


def _duration(ns: float, digits: int) -> str:
    unit, size = max(((u, s) for u, s in _NANOSECONDS.items() if s <= max(abs(ns), 1)), key=lambda pair: pair[1])
    rounded = float(f"{ns / size:.{digits}g}")  # twice, lest 1000 be written as 1e+03
    return f"{rounded:.15g}{unit}" if ns else "0"


# --- columns ---


def _names(names: Names | None) -> list[str]:
    if names is None:
        return []
    return list(names) if isinstance(names, Iterable) and not isinstance(names, (str, bytes)) else [names]


def _numbered(frame: pd.DataFrame) -> pd.DataFrame:
    """The same data with its rows numbered: an index may have duplicates, or a column's name."""
    numbered = frame.copy(deep=False)
    numbered.index = pd.RangeIndex(len(frame))
    return numbered


def _fitting(mask: Any, frame: pd.DataFrame, what: str) -> npt.NDArray[np.bool_]:
    """A mask as an array, checked to say true or false of each row. Missing is false, as in pandas."""
    if isinstance(mask, pd.DataFrame) or len(flags := pd.Series(mask)) != len(frame):
        raise ValueError(f"{what} must be true or false for each of the {len(frame)} rows")
    if isinstance(mask, pd.Series) and not mask.index.equals(frame.index):
        raise ValueError(f"{what} has another index than the frame")
    if len(flags) and not pd.api.types.is_bool_dtype(flags.dtype):
        raise ValueError(f"{what} must be true or false for each row, not {flags.dtype}")
    return flags.to_numpy(np.bool_, na_value=False)


def _quantile(agg: str) -> float | None:
    """The quantile that "p99" or "median" names; None for what else top knows. ValueError for the rest."""
    if agg == "median":
        return 0.5
    if isinstance(agg, str) and (found := _QUANTILE.fullmatch(agg)):
        if (percent := float(found[1])) > 100:
            raise ValueError(f"percentiles go from p0 to p100, with digits behind a point: p99.9; there is no {agg}")
        return percent / 100
    _known("agg", agg, (*_AGGREGATES, "p99"))
    return None


def _aggregable(column: pd.Series[Any], agg: str) -> None:
    kinds = {"max": "biufmM", "sum": "biufm", "mean": "biufm"}.get(agg, "iufm")
    if column.dtype.kind not in kinds:
        raise ValueError(f"column {column.name!r} is {column.dtype}: there is no {agg} of it")


def _require(frame: pd.DataFrame, names: Iterable[str]) -> None:
    for name in names:
        if not isinstance(name, Hashable):
            raise ValueError(f"here a single column's name is meant, not {name!r}")
        if name not in frame.columns:
            raise ValueError(f"no column {name!r}{near_or_all(str(name), frame.columns)}")


def _once(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"the result would have two columns {name!r}")
        seen.add(name)


def _known(what: str, word: str, words: Iterable[str]) -> None:
    if word not in list(words):
        raise ValueError(f"no {what} {word!r}{near_or_all(str(word), words)}")
