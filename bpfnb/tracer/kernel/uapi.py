"""The kernel's user interface in numbers and layouts: each is written here, once, and cites its header.

    include/uapi/linux/bpf.h                bpf(2): Command, ProgramType, MapType, AttachType, flags, union bpf_attr
    include/uapi/linux/perf_event.h         perf_event_open(2): PerfEventAttr, PERF_*
    include/uapi/linux/capability.h         Capability
    include/uapi/linux/membarrier.h         membarrier(2)
    arch/*/entry/syscalls, asm-generic      numbers of system calls

Structures end where the tracer's use of them ends: the kernel takes shorter ones, and fills in what there is room for.
Instructions of programs are in instructions.py, BTF in btf.py, what only one module needs is there.
"""

from __future__ import annotations

import ctypes
import platform
from enum import IntEnum
from typing import NamedTuple

# --- errno and system calls ---------------------------------------------------------------------------------------

ENOTSUPP = 524  # include/linux/errno.h: the kernel's own, but bpf(2) and uprobes let it out; the C library has no name


class SyscallNumbers(NamedTuple):
    """Of the system calls that the C library has no function for."""

    bpf: int
    perf_event_open: int
    membarrier: int


_GENERIC = SyscallNumbers(280, 241, 283)  # include/uapi/asm-generic/unistd.h
_SYSCALLS = {
    "x86_64": SyscallNumbers(321, 298, 324),
    "aarch64": _GENERIC,
    "riscv64": _GENERIC,
    "loongarch64": _GENERIC,
    "s390x": SyscallNumbers(351, 331, 356),
    "ppc64le": SyscallNumbers(361, 319, 365),
}
SYSCALLS = _SYSCALLS.get(platform.machine(), _SYSCALLS["x86_64"])

MEMBARRIER_CMD_GLOBAL = 1


class Capability(IntEnum):
    """CAP_*, those that are used."""

    DAC_READ_SEARCH = 2
    SETGID = 6
    SETUID = 7
    IPC_LOCK = 14
    SYS_PTRACE = 19
    SYS_ADMIN = 21
    PERFMON = 38
    BPF = 39


# --- bpf.h --------------------------------------------------------------------------------------------------------


class Command(IntEnum):
    """enum bpf_cmd, those that are used. bpf.py says since when, where that is not v5.4 or before."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    MAP_GET_NEXT_KEY = 4
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    OBJ_GET_INFO_BY_FD = 15
    RAW_TRACEPOINT_OPEN = 17
    BTF_LOAD = 18
    MAP_LOOKUP_AND_DELETE_ELEM = 21
    MAP_FREEZE = 22
    MAP_LOOKUP_BATCH = 24
    MAP_LOOKUP_AND_DELETE_BATCH = 25
    MAP_UPDATE_BATCH = 26
    LINK_CREATE = 28
    ENABLE_STATS = 32


class ProgramType(IntEnum):
    """enum bpf_prog_type, those that are used."""

    SOCKET_FILTER = 1
    KPROBE = 2  # of uprobes and USDT probes, too
    TRACEPOINT = 5
    PERF_EVENT = 7
    RAW_TRACEPOINT = 17
    TRACING = 26  # fentry and fexit
    LSM = 29


class AttachType(IntEnum):
    """enum bpf_attach_type, those that are used."""

    TRACE_FENTRY = 24
    TRACE_FEXIT = 25
    LSM_MAC = 27
    PERF_EVENT = 41
    TRACE_KPROBE_MULTI = 42
    TRACE_UPROBE_MULTI = 48


MapType = IntEnum(
    "MapType",
    "HASH ARRAY PROG_ARRAY PERF_EVENT_ARRAY PERCPU_HASH PERCPU_ARRAY STACK_TRACE CGROUP_ARRAY LRU_HASH LRU_PERCPU_HASH "
    "LPM_TRIE ARRAY_OF_MAPS HASH_OF_MAPS DEVMAP SOCKMAP CPUMAP XSKMAP SOCKHASH CGROUP_STORAGE REUSEPORT_SOCKARRAY "
    "PERCPU_CGROUP_STORAGE QUEUE STACK SK_STORAGE DEVMAP_HASH STRUCT_OPS RINGBUF INODE_STORAGE TASK_STORAGE "
    "BLOOM_FILTER USER_RINGBUF CGRP_STORAGE ARENA INSN_ARRAY",
)
MapType.__doc__ = "enum bpf_map_type, from 1 on."

# Flags of maps: BPF_F_*
NO_PREALLOC, NUMA_NODE, STACK_BUILD_ID, RDONLY_PROG, MMAPABLE = 1 << 0, 1 << 2, 1 << 5, 1 << 7, 1 << 10

STATS_RUN_TIME = 0  # enum bpf_stats_type
NAME_BYTES = 16  # BPF_OBJ_NAME_LEN

_U8, _U32, _U64, _NAME = ctypes.c_uint8, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_char * NAME_BYTES


class MapCreateAttr(ctypes.Structure):
    """BPF_MAP_CREATE."""

    _fields_ = (
        ("map_type", _U32),
        ("key_size", _U32),
        ("value_size", _U32),
        ("max_entries", _U32),
        ("map_flags", _U32),
        ("inner_map_fd", _U32),
        ("numa_node", _U32),
        ("map_name", _NAME),
        ("map_ifindex", _U32),
        ("btf_fd", _U32),
        ("btf_key_type_id", _U32),
        ("btf_value_type_id", _U32),
        ("btf_vmlinux_value_type_id", _U32),
        ("map_extra", _U64),
    )


class ElementAttr(ctypes.Structure):
    """BPF_MAP_*_ELEM, BPF_MAP_GET_NEXT_KEY; of BPF_MAP_FREEZE the first member."""

    _fields_ = (("map_fd", _U32), ("key", _U64), ("value", _U64), ("flags", _U64))  # value: or the next key


class BatchAttr(ctypes.Structure):
    """BPF_MAP_*_BATCH."""

    _fields_ = (
        ("in_batch", _U64),
        ("out_batch", _U64),
        ("keys", _U64),
        ("values", _U64),
        ("count", _U32),
        ("map_fd", _U32),
        ("elem_flags", _U64),
        ("flags", _U64),
    )


class ProgLoadAttr(ctypes.Structure):
    """BPF_PROG_LOAD."""

    _fields_ = (
        ("prog_type", _U32),
        ("insn_cnt", _U32),
        ("insns", _U64),
        ("license", _U64),
        ("log_level", _U32),
        ("log_size", _U32),
        ("log_buf", _U64),
        ("kern_version", _U32),
        ("prog_flags", _U32),
        ("prog_name", _NAME),
        ("prog_ifindex", _U32),
        ("expected_attach_type", _U32),
        ("prog_btf_fd", _U32),
        ("func_info_rec_size", _U32),
        ("func_info", _U64),
        ("func_info_cnt", _U32),
        ("line_info_rec_size", _U32),
        ("line_info", _U64),
        ("line_info_cnt", _U32),
        ("attach_btf_id", _U32),
    )


class ObjAttr(ctypes.Structure):
    """BPF_OBJ_PIN, BPF_OBJ_GET."""

    _fields_ = (("pathname", _U64), ("bpf_fd", _U32), ("file_flags", _U32))


class InfoAttr(ctypes.Structure):
    """BPF_OBJ_GET_INFO_BY_FD."""

    _fields_ = (("bpf_fd", _U32), ("info_len", _U32), ("info", _U64))


class RawTracepointAttr(ctypes.Structure):
    """BPF_RAW_TRACEPOINT_OPEN."""

    _fields_ = (("name", _U64), ("prog_fd", _U32))


class BtfLoadAttr(ctypes.Structure):
    """BPF_BTF_LOAD."""

    _fields_ = (
        ("btf", _U64),
        ("btf_log_buf", _U64),
        ("btf_size", _U32),
        ("btf_log_size", _U32),
        ("btf_log_level", _U32),
    )


class LinkCreateAttr(ctypes.Structure):
    """BPF_LINK_CREATE with BPF_PERF_EVENT."""

    _fields_ = (
        ("prog_fd", _U32),
        ("target_fd", _U32),
        ("attach_type", _U32),
        ("flags", _U32),
        ("bpf_cookie", _U64),
    )


class KprobeMultiAttr(ctypes.Structure):
    """BPF_LINK_CREATE with BPF_TRACE_KPROBE_MULTI."""

    _fields_ = (
        ("prog_fd", _U32),
        ("target_fd", _U32),
        ("attach_type", _U32),
        ("flags", _U32),
        ("multi_flags", _U32),
        ("cnt", _U32),
        ("syms", _U64),
        ("addrs", _U64),
        ("cookies", _U64),
    )


class UprobeMultiAttr(ctypes.Structure):
    """BPF_LINK_CREATE with BPF_TRACE_UPROBE_MULTI."""

    _fields_ = (
        ("prog_fd", _U32),
        ("target_fd", _U32),
        ("attach_type", _U32),
        ("flags", _U32),
        ("path", _U64),
        ("offsets", _U64),
        ("ref_ctr_offsets", _U64),
        ("cookies", _U64),
        ("cnt", _U32),
        ("multi_flags", _U32),
        ("pid", _U32),
    )


MULTI_RETURN = 1  # BPF_F_KPROBE_MULTI_RETURN, BPF_F_UPROBE_MULTI_RETURN


class EnableStatsAttr(ctypes.Structure):
    """BPF_ENABLE_STATS."""

    _fields_ = (("type", _U32),)


class MapInfo(ctypes.Structure):
    """struct bpf_map_info."""

    _fields_ = (
        ("type", _U32),
        ("id", _U32),
        ("key_size", _U32),
        ("value_size", _U32),
        ("max_entries", _U32),
        ("map_flags", _U32),
        ("name", _NAME),
        ("ifindex", _U32),
        ("btf_vmlinux_value_type_id", _U32),
        ("netns_dev", _U64),
        ("netns_ino", _U64),
        ("btf_id", _U32),
        ("btf_key_type_id", _U32),
        ("btf_value_type_id", _U32),
        ("btf_vmlinux_id", _U32),
        ("map_extra", _U64),
    )


class ProgInfo(ctypes.Structure):
    """struct bpf_prog_info."""

    _fields_ = (
        ("type", _U32),
        ("id", _U32),
        ("tag", _U8 * 8),
        ("jited_prog_len", _U32),
        ("xlated_prog_len", _U32),
        ("jited_prog_insns", _U64),
        ("xlated_prog_insns", _U64),
        ("load_time", _U64),
        ("created_by_uid", _U32),
        ("nr_map_ids", _U32),
        ("map_ids", _U64),
        ("name", _NAME),
        ("ifindex", _U32),
        ("gpl_compatible", _U32),
        ("netns_dev", _U64),
        ("netns_ino", _U64),
        ("nr_jited_ksyms", _U32),
        ("nr_jited_func_lens", _U32),
        ("jited_ksyms", _U64),
        ("jited_func_lens", _U64),
        ("btf_id", _U32),
        ("func_info_rec_size", _U32),
        ("func_info", _U64),
        ("nr_func_info", _U32),
        ("nr_line_info", _U32),
        ("line_info", _U64),
        ("jited_line_info", _U64),
        ("nr_jited_line_info", _U32),
        ("line_info_rec_size", _U32),
        ("jited_line_info_rec_size", _U32),
        ("nr_prog_tags", _U32),
        ("prog_tags", _U64),
        ("run_time_ns", _U64),
        ("run_cnt", _U64),
        ("recursion_misses", _U64),
    )


class BtfInfo(ctypes.Structure):
    """struct bpf_btf_info."""

    _fields_ = (("btf", _U64), ("btf_size", _U32), ("id", _U32))


# --- perf_event.h -------------------------------------------------------------------------------------------------

# enum perf_type_id; kprobes and uprobes have numbers of the running kernel's (perf.pmu_type).
PERF_TYPE_HARDWARE, PERF_TYPE_SOFTWARE, PERF_TYPE_TRACEPOINT = 0, 1, 2
PERF_COUNT_HW_CPU_CYCLES = 0  # enum perf_hw_id
# enum perf_sw_ids
PERF_COUNT_SW_CPU_CLOCK, PERF_COUNT_SW_DUMMY, PERF_COUNT_SW_BPF_OUTPUT = 0, 9, 10

# enum perf_event_sample_format, perf_event_read_format
PERF_SAMPLE_TIME, PERF_SAMPLE_ID, PERF_SAMPLE_RAW = 1 << 2, 1 << 6, 1 << 10
PERF_FORMAT_TOTAL_TIME_ENABLED = 1

# struct perf_event_attr: the bits behind read_format
PERF_ATTR_MMAP, PERF_ATTR_COMM, PERF_ATTR_TASK, PERF_ATTR_SAMPLE_ID_ALL = 1 << 8, 1 << 9, 1 << 13, 1 << 18
PERF_ATTR_FREQ, PERF_ATTR_WATERMARK, PERF_ATTR_USE_CLOCKID = 1 << 10, 1 << 14, 1 << 25
PERF_ATTR_MMAP2, PERF_ATTR_COMM_EXEC = 1 << 23, 1 << 24

# enum perf_event_type
PERF_RECORD_LOST, PERF_RECORD_COMM, PERF_RECORD_EXIT, PERF_RECORD_FORK, PERF_RECORD_MMAP2 = 2, 3, 4, 7, 10
PERF_RECORD_MISC_COMM_EXEC = 1 << 13

PERF_FLAG_FD_CLOEXEC = 8
PERF_EVENT_IOC_SET_OUTPUT, PERF_EVENT_IOC_ID, PERF_EVENT_IOC_SET_BPF = 0x2405, 0x80082407, 0x40042408

# struct perf_event_mmap_page, in words of 64 bits
PERF_MMAP_DATA_HEAD, PERF_MMAP_DATA_TAIL = 1024 // 8, 1032 // 8


class PerfEventAttr(ctypes.Structure):
    """struct perf_event_attr as of v4.1 (PERF_ATTR_SIZE_VER3, and the clock that has its padding's place)."""

    _fields_ = (
        ("type", _U32),
        ("size", _U32),
        ("config", _U64),
        ("sample_period", _U64),  # or, with PERF_ATTR_FREQ, sample_freq
        ("sample_type", _U64),
        ("read_format", _U64),
        ("flags", _U64),
        ("wakeup_watermark", _U32),
        ("bp_type", _U32),
        ("config1", _U64),  # of kprobes and uprobes: the function's, the file's name
        ("config2", _U64),  # and the offset
        ("branch_sample_type", _U64),
        ("sample_regs_user", _U64),
        ("sample_stack_user", _U32),
        ("clockid", ctypes.c_int32),
    )
