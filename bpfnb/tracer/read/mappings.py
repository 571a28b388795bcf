"""Watch where the processes that a session follows map code, so that their stacks can be named once they have ended.

A process may live for a few milliseconds, so /proc is too late. The kernel writes a record of each such mapping, and of
each fork, exec and end, into the buffer of a perf event that counts nothing, one on each CPU, as it does for perf. They
are of all processes; those of others are dropped as they are read. Linux: enum perf_event_type in
include/uapi/linux/perf_event.h.

A MappingSource is a source for poller.py. Its buffers are opened before the first process is followed, and read in
order of time, since a child may map a file on another CPU than it was made on.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

from bpfnb.tracer.kernel import capabilities, perf, uapi
from bpfnb.tracer.kernel.cpus import online_cpus
from bpfnb.tracer.kernel.files import UNREADABLE, read_bytes
from bpfnb.tracer.read.records import FOREVER, SLACK_NS
from bpfnb.tracer.symbols.mappings import Mapping, Pasts, parse_mappings
from bpfnb.tracer.symbols.symbols import parse_status, started_at

__all__ = ["MappingSource"]

_BUFFER_BYTES = 256 << 10  # on each CPU: some 2,000 mappings, 25 times a second
_MAX_MAPS, _MAX_STATUS = 64 << 20, 64 << 10
_FLAGS = (
    uapi.PERF_ATTR_MMAP
    | uapi.PERF_ATTR_MMAP2
    | uapi.PERF_ATTR_COMM
    | uapi.PERF_ATTR_COMM_EXEC
    | uapi.PERF_ATTR_TASK
    | uapi.PERF_ATTR_SAMPLE_ID_ALL
    | uapi.PERF_ATTR_WATERMARK
    | uapi.PERF_ATTR_USE_CLOCKID
)
_HEADER = struct.Struct("=IHH")  # type, misc, size
_TIME = struct.Struct("=Q")  # the last of each record, with PERF_SAMPLE_TIME alone
_LOST = struct.Struct("=QQ")  # id, how many
_TASK = struct.Struct("=IIII")  # pid, parent's pid, tid, parent's tid
_PID = struct.Struct("=I")
# pid, tid, address, length, offset, major, minor, inode, generation, prot, flags
_MMAP2 = struct.Struct("=IIQQQIIQQII")

_Record = tuple[int, int, int, bytes]  # time, type, misc, and what is between header and time


class _Buffer:
    """One CPU's event and its buffer."""

    def __init__(self, cpu: int) -> None:
        self.cpu = cpu
        self.fd = perf.open_event(
            uapi.PERF_TYPE_SOFTWARE,
            uapi.PERF_COUNT_SW_DUMMY,
            cpu=cpu,
            sample_type=uapi.PERF_SAMPLE_TIME,
            flags=_FLAGS,
            clock=time.CLOCK_MONOTONIC,
        )
        try:
            with capabilities.with_ipc_lock():
                self._memory = mmap.mmap(self.fd, mmap.PAGESIZE + _BUFFER_BYTES)
        except BaseException:
            os.close(self.fd)
            raise
        self._words = memoryview(self._memory)[: mmap.PAGESIZE].cast("Q")

    def take(self) -> Iterator[_Record]:
        """Yield the records that wait, and make room for others."""
        head, tail = self._words[uapi.PERF_MMAP_DATA_HEAD], self._words[uapi.PERF_MMAP_DATA_TAIL]
        begin, size = tail % _BUFFER_BYTES, head - tail
        data = self._memory[mmap.PAGESIZE + begin : mmap.PAGESIZE + min(begin + size, _BUFFER_BYTES)]
        data += self._memory[mmap.PAGESIZE : mmap.PAGESIZE + size - len(data)]
        self._words[uapi.PERF_MMAP_DATA_TAIL] = head
        at = 0
        while at < size:
            kind, misc, length = _HEADER.unpack_from(data, at)
            end = at + length - _TIME.size
            yield _TIME.unpack_from(data, end)[0], kind, misc, data[at + _HEADER.size : end]
            at += length

    def close(self) -> None:
        self._words.release()
        self._memory.close()
        os.close(self.fd)


class MappingSource:
    """Tells ``pasts`` of the processes that a session follows. Any thread may call.

    ``lost``: records that found no room. OSError where the kernel gives no such events.
    """

    needs_polling = True

    def __init__(self, session: int, pasts: Pasts) -> None:
        self.lost = 0
        self._session = session
        self._pasts = pasts
        self._held: list[_Record] = []
        self._lock = threading.Lock()
        self._buffers: list[_Buffer] = []
        try:
            for cpu in sorted(online_cpus()):
                self._open(cpu)
        except BaseException:
            self.close()
            raise
        self.fds = tuple(buffer.fd for buffer in self._buffers)
        self.memory = len(self._buffers) * (mmap.PAGESIZE + _BUFFER_BYTES)

    def begin(self, pids: Iterable[int]) -> None:
        """Remember processes that there are, and all that they start from the moment the source was made."""
        now = time.time_ns()
        for pid in pids:
            uid, lines = -1, list[bytes]()
            with suppress(*UNREADABLE):
                uid = parse_status(read_bytes(f"/proc/{pid}/status", _MAX_STATUS))[0]
                lines = read_bytes(f"/proc/{pid}/maps", _MAX_MAPS, capabilities.with_sys_ptrace, cut=True).split(b"\n")
            mappings = [mapping._replace(seen=now) for mapping in parse_mappings(lines) if mapping.path]
            self._pasts.add(self._session, pid, uid, mappings)

    def drain(self, *, last: bool = False) -> bool:
        """Pass on what has been recorded: up to some milliseconds ago, or all of it if this is the ``last``, or if
        somebody asks."""
        with self._lock:
            now = time.monotonic_ns()
            until = FOREVER if last else now - SLACK_NS
            to_file_time = time.time_ns() - now
            for buffer in self._buffers:
                self._held += buffer.take()
            self._held.sort(key=lambda record: record[0])
            ripe = [record for record in self._held if record[0] <= until]
            del self._held[: len(ripe)]
            for when, kind, misc, body in ripe:
                self._pass_on(when + to_file_time, kind, misc, body)
            return bool(self._held)

    def renew(self, cpu: int) -> None:
        """Watch a CPU that has come online. The event that it had before is dead."""
        with self._lock:
            for buffer in [buffer for buffer in self._buffers if buffer.cpu == cpu]:
                self._held += buffer.take()
            with suppress(OSError), capabilities.with_sys_admin():
                self._open(cpu)

    def leave(self) -> None:
        """Pass on the rest, and note which processes are left."""
        self.drain(last=True)
        self._pasts.leave(self._session, started_at, time.time_ns())

    def close(self) -> None:
        """Free the buffers. Idempotent."""
        with self._lock:
            while self._buffers:
                self._buffers.pop().close()

    def _open(self, cpu: int) -> None:
        self._buffers.append(_Buffer(cpu))

    def _pass_on(self, when: int, kind: int, misc: int, body: bytes) -> None:
        """Pass a record on. ``when``: as files have times."""
        match kind:
            case uapi.PERF_RECORD_MMAP2:
                pid, _, start, size, offset, _, _, inode, _, _, _ = _MMAP2.unpack_from(body)
                path = body[_MMAP2.size :].partition(b"\0")[0]
                path = b"" if path.startswith(b"//") else path  # //anon: of no file
                self._pasts.map(self._session, pid, Mapping(start, start + size, offset, inode, path, when))
            case uapi.PERF_RECORD_COMM if misc & uapi.PERF_RECORD_MISC_COMM_EXEC:
                self._pasts.exec(self._session, *_PID.unpack_from(body))
            case uapi.PERF_RECORD_FORK:
                pid, parent, _, _ = _TASK.unpack_from(body)
                if pid != parent:  # else it is a thread
                    self._pasts.fork(self._session, parent, pid, when)
            case uapi.PERF_RECORD_EXIT:
                pid, _, tid, _ = _TASK.unpack_from(body)
                if pid == tid:
                    self._pasts.end(self._session, pid, when)
            case uapi.PERF_RECORD_LOST:
                self.lost += _LOST.unpack_from(body)[1]
