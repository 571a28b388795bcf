"""C types as signatures show them, made of BTF and of C's own words.

KernelTypes(types)        the types of one BTF blob: of(number), called("struct sock"), function("vfs_read")
plain_type("size_t")      what is known without BTF
pointer(type)             the type of a pointer to it
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import NamedTuple

from msgspec.structs import replace

from bpfnb.errors import BpfnbError
from bpfnb.language.signature import Type, TypeKind
from bpfnb.tracer.kernel import btf
from bpfnb.tracer.kernel.btf import Member, Types

__all__ = ["UNSIGNED_LONG", "Function", "KernelTypes", "Parameter", "integer", "is_length", "plain_type", "pointer"]

_MAX_VALUES = 256  # of an enumeration
_MAX_NESTING = 16  # pointers to pointers, structs without a name in structs
_POINTER = 8  # bytes: BPF is a machine of 64 bits
_SIGNED, _BOOL = 1, 4  # an integer's encoding
_BIG_ENDIAN = re.compile(r"__be(?:16|32|64)")
_FIXED = re.compile(r"_{0,2}(?P<sign>[us])(?P<bits>8|16|32|64)|(?P<not>u?)int(?P<width>8|16|32|64)_t")
_LENGTH = re.compile(r"(?:.*_)?(?:len|length|size|count|bufsiz|n|nbytes)")

# As gcc's DWARF, and so BTF, spells them.
_WORDS = {
    "long unsigned int": "unsigned long",
    "long int": "long",
    "long long unsigned int": "unsigned long long",
    "long long int": "long long",
    "short unsigned int": "unsigned short",
    "short int": "short",
    "__int128 unsigned": "unsigned __int128",
    "_Bool": "bool",
}
_SIZES = {"char": 1, "short": 2, "int": 4, "long": 8, "long long": 8}
# Types of system calls' parameters and of tracepoints' fields, for kernels without BTF: size, and whether signed.
_USUAL = {
    "size_t": (8, False), "ssize_t": (8, True), "loff_t": (8, True), "off_t": (8, True), "pid_t": (4, True),
    "uid_t": (4, False), "gid_t": (4, False), "umode_t": (2, False), "dev_t": (4, False), "ino_t": (8, False),
    "sector_t": (8, False), "gfp_t": (4, False), "key_serial_t": (4, True), "mqd_t": (4, True), "timer_t": (4, True),
    "clockid_t": (4, True), "aio_context_t": (8, False), "qid_t": (4, False), "rwf_t": (4, True), "uint": (4, False),
    "__be16": (2, False), "__be32": (4, False), "__be64": (8, False),
}  # fmt: skip


def integer(text: str, size: int, *, signed: bool) -> Type:
    """Return an integer type of this name."""
    return Type(text, "int", size, signed, big_endian=bool(_BIG_ENDIAN.fullmatch(text)))


UNSIGNED_LONG = integer("unsigned long", 8, signed=False)


def plain_type(text: str) -> Type | None:
    """Return a type that C itself, or every kernel, has; None for another."""
    if text in ("bool", "_Bool"):
        return Type("bool", "bool", 1)
    if text == "void":
        return Type("void", "void")
    if found := _FIXED.fullmatch(text):
        return integer(
            text, int(found["bits"] or found["width"]) // 8, signed=found["sign"] == "s" or found["not"] == ""
        )
    if text in _USUAL:
        return integer(text, _USUAL[text][0], signed=_USUAL[text][1])
    words = _WORDS.get(text, text).split()
    unsigned = "unsigned" in words
    rest = [word for word in words if word not in ("unsigned", "signed")]
    base = " ".join(word for word in rest if word != "int" or rest == ["int"]) or "int"
    return integer(text, _SIZES[base], signed=not unsigned) if words and base in _SIZES else None


def pointer(to: Type | None, text: str, *, user: bool = False) -> Type:
    """Return a pointer. One to const characters is a string."""
    string = to is not None and to.text == "const char"
    return Type(text, "string" if string else "pointer", _POINTER, user=user, to=to)


def is_length(name: str, type_: Type) -> bool:
    """Return whether a parameter gives the length of the one before it, which then need not end in a NUL."""
    return type_.kind == "int" and (type_.text == "size_t" or bool(_LENGTH.fullmatch(name)))


class Parameter(NamedTuple):
    """A parameter of a function. ``number``: its type's; ``register``: the first it is passed in, -1 for none."""

    name: str
    type: Type
    number: int
    register: int


class Function(NamedTuple):
    """A prototype. ``number``: of the type that is returned."""

    parameters: tuple[Parameter, ...]
    returns: Type
    number: int


class KernelTypes:
    """The types of a BTF blob as signatures have them. Made when they are asked for, and kept."""

    def __init__(self, types: Types) -> None:
        self._types = types
        self._made: dict[int, Type] = {}

    # --- by name --------------------------------------------------------------------------------------------------

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """Types by the names that C has for them: "struct sock", "pid_t"."""
        before = {btf.STRUCT: "struct ", btf.UNION: "union ", btf.ENUM: "enum ", btf.ENUM64: "enum ", btf.TYPEDEF: ""}
        found: dict[str, int] = {}
        for number, type_ in enumerate(self._types.all):
            if type_.name and type_.kind in before:
                found.setdefault(before[type_.kind] + type_.name, number)
        return found

    @cached_property
    def functions(self) -> dict[str, int]:
        """The numbers of functions by name, in the order of the blob."""
        return {type_.name: number for number, type_ in enumerate(self._types.all) if type_.kind == btf.FUNC}

    def number(self, text: str) -> int:
        """Return the number of the type called so ("struct sock", "pid_t"), 0 where there is none."""
        return self._numbers.get(text, 0)

    def called(self, text: str) -> Type | None:
        """Return the type called so, without pointers and qualifiers; None where there is none."""
        number = self.number(text)
        return self.of(number) if number else plain_type(text)

    # --- by number ------------------------------------------------------------------------------------------------

    def of(self, number: int) -> Type:
        """Return a type. SetupError where the BTF contradicts itself."""
        if number not in self._made:
            try:
                self._made[number] = self._make(number, 0)
            except IndexError:
                raise self._types.broken(f"it has no type {number}, or none that it needs") from None
        return self._made[number]

    def target(self, number: int) -> int:
        """Return what a pointer points to or an array consists of, -1 where it is neither."""
        plain = self._types.plain(number)
        type_ = self._types.all[plain]
        if type_.kind == btf.ARRAY:
            return self._types.array(plain)[0]
        return type_.ref if type_.kind == btf.PTR else -1

    def function(self, name: str) -> Function | None:
        """Return the prototype of a function, None where there is no such."""
        number = self.functions.get(name)
        return None if number is None else self.prototype(self._types.all[number].ref)

    def prototype(self, number: int) -> Function | None:
        """Return a prototype by its number, that of a typedef of a pointer to it too. None where it is no such."""
        plain = self._types.plain(number)
        if self._types.all[plain].kind == btf.PTR:
            plain = self._types.plain(self._types.all[plain].ref)
        type_ = self._types.all[plain]
        if type_.kind != btf.FUNC_PROTO:
            return None
        parameters: list[Parameter] = []
        register = 0
        for position, (name, to) in enumerate(self._types.parameters(plain)):
            if not to:
                break  # "..."
            made = self.of(to)
            taken = max((made.size + 7) // 8, 1)
            in_memory = made.kind == "float" or taken > 2
            parameters.append(Parameter(name or f"arg{position}", made, to, -1 if in_memory else register))
            register += 0 if in_memory else taken
        return Function(tuple(_without_buffers(parameters)), self.of(type_.ref), type_.ref)

    def members(self, number: int) -> dict[str, tuple[Member, int]]:
        """Return the members of a struct or union by name, those of members without a name among them.

        The second is the number of the struct that has it. Of what is no struct: none.
        """
        found: dict[str, tuple[Member, int]] = {}
        todo = [(self._types.plain(number), 0)]
        while todo:
            plain, depth = todo.pop()
            if self._types.all[plain].kind not in (btf.STRUCT, btf.UNION):
                continue
            for member in self._types.members(plain):
                if member.name:
                    found.setdefault(member.name, (member, plain))
                elif depth < _MAX_NESTING:
                    todo.append((self._types.plain(member.type_id), depth + 1))
        return found

    def laid_out(self, number: int) -> list[Member]:
        """Return the members of a struct or union as declared, with those of members without a name in their place.

        ``bit``: from the beginning of the whole. Of what is no struct: none.
        """
        found: list[Member] = []
        todo = [(self._types.plain(number), 0, 0)]
        while todo:
            plain, at, depth = todo.pop()
            if self._types.all[plain].kind not in (btf.STRUCT, btf.UNION):
                continue
            for member in self._types.members(plain):
                moved = member._replace(bit=at + member.bit)
                if member.name:
                    found.append(moved)
                elif depth < _MAX_NESTING:
                    todo.append((self._types.plain(member.type_id), moved.bit, depth + 1))
        return sorted(found, key=lambda member: member.bit)

    @cached_property
    def names(self) -> list[tuple[str, str, int]]:
        """Types and constants, sorted: name, "struct", "union", "enum", "typedef" or "constant", and its value."""
        words = {btf.STRUCT: "struct", btf.UNION: "union", btf.ENUM: "enum", btf.ENUM64: "enum", btf.TYPEDEF: "typedef"}
        found: set[tuple[str, str, int]] = set()
        for number, type_ in enumerate(self._types.all):
            if type_.name and (word := words.get(type_.kind)):
                found.add((type_.name, word, 0))
            if type_.kind in (btf.ENUM, btf.ENUM64):
                found |= {(name, "constant", value) for name, value in self._types.constants(number)}
        return sorted(found)

    def meaning(self, number: int) -> str:
        """Return what a typedef stands for, as C writes it; "" of what is none."""
        type_ = self._types.all[number]
        return self.of(type_.ref).text if type_.kind == btf.TYPEDEF else ""

    def name(self, number: int) -> str:
        """Return the name of a struct, "" where it has none."""
        return self._types.all[number].name

    def _make(self, number: int, depth: int) -> Type:
        if depth > _MAX_NESTING:
            return Type("...", "unknown")
        type_ = self._types.all[number]
        match type_.kind:
            case 0:
                return Type("void", "void")
            case btf.TYPEDEF:
                return self._named(type_.name, self._make(type_.ref, depth + 1))
            case btf.CONST | btf.VOLATILE:
                word = "const" if type_.kind == btf.CONST else "volatile"
                return _qualified(word, self._make(type_.ref, depth + 1))
            case btf.RESTRICT | btf.TYPE_TAG:
                return self._make(type_.ref, depth + 1)
            case btf.PTR:
                return self._pointer(type_.ref, depth)
            case btf.ARRAY:
                return self._array(number, depth)
        return self._base(number)

    def _named(self, name: str, meant: Type) -> Type:
        return replace(meant, text=name, big_endian=bool(_BIG_ENDIAN.fullmatch(name)))

    def _pointer(self, ref: int, depth: int) -> Type:
        target = self._types.all[ref]
        if target.kind == btf.FUNC_PROTO:
            return Type("void (*)()", "pointer", _POINTER)
        to = self._make(ref, depth + 1)
        text = f"{to.text}*" if to.text.endswith("*") else f"{to.text} *"
        return pointer(to, text, user=target.kind == btf.TYPE_TAG and target.name == "user")

    def _array(self, number: int, depth: int) -> Type:
        element, shape = self._types.array(number)
        # array() looks behind typedefs; the text is for what was written.
        to = self._make(_written_element(self._types, number), depth + 1)
        while to.kind == "array" and to.to:
            to = to.to
        count = 1
        for length in shape:
            count *= length
        dimensions = "".join(f"[{length}]" for length in shape)
        kind: TypeKind = "string" if to.text in ("char", "const char") and len(shape) == 1 else "array"
        return Type(f"{to.text} {dimensions}", kind, self._types.size(element) * count, to=to, count=count)

    def _base(self, number: int) -> Type:
        type_ = self._types.all[number]
        name = _WORDS.get(type_.name, type_.name)
        match type_.kind:
            case btf.INT:
                encoding = self._encoding(number)
                kind: TypeKind = "bool" if encoding & _BOOL or name == "bool" else "int"
                return Type(name, kind, type_.ref, bool(encoding & _SIGNED))
            case btf.FLOAT:
                return Type(name, "float", type_.ref, signed=True)
            case btf.STRUCT | btf.UNION:
                word = "struct" if type_.kind == btf.STRUCT else "union"
                return Type(f"{word} {name}" if name else f"{word} {{...}}", "struct", type_.ref)
            case btf.ENUM | btf.ENUM64:
                constants = tuple(self._types.constants(number)[:_MAX_VALUES])
                signed = type_.flag or any(value < 0 for _, value in constants)
                return Type(f"enum {name}" if name else "enum {...}", "enum", type_.ref, signed, values=constants)
            case btf.FWD:
                return Type(f"{'union' if type_.flag else 'struct'} {name}", "struct")
        return Type(name or "...", "unknown")

    def _encoding(self, number: int) -> int:
        try:
            return self._types.encoding(number)
        except BpfnbError:
            return 0  # a bit-field of old: the kernel has none


def _written_element(types: Types, number: int) -> int:
    """Return the element type of an array as it was written, of the innermost where arrays are nested."""
    element = types.element(number)
    for _ in range(_MAX_NESTING):
        if types.all[element].kind != btf.ARRAY:
            break
        element = types.element(element)
    return element


def _qualified(word: str, type_: Type) -> Type:
    """Return a type with a qualifier: after the star of a pointer, before anything else."""
    if type_.text.endswith("*"):
        return replace(type_, text=f"{type_.text}{word}")
    return replace(type_, text=f"{word} {type_.text}")


def _without_buffers(parameters: list[Parameter]) -> list[Parameter]:
    """Return the parameters, with pointers for strings of a given length."""
    after = [*parameters[1:], None][: len(parameters)]
    return [
        p._replace(type=replace(p.type, kind="pointer"))
        if p.type.kind == "string" and q and is_length(q.name, q.type)
        else p
        for p, q in zip(parameters, after, strict=True)
    ]
