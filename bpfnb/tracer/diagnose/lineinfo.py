"""Which line of the cell each instruction of a compiled program comes from.

The kernel quotes source lines in the verifier's log, but bcc loads a refused program again without its line
information (bcc_prog_load_xattr in its libbpf.c takes EINVAL for an old kernel's answer), so that most logs have none;
and before v6.9 a quote did not say which line it is. LLVM's table, the section .BTF.ext, has it all. bcc keeps it to
itself, so it is looked for in this process's memory: only where a program was refused, and only in the process that
ends with the cell.
"""

from __future__ import annotations

import bisect
import ctypes
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["Lines", "find", "memory"]

# struct btf_ext_header (kernel: Documentation/bpf/btf.rst): magic, version 1, no flags, a header of 32 bytes, and
# function information right behind it.
_HEADER = re.compile(rb"\x9f\xeb\x01\x00\x20\x00\x00\x00\x00\x00\x00\x00", re.S)
_OFFSETS = struct.Struct("=4I")  # from the third word on: offset and length of function and of line information
_SECTION = struct.Struct("=II")  # its name, its records
_RECORD = struct.Struct("=4I")  # the instruction's offset in bytes, file, text, line << 10 | column
_HEADER_SIZE, _INSTRUCTION_SIZE = 32, 8


class Lines(NamedTuple):
    """A program's table: from instruction ``starts[i]`` on it is ``lines[i]``; 0 where that is no line of the cell."""

    starts: tuple[int, ...] = ()
    lines: tuple[int, ...] = ()

    def line(self, instruction: int) -> int | None:
        """The cell's line an instruction comes from; None when it is none of the cell's, or not known."""
        index = bisect.bisect_right(self.starts, instruction) - 1
        return (self.lines[index] or None) if index >= 0 else None


def find(btf: bytes, function: str, path: str) -> Lines:
    """The table of a function just compiled; empty when it is not to be found.

    ``btf``: the cell's type information, which has the names. ``path``: the file the cell was compiled as.
    """
    strings = _strings(btf)
    cell = Path(path).read_bytes().split(b"\n")
    section = _offset(strings, f".bpf.fn.{function}")
    for held in memory():
        for header in _HEADER.finditer(held):
            records = _records(held, header.start(), section)
            if records:
                starts, lines = zip(*(_placed(record, strings, path.encode(), cell) for record in records), strict=True)
                return Lines(starts, lines)
    return Lines()


def _strings(btf: bytes) -> bytes:
    header, offset, length = (struct.unpack_from("=I", btf, at)[0] for at in (4, 16, 20))
    return btf[header + offset : header + offset + length]


def _offset(strings: bytes, name: str) -> int:
    return strings.find(b"\0" + name.encode() + b"\0") + 1


def memory() -> Iterator[memoryview]:
    """This process's anonymous, writable memory: where malloc() puts things."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, access, _, _, inode, *name = line.split(None, 5)
        if access.startswith("rw") and inode == "0" and (not name or name[0] == "[heap]"):
            start, end = (int(address, 16) for address in span.split("-"))
            yield memoryview((ctypes.c_char * (end - start)).from_address(start)).cast("B")


def _records(memory: memoryview, at: int, section: int) -> list[tuple[int, ...]]:
    """The line records of a section in what may be a .BTF.ext at ``at``; none where it is not."""
    try:
        _, functions, offset, length = _OFFSETS.unpack_from(memory, at + 8)
        at += _HEADER_SIZE + offset
        end, size = at + length, struct.unpack_from("=I", memory, at)[0]
        if offset != functions or size < _RECORD.size:
            return []
        at += 4
        while at < end:
            name, count = _SECTION.unpack_from(memory, at)
            at += _SECTION.size
            if name == section:
                return [_RECORD.unpack_from(memory, at + i * size) for i in range(count)]
            at += count * size
    except struct.error:  # past the end: it was something else
        pass
    return []


def _placed(record: tuple[int, ...], strings: bytes, path: bytes, cell: Sequence[bytes]) -> tuple[int, int]:
    """A record's instruction and line, which is 0 where the file is another."""
    offset, file, text, place = record
    if _string(strings, file) != path:
        return offset // _INSTRUCTION_SIZE, 0
    return offset // _INSTRUCTION_SIZE, _line(place >> 10, _string(strings, text), cell)


def _line(line: int, quoted: bytes, cell: Sequence[bytes]) -> int:
    """The line that LLVM quotes. Ten bits are for the column, and LLVM adds a greater one's others to the line's."""
    meant = (n for n in range(line, 0, -1) if n & line == n and n <= len(cell) and cell[n - 1] == quoted)
    return next(meant, line)


def _string(strings: bytes, at: int) -> bytes:
    return strings[at : strings.index(b"\0", at)]
