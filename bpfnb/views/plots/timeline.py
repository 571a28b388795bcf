"""When each process, thread or CPU was active: a row for each, a bar for each time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection

from bpfnb.errors import ProgramError
from bpfnb.views import look
from bpfnb.views.plots import style
from bpfnb.views.plots.figure import axes_of

__all__ = ["timeline"]

_MAX_ROWS = 100
_MAX_BARS = 200_000
_ROW = 0.22  # inches
_THICK = 0.7  # of a row


def timeline(table: pd.DataFrame, ax: Axes | None = None, *, theme: str = "auto") -> Axes:
    """Draw a table as ``df.bpf.timeline()`` returns it: a row for each value of its first columns, a bar from start to
    end for each of the table's rows. The first value stands at the top. A bar is a pixel wide at least.

    ValueError for a table without start and end, more values or bars than there is room for, and an unknown theme.
    """
    if missing := [name for name in ("start", "end") if name not in table.columns]:
        raise ProgramError(f"no times to draw here: there is no column {missing[0]!r}")
    by = list(table.columns[: list(table.columns).index("start")])
    rows, names = _rows(table, by)
    if len(names) > _MAX_ROWS or len(table) > _MAX_BARS:
        raise ProgramError(
            f"{len(names):,} rows of {len(table):,} bars are more than a picture has room for: choose a smaller top="
            " or a longer gap="
        )
    ax, _, _ = axes_of(ax, theme, 0.75 + _ROW * max(len(names), 4))
    start, end = (style.time_places(pd.DatetimeIndex(table[side])) for side in ("start", "end"))
    low, high = rows - _THICK / 2, rows + _THICK / 2
    corners = np.stack([np.stack([start, start, end, end], -1), np.stack([low, high, high, low], -1)], -1)
    # An edge as wide as a pixel: a moment is seen.
    bars = PolyCollection(list(corners), facecolors=look.colour(0), edgecolors=look.colour(0), linewidths=0.7)
    ax.add_collection(bars)
    style.time_axis(ax)
    style.plain(ax.xaxis.label).set_text("time (UTC)")
    if not len(table):
        style.empty(ax, "no events")
        return ax
    style.plain(ax.yaxis.label).set_text(style.legible(", ".join(map(str, by))))
    style.fixed(ax.yaxis, range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    style.time_span(ax, start.min(), end.max())
    if left_out := table.attrs.get("left_out"):
        style.note(ax, f"the most active {len(names):,}; {left_out:,} more not shown")
    return ax


def _rows(table: pd.DataFrame, by: list[str]) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Return the number of each bar's row, in the order that the table has them, and what stands beside the rows."""
    keys = pd.Series(list(zip(*(table[name] for name in by), strict=True)), dtype=object)
    rows, values = pd.factorize(keys)
    return rows, [style.legible(" ".join(map(str, value)), 24) for value in values]
