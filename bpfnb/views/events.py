"""``df.bpf`` with pictures: methods of ``results.accessor``, and a ``plot_`` method beside each that can be drawn.

Importing this module registers it, on every DataFrame. It does not import matplotlib: the first picture does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from bpfnb.exports.accessor import WrittenEvents
from bpfnb.interrupts import uninterrupted
from bpfnb.results.accessor import EventsAccessor
from bpfnb.results.arguments import Names, names_of, numbered, require_columns, require_times
from bpfnb.results.buckets import HistKind
from bpfnb.results.events.wide import wide_histogram
from bpfnb.results.flame.fold import fold
from bpfnb.views import flame, look

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bpfnb.views.flamegraph import FlameGraph

__all__ = ["DrawnEvents"]


@pd.api.extensions.register_dataframe_accessor("bpf")
class DrawnEvents(EventsAccessor, WrittenEvents):
    """Decoded columns, rates, latencies, histograms and the largest groups of a DataFrame with one row an event, as
    tables and as pictures.

    A picture shows a table that another method returns, and nothing else: ``plot_rate`` what ``rate`` returns,
    ``plot_hist`` that of ``hist``, ``plot_heatmap`` that of ``heatmap``, ``plot_timeline`` that of ``timeline``, for
    the same arguments, ``plot_flame`` that of ``flame().df``; ``plot_scatter`` rows of the frame itself.

    Each returns matplotlib's Axes: the one given as ``ax``, or one of a new Figure, which a notebook shows when the
    cell ends. pyplot has no part in it. Names are drawn as they are, shortened, and times are in UTC, as in the frame.
    ``theme``: "auto" is transparent, in colours for light and dark pages alike; "light" and "dark" have a background.
    Events that are none draw a picture that says so.
    """

    _methods = (
        *EventsAccessor._methods, *WrittenEvents._writers, "plot_rate", "plot_hist", "plot_heatmap", "plot_timeline",
        "plot_scatter", "flame", "plot_flame",
    )  # fmt: skip

    def plot_rate(
        self,
        every: str = "1s",
        by: Names | None = None,
        *,
        top: int = 10,
        ax: Axes | None = None,
        theme: str = "auto",
    ) -> Axes:
        """Draw events per second over time, a line for each of the ``top`` largest values of ``by``, and of the others.

        The table: ``rate(every, by, top=top)``. ValueError for what ``rate`` raises it for, an unknown theme, and more
        intervals than a picture has room for.
        """
        table = self.rate(every, by, top=top)
        _import_matplotlib()
        from bpfnb.views.plots.rate import rate

        return _shown(rate(table, ax, theme=theme))

    def plot_hist(
        self,
        value: str | None = None,
        kind: HistKind = "log2",
        by: Names | None = None,
        *,
        bins: int | Sequence[float] | None = None,
        unit: str | None = None,
        top: int = 10,
        log: bool = False,
        ax: Axes | None = None,
        theme: str = "auto",
    ) -> Axes:
        """Draw how many values of a column lie in each bucket: bars, or with ``by`` an outline for each value.

            calls.bpf.plot_hist("latency", by="comm")
            reads.maps["sizes"].hist().bpf.plot_hist(unit="bytes")      # a histogram that there is already

        The table: ``hist(value, by, kind, bins, unit, top=top)``; without ``value`` the frame itself, which has then
        columns low, high and counts, as the ``hist()`` of maps and one-liners give them. ``unit``: "ns", "us", "ms",
        "s" or "bytes", for the axis. ``log``: a logarithmic axis of counts.

        ValueError for what ``hist`` raises it for, a frame without buckets, an unknown unit or theme.
        """
        look.known_unit(unit)
        if value is None:
            table = wide_histogram(self._frame, names_of(by), top)
        else:
            table = self.hist(value, by, kind, bins, None if unit == "bytes" else unit, top=top)
        _import_matplotlib()
        from bpfnb.views.plots.hist import hist

        return _shown(hist(table, ax, unit=unit, log=log, name=value or "", theme=theme))

    def plot_heatmap(
        self,
        value: str | None = None,
        every: str = "1s",
        kind: HistKind = "log2",
        *,
        bins: int | Sequence[float] | None = None,
        unit: str | None = None,
        ax: Axes | None = None,
        theme: str = "auto",
    ) -> Axes:
        """Draw how often each value occurred, over time: the more, the stronger the colour.

            calls.bpf.plot_heatmap("latency", "100ms")
            reads.maps["sizes"].every("1s").hist().bpf.plot_heatmap()   # snapshots of a map

        The table: ``heatmap(value, every, kind, bins, unit)``; without ``value`` the frame itself, which has then
        columns time, low, high and count. ``unit`` as in ``plot_hist``. Colours go by the square root of the count, so
        that what is rare is seen; a bucket without values has none.

        ValueError for what ``heatmap`` raises it for, a frame without such columns, more intervals than a picture has
        room for, an unknown unit or theme.
        """
        look.known_unit(unit)
        if value is None:
            table = self._frame
        else:
            table = self.heatmap(value, every, kind, bins, None if unit == "bytes" else unit)
        _import_matplotlib()
        from bpfnb.views.plots.heatmap import heatmap

        return _shown(heatmap(table, ax, unit=unit, name=value or "", theme=theme))

    def plot_timeline(
        self,
        by: Names = "pid",
        *,
        top: int = 20,
        gap: str | None = None,
        duration: str | None = None,
        ax: Axes | None = None,
        theme: str = "auto",
    ) -> Axes:
        """Draw when each process, thread or CPU was active: a row for each, a bar for each time.

        The table: ``timeline(by, top=top, gap=gap, duration=duration)``. ValueError for what ``timeline`` raises it
        for, an unknown theme, a ``top`` of more rows than a picture has room for.
        """
        table = self.timeline(by, top=top, gap=gap, duration=duration)
        _import_matplotlib()
        from bpfnb.views.plots.timeline import timeline

        return _shown(timeline(table, ax, theme=theme))

    def plot_scatter(
        self,
        value: str,
        by: Names | None = None,
        *,
        top: int = 7,
        unit: str | None = None,
        log: bool = True,
        ax: Axes | None = None,
        theme: str = "auto",
    ) -> Axes:
        """Draw each row as a point: its time, and a number or duration, on a logarithmic axis. With ``by`` each of the
        ``top`` most frequent values has a colour.

        The table is the frame itself. Rows without a time, number or ``by`` are left out, and on a logarithmic axis
        those of zero and less; the picture says how many. ``unit`` as in ``plot_hist``.

        ValueError for an unknown column, unit or theme, a column without numbers, no times, and more rows than a
        picture has room for: ``plot_heatmap`` draws any number.
        """
        names = names_of(by)
        require_columns(self._frame, [value, *names])
        require_times(self._frame, "a scatter plot")
        _import_matplotlib()
        from bpfnb.views.plots.scatter import scatter

        return _shown(scatter(numbered(self._frame), value, names, ax, top=top, unit=unit, log=log, theme=theme))

    def flame(
        self,
        value: str | None = None,
        by: Names | None = None,
        *,
        stack: str = "stack",
        unit: str | None = None,
        minus: object = None,
        normalise: bool = True,
        inverted: bool = False,
    ) -> FlameGraph:
        """A flame graph of a frame's stacks, "main;read;__x64_sys_read_[k]", to be zoomed and searched.

            cpu.df.query("comm == 'nginx'").bpf.flame()
            held.df.bpf.flame("size", by="pid")

        ``stack``   the column of stacks: text, the outermost function first
        ``value``   the column that is added up; unless told the first there is of total, size, bytes, count, value, and
                    without these each row counts one
        ``by``      columns that stacks are put under, outermost; unless told those of text (comm); () for none
        ``unit``    what ``value`` counts: "count", "bytes", "ns", "us", "ms", "s"
        ``minus``, ``normalise``, ``inverted``   as in ``Session.flame``

        ProgramError (a ValueError) for an unknown column, one without numbers, and values below 0.
        """
        return flame(
            self._frame, value, by, stack=stack, unit=unit, minus=minus, normalise=normalise, inverted=inverted
        )

    def plot_flame(
        self,
        value: str | None = None,
        by: Names | None = None,
        *,
        stack: str = "stack",
        unit: str | None = None,
        inverted: bool = False,
        ax: Axes | None = None,
        theme: str = "auto",
    ) -> Axes:
        """Draw a flame graph: a row a level, each frame as wide as its share. Of deep stacks the first levels.

        The table: ``flame(value, by, ...).df``, a row a frame. ProgramError for what ``flame`` raises it for,
        ValueError for an unknown theme.
        """
        folded = fold(self._frame, value, by, stack=stack, unit=unit)
        _import_matplotlib()
        from bpfnb.views.plots.flame import draw_folded

        return _shown(draw_folded(folded, ax, inverted=inverted, theme=theme))


@uninterrupted
def _import_matplotlib() -> None:
    """Import it. Not on the main thread: an import of matplotlib that Ctrl-C interrupts cannot be repeated."""
    from bpfnb.views import plots  # noqa: F401


def _shown(ax: Axes) -> Axes:
    """Have a notebook show a picture at the cell's end. Return it."""
    from bpfnb.views.plots.figure import show_at_cell_end

    show_at_cell_end(ax)
    return ax
