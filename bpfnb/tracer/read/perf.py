"""Perf buffers: one a CPU, opened, mapped and put into a BPF_PERF_OUTPUT's map.

Linux: include/uapi/linux/perf_event.h and kernel/events/ring_buffer.c. A buffer wakes its descriptor each time another
half of it was written, and lets nothing be overwritten that was not read. Several maps can share a CPU's buffer: their
events write into the first one's, and each record says by its id through which of them it came.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import resource
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np

from bpfnb.errors import BpfnbError, PrivilegeError, SetupError
from bpfnb.tracer.kernel import bpf, capabilities
from bpfnb.tracer.kernel.cpus import online_cpus
from bpfnb.tracer.read.records import Bytes

__all__ = ["MAX_BYTES", "MIN_BYTES", "CpuBuffer", "PerfBuffers"]

MIN_BYTES, MAX_BYTES, _ALL_BYTES = 64 << 10, 16 << 20, 32 << 20  # a CPU, a CPU, over all CPUs

_NUMBERS = {"x86_64": 298, "aarch64": 241, "riscv64": 241, "loongarch64": 241, "s390x": 331, "ppc64le": 319}
_SYS_PERF_EVENT_OPEN = _NUMBERS.get(platform.machine(), 298)
_libc = ctypes.CDLL(None, use_errno=True)

_TYPE_SOFTWARE, _COUNT_SW_BPF_OUTPUT = 1, 10
_SAMPLE_TIME, _SAMPLE_ID, _SAMPLE_RAW = 1 << 2, 1 << 6, 1 << 10
_WATERMARK, _USE_CLOCKID = 1 << 14, 1 << 25  # bits of struct perf_event_attr
_FLAG_FD_CLOEXEC = 8
_IOC_SET_OUTPUT, _IOC_ID = 0x2405, 0x80082407  # PERF_EVENT_IOC_...
_HEAD, _TAIL = 1024 // 8, 1032 // 8  # of struct perf_event_mmap_page, in 64-bit words


class CpuBuffer:
    """One CPU's buffer. ``tail``: up to where it has been read, counted in bytes from the beginning of time.

    ``ids``: of the event of each of ``more_maps``, after that of the map itself.
    """

    def __init__(self, map_fd: int, cpu: int, size: int, more_maps: Sequence[int] = ()) -> None:
        self.cpu = cpu
        self.size = size
        self.tail = 0
        self.replaced = False  # by another of the same CPU, which is dead for this one
        self._fds: dict[int, int] = {}  # of the maps' events, by the maps' descriptors
        shared = bool(more_maps)
        try:
            self.fd = self._fds[map_fd] = _open_event(cpu, shared)
            with capabilities.with_ipc_lock():
                memory = mmap.mmap(self.fd, mmap.PAGESIZE + size)
            for other in more_maps:
                self._fds[other] = _open_event(cpu, shared)
                fcntl.ioctl(self._fds[other], _IOC_SET_OUTPUT, self.fd)
            for map_, fd in self._fds.items():
                bpf.update(map_, struct.pack("i", cpu), struct.pack("i", fd))
            self.ids = [_id(fd) for fd in self._fds.values()] if shared else []
        except BaseException:
            self._close_events()
            raise
        self._words = memoryview(memory)[: mmap.PAGESIZE].cast("Q")
        self._data = np.frombuffer(memory, np.uint8, size, mmap.PAGESIZE)

    def head(self) -> int:
        """Up to where it has been written."""
        return self._words[_HEAD]

    def copy(self, out: Bytes) -> None:
        """What lies behind ``tail``, as much as fits."""
        begin = self.tail % self.size
        whole = min(len(out), self.size - begin)  # the rest of it lies at the buffer's beginning
        out[:whole] = self._data[begin : begin + whole]
        out[whole:] = self._data[: len(out) - whole]

    def release(self, tail: int) -> None:
        """Give back the room of what has been copied."""
        self.tail = self._words[_TAIL] = tail

    def close(self) -> None:
        """Out of the map, then away. Idempotent."""
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
        """Close all but the descriptor, which somebody may be polling; it is the caller's now."""
        left = self._fds.pop(next(map_ for map_, fd in self._fds.items() if fd == self.fd))
        self.close()
        return left

    def _close_events(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])


class PerfBuffers:
    """The buffers of all CPUs. PrivilegeError or SetupError, saying why, where there cannot be any.

    ``ids``: with ``more_maps``, through which map a record with this id came: 0 is ``map_fd``. ``max_bytes``: of one
    buffer. ``online``: the CPUs there are.
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
        """A CPU has come online. For any thread: the next ``watch`` sees to it."""
        self._renewed.append(cpu)

    def watch(self) -> None:
        """Open buffers for CPUs that have come online, the first time or again.

        What the one before still holds is to be read first; then it goes.
        """
        while self._renewed:
            cpu = self._renewed.popleft()
            before = [buffer for buffer in self.all if buffer.cpu == cpu]
            # Where that cannot be, the programs count what they cannot submit.
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
        """As large as they may be, and all of one size."""
        while True:
            try:
                return self._open_all()
            except BpfnbError:
                raise
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOMEM) or self._size // 2 < _least_size():
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


def _id(fd: int) -> int:
    """What the records of a perf event bear with PERF_SAMPLE_ID."""
    return int(struct.unpack("Q", fcntl.ioctl(fd, _IOC_ID, bytes(8)))[0])


def _open_event(cpu: int, with_id: bool) -> int:
    # The watermark stays 0: the kernel then takes half of the buffer, however large that can be made.
    attr = struct.pack(
        "=IIQQQQQIIQQQQIi",
        *(_TYPE_SOFTWARE, 96, _COUNT_SW_BPF_OUTPUT),
        *(1, _SAMPLE_TIME | _SAMPLE_RAW | (_SAMPLE_ID if with_id else 0), 0, _WATERMARK | _USE_CLOCKID),
        *(0, 0, 0, 0, 0, 0, 0, time.CLOCK_MONOTONIC),
    )
    any_process, no_group = ctypes.c_long(-1), ctypes.c_long(-1)
    flags = ctypes.c_long(_FLAG_FD_CLOEXEC)
    fd: int = _libc.syscall(_SYS_PERF_EVENT_OPEN, attr, any_process, ctypes.c_long(cpu), no_group, flags)
    if fd >= 0:
        return fd
    number = ctypes.get_errno()
    if number in (errno.EACCES, errno.EPERM):
        raise PrivilegeError(
            f"user {os.geteuid()} may not open perf events, which BPF_PERF_OUTPUT is read through: "
            f"{os.strerror(number)}"
        )
    raise OSError(number, os.strerror(number))


def _first_size(cpus: int, max_bytes: int) -> int:
    """A power of two."""
    size = min(max(_ALL_BYTES // cpus, MIN_BYTES), max_bytes)
    return max(1 << size.bit_length() - 1, mmap.PAGESIZE)


def _least_size() -> int:
    return max(MIN_BYTES, mmap.PAGESIZE)


def _explained(error: OSError, cpus: int, each: int) -> BpfnbError:
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
                f"user {os.geteuid()} may not lock memory for perf buffers of {_least_size() >> 10} KiB on each of "
                f"{cpus} CPUs (kernel.perf_event_mlock_kb is {limit}, and others use it too)",
                hint="raise kernel.perf_event_mlock_kb, or run the tracer with CAP_IPC_LOCK",
            )
        case errno.ENOMEM:
            return SetupError(f"no memory for perf buffers of {_least_size() >> 10} KiB on each of {cpus} CPUs")
    return SetupError(f"no perf buffers: {error.strerror}")
