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
import struct
from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple

from msgspec import Struct

from bpfnb.errors import UnsupportedError
from bpfnb.tracer.kernel.btf import KERNEL_BTF, STRUCT, Types

__all__ = ["NO_LIMITS", "Confinement", "Forbidden", "Guard", "forbidden", "guard_for", "guarded"]

# Linux: Documentation/bpf/standardization/instruction-set.rst. The registers' byte is in little-endian order.
_INSTRUCTION = struct.Struct("<BBhi")
_SIZE = 8
_LDDW, _CALL, _EXIT, _GO = 0x18, 0x85, 0x95, 0x05
_MOVE, _MOVE_NUMBER, _LOAD, _LOAD_WORD = 0xBF, 0xB7, 0x79, 0x61
_UNLESS, _UNLESS_WORD = 0x55, 0x56  # jump where a register is not a number: 64 bits, 32 bits
_HELPER, _KFUNC, _OF_KERNEL = 0, 2, 3  # the source register of a call; of an lddw: BPF_PSEUDO_BTF_ID
_GET_CURRENT_TASK_BTF, _PRINTK, _SNPRINTF = 158, 6, 165

# Numbers of helpers: include/uapi/linux/bpf.h, ___BPF_FUNC_MAPPER.
_INTERFERING = {36: "bpf_probe_write_user", 58: "bpf_override_return", 109: "bpf_send_signal",
                117: "bpf_send_signal_thread"}  # fmt: skip
_STACKS = {27: "bpf_get_stackid", 67: "bpf_get_stack", 141: "bpf_get_task_stack"}
_TIMERS = {169: "bpf_timer_init", 170: "bpf_timer_set_callback", 171: "bpf_timer_start"}
_READING = {4: "bpf_probe_read", 45: "bpf_probe_read_str", 113: "bpf_probe_read_kernel",
            115: "bpf_probe_read_kernel_str", _GET_CURRENT_TASK_BTF: "bpf_get_current_task_btf",
            175: "bpf_task_pt_regs", _PRINTK: "bpf_trace_printk", 147: "bpf_d_path", 177: "bpf_trace_vprintk",
            191: "bpf_copy_from_user_task"}  # fmt: skip
# Helpers that read no kernel memory except maps. Stacks have addresses, not contents.
_HARMLESS = frozenset(
    {1, 2, 3, 5, 7, 8, 12, 14, 15, 16, 22, 25, 27, 35, 37, 42, 55, 56, 67, 80, 87, 88, 89, 93, 94, 105, 106, 112, 114}
    | {118, 119, 120, 123, 125, 130, 131, 132, 133, 134, 148, 160, 164, 165, 169, 170, 171, 172, 174, 181, 182, 195}
    | {208, *_INTERFERING}
)
# Formats for which bpf_snprintf follows pointers: Linux, kernel/trace/bpf_trace.c and helpers.c, bpf_bprintf_prepare().
_FOLLOWING = re.compile(rb"%[^a-zA-Z%]*[ps]")


# Where bcc does not see the kernel's symbols, it compiles bpf_probe_read_user to bpf_probe_read. These macros prevent
# that.
_USER_READS = """\
#define bpf_probe_read_user(to, size, from) \\
    ((long (*)(void *, unsigned int, const void *))112)((void *)(to), size, (const void *)(from))
#define bpf_probe_read_user_str(to, size, from) \\
    ((long (*)(void *, unsigned int, const void *))114)((void *)(to), size, (const void *)(from))
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
    for at, source, number in _calls(code):
        if what := _forbidden_call(source, number, confinement, constants):
            return Forbidden(what, at)
    for at, (op, registers, _, _) in _instructions(code):
        if op == _LDDW and registers >> 4 == _OF_KERNEL and not confinement.kernel_memory:
            return Forbidden("read variables of the kernel's", at)
    return None


def guarded(code: bytes, guard: Guard) -> bytes:
    """Return the program with a guard before it, so that it does nothing in other users' processes."""
    guard_code = [
        _put(_CALL, number=_GET_CURRENT_TASK_BTF),
        _put(_LOAD, 7, 0, guard.cred),
    ]
    tests = [(_LOAD_WORD, _UNLESS_WORD, offset, number) for offset, number in guard.words]
    tests += [(_LOAD, _UNLESS, guard.none, 0)] if guard.none >= 0 else []
    # After the last test come two instructions that continue, then the two that return.
    for left, (load, unless, offset, number) in zip(range(len(tests) - 1, -1, -1), tests, strict=True):
        guard_code += [_put(load, 1, 7, offset), _put(unless, 1, 0, 2 * left + 2, number)]
    going_on = [_put(_MOVE, 1, 6), _put(_GO, offset=2)]
    ending = [_put(_MOVE_NUMBER), _put(_EXIT)]
    return b"".join([_put(_MOVE, 6, 1), *guard_code, *going_on, *ending]) + code


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
    if source == _KFUNC:
        confined = confinement.guard or not (confinement.kernel_memory and confinement.interfere)
        return "call functions of the kernel's (kfuncs)" if confined else ""
    if source != _HELPER:
        return ""
    if number in _INTERFERING and not confinement.interfere:
        return f"interfere with processes ({_INTERFERING[number]})"
    if number in _STACKS and not confinement.stacks:
        return f"read stacks ({_STACKS[number]})"
    if number in _TIMERS and confinement.guard:
        return f"set timers, which run in anybody's process ({_TIMERS[number]})"
    if confinement.kernel_memory:
        return ""
    if number not in _HARMLESS:
        return f"read the kernel's memory ({_READING.get(number, f'the helper of number {number}')})"
    if number == _SNPRINTF and _FOLLOWING.search(constants):
        return "print what a pointer points to (%s, %p), which reads the kernel's memory"
    return ""


def _calls(code: bytes) -> Iterator[tuple[int, int, int]]:
    for at, (op, registers, _, number) in _instructions(code):
        if op == _CALL:
            yield at, registers >> 4, number


def _instructions(code: bytes) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
    """Yield each instruction with its index. The second half of an lddw is not an instruction."""
    skip = False
    for at, instruction in enumerate(_INSTRUCTION.iter_unpack(code)):
        if not skip:
            yield at, instruction
        skip = not skip and instruction[0] == _LDDW


def _put(op: int, target: int = 0, source: int = 0, offset: int = 0, number: int = 0) -> bytes:
    signed = number - (1 << 32) if number >> 31 & 1 else number
    return _INSTRUCTION.pack(op, target | source << 4, offset, signed)
