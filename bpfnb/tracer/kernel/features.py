"""Trying what this kernel lets us do: each function does one thing in the smallest way there is, and undoes it.

OSError, with the kernel's errno, where it cannot be done. Probes go where nothing comes by: to the function and the
tracepoint of BPF's own test run, and into a file that nobody has mapped. They are attached as sessions attach theirs.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import TypeVar

from bpfnb.tracer.kernel import bpf, perf, tracefs, uapi
from bpfnb.tracer.kernel.bpf import MapAttributes, ProgramAttributes
from bpfnb.tracer.kernel.btf import KERNEL_BTF, function_ids
from bpfnb.tracer.kernel.instructions import (
    ADD_IMMEDIATE,
    CALL,
    MOVE,
    MOVE_IMMEDIATE,
    RETURN_0,
    STACK,
    STORE_IMMEDIATE,
    encode,
    helper,
    load_map,
    load_map_value,
)
from bpfnb.tracer.kernel.uapi import AttachType, MapType, ProgramType

__all__ = [
    "attach_cookie",
    "current_task",
    "fentry",
    "hardware_event",
    "is_jited",
    "kprobe",
    "kprobe_multi",
    "late_allocation",
    "lsm",
    "mapped_array",
    "perf_buffer",
    "profile",
    "raw_tracepoint",
    "read_kernel_memory",
    "ring_buffer",
    "run_statistics",
    "snprintf",
    "socket_program",
    "syscall_tracepoint",
    "tracepoint",
    "tracing_program",
    "type_id",
    "uprobe",
    "uprobe_multi",
]

_NEVER = 1 << 40  # events to a hit: more than come while we look

# net/bpf/test_run.c has them, since Linux v5.5 and v5.2; the others are everywhere.
_FUNCTIONS = ("bpf_fentry_test1", "vfs_read")
_TRACEPOINTS = ("bpf_test_run/bpf_test_finish", "sched/sched_process_exit")
_HOOK = "bpf_lsm_quota_on"
_SYSCALL = "syscalls/sys_enter_getpgid"

Candidate = TypeVar("Candidate", int, str)
Result = TypeVar("Result")


# --- programs and maps --------------------------------------------------------------------------------------------


def socket_program() -> None:
    """Load the plainest program there is: bpf(2) works."""
    with _program(ProgramType.SOCKET_FILTER):
        pass


def tracing_program() -> None:
    """Load a program of each type that kprobes, tracepoints and perf events run."""
    for kind in (ProgramType.KPROBE, ProgramType.TRACEPOINT, ProgramType.PERF_EVENT):
        with _program(kind):
            pass


def is_jited() -> bool:
    """Return whether the kernel makes machine code of programs."""
    with _program(ProgramType.TRACEPOINT) as program:
        return bpf.is_jited(program)


def run_statistics() -> None:
    """Have the kernel time programs (Linux v5.8), for a moment; takes CAP_SYS_ADMIN."""
    os.close(bpf.enable_run_statistics())


def read_kernel_memory() -> None:
    """Load a program that reads the kernel's memory: refused where lockdown guards its confidentiality."""

    def read_with(name: str) -> None:
        source = encode(MOVE_IMMEDIATE, 3)
        call = encode(CALL, immediate=helper(name))
        with _program(ProgramType.TRACEPOINT, _eight_bytes_of_stack() + source + call + RETURN_0):
            pass

    _first(("bpf_probe_read_kernel", "bpf_probe_read"), read_with, errno.EINVAL)  # the first since Linux v5.5


def ring_buffer() -> None:
    """Make a ring buffer (Linux v5.8)."""
    os.close(bpf.create_map(MapAttributes(MapType.RINGBUF, 0, 0, os.sysconf("SC_PAGE_SIZE"))))


def mapped_array() -> None:
    """Make an array that can be mapped (Linux kernel commit fc9702273e2e "bpf: Add mmap() support for
    BPF_MAP_TYPE_ARRAY", in v5.5)."""
    os.close(bpf.create_map(MapAttributes(MapType.ARRAY, 4, 8, 1, uapi.MMAPABLE)))


def late_allocation() -> None:
    """Load a perf event's program that uses a hash whose entries are allocated as they come.

    Kernels before v6.1 refuse it, and warn of such hashes in other tracing programs (commit 34dd3bad1a6f "bpf: Relax
    the requirement to use preallocated hash maps in tracing progs.").
    """
    late = MapAttributes(MapType.HASH, 4, 4, 1, uapi.NO_PREALLOC)
    with _closing(bpf.create_map(late)) as made, _program(ProgramType.PERF_EVENT, load_map(1, made) + RETURN_0):
        pass


def attach_cookie() -> None:
    """Load a program that asks for the cookie of its perf event (Linux kernel commit 7adfc6c9b315 "bpf: Add
    bpf_get_attach_cookie() BPF helper to access bpf_cookie value", in v5.15)."""
    call = encode(CALL, immediate=helper("bpf_get_attach_cookie"))
    with _program(ProgramType.TRACEPOINT, call + RETURN_0):
        pass


def kprobe_multi() -> None:
    """Attach a program to kernel functions by one link (Linux v5.18, with CONFIG_FPROBE)."""

    def attach_to(function: str) -> None:
        os.close(bpf.link_kprobes(program, [function], [0], returning=False))

    with _program(ProgramType.KPROBE, attach_type=AttachType.TRACE_KPROBE_MULTI) as program:
        _first(_FUNCTIONS, attach_to, errno.EINVAL)


def uprobe_multi() -> None:
    """Attach a program to places of a file by one link (Linux v6.6)."""
    with (
        _closing(os.memfd_create("bpfnb-check", os.MFD_CLOEXEC)) as file,
        _program(ProgramType.KPROBE, attach_type=AttachType.TRACE_UPROBE_MULTI) as program,
    ):
        os.write(file, bytes(os.sysconf("SC_PAGE_SIZE")))
        os.close(bpf.link_uprobes(program, f"/proc/self/fd/{file}", [0], [0], returning=False))


def current_task() -> None:
    """Load a program that reads the running task as what it is (Linux kernel commit 3ca1032ab7ab "bpf: Implement
    get_current_task_btf and RET_PTR_TO_BTF_ID", in v5.11)."""
    with _program(ProgramType.TRACEPOINT, encode(CALL, immediate=helper("bpf_get_current_task_btf")) + RETURN_0):
        pass


def snprintf() -> None:
    """Load a program that formats text (Linux kernel commit 7b15523a989b "bpf: Add a bpf_snprintf helper", in
    v5.13)."""
    with _closing(bpf.create_constants(b"x".ljust(8, b"\0"))) as made:
        no_values = encode(MOVE_IMMEDIATE, 4) + encode(MOVE_IMMEDIATE, 5)
        call = encode(CALL, immediate=helper("bpf_snprintf"))
        code = _eight_bytes_of_stack() + load_map_value(3, made) + no_values + call + RETURN_0
        with _program(ProgramType.TRACEPOINT, code):
            pass


def _eight_bytes_of_stack() -> bytes:
    """The first two arguments of a helper that writes there.

    They are written to before: older kernels take what such a helper is given for read (Linux 6.1: bpf_snprintf).
    """
    zero = encode(STORE_IMMEDIATE, STACK, offset=-8)
    to = encode(MOVE, 1, STACK) + encode(ADD_IMMEDIATE, 1, immediate=-8)
    return zero + to + encode(MOVE_IMMEDIATE, 2, immediate=8)


def perf_buffer() -> None:
    """Put a CPU's output event into a map, as BPF_PERF_OUTPUT does."""
    cpu = min(os.sched_getaffinity(0))
    of_software, output, raw = uapi.PERF_TYPE_SOFTWARE, uapi.PERF_COUNT_SW_BPF_OUTPUT, uapi.PERF_SAMPLE_RAW
    with (
        _closing(perf.open_event(of_software, output, cpu=cpu, period=1, sample_type=raw)) as event,
        _closing(bpf.create_map(MapAttributes(MapType.PERF_EVENT_ARRAY, 4, 4, cpu + 1))) as buffers,
    ):
        bpf.update(buffers, struct.pack("=I", cpu), struct.pack("=I", event))


# --- probes -------------------------------------------------------------------------------------------------------


def kprobe() -> None:
    """Attach programs to a kernel function, at its beginning and at its return."""

    def attach_to(function: str) -> None:
        for returning in (False, True):
            _attach(ProgramType.KPROBE, partial(perf.open_kprobe, function, returning=returning))

    _first(_FUNCTIONS, attach_to, errno.ENOENT)


def uprobe() -> None:
    """Attach programs to a function of a file, at its beginning and at its return."""
    with _closing(os.memfd_create("bpfnb-check", os.MFD_CLOEXEC)) as file:
        os.write(file, bytes(os.sysconf("SC_PAGE_SIZE")))
        for returning in (False, True):
            _attach(ProgramType.KPROBE, partial(perf.open_uprobe, f"/proc/self/fd/{file}", 0, returning=returning))


def fentry() -> None:
    """Attach a program to a kernel function through a BPF trampoline."""
    target = _first(_FUNCTIONS, type_id, errno.ENOENT)
    with _program(ProgramType.TRACING, attach_type=AttachType.TRACE_FENTRY, target=target) as program:
        os.close(bpf.attach_traced(program))


def lsm() -> None:
    """Attach a program to a hook of the security modules."""
    with _program(ProgramType.LSM, attach_type=AttachType.LSM_MAC, target=type_id(_HOOK)) as program:
        os.close(bpf.attach_traced(program))


def tracepoint() -> None:
    """Attach a program to a tracepoint."""
    _first(_TRACEPOINTS, _attach_to_tracepoint, errno.ENOENT)


def syscall_tracepoint() -> None:
    """Attach a program to a syscall's tracepoint (CONFIG_FTRACE_SYSCALLS)."""
    _attach_to_tracepoint(_SYSCALL)


def raw_tracepoint() -> None:
    """Attach a program to a tracepoint, without the record the tracepoint makes."""

    def attach_to(name: str) -> None:
        os.close(bpf.attach_raw_tracepoint(program, name.split("/")[1]))

    with _program(ProgramType.RAW_TRACEPOINT) as program:
        _first(_TRACEPOINTS, attach_to, errno.ENOENT)


def profile() -> None:
    """Attach a program to a software event, the CPU's clock."""
    _attach(
        ProgramType.PERF_EVENT,
        partial(perf.open_event, uapi.PERF_TYPE_SOFTWARE, uapi.PERF_COUNT_SW_CPU_CLOCK, period=_NEVER),
    )


def hardware_event() -> None:
    """Attach a program to a hardware event, the CPU's cycles."""
    try:
        _attach(
            ProgramType.PERF_EVENT,
            partial(perf.open_event, uapi.PERF_TYPE_HARDWARE, uapi.PERF_COUNT_HW_CPU_CYCLES, period=_NEVER),
        )
    except FileNotFoundError:
        reason = "this machine has no hardware counters to count with, as is usual for a virtual one"
        raise FileNotFoundError(errno.ENOENT, reason) from None


# --- pieces -------------------------------------------------------------------------------------------------------


def _first(candidates: Sequence[Candidate], act: Callable[[Candidate], Result], passing: int) -> Result:
    """What comes of the first candidate that is not refused with errno ``passing``; the last may be."""
    for candidate in candidates[:-1]:
        try:
            return act(candidate)
        except OSError as error:
            if error.errno != passing:
                raise
    return act(candidates[-1])


@contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _program(kind: ProgramType, code: bytes = RETURN_0, *, attach_type: int = 0, target: int = 0) -> Iterator[int]:
    """A loaded program's descriptor. ``target``: the kernel's BTF id of what it is to be attached to."""
    attributes = ProgramAttributes(kind, b"bpfnb_check", b"GPL", bpf.kernel_version(), attach_type, target)
    with _closing(bpf.load_program(attributes, code)) as program:
        yield program


def _attach_to_tracepoint(event: str) -> None:
    _attach(ProgramType.TRACEPOINT, lambda: perf.open_tracepoint(tracefs.event_id(event)))


def _attach(kind: ProgramType, open_event: Callable[[], int]) -> None:
    with _program(kind) as program, _closing(open_event()) as event:
        link = perf.attach_program(event, program)
        if link is not None:
            os.close(link)


def type_id(function: str, known: Mapping[str, int] | None = None) -> int:
    """The number of a function in the kernel's BTF. FileNotFoundError where it has no such function.

    ``known``: those that there are, by default in this kernel.
    """
    ids = _type_ids() if known is None else known
    if function not in ids:
        raise FileNotFoundError(errno.ENOENT, f"this kernel's BTF has no function {function}")
    return ids[function]


@cache
def _type_ids() -> dict[str, int]:
    """The numbers of the functions we attach to, as far as there are such."""
    return function_ids(KERNEL_BTF.read_bytes(), (*_FUNCTIONS, _HOOK))
