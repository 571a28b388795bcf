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
    Shape,
    cut,
    in_order,
    join,
    merge,
    with_time,
)

__all__ = ["RING_TURN", "RingSource"]

_STEP = 1 << 20  # bytes of a ring read before their space is given back
RING_TURN = 16 << 20  # bytes of a ring read in one drain: all, where the cell does not ask for more
_PIECES = 32  # so many of equal records are faster written one after the other than as one of different ones
# bpf_ktime_get_ns() is the kernel's clock for NMIs, which may be off by a little while the clock is adjusted.
_JITTER_NS = 20_000


class RingSource:
    """A BPF_MAP_TYPE_RINGBUF's events, in the order they were reserved in; of time, where they are ``stamped``.

    The kernel maps the ring's data twice in a row, so no record is split. What lies before the producer's position has
    its header, which tells whether the rest is there; many instructions lie between our looking at one and at the
    other, so a processor that reads out of order has done the first by then.

    ``stamped``: each event has its time (CLOCK_MONOTONIC) behind it, taken by the program after it had made room for
    the event; with ``cpu`` the number of the CPU follows. Both become columns.

    ``turn``: how many bytes one drain reads. ``size``: of the ring, where the descriptor is no map's. ``clock``: the
    time now, in nanoseconds of CLOCK_MONOTONIC.
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
        self._shape = Shape(schema, RING.header, 0 if not stamped else 16 if cpu else 8)
        self._lost = lost
        self.memory = 0  # beside the map's
        self._size = size or bpf.map_shape(map_fd).max_entries
        self._consumer = memoryview(mmap.mmap(map_fd, mmap.PAGESIZE)).cast("Q")
        memory = mmap.mmap(map_fd, mmap.PAGESIZE + 2 * self._size, prot=mmap.PROT_READ, offset=mmap.PAGESIZE)
        self._producer = memoryview(memory)[:8].cast("Q")
        self._data = np.frombuffer(memory, np.uint8, 2 * self._size, mmap.PAGESIZE)
        self._at = self._consumer[0]
        self._held = NONE
        self._known = deque([(self._at, 0)])
        self.fds = (map_fd,)
        self.schema = self._shape.schema
        if stamped:
            at = self._shape.stamp_at
            self.schema = with_time(self.schema, "stamp", at, at + 8 if cpu else -1)
        self._writer = open_writer(self.schema)

    def drain(self, *, last: bool = False) -> int:
        """Move what has been submitted to the segment, up to an event that is reserved but not yet submitted; of much
        a part, unless this is the ``last``.

        Of stamped events the youngest are held back until the next drain, unless this is the ``last``.
        """
        if self._writer.blocked and not last:  # what the ring cannot take the programs count
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
        """Let go of the ring. Idempotent."""
        self._consumer.release()
        self._producer.release()
        self._data = np.empty(0, np.uint8)

    def _take_turn(self, end: int) -> bool:
        """Move some of what lies before ``end``. Whether there is more of it that is ready."""
        begin, turn = self._at, min(end, self._at + self._turn)
        if self._stamped:
            self._drain_stamped(turn, whole=turn == end)
        else:
            while self._at < turn and self._step(turn):
                pass
        return begin < self._at < end and turn < end

    def _step(self, end: int) -> bool:
        """Read some of what lies before ``end``, and give back its space; False when what comes next is not ready."""
        at = self._at % self._size
        found, until = cut(self._data, at, at + min(end - self._at, _STEP), RING)
        if len(found) > _PIECES:
            found = [join(self._data, found)]
        for records in found:
            self._shape.write(records, self._writer)
        self._release(self._at + until - at)
        return until > at

    def _note_position(self, position: int, now: int) -> None:
        """Note that what will be reserved behind a position is younger than ``now``."""
        if self._known[-1][0] == position:
            self._known.pop()
        self._known.append((position, now))

    def _drain_stamped(self, end: int, *, whole: bool) -> None:
        """Events lie in the order of their reservation, and are stamped a moment later, on some CPU much later.

        What was reserved behind a position that is known was so after it was looked at, and is stamped later still. So
        when all before it has been read, no older stamp than that time can come any more; as long as an event before
        it is not submitted, none older than at the last known position that was reached. Where only a part of a large
        ring is read, we take it that stamps are no later than ``SLACK_NS``.
        """
        base = self._at - self._at % self._size
        found, until = cut(self._data, self._at - base, end - base, RING)
        if len(found) > _PIECES:
            found = [join(self._data, found)]
        while len(self._known) > 1 and self._known[1][0] <= base + until:
            self._known.popleft()
        ripe = self._known[0][1] - _JITTER_NS
        if found and not whole:
            ripe = max(ripe, int(self._shape.stamps(found[-1][-1:])[0]) - SLACK_NS)
        self._held = self._write_until(ripe, [part for part in (self._held, *found) if len(part)], base)
        self._release(base + until)

    def _write_until(self, ripe: int, parts: list[Records], base: int) -> Records:
        """Write what is not younger than ``ripe``, in order of time; what is, in memory of its own."""
        times = [self._shape.stamps(part) for part in parts]
        if not in_order(times):
            together = merge(parts)
            order = np.argsort(self._shape.stamps(together), kind="stable")
            parts = [together.take(order)]
            times = [self._shape.stamps(parts[0])]
        left: list[Records] = []
        for part, when in zip(parts, times, strict=True):
            count = len(part) if not left and when[-1] <= ripe else int(np.searchsorted(when, ripe, side="right"))
            step = max(_STEP // int(part.length[0]), 1)
            for begin in range(0, count, step):
                self._shape.write(part[begin : min(begin + step, count)], self._writer)
                if part.data is self._data and begin:
                    self._release(base + int(part.start[begin]))
            if count < len(part):
                left.append(part[count:])
        return merge(left)

    def _release(self, position: int) -> None:
        self._at = position
        self._consumer[0] = position
