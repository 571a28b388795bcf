"""Attach to functions of programs and libraries, and to their USDT probes.

The file is opened once, as another process's may be another one a moment later: its symbols are read from the
descriptor, and the kernel is given the descriptor (/proc/self/fd/N) for a path. Nothing of bcc's reads other people's
files: its reader of debug links writes past the end of its buffer where a build id is long.
"""

from __future__ import annotations

import ctypes
import fnmatch
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import NamedTuple

from bpfnb.errors import PrivilegeError, UnsupportedError, few_descriptors
from bpfnb.language.probes import Probe, split_symbol
from bpfnb.tracer.kernel import capabilities, perf
from bpfnb.tracer.kernel.files import UNREADABLE, File, TooMuch, opened
from bpfnb.tracer.link.errors import near, rejection
from bpfnb.tracer.link.link import Link, Place, on_events
from bpfnb.tracer.link.locate import find_file
from bpfnb.tracer.link.many import stepping
from bpfnb.tracer.symbols import cxx
from bpfnb.tracer.symbols.elf import Elf, Symbol, find_symbols, function_names
from bpfnb.tracer.symbols.symbols import mapped_files

__all__ = [
    "Found",
    "Target",
    "as_pattern",
    "attach",
    "code",
    "find",
    "names_in_file",
    "open_target",
    "place",
    "require",
    "resolve",
    "restrict",
]

_MAX_PLACES = 64  # functions of one name
_MAX_NAMES = 4  # names in a hint
_MAX_KNOWN = 20_000  # names to compare with one that is not there
_NO_CODE = "no instruction that can be traced begins there"
_MISCOMPUTED = (
    "it begins with an AVX-512 instruction, which this machine does not compute rightly where a uprobe stands: every "
    "process that calls it would go on with wrong values"
)
_CODE = 4  # bytes that tell instructions apart as far as traps.py does


class Target(NamedTuple):
    """An open program or library. ``path``: as the user may write it."""

    path: str
    file: File
    elf: Elf


_check_file: Callable[[int, str], None] | None = None


def restrict(check: Callable[[int, str], None]) -> None:
    """Have every file of a probe checked when it is open: by its owner's number, and its path. For this process."""
    global _check_file
    _check_file = check


@contextmanager
def open_target(probe: Probe, name: str, folder: str) -> Iterator[Target]:
    """Open the file of a probe. AttachError when there is none, or it is no program or library of this machine."""
    path = find_file(probe, name, folder)
    try:
        with opened(path.encode(), capabilities.with_sys_ptrace) as file:
            if _check_file:
                _check_file(file.stat.st_uid, path)
            yield Target(path, file, Elf(file.read))
    except PrivilegeError:  # which is an OSError, too
        raise
    except TooMuch as error:
        raise rejection(probe, f"{path} cannot be read: {error}") from None
    except UNREADABLE as error:
        if few_descriptors(error):
            raise
        why = (
            "a script: name the program it runs" if _is_script(path) else "no program or library (ELF) of this machine"
        )
        raise rejection(probe, f"{path} is {why}") from None


def _is_script(path: str) -> bool:
    with suppress(*UNREADABLE), opened(path.encode(), capabilities.with_sys_ptrace) as file:
        return file.read(0, 2) == b"#!"
    return False


def names_in_file(kind: str, target: str, folder: str, requested: str) -> list[str]:
    """Return the probes of a kind on the functions of a file. ``target``: its path, and a pattern of names."""
    path, _, name = target.rpartition(":")
    with open_target(Probe(kind, target, "", requested, 0), path, folder) as file:
        known = set(function_names(file.elf, file.path.encode(), capabilities.with_sys_ptrace))
    return [f"{kind}:{path}:{found}" for found in sorted(fnmatch.filter(known, as_pattern(name)))]


def as_pattern(text: str) -> str:
    """Return the shell pattern of what matches a text, or contains it where it has no wildcard."""
    return text if any(c in text for c in "*?[") else f"*{text}*"


def require(probe: Probe, folder: str) -> None:
    """AttachError where there is no such function."""
    _resolved(probe, folder)


def attach(probe: Probe, program: int, folder: str, pid: int = 0) -> Link:
    """Attach to all functions of that name: several files of a program may each have a static one. ``pid``: in this
    process alone; 0 for all."""
    name, symbol, plus = split_symbol(probe.target)
    with open_target(probe, name, folder) as target:
        found = find(probe, target, symbol, plus)
        returning = probe.kind == "uretprobe"
        put = partial(place, target, returning=returning, pid=pid)
        places = [Place(partial(put, at), code=code(target, at)) for at in found.offsets]
        return on_events(probe, program, places, f"{probe.kind}:{target.path}:{symbol}{plus}", found.note)


def place(target: Target, offset: int, semaphore: int = 0, *, returning: bool = False, pid: int = 0) -> int:
    """Open a perf event on an instruction, given by its offset in the file. OSError. ``semaphore``, ``pid``: see
    perf.open_uprobe."""
    if not perf.has_pmu("uprobe"):
        raise UnsupportedError("this kernel has no uprobes (CONFIG_UPROBE_EVENTS is off)")
    if semaphore and not perf.has_format("uprobe", "ref_ctr_offset"):
        raise UnsupportedError("a USDT probe with a semaphore takes Linux 4.20")
    path = f"/proc/self/fd/{target.file.fd}"
    return perf.open_uprobe(path, offset, returning=returning, semaphore=semaphore, pid=pid)


def code(target: Target, offset: int) -> bytes:
    """Return what an instruction begins with; b"" where it cannot be read."""
    try:
        return os.pread(target.file.fd, _CODE, offset)
    except OSError:
        return b""


def resolve(probe: Probe, target: Target, name: str) -> list[int]:
    """Return the addresses of the functions of a name. AttachError where nothing can be attached to it."""
    return _addresses(probe, target, name)[0]


class Found(NamedTuple):
    """Where a function is: offsets in the file, and what to say of that."""

    offsets: list[int]
    note: str


def _resolved(probe: Probe, folder: str) -> Found:
    name, symbol, plus = split_symbol(probe.target)
    with open_target(probe, name, folder) as target:
        return find(probe, target, symbol, plus)


def find(probe: Probe, target: Target, name: str, plus: str) -> Found:
    """Return where in the file a function, or an address, is."""
    if name[:2] in ("0x", "0X"):
        addresses, note = [_number(probe, name)], ""
    else:
        addresses, note = _addresses(probe, target, name)
    places = [target.elf.offset(address + int(plus or "0", 0)) for address in addresses]
    offsets = [offset for offset in places if offset is not None]
    if len(offsets) < len(places):
        raise rejection(probe, _NO_CODE, hint=_of_addresses(target) if name[:2] in ("0x", "0X") else None)
    if any(stepping.is_avx512(code(target, offset)) for offset in offsets) and not stepping.is_computed():
        raise rejection(probe, _MISCOMPUTED)
    return Found(offsets, note)


def _number(probe: Probe, text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        raise rejection(probe, f"{text} is no address") from None


def _of_addresses(target: Target) -> str:
    spans = ", ".join(f"{address:#x} to {address + end - start:#x}" for start, end, address in target.elf.code)
    return f"addresses are those that nm and objdump print; its code is at {spans}"


def _addresses(probe: Probe, target: Target, name: str) -> tuple[list[int], str]:
    symbols = find_symbols(target.elf, target.path.encode(), name, capabilities.with_sys_ptrace)
    if not symbols and cxx.is_long(name):
        symbols = _by_long_name(probe, target, name)
    if not symbols:
        raise _no_symbol(probe, target, name)
    if len(symbols) > _MAX_PLACES:
        hint = f"give one's address, as nm prints it: {probe.kind}:{target.path}:{symbols[0].address:#x}"
        raise rejection(probe, f"{target.path} has {len(symbols)} functions {name}", hint=hint)
    chosen = [_implementation(probe, target, symbol) if symbol.is_ifunc else (symbol.address, "") for symbol in symbols]
    addresses = list(dict.fromkeys(address for address, _ in chosen))
    notes = list(dict.fromkeys(note for _, note in chosen if note))
    if len(addresses) > 1:
        notes.append(f"at {len(addresses)} functions of this name")
    return addresses, "; ".join(notes)


def _by_long_name(probe: Probe, target: Target, name: str) -> list[Symbol]:
    """Return the symbols of a function of C++ or Rust. AttachError where several differ in their parameters alone."""
    path = target.path.encode()
    found = cxx.find(name, function_names(target.elf, path, capabilities.with_sys_ptrace))
    full = list(dict.fromkeys(signature.full for signature in found))
    if len(full) > 1 or len(found) > _MAX_PLACES:
        raise rejection(probe, f"{target.path} has {len(full)} functions {name}", hint=_one_of(probe, full))
    symbols = [s for f in found for s in find_symbols(target.elf, path, f.mangled, capabilities.with_sys_ptrace)]
    return list({symbol.address: symbol for symbol in symbols}.values())


def _one_of(probe: Probe, names: Sequence[str]) -> str:
    path = split_symbol(probe.target)[0]
    more = f", or one of {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"write {' or '.join(f'{probe.kind}:{path}:{name}' for name in names[:_MAX_NAMES])}{more}"


def _no_symbol(probe: Probe, target: Target, symbol: str) -> Exception:
    names = list(function_names(target.elf, target.path.encode(), capabilities.with_sys_ptrace))
    if likely := dict.fromkeys(s.full for s in cxx.related(symbol, names) if cxx.is_long(symbol) or s.bare != s.full):
        close = _likely(probe, symbol, list(likely))
    else:
        known = (name for name in names if name[:1] == symbol[:1] and len(name) < 2 * len(symbol))
        close = near(symbol, itertools.islice(known, _MAX_KNOWN), f"{probe.kind}:{split_symbol(probe.target)[0]}:")
    return rejection(probe, f"{target.path} has no function {symbol}", hint=close)


def _likely(probe: Probe, symbol: str, names: Sequence[str]) -> str | None:
    """Return, as a hint, the few functions of C++ or Rust that may be meant."""
    close = near(symbol, names, f"{probe.kind}:{split_symbol(probe.target)[0]}:")
    return close or (_one_of(probe, names) if len(names) <= _MAX_NAMES else None)


# --- functions that are chosen when a program starts ---------------------------------------------------------------


def _implementation(probe: Probe, target: Target, symbol: Symbol) -> tuple[int, str]:
    """Return the implementation of an IFUNC that programs use on this machine, and a note that says which.

    Known where this process has the same library loaded: its loader chose as every other's does.
    """
    loaded = _Loaded.of(target)
    if not loaded:
        raise _not_known(probe, target, symbol)
    address = loaded.address(symbol.name)
    if address is None:
        why = (
            "this machine uses an implementation outside of the file, where nothing can be attached (the kernel's vDSO)"
        )
        raise rejection(probe, f"{symbol.name} is only chosen at run time (IFUNC), and {why}")
    same = [name for name in target.elf.ifuncs() if name != symbol.name and loaded.address(name) == address]
    shared = f", which also serves {', '.join(sorted(set(same)))}" if same else ""
    note = f"{symbol.name} has several implementations (IFUNC); this machine uses the one at {address:#x}{shared}"
    return address, note


def _not_known(probe: Probe, target: Target, symbol: Symbol) -> Exception:
    names = function_names(target.elf, target.path.encode(), capabilities.with_sys_ptrace)
    parts = sorted({name for name in names if name.startswith(f"__{symbol.name}_")})
    hint = f"give the address of one, as nm prints it: {probe.kind}:{target.path}:0xADDRESS"
    if parts:
        few = ", ".join(parts[:4])
        hint = f"{few}{' ...' if len(parts) > 4 else ''} may be such: {probe.kind}:{target.path}:{parts[0]}"
    why = "a program chooses one of its implementations when it starts (IFUNC), and which is not known of this file"
    return rejection(probe, f"{symbol.name} is only chosen at run time: {why}", hint=hint)


class _Loaded:
    """A library that this process has loaded too."""

    def __init__(self, path: str, elf: Elf, spans: list[tuple[int, int, int]]) -> None:
        self._library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        self._elf = elf
        self._spans = spans  # begin and end in memory, and the offset in the file

    @classmethod
    def of(cls, target: Target) -> _Loaded | None:
        """Return the same file, or one of the same build, where this process has it loaded."""
        for path, spans in mapped_files().items():
            with suppress(*UNREADABLE), opened(os.fsencode(path), capabilities.with_sys_ptrace) as file:
                elf = Elf(file.read)
                same = os.path.samestat(file.stat, target.file.stat)
                if same or (elf.build_id() and elf.build_id() == target.elf.build_id()):
                    return cls(path, target.elf, spans)
        return None

    def address(self, name: str) -> int | None:
        """Return the virtual address of the function that programs get; None where it is in another file."""
        try:
            at = ctypes.cast(self._library[name], ctypes.c_void_p).value or 0
        except AttributeError:
            return None
        return next((self._elf.address(at - a + offset) for a, end, offset in self._spans if a <= at < end), None)
