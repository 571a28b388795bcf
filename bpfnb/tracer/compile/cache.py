"""A compiled cell as something the worker can load again by itself: without LLVM, without a process to compile in.

Cells are run again and again, most often unchanged, and nearly all the time that takes is clang's. What clang has made
of a cell are instructions, in which two things differ from one time to the next:

    a map        an ``lddw`` instruction, marked as such, has its descriptor as its number
    the tag      of printk (printk.py) is 8 letters: LLVM loads them into a register with ``lddw``, as one number, and
                 stores that register on the stack, where the format begins

A cached program is the instructions with these places known, and what the maps are made with. The compiling process
makes it, the worker keeps it under everything the compiler was given, and instantiates it when that is asked for again.

There is none where the text and its flags alone do not decide what the compiler makes of them (``decided``), where
maps and programs cannot be made from what the kernel says of them, and where a format does not begin with the tag in
just that way. Where the kernel rejects an instance, the cell is compiled.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from msgspec import Struct

from bpfnb.language.vocabulary import PINS
from bpfnb.tracer.compile.engine import Function
from bpfnb.tracer.compile.printk_tag import begin_with_tag
from bpfnb.tracer.kernel import bpf, tracefs, uapi
from bpfnb.tracer.kernel.bpf import MapAttributes, ProgramAttributes
from bpfnb.tracer.kernel.instructions import (
    IMMEDIATE,
    IMMEDIATE_AT,
    LDDW,
    NUMBER,
    PSEUDO_MAP_FD,
    PSEUDO_MAP_VALUE,
    SIZE,
    decode,
)
from bpfnb.tracer.kernel.uapi import MapType, ProgramType

__all__ = ["CachedProgram", "Lru", "cached_program", "decided", "formats"]

Value = TypeVar("Value")


class Lru(Generic[Value]):
    """The values last used, by their keys: at most ``size``; for any thread."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, Value] = OrderedDict()

    def get(self, key: Hashable) -> Value | None:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Hashable, value: Value) -> None:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self._size:
                self._values.popitem(last=False)

    def forget(self, key: Hashable) -> None:
        with self._lock:
            self._values.pop(key, None)


class Code(Struct, frozen=True):
    """A program. ``maps``: the instructions that want a map's descriptor, and which map; ``tags``: those that want the
    tag."""

    attributes: ProgramAttributes
    instructions: bytes
    maps: tuple[tuple[int, int], ...]
    tags: tuple[int, ...]

    def filled(self, fds: Sequence[int], tag: bytes) -> bytes:
        """Return the instructions with descriptors and a tag in their places."""
        code = bytearray(self.instructions)
        for index, which in self.maps:
            IMMEDIATE.pack_into(code, SIZE * index + IMMEDIATE_AT, fds[which])
        for index in self.tags:
            for half in range(2):  # an lddw takes the place of two instructions
                at = SIZE * (index + half) + IMMEDIATE_AT
                code[at : at + 4] = tag[4 * half : 4 * half + 4]
        return bytes(code)


class CachedProgram(Struct, frozen=True):
    """``wanted``: the maps whose descriptors are wanted, beside the programs'. ``btf``: the types the maps are of.
    ``constants``: what another map holds, behind the others, whose value's addresses programs load; b"" for none."""

    programs: tuple[Code, ...]
    maps: tuple[MapAttributes, ...]
    wanted: tuple[int, ...]
    btf: bytes
    constants: bytes = b""

    def instantiate(self, tag: str) -> list[int]:
        """Make maps and load programs: the descriptors of the programs, and then of the maps that are wanted.

        OSError, with all undone, where the kernel refuses.
        """
        opened: list[int] = []
        returned: list[int] = []
        try:
            if self.btf:
                opened.append(bpf.load_btf(self.btf))
            maps = [_opened(opened, bpf.create_map(made, opened[0] if self.btf else 0)) for made in self.maps]
            if self.constants:
                maps.append(_opened(opened, bpf.create_constants(self.constants)))
            programs = [
                _opened(opened, bpf.load_program(code.attributes, code.filled(maps, tag.encode())))
                for code in self.programs
            ]
            returned = [*programs, *(maps[index] for index in self.wanted)]
        finally:
            for fd in set(opened) - set(returned):
                os.close(fd)
        return returned


def _opened(fds: list[int], fd: int) -> int:
    fds.append(fd)
    return fd


# --- writing ------------------------------------------------------------------------------------------------------

# The other types of maps have more to them than the kernel tells, or are not begun empty.
_PLAIN_MAPS = frozenset(
    (
        *(MapType.HASH, MapType.LRU_HASH, MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH, MapType.LPM_TRIE),
        *(MapType.ARRAY, MapType.PERCPU_ARRAY, MapType.PERF_EVENT_ARRAY, MapType.CGROUP_ARRAY, MapType.STACK_TRACE),
        *(MapType.QUEUE, MapType.STACK, MapType.RINGBUF),
    )
)
# The other types of programs are loaded for what they attach to.
_PLAIN_PROGRAMS = frozenset(
    (ProgramType.KPROBE, ProgramType.TRACEPOINT, ProgramType.PERF_EVENT, ProgramType.RAW_TRACEPOINT)
)


def cached_program(
    programs: Sequence[tuple[int, Function]],
    maps: Sequence[int],
    wanted: Sequence[int],
    btf: bytes,
    tag: str,
    constant: tuple[int, bytes] | None = None,
) -> CachedProgram | None:
    """Return what loads again what has been compiled and loaded; None where there cannot be such.

    ``programs``: their descriptors, and what they were loaded from. ``maps``: the descriptors of all of them,
    ``wanted`` of those that are wanted. ``btf``: of the cell. ``tag``: the printk tag compiled in, or "". ``constant``:
    the map of constants that the instructions refer to, and what it has.
    """
    referred = [*maps, constant[0]] if constant else maps
    try:
        made = tuple(bpf.map_attributes(fd) for fd in maps)
        codes = tuple(_code(fd, function, referred, tag.encode()) for fd, function in programs)
    except OSError:  # the cell works without
        return None
    if sys.byteorder != "little" or not all(code is not None for code in codes) or not all(map(_is_plain, made)):
        return None
    typed = any(m.key_type or m.value_type for m in made)
    found = tuple(code for code in codes if code is not None)
    whole = constant[1] if constant else b""
    return CachedProgram(found, made, tuple(maps.index(fd) for fd in wanted), btf if typed else b"", whole)


def _is_plain(made: MapAttributes) -> bool:
    # Which NUMA node a map is on, the kernel does not tell.
    return made.type in _PLAIN_MAPS and not made.flags & uapi.NUMA_NODE and not (made.device or made.kernel_type)


def _code(fd: int, function: Function, maps: Sequence[int], tag: bytes) -> Code | None:
    attributes = bpf.program_attributes(fd, function.licence, function.version, function.attach_type)
    code = decode(function.instructions)
    wide = [(at, i) for at, i in enumerate(code) if i.op == LDDW]
    of_maps = [(at, i.immediate) for at, i in wide if i.src in _MAP_SOURCES]
    plain = [at for at, i in wide if i.src == NUMBER]
    if attributes.type not in _PLAIN_PROGRAMS or len(of_maps) + len(plain) < len(wide):
        return None
    if not all(number in maps for _, number in of_maps):
        return None
    tags = tuple(at for at in plain if tag and _number(function.instructions, at) == tag)
    if tag and not begin_with_tag(code, tags):
        return None
    return Code(attributes, function.instructions, tuple((at, maps.index(number)) for at, number in of_maps), tags)


# --- instructions -------------------------------------------------------------------------------------------------

_MAP_SOURCES = (PSEUDO_MAP_FD, PSEUDO_MAP_VALUE)  # of an lddw that loads a map, or its value's address


def _number(code: bytes, index: int) -> bytes:
    """Return an lddw's number, in the order of memory."""
    low, high = (SIZE * (index + half) + IMMEDIATE_AT for half in range(2))
    return code[low : low + 4] + code[high : high + 4]


# --- what decides the result --------------------------------------------------------------------------------------

# Flags that bring in nothing from elsewhere. -include, -I, -Wp, and their like do.
_PLAIN_FLAG = re.compile(r"-[DU].+|-W[\w=-]+|-w|-O\w?|-g|-std=[\w:+]+|-f[\w-]+", re.S)
_CHANGING = re.compile(r"__(DATE|TIME|TIMESTAMP)__|__has_(include|embed)|\.(incbin|include)\b")
_INCLUDE = re.compile(r"(?:#|%:)(?:\s|/\*.*?\*/)*(?:include|import|embed)(.*)")
_IN_THE_TREE = re.compile(r'\w*\s*(?:<(?!/)[^<>]+>|"(?!/)[^"]+")\s*(?:/[/*].*)?')
_TRACEPOINTS = re.compile(r"\bTRACEPOINT_PROBE\s*\(\s*(\w+)\s*,\s*(\w+)|\btracepoint__(\w+?)__(\w+)")


def decided(text: str, cflags: Sequence[str]) -> bool:
    """Return whether text and flags decide, on this machine, what becomes of them: the header tree does not change."""
    whole = "\n".join((text, *cflags)).replace("\\\n", "")
    return (
        all(_PLAIN_FLAG.fullmatch(flag) for flag in cflags)
        and not _CHANGING.search(whole)
        and not PINS.search(whole)  # a map that is pinned is opened where it is there already
        and all(_IN_THE_TREE.fullmatch(what) and ".." not in what for what in _INCLUDE.findall(whole))
    )


def formats(text: str, root: Path | None = None) -> dict[str, str]:
    """How the tracepoints look whose arguments bcc declares, "sched/sched_switch" to text: an event can be made anew
    with others. ``root``: of tracefs."""
    found: dict[str, str] = {}
    for a, b, c, d in _TRACEPOINTS.findall(text):
        name = f"{a or c}__{b or d}"
        ways = [(name[: m.start()], name[m.start() + 2 :]) for m in re.finditer("(?=__)", name)]  # bcc takes the last
        texts = {f"{category}/{event}": text for category, event in ways if (text := _format(root, category, event))}
        found |= texts or {"/".join(ways[-1]): ""}
    return found


def _format(root: Path | None, category: str, event: str) -> str:
    try:
        return ((root or tracefs.root()) / "events" / category / event / "format").read_text()
    except OSError:
        return ""
