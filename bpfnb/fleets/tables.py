"""What hosts reduce their rows to, and how the client adds that up: sums travel, rows do not. No dask here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bpfnb.errors import ProgramError
from bpfnb.results.arguments import numbered, require_columns, require_known, require_times
from bpfnb.results.buckets import HistKind, histogram
from bpfnb.results.rates import interval, intervals

__all__ = [
    "AGGREGATES",
    "HOST",
    "Groups",
    "add_groups",
    "add_rates",
    "buckets",
    "counts",
    "groups",
    "merged",
    "plain",
    "summed",
    "with_host",
]

HOST = "host"
AGGREGATES = ("sum", "max", "min")
_MAX_GROUPS = 10_000  # of a host that travel
_BUCKET = ["low", "high", "label"]


@dataclass(frozen=True)
class Groups:
    """A host's groups: ``frame`` has their columns, then the aggregate. ``left_out``: rows of groups that were too many
    to travel; ``rows``: of all."""

    frame: pd.DataFrame
    rows: int
    left_out: int


def with_host(frame: pd.DataFrame, host: str, hosts: Sequence[str]) -> pd.DataFrame:
    """Return a host's rows with the column ``host`` in front, a category of all hosts (in place of one of that name,
    which becomes ``host_``)."""
    frame = pd.DataFrame(frame).rename(columns={HOST: f"{HOST}_"})
    codes = np.full(len(frame), list(hosts).index(host))
    column = pd.Categorical.from_codes(codes, categories=pd.Index(list(hosts), dtype=str))
    frame.insert(0, HOST, pd.Series(column, index=frame.index))
    return frame


# --- the largest groups ---


def groups(frame: pd.DataFrame, by: Sequence[str], value: str | None, how: str) -> Groups:
    """Return a host's groups, the largest first: how many rows, or of ``value`` the sum, the largest or the least."""
    require_columns(frame, by if value is None else [*by, value])
    grouped = numbered(frame).groupby(list(by), observed=True, sort=False) if by else None
    if value is not None and frame[value].dtype.kind not in "iufm":
        raise ProgramError(f"column {value!r} has no numbers")
    name = "count" if value is None else how
    if grouped is None:
        whole = len(frame) if value is None else frame[value].agg(how)
        return Groups(pd.DataFrame({name: [whole]}), len(frame), 0)
    sizes = grouped.size()
    found = sizes if value is None else grouped[value].agg(how)
    table = found.sort_values(ascending=False, kind="stable").head(_MAX_GROUPS)
    left_out = int(sizes.sum() - sizes[table.index].sum()) if len(sizes) > _MAX_GROUPS else 0
    return Groups(_plain(table.reset_index(name=name)), len(frame), left_out)


def add_groups(found: Mapping[str, Groups], by: Sequence[str], n: int, name: str) -> pd.DataFrame:
    """Add up the groups of hosts: the ``n`` largest, with the columns of ``by`` (``host`` may be one) and ``name``."""
    frames = [part.frame.assign(**{HOST: host}) for host, part in found.items()]
    if not frames:
        return pd.DataFrame(columns=[*by, name])
    how = {"max": "max", "min": "min"}.get(name, "sum")
    table = _concat(frames).groupby(list(by), observed=True, sort=False)[name].agg(how)
    largest = table.sort_values(ascending=False, kind="stable").head(n).reset_index(name=name)
    largest.attrs["left_out"] = sum(part.left_out for part in found.values())
    return largest


# --- histograms ---


def buckets(frame: pd.DataFrame, column: str, by: Sequence[str], kind: HistKind, edges: Sequence[float] | None,
            unit: str | None) -> pd.DataFrame:  # fmt: skip
    """Return a host's histogram in long form: the columns of ``by``, then low, high, label, count."""
    require_columns(frame, [column, *by])
    pieces: list[pd.DataFrame] = []
    split = numbered(frame).groupby(list(by), observed=True, sort=False) if by else [((), frame)]
    for group, rows in split:
        table = histogram(rows[column].reset_index(drop=True), pd.DataFrame(index=range(len(rows))), kind, edges, unit)
        table = pd.DataFrame(table)
        values: Any = group if isinstance(group, tuple) else (group,)
        for at, (name, value) in enumerate(zip(by, values, strict=True)):
            table.insert(at, name, value)
        pieces.append(table)
    whole = pd.concat(pieces, ignore_index=True) if pieces else pd.DataFrame(columns=[*by, *_BUCKET, "count"])
    return _plain(whole[whole["count"] > 0].reset_index(drop=True))


def summed(frames: Mapping[str, pd.DataFrame], by: Sequence[str] | None = None) -> pd.DataFrame:
    """Add up tables of hosts: rows that are the same but for "count" (with "sum", "mean", "min" and "max" where they
    are there). ``by``: the columns that tell rows apart, such as ``host``; unless told all there are but ``host``."""
    whole = _concat([pd.DataFrame(frame).assign(**{HOST: host}) for host, frame in frames.items()])
    numbers = [name for name in ("count", "sum", "mean", "min", "max") if name in whole]
    if "count" not in numbers:
        raise ProgramError("this table has no counts: it does not add up over hosts")
    tail = [name for name in _BUCKET if name in whole]
    known = [name for name in whole if name not in (*numbers, *tail)]
    keys = [name for name in known if name != HOST] if by is None else list(by)
    if missing := [name for name in keys if name not in known]:
        raise ProgramError(f"no column {missing[0]!r}: there are {', '.join(map(str, known))}")
    how = {"count": "sum", "sum": "sum", "min": "min", "max": "max"}
    columns = {name: how[name] for name in numbers if name != "mean"}
    grouped = [*keys, *tail]
    if not grouped:
        table = whole.agg(columns).to_frame().T
    else:
        table = whole.groupby(grouped, observed=True, sort=False, dropna=False).agg(columns).reset_index()
    if "mean" in numbers and "sum" in numbers:
        table.insert(list(table.columns).index("sum") + 1, "mean", table["sum"].astype(float) / table["count"])
    order, up = ([*keys, "low"], True) if tail else (["count"], False)
    table = table.sort_values(order, ascending=up, kind="stable", ignore_index=True)
    table.attrs = {name: next(iter(frames.values())).attrs[name] for name in ("unit",) if frames and all(
        name in frame.attrs for frame in frames.values())}  # fmt: skip
    return table[[*keys, *tail, *numbers]].astype({"count": np.int64})


# --- rates ---


def counts(frame: pd.DataFrame, every: str, by: Sequence[str], offset_ns: int) -> pd.DataFrame:
    """Count a host's rows in intervals of the client's clock: ``time``, the columns of ``by``, ``count``."""
    require_times(frame, "a rate")
    require_columns(frame, by)
    start = (frame["time"] - pd.Timedelta(offset_ns, "ns")).dt.floor(interval(every))
    table = frame[list(by)].assign(time=start)
    return _plain(table.groupby(["time", *by], observed=True).size().reset_index(name="count"))


def add_rates(found: Mapping[str, pd.DataFrame], every: str, by: Sequence[str]) -> pd.DataFrame:
    """Return events per second, indexed by time, with the columns of ``Session.rate``."""
    step = interval(every)
    whole = _concat([frame.assign(**{HOST: host}) for host, frame in found.items()])
    if by:
        table = whole.groupby(["time", *by], observed=True)["count"].sum().unstack(list(by), fill_value=0)
        name = by[0] if len(by) == 1 else None
        table.columns = pd.Index(list(table.columns), name=name, tupleize_cols=False)
    else:
        table = whole.groupby("time", observed=True)["count"].sum().to_frame("rate")
    if len(table):
        table = table.reindex(intervals(pd.DatetimeIndex(table.index), step), fill_value=0)
    table.index.name = "time"
    rates: pd.DataFrame = table / step.total_seconds()
    return rates


def merged(frames: Mapping[str, pd.DataFrame], keys: Sequence[str], values: Sequence[str], how: str) -> pd.DataFrame:
    """Reduce a map's values over hosts and CPUs: a row a key."""
    require_known("reduction over hosts", how, AGGREGATES)
    whole = _concat(list(frames.values()))
    numbers = [name for name in values if name in whole and whole[name].dtype.kind in "iuf"]
    if not len(whole) or not keys:
        return whole[[*keys, *numbers]] if keys else whole[numbers].agg(how).to_frame().T
    # Sums are 64 bits wide, as those over CPUs are.
    wide = whole.astype({name: _wide(whole[name].dtype) for name in numbers}) if how == "sum" else whole
    return wide.groupby(list(keys), observed=True, sort=False, dropna=False)[numbers].agg(how).reset_index()


def _wide(dtype: Any) -> Any:
    return {"i": np.int64, "u": np.uint64, "f": np.float64}[dtype.kind]


def _concat(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Put frames one behind the other; categories become text, since those of hosts differ."""
    return pd.concat([_plain(frame) for frame in frames], ignore_index=True) if frames else pd.DataFrame()


def plain(column: pd.Series[Any]) -> pd.Series[Any]:
    """Return a column; a category as its values."""
    return column.astype(column.dtype.categories.dtype) if isinstance(column.dtype, pd.CategoricalDtype) else column


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    columns = {name: plain(frame[name]) for name in frame}
    return pd.DataFrame(columns, index=frame.index, columns=frame.columns)
