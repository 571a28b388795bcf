"""The refresh thread, which draws every panel.

Sending to a notebook from a thread is safe. Setting a widget's traits from two threads is not, so this thread alone
writes the panels' widgets; buttons and callers set flags, which it reads. It starts with the first panel and ends when
the last one has closed.
"""

from __future__ import annotations

import atexit
import threading
import time
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Protocol

from bpfnb.interrupts import forget_after_fork, new_lock, uninterrupted

__all__ = ["PERIOD", "Refreshable", "add", "wake"]

PERIOD = 0.25  # seconds between two refreshes of a panel


class Refreshable(Protocol):
    """A panel, as the refresh thread sees it. Its methods are called on that thread only."""

    def act(self) -> None:
        """Do what the flags ask for. Called several times a second."""

    def paint(self) -> bool:
        """Draw; return whether there will be more to draw. If not, the panel has closed itself."""

    def fail(self, error: Exception) -> None:
        """Show the error and close. Does not raise."""


class RefreshThread:
    """The thread and its panels. ``add`` and ``wake`` may be called from any thread."""

    def __init__(self) -> None:
        self._lock = new_lock()
        self._ending = False
        self.forget()
        forget_after_fork(self)

    def forget(self) -> None:
        """Start without thread and panels; in a forked child those are the parent's."""
        self._panels: list[Refreshable] = []
        self._thread: threading.Thread | None = None
        self._wake: SimpleQueue[None] = SimpleQueue()  # an Event would be torn by Ctrl-C

    @uninterrupted
    def add(self, panel: Refreshable) -> None:
        with self._lock:
            if panel not in self._panels:
                self._panels.append(panel)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="bpfnb-refresh", daemon=True)
                self._thread.start()

    def wake(self) -> None:
        """Have the thread read the flags now."""
        self._wake.put(None)

    def end(self) -> None:
        """Stop the thread; panels stay as they are. At its exit Python would end the thread amid a refresh."""
        self._ending = True
        self._wake.put(None)
        thread = self._thread
        if thread is not None:
            thread.join(2.0)

    def _run(self) -> None:
        due = 0.0
        while not self._ending:
            drawing = time.monotonic() >= due
            if drawing:
                due = time.monotonic() + PERIOD
            for panel in self._present():
                if not _serve(panel, drawing):
                    self._remove(panel)
            if self._ends():
                return
            with suppress(Empty):
                self._wake.get(timeout=max(0.0, due - time.monotonic()))

    def _present(self) -> list[Refreshable]:
        with self._lock:
            return list(self._panels)

    def _remove(self, panel: Refreshable) -> None:
        with self._lock:
            self._panels.remove(panel)

    def _ends(self) -> bool:
        """End when there is no panel left. A panel added later starts another thread."""
        with self._lock:
            if not self._panels:
                self._thread = None
            return self._thread is None


def _serve(panel: Refreshable, drawing: bool) -> bool:
    """Serve one panel; return whether it goes on. An error in it ends this panel and no other."""
    try:
        panel.act()
        return panel.paint() if drawing else True
    except Exception as error:
        panel.fail(error)
        return False


_refresh_thread = RefreshThread()


def add(panel: Refreshable) -> None:
    """Refresh a panel until it has closed."""
    _refresh_thread.add(panel)


def wake() -> None:
    """Have the thread read the panels' flags now."""
    _refresh_thread.wake()


atexit.register(_refresh_thread.end)
