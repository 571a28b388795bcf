"""The refresh thread, which keeps every card and panel up to date; both are called panels here.

Sending to a notebook from a thread is safe. Reading a session's rows for one panel on two threads is not, so this
thread alone serves the panels; pages and callers leave flags and messages, which it reads. It starts with the first
panel and ends when the last one has closed.
"""

from __future__ import annotations

import atexit
import threading
import time
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Protocol

from bpfnb.interrupts import forget_after_fork, new_lock, uninterrupted, wait_at_most

__all__ = ["PERIOD", "Refreshable", "add", "wake"]

PERIOD = 0.2  # seconds between two frames of a panel
_PATIENCE = 10.0  # seconds for the entries of a map: a tracer that hangs is not to hold up all panels and cards


class Refreshable(Protocol):
    """A panel, as the refresh thread sees it. Its methods are called on that thread only."""

    def act(self) -> bool:
        """Do what flags and messages ask for; return whether to paint at once. Called whenever the thread wakes."""

    def paint(self) -> float | None:
        """Send what is new; return the seconds until the next paint, or None once the panel has closed itself."""

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
        self._panels: list[_Served] = []
        self._thread: threading.Thread | None = None
        self._wake: SimpleQueue[None] = SimpleQueue()  # an Event would be torn by Ctrl-C

    @uninterrupted
    def add(self, panel: Refreshable) -> None:
        with self._lock:
            if not any(served.panel is panel for served in self._panels):
                self._panels.append(_Served(panel))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="bpfnb-refresh", daemon=True)
                self._thread.start()
        self.wake()

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
        wait_at_most(_PATIENCE)
        while not self._ending:
            present = self._present()
            for served in present:
                if not served.serve():
                    self._remove(served)
            if self._ends():
                return
            due = min((served.due for served in present), default=0.0)
            with suppress(Empty):
                self._wake.get(timeout=max(0.0, due - time.monotonic()))
                while True:
                    self._wake.get_nowait()

    def _present(self) -> list[_Served]:
        with self._lock:
            return list(self._panels)

    def _remove(self, served: _Served) -> None:
        with self._lock:
            self._panels.remove(served)

    def _ends(self) -> bool:
        """End when there is no panel left. A panel added later starts another thread."""
        with self._lock:
            if not self._panels:
                self._thread = None
            return self._thread is None


class _Served:
    """A panel, and when it is to be painted next."""

    def __init__(self, panel: Refreshable) -> None:
        self.panel = panel
        self.due = self._earliest = 0.0

    def serve(self) -> bool:
        """Return whether the panel goes on. An error in it ends this panel and no other."""
        try:
            if self.panel.act():
                self.due = min(self.due, self._earliest)
            now = time.monotonic()
            if now < self.due:
                return True
            pause = self.panel.paint()
        except Exception as error:
            self.panel.fail(error)
            return False
        self._earliest = now + PERIOD
        self.due = now + max(pause or 0.0, PERIOD)
        return pause is not None


_refresh_thread = RefreshThread()


def add(panel: Refreshable) -> None:
    """Refresh a panel until it has closed."""
    _refresh_thread.add(panel)


def wake() -> None:
    """Have the thread read the panels' flags now."""
    _refresh_thread.wake()


atexit.register(_refresh_thread.end)
