"""What one-liners answer: a session's maps and events -> DataFrames in long form.

Each function returns the ``Presentation`` of one of the six questions. Columns of ``by`` come first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb.errors import ProgramError
from bpfnb.language.oneliner.expressions import Member, Name
from bpfnb.language.oneliner.generate import UNREAD, Answer, Shown
from bpfnb.language.oneliner.question import Bins, Question
from bpfnb.language.oneliner.support import ZERO_SLOT
from bpfnb.results.arguments import require_shares
from bpfnb.results.buckets import duration, power_of_two
from bpfnb.results.columns.text import text_dtype
from bpfnb.results.decode import kind_of, with_decoded
from bpfnb.results.maps.map import Map
from bpfnb.results.presentation import Presentation, Rows, Table, TableView
from bpfnb.results.presentation import Shown as Made

__all__ = ["Known", "presentation", "quantiles"]


class Known:
    """What is known beside what a session counted: names that the machine it ran on has.

    ``cgroups``: paths by number, of those that were asked for.
    """

    def __init__(self, probes: Callable[[], Sequence[str]], cgroups: Mapping[int, str] | None = None) -> None:
        """``probes``: returns the probes by their number, once the session runs. ``cgroups``: all that are known, of a
        session of another time; unless told, they are those of this machine."""
        self.probes = probes
        self._machine = cgroups is None
        self.cgroups: dict[int, str] = dict(cgroups or {})

    def cgroup_paths(self, numbers: Sequence[int]) -> dict[int, str]:
        if self._machine:
            self.cgroups |= _cgroups(numbers)
        return self.cgroups


_VIEWS: dict[str, TableView] = {"hist": "hist", "latency": "hist", "stacks": "flame"}
_CGROUPS = Path("/sys/fs/cgroup")


def presentation(question: Question, answer: Answer, known: Known, shown: Callable[[], Made] = Made) -> Presentation:
    """Return how a one-liner's results become its ``df``. What a column's type tells is decoded in one beside it.
    ``shown``: what it is made again by, from a recording."""
    columns, kinds = answer.columns, _kinds(question, answer.columns)
    if question.verb == "rows":
        units = {column.column: "ns" for column in columns if column.column == "latency"}
        return Rows(lambda frame: with_decoded(_rows(frame, columns, known), kinds), units=units, shown=shown)

    def compute(maps: Mapping[str, Map]) -> pd.DataFrame:
        frame = _TABLES[question.verb](question, answer, maps)
        frame = with_decoded(_shown(frame, columns, known), kinds)
        frame.attrs.clear()
        frame.attrs.update(_losses(maps))
        if question.verb == "latency":
            frame.attrs["unit"] = "ns"
        return frame

    return Table(compute, view=_VIEWS.get(question.verb, "top"), shown=shown)


def _losses(maps: Mapping[str, Map]) -> dict[str, Any]:
    """Return ``attrs``: ``lost``, updates that the kernel refused; ``unread``, events without a value."""
    losses = {"lost": sum(map_.lost for map_ in maps.values())}
    if "unread" in maps:
        losses["unread"] = int(maps["unread"].df["value"].sum())
    return losses


# --- the questions ---


def _counts(question: Question, answer: Answer, maps: Mapping[str, Map]) -> pd.DataFrame:
    frame = maps["counts"].reduced("sum")
    names = [column.member for column in answer.columns]
    frame = frame.rename(columns={"value": "count"})[[*names, "count"]]
    frame = frame[frame["count"] > 0] if names else frame
    return frame.sort_values("count", ascending=False, kind="stable", ignore_index=True).astype({"count": np.int64})


def _stats(question: Question, answer: Answer, maps: Mapping[str, Map]) -> pd.DataFrame:
    frame = maps["stats"].df
    names = [column.member for column in answer.columns]
    frame = frame[frame["count"] > 0]
    frame["most"], frame["least"] = _turned(frame, answer.unsigned)
    # A group a key: pandas leaves out keys with missing values, and sums of uint64 stay exact.
    keys = frame[names] if names else pd.DataFrame({"all": np.zeros(len(frame), np.int8)}, frame.index)
    grouped = frame.drop(columns=[n for n in keys if n in frame]).groupby(
        [keys[name] for name in keys], observed=True, sort=False, dropna=False
    )
    table = grouped.agg(
        count=("count", "sum"), sum=("sum", "sum"), min=("least", "min"), max=("most", "max")
    ).reset_index()
    table = table.drop(columns="all", errors="ignore")
    table.insert(list(table.columns).index("min"), "mean", table["sum"].astype(np.float64) / table["count"])
    table = table.astype({"count": np.int64})
    return table.sort_values("count", ascending=False, kind="stable", ignore_index=True)


def _turned(frame: pd.DataFrame, unsigned: bool) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the greatest and the least values, which the program keeps so that zero is below all."""
    most, least = frame["most"].to_numpy(np.uint64), ~frame["least"].to_numpy(np.uint64)
    if unsigned:
        return most, least
    sign = np.uint64(1 << 63)
    return (most ^ sign).view(np.int64), (least ^ sign).view(np.int64)


def _hist(question: Question, answer: Answer, maps: Mapping[str, Map]) -> pd.DataFrame:
    frame = maps["hist"].reduced("sum")
    names = [column.member for column in answer.columns]
    if not names:
        frame = frame.rename(columns={"key": "slot"})
    frame = frame[frame["value"] > 0]
    frame = frame.sort_values([*names, "slot"], kind="stable", ignore_index=True)
    bounds = [_bounds(slot, question.bins) for slot in frame["slot"].tolist()]
    latency = question.verb == "latency"
    table = frame[names].copy()
    table["low"] = np.array([low for low, _ in bounds], np.float64)
    table["high"] = np.array([high for _, high in bounds], np.float64)
    table["label"] = pd.array([_label(low, high, question.bins, latency) for low, high in bounds], dtype=text_dtype())
    table["count"] = frame["value"].to_numpy(np.int64)
    return table


def _bounds(slot: int, bins: Bins | None) -> tuple[float, float]:
    """Return what a bucket holds: the values from low to below high."""
    if bins is not None:
        if slot == 0:
            return -math.inf, bins.low
        if slot > bins.count:
            return bins.high, math.inf
        low = bins.low + (slot - 1) * bins.step
        return low, min(low + bins.step, bins.high)
    if slot > ZERO_SLOT:
        return 1 << slot - ZERO_SLOT - 1, 1 << slot - ZERO_SLOT
    if slot == ZERO_SLOT:
        return 0, 1
    return 1 - (1 << ZERO_SLOT - slot), 1 - (1 << ZERO_SLOT - slot - 1)


def _label(low: float, high: float, bins: Bins | None, latency: bool) -> str:
    if bins is not None:
        write: Callable[[float], str] = lambda edge: str(int(edge))  # noqa: E731
    elif latency:
        write = lambda edge: duration(edge, 3)  # noqa: E731
    else:
        write = lambda edge: power_of_two(edge) if edge >= 0 else str(int(edge))  # noqa: E731
    if math.isinf(low):
        return f"(..., {write(high)})"
    if math.isinf(high):
        return f"[{write(low)}, ...)"
    return f"[{write(low)}]" if high - low == 1 and not latency else f"[{write(low)}, {write(high)})"


def _stacks(question: Question, answer: Answer, maps: Mapping[str, Map]) -> pd.DataFrame:
    counts = maps["counts"].reduced("sum").rename(columns={"value": "count"})
    names = [column.member for column in answer.columns]
    return maps["traces"].folded(counts[counts["count"] > 0], by=names, weight="count", owner="tgid")


_TABLES: dict[str, Callable[[Question, Answer, Mapping[str, Map]], pd.DataFrame]] = {
    "count": _counts,
    "stats": _stats,
    "hist": _hist,
    "latency": _hist,
    "stacks": _stacks,
}


def _rows(frame: pd.DataFrame, columns: Sequence[Shown], known: Known) -> pd.DataFrame:
    names = [column.member for column in columns]
    attrs = frame.attrs
    frame = frame[[*(name for name in ("time", "cpu") if name in frame and name not in names), *names]]
    frame = _shown(frame, columns, known)
    frame.attrs = attrs
    return frame


# --- columns ---


def _kinds(question: Question, columns: Sequence[Shown]) -> dict[str, str]:
    """Return what columns are decoded as: those that are an argument, a member or a result, the same for all probes."""
    kinds: dict[str, str] = {}
    taken = {column.column for column in columns}
    for asked, shown in zip(question.columns, columns, strict=True):
        node = asked.expression.root
        if shown.meaning is None or not isinstance(node, Name | Member):
            continue
        name = node.name if isinstance(node, Name) else node.path[-1]
        found = {kind_of(shown.meaning.text, name, probe) for probe in question.probes}
        if len(found) == 1 and (kind := found.pop()) and f"{shown.column}_{kind}" not in taken:
            kinds[shown.column] = kind
    return kinds


def _shown(frame: pd.DataFrame, columns: Sequence[Shown], known: Known) -> pd.DataFrame:
    """Return the frame with columns as they were asked for, and their values as people know them."""
    attrs = frame.attrs
    changed: dict[str, Any] = {}
    for column in columns:
        values = frame[column.member]
        if column.kind == "probe":
            changed[column.member] = _named(values, dict(enumerate(known.probes())), "probe ")
        elif column.kind == "cgroup":
            changed[column.member] = _named(values, known.cgroup_paths(values.unique().tolist()), "cgroup ")
        elif (
            column.kind == "text" and isinstance(values.dtype, pd.CategoricalDtype) and UNREAD in values.cat.categories
        ):
            changed[column.member] = values.cat.remove_categories([UNREAD])
    for column in columns:
        if column.meaning is not None and column.meaning.kind == "enum" and column.meaning.values:
            names = {number: name for name, number in reversed(column.meaning.values)}
            at = list(frame.columns).index(column.member) + 1
            frame.insert(at, f"{column.column}_enum", _named(frame[column.member], names, ""))
    frame = frame.assign(**changed).rename(columns={column.member: column.column for column in columns})
    frame.attrs = attrs
    return frame


def _named(numbers: pd.Series[Any], names: Mapping[int, str], otherwise: str) -> pd.Series[Any]:
    """Return numbers as a category of their names."""
    texts = [names.get(number, f"{otherwise}{number}") for number in numbers.tolist()]
    return pd.Series(pd.Categorical(pd.Series(texts, dtype=text_dtype())), index=numbers.index)


def _cgroups(wanted: Sequence[int]) -> dict[int, str]:
    """Return the paths of cgroups by their numbers, which are those of their folders' inodes."""
    found: dict[int, str] = {}
    for path in (_CGROUPS, *(path for path in _CGROUPS.rglob("*") if path.is_dir())):
        with suppress(OSError):  # it has gone meanwhile
            if (number := path.stat().st_ino) in wanted:
                found[number] = f"/{path.relative_to(_CGROUPS)}".removesuffix("/.") or "/"
        if len(found) == len(wanted):
            break
    return found


# --- quantiles ---


def quantiles(table: pd.DataFrame, wanted: Sequence[float]) -> pd.DataFrame:
    """Return the buckets that quantiles lie in, of a table of hist or latency: see Session.quantiles."""
    if not {"low", "high", "label", "count"} <= set(table.columns):
        raise ProgramError("quantiles are of a histogram: a session of hist or latency")
    require_shares(wanted)
    by = [name for name in table.columns if name not in ("low", "high", "label", "count")]
    groups = [table] if not by else [group for _, group in table.groupby(by, observed=True, sort=False, dropna=False)]
    picked = [_picked(group, by, share) for group in groups if len(group) for share in wanted]
    if not picked:
        empty = table.iloc[:0][[*by, "low", "high", "label"]]
        empty.insert(len(by), "quantile", np.zeros(0))
        return empty
    result = pd.concat(picked, ignore_index=True)
    result.attrs = table.attrs
    return result


def _picked(group: pd.DataFrame, by: list[str], share: float) -> pd.DataFrame:
    """Return the row of a group that a quantile lies in: the first with at least that share of all below its end."""
    below = group["count"].cumsum().to_numpy()
    at = int(np.searchsorted(below, max(1, math.ceil(share * int(below[-1])))))
    row = group.iloc[[at]][[*by, "low", "high", "label"]]
    row.insert(len(by), "quantile", share)
    return row
