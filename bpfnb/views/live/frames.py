"""What a panel sends to its pages: frames of all views, each on top of the one before."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bpfnb.errors import printable
from bpfnb.results.snapshot import Snapshot
from bpfnb.views.live.view import Part, View
from bpfnb.views.live.widget import PanelWidget

__all__ = ["NUMBERS_EVERY", "Frames"]

NUMBERS_EVERY = 1.0  # seconds between two of the numbers, at least


class Frames:
    """The frames of one panel. A view that raises shows its error in one line; the others go on."""

    def __init__(self, views: Sequence[View], widget: PanelWidget | None) -> None:
        self._slots = [_Slot(view) for view in views]
        self._widget = widget
        self.counted = any(view.kind == "counters" for view in views)  # the numbers are in a view of their own
        self.newest = 0
        self.whole_due = True
        self._sent: tuple[object, object] = (None, None)
        self._numbers_due = 0.0

    def update(self, last: bool) -> None:
        for slot in self._slots:
            slot.update(last)

    def choose(self, number: int, choices: Mapping[str, Any]) -> None:
        """Hand a person's choices to a view, and say what cannot be chosen."""
        if number >= len(self._slots):
            return
        refused = self._slots[number].choose(choices)
        self.whole_due = True
        if refused and self._widget:
            self._widget.say(number, refused)

    def show_range(self, selected: tuple[pd.Timestamp, pd.Timestamp] | None) -> None:
        """Have the flame graphs show a range of time, or their windows again."""
        edges = [edge.timestamp() for edge in selected] if selected else None
        for slot in self._slots:
            if slot.kind == "flame":
                slot.choose({"range": edges})
                self.whole_due = True

    def send(self, snapshots: Sequence[Snapshot], paused: bool, wait: bool) -> None:
        """Send what has changed, if anything has. ``wait``: no page is heard until the cell that runs has ended."""
        if not self._widget:
            return
        whole, self.whole_due = self.whole_due, False
        parts = [slot.part(whole) if whole or not paused else None for slot in self._slots]
        status = self._status(snapshots, paused, wait, whole)
        if not whole and status is None and not any(parts):
            return
        base = None if whole else self.newest
        self.newest += 1
        self._widget.frame(self.newest, base, status, parts)

    def clear(self) -> None:
        self._slots.clear()
        self._widget = None

    def _status(self, snapshots: Sequence[Snapshot], paused: bool, wait: bool, whole: bool) -> dict[str, object] | None:
        """Return the status where it has changed; numbers alone at most once a second."""
        state = (paused, wait, [s.state for s in snapshots])
        numbers = [] if self.counted else [[s.rows if s.has_rows else None, s.lost, s.dropped] for s in snapshots]
        now = time.monotonic()
        if not whole and state == self._sent[0] and (numbers == self._sent[1] or now < self._numbers_due):
            return None
        status: dict[str, object] = {"numbers": numbers} if numbers else {}
        if whole or state != self._sent[0]:
            status |= {"paused": paused, "wait": wait, "states": state[2]}
        if whole:
            status["names"] = [printable(s.name) for s in snapshots]
        self._sent, self._numbers_due = (state, numbers), now + NUMBERS_EVERY
        return status


class _Slot:
    """A view, and what went wrong in it."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._error = ""
        self._told = False  # the page knows of the error
        self.kind = view.kind

    def update(self, last: bool) -> None:
        try:
            if not self._error:
                self._view.update(last)
        except Exception as error:
            self._fail(error)

    def choose(self, choices: Mapping[str, Any]) -> str:
        """Return why it cannot be chosen, or ""."""
        try:
            if not self._error:
                self._view.choose(**choices)
        except Exception as error:  # of whatever kind: what a page says ends no view
            return _line(error) or type(error).__name__
        return ""

    def part(self, whole: bool) -> Part | None:
        try:
            if not self._error:
                part = self._view.whole() if whole else self._view.delta()
                return self._named(part) if whole and part else part
        except Exception as error:
            self._fail(error)
        if whole or not self._told:
            self._told = True
            return self._named(Part({"error": self._error}))
        return None

    def _named(self, part: Part) -> Part:
        return Part({**part.header, "kind": self._view.kind, "title": printable(self._view.title)}, part.buffers)

    def _fail(self, error: Exception) -> None:
        self._error, self._told = f"{type(error).__name__}: {_line(error)}", False


def _line(error: Exception) -> str:
    return printable(str(error))[:500]
