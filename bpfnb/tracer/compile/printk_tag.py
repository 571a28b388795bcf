"""Prove that a program's printk tag can be replaced in its instructions, by following what registers and stack hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bpfnb.tracer.kernel.instructions import (
    ADD_IMMEDIATE,
    CALL,
    EXIT,
    FIRST_ARGUMENT,
    FIRST_SAVED,
    GOTO,
    GOTO_FAR,
    JUMPS,
    LDDW,
    LOAD,
    MOVE,
    STORE,
    STORES,
    Instruction,
    helper,
)

__all__ = ["begin_with_tag"]

_WIDTHS = {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}  # of a store, bytes


# What 64 bits are: the place in the stack they point at, the tag, the place of some format that begins with the tag (it
# depends on the way which: LLVM has the ends of several branches in common), or not known.
_Value = int | str | None
_TAG, _TAGGED = "tag", "tagged"


class _Known(NamedTuple):
    """What holds whenever an instruction is reached: the registers, and those places in the stack that are known."""

    registers: tuple[_Value, ...] = (None,) * 10 + (0,)  # the last one points at the stack's end
    stack: frozenset[tuple[int, _Value]] = frozenset()

    def held(self, place: int) -> _Value:
        return next((value for at, value in self.stack if at == place), None)

    def assigned(self, register: int, value: _Value) -> _Known:
        return self._replace(registers=(*self.registers[:register], value, *self.registers[register + 1 :]))

    def stored(self, place: int, width: int, value: _Value) -> _Known:
        apart = {(at, held) for at, held in self.stack if at >= place + width or at + 8 <= place}
        registers = tuple(None if held == _TAGGED else held for held in self.registers)
        known = set() if value in (None, _TAGGED) else {(place, value)}
        return _Known(registers, frozenset(apart | known))

    def is_tagged(self, register: int) -> bool:
        """Return whether a register points at a format that begins with the tag."""
        value = self.registers[register]
        return value == _TAGGED or (value, _TAG) in self.stack

    def shared(self, other: _Known) -> _Known:
        return _Known(tuple(self._agreed(other, n) for n in range(len(self.registers))), self.stack & other.stack)

    def _agreed(self, other: _Known, register: int) -> _Value:
        if self.registers[register] == other.registers[register]:
            return self.registers[register]
        return _TAGGED if self.is_tagged(register) and other.is_tagged(register) else None


def begin_with_tag(code: Sequence[Instruction], tags: Sequence[int]) -> bool:
    """Whether, on every way through the program, each format printed is on the stack and begins with the tag, stored
    there whole from a register that one of ``tags`` loaded.

    The number of tags says less: one register may serve several formats, and one format's bytes may come in pieces.
    """
    known = {0: _Known()}
    todo = [0]
    while todo:
        at = todo.pop()
        after = _after(code[at], at in tags, known[at])
        for following in _following(code, at):
            reached = known[following].shared(after) if following in known else after
            if known.get(following) != reached:
                known[following] = reached
                todo.append(following)
    calls = [(at, i) for at, i in enumerate(code) if i.op == CALL]
    if any(i.src for _, i in calls):
        return False  # functions of its own: which formats they are given is not followed
    printing = [known[at] for at, i in calls if i.immediate == helper("bpf_trace_printk") and at in known]
    return all(k.is_tagged(FIRST_ARGUMENT) for k in printing)


def _following(code: Sequence[Instruction], at: int) -> list[int]:
    """Return the instructions that may come next."""
    i = code[at]
    if i.op == EXIT:
        return []
    if i.op in (GOTO, GOTO_FAR):
        return [at + 1 + (i.offset if i.op == GOTO else i.immediate)]
    if i.op & 7 in JUMPS and i.op != CALL:
        return [at + 1, at + 1 + i.offset]
    return [at + 2 if i.op == LDDW else at + 1]


def _after(i: Instruction, is_tag: bool, known: _Known) -> _Known:
    """Return what is known after an instruction."""
    registers, kind = known.registers, i.op & 7
    if kind in STORES:
        base = registers[i.dst]
        if not isinstance(base, int):
            return known
        return known.stored(base + i.offset, _WIDTHS[i.op & 0x18], registers[i.src] if i.op == STORE else None)
    if i.op == CALL:
        return known._replace(registers=(None,) * FIRST_SAVED + registers[FIRST_SAVED:])
    return known if kind in JUMPS else known.assigned(i.dst, _TAG if is_tag else _value(i, known))


def _value(i: Instruction, known: _Known) -> _Value:
    """Return what an instruction puts into a register."""
    source, target = known.registers[i.src], known.registers[i.dst]
    if i.op == LOAD and isinstance(source, int):
        return known.held(source + i.offset)
    if i.op == MOVE and i.offset == 0:  # else it extends a sign
        return source
    return target + i.immediate if i.op == ADD_IMMEDIATE and isinstance(target, int) else None
