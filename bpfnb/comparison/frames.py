"""Two DataFrames side by side: of events, of buckets, or of anything that was counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from bpfnb.errors import ProgramError
from bpfnb.results.accessor import EventsAccessor
from bpfnb.results.answers import quantiles as bucket_quantiles
from bpfnb.results.arguments import Names, names_of, numbered, require_columns, require_shares
from bpfnb.results.buckets import HistKind

__all__ = [
    "durations",
    "groups",
    "histogram",
    "joined_buckets",
    "joined_quantiles",
    "kind_of",
    "quantiles",
    "top",
    "with_change",
]

_BUCKET = ["low", "high", "label"]
_ADDED_UP = ("count", "total", "bytes", "sum", "value")

Kind = Literal["events", "buckets", "a table"]


def kind_of(frame: pd.DataFrame, counted: bool) -> Kind:
    """Return what a session's ``df`` holds: an event a row, a histogram's buckets, or a table. ``counted``: the session
    makes it of maps."""
    if {*_BUCKET, "count"} <= set(frame.columns):
        return "buckets"
    return "a table" if counted else "events"


def with_change(table: pd.DataFrame) -> pd.DataFrame:
    """Add ``change`` and ``ratio`` to a table with numbers or durations ``a`` and ``b``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return table.assign(change=table["b"] - table["a"], ratio=table["b"] / table["a"])


def durations(a: pd.DataFrame, b: pd.DataFrame) -> list[str]:
    """Return the columns of durations that both have."""
    return [str(name) for name in a.columns if name in b.columns and a[name].dtype.kind == b[name].dtype.kind == "m"]


def groups(a: pd.DataFrame, b: pd.DataFrame, events: bool) -> list[str]:
    """Return what both are grouped by unless told: ``comm`` of events, of tables the columns of text."""
    both = [str(name) for name in a.columns if name in b.columns and _is_text(a[name]) and _is_text(b[name])]
    return both if not events else ["comm"] if "comm" in both else both[:1]


def histogram(
    a: pd.DataFrame,
    b: pd.DataFrame,
    column: str | None,
    kind: HistKind,
    bins: int | Sequence[float] | None,
    unit: str | None,
) -> pd.DataFrame:
    """Return the counts of both in the same buckets."""
    name = _chosen(a, b, column)
    side = np.repeat(["a", "b"], [len(a), len(b)])
    values = pd.concat([a[name], b[name]], ignore_index=True)
    table = EventsAccessor(pd.DataFrame({name: values, "session": side})).hist(name, "session", kind, bins, unit)
    for number, label in enumerate("ab"):
        if label not in table.columns:  # it has no rows
            table.insert(len(_BUCKET) + number, label, 0)
    attrs = {key: value for key, value in table.attrs.items() if key != "missing" or value}
    table = table[[*_BUCKET, "a", "b"]]
    table.attrs = attrs
    return table


def quantiles(a: pd.DataFrame, b: pd.DataFrame, column: str | None, shares: Sequence[float]) -> pd.DataFrame:
    """Return a column's values at the quantiles."""
    name = _chosen(a, b, column)
    require_shares(shares)
    for frame in (a, b):
        if frame[name].dtype.kind not in "miuf":
            raise ProgramError(f"column {name!r} is {frame[name].dtype}: quantiles are of numbers or durations")
    table = pd.DataFrame({"quantile": [float(share) for share in shares]})
    for side, frame in (("a", a), ("b", b)):
        table[side] = frame[name].quantile(list(shares)).to_numpy()
    return with_change(table)


def joined_buckets(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """Return the buckets of either with the counts of both, by group and from the lowest."""
    table = _joined(a, b, _BUCKET, ["count"]).rename(columns={"count_a": "a", "count_b": "b"})
    by = [str(name) for name in table.columns if name not in (*_BUCKET, "a", "b")]
    table = table.fillna({"a": 0, "b": 0}).astype({"a": np.int64, "b": np.int64})
    table = table.sort_values([*by, "low"], kind="stable", ignore_index=True)
    table.attrs = {key: value for key, value in a.attrs.items() if key == "unit"}
    return table


def joined_quantiles(a: pd.DataFrame, b: pd.DataFrame, shares: Sequence[float]) -> pd.DataFrame:
    """Return the buckets that the quantiles of both lie in, by group."""
    a, b = (bucket_quantiles(frame, list(shares)) for frame in (a, b))
    table = _joined(a, b, ["quantile"], _BUCKET)
    sides = [(f"{name}_{side}", side if name == "label" else f"{side}_{name}") for side in "ab" for name in _BUCKET]
    shown = ["a", "b", "a_low", "a_high", "b_low", "b_high"]
    table = table.rename(columns=dict(sides))
    return table[[*(name for name in table.columns if name not in shown), *shown]]


def top(
    a: pd.DataFrame,
    b: pd.DataFrame,
    seconds: tuple[float, float],
    events: bool,
    by: Names | None,
    n: int,
    value: str | None,
) -> pd.DataFrame:
    """Return the groups whose amount a second changed most."""
    names = names_of(by) or groups(a, b, events)
    if n < 1 or not names:
        raise ProgramError(f"top wants columns to group by and an n of at least 1, not by={by!r}, n={n}")
    if value is None and not events:
        value = next((name for name in _ADDED_UP if name in a.columns and name in b.columns), None)
        if value is None:
            raise ProgramError(f"what is to be added up? value=, one of {', '.join(map(str, a.columns))}")
    amounts = [_amounts(frame, names, value) / (time or np.nan) for frame, time in zip((a, b), seconds, strict=True)]
    table = pd.concat(amounts, axis=1, keys=["a", "b"]).fillna(0.0).rename_axis(names).reset_index()
    table = with_change(table)
    order = table["change"].abs().sort_values(ascending=False, kind="stable").index
    return table.loc[order].head(n).reset_index(drop=True)


def _amounts(frame: pd.DataFrame, names: list[str], value: str | None) -> pd.Series[Any]:
    require_columns(frame, names if value is None else [*names, value])
    if value is not None and frame[value].dtype.kind not in "iuf":
        raise ProgramError(f"column {value!r} cannot be added up: it is {frame[value].dtype}")
    keys = numbered(frame)[names].astype({name: object for name in names if frame[name].dtype == "category"})
    grouped = keys.assign(amount=1 if value is None else frame[value].to_numpy()).groupby(names, dropna=False)
    sums: pd.Series[Any] = grouped["amount"].sum().astype(np.float64)
    return sums


def _joined(a: pd.DataFrame, b: pd.DataFrame, at: list[str], values: list[str]) -> pd.DataFrame:
    """Join two tables by their groups and the columns ``at``. Columns of ``values`` are there twice."""
    by = [str(name) for name in a.columns if name not in (*_BUCKET, "count", "quantile")]
    other = [str(name) for name in b.columns if name not in (*_BUCKET, "count", "quantile")]
    if set(by) != set(other):
        raise ProgramError(f"these have different groups: {', '.join(by) or 'none'}, and {', '.join(other) or 'none'}")
    keys = [*by, *at]
    plain = [
        frame[[*keys, *values]].astype({name: object for name in keys if frame[name].dtype == "category"})
        for frame in (a, b)
    ]
    return plain[0].merge(plain[1], how="outer", on=keys, suffixes=("_a", "_b"))


def _chosen(a: pd.DataFrame, b: pd.DataFrame, column: str | None) -> str:
    """Return the column that is named, else the first of durations; ProgramError unless both have it."""
    if column is None:
        if not (found := durations(a, b)):
            raise ProgramError(f"which column? these have no durations: {', '.join(map(str, a.columns))}")
        return found[0]
    for frame in (a, b):
        require_columns(frame, [column])
    return column


def _is_text(values: pd.Series[Any]) -> bool:
    return isinstance(values.dtype, pd.CategoricalDtype) or pd.api.types.is_string_dtype(values.dtype)
