"""The encoding of BPF instructions.

Linux: Documentation/bpf/standardization/instruction-set.rst and include/uapi/linux/bpf_common.h for operations,
include/uapi/linux/bpf.h for the numbers of helpers (___BPF_FUNC_MAPPER) and BPF_PSEUDO_*.
"""

from __future__ import annotations

import struct
import sys
from enum import IntEnum

ENCODING = struct.Struct("=BBhi")  # operation, registers, offset, immediate
SIZE = ENCODING.size

LDDW = 0x18  # load 64 bits: the immediate's upper half is in the next instruction, which is no operation
MOVE, MOVE_IMMEDIATE, ADD_IMMEDIATE = 0xBF, 0xB7, 0x07  # of 64 bits
CALL, EXIT = 0x85, 0x95
# The source register of an lddw whose immediate is the descriptor of a map: load the map, or the address of its value
PSEUDO_MAP_FD, PSEUDO_MAP_VALUE = 1, 2
STACK = 10  # the register that points at the stack's end


class Helper(IntEnum):
    """Helpers that are called by programs written here."""

    PROBE_READ = 4
    PROBE_READ_KERNEL = 113
    SNPRINTF = 165


def instruction(operation: int, target: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    """Encode an instruction for this machine, in whose byte order the registers share a byte."""
    low, high = (target, source) if sys.byteorder == "little" else (source, target)
    return ENCODING.pack(operation, low | high << 4, offset, immediate)


def load_map(register: int, fd: int) -> bytes:
    """Load a map into a register."""
    return instruction(LDDW, register, PSEUDO_MAP_FD, immediate=fd) + bytes(SIZE)


def load_map_value(register: int, fd: int) -> bytes:
    """Load the address of a map's first value into a register."""
    return instruction(LDDW, register, PSEUDO_MAP_VALUE, immediate=fd) + bytes(SIZE)


RETURN_0 = instruction(MOVE_IMMEDIATE) + instruction(EXIT)
