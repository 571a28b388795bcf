"""When each process, thread or CPU was active."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb.errors import ProgramError, near_or_all
from bpfnb.results.events.groups import numbered_groups, require_few

__all__ = ["timeline"]

Ints = npt.NDArray[np.int64]

_OF_SPAN = 1000  # a gap of less than the whole span by this is not seen in a picture


def timeline(frame: pd.DataFrame, by: list[str], top: int, gap: str | None, duration: str | None) -> pd.DataFrame:
    """Return when each of the ``top`` most frequent groups was active: see EventsAccessor.timeline. The frame has its
    rows numbered."""
    require_few(top)
    starts, ends, known = _bounds(frame, duration)
    groups, names = numbered_groups(frame[by])
    known = known & (groups >= 0)
    starts, ends, groups, rows = starts[known], ends[known], groups[known], np.flatnonzero(known)

    sizes = np.bincount(groups, minlength=len(names))
    shown = np.sort(np.argsort(-sizes, kind="stable")[: min(top, int((sizes > 0).sum()))])
    chosen = np.isin(groups, shown)
    span = int(ends.max() - starts.min()) if len(starts) else 0
    first, begin, end, events = _joined(starts[chosen], ends[chosen], groups[chosen], _gap(gap, span))

    table = frame.loc[rows[chosen][first], by].reset_index(drop=True)
    for name, times in (("start", begin), ("end", end)):
        table[name] = pd.to_datetime(times, utc=True).as_unit("ns")
    table["events"] = events
    table.attrs = {"left_out": int((sizes > 0).sum()) - len(shown), "missing": int(len(frame) - len(rows))}
    return table


def _gap(gap: str | None, span: int) -> int:
    if gap is None:
        return span // _OF_SPAN
    try:
        allowed = pd.Timedelta(gap)
    except (ValueError, TypeError):
        raise ProgramError(f"not a duration: {gap!r}; write 1s, 100ms or 0s") from None
    if not allowed >= pd.Timedelta(0):
        raise ProgramError(f"a gap is not shorter than nothing: {gap!r}")
    return allowed.as_unit("ns").value


def _bounds(frame: pd.DataFrame, duration: str | None) -> tuple[Ints, Ints, npt.NDArray[np.bool_]]:
    """Return when each row begins and ends, in nanoseconds since 1970, and which rows say so."""
    if duration is None and _is_time(frame, "start") and _is_time(frame, "end"):
        starts, ends = _ns(frame["start"]), _ns(frame["end"])
        known = (frame["start"].notna() & frame["end"].notna()).to_numpy()
    else:
        if not _is_time(frame, "time"):
            raise ProgramError("a timeline needs times: a column time, or columns start and end")
        ends, known = _ns(frame["time"]), frame["time"].notna().to_numpy()
        starts = ends
        if column := _duration(frame, duration):
            lasted = frame[column]
            known = known & lasted.notna().to_numpy()
            starts = ends - pd.TimedeltaIndex(lasted.fillna(pd.Timedelta(0))).as_unit("ns").asi8
    return np.minimum(starts, ends), np.maximum(starts, ends), known


def _is_time(frame: pd.DataFrame, name: str) -> bool:
    return name in frame.columns and frame.dtypes[name].kind == "M"


def _ns(times: pd.Series[Any]) -> Ints:
    return np.asarray(pd.DatetimeIndex(times).as_unit("ns").asi8)


def _duration(frame: pd.DataFrame, name: str | None) -> str | None:
    """Return the column that says how long each row lasted, up to its time: the one named, or the only one there is."""
    durations = [str(column) for column in frame.columns if frame.dtypes[column].kind == "m"]
    if name is None:
        return durations[0] if len(durations) == 1 else None
    if name not in durations:
        raise ProgramError(f"no column of durations {name!r}{near_or_all(name, durations)}")
    return name


def _joined(starts: Ints, ends: Ints, groups: Ints, gap: int) -> tuple[Ints, Ints, Ints, Ints]:
    """Join a group's intervals that overlap, or are at most ``gap`` apart. Return a row of each, its beginning, its end
    and how many rows it is made of, by group and then by time."""
    if not len(starts):
        return starts, starts, starts, starts
    order = np.lexsort((starts, groups))
    starts, ends, groups = starts[order], ends[order], groups[order]
    changes = np.flatnonzero(np.diff(groups, prepend=groups[0] - 1))
    # How far a group's intervals have reached: the running maximum, begun anew at each group.
    reach = np.concatenate([np.maximum.accumulate(part) for part in np.split(ends, changes[1:])])
    apart = np.ones(len(starts), np.bool_)
    apart[1:] = (groups[1:] != groups[:-1]) | (starts[1:] > reach[:-1] + gap)
    first = np.flatnonzero(apart)
    last = np.append(first[1:], len(starts)) - 1
    return order[first], starts[first], reach[last], last - first + 1
