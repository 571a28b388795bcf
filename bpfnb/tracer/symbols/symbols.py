"""Name code addresses: the kernel's by /proc/kallsyms, a process's by the files it has mapped.

The files belong to other users, and this process is privileged. bcc has a function for this (bcc_symcache_new), which
is not safe here: a long build id in a file overruns a buffer on its stack (find_buildid in bcc_elf.c, to this day), and
without CAP_SYS_PTRACE it can only name the file. So a file is opened only when it is the mapped one. It is read, never
mapped, since a mapped file that shrinks would end this process with SIGBUS. numpy decodes its numbers and checks
bounds.

Rights: /proc/kallsyms shows its addresses to those who had CAP_SYSLOG when they opened it. /proc/PID/maps of other
users can be read with CAP_PERFMON since Linux 6.15, before that with CAP_SYS_PTRACE. /proc/PID/root, which processes in
mount namespaces of their own need, takes CAP_SYS_PTRACE.
"""

from __future__ import annotations

import ctypes
import os
import re
import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from bpfnb.tracer.kernel.files import UNREADABLE, File, Privilege, opened, read_bytes
from bpfnb.tracer.symbols.demangle import Demangler
from bpfnb.tracer.symbols.elf import DEBUG_FOLDER, Addresses, Functions, Image, read_image, reader
from bpfnb.tracer.symbols.mappings import Mapping, Past, parse_mappings

__all__ = [
    "UNKNOWN",
    "Symbols",
    "mapped_files",
    "parse_kallsyms",
    "parse_mappings",
    "parse_perf_map",
    "parse_stat",
    "parse_status",
    "started_at",
]

UNKNOWN = "[unknown]"

_MAX_PROCESSES = 256
_MAX_BYTES = 512 << 20  # of symbols, of all processes
_MAX_IMAGES = 4096  # files of one process
_MAX_MAPS = 64 << 20  # bytes of /proc/PID/maps; the kernel's limit is 65,530 lines unless it was raised
_MAX_STATUS = 64 << 10
_MAX_JIT, _MAX_JIT_FUNCTIONS = 16 << 20, 300_000  # at the end of a perf map
_TIMEOUT = 5.0  # seconds for one request; addresses not named by then are unknown
_MAX_AGE = 2.0  # seconds after which the symbols of modules and BPF programs are read again


class Symbols:
    """Names code addresses. For one thread only.

    ``kallsyms``: /proc/kallsyms, opened before privileges were dropped (see above). ``close`` closes it.
    ``privilege``: a context manager, entered while something of another process is opened, to raise the capability.
    ``debug``: the folder of separate debug files. ``start_time``: returns when a process began, in clock
    ticks since boot, and 0 when it is gone; by default from /proc/PID/stat.
    """

    def __init__(
        self,
        kallsyms: int | None = None,
        privilege: Privilege = nullcontext,
        *,
        max_processes: int = _MAX_PROCESSES,
        debug: bytes = DEBUG_FOLDER,
        start_time: Callable[[int], int] | None = None,
    ) -> None:
        self._kernel = _Kernel(_open_kallsyms() if kallsyms is None else kallsyms)
        self._privilege = privilege
        self._max_processes = max_processes
        self._debug = debug
        self._start_time = start_time or started_at
        # By session, where a process is remembered, and pid; the least recently used first.
        self._processes: dict[tuple[int, int], _Process] = {}
        self._images: WeakValueDictionary[tuple[int, ...], Image] = WeakValueDictionary()  # shared by processes
        self._demangler = Demangler()

    def find(
        self, pid: int, addresses: Sequence[int], past: Past | None = None
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the names, and the modules or files, of addresses in a process, or in the kernel for ``pid`` 0.

        ``past``: what is remembered of the process.
        """
        pairs = self.user(pid, addresses, past=past) if pid else self.kernel(addresses)
        return tuple(name for name, _ in pairs), tuple(module for _, module in pairs)

    def kernel(self, addresses: Sequence[int]) -> list[tuple[str, str]]:
        """Return (function, module) for each address.

        The module is a name such as "[nf_tables]", "[bpf]" for BPF programs, "" for the kernel itself. The function is
        "[unknown]" where there is none, or where the kernel hides its symbols (``why``).
        """
        lines = self._kernel.names(np.array(addresses, np.uint64))
        pairs = [line.partition("\t") for line in map(_text, lines)]
        return [(name or UNKNOWN, module) for name, _, module in pairs]

    def user(
        self, pid: int, addresses: Sequence[int], *, past: Past | None = None, timeout: float = _TIMEOUT
    ) -> list[tuple[str, str]]:
        """Return (function, file) for each address in a process or thread, with C++ and Rust names demangled.

        The file is a path as in /proc/PID/maps, "[vdso]", or the perf map of JIT-compiled code. The function is
        "[unknown]" where there is none, or its file was not read within ``timeout`` seconds. All are when the process
        ended before the first request for it and is not remembered, or may not be inspected (``why``).

        ``past``: what is remembered of the process. It is taken if that one has ended, whoever has its number now.
        """
        process = self._remembered(past) if past and self._has_ended(past) else self._process(pid)
        if process is None or not addresses:
            return [(UNKNOWN, "")] * len(addresses)
        names, files = self._in_files(process, np.array(addresses, np.uint64), time.monotonic() + timeout)
        self._in_jit(process, addresses, names, files)
        readable = self._demangler.names(names)
        return [(name or UNKNOWN, _text(file)) for name, file in zip(readable, files, strict=True)]

    def why(self, pid: int) -> str:
        """Return why a process, or the kernel for 0, has no names; "" when it has."""
        if not pid:
            return self._kernel.why()
        if (process := self._processes.get((0, pid))) and process.mappings:
            return ""
        try:
            read_bytes(f"/proc/{pid}/maps", 1, self._privilege, cut=True)
        except PermissionError:
            return f"/proc/{pid}/maps may not be read: that takes Linux 6.15, or CAP_SYS_PTRACE"
        except OSError:
            return f"process {pid} is gone"
        return ""

    def close(self) -> None:
        """Close /proc/kallsyms."""
        self._kernel.close()

    def _process(self, pid: int) -> _Process | None:
        """Return a process as it is now, or as it was before it ended; None for one that was never seen."""
        started = self._start_time(pid)
        process = self._processes.pop((0, pid), None)
        if started and (process is None or process.started != started):
            process = _Process(pid, started)
        if process is None:
            return None
        if started:
            process.read_mappings(self._privilege)
        self._processes[0, pid] = process
        self._trim()
        return process

    def _has_ended(self, past: Past) -> bool:
        started = self._start_time(past.pid)
        return bool(past.ended) or not started or past.started not in (0, started)

    def _remembered(self, past: Past) -> _Process:
        """Return a process that has ended, as it was."""
        process = self._processes.pop((past.session, past.pid), None) or _Process(past.pid, 0)
        process.remember(past)
        self._processes[past.session, past.pid] = process
        self._trim()
        return process

    def _trim(self) -> None:
        """Drop the least recently used processes, until the rest is few and small enough."""
        while len(self._processes) > 1:
            size = sum(image.nbytes for image in self._images.values())
            if len(self._processes) <= self._max_processes and size <= _MAX_BYTES:
                return
            del self._processes[next(iter(self._processes))]

    def _in_files(self, process: _Process, addresses: Addresses, until: float) -> tuple[list[bytes], list[bytes]]:
        names, files = [b""] * len(addresses), [b""] * len(addresses)
        where = process.where(addresses)
        for number in np.unique(where[where >= 0]).tolist():
            mapping = process.mappings[number]
            rows = np.flatnonzero(where == number)
            image = self._image(process, mapping, until)
            found = image.names(addresses[rows] - mapping.start + mapping.offset) if image else [b""] * len(rows)
            for row, name in zip(rows.tolist(), found, strict=True):
                names[row], files[row] = name, mapping.path
        return names, files

    def _in_jit(self, process: _Process, addresses: Sequence[int], names: list[bytes], files: list[bytes]) -> None:
        """Name the addresses that are in no file, from /tmp/perf-PID.map."""
        rows = [row for row, name in enumerate(names) if not name]
        jit = process.jit_map(self._privilege) if rows else None
        if jit is None:
            return
        for row, name in zip(rows, jit.functions.names(np.array([addresses[r] for r in rows], np.uint64)), strict=True):
            if name:
                names[row], files[row] = name, jit.path

    def _image(self, process: _Process, mapping: Mapping, until: float) -> Image | None:
        """Return the functions of a mapped file, as it was at the first request; None for files beyond the limits.

        The limits are for each process, since one may have mapped many large files in order to use up memory.
        """
        key = (mapping.inode, mapping.path)
        if key not in process.images:
            size = sum(image.nbytes for image in process.images.values() if image)
            if len(process.images) >= _MAX_IMAGES or size > _MAX_BYTES or time.monotonic() > until:
                return None
            process.images[key] = self._load(process, mapping)
        return process.images[key]

    def _load(self, process: _Process, mapping: Mapping) -> Image | None:
        if mapping.path == b"[vdso]":
            return _vdso()
        if not mapping.path.startswith(b"/"):
            return None
        proc = b"/proc/%d" % process.pid
        now = (proc + b"/root" + mapping.path, mapping.path, proc + b"/exe")
        for path in (mapping.path,) if process.past else now:
            with suppress(*UNREADABLE), opened(path, self._privilege, mapping.inode) as file:
                if mapping.seen and file.stat.st_ctime_ns > mapping.seen:
                    continue  # it was written since, or is another file that got the inode
                key = (file.stat.st_dev, file.stat.st_ino, file.stat.st_size, file.stat.st_mtime_ns)
                image = self._images.get(key)
                if image is None:
                    image = self._images[key] = read_image(
                        file.read, path, mapping.path, self._privilege, debug=self._debug
                    )
                return image
        return None


# --- the kernel ---------------------------------------------------------------------------------------------------


class _Kernel:
    """/proc/kallsyms, read at the first request, and again for modules and BPF programs, which come and go."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._functions: Functions | None = None
        self._core = (0, 0)
        self._read_at = 0.0

    def names(self, addresses: Addresses) -> list[bytes]:
        """Return "function" or "function\\t[module]" for each address, or b""."""
        begin, end = self._core
        elsewhere = bool(((addresses < begin) | (addresses >= end)).any())
        old = elsewhere and time.monotonic() - self._read_at > _MAX_AGE
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

    def _read(self) -> Functions:
        data = b""
        if self._fd >= 0:
            os.lseek(self._fd, 0, os.SEEK_SET)
            with open(self._fd, "rb", closefd=False) as file:
                data = file.read()
        self._functions = parse_kallsyms(data)
        self._core = _address_of(b"_stext", data), _address_of(b"_etext", data)
        self._read_at = time.monotonic()
        return self._functions


def _open_kallsyms() -> int:
    try:
        return os.open("/proc/kallsyms", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1  # a kernel without it


def parse_kallsyms(data: bytes) -> Functions:
    """Return the functions that have an address, from lines of "address type name[\\t[module]]"."""
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
    return Functions(addresses[shown], None, begins[shown] + width + 3, data, rank[shown], b"\n")


def _address_of(name: bytes, kallsyms: bytes) -> int:
    found = re.search(rb"^([0-9a-f]+) \w %b$" % name, kallsyms, re.M)
    return int(found[1], 16) if found else 0


def _sysctl(name: str) -> str:
    try:
        return Path("/proc/sys", *name.split(".")).read_text().strip()
    except OSError:
        return "unknown"


# --- processes ----------------------------------------------------------------------------------------------------


class _JitMap(NamedTuple):
    version: tuple[int, ...]
    path: bytes
    functions: Functions


class _Process:
    """A process, its executable mappings when last read, and the images read for them."""

    def __init__(self, pid: int, started: int) -> None:
        self.pid = pid
        self.started = started
        self.mappings: tuple[Mapping, ...] = ()
        self.images: dict[tuple[int, bytes], Image | None] = {}
        self.past: Past | None = None
        self._starts = self._ends = np.zeros(0, np.uint64)
        self._jit: _JitMap | None = None

    def read_mappings(self, privilege: Privilege) -> None:
        """Read the mappings again: libraries come and go. A process that is ending has none: keep the last ones."""
        with suppress(*UNREADABLE):
            lines = read_bytes(f"/proc/{self.pid}/maps", _MAX_MAPS, privilege, cut=True).split(b"\n")
            self.mappings = tuple(parse_mappings(lines)) or self.mappings
        self._index()

    def remember(self, past: Past) -> None:
        """Take the mappings of a process that has ended."""
        self.past, self.mappings = past, past.mappings
        self._index()

    def _index(self) -> None:
        self._starts = np.array([m.start for m in self.mappings], np.uint64)
        self._ends = np.array([m.end for m in self.mappings], np.uint64)

    def where(self, addresses: Addresses) -> npt.NDArray[np.intp]:
        """Return the index of the mapping that each address is in, or -1."""
        if not self.mappings:
            return np.full(len(addresses), -1)
        at = np.searchsorted(self._starts, addresses, "right") - 1
        return np.where((at >= 0) & (addresses < self._ends[at]), at, -1)

    def jit_map(self, privilege: Privilege) -> _JitMap | None:
        """Return a JIT compiler's perf map. Anybody may write to /tmp, so root or the process's user must own it."""
        past = self.past
        uid, tgid, inner = (past.uid, past.pid, past.pid) if past else _identity(self.pid)
        here = b"/tmp/perf-%d.map" % tgid
        paths = (here,) if past else (b"/proc/%d/root/tmp/perf-%d.map" % (self.pid, inner), here)
        for path in paths if tgid else ():
            with suppress(*UNREADABLE), opened(path, privilege, follow=False) as file:
                version = (file.stat.st_ino, file.stat.st_size, file.stat.st_mtime_ns)
                if file.stat.st_uid not in (0, uid) or (past and past.ended and file.stat.st_mtime_ns > past.ended):
                    continue
                if self._jit is None or self._jit.version != version:
                    functions = parse_perf_map(_last_lines(file))
                    self._jit = _JitMap(version, b"/tmp/perf-%d.map" % inner, functions)
                break
        return self._jit


def mapped_files() -> dict[str, list[tuple[int, int, int]]]:
    """Return the files whose code this process has mapped: (start, end, offset in the file) of each part."""
    found: dict[str, list[tuple[int, int, int]]] = {}
    for mapping in parse_mappings(Path("/proc/self/maps").read_bytes().split(b"\n")):
        if mapping.path.startswith(b"/"):
            found.setdefault(os.fsdecode(mapping.path), []).append((mapping.start, mapping.end, mapping.offset))
    return found


def started_at(pid: int) -> int:
    """Return when a process began, in clock ticks since boot, or 0 when it is gone. It identifies a reused number."""
    try:
        return parse_stat(read_bytes(f"/proc/{pid}/stat", _MAX_STATUS))
    except UNREADABLE:
        return 0


def parse_stat(stat: bytes) -> int:
    """Return when a process began, from /proc/PID/stat; 0 where it does not say."""
    fields = stat.rpartition(b")")[2].split()  # before it is the name
    return int(fields[19]) + 1 if len(fields) > 19 else 0  # processes of the kernel began at 0


def _identity(pid: int) -> tuple[int, int, int]:
    """Return a process's effective user, its number, and its number in its own PID namespace; zeros when it is gone."""
    try:
        return parse_status(read_bytes(f"/proc/{pid}/status", _MAX_STATUS))
    except UNREADABLE:
        return 0, 0, 0


def parse_status(status: bytes) -> tuple[int, int, int]:
    """Return the same from the text of /proc/PID/status; zeros where it does not say."""
    # Split at newlines only: the kernel escapes those in the name.
    fields = {name: value.split() for name, _, value in (line.partition(b":") for line in status.split(b"\n"))}
    users, numbers = fields.get(b"Uid", []), fields.get(b"Tgid", [])
    if len(users) < 2 or not numbers:
        return 0, 0, 0
    return int(users[1]), int(numbers[0]), int((fields.get(b"NStgid") or numbers)[-1])


def _last_lines(file: File) -> bytes:
    before = file.stat.st_size - _MAX_JIT
    if before <= 0:
        return file.read(0, _MAX_JIT)
    return file.read(before, _MAX_JIT).partition(b"\n")[2]  # the first line may be incomplete


def parse_perf_map(data: bytes, max_functions: int = _MAX_JIT_FUNCTIONS) -> Functions:
    """Return the functions of a perf map: lines of "start size name" in hex. The last of the same start is taken."""
    starts, sizes, begins = array("Q"), array("Q"), array("q")
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
    if len(ends) > max_functions:
        data = data[int(ends[-max_functions - 1]) + 1 :]
    lines = re.finditer(rb"^(?:0x)?([0-9a-fA-F]{1,16}) (?:0x)?([0-9a-fA-F]{1,16}) (?=[^\n])", data, re.M)
    for found in lines:
        starts.append(int(found[1], 16))
        sizes.append(int(found[2], 16))
        begins.append(found.end())
    latest_first = np.arange(len(starts), 0, -1) * 16
    return Functions(
        np.array(starts, np.uint64), np.array(sizes, np.uint64), np.array(begins, np.int64), data, latest_first, b"\n"
    )


@cache
def _vdso() -> Image | None:
    """Return the vDSO, which the kernel maps into every process. Processes of our word size share it."""
    maps = Path("/proc/self/maps").read_bytes().split(b"\n")
    mine = [mapping for mapping in parse_mappings(maps) if mapping.path == b"[vdso]"]
    if not mine:
        return None
    return read_image(reader(ctypes.string_at(mine[0].start, mine[0].end - mine[0].start)), b"")


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
