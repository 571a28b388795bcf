"""The one offset by which a tracer turns nanoseconds of CLOCK_MONOTONIC into times of day.

printk, perf and ring buffers all carry CLOCK_MONOTONIC. One number for all of them means that one instant is one time,
in every output of every session, to the nanosecond.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Clock"]

_TRIES = 50
_SUSPEND_NS = 1_000_000  # a shorter difference than any suspend makes


class Clock:
    """CLOCK_REALTIME minus CLOCK_MONOTONIC, measured once, and again after the machine was suspended.

    CLOCK_MONOTONIC stands still during a suspend, CLOCK_BOOTTIME does not. Steps of the wall clock change nothing: what
    they would move are times already handed out.
    """

    def __init__(self, read: Callable[[int], int] = time.clock_gettime_ns) -> None:
        """``read``: reads one of the kernel's clocks."""
        self._read = read
        self._measure()

    def epoch_ns(self) -> int:
        """The offset in nanoseconds. Cheap enough to be asked at every drain."""
        if self._at_least(time.CLOCK_BOOTTIME) > self._suspended + _SUSPEND_NS:
            self._measure()
        return self._epoch

    def _measure(self) -> None:
        self._suspended = self._ahead(time.CLOCK_BOOTTIME)
        self._epoch = self._ahead(time.CLOCK_REALTIME)

    def _ahead(self, clock: int) -> int:
        """How far a clock is ahead of CLOCK_MONOTONIC: of several tries the one that took the least time."""
        tries = []
        for _ in range(_TRIES):
            before = self._read(time.CLOCK_MONOTONIC)
            read = self._read(clock)
            after = self._read(time.CLOCK_MONOTONIC)
            tries.append((after - before, read - (before + after) // 2))
        return min(tries)[1]

    def _at_least(self, clock: int) -> int:
        """A lower bound of the same, also where this thread was stopped between the two."""
        return self._read(clock) - self._read(time.CLOCK_MONOTONIC)
