"""Drain BPF_PERF_OUTPUT: open and map a perf buffer for each CPU, and move its events to a session's segments.

Linux: include/uapi/linux/perf_event.h and kernel/events/ring_buffer.c. A buffer's descriptor becomes readable each time
another half of it is written. The kernel does not overwrite what was not read. Several maps can share a CPU's buffer:
their perf events write into the first one's buffer, and each record's id says through which map it came.

PerfSource is a source for poller.py. Its ``fds`` become readable when events wait, but not for every event, so it needs
polling. ``schema`` describes the rows it writes, which are the records as they lay in the buffer. Programs count the
events that a buffer refused; ``lost`` returns that count. The maps' descriptors stay the caller's, and have to outlive
the source.
"""

from __future__ import annotations

import errno
import mmap
import os
import resource
import struct
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from bpfnb.errors import BpfnbError, PrivilegeError, SetupError
from bpfnb.protocol.schema import Schema, Tail
from bpfnb.tracer.kernel import bpf, capabilities, perf, uapi
from bpfnb.tracer.kernel.cpus import online_cpus
from bpfnb.tracer.read.poller import HIGH_WATER, HIGH_WATER_PART
from bpfnb.tracer.read.records import (
    FOREVER,
    NONE,
    PERF,
    SLACK_NS,
    Bytes,
    Ints,
    OpenWriter,
    Records,
    RowFormat,
    cut,
    in_order,
    join,
    with_time,
)

__all__ = ["MAX_BYTES", "MIN_BYTES", "PERF_TURN", "CpuBuffer", "PerfBuffers", "PerfSource"]

MIN_BYTES, MAX_BYTES, _ALL_BYTES = 64 << 10, 16 << 20, 32 << 20  # for a CPU, for a CPU, for all CPUs

PERF_TURN = 8 << 20  # bytes of all CPUs' buffers read in one drain
_MAX_RECORD = 1 << 16  # bytes: a record's size is a u16
_CHUNK = 1 << 14  # records made into rows at a time
_MAX_PADDING = 7
# perf_event_header, then what PERF_SAMPLE_TIME, PERF_SAMPLE_ID (where there are several maps) and PERF_SAMPLE_RAW add:
# u64 time, u64 id, u32 size. The header's u16 misc says what does not concern us: the CPU is noted there.
_PERF_HEADER, _PERF_TIME, _PERF_ID, _PERF_CPU = 20, 8, 16, 4


class CpuBuffer:
    """One CPU's buffer. ``tail``: total bytes read so far.

    ``ids``: the ids of the perf events of the map and of each of ``more_maps``, in this order.
    """

    def __init__(self, map_fd: int, cpu: int, size: int, more_maps: Sequence[int] = ()) -> None:
        self.cpu = cpu
        self.size = size
        self.tail = 0
        self.replaced = False  # by another buffer of this CPU, which gets all further events
        self._fds: dict[int, int] = {}  # map's descriptor: its perf event's
        shared = bool(more_maps)
        try:
            self.fd = self._fds[map_fd] = _open_event(cpu, shared)
            with capabilities.with_ipc_lock():
                memory = mmap.mmap(self.fd, mmap.PAGESIZE + size)
            for other in more_maps:
                self._fds[other] = _open_event(cpu, shared)
                perf.redirect_output(self._fds[other], self.fd)
            for map_, fd in self._fds.items():
                bpf.update(map_, struct.pack("i", cpu), struct.pack("i", fd))
            self.ids = [perf.event_id(fd) for fd in self._fds.values()] if shared else []
        except BaseException:
            self._close_events()
            raise
        self._words = memoryview(memory)[: mmap.PAGESIZE].cast("Q")
        self._data = np.frombuffer(memory, np.uint8, size, mmap.PAGESIZE)

    def head(self) -> int:
        """Return the total bytes written so far."""
        return self._words[uapi.PERF_MMAP_DATA_HEAD]

    def copy(self, out: Bytes) -> None:
        """Copy the bytes from ``tail`` on into ``out``, and fill it."""
        begin = self.tail % self.size
        whole = min(len(out), self.size - begin)  # the rest is at the buffer's beginning
        out[:whole] = self._data[begin : begin + whole]
        out[whole:] = self._data[: len(out) - whole]

    def release(self, tail: int) -> None:
        """Release the space before ``tail``, which has been copied."""
        self.tail = self._words[uapi.PERF_MMAP_DATA_TAIL] = tail

    def close(self) -> None:
        """Take the buffer out of the map and free it. Idempotent."""
        if self.fd >= 0:
            for map_ in self._fds:
                if not self.replaced:
                    with suppress(OSError):
                        bpf.delete(map_, struct.pack("i", self.cpu))
            self._words.release()
            del self._data
            self._close_events()
            self.fd = -1

    def leave(self) -> int:
        """Close everything but the descriptor, which may be polled, and return it: it is the caller's to close."""
        left = self._fds.pop(next(map_ for map_, fd in self._fds.items() if fd == self.fd))
        self.close()
        return left

    def _close_events(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])


class PerfBuffers:
    """The buffers of all CPUs. Raises PrivilegeError or SetupError, which say why, where they cannot be opened.

    ``ids``: with ``more_maps``, the index of the map that records with this id came through; 0 is ``map_fd``.
    ``max_bytes``: the largest size of one buffer. ``online``: returns the CPUs that are online.
    """

    def __init__(
        self,
        map_fd: int,
        more_maps: Sequence[int] = (),
        *,
        max_bytes: int = MAX_BYTES,
        online: Callable[[], set[int]] = online_cpus,
    ) -> None:
        self._map_fd = map_fd
        self._more_maps = more_maps
        self.ids: dict[int, int] = {}
        self._online = online()
        self._size = _first_size(len(self._online), max_bytes)
        self._renewed: deque[int] = deque()
        self._left: list[int] = []  # descriptors of buffers that were replaced
        self.all = self._open()

    def renew(self, cpu: int) -> None:
        """Note that a CPU has come online. The next ``watch`` opens its buffer. May be called from any thread."""
        self._renewed.append(cpu)

    def watch(self) -> None:
        """Open buffers for CPUs that have come online, for the first time or again.

        A CPU's former buffer is closed once all its events have been read.
        """
        while self._renewed:
            cpu = self._renewed.popleft()
            before = [buffer for buffer in self.all if buffer.cpu == cpu]
            # If this fails, the programs count the events that they cannot submit.
            with suppress(OSError, BpfnbError), capabilities.with_sys_admin():
                self.all.append(self._open_one(cpu))
                for buffer in before:
                    buffer.replaced = True
        for buffer in [buffer for buffer in self.all if buffer.replaced and buffer.head() == buffer.tail]:
            self.all.remove(buffer)
            self._left.append(buffer.leave())

    def close(self) -> None:
        while self.all:
            self.all.pop().close()
        while self._left:
            os.close(self._left.pop())

    def _open(self) -> list[CpuBuffer]:
        """Open all buffers with the largest size that every CPU's may have."""
        while True:
            try:
                return self._open_all()
            except BpfnbError:
                raise
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOMEM) or self._size // 2 < _min_size():
                    raise _explained(error, len(self._online), 2 + len(self._more_maps)) from None
                self._size //= 2

    def _open_all(self) -> list[CpuBuffer]:
        buffers = []
        with ExitStack() as stack, capabilities.with_sys_admin():
            for cpu in sorted(self._online):
                buffers.append(self._open_one(cpu))
                stack.callback(buffers[-1].close)
            stack.pop_all()
        return buffers

    def _open_one(self, cpu: int) -> CpuBuffer:
        buffer = CpuBuffer(self._map_fd, cpu, self._size, self._more_maps)
        self.ids.update({number: index for index, number in enumerate(buffer.ids)})
        return buffer


def _open_event(cpu: int, with_id: bool) -> int:
    # The watermark stays 0: the kernel then takes half of the buffer, however large that can be made.
    try:
        return perf.open_event(
            uapi.PERF_TYPE_SOFTWARE,
            uapi.PERF_COUNT_SW_BPF_OUTPUT,
            cpu=cpu,
            period=1,
            sample_type=uapi.PERF_SAMPLE_TIME | uapi.PERF_SAMPLE_RAW | (uapi.PERF_SAMPLE_ID if with_id else 0),
            flags=uapi.PERF_ATTR_WATERMARK | uapi.PERF_ATTR_USE_CLOCKID,
            clock=time.CLOCK_MONOTONIC,
        )
    except PermissionError as error:
        raise PrivilegeError(
            f"user {os.geteuid()} may not open perf events, which BPF_PERF_OUTPUT is read through: {error.strerror}"
        ) from None


def _first_size(cpus: int, max_bytes: int) -> int:
    """Return the size to try first, a power of two."""
    size = min(max(_ALL_BYTES // cpus, MIN_BYTES), max_bytes)
    return max(1 << size.bit_length() - 1, mmap.PAGESIZE)


def _min_size() -> int:
    """Return the size below which there is no buffer."""
    return max(MIN_BYTES, mmap.PAGESIZE)


def _explained(error: OSError, cpus: int, each: int) -> BpfnbError:
    """Return the error to raise. ``each``: descriptors that a CPU's buffer takes."""
    match error.errno:
        case errno.EMFILE:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            return SetupError(
                f"a perf buffer on each of {cpus} CPUs takes {each * cpus} descriptors, and a process may have {limit}",
                hint="raise the limit (ulimit -n) before Jupyter starts",
            )
        case errno.ENFILE:
            limit = int(Path("/proc/sys/fs/file-max").read_text())
            return SetupError(f"no perf buffers for {cpus} CPUs: the system's {limit} open files are all in use")
        case errno.EPERM:
            limit = int(Path("/proc/sys/kernel/perf_event_mlock_kb").read_text())
            return PrivilegeError(
                f"user {os.geteuid()} may not lock memory for perf buffers of {_min_size() >> 10} KiB on each of "
                f"{cpus} CPUs (kernel.perf_event_mlock_kb is {limit}, and others use it too)",
                hint="raise kernel.perf_event_mlock_kb, or run the tracer with CAP_IPC_LOCK",
            )
        case errno.ENOMEM:
            return SetupError(f"no memory for perf buffers of {_min_size() >> 10} KiB on each of {cpus} CPUs")
    return SetupError(f"no perf buffers: {error.strerror}")


# --- the source -------------------------------------------------------------------------------------------------------

Waiting = list[tuple[CpuBuffer, int]]  # buffers, and the heads up to which they are to be read


class PerfSource:
    """A BPF_MAP_TYPE_PERF_EVENT_ARRAY's events, in order of time over all CPUs.

    Rows have the time of the event's submission (CLOCK_MONOTONIC) as a column, and with ``cpu`` its CPU's number.

    perf rounds a record's length up, and the padding holds bytes of older events. An event's real length is known in
    one of two ways: by ``sizes``, all lengths that events are submitted with, or by ``padded``, further maps, the n-th
    for events with n + 1 bytes of padding. Where neither tells, the seven bytes that may be padding are cut off.

    ``turn``: the bytes that one drain reads. ``slack_ns``: for an event younger than this, older ones may still follow.
    ``buffers``: the map's buffers; by default of the usual size, on all CPUs.
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
        self._format = RowFormat(schema, header)
        self._lost = lost
        self._cpu = cpu
        self._held = NONE
        self._buffers = buffers or PerfBuffers(map_fd, padded)
        # Where every event has all members, what follows them is not read.
        whole = bool(sizes) and min(sizes) >= schema.size and not any(isinstance(c, Tail) for c in schema.columns)
        self._padding = None if whole and not padded else _Padding(header, sizes, self._buffers.ids)
        try:
            self.fds = tuple(buffer.fd for buffer in self._buffers.all)
            self.memory = sum(buffer.size for buffer in self._buffers.all)
            self.schema = with_time(self._format.schema, "submitted", _PERF_TIME, _PERF_CPU if cpu else -1)
            self._writer = open_writer(self.schema)
        except BaseException:
            self.close()
            raise

    def drain(self, *, last: bool = False) -> int:
        """Move submitted events to the segment. Only a part of a large amount is moved, unless this is the ``last``.

        CPUs are read one after the other, so an event may be read before older ones of another CPU. Events younger than
        the start of this drain, or than what has been read of every CPU, are held back until the next drain, unless
        this is the ``last``.
        """
        now = time.monotonic_ns()
        self._buffers.watch()
        if self._writer.blocked and not last:
            self._writer.set_lost(self._lost())
            return 0
        waiting = [(buffer, head) for buffer in self._buffers.all if (head := buffer.head()) != buffer.tail]
        high_water = any(head - buffer.tail > buffer.size // HIGH_WATER_PART for buffer, head in waiting)
        more = self._take_turn(waiting, now)
        while last and more:
            more = self._take_turn(more, now)
        if last and len(self._held):
            self._write(self._held, FOREVER)
        self._writer.set_lost(self._lost())
        return HIGH_WATER if high_water or more else len(self._held) > 0

    def renew(self, cpu: int) -> None:
        """Note that a CPU has come online. May be called from any thread."""
        self._buffers.renew(cpu)

    def close(self) -> None:
        """Take the buffers out of the map and free them. Idempotent."""
        self._buffers.close()

    def _take_turn(self, waiting: Waiting, now: int) -> Waiting:
        """Move some of the events before these buffers' heads. Return the buffers that have some left."""
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
        if not in_order([times]):
            order = np.argsort(times, kind="stable")
            records, times = records.take(order), times[order]
        ripe = int(np.searchsorted(times, until, side="right"))
        for begin in range(0, ripe, _CHUNK):
            self._format.write(records[begin : min(begin + _CHUNK, ripe)], self._writer)
        self._held = records[ripe:].compact()


class _Padding:
    """Cuts the padding off the ends of perf's records.

    Linux: perf_prepare_sample() in kernel/events/core.c. A raw sample and the u32 of its size take a multiple of 8
    bytes.
    """

    def __init__(self, header: int, sizes: Collection[int], ids: Mapping[int, int]) -> None:
        self._ids = ids  # perf event's id: the padding of events submitted through it; grows with the CPUs
        lengths = [(header + size + _padding_after(size), _padding_after(size)) for size in sizes]
        self._known = {length: max(pad for other, pad in lengths if other == length) for length, _ in lengths}

    def cut_off(self, records: Records) -> Records:
        """Return the records without their padding."""
        return records.shortened(records.length - self._of(records))

    def _of(self, records: Records) -> Ints:
        key = records.words(_PERF_ID) if self._ids else records.length
        known = self._ids or self._known
        pads = np.full(len(records), _MAX_PADDING, np.int64)
        for value in np.unique(key).tolist():
            pads[key == value] = known.get(value, _MAX_PADDING)
        return pads


def _padding_after(size: int) -> int:
    """Return how many bytes of padding perf appends to an event of this size."""
    return -(size + 4) % 8
