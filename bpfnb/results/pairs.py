"""Pairs of events: an end matched with the most recent start of its key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb.errors import ProgramError
from bpfnb.results.arguments import numbered, require_columns, require_once
from bpfnb.results.printk import PrintkTable

__all__ = ["THREAD", "Chosen", "pair_up", "thread_column"]

Array: TypeAlias = npt.NDArray[Any]

THREAD = "the thread"  # what between() pairs by unless told


class Chosen:
    """The chosen rows of a frame that have a key and a time.

    ``chosen``: how many there were, those without included. ``positions``: where in the frame. ``ns``: their times,
    nanoseconds of ``clock``.
    """

    def __init__(
        self, frame: pd.DataFrame, mask: npt.NDArray[np.bool_], keys: Iterable[str], time: str, others: Iterable[str]
    ) -> None:
        needed = [*keys, time]
        require_columns(frame, [*needed, *others])
        columns = list(dict.fromkeys([*needed, *others]))
        self.chosen = int(mask.sum())
        self.rows = numbered(frame[columns])[mask].dropna(subset=needed)
        self.positions = self.rows.index.to_numpy()
        self.clock, self.ns = _clock(self.rows[time])

    def take(self, name: str, where: Array) -> Any:
        return self.rows[name].array[where]


def pair_up(
    starts: Chosen,
    ends: Chosen,
    ranks: Sequence[Array],
    keys: Mapping[str, str],
    time: str,
    of_start: Sequence[str],
    of_end: Sequence[str],
) -> pd.DataFrame:
    """Make a row for each start that has an end: see EventsAccessor.between.

    ``ranks``: of the starts and of the ends, their order where times are equal. ``keys``: {in the starts: in the ends}.
    """
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
    require_once(name for name, _ in columns)
    pairs = pd.DataFrame(dict(columns))
    pairs.attrs = {"unmatched_starts": starts.chosen - len(pairs), "unmatched_ends": ends.chosen - len(pairs)}
    return pairs


def thread_column(frames_: Sequence[pd.DataFrame]) -> str:
    """Return the column that has the thread's number in all of these frames."""
    common = [name for name in frames_[0].columns if all(name in frame.columns for frame in frames_)]
    if "tid" in common:
        return "tid"
    if all(set(PrintkTable.COLUMNS) <= set(frame.columns) for frame in frames_):
        return "pid"
    keys = [name for name in common if name != "time" and frames_[0][name].dtype.kind in "iubO"]
    keys = [name for name in keys if name not in ("ts", "time_")]
    known = f": {', '.join(map(str, keys))}" if keys else ""
    raise ProgramError(
        f"between() wants to know which columns tell whose start an end belongs to, by=...{known}; threads need their"
        " own number (tid: (u32)bpf_get_current_pid_tgid()); by=None is for all events together"
    )


def _clock(column: pd.Series[Any]) -> tuple[str, npt.NDArray[np.int64]]:
    """Return what kind of time a column is, and its times in nanoseconds."""
    if column.dtype.kind == "M":
        times = pd.DatetimeIndex(column)
        return "datetime64" if times.tz is None else "datetime64 with a timezone", times.as_unit("ns").asi8
    if column.dtype.kind in "iu":
        return "whole nanoseconds", column.to_numpy(np.int64)
    raise ProgramError(f"column {column.name!r} is {column.dtype}: times are datetime64 or whole nanoseconds")


def _codes(keys: list[tuple[pd.Series[Any], pd.Series[Any]]], rows: int) -> npt.NDArray[np.int64]:
    """Return a number for each key, of the starts and then of the ends."""
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
    """Match starts, of which ``starts`` come first, with the ends behind them: which starts, in order, with which ends.

    Events of a key at the same time follow each other by rank. With all in that order, a pair is a start whose very
    next event is an end of the same key.
    """
    order = np.lexsort((ranks, ns, codes))
    codes, is_start = codes[order], order < starts
    found = np.flatnonzero(is_start[:-1] & ~is_start[1:] & (codes[:-1] == codes[1:]))
    first, last = order[found], order[found + 1] - starts
    by_start = np.lexsort((first, ns[first]))
    return first[by_start], last[by_start]
