"""Threads that answer requests, so that a slow one holds up no other."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable

__all__ = ["Lanes"]

_IDLE = 2.0  # seconds after which a thread with nothing to do ends

Job = Callable[[], None]  # must not raise


class Lanes:
    """Runs jobs: those of a lane one after the other, as they came, those of different lanes side by side.

    At most ``threads`` at a time. Capabilities are a thread's own: its threads have those of whoever calls ``put``.
    """

    def __init__(self, name: str, threads: int) -> None:
        self._name = name
        self._most = threads
        self._changed = threading.Condition()
        self._jobs: dict[Hashable, deque[Job]] = {}  # of a lane that has any, or one at work
        self._ready: deque[Hashable] = deque()  # lanes with a job, and none at work
        self._threads = 0
        self._idle = 0

    def put(self, lane: Hashable, job: Job) -> None:
        """Have a job run after all others of its lane."""
        with self._changed:
            if lane in self._jobs:
                self._jobs[lane].append(job)
                return
            self._jobs[lane] = deque([job])
            self._ready.append(lane)
            if len(self._ready) > self._idle and self._threads < self._most:
                self._threads += 1
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
            self._changed.notify()

    def _run(self) -> None:
        while (lane := self._next()) is not None:
            self._jobs[lane][0]()
            with self._changed:
                self._jobs[lane].popleft()
                if self._jobs[lane]:
                    self._ready.append(lane)
                    self._changed.notify()
                else:
                    del self._jobs[lane]

    def _next(self) -> Hashable | None:
        """A lane whose turn it is; None when there has been none for long."""
        with self._changed:
            self._idle += 1
            try:
                if self._changed.wait_for(lambda: bool(self._ready), _IDLE):
                    return self._ready.popleft()
                self._threads -= 1
                return None
            finally:
                self._idle -= 1
