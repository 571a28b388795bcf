"""A heat map: time from left to right, buckets from below, and as a colour how many numbers are in each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from bpfnb.errors import ProgramError
from bpfnb.results.distributions.history import Columns
from bpfnb.results.distributions.labels import labels_of
from bpfnb.views.live.counts.distribution import Distribution, finite
from bpfnb.views.live.counts.twin import heat_picture
from bpfnb.views.live.view import Part, Static, ViewKind, ViewSpec

__all__ = ["HeatmapView"]

_MAX_COLUMNS = 240
_MAX_GROUPS = 100  # offered


class HeatmapView:
    """How many numbers each bucket held in each interval. Buffers: the counts (uint32), a row an interval."""

    kind: ViewKind = "heatmap"

    def __init__(self, specs: Sequence[ViewSpec]) -> None:
        """As HistView; ProgramError also for counts of an ended session's map, which have no times."""
        self._numbers = Distribution(specs[0])
        self._group: str | None = None
        session = specs[0].session
        if self._numbers.whole and not self._numbers.source.timed:
            raise ProgramError(
                f"{session.name} has ended, and a map's counts have no times: its histogram can be shown"
            )
        self._shown = self._read()
        self._sent: tuple[Any, ...] | None = None
        self._before: Columns | None = None

    @property
    def title(self) -> str:
        return f"{self._name()}, over time"

    def _name(self) -> str:
        return f"{self._numbers.title} = {self._group}" if self._group is not None else self._numbers.title

    def update(self, last: bool) -> None:
        self._numbers.update(last)
        self._shown = self._read()

    def whole(self) -> Part:
        self._before, self._sent = self._shown, self._content()
        groups = [name for name in list(self._numbers.source.history.group_totals())[:_MAX_GROUPS] if name]
        more = {"group": self._group, "groups": groups}
        return Part({**self._numbers.header(), **more, **self._layout(0), **self._numbers.facts()}, (self._counts(0),))

    def delta(self) -> Part | None:
        content, before = self._content(), self._before
        if content == self._sent or before is None:
            return None if before is not None else self.whole()
        self._before, self._sent = self._shown, content
        first = self._first_change(before)
        return Part({**self._layout(first), **self._numbers.facts()}, (self._counts(first),))

    def choose(self, **choices: Any) -> None:
        if "group" in choices:
            self._choose_group(choices.pop("group"))
        self._numbers.choose(choices)
        if "by" in choices:
            self._group = None
        self._shown = self._read()

    def static(self) -> Static:
        frame = self.frame()
        shown = self._shown
        text = f"{self.title}: {int(shown.counts.sum()):,} in {len(shown.counts)} intervals of {shown.step} s"
        return Static(text, "", heat_picture(frame, self._numbers.unit, shown.step, self._name()), "image/png")

    def frame(self) -> pd.DataFrame:
        """Return what is shown as a table in long form: time (datetime64[ns, UTC]), low, high, label, count."""
        shown = self._shown
        labels = labels_of(shown.low, shown.high, self._numbers.unit, self._numbers.scale)
        intervals, buckets = shown.counts.shape
        times = pd.to_datetime(shown.begin + shown.step * np.arange(intervals), unit="s", utc=True).as_unit("ns")
        return pd.DataFrame(
            {
                "time": times.repeat(buckets),
                "low": np.tile(shown.low, intervals),
                "high": np.tile(shown.high, intervals),
                "label": labels * intervals,
                "count": shown.counts.reshape(-1),
            }
        )

    def _choose_group(self, value: Any) -> None:
        if value is not None and value not in self._numbers.source.history.group_totals():
            raise ProgramError(f"no group {value!r:.60}")
        self._group = value

    def _read(self) -> Columns:
        return self._numbers.heat(self._group, _MAX_COLUMNS)

    def _content(self) -> tuple[Any, ...]:
        shown = self._shown
        return shown.begin, shown.step, shown.low.tobytes(), shown.counts.tobytes(), self._numbers.facts()

    def _first_change(self, before: Columns) -> int:
        """Return the first interval that the page does not have as it is now."""
        now = self._shown
        same = before.step == now.step and np.array_equal(before.low, now.low) and np.array_equal(before.high, now.high)
        shift = (now.begin - before.begin) // now.step
        if not same or not 0 <= shift < len(before.counts) or len(before.counts) != len(now.counts):
            return 0
        kept = len(now.counts) - shift
        changed = (before.counts[shift:] != now.counts[:kept]).any(axis=1)
        return int(changed.argmax()) if changed.any() else kept

    def _layout(self, first: int) -> dict[str, Any]:
        """Return where the intervals are. ``first``: the first that is sent; those before it are the page's last."""
        shown = self._shown
        layout: dict[str, Any] = {
            "begin": shown.begin,
            "step": shown.step,
            "intervals": len(shown.counts),
            "first": first,
        }
        if not first:
            layout |= {"low": finite(shown.low), "high": finite(shown.high)}
        return layout

    def _counts(self, first: int) -> bytes:
        return np.minimum(self._shown.counts[first:], 2**32 - 1).astype("<u4").tobytes()
