"""Every kind of column against a decoder that takes one value at a time, in batches of every size."""

from __future__ import annotations

import gc
import random
import struct
import weakref
from collections.abc import Callable
from itertools import pairwise
from typing import Any, get_args

import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfnb.protocol.schema import BitField, Bytes, Column, Enum, Number, NumberArray, Rows, Tail, Text, Wide
from bpfnb.results.columns import kinds
from bpfnb.results.columns.base import Batch, ColumnBuffer
from bpfnb.results.columns.buffers import Codes
from bpfnb.results.columns.categories import EnumColumn, TextColumn
from bpfnb.results.columns.index import ValueIndex
from bpfnb.results.columns.kinds import column_buffer, shown
from bpfnb.results.columns.numeric import NumberColumn, TimeColumn
from bpfnb.results.columns.strings import StringColumn
from bpfnb.results.columns.text import text_dtype

STATES = (("RUNNING", 0), ("SLEEPING", 1), ("WAITING", 1), ("GONE", 260), ("BAD", -1))

SIZE = 48
KINDS = {
    "u8": Number("x", 3, "|u1"),
    "i16": Number("x", 5, "<i2"),  # not aligned
    "u32": Number("x", 4, "<u4"),
    "i64": Number("x", 8, "<i8"),
    "u64": Number("x", 40, "<u8"),
    "f32": Number("x", 4, "<f4"),
    "f64": Number("x", 1, "<f8"),
    "bool": Number("x", 7, "|b1"),
    "bit": BitField("x", 4, "|b1", 5, 1),
    "bits": BitField("x", 4, "<u4", 3, 11),
    "bits, negative": BitField("x", 4, "<i4", 6, 5),
    "bits in 9 bytes": BitField("x", 2, "<u8", 7, 60),
    "bits in 9 bytes, negative": BitField("x", 39, "<i8", 7, 64),
    "bits far from their offset": BitField("x", 0, "<u8", 370, 14),
    "bits at the end of the row": BitField("x", 46, "<u2", 9, 7),
    "bits of an enum": BitField("x", 4, "<u4", 1, 2, labels=STATES),
    "enum": Enum("x", 4, "<u4", labels=STATES),
    "enum, negative": Enum("x", 4, "<i4", labels=STATES),
    "enum of a byte": Enum("x", 9, "|i1", labels=STATES),
    "text": Text("x", 16, 16),
    "text of a byte": Text("x", 47, 1),
    "text of 5": Text("x", 43, 5),
    "text of 20": Text("x", 3, 20),
    "bytes": Bytes("x", 7, 6),
    "wide": Wide("x", 8),
    "wide, negative": Wide("x", 8, signed=True),
}
DTYPES = {
    "u8": "uint8",
    "i16": "int16",
    "u32": "uint32",
    "i64": "int64",
    "u64": "uint64",
    "f32": "float32",
    "f64": "float64",
    "bool": "bool",
    "bit": "bool",
    "bits": "uint32",
    "bits, negative": "int32",
    "bits in 9 bytes": "uint64",
    "bits in 9 bytes, negative": "int64",
    "bits far from their offset": "uint64",
    "bits at the end of the row": "uint16",
    "bytes": "large_binary[pyarrow]",
    "wide": "object",
    "wide, negative": "object",
}


def expected(column: Column, row: bytes) -> Any:
    """One value, the slow way."""
    raw = row[column.offset : column.offset + column.size]
    signed = np.dtype(column.dtype).kind == "i"
    if isinstance(column, BitField):
        number = int.from_bytes(row[column.offset :], "little") >> column.first & (1 << column.width) - 1
        if signed and number >> (column.width - 1):
            number -= 1 << column.width
        if column.labels:
            return {value: name for name, value in reversed(column.labels)}.get(number, str(number))
        return bool(number) if column.dtype == "|b1" else number
    if isinstance(column, Enum):
        return _label(column, int.from_bytes(raw, "little", signed=signed))
    if isinstance(column, Text):
        return raw.partition(b"\0")[0].decode(errors="replace")
    if isinstance(column, Bytes):
        return raw
    if isinstance(column, Wide):
        return int.from_bytes(raw, "little", signed=column.signed)
    if column.dtype == "|b1":
        return raw != b"\0"
    return np.frombuffer(raw, column.dtype)[0].item()


def _label(column: Enum, number: int) -> str:
    top = 256 ** np.dtype(column.dtype).itemsize
    return {value % top: name for name, value in reversed(column.labels)}.get(number % top, str(number))


def as_rows(data: bytes | list[bytes], size: int = SIZE) -> Rows:
    joined = b"".join(data) if isinstance(data, list) else data
    return np.frombuffer(joined, np.uint8).reshape(-1, size)


def random_rows(count: int, seed: int = 0) -> Rows:
    """Rows with many zeros and few different bytes, so that values repeat, end early, and are invalid."""
    choose = np.random.default_rng(seed)
    return choose.choice(np.frombuffer(b"\0\0\0\1\1ab\x04\x7f\x80\xc3\xa9\xff\xff", np.uint8), (count, SIZE))


def decoded(column: ColumnBuffer | Column, *batches: Rows | Batch) -> ColumnBuffer:
    grown = column_buffer(column) if isinstance(column, Column) else column
    for batch in batches:
        grown.append(batch if isinstance(batch, Batch) else Batch(batch))
    return grown


def series(column: ColumnBuffer) -> pd.Series[Any]:
    return pd.Series(column.values())


def assert_same(one: pd.Series[Any], other: pd.Series[Any]) -> None:
    """The same values and dtypes, categories in the same order."""
    assert one.dtype == other.dtype
    assert repr(one.tolist()) == repr(other.tolist())
    if one.dtype == "category":
        assert one.cat.categories.tolist() == other.cat.categories.tolist()


# --- every kind ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 2, 500])
def test_values(kind: str, count: int) -> None:
    rows = random_rows(count)
    column = KINDS[kind]
    found = series(decoded(column, rows))
    assert len(found) == count
    assert repr(found.tolist()) == repr([expected(column, row.tobytes()) for row in rows])
    assert str(found.dtype) == DTYPES.get(kind, str(found.dtype))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("byte", [0x00, 0xFF, 0x80, 0x7F])
def test_extremes(kind: str, byte: int) -> None:
    row = bytes([byte]) * SIZE
    assert repr(series(decoded(KINDS[kind], as_rows(row))).tolist()) == repr([expected(KINDS[kind], row)])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 40), max_size=12), seed=st.integers(0, 99))
def test_batches_of_any_size_make_the_same_column(kind: str, sizes: list[int], seed: int) -> None:
    rows = random_rows(sum(sizes), seed)
    cuts = np.cumsum([0, *sizes])
    batches = [rows[start:stop] for start, stop in pairwise(cuts)]
    assert_same(series(decoded(KINDS[kind], *batches)), series(decoded(KINDS[kind], rows)))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_may_lie_anywhere_and_are_not_kept(kind: str) -> None:
    """GIVEN rows that are a part of wider memory, which is overwritten THEN the column is what it was."""
    memory = np.zeros((300, SIZE + 13), np.uint8)
    memory[:, 5 : 5 + SIZE] = random_rows(300)
    grown = decoded(KINDS[kind], memory[::3, 5 : 5 + SIZE])
    whole = repr(series(decoded(KINDS[kind], random_rows(300)[::3])).tolist())
    memory[:] = 0x33
    assert repr(series(grown).tolist()) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_handed_out_stays(kind: str) -> None:
    """GIVEN values, more rows in steps that make every buffer move THEN the values are what they were."""
    grown = column_buffer(KINDS[kind])
    handed: list[tuple[pd.Series[Any], str]] = []
    for seed in range(40):
        grown.append(Batch(random_rows(seed * 7, seed)))
        values = series(grown)
        handed.append((values, repr(values.tolist())))
    assert all(repr(values.tolist()) == was for values, was in handed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_is_a_column_of_its_own(kind: str) -> None:
    """GIVEN a part of a part, appended to THEN it has those rows and the new ones, and what was handed out stays."""
    column, rows = KINDS[kind], random_rows(300)
    grown = decoded(column, rows)
    before = series(grown)
    was = repr(before.tolist())
    part = grown.part(100, 280).part(130, 250)
    part.append(Batch(rows[250:]))
    assert part.begin == 130
    assert repr(series(part).tolist()) == repr([expected(column, row.tobytes()) for row in rows[130:]])
    assert repr(before.tolist()) == was
    assert len(series(grown.part(300, 300))) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_groups(kind: str) -> None:
    column, rows = KINDS[kind], random_rows(100)
    found = list(decoded(column, rows).groups(60))
    whole = [expected(column, row.tobytes()) for row in rows[60:]]
    assert [value if value == value else "nan" for value in found] == [v if v == v else "nan" for v in whole]
    assert len(decoded(column, rows).groups(100)) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_lets_the_whole_go(kind: str) -> None:
    grown = decoded(KINDS[kind], random_rows(300))
    grown.values()
    whole = weakref.ref(grown)
    part = grown.part(100, 300)
    del grown
    gc.collect()
    assert whole() is None
    assert len(series(part)) == 200


def test_every_kind_of_column_is_decoded_and_packed() -> None:
    assert set(kinds.KINDS) == set(get_args(Column))


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="'mystery'"):
        msgspec.convert({"kind": "mystery", "name": "x", "offset": 0, "dtype": "<u4"}, Column)


def test_numbers_are_looked_at_where_they_are() -> None:
    """Neither a frame nor a time stamp copies them."""
    column = KINDS["u64"]
    for grown in (column_buffer(column), TimeColumn(column, lambda: 5)):
        grown.append(Batch(random_rows(1000)))
        values = series(grown)
        memory = values.array._ndarray if isinstance(grown, TimeColumn) else values.to_numpy()  # type: ignore[union-attr]
        assert isinstance(grown, NumberColumn)
        assert np.shares_memory(memory, grown._buffer.all)
        assert not grown.since(0).flags.writeable


# --- arrays -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["<i2", "<f4", "|b1"])
@pytest.mark.parametrize("shape", [(7,), (2, 3), (1, 2, 2)])
def test_an_array_has_a_column_an_element(dtype: str, shape: tuple[int, ...]) -> None:
    rows = random_rows(50)
    found = shown([KINDS["u8"], NumberArray("x", 6, dtype, shape)])
    assert found[0] is KINDS["u8"]
    indices = list(np.ndindex(shape))
    assert [column.name for column in found[1:]] == ["x" + "".join(f"[{n}]" for n in index) for index in indices]
    size = np.dtype(dtype).itemsize
    cells = np.ascontiguousarray(rows[:, 6 : 6 + size * len(indices)]).view(dtype.replace("b", "u"))
    for column, cell in zip(found[1:], cells.T, strict=True):
        values = series(decoded(column, rows))
        assert values.dtype == np.dtype(dtype)
        assert repr(values.tolist()) == repr((cell != 0 if "b" in dtype else cell).tolist())


def test_a_very_long_array_is_bytes() -> None:
    (column,) = shown([NumberArray("x", 8, "<u2", (2, 600))])
    row = np.random.default_rng(0).bytes(2408)
    assert series(decoded(column, as_rows(row, 2408))).tolist() == [row[8:]]
    assert len(shown([NumberArray("x", 8, "<u2", (2, 512))])) == 1024


# --- bits ---------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    first=st.integers(0, 100),
    width=st.integers(1, 64),
    signed=st.booleans(),
    row=st.binary(min_size=21, max_size=30),
)
def test_any_bit_field(first: int, width: int, signed: bool, row: bytes) -> None:
    column = BitField("x", 0, "<i8" if signed else "<u8", first, width)
    assert series(decoded(column, as_rows(row, len(row)))).tolist() == [expected(column, row)]


@pytest.mark.parametrize("size", range(1, 9))
def test_fields_of_a_tiny_row(size: int) -> None:
    """Rows smaller than the eight bytes that are read at once elsewhere."""
    row = bytes(range(0xA1, 0xA1 + size))
    for column in (
        BitField("x", size - 1, "<u2", 2, 5),
        Text("x", 0, size),
        Number("x", size - 1, "|i1"),
        Enum("x", size - 1, "|u1", labels=STATES),
    ):
        assert series(decoded(column, as_rows(row, size))).tolist() == [expected(column, row)]


# --- enumerations -------------------------------------------------------------------------------------------------


def numbers(*values: int) -> Rows:
    return as_rows(b"".join(struct.pack("<4xi40x", value) for value in values))


def test_constants_come_in_declared_order_and_unknown_numbers_behind() -> None:
    grown = decoded(KINDS["enum, negative"], numbers(260, 77), numbers(-1, -5, 1, 77))
    found = series(grown)
    assert found.tolist() == ["GONE", "77", "BAD", "-5", "SLEEPING", "77"]
    assert found.cat.categories.tolist() == ["RUNNING", "SLEEPING", "GONE", "BAD", "77", "-5"]
    assert isinstance(grown, EnumColumn)
    assert grown.raw().tolist() == [260, 77, -1, -5, 1, 77]


def test_constants_are_categories_before_any_row() -> None:
    assert series(column_buffer(KINDS["enum"])).cat.categories.tolist() == ["RUNNING", "SLEEPING", "GONE", "BAD"]


def test_constants_beyond_the_type_are_what_the_compiler_makes_of_them() -> None:
    """-1 in an unsigned enum, as BTF has 4294967295; 64-bit ones in full."""
    assert series(decoded(KINDS["enum"], numbers(-1))).tolist() == ["BAD"]
    top = Enum("x", 0, "<u8", labels=(("TOP", 2**64 - 1), ("HIGH", 2**63)))
    found = series(decoded(top, as_rows(struct.pack("<3Q", 2**63, 2**64 - 1, 2**64 - 2), 8)))
    assert found.tolist() == ["HIGH", "TOP", "18446744073709551614"]


@pytest.mark.parametrize("constants", [126, 127, 300])
def test_an_enum_of_many_constants(constants: int) -> None:
    """GIVEN few rows, whose numbers come in the constants' order THEN the codes have the type for all constants."""
    column = Enum("x", 4, "<i4", labels=tuple((f"C{n}", n) for n in range(constants)))
    grown = decoded(column, numbers(0, 1, 2), numbers(1, 3))
    found = series(grown)
    assert found.tolist() == ["C0", "C1", "C2", "C1", "C3"]
    assert len(found.cat.categories) == constants
    assert found.cat.codes.dtype == (np.int8 if constants < 127 else np.int16)
    assert isinstance(grown, EnumColumn)
    assert np.shares_memory(found.array.codes, grown._codes.all)  # type: ignore[union-attr]


def test_names_that_two_numbers_share() -> None:
    """As ftrace's flags do: another letter is not shown for every bit."""
    grown = EnumColumn(KINDS["u32"].values, "<u4", lambda number: "odd" if number % 2 else "even")
    decoded(grown, numbers(1, 2), numbers(3), numbers(5, 4))
    found = series(grown)
    assert found.tolist() == ["odd", "even", "odd", "odd", "even"]
    assert found.cat.categories.tolist() == ["odd", "even"]
    assert grown.raw().tolist() == [1, 2, 3, 5, 4]


# --- text ---------------------------------------------------------------------------------------------------------


def texts(*values: bytes, width: int = 16) -> tuple[Column, Rows]:
    return Text("x", 0, width), as_rows([value.ljust(width, b"\0") for value in values], width)


def test_what_is_behind_a_nul_makes_no_other_text() -> None:
    """Whichever comes first, and whether in one batch or in several; raw has every byte."""
    values = [b"ls\0garbage", b"ls", b"ls\0other", b"cat", b"cat\0x", b"\0y", b"", b"ls\0garbage"]
    column, rows = texts(*values)
    names = ["ls", "ls", "ls", "cat", "cat", "", "", "ls"]
    for batches in ([rows], [rows[i : i + 1] for i in range(len(rows))], [rows[:2], rows[2:]]):
        grown = decoded(column, *batches)
        found = series(grown)
        assert found.tolist() == names
        assert found.cat.categories.tolist() == ["ls", "cat", ""]
        assert isinstance(grown, TextColumn)
        raw = pd.Series(grown.raw())
        assert raw.tolist() == [value.ljust(16, b"\0") for value in values]
        assert len(raw.cat.categories) == 7
        later = grown.part(3, 8)
        assert series(later).tolist() == names[3:]
        assert isinstance(later, TextColumn)
        assert later.raw().tolist() == [value.ljust(16, b"\0") for value in values[3:]]


def test_raw_has_no_category_that_no_row_has() -> None:
    column, rows = texts(b"ls\0garbage")
    grown = decoded(column, rows)
    assert isinstance(grown, TextColumn)
    assert grown.raw().categories.tolist() == [b"ls\0garbage".ljust(16, b"\0")]


def test_invalid_utf8_is_replaced_and_may_read_alike() -> None:
    values = [
        b"a\xff",
        b"a\xfe",
        "a\N{REPLACEMENT CHARACTER}".encode(),
        "é".encode(),
        b"\xc3",
        b"\xa9",
        b"plain",
        b"\xe9",
    ]
    column, rows = texts(*values)
    for batches in ([rows], [rows[i : i + 1] for i in range(len(rows))], [rows[:5], rows[5:]]):
        grown = decoded(column, *batches)
        found = series(grown)
        assert found.tolist() == [value.decode(errors="replace") for value in values]
        assert found.cat.categories.is_unique
        assert isinstance(grown, TextColumn)
        assert grown.raw().tolist() == [value.ljust(16, b"\0") for value in values]


def test_text_that_fills_its_array_has_no_nul() -> None:
    column, rows = texts(b"x" * 16, b"x" * 15, ("é" * 8).encode())
    assert series(decoded(column, rows)).tolist() == ["x" * 16, "x" * 15, "é" * 8]


def test_a_character_cut_by_the_array_is_replaced() -> None:
    column, rows = texts("€€".encode()[:5], width=5)
    assert series(decoded(column, rows)).tolist() == ["€\N{REPLACEMENT CHARACTER}"]


@settings(deadline=None)
@given(
    width=st.integers(1, 33),
    values=st.lists(st.binary(max_size=33) | st.text("aé€\0", max_size=12).map(str.encode), max_size=60),
    data=st.data(),
)
def test_any_text(width: int, values: list[bytes], data: st.DataObject) -> None:
    column, rows = texts(*[value[:width] for value in values], width=width)
    cut = data.draw(st.integers(0, len(rows)))
    grown = decoded(column, rows[:cut], rows[cut:])
    found = series(grown)
    assert found.tolist() == [expected(column, row.tobytes()) for row in rows]
    assert found.cat.categories.is_unique
    assert found.cat.categories.tolist() == list(dict.fromkeys(found))  # in the order they first came
    assert isinstance(grown, TextColumn)
    assert grown.raw().tolist() == [row.tobytes() for row in rows]


@pytest.mark.parametrize("count", [126, 127, 128, 32766, 32767, 40_000])
def test_many_different_texts(count: int) -> None:
    """Around the sizes where pandas takes the next larger type for the codes, one batch and several."""
    values = [f"file-{n}".encode() for n in range(count)]
    column, rows = texts(*values)
    rows = np.concatenate([rows, rows[::-1]])
    for batches in ([rows], np.array_split(rows, 7)):
        grown = decoded(column, *batches)
        found = series(grown)
        assert found.tolist() == [value.decode() for value in values + values[::-1]]
        assert found.cat.codes.dtype == pd.Categorical(found.astype(object)).codes.dtype
        assert found.cat.categories.tolist() == [value.decode() for value in values]


def test_the_categories_are_strings_as_pandas_has_them() -> None:
    column, rows = texts(b"a", b"b")
    found = series(decoded(column, rows))
    assert found.cat.categories.dtype == text_dtype()
    assert (found == "a").tolist() == [True, False]
    assert found.value_counts().to_dict() == {"a": 1, "b": 1}


def test_a_part_forgets_the_names_no_row_has() -> None:
    column, rows = texts(*[f"n{n}".encode() for n in range(1000)])
    grown = decoded(column, rows)
    part = grown.part(990, 1000)
    assert series(part).cat.categories.tolist() == [f"n{n}" for n in range(990, 1000)]
    assert part.nbytes < grown.nbytes / 20


# --- distinct values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [1, 2, 5])
@pytest.mark.parametrize("collide", [False, True])
def test_distinct_numbers_values_as_they_come(words: int, collide: bool) -> None:
    """Also when all have the same hash, which costs time and nothing else."""
    choose = np.random.default_rng(words)
    distinct = ValueIndex(words)
    if collide:
        distinct._factors[:] = 0
    numbered: dict[tuple[int, ...], int] = {}
    for _ in range(20):
        batch = choose.integers(0, 3 if words > 1 else 150, (words, 60)).astype(np.uint64) << np.uint64(61)
        batch = batch if words > 1 else choose.integers(0, 150, (1, 60)).astype(np.uint64)
        found = distinct.codes(batch).tolist()
        assert found == [numbered.setdefault(tuple(value), len(numbered)) for value in batch.T.tolist()]
    assert len(distinct) == len(numbered)
    assert len(distinct._table) >= 2 * len(distinct)


def test_codes_take_the_type_that_holds_them() -> None:
    codes = Codes()
    codes.put(np.array([5]), 6)
    assert codes.view().dtype == np.int8
    codes.put(np.array([126]), 127)
    assert codes.view().dtype == np.int16
    codes.put(np.array([40_000]), 40_001)
    assert codes.view().dtype == np.int32
    assert codes.view().tolist() == [5, 126, 40_000]


# --- text of any length -------------------------------------------------------------------------------------------


def runs(values: list[bytes]) -> Batch:
    ends = np.cumsum([0, *[len(value) for value in values]])
    return Batch(np.zeros((len(values), 8), np.uint8), np.frombuffer(b"".join(values), np.uint8), ends)


Decode = Callable[[bytes], Any]
TAILS: dict[str, tuple[Callable[[], ColumnBuffer], Decode]] = {
    "strings": (
        lambda: column_buffer(Tail("x", 8, text=True)),
        lambda b: b.partition(b"\0")[0].decode(errors="replace"),
    ),
    "bytes": (lambda: column_buffer(Tail("x", 8, text=False)), bytes),
    "messages": (StringColumn, lambda b: b.decode(errors="replace")),
}


@pytest.mark.parametrize("kind", TAILS)
@settings(deadline=None)
@given(
    values=st.lists(st.binary(max_size=9) | st.text("aé€\0", max_size=9).map(str.encode), max_size=40),
    cut=st.floats(0, 1),
)
def test_text_of_any_length(kind: str, values: list[bytes], cut: float) -> None:
    make, decode = TAILS[kind]
    at = int(cut * len(values))
    grown = decoded(make(), runs(values[:at]), runs(values[at:]))
    assert series(grown).tolist() == [decode(value) for value in values]
    assert list(grown.groups(at)) == [decode(value) for value in values[at:]]
    part = grown.part(at // 2, len(values))
    part.append(runs([b"more", b""]))
    assert series(part).tolist() == [decode(value) for value in [*values[at // 2 :], b"more", b""]]


def test_a_character_in_two_runs_is_invalid_in_both() -> None:
    """End to end they are valid UTF-8."""
    first, second = "é".encode()[:1], "é".encode()[1:]
    assert series(decoded(StringColumn(), runs([first, second]))).tolist() == ["\N{REPLACEMENT CHARACTER}"] * 2


def test_dtypes_of_text_of_any_length() -> None:
    assert series(TAILS["strings"][0]()).dtype == text_dtype()
    assert str(series(TAILS["bytes"][0]()).dtype) == "large_binary[pyarrow]"


@pytest.mark.parametrize("kind", TAILS)
def test_strings_handed_out_stay(kind: str) -> None:
    make, decode = TAILS[kind]
    grown = make()
    choose = random.Random(1)
    values: list[bytes] = []
    handed = []
    for _ in range(30):
        new = [bytes(choose.choices(b"abc\0\xff", k=choose.randrange(20))) for _ in range(choose.randrange(30))]
        grown.append(runs(new))
        values += new
        handed.append((series(grown), len(values)))
    for found, count in handed:
        assert found.tolist() == [decode(value) for value in values[:count]]
