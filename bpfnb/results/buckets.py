"""Histograms of a column: buckets, what is counted in them, and their labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb.errors import ProgramError
from bpfnb.results.arguments import require_known
from bpfnb.results.events.groups import largest, numbered_groups

__all__ = [
    "HistKind", "binary", "checked_unit", "duration", "edges_of", "histogram", "inner_edges", "labels_of", "numbers_of",
    "power_of_two", "table_of_buckets", "writer",
]  # fmt: skip

Array: TypeAlias = npt.NDArray[Any]

HistKind = Literal["log2", "linear"]
_NANOSECONDS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
_BINS = 20
_MAX_POWERS = 64  # of buckets of floats: what is smaller than the largest by more counts as next to nothing


def histogram(
    values: pd.Series[Any],
    by: pd.DataFrame,
    kind: HistKind,
    bins: int | Sequence[float] | None,
    unit: str | None,
    top: int | None = None,
) -> pd.DataFrame:
    """Count the values in each bucket, in a column a group of ``by``: see EventsAccessor.hist."""
    unit = checked_unit(values.dtype, kind, unit)
    numbers, groups, names = _sample(values, by, unit, top)
    edges = edges_of(numbers, kind, bins)
    counts = _counts(numbers, edges, groups, len(names))
    missing = len(values) - len(numbers)
    return table_of_buckets(values.dtype, edges, counts, names, missing, kind, bins, unit)


def checked_unit(dtype: Any, kind: HistKind, unit: str | None) -> str | None:
    """Return the unit that a column of a dtype is counted in. ProgramError for an unknown one, or an unknown kind."""
    require_known("kind", kind, get_args(HistKind))
    if dtype.kind == "m":
        unit = unit or "ns"
    if unit is not None:
        require_known("unit", unit, _NANOSECONDS)
    return unit


def table_of_buckets(
    dtype: Any,
    edges: list[float],
    counts: Array,
    names: pd.Index[Any],
    missing: int,
    kind: HistKind,
    bins: int | Sequence[float] | None,
    unit: str | None,
) -> pd.DataFrame:
    """Return the table that ``histogram`` makes. ``counts``: of each bucket (rows), by group (columns). ``dtype``: that
    of the values."""
    span = _span(counts, whole=isinstance(bins, Iterable))
    low, high = edges[:-1][span], edges[1:][span]
    singles = dtype.kind not in "fm"
    labels = labels_of(low, high, writer(kind, unit), singles)
    buckets = pd.DataFrame({"low": low, "high": high}, dtype=np.float64).assign(label=labels)
    table = pd.concat([buckets, pd.DataFrame(counts[span], columns=names)], axis=1)
    table.attrs = {"missing": missing} | ({"unit": unit} if unit else {})
    return table


def _sample(
    values: pd.Series[Any], by: pd.DataFrame, unit: str | None, top: int | None
) -> tuple[Array, Array, pd.Index[Any]]:
    """Return the known numbers, the number of each one's group, and the groups' names."""
    numbers, known = numbers_of(values, unit)
    if not len(by.columns):
        return numbers[known], np.zeros(known.sum(), np.int64), pd.Index(["count"])
    groups, names = numbered_groups(by) if top is None else largest(by, top)
    known = known & (groups >= 0)
    # Plain: a categorical index takes no further columns, and tuples are names here, not levels.
    return numbers[known], groups[known], pd.Index(names, dtype=object, tupleize_cols=False)


def numbers_of(column: pd.Series[Any], unit: str | None) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Return a column as int64, uint64 or float64, and which of its values are numbers."""
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
    raise ProgramError(f"column {column.name!r} is {column.dtype}: a histogram is of numbers or durations{counted}")


def edges_of(numbers: Array, kind: HistKind, bins: int | Sequence[float] | None) -> list[float]:
    """Return where buckets begin and end. Every number is in one."""
    if kind == "log2":
        if bins is not None:
            raise ProgramError("bins are for kind='linear'; the powers of two are where they are")
        bits = int(max(numbers.max(initial=0), 0)).bit_length()
        whole = [1 << bit if bit < 1024 else math.inf for bit in range(bits + 1)]
        return [-math.inf, 0, *_fractions(numbers), *whole]
    if isinstance(bins, Iterable):
        edges = np.asarray(bins)
        if edges.ndim != 1 or len(edges) < 2 or edges.dtype.kind not in "iuf" or not np.all(edges[:-1] < edges[1:]):
            raise ProgramError(f"bins are at least two rising edges, or how many buckets, not {bins!r}")
        return [-math.inf, *edges.tolist(), math.inf]
    count = _BINS if bins is None else bins
    if count < 1:
        raise ProgramError(f"a histogram has at least one bucket, not {count}")
    return _round_edges(numbers, count) if len(numbers) else [0, 1]


def _fractions(numbers: Array) -> list[float]:
    """Return the powers of two below 1, from the greatest that is not above any positive number."""
    if numbers.dtype.kind != "f" or not (positive := numbers[numbers > 0]).size:
        return []
    least, most = (math.frexp(number)[1] - 1 for number in (positive.min(), positive.max()))
    return [2.0**power for power in range(max(least, most - _MAX_POWERS), 0)]


def _round_edges(numbers: Array, count: int) -> list[float]:
    """Return multiples of a round width, as Python numbers: whole ones of 64 bits stay exact."""
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


def inner_edges(edges: list[float], dtype: np.dtype[Any]) -> Array:
    """Return the edges between buckets, in the numbers' own type where they fit: float64 would merge large ones."""
    inner = edges[1:-1]
    if dtype.kind != "f" and all(isinstance(edge, int) for edge in inner):
        limits = np.iinfo(dtype)
        if all(limits.min <= edge <= limits.max for edge in inner):
            return np.array(inner, dtype)
    return np.array(inner, np.float64)


def _counts(numbers: Array, edges: list[float], groups: Array, of: int) -> Array:
    """Return how many numbers lie in each bucket (rows), by group (columns, ``of`` of them)."""
    rows = len(edges) - 1
    buckets = np.searchsorted(inner_edges(edges, numbers.dtype), numbers, side="right")
    return np.bincount(groups * rows + buckets, minlength=of * rows).reshape(of, rows).T


def _span(counts: Array, whole: bool) -> slice:
    """Return the buckets from the first with a value to the last. ``whole``: at least all but the open ones."""
    shown = np.flatnonzero(counts.any(axis=1)).tolist()
    if whole:
        shown += [1, len(counts) - 2]
    return slice(min(shown), max(shown) + 1) if shown else slice(0)


# --- labels ---


def labels_of(low: list[float], high: list[float], write: Callable[[float, int], str], singles: bool) -> list[str]:
    """Label the buckets, in as few digits as tell all edges apart. ``singles``: "[4]" for a bucket of one number."""
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


def writer(kind: HistKind, unit: str | None) -> Callable[[float, int], str]:
    """Return what writes a bucket's bound, in so many digits. ``unit``: of numbers, "bytes" or one of time."""
    if unit == "bytes":
        return binary
    if unit:
        return lambda edge, digits: duration(edge * _NANOSECONDS[unit], digits)
    return power_of_two if kind == "log2" else _number


def _number(edge: float, digits: int) -> str:
    if edge % 1 or (isinstance(edge, float) and abs(edge) >= 1e15):
        return f"{edge:.{digits}g}"
    return str(int(edge))


def power_of_two(edge: float, digits: int = 3) -> str:
    """Write a power of two as bpftrace does: 1024 is 1K. ``digits``: of one below 1."""
    if 0 < edge < 1:
        return f"{edge:.{digits}g}"
    power, edge = 0, int(edge)
    while edge >= 1024 and power < 6:
        power, edge = power + 1, edge // 1024
    return f"{edge}{' KMGTPE'[power].strip()}"


def binary(size: float, digits: int = 3) -> str:
    """Write a number of bytes: 4096 is 4KiB."""
    power = min(int(math.log2(abs(size)) // 10), 6) if abs(size) >= 1024 else 0
    return f"{size / 1024**power:.{max(digits, 4)}g}{' KMGTPE'[power].strip()}{'iB' if power else 'B'}" if size else "0"


def duration(ns: float, digits: int) -> str:
    """Write nanoseconds in the unit that suits them, in so many digits."""
    unit, size = max(((u, s) for u, s in _NANOSECONDS.items() if s <= max(abs(ns), 1)), key=lambda pair: pair[1])
    rounded = float(f"{ns / size:.{digits}g}")  # twice, lest 1000 be written as 1e+03
    return f"{rounded:.15g}{unit}" if ns else "0"
