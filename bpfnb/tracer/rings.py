"""BPF_RINGBUF_OUTPUT and BPF_PERF_OUTPUT: from the kernel's buffers, which we see as memory, to a session's segments.

Each is a source for drainer.py. ``fds`` become readable when events wait, not for every one of them, so both ``tick``;
``drain`` moves what there is; ``schema`` describes the rows it writes, records as they lay in the buffer. What the
buffers refused the programs themselves have counted; ``lost`` gives the count.

The maps' descriptors stay the caller's, and have to outlive the source.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from msgspec.structs import replace as changed

from bpfnb.schema import Column, Schema
from bpfnb.tracer import syscalls
from bpfnb.tracer.drainer import FILLING
from bpfnb.tracer.perfbuf import CpuBuffer, PerfBuffers
from bpfnb.tracer.records import NONE, PERF, RING, Records, Shape, cut, join
from bpfnb.tracer.segments import SegmentWriter

__all__ = ["OpenWriter", "PerfSource", "RingSource"]

OpenWriter = Callable[[Schema], SegmentWriter]  # the writer stays the caller's to close

_STEP = 1 << 20  # bytes of a ring read before their space is given back
_PIECES = 32  # so many of equal records are faster written one after the other than as one of different ones
_CHUNK = 1 << 14  # perf's records made into rows at a time
_FILLING = 4  # a buffer this part of which was full is read again sooner

_PERF_HEADER = 20  # perf_event_header, then what PERF_SAMPLE_TIME and PERF_SAMPLE_RAW add: u64 time, u32 size
_PERF_TIME = 8
# An event's time is read before its record can be seen. In between the CPU may be interrupted, or be a virtual one
# that does not run.
_SLACK_NS = 1_000_000
_FOREVER = (1 << 63) - 1


class RingSource:
    """A BPF_MAP_TYPE_RINGBUF's events, in the order they were reserved in.

    The kernel maps the ring's data twice in a row, so no record is split. What lies before the producer's position has
    its header, which tells whether the rest is there; many instructions lie between our looking at one and at the
    other, so a processor that reads out of order has done the first by then.
    """

    tick = True

    def __init__(self, map_fd: int, schema: Schema, open_writer: OpenWriter, lost: Callable[[], int]) -> None:
        self._shape = Shape(schema, RING.header)
        self._lost = lost
        self._size = syscalls.map_shape(map_fd).max_entries
        self._consumer = memoryview(mmap.mmap(map_fd, mmap.PAGESIZE)).cast("Q")
        memory = mmap.mmap(map_fd, mmap.PAGESIZE + 2 * self._size, prot=mmap.PROT_READ, offset=mmap.PAGESIZE)
        self._producer = memoryview(memory)[:8].cast("Q")
        self._data = np.frombuffer(memory, np.uint8, 2 * self._size, mmap.PAGESIZE)
        self._at = self._consumer[0]
        self.fds = (map_fd,)
        self.schema = self._shape.schema
        self._writer = open_writer(self.schema)

    def drain(self, *, last: bool = False) -> int:
        """Move what has been submitted to the segment, up to an event that is reserved but not yet submitted.

        The ``last`` is as every other: nothing is held back here.
        """
        begin, end = self._at, self._producer[0]
        while self._at < end and self._step(end):
            pass
        self._writer.set_lost(self._lost())
        return FILLING if end - begin > self._size // _FILLING else 0

    def close(self) -> None:
        """Let go of the ring. Idempotent."""
        self._consumer.release()
        self._producer.release()
        self._data = np.empty(0, np.uint8)

    def _step(self, end: int) -> bool:
        """Read some of what lies before ``end``, and give back its space; False when what comes next is not ready."""
        at = self._at % self._size
        found, until = cut(self._data, at, at + min(end - self._at, _STEP), RING)
        if len(found) > _PIECES:
            found = [join(self._data, found)]
        for records in found:
            self._shape.write(records, self._writer)
        self._at += until - at
        self._consumer[0] = self._at
        return until > at


class PerfSource:
    """A BPF_MAP_TYPE_PERF_EVENT_ARRAY's events, in time order over all CPUs.

    Rows have the time of the event's submission (CLOCK_MONOTONIC) as their first column, unless ``schema`` has a time.

    perf rounds a record's length up to 8 bytes, and what fills it up is left over from older events: so much may
    follow a short event or a flexible array's end.
    """

    tick = True

    def __init__(self, map_fd: int, schema: Schema, open_writer: OpenWriter, lost: Callable[[], int]) -> None:
        self._shape = Shape(schema, _PERF_HEADER)
        self._lost = lost
        self._held = NONE
        self._buffers = PerfBuffers(map_fd)
        try:
            self.fds = tuple(buffer.fd for buffer in self._buffers.all)
            self.schema = self._shape.schema if schema.time else _timed(self._shape.schema)
            self._writer = open_writer(self.schema)
        except BaseException:
            self.close()
            raise

    def drain(self, *, last: bool = False) -> int:
        """Move what has been submitted to the segment.

        CPUs are read one after the other, so an event younger than the start of this drain may come before older ones
        still unread elsewhere: it is held back until the next drain, unless this is the ``last``.
        """
        now = time.monotonic_ns()
        self._buffers.watch(now)
        waiting = [(buffer, head) for buffer in self._buffers.all if (head := buffer.head()) != buffer.tail]
        filling = any(head - buffer.tail > buffer.size // _FILLING for buffer, head in waiting)
        if waiting or len(self._held):
            self._write(self._take(waiting), _FOREVER if last else now - _SLACK_NS)
        self._writer.set_lost(self._lost())
        return FILLING if filling else len(self._held) > 0

    def close(self) -> None:
        """Take the buffers out of the map and free them. Idempotent."""
        self._buffers.close()

    def _take(self, waiting: list[tuple[CpuBuffer, int]]) -> Records:
        """What was held back, and what lies before the heads of these buffers."""
        at = len(self._held.data)
        data = np.empty(at + sum(head - buffer.tail for buffer, head in waiting), np.uint8)
        data[:at] = self._held.data
        parts = [replace(self._held, data=data)]
        for buffer, head in waiting:
            end = at + head - buffer.tail
            buffer.move(data[at:end], head)
            parts += cut(data, at, end, PERF)[0]
            at = end
        return join(data, parts)

    def _write(self, records: Records, until: int) -> None:
        times = records.words(_PERF_TIME)
        if np.any(times[1:] < times[:-1]):
            order = np.argsort(times, kind="stable")
            records, times = records.take(order), times[order]
        ripe = int(np.searchsorted(times, until, side="right"))
        for begin in range(0, ripe, _CHUNK):
            self._shape.write(records[begin : min(begin + _CHUNK, ripe)], self._writer)
        self._held = records[ripe:].compact()


def _timed(schema: Schema) -> Schema:
    """With the record's own time as first column; whatever the struct's members are called, its name is its own."""
    name = "mono_ns"
    while any(column.name == name for column in schema.columns):
        name = f"_{name}"
    return changed(schema, columns=(Column(name, "number", "<i8", _PERF_TIME), *schema.columns), time=name)
