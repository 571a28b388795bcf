"""Flow control: how many bytes of segments may be on their way to the notebook, or to another who gets them."""

from __future__ import annotations

import threading
from collections import deque

__all__ = ["Credit"]

_MIN_CREDIT = 8 << 20  # bytes


class Credit:
    """A limit on the bytes of a session's segments that are published and not acknowledged. For any thread."""

    def __init__(self, keep: int = 1 << 62) -> None:
        """``keep``: how many bytes of rows the session may keep."""
        self.limit = max(keep, _MIN_CREDIT)
        self._sizes: deque[int] = deque()
        self._taken = 0
        self._closed = False
        self._lock = threading.Lock()

    @property
    def closed(self) -> bool:
        """Return whether whoever received the segments is gone."""
        return self._closed

    @property
    def ample(self) -> bool:
        """Return whether at least half of it is left."""
        return not self._closed and 2 * self._taken <= self.limit

    def close(self) -> None:
        """Allow nothing any more: whoever received the segments is gone."""
        self._closed = True

    def allows(self, size: int) -> bool:
        """Return whether a segment of this size may be published. If none is in flight it may, whatever its size."""
        return not self._closed and (not self._taken or self._taken + size <= self.limit)

    def take(self, size: int, *, first: bool = False) -> bool:
        """Count a segment as published, if that is allowed. The ``first`` of an output always is."""
        with self._lock:
            if self._closed or not (first or self.allows(size)):
                return False
            self._sizes.append(size)
            self._taken += size
            return True

    def acknowledge(self, count: int) -> None:
        """Count the oldest ``count`` segments as received."""
        with self._lock:
            while count > 0 and self._sizes:
                self._taken -= self._sizes.popleft()
                count -= 1
