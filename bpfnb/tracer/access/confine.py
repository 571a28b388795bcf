"""Enforce a policy on programs' instructions, so that no way of writing the C gets around it.

The instructions are checked after clang and before the program is attached, as the kernel is given them: the helpers
they call, kfuncs, and addresses of the kernel's variables. Without ``kernel_memory`` only listed helpers are allowed,
which read only maps, the registers and what the running process itself could read.

Programs confined to one user's processes begin with a guard, which returns wherever another task runs. It checks what
ptrace checks (Linux: kernel/ptrace.c, __ptrace_may_access): all of the task's user and group ids are the user's, and
the task has no capabilities. So a setuid program that the user starts does not count as the user's. Whether the process
may be dumped is not checked. The guard stands before the program, so no jump changes, and no jump of the program leads
to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from msgspec import Struct

from bpfnb.errors import UnsupportedError
from bpfnb.tracer.kernel.btf import KERNEL_BTF, STRUCT, Types
from bpfnb.tracer.kernel.instructions import (
    CALL,
    EXIT,
    GOTO,
    HELPER_CALL,
    JUMP_UNEQUAL,
    JUMP_UNEQUAL_WORD,
    KFUNC_CALL,
    LDDW,
    LOAD,
    LOAD_WORD,
    MOVE,
    MOVE_IMMEDIATE,
    PSEUDO_BTF_ID,
    encode,
    helper,
    helper_name,
    operations,
)

__all__ = ["NO_LIMITS", "Confinement", "Forbidden", "Guard", "forbidden", "guard_for", "guarded"]


def _numbers(names: str) -> frozenset[int]:
    """Return the numbers of helpers that are named without "bpf_"."""
    return frozenset(helper(f"bpf_{name}") for name in names.split())


_INTERFERING = _numbers("probe_write_user override_return send_signal send_signal_thread")
_STACKS = _numbers("get_stackid get_stack get_task_stack")
_TIMERS = _numbers("timer_init timer_set_callback timer_start")
# Helpers that read no kernel memory except maps. Stacks have addresses, not contents.
_HARMLESS = _INTERFERING | _numbers("""
    map_lookup_elem map_update_elem map_delete_elem ktime_get_ns get_prandom_u32 get_smp_processor_id tail_call
    get_current_pid_tgid get_current_uid_gid get_current_comm perf_event_read perf_event_output get_stackid
    get_current_task current_task_under_cgroup get_numa_node_id perf_event_read_value perf_prog_read_value get_stack
    get_current_cgroup_id map_push_elem map_pop_elem map_peek_elem spin_lock spin_unlock strtol strtoul probe_read_user
    probe_read_user_str jiffies64 read_branch_records get_ns_current_pid_tgid get_current_ancestor_cgroup_id
    ktime_get_boot_ns ringbuf_output ringbuf_reserve ringbuf_submit ringbuf_discard ringbuf_query copy_from_user
    ktime_get_coarse_ns for_each_map_elem snprintf timer_init timer_set_callback timer_start timer_cancel
    get_attach_cookie loop strncmp map_lookup_percpu_elem ktime_get_tai_ns
""")
# Formats for which bpf_snprintf follows pointers: Linux, kernel/trace/bpf_trace.c and helpers.c, bpf_bprintf_prepare().
_FOLLOWING = re.compile(rb"%[^a-zA-Z%]*[ps]")


_READ_USER, _READ_USER_STR = helper("bpf_probe_read_user"), helper("bpf_probe_read_user_str")
# Where bcc does not see the kernel's symbols, it compiles bpf_probe_read_user to bpf_probe_read. These macros prevent
# that.
_USER_READS = f"""\
#define bpf_probe_read_user(to, size, from) \\
    ((long (*)(void *, unsigned int, const void *)){_READ_USER})((void *)(to), size, (const void *)(from))
#define bpf_probe_read_user_str(to, size, from) \\
    ((long (*)(void *, unsigned int, const void *)){_READ_USER_STR})((void *)(to), size, (const void *)(from))
"""


class Guard(Struct, frozen=True):
    """The user whose processes programs run in: offsets in the kernel's structs, and the values expected there."""

    cred: int  # offset in task_struct of the pointer to its credentials
    words: tuple[tuple[int, int], ...]  # (offset, value) of 32-bit words in the credentials
    none: int  # offset of the capabilities, 64 bits that must be zero; -1 where they do not matter


class Confinement(Struct, frozen=True):
    """What programs may do. ``guard``: None where they run in all processes. The rest is as in policy.Rules."""

    guard: Guard | None = None
    kernel_memory: bool = True
    stacks: bool = True
    interfere: bool = True

    @property
    def prelude(self) -> str:
        """C to put before a cell, so that allowed calls stay distinguishable from forbidden ones."""
        return "" if self.kernel_memory else _USER_READS


NO_LIMITS = Confinement()


class Forbidden(NamedTuple):
    """What a program does that is forbidden, and the index of the instruction."""

    what: str
    instruction: int


def forbidden(code: bytes, confinement: Confinement, constants: bytes = b"") -> Forbidden | None:
    """Return the first forbidden thing in a program. ``constants``: its constant memory, with its formats."""
    instructions = list(operations(code))
    for at, i in instructions:
        if i.op == CALL and (what := _forbidden_call(i.src, i.immediate, confinement, constants)):
            return Forbidden(what, at)
    for at, i in instructions:
        if i.op == LDDW and i.src == PSEUDO_BTF_ID and not confinement.kernel_memory:
            return Forbidden("read variables of the kernel's", at)
    return None


def guarded(code: bytes, guard: Guard) -> bytes:
    """Return the program with a guard before it, so that it does nothing in other users' processes."""
    guard_code = [
        encode(CALL, immediate=helper("bpf_get_current_task_btf")),
        encode(LOAD, 7, 0, guard.cred),
    ]
    tests = [(LOAD_WORD, JUMP_UNEQUAL_WORD, offset, number) for offset, number in guard.words]
    tests += [(LOAD, JUMP_UNEQUAL, guard.none, 0)] if guard.none >= 0 else []
    # After the last test come two instructions that continue, then the two that return.
    for left, (load, unless, offset, number) in zip(range(len(tests) - 1, -1, -1), tests, strict=True):
        guard_code += [encode(load, 1, 7, offset), encode(unless, 1, 0, 2 * left + 2, number)]
    going_on = [encode(MOVE, 1, 6), encode(GOTO, offset=2)]
    ending = [encode(MOVE_IMMEDIATE), encode(EXIT)]
    return b"".join([encode(MOVE, 6, 1), *guard_code, *going_on, *ending]) + code


def guard_for(uid: int, gid: int) -> Guard:
    """Return the guard for a user's processes. Raise UnsupportedError where the kernel has no BTF of its tasks."""
    places = _places()
    users, groups = ("uid", "euid", "suid", "fsuid"), ("gid", "egid", "sgid", "fsgid")
    try:
        words = [(places[f"cred.{name}"], uid) for name in users] + [(places[f"cred.{name}"], gid) for name in groups]
        return Guard(places["task_struct.real_cred"], tuple(words), places["cred.cap_permitted"] if uid else -1)
    except KeyError as error:
        raise UnsupportedError(f"programs cannot be confined on this kernel: it has no {error.args[0]}") from None


@cache
def _places() -> Mapping[str, int]:
    """Return the offsets of members of task_struct and cred, in bytes."""
    try:
        types = Types(KERNEL_BTF.read_bytes(), "the kernel's")
    except OSError:
        raise UnsupportedError(
            f"programs cannot be confined to a user's processes on this kernel: it has no {KERNEL_BTF}"
        ) from None
    found: dict[str, int] = {}
    for name in ("task_struct", "cred"):
        for struct_id in types.named([name], STRUCT)[:1]:
            found |= {f"{name}.{member.name}": member.bit // 8 for member in types.members(struct_id)}
    return found


def _forbidden_call(source: int, number: int, confinement: Confinement, constants: bytes) -> str:
    if source == KFUNC_CALL:
        confined = confinement.guard or not (confinement.kernel_memory and confinement.interfere)
        return "call functions of the kernel's (kfuncs)" if confined else ""
    if source != HELPER_CALL:
        return ""
    if number in _INTERFERING and not confinement.interfere:
        return f"interfere with processes ({helper_name(number)})"
    if number in _STACKS and not confinement.stacks:
        return f"read stacks ({helper_name(number)})"
    if number in _TIMERS and confinement.guard:
        return f"set timers, which run in anybody's process ({helper_name(number)})"
    if confinement.kernel_memory:
        return ""
    if number not in _HARMLESS:
        return f"read the kernel's memory ({helper_name(number)})"
    if number == helper("bpf_snprintf") and _FOLLOWING.search(constants):
        return "print what a pointer points to (%s, %p), which reads the kernel's memory"
    return ""
