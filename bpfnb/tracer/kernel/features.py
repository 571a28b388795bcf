"""Trying what this kernel lets us do: each function does one thing in the smallest way there is, and undoes it.

OSError, with the kernel's errno, where it cannot be done. Probes go where nothing comes by: to the function and the
tracepoint of BPF's own test run, and into a file that nobody has mapped.

Linux: include/uapi/linux/bpf.h, include/uapi/linux/perf_event.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

from bpfnb.tracer.compile import constants
from bpfnb.tracer.kernel import tracefs
from bpfnb.tracer.kernel.btf import (
    ARRAY,
    DATASEC,
    DECL_TAG,
    ENUM,
    ENUM64,
    FUNC,
    FUNC_PROTO,
    INT,
    KERNEL_BTF,
    STRUCT,
    UNION,
    VAR,
)

__all__ = [
    "fentry",
    "hardware_event",
    "is_jited",
    "kprobe",
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
]

_libc = ctypes.CDLL(None, use_errno=True)
_NUMBERS = {  # of bpf(2) and perf_event_open(2)
    "x86_64": (321, 298), "aarch64": (280, 241), "riscv64": (280, 241), "loongarch64": (280, 241),
    "s390x": (351, 331), "ppc64le": (361, 319),
}  # fmt: skip
_SYS_BPF, _SYS_PERF_EVENT_OPEN = _NUMBERS.get(platform.machine(), (321, 298))

_MAP_CREATE, _MAP_UPDATE, _PROG_LOAD, _OBJECT_INFO, _RAW_TRACEPOINT_OPEN, _ENABLE_STATS = 0, 2, 5, 15, 17, 32
_SOCKET_FILTER, _KPROBE, _TRACEPOINT, _PERF_EVENT, _RAW_TRACEPOINT, _TRACING, _LSM = 1, 2, 5, 7, 17, 26, 29
_TRACE_FENTRY, _LSM_MAC = 24, 27  # enum bpf_attach_type
_HASH, _ARRAY, _PERF_EVENT_ARRAY, _RINGBUF = 1, 2, 4, 27
_NO_PREALLOC, _MMAPABLE = 1, 1024  # flags of maps

_TYPE_HARDWARE, _TYPE_SOFTWARE, _TYPE_TRACEPOINT = 0, 1, 2
_CPU_CYCLES, _CPU_CLOCK, _BPF_OUTPUT = 0, 0, 10
_NEVER = 1 << 40  # events to a hit: more than come while we look
_SAMPLE_RAW = 1 << 10
_FLAG_FD_CLOEXEC = 8
_ATTR_SIZE = 112  # PERF_ATTR_SIZE_VER5: Linux v4.1
_SET_BPF = 0x40042408  # PERF_EVENT_IOC_SET_BPF, _IOW('$', 8, __u32)
_EVENT_SOURCES = Path("/sys/bus/event_source/devices")

# net/bpf/test_run.c has them, since Linux v5.5 and v5.2; the others are everywhere.
_FUNCTIONS = ("bpf_fentry_test1", "vfs_read")
_TRACEPOINTS = ("bpf_test_run/bpf_test_finish", "sched/sched_process_exit")
_HOOK = "bpf_lsm_quota_on"
_SYSCALL = "syscalls/sys_enter_getpgid"

# Words of a BTF record, and of each of its members.
_WORDS = [3 + {INT: 1, ARRAY: 3, VAR: 1, DECL_TAG: 1}.get(kind, 0) for kind in range(32)]
_MEMBER_WORDS = [
    {STRUCT: 3, UNION: 3, DATASEC: 3, ENUM64: 3, ENUM: 2, FUNC_PROTO: 2}.get(kind, 0) for kind in range(32)
]

Candidate = TypeVar("Candidate", int, str)
Result = TypeVar("Result")


def _instruction(code: int, destination: int = 0, source: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("=BBhi", code, destination | source << 4, 0, immediate)


_LOAD_WIDE, _PSEUDO_MAP, _PSEUDO_MAP_VALUE = 0x18, 1, 2  # an lddw of a map's descriptor, or of its value's address
_SNPRINTF = 165
_MOVE, _MOVE_REGISTER, _ADD, _CALL, _EXIT = 0xB7, 0xBF, 0x07, 0x85, 0x95
_RETURN_0 = _instruction(_MOVE) + _instruction(_EXIT)


# --- programs and maps --------------------------------------------------------------------------------------------


def socket_program() -> None:
    """Load the plainest program there is: bpf(2) works."""
    with _program(_SOCKET_FILTER):
        pass


def tracing_program() -> None:
    """Load a program of each type that kprobes, tracepoints and perf events run."""
    for kind in (_KPROBE, _TRACEPOINT, _PERF_EVENT):
        with _program(kind):
            pass


def is_jited() -> bool:
    """Whether the kernel makes machine code of programs."""
    with _program(_TRACEPOINT) as program:
        info = ctypes.create_string_buffer(24)  # struct bpf_prog_info: type, id, tag[8], jited_prog_len, ...
        _bpf(_OBJECT_INFO, struct.pack("=IIQ", program, len(info), ctypes.addressof(info)))
        return any(info.raw[16:20])


def run_statistics() -> None:
    """Have the kernel time programs (Linux v5.8), for a moment; takes CAP_SYS_ADMIN."""
    os.close(_bpf(_ENABLE_STATS, struct.pack("=I", 0)))


def read_kernel_memory() -> None:
    """Load a program that reads the kernel's memory: refused where lockdown guards its confidentiality."""

    def read_with(helper: int) -> None:
        target = _instruction(_MOVE_REGISTER, 1, 10) + _instruction(_ADD, 1, 0, -8)  # eight bytes of the stack
        arguments = target + _instruction(_MOVE, 2, 0, 8) + _instruction(_MOVE, 3)
        with _program(_TRACEPOINT, arguments + _instruction(_CALL, 0, 0, helper) + _RETURN_0):
            pass

    _first((113, 4), read_with, errno.EINVAL)  # bpf_probe_read_kernel; bpf_probe_read before Linux v5.5


def ring_buffer() -> None:
    """Make a ring buffer (Linux v5.8)."""
    os.close(_map(_RINGBUF, 0, 0, os.sysconf("SC_PAGE_SIZE")))


def mapped_array() -> None:
    """Make an array that can be mapped (Linux kernel commit fc9702273e2e "bpf: Add mmap() support for
    BPF_MAP_TYPE_ARRAY", in v5.5)."""
    os.close(_map(_ARRAY, 4, 8, 1, _MMAPABLE))


def late_allocation() -> None:
    """Load a perf event's program that uses a hash whose entries are allocated as they come.

    Kernels before v6.1 refuse it, and warn of such hashes in other tracing programs (commit 34dd3bad1a6f "bpf: Relax
    the requirement to use preallocated hash maps in tracing progs.").
    """
    made = _map(_HASH, 4, 4, 1, _NO_PREALLOC)
    try:
        use = _instruction(_LOAD_WIDE, 1, _PSEUDO_MAP, made) + _instruction(0)
        with _program(_PERF_EVENT, use + _RETURN_0):
            pass
    finally:
        os.close(made)


def snprintf() -> None:
    """Load a program that formats text (Linux kernel commit 7b15523a989b "bpf: Add a bpf_snprintf helper", in
    v5.13)."""
    made = constants.make_map(b"x".ljust(8, b"\0"))
    try:
        to = _instruction(_MOVE_REGISTER, 1, 10) + _instruction(_ADD, 1, 0, -8) + _instruction(_MOVE, 2, 0, 8)
        format_ = _instruction(_LOAD_WIDE, 3, _PSEUDO_MAP_VALUE, made) + _instruction(0)
        call = _instruction(_MOVE, 4) + _instruction(_MOVE, 5) + _instruction(_CALL, 0, 0, _SNPRINTF)
        with _program(_TRACEPOINT, to + format_ + call + _RETURN_0):
            pass
    finally:
        os.close(made)


def perf_buffer() -> None:
    """Put a CPU's output event into a map, as BPF_PERF_OUTPUT does."""
    cpu = _cpu()
    with _event(_TYPE_SOFTWARE, _BPF_OUTPUT, sample_type=_SAMPLE_RAW) as event:
        buffers = _map(_PERF_EVENT_ARRAY, 4, 4, cpu + 1)
        try:
            key, value = (ctypes.c_uint32(number) for number in (cpu, event))
            _bpf(_MAP_UPDATE, struct.pack("=IIQQQ", buffers, 0, ctypes.addressof(key), ctypes.addressof(value), 0))
        finally:
            os.close(buffers)


# --- probes -------------------------------------------------------------------------------------------------------


def kprobe() -> None:
    """Attach programs to a kernel function, at its beginning and at its return."""

    def attach_to(function: str) -> None:
        for returning in (0, 1):
            _attach(_KPROBE, _source("kprobe"), returning, _text(function))

    _first(_FUNCTIONS, attach_to, errno.ENOENT)


def uprobe() -> None:
    """Attach programs to a function of a file, at its beginning and at its return."""
    file = os.memfd_create("bpfnb-check", os.MFD_CLOEXEC)
    try:
        os.write(file, bytes(os.sysconf("SC_PAGE_SIZE")))
        for returning in (0, 1):
            _attach(_KPROBE, _source("uprobe"), returning, _text(f"/proc/self/fd/{file}"))
    finally:
        os.close(file)


def fentry() -> None:
    """Attach a program to a kernel function through a BPF trampoline."""
    with _program(_TRACING, attach_type=_TRACE_FENTRY, target=_first(_FUNCTIONS, type_id, errno.ENOENT)) as program:
        _open_raw(program)


def lsm() -> None:
    """Attach a program to a hook of the security modules."""
    with _program(_LSM, attach_type=_LSM_MAC, target=type_id(_HOOK)) as program:
        _open_raw(program)


def tracepoint() -> None:
    """Attach a program to a tracepoint."""
    _first(_TRACEPOINTS, lambda name: _attach(_TRACEPOINT, _TYPE_TRACEPOINT, _tracepoint_id(name)), errno.ENOENT)


def syscall_tracepoint() -> None:
    """Attach a program to a syscall's tracepoint (CONFIG_FTRACE_SYSCALLS)."""
    _attach(_TRACEPOINT, _TYPE_TRACEPOINT, _tracepoint_id(_SYSCALL))


def raw_tracepoint() -> None:
    """Attach a program to a tracepoint, without the record the tracepoint makes."""
    with _program(_RAW_TRACEPOINT) as program:
        _first([name.split("/")[1] for name in _TRACEPOINTS], lambda name: _open_raw(program, name), errno.ENOENT)


def profile() -> None:
    """Attach a program to a software event, the CPU's clock."""
    _attach(_PERF_EVENT, _TYPE_SOFTWARE, _CPU_CLOCK, period=_NEVER)


def hardware_event() -> None:
    """Attach a program to a hardware event, the CPU's cycles."""
    try:
        _attach(_PERF_EVENT, _TYPE_HARDWARE, _CPU_CYCLES, period=_NEVER)
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
def _program(kind: int, code: bytes = _RETURN_0, *, attach_type: int = 0, target: int = 0) -> Iterator[int]:
    """A loaded program's descriptor. ``target``: the kernel's BTF id of what it is to be attached to."""
    instructions, licence = ctypes.create_string_buffer(code, len(code)), _text("GPL")
    # Kernels before v5.0 want a kprobe's program to name them.
    major, minor, patch = ([int(n) for n in platform.release().split("-")[0].split(".") if n.isdigit()] + [0] * 3)[:3]
    attributes = struct.pack(
        "=II QQ IIQ II 16s I I 36x I 4x",
        *(kind, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(licence)),
        *(0, 0, 0),  # no log
        *((major << 16) + (minor << 8) + min(patch, 255), 0),
        *(b"bpfnb_check", 0, attach_type),
        target,
    )
    program = _bpf(_PROG_LOAD, attributes)
    try:
        yield program
    finally:
        os.close(program)


def _map(kind: int, key_size: int, value_size: int, entries: int, flags: int = 0) -> int:
    return _bpf(_MAP_CREATE, struct.pack("=IIIII", kind, key_size, value_size, entries, flags))


def _open_raw(program: int, name: str = "") -> None:
    """Attach by BPF_RAW_TRACEPOINT_OPEN: to a tracepoint by name, else to what the program was loaded for."""
    held = _text(name)
    os.close(_bpf(_RAW_TRACEPOINT_OPEN, struct.pack("=QI", ctypes.addressof(held) if name else 0, program)))


def _attach(
    kind: int, type_: int, config: int, place: ctypes.Array[ctypes.c_char] | None = None, *, period: int = 1
) -> None:
    with _program(kind) as program, _event(type_, config, place, period=period) as event:
        fcntl.ioctl(event, _SET_BPF, program)


@contextmanager
def _event(
    type_: int, config: int, place: ctypes.Array[ctypes.c_char] | None = None, *, period: int = 1, sample_type: int = 0
) -> Iterator[int]:
    """A perf event of one CPU. ``place``: the function of a kprobe, the file of a uprobe, there at its beginning."""
    address = ctypes.addressof(place) if place else 0
    attributes = struct.pack(
        "=II QQQ 8x 8x 4x 4x QQ", type_, _ATTR_SIZE, config, period, sample_type, address, 0
    ).ljust(_ATTR_SIZE, b"\0")
    held = ctypes.create_string_buffer(attributes, _ATTR_SIZE)
    event: int = _libc.syscall(_SYS_PERF_EVENT_OPEN, held, -1, _cpu(), -1, _FLAG_FD_CLOEXEC)
    if event < 0:
        raise _error()
    try:
        yield event
    finally:
        os.close(event)


def _cpu() -> int:
    return min(os.sched_getaffinity(0))


def _source(name: str) -> int:
    """The number of an event source, such as kprobe. FileNotFoundError where this kernel has it not."""
    try:
        return int((_EVENT_SOURCES / name / "type").read_text())
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, f"this kernel has no {name}s") from None


def _tracepoint_id(event: str) -> int:
    return int((tracefs.root() / "events" / event / "id").read_text())


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
    """The numbers of the functions we attach to, as far as there are such.

    Looked up record by record: btf.Types, which keeps them all, takes ten times as long.
    """
    btf = KERNEL_BTF.read_bytes()
    header, type_off, type_len, str_off, str_len = struct.unpack_from("=IIIII", btf, 4)
    begin, end = header + str_off, header + str_off + str_len
    names = {btf.find(f"\0{name}\0".encode(), begin, end) + 1 - begin: name for name in (*_FUNCTIONS, _HOOK)}
    words = memoryview(btf)[header + type_off : header + type_off + type_len].cast("I")
    found: dict[str, int] = {}
    at, number = 0, 1
    while at < len(words):
        name, info = words[at], words[at + 1]
        kind = info >> 24 & 0x1F
        if kind == FUNC and name in names:
            found[names[name]] = number
        at += _WORDS[kind] + _MEMBER_WORDS[kind] * (info & 0xFFFF)
        number += 1
    return found


def _bpf(command: int, attributes: bytes) -> int:
    held = ctypes.create_string_buffer(attributes, len(attributes))
    result: int = _libc.syscall(_SYS_BPF, command, held, len(attributes))
    if result < 0:
        raise _error()
    return result


def _error() -> OSError:
    number = ctypes.get_errno()
    # ENOTSUPP (524) is the kernel's own, and unknown to the C library.
    return OSError(number, "not supported" if number == 524 else os.strerror(number))


def _text(text: str) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(text.encode())
