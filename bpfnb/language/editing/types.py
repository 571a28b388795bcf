"""Types of C as a cell's text has them: declared ones, and references to them that may lead into the kernel's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from bpfnb.language.syntax import Node, walk

__all__ = ["CType", "Declared", "Field", "Types", "text_of", "type_named"]

_QUALIFIERS = frozenset(("const", "volatile", "static", "extern", "register", "restrict", "inline"))
_DEEPEST = 16
_BODIES = {"struct_specifier": "struct", "union_specifier": "union", "enum_specifier": "enum"}


class CType(Struct, frozen=True):
    """A type: ``name`` ("struct task_struct", "u32"; "" where it is not known), and ``stars``: how many pointers and
    arrays lead to it. ``path``: members followed from there, of a type that the cell does not declare; ``refs``: how
    many pointers to what the path leads to. ``table``: the map or output that it is instead."""

    name: str = ""
    stars: int = 0
    path: tuple[str, ...] = ()
    refs: int = 0
    table: str = ""

    @property
    def text(self) -> str:
        """The type as C writes it, as far as the cell's text says; "" of a member of the kernel's."""
        if self.path or not self.name:
            return ""
        return f"{self.name} {'*' * self.stars}" if self.stars else self.name

    def pointed(self) -> CType:
        """The type of a pointer to it."""
        return replace(self, refs=self.refs + 1) if self.path else replace(self, stars=self.stars + 1)

    def element(self) -> CType:
        """The type of what it points to, or consists of."""
        if self.path:
            return replace(self, refs=self.refs - 1) if self.refs else replace(self, path=(*self.path, "0"))
        return replace(self, stars=max(self.stars - 1, 0))


class Field(NamedTuple):
    """A member that the cell declares. ``text``: its type, as written."""

    name: str
    type: CType
    text: str


class Declared(NamedTuple):
    """A name that a declaration gives a type. ``text``: the type, as written."""

    name: str
    type: CType
    text: str


def type_named(text: str) -> CType:
    """Return the type that C's words name: "const struct sock *"."""
    words = [word for word in text.replace("*", " ").split() if word not in _QUALIFIERS]
    return CType(" ".join(words), text.count("*"))


def text_of(node: Node | None) -> str:
    return (node.text or b"").decode() if node else ""


class Types:
    """The structs, unions, enumerations and typedefs that a text declares."""

    def __init__(self, root: Node) -> None:
        self.structs: dict[str, list[Field]] = {}  # by name: "struct data_t", or "#123" where it has none
        self.typedefs: dict[str, CType] = {}
        self.constants: dict[str, str] = {}  # of enumerations, by name; the enumeration
        for node in walk(root):
            if node.type in _BODIES and node.child_by_field_name("body"):
                self._declare(node)
            elif node.type == "type_definition":
                for found in self.declared(node):
                    self.typedefs[found.name] = found.type

    def plain(self, type_: CType) -> CType:
        """Return the type behind the cell's typedefs."""
        for _ in range(_DEEPEST):
            meant = self.typedefs.get(type_.name)
            if type_.path or meant is None:
                break
            type_ = replace(meant, stars=meant.stars + type_.stars)
        return type_

    def members(self, type_: CType) -> list[Field] | None:
        """Return the members of a struct that the cell declares; None where it declares none such."""
        plain = self.plain(type_)
        return None if plain.path else self.structs.get(plain.name)

    def member(self, type_: CType, name: str) -> CType:
        """Return the type of a member."""
        own = self.members(type_)
        if own is not None:
            return next((field.type for field in own if field.name == name), CType())
        plain = self.plain(type_)
        if not plain.name:
            return CType()
        return CType(plain.name, 0, (*plain.path, name))

    def of(self, node: Node | None) -> CType:
        """Return the type that a declaration's type node names."""
        if node is None:
            return CType()
        if word := _BODIES.get(node.type):
            tag = text_of(node.child_by_field_name("name"))
            return CType(f"{word} {tag}" if tag else f"#{node.start_byte}")
        if node.type == "type_descriptor":
            base = self.of(node.child_by_field_name("type"))
            return _wrapped(base, node.child_by_field_name("declarator"))[1]
        return type_named(text_of(node))

    def declared(self, node: Node) -> Iterator[Declared]:
        """Yield the names that a declaration, a parameter, a member or a typedef declares."""
        kind = node.child_by_field_name("type")
        base = self.of(kind)
        written = _written(kind)
        for declarator in node.children_by_field_name("declarator"):
            name, type_ = _wrapped(base, declarator)
            if name:
                yield Declared(name, type_, _as_declared(written, declarator))

    def _declare(self, node: Node) -> None:
        body = node.child_by_field_name("body")
        assert body
        key = self.of(node).name
        if node.type == "enum_specifier":
            for constant in body.named_children:
                if name := text_of(constant.child_by_field_name("name")):
                    self.constants[name] = key if not key.startswith("#") else "enum"
            return
        self.structs.setdefault(key, []).extend(self._fields(body, 0))

    def _fields(self, body: Node, depth: int) -> Iterator[Field]:
        for node in body.named_children:
            if node.type.startswith("preproc_"):
                yield from self._fields(node, depth)
            if node.type != "field_declaration":
                continue
            found = list(self.declared(node))
            kind = node.child_by_field_name("type")
            inner = kind.child_by_field_name("body") if kind else None
            if not found and inner and depth < _DEEPEST:  # a struct without a name: its members are the outer's
                yield from self._fields(inner, depth + 1)
            yield from (Field(*one) for one in found)


def _wrapped(base: CType, declarator: Node | None) -> tuple[str, CType]:
    """Return the name that a declarator declares, and its type."""
    name = ""
    while declarator is not None:
        if declarator.type in ("identifier", "field_identifier", "type_identifier"):
            name = text_of(declarator)
            break
        if "pointer" in declarator.type or "array" in declarator.type:
            base = base.pointed()
        inner = declarator.child_by_field_name("declarator")
        if inner is None and declarator.type.endswith("parenthesized_declarator"):
            inner = declarator.named_children[0] if declarator.named_children else None
        declarator = inner
    return name, base


def _written(kind: Node | None) -> str:
    if kind is not None and kind.type in _BODIES:
        tag = text_of(kind.child_by_field_name("name"))
        return f"{_BODIES[kind.type]} {tag or '{...}'}"
    return " ".join(text_of(kind).split())


def _as_declared(written: str, declarator: Node) -> str:
    stars = sum(node.type.endswith("pointer_declarator") for node in walk(declarator))
    sizes = re.findall(r"\[[^\]]*\]", text_of(declarator).partition("=")[0])
    return f"{written}{' ' + '*' * stars if stars else ''}{' ' + ''.join(sizes) if sizes else ''}"
