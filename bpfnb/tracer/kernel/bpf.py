"""bpf(2): maps, programs, links and BTF, each function one command of the kernel's.

Linux: include/uapi/linux/bpf.h, whose numbers and structs are in uapi.py. Every function raises OSError with the
kernel's errno, and lets go of the GIL while the kernel works. Descriptors are the caller's, and close on exec.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Sequence
from typing import NamedTuple

from bpfnb.protocol.schema import Rows
from bpfnb.tracer.kernel import syscall, uapi
from bpfnb.tracer.kernel.uapi import AttachType, Command, MapType

__all__ = [
    "MapAttributes",
    "MapShape",
    "ProgramAttributes",
    "RunStatistics",
    "attach_raw_tracepoint",
    "attach_traced",
    "batch",
    "btf",
    "create_constants",
    "create_map",
    "delete",
    "enable_run_statistics",
    "freeze",
    "is_jited",
    "kernel_version",
    "link_kprobes",
    "link_perf_event",
    "link_uprobes",
    "load_btf",
    "load_program",
    "lookup",
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


_SYS_BPF = uapi.SYSCALLS.bpf


def _bpf(command: Command, attr: ctypes.Structure) -> int:
    """bpf(2): what it returns, for commands that open something a descriptor."""
    return syscall.invoke(_SYS_BPF, command, ctypes.byref(attr), ctypes.sizeof(attr))


def _copied(data: bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(data, len(data))


def _address(buffer: ctypes.Array[ctypes.c_char] | None) -> int:
    return ctypes.addressof(buffer) if buffer is not None else 0


def _object_info(fd: int, info: ctypes.Structure) -> int:
    """Fill ``info``; how many bytes of it this kernel knows."""
    attr = uapi.InfoAttr(fd, ctypes.sizeof(info), ctypes.addressof(info))
    _bpf(Command.OBJ_GET_INFO_BY_FD, attr)
    return int(attr.info_len)


# --- maps ---------------------------------------------------------------------------------------------------------


class MapShape(NamedTuple):
    """What the kernel says of a map: ``type`` of uapi.MapType, ``flags`` as it was created with."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


class MapAttributes(NamedTuple):
    """What a map is created with. ``key_type``, ``value_type``: of its BTF, 0 where it has none.

    The kernel also tells, and these are no attributes to create a map with: ``device``, nonzero for a map of a network
    card, ``kernel_type``, of the kernel's BTF.
    """

    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0
    name: bytes = b""
    key_type: int = 0
    value_type: int = 0
    extra: int = 0
    device: int = 0
    kernel_type: int = 0


def create_map(attributes: MapAttributes, btf_fd: int = 0) -> int:
    """Create an empty map: its descriptor. ``btf_fd``: of the BTF its types are of, where it has such."""
    a = attributes
    attr = uapi.MapCreateAttr(a.type, a.key_size, a.value_size, a.max_entries, a.flags, map_name=a.name)
    attr.btf_fd = btf_fd if a.key_type or a.value_type else 0
    attr.btf_key_type_id, attr.btf_value_type_id, attr.map_extra = a.key_type, a.value_type, a.extra
    return _bpf(Command.MAP_CREATE, attr)


def create_constants(constants: bytes) -> int:
    """Create a map whose one value are the constants, and that nobody can change: its descriptor."""
    attributes = MapAttributes(MapType.ARRAY, 4, len(constants), 1, uapi.RDONLY_PROG, b"bpfnb_const")
    fd = create_map(attributes)
    try:
        update(fd, bytes(4), constants)
        freeze(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def map_shape(fd: int) -> MapShape:
    """Return a map's type and sizes."""
    info = uapi.MapInfo()
    _object_info(fd, info)
    return MapShape(info.type, info.id, info.key_size, info.value_size, info.max_entries, info.map_flags)


def map_attributes(fd: int) -> MapAttributes:
    """Return what a map was created with, as far as the kernel says: not its inner map, not its NUMA node."""
    info = uapi.MapInfo()
    _object_info(fd, info)
    return MapAttributes(
        info.type,
        info.key_size,
        info.value_size,
        info.max_entries,
        info.map_flags,
        info.name,
        info.btf_key_type_id,
        info.btf_value_type_id,
        info.map_extra,
        info.ifindex,
        info.btf_vmlinux_value_type_id,
    )


def freeze(fd: int) -> None:
    """Let no system call change a map any more. Linux v5.2."""
    _bpf(Command.MAP_FREEZE, uapi.ElementAttr(fd))


def lookup(fd: int, key: bytes, size: int) -> bytes | None:
    """Return a key's value of ``size`` bytes (per-CPU maps: all CPUs'), None where there is none. For an empty key a
    queue's or a stack's head, which stays."""
    return _value(Command.MAP_LOOKUP_ELEM, fd, key, size)


def pop(fd: int, size: int) -> bytes | None:
    """Take the head of a queue or a stack; None where it is empty."""
    return _value(Command.MAP_LOOKUP_AND_DELETE_ELEM, fd, b"", size)


def update(fd: int, key: bytes, value: bytes) -> None:
    """Set a key's value. A queue or a stack, for an empty key, takes one more."""
    _element(Command.MAP_UPDATE_ELEM, fd, key, _copied(value))


def delete(fd: int, key: bytes) -> bool:
    """Delete a key; False where there was none."""
    return _present(Command.MAP_DELETE_ELEM, fd, key, None)


def next_key(fd: int, key: bytes | None, size: int) -> bytes | None:
    """Return the key after ``key``, the first one for None; None after the last. After a key that is gone comes the
    first."""
    following = ctypes.create_string_buffer(size)
    return following.raw if _present(Command.MAP_GET_NEXT_KEY, fd, key, following) else None


def batch(command: Command, fd: int, start: bytes | None, keys: Rows, values: Rows) -> tuple[int, bytes, bool]:
    """Look up (MAP_LOOKUP_BATCH) or take (MAP_LOOKUP_AND_DELETE_BATCH) entries from ``start`` on, as many as ``keys``
    has rows. Linux v5.6.

    How many there were, where the next batch starts, and whether this was the last. ENOSPC: a bucket of the hash table
    has more entries than there are rows.
    """
    begin = _copied(start) if start else None
    end = ctypes.create_string_buffer(max(keys.shape[1], 8))  # a key or a bucket's number, as the kind of map has it
    attr = uapi.BatchAttr(_address(begin), ctypes.addressof(end), keys.ctypes.data, values.ctypes.data, len(keys), fd)
    last = False
    try:
        _bpf(command, attr)
    except FileNotFoundError:  # ENOENT
        last = True
    return attr.count, end.raw, last


def update_batch(fd: int, keys: Rows, values: Rows) -> None:
    """Set the values of many keys. Linux v5.6."""
    _bpf(Command.MAP_UPDATE_BATCH, uapi.BatchAttr(0, 0, keys.ctypes.data, values.ctypes.data, len(keys), fd))


def _value(command: Command, fd: int, key: bytes, size: int) -> bytes | None:
    value = ctypes.create_string_buffer(size)
    return value.raw if _present(command, fd, key, value) else None


def _present(command: Command, fd: int, key: bytes | None, value: ctypes.Array[ctypes.c_char] | None) -> bool:
    try:
        _element(command, fd, key, value)
    except FileNotFoundError:  # ENOENT
        return False
    return True


def _element(command: Command, fd: int, key: bytes | None, value: ctypes.Array[ctypes.c_char] | None) -> None:
    held = _copied(key) if key else None  # no key, and the empty one of a queue, are a null pointer
    _bpf(command, uapi.ElementAttr(fd, _address(held), _address(value)))


def pin(fd: int, path: str) -> None:
    """Give a map or program a name in a bpffs, which keeps it."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    _bpf(Command.OBJ_PIN, uapi.ObjAttr(ctypes.addressof(name), fd))


def open_pinned(path: str) -> int:
    """Open what is pinned there."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return _bpf(Command.OBJ_GET, uapi.ObjAttr(ctypes.addressof(name)))


# --- programs and BTF ---------------------------------------------------------------------------------------------


class ProgramAttributes(NamedTuple):
    """What a program is loaded with beside its instructions: ``type`` of uapi.ProgramType, ``version`` a kernel's.

    ``attach_type`` of uapi.AttachType and ``target``, a type of the kernel's BTF: of programs that are loaded for what
    they attach to.
    """

    type: int
    name: bytes
    licence: bytes
    version: int
    attach_type: int = 0
    target: int = 0


def load_program(attributes: ProgramAttributes, instructions: bytes) -> int:
    """Have the kernel verify a program and load it: its descriptor."""
    a = attributes
    code, licence = _copied(instructions), ctypes.create_string_buffer(a.licence)
    attr = uapi.ProgLoadAttr(a.type, len(instructions) // 8, _address(code), _address(licence))
    attr.kern_version, attr.prog_name = a.version, a.name
    attr.expected_attach_type, attr.attach_btf_id = a.attach_type, a.target
    return _bpf(Command.PROG_LOAD, attr)


def kernel_version() -> int:
    """Return LINUX_VERSION_CODE, which kernels before v5.0 want a kprobe's program to name: commit 6c4fc209fcf9 ("bpf:
    remove useless version check for prog load")."""
    major, minor, patch = ([int(n) for n in platform.release().split("-")[0].split(".") if n.isdigit()] + [0] * 3)[:3]
    return (major << 16) + (minor << 8) + min(patch, 255)


def program_attributes(fd: int, licence: bytes, version: int, attach_type: int = 0) -> ProgramAttributes:
    """Return what a program was loaded with; the last three the kernel does not tell."""
    info = _program_info(fd)
    return ProgramAttributes(info.type, info.name, licence, version, attach_type)


def program_id(fd: int) -> int:
    """Return the kernel's number of a program."""
    return int(_program_info(fd).id)


def is_jited(fd: int) -> bool:
    """Return whether the kernel has made machine code of a program."""
    return bool(_program_info(fd).jited_prog_len)


def _program_info(fd: int) -> uapi.ProgInfo:
    info = uapi.ProgInfo()
    _object_info(fd, info)
    return info


def load_btf(data: bytes) -> int:
    """Give the kernel type information: its descriptor."""
    held = _copied(data)
    return _bpf(Command.BTF_LOAD, uapi.BtfLoadAttr(_address(held), 0, len(data)))


def btf(fd: int) -> bytes:
    """Return the type information behind a BTF descriptor."""
    info = uapi.BtfInfo()
    _object_info(fd, info)
    data = ctypes.create_string_buffer(info.btf_size)
    info = uapi.BtfInfo(ctypes.addressof(data), len(data))
    _object_info(fd, info)
    return data.raw


# --- links --------------------------------------------------------------------------------------------------------


def link_perf_event(program: int, event: int, cookie: int = 0) -> int:
    """Have a program run at a perf event for as long as the link's descriptor is open. EINVAL before Linux v5.15: see
    perf.attach_program. ``cookie``: what bpf_get_attach_cookie gives the program there."""
    return _bpf(Command.LINK_CREATE, uapi.LinkCreateAttr(program, event, AttachType.PERF_EVENT, 0, cookie))


def link_kprobes(program: int, functions: Sequence[str], cookies: Sequence[int], *, returning: bool) -> int:
    """Have a program run at many kernel functions, for as long as the descriptor is open. It has to be loaded with
    TRACE_KPROBE_MULTI. Linux kernel commit 0dcac2725406 ("bpf: Add multi kprobe link") (in v5.18)."""
    names = [ctypes.create_string_buffer(name.encode()) for name in functions]
    symbols = (ctypes.c_uint64 * len(names))(*map(ctypes.addressof, names))
    attr = uapi.KprobeMultiAttr(program, 0, AttachType.TRACE_KPROBE_MULTI, 0, uapi.MULTI_RETURN * returning, len(names))
    held = (ctypes.c_uint64 * len(names))(*cookies)
    attr.syms, attr.cookies = ctypes.addressof(symbols), ctypes.addressof(held)
    return _bpf(Command.LINK_CREATE, attr)


def link_uprobes(program: int, path: str, offsets: Sequence[int], cookies: Sequence[int], *, returning: bool) -> int:
    """Have a program run at many places of a file, for as long as the descriptor is open. It has to be loaded with
    TRACE_UPROBE_MULTI. Linux kernel commit 89ae89f53d20 ("bpf: Add multi uprobe link") (in v6.6)."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    count = len(offsets)
    places, held = ((ctypes.c_uint64 * count)(*numbers) for numbers in (offsets, cookies))
    attr = uapi.UprobeMultiAttr(program, 0, AttachType.TRACE_UPROBE_MULTI)
    attr.path, attr.offsets = ctypes.addressof(name), ctypes.addressof(places)
    attr.cookies = ctypes.addressof(held)
    attr.cnt, attr.multi_flags = count, uapi.MULTI_RETURN * returning
    return _bpf(Command.LINK_CREATE, attr)


def attach_raw_tracepoint(program: int, name: str) -> int:
    """Have a program run at a tracepoint, for as long as the descriptor is open, without the record that the tracepoint
    makes. Linux v4.17: commit c4f6699dfcb8 ("bpf: introduce BPF_RAW_TRACEPOINT")."""
    held = ctypes.create_string_buffer(name.encode())
    return _bpf(Command.RAW_TRACEPOINT_OPEN, uapi.RawTracepointAttr(ctypes.addressof(held), program))


def attach_traced(program: int) -> int:
    """Have a program of type TRACING or LSM run where it was loaded for, for as long as the descriptor is open.

    Linux v5.5: commit fec56f5890d9 ("bpf: Introduce BPF trampoline"). BPF_LINK_CREATE does the same since v5.19, and
    has nothing more but cookies (commit 2fcc82411e74 "bpf, x86: Attach a cookie to fentry/fexit/fmod_ret/lsm.").
    """
    return _bpf(Command.RAW_TRACEPOINT_OPEN, uapi.RawTracepointAttr(0, program))


# --- what programs cost -------------------------------------------------------------------------------------------


class RunStatistics(NamedTuple):
    """What the kernel has counted of a program's runs since it was loaded, over all CPUs.

    ``runs`` and ``nanoseconds``: only of runs that began while somebody had the statistics on. ``missed``: runs left
    out because a program was running on that CPU; None where the kernel has no such number (before Linux v5.12).
    """

    runs: int
    nanoseconds: int
    missed: int | None


def run_statistics(fd: int) -> RunStatistics:
    """Return how often a program ran, and for how long."""
    info = uapi.ProgInfo()
    known = _object_info(fd, info)
    missed = info.recursion_misses if known >= ctypes.sizeof(info) else None
    return RunStatistics(info.run_cnt, info.run_time_ns, missed)


def enable_run_statistics() -> int:
    """Have the kernel time the runs of every program of the machine for as long as the descriptor is open.

    EPERM without CAP_SYS_ADMIN. Linux kernel commit d46edd671a14 ("bpf: Sharing bpf runtime stats with
    BPF_ENABLE_STATS") (in v5.8); EINVAL before.
    """
    return _bpf(Command.ENABLE_STATS, uapi.EnableStatsAttr(uapi.STATS_RUN_TIME))
