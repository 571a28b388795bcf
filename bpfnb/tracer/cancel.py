"""Ending from one thread what another one waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Cancel", "CancelledError"]


class CancelledError(Exception):
    """What was waited for is not wanted any more."""


class Cancel:
    """Lets one thread end what another one waits for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._end: Callable[[], object] | None = None

    def cancel(self) -> None:
        """End what is waited for now, and all that would be waited for later. From any thread."""
        with self._lock:
            self._cancelled = True
            if self._end:
                self._end()

    def check(self) -> None:
        """CancelledError when it was cancelled."""
        if self._cancelled:
            raise CancelledError

    @contextmanager
    def by(self, end: Callable[[], object]) -> Iterator[None]:
        """What is waited for inside is ended by calling ``end``, from another thread. Raises CancelledError."""
        with self._lock:
            self.check()
            self._end = end
        try:
            yield
        finally:
            with self._lock:
                self._end = None
