"""Histograms that the kernel counts, as tables in long form: a row a bucket of each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bpfnb.results.columns.text import text_dtype
from bpfnb.results.maps.map import Map
from bpfnb.results.presentation import Table
from bpfnb.tools.tool import Column

__all__ = ["COLUMNS", "durations"]

_NANOSECONDS = {"us": 1_000, "ms": 1_000_000}
_MAX_BUCKET = 43  # 2**43 ms: the longest power of two that timedelta64[ns] can say

COLUMNS = (
    Column("low", "", "where the bucket begins", "timedelta"),
    Column("high", "", "where it ends: what is counted is below", "timedelta"),
    Column("label", "LATENCY", "both as text", width=24),
    Column("count", "COUNT", "how many are in it"),
)


def durations(name: str, unit: str, by: Sequence[str] = ()) -> Table:
    """Return how a map is shown that counts durations by powers of two of ``unit``, "us" or "ms".

    Its key has the columns of ``by`` and ``slot``, a bucket as bpf_log2l() numbers them. Each group begins with the
    first bucket, as bcc's do, and ends with the last that counts something.
    """
    return Table(lambda maps: _durations(maps[name], unit, list(by)))


def _durations(counted: Map, unit: str, by: list[str]) -> pd.DataFrame:
    frame = counted.reduced("sum").rename(columns={"value": "count"})
    frame = frame[frame["count"] > 0].astype({"slot": np.int64})
    groups = frame.groupby(by, observed=True, sort=True) if by else [((), frame)] if len(frame) else []
    parts = [_filled(group, dict(zip(by, key, strict=True))) for key, group in groups]
    buckets = pd.concat(parts, ignore_index=True) if parts else frame[[*by, "slot", "count"]]
    table = buckets[by].astype({column: frame[column].dtype for column in by})
    slots = buckets["slot"].clip(upper=_MAX_BUCKET)
    low, high = np.left_shift(1, slots - 1) * (slots > 1), np.left_shift(1, slots)
    labels = [f"[{a}{unit}, {b}{unit})" for a, b in zip(low, high, strict=True)]
    result = table.assign(
        low=pd.to_timedelta(low * _NANOSECONDS[unit]),
        high=pd.to_timedelta(high * _NANOSECONDS[unit]),
        label=pd.array(labels, dtype=text_dtype()),
        count=buckets["count"].astype(np.int64),
    )
    result.attrs = dict(frame.attrs)
    return result


def _filled(group: pd.DataFrame, key: Mapping[str, Any]) -> pd.DataFrame:
    """Return all buckets of a group up to its last, those that count nothing as well."""
    buckets = group.set_index("slot")["count"].reindex(range(1, group["slot"].max() + 1), fill_value=0)
    return buckets.rename_axis("slot").reset_index().assign(**key)
