"""What far has to send, in order, and no more of it than it may hold.

Two lanes. Messages and maps are sent in order; rows, memory and announcements of both as well, and these may overtake a
map, which is sent in pieces, a piece and a frame of the other lane by turns. So a large map holds up no rows, the last
rows come before Stopped, and an output is announced before its rows.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from msgspec import Struct

from bpfnb.host.ssh.frames import Frames, Memory, Passed, Piece, Rows
from bpfnb.protocol.messages import MapRead

__all__ = ["Outgoing", "Window"]

_MAX_WAITING = 64 << 20  # bytes of messages and maps; no more are taken from the tracer while it holds so many
_PIECE = 64 << 10  # bytes of a map
_FIRST_ROWS, _MAX_ROWS, _MIN_ROWS = 8 << 20, 64 << 20, 512 << 10  # bytes of rows that were not taken yet
_SLOW, _QUICK = 3.0, 1.0  # seconds until rows are taken


class Window:
    """How many bytes of rows may be under way: ``limit``. More where the link takes them quickly; fewer where it takes
    seconds: rows that wait so long would only be late, and what comes meanwhile be lost all the same."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = _FIRST_ROWS
        self._clock = clock
        self._under_way: deque[tuple[int, float]] = deque()
        self._bytes = 0
        self._changed = 0.0

    def allows(self, size: int) -> bool:
        """Return whether so many bytes more may be sent. If none are under way they may, however many."""
        return not self._under_way or self._bytes + size <= self.limit

    def add(self, size: int) -> None:
        self._under_way.append((size, self._clock()))
        self._bytes += size

    def taken(self, frames: int) -> None:
        """Count the oldest ``frames`` as taken."""
        now = self._clock()
        for _ in range(min(frames, len(self._under_way))):
            size, since = self._under_way.popleft()
            full = self._bytes > self.limit // 2
            self._bytes -= size
            if since < self._changed:
                continue  # it waited behind what the limit before had let in
            late = now - since
            if late > _SLOW:
                self._set(max(int(self.limit * _QUICK / late), _MIN_ROWS), now)
            elif late < _QUICK and full and self.limit < _MAX_ROWS:
                self._set(min(2 * self.limit, _MAX_ROWS), now)

    def _set(self, limit: int, now: float) -> None:
        self.limit, self._changed = limit, now


class _Queued(NamedTuple):
    number: int  # by which both lanes are ordered
    frame: Struct | _Map
    weight: int = 0


class _Map:
    """A map that is being sent. ``fd``: a copy of its own, closed at the end."""

    def __init__(self, message: MapRead, fd: int) -> None:
        self.message = message
        self.fd = fd
        self.size = os.fstat(fd).st_size
        self._sent = 0

    def next(self) -> Struct:
        """Return its next piece; at last, when ``over``, its message."""
        if self.over:
            os.close(self.fd)
            return Passed(self.message)
        data = os.pread(self.fd, _PIECE, self._sent)
        self._sent += len(data)
        return Piece(self.size, data)

    @property
    def over(self) -> bool:
        return self._sent >= self.size


class Outgoing:
    """The queue, and the thread that sends it. For any thread; nothing waits for the link but ``wait_for_room`` and
    ``flush``."""

    def __init__(self, frames: Frames[Any], on_broken: Callable[[], None]) -> None:
        self._frames = frames
        self._on_broken = on_broken
        self._changed = threading.Condition(threading.RLock())
        self._slow: deque[_Queued] = deque()
        self._fast: deque[_Queued] = deque()
        self._urgent: deque[Struct] = deque()
        self._memory: dict[tuple[int, str], Memory] = {}
        self._window = Window()
        self._numbered = self._weight = 0
        self._by_turns = self._sending = self._broken = False
        threading.Thread(target=self._run, name="bpfnb-far-send", daemon=True).start()

    def put(self, frame: Struct) -> None:
        """Send a message after all before it, rows as well."""
        self._put(self._slow, frame)

    def put_ahead(self, frame: Struct) -> None:
        """Send an announcement of rows or memory: it may overtake maps, as these do."""
        self._put(self._fast, frame)

    def put_now(self, frame: Struct) -> None:
        """Send it before all else."""
        with self._changed:
            self._urgent.append(frame)
            self._changed.notify_all()

    def put_rows(self, frame: Rows) -> None:
        with self._changed:
            self._window.add(len(frame.rows) + len(frame.text))
            self._put(self._fast, frame)

    def put_memory(self, session: int, kind: Literal["counters", "costs"], data: bytes) -> None:
        """Send what memory is now, in place of what it was before, where that still waits."""
        with self._changed:
            known = self._memory.get((session, kind))
            self._memory[session, kind] = frame = Memory(session, kind, data)
            if known is None:
                self._put(self._fast, frame)

    def put_map(self, message: MapRead, fd: int) -> None:
        """Send a map. The descriptor stays the caller's."""
        queued = _Map(message, os.dup(fd))
        self._put(self._slow, queued, queued.size)

    def allows(self, size: int) -> bool:
        """Return whether so many bytes of rows may be sent."""
        return self._window.allows(size)

    def taken(self, frames: int) -> None:
        with self._changed:
            self._window.taken(frames)

    def wait_for_room(self) -> None:
        """Wait while too many messages and maps wait to be sent."""
        with self._changed:
            self._changed.wait_for(lambda: self._broken or self._weight <= _MAX_WAITING)

    def flush(self) -> None:
        """Wait until all is sent, or the link broken."""
        with self._changed:
            self._changed.wait_for(lambda: self._broken or not (self._slow or self._fast or self._sending))

    def _put(self, lane: deque[_Queued], frame: Struct | _Map, weight: int = 0) -> None:
        with self._changed:
            self._numbered += 1
            self._weight += weight
            lane.append(_Queued(self._numbered, frame, weight))
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._sending = False
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._urgent or self._slow or self._fast)
                    self._sending = True
                    frame = self._next()
                self._frames.send(frame)
        except OSError:
            with self._changed:
                self._broken = True
                self._changed.notify_all()
            self._on_broken()

    def _next(self) -> Struct:
        if self._urgent:
            return self._urgent.popleft()
        first = self._slow[0] if self._slow else None
        if first and isinstance(first.frame, _Map) and (not self._fast or self._fast[0].number > first.number):
            self._by_turns = not self._by_turns
            if self._by_turns or not self._fast:
                return self._piece(first.frame)
        elif first and (not self._fast or first.number < self._fast[0].number):
            self._slow.popleft()
            assert isinstance(first.frame, Struct)
            return first.frame
        frame = self._fast.popleft().frame
        if isinstance(frame, Memory):
            return self._memory.pop((frame.session, frame.kind))
        assert isinstance(frame, Struct)
        return frame

    def _piece(self, sent: _Map) -> Struct:
        last = sent.over
        piece = sent.next()
        if last:
            self._weight -= self._slow.popleft().weight
        return piece
