"""Send messages to the notebook without waiting for it to read them.

A notebook that is suspended or does not read must delay nothing: not the poller, not the end of a session, not the end
of the worker. What its socket does not take at once is queued, and a thread sends it. The senders limit the queue:
segments by what the notebook has acknowledged, replies by the worker, which accepts no requests while the queue is
``full``.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from msgspec import Struct

from bpfnb.protocol.connection import Connection
from bpfnb.protocol.messages import MapRead

__all__ = ["Outbox"]

_MAX_BYTES = 64 << 20  # of replies and maps in the queue; no more are made while it holds so many
_CHECK_SECONDS = 0.1  # how often the sender checks whether it is to end
_RETRY_SECONDS = 0.01


class _Queued:
    """A frame, or the rest of it, with its own copies of descriptors. ``weight``: the bytes it counts as."""

    def __init__(self, data: memoryview, fds: list[int], weight: int) -> None:
        self.data = data
        self.fds = fds
        self.weight = weight

    def close(self) -> None:
        """Close the descriptors. Idempotent."""
        while self.fds:
            os.close(self.fds.pop())


class Outbox:
    """Sends messages in the order of ``send``, which may be called from any thread and never waits."""

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection
        self._changed = threading.Condition()
        self._queue: deque[_Queued] = deque()
        self._weight = 0
        self._over = False
        self._moved = 0  # total bytes sent by the thread
        self._thread: threading.Thread | None = None
        # Opened now, since later there may be no free descriptor. Not poll(2): see tracer/__main__.py.
        self._writable = select.epoll()
        self._writable.register(connection.fileno(), select.EPOLLOUT)

    def send(self, message: Struct, fds: Sequence[int] = ()) -> None:
        """Send a message, now or as soon as the notebook reads. The descriptors stay the caller's.

        Does nothing when the notebook is gone: the thread that reads from the connection learns of that.
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
                self._enqueue(memoryview(frame)[sent:], [] if sent else fds, message)

    @property
    def full(self) -> bool:
        """Whether the queue holds so much that no more replies should be made."""
        return self._weight > _MAX_BYTES

    def wait_for_room(self, seconds: float | None = None) -> bool:
        """Wait until it is not ``full``, or closed. Return whether there is room."""
        with self._changed:
            return self._changed.wait_for(lambda: self._over or not self.full, seconds) and not self._over

    def flush(self, timeout: float) -> None:
        """Wait until what is queued is sent, as long as the notebook reads.

        Gives up after ``timeout`` seconds without progress, and after five times as many in all.
        """
        limit = time.monotonic() + 5 * timeout
        with self._changed:
            moved, deadline = self._moved, time.monotonic() + timeout
            while self._queue and not self._over and time.monotonic() < min(limit, deadline):
                self._changed.wait(_CHECK_SECONDS)
                if self._moved != moved:
                    moved, deadline = self._moved, time.monotonic() + timeout

    def close(self, timeout: float) -> None:
        """Send what is queued, as ``flush`` does, and drop the rest. Idempotent."""
        self.flush(timeout)
        with self._changed:
            self._end()
        if self._thread:
            self._thread.join(1)
        if not (self._thread and self._thread.is_alive()):
            self._writable.close()

    def _enqueue(self, data: memoryview, fds: Sequence[int], message: Struct) -> None:
        held = [os.dup(fd) for fd in fds]
        # A map's entries stay in memory until they are read. Segments are limited by those who fill them.
        weight = len(data) + (sum(os.fstat(fd).st_size for fd in held) if isinstance(message, MapRead) else 0)
        self._queue.append(_Queued(data, held, weight))
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
            if not moved and not self._writable.poll(_CHECK_SECONDS):
                continue
            if not moved:
                time.sleep(_RETRY_SECONDS)  # writable, but it took nothing: too many descriptors are in flight

    def _send_first(self) -> int:
        """Send as much of the oldest frame as the socket takes, with the lock held. Never waits."""
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
