"""Which probes match a pattern, such as ``kprobe:tcp_*`` or ``uprobe:c:mem*``."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from msgspec.structs import replace

from bpfnb.errors import AttachError
from bpfnb.language.probes import SYSCALL_ENTRIES, Probe, split_symbol, split_usdt
from bpfnb.tracer.kernel import capabilities, tracefs
from bpfnb.tracer.link import syscall
from bpfnb.tracer.link.errors import near, rejection
from bpfnb.tracer.link.kinds import KINDS
from bpfnb.tracer.link.uprobe import Target, open_target, resolve
from bpfnb.tracer.symbols.elf import function_names

__all__ = ["MAX_MATCHES", "Match", "matches"]

MAX_MATCHES = 1000  # as bpftrace has it: BPFTRACE_MAX_PROBES
_MAX_NAMES = 4 * MAX_MATCHES  # of functions in a file, to find those with several
_MAX_STEMS = 20_000  # to compare with a pattern that matches nothing


class Match(NamedTuple):
    """A probe's target. ``note``: by which other names it is known, or ""."""

    target: str
    note: str = ""


def matches(probe: Probe, folder: str) -> list[Match]:
    """Return the probes that match a pattern, in the order of their names.

    AttachError where there are none, with near names, or more than MAX_MATCHES; UnsupportedError where the kernel has
    no probes of this kind.
    """
    found, known = _FINDERS.get(probe.kind, _of_kernel)(probe, folder)
    if not found:
        raise rejection(probe, f"no {_WHAT.get(probe.kind, 'function')} matches", hint=_near(probe, known))
    if len(found) > MAX_MATCHES:
        what = _WHAT.get(probe.kind, "function")
        why = f"it matches {len(found):,} {what}s; at most {MAX_MATCHES:,} can be attached"
        raise rejection(probe, why, hint="narrow it; %bpf probes lists what matches")
    return found


_WHAT = {
    "syscall": "system call",
    "sysret": "system call",
    "tracepoint": "tracepoint",
    "rawtracepoint": "raw tracepoint",
    "usdt": "USDT probe",
}
_Found = tuple[list[Match], Iterable[str]]  # what matches, and all names there are


def _matching(names: Iterable[str], pattern: str) -> list[Match]:
    return [Match(name) for name in sorted(set(fnmatch.filter(names, pattern)))]


def _of_syscalls(probe: Probe, folder: str) -> _Found:
    known = set(syscall.names())
    if not known:
        raise rejection(probe, "this kernel does not list its system calls (CONFIG_FTRACE_SYSCALLS is off)")
    users = {user: entry for user, entry in SYSCALL_ENTRIES.items() if entry in known and user not in known}
    found = {users.get(name, name) for name in fnmatch.filter([*known, *users], probe.target)}
    return [Match(name) for name in sorted(found)], [*known, *users]


def _of_kernel(probe: Probe, folder: str) -> _Found:
    kind = KINDS[probe.kind]
    if kind.unavailable and (why := kind.unavailable()):
        raise rejection(probe, why)
    known = kind.names() if kind.names else ()
    return _matching(known, probe.target), known


def _of_trampolines(probe: Probe, folder: str) -> _Found:
    """Of the functions whose types are known those that may be traced."""
    found, known = _of_kernel(probe, folder)
    traceable = set(tracefs.traceable_functions())
    return [match for match in found if match.target in traceable], known


def _of_file(probe: Probe, folder: str) -> _Found:
    path, pattern, _ = split_symbol(probe.target)
    with open_target(probe, path, folder) as file:
        known = set(function_names(file.elf, file.path.encode(), capabilities.with_sys_ptrace))
        matching = sorted(fnmatch.filter(known, pattern), key=_plainness)
        if len(matching) > _MAX_NAMES:
            return [Match(function) for function in matching], known
        others = _same(probe, file, matching)
    return [Match(f"{path}:{name}", _also(others[name])) for name in sorted(others)], known


def _same(probe: Probe, file: Target, names: Iterable[str]) -> dict[str, list[str]]:
    """Return the names of functions that differ, each with other names of the same one: what is called once is to be
    counted once. Names come in order of preference."""
    of_address: dict[int, str] = {}
    others: dict[str, list[str]] = {}
    for name in names:
        try:
            addresses = resolve(replace(probe, target=f"{file.path}:{name}"), file, name)
        except AttachError:
            addresses = []  # it is attached to, which says why not
        if addresses and all(address in of_address for address in addresses):
            others[of_address[addresses[0]]].append(name)
            continue
        others[name] = []
        for address in addresses:
            of_address.setdefault(address, name)
    return others


def _also(names: list[str]) -> str:
    return f"also called {', '.join(names)}" if names else ""


def _plainness(name: str) -> tuple[int, int, str]:
    """Sort first the name that people know a function by."""
    return len(name) - len(name.lstrip("_")), len(name), name


def _of_usdt(probe: Probe, folder: str) -> _Found:
    path, provider, name = split_usdt(probe.target)
    with open_target(probe, path, folder) as file:
        known = sorted({f"{note.provider}:{note.name}" for note in file.elf.usdt()})
    found = fnmatch.filter(known, f"{provider or '*'}:{name}")
    return [Match(f"{path}:{label}") for label in found], known


_FINDERS: dict[str, Callable[[Probe, str], _Found]] = {
    "syscall": _of_syscalls,
    "sysret": _of_syscalls,
    "fentry": _of_trampolines,
    "fexit": _of_trampolines,
    "uprobe": _of_file,
    "uretprobe": _of_file,
    "usdt": _of_usdt,
}


# --- near names ---------------------------------------------------------------------------------------------------


def _near(probe: Probe, known: Iterable[str]) -> str | None:
    """Return near patterns as a hint: those of names up to a separator, and near names."""
    pattern = probe.target if probe.kind not in ("uprobe", "uretprobe", "usdt") else probe.target.rpartition(":")[2]
    prefix = f"{probe.kind}:{probe.target.removesuffix(pattern)}"
    word = re.split(r"[*?\[]", pattern)[0]
    if not word:
        return None
    stems = {f"{stem}*" for name in known if name[:1] == word[:1] for stem in _stems(name)}
    return near(f"{word}*", sorted(stems)[:_MAX_STEMS], prefix)


def _stems(name: str) -> Iterator[str]:
    """Yield what a name begins with: up to each separator, and the name itself."""
    yield from (name[: found.end()] for found in re.finditer(r"[_:.]", name))
    yield name
