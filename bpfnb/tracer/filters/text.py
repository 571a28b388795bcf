"""The C that tests a session's filters, and where it goes in a cell.

Each attached function begins with ``if (!bpfnb_selected()) return 0;``. No kind of program takes 0 for a verdict: a
security module's hook goes on with its own default. A cell whose functions call ``bpfnb_selected()`` or
``bpfnb_selected_task(task)`` says itself whom it is about; then nothing is inserted.

The text depends on which filters are given, not on what they are: pids, names and numbers are in a map, which the
tracer fills once the cell is loaded. So a cell is compiled once for all processes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from bpfnb.errors import UnsupportedError
from bpfnb.language.cell import Cell
from bpfnb.language.filters import Filters
from bpfnb.language.program import Program
from bpfnb.tracer.kernel.btf import KERNEL_BTF
from bpfnb.tracer.source_map import Edit

__all__ = [
    "CGROUP_MAP",
    "FILTER",
    "FILTER_MAP",
    "FOLLOWED",
    "FOLLOWED_MAP",
    "LOST_AT",
    "PID_AT",
    "edits",
    "map_names",
    "prelude",
]

CURRENT, OF_TASK = "bpfnb_selected", "bpfnb_selected_task"
FILTER_MAP, FOLLOWED_MAP, CGROUP_MAP = "bpfnb_filter", "bpfnb_followed", "bpfnb_cgroup"
MAX_FOLLOWED = 16_384  # processes at a time, unless a cell defines BPFNB_MAX_FOLLOWED
FILTER = struct.Struct("=Q16s16sQIIQ")  # struct bpfnb_filter_t: lost, comm, mask, cgroup, pid, uid, no more
FOLLOWED = struct.Struct("=QQ")  # struct bpfnb_followed_t: started, selected
LOST_AT, PID_AT = 0, 48
_MAX_LEVELS = 16  # of cgroups, that a test of another task's looks at

_MAPS = f"""\
struct bpfnb_filter_t {{ u64 lost; u64 comm[2]; u64 mask[2]; u64 cgroup; u32 pid; u32 uid; u64 none; }};
BPF_ARRAY({FILTER_MAP}, struct bpfnb_filter_t, 1);
"""
_FOLLOWED = f"""\
#ifndef BPFNB_MAX_FOLLOWED
#define BPFNB_MAX_FOLLOWED {MAX_FOLLOWED}
#endif
struct bpfnb_followed_t {{ u64 started; u64 selected; }};
BPF_HASH({FOLLOWED_MAP}, u32, struct bpfnb_followed_t, BPFNB_MAX_FOLLOWED);
"""
_CGROUP = f"BPF_CGROUP_ARRAY({CGROUP_MAP}, 1);\n"
_ALWAYS_INLINE = "static inline __attribute__((always_inline, unused)) int"
_HEAD = f"""\
    int bpfnb_first = 0;
    struct bpfnb_filter_t *bpfnb_f = {FILTER_MAP}.lookup(&bpfnb_first);
    if (!bpfnb_f) return 0;
"""
_TESTS = {
    "pid": "    if (bpfnb_pid != bpfnb_f->pid) return 0;\n",
    "follow": f"""\
    struct bpfnb_followed_t *bpfnb_p = {FOLLOWED_MAP}.lookup(&bpfnb_pid);
    if (!bpfnb_p || !bpfnb_p->selected) return 0;
""",
    "uid": "    if (bpfnb_uid != bpfnb_f->uid) return 0;\n",
    "comm": """\
    if ((bpfnb_comm[0] & bpfnb_f->mask[0]) != bpfnb_f->comm[0]) return 0;
    if ((bpfnb_comm[1] & bpfnb_f->mask[1]) != bpfnb_f->comm[1]) return 0;
""",
}
_OF_CURRENT = {
    "pid": "    u32 bpfnb_pid = bpf_get_current_pid_tgid() >> 32;\n",
    "uid": "    u32 bpfnb_uid = bpf_get_current_uid_gid();\n",
    "comm": "    u64 bpfnb_comm[2] = {};\n    bpf_get_current_comm(bpfnb_comm, sizeof(bpfnb_comm));\n",
    "cgroup": f"    if ({CGROUP_MAP}.check_current_task(0) <= 0) return 0;\n",
}
_READ = "    bpf_probe_read_kernel(&{0}, sizeof({0}), {1});\n"
_OF_OTHER = {
    "pid": "    u32 bpfnb_pid = 0;\n" + _READ.format("bpfnb_pid", "&bpfnb_task->tgid"),
    "uid": (
        "    const struct cred *bpfnb_cred = 0;\n    u32 bpfnb_uid = 0;\n"
        + _READ.format("bpfnb_cred", "&bpfnb_task->real_cred")
        + _READ.format("bpfnb_uid", "&bpfnb_cred->uid.val")
    ),
    "comm": "    u64 bpfnb_comm[2] = {};\n    bpf_probe_read_kernel_str(bpfnb_comm, 16, &bpfnb_task->comm);\n",
    "cgroup": (
        "    struct css_set *bpfnb_css = 0;\n    struct cgroup *bpfnb_c = 0;\n"
        "    int bpfnb_level = 0, bpfnb_in = 0, bpfnb_i;\n"
        + _READ.format("bpfnb_css", "&bpfnb_task->cgroups")
        + _READ.format("bpfnb_c", "&bpfnb_css->dfl_cgrp")
        + _READ.format("bpfnb_level", "&bpfnb_c->level")
        + '_Pragma("unroll")\n'
        f"    for (bpfnb_i = 0; bpfnb_i < {_MAX_LEVELS}; bpfnb_i++) {{\n"
        "    if (bpfnb_i <= bpfnb_level && !bpfnb_in) {\n"
        "    u64 bpfnb_id = 0;\n%s"
        "    bpfnb_in = bpfnb_id == bpfnb_f->cgroup;\n    }\n    }\n"
        "    if (!bpfnb_in) return 0;\n"
    ),
}
# Linux kernel commit 7f203bc89eb6 ("cgroup: Replace cgroup->ancestor_ids[] with ->ancestors[]") (in v6.1).
_ID_OF_ANCESTOR = (
    "    struct cgroup *bpfnb_a = 0;\n    struct kernfs_node *bpfnb_k = 0;\n"
    + _READ.format("bpfnb_a", "&bpfnb_c->ancestors[bpfnb_i]")
    + _READ.format("bpfnb_k", "&bpfnb_a->kn")
    + _READ.format("bpfnb_id", "&bpfnb_k->id")
)
_ANCESTOR_ID = _READ.format("bpfnb_id", "&bpfnb_c->ancestor_ids[bpfnb_i]")


def map_names(filters: Filters) -> list[str]:
    """Return the maps that the text declares."""
    names = [FILTER_MAP] if filters else []
    return names + [FOLLOWED_MAP] * bool(filters.follow) + [CGROUP_MAP] * bool(filters.cgroup)


def prelude(cell: Cell, filters: Filters) -> str:
    """Return the C to put before a cell; "" where there is nothing to test, and nothing that asks."""
    of_other = _calls(cell, OF_TASK)
    if not filters:
        text = f"{_ALWAYS_INLINE} {CURRENT}(void) {{ return 1; }}\n" if _calls(cell, CURRENT) else ""
        return text + f"{_ALWAYS_INLINE} {OF_TASK}(void *bpfnb_task) {{ return 1; }}\n" * of_other
    text = _MAPS + _FOLLOWED * bool(filters.follow) + _CGROUP * bool(filters.cgroup)
    text += _function(f"{CURRENT}(void)", filters, _OF_CURRENT)
    if of_other:
        id_of = _ID_OF_ANCESTOR if _has_ancestors() else _ANCESTOR_ID
        sources = _OF_OTHER | {"cgroup": _OF_OTHER["cgroup"] % id_of}
        text += _function(f"{OF_TASK}(struct task_struct *bpfnb_task)", filters, sources)
    return text


def edits(cell: Cell, program: Program) -> Iterator[Edit]:
    """Yield the tests at the beginning of attached functions. UnsupportedError for one that a macro writes."""
    if not program.filters or _calls(cell, CURRENT) or _calls(cell, OF_TASK):
        return
    attached = {probe.function for probe in program.probes}
    for f in cell.functions:
        if f.name not in attached:
            continue
        if not f.open:
            line, column = cell.place(f.name_at)
            message = f"the filters cannot be put into {f.name}, which a macro writes"
            hint = "begin the function with: if (!bpfnb_selected()) return 0;"
            raise UnsupportedError(message, line=line, column=column, hint=hint)
        yield Edit(f.open + 1, f.open + 1, f" if (!{CURRENT}()) return 0;")


def _calls(cell: Cell, name: str) -> bool:
    return any(cell.mentions(f.tokens, name) for f in cell.functions)


def _function(head: str, filters: Filters, sources: dict[str, str]) -> str:
    body = _HEAD
    if filters.pid or filters.follow:
        body += sources["pid"]
    body += _TESTS["pid"] * bool(filters.pid) + _TESTS["follow"] * bool(filters.follow)
    if filters.uid is not None:
        body += sources["uid"] + _TESTS["uid"]
    if filters.comm:
        body += sources["comm"] + _TESTS["comm"]
    body += sources["cgroup"] * bool(filters.cgroup)
    return f"{_ALWAYS_INLINE} {head} {{\n{body}    return 1;\n}}\n"


def _has_ancestors() -> bool:
    try:
        return b"\0ancestor_ids\0" not in KERNEL_BTF.read_bytes()
    except OSError:
        return True
