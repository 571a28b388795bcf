"""How far another host's CLOCK_MONOTONIC is ahead of ours, from round trips."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

__all__ = ["Offset"]

_KEPT = 64  # round trips
_DRIFT = 1e-4  # of the time since: how far two clocks may drift apart; the kernel slews one by 500 ppm at most


class _Trip(NamedTuple):
    ahead: int
    error: int
    heard: int

    def error_at(self, now: int) -> int:
        return self.error + int((now - self.heard) * _DRIFT)


class Offset:
    """``ns``: nanoseconds to add to this machine's CLOCK_MONOTONIC, 0 until something is known. ``error_ns``: by how
    much that may be wrong: half of the time that the answer took, and the drift since."""

    def __init__(self) -> None:
        self._trips: deque[_Trip] = deque(maxlen=_KEPT)
        self.ns = self.error_ns = 0

    def add(self, sent: int, heard: int, clock: int) -> None:
        """Add a round trip: when it was sent and heard here, and the clock there in between."""
        self._trips.append(_Trip(clock - (sent + heard) // 2, (heard - sent) // 2, heard))
        best = min(self._trips, key=lambda trip: trip.error_at(heard))
        self.ns, self.error_ns = best.ahead, best.error_at(heard)
