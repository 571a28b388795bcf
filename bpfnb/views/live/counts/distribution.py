"""What histograms and heat maps share: where their numbers come from, and what a person may choose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bpfnb.errors import BpfnbError, ProgramError, near_or_all
from bpfnb.results.distributions.history import HOUR, Columns
from bpfnb.results.distributions.sources import (
    UNITS,
    ColumnSource,
    MapSource,
    Source,
    TableSource,
    Unit,
    columns_of,
)
from bpfnb.results.output import Output
from bpfnb.results.presentation import Rows, Table
from bpfnb.views.live.fitting import fitting_maps
from bpfnb.views.live.view import ViewSpec, now_of

__all__ = ["MAX_TOP", "WINDOWS", "Distribution", "checked_window", "finite", "one_line", "source_of"]

ScaleKind = Literal["log2", "linear"]

MAX_TOP = 24
WINDOWS = (10, 30, 60, 300, 900, HOUR)  # seconds; what a page offers beside the one that was asked for
_NAMED = ("latency", "delta", "duration", "lat")  # columns that are looked at when none was named


class Distribution:
    """The numbers of one view, kept up to date. ``note``: what is wrong, in one line, or ""."""

    def __init__(self, spec: ViewSpec) -> None:
        self.spec = spec
        self.window = checked_window(spec.window)
        self.scale = _first_scale(spec)
        self.by = spec.by
        self.top = checked_top(spec.top)
        self.note = ""
        self.ended = False
        self._source = source_of(spec, self.scale, self.by)
        self.unit: Unit = self._source.unit
        self._now = now_of(spec.session)
        self._source.update(self._now(), self._over())
        self.whole = self._over()  # it had ended before: all of it is shown until a window is chosen

    @property
    def source(self) -> Source:
        return self._source

    @property
    def title(self) -> str:
        spec = self.spec
        by = f" by {', '.join(self._source.by)}" if self._source.by else ""
        return f"{spec.session.name}: {self._source.name}{by}"

    def update(self, last: bool) -> None:
        """Read what is new. What goes wrong is said on the view, which stays as it was."""
        self.ended = last or self.ended
        try:
            self._source.update(self._now(), last)
            self.note = ""
        except (BpfnbError, KeyError, ValueError) as error:
            self.note = one_line(error)

    def end(self) -> int:
        """Return the second that ends what is shown: of an ended session that after the newest count."""
        newest = self._source.history.newest
        if self.over:
            return (newest if newest is not None else int(self._now())) + 1
        return int(self._now()) + 1

    def choose(self, choices: Mapping[str, Any]) -> None:
        """Take what was chosen. ValueError for what cannot be."""
        for name, value in choices.items():
            if name not in ("window", "scale", "by", "unit", "top"):
                raise ProgramError(f"{name!r:.40} cannot be chosen here")
            if name == "window":
                self.window, self.whole = checked_window(value, since_start=True), False
            elif name == "top":
                self.top = checked_top(value)
            elif name == "unit":
                self.unit = _one_of("unit", value, UNITS)
            else:
                self._choose_source(name, value)

    def header(self) -> dict[str, Any]:
        """Return what both kinds of view tell the page beside their numbers."""
        source = self._source
        return {
            "title": self.title,
            "unit": self.unit,
            "scale": self.scale,
            "scales": self._scales(),
            "units": list(UNITS) if not source.unit else ["ns"] if source.unit == "ns" else list(UNITS),
            "window": self.window,
            "windows": sorted({*WINDOWS, self.window} - {0}),
            "by": self.by,
            "columns": list(source.offers),
            "top": self.top,
            **self.facts(),
        }

    def facts(self) -> dict[str, Any]:
        """Return what changes: how much there is, what is missing, how often it is read."""
        source = self._source
        return {
            "total": source.history.total,
            "missing": source.missing,
            "period": source.period,
            "lost": self._lost(),
            "note": self.note,
        }

    def heat(self, group: str | None, most: int) -> Columns:
        """Return the counts over time, in at most ``most`` intervals of whole seconds; the last has passed."""
        history, end = self._source.history, self.end() - int(not self.over)
        window = self.window or HOUR
        if self.whole and history.oldest is not None:
            window = min(max(end - history.oldest, 1), HOUR)
        step = max(_step(window, most), self._source.period)
        end = -(-end // step) * step
        begin = end - -(-window // step) * step
        return history.columns(begin, end, step, group)

    def _choose_source(self, name: str, value: Any) -> None:
        scale, by = self.scale, self.by
        if name == "scale":
            scale = _one_of("scale", value, self._scales())
        else:
            by = None if value in (None, "") else _one_of("by", value, self._source.offers)
        if (scale, by) == (self.scale, self.by):
            return
        source = source_of(self.spec, scale, by)
        source.update(self._now(), self._over())
        self._source, self.scale, self.by = source, scale, by

    def _scales(self) -> Sequence[ScaleKind]:
        return (self.scale,) if isinstance(self._source, TableSource) else ("log2", "linear")

    @property
    def over(self) -> bool:
        """Whether nothing more will be counted."""
        return self.ended or self._over()

    def _over(self) -> bool:
        return self.spec.session.state not in ("starting", "running")

    def _lost(self) -> int:
        if self.spec.map:
            return int(self.spec.session.maps[self.spec.map].lost)
        return int(self.spec.session.lost)


def source_of(spec: ViewSpec, scale: ScaleKind, by: str | None) -> Source:
    """Return where a view's numbers come from. KeyError for a map or output that is not there, ValueError for a column,
    ProgramError where it is not said, or cannot be."""
    session = spec.session
    if spec.map is not None:
        return MapSource(session.maps, spec.map, by, scale)
    presentation = session.presentation
    if spec.output is None and isinstance(presentation, Table):
        if spec.value is not None:
            raise ProgramError(f"{session.name} counts in maps, and has no rows: there is no column {spec.value!r}")
        return TableSource(session.maps, presentation, by)
    if spec.output is None and spec.value is None and not session.outputs:
        maps = [fitting for fitting in fitting_maps(session) if fitting.kind == "hist"]
        if not maps:
            raise ProgramError(f"{session.name} has no histogram: name a map, map=...{near_or_all('', session.maps)}")
        return MapSource(session.maps, str(maps[0].map), by, scale)
    rows = presentation if spec.output is None and isinstance(presentation, Rows) else None
    named = [column for column in (spec.value, by) if column is not None]
    output = session.main_output if rows else session.output_with(*named, output=spec.output)
    return ColumnSource(output, rows, spec.value or _usual_column(session.name, output, rows), by, scale)


def _usual_column(name: str, output: Output, rows: Rows | None) -> str:
    """Return the column that is looked at when none was named: a duration. ProgramError where there is none."""
    frame = columns_of(output, rows)
    durations = [str(column) for column in frame.columns if frame[column].dtype.kind == "m"]
    known = [*durations, *(column for column in _NAMED if column in frame)]
    if known:
        return known[0]
    numbers = [str(column) for column in frame.columns if frame[column].dtype.kind in "iuf"]
    raise ProgramError(f"of which column of {name}? Numbers are in {', '.join(numbers) or 'none of them'}")


def checked_window(value: Any, since_start: bool = False) -> int:
    """Return a window in whole seconds, of 0 since the start. ValueError for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ProgramError(f"a window is a number of seconds, not {value!r:.40}")
    if since_start and value == 0:
        return 0
    if not 1 <= value <= HOUR:
        raise ProgramError(f"a window is of 1 to {HOUR:,} seconds, not {value:g}")
    return math.ceil(value)


def checked_top(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1000:
        raise ProgramError(f"top is a whole number from 1 to 1,000, not {value!r:.40}")
    return min(value, MAX_TOP)


def finite(edges: npt.NDArray[np.float64]) -> list[float | None]:
    """Return bounds as JSON can hold them: None for an infinite one."""
    return [edge if math.isfinite(edge) else None for edge in edges.tolist()]


def _first_scale(spec: ViewSpec) -> Any:
    """Return what a map's buckets are; others are powers of two at first."""
    return spec.session.maps[spec.map].buckets if spec.map is not None else "log2"


def _one_of(what: str, value: Any, known: Sequence[Any]) -> Any:
    if not isinstance(value, str) or value not in known:
        raise ProgramError(f"{what} cannot be {value!r:.40}{near_or_all(str(value)[:40], [str(k) for k in known])}")
    return value


def _step(window: int, most: int) -> int:
    steps = (1, 2, 5, 10, 15, 20, 30, 60)
    return next((step for step in steps if window <= step * most), steps[-1])


def one_line(error: Exception) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return text.splitlines()[0][:300] if text else type(error).__name__
