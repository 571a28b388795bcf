"""Find functions by their names in C++ and Rust: ``app::Order::total(int, int)`` for ``_ZN3app5Order5totalEii``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from typing import NamedTuple

from bpfnb.tracer.symbols.demangle import Demangler

__all__ = ["Signature", "find", "is_long", "related"]

_MAX_CANDIDATES = 20_000  # names to demangle; a large library has some hundred thousand
_MAX_TEXT = 3 << 20  # characters of demangled names
_MAX_NESTING = 32  # templates in templates
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*", re.ASCII)


class Signature(NamedTuple):
    """A demangled name. ``full``: "app::Order::total(int) const", no return type. ``bare``: "app::Order::total"."""

    mangled: str
    full: str
    bare: str


def is_long(name: str) -> bool:
    """Return whether a name is written as in C++ or Rust, not mangled."""
    return "::" in name or "(" in name


def find(name: str, mangled: Iterable[str]) -> list[Signature]:
    """Return the function that is written exactly so, else all of this name, whatever their parameters."""
    found = _signatures(mangled, _identifiers(_split(name)[0])[-1:])
    exact = [s for s in found if _squeezed(s.full) == _squeezed(name)]
    return exact or [s for s in found if _squeezed(s.bare) == _squeezed(name)]


def related(name: str, mangled: Iterable[str]) -> list[Signature]:
    """Return functions that may be meant: those of the same last name in any class, else of the same namespace."""
    names = list(mangled)
    identifiers = _identifiers(_split(name)[0])
    last = _signatures(names, identifiers[-1:])
    same = [s for s in last if _identifiers(s.bare)[-1:] == identifiers[-1:]]
    return same or _signatures(names, identifiers[:1])


def _signatures(mangled: Iterable[str], identifiers: list[str]) -> list[Signature]:
    """Demangle the names that contain the identifiers, which mangled names write after their lengths."""
    spelt = [f"{len(identifier)}{identifier}" for identifier in identifiers if identifier != "std"]
    chosen = [name for name in mangled if name.startswith("_Z") and all(part in name for part in spelt)]
    chosen = list(dict.fromkeys(chosen))[:_MAX_CANDIDATES]
    shown = Demangler().names([name.encode() for name in chosen])
    pairs = [(name, text) for name, text in zip(chosen, shown, strict=True) if text != name]
    ends = itertools.accumulate(len(text) for _, text in pairs)
    return [_signature(name, text) for (name, text), end in zip(pairs, ends, strict=True) if end <= _MAX_TEXT]


def _signature(mangled: str, text: str) -> Signature:
    head, parameters = _split(text)
    # A template's instance has its return type before: "int app::convert<int>(int)".
    before = _last_space(head.partition("operator")[0] if "operator" in head else head)
    bare = head[before + 1 :]
    return Signature(mangled, bare + parameters, bare)


def _split(name: str) -> tuple[str, str]:
    """Split a name from its parameters and what follows them: the outermost brackets at its end."""
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
    """Return the last space outside of all brackets, -1 where there is none."""
    depth = 0
    for at in range(len(head) - 1, -1, -1):
        depth += (head[at] in ")>") - (head[at] in "(<")
        if head[at] == " " and not depth:
            return at
    return -1


def _identifiers(bare: str) -> list[str]:
    """Return the identifiers that "::" separates, without template arguments, destructors and operators."""
    plain = bare
    for _ in range(_MAX_NESTING):
        plain = re.sub(r"<[^<>]*>", "", plain)
    return [part for part in plain.split("::") if _IDENTIFIER.fullmatch(part) and not part.startswith("operator")]


def _squeezed(name: str) -> str:
    return re.sub(r"\s+", "", name)
