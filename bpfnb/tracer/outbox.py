"""What the worker says to the notebook, sent without waiting for it to read.

A notebook that is stopped, or does not read, must hold up nobody: not the poller, not the end of a session, not the
end of the worker. What its socket does not take at once is queued, and a thread sends it. The queue is bounded by those
who fill it: segments by what the notebook has acknowledged, replies by the worker, which takes no further requests
while much lies here (``full``).
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from msgspec import Struct

from bpfnb.protocol.connection import Connection
from bpfnb.protocol.messages import MapRead, ToTracer

__all__ = ["Outbox"]

_MAX_BYTES = 64 << 20  # of replies and maps that wait to be read; beyond that there are no new ones
_STEP = 0.1  # seconds until the sender looks whether it is to end
_RETRY = 0.01


class _Waiting:
    """A frame, or what is left of it, and descriptors of its own."""

    def __init__(self, data: memoryview, fds: list[int], weight: int) -> None:
        self.data = data
        self.fds = fds
        self.weight = weight

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


class Outbox:
    """Sends messages in the order they are given; ``send`` may be called from any thread and never waits."""

    def __init__(self, connection: Connection[ToTracer]) -> None:
        self._connection = connection
        self._changed = threading.Condition()
        self._queue: deque[_Waiting] = deque()
        self._weight = 0
        self._over = False
        self._moved = 0  # bytes sent so far by the thread
        self._thread: threading.Thread | None = None
        # Made now, since later there may be no free descriptor. Not poll(2), see tracer/__main__.py.
        self._writable = select.epoll()
        self._writable.register(connection.fileno(), select.EPOLLOUT)

    def send(self, message: Struct, fds: Sequence[int] = ()) -> None:
        """Send a message, now or as soon as the notebook reads; the descriptors stay the caller's.

        When the notebook is gone this does nothing: whoever reads from the connection hears of its end.
        """
        frame = self._connection.frame(message, fds)
        with self._changed:
            if self._over:
                return
            sent = 0
            if not self._queue:
                try:
                    sent = self._connection.send_some(frame, fds)
                except OSError:
                    self._end()
                    return
            if sent < len(frame):
                self._wait_with(memoryview(frame)[sent:], [] if sent else fds, message)

    @property
    def full(self) -> bool:
        """Whether so much waits to be read that there should be no more of it."""
        return self._weight > _MAX_BYTES

    def wait_for_room(self, seconds: float | None = None) -> bool:
        """Wait until it is not ``full``, or over. Whether there is room."""
        with self._changed:
            return self._changed.wait_for(lambda: self._over or not self.full, seconds) and not self._over

    def close(self, patience: float) -> None:
        """Deliver what waits, for as long as the notebook reads: at most so many seconds without any progress, and five
        times as many in all. Then let go of the rest."""
        limit = time.monotonic() + 5 * patience
        with self._changed:
            moved, still = self._moved, time.monotonic() + patience
            while self._queue and not self._over and time.monotonic() < min(limit, still):
                self._changed.wait(_STEP)
                if self._moved != moved:
                    moved, still = self._moved, time.monotonic() + patience
            self._end()
        if self._thread:
            self._thread.join(1)

    def _wait_with(self, data: memoryview, fds: Sequence[int], message: Struct) -> None:
        held = [os.dup(fd) for fd in fds]
        # A map's entries lie in memory until they are read. Segments are counted by those who fill them.
        weight = len(data) + (sum(os.fstat(fd).st_size for fd in held) if isinstance(message, MapRead) else 0)
        self._queue.append(_Waiting(data, held, weight))
        self._weight += weight
        if not self._thread:
            self._thread = threading.Thread(target=self._run, name="bpfnb-sender", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._over or bool(self._queue))
                if self._over:
                    return
                moved = self._send_first()
            if not moved and not self._writable.poll(_STEP):
                continue
            if not moved:
                time.sleep(_RETRY)  # writable, and yet it took nothing: too many descriptors under way

    def _send_first(self) -> int:
        """Send what goes of the oldest; under the lock, which is never held while waiting."""
        first = self._queue[0]
        try:
            sent = self._connection.send_some(first.data, first.fds)
        except OSError:
            self._end()
            return 1
        if sent:
            first.close()
            first.data = first.data[sent:]
            self._moved += sent
        if not first.data:
            self._queue.popleft()
            self._weight -= first.weight
            self._changed.notify_all()
        return sent

    def _end(self) -> None:
        self._over = True
        with suppress(IndexError):
            while True:
                self._queue.popleft().close()
        self._weight = 0
        self._changed.notify_all()
