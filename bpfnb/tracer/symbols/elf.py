"""Read functions by address, symbols by name and USDT probes from ELF files and their separate debug files.

The files belong to other users, and this process is privileged: see files.py and symbols.py. numpy decodes a file's
numbers and checks bounds. Whatever is wrong with a file raises one of UNREADABLE. The limits below are as large as real
files need, so that no file takes more than a second or two.
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
_MAX_NAME = 4096
_MAX_SYMBOLS = 3_000_000  # twice as many as a browser with all its symbols has
_MAX_NAMES = 1_000_000
_MAX_NAMES_BYTES = 128 << 20
_MAX_UNPACKED = 64 << 20  # of Fedora's MiniDebugInfo, which has only function symbols
_MAX_NOTE, _MAX_NOTES = 64 << 10, 64  # a build id's note has 36 bytes, and is one of the first few
_MAX_USDT, _MAX_PLACES = 4 << 20, 20_000  # USDT probes' bytes, and places; libjvm has 600
_MAX_USDT_NOTE = 4096
_MAX_VARIABLES, _MAX_VARIABLES_BYTES = 64, 32 << 20


# --- functions by address -----------------------------------------------------------------------------------------


class Functions:
    """Functions by address. Their names are parts of one text, each up to ``stop``, and cut out on request.

    ``sizes``: None where unknown; a function then reaches up to the next one, but at most 1 MiB. Of several names for
    one address, the one with the fewest leading underscores is taken, and then the lowest ``rank``.
    """

    _MAX_SIZE = 1 << 20
    _MAX_NESTING = 4  # functions within functions

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
            self._ends = np.minimum(after, self._starts + np.uint64(self._MAX_SIZE))
        else:
            self._ends = self._starts + sizes[order]
        self._text, self._stop = text, stop

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def nbytes(self) -> int:
        return sum(int(a.nbytes) for a in (self._starts, self._ends, self._begins)) + len(self._text)

    def names(self, addresses: Addresses) -> list[bytes]:
        """Return the name of the function that each address is in, or b""."""
        if not len(self):
            return [b""] * len(addresses)
        at = np.searchsorted(self._starts, addresses, "right") - 1
        for _ in range(self._MAX_NESTING):
            at = np.where((at >= 0) & (addresses >= self._ends[at]), at - 1, at)
        inside = (at >= 0) & (addresses < self._ends[at])
        return [self._name(int(self._begins[i])) if ok else b"" for i, ok in zip(at, inside, strict=True)]

    def _name(self, begin: int) -> bytes:
        end = self._text.find(self._stop, begin, begin + _MAX_NAME)
        return self._text[begin : end if end >= 0 else begin + _MAX_NAME]


def _underscores(text: bytes, begins: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return how many underscores names begin with, at most 2: write is better known than __write."""
    if not len(begins):
        return begins
    characters = np.frombuffer(text, np.uint8)
    first = characters[begins] == ord("_")
    second = characters[np.minimum(begins + 1, len(text) - 1)] == ord("_")
    return np.where(first, 1 + second.astype(np.int64), 0)


# --- files --------------------------------------------------------------------------------------------------------


class Image:
    """The functions of a file of code, by offset in the file."""

    def __init__(self, elf: Elf, functions: Functions) -> None:
        self._segments = elf.code
        self._functions = functions
        self.nbytes = functions.nbytes

    def names(self, offsets: Addresses) -> list[bytes]:
        """Return the name of the function at each offset, or b"". Symbol versions are cut off."""
        addresses = np.zeros(len(offsets), np.uint64)
        for start, end, address in self._segments:
            inside = (offsets >= start) & (offsets < end)
            addresses[inside] = offsets[inside] - np.uint64(start) + np.uint64(address)
        return [name.partition(b"@")[0] for name in self._functions.names(addresses)]  # "memcpy@@GLIBC_2.14"


def read_image(
    read: Read, path: bytes, known_as: bytes = b"", privilege: Privilege = nullcontext, *, debug: bytes = DEBUG_FOLDER
) -> Image:
    """Read the functions of a file and, where it is stripped, of its debug file.

    ``path``: opens the file. ``known_as``: the path that the process has it by.
    """
    elf = Elf(read)
    return Image(elf, _merged([table.functions() for table in _all_tables(elf, path, known_as, privilege, debug)]))


def find_symbols(elf: Elf, path: bytes, name: str, privilege: Privilege = nullcontext) -> list[Symbol]:
    """Return the functions of this name, or else the labels of this name. Each address is returned once."""
    found = [symbol for table in _all_tables(elf, path, b"", privilege) for symbol in table.find(name.encode())]
    code = [symbol for symbol in found if elf.offset(symbol.address) is not None]
    functions = [symbol for symbol in code if symbol.kind in _FUNCTIONS] or code
    return list({symbol.address: symbol for symbol in functions}.values())


def function_names(elf: Elf, path: bytes, privilege: Privilege = nullcontext) -> Iterator[str]:
    """Yield the names of all functions of a file and its debug file."""
    for table in _all_tables(elf, path, b"", privilege):
        yield from table.functions().names()


def _all_tables(
    elf: Elf, path: bytes, known_as: bytes, privilege: Privilege, debug: bytes = DEBUG_FOLDER
) -> list[_Table]:
    """Return a file's symbol tables and, where it is stripped, those of its debug file."""
    if elf.all_tables is None:
        elf.all_tables = elf.tables()
        if not elf.has(_SYMTAB):
            elf.all_tables += next(_debug_files(elf, path, known_as, privilege, debug), [])
        if sum(len(table.symbols) for table in elf.all_tables) > _MAX_SYMBOLS:
            raise TooMuch("its symbols are too many")
    return elf.all_tables


def _merged(tables: list[_Table]) -> Functions:
    """Join the functions of several symbol tables, and their texts."""
    shift = np.cumsum([0, *(len(table.text) for table in tables[:-1])])
    rows = [t.symbols for t in tables] or [np.zeros(0, _SYMBOL["u8"])]
    starts = np.concatenate([r["value"].astype(np.uint64) for r in rows])
    sizes = np.concatenate([r["size"].astype(np.uint64) for r in rows])
    begins = np.concatenate([r["name"].astype(np.int64) + s for r, s in zip(rows, shift, strict=False)])
    local = np.concatenate([r["info"] >> 4 == 0 for r in rows])
    return Functions(starts, sizes, begins, b"".join(table.text for table in tables), local)


def _debug_files(elf: Elf, path: bytes, known_as: bytes, privilege: Privilege, debug: bytes) -> Iterator[list[_Table]]:
    """Yield the symbol tables of a stripped file's separate debug files, which are found as gdb finds them."""
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
    """Return a function that reads from bytes, for Elf."""
    return lambda offset, size: data[offset : offset + size]


# --- ELF ----------------------------------------------------------------------------------------------------------

_SYMTAB, _NOTE, _NOBITS, _DYNSYM = 2, 7, 8, 11  # section types
_LOAD, _EXECUTABLE = 1, 1  # segment type and flag
_IFUNC = 10  # symbol type STT_GNU_IFUNC
_FUNCTIONS, _CODE = (2, _IFUNC), (0, 2, _IFUNC)  # STT_NOTYPE: a label
_MAX_SEGMENTS = 64

_Records = npt.NDArray[np.void]


def _padded(size: int) -> int:
    return (size + 3) & ~3


def _record(names: str, formats: str) -> np.dtype[np.void]:
    return np.dtype(list(zip(names.split(), formats.split(), strict=True)))


# numpy's type of a word, by the file's class: 32 or 64 bits.
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
    """A symbol of a file. ``address``: its virtual address, as nm prints it."""

    name: str
    address: int
    kind: int

    @property
    def is_ifunc(self) -> bool:
        """Whether the function is a resolver, which chooses one of several implementations once a process."""
        return self.kind == _IFUNC


class UsdtNote(NamedTuple):
    """One place of a USDT probe.

    ``address``: its virtual address. ``semaphore``: its semaphore's, or 0. ``arguments``: assembler operands.
    """

    provider: str
    name: str
    address: int
    semaphore: int
    arguments: str


class _Table(NamedTuple):
    """Symbols that may be code, and the string table with their names."""

    symbols: _Records
    text: bytes

    def functions(self) -> _Table:
        """Return the functions whose size is known."""
        kinds = np.isin(self.symbols["info"] & 15, _FUNCTIONS)
        return self._replace(symbols=self.symbols[kinds & (self.symbols["size"] > 0)])

    def find(self, name: bytes) -> list[Symbol]:
        """Return the symbols of this name, of any version. In the text, a name may be the end of another."""
        at = np.fromiter(_starts(re.escape(name) + rb"[\0@]", self.text), np.int64)
        rows = self.symbols[np.isin(self.symbols["name"], at)]
        kinds = (rows["info"] & 15).tolist()
        return [Symbol(name.decode(), a, k) for a, k in zip(rows["value"].tolist(), kinds, strict=True)]

    def names(self) -> Iterator[str]:
        """Yield the symbols' names. Raises TooMuch where there are more than any real file has."""
        left = _MAX_NAMES_BYTES
        if len(self.symbols) > _MAX_NAMES:
            raise TooMuch(f"{len(self.symbols)} names are too many")
        for begin in self.symbols["name"].tolist():
            end = self.text.find(b"\0", begin, begin + _MAX_NAME)
            yield self.text[begin:end].partition(b"@")[0].decode(errors="replace")
            if (left := left - max(end - begin, 0)) < 0:
                raise TooMuch("its names are too long")


def _starts(pattern: bytes, text: bytes) -> Iterator[int]:
    for count, match in enumerate(re.finditer(pattern, text)):
        if count > _MAX_NAMES:
            raise TooMuch("a name is in it too often")
        yield match.start()


class Elf:
    """An ELF file of this machine's byte order. Raises ValueError or OSError for any other file."""

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
        self.all_tables: list[_Table] | None = None  # including its debug file's; None until requested
        self._variables: dict[str, int | None] = {}
        self.code = self._segments_of(_LOAD, _EXECUTABLE)

    def has(self, kind: int) -> bool:
        """Return whether there is a section of this type."""
        return bool((self._sections["type"] == kind).any())

    def section(self, name: bytes, most: int = MAX_READ) -> bytes:
        """Return the content of a section, b"" when there is none. Raises TooMuch when it is larger than ``most``."""
        for index, begin in enumerate(self._sections["name"].tolist()):
            if self._names.startswith(name + b"\0", begin):
                if self._sections["size"][index] > most:
                    raise TooMuch(f"a section {name.decode()} of {self._sections['size'][index]} bytes is too large")
                return self._content(index)
        return b""

    def tables(self) -> list[_Table]:
        """Return the first full symbol table and the first dynamic one, where there are any."""
        kinds = self._sections["type"].tolist()
        return [self._table(self._sections[kinds.index(kind)]) for kind in (_SYMTAB, _DYNSYM) if kind in kinds]

    def ifuncs(self) -> list[str]:
        """Return the names of resolvers (IFUNC) among the dynamic symbols."""
        tables = [self._table(s) for s in self._sections if s["type"] == _DYNSYM]
        return [
            name for t in tables for name in t._replace(symbols=t.symbols[t.symbols["info"] & 15 == _IFUNC]).names()
        ]

    def offset(self, address: int) -> int | None:
        """Return the offset in the file of the code at a virtual address; None where there is none."""
        return next((address - a + start for start, end, a in self.code if a <= address < a + end - start), None)

    def address(self, offset: int) -> int | None:
        """Return the virtual address of the code at an offset in the file; None where there is none."""
        return next((offset - start + a for start, end, a in self.code if start <= offset < end), None)

    def data_offset(self, address: int) -> int | None:
        """Return the offset in the file of code or data at a virtual address; None where there is none."""
        segments = self._segments_of(_LOAD)
        return next((address - a + start for start, end, a in segments if a <= address < a + end - start), None)

    def value(self, name: str) -> int | None:
        """Return the virtual address of a variable; None where there is none, or beyond the limits."""
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
        """Return every place of the file's USDT probes.

        A note is not updated when the file is laid out anew (prelink). It says where .stapsdt.base was then, so the
        difference is added.
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
        """Return the file's build id, or b""."""
        for index in np.flatnonzero(self._sections["type"] == _NOTE)[:_MAX_NOTES].tolist():
            if self._sections["size"][index] > _MAX_NOTE:
                continue
            notes = self._content(index)
            # The length and the type, NT_GNU_BUILD_ID, precede the owner's name.
            at = notes.find((3).to_bytes(4, sys.byteorder) + b"GNU\0")
            if at >= 4:
                length = int.from_bytes(notes[at - 4 : at], sys.byteorder)
                return notes[at + 8 : at + 8 + length] if 2 <= length <= 64 else b""
        return b""

    def debug_link(self) -> tuple[bytes, int]:
        """Return the name and the checksum of the file that the symbols were stripped to."""
        link = self.section(b".gnu_debuglink", _MAX_NOTE)
        return link.partition(b"\0")[0], int.from_bytes(link[-4:], sys.byteorder)

    def _segments_of(self, kind: int, flag: int = 0) -> list[tuple[int, int, int]]:
        """Return segments: start and end in the file, and virtual address."""
        offset, count = int(self._header["phoff"]), int(self._header["phnum"])
        rows = self._records(offset, count, _SEGMENT[self._word])
        rows = rows[(rows["type"] == kind) & (rows["flags"] & flag == flag)][:_MAX_SEGMENTS]
        begins, ends = rows["offset"].astype(np.uint64), rows["offset"].astype(np.uint64) + rows["size"]
        return list(zip(begins.tolist(), ends.tolist(), rows["vaddr"].tolist(), strict=True))

    def _address_of(self, section: bytes) -> int:
        """Return the virtual address of a section, 0 when there is none."""
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
