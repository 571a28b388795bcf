"""How often each value occurred over time, as colours."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, PowerNorm, to_rgba

from bpfnb.errors import ProgramError
from bpfnb.views import look
from bpfnb.views.look import Colours
from bpfnb.views.plots import style
from bpfnb.views.plots.figure import axes_of, bar_beside
from bpfnb.views.plots.hist import Buckets, buckets_of

__all__ = ["heatmap"]

Floats = npt.NDArray[np.float64]

_NEEDED = ("time", "low", "high", "count")
_MAX_TIMES = 5_000
_COLOURS = LinearSegmentedColormap.from_list(
    "bpfnb_heat", [(place, to_rgba(colour, alpha)) for place, colour, alpha in look.HEAT]
)


def heatmap(
    table: pd.DataFrame, ax: Axes | None = None, *, unit: str | None = None, name: str = "", theme: str = "auto"
) -> Axes:
    """Draw a table as ``df.bpf.heatmap()`` and ``maps[x].every(...).hist()`` return it: a row for each time and bucket,
    in columns time, low, high and count. Rows of the same time and bucket are added up.

    A time's colours reach to the next time; the last is as wide as ``attrs["every"]``, or as the one before. Buckets
    stand as in ``hist``. ``unit``: of low and high; unless told, what ``attrs["unit"]`` names. ``name``: of the values.

    ValueError for a table without these columns, an unknown unit or theme, and more times than there is room for.
    """
    if missing := [column for column in _NEEDED if column not in table.columns]:
        raise ProgramError(f"this is no heat map, which has time, low, high and count: there is no {missing[0]!r}")
    unit = look.known_unit(unit or table.attrs.get("unit"))
    cells = table["count"].groupby([table["time"], table["low"], table["high"]]).sum()
    counts = cells.unstack("time", fill_value=0)
    if len(counts.columns) > _MAX_TIMES:
        raise ProgramError(
            f"{len(counts.columns):,} intervals are more than a picture has room for: choose longer ones, every=..."
        )
    ax, colours, _ = axes_of(ax, theme)
    style.time_axis(ax)
    style.plain(ax.xaxis.label).set_text("time (UTC)")
    style.plain(ax.yaxis.label).set_text(style.legible(name))
    if not len(counts):
        style.empty(ax, "no values")
        return ax
    low, high = (counts.index.get_level_values(side).to_numpy(np.float64) for side in ("low", "high"))
    buckets = buckets_of(low, high)
    _draw(ax, colours, buckets, _edges(pd.DatetimeIndex(counts.columns), table.attrs.get("every")), counts.to_numpy())
    _scale(ax, buckets, unit)
    return ax


def _edges(times: pd.DatetimeIndex, every: object) -> Floats:
    last = every if isinstance(every, pd.Timedelta) else times[-1] - times[-2] if len(times) > 1 else pd.Timedelta("1s")
    return style.time_places(times.union(times[-1:] + last))


def _draw(ax: Axes, colours: Colours, buckets: Buckets, x: Floats, counts: npt.NDArray[np.int64]) -> None:
    edges = np.unique(np.concatenate([buckets.left, buckets.right]))
    cells = np.zeros((len(edges) - 1, counts.shape[1]))
    cells[np.searchsorted(edges, buckets.left)] = counts
    most = max(float(cells.max()), 1.0)
    norm = PowerNorm(0.5, 0, most)
    mesh = ax.pcolormesh(
        x, edges, np.ma.masked_equal(cells, 0), cmap=_COLOURS, norm=norm, shading="flat", rasterized=True, linewidth=0
    )
    mesh.set_edgecolor("none")
    mesh.set_antialiased(False)
    bar_beside(ax, ScalarMappable(norm, _COLOURS), most, colours, "count")


def _scale(ax: Axes, buckets: Buckets, unit: str | None) -> None:
    ax.grid(visible=False)
    ax.set_ylim(buckets.left.min(), buckets.right.max())  # first: room beside it may be more than there are numbers
    if buckets.log2:
        ax.set_yscale("log", base=2)
        style.log2_axis(ax.yaxis, unit, buckets.named)
    else:
        style.number_axis(ax.yaxis, look.with_unit(unit))
