"""What expressions become: C with the range of its values, and strings by where they are.

Python's integers have any size and the kernel's 64 bits. So a value knows the least and the greatest number it can be:
whether -1 is less than an unsigned number is decided as Python means it, not as C converts it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bpfnb.language.signature import Type

__all__ = ["S64", "U64", "Integer", "String", "Value", "literal", "of_type", "quoted"]

S64 = (-(1 << 63), (1 << 63) - 1)
U64 = (0, (1 << 64) - 1)
CType = Literal["int", "u32", "s64", "u64"]


@dataclass(frozen=True)
class Integer:
    """A C expression ``code`` of type ``type``, after C's promotion. ``low``, ``high``: the least and greatest value.

    ``meaning``: its C type, where it is just a name or member; what the presentation decodes it by.
    """

    code: str
    type: CType
    low: int
    high: int
    constant: bool = False
    meaning: Type | None = None

    def wide(self) -> str:
        """Return its C in 64 bits. A constant is as wide as C needs it."""
        return self.code if self.constant or self.type in ("s64", "u64") else f"(s64){self.code}"

    @property
    def member(self) -> str:
        """The type of a struct's member that holds any such value."""
        for name, low, high in (("int", -(1 << 31), (1 << 31) - 1), ("u32", 0, (1 << 32) - 1), ("s64", *S64)):
            if low <= self.low and self.high <= high:
                return name
        return "u64" if self.low >= 0 else "s64"


@dataclass(frozen=True)
class String:
    """A string, by its address. ``place``: "local" is the program's own memory, where it ends with a NUL.

    ``size``: of the array it is in, with its NUL; 0 where it is as long as it is. ``constant``: its bytes.
    """

    code: str
    place: Literal["local", "kernel", "user", "constant"]
    size: int = 0
    constant: bytes = b""


Value = Integer | String


def literal(value: int) -> Integer:
    """Return a constant."""
    if value == S64[0]:
        return Integer("(-9223372036854775807LL - 1)", "s64", value, value, constant=True)
    if -(1 << 31) <= value < 1 << 31:
        return Integer(str(value), "int", value, value, constant=True)
    if value <= S64[1]:
        return Integer(f"{value}LL", "s64", value, value, constant=True)
    return Integer(f"{value}ULL", "u64", value, value, constant=True)


def of_type(code: str, type_: Type) -> Integer:
    """Return the value of a C expression of an integer's, an enum's or a pointer's type."""
    size = type_.size if type_.size in (1, 2, 4, 8) else 8
    signed = type_.signed and type_.kind not in ("pointer", "bool")
    if type_.kind == "bool":
        return Integer(code, "int", 0, 1, meaning=type_)
    bits = 8 * size
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    kind: CType = "int" if size < 4 or (size == 4 and signed) else "u32" if size == 4 else "s64" if signed else "u64"
    return Integer(code, kind, low, high, meaning=type_)


def quoted(data: bytes) -> str:
    """Return a C string literal of these bytes. Every byte that is no letter, digit or space is an octal escape."""
    return (
        '"' + "".join(chr(b) if (chr(b).isalnum() and b < 128) or b in b" /._-" else f"\\{b:03o}" for b in data) + '"'
    )
