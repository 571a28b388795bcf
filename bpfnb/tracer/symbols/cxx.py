"""Find functions by their names in C++ and Rust: ``app::Order::total(int, int)`` for ``_ZN3app5Order5totalEii``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from typing import NamedTuple

from bpfnb.tracer.symbols.demangle import Demangler

__all__ = ["Signature", "find", "is_long", "related"]

_MAX_CANDIDATES = 20_000  # names to demangle: a large library has some hundred thousand
_MAX_TEXT = 3 << 20  # characters of them, demangled
_DEEPEST = 32  # templates in templates
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*", re.ASCII)


class Signature(NamedTuple):
    """``full``: "app::Order::total(int) const", without the type it returns. ``bare``: "app::Order::total"."""

    mangled: str
    full: str
    bare: str


def is_long(name: str) -> bool:
    """Whether a name is one of C++ or Rust, as people write it."""
    return "::" in name or "(" in name


def find(name: str, mangled: Iterable[str]) -> list[Signature]:
    """The functions of that name: just the one with its parameters, else all that have it before their parameters."""
    found = _signatures(mangled, _identifiers(_split(name)[0])[-1:])
    exact = [s for s in found if _squeezed(s.full) == _squeezed(name)]
    return exact or [s for s in found if _squeezed(s.bare) == _squeezed(name)]


def related(name: str, mangled: Iterable[str]) -> list[Signature]:
    """Functions that may be meant: of the same last name, whatever their class; else those of the same namespace."""
    names = list(mangled)
    identifiers = _identifiers(_split(name)[0])
    last = _signatures(names, identifiers[-1:])
    same = [s for s in last if _identifiers(s.bare)[-1:] == identifiers[-1:]]
    return same or _signatures(names, identifiers[:1])


def _signatures(mangled: Iterable[str], identifiers: list[str]) -> list[Signature]:
    """Those of names that have the identifiers in them, which mangled names spell with their lengths."""
    spelt = [f"{len(identifier)}{identifier}" for identifier in identifiers if identifier != "std"]
    chosen = [name for name in mangled if name.startswith("_Z") and all(part in name for part in spelt)]
    chosen = list(dict.fromkeys(chosen))[:_MAX_CANDIDATES]
    shown = Demangler().names([name.encode() for name in chosen])
    pairs = [(name, text) for name, text in zip(chosen, shown, strict=True) if text != name]
    ends = itertools.accumulate(len(text) for _, text in pairs)
    return [_signature(name, text) for (name, text), end in zip(pairs, ends, strict=True) if end <= _MAX_TEXT]


def _signature(mangled: str, text: str) -> Signature:
    head, parameters = _split(text)
    # Of a template's instance the type it returns stands before: "int app::convert<int>(int)".
    before = _last_space(head.partition("operator")[0] if "operator" in head else head)
    bare = head[before + 1 :]
    return Signature(mangled, bare + parameters, bare)


def _split(name: str) -> tuple[str, str]:
    """A name, and its parameters with what follows: the outermost brackets that end it."""
    match = re.search(r"\)[\s\w&]*$", name)
    if not match:
        return name, ""
    depth = 0
    for at in range(match.start(), -1, -1):
        depth += (name[at] == ")") - (name[at] == "(")
        if not depth:
            return name[:at], name[at:]
    return name, ""


def _last_space(head: str) -> int:
    """The last space outside of all brackets, -1 where there is none."""
    depth = 0
    for at in range(len(head) - 1, -1, -1):
        depth += (head[at] in ")>") - (head[at] in "(<")
        if head[at] == " " and not depth:
            return at
    return -1


def _identifiers(bare: str) -> list[str]:
    """The parts of a name that "::" separates, without the arguments of templates; of "~Order" and operators none."""
    plain = bare
    for _ in range(_DEEPEST):
        plain = re.sub(r"<[^<>]*>", "", plain)
    return [part for part in plain.split("::") if _IDENTIFIER.fullmatch(part) and not part.startswith("operator")]


def _squeezed(name: str) -> str:
    return re.sub(r"\s+", "", name)
