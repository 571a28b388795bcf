"""Events per second: kept up to date for a panel, or of a DataFrame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["RateMeter", "interval", "rate"]


class RateMeter:
    """Events per second over the last ``window`` seconds, kept up to date from what is new.

    ``source(row, by)`` is Output.since. ``update()``, then ``rates()``. ``total``: events seen so far. ``last``: the
    newest second with an event (seconds since 1970), or None.
    """

    def __init__(self, source: Callable[..., Any], by: str | None = None, window: int = 60) -> None:
        self._source = source
        self._by = by
        self._window = window
        self._row = 0
        self._counts: dict[str, dict[int, int]] = {}
        self.total = 0
        self.last: int | None = None

    def update(self) -> None:
        """Count what has arrived since the last call."""
        self._row, times, groups = self._source(self._row, self._by)
        if not len(times):
            return
        self.total += len(times)
        seconds = times // 1_000_000_000
        self.last = max(int(seconds.max()), self.last or 0)
        codes = np.zeros(len(times), np.int64) if groups is None else groups.codes.astype(np.int64)
        first, span = int(seconds.min()), int(np.ptp(seconds)) + 1
        cells, counts = np.unique(codes * span + (seconds - first), return_counts=True)
        for cell, count in zip(cells.tolist(), counts.tolist(), strict=True):
            code, second = divmod(cell, span)
            group = "" if groups is None else str(groups.categories[code]) if code >= 0 else "nan"
            of_group = self._counts.setdefault(group, {})
            of_group[first + second] = of_group.get(first + second, 0) + count

    def rates(self, now: float) -> pd.DataFrame:
        """Return the events in each of the last ``window`` whole seconds before ``now`` (seconds since 1970).

        int64, indexed by time (UTC); a column a group seen in that time ("" without ``by``).
        """
        last = int(now)
        seconds = range(last - self._window, last)
        for group, counts in list(self._counts.items()):
            for old in [second for second in counts if second < seconds[0]]:
                del counts[old]
            if not counts:
                del self._counts[group]
        index = pd.to_datetime(np.array(seconds), unit="s", utc=True)
        columns = {name: [counts.get(s, 0) for s in seconds] for name, counts in self._counts.items()}
        return pd.DataFrame(columns, index=index, dtype=np.int64)


def rate(frame: pd.DataFrame, every: str = "1s", by: str | Sequence[str] | None = None) -> pd.DataFrame:
    """Return events per second (float64) in intervals of ``every`` (a pandas offset, "100ms"), indexed by time.

    One column for each value of column ``by``, of several for each tuple, or the single column "rate". ValueError for
    an unknown column or interval, or when the frame has no times.
    """
    if not isinstance(frame.dtypes.get("time"), pd.DatetimeTZDtype):
        raise ValueError(
            "a rate needs times, and these events have none: the ring buffer they came through could not be stamped"
            " (its output's clock is None)"
        )
    names = [] if by is None else [by] if isinstance(by, str) else list(by)
    if missing := [name for name in names if name not in frame.columns]:
        raise ValueError(f"no column {missing[0]!r}: there are {', '.join(map(str, frame.columns))}")
    step = interval(every)
    start = frame["time"].dt.floor(step)
    if not names:
        counts = start.value_counts(sort=False).sort_index().to_frame("rate")
    else:
        counts = frame.groupby([start, *names], observed=True).size().unstack(names, fill_value=0)
        # Plain: a categorical one takes no further columns.
        name = names[0] if len(names) == 1 else None
        counts.columns = pd.Index(list(counts.columns), name=name, tupleize_cols=False)
    if len(counts):
        counts = counts.reindex(pd.date_range(counts.index[0], counts.index[-1], freq=step, name="time"), fill_value=0)
    counts.index.name = "time"
    rates: pd.DataFrame = counts / step.total_seconds()
    return rates


def interval(text: str, at_least: str = "") -> pd.Timedelta:
    """Return an interval written as a pandas offset, "100ms". ValueError for what is none, or less than another."""
    try:
        step = pd.Timedelta(text)
    except (ValueError, TypeError):
        raise ValueError(f"not an interval: {text!r}; write 1s, 100ms or 2min") from None
    if not step > pd.Timedelta(0):
        raise ValueError(f"an interval must be longer than nothing, not {text!r}")
    if at_least and step < pd.Timedelta(at_least):
        raise ValueError(f"an interval of at least {at_least} is needed, not {text!r}")
    return step
