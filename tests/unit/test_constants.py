"""Addresses of constants in compiled instructions."""

from __future__ import annotations

import struct

import pytest

from bpfnb.tracer.compile.constants import Object, Reference, placed, unfilled


def instruction(op: int, registers: int = 0, number: int = 0) -> bytes:
    return struct.pack("<BBhi", op, registers, 0, number)


def lddw(register: int, low: int, high: int = 0, source: int = 0) -> bytes:
    return instruction(0x18, register | source << 4, low) + instruction(0, 0, high)


MOVE, EXIT = instruction(0xB7), instruction(0x95)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (MOVE + lddw(1, 0) + EXIT, [1]),
        (lddw(3, 12) + lddw(4, 0) + EXIT, [0, 2]),
        # A map; numbers that need 64 bits; a number that looks like the instruction.
        (lddw(1, 7, source=1) + EXIT, []),
        (lddw(1, -1) + lddw(2, 0, 1) + EXIT, []),
        (lddw(1, 0, 0x18) + EXIT, []),
        (MOVE + EXIT, []),
    ],
)
def test_an_address_that_is_wanted_is_a_number_that_needs_no_64_bits(code: bytes, expected: list[int]) -> None:
    assert unfilled(code) == expected


def test_an_address_of_a_constant_is_one_in_the_maps_value() -> None:
    code = MOVE + lddw(3, 12) + lddw(4, 0) + EXIT
    filled = placed(code, [Reference(1, 28), Reference(3, None, "counter")], 77)
    assert filled == MOVE + lddw(3, 77, 28, source=2) + lddw(4, 0) + EXIT


@pytest.mark.parametrize("data", [b"", b"\x7fELF\x02\x01\x01", b"\x7fELF\x02\x01\x01" + bytes(200), b"\xff" * 300])
def test_what_is_no_object_file_is_refused(data: bytes) -> None:
    with pytest.raises((ValueError, struct.error)):
        Object(memoryview(data))
