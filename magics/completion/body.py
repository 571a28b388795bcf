"""What fits in the C of a cell: members, methods, fields, helpers, macros, the cell's and the kernel's names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from bpfnb.host.tracer import Tracer
from bpfnb.language.editing.cursor import Spot, spot_at, tracepoint_of
from bpfnb.language.editing.meanings import KEYWORDS, TYPES, method, words
from bpfnb.language.editing.scope import Scope
from bpfnb.language.editing.types import CType
from bpfnb.language.probes import KINDS
from bpfnb.language.signature import Argument
from bpfnb.language.vocabulary import PROBES, TABLES
from bpfnb.protocol.messages import NamesFound, TypeDescribed

from .asking import asker
from .line import Item, probes

__all__ = ["complete", "describe", "fields", "kernel_names"]

_MAX_MEMBERS = 1000
_MAX_NAMES = 200
_MAX_TRACEPOINTS = 10_000
_MIN_LETTERS = 2  # of a name, before the kernel's are offered: it has tens of thousands
_SPELT = re.compile(r"(?:tracepoint|kprobe|kretprobe|syscall|raw_tracepoint|kfunc|kretfunc|lsm)__\w*")


def complete(code: str, at: int, until: float) -> tuple[str, list[Item]]:
    """Return the part of a word before an offset of C, and what it may become."""
    spot = spot_at(code, at)
    match spot.kind:
        case "member" | "initializer":
            found: Iterable[Item] = _members(spot, until)
        case "macro":
            found = _of_macro(spot, until)
        case "probe":
            found = probes(spot.word, until)
        case "tag":
            found = _tags(spot, until)
        case "name":
            found = _names(spot, until)
        case _:
            found = ()
    unique: dict[str, Item] = {}
    for item in found:
        if item.text.startswith(spot.word):
            unique.setdefault(item.text, item)
    return spot.word, list(unique.values())


def prefetch() -> None:
    """Have the tracer read the kernel's types, which takes a while the first time: they will be asked for."""
    asker.ask(("type", "struct task_struct", ()), _first, 0.0)


def _first(tracer: Tracer) -> TypeDescribed:
    return tracer.describe_type("struct task_struct", (), _MAX_MEMBERS)


# --- behind . and -> ----------------------------------------------------------------------------------------------


def _members(spot: Spot, until: float) -> Iterator[Item]:
    scope, owner = spot.scope, spot.owner
    if not scope:
        return
    if owner.table:
        table = scope.tables[owner.table]
        for name in TABLES[table.macro].methods:
            if known := method(table.macro, table.name, name, table.key, table.value):
                yield Item(name, known.signature.replace(f"{table.name}.{name}", "", 1))
        return
    own = scope.types.members(owner)
    if own is not None:
        yield from (Item(field.name, field.text) for field in own)
        return
    plain = scope.types.plain(owner)
    if probe := tracepoint_of(plain):
        yield from (Item(name, argument.type.text) for name, argument in fields(probe, until))
        return
    known_type = describe(plain, until)
    if known_type and not known_type.text.startswith("enum"):
        yield from (Item(member.name, member.type) for member in known_type.members)


def fields(probe: str, until: float) -> list[tuple[str, Argument]]:
    """Return the fields of a tracepoint under the names that bcc's C has for them."""
    known = asker.ask(("describe", probe), lambda tracer: tracer.describe([probe], [], 1), until)
    found = [argument for signature in known or () for argument in signature.arguments]
    return [(f"data_loc_{argument.name}" if argument.located else argument.name, argument) for argument in found]


def describe(type_: CType, until: float) -> TypeDescribed | None:
    """Return what the kernel knows of a type."""
    if not type_.name or type_.name.startswith("#"):
        return None
    key = ("type", type_.name, type_.path)
    found = asker.ask(key, lambda tracer: tracer.describe_type(type_.name, type_.path, _MAX_MEMBERS), until)
    return found if found and found.text else None


# --- names --------------------------------------------------------------------------------------------------------


def _tags(spot: Spot, until: float) -> Iterator[Item]:
    keyword = spot.given[0]
    for name in spot.scope.types.structs if spot.scope else ():
        if name.startswith(f"{keyword} "):
            yield Item(name.partition(" ")[2], f"{keyword} of the cell")
    found = kernel_names(spot.word, until) if spot.word else None
    for name, kind in zip(found.names, found.kinds, strict=True) if found else ():
        if kind == keyword:
            yield Item(name, f"{keyword} of the kernel")


def _names(spot: Spot, until: float) -> Iterator[Item]:
    scope = spot.scope
    assert scope
    yield from _of_cell(scope)
    if scope.inside:
        for meaning in words().values():
            if meaning.name not in TABLES and meaning.name not in PROBES:
                yield Item(meaning.name, meaning.signature.replace(meaning.name, "", 1).strip())
    else:
        for meaning in words().values():
            if meaning.kind == "macro" and not meaning.name.startswith("PT_REGS"):
                yield Item(meaning.name, "macro")
        yield from _spelt(spot.word, until)
    yield from (Item(name, "type") for name in TYPES)
    yield from (Item(name, "keyword") for name in KEYWORDS)
    if len(spot.word) >= _MIN_LETTERS and (found := kernel_names(spot.word, until)):
        for name, kind, value in zip(found.names, found.kinds, found.values, strict=True):
            if kind in ("typedef", "constant"):
                yield Item(name, f"= {value}" if kind == "constant" else "type of the kernel")


def _of_cell(scope: Scope) -> Iterator[Item]:
    yield from (Item(name, found.text) for name, found in scope.variables.items())
    yield from (Item(name, table.macro) for name, table in scope.tables.items())
    yield from (Item(name, f"{returns} ()") for name, returns in scope.functions.items())
    yield from (Item(name, f"#define {text}") for name, text in scope.macros.items())
    yield from (Item(name, enum) for name, enum in scope.types.constants.items())
    yield from (Item(name, "type of the cell") for name in scope.types.typedefs)


def kernel_names(start: str, until: float) -> NamesFound | None:
    """Return the kernel's types and constants whose names begin so."""
    return asker.ask(("names", start), lambda tracer: tracer.find_names(start, _MAX_NAMES), until)


# --- probes by name -----------------------------------------------------------------------------------------------


def _of_macro(spot: Spot, until: float) -> Iterator[Item]:
    """Yield the arguments of TRACEPOINT_PROBE( and the like."""
    kind = PROBES[spot.macro].kind
    if kind == "tracepoint":
        targets = _targets("tracepoint", f"{spot.given[0]}:" if spot.given else "", until)
        place = len(spot.given)
        found = dict.fromkeys(target.split(":")[place] for target in targets)
        yield from (Item(name, "tracepoint" if place else "category") for name in found)
    elif kind and not spot.given:
        yield from (Item(name, kind) for name in _targets(kind, spot.word, until))


def _spelt(word: str, until: float) -> Iterator[Item]:
    """Yield names of functions that attach by themselves: kprobe__vfs_read, tracepoint__sched__sched_switch."""
    if not _SPELT.fullmatch(word):
        return
    for kind in KINDS.values():
        prefix = kind.function_prefix
        if prefix and word.startswith(prefix):
            start = word.removeprefix(prefix)
            start = start.replace("__", ":", 1) if kind.name == "tracepoint" else start
            for target in _targets(kind.name, start, until):
                yield Item(prefix + target.replace(":", "__"), kind.name)


def _targets(kind: str, start: str, until: float) -> list[str]:
    limit = _MAX_TRACEPOINTS if kind == "tracepoint" else _MAX_NAMES
    found = asker.ask(("targets", kind, start), lambda t: t.find_probes(f"{kind}:{start}*", limit), until)
    names = (found or ((), 0))[0]
    return [target for name in names if (target := name.partition(":")[2]).startswith(start)]
