"""A histogram that moves: of the last seconds, or since the start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from bpfnb.results.distributions.bars import bars_html, bars_text
from bpfnb.results.distributions.history import Buckets, top_groups
from bpfnb.results.distributions.labels import labels_of
from bpfnb.views.live.counts.distribution import Distribution, finite
from bpfnb.views.live.counts.twin import hist_static
from bpfnb.views.live.view import Part, Static, ViewKind, ViewSpec

__all__ = ["HistView"]


class HistView:
    """How many numbers each bucket holds: of a map of buckets, of a one-liner or tool that has buckets, or of a column.
    One for each group, the largest first.

    Buffers: the counts (float64), a row a group.
    """

    kind: ViewKind = "hist"

    def __init__(self, specs: Sequence[ViewSpec]) -> None:
        """KeyError for a map or output that is not there, ValueError for a column that is not there or no number,
        ProgramError for what is no histogram."""
        self._numbers = Distribution(specs[0])
        self._shown: Buckets = self._read()
        self._sent: tuple[Any, ...] | None = None

    @property
    def title(self) -> str:
        return self._numbers.title

    def update(self, last: bool) -> None:
        self._numbers.update(last)
        self._shown = self._read()

    def whole(self) -> Part:
        self._sent = self._content()
        return Part({**self._numbers.header(), **self._layout(), **self._facts()}, (self._counts(),))

    def delta(self) -> Part | None:
        content, before = self._content(), self._sent
        if content == before:
            return None
        self._sent = content
        same = before is not None and content[0] == before[0]
        return Part({**({} if same else self._layout()), **self._facts()}, (self._counts(),))

    def choose(self, **choices: Any) -> None:
        self._numbers.choose(choices)
        self._shown = self._read()

    def static(self) -> Static:
        frame, unit = self.frame(), self._numbers.unit
        text = f"{self.title}, {self._span()}\n{bars_text(frame)}"
        if len(self._shown.groups) > 1:  # outlines in one picture say more than tables one below another
            return hist_static(text, frame, unit, self.title, self._numbers.over)
        return Static(text, bars_html(frame))

    def frame(self) -> pd.DataFrame:
        """Return what is shown as a table: low, high, label, and count or a column for each group."""
        buckets = self._shown
        labels = labels_of(buckets.low, buckets.high, self._numbers.unit, self._numbers.scale)
        table = pd.DataFrame({"low": buckets.low, "high": buckets.high, "label": labels})
        names = ["count"] if not self._numbers.source.by else buckets.groups
        counts = pd.DataFrame(buckets.counts.T, columns=pd.Index(names[: len(buckets.counts)], dtype=object))
        return pd.concat([table, counts if len(counts.columns) else pd.DataFrame({"count": []})], axis=1)

    def _read(self) -> Buckets:
        numbers = self._numbers
        history = numbers.source.history
        if not numbers.window or numbers.whole:
            return top_groups(history.since_start(), numbers.top)
        end = numbers.end()
        return top_groups(history.between(end - numbers.window, end), numbers.top)

    def _span(self) -> str:
        if not self._numbers.window or self._numbers.whole:
            return "since the start"
        return f"the last {self._numbers.window} s"

    def _content(self) -> tuple[Any, ...]:
        shown = self._shown
        layout = (shown.low.tobytes(), shown.high.tobytes(), tuple(shown.groups))
        return layout, shown.counts.tobytes(), self._facts()

    def _layout(self) -> dict[str, Any]:
        shown = self._shown
        names = shown.groups if self._numbers.source.by else [""] * len(shown.groups)
        return {"groups": names, "low": finite(shown.low), "high": finite(shown.high)}

    def _facts(self) -> dict[str, Any]:
        return {**self._numbers.facts(), "shown": int(self._shown.counts.sum()), "span": self._span()}

    def _counts(self) -> bytes:
        return self._shown.counts.astype("<f8").tobytes()
