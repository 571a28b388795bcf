"""The types of C as BTF records them, and what a value of such a type looks like in a row.

BTF is what a compiler, or the kernel's build, writes down of its own types: always the layout the program was compiled
with. The kernel's Documentation/bpf/btf.rst describes it.

    Types(btf)                  one blob's types, by number
    schema_of(types, type_id)   the Schema of a type: exact offsets, whatever is nested, packed, or a union
    same(types, a, b)           whether values of two types are told apart by nothing in their bytes
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from bpfnb.errors import SetupError, UnsupportedError
from bpfnb.protocol.schema import BitField, Bytes, Column, Enum, Number, NumberArray, Schema, Tail, Text, Wide

__all__ = [
    "ARRAY",
    "ENUM",
    "ENUM64",
    "FLOAT",
    "FUNC",
    "INT",
    "KERNELS",
    "KERNEL_BTF",
    "OTHER_NAMES",
    "PTR",
    "STRUCT",
    "TYPEDEF",
    "UNION",
    "Member",
    "Type",
    "Types",
    "btf_of",
    "function_ids",
    "same",
    "schema_of",
    "sections",
]

KERNEL_BTF = Path("/sys/kernel/btf/vmlinux")


def btf_of(root: Path = Path("/")) -> Path:
    """Return where the kernel shows its BTF below another root folder."""
    return root / KERNEL_BTF.relative_to("/")


# In front of a kernel's name that a cell has for something of its own (clashes.py).
KERNELS = "bpfnb_kernel_"

# What a type is (include/uapi/linux/btf.h).
_MAGIC = 0xEB9F
INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO = range(1, 14)
VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(14, 20)

# Bytes that follow the three words of a type: a fixed number, and a number for each of its vlen members.
_FOLLOWING = {
    INT: (4, 0), ARRAY: (12, 0), STRUCT: (0, 12), UNION: (0, 12), ENUM: (0, 8), FUNC_PROTO: (0, 8),
    VAR: (4, 0), DATASEC: (0, 12), DECL_TAG: (4, 0), ENUM64: (0, 12),
}  # fmt: skip
_FOLLOWING_WORDS = [tuple(n // 4 for n in _FOLLOWING.get(kind, (0, 0))) for kind in range(32)]
OTHER_NAMES = frozenset((TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG))
_SIZED = frozenset((INT, STRUCT, UNION, ENUM, FLOAT, ENUM64))
_SIGNED, _BOOL = 1, 4  # an integer's encoding
_POINTER = 8  # bytes: BPF is a machine of 64 bits
_DEEPEST = 32  # typedefs of typedefs, arrays of arrays: as far as the kernel follows them (MAX_RESOLVE_DEPTH)

_MAX_ELEMENTS = 64  # of an array that has a column an element

_ONE_WORD, _TWO_WORDS, _THREE_WORDS = struct.Struct("=I"), struct.Struct("=II"), struct.Struct("=III")


class Type(NamedTuple):
    """One record of BTF."""

    kind: int
    name: str
    vlen: int
    ref: int  # the type referred to, or the size
    at: int  # where the following bytes begin
    flag: bool  # of a struct: there are bit-fields; of an enumeration: its constants are signed


class Member(NamedTuple):
    """A member of a struct or union: ``bit`` is where it begins, ``width`` how many bits a bit-field has, else 0."""

    name: str
    type_id: int
    bit: int
    width: int


class Types:
    """The types of one BTF blob, by number; ``all[0]`` is void.

    ``whose``: the blob's owner, for the SetupError raised where it cannot be read. Records are indexed at once, what
    follows them is read when asked for: a blob that has a task_struct in it has thousands.
    """

    def __init__(self, btf: bytes, whose: str = "the program's") -> None:
        self._btf = btf
        self._whose = whose
        try:
            self._index(btf)
        except (struct.error, ValueError) as error:
            raise self.broken(str(error)) from None

    def broken(self, why: str) -> SetupError:
        return SetupError(f"{self._whose} BTF cannot be read: {why}")

    def extended(self, btf: bytes, whose: str) -> Types:
        """Return these types and those of a module's blob, whose numbers and strings go on where these end."""
        larger = Types.__new__(Types)
        larger._whose = whose
        try:
            types, strings = sections(btf)
            own, _ = sections(self._btf)
            larger._btf = self._btf[: own.stop] + btf[types.start : types.stop]
            larger._strings = self._strings + btf[strings.start : strings.stop]
            larger.all = self.all.copy()
            larger._records(larger._btf, own.stop, len(larger._btf))
        except (struct.error, ValueError) as error:
            raise larger.broken(str(error)) from None
        return larger

    def _index(self, btf: bytes) -> None:
        types, strings = sections(btf)
        self._strings = btf[strings.start : strings.stop]
        self.all = [Type(0, "", 0, 0, 0, False)]
        self._records(btf, types.start, types.stop)

    def _records(self, btf: bytes, at: int, end: int) -> None:
        unpack, text = _THREE_WORDS.unpack_from, self._string
        while at < end:
            name, info, ref = unpack(btf, at)
            kind, vlen = info >> 24 & 0x1F, info & 0xFFFF
            if not 0 < kind <= ENUM64:
                raise ValueError(f"type {len(self.all)} is of an unknown kind, {kind}")
            self.all.append(Type(kind, text(name), vlen, ref, at + 12, info >> 31 == 1))
            fixed, each = _FOLLOWING.get(kind, (0, 0))
            at += 12 + fixed + each * vlen
        if not at == end <= len(btf):
            raise ValueError("it is cut short")

    def _string(self, offset: int) -> str:
        try:
            return self._strings[offset : self._strings.index(0, offset)].decode(errors="replace")
        except ValueError:
            raise self.broken(f"it has no name at {offset}") from None

    def named(self, names: Iterable[str], *kinds: int) -> list[int]:
        """Return the types of these kinds with one of these names."""
        wanted = set(names)
        return [i for i, t in enumerate(self.all) if t.name in wanted and t.kind in kinds]

    def structs(self, prefix: str) -> list[int]:
        """Return the structs whose names begin so."""
        return [i for i, t in enumerate(self.all) if t.kind == STRUCT and t.name.startswith(prefix)]

    def plain(self, type_id: int) -> int:
        """Return the type behind typedefs, qualifiers and tags."""
        try:
            for _ in range(_DEEPEST):
                if self.all[type_id].kind not in OTHER_NAMES:
                    return type_id
                type_id = self.all[type_id].ref
        except IndexError:
            raise self.broken(f"it has no type {type_id}") from None
        raise self.broken(f"type {type_id} is a name for itself")

    def size(self, type_id: int) -> int:
        """Return sizeof; 0 for what has no size, as functions and void."""
        plain = self.plain(type_id)
        type_ = self.all[plain]
        if type_.kind == ARRAY:
            element, shape = self.array(plain)
            return self.size(element) * math.prod(shape)
        return _POINTER if type_.kind == PTR else type_.ref if type_.kind in _SIZED else 0

    def members(self, type_id: int) -> list[Member]:
        """Return the members of a struct or union, as declared."""
        type_ = self.all[type_id]
        found = []
        for name, to, place in _THREE_WORDS.iter_unpack(self._following(type_)):
            bit, width = (place & 0xFFFFFF, place >> 24) if type_.flag else (place, 0)
            found.append(Member(self._string(name), to, bit, width))
        return found

    def element(self, type_id: int) -> int:
        """Return the element type of an array, as declared."""
        return int(_ONE_WORD.unpack_from(self._btf, self.all[type_id].at)[0])

    def array(self, type_id: int) -> tuple[int, tuple[int, ...]]:
        """Return the element type of an array of arrays, and its length in each dimension, outermost first."""
        shape: list[int] = []
        while self.all[type_id].kind == ARRAY:
            if len(shape) == _DEEPEST:
                raise self.broken(f"type {type_id} is an array of itself")
            type_id, _, count = _THREE_WORDS.unpack_from(self._btf, self.all[type_id].at)
            type_id = self.plain(type_id)
            shape.append(count)
        return type_id, tuple(shape)

    def parameters(self, type_id: int) -> list[tuple[str, int]]:
        """Return the names and types of a prototype's parameters. The last is ("", 0) where more may follow."""
        type_ = self.all[type_id]
        return [(self._string(name), to) for name, to in _TWO_WORDS.iter_unpack(self._following(type_))]

    def constants(self, type_id: int) -> list[tuple[str, int]]:
        """Return the constants of an enumeration and their values, as its size and sign have them."""
        type_ = self.all[type_id]
        following = self._following(type_)
        if type_.kind == ENUM64:
            found = [(name, high << 32 | low) for name, low, high in _THREE_WORDS.iter_unpack(following)]
            bits = 64
        else:
            found = list(_TWO_WORDS.iter_unpack(following))
            bits = 32
        # A packed enumeration has constants of 32 bits too. LLVM sets the flag since 15; before, -1 is 0xffffffff.
        return [(self._string(name), _wrapped(value, min(bits, type_.ref * 8), type_.flag)) for name, value in found]

    def encoding(self, type_id: int) -> int:
        """Return an integer's encoding."""
        type_ = self.all[type_id]
        (word,) = _ONE_WORD.unpack_from(self._btf, type_.at)
        # Bits apart from a member's own were how bit-fields began; no compiler has used them since there is the flag.
        if word & 0xFFFFFF != type_.ref * 8:
            raise self.broken(f"integer {type_.name} does not fill its {type_.ref} bytes")
        return int(word >> 24)

    def _following(self, type_: Type) -> bytes:
        return self._btf[type_.at : type_.at + _FOLLOWING[type_.kind][1] * type_.vlen]


def sections(btf: bytes) -> tuple[range, range]:
    """Return where a blob's types are, and where its strings. ValueError or struct.error where it is none."""
    magic, _, _, header, type_off, type_len, str_off, str_len = struct.unpack_from("=HBBIIIII", btf)
    if magic != _MAGIC:
        raise ValueError(f"its magic number is {magic:#x}")
    begin, strings = header + type_off, header + str_off
    return range(begin, begin + type_len), range(strings, strings + str_len)


def function_ids(btf: bytes, names: Iterable[str]) -> dict[str, int]:
    """Return the numbers of the functions of these names, as far as there are such.

    Passes over the records: Types, which keeps them all, takes ten times as long.
    """
    types, strings = sections(btf)
    text = btf[strings.start : strings.stop]
    wanted = {text.find(f"\0{name}\0".encode()) + 1: name for name in names}
    wanted.pop(0, None)  # find's -1: there is no such name
    words = memoryview(btf)[types.start : types.stop].cast("I")
    found: dict[str, int] = {}
    at, number = 0, 1
    while at < len(words):
        name, info = words[at], words[at + 1]
        kind = info >> 24 & 0x1F
        if kind == FUNC and name in wanted:
            found[wanted[name]] = number
        fixed, each = _FOLLOWING_WORDS[kind]
        at += 3 + fixed + each * (info & 0xFFFF)
        number += 1
    return found


def schema_of(types: Types, type_id: int, name: str = "value") -> Schema:
    """Return the columns of a type, in the order of its members; ``name`` is for a type that is no struct or union.

    Members of nested structs are "in.x", of anonymous ones "x", elements "a[0]" and "m[1][2]"; the members of a union
    are columns over the same bytes. Bit-fields without a name and arrays of nothing are left out, but for an array
    without length at the very end: a Tail. See protocol.schema for what becomes of which type.

    UnsupportedError, with the member's name, for what has no size (void, functions, a struct that is only declared),
    for numbers of a size that numpy has not, and for arrays of more than 64 structs, strings or 128-bit integers.
    SetupError where the BTF contradicts itself.
    """
    plain = types.plain(type_id)
    flat = _Flat(types, types.size(plain))
    try:
        flat.visit(plain, "" if types.all[plain].kind in (STRUCT, UNION) else name, 0, last=True)
    except RecursionError:
        raise types.broken(f"type {plain} contains itself") from None
    return Schema(tuple(flat.columns), flat.size)


def same(types: Types, a: int, b: int) -> bool:
    """Return whether two types have the same columns in the same places, whatever their names. Errors as schema_of."""
    a, b = types.plain(a), types.plain(b)
    return a == b or schema_of(types, a) == schema_of(types, b)


class _Flat:
    """A type laid out flat: ``columns`` of a row of ``size`` bytes."""

    def __init__(self, types: Types, size: int) -> None:
        self.columns: list[Column] = []
        self.size = size
        self._types = types

    def visit(self, type_id: int, name: str, at: int, *, last: bool) -> None:
        """Add the columns of a type that lies ``at`` bytes in. ``last``: nothing lies behind it."""
        plain = self._types.plain(type_id)
        kind = self._types.all[plain].kind
        if kind in (STRUCT, UNION):
            self._members(plain, name, at, last)
        elif kind == ARRAY:
            self._array(plain, name, at, last)
        else:
            self._scalar(plain, name, at)

    def _members(self, type_id: int, name: str, at: int, last: bool) -> None:
        members = self._types.members(type_id)
        union = self._types.all[type_id].kind == UNION
        for i, member in enumerate(members):
            full = f"{name}.{member.name}" if name and member.name else name or member.name
            if member.width:
                if member.name:
                    self._bits(member, full, at)
            elif member.bit % 8:
                raise self._types.broken(f"{full} begins within a byte")
            else:
                self.visit(member.type_id, full, at + member.bit // 8, last=last and (union or i == len(members) - 1))

    def _bits(self, member: Member, name: str, at: int) -> None:
        plain = self._types.plain(member.type_id)
        dtype = self._number(plain)
        if not dtype:
            raise self._refusal(plain, name)
        if member.width > 8 * int(dtype[-1]):
            raise self._types.broken(f"{name} is wider than its type")
        byte, first = divmod(member.bit, 8)
        self._add(BitField(name, at + byte, dtype, first, member.width, self._labels(plain)))

    def _array(self, type_id: int, name: str, at: int, last: bool) -> None:
        element, shape = self._types.array(type_id)
        if not self._types.size(type_id):
            # Of two such in a union the first will do: the same bytes twice are of no use.
            if last and shape[0] == 0 and not (self.columns and isinstance(self.columns[-1], Tail)):
                self._add(Tail(name, at, text=self._is_char(element) and len(shape) == 1))
            return
        row, rows = self._row(element, shape)
        count = math.prod(rows)
        if count > _MAX_ELEMENTS:
            raise self._too_many(element, name, shape)
        size = self._types.size(type_id) // count
        for i, index in enumerate(itertools.product(*map(range, rows))):
            full = name + "".join(f"[{n}]" for n in index)
            if row:
                self._add(replace(row, name=full, offset=at + i * size))
            else:
                self.visit(element, full, at + i * size, last=False)

    def _row(self, element: int, shape: tuple[int, ...]) -> tuple[Column | None, tuple[int, ...]]:
        """Return an array's innermost rows as one column, or None, and the dimensions that get a column an element."""
        number, outer, last = self._number(element), shape[:-1], shape[-1]
        if self._is_char(element):
            return Text("", 0, last), outer
        is_byte = number == "|u1" and self._types.all[element].kind == INT
        if is_byte and last > 1 and math.prod(outer) <= _MAX_ELEMENTS:
            return Bytes("", 0, last), outer
        if number and math.prod(shape) > _MAX_ELEMENTS:
            return NumberArray("", 0, number, shape), ()
        return None, shape

    def _scalar(self, type_id: int, name: str, at: int) -> None:
        types = self._types
        type_ = types.all[type_id]
        if dtype := self._number(type_id):
            labels = self._labels(type_id)
            self._add(Enum(name, at, dtype, labels) if labels else Number(name, at, dtype))
        elif type_.kind == INT and type_.ref == 16:
            self._add(Wide(name, at, signed=bool(types.encoding(type_id) & _SIGNED)))
        else:
            raise self._refusal(type_id, name)

    def _add(self, column: Column) -> None:
        if column.offset + column.size > self.size:
            raise self._types.broken(f"{column.name} lies outside of its {self.size} bytes")
        self.columns.append(column)

    def _number(self, type_id: int) -> str:
        """Return the dtype of a type that is a number, an address or an enumeration; else ""."""
        type_ = self._types.all[type_id]
        size = self._types.size(type_id)
        letter = ""
        if type_.kind == INT and size in (1, 2, 4, 8):
            encoding = self._types.encoding(type_id)
            letter = "b" if encoding & _BOOL and size == 1 else "i" if encoding & _SIGNED else "u"
        elif type_.kind in (ENUM, ENUM64) and size in (1, 2, 4, 8):
            letter = "i" if type_.flag else "u"
        elif type_.kind == FLOAT and size in (4, 8):
            letter = "f"
        elif type_.kind == PTR:
            letter = "u"
        return f"{'|' if size == 1 else '<'}{letter}{size}" if letter else ""

    def _labels(self, type_id: int) -> tuple[tuple[str, int], ...]:
        type_ = self._types.all[type_id]
        # Constants of 32 bits cannot name values of 64: LLVM before 15 cuts them, and 1ULL << 32 would be called 0.
        whole = type_.kind == ENUM64 or (type_.kind == ENUM and type_.ref <= 4)
        constants = self._types.constants(type_id) if whole else ()
        return tuple((name.removeprefix(KERNELS), value) for name, value in constants)

    def _is_char(self, type_id: int) -> bool:
        # Not "signed char", nor "unsigned char": who declares these, or s8 and u8, means numbers and bytes.
        type_ = self._types.all[type_id]
        return type_.kind == INT and type_.ref == 1 and type_.name == "char"

    def _too_many(self, type_id: int, name: str, shape: tuple[int, ...]) -> UnsupportedError:
        dimensions = "".join(f"[{n}]" for n in shape)
        what = self._types.all[type_id].name or "structs without a name"
        limit = f"with more than {_MAX_ELEMENTS} elements only numbers can be shown"
        return UnsupportedError(f"{name}{dimensions} is an array of {what}; {limit}")

    def _refusal(self, type_id: int, name: str) -> UnsupportedError:
        type_ = self._types.all[type_id]
        what = {0: "void", FUNC: "a function", FUNC_PROTO: "a function"}.get(type_.kind, "not data")
        if type_.kind == FWD:
            what = f"{'union' if type_.flag else 'struct'} {type_.name}, which is only declared"
        elif type_.kind in _SIZED:
            what = f"{type_.name}, a number of {type_.ref} bytes"
        return UnsupportedError(f"{name} is {what}")


def _wrapped(value: int, bits: int, signed: bool) -> int:
    """Return a value's lowest bits, read as signed or not."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if signed and value >> (bits - 1) else value
