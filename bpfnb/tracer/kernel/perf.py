"""perf_event_open(2): perf events, the programs that run at them, and the sources of events in sysfs.

Linux: include/uapi/linux/perf_event.h. Every function raises OSError with the kernel's errno. Descriptors are the
caller's; closing one ends the event.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from pathlib import Path

from bpfnb.tracer.kernel import bpf, syscall, uapi
from bpfnb.tracer.kernel.uapi import PerfEventAttr

__all__ = [
    "attach_program",
    "event_id",
    "has_format",
    "has_pmu",
    "open_event",
    "open_kprobe",
    "open_tracepoint",
    "open_uprobe",
    "pmu_type",
    "redirect_output",
]

_PMUS = Path("/sys/bus/event_source/devices")
_SEMAPHORE_SHIFT = 32  # of a uprobe's config: the bits that format/ref_ctr_offset names


def open_event(
    type_: int,
    config: int,
    *,
    cpu: int | None = None,
    period: int = 0,
    frequency: int = 0,
    config1: int = 0,
    config2: int = 0,
    sample_type: int = 0,
    read_format: int = 0,
    flags: int = 0,
    clock: int = 0,
    pid: int = 0,
) -> int:
    """Open an event of every process on a CPU, or of one process (``pid``) on all: its descriptor.

    ``cpu``: some CPU that is online by default; probes run on all of them, whichever is named. ``frequency``: hits a
    second, in place of ``period``.
    """
    attr = PerfEventAttr(type_, ctypes.sizeof(PerfEventAttr), config, frequency or period, sample_type, read_format)
    attr.flags = flags | (uapi.PERF_ATTR_FREQ if frequency else 0)
    attr.config1, attr.config2, attr.clockid = config1, config2, clock
    every, no_group, close_on_exec = -1, -1, ctypes.c_ulong(uapi.PERF_FLAG_FD_CLOEXEC)
    on = every if pid else min(os.sched_getaffinity(0)) if cpu is None else cpu
    whose = pid or every
    return syscall.invoke(uapi.SYSCALLS.perf_event_open, ctypes.byref(attr), whose, on, no_group, close_on_exec)


def open_tracepoint(number: int) -> int:
    """Open the event of a tracepoint, given by the number in its ``id`` file of tracefs."""
    return open_event(uapi.PERF_TYPE_TRACEPOINT, number)


def open_kprobe(function: str, offset: int = 0, *, returning: bool = False) -> int:
    """Open an event on a kernel function: at its entry, at an offset, or at its return."""
    name = ctypes.create_string_buffer(function.encode())
    return open_event(pmu_type("kprobe"), int(returning), config1=ctypes.addressof(name), config2=offset)


def open_uprobe(path: str, offset: int, *, returning: bool = False, semaphore: int = 0, pid: int = 0) -> int:
    """Open an event on an instruction of a file, given by its offset there.

    ``semaphore``: the offset of a counter that the kernel raises in every process that maps the file, for as long as
    the event is open. Linux kernel commit 1cc33161a83d ("uprobes: Support SDT markers having reference count
    (semaphore)") (in v4.20): see ``has_format``. ``pid``: the process whose memory alone gets the trap; 0 for all.
    """
    name = ctypes.create_string_buffer(os.fsencode(path))
    config = int(returning) | semaphore << _SEMAPHORE_SHIFT
    return open_event(pmu_type("uprobe"), config, config1=ctypes.addressof(name), config2=offset, pid=pid)


def attach_program(event: int, program: int, cookie: int = 0) -> int | None:
    """Have a program run at an event: the descriptor of the BPF link that has it so, or None where this kernel has no
    links for perf events, and closing the event takes the program off.

    ``cookie``: what bpf_get_attach_cookie gives the program there; EINVAL where there are no links to give one by.
    Links and cookies: Linux kernel commits b89fbfbb854c ("bpf: Implement minimal BPF perf link") and 82e6b1eee6a8
    ("bpf: Allow to specify user-provided bpf_cookie for BPF perf links") (in v5.15).
    """
    try:
        return bpf.link_perf_event(program, event, cookie)
    except OSError as error:
        if error.errno != errno.EINVAL or cookie:
            raise
    fcntl.ioctl(event, uapi.PERF_EVENT_IOC_SET_BPF, program)
    return None


def redirect_output(event: int, to: int) -> None:
    """Have an event's records written to the buffer of another."""
    fcntl.ioctl(event, uapi.PERF_EVENT_IOC_SET_OUTPUT, to)


def event_id(event: int) -> int:
    """What the records of an event bear with PERF_SAMPLE_ID."""
    return int(struct.unpack("Q", fcntl.ioctl(event, uapi.PERF_EVENT_IOC_ID, bytes(8)))[0])


# --- sources of events --------------------------------------------------------------------------------------------


def has_pmu(name: str) -> bool:
    """Whether this kernel has a source of events, such as "kprobe"."""
    return (_PMUS / name / "type").exists()


def has_format(pmu: str, field: str) -> bool:
    """Whether events of a source can be given a field, such as a uprobe's "ref_ctr_offset"."""
    return (_PMUS / pmu / "format" / field).exists()


def pmu_type(name: str) -> int:
    """The type of a source's events. FileNotFoundError where this kernel has no such source."""
    try:
        return int((_PMUS / name / "type").read_text())
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, f"this kernel has no {name}s") from None
