"""Events per second over time, a line a column."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes

from bpfnb.errors import ProgramError
from bpfnb.views import look
from bpfnb.views.plots import style
from bpfnb.views.plots.figure import axes_of

__all__ = ["rate"]

_MAX_LINES = 24  # with as many different looks; more could not be told apart
_MAX_POINTS = 100_000  # of a line: more take long, and there are a thousand pixels


def rate(
    table: pd.DataFrame, ax: Axes | None = None, *, theme: str = "auto", numbers: Sequence[int] | None = None
) -> Axes:
    """Draw a table as ``df.bpf.rate()`` returns it: indexed by time, a line for each column, named by it.

    A column called "other", or "other (12)", is drawn grey. ValueError for an index that has no times, for more columns
    than can be told apart, and for an unknown theme. ``numbers``: of the columns' colours; by default their own.
    """
    if not isinstance(table.index, pd.DatetimeIndex):
        raise ProgramError(f"a rate is drawn over time: the table's index has none (it is {table.index.dtype})")
    if len(table.columns) > _MAX_LINES:
        raise ProgramError(f"{len(table.columns):,} lines cannot be told apart: draw the largest, rate(by=..., top=10)")
    if len(table) > _MAX_POINTS:
        raise ProgramError(
            f"{len(table):,} intervals are more than a picture has room for: choose longer ones, every=..."
        )
    ax, colours, ours = axes_of(ax, theme)
    x = style.time_places(table.index)
    handles = []
    for i, name in enumerate(table.columns):
        values = table[name].to_numpy(np.float64) if table.columns.is_unique else table.iloc[:, i].to_numpy(np.float64)
        other = look.is_other(name)
        number = numbers[i] if numbers and i < len(numbers) else i
        line_colour = look.OTHER if other else look.colour(number)
        (line,) = ax.plot(
            x, values, color=line_colour, linestyle="-" if other else look.dashes(number), linewidth=1.6,
            marker="o" if len(x) == 1 else "", markersize=4, solid_joinstyle="round", solid_capstyle="round",
        )  # fmt: skip
        handles.append(line)
    if len(handles) == 1 and len(x) > 1:
        ax.fill_between(x, handles[0].get_ydata(), color=look.colour(0), alpha=0.13, linewidth=0)
    _frame(ax, x)
    if len(handles) > 1:
        style.legend(ax, list(table.columns), handles, colours, beside=ours)
    return ax


def _frame(ax: Axes, x: npt.NDArray[np.float64]) -> None:
    style.time_axis(ax)
    style.number_axis(ax.yaxis)
    style.plain(ax.yaxis.label).set_text("events per second")
    style.plain(ax.xaxis.label).set_text("time (UTC)")
    if len(x) > 1:
        ax.set_xlim(x[0], max(x[-1], x[0] + 5e-6 / 86_400))  # a place is as exact as half a microsecond
    elif not len(x):
        style.empty(ax, "no events")
    style.from_zero(ax)
