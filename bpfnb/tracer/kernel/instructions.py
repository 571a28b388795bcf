"""The encoding of BPF instructions.

Linux: Documentation/bpf/standardization/instruction-set.rst and include/uapi/linux/bpf_common.h for operations,
include/uapi/linux/bpf.h for BPF_PSEUDO_*. The numbers of helpers are bpfnb/language/vocabulary.py's.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from typing import NamedTuple

from bpfnb.language.vocabulary import helpers

ENCODING = struct.Struct("=BBhi")  # operation, registers, offset, immediate
IMMEDIATE = struct.Struct("=i")
SIZE, IMMEDIATE_AT = ENCODING.size, 4

LDDW = 0x18  # load 64 bits: the immediate's upper half is in the next instruction, which is no operation
LOAD, LOAD_WORD, STORE = 0x79, 0x61, 0x7B  # of 64 bits, of 32, of 64, to or from where a register points
STORE_WORD = 0x63
STORE_IMMEDIATE, STORE_WORD_IMMEDIATE = 0x7A, 0x62  # of 64 bits, of 32, to where a register points
ATOMIC_ADD = 0xDB  # of 64 bits, to where a register points
MOVE, MOVE_IMMEDIATE, ADD_IMMEDIATE = 0xBF, 0xB7, 0x07  # of 64 bits
CALL, EXIT = 0x85, 0x95
GOTO, GOTO_FAR = 0x05, 0x06  # by the offset, by the immediate
JUMP_EQUAL = 0x15  # where a register is the immediate, of 64 bits
JUMP_AT_LEAST, JUMP_SET = 0x35, 0x45  # where it is not less, unsigned; where it has one of the immediate's bits
JUMP_UNEQUAL, JUMP_UNEQUAL_WORD = 0x55, 0x56  # where a register is not the immediate: of 64 bits, of 32
JUMP_UNEQUAL_REGISTER = 0x5D  # where two registers differ, of 64 bits
SHIFT_RIGHT = 0x77  # of 64 bits
# Classes: the lowest three bits of an operation
STORES, JUMPS = (2, 3), (5, 6)

# The source register says what an immediate is. Of an lddw: a number; the descriptor of a map, to load the map or the
# address of its value; a type of the kernel's, to load the address of a variable. Of a call: a helper, or a kfunc.
NUMBER, PSEUDO_MAP_FD, PSEUDO_MAP_VALUE, PSEUDO_BTF_ID = 0, 1, 2, 3
HELPER_CALL, KFUNC_CALL = 0, 2
# Registers: a helper's first argument, the first that outlives calls, the one that points at the stack's end
FIRST_ARGUMENT, FIRST_SAVED, STACK = 1, 6, 10


def helper(name: str) -> int:
    """Return the number of a helper, such as bpf_snprintf. KeyError where there is none of that name."""
    return helpers()[name].number


def helper_name(number: int) -> str:
    """Return what programs call a helper; for an unknown one, its number in words."""
    names = (name for name, known in helpers().items() if known.number == number)
    return next(names, f"the helper of number {number}")


class Instruction(NamedTuple):
    """``dst``, ``src``: registers."""

    op: int
    dst: int
    src: int
    offset: int
    immediate: int


def decode(code: bytes) -> list[Instruction]:
    """Return one entry an instruction, and one for an lddw's second half."""
    first, second = (0, 4) if sys.byteorder == "little" else (4, 0)
    return [
        Instruction(op, registers >> first & 15, registers >> second & 15, offset, immediate)
        for op, registers, offset, immediate in ENCODING.iter_unpack(code)
    ]


def operations(code: bytes) -> Iterator[tuple[int, Instruction]]:
    """Yield each instruction with its index; an lddw's second half is none."""
    skip = False
    for at, instruction in enumerate(decode(code)):
        if not skip:
            yield at, instruction
        skip = not skip and instruction.op == LDDW


def encode(operation: int, dst: int = 0, src: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    """Return an instruction for this machine, in whose byte order the registers share a byte. ``immediate``: 32 bits,
    signed or not."""
    low, high = (dst, src) if sys.byteorder == "little" else (src, dst)
    signed = immediate - (1 << 32) if immediate >> 31 == 1 else immediate
    return ENCODING.pack(operation, low | high << 4, offset, signed)


def load_map(register: int, fd: int) -> bytes:
    """Return what loads a map into a register."""
    return encode(LDDW, register, PSEUDO_MAP_FD, immediate=fd) + bytes(SIZE)


def load_map_value(register: int, fd: int, offset: int = 0) -> bytes:
    """Return what loads the address of a map's first value, or of what is in it at an offset, into a register."""
    return encode(LDDW, register, PSEUDO_MAP_VALUE, immediate=fd) + encode(0, immediate=offset)


RETURN_0 = encode(MOVE_IMMEDIATE) + encode(EXIT)
