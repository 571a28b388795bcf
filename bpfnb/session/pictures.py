"""The pictures of a session: what it is shown by, and files for other viewers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

from bpfnb import views
from bpfnb.errors import ProgramError, near_or_all
from bpfnb.views.live import live
from bpfnb.views.live.view import ViewKind, ViewSpec

if TYPE_CHECKING:
    from bpfnb.views.flamegraph import FlameGraph
    from bpfnb.views.live.panel import Panel

__all__ = ["Pictures"]


class Pictures:
    """The methods of a session that show it."""

    def view(
        self,
        kind: ViewKind,
        value: str | None = None,
        by: str | None = None,
        output: str | None = None,
        map: str | None = None,
        top: int = 10,
        window: float = 60.0,
    ) -> ViewSpec:
        """Return a view of this session, for a panel: ``bpfnb.live(opens, opens.view("heatmap", "latency"))``.

        ``kind``     "rates", "hist", "heatmap", "top", "flame" or "counters"
        ``value``    a column of numbers: what hist and heatmap put into buckets
        ``by``       a column: a line, or a row, for each of its values
        ``output``   an output's name; ``map``: a map's name, instead of an output
        ``top``      how many values of ``by``, or rows; the rest is summed as "other"
        ``window``   seconds that are shown

        What is not there is an error once the panel is made. ValueError for an unknown kind.
        """
        kinds = get_args(ViewKind)
        if kind not in kinds:
            raise ProgramError(f"no view {kind!r}{near_or_all(str(kind), dict.fromkeys(kinds))}")
        return ViewSpec(self, kind, value, by, output, map, top, window)

    def live(self, by: str | None = None, output: str | None = None, window: float = 60.0) -> Panel:
        """Show a panel: the rate of each output over ``window`` seconds and the session's numbers; of a session that
        has only maps, these; of a one-liner or tool, its table or histogram. See bpfnb.live.

        ``by``: a column, with a line for each value. ``output``: one output. ProgramError for a session without output,
        ValueError for an unknown column, KeyError for an unknown output.
        """
        return live(self, by=by, output=output, window=window)

    def heatmap(
        self,
        value: str | None = None,
        by: str | None = None,
        *,
        output: str | None = None,
        map: str | None = None,
        window: float = 60.0,
    ) -> Panel:
        """Show a heat map in a panel: time from left to right, the values of a column, or the buckets of a map, in
        powers of two or linear from below, and as a colour how many there are.

            opens.heatmap("latency")          # of a column of numbers or durations
            reads.heatmap(map="sizes")        # of a histogram map, from now on
            sleeps.heatmap()                  # of a one-liner or tool that has buckets, from now on

        ``value``: by default a column of durations. ``by``: a column; one of its values can be chosen in the panel.
        Of a session that has ended all of it is shown; the counts of its maps have no times. Brushing selects
        ``panel.df``.

        ProgramError where it is not clear what is meant, or nothing has times; ValueError for an unknown column or one
        without numbers, KeyError for an unknown output or map.
        """
        return live(self.view("heatmap", value, by=by, output=output, map=map, window=window))

    def flame(
        self,
        output: str | None = None,
        *,
        map: str | None = None,
        value: str | None = None,
        by: str | Sequence[str] | None = None,
        unit: str | None = None,
        kernel: str | None = None,
        user: str | None = None,
        minus: object = None,
        normalise: bool = True,
        inverted: bool = False,
    ) -> FlameGraph:
        """Return a flame graph of the session's stacks as they are now: an icicle that can be zoomed and searched.

            cpu = bpfnb.tools.profile(frequency=199)
            cpu.flame()                             # as a cell's last expression it is shown
            cpu.flame(minus=before)                 # what has changed since another session, frame or folded file
            cpu.flame().to_folded("cpu.folded")

        ``output``, ``map``    where stacks are counted: an output with numbers of stacks, or a map; unless told those
                               of ``df``, and of a cell the only map whose key has stack in its name
        ``value``   the column that is added up; unless told the first there is of total, size, bytes, count, value
        ``by``      columns that stacks are put under, outermost; unless told those of text (comm); () for none
        ``unit``    what ``value`` counts: "count", "bytes", "ns", "us", "ms", "s"
        ``kernel``, ``user``   columns with numbers of stacks, where their names do not say so: see stacks.folded
        ``minus``   a session, a DataFrame, a folded file or a flame graph to compare with: red is more than there, blue
                    is less. With ``normalise`` it is scaled to the same total; the graph says so
        ``inverted``   callers below, callees above

        ProgramError for a session without stacks, what is not there, and values below 0.
        """
        return views.flame(
            self, value, by, output=output, map=map, unit=unit, kernel=kernel, user=user, minus=minus,
            normalise=normalise, inverted=inverted,
        )  # fmt: skip

    def to_folded(
        self,
        path: str | os.PathLike[str],
        output: str | None = None,
        *,
        map: str | None = None,
        value: str | None = None,
        by: str | Sequence[str] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write the stacks as they are now, "main;read 42", a line a stack: for flamegraph.pl, inferno and others.

        ``output``, ``map``, ``value`` and ``by`` as in ``flame``. Times are nanoseconds. ProgramError for a file that
        exists, unless ``overwrite``.
        """
        self.flame(output, map=map, value=value, by=by).to_folded(path, overwrite=overwrite)

    def to_speedscope(
        self,
        path: str | os.PathLike[str],
        output: str | None = None,
        *,
        map: str | None = None,
        value: str | None = None,
        by: str | Sequence[str] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write the stacks as they are now as a file for speedscope.app, as ``to_folded`` does."""
        self.flame(output, map=map, value=value, by=by).to_speedscope(path, overwrite=overwrite)
