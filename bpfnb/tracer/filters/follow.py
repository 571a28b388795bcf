"""Programs of the tracer's own that keep what a filter says of processes true while these start and end.

    fork    at raw tracepoint sched_process_fork: what a followed process has started is followed as well
    free    at sched_process_free, when the kernel forgets a process: nobody else is taken for it who gets its number
    let-go  at signal_deliver: the held process of a command counts from here on (bpfnb/command.py)

They are instructions, not part of the cell's C: a policy confines what a user's programs read, and nothing that a user
writes may become a part of these.

A process is in the map from its fork until it has been waited for. At sched_process_exit it still is, so that a
program there sees it, whichever runs first. An entry has the time its process started, as the number alone may be
another's by the time that the kernel forgets the process. Linux: kernel/fork.c, kernel/exit.c, kernel/signal.c.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from functools import cache

from bpfnb.errors import UnsupportedError
from bpfnb.tracer.filters.text import FOLLOWED, LOST_AT, PID_AT
from bpfnb.tracer.kernel import bpf
from bpfnb.tracer.kernel.bpf import ProgramAttributes
from bpfnb.tracer.kernel.btf import KERNEL_BTF, STRUCT, Types
from bpfnb.tracer.kernel.instructions import (
    ADD_IMMEDIATE,
    ATOMIC_ADD,
    CALL,
    GOTO,
    JUMP_EQUAL,
    JUMP_UNEQUAL,
    JUMP_UNEQUAL_REGISTER,
    LOAD,
    LOAD_WORD,
    MOVE,
    MOVE_IMMEDIATE,
    RETURN_0,
    SHIFT_RIGHT,
    SIZE,
    STACK,
    STORE,
    STORE_WORD,
    STORE_WORD_IMMEDIATE,
    encode,
    helper,
    load_map,
    load_map_value,
)
from bpfnb.tracer.kernel.uapi import ProgramType
from bpfnb.tracer.loaded import ProgramSpec

__all__ = ["Keeper", "keepers_of_many", "keepers_of_one"]

LET_GO = signal.SIGURG  # a signal that does nothing where nobody handles it
_PID, _TGID, _CURRENT, _STARTED, _SELECTED = -8, -4, -16, -32, -24  # on the stack


class Keeper:
    """A program of the tracer's own: ``spec``, its descriptor, and the raw tracepoint it runs at."""

    def __init__(self, name: str, tracepoint: str, code: bytes) -> None:
        self.spec = ProgramSpec(f"bpfnb:{name}", ProgramType.RAW_TRACEPOINT)
        self._tracepoint = tracepoint
        attributes = ProgramAttributes(ProgramType.RAW_TRACEPOINT, b"bpfnb_" + name.encode(), b"GPL", 0)
        self.fd = bpf.load_program(attributes, code)

    def attach(self) -> int:
        """Have it run: the descriptor to close when it is to run no more."""
        return bpf.attach_raw_tracepoint(self.fd, self._tracepoint)


def keepers_of_one(values: int) -> list[Keeper]:
    """Return what keeps the filter ``pid`` true. ``values``: the descriptor of the filter's map."""
    return _loaded(lambda: [Keeper("free", "sched_process_free", _free_one(values))])


def keepers_of_many(values: int, followed: int, *, held: bool) -> list[Keeper]:
    """Return what keeps the filter ``follow`` true. ``followed``: the descriptor of the map of processes. ``held``: one
    of them is to be let go."""

    def load() -> list[Keeper]:
        found = [Keeper("free", "sched_process_free", _free(followed))]
        try:
            found.append(Keeper("fork", "sched_process_fork", _fork(values, followed)))
            if held:
                found.append(Keeper("let_go", "signal_deliver", _let_go(followed)))
        except BaseException:
            for keeper in found:
                os.close(keeper.fd)
            raise
        return found

    return _loaded(load)


def _loaded(load: Callable[[], list[Keeper]]) -> list[Keeper]:
    try:
        return load()
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        why = error.strerror or str(error)
        raise UnsupportedError(f"processes cannot be told apart by this kernel: {why}") from None


# --- their instructions -------------------------------------------------------------------------------------------


class _Code:
    """Instructions as they are put together; jumps lead to labels further on."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._jumps: list[tuple[int, int, int, int, int, str]] = []
        self._labels: dict[str, int] = {}

    def add(self, *parts: bytes) -> None:
        for part in parts:
            self._parts += [part[at : at + SIZE] for at in range(0, len(part), SIZE)]

    def jump(self, operation: int, label: str, dst: int = 0, src: int = 0, immediate: int = 0) -> None:
        self._jumps.append((len(self._parts), operation, dst, src, immediate, label))
        self._parts.append(b"")

    def label(self, name: str) -> None:
        self._labels[name] = len(self._parts)

    def call(self, name: str) -> None:
        self.add(encode(CALL, immediate=helper(name)))

    def read(self, member: str, to: int, size: int) -> None:
        """Read a member of the task that register 6 points to onto the stack."""
        self.add(encode(MOVE, 1, STACK), encode(ADD_IMMEDIATE, 1, immediate=to))
        self.add(encode(MOVE_IMMEDIATE, 2, immediate=size))
        self.add(encode(MOVE, 3, 6), encode(ADD_IMMEDIATE, 3, immediate=_places()[member]))
        self.call("bpf_probe_read_kernel")

    def with_key(self, name: str, followed: int, key: int) -> None:
        """Call a helper on the map of processes and a key on the stack."""
        self.add(load_map(1, followed), encode(MOVE, 2, STACK), encode(ADD_IMMEDIATE, 2, immediate=key))
        self.call(name)

    def processes_only(self) -> None:
        """Read the task's numbers, and go on only where it is a process, not a further thread of one."""
        self.read("pid", _PID, 4)
        self.read("tgid", _TGID, 4)
        self.add(encode(LOAD_WORD, 1, STACK, _PID), encode(LOAD_WORD, 2, STACK, _TGID))
        self.jump(JUMP_UNEQUAL_REGISTER, "end", 1, 2)

    def find_current(self, followed: int) -> None:
        """Look the running process up: register 0 points to what is said of it, or is 0."""
        self.call("bpf_get_current_pid_tgid")
        self.add(encode(SHIFT_RIGHT, 0, immediate=32), encode(STORE_WORD, STACK, 0, _CURRENT))
        self.with_key("bpf_map_lookup_elem", followed, _CURRENT)

    def done(self) -> bytes:
        self.label("end")
        self.add(RETURN_0)
        for at, operation, dst, src, immediate, label in self._jumps:
            self._parts[at] = encode(operation, dst, src, self._labels[label] - at - 1, immediate)
        return b"".join(self._parts)


def _free_one(values: int) -> bytes:
    code = _Code()
    code.add(encode(LOAD, 6, 1, 0))  # the task
    code.processes_only()
    code.add(load_map_value(7, values, PID_AT), encode(LOAD_WORD, 1, 7), encode(LOAD_WORD, 2, STACK, _TGID))
    code.jump(JUMP_UNEQUAL_REGISTER, "end", 1, 2)
    code.add(encode(STORE_WORD_IMMEDIATE, 7))
    return code.done()


def _free(followed: int) -> bytes:
    code = _Code()
    code.add(encode(LOAD, 6, 1, 0))  # the task
    code.processes_only()
    code.with_key("bpf_map_lookup_elem", followed, _TGID)
    code.jump(JUMP_EQUAL, "end", 0)
    code.add(encode(MOVE, 7, 0))
    code.read("start_time", _STARTED, 8)
    code.add(encode(LOAD, 1, 7))
    code.jump(JUMP_EQUAL, "delete", 1)  # one that was there before us: its time is not known in nanoseconds
    code.add(encode(LOAD, 2, STACK, _STARTED))
    code.jump(JUMP_UNEQUAL_REGISTER, "end", 1, 2)
    code.label("delete")
    code.with_key("bpf_map_delete_elem", followed, _TGID)
    return code.done()


def _fork(values: int, followed: int) -> bytes:
    code = _Code()
    code.add(encode(LOAD, 6, 1, 8))  # the child
    code.processes_only()
    code.find_current(followed)
    code.jump(JUMP_EQUAL, "forget", 0)
    code.add(encode(LOAD, 1, 0, FOLLOWED.size - 8), encode(STORE, STACK, 1, _SELECTED))
    code.read("start_time", _STARTED, 8)
    code.add(encode(MOVE, 3, STACK), encode(ADD_IMMEDIATE, 3, immediate=_STARTED), encode(MOVE_IMMEDIATE, 4))
    code.with_key("bpf_map_update_elem", followed, _TGID)
    code.jump(JUMP_EQUAL, "end", 0)
    code.add(load_map_value(1, values, LOST_AT), encode(MOVE_IMMEDIATE, 2, immediate=1), encode(ATOMIC_ADD, 1, 2))
    code.jump(GOTO, "end")
    code.label("forget")  # whoever had this number has ended, even if the kernel has not forgotten it yet
    code.with_key("bpf_map_delete_elem", followed, _TGID)
    return code.done()


def _let_go(followed: int) -> bytes:
    code = _Code()
    code.add(encode(LOAD, 1, 1, 0))  # the signal
    code.jump(JUMP_UNEQUAL, "end", 1, immediate=LET_GO)
    code.find_current(followed)
    code.jump(JUMP_EQUAL, "end", 0)
    code.add(encode(MOVE_IMMEDIATE, 1, immediate=1), encode(STORE, 0, 1, FOLLOWED.size - 8))
    return code.done()


@cache
def _places() -> dict[str, int]:
    """Return the offsets of members of task_struct, in bytes."""
    wanted = ("pid", "tgid", "start_time")
    types = Types(KERNEL_BTF.read_bytes(), "the kernel's")
    found = {m.name: m.bit // 8 for i in types.named(["task_struct"], STRUCT)[:1] for m in types.members(i)}
    if not found.keys() >= set(wanted):
        raise UnsupportedError("processes cannot be told apart: this kernel's BTF does not describe its tasks")
    return {name: found[name] for name in wanted}
