"""bcc's dialect of C, as data: the macros that declare tables, outputs and functions."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["MAKERS", "NAME_AT", "OUTPUTS", "PINNED_AT", "TABLE", "declares"]

# The position of the table's name among the arguments; 0 for all other BPF_ macros of bcc's helpers.h that declare one.
NAME_AT = {
    **dict.fromkeys(("BPF_TABLE", "BPF_TABLE_PUBLIC", "BPF_TABLE_SHARED", "BPF_F_TABLE"), 3),
    **dict.fromkeys(("BPF_TABLE_PINNED", "BPF_TABLE_PINNED6", "BPF_TABLE_PINNED7"), 3),
    **dict.fromkeys(("BPF_QUEUESTACK", "BPF_QUEUESTACK_PINNED", "BPF_QUEUESTACK_PUBLIC", "BPF_QUEUESTACK_SHARED"), 1),
    **dict.fromkeys(("BPF_QUEUE_STACK3", "BPF_QUEUE_STACK4"), 1),
    "BPF_XDP_REDIRECT_MAP": 2,
}
PINNED_AT = 5  # the position of the file's name among the arguments of the macros that pin
TABLE = re.compile(
    r"BPF_(?:HASH|PERCPU_HASH|LRU_HASH|LRU_PERCPU_HASH|ARRAY|PERCPU_ARRAY|HISTOGRAM|HIST|LPM_TRIE|PERF_ARRAY"
    r"|CGROUP_ARRAY|STACK_TRACE|STACK_TRACE_BUILDID|PROG_ARRAY|QUEUE|STACK|DEVMAP|DEVMAP_HASH|CPUMAP|XSKMAP"
    r"|ARRAY_OF_MAPS|HASH_OF_MAPS|SK_STORAGE|INODE_STORAGE|TASK_STORAGE|SOCKMAP|SOCKHASH|SOCKMAP_COMMON|SOCKHASH_COMMON"
    r"|CGROUP_STORAGE|PERCPU_CGROUP_STORAGE|CGROUP_STORAGE_COMMON)[0-9]?"
)
OUTPUTS = {"BPF_PERF_OUTPUT": "perf", "BPF_RINGBUF_OUTPUT": "ringbuf"}


class Maker(NamedTuple):
    """A macro of bcc's that writes a function's signature: its first arguments make the name, the rest is kept."""

    name: str
    kind: str
    names: int
    context: str


_BPF_PROG = "unsigned long long *ctx"
MAKERS = {
    "TRACEPOINT_PROBE": Maker("tracepoint__{}__{}", "tracepoint", 2, "struct tracepoint__{}__{} *args"),
    "RAW_TRACEPOINT_PROBE": Maker("raw_tracepoint__{}", "rawtracepoint", 1, "struct bpf_raw_tracepoint_args *ctx"),
    "KFUNC_PROBE": Maker("kfunc__{}", "fentry", 1, _BPF_PROG),
    "KRETFUNC_PROBE": Maker("kretfunc__{}", "fexit", 1, _BPF_PROG),
    "MODULE_KFUNC_PROBE": Maker("kfunc__{}__{}", "fentry", 2, _BPF_PROG),
    "MODULE_KRETFUNC_PROBE": Maker("kretfunc__{}__{}", "fexit", 2, _BPF_PROG),
    "LSM_PROBE": Maker("lsm__{}", "lsm", 1, _BPF_PROG),
    "KMOD_RET": Maker("kmod_ret__{}", "", 1, _BPF_PROG),
    "BPF_ITER": Maker("bpf_iter__{}", "", 1, "struct bpf_iter__{} *ctx"),
    "BPF_PROG": Maker("{}", "", 1, _BPF_PROG),
}


def declares(word: str) -> bool:
    """Whether bcc has a macro of this name that declares a table, an output or a function."""
    return word in OUTPUTS or word in NAME_AT or word in MAKERS or TABLE.fullmatch(word) is not None
