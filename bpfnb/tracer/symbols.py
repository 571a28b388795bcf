"""The names of code addresses: the kernel's from /proc/kallsyms, a process's from the files it has mapped.

The files are other people's, and this process is privileged. bcc could do this (bcc_symcache_new), but not here: a long
build id in a file overruns a buffer on its stack (find_buildid in bcc_elf.c, to this day), and all it can do without
CAP_SYS_PTRACE is name the file. So a file is opened only when it is the one that is mapped, it is read and never mapped
(one that shrinks under a mapping would end us with SIGBUS), and what it says is numbers to numpy, which checks bounds.

What it takes: /proc/kallsyms shows its addresses to those who had CAP_SYSLOG when they opened it. /proc/PID/maps of
others can be read with CAP_PERFMON since Linux 6.15, before that with CAP_SYS_PTRACE; /proc/PID/root, for processes in
mount namespaces of their own, with CAP_SYS_PTRACE alone.
"""

from __future__ import annotations

import ctypes
import lzma
import os
import re
import stat
import subprocess
import sys
import time
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

__all__ = ["UNKNOWN", "Symbols"]

UNKNOWN = "[unknown]"

Addresses = npt.NDArray[np.uint64]
Looking = Callable[[], AbstractContextManager[None]]

_DEBUG = b"/usr/lib/debug"
_MOST_PROCESSES = 256
_MOST_BYTES = 512 << 20  # of symbols, over all processes
_MOST_READ = 256 << 20  # of a section, of a debug file
_MOST_JIT = 32 << 20
_LONGEST_NAME = 4096
_FRESH = 2.0  # seconds for which modules' and BPF programs' symbols are believed

# What reading a hostile file can raise.
_UNREADABLE = (OSError, ValueError, OverflowError, MemoryError, EOFError, lzma.LZMAError)


class Symbols:
    """Names code addresses; from one thread.

    ``kallsyms``: /proc/kallsyms, opened before privileges were dropped (see above); closed with this object.
    ``looking``: entered while something of another process is opened; there to raise what that takes.
    """

    def __init__(self, kallsyms: int | None = None, looking: Looking = nullcontext) -> None:
        self._kernel = _Kernel(_open_kallsyms() if kallsyms is None else kallsyms)
        self._looking = looking
        self._processes: dict[int, _Process] = {}  # the one longest not asked for first
        self._images: WeakValueDictionary[tuple[int, ...], _Image] = WeakValueDictionary()  # shared by processes
        self._demangler = _Demangler()

    def find(self, pid: int, addresses: Sequence[int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names, and modules or files, of addresses in a process, or in the kernel for ``pid`` 0."""
        pairs = self.user(pid, addresses) if pid else self.kernel(addresses)
        return tuple(name for name, _ in pairs), tuple(module for _, module in pairs)

    def kernel(self, addresses: Sequence[int]) -> list[tuple[str, str]]:
        """(function, module) of each address. The module is "[nf_tables]", "[bpf]" for BPF programs, "" for the kernel
        itself; the function is "[unknown]" where there is none, or where the kernel hides them (``why``)."""
        lines = self._kernel.names(np.array(addresses, np.uint64))
        pairs = [line.partition("\t") for line in map(_text, lines)]
        return [(name or UNKNOWN, module) for name, _, module in pairs]

    def user(self, pid: int, addresses: Sequence[int]) -> list[tuple[str, str]]:
        """(function, file) of each address in a process or thread, C++ and Rust demangled.

        The file is as in /proc/PID/maps, "[vdso]", or the perf map of JIT-compiled code. The function is "[unknown]"
        where there is none, and everywhere when the process was gone before it was first asked for, or may not be
        looked at (``why``).
        """
        process = self._process(pid)
        if process is None or not addresses:
            return [(UNKNOWN, "")] * len(addresses)
        names, files = self._in_files(process, np.array(addresses, np.uint64))
        self._in_jit(process, addresses, names, files)
        readable = self._demangler.names(names)
        return [(name or UNKNOWN, _text(file)) for name, file in zip(readable, files, strict=True)]

    def why(self, pid: int) -> str:
        """Why a process, or the kernel for 0, has no names; "" when it has."""
        if not pid:
            return self._kernel.why()
        if pid in self._processes and self._processes[pid].mappings:
            return ""
        try:
            with self._looking():
                Path(f"/proc/{pid}/maps").read_bytes()
        except PermissionError:
            return f"/proc/{pid}/maps may not be read: that takes Linux 6.15, or CAP_SYS_PTRACE"
        except OSError:
            return f"process {pid} is gone"
        return ""

    def close(self) -> None:
        self._kernel.close()

    def _process(self, pid: int) -> _Process | None:
        """A process as it is now, else as it last was; None for one that was never seen."""
        started = _start_time(pid)
        process = self._processes.pop(pid, None)
        if started and (process is None or process.started != started):
            process = _Process(pid, started)
        if process is None:
            return None
        if started:
            process.look(self._looking)
        self._processes[pid] = process
        self._trim()
        return process

    def _trim(self) -> None:
        """Forget processes longest not asked for, until the rest is few and small enough."""
        while len(self._processes) > 1:
            size = sum(image.nbytes for image in self._images.values())
            if len(self._processes) <= _MOST_PROCESSES and size <= _MOST_BYTES:
                return
            del self._processes[next(iter(self._processes))]

    def _in_files(self, process: _Process, addresses: Addresses) -> tuple[list[bytes], list[bytes]]:
        names, files = [b""] * len(addresses), [b""] * len(addresses)
        where = process.where(addresses)
        for number in np.unique(where[where >= 0]).tolist():
            mapping = process.mappings[number]
            rows = np.flatnonzero(where == number)
            image = self._image(process, mapping)
            found = image.names(addresses[rows] - mapping.start + mapping.offset) if image else [b""] * len(rows)
            for row, name in zip(rows.tolist(), found, strict=True):
                names[row], files[row] = name, mapping.path
        return names, files

    def _in_jit(self, process: _Process, addresses: Sequence[int], names: list[bytes], files: list[bytes]) -> None:
        """Fill in what is in no file, from /tmp/perf-PID.map."""
        rows = [row for row, name in enumerate(names) if not name]
        jit = process.jit_map(self._looking) if rows else None
        if jit is None:
            return
        for row, name in zip(rows, jit.functions.names(np.array([addresses[r] for r in rows], np.uint64)), strict=True):
            if name:
                names[row], files[row] = name, jit.path

    def _image(self, process: _Process, mapping: _Mapping) -> _Image | None:
        """The functions of a mapped file, as it was when first asked for."""
        key = (mapping.inode, mapping.path)
        if key not in process.images:
            process.images[key] = self._load(process, mapping)
        return process.images[key]

    def _load(self, process: _Process, mapping: _Mapping) -> _Image | None:
        if mapping.path == b"[vdso]":
            return _vdso()
        if not mapping.path.startswith(b"/"):
            return None
        proc = b"/proc/%d" % process.pid
        for path in (proc + b"/root" + mapping.path, mapping.path, proc + b"/exe"):
            with suppress(*_UNREADABLE), _opened(path, self._looking, mapping.inode) as file:
                key = (file.stat.st_dev, file.stat.st_ino, file.stat.st_size, file.stat.st_mtime_ns)
                image = self._images.get(key)
                if image is None:
                    image = self._images[key] = _read_image(file.read, path, mapping.path, self._looking)
                return image
        return None


# --- functions by address -----------------------------------------------------------------------------------------


class _Functions:
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


# --- the kernel ---------------------------------------------------------------------------------------------------


class _Kernel:
    """/proc/kallsyms, read when first asked for, and again for what comes and goes: modules and BPF programs."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._functions: _Functions | None = None
        self._core = (0, 0)
        self._read_at = 0.0

    def names(self, addresses: Addresses) -> list[bytes]:
        """ "function" or "function\\t[module]", or b""."""
        begin, end = self._core
        elsewhere = bool(((addresses < begin) | (addresses >= end)).any())
        old = elsewhere and time.monotonic() - self._read_at > _FRESH
        functions = self._read() if self._functions is None or old else self._functions
        return functions.names(addresses)

    def why(self) -> str:
        functions = self._read() if self._functions is None else self._functions
        if len(functions):
            return ""
        if self._fd < 0:
            return "this kernel has no /proc/kallsyms"
        settings = [f"{name} is {_sysctl(name)}" for name in ("kernel.kptr_restrict", "kernel.perf_event_paranoid")]
        return f"the kernel hides the addresses of its symbols: {', '.join(settings)}"

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _read(self) -> _Functions:
        data = b""
        if self._fd >= 0:
            os.lseek(self._fd, 0, os.SEEK_SET)
            with open(self._fd, "rb", closefd=False) as file:
                data = file.read()
        self._functions = _kallsyms(data)
        self._core = _address_of(b"_stext", data), _address_of(b"_etext", data)
        self._read_at = time.monotonic()
        return self._functions


def _open_kallsyms() -> int:
    try:
        return os.open("/proc/kallsyms", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1  # a kernel without


def _kallsyms(data: bytes) -> _Functions:
    """The functions in lines of "address type name[\\t[module]]", those with an address."""
    characters = np.frombuffer(data, np.uint8)
    begins = np.flatnonzero(np.concatenate(([10], characters[:-1]))[: len(characters)] == 10)
    width = max(data.find(b" "), 0)
    kinds = characters[begins + width + 1] if data else characters
    functions = np.isin(kinds, np.frombuffer(b"TtWw", np.uint8))
    begins, kinds = begins[functions], kinds[functions]
    digits = np.zeros(256, np.uint64)
    digits[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16, dtype=np.uint64)
    addresses = np.zeros(len(begins), np.uint64)
    for column in range(width):
        addresses = addresses << np.uint64(4) | digits[characters[begins + column]]
    shown = addresses != 0
    rank = 2 * np.isin(kinds, np.frombuffer(b"Ww", np.uint8)) + (kinds == ord("t"))
    return _Functions(addresses[shown], None, begins[shown] + width + 3, data, rank[shown], b"\n")


def _address_of(name: bytes, kallsyms: bytes) -> int:
    found = re.search(rb"^([0-9a-f]+) \w %b$" % name, kallsyms, re.M)
    return int(found[1], 16) if found else 0


def _sysctl(name: str) -> str:
    try:
        return Path("/proc/sys", *name.split(".")).read_text().strip()
    except OSError:
        return "unknown"


# --- processes ----------------------------------------------------------------------------------------------------


class _Mapping(NamedTuple):
    start: int
    end: int
    offset: int
    inode: int
    path: bytes


class _JitMap(NamedTuple):
    version: tuple[int, ...]
    path: bytes
    functions: _Functions


class _Process:
    """A process, its executable mappings as they last were, and what was read for them."""

    def __init__(self, pid: int, started: int) -> None:
        self.pid = pid
        self.started = started
        self.mappings: tuple[_Mapping, ...] = ()
        self.images: dict[tuple[int, bytes], _Image | None] = {}
        self._starts = self._ends = np.zeros(0, np.uint64)
        self._jit: _JitMap | None = None

    def look(self, looking: Looking) -> None:
        """Take in the mappings as they are now: libraries come and go. One that is ending has none any more."""
        with suppress(OSError), looking():
            lines = Path(f"/proc/{self.pid}/maps").read_bytes().split(b"\n")
            self.mappings = tuple(_mappings(lines)) or self.mappings
        self._starts = np.array([m.start for m in self.mappings], np.uint64)
        self._ends = np.array([m.end for m in self.mappings], np.uint64)

    def where(self, addresses: Addresses) -> npt.NDArray[np.intp]:
        """The index of the mapping each address is in, or -1."""
        if not self.mappings:
            return np.full(len(addresses), -1)
        at = np.searchsorted(self._starts, addresses, "right") - 1
        return np.where((at >= 0) & (addresses < self._ends[at]), at, -1)

    def jit_map(self, looking: Looking) -> _JitMap | None:
        """What a JIT compiler says of the code it made; anybody may write to /tmp, so only the process's own word."""
        uid, tgid, inner = _identity(self.pid)
        paths = (b"/proc/%d/root/tmp/perf-%d.map" % (self.pid, inner), b"/tmp/perf-%d.map" % tgid)
        for path in paths if tgid else ():
            with suppress(*_UNREADABLE), _opened(path, looking, follow=False) as file:
                version = (file.stat.st_ino, file.stat.st_size, file.stat.st_mtime_ns)
                if file.stat.st_uid not in (0, uid):
                    continue
                if self._jit is None or self._jit.version != version:
                    functions = _perf_map(file.read(0, min(file.stat.st_size, _MOST_JIT)))
                    self._jit = _JitMap(version, b"/tmp/perf-%d.map" % inner, functions)
                break
        return self._jit


def _mappings(lines: Iterable[bytes]) -> Iterator[_Mapping]:
    """The executable ones of /proc/PID/maps: "start-end perms offset device inode    path"."""
    for line in lines:
        fields = line.split(None, 5)
        if len(fields) >= 5 and b"x" in fields[1]:
            start, end = (int(n, 16) for n in fields[0].split(b"-"))
            path = fields[5].replace(rb"\012", b"\n") if len(fields) > 5 else b""
            yield _Mapping(start, end, int(fields[2], 16), int(fields[4]), path)


def _start_time(pid: int) -> int:
    """When a process began, in clock ticks since boot: what tells it from another of its number. 0 when it is gone."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2]
    except OSError:
        return 0
    return int(after_name.split()[19]) + 1  # what began with the kernel began at 0


def _identity(pid: int) -> tuple[int, int, int]:
    """A process's effective user, its number, and its number in its own PID namespace; zeros when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return 0, 0, 0
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in status.splitlines())}
    return int(fields["Uid"][1]), int(fields["Tgid"][0]), int(fields.get("NStgid", fields["Tgid"])[-1])


def _perf_map(data: bytes) -> _Functions:
    """A perf map's lines, "start size name", numbers in hex. Later ones replace earlier ones of the same start."""
    starts, sizes, begins = array("Q"), array("Q"), array("q")
    for found in re.finditer(rb"^(?:0x)?([0-9a-fA-F]{1,16}) (?:0x)?([0-9a-fA-F]{1,16}) (?=[^\n])", data, re.M):
        starts.append(int(found[1], 16))
        sizes.append(int(found[2], 16))
        begins.append(found.end())
    latest_first = np.arange(len(starts), 0, -1) * 16
    return _Functions(
        np.array(starts, np.uint64), np.array(sizes, np.uint64), np.array(begins, np.int64), data, latest_first, b"\n"
    )


# --- files --------------------------------------------------------------------------------------------------------


Read = Callable[[int, int], bytes]


class _File(NamedTuple):
    read: Read
    stat: os.stat_result


@contextmanager
def _opened(path: bytes, looking: Looking, inode: int = 0, *, follow: bool = True) -> Iterator[_File]:
    """A file, when it is an ordinary one, and that inode. (Device numbers differ between maps and stat on btrfs.)

    Looked at before it is opened: opening a FIFO would wait, opening a device may do anything.
    """
    with looking():
        place = os.open(path, os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
        try:
            found = os.fstat(place)
            if not stat.S_ISREG(found.st_mode) or (inode and found.st_ino != inode):
                raise FileNotFoundError(path)
            fd = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(place)
    try:
        yield _File(lambda offset, size: _pread(fd, offset, size), found)
    finally:
        os.close(fd)


def _pread(fd: int, offset: int, size: int) -> bytes:
    if size > _MOST_READ:
        raise ValueError(f"{size} bytes are too many")
    return os.pread(fd, size, offset)


class _Image:
    """A file of code: its functions, found by offset in the file."""

    def __init__(self, elf: _Elf, functions: _Functions) -> None:
        self._segments = elf.code
        self._functions = functions
        self.nbytes = functions.nbytes

    def names(self, offsets: Addresses) -> list[bytes]:
        addresses = np.zeros(len(offsets), np.uint64)
        for start, end, address in self._segments:
            inside = (offsets >= start) & (offsets < end)
            addresses[inside] = offsets[inside] - np.uint64(start) + np.uint64(address)
        return [name.partition(b"@")[0] for name in self._functions.names(addresses)]  # "memcpy@@GLIBC_2.14"


def _read_image(read: Read, path: bytes, known_as: bytes = b"", looking: Looking = nullcontext) -> _Image:
    elf = _Elf(read)
    tables = elf.tables()
    if not elf.has(_SYMTAB):  # stripped
        for debug in _debug_files(elf, path, known_as, looking):
            tables += debug
            break
    return _Image(elf, _merged(tables))


def _merged(tables: list[_Table]) -> _Functions:
    """The functions of several symbol tables as one, their texts end to end."""
    shift = np.cumsum([0, *(len(table.text) for table in tables[:-1])])
    rows = [t.symbols for t in tables] or [np.zeros(0, _SYMBOL["u8"])]
    starts = np.concatenate([r["value"].astype(np.uint64) for r in rows])
    sizes = np.concatenate([r["size"].astype(np.uint64) for r in rows])
    begins = np.concatenate([r["name"].astype(np.int64) + s for r, s in zip(rows, shift, strict=False)])
    local = np.concatenate([r["info"] >> 4 == 0 for r in rows])
    return _Functions(starts, sizes, begins, b"".join(table.text for table in tables), local)


def _debug_files(elf: _Elf, path: bytes, known_as: bytes, looking: Looking) -> Iterator[list[_Table]]:
    """The symbol tables of a stripped file's separate debug files, where and as gdb looks for them."""
    build_id, (name, crc) = elf.build_id(), elf.debug_link()
    hexadecimal = build_id.hex().encode()
    places = [_DEBUG + b"/.build-id/%b/%b.debug" % (hexadecimal[:2], hexadecimal[2:])] if build_id else []
    if name and b"/" not in name:
        folder, known = os.path.dirname(path), os.path.dirname(known_as or path)  # noqa: PTH120 (bytes)
        places += [b"%b/%b" % (f, name) for f in (folder, folder + b"/.debug", _DEBUG + known)]
    for place in places:
        with suppress(*_UNREADABLE), _opened(place, looking) as file:
            debug = _Elf(file.read)
            same = debug.build_id() == build_id if build_id else zlib.crc32(file.read(0, file.stat.st_size)) == crc
            if same and debug.has(_SYMTAB):
                yield debug.tables()
    with suppress(*_UNREADABLE):  # Fedora's MiniDebugInfo
        packed = elf.section(b".gnu_debugdata")
        if packed:
            unpacked = lzma.LZMADecompressor(memlimit=_MOST_READ).decompress(packed, _MOST_READ)
            yield _Elf(_reader(unpacked)).tables()


def _reader(data: bytes) -> Read:
    return lambda offset, size: data[offset : offset + size]


@cache
def _vdso() -> _Image | None:
    """The code the kernel lends every process; ours is that of all with our word size."""
    maps = Path("/proc/self/maps").read_bytes().split(b"\n")
    mine = [mapping for mapping in _mappings(maps) if mapping.path == b"[vdso]"]
    if not mine:
        return None
    return _read_image(_reader(ctypes.string_at(mine[0].start, mine[0].end - mine[0].start)), b"")


# --- ELF ----------------------------------------------------------------------------------------------------------

_SYMTAB, _NOTE, _NOBITS, _DYNSYM = 2, 7, 8, 11  # section types
_LOAD, _EXECUTABLE = 1, 1  # segment type and flag
_FUNCTIONS = (2, 10)  # symbol types: STT_FUNC, STT_GNU_IFUNC
_MOST_SEGMENTS = 64

_Records = npt.NDArray[np.void]


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


class _Table(NamedTuple):
    """A symbol table's functions, and the text that has their names."""

    symbols: _Records
    text: bytes


class _Elf:
    """What an ELF file of this machine's byte order says of its functions. ValueError, OSError when it is none."""

    def __init__(self, read: Read) -> None:
        self._read = read
        ident = read(0, 16)
        if len(ident) < 16 or ident[:4] != b"\x7fELF" or ident[5] != (1 if sys.byteorder == "little" else 2):
            raise ValueError("not an ELF file of this machine")
        self._word = _WORDS.get(ident[4], "u8")
        (header,) = self._records(0, 1, _HEADER[self._word])
        self._sections = self._records(int(header["shoff"]), int(header["shnum"]), _SECTION[self._word])
        self._names = self._content(int(header["shstrndx"]))
        self.code = self._code(int(header["phoff"]), int(header["phnum"]))

    def has(self, kind: int) -> bool:
        return bool((self._sections["type"] == kind).any())

    def section(self, name: bytes) -> bytes:
        """The content of a section, b"" when there is none."""
        for index, begin in enumerate(self._sections["name"].tolist()):
            if self._names.startswith(name + b"\0", begin):
                return self._content(index)
        return b""

    def tables(self) -> list[_Table]:
        """The first full symbol table and the first dynamic one, such as there are."""
        kinds = self._sections["type"].tolist()
        return [self._table(self._sections[kinds.index(kind)]) for kind in (_SYMTAB, _DYNSYM) if kind in kinds]

    def build_id(self) -> bytes:
        for index in np.flatnonzero(self._sections["type"] == _NOTE).tolist():
            notes = self._content(index)
            # Its length and its type, NT_GNU_BUILD_ID, come before the owner's name.
            at = notes.find((3).to_bytes(4, sys.byteorder) + b"GNU\0")
            if at >= 4:
                length = int.from_bytes(notes[at - 4 : at], sys.byteorder)
                return notes[at + 8 : at + 8 + length] if 2 <= length <= 64 else b""
        return b""

    def debug_link(self) -> tuple[bytes, int]:
        """The name of the file with what was stripped, and its checksum."""
        link = self.section(b".gnu_debuglink")
        return link.partition(b"\0")[0], int.from_bytes(link[-4:], sys.byteorder)

    def _code(self, offset: int, count: int) -> list[tuple[int, int, int]]:
        """Where code is: begin and end in the file, and the address it is meant for."""
        rows = self._records(offset, count, _SEGMENT[self._word])
        rows = rows[(rows["type"] == _LOAD) & (rows["flags"] & _EXECUTABLE != 0)][:_MOST_SEGMENTS]
        begins, ends = rows["offset"].astype(np.uint64), rows["offset"].astype(np.uint64) + rows["size"]
        return list(zip(begins.tolist(), ends.tolist(), rows["vaddr"].tolist(), strict=True))

    def _table(self, section: np.void) -> _Table:
        kind = _SYMBOL[self._word]
        rows = self._records(int(section["offset"]), int(section["size"]) // kind.itemsize, kind)
        text = self._content(int(section["link"]))
        named = (rows["name"] > 0) & (rows["name"] < len(text)) & (rows["section"] != 0)
        return _Table(rows[named & np.isin(rows["info"] & 15, _FUNCTIONS) & (rows["size"] > 0)], text)

    def _content(self, index: int) -> bytes:
        if index >= len(self._sections) or self._sections["type"][index] == _NOBITS:
            return b""
        return self._read(int(self._sections["offset"][index]), int(self._sections["size"][index]))

    def _records(self, offset: int, count: int, kind: np.dtype[np.void]) -> _Records:
        data = self._read(offset, count * kind.itemsize)
        return np.frombuffer(data, kind, len(data) // kind.itemsize) if data else np.zeros(0, kind)


# --- names --------------------------------------------------------------------------------------------------------

# A mangled name of a few hundred characters can stand for more text than there is memory. So they are demangled by a
# process of no rights that may be killed; what it did not answer stays as it is.
_DEMANGLE = """
import ctypes, resource, sys
for limit, most in (resource.RLIMIT_AS, 1 << 30), (resource.RLIMIT_CPU, 1), (resource.RLIMIT_CORE, 0):
    resource.setrlimit(limit, (most, most))
ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
demangle = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
demangle.restype = ctypes.c_void_p
for name in sys.stdin.buffer:
    name = name.rstrip(b"\\n")
    found = demangle(name, None, None, None)
    text = ctypes.string_at(found) if found else name
    sys.stdout.buffer.write(text[:4096].split(b"\\n")[0] + b"\\n")
    sys.stdout.buffer.flush()
"""
_RUST = re.compile(rb"17h[0-9a-f]{16}E$")
_RUST_ESCAPE = re.compile(r"\$(?:u([0-9a-f]{2})|(LT|GT|RF|BP|LP|RP|SP|C))\$")
_RUST_CHARACTERS = {"LT": "<", "GT": ">", "RF": "&", "BP": "*", "LP": "(", "RP": ")", "SP": "@", "C": ","}
_MOST_DEMANGLED = 100_000


class _Demangler:
    """C++ names as C++ writes them, and Rust's older ones as Rust does (not the "_R..." of its v0 scheme)."""

    def __init__(self) -> None:
        self._known: dict[bytes, str] = {}

    def names(self, mangled: Sequence[bytes]) -> list[str]:
        strange = [name for name in dict.fromkeys(mangled) if name.startswith(b"_Z") and name not in self._known]
        if strange:
            if len(self._known) + len(strange) > _MOST_DEMANGLED:
                self._known.clear()
            self._known.update(_demangled(strange))
        return [self._known.get(name) or _text(name) for name in mangled]


def _demangled(names: list[bytes]) -> dict[bytes, str]:
    lines = [name.replace(b"\n", b"?") for name in names]
    try:
        with subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _DEMANGLE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                answer, _ = process.communicate(b"\n".join(lines) + b"\n", timeout=2)
            except subprocess.TimeoutExpired:
                process.kill()
                answer, _ = process.communicate()
    except OSError:
        answer = b""
    complete = answer.split(b"\n")[:-1]
    texts = map(_text, complete + lines[len(complete) :])
    return {name: _rust(text) if _RUST.search(name) else text for name, text in zip(names, texts, strict=True)}


def _rust(text: str) -> str:
    """As Rust writes it: without the hash, "<impl ...>" for "_$LT$impl$u20$...$GT$"."""
    text = re.sub(r"::h[0-9a-f]{16}$", "", text)
    text = re.sub(r"(^|::)_\$", r"\1$", text).replace("..", "::")
    return _RUST_ESCAPE.sub(lambda m: chr(int(m[1], 16)) if m[1] else _RUST_CHARACTERS[m[2]], text)


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
