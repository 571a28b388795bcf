"""Figures made without pyplot, and how a notebook comes to show them.

pyplot's figures are shown at a cell's end, since pyplot keeps a list of them; a ``Figure`` of one's own is not, and an
Axes at the end of a cell is a line of text. So an Axes made here is a picture where it is a cell's last expression, and
one that was not shown so is shown when its cell ends, once, as drawn by then: ``ax.set_title("...")`` still counts.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from PIL import Image  # matplotlib depends on it

from bpfnb.views import look
from bpfnb.views.look import Colours
from bpfnb.views.notebook import Notebook, notebook
from bpfnb.views.plots import style

__all__ = ["PlotAxes", "PlotFigure", "axes_of", "png", "show_at_cell_end"]

_WIDTH, _HEIGHT = 8.0, 2.9  # inches of 100 CSS pixels
_DPI = 100
_PALETTE = 256  # colours of a PNG
_SHARP = 1.5  # pixels of the PNG to a CSS pixel: sharp on most screens, at half the bytes of 2


class PlotAxes(Axes):
    """An Axes that a notebook shows as its picture, and whose texts are drawn as they are."""

    def draw(self, renderer: Any) -> None:
        self._settle_ticks()
        super().draw(renderer)

    def get_tightbbox(self, *args: Any, **options: Any) -> Any:
        self._settle_ticks()
        return super().get_tightbbox(*args, **options)

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        figure = self.figure
        return figure._repr_mimebundle_() if isinstance(figure, PlotFigure) else None

    def _settle_ticks(self) -> None:
        """Make all ticks that the view has, now, and have their labels drawn as they are. Those that matplotlib makes
        while it draws would be LaTeX's where the user's settings say so."""
        for axis in (self.xaxis, self.yaxis):
            for tick in axis.get_major_ticks(len(axis.get_majorticklocs())):
                for text in (tick.label1, tick.label2):
                    style.plain(text)
            style.plain(axis.get_offset_text())


class PlotFigure(Figure):
    """A Figure that a notebook shows."""

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        _at_cell_end.forget(self)
        width, height = self.get_size_inches() * _DPI
        data = {"image/png": base64.b64encode(png(self)).decode("ascii"), "text/plain": repr(self)}
        return data, {"image/png": {"width": int(width), "height": int(height)}}


def axes_of(ax: Axes | None, theme: str, height: float = _HEIGHT) -> tuple[Axes, Colours, bool]:
    """Return the Axes to draw on, its colours, and whether it is one of ours, made here or before. ``height``: of a new
    one, in inches."""
    colours = look.theme_of(theme)
    if ax is not None:
        return ax, colours, isinstance(ax, PlotAxes)
    figure = PlotFigure(figsize=(_WIDTH, height), dpi=_DPI, facecolor=colours.background, edgecolor="none")
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    ours = figure.add_subplot(axes_class=PlotAxes)
    style.draw_in(ours, colours)
    return ours, colours, True


def bar_beside(ax: Axes, what: ScalarMappable, most: float, colours: Colours, name: str) -> None:
    """Draw what the colours mean, from 0 to ``most``, right of an Axes."""
    bar = ax.figure.colorbar(what, ax=ax, pad=0.015, fraction=0.04, aspect=30)
    style.draw_in(bar.ax, colours)
    bar.ax.grid(visible=False)
    for spine in bar.ax.spines.values():
        spine.set_visible(False)
    bar.outline.set_visible(False)
    bar.ax.tick_params(left=False, right=True, labelleft=False, labelright=True)
    style.plain(bar.ax.yaxis.label).set_text(name)
    places = style.whole_steps(most)
    bar.set_ticks(places, labels=[look.short(place) for place in places])
    for text in bar.ax.yaxis.get_ticklabels():
        style.plain(text)


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG, in the colours it has: transparent where its background is none.

    With a palette: of four lines that is 30 KB instead of 76, of a heat map 17 instead of 30.
    """
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=_DPI * _SHARP, facecolor="auto", edgecolor="auto", bbox_inches=None)
    with Image.open(data) as image:
        pixels = np.asarray(image.convert("RGBA"))
    packed = io.BytesIO()
    _with_palette(pixels).save(packed, format="png")
    return packed.getvalue()


def _with_palette(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """Return an image of 256 colours: the most frequent half stay as they are, the other half are spread over all that
    there are, such as the rare end of a scale; the rest become the nearest. (Pillow's own tint white.)"""
    height, width, _ = pixels.shape
    packed = np.ascontiguousarray(pixels).view(np.uint32).reshape(-1)
    colours, places, counts = np.unique(packed, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    coarse = colours[order[_PALETTE // 2 :]] & np.uint32(0xE0E0E0E0)
    spread = np.sort(np.unique(coarse, return_index=True)[1])[: _PALETTE // 2] + _PALETTE // 2
    order = np.concatenate(
        [order[: _PALETTE // 2], order[spread], np.delete(order, np.r_[: min(_PALETTE // 2, len(order)), spread])]
    )
    rgba = colours[order].view(np.uint8).reshape(-1, 4).astype(np.int32)
    shown = rgba.copy()
    shown[:, :3] = rgba[:, :3] * rgba[:, 3:] // 255  # what is transparent has hardly a colour
    near = np.arange(len(order))
    for begin in range(_PALETTE, len(order), 1024):
        part = shown[begin : begin + 1024]
        near[begin : begin + 1024] = np.abs(part[:, None] - shown[None, :_PALETTE]).sum(axis=-1).argmin(axis=1)
    number = np.empty(len(order), np.uint8)
    number[order] = near
    image = Image.fromarray(number[places.reshape(-1)].reshape(height, width), mode="P")
    image.putpalette(rgba[:_PALETTE].astype(np.uint8).tobytes(), rawmode="RGBA")
    return image


# --- at a cell's end ----------------------------------------------------------------------------------------------


def show_at_cell_end(ax: Axes) -> None:
    """Have the notebook show an Axes of ours when the cell being run has ended, unless it was shown by then."""
    if isinstance(figure := ax.figure, PlotFigure) and (here := notebook()):
        _at_cell_end.add(figure, here)


class _AtCellEnd:
    """Figures that the cell being run has made and not shown."""

    def __init__(self) -> None:
        self._figures: list[PlotFigure] = []

    def add(self, figure: PlotFigure, here: Notebook) -> None:
        if not self._figures:
            here.at_cell_end(self._show)
        if figure not in self._figures:
            self._figures.append(figure)

    def forget(self, figure: PlotFigure) -> None:
        self._figures = [kept for kept in self._figures if kept is not figure]

    def _show(self, _: object) -> None:
        figures, self._figures = self._figures, []
        if here := notebook():
            here.forget(self._show)
            for figure in figures:
                data, metadata = figure._repr_mimebundle_()
                here.display(data, metadata)


_at_cell_end = _AtCellEnd()
