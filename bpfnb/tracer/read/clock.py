"""The offset that turns nanoseconds of CLOCK_MONOTONIC into times of day, one for the whole tracer.

printk, perf and ring buffers all carry CLOCK_MONOTONIC. With one offset for all, an instant has the same time in every
output of every session, to the nanosecond.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Clock"]

_TRIES = 50
_MIN_SUSPEND_NS = 1_000_000  # every suspend is longer


class Clock:
    """CLOCK_REALTIME minus CLOCK_MONOTONIC, measured once, and again after the machine was suspended.

    CLOCK_MONOTONIC stops during a suspend, CLOCK_BOOTTIME does not. Steps of the wall clock do not change the offset:
    they would move times that are already in DataFrames.
    """

    def __init__(self, read: Callable[[int], int] = time.clock_gettime_ns) -> None:
        """Measure the offset. ``read`` returns the nanoseconds of a clock."""
        self._read = read
        self._measure()

    def epoch_ns(self) -> int:
        """Return the offset in nanoseconds. Cheap enough to be called at every drain."""
        if self._at_least(time.CLOCK_BOOTTIME) > self._suspended + _MIN_SUSPEND_NS:
            self._measure()
        return self._epoch

    def _measure(self) -> None:
        self._suspended = self._ahead(time.CLOCK_BOOTTIME)
        self._epoch = self._ahead(time.CLOCK_REALTIME)

    def _ahead(self, clock: int) -> int:
        """Return how far a clock is ahead of CLOCK_MONOTONIC: the try, of several, that took the least time."""
        tries = []
        for _ in range(_TRIES):
            before = self._read(time.CLOCK_MONOTONIC)
            read = self._read(clock)
            after = self._read(time.CLOCK_MONOTONIC)
            tries.append((after - before, read - (before + after) // 2))
        return min(tries)[1]

    def _at_least(self, clock: int) -> int:
        """Return a lower bound of the same, which holds even if this thread is stopped between the two reads."""
        return self._read(clock) - self._read(time.CLOCK_MONOTONIC)
