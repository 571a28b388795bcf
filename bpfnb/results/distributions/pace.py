"""How often something is read that may take long: once a second, or so seldom that it takes a twentieth of the time."""

from __future__ import annotations

import math

__all__ = ["Pace"]

_SHARE = 20  # of the time, one part is spent reading
_MAX_PERIOD = 60  # seconds


class Pace:
    """``period``: seconds between two readings."""

    def __init__(self) -> None:
        self.period = 1
        self._last: int | None = None  # the second of the last reading

    def due(self, now: float) -> bool:
        """Return whether to read now (seconds since 1970): in every ``period``-th second, as soon as it has begun."""
        return self._last is None or not self._last <= int(now) < self._last + self.period

    def took(self, now: float, seconds: float) -> None:
        """Note a reading and how long it took."""
        self._last = int(now)
        self.period = min(max(math.ceil(seconds * _SHARE), 1), _MAX_PERIOD)
