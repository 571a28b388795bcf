"""Each row as a point: its time, and a number or duration."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes

from bpfnb.errors import ProgramError
from bpfnb.results.events.groups import largest
from bpfnb.views import look
from bpfnb.views.plots import style
from bpfnb.views.plots.figure import axes_of

__all__ = ["scatter"]

_MAX_POINTS = 1_000_000


def scatter(
    frame: pd.DataFrame,
    value: str,
    by: list[str],
    ax: Axes | None = None,
    *,
    top: int = 7,
    unit: str | None = None,
    log: bool = True,
    theme: str = "auto",
) -> Axes:
    """Draw the rows of a frame that has times, numbered from 0: see ``df.bpf.plot_scatter``."""
    unit = look.known_unit(unit or ("ns" if frame.dtypes[value].kind == "m" else None))
    if len(frame) > _MAX_POINTS:
        raise ProgramError(
            f"{len(frame):,} points are more than a picture has room for: plot_heatmap({value!r}) shows all"
        )
    numbers = _numbers(frame[value], unit)
    groups, names = largest(frame[by], top) if by else (np.zeros(len(frame), np.int64), [""])
    known = np.isfinite(numbers) & frame["time"].notna().to_numpy() & (groups >= 0)
    drawn = known & (numbers > 0) if log else known
    ax, colours, ours = axes_of(ax, theme)
    x = style.time_places(pd.DatetimeIndex(frame["time"]))
    size = 3.5 if len(frame) <= 2_000 else 2.0
    handles = []
    for number in range(len(names)):
        rows = drawn & (groups == number)
        shade = look.OTHER if by and look.is_other(names[number]) else look.colour(number)
        handles += ax.plot(
            x[rows], numbers[rows], linestyle="", marker="o", markersize=size, color=shade, markeredgewidth=0,
            alpha=0.75, rasterized=True,
        )  # fmt: skip
    if drawn.any() and log:  # first: room above may be more than there are numbers
        ax.set_ylim(*np.clip([numbers[drawn].min() / 1.5, numbers[drawn].max() * 1.5], 1e-307, 1e307))
    _frame(ax, value, unit, log, bool(drawn.any()))
    if drawn.any():
        style.time_span(ax, x[drawn].min(), x[drawn].max())
    if by and drawn.any():
        style.legend(ax, names, handles, colours, beside=ours)
    style.note(ax, _left_out(len(frame) - int(known.sum()), int(known.sum() - drawn.sum())))
    return ax


def _numbers(column: pd.Series[Any], unit: str | None) -> npt.NDArray[np.float64]:
    kind = column.dtype.kind
    if kind == "m":
        ns = pd.TimedeltaIndex(column).as_unit("ns").asi8 / pd.Timedelta(1, look.pandas_unit(unit)).value
        return np.where(column.notna(), ns, np.nan)
    if kind not in "iuf":
        raise ProgramError(f"column {column.name!r} is {column.dtype}: points are of numbers or durations")
    return column.to_numpy(np.float64, na_value=np.nan)


def _frame(ax: Axes, value: str, unit: str | None, log: bool, any_drawn: bool) -> None:
    style.time_axis(ax)
    style.plain(ax.xaxis.label).set_text("time (UTC)")
    style.plain(ax.yaxis.label).set_text(style.legible(value))
    if not any_drawn:
        style.empty(ax, "no values")
    elif log:
        ax.set_yscale("log", base=2 if unit == "bytes" else 10)
        if unit == "bytes":
            style.log2_axis(ax.yaxis, unit)
        else:
            style.log10_axis(ax.yaxis, look.with_unit(unit))
    else:
        style.number_axis(ax.yaxis, look.with_unit(unit))


def _left_out(unknown: int, below: int) -> str:
    said = [f"{unknown:,} without a value" if unknown else "", f"{below:,} of zero or less" if below else ""]
    told = ", ".join(filter(None, said))
    return f"not shown: {told}" if told else ""
