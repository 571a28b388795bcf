"""Many system calls by one probe: the tracepoints raw_syscalls:sys_enter and raw_syscalls:sys_exit, which see every
call, and a filter in the program for the numbers that are wanted.

A program gets there what it gets from a call's own tracepoint: the call's number, and its arguments or its result, in
the same places. So it is the same program, loaded with a filter before it. Closing a tracepoint takes some 40 to 80 ms,
one after the other: 360 calls' own tracepoints take half a minute to close, and this one takes as long as one.

32-bit programs have numbers of their own, and come by here as well. The filter leaves them out, as the calls' own
tracepoints do (Linux: kernel/trace/trace_syscalls.c, trace_get_syscall_nr).
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Sequence
from functools import cache, partial

from msgspec import Struct

from bpfnb.errors import SetupError
from bpfnb.language import syscalls
from bpfnb.language.probes import Probe
from bpfnb.tracer.kernel import bpf, features, tracefs
from bpfnb.tracer.kernel.instructions import (
    ADD_IMMEDIATE,
    CALL,
    EXIT,
    GOTO,
    JUMP_AT_LEAST,
    JUMP_EQUAL,
    JUMP_SET,
    LOAD,
    LOAD_WORD,
    MOVE,
    MOVE_IMMEDIATE,
    SIZE,
    STACK,
    STORE_WORD,
    encode,
    helper,
    load_map,
)
from bpfnb.tracer.link.link import Link, Place, new_link, on_events
from bpfnb.tracer.link.tracepoint import open_event
from bpfnb.tracer.loaded import Loaded
from bpfnb.tracer.signatures.kernel import kernel_types

__all__ = ["CALLS_MAP", "MAX_NUMBER", "Task", "attach", "event", "filtered", "is_possible", "number_of", "task"]

CALLS_MAP = "bpfnb_calls"  # for each program, by a call's number, the number of its probe + 1; 0: it is not wanted
MAX_NUMBER = 1024  # of system calls, as far as is looked at: the highest known is 470
_FORK = 1 << 31  # of an entry: skip the child, which comes out with result 0, as a kretprobe does not see it
_FORKS = ("clone", "clone3", "fork", "vfork")
# What says that a task is in a 32-bit call: a member of struct thread_info, and which bits. Linux:
# arch/x86/include/asm/thread_info.h, TS_COMPAT; arch/arm64/include/asm/thread_info.h, TIF_32BIT.
_32_BIT = {"x86_64": ("status", 0x2), "aarch64": ("flags", 1 << 22)}
_PREFIXES = ("syscalls:sys_enter_", "syscalls:sys_exit_")


class Task(Struct, frozen=True):
    """Where the running task says that it is in a 32-bit call: an offset in task_struct, and the bits of that word."""

    offset: int
    bits: int


def number_of(probe: Probe) -> int | None:
    """Return the number of the system call that a probe is about; None where it is about none that is known."""
    name = probe.target
    if probe.kind == "tracepoint":
        prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            return None
        name = name.removeprefix(prefix)
    elif probe.kind not in ("syscall", "sysret"):
        return None
    return syscalls.numbers().get(name)


def event(probe: Probe) -> str:
    """Return the tracepoint that stands for a probe's."""
    leaving = probe.kind == "sysret" or probe.target.startswith(_PREFIXES[1])
    return f"raw_syscalls:sys_{'exit' if leaving else 'enter'}"


@cache
def is_possible() -> bool:
    """Return whether this kernel has these tracepoints, and programs can tell 32-bit calls apart."""
    try:
        features.current_task()
    except OSError:
        return False
    return task() is not None and tracefs.has_event("raw_syscalls/sys_enter")


@cache
def task() -> Task | None:
    """Return where a task says that it is in a 32-bit call; None where that is not known."""
    member, bits = _32_BIT.get(platform.machine(), ("", 0))
    try:
        types = kernel_types.kernel()
    except SetupError:
        return None
    info = types.members(types.number("struct task_struct")).get("thread_info") if types else None
    word = types.members(info[0].type_id).get(member) if types and info else None
    return Task((info[0].bit + word[0].bit) // 8, bits) if info and word else None


def attach(probes: Sequence[Probe], number: int, index: int, loaded: Loaded, program: int) -> Link:
    """Attach a program for several probes at once, the first of which has a ``number``. ``index``: of the program among
    those that filter. AttachError."""
    calls = loaded.maps[CALLS_MAP].fd
    for at, probe in enumerate(probes, number + 1):
        call = number_of(probe)
        assert call is not None  # others are attached each by itself
        entry = at | (_FORK if probe.kind == "sysret" and probe.target in _FORKS else 0)
        bpf.update(calls, struct.pack("=I", index * MAX_NUMBER + call), struct.pack("=I", entry))
    name = event(probes[0])
    link = on_events(probes[0], program, [Place(partial(open_event, name))], f"tracepoint:{name}", _note(probes[0]))
    others = tuple(new_link(probe, [], f"tracepoint:{name}", _note(probe)).info for probe in probes[1:])
    return link._replace(others=others)


def _note(probe: Probe) -> str:
    return f"calls are told apart by their numbers at {event(probe)}, which sees the same ones"


def filtered(code: bytes, index: int, calls: int, where: Task) -> bytes:
    """Return a program with a filter before it. ``index``: see attach; ``calls``: the map's descriptor."""
    out, go, fork = "out", "go", "fork"
    steps: list[bytes | tuple[int, int, int, str]] = [
        encode(MOVE, 6, 1),
        encode(CALL, immediate=helper("bpf_get_current_task_btf")),
        encode(LOAD_WORD, 1, 0, where.offset),
        (JUMP_SET, 1, where.bits, out),
        encode(LOAD, 1, 6, 8),  # the call's number
        (JUMP_AT_LEAST, 1, MAX_NUMBER, out),
        encode(ADD_IMMEDIATE, 1, immediate=index * MAX_NUMBER),
        encode(STORE_WORD, STACK, 1, -4),
        encode(MOVE, 2, STACK),
        encode(ADD_IMMEDIATE, 2, immediate=-4),
        *_halves(load_map(1, calls)),
        encode(CALL, immediate=helper("bpf_map_lookup_elem")),
        (JUMP_EQUAL, 0, 0, out),
        encode(LOAD_WORD, 1, 0),
        (JUMP_EQUAL, 1, 0, out),
        (JUMP_SET, 1, _FORK, fork),
        (GOTO, 0, 0, go),
        encode(LOAD, 2, 6, 16),  # fork: the result
        (JUMP_EQUAL, 2, 0, out),
        encode(MOVE, 1, 6),  # go
        encode(GOTO, offset=2),
        encode(MOVE_IMMEDIATE),  # out
        encode(EXIT),
    ]
    end = len(steps)
    labels = {out: end - 2, go: end - 4, fork: end - 6}
    return b"".join(_placed(at, step, labels) for at, step in enumerate(steps)) + code


def _placed(at: int, step: bytes | tuple[int, int, int, str], labels: dict[str, int]) -> bytes:
    if isinstance(step, bytes):
        return step
    operation, register, immediate, label = step
    return encode(operation, register, 0, labels[label] - at - 1, immediate)


def _halves(code: bytes) -> list[bytes]:
    return [code[at : at + SIZE] for at in range(0, len(code), SIZE)]
