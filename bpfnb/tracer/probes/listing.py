"""Lists of probes with their arguments and what they return, those of kinds that this kernel has not, too."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from bpfnb.errors import SetupError
from bpfnb.language.probes import KINDS as WORDS
from bpfnb.language.probes import Probe
from bpfnb.language.signature import Argument, declare
from bpfnb.tracer.link import catalog, functions, trampoline, usdt
from bpfnb.tracer.link.kinds import KINDS
from bpfnb.tracer.probes.describe import format_of, known, operands
from bpfnb.tracer.signatures.kernel import kernel_types

__all__ = ["Row", "declared", "listed"]

_MAX_KEPT = 10_000  # tracepoints, of modules that came and went too
_FUNCTIONS = frozenset(("kprobe", "kretprobe", "fentry", "fexit"))
_FIXED = {
    "syscall": "long: negative errno on failure",
    "sysret": "long: negative errno on failure",
    "lsm": "int: 0, or a negative errno to refuse",
}
_SYSCALL_ENTRIES = ("__x64_sys_", "__arm64_sys_", "__riscv_sys_", "__s390x_sys_")
_NO_DWARF = "the types of its arguments are not known: arg0 to arg5"
_PROFILE = "99 times a second on every CPU; an interval is profile:s:1, profile:ms:10, profile:us:100"


class Row(NamedTuple):
    """A probe of a list. ``arguments``: as C declares them. ``returns``: a type, and what it means, where known."""

    probe: str
    arguments: tuple[str, ...] = ()
    returns: str = ""
    note: str = ""


def listed(pattern: str, limit: int, folder: str = "") -> tuple[list[Row], int]:
    """Return up to ``limit`` probes that match a pattern, and how many more do. Errors, and patterns, as catalog.find.

    Probes of a kind that this kernel has not are listed, with a note, where the pattern names the kind, or where
    nothing else matches. A whole name stands for itself alone.
    """
    pattern = catalog.in_full(pattern)
    kind, colon, target = pattern.partition(":")
    if colon and kind in KINDS and (names := KINDS[kind].names_in_file):
        rows = _in_notes(pattern, target, folder) if kind == "usdt" else _in_file(names(kind, target, folder, pattern))
        rows = [row for row in rows if row.probe == pattern] or rows
        return rows[:limit], max(len(rows) - limit, 0)
    chosen = list(catalog.kinds_of(pattern))
    missing = {k: why for k in chosen if (check := KINDS[k].unavailable) and (why := check())}
    found = _matching([k for k in chosen if k not in missing or (colon and k == kind)], pattern)
    if not found:
        found = _matching(chosen, pattern)
    return [_row(name, k, missing.get(k, "")) for k, name in found[:limit]], max(len(found) - limit, 0)


def _in_file(names: Iterable[str]) -> list[Row]:
    return [Row(name, note=_NO_DWARF) for name in names]


def _in_notes(pattern: str, target: str, folder: str) -> list[Row]:
    found = usdt.arguments_in_file("usdt", target, folder, pattern)
    return [Row(name, tuple(map(declared, operands(found[name])))) for name in sorted(found)]


def _matching(chosen: Iterable[str], pattern: str) -> list[tuple[str, str]]:
    """Return the kinds and names of the probes that match; only the one that is called just so, where there is one."""
    wanted = catalog.wanted(pattern)
    found = [
        (kind, name)
        for kind in chosen
        for name in sorted(fnmatch.filter((f"{kind}:{target}" for target in set(_targets(kind))), wanted))
    ]
    return [one for one in found if one[1] == pattern] or found


def _targets(kind: str) -> Iterable[str]:
    row = KINDS[kind]
    if kind == "profile":
        return ("99",)
    if row.unavailable and row.unavailable():
        if kind in _FUNCTIONS:
            return kernel_types.functions(modules=True)
        if kind == "lsm":
            return trampoline.hook_names(kernel_types.functions())
        return WORDS[kind].events
    with suppress(SetupError):  # no tracefs
        return row.names() if row.names else ()
    return ()


def _row(name: str, kind: str, why: str) -> Row:
    target = name.partition(":")[2]
    if kind == "profile":
        return Row(name, note=_PROFILE)
    if kind == "tracepoint":
        return _tracepoint(name, target)
    found = known(Probe(kind, target, "", name, 0))
    returns = _FIXED.get(kind) or (found.returns.text if found.returns else "")
    if kind in _FUNCTIONS and not found.types:
        return Row(name, note=_joined(why, "its arguments are not known: the kernel's BTF does not have them"))
    return Row(name, tuple(map(declared, found.arguments)), returns, _joined(why, _instead(target) if why else ""))


_tracepoints: dict[str, tuple[str, Row]] = {}  # by name, with the text of the format file they were made of


def _tracepoint(name: str, target: str) -> Row:
    """Return a tracepoint's row, made anew only where its format file has changed: there are thousands."""
    text = format_of(target.replace(":", "/"))
    before, row = _tracepoints.get(name, ("", Row(name)))
    if text != before:
        row = Row(name, tuple(map(declared, known(Probe("tracepoint", target, "", name, 0)).arguments)))
        _tracepoints[name] = text, row
        while len(_tracepoints) > _MAX_KEPT:
            _tracepoints.pop(next(iter(_tracepoints)), None)
    return row


def _instead(function: str) -> str:
    """Return what stands in for a function, on a kernel without probes on functions."""
    found = functions.stand_in(function)
    for prefix in _SYSCALL_ENTRIES:
        if function.startswith(prefix):
            found = f"syscall:{function.removeprefix(prefix)}"
    return f"in its place: {found}" if found else ""


def _joined(*parts: str) -> str:
    return "; ".join(filter(None, parts))


def declared(argument: Argument) -> str:
    """Return an argument as C declares it: "const char *filename", "char comm[16]"."""
    return declare(argument.type.text, argument.name)
