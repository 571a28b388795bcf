"""The memory of constants: string literals, and tables that are const.

LLVM puts what a function only reads into sections .rodata* of its object file, and has the function load the address
with an ``lddw`` whose number a linker fills in. bcc links nothing: the number stays an offset, and a helper that is
given it reads from an address near 0, which fails without a word.

So what a linker would do is done here, the way libbpf does it: the sections become the value of a map that nobody can
change, and the instructions load addresses in that value. The object file and its relocations are in this process's
memory: bcc keeps them to itself. They are looked for only where an instruction has such a number.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bpfnb.tracer.diagnose.lineinfo import memory
from bpfnb.tracer.kernel.instructions import LDDW, NUMBER, SIZE, decode, load_map_value, operations

__all__ = ["Object", "Reference", "find", "placed", "unfilled"]

# ELF of 64 bits: of the header where the sections are, how many, and which has their names; a section, a symbol, a
# relocation. Its types are those of llvm/BinaryFormat/ELFRelocs/BPF.def.
_MAGIC = re.compile(rb"\x7fELF\x02\x01\x01")
_HEADER = struct.Struct("<16s2HI3QI6H")
_SECTION, _SYMBOL, _RELOCATION = struct.Struct("<IIQQQQIIQQ"), struct.Struct("<IBBHQQ"), struct.Struct("<QQ")
_NUMBER = struct.Struct("<i")
_BPF, _REL, _NO_DATA, _EXECUTABLE, _DISTANCE = 247, 9, 8, 4, 3
_ALIGNED, _MAX_BYTES = 16, 16 << 20


class Reference(NamedTuple):
    """An address a function wants: by which instruction, and where in the constants; None where it is none of theirs.

    ``name``: of the variable, where the object file has it. ``is_function``: it is the address of code.
    """

    instruction: int
    offset: int | None
    name: str = ""
    is_function: bool = False


def unfilled(code: bytes) -> list[int]:
    """Return the instructions that want an address: for a number of 31 bits LLVM has a shorter one than ``lddw``."""
    return [
        at
        for at, i in operations(code)
        if i.op == LDDW and i.src == NUMBER and i.immediate >= 0 and not any(code[SIZE * (at + 1) : SIZE * (at + 2)])
    ]


def placed(code: bytes, references: Sequence[Reference], map_fd: int) -> bytes:
    """Return the instructions, with the addresses of constants in a map's value."""
    filled = bytearray(code)
    for instruction, offset, _, _ in references:
        if offset is not None:
            at = SIZE * instruction
            register = decode(code[at : at + SIZE])[0].dst
            filled[at : at + 2 * SIZE] = load_map_value(register, map_fd, offset)
    return bytes(filled)


def find(section: str, code: bytes) -> Object | None:
    """Return the object file with a function just compiled, its section and instructions; None where there is none."""
    for held in memory():
        for magic in _MAGIC.finditer(held):
            try:
                found = Object(held[magic.start() :])
                if found.has(section, code):
                    return found
            except (struct.error, ValueError):  # past the end: it was something else
                pass
    return None


class _Section(NamedTuple):
    name: str
    type: int
    flags: int
    data: bytes
    link: int
    info: int


class Object:
    """An object file of LLVM's for BPF. ValueError or struct.error where it is none.

    ``constants``: all sections of constants, one behind the other.
    """

    def __init__(self, held: memoryview) -> None:
        *_, at, _, _, _, _, size, count, names = _HEADER.unpack_from(held)
        if _HEADER.unpack_from(held)[2] != _BPF or size != _SECTION.size or names >= count:
            raise ValueError("not an object file for BPF")
        headers = [_SECTION.unpack_from(held, at + size * i) for i in range(count)]
        text = _data(held, headers[names])
        self._sections = [_Section(_string(text, h[0]), h[1], h[2], _data(held, h), h[6], h[7]) for h in headers]
        self._starts: dict[int, int] = {}
        self.constants = self._linked(self._laid_out())

    def has(self, section: str, code: bytes) -> bool:
        """Return whether a section has these instructions, but for numbers that bcc fills in."""
        return any(s.name == section and _without_numbers(s.data) == _without_numbers(code) for s in self._sections)

    def references(self, section: str) -> list[Reference]:
        """Return the addresses that the function in a section wants."""
        number = next(i for i, s in enumerate(self._sections) if s.name == section)
        code = self._sections[number].data
        wanted = set(unfilled(code))
        found = []
        for at, symbol, _ in self._relocations(number):
            if at // SIZE in wanted:
                found.append(self._reference(at // SIZE, symbol, _NUMBER.unpack_from(code, at + 4)[0]))
        return found

    def _laid_out(self) -> bytearray:
        constants = bytearray()
        for number, section in enumerate(self._sections):
            if section.name.startswith(".rodata"):
                constants += bytes(-len(constants) % _ALIGNED)
                self._starts[number] = len(constants)
                constants += section.data
        return constants

    def _linked(self, constants: bytearray) -> bytes:
        """Return the constants, with the distances filled in that LLVM makes of a table of pointers to them.

        A section that holds an address has no place: nobody can say what it will be.
        """
        for number, start in list(self._starts.items()):
            for at, symbol, kind in self._relocations(number):
                if kind != _DISTANCE or symbol.section not in self._starts:
                    self._starts.pop(number, None)
                    break
                addend = _NUMBER.unpack_from(constants, start + at)[0]
                distance = self._starts[symbol.section] + symbol.value + addend - (start + at)
                _NUMBER.pack_into(constants, start + at, distance)
        return bytes(constants)

    def _relocations(self, number: int) -> Iterator[tuple[int, _Symbol, int]]:
        """Yield where in a section what address is wanted, and as what."""
        for section in self._sections:
            if section.type == _REL and section.info == number:
                for at, info in _RELOCATION.iter_unpack(section.data):
                    yield at, self._symbol(section.link, info >> 32), info & 0xFFFFFFFF

    def _symbol(self, table: int, number: int) -> _Symbol:
        symbols = self._sections[table]
        name, info, _, section, value, _ = _SYMBOL.unpack_from(symbols.data, _SYMBOL.size * number)
        return _Symbol(_string(self._sections[symbols.link].data, name), info & 15, section, value)

    def _reference(self, instruction: int, symbol: _Symbol, addend: int) -> Reference:
        if symbol.section in self._starts:
            return Reference(instruction, self._starts[symbol.section] + symbol.value + addend, symbol.name)
        sections = self._sections[symbol.section : symbol.section + 1]
        return Reference(instruction, None, symbol.name, any(s.flags & _EXECUTABLE for s in sections))


class _Symbol(NamedTuple):
    name: str
    type: int
    section: int
    value: int


def _data(held: memoryview, header: Sequence[int]) -> bytes:
    """Return a section's contents; "" for one that is all zero, which is not in the file."""
    kind, at, size = header[1], header[4], header[5]
    if kind == _NO_DATA:
        return b""
    data = bytes(held[at : at + min(size, _MAX_BYTES)])
    if len(data) < size:
        raise ValueError("larger than what a cell is compiled into, or past the end")
    return data


def _string(text: bytes, at: int) -> str:
    return text[at : text.index(b"\0", at)].decode(errors="replace")


def _without_numbers(code: bytes) -> bytes:
    """Return the instructions without what an ``lddw`` loads, and from where."""
    bare = bytearray(code)
    for at in range(0, len(code) - SIZE, SIZE):
        if code[at] == LDDW:
            bare[at + 1 : at + 2 * SIZE] = bytes(2 * SIZE - 1)
    return bytes(bare)
