"""Run jobs in threads, so that a slow one delays only those of its own lane."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable

__all__ = ["Lanes"]

_IDLE_SECONDS = 2.0  # after which a thread with nothing to do ends

Job = Callable[[], None]  # must not raise


class Lanes:
    """Runs the jobs of a lane in order, and those of different lanes concurrently, at most ``threads`` at a time.

    Capabilities are per thread: its threads have those of the threads that call ``put``.
    """

    def __init__(self, name: str, threads: int) -> None:
        self._name = name
        self._max_threads = threads
        self._changed = threading.Condition()
        self._jobs: dict[Hashable, deque[Job]] = {}  # by lane; the first job may be running
        self._ready: deque[Hashable] = deque()  # lanes with a job, none of which is running
        self._threads = 0
        self._idle = 0

    def put(self, lane: Hashable, job: Job) -> None:
        """Run a job after all others of its lane."""
        with self._changed:
            if lane in self._jobs:
                self._jobs[lane].append(job)
                return
            self._jobs[lane] = deque([job])
            self._ready.append(lane)
            if len(self._ready) > self._idle and self._threads < self._max_threads:
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
        """Return the next lane with a job to run; None when there was none for ``_IDLE_SECONDS``."""
        with self._changed:
            self._idle += 1
            try:
                if self._changed.wait_for(lambda: bool(self._ready), _IDLE_SECONDS):
                    return self._ready.popleft()
                self._threads -= 1
                return None
            finally:
                self._idle -= 1
