"""What is known of probes: their arguments, what they return, and the members of either.

describe(probes, paths, limit)    the Signatures of probes as -a takes them, wildcards too
known(probe)                      what is known of one
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from bpfnb.errors import ProgramError, SetupError, near_names
from bpfnb.language.probes import Probe, parse_probe
from bpfnb.language.signature import Argument, Signature, Type
from bpfnb.tracer.kernel import tracefs
from bpfnb.tracer.link import catalog, kinds, usdt
from bpfnb.tracer.signatures.fields import Called, fields, parameters, parse_format
from bpfnb.tracer.signatures.kernel import BtfFolder, kernel_types
from bpfnb.tracer.signatures.members import Place, follow, place_of
from bpfnb.tracer.signatures.types import UNSIGNED_LONG, Function, KernelTypes, integer, plain_type

__all__ = ["Known", "describe", "format_of", "known", "operands"]

_MAX_PROBES = 10_000
_MAX_PATHS, _MAX_PATH, _MAX_NAME = 256, 32, 256
_MAX_ANSWERS = 200_000  # probes times paths
_MAX_FORMAT = 1 << 20
_C_WORDS = frozenset(("const", "volatile", "unsigned", "signed", "char", "short", "int", "long"))
_REGISTERS = 6  # of arguments that every architecture has
LONG = integer("long", 8, signed=True)
_WILDCARD = re.compile(r"[*?\[]")


class Known(NamedTuple):
    """What is known of a probe. ``places``: where paths into each argument begin. ``types``: what they are in."""

    arguments: tuple[Argument, ...] = ()
    returns: Type | None = None
    types: KernelTypes | None = None
    places: tuple[Place, ...] = ()
    result: Place | None = None


def describe(
    probes: Sequence[str], paths: Sequence[tuple[str, ...]], limit: int, folder: str = ""
) -> tuple[Signature, ...]:
    """Return the signatures of probes, in the order given; those of a wildcard by name. Each probe once.

    ``paths``: of members, whose types are in ``Signature.members``. ``folder``: where relative paths of files begin.
    AttachError where there is no such probe; ProgramError for more than ``limit``.
    """
    _check(probes, paths, limit)
    found = _expanded(probes, min(limit, _MAX_PROBES), folder)
    if len(found) * len(paths) > _MAX_ANSWERS:
        raise ProgramError(f"{len(found):,} probes and {len(paths)} members are too many to look up: narrow the probes")
    return tuple(_signature(probe, paths, folder) for probe in found)


def _check(probes: Sequence[str], paths: Sequence[tuple[str, ...]], limit: int) -> None:
    if limit < 0:
        raise ProgramError(f"the limit of probes must not be negative: {limit}")
    if len(probes) > _MAX_PROBES:
        raise ProgramError(f"{len(probes):,} probes are more than can be described at once: {_MAX_PROBES:,}")
    if len(paths) > _MAX_PATHS:
        raise ProgramError(f"{len(paths)} members are more than can be looked up at once: {_MAX_PATHS}")
    for path in paths:
        if not 0 < len(path) <= _MAX_PATH or any(len(name) > _MAX_NAME for name in path):
            raise ProgramError(f"not a path of members: {'.'.join(path)[:_MAX_NAME]!r}")


# --- which probes -------------------------------------------------------------------------------------------------


def _expanded(probes: Sequence[str], limit: int, folder: str) -> list[Probe]:
    found: dict[str, Probe] = {}
    for text in probes:
        names = _matching(text, limit, folder) if _WILDCARD.search(text) else [text]
        for name in names:
            probe = _probe(name, text)
            if len(names) == 1:
                kinds.require(probe, folder)
            found.setdefault(f"{probe.kind}:{probe.target}", probe)
        if len(found) > limit:
            raise ProgramError(f"{len(found):,} probes are more than {limit:,}: name fewer")
    return list(found.values())


def _probe(text: str, requested: str) -> Probe:
    return Probe(*parse_probe(text), "", requested, 0)


def _matching(pattern: str, limit: int, folder: str) -> Sequence[str]:
    names, more = catalog.find(catalog.in_full(pattern), limit, folder)
    if more:
        raise ProgramError(f"{pattern}: {len(names) + more:,} probes match, more than {limit:,}: narrow the pattern")
    if not names:
        raise catalog.none(pattern)
    return names


# --- what is known of one -----------------------------------------------------------------------------------------


def _signature(probe: Probe, paths: Sequence[tuple[str, ...]], folder: str) -> Signature:
    found = known(probe, folder)
    name = f"{probe.kind}:{probe.target}"
    signature = Signature(name, found.arguments, found.returns)
    if not paths:
        return signature
    answers = [_follow(found, path) for path in paths]
    return replace(signature, members=tuple(a for a, _ in answers), near=tuple(near for _, near in answers))


def _follow(found: Known, path: tuple[str, ...]) -> tuple[tuple[Type, ...], tuple[str, ...]]:
    if path[0] == "retval" and found.result:
        return follow(found.types, found.result, path[1:])
    for argument, place in zip(found.arguments, found.places, strict=True):
        if argument.name == path[0]:
            return follow(found.types, place, path[1:])
    return (), tuple(near_names(path[0], [argument.name for argument in found.arguments]))


def known(probe: Probe, folder: str = "", btf: BtfFolder = kernel_types) -> Known:
    """Return what is known of a probe, which need not be one that this kernel can attach to.

    AttachError where a file is to be read that is not there.
    """
    return _READERS.get(probe.kind, _nothing)(probe, folder, btf)


def _nothing(probe: Probe, folder: str, btf: BtfFolder) -> Known:
    return Known()


def _called(types: KernelTypes | None) -> Called:
    return types.called if types else plain_type


def _of_texts(types: KernelTypes | None, arguments: Sequence[Argument], returns: Type | None) -> Known:
    places = tuple(place_of(types, argument.type) for argument in arguments)
    return Known(tuple(arguments), returns, types, places, place_of(types, returns) if returns else None)


def _registers(returns: Type | None) -> Known:
    names = [Argument(f"arg{position}", UNSIGNED_LONG, position) for position in range(_REGISTERS)]
    return _of_texts(None, names, returns)


def _types_for(text: str, btf: BtfFolder) -> KernelTypes | None:
    """Return the kernel's types, which take a while the first time; None where all fields have types of C's own."""
    words = {word for field in parse_format(text) for word in field.type.replace("*", " ").split()}
    return btf.kernel() if words - _C_WORDS else None


def _syscall(probe: Probe, folder: str, btf: BtfFolder) -> Known:
    if text := format_of(f"syscalls/sys_enter_{probe.target}"):
        types = _types_for(text, btf)
        return _of_texts(types, parameters(text, _called(types)), LONG)
    # Where the body of the call is a function of its own, and tracefs is not to be had.
    types = btf.kernel()
    if types and (function := types.function(f"__do_sys_{probe.target}")):
        arguments = [Argument(p.name, _in_process(p.type), i) for i, p in enumerate(function.parameters)]
        return _of_texts(types, arguments, LONG)
    return _registers(LONG)


def _in_process(type_: Type) -> Type:
    return replace(type_, user=True) if type_.kind in ("pointer", "string") else type_


def _tracepoint(probe: Probe, folder: str, btf: BtfFolder) -> Known:
    event = probe.target.partition(":")[2]
    text = format_of(probe.target.replace(":", "/"))
    if not text:
        return Known()
    types = _types_for(text, btf)
    arguments = fields(text, _called(types))
    if any(a.type.text.replace("const ", "") == "void *" for a in arguments):
        called_with = _traced(event, btf)
        arguments = [replace(a, type=_meant(a, called_with)) for a in arguments]
    return _of_texts(types, arguments, None)


def _meant(field: Argument, called_with: Sequence[Argument]) -> Type:
    """Return the type of a field: of a "void *skaddr", or "void *sk", that of the tracepoint's argument "sk"."""
    if field.type.text.replace("const ", "") != "void *":
        return field.type
    for argument in called_with:
        to = argument.type.to
        if field.name in (argument.name, f"{argument.name}addr") and to and to.kind == "struct":
            return argument.type
    return field.type


def _traced(event: str, btf: BtfFolder) -> Sequence[Argument]:
    """Return the arguments that a tracepoint is called with, by name."""
    for function in (f"__traceiter_{event}", f"__probestub_{event}", f"__bpf_trace_{event}"):
        if found := btf.function(function):
            return [Argument(p.name, p.type, i) for i, p in enumerate(found[1].parameters[1:])]
    return ()


def _rawtracepoint(probe: Probe, folder: str, btf: BtfFolder) -> Known:
    for function in (f"__traceiter_{probe.target}", f"__probestub_{probe.target}", f"__bpf_trace_{probe.target}"):
        if found := btf.function(function):
            return _of_function(*found, skip=1, returns=False)
    types = btf.kernel()
    number = types.number(f"btf_trace_{probe.target}") if types else 0
    if types and number and (prototype := types.prototype(number)):
        numbered = [p._replace(name=f"arg{i - 1}") for i, p in enumerate(prototype.parameters)]
        return _of_function(types, prototype._replace(parameters=tuple(numbered)), skip=1, returns=False)
    return Known()


def _of_function(types: KernelTypes, function: Function, *, skip: int = 0, returns: bool = True) -> Known:
    taken = function.parameters[skip:]
    first = taken[0].register if taken else 0
    arguments = tuple(Argument(p.name, p.type, p.register - first if p.register >= 0 else -1) for p in taken)
    places = tuple(Place(p.type, p.number) for p in taken)
    if not returns:
        return Known(arguments, None, types, places)
    return Known(arguments, function.returns, types, places, Place(function.returns, function.number))


def _function(probe: Probe, folder: str, btf: BtfFolder) -> Known:
    name, _, offset = probe.target.partition("+")
    found = None if int(offset or "0", 0) else btf.function(name.rpartition(":")[2])
    if found:
        return _of_function(*found)
    return Known() if offset else _registers(LONG)


def _hook(probe: Probe, folder: str, btf: BtfFolder) -> Known:
    found = btf.function(f"bpf_lsm_{probe.target}")
    return _of_function(*found) if found else Known()


def _user_function(probe: Probe, folder: str, btf: BtfFolder) -> Known:
    return _registers(UNSIGNED_LONG)


# --- USDT ---------------------------------------------------------------------------------------------------------

_WORDS = {1: "char", 2: "short", 4: "int", 8: "long"}
_NOTE = re.compile(r"([-+]?)(\d+)@")


def _usdt(probe: Probe, folder: str, btf: BtfFolder) -> Known:
    return _of_texts(None, operands([spot.arguments for spot in usdt.find(probe, folder).spots]), None)


def operands(places: Sequence[Sequence[usdt.Argument]]) -> list[Argument]:
    """Return the arguments of a USDT probe that are passed so at its places."""
    count = max(map(len, places), default=0)
    return [Argument(f"arg{n}", _operand([way[n] for way in places if len(way) > n]), n) for n in range(count)]


def _operand(ways: Sequence[usdt.Argument]) -> Type:
    """Return the type of an argument that is passed in these ways: the widest, signed where one is."""
    if not all(way.c for way in ways):
        return Type("...", "unknown")
    notes = [note.groups() if (note := _NOTE.match(way.text)) else ("", "8") for way in ways]
    size = max(int(size) for _, size in notes)
    signed = any(sign == "-" for sign, _ in notes)
    return integer(f"{'' if signed else 'unsigned '}{_WORDS.get(size, 'long')}", size, signed=signed)


def format_of(event: str) -> str:
    """Return an event's format file, "" where there is none, or no tracefs."""
    try:
        with (tracefs.root() / f"events/{event}/format").open() as file:
            return file.read(_MAX_FORMAT)
    except (OSError, SetupError):
        return ""


_READERS: dict[str, Callable[[Probe, str, BtfFolder], Known]] = {
    **dict.fromkeys(("syscall", "sysret"), _syscall),
    **dict.fromkeys(("kprobe", "kretprobe", "fentry", "fexit"), _function),
    "lsm": _hook,
    "tracepoint": _tracepoint,
    "rawtracepoint": _rawtracepoint,
    **dict.fromkeys(("uprobe", "uretprobe"), _user_function),
    "usdt": _usdt,
}
