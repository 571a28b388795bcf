"""Pictures of histograms and heat maps for a saved notebook.

While a session runs a histogram is an SVG, which takes a hundredth of the time and a tenth of the bytes. At the end it
is a PNG, which readers of notebooks show that do not trust one. matplotlib, which takes most of a second to import, is
imported when a picture needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pandas as pd

from bpfnb.results.distributions.sources import Unit
from bpfnb.views import svg
from bpfnb.views.live.view import Static

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["heat_picture", "hist_static"]


def hist_static(text: str, table: pd.DataFrame, unit: Unit, name: str, ended: bool) -> Static:
    """Return the static twin of a histogram. ``table``: low, high, label, and counts."""
    if not ended:
        return Static(text, "", svg.hist(table, unit=unit or None), "image/svg+xml")
    from bpfnb.views.plots.hist import hist

    return Static(text, "", _png(hist(table, unit=unit or None, name=name)), "image/png")


def heat_picture(table: pd.DataFrame, unit: Unit, step: int, name: str) -> bytes:
    """Return a heat map as a PNG. ``table``: time, low, high, label, count; intervals of ``step`` seconds."""
    from bpfnb.views.plots.heatmap import heatmap

    table.attrs["every"] = pd.Timedelta(step, "s")
    return _png(heatmap(table, unit=unit or None, name=name))


def _png(ax: Axes) -> bytes:
    from bpfnb.views.plots.figure import png

    return png(cast("Figure", ax.figure))
