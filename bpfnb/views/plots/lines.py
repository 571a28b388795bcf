"""The chart of a panel: events per second over the last minute, a line a session or a group.

Uses matplotlib's object interface only. pyplot belongs to the notebook's user: it is not ours to change, and not safe
from a thread. The same holds for its settings (rcParams): all that could come from them is given here, so that a style
or LaTeX chosen by the user changes nothing. The axes' ticks are plain texts for the same reason, placed by
matplotlib.ticker, and because matplotlib's own take half of the time of a paint.

The background is transparent and the colours are of medium lightness: legible in a light and in a dark notebook.
"""

from __future__ import annotations

import io
import time
from collections.abc import Hashable, Iterable, Sequence
from itertools import zip_longest
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, MaxNLocator

from bpfnb.errors import printable

__all__ = ["COLOURS", "HEIGHT", "SECONDS", "WIDTH", "Curve", "RatesFigure", "pick"]

WIDTH, HEIGHT = 800, 230  # of the picture as shown, in CSS pixels
SECONDS = 60
_SCALE = 1.5  # pixels of the PNG to a CSS pixel: sharp on most screens, at half the work of 2
_FAST = {"compress_level": 1}  # compressing is half of a paint; the default level takes twice as long for a tenth less
_MAX_LINES = 10  # "other" included
_LEFT, _RIGHT, _LEGEND, _TOP, _BOTTOM = 52, 12, 186, 28, 26  # margins; _LEGEND: the right one when there are names

COLOURS = ("#3b8eea", "#f08c2e", "#2fa866", "#c06ad6", "#e5534b", "#14a5b8", "#b39a1e", "#8b7cf0", "#e06a9c")
_OTHER = "#8b9099"
_INK = "#828891"

_LEVELS = MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=True)
_SHORT = EngFormatter(sep="", usetex=False, useMathText=False)


class Curve(NamedTuple):
    """A line of the picture. ``counts``: events in each of the last SECONDS seconds, the newest last. ``key`` keeps a
    line its colour from paint to paint."""

    key: Hashable
    label: str
    counts: npt.NDArray[np.int64]


def pick(curves: Iterable[Curve], most: int = _MAX_LINES) -> list[Curve]:
    """Return the busiest curves, in the order given, and the others summed into a last one."""
    curves = list(curves)
    if len(curves) <= most:
        return curves
    totals = np.array([curve.counts.sum() for curve in curves])
    chosen = set(np.argsort(-totals, kind="stable")[: most - 1].tolist())
    rest = [curve.counts for i, curve in enumerate(curves) if i not in chosen]
    other = Curve(None, f"other ({len(rest)})", np.sum(rest, axis=0))
    return [curve for i, curve in enumerate(curves) if i in chosen] + [other]


class RatesFigure:
    """A figure kept from paint to paint: lines and texts are made once and then moved. For one thread at a time."""

    def __init__(self) -> None:
        self._figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100 * _SCALE, facecolor="none")
        self._figure.set_layout_engine("none")
        self._canvas: Any = FigureCanvasAgg(self._figure)  # parts of it have no types
        self._font = font_manager.FontProperties(family="DejaVu Sans", size=8)  # the one matplotlib brings along
        self._axes = self._figure.add_axes((0, 0, 1, 1), facecolor="none")
        self._axes.set_axis_off()
        self._grid = [self._line(_INK, 0.6, alpha=0.28) for _ in range(6)]
        self._levels = [self._text(ha="right", va="center") for _ in range(6)]
        self._times = [self._text(ha="center", va="top") for _ in range(5)]
        self._unit = self._text(ha="left", va="center")
        self._unit.set_text("events per second")
        self._area = Polygon(np.zeros((1, 2)), closed=True, linewidth=0, alpha=0.13)
        self._axes.add_patch(self._area)
        self._lines = [self._line(_OTHER, 1.6) for _ in range(_MAX_LINES)]
        self._swatches = [self._line(_OTHER, 2.4) for _ in range(_MAX_LINES)]
        self._names = [self._text(ha="left", va="center") for _ in range(_MAX_LINES)]
        self._slots: dict[Hashable, int] = {}

    def paint(self, curves: Sequence[Curve], until: float) -> bytes:
        """Return the chart as a PNG. ``until``: the end of the newest second, in seconds since 1970."""
        curves = pick(curves)
        self._assign(curves)
        self._place(len(curves) > 1)
        self._draw_scale(max((int(curve.counts.max(initial=0)) for curve in curves), default=0), until)
        self._draw_curves(curves)
        self._draw_legend(curves)
        data = io.BytesIO()
        self._canvas.print_png(data, pil_kwargs=_FAST)
        return data.getvalue()

    def colour(self, key: Hashable) -> str:
        """Return the colour of a line of the last paint."""
        return COLOURS[self._slots[key]] if key in self._slots else _OTHER

    def _assign(self, curves: Sequence[Curve]) -> None:
        """Give each curve a colour. One that was there before keeps its own."""
        keys = [curve.key for curve in curves if curve.key is not None]
        self._slots = {key: slot for key, slot in self._slots.items() if key in keys}
        free = [slot for slot in range(len(COLOURS)) if slot not in self._slots.values()]
        for key in keys:
            if key not in self._slots and free:
                self._slots[key] = free.pop(0)

    def _place(self, names: bool) -> None:
        self._edge = WIDTH - (_LEGEND if names else _RIGHT)
        wide, high = self._edge - _LEFT, HEIGHT - _TOP - _BOTTOM
        self._axes.set_position((_LEFT / WIDTH, _BOTTOM / HEIGHT, wide / WIDTH, high / HEIGHT))
        self._axes.set_xlim(-SECONDS, 0)

    def _draw_scale(self, most: int, until: float) -> None:
        scale = levels(most)
        self._axes.set_ylim(0, scale[-1])
        for line, text, level in zip_longest(self._grid, self._levels, scale):
            line.set_visible(level is not None)
            text.set_text("" if level is None else short(level))
            if level is not None:
                line.set_data([-SECONDS, 0], [level, level])
                self._put(text, _LEFT - 8, _BOTTOM + level / scale[-1] * (HEIGHT - _TOP - _BOTTOM))
        for i, text in enumerate(self._times):
            ago = SECONDS - i * SECONDS // 4
            text.set_text(f"{ago} s ago" if ago else time.strftime("%H:%M:%S", time.localtime(until)))
            text.set_horizontalalignment("center" if ago else "right")
            self._put(text, self._edge - (self._edge - _LEFT) * ago / SECONDS, _BOTTOM - 7)
        self._put(self._unit, _LEFT, HEIGHT - _TOP / 2)

    def _draw_curves(self, curves: Sequence[Curve]) -> None:
        for line in self._lines[len(curves) :]:
            line.set_visible(False)
        for line, curve in zip(self._lines, curves, strict=False):
            line.set_visible(True)
            line.set_color(self.colour(curve.key))
            line.set_data(range(1 - len(curve.counts), 1), curve.counts)
        self._area.set_visible(len(curves) == 1)
        if len(curves) == 1:
            counts = curves[0].counts
            corners = [(1 - len(counts), 0), *zip(range(1 - len(counts), 1), counts.tolist(), strict=True), (0, 0)]
            self._area.set_xy(np.array(corners, float))
            self._area.set_facecolor(self.colour(curves[0].key))

    def _draw_legend(self, curves: Sequence[Curve]) -> None:
        """Write names beside the lines; a single one above its line."""
        single = len(curves) == 1
        for i, (text, swatch) in enumerate(zip(self._names, self._swatches, strict=True)):
            shown = i < len(curves)
            swatch.set_visible(shown)
            text.set_text(self._legible(curves[i].label) if shown else "")
            if not shown:
                continue
            x = self._edge + 14 if not single else self._edge - 16 - self._width(text)
            y = HEIGHT - _TOP / 2 if single else HEIGHT - _TOP - 6 - i * 17.5
            self._put(text, x + 20, y)
            swatch.set_color(self.colour(curves[i].key))
            swatch.set_data([x / WIDTH, (x + 14) / WIDTH], [y / HEIGHT, y / HEIGHT])
            swatch.set_transform(self._figure.transFigure)

    def _width(self, text: Text) -> float:
        return float(text.get_window_extent(self._canvas.get_renderer()).width) / _SCALE + 4

    def _line(self, colour: str, width: float, alpha: float | None = None) -> Line2D:
        line = Line2D([], [], color=colour, linewidth=width, alpha=alpha, linestyle="-", marker="", clip_on=False)
        line.set_solid_joinstyle("round")
        line.set_solid_capstyle("round")
        self._axes.add_line(line)
        return line

    def _text(self, ha: Literal["left", "center", "right"], va: Literal["center", "top"]) -> Text:
        # "$" and "\" in a process's name are not mathematics, and LaTeX, where somebody chose it, takes seconds.
        text = Text(color=_INK, fontproperties=self._font, horizontalalignment=ha, verticalalignment=va)
        text.set_parse_math(False)
        text.set_usetex(False)
        text.set_transform(self._figure.transFigure)
        self._figure.add_artist(text)
        return text

    def _put(self, text: Text, x: float, y: float) -> None:
        text.set_position((x / WIDTH, y / HEIGHT))

    def _legible(self, label: str) -> str:
        """Shorten a label, and replace characters that the font lacks: matplotlib would warn, and draw a box."""
        font = font_manager.get_font(font_manager.findfont(self._font))
        text = "".join(c if font.get_char_index(ord(c)) else "\N{REPLACEMENT CHARACTER}" for c in printable(label))
        return text if len(text) <= 22 else text[:21] + "\N{HORIZONTAL ELLIPSIS}"


def levels(most: int) -> list[int]:
    """Return the levels of the scale: whole round numbers from 0 to ``most`` or above, in two to five steps."""
    return [round(level) for level in _LEVELS.tick_values(0, max(most, 2))]


def short(level: int) -> str:
    """Write a level of the scale: ``0``, ``250``, ``20k``, ``1.5M``."""
    return _SHORT(level)
