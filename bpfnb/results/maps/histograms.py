"""Histograms of maps whose keys are buckets and whose values are counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb.errors import ProgramError, near_or_all
from bpfnb.results.buckets import HistKind, power_of_two
from bpfnb.results.columns.text import text_dtype

__all__ = ["bucket_column", "histogram"]

_LAST_LOG2 = 64  # the greatest bucket of 64-bit values
_MAX_LINEAR = 100_000  # buckets


def histogram(
    name: str,
    frame: pd.DataFrame,
    keys: Sequence[str],
    values: Sequence[str],
    *,
    kind: HistKind,
    bucket: str,
    by: str | Sequence[str] | None,
) -> pd.DataFrame:
    """Make a histogram of a map's entries: see Map.hist. ``keys``, ``values``: the names of its columns."""
    at = bucket_column(name, keys, bucket)
    others = [key for key in keys if key != at]
    groups = others if by is None else [by] if isinstance(by, str) else list(by)
    for group in groups:
        if group not in others:
            raise ProgramError(f"{name} cannot be told apart by {group!r}{near_or_all(group, others)}")
    if len(values) != 1 or not all(_is_whole(frame, column) for column in (at, values[0])):
        raise ProgramError(f"{name} is no histogram: its buckets and counts must be whole numbers")
    counted = frame[frame[values[0]] != 0]
    buckets = _buckets(name, kind, counted[at].to_numpy())
    counts = _counts(counted, at, groups, values[0]).reindex(buckets.index, fill_value=0).astype(np.int64)
    return pd.concat([buckets, counts], axis=1)


def bucket_column(name: str, keys: Sequence[str], wanted: str) -> str:
    """Return the key's column that has the bucket."""
    if wanted and wanted not in keys:
        raise ProgramError(f"{name} has no key column {wanted!r}{near_or_all(wanted, keys)}")
    for candidate in (wanted, "slot", "bucket"):
        if candidate in keys:
            return candidate
    if len(keys) != 1:
        raise ProgramError(
            f"{name} does not say which part of its key is the bucket" if keys else f"{name} has no keys",
            hint=f"name it: hist(bucket={keys[-1]!r})" if keys else None,
        )
    return keys[0]


def _is_whole(frame: pd.DataFrame, name: str) -> bool:
    return name in frame and frame[name].dtype.kind in "iu"


def _buckets(name: str, kind: HistKind, found: npt.NDArray[Any]) -> pd.DataFrame:
    """Return the buckets up to the last one found, with their bounds and labels."""
    if kind not in ("log2", "linear"):
        raise ProgramError(f"a histogram is log2 or linear, not {kind!r}")
    log2 = kind == "log2"
    buckets = _span(found, 1 if log2 else 0)
    if log2 and len(buckets) and not 0 <= buckets[0] <= buckets[-1] <= _LAST_LOG2:
        stray = buckets[0] if buckets[0] < 0 else buckets[-1]
        raise ProgramError(
            f"{name} has a bucket {stray}, and powers of two have those from 0 to {_LAST_LOG2}",
            hint="where buckets are the values themselves: hist('linear')",
        )
    if len(buckets) > _MAX_LINEAR:
        raise ProgramError(f"{name} has buckets from {buckets[0]:,} to {buckets[-1]:,}: too many for a histogram")
    bounds = [(_log2_low(i), 1 << i) if log2 else (i, i + 1) for i in buckets]
    index = pd.Index(buckets, dtype=np.int64, name="bucket")
    table = pd.DataFrame(np.array(bounds, np.float64).reshape(-1, 2), index, ["low", "high"])
    table["label"] = pd.array([_label(*pair) for pair in bounds], dtype=text_dtype())
    return table


def _span(found: npt.NDArray[Any], first: int) -> range:
    return range(min(first, int(found.min())), int(found.max()) + 1) if len(found) else range(0)


def _log2_low(bucket: int) -> int:
    return 1 << (bucket - 1) if bucket > 1 else 0


def _label(low: int, high: int) -> str:
    return f"[{low}]" if high - low == 1 else f"[{power_of_two(low)}, {power_of_two(high)})"


def _counts(frame: pd.DataFrame, bucket: str, groups: Sequence[str], value: str) -> pd.DataFrame:
    """Return the counts by bucket, in a column a value of ``groups``."""
    sums = frame.groupby([bucket, *groups], observed=True)[value].sum()
    if not groups:
        return sums.to_frame("count")
    table = sums.unstack(groups, fill_value=0)
    table.columns = pd.Index(list(table.columns), tupleize_cols=False)
    return table
