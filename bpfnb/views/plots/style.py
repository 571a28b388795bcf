"""How matplotlib's pictures look: ticks, legends, and names that are made fit to be drawn. Colours and numbers: look.

Whatever could come from matplotlib's settings (rcParams) is given here, so that a style or LaTeX chosen by the user
changes nothing. Names come from other processes: ``$`` in them is no mathematics, see ``plain`` and ``legible``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import dates, font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, Formatter, FuncFormatter, Locator, LogLocator, MaxNLocator, NullLocator

from bpfnb.errors import printable
from bpfnb.views.look import (
    COLOURS,
    HEAT,
    NANOSECONDS,
    OTHER,
    THEMES,
    Colours,
    Theme,
    Unit,
    Write,
    colour,
    dashes,
    is_other,
    known_unit,
    pandas_unit,
    power_of_two,
    short,
    theme_of,
    with_unit,
)

__all__ = [
    "COLOURS",
    "HEAT",
    "OTHER",
    "THEMES",
    "Colours",
    "Theme",
    "Unit",
    "colour",
    "dashes",
    "draw_in",
    "empty",
    "fixed",
    "from_zero",
    "is_other",
    "known_unit",
    "legend",
    "legible",
    "log2_axis",
    "log10_axis",
    "note",
    "number_axis",
    "pandas_unit",
    "plain",
    "short",
    "theme_of",
    "time_axis",
    "time_places",
    "time_span",
    "whole_steps",
    "with_unit",
]

_FAMILY = "DejaVu Sans"  # the one that matplotlib brings along
_SIZE = 8.0
_LABEL = 32  # characters of a name
_GRID_ALPHA = 0.22
_MAX_TICKS = 13
_MAX_TIMES = 7
_MAX_NAMES = 15  # one below the other, in a legend
_DAY = 86_400.0  # seconds
_FAR = 700_000.0  # days from 1970 that a datetime can be
_STEPS = (
    *(times * 10.0**power for power in range(-6, 0) for times in (1, 2, 5)),
    *(1.0, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200),
    *(days * _DAY for days in (1, 2, 7, 14, 28, 91, 182, 365, 730, 1825, 3650, 7300, 18_250, 36_500)),
)  # seconds from one time to the next


# --- names --------------------------------------------------------------------------------------------------------


def legible(name: object, most: int = _LABEL) -> str:
    """Make a name fit to be drawn: shortened, on one line, without characters that the font lacks (for these matplotlib
    would warn, and draw a box)."""
    text = printable(str(name)[: most + 1])
    text = "".join(c if _has_glyph(c) else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def plain(text: Text, size: float = _SIZE) -> Text:
    """Have a text drawn as it is: no mathematics, no LaTeX, which a setting of the user's may turn on. Return it."""
    text.set_parse_math(False)
    text.set_usetex(False)
    text.set_fontproperties(_font(size))
    return text


@lru_cache(4096)
def _has_glyph(character: str) -> bool:
    return bool(font_manager.get_font(font_manager.findfont(_font(_SIZE))).get_char_index(ord(character)))


@lru_cache(8)
def _font(size: float) -> font_manager.FontProperties:
    return font_manager.FontProperties(family=_FAMILY, size=size)


# --- axes ---------------------------------------------------------------------------------------------------------


def draw_in(ax: Axes, colours: Colours) -> None:
    """Give an Axes of ours its look: two thin spines, a faint grid, small ticks, texts in one font."""
    ax.set_facecolor(colours.background)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(colours.ink)
        spine.set_linewidth(0.8)
        spine.set_alpha(0.6)
    ax.minorticks_off()
    ax.tick_params(
        which="both", color=colours.ink, labelcolor=colours.ink, labelsize=_SIZE, length=3, width=0.8, direction="out",
        top=False, right=False, left=True, bottom=True, labeltop=False, labelright=False, labelleft=True,
        labelbottom=True,
    )  # fmt: skip
    ax.set_axisbelow(True)
    ax.grid(visible=False, which="both")
    ax.grid(visible=True, axis="y", color=colours.ink, alpha=_GRID_ALPHA, linewidth=0.6, linestyle="-")
    for text in (ax.title, ax.xaxis.label, ax.yaxis.label):
        plain(text).set_color(colours.ink)


def number_axis(axis: Axis, write: Write = short, *, whole: bool = False) -> None:
    """Have an axis show numbers at round steps. ``whole``: counts, so no fractions between them."""
    axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=whole))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))


def log2_axis(axis: Axis, unit: str | None, named: Sequence[tuple[float, str]] = ()) -> None:
    """Have a logarithmic axis show powers of two, of four or of more, as many as fit: ``1us 4us 16us``, ``1KiB 4KiB``.

    ``named``: places with a text of their own.
    """
    write = with_unit(unit) if unit else power_of_two
    axis.set_major_locator(Log2Locator(unit, [place for place, _ in named]))
    axis.set_minor_locator(NullLocator())
    texts = dict(named)
    axis.set_major_formatter(FuncFormatter(lambda value, _: texts.get(value) or write(value)))


def whole_steps(most: float) -> list[float]:
    """Return round whole numbers from 0 to ``most``."""
    places = MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=True).tick_values(0, most)
    return [float(place) for place in places if 0 <= place <= most]


def log10_axis(axis: Axis, write: Write = short) -> None:
    """Have a logarithmic axis show powers of ten."""
    axis.set_major_locator(LogLocator(base=10, subs=(1.0,), numticks=9))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))


class Log2Locator(Locator):
    """Ticks at powers of two. Those of durations begin anew at each unit: 256us, 1ms, 4ms, and not 1.024ms."""

    def __init__(self, unit: str | None, more: Sequence[float] = ()) -> None:
        self._ns = NANOSECONDS.get(unit or "", 0)
        self._more = list(more)

    def __call__(self) -> Sequence[float]:
        assert self.axis
        low, high = sorted(self.axis.get_view_interval())
        return self.tick_values(low, high)

    def tick_values(self, low: float, high: float) -> Sequence[float]:
        if self._more:  # beside those a first power of two would be written on top of them
            low = max(low, 2 * max(self._more))
        if not 0 < low <= high < math.inf:
            return self._more
        for step in (1, 2, 4, 5, 10, 20):  # powers of two from tick to tick
            ticks = self._durations(step, low, high) if self._ns else self._powers(step, low, high)
            if len(ticks) <= _MAX_TICKS:
                break
        return [*self._more, *ticks]

    def _powers(self, step: int, low: float, high: float) -> list[float]:
        first, last = math.ceil(math.log2(low) / step - 1e-9), math.floor(math.log2(high) / step + 1e-9)
        return [2.0 ** (power * step) for power in range(first, min(last, 1023 // step) + 1)]  # the last float's

    def _durations(self, step: int, low: float, high: float) -> list[float]:
        """Return 1, 4, 16, 64, 256 of each unit from ns to ms, then of seconds on and on. ``step`` as above; from 5 on
        whole units only."""
        ticks = []
        for name, size in NANOSECONDS.items():
            powers = range(0, 40 if name == "s" else 10 if step < 10 else 1, step)
            ticks += [size * 2**power for power in powers]
        if step >= 20:
            ticks = [tick for tick in ticks if tick in (1, 1_000_000) or tick >= NANOSECONDS["s"]]
        return [tick / self._ns for tick in ticks if low <= tick / self._ns * (1 + 1e-9) and tick / self._ns <= high]


def time_axis(ax: Axes) -> None:
    """Have the x axis show times of day, in UTC as ``df`` has them, to which digit depends on the view. The label says
    so, and the date. Places are matplotlib's dates: days since 1970."""
    ax.xaxis_date(timezone.utc)  # so that later calls may give times as x
    ax.xaxis.set_major_locator(TimeLocator())
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(_Times(ax))


def time_places(times: pd.DatetimeIndex) -> npt.NDArray[np.float64]:
    """Return where times are on the x axis."""
    return np.asarray(dates.date2num(times if times.tz is None else times.tz_convert(None)))


def time_span(ax: Axes, first: float, last: float) -> None:
    """Show the time between two places, with a little room."""
    room = (last - first) * 0.01 or 0.5 / 86_400  # a single moment: half a second on either side
    room = max(room, 5e-6 / 86_400)  # a place is as exact as half a microsecond
    ax.set_xlim(first - room, last + room)


def _moment(place: float) -> datetime:
    """Return the time at a place, to a microsecond: matplotlib's own is rounded to 20 of them from 2040 on."""
    epoch = datetime.fromisoformat(dates.get_epoch()).replace(tzinfo=timezone.utc)
    return epoch + timedelta(microseconds=round(min(max(place, -_FAR), _FAR) * _DAY * 1e6))


class TimeLocator(Locator):
    """Ticks at round times of day in UTC, from microseconds to years. matplotlib's own gives up on microseconds, and
    from 2040 on says so in a warning."""

    def __call__(self) -> Sequence[float]:
        assert self.axis
        low, high = sorted(self.axis.get_view_interval())
        return self.tick_values(low, high)

    def tick_values(self, low: float, high: float) -> Sequence[float]:
        begin, span = math.floor(low), (high - low) * _DAY  # days are counted from a midnight: floats are exact
        step = next((step for step in _STEPS if span / step <= _MAX_TIMES), _STEPS[-1])
        first = math.ceil((low - begin) * _DAY / step - 1e-6)
        if step >= _DAY:
            return [day * step / _DAY for day in range(math.ceil(low * _DAY / step), int(high * _DAY // step) + 1)]
        seconds = ((first + i) * step for i in range(_MAX_TIMES + 1))
        return [place for place in (begin + second / _DAY for second in seconds) if place <= high + 1e-12]


class _Times(Formatter):
    """Times of day. Where a tick is of another day than the one before, its date stands below."""

    def __init__(self, ax: Axes) -> None:
        self._ax = ax

    def __call__(self, value: float, position: int | None = None) -> str:
        """Return one time, for the mouse."""
        return f"{_moment(value):%Y-%m-%d %H:%M:%S.%f}"

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        moments = [_moment(value) for value in values]
        if not moments:
            return []
        plain(self._ax.xaxis.label).set_text(f"time (UTC), {moments[0]:%Y-%m-%d}")
        step = min(np.diff(values), default=1.0) * 86_400
        if step >= 86_399:
            return [f"{moment:%Y-%m-%d}" for moment in moments]
        digits = min(max(math.ceil(-math.log10(step) - 0.01), 0), 6) if step < 59 else -1
        texts = [self._write(moment, digits) for moment in moments]
        for i in range(1, len(moments)):
            if moments[i].date() != moments[i - 1].date():
                texts[i] += f"\n{moments[i]:%m-%d}"
        return texts

    @staticmethod
    def _write(moment: Any, digits: int) -> str:
        if digits < 0:
            return f"{moment:%H:%M}"
        return f"{moment:%H:%M:%S}" + (f".{moment.microsecond:06}"[: digits + 1] if digits else "")


def legend(
    ax: Axes, names: Sequence[object], handles: Sequence[Line2D | Any], colours: Colours, *, beside: bool
) -> None:
    """Write names, in the order given. ``beside``: right of the Axes, else within."""
    places: dict[str, Any] = {"loc": "upper left"}
    if beside:  # higher than the picture, it would take the Axes' room
        places["ncols"] = math.ceil(len(names) / _MAX_NAMES)
        places |= {"bbox_to_anchor": (1.01, 1.02), "borderaxespad": 0}
    # Texts are set afterwards: a label that begins with "_" would be left out.
    made = ax.legend(
        list(handles), ["x"] * len(handles), frameon=False, handlelength=1.4, fontsize=_SIZE, markerscale=2.0, **places
    )
    for text, name in zip(made.get_texts(), names, strict=True):
        plain(text).set_text(legible(name))
        text.set_color(colours.ink)


def note(ax: Axes, text: str) -> None:
    """Write what the picture does not show above its right corner; nothing for ""."""
    plain(ax.text(1.0, 1.01, text, transform=ax.transAxes, ha="right", va="bottom")).set_color(OTHER)


def fixed(axis: Axis, places: Sequence[float], texts: Sequence[str]) -> None:
    """Have an axis show these texts at these places."""
    axis.set_major_locator(FixedLocator(list(places)))
    axis.set_minor_locator(NullLocator())
    by_place = dict(zip(places, texts, strict=True))
    axis.set_major_formatter(FuncFormatter(lambda value, _: by_place.get(value, "")))
    for tick in axis.get_major_ticks(len(by_place)):  # there will be no others: also on an Axes that is not ours
        plain(tick.label1)


def empty(ax: Axes, why: str) -> None:
    """Say in the middle of an Axes why nothing is drawn. Its axes say nothing: there is no scale."""
    plain(ax.text(0.5, 0.5, why, transform=ax.transAxes, ha="center", va="center"), _SIZE + 1).set_color(OTHER)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(NullLocator())
        axis.set_minor_locator(NullLocator())


def from_zero(ax: Axes, bottom: float = 0) -> None:
    """Have the y axis begin at zero, and leave a little room above what is drawn."""
    top = ax.dataLim.y1
    room = top * 1.06 if bottom == 0 else top * 1.5
    ax.set_ylim(bottom, room if math.isfinite(room) and room > bottom else 1.0 + bottom)
