"""Histograms of a column over time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from bpfnb.errors import ProgramError
from bpfnb.results.buckets import HistKind, histogram
from bpfnb.results.rates import interval, intervals

__all__ = ["heatmap"]

_MAX_CELLS = 20_000_000


def heatmap(
    frame: pd.DataFrame,
    column: str,
    every: str,
    kind: HistKind = "log2",
    bins: int | Sequence[float] | None = None,
    unit: str | None = None,
) -> pd.DataFrame:
    """Count a column's values in each bucket and each interval of time: see EventsAccessor.heatmap. The frame has its
    rows numbered."""
    step = interval(every)
    starts = frame["time"].dt.floor(step)
    wide = histogram(frame[column], starts.to_frame(), kind, bins, unit)
    buckets = wide[["low", "high", "label"]]
    counted = wide.drop(columns=["low", "high", "label"])
    times = intervals(pd.DatetimeIndex(counted.columns), step) if len(counted.columns) else starts.iloc[:0]
    if len(times) * len(buckets) > _MAX_CELLS:
        raise ProgramError(
            f"every={every!r} makes {len(times):,} intervals of {len(buckets)} buckets: too many to count"
        )
    counts = counted.reindex(columns=times, fill_value=0).to_numpy(np.int64)
    table = pd.DataFrame({"time": np.repeat(pd.DatetimeIndex(times), len(buckets))})
    places = np.tile(np.arange(len(buckets)), len(times))
    for name in buckets.columns:
        table[name] = buckets[name].to_numpy()[places]
    table["count"] = counts.T.reshape(-1)
    table.attrs = dict(wide.attrs) | {"every": step}
    return table
