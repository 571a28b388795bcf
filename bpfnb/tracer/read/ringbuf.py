"""Drain BPF_RINGBUF_OUTPUT: from the kernel's ring buffer, which we map, to a session's segments.

A source for poller.py. Its ``fds`` become readable when events wait, but not for every event, so it needs polling.
``drain`` moves some of the events. ``schema`` describes the rows it writes, which are the records as they lay in the
buffer. Programs count the events that the buffer refused; ``lost`` returns that count.

The map's descriptor stays the caller's, and has to outlive the source.
"""

from __future__ import annotations

import mmap
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from bpfnb.protocol.schema import Schema
from bpfnb.tracer.kernel import bpf
from bpfnb.tracer.read.poller import HIGH_WATER, HIGH_WATER_PART
from bpfnb.tracer.read.records import (
    FOREVER,
    NONE,
    RING,
    SLACK_NS,
    OpenWriter,
    Records,
    RowFormat,
    cut,
    in_order,
    join,
    merge,
    with_time,
)

__all__ = ["RING_TURN", "RingSource"]

_STEP = 1 << 20  # bytes read before their space is released
RING_TURN = 16 << 20  # bytes read in one drain: a whole ring, where the cell asks for no larger one
_MAX_PIECES = 32  # up to so many runs of equal records are written faster one by one than joined
# bpf_ktime_get_ns() is the kernel's NMI-safe clock, which may be off by a little while the clock is adjusted.
_JITTER_NS = 20_000


class RingSource:
    """A BPF_MAP_TYPE_RINGBUF's events, in the order of their reservation, or of time where they are ``stamped``.

    The kernel maps the ring's data twice in a row, so no record is split. Each record before the producer's position
    has its header, which says whether the rest is there. Many instructions lie between our reads of the position and of
    the header, so a processor that reads out of order has read the position by then.

    ``stamped``: each event is followed by its time (CLOCK_MONOTONIC), which the program took after it had reserved the
    event's space, and with ``cpu`` by the number of its CPU. Both become columns.

    ``turn``: the bytes that one drain reads. ``size``: the ring's size in bytes, where the descriptor is not a map's.
    ``clock``: returns the time now, in nanoseconds of CLOCK_MONOTONIC.
    """

    needs_polling = True

    def __init__(
        self,
        map_fd: int,
        schema: Schema,
        open_writer: OpenWriter,
        lost: Callable[[], int],
        *,
        stamped: bool = False,
        cpu: bool = False,
        turn: int = RING_TURN,
        size: int = 0,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._turn = turn
        self._clock = clock
        self._stamped = stamped
        self._format = RowFormat(schema, RING.header, 0 if not stamped else 16 if cpu else 8)
        self._lost = lost
        self.memory = 0  # bytes in the kernel, besides the map's
        self._size = size or bpf.map_shape(map_fd).max_entries
        self._consumer = memoryview(mmap.mmap(map_fd, mmap.PAGESIZE)).cast("Q")
        memory = mmap.mmap(map_fd, mmap.PAGESIZE + 2 * self._size, prot=mmap.PROT_READ, offset=mmap.PAGESIZE)
        self._producer = memoryview(memory)[:8].cast("Q")
        self._data = np.frombuffer(memory, np.uint8, 2 * self._size, mmap.PAGESIZE)
        self._at = self._consumer[0]
        self._held = NONE
        self._known = deque([(self._at, 0)])
        self.fds = (map_fd,)
        self.schema = self._format.schema
        if stamped:
            at = self._format.stamp_at
            self.schema = with_time(self.schema, "stamp", at, at + 8 if cpu else -1)
        self._writer = open_writer(self.schema)

    def drain(self, *, last: bool = False) -> int:
        """Move submitted events to the segment, up to an event that is reserved but not submitted.

        Only a part of a large amount is moved, and the youngest stamped events are held back until the next drain. The
        ``last`` drain moves everything.
        """
        if self._writer.blocked and not last:  # programs count the events that the ring then refuses
            self._writer.set_lost(self._lost())
            return 0
        now = self._clock()
        begin, end = self._at, self._producer[0]
        if self._stamped:
            self._note_position(end, now)
        more = self._take_turn(end)
        while last and more:
            more = self._take_turn(end)
        if last and len(self._held):
            self._held = self._write_until(FOREVER, [self._held], 0)
        self._writer.set_lost(self._lost())
        return HIGH_WATER if more or end - begin > self._size // HIGH_WATER_PART else len(self._held) > 0

    def close(self) -> None:
        """Release the mappings of the ring. Idempotent."""
        self._consumer.release()
        self._producer.release()
        self._data = np.empty(0, np.uint8)

    def _take_turn(self, end: int) -> bool:
        """Move some of the events before ``end``. Return whether more of them may be ready."""
        begin, turn = self._at, min(end, self._at + self._turn)
        if self._stamped:
            self._drain_stamped(turn, whole=turn == end)
        else:
            while self._at < turn and self._step(turn):
                pass
        return begin < self._at < end and turn < end

    def _step(self, end: int) -> bool:
        """Move some of the events before ``end`` and release their space. Return False when the next is not ready."""
        at = self._at % self._size
        found, until = cut(self._data, at, at + min(end - self._at, _STEP), RING)
        if len(found) > _MAX_PIECES:
            found = [join(self._data, found)]
        for records in found:
            self._format.write(records, self._writer)
        self._release(self._at + until - at)
        return until > at

    def _note_position(self, position: int, now: int) -> None:
        """Note that events reserved behind this position will be younger than ``now``."""
        if self._known[-1][0] == position:
            self._known.pop()
        self._known.append((position, now))

    def _drain_stamped(self, end: int, *, whole: bool) -> None:
        """Move events in order of their stamps.

        Events lie in the order of their reservation. Each is stamped a moment later, on some CPU perhaps much later. An
        event behind a noted position was reserved, and so stamped, after the position was noted. So when all events
        before the position have been read, no older stamp can follow. While an event before it is not submitted, the
        same holds for the last noted position that was reached. Where only a part of a large ring is read, we assume
        that stamps are at most ``SLACK_NS`` late.
        """
        base = self._at - self._at % self._size
        found, until = cut(self._data, self._at - base, end - base, RING)
        if len(found) > _MAX_PIECES:
            found = [join(self._data, found)]
        while len(self._known) > 1 and self._known[1][0] <= base + until:
            self._known.popleft()
        ripe = self._known[0][1] - _JITTER_NS
        if found and not whole:
            ripe = max(ripe, int(self._format.stamps(found[-1][-1:])[0]) - SLACK_NS)
        self._held = self._write_until(ripe, [part for part in (self._held, *found) if len(part)], base)
        self._release(base + until)

    def _write_until(self, ripe: int, parts: list[Records], base: int) -> Records:
        """Write events up to the time ``ripe``, in order of time. Return copies of the younger ones."""
        times = [self._format.stamps(part) for part in parts]
        if not in_order(times):
            together = merge(parts)
            order = np.argsort(self._format.stamps(together), kind="stable")
            parts = [together.take(order)]
            times = [self._format.stamps(parts[0])]
        left: list[Records] = []
        for part, when in zip(parts, times, strict=True):
            count = len(part) if not left and when[-1] <= ripe else int(np.searchsorted(when, ripe, side="right"))
            step = max(_STEP // int(part.length[0]), 1)
            for begin in range(0, count, step):
                self._format.write(part[begin : min(begin + step, count)], self._writer)
                if part.data is self._data and begin:
                    self._release(base + int(part.start[begin]))
            if count < len(part):
                left.append(part[count:])
        return merge(left)

    def _release(self, position: int) -> None:
        self._at = position
        self._consumer[0] = position
