"""Functions in ELF files: by address, with what separate debug files add.

The files are other people's, and this process is privileged: see files.py and symbols.py. What a file says is numbers
to numpy, which checks bounds; whatever is wrong with it is one of UNREADABLE. Each of its parts may be as large as any
of its kind is, and no larger (the limits below), so that no file takes more than a second or two.
"""

from __future__ import annotations

import lzma
import os
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bpfnb.tracer.kernel.files import MAX_READ, UNREADABLE, File, Privilege, Read, TooMuch, opened

__all__ = [
    "DEBUG_FOLDER",
    "Addresses",
    "Elf",
    "Functions",
    "Image",
    "Symbol",
    "UsdtNote",
    "find_symbols",
    "function_names",
    "read_image",
    "reader",
]

Addresses = npt.NDArray[np.uint64]

DEBUG_FOLDER = b"/usr/lib/debug"
_LONGEST_NAME = 4096
_MAX_SYMBOLS = 3_000_000  # a browser with all its symbols has half as many
_MAX_NAMES = 1_000_000
_MAX_NAMES_BYTES = 128 << 20
_MAX_UNPACKED = 64 << 20  # of Fedora's MiniDebugInfo, which has function symbols alone
_MAX_NOTE, _MAX_NOTES = 64 << 10, 64  # a build id is in one of 36 bytes, one of the first few
_MAX_USDT, _MAX_PLACES = 4 << 20, 20_000  # of a program's USDT probes: libjvm has 600
_MAX_USDT_NOTE = 4096
_MAX_VARIABLES, _MAX_VARIABLES_BYTES = 64, 32 << 20


# --- functions by address -----------------------------------------------------------------------------------------


class Functions:
    """Functions by address. Their names are parts of one text, each up to ``stop``, cut out when asked for.

    ``sizes``: None where unknown: then a function reaches to the next, but no farther than any does. Of several names
    for one address the least ``rank`` wins, after those with the fewest leading underscores.
    """

    _LARGEST = 1 << 20
    _NESTING = 4  # functions that begin inside another one

    def __init__(
        self,
        starts: Addresses,
        sizes: Addresses | None,
        begins: npt.NDArray[np.int64],
        text: bytes,
        rank: npt.NDArray[Any],
        stop: bytes = b"\0",
    ) -> None:
        order = np.lexsort((rank + 4 * _underscores(text, begins), starts))
        sorted_starts = starts[order]
        order = order[np.concatenate(([True], sorted_starts[1:] != sorted_starts[:-1]))[: len(order)]]
        self._starts, self._begins = starts[order], begins[order]
        if sizes is None:
            after = np.append(self._starts[1:], np.uint64(2**64 - 1))
            self._ends = np.minimum(after, self._starts + np.uint64(self._LARGEST))
        else:
            self._ends = self._starts + sizes[order]
        self._text, self._stop = text, stop

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def nbytes(self) -> int:
        return sum(int(a.nbytes) for a in (self._starts, self._ends, self._begins)) + len(self._text)

    def names(self, addresses: Addresses) -> list[bytes]:
        """The name of the function each address is in, or b""."""
        if not len(self):
            return [b""] * len(addresses)
        at = np.searchsorted(self._starts, addresses, "right") - 1
        for _ in range(self._NESTING):
            at = np.where((at >= 0) & (addresses >= self._ends[at]), at - 1, at)
        inside = (at >= 0) & (addresses < self._ends[at])
        return [self._name(int(self._begins[i])) if ok else b"" for i, ok in zip(at, inside, strict=True)]

    def _name(self, begin: int) -> bytes:
        end = self._text.find(self._stop, begin, begin + _LONGEST_NAME)
        return self._text[begin : end if end >= 0 else begin + _LONGEST_NAME]


def _underscores(text: bytes, begins: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many underscores names begin with, at most 2: write is better known than __write."""
    if not len(begins):
        return begins
    characters = np.frombuffer(text, np.uint8)
    first = characters[begins] == ord("_")
    second = characters[np.minimum(begins + 1, len(text) - 1)] == ord("_")
    return np.where(first, 1 + second.astype(np.int64), 0)


# --- files --------------------------------------------------------------------------------------------------------


class Image:
    """A file of code: its functions, found by offset in the file."""

    def __init__(self, elf: Elf, functions: Functions) -> None:
        self._segments = elf.code
        self._functions = functions
        self.nbytes = functions.nbytes

    def names(self, offsets: Addresses) -> list[bytes]:
        addresses = np.zeros(len(offsets), np.uint64)
        for start, end, address in self._segments:
            inside = (offsets >= start) & (offsets < end)
            addresses[inside] = offsets[inside] - np.uint64(start) + np.uint64(address)
        return [name.partition(b"@")[0] for name in self._functions.names(addresses)]  # "memcpy@@GLIBC_2.14"


def read_image(
    read: Read, path: bytes, known_as: bytes = b"", privilege: Privilege = nullcontext, *, debug: bytes = DEBUG_FOLDER
) -> Image:
    elf = Elf(read)
    return Image(elf, _merged([table.functions() for table in _all_tables(elf, path, known_as, privilege, debug)]))


def find_symbols(elf: Elf, path: bytes, name: str, privilege: Privilege = nullcontext) -> list[Symbol]:
    """The code a file has by this name, each address once: functions where there are any, else labels."""
    found = [symbol for table in _all_tables(elf, path, b"", privilege) for symbol in table.find(name.encode())]
    code = [symbol for symbol in found if elf.offset(symbol.address) is not None]
    functions = [symbol for symbol in code if symbol.kind in _FUNCTIONS] or code
    return list({symbol.address: symbol for symbol in functions}.values())


def function_names(elf: Elf, path: bytes, privilege: Privilege = nullcontext) -> Iterator[str]:
    """The names of all functions that a file and its debug file have."""
    for table in _all_tables(elf, path, b"", privilege):
        yield from table.functions().names()


def _all_tables(
    elf: Elf, path: bytes, known_as: bytes, privilege: Privilege, debug: bytes = DEBUG_FOLDER
) -> list[_Table]:
    """A file's symbol tables and, where it is stripped, those of its debug file."""
    if elf.all_tables is None:
        elf.all_tables = elf.tables()
        if not elf.has(_SYMTAB):
            elf.all_tables += next(_debug_files(elf, path, known_as, privilege, debug), [])
        if sum(len(table.symbols) for table in elf.all_tables) > _MAX_SYMBOLS:
            raise TooMuch("its symbols are too many")
    return elf.all_tables


def _merged(tables: list[_Table]) -> Functions:
    """The functions of several symbol tables as one, their texts end to end."""
    shift = np.cumsum([0, *(len(table.text) for table in tables[:-1])])
    rows = [t.symbols for t in tables] or [np.zeros(0, _SYMBOL["u8"])]
    starts = np.concatenate([r["value"].astype(np.uint64) for r in rows])
    sizes = np.concatenate([r["size"].astype(np.uint64) for r in rows])
    begins = np.concatenate([r["name"].astype(np.int64) + s for r, s in zip(rows, shift, strict=False)])
    local = np.concatenate([r["info"] >> 4 == 0 for r in rows])
    return Functions(starts, sizes, begins, b"".join(table.text for table in tables), local)


def _debug_files(elf: Elf, path: bytes, known_as: bytes, privilege: Privilege, debug: bytes) -> Iterator[list[_Table]]:
    """The symbol tables of a stripped file's separate debug files, where and as gdb looks for them."""
    build_id, (name, crc) = elf.build_id(), elf.debug_link()
    hexadecimal = build_id.hex().encode()
    places = [debug + b"/.build-id/%b/%b.debug" % (hexadecimal[:2], hexadecimal[2:])] if build_id else []
    if name and b"/" not in name:
        folder, known = os.path.dirname(path), os.path.dirname(known_as or path)  # noqa: PTH120 (bytes)
        places += [b"%b/%b" % (f, name) for f in (folder, folder + b"/.debug", debug + known)]
    for place in places:
        with suppress(*UNREADABLE), opened(place, privilege) as file:
            found = Elf(file.read)
            same = found.build_id() == build_id if build_id else _checksum(file) == crc
            if same and found.has(_SYMTAB):
                yield found.tables()
    with suppress(*UNREADABLE):  # Fedora's MiniDebugInfo
        packed = elf.section(b".gnu_debugdata")
        if packed:
            unpacked = lzma.LZMADecompressor(memlimit=_MAX_UNPACKED).decompress(packed, _MAX_UNPACKED)
            yield Elf(reader(unpacked)).tables()


def _checksum(file: File) -> int:
    value, step = 0, 1 << 20
    for at in range(0, file.stat.st_size, step):
        value = zlib.crc32(file.read(at, step), value)
    return value


def reader(data: bytes) -> Read:
    return lambda offset, size: data[offset : offset + size]


# --- ELF ----------------------------------------------------------------------------------------------------------

_SYMTAB, _NOTE, _NOBITS, _DYNSYM = 2, 7, 8, 11  # section types
_LOAD, _EXECUTABLE = 1, 1  # segment type and flag
_IFUNC = 10  # symbol type STT_GNU_IFUNC
_FUNCTIONS, _CODE = (2, _IFUNC), (0, 2, _IFUNC)  # STT_NOTYPE: a label
_MOST_SEGMENTS = 64

_Records = npt.NDArray[np.void]


def _padded(size: int) -> int:
    return (size + 3) & ~3


def _record(names: str, formats: str) -> np.dtype[np.void]:
    return np.dtype(list(zip(names.split(), formats.split(), strict=True)))


# By the word of the file's class: 64 bits, or 32.
_WORDS = {1: "u4", 2: "u8"}
_HEADER = {
    word: _record(
        "ident type machine version entry phoff shoff flags ehsize phentsize phnum shentsize shnum shstrndx",
        f"V16 u2 u2 u4 {word} {word} {word} u4 u2 u2 u2 u2 u2 u2",
    )
    for word in _WORDS.values()
}
_SECTION = {
    word: _record(
        "name type flags addr offset size link info align entsize",
        f"u4 u4 {word} {word} {word} {word} u4 u4 {word} {word}",
    )
    for word in _WORDS.values()
}
_SEGMENT = {
    "u8": _record("type flags offset vaddr paddr size memory align", "u4 u4 u8 u8 u8 u8 u8 u8"),
    "u4": _record("type offset vaddr paddr size memory flags align", "u4 u4 u4 u4 u4 u4 u4 u4"),
}
_SYMBOL = {
    "u8": _record("name info other section value size", "u4 u1 u1 u2 u8 u8"),
    "u4": _record("name value size info other section", "u4 u4 u4 u1 u1 u2"),
}


class Symbol(NamedTuple):
    """A name in a file. ``address``: a virtual one, as nm prints it."""

    name: str
    address: int
    kind: int

    @property
    def is_ifunc(self) -> bool:
        """Whether the address is of a function that chooses one of several implementations, once a process."""
        return self.kind == _IFUNC


class UsdtNote(NamedTuple):
    """One place of a USDT probe: its virtual address, that of its semaphore (0: none), and its arguments as operands of
    the assembler."""

    provider: str
    name: str
    address: int
    semaphore: int
    arguments: str


class _Table(NamedTuple):
    """Symbols that may be code, and the text that has their names."""

    symbols: _Records
    text: bytes

    def functions(self) -> _Table:
        """The functions whose size is known."""
        kinds = np.isin(self.symbols["info"] & 15, _FUNCTIONS)
        return self._replace(symbols=self.symbols[kinds & (self.symbols["size"] > 0)])

    def find(self, name: bytes) -> list[Symbol]:
        """The symbols of this name, of whatever version. A name may be the end of another one in the text."""
        at = np.fromiter(_starts(re.escape(name) + rb"[\0@]", self.text), np.int64)
        rows = self.symbols[np.isin(self.symbols["name"], at)]
        kinds = (rows["info"] & 15).tolist()
        return [Symbol(name.decode(), a, k) for a, k in zip(rows["value"].tolist(), kinds, strict=True)]

    def names(self) -> Iterator[str]:
        """TooMuch where these are more than any file has."""
        left = _MAX_NAMES_BYTES
        if len(self.symbols) > _MAX_NAMES:
            raise TooMuch(f"{len(self.symbols)} names are too many")
        for begin in self.symbols["name"].tolist():
            end = self.text.find(b"\0", begin, begin + _LONGEST_NAME)
            yield self.text[begin:end].partition(b"@")[0].decode(errors="replace")
            if (left := left - max(end - begin, 0)) < 0:
                raise TooMuch("its names are too long")


def _starts(pattern: bytes, text: bytes) -> Iterator[int]:
    for count, match in enumerate(re.finditer(pattern, text)):
        if count > _MAX_NAMES:
            raise TooMuch("a name is in it too often")
        yield match.start()


class Elf:
    """What an ELF file of this machine's byte order says of its functions. ValueError, OSError when it is none."""

    def __init__(self, read: Read) -> None:
        self._read = read
        ident = read(0, 16)
        if len(ident) < 16 or ident[:4] != b"\x7fELF" or ident[5] != (1 if sys.byteorder == "little" else 2):
            raise ValueError("not an ELF file of this machine")
        self._word = _WORDS.get(ident[4], "u8")
        (header,) = self._records(0, 1, _HEADER[self._word])
        self._header = header
        self.machine = int(header["machine"])
        self._sections = self._records(int(header["shoff"]), int(header["shnum"]), _SECTION[self._word])
        self._names = self._content(int(header["shstrndx"]))
        self.all_tables: list[_Table] | None = None  # with those of its debug file, once they were asked for
        self._variables: dict[str, int | None] = {}
        self.code = self._segments_of(_LOAD, _EXECUTABLE)

    def has(self, kind: int) -> bool:
        return bool((self._sections["type"] == kind).any())

    def section(self, name: bytes, most: int = MAX_READ) -> bytes:
        """The content of a section, b"" when there is none. TooMuch when it is larger."""
        for index, begin in enumerate(self._sections["name"].tolist()):
            if self._names.startswith(name + b"\0", begin):
                if self._sections["size"][index] > most:
                    raise TooMuch(f"a section {name.decode()} of {self._sections['size'][index]} bytes is too large")
                return self._content(index)
        return b""

    def tables(self) -> list[_Table]:
        """The first full symbol table and the first dynamic one, such as there are."""
        kinds = self._sections["type"].tolist()
        return [self._table(self._sections[kinds.index(kind)]) for kind in (_SYMTAB, _DYNSYM) if kind in kinds]

    def ifuncs(self) -> list[str]:
        """The names of functions that choose among implementations, as programs that use the file find them."""
        tables = [self._table(s) for s in self._sections if s["type"] == _DYNSYM]
        return [
            name for t in tables for name in t._replace(symbols=t.symbols[t.symbols["info"] & 15 == _IFUNC]).names()
        ]

    def offset(self, address: int) -> int | None:
        """Where in the file the code for a virtual address is; None where there is none."""
        return next((address - a + start for start, end, a in self.code if a <= address < a + end - start), None)

    def address(self, offset: int) -> int | None:
        """The virtual address of code at an offset in the file: the other way."""
        return next((offset - start + a for start, end, a in self.code if start <= offset < end), None)

    def data_offset(self, address: int) -> int | None:
        """Where in the file something loaded at a virtual address is, code or data."""
        segments = self._segments_of(_LOAD)
        return next((address - a + start for start, end, a in segments if a <= address < a + end - start), None)

    def value(self, name: str) -> int | None:
        """The virtual address of a variable; None where there is none, or beyond the limits."""
        if name not in self._variables and len(self._variables) < _MAX_VARIABLES:
            self._variables[name] = self._find_value(name)
        return self._variables.get(name)

    def _find_value(self, name: str) -> int | None:
        for section in self._sections[np.isin(self._sections["type"], (_SYMTAB, _DYNSYM))]:
            small = section["size"] <= _MAX_VARIABLES_BYTES
            found = self._table(section, (1,)).find(name.encode()) if small else []
            if found:
                return found[0].address
        return None

    def usdt(self) -> list[UsdtNote]:
        """Every place of its USDT probes.

        The note is not changed when the file is laid out anew (prelink): it says where .stapsdt.base was.
        """
        notes, at = self.section(b".note.stapsdt", _MAX_USDT), 0
        base = self._address_of(b".stapsdt.base")
        found = []
        word = np.dtype(self._word).itemsize
        while at + 12 <= len(notes):
            owner, size = (int.from_bytes(notes[i : i + 4], sys.byteorder) for i in (at, at + 4))
            begin = at + 12 + _padded(owner)
            content = notes[begin : begin + size]
            if size > _MAX_USDT_NOTE:
                raise TooMuch(f"a note of {size} bytes is too long for a USDT probe")
            place, then, semaphore = (
                int.from_bytes(content[i * word : (i + 1) * word], sys.byteorder) for i in range(3)
            )
            moved = base - then if base and then else 0
            provider, name, arguments, *_ = [
                *(part.decode(errors="replace") for part in content[3 * word :].split(b"\0")),
                *("", "", ""),
            ]
            found.append(UsdtNote(provider, name, place + moved, semaphore + moved if semaphore else 0, arguments))
            at = begin + _padded(size)
            if len(found) > _MAX_PLACES:
                raise TooMuch(f"more than {_MAX_PLACES} places of USDT probes are too many")
        return found

    def build_id(self) -> bytes:
        for index in np.flatnonzero(self._sections["type"] == _NOTE)[:_MAX_NOTES].tolist():
            if self._sections["size"][index] > _MAX_NOTE:
                continue
            notes = self._content(index)
            # Its length and its type, NT_GNU_BUILD_ID, come before the owner's name.
            at = notes.find((3).to_bytes(4, sys.byteorder) + b"GNU\0")
            if at >= 4:
                length = int.from_bytes(notes[at - 4 : at], sys.byteorder)
                return notes[at + 8 : at + 8 + length] if 2 <= length <= 64 else b""
        return b""

    def debug_link(self) -> tuple[bytes, int]:
        """The name of the file with what was stripped, and its checksum."""
        link = self.section(b".gnu_debuglink", _MAX_NOTE)
        return link.partition(b"\0")[0], int.from_bytes(link[-4:], sys.byteorder)

    def _segments_of(self, kind: int, flag: int = 0) -> list[tuple[int, int, int]]:
        """Where segments are: begin and end in the file, and the address they are meant for."""
        offset, count = int(self._header["phoff"]), int(self._header["phnum"])
        rows = self._records(offset, count, _SEGMENT[self._word])
        rows = rows[(rows["type"] == kind) & (rows["flags"] & flag == flag)][:_MOST_SEGMENTS]
        begins, ends = rows["offset"].astype(np.uint64), rows["offset"].astype(np.uint64) + rows["size"]
        return list(zip(begins.tolist(), ends.tolist(), rows["vaddr"].tolist(), strict=True))

    def _address_of(self, section: bytes) -> int:
        """Where a section is loaded, 0 when there is none."""
        for index, begin in enumerate(self._sections["name"].tolist()):
            if self._names.startswith(section + b"\0", begin):
                return int(self._sections["addr"][index])
        return 0

    def _table(self, section: np.void, kinds: Sequence[int] = _CODE) -> _Table:
        kind = _SYMBOL[self._word]
        count = int(section["size"]) // kind.itemsize
        if count > _MAX_SYMBOLS:
            raise TooMuch(f"{count} symbols are too many")
        rows = self._records(int(section["offset"]), count, kind)
        text = self._content(int(section["link"]))
        named = (rows["name"] > 0) & (rows["name"] < len(text)) & (rows["section"] != 0)
        return _Table(rows[named & np.isin(rows["info"] & 15, kinds)], text)

    def _content(self, index: int) -> bytes:
        if index >= len(self._sections) or self._sections["type"][index] == _NOBITS:
            return b""
        return self._read(int(self._sections["offset"][index]), int(self._sections["size"][index]))

    def _records(self, offset: int, count: int, kind: np.dtype[np.void]) -> _Records:
        data = self._read(offset, count * kind.itemsize)
        return np.frombuffer(data, kind, len(data) // kind.itemsize) if data else np.zeros(0, kind)
