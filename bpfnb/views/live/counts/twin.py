"""Pictures of histograms and heat maps for a saved notebook, by matplotlib."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bpfnb.results.distributions.sources import Unit
from bpfnb.views.plots.figure import png
from bpfnb.views.plots.heatmap import heatmap
from bpfnb.views.plots.hist import hist

__all__ = ["heat_picture", "picture"]


def picture(table: pd.DataFrame, unit: Unit, name: str) -> bytes:
    """Return a histogram as a PNG. ``table``: low, high, label, and counts."""
    return _png(hist(table, unit=unit or None, name=name))


def heat_picture(table: pd.DataFrame, unit: Unit, step: int, name: str) -> bytes:
    """Return a heat map as a PNG. ``table``: time, low, high, label, count; intervals of ``step`` seconds."""
    table.attrs["every"] = pd.Timedelta(step, "s")
    return _png(heatmap(table, unit=unit or None, name=name))


def _png(ax: Axes) -> bytes:
    figure = ax.figure
    assert isinstance(figure, Figure)
    return png(figure)
