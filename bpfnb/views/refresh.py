"""One thread that paints every panel.

Sending to a notebook from a thread is safe, setting a widget's traits from two is not: this thread alone writes the
panels' widgets; buttons and callers only set flags, which it reads. It starts with the first panel and ends with the
last one's closing.
"""

from __future__ import annotations

import atexit
import threading
import time
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Protocol

from bpfnb.interrupts import forget_after_fork, new_lock, uninterrupted

__all__ = ["PERIOD", "Paintable", "add", "wake"]

PERIOD = 0.25  # seconds between two paints of a panel


class Paintable(Protocol):
    """What the painter needs of a panel. All of it is called on the painter's thread only."""

    def act(self) -> None:
        """Do what the flags ask for; called once a round."""

    def paint(self) -> bool:
        """Paint. Whether there will be more to paint; if not, the panel has closed itself."""

    def fail(self, error: Exception) -> None:
        """Show the error and close. Does not raise."""


class Painter:
    """The thread and its panels. ``add`` may be called from any thread."""

    def __init__(self) -> None:
        self._lock = new_lock()
        self._ending = False
        self.forget()
        forget_after_fork(self)

    def forget(self) -> None:
        """Start afresh; in a forked child, which has neither the thread nor a claim to the parent's notebook."""
        self._panels: list[Paintable] = []
        self._thread: threading.Thread | None = None
        self._wake: SimpleQueue[None] = SimpleQueue()  # an Event would be torn by Ctrl-C

    @uninterrupted
    def add(self, panel: Paintable) -> None:
        with self._lock:
            if panel not in self._panels:
                self._panels.append(panel)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="bpfnb-painter", daemon=True)
                self._thread.start()

    def wake(self) -> None:
        """Have the flags looked at now."""
        self._wake.put(None)

    def end(self) -> None:
        """Leave the panels as they are: the interpreter is going, and would take the thread away amid a paint."""
        self._ending = True
        self._wake.put(None)
        thread = self._thread
        if thread is not None:
            thread.join(2.0)

    def _run(self) -> None:
        due = 0.0
        while not self._ending:
            painting = time.monotonic() >= due
            if painting:
                due = time.monotonic() + PERIOD
            for panel in self._present():
                if not _attend(panel, painting):
                    self._remove(panel)
            if self._retire():
                return
            with suppress(Empty):
                self._wake.get(timeout=max(0.0, due - time.monotonic()))

    def _present(self) -> list[Paintable]:
        with self._lock:
            return list(self._panels)

    def _remove(self, panel: Paintable) -> None:
        with self._lock:
            self._panels.remove(panel)

    def _retire(self) -> bool:
        """End when there is nothing left; a panel added from now on starts another thread."""
        with self._lock:
            if not self._panels:
                self._thread = None
            return self._thread is None


def _attend(panel: Paintable, painting: bool) -> bool:
    """One panel's turn. Whatever goes wrong in it ends this panel and no other."""
    try:
        panel.act()
        return panel.paint() if painting else True
    except Exception as error:
        panel.fail(error)
        return False


_painter = Painter()


def add(panel: Paintable) -> None:
    """Paint this panel until it is done."""
    _painter.add(panel)


def wake() -> None:
    """Have the panels' flags looked at now."""
    _painter.wake()


atexit.register(_painter.end)
