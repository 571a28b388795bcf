"""Layouts read from BTF made by hand, after the kernel's Documentation/bpf/btf.rst."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfnb.errors import BpfnbError, SetupError, UnsupportedError
from bpfnb.protocol.schema import BitField, Bytes, Column, Enum, Number, NumberArray, Schema, Tail, Text, Wide
from bpfnb.tracer.kernel import btf
from bpfnb.tracer.kernel.btf import Member, Types, same, schema_of

SIGNED, BOOL = 1, 4

FieldSpec = tuple[str, int, int] | tuple[str, int, int, int]  # name, type, first bit, and a bit-field's width


class Blob:
    """BTF in the making. Methods add a type and return its number."""

    def __init__(self) -> None:
        self._types: list[bytes] = []
        self._strings = b"\0"

    def add(
        self, kind: int, name: str = "", ref: int = 0, *, following: bytes = b"", vlen: int = 0, flag: bool = False
    ) -> int:
        info = flag << 31 | kind << 24 | vlen
        self._types.append(struct.pack("=III", self._text(name), info, ref) + following)
        return len(self._types)

    def _text(self, text: str) -> int:
        if not text:
            return 0
        self._strings += text.encode() + b"\0"
        return len(self._strings) - len(text.encode()) - 1

    def integer(self, name: str, size: int, encoding: int = 0) -> int:
        return self.add(btf.INT, name, size, following=struct.pack("=I", encoding << 24 | size * 8))

    def array(self, element: int, *shape: int) -> int:
        for count in reversed(shape):
            element = self.add(btf.ARRAY, following=struct.pack("=III", element, element, count))
        return element

    def struct(self, size: int, *fields: FieldSpec, name: str = "s", kind: int = btf.STRUCT) -> int:
        flag = any(len(field) == 4 for field in fields)
        following = b""
        for field_name, to, bit, *width in fields:
            place = (width[0] if width else 0) << 24 | bit
            following += struct.pack("=III", self._text(field_name), to, place)
        return self.add(kind, name, size, following=following, vlen=len(fields), flag=flag)

    def union(self, size: int, *fields: FieldSpec) -> int:
        return self.struct(size, *fields, name="", kind=btf.UNION)

    def enum(self, size: int, constants: dict[str, int], *, signed: bool = False, kind: int = btf.ENUM) -> int:
        following = b""
        for name, value in constants.items():
            words = [self._text(name), value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF]
            following += struct.pack("=III", *words)[: 12 if kind == btf.ENUM64 else 8]
        return self.add(kind, "e", size, following=following, vlen=len(constants), flag=signed)

    def finished(self) -> bytes:
        types = b"".join(self._types)
        head = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(self._strings))
        return head + types + self._strings


def described(make: Callable[[Blob], int], name: str = "value") -> Schema:
    """The schema of the type that ``make`` adds to a blob."""
    blob = Blob()
    type_id = make(blob)
    return schema_of(Types(blob.finished()), type_id, name)


def names(schema: Schema) -> list[str]:
    return [column.name for column in schema.columns]


# Types that stand alone: one column, called as asked for.

LABELS = {"NONE": 0, "ONE": 1}
SCALARS: dict[str, tuple[Callable[[Blob], int], Column]] = {
    "unsigned": (lambda b: b.integer("unsigned int", 4), Number("v", 0, "<u4")),
    "signed": (lambda b: b.integer("long", 8, SIGNED), Number("v", 0, "<i8")),
    "char": (lambda b: b.integer("char", 1, SIGNED), Number("v", 0, "|i1")),
    "bool": (lambda b: b.integer("_Bool", 1, BOOL), Number("v", 0, "|b1")),
    "float": (lambda b: b.add(btf.FLOAT, "float", 4), Number("v", 0, "<f4")),
    "double": (lambda b: b.add(btf.FLOAT, "double", 8), Number("v", 0, "<f8")),
    "pointer": (lambda b: b.add(btf.PTR), Number("v", 0, "<u8")),
    "wide": (lambda b: b.integer("unsigned __int128", 16), Wide("v", 0)),
    "wide, signed": (lambda b: b.integer("__int128", 16, SIGNED), Wide("v", 0, signed=True)),
    "enum": (lambda b: b.enum(4, LABELS), Enum("v", 0, "<u4", labels=(("NONE", 0), ("ONE", 1)))),
    "enum, signed": (
        lambda b: b.enum(4, {"BAD": -1}, signed=True),
        Enum("v", 0, "<i4", labels=(("BAD", -1),)),
    ),
    "enum, packed": (lambda b: b.enum(1, {"BAD": -1}), Enum("v", 0, "|u1", labels=(("BAD", 255),))),
    "enum of 64 bits": (
        lambda b: b.enum(8, {"TOP": 1 << 63}, kind=btf.ENUM64),
        Enum("v", 0, "<u8", labels=(("TOP", 1 << 63),)),
    ),
    "enum of 64 bits, signed": (
        lambda b: b.enum(8, {"BAD": -1, "BIG": 1 << 40}, kind=btf.ENUM64, signed=True),
        Enum("v", 0, "<i8", labels=(("BAD", -1), ("BIG", 1 << 40))),
    ),
    "enum of 64 bits, constants cut": (lambda b: b.enum(8, {"BIG": 1 << 40}), Number("v", 0, "<u8")),
    "enum without constants": (lambda b: b.enum(4, {}), Number("v", 0, "<u4")),
    "string": (lambda b: b.array(b.integer("char", 1, SIGNED), 16), Text("v", 0, 16)),
    "string of one": (lambda b: b.array(b.integer("char", 1), 1), Text("v", 0, 1)),
    "bytes": (lambda b: b.array(b.integer("unsigned char", 1), 6), Bytes("v", 0, 6)),
    "list": (lambda b: b.array(b.integer("int", 4, SIGNED), 65), NumberArray("v", 0, "<i4", (65,))),
    "list of lists": (
        lambda b: b.array(b.integer("short", 2, SIGNED), 5, 13),
        NumberArray("v", 0, "<i2", (5, 13)),
    ),
    "list of pointers": (lambda b: b.array(b.add(btf.PTR), 99), NumberArray("v", 0, "<u8", (99,))),
    "list of bytes": (
        lambda b: b.array(b.integer("unsigned char", 1), 65, 6),
        NumberArray("v", 0, "|u1", (65, 6)),
    ),
    "list of an enum": (lambda b: b.array(b.enum(4, LABELS), 99), NumberArray("v", 0, "<u4", (99,))),
}


@pytest.mark.parametrize("what", SCALARS)
def test_one_column(what: str) -> None:
    make, column = SCALARS[what]
    assert described(make, "v").columns == (column,)


@pytest.mark.parametrize("what", SCALARS)
def test_a_schema_is_as_long_as_its_one_column(what: str) -> None:
    """Every dtype is numpy's own spelling, and reads a row of sizeof bytes."""
    schema = described(SCALARS[what][0])
    (column,) = schema.columns
    assert np.dtype(column.dtype).str in (column.dtype, f"|{column.dtype}")
    assert schema.size == np.zeros(column.shape if isinstance(column, NumberArray) else (), column.dtype).nbytes
    assert len(column.values(np.zeros((3, schema.size), np.uint8))) == 3


@pytest.mark.parametrize("kind", [btf.TYPEDEF, btf.VOLATILE, btf.CONST, btf.RESTRICT, btf.TYPE_TAG])
def test_other_names_of_a_type_change_nothing(kind: int) -> None:
    def renamed(b: Blob) -> int:
        row = b.add(kind, "row", b.array(b.add(kind, "t", b.integer("char", 1, SIGNED)), 16))
        return b.struct(32, ("a", b.add(kind, "rows", b.array(row, 2)), 0))

    schema = described(renamed)
    assert schema.columns == (Text("a[0]", 0, 16), Text("a[1]", 16, 16))
    assert schema.size == 32


# Arrays of arrays.


def test_elements_are_columns() -> None:
    schema = described(lambda b: b.array(b.integer("int", 4, SIGNED), 2, 3), "m")
    assert names(schema) == ["m[0][0]", "m[0][1]", "m[0][2]", "m[1][0]", "m[1][1]", "m[1][2]"]
    assert [column.offset for column in schema.columns] == [0, 4, 8, 12, 16, 20]


def test_sixty_four_elements_are_columns_and_one_more_is_a_list() -> None:
    assert len(described(lambda b: b.array(b.integer("int", 4), 8, 8)).columns) == 64
    assert len(described(lambda b: b.array(b.integer("int", 4), 65)).columns) == 1


@pytest.mark.parametrize(("name", "kind", "dtype"), [("char", Text, "S5"), ("unsigned char", Bytes, "V5")])
def test_rows_of_characters_are_one_column_each(name: str, kind: type[Text | Bytes], dtype: str) -> None:
    schema = described(lambda b: b.array(b.integer(name, 1), 2, 2, 5), "a")
    places = [("a[0][0]", 0), ("a[0][1]", 5), ("a[1][0]", 10), ("a[1][1]", 15)]
    assert schema.columns == tuple(kind(label, at, 5) for label, at in places)
    assert {column.dtype for column in schema.columns} == {dtype}


def test_a_single_byte_is_a_number_and_so_are_signed_chars() -> None:
    assert described(lambda b: b.array(b.integer("unsigned char", 1), 1), "a").columns == (Number("a[0]", 0, "|u1"),)
    assert described(lambda b: b.array(b.integer("signed char", 1, SIGNED), 2), "a").columns == (
        Number("a[0]", 0, "|i1"),
        Number("a[1]", 1, "|i1"),
    )


def test_an_enumeration_of_one_byte_is_not_bytes() -> None:
    schema = described(lambda b: b.array(b.enum(1, LABELS), 2), "a")
    assert [(c.name, type(c), c.dtype) for c in schema.columns] == [("a[0]", Enum, "|u1"), ("a[1]", Enum, "|u1")]


def test_arrays_of_structs() -> None:
    def make(b: Blob) -> int:
        inner = b.struct(8, ("x", b.integer("int", 4), 0), ("y", b.array(b.integer("short", 2), 2), 32))
        return b.struct(20, ("n", b.integer("int", 4), 0), ("a", b.array(inner, 2), 32))

    schema = described(make)
    assert [(c.name, c.offset) for c in schema.columns] == [
        ("n", 0), ("a[0].x", 4), ("a[0].y[0]", 8), ("a[0].y[1]", 10),
        ("a[1].x", 12), ("a[1].y[0]", 16), ("a[1].y[1]", 18),
    ]  # fmt: skip


# Structs and unions.


def test_members_of_members() -> None:
    def make(b: Blob) -> int:
        number = b.integer("int", 4, SIGNED)
        deep = b.struct(4, ("x", number, 0), name="")
        choice = b.union(4, ("y", number, 0), ("", deep, 0))
        return b.struct(16, ("a", number, 0), ("in", deep, 32), ("", choice, 64), ("u", choice, 96))

    schema = described(make)
    places = [("a", 0), ("in.x", 4), ("y", 8), ("x", 8), ("u.y", 12), ("u.x", 12)]
    assert schema == Schema(tuple(Number(name, at, "<i4") for name, at in places), 16)


def test_bit_fields() -> None:
    """Counted from the byte where they begin, by the declared type; what fills a gap has no name and no column."""

    def make(b: Blob) -> int:
        inner = b.struct(
            16,
            ("u", b.integer("unsigned long", 8), 3, 9),
            ("", b.integer("unsigned long", 8), 12, 3),
            ("s", b.integer("int", 4, SIGNED), 15, 1),
            ("b", b.integer("_Bool", 1, BOOL), 16, 1),
            ("e", b.enum(4, LABELS), 17, 2),
            ("far", b.integer("unsigned long", 8), 63, 64),
            ("plain", b.integer("char", 1, SIGNED), 120, 0),
        )
        return b.struct(18, ("in", inner, 16))

    assert described(make).columns == (
        BitField("in.u", 2, "<u8", 3, 9),
        BitField("in.s", 3, "<i4", 7, 1),
        BitField("in.b", 4, "|b1", 0, 1),
        BitField("in.e", 4, "<u4", 1, 2, labels=tuple(LABELS.items())),
        BitField("in.far", 9, "<u8", 7, 64),
        Number("in.plain", 17, "|i1"),
    )


def test_without_the_flag_an_offset_is_all_bits() -> None:
    """A struct may be larger than 24 bits can tell, and has then no bit-fields."""
    far = 1 << 25
    schema = described(lambda b: b.struct(far // 8 + 1, ("x", b.integer("char", 1), far)))
    assert schema.columns == (Number("x", far // 8, "|u1"),)


@pytest.mark.parametrize(("element", "dtype"), [("char", "S"), ("unsigned char", "V"), ("int", "V")])
def test_what_follows_a_record(element: str, dtype: str) -> None:
    def make(b: Blob) -> int:
        size = 4 if element == "int" else 1
        tail = b.struct(4, ("n", b.integer("int", 4), 0), ("data", b.array(b.integer(element, size), 0), 32))
        return b.struct(8, ("pid", b.integer("int", 4), 0), ("in", tail, 32))

    schema = described(make)
    assert names(schema) == ["pid", "in.n", "in.data"]
    assert schema.columns[-1] == Tail("in.data", 8, text=dtype == "S")
    assert schema.size == 8


def test_rows_that_follow_a_record_are_bytes() -> None:
    schema = described(lambda b: b.struct(0, ("data", b.array(b.integer("char", 1), 0, 16), 0)))
    assert schema.columns == (Tail("data", 0, text=False),)


def test_what_follows_a_record_may_have_two_names_and_is_one_column() -> None:
    def make(b: Blob) -> int:
        char, number = b.integer("char", 1), b.integer("int", 4)
        last = b.union(0, ("text", b.array(char, 0), 0), ("raw", b.array(number, 0), 0))
        return b.struct(4, ("n", number, 0), ("", last, 32))

    assert names(described(make)) == ["n", "text"]


def test_arrays_of_nothing_are_left_out() -> None:
    def make(b: Blob) -> int:
        number = b.integer("int", 4)
        nothing = b.struct(0)
        return b.struct(
            4,
            ("mark", b.array(number, 0), 0),
            ("lock", nothing, 0),
            ("locks", b.array(nothing, 100), 0),
            ("n", number, 0),
            ("none", b.array(number, 4, 0), 32),
        )

    assert names(described(make)) == ["n"]


# What has no layout.


def long_array(element: Callable[[Blob], int]) -> Callable[[Blob], int]:
    return lambda b: b.struct(1 << 16, ("a", b.array(element(b), 13, 5), 0))


REFUSED: dict[str, tuple[Callable[[Blob], int], str]] = {
    "void": (lambda b: b.add(btf.CONST), "value is void"),
    "function": (lambda b: b.add(btf.FUNC_PROTO), "value is a function"),
    "section": (lambda b: b.add(btf.DATASEC, ".maps"), "value is not data"),
    "declared struct": (
        lambda b: b.struct(8, ("in", b.struct(8, ("f", b.add(btf.FWD, "foo"), 0)), 0)),
        "in.f is struct foo, which is only declared",
    ),
    "declared union": (
        lambda b: b.struct(8, ("", b.union(8, ("f", b.add(btf.FWD, "foo", flag=True), 0)), 0)),
        "f is union foo, which is only declared",
    ),
    "long double": (lambda b: b.add(btf.FLOAT, "long double", 16), "value is long double, a number of 16 bytes"),
    "odd integer": (lambda b: b.integer("_BitInt", 3), "value is _BitInt, a number of 3 bytes"),
    "wide bit-field": (
        lambda b: b.struct(16, ("x", b.integer("__int128", 16), 0, 100)),
        "x is __int128, a number of 16 bytes",
    ),
    "structs": (
        long_array(lambda b: b.struct(4, ("x", b.integer("int", 4), 0), name="slot")),
        "a[13][5] is an array of slot; with more than 64 elements only numbers can be shown",
    ),
    "nameless structs": (
        long_array(lambda b: b.union(4, ("x", b.integer("int", 4), 0))),
        "a[13][5] is an array of structs without a name; with more than 64 elements only numbers can be shown",
    ),
    "wide integers": (
        long_array(lambda b: b.integer("__int128", 16)),
        "a[13][5] is an array of __int128; with more than 64 elements only numbers can be shown",
    ),
    "strings": (
        long_array(lambda b: b.array(b.integer("char", 1), 16)),
        "a[13][5][16] is an array of char; with more than 64 elements only numbers can be shown",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_shown_is_named(what: str) -> None:
    make, message = REFUSED[what]
    with pytest.raises(UnsupportedError) as refused:
        described(make)
    assert str(refused.value) == message


def test_a_pointer_to_what_is_only_declared_is_an_address() -> None:
    schema = described(lambda b: b.struct(8, ("p", b.add(btf.PTR, ref=b.add(btf.FWD, "foo")), 0)))
    assert schema.columns == (Number("p", 0, "<u8"),)


# Looking types up.


def test_lookups() -> None:
    blob = Blob()
    number = blob.integer("int", 4, SIGNED)
    other = blob.add(btf.TYPEDEF, "pid_t", number)
    matrix = blob.array(other, 2, 3)
    first = blob.struct(28, ("pid", other, 0), ("m", matrix, 32), name="holder_0")
    second = blob.struct(4, ("x", number, 7, 5), name="holder_1")
    blob.union(4, ("x", number, 0))
    types = Types(blob.finished())
    assert types.structs("holder_") == [first, second]
    assert types.named(["pid_t", "int", "holder_0"], btf.INT, btf.TYPEDEF) == [number, other]
    assert types.members(first) == [Member("pid", other, 0, 0), Member("m", matrix, 32, 0)]
    assert types.members(second) == [Member("x", number, 7, 5)]
    assert types.array(matrix) == (number, (2, 3))
    assert types.plain(other) == number
    assert [types.size(i) for i in (0, number, other, matrix, first)] == [0, 4, 4, 24, 28]


def test_a_name_may_have_any_letters() -> None:
    assert names(described(lambda b: b.struct(4, ("größe", b.integer("int", 4), 0)))) == ["größe"]


def test_same_is_what_has_the_same_columns() -> None:
    blob = Blob()
    number = blob.integer("int", 4, SIGNED)
    one = blob.struct(4, ("x", number, 0), name="one")
    alias = blob.add(btf.TYPEDEF, "one_t", blob.add(btf.CONST, ref=one))
    two = blob.struct(4, ("x", blob.add(btf.TYPEDEF, "pid_t", number), 0), name="two")
    longer = blob.struct(8, ("x", number, 0), name="longer")
    types = Types(blob.finished())
    assert same(types, one, alias)
    assert same(types, alias, two)
    assert not same(types, one, longer)
    assert not same(types, one, number)


# What is no BTF, or contradicts itself.


def cyclic(b: Blob) -> int:
    return b.struct(8, ("again", 1, 0))


BROKEN: dict[str, Callable[[Blob], int]] = {
    "a type that is not there": lambda b: 99,
    "a member's type that is not there": lambda b: b.struct(4, ("x", 99, 0)),
    "an element that is not there": lambda b: b.array(99, 3),
    "a struct in itself": cyclic,
    "a typedef of itself": lambda b: b.add(btf.TYPEDEF, "t", 1),
    "an array of itself": lambda b: b.add(btf.ARRAY, following=struct.pack("=III", 1, 1, 1)),
    "a member outside": lambda b: b.struct(4, ("x", b.integer("int", 4), 8)),
    "a bit-field outside": lambda b: b.struct(4, ("x", b.integer("int", 4), 30, 3)),
    "a bit-field too wide": lambda b: b.struct(8, ("x", b.integer("int", 4), 0, 33)),
    "a member within a byte": lambda b: b.struct(8, ("x", b.integer("int", 4), 3)),
    "an integer of some bits": lambda b: b.add(btf.INT, "int", 4, following=struct.pack("=I", 2 << 16 | 7)),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_contradiction_is_said(what: str) -> None:
    with pytest.raises(SetupError, match=r"^the program's BTF cannot be read: "):
        described(BROKEN[what])


def whole() -> bytes:
    """A blob with some of everything, its last type the one to be laid out."""
    blob = Blob()
    number, char = blob.integer("int", 4, SIGNED), blob.integer("char", 1)
    state = blob.enum(4, LABELS)
    inner = blob.struct(12, ("x", number, 0, 7), ("e", state, 7, 2), ("t", blob.array(char, 8), 32))
    choice = blob.union(8, ("p", blob.add(btf.PTR, ref=inner), 0), ("n", blob.add(btf.TYPEDEF, "pid_t", number), 0))
    fields = (("a", blob.array(inner, 2, 2), 0), ("", choice, 384), ("m", blob.array(number, 80), 448))
    blob.struct(376, *fields, ("tail", blob.array(char, 0), 3008))
    return blob.finished()


def last_schema(data: bytes) -> Schema:
    types = Types(data)
    return schema_of(types, len(types.all) - 1)


def test_a_blob_cut_short() -> None:
    data = whole()
    assert len(last_schema(data).columns) == 4 * 3 + 2 + 1 + 1
    for length in range(data.rindex(b"\0tail\0") + 1):
        with pytest.raises(SetupError, match="cannot be read"):
            last_schema(data[:length])


@pytest.mark.parametrize("data", [b"", b"not BTF at all, whatever it is", whole()[1:], whole()[:24]])
def test_no_btf(data: bytes) -> None:
    with pytest.raises(SetupError, match=r"^vmlinux's BTF cannot be read"):
        Types(data, "vmlinux's")


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(whole()) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_blob_is_read_or_refused(damage: list[tuple[int, int]]) -> None:
    """GIVEN bytes changed anywhere THEN there are columns within the row, or an error of ours."""
    data = bytearray(whole())
    for at, value in damage:
        data[at] = value
    try:
        schema = last_schema(bytes(data))
    except BpfnbError:
        return
    assert all(column.offset <= schema.size for column in schema.columns)


def test_thousands_of_types_are_indexed_and_not_decoded() -> None:
    """A struct of a blob as large as task_struct's is laid out without reading the others."""
    blob = Blob()
    number = blob.integer("int", 4)
    for i in range(5000):
        blob.struct(4, (f"x{i}", 99999, 0), name=f"s{i}")
    wanted = blob.struct(4, ("x", number, 0), name="wanted")
    assert names(schema_of(Types(blob.finished()), wanted)) == ["x"]
