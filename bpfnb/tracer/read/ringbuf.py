"""BPF_RINGBUF_OUTPUT and BPF_PERF_OUTPUT: from the kernel's buffers, which we see as memory, to a session's segments.

Each is a source for poller.py. ``fds`` become readable when events wait, but not for every event, so both need polling.
``drain`` moves some of what there is; ``schema`` describes the rows it writes, records as they lay in the buffer. What
the buffers refused the programs themselves have counted; ``lost`` gives the count.

The maps' descriptors stay the caller's, and have to outlive the source.
"""

from __future__ import annotations

import mmap
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace as changed

from bpfnb.protocol.schema import Number, Schema, Tail
from bpfnb.protocol.segments import SegmentWriter
from bpfnb.tracer.kernel import bpf
from bpfnb.tracer.read.perf import CpuBuffer, PerfBuffers
from bpfnb.tracer.read.poller import HIGH_WATER
from bpfnb.tracer.read.records import NONE, PERF, RING, Ints, Records, Shape, cut, join, merge

__all__ = ["PERF_TURN", "RING_TURN", "SLACK_NS", "OpenWriter", "PerfSource", "RingSource"]

OpenWriter = Callable[[Schema], SegmentWriter]  # the writer stays the caller's to close

_STEP = 1 << 20  # bytes of a ring read before their space is given back
RING_TURN = 16 << 20  # bytes of a ring read in one drain: all, where the cell does not ask for more
PERF_TURN = 8 << 20  # of all CPUs' buffers together
_MAX_RECORD = 1 << 16  # of perf: its size is a u16
_PIECES = 32  # so many of equal records are faster written one after the other than as one of different ones
_CHUNK = 1 << 14  # perf's records made into rows at a time
_HIGH_WATER_PART = 4  # a buffer that was more than a fourth full is read again sooner

# perf_event_header, then what PERF_SAMPLE_TIME, PERF_SAMPLE_ID (where there are several maps) and PERF_SAMPLE_RAW add:
# u64 time, u64 id, u32 size. The header's u16 misc says what does not concern us: the CPU is noted there.
_PERF_HEADER, _PERF_TIME, _PERF_ID, _PERF_CPU = 20, 8, 16, 4
# An event's time is read before its record can be seen (and a ring's event is stamped after it has got its place). In
# between the CPU may be interrupted, or be a virtual one that does not run.
SLACK_NS = 5_000_000
# bpf_ktime_get_ns() is the kernel's clock for NMIs, which may be off by a little while the clock is adjusted.
_JITTER_NS = 20_000
_FOREVER = (1 << 63) - 1
_MAX_PADDING = 7
_TIME = "(time)"


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
            self.schema = _with_time(self.schema, "stamp", at, at + 8 if cpu else -1)
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
            self._held = self._write_until(_FOREVER, [self._held], 0)
        self._writer.set_lost(self._lost())
        return HIGH_WATER if more or end - begin > self._size // _HIGH_WATER_PART else len(self._held) > 0

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
        if not _in_order(times):
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


Waiting = list[tuple[CpuBuffer, int]]  # buffers, and up to where they are to be read


class PerfSource:
    """A BPF_MAP_TYPE_PERF_EVENT_ARRAY's events, in order of time over all CPUs.

    Rows have the time of the event's submission (CLOCK_MONOTONIC) as a column, and with ``cpu`` the CPU's number.

    perf rounds a record's length up, and what fills it up is left over from older events. How long events really are
    is known in one of two ways. ``sizes``: all lengths they are submitted with. Or ``padded``: further maps, the n-th
    for what is filled up with n + 1 bytes. Where neither tells, the seven bytes that may be left over are cut off.

    ``turn``: how many bytes one drain reads. ``slack_ns``: an event younger than this may have older ones behind it.
    ``buffers``: of the map, by default of the usual size on all CPUs.
    """

    needs_polling = True

    def __init__(
        self,
        map_fd: int,
        schema: Schema,
        open_writer: OpenWriter,
        lost: Callable[[], int],
        *,
        sizes: Collection[int] = (),
        padded: Sequence[int] = (),
        cpu: bool = False,
        turn: int = PERF_TURN,
        slack_ns: int = SLACK_NS,
        buffers: PerfBuffers | None = None,
    ) -> None:
        self._turn = turn
        self._slack_ns = slack_ns
        header = _PERF_HEADER + (8 if padded else 0)
        self._shape = Shape(schema, header)
        self._lost = lost
        self._cpu = cpu
        self._held = NONE
        self._buffers = buffers or PerfBuffers(map_fd, padded)
        # Where every event has at least all members, what follows it is not looked at.
        whole = bool(sizes) and min(sizes) >= schema.size and not any(isinstance(c, Tail) for c in schema.columns)
        self._padding = None if whole and not padded else _Padding(header, sizes, self._buffers.ids)
        try:
            self.fds = tuple(buffer.fd for buffer in self._buffers.all)
            self.memory = sum(buffer.size for buffer in self._buffers.all)
            self.schema = _with_time(self._shape.schema, "submitted", _PERF_TIME, _PERF_CPU if cpu else -1)
            self._writer = open_writer(self.schema)
        except BaseException:
            self.close()
            raise

    def drain(self, *, last: bool = False) -> int:
        """Move what has been submitted to the segment; of much a part, unless this is the ``last``.

        CPUs are read one after the other, so an event may come before older ones still unread elsewhere: what is
        younger than the start of this drain, or than what has been read of every CPU, is held back until the next
        drain, unless this is the ``last``.
        """
        now = time.monotonic_ns()
        self._buffers.watch()
        if self._writer.blocked and not last:
            self._writer.set_lost(self._lost())
            return 0
        waiting = [(buffer, head) for buffer in self._buffers.all if (head := buffer.head()) != buffer.tail]
        high_water = any(head - buffer.tail > buffer.size // _HIGH_WATER_PART for buffer, head in waiting)
        more = self._take_turn(waiting, now)
        while last and more:
            more = self._take_turn(more, now)
        if last and len(self._held):
            self._write(self._held, _FOREVER)
        self._writer.set_lost(self._lost())
        return HIGH_WATER if high_water or more else len(self._held) > 0

    def renew(self, cpu: int) -> None:
        """A CPU has come online. For any thread."""
        self._buffers.renew(cpu)

    def close(self) -> None:
        """Take the buffers out of the map and free them. Idempotent."""
        self._buffers.close()

    def _take_turn(self, waiting: Waiting, now: int) -> Waiting:
        """Move some of what lies before the heads of these buffers; those of which something is left."""
        if not waiting and not len(self._held):
            return []
        until = now
        at = len(self._held.data)
        share = max(self._turn // max(len(waiting), 1), _MAX_RECORD)
        sizes = [min(head - buffer.tail, share + _MAX_RECORD) for buffer, head in waiting]
        data = np.empty(at + sum(sizes), np.uint8)
        data[:at] = self._held.data
        parts = [replace(self._held, data=data)]
        for (buffer, head), size in zip(waiting, sizes, strict=True):
            buffer.copy(data[at : at + size])
            found, end = cut(data, at, at + min(size, share), PERF)
            buffer.release(buffer.tail + end - at)
            if buffer.tail != head:
                until = min(until, int(found[-1].words(_PERF_TIME)[-1]) if found else 0)
            if self._cpu:
                for records in found:
                    data.view(np.int16)[(records.start + _PERF_CPU) >> 1] = buffer.cpu
            parts += found if self._padding is None else [self._padding.cut_off(records) for records in found]
            at += size
        self._write(join(data, parts), until - self._slack_ns)
        return [(buffer, head) for buffer, head in waiting if buffer.tail != head]

    def _write(self, records: Records, until: int) -> None:
        times = records.words(_PERF_TIME)
        if not _in_order([times]):
            order = np.argsort(times, kind="stable")
            records, times = records.take(order), times[order]
        ripe = int(np.searchsorted(times, until, side="right"))
        for begin in range(0, ripe, _CHUNK):
            self._shape.write(records[begin : min(begin + _CHUNK, ripe)], self._writer)
        self._held = records[ripe:].compact()


class _Padding:
    """How many bytes at the end of perf's records are none of the event's.

    Linux: perf_prepare_sample() in kernel/events/core.c: a raw sample and the u32 of its size take a multiple of 8.
    """

    def __init__(self, header: int, sizes: Collection[int], ids: Mapping[int, int]) -> None:
        self._ids = ids  # of perf events: the padding of what is submitted through each. It grows with the CPUs
        lengths = [(header + size + padding(size), padding(size)) for size in sizes]
        self._known = {length: max(pad for other, pad in lengths if other == length) for length, _ in lengths}

    def cut_off(self, records: Records) -> Records:
        return records.shortened(records.length - self._of(records))

    def _of(self, records: Records) -> Ints:
        told = records.words(_PERF_ID) if self._ids else records.length
        known = self._ids or self._known
        pads = np.full(len(records), _MAX_PADDING, np.int64)
        for value in np.unique(told).tolist():
            pads[told == value] = known.get(value, _MAX_PADDING)
        return pads


def padding(size: int) -> int:
    """How many bytes perf appends to an event of so many bytes."""
    return -(size + 4) % 8


def _in_order(times: Sequence[npt.NDArray[np.int64]]) -> bool:
    if any(right[0] < left[-1] for left, right in pairwise(times)):
        return False
    return not any(np.any(part[1:] < part[:-1]) for part in times)


def _with_time(schema: Schema, clock: str, at: int, cpu_at: int) -> Schema:
    """With the record's time, and the number of its CPU unless ``cpu_at`` is negative, as first columns.

    The time's name is none that a member can have. The CPU's is "cpu", or "cpu_" where a member is called so.
    """
    added = [Number(_TIME, at, "<i8")]
    if cpu_at >= 0:
        name = "cpu"
        while any(column.name == name for column in schema.columns):
            name += "_"
        added.append(Number(name, cpu_at, "<i2"))
    return changed(schema, columns=(*added, *schema.columns), time=_TIME, clock=clock)
