"""Fields of tracepoints and parameters of system calls, from the format files of tracefs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from msgspec.structs import replace

from bpfnb.language.signature import Argument, Type
from bpfnb.tracer.signatures.types import is_length, pointer

__all__ = ["Field", "fields", "parameters", "parse_format", "type_called"]

_FIELD = re.compile(r"^\tfield:([^;]*);\s*offset:(\d+);\s*size:(\d+);(?:\s*signed:(\d+);)?", re.M)
_DECLARATION = re.compile(r"(?P<type>.*?[\s*\]])\s*(?P<name>\w+)(?P<dimensions>(?:\[[^\]]*\])*)", re.S)
_NUMBERS = frozenset(("__syscall_nr", "nr"))
_NAMES_A_STRING = re.compile(r"\w*name|type")  # of a parameter "char *" that the kernel only reads

Called = Callable[[str], Type | None]  # the type of this name, without pointers and qualifiers


class Field(NamedTuple):
    """A line of a format file. ``dimensions``: "[16]", or "". ``located``: how the text begins, "__data_loc", or ""."""

    type: str
    name: str
    dimensions: str
    size: int
    signed: bool
    located: str


def parse_format(text: str) -> list[Field]:
    """Return an event's own fields: those of every event, common_*, are left out."""
    found = []
    for declaration, _, size, signed in _FIELD.findall(text):
        match = _DECLARATION.fullmatch(declaration.strip())
        if not match or match["name"].startswith("common_"):
            continue
        type_, located = match["type"].strip(), ""
        if type_.startswith(("__data_loc ", "__rel_loc ")):
            located, _, type_ = type_.partition(" ")
        type_, _, inner = type_.partition("[")  # "__data_loc char[] name"
        dimensions = match["dimensions"] or (f"[{inner}" if inner else "")
        type_ = re.sub(r"\s*\*\s*", " *", type_.strip()).replace("* *", "**")
        found.append(Field(type_.strip(), match["name"], dimensions, int(size), signed == "1", located))
    return found


def fields(text: str, called: Called) -> list[Argument]:
    """Return a tracepoint's fields. Their sizes and signs are what the format file says.

    But the entry of a system call has registers: their types are the parameters'.
    """
    found = parse_format(text)
    made = [Argument(f.name, _type_of(f, called), i, bool(f.located)) for i, f in enumerate(found)]
    if not re.match(r"name: sys_enter_", text):
        return made
    declared = {a.name: a.type for a in parameters(text, called)}
    return [replace(a, type=declared.get(a.name, a.type)) for a in made]


def parameters(text: str, called: Called) -> list[Argument]:
    """Return a system call's parameters, of the format file of its entry. Pointers are the process's.

    A format file has the registers: their sizes say nothing of the parameters'.
    """
    found = [field for field in parse_format(text) if field.name not in _NUMBERS]
    made = [_parameter(field, called) for field in found]
    for position, (type_, field) in enumerate(zip(made, found, strict=True)):
        after = found[position + 1 : position + 2]
        bounded = bool(after) and is_length(after[0].name, made[position + 1])
        if type_.kind == "string" and bounded:
            made[position] = replace(type_, kind="pointer")
        elif type_.text == "char *" and not bounded and _NAMES_A_STRING.fullmatch(field.name):
            made[position] = replace(type_, kind="string")
    return [Argument(f.name, t, i) for i, (f, t) in enumerate(zip(found, made, strict=True))]


def type_called(text: str, called: Called, *, user: bool = False) -> Type | None:
    """Return the type that C text such as "const struct iovec *" names; None for a name that is not known."""
    text = text.strip()
    if text.endswith("const") and "*" in text:
        inner = type_called(text.removesuffix("const"), called, user=user)
        return inner and replace(inner, text=text)
    if text.endswith("*"):
        return pointer(type_called(text[:-1], called), text, user=user)
    words = [word for word in text.split() if word not in ("const", "volatile")]
    found = called(" ".join(words))
    return found and replace(found, text=text)


def _parameter(field: Field, called: Called) -> Type:
    known = type_called(field.type, called, user=True)
    return known or Type(field.type, "unknown", field.size)


def _type_of(field: Field, called: Called) -> Type:
    known = type_called(field.type, called)
    if field.located == "__rel_loc":
        return Type(field.type, "unknown", field.size)
    if field.dimensions:
        return _array(field, known)
    if known is None or known.kind in ("unknown", "void", "array"):
        whole = field.size in (1, 2, 4, 8)
        return Type(field.type, "int" if whole else "unknown", field.size, field.signed)
    if known.kind in ("int", "enum", "bool"):
        return replace(known, size=field.size, signed=field.signed)
    return known


def _array(field: Field, element: Type | None) -> Type:
    text = f"{field.type} {'[]' if field.located else field.dimensions}"
    characters = field.type in ("char", "const char")
    size = 0 if field.located else field.size
    count = size // element.size if element and element.size else 0
    return Type(text, "string" if characters else "array", size, to=element, count=count)
