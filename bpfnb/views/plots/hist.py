"""How many values each bucket holds, as bars, or as an outline for each group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import StepPatch

from bpfnb.errors import ProgramError
from bpfnb.views import look
from bpfnb.views.plots import style
from bpfnb.views.plots.figure import axes_of

__all__ = ["Buckets", "buckets_of", "hist"]

Floats = npt.NDArray[np.float64]


class Buckets(NamedTuple):
    """Where buckets are drawn. ``left``, ``right``: as low and high, and places made up where those have none on the
    axis; ``log2``: whether the axis is logarithmic; ``named``: places that have a text of their own."""

    left: Floats
    right: Floats
    log2: bool
    named: Sequence[tuple[float, str]]


def hist(
    table: pd.DataFrame,
    ax: Axes | None = None,
    *,
    unit: str | None = None,
    log: bool = False,
    name: str = "",
    theme: str = "auto",
) -> Axes:
    """Draw a table as ``df.bpf.hist()`` and ``maps[x].hist()`` return it: low, high, and a column of counts or one for
    each group.

    Bars for one column, outlines for several. Powers of two stand on a logarithmic axis; the bucket [0], negative
    numbers and those without an end stand beside it. ``unit``: of low and high, for the ticks; unless told, what
    ``attrs["unit"]`` names. ``log``: a logarithmic axis of counts. ``name``: of what is counted.

    ValueError for a table without buckets, an unknown unit or theme.
    """
    unit = look.known_unit(unit or table.attrs.get("unit"))
    low, high, counts = _parts(table)
    ax, colours, ours = axes_of(ax, theme)
    buckets = buckets_of(low, high)
    if not len(buckets.left):
        style.empty(ax, "no values")
    elif len(counts.columns) == 1:
        _bars(ax, buckets, counts.iloc[:, 0].to_numpy(np.float64))
    else:
        handles = _outlines(ax, buckets, counts)
        style.legend(ax, list(counts.columns), handles, colours, beside=ours)
    _frame(ax, buckets, unit, log)
    style.plain(ax.xaxis.label).set_text(style.legible(name))
    return ax


def _parts(table: pd.DataFrame) -> tuple[Floats, Floats, pd.DataFrame]:
    """Return low, high and the counts. The first columns of these names are meant: a group may be called so, too."""
    names = list(table.columns)
    if missing := [name for name in ("low", "high") if name not in names]:
        raise ProgramError(f"no buckets here: there is no column {missing[0]!r}")
    bounds = [names.index(name) for name in ("low", "high", "label") if name in names]
    low, high = (table.iloc[:, place].to_numpy(np.float64) for place in bounds[:2])
    return low, high, table.iloc[:, [i for i in range(len(names)) if i not in bounds]]


def buckets_of(low: Floats, high: Floats) -> Buckets:
    """Return where buckets are drawn."""
    inside = (low > 0) & np.isfinite(high)
    log2 = bool(len(low)) and bool(np.all(np.isin(high[inside] / low[inside], 2.0)))
    return _on_log2(low, high) if log2 else _on_line(low, high)


def _on_log2(low: Floats, high: Floats) -> Buckets:
    """Buckets up to zero go where the axis has the powers below the least one: they are one wide, as all are."""
    positive = low[low > 0]
    least = positive.min() if len(positive) else 1.0
    left, right, named = low.copy(), high.copy(), []
    for place, (a, text) in enumerate(
        sorted({(a, _below(a, b)) for a, b in zip(low, high, strict=True) if a <= 0})[::-1]
    ):
        left[low == a], right[low == a] = least / 2 ** (place + 1), least / 2**place
        named.append((least / 2 ** (place + 0.5), text))
    with np.errstate(over="ignore"):
        right[np.isinf(right)] = left[np.isinf(right)] * 2
    right = np.minimum(right, np.finfo(np.float64).max)  # no axis goes on to infinity
    return Buckets(left, right, True, named)


def _below(low: float, high: float) -> str:
    return "0" if low == 0 else "<0" if high == 0 else f"<{look.short(high)}"


def _on_line(low: Floats, high: Floats) -> Buckets:
    """Buckets without an end are as wide as the widest of the others."""
    widths = (high - low)[np.isfinite(high - low)]
    width = float(widths.max()) if len(widths) else 1.0
    left = np.where(np.isfinite(low), low, np.where(np.isfinite(high), high - width, 0.0))
    right = np.where(np.isfinite(high), high, left + width)
    ends = [(left[i] + width / 2, f"<{look.short(high[i])}") for i in np.flatnonzero(np.isinf(low))]
    ends += [
        (left[i] + width / 2, f"\N{GREATER-THAN OR EQUAL TO}{look.short(low[i])}")
        for i in np.flatnonzero(np.isinf(high))
    ]
    return Buckets(left, right, False, ends)


def _bars(ax: Axes, buckets: Buckets, counts: Floats) -> None:
    ax.bar(
        buckets.left, counts, buckets.right - buckets.left, align="edge", color=look.colour(0), alpha=0.85,
        edgecolor="none", linewidth=0,
    )  # fmt: skip


def _outlines(ax: Axes, buckets: Buckets, counts: pd.DataFrame) -> list[StepPatch]:
    edges = np.unique(np.concatenate([buckets.left, buckets.right]))
    places = np.searchsorted(edges, buckets.left)
    made = []
    for i in range(len(counts.columns)):
        heights = np.zeros(max(len(edges) - 1, 0))
        heights[places] = counts.iloc[:, i].to_numpy(np.float64)
        other = look.is_other(counts.columns[i])
        made.append(
            ax.stairs(
                heights,
                edges,
                color=look.OTHER if other else look.colour(i),
                linestyle="-" if other else look.dashes(i),
                linewidth=1.6,
            )
        )
    return made


def _frame(ax: Axes, buckets: Buckets, unit: str | None, log: bool) -> None:
    style.plain(ax.yaxis.label).set_text("count")
    if not len(buckets.left):
        return
    with np.errstate(over="ignore"):  # up to the last float
        ax.set_xlim(buckets.left.min(), buckets.right.max())  # first: room beside it may be more than numbers go
    if log:
        ax.set_yscale("log", base=10)
    style.number_axis(ax.yaxis, whole=True)
    if buckets.log2:
        ax.set_xscale("log", base=2)
        style.log2_axis(ax.xaxis, unit, buckets.named)
    else:
        style.number_axis(ax.xaxis, look.with_unit(unit))
    style.from_zero(ax, 0.5 if log else 0)
