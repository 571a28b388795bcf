"""bpf(2), as far as maps, BTF and programs loaded again need it: each function one command of the kernel's.

Linux: include/uapi/linux/bpf.h, enum bpf_cmd and union bpf_attr. Every function raises OSError with the kernel's errno,
and lets go of the GIL while the kernel works.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from typing import NamedTuple

from bpfnb.protocol.schema import Rows

__all__ = [
    "LOOKUP_AND_DELETE_BATCH",
    "LOOKUP_BATCH",
    "MapAttributes",
    "MapShape",
    "ProgramAttributes",
    "RunStatistics",
    "batch",
    "btf",
    "delete",
    "enable_run_statistics",
    "freeze",
    "link_perf_event",
    "load_btf",
    "load_program",
    "lookup",
    "make_map",
    "map_attributes",
    "map_shape",
    "next_key",
    "open_pinned",
    "pin",
    "pop",
    "program_attributes",
    "program_id",
    "run_statistics",
    "update",
    "update_batch",
]

_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "loongarch64": 280, "s390x": 351, "ppc64le": 361}
_SYS_BPF = _NUMBERS.get(platform.machine(), 321)
_libc = ctypes.CDLL(None, use_errno=True)

_LOOKUP, _UPDATE, _DELETE, _NEXT_KEY, _OBJ_PIN, _OBJ_GET, _OBJECT_INFO, _LOOKUP_AND_DELETE = 1, 2, 3, 4, 6, 7, 15, 21
_FREEZE = 22  # since v5.2
LOOKUP_BATCH, LOOKUP_AND_DELETE_BATCH, _UPDATE_BATCH = 24, 25, 26


class MapShape(NamedTuple):
    """What the kernel says of a map: ``type`` of enum bpf_map_type, ``flags`` as it was created with."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


class _Element(ctypes.Structure):
    _fields_ = (
        ("map_fd", ctypes.c_uint32),
        ("key", ctypes.c_uint64),
        ("value", ctypes.c_uint64),  # or the next key
        ("flags", ctypes.c_uint64),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        ("in_batch", ctypes.c_uint64),
        ("out_batch", ctypes.c_uint64),
        ("keys", ctypes.c_uint64),
        ("values", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
        ("map_fd", ctypes.c_uint32),
        ("elem_flags", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    )


class _Freezing(ctypes.Structure):
    _fields_ = (("map_fd", ctypes.c_uint32),)


class _ObjectInfo(ctypes.Structure):
    _fields_ = (("fd", ctypes.c_uint32), ("size", ctypes.c_uint32), ("info", ctypes.c_uint64))


class _MapInfo(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint32) for name in MapShape._fields)


class _BtfInfo(ctypes.Structure):
    _fields_ = (("btf", ctypes.c_uint64), ("size", ctypes.c_uint32), ("id", ctypes.c_uint32))


def map_shape(fd: int) -> MapShape:
    info = _MapInfo()
    _object_info(fd, info)
    return MapShape(*(getattr(info, name) for name in MapShape._fields))


def btf(fd: int) -> bytes:
    """The type information behind a BTF descriptor."""
    info = _BtfInfo()
    _object_info(fd, info)
    data = ctypes.create_string_buffer(info.size)
    info = _BtfInfo(ctypes.addressof(data), len(data))
    _object_info(fd, info)
    return data.raw


def lookup(fd: int, key: bytes, size: int) -> bytes | None:
    """A key's value of ``size`` bytes (per-CPU maps: all CPUs'), None where there is none. A queue's or a stack's head,
    which stays, for an empty key."""
    return _value(_LOOKUP, fd, key, size)


def pop(fd: int, size: int) -> bytes | None:
    """Take the head of a queue or a stack; None where it is empty."""
    return _value(_LOOKUP_AND_DELETE, fd, b"", size)


def update(fd: int, key: bytes, value: bytes) -> None:
    """Set a key's value. A queue or a stack, for an empty key, takes one more."""
    _element(_UPDATE, fd, key, _copied(value))


def delete(fd: int, key: bytes) -> bool:
    """Delete a key; False where there was none."""
    return _present(_DELETE, fd, key, None)


def freeze(fd: int) -> None:
    """Let no system call change a map any more."""
    number = _call(_FREEZE, _Freezing(fd))
    if number:
        raise _error(number)


def next_key(fd: int, key: bytes | None, size: int) -> bytes | None:
    """The key after ``key``, the first one for None; None after the last. After a key that is gone comes the first."""
    following = ctypes.create_string_buffer(size)
    return following.raw if _present(_NEXT_KEY, fd, key, following) else None


def batch(command: int, fd: int, start: bytes | None, keys: Rows, values: Rows) -> tuple[int, bytes, bool]:
    """Look up (LOOKUP_BATCH) or take (LOOKUP_AND_DELETE_BATCH) entries from ``start`` on, as many as ``keys`` has rows.

    How many there were, where the next batch starts, and whether this was the last. ENOSPC: a bucket of the hash table
    has more entries than there are rows.
    """
    begin = _copied(start) if start else None
    end = ctypes.create_string_buffer(max(keys.shape[1], 8))  # a key or a bucket's number, as the kind of map has it
    attr = _Batch(_address(begin), ctypes.addressof(end), keys.ctypes.data, values.ctypes.data, len(keys), fd)
    number = _call(command, attr)
    if number not in (0, errno.ENOENT):
        raise _error(number)
    return attr.count, end.raw, number == errno.ENOENT


def update_batch(fd: int, keys: Rows, values: Rows) -> None:
    """Set the values of many keys."""
    number = _call(_UPDATE_BATCH, _Batch(0, 0, keys.ctypes.data, values.ctypes.data, len(keys), fd))
    if number:
        raise _error(number)


def _value(command: int, fd: int, key: bytes, size: int) -> bytes | None:
    value = ctypes.create_string_buffer(size)
    return value.raw if _present(command, fd, key, value) else None


def _present(command: int, fd: int, key: bytes | None, value: ctypes.Array[ctypes.c_char] | None) -> bool:
    try:
        _element(command, fd, key, value)
    except FileNotFoundError:  # ENOENT
        return False
    return True


def _element(command: int, fd: int, key: bytes | None, value: ctypes.Array[ctypes.c_char] | None) -> None:
    held = _copied(key) if key else None  # no key, and the empty one of a queue, are a null pointer
    number = _call(command, _Element(fd, _address(held), _address(value)))
    if number:
        raise _error(number)


def _object_info(fd: int, info: ctypes.Structure) -> int:
    """Fill ``info``; how many bytes of it this kernel knows."""
    attr = _ObjectInfo(fd, ctypes.sizeof(info), ctypes.addressof(info))
    number = _call(_OBJECT_INFO, attr)
    if number:
        raise _error(number)
    return int(attr.size)


def _copied(data: bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(data, len(data))


def _address(buffer: ctypes.Array[ctypes.c_char] | None) -> int:
    return ctypes.addressof(buffer) if buffer is not None else 0


def _call(command: int, attr: ctypes.Structure) -> int:
    """bpf(2): 0 or the errno."""
    return ctypes.get_errno() if _libc.syscall(_SYS_BPF, command, ctypes.byref(attr), ctypes.sizeof(attr)) < 0 else 0


def _error(number: int) -> OSError:
    # ENOTSUPP (524) is the kernel's own, and unknown to the C library.
    return OSError(number, "not supported" if number == 524 else os.strerror(number))


# --- making anew what there is ------------------------------------------------------------------------------------

_MAP_CREATE, _PROG_LOAD, _BTF_LOAD, _LINK_CREATE = 0, 5, 18, 28
_PERF_EVENT = 41  # enum bpf_attach_type
_NAME = 16  # bytes of an object's name: BPF_OBJ_NAME_LEN


class MapAttributes(NamedTuple):
    """What a map is created with. ``key_type``, ``value_type``: of its BTF, 0 where it has none.

    The kernel also tells, and these are no attributes to create a map with: ``device``, nonzero for a map of a network
    card, ``kernel_type``, of the kernel's BTF.
    """

    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: bytes
    key_type: int
    value_type: int
    extra: int
    device: int
    kernel_type: int


class ProgramAttributes(NamedTuple):
    """What a program is loaded with beside its instructions: ``type`` of enum bpf_prog_type, ``version`` a kernel's."""

    type: int
    name: bytes
    licence: bytes
    version: int


class _WholeMapInfo(ctypes.Structure):
    _fields_ = (
        *_MapInfo._fields_,
        ("name", ctypes.c_char * _NAME),
        ("ifindex", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("netns_dev", ctypes.c_uint64),
        ("netns_ino", ctypes.c_uint64),
        ("btf_id", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
        ("btf_vmlinux_id", ctypes.c_uint32),
        ("map_extra", ctypes.c_uint64),
    )


class _MapCreation(ctypes.Structure):
    _fields_ = (
        ("map_type", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("numa_node", ctypes.c_uint32),
        ("map_name", ctypes.c_char * _NAME),
        ("map_ifindex", ctypes.c_uint32),
        ("btf_fd", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("map_extra", ctypes.c_uint64),
    )


class _ProgramInfo(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", ctypes.c_uint32),
        ("xlated_prog_len", ctypes.c_uint32),
        ("jited_prog_insns", ctypes.c_uint64),
        ("xlated_prog_insns", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * _NAME),
    )


class _ProgramLoading(ctypes.Structure):
    _fields_ = (
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64),
        ("kern_version", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_name", ctypes.c_char * _NAME),
    )


class _BtfLoading(ctypes.Structure):
    _fields_ = (
        ("btf", ctypes.c_uint64),
        ("btf_log_buf", ctypes.c_uint64),
        ("btf_size", ctypes.c_uint32),
        ("btf_log_size", ctypes.c_uint32),
        ("btf_log_level", ctypes.c_uint32),
    )


def map_attributes(fd: int) -> MapAttributes:
    """What a map was created with, as far as the kernel says: not its inner map, not the memory node it lies on."""
    info = _WholeMapInfo()
    _object_info(fd, info)
    return MapAttributes(
        info.type,
        info.key_size,
        info.value_size,
        info.max_entries,
        info.flags,
        info.name,
        info.btf_key_type_id,
        info.btf_value_type_id,
        info.map_extra,
        info.ifindex,
        info.btf_vmlinux_value_type_id,
    )


def make_map(attributes: MapAttributes, btf_fd: int) -> int:
    """A new and empty map: its descriptor. ``btf_fd``: of the BTF its types are of, where it has such."""
    a = attributes
    typed = bool(a.key_type or a.value_type)
    creation = _MapCreation(a.type, a.key_size, a.value_size, a.max_entries, a.flags, map_name=a.name)
    creation.btf_fd = btf_fd if typed else 0
    creation.btf_key_type_id, creation.btf_value_type_id, creation.map_extra = a.key_type, a.value_type, a.extra
    return _descriptor(_MAP_CREATE, creation)


def program_attributes(fd: int, licence: bytes, version: int) -> ProgramAttributes:
    """What a program was loaded with; the last two the kernel does not tell."""
    info = _ProgramInfo()
    _object_info(fd, info)
    return ProgramAttributes(info.type, info.name, licence, version)


def program_id(fd: int) -> int:
    """The kernel's number of a program."""
    info = _ProgramInfo()
    _object_info(fd, info)
    return int(info.id)


def load_program(attributes: ProgramAttributes, instructions: bytes) -> int:
    """Have the kernel verify a program and load it: its descriptor."""
    code, licence = _copied(instructions), ctypes.create_string_buffer(attributes.licence)
    loading = _ProgramLoading(attributes.type, len(instructions) // 8, _address(code), _address(licence))
    loading.kern_version, loading.prog_name = attributes.version, attributes.name
    return _descriptor(_PROG_LOAD, loading)


def load_btf(data: bytes) -> int:
    """Give the kernel type information: its descriptor."""
    held = _copied(data)
    return _descriptor(_BTF_LOAD, _BtfLoading(_address(held), 0, len(data)))


class _Pinning(ctypes.Structure):
    _fields_ = (("pathname", ctypes.c_uint64), ("bpf_fd", ctypes.c_uint32), ("file_flags", ctypes.c_uint32))


def pin(fd: int, path: str) -> None:
    """Give a map or program a name in a bpffs, which keeps it."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    _call(_OBJ_PIN, _Pinning(ctypes.addressof(name), fd, 0))


def open_pinned(path: str) -> int:
    """A descriptor of what is pinned there."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return _descriptor(_OBJ_GET, _Pinning(ctypes.addressof(name), 0, 0))


class _LinkCreation(ctypes.Structure):
    _fields_ = (
        ("prog_fd", ctypes.c_uint32),
        ("target_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cookie", ctypes.c_uint64),
    )


def link_perf_event(program: int, event: int, cookie: int = 0) -> int:
    """Run a program at a perf event for as long as the link's descriptor is open. EINVAL before Linux 5.15.

    ``cookie``: what bpf_get_attach_cookie gives the program there.
    """
    return _descriptor(_LINK_CREATE, _LinkCreation(program, event, _PERF_EVENT, 0, cookie))


def _descriptor(command: int, attr: ctypes.Structure) -> int:
    """bpf(2) for a command that opens something, and so closes on exec."""
    fd: int = _libc.syscall(_SYS_BPF, command, ctypes.byref(attr), ctypes.sizeof(attr))
    if fd < 0:
        raise _error(ctypes.get_errno())
    return fd


# --- what programs cost -------------------------------------------------------------------------------------------

_ENABLE_STATS = 32
_RUN_TIME = 0  # enum bpf_stats_type
_BEFORE_RUN_TIME = 192  # bytes of struct bpf_prog_info before run_time_ns


class RunStatistics(NamedTuple):
    """What the kernel has counted of a program's runs since it was loaded, over all CPUs.

    ``runs`` and ``nanoseconds``: only of runs that began while somebody had the statistics on. ``missed``: runs left
    out because a program was running on that CPU; None where the kernel has no such number (before Linux v5.12).
    """

    runs: int
    nanoseconds: int
    missed: int | None


class _RunInfo(ctypes.Structure):
    _fields_ = (
        ("before", ctypes.c_uint8 * _BEFORE_RUN_TIME),
        ("run_time_ns", ctypes.c_uint64),
        ("run_cnt", ctypes.c_uint64),
        ("recursion_misses", ctypes.c_uint64),
    )


class _StatsEnabling(ctypes.Structure):
    _fields_ = (("type", ctypes.c_uint32),)


def run_statistics(fd: int) -> RunStatistics:
    """How often a program ran, and for how long."""
    info = _RunInfo()
    known = _object_info(fd, info)
    missed = info.recursion_misses if known >= ctypes.sizeof(info) else None
    return RunStatistics(info.run_cnt, info.run_time_ns, missed)


def enable_run_statistics() -> int:
    """Have the kernel time the runs of every program of the machine for as long as the descriptor is open.

    EPERM without CAP_SYS_ADMIN. Linux kernel commit d46edd671a14 ("bpf: Sharing bpf runtime stats with
    BPF_ENABLE_STATS") (in v5.8); EINVAL before.
    """
    return _descriptor(_ENABLE_STATS, _StatsEnabling(_RUN_TIME))
