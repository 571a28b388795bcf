"""Every kind of column in what people do with a DataFrame next: files, comparing, grouping, Arrow, polars, DuckDB."""

from __future__ import annotations

import io
import json
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pytest

from bpfnb.protocol.schema import PRINTK_ROW, BitField, Bytes, Enum, Number, NumberArray, Schema, Tail, Text, Wide
from bpfnb.results.columns.strings import BytesColumn
from bpfnb.results.columns.text import PANDAS
from bpfnb.results.printk import PrintkTable
from bpfnb.results.table import Table

Frame = pd.DataFrame
ROWS = 7
COLUMNS = (
    Number("ts", 0, "<u8"),
    Number("u64", 8, "<u8"),
    Number("i16", 16, "<i2"),
    Number("f64", 24, "<f8"),
    Number("truth", 32, "|b1"),
    BitField("bits", 36, "<i4", 2, 11),
    Enum("state", 36, "<u4", labels=(("IDLE", 0), ("BUSY", 1))),
    Text("comm", 48, 16),
    Bytes("ip", 40, 4),
    Bytes("digest", 64, 32),
    NumberArray("slots", 104, "<u8", (50, 2)),
    NumberArray("table", 104, "<u2", (1030,)),
    Wide("addr", 64),
    Wide("far", 64, signed=True),
)
SIZE = 2200


def raw_rows() -> np.ndarray:
    """Rows of which the first and the last are the same, the rest unlike, and values that are awkward somewhere."""
    rows = np.random.default_rng(1).integers(0, 256, (ROWS, SIZE), np.uint8)
    rows[:, 0:8] = (np.arange(5, 5 + ROWS, dtype=np.uint64) * 1000)[:, None].view(np.uint8)
    rows[:, 8:16] = np.array([2**64 - 1, 2**63, 0, 1, 7, 7, 2**64 - 1], np.uint64)[:, None].view(np.uint8)
    rows[:, 24:32] = np.array([0.5, -1e100, 1e-100, 3.25, 0.0, 1.0, 0.5])[:, None].view(np.uint8)
    rows[:, 32] = [1, 0, 1, 1, 0, 0, 1]
    rows[:, 36:40] = np.array([0, 1, 7, 1, 0, 300, 0], np.uint32)[:, None].view(np.uint8)
    ips = [b"\x0a\0\0\1", b"\x0a\0\0\0", b"\0\0\0\0", b"abcd", b"\xff\xfe\0\x80", b"\0\0\0\1", b"\x0a\0\0\1"]
    rows[:, 40:44] = np.frombuffer(b"".join(ips), np.uint8).reshape(-1, 4)
    comms = [b"bash", b"", b"caf\xc3\xa9", b"x;y", b"a\xffb", b"ls\0junk", b"bash"]
    rows[:, 48:64] = np.frombuffer(b"".join(c.ljust(16, b"\0") for c in comms), np.uint8).reshape(-1, 16)
    rows[-1] = rows[0]
    return rows


def events(tail: str) -> Frame:
    """A frame with every kind of column; it has a tail of strings ("S") or bytes ("V")."""
    runs = [b"GET", b"a", b"a\0b", b"POST", b"\xf0\0", b"\0\0", b"GET"]
    ends = np.cumsum([len(run) for run in runs])
    rows = raw_rows()
    rows[:, SIZE - 8 :] = ends.astype(np.int64)[:, None].view(np.uint8)
    schema = Schema((*COLUMNS, Tail("data", SIZE, text=tail == "S")), SIZE, time="ts", text_end=SIZE - 8)
    table = Table(schema, epoch_ns=1_700_000_000_000_000_000)
    table.append(rows, np.frombuffer(b"".join(runs), np.uint8), 0)
    return table.frame()


def printk() -> Frame:
    rows = np.zeros(2, PRINTK_ROW)
    rows["mono_ns"], rows["text_end"], rows["pid"], rows["comm"] = [5, 9], [2, 5], [1, 2], [b"a", b"b"]
    table = PrintkTable(epoch_ns=1)
    table.append(rows.view(np.uint8).reshape(2, -1), np.frombuffer(b"hioho", np.uint8), 0)
    return table.frame()


EVENTS = events("S")
polars.from_pandas(EVENTS[["time"]]).group_by("time").len()  # what it opens once for its threads is no leak of a test
KINDS: dict[str, pd.Series[Any]] = {
    **{str(name): EVENTS[name] for name in EVENTS.columns if "[" not in name},
    "slots[0][0]": EVENTS["slots[0][0]"],
    "slots[49][1]": EVENTS["slots[49][1]"],
    "tail of bytes": events("V")["data"],
    "flags": printk()["flags"],
    "msg": printk()["msg"],
}
WIDE = [name for name in KINDS if name in ("addr", "far")]
BYTES = [name for name, column in KINDS.items() if isinstance(column.iloc[0], bytes)]
SAVED = [name for name in KINDS if name not in WIDE]


def frame_of(kind: str) -> Frame:
    return KINDS[kind].rename("x").to_frame().assign(row=range(len(KINDS[kind])))


def test_all_kinds_are_here() -> None:
    assert len(KINDS) == 20
    assert len(EVENTS.filter(like="slots[").columns) == 100
    assert BYTES == ["ip", "digest", "table", "tail of bytes"]


def test_the_values_are_those_of_the_rows() -> None:
    rows = raw_rows()
    assert EVENTS.ip.tolist() == [row[40:44].tobytes() for row in rows]
    assert EVENTS.table.tolist() == [row[104:2164].tobytes() for row in rows]
    assert EVENTS.filter(like="slots[").to_numpy().tolist() == rows[:, 104:904].view("<u8").tolist()
    assert EVENTS.addr.tolist() == [int.from_bytes(row[64:80].tobytes(), "little") for row in rows]
    assert events("V").data.tolist() == [b"GET", b"a", b"a\0b", b"POST", b"\xf0\0", b"\0\0", b"GET"]
    assert EVENTS.data.tolist() == ["GET", "a", "a", "POST", "\N{REPLACEMENT CHARACTER}", "", "GET"]


# --- files --------------------------------------------------------------------------------------------------------


def through(write: Callable[[Frame, Any], Any], read: Callable[[Any], Frame], frame: Frame) -> Frame:
    file = io.BytesIO()
    write(frame, file)
    file.seek(0)
    return read(file)


def assert_same(back: Frame, frame: Frame) -> None:
    """The same values and dtypes; but pandas 2 reads texts as object, and so categories of texts."""
    if PANDAS < (3, 0):
        texts = [name for name in frame if isinstance(frame[name].dtype, pd.StringDtype | pd.CategoricalDtype)]
        back, frame = back.astype(dict.fromkeys(texts, object)), frame.astype(dict.fromkeys(texts, object))
    pd.testing.assert_frame_equal(back, frame, check_exact=True)
    assert back.equals(frame)


FILES: dict[str, tuple[Callable[[Frame, Any], Any], Callable[[Any], Frame]]] = {
    "parquet": (lambda frame, file: frame.to_parquet(file), pd.read_parquet),
    "feather": (lambda frame, file: frame.to_feather(file), pd.read_feather),
    "pickle": (lambda frame, file: frame.to_pickle(file), pd.read_pickle),
}


@pytest.mark.parametrize("form", FILES)
@pytest.mark.parametrize("kind", SAVED)
def test_files(kind: str, form: str) -> None:
    frame = frame_of(kind)
    back = through(*FILES[form], frame)
    assert_same(back, frame)
    assert back.x.tolist() == frame.x.tolist()


@pytest.mark.parametrize("form", FILES)
def test_a_whole_frame_in_a_file(form: str) -> None:
    """128-bit integers as text: no format has them, and DataFrames only as Python's."""
    for whole in (EVENTS, events("V")):
        frame = whole.astype(dict.fromkeys(WIDE, str))
        back = through(*FILES[form], frame)
        assert_same(back, frame)
        assert back.addr.map(int).tolist() == whole.addr.tolist()
        assert back.far.map(int).tolist() == whole.far.tolist()


def test_a_frame_pickled_keeps_what_it_can() -> None:
    back = pickle.loads(pickle.dumps(EVENTS))
    assert_same(back, EVENTS)
    assert back.ip.isin([b"\x0a\0\0\1"]).tolist() == [True, *[False] * 5, True]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in BYTES])
def test_json(kind: str) -> None:
    found = json.loads(frame_of(kind).to_json(orient="records", date_format="iso", date_unit="ns", double_precision=15))
    values = KINDS[kind].tolist()
    if kind == "time":
        found = [{"x": pd.Timestamp(row["x"])} for row in found]
    if kind == "f64":
        found, values = found[3:], values[3:]  # 15 digits are all it writes
    assert [str(row["x"]) for row in found] == [str(value) for value in values]


# --- pandas -------------------------------------------------------------------------------------------------------


def same_as(values: list[Any], value: Any) -> list[bool]:
    return [bool(other == value) for other in values]


@pytest.mark.parametrize("kind", KINDS)
def test_compared(kind: str) -> None:
    column, values = KINDS[kind], KINDS[kind].tolist()
    for value in values:
        assert (column == value).tolist() == same_as(values, value)
        assert (column != value).tolist() == [not same for same in same_as(values, value)]
    assert (column == column.iloc[::-1].reset_index(drop=True)).tolist() == [
        a == b for a, b in zip(values, values[::-1], strict=True)
    ] or column.dtype == "category"  # pandas wants these to have the same categories, which reversing does not change


@pytest.mark.parametrize("kind", KINDS)
def test_isin(kind: str) -> None:
    """Of a list, a set, a Series; in the column, in a part of it, and in two one behind the other."""
    column, values = KINDS[kind], KINDS[kind].tolist()
    for value in values:
        assert column.isin([value]).tolist() == same_as(values, value)
        assert column.isin(pd.Series([value], dtype=column.dtype)).tolist() == same_as(values, value)
        assert column.iloc[1:].isin({value}).tolist() == same_as(values[1:], value)
        assert pd.concat([column, column]).isin([value]).tolist() == same_as(values * 2, value)
    assert column.isin(values).all()
    assert column.isin(values[1:4]).tolist() == [value in values[1:4] for value in values]
    assert not column.isin([]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_different_values(kind: str) -> None:
    column, values = KINDS[kind], KINDS[kind].tolist()
    different = list(dict.fromkeys(values))
    assert column.drop_duplicates().tolist() == different
    assert frame_of(kind)[["x"]].drop_duplicates().x.tolist() == different
    assert list(column.unique()) == different
    assert column.nunique() == len(different)
    assert column.value_counts()[lambda counts: counts > 0].to_dict() == Counter(values)
    assert column.sort_values().tolist() == sorted(values) or column.dtype == "category"


def test_different_rows() -> None:
    """The last is the first again, but for its time."""
    for whole in (EVENTS, events("V")):
        assert len(whole.drop(columns=["time", "ts"]).drop_duplicates()) == ROWS - 1


@pytest.mark.parametrize("kind", KINDS)
def test_described(kind: str) -> None:
    column, values = KINDS[kind], KINDS[kind].tolist()
    told = frame_of(kind).describe(include="all").x
    assert told["count"] == len(values)
    if "unique" in told and not pd.isna(told["unique"]):
        assert told["unique"] == len(set(values))
        assert told["freq"] == max(Counter(values).values())
    else:
        assert told["min"] == column.min()


def test_a_whole_frame_described() -> None:
    for whole in (EVENTS, events("V")):
        assert (whole.describe(include="all").loc["count"] == ROWS).all()


@pytest.mark.parametrize("kind", KINDS)
def test_grouped_and_merged(kind: str) -> None:
    frame, values = frame_of(kind), KINDS[kind].tolist()
    sizes = Counter(values)
    assert frame.groupby("x", observed=True).size().to_dict() == sizes
    merged = frame.merge(frame, on="x")
    assert Counter(merged.x.tolist()) == {value: count**2 for value, count in sizes.items()}


# --- others -------------------------------------------------------------------------------------------------------


def python_times(kind: str) -> list[Any]:
    """The values, of times as what others give: datetime, whose microseconds these whole ones fit into."""
    values = KINDS[kind].tolist()
    return [value.to_pydatetime(warn=False) if isinstance(value, pd.Timestamp) else value for value in values]


@pytest.mark.parametrize("kind", SAVED)
def test_arrow(kind: str) -> None:
    frame = frame_of(kind)
    table = pa.Table.from_pandas(frame)
    assert table.column("x").to_pylist() == KINDS[kind].tolist()
    assert_same(table.to_pandas(), frame)


@pytest.mark.parametrize("kind", SAVED)
def test_polars(kind: str) -> None:
    frame = polars.from_pandas(frame_of(kind))
    assert frame["x"].to_list() == python_times(kind)
    assert frame.group_by("x").len()["len"].sum() == len(frame)


@pytest.mark.parametrize("kind", [*SAVED, *WIDE])
def test_duckdb(kind: str) -> None:
    events = frame_of(kind)
    if kind in WIDE:
        events = events.astype({"x": str})
    with duckdb.connect() as connection:
        connection.register("events", events)
        found = connection.sql("select x from events order by row").fetchall()
        (different,) = connection.sql("select count(distinct x) from events").fetchall()
    values = [int(value) if kind in WIDE else value for (value,) in found]
    assert values == python_times(kind)
    assert different == (len(set(values)),)


def test_polars_and_duckdb_take_a_whole_frame() -> None:
    for whole in (EVENTS, events("V")):
        frame = whole.astype(dict.fromkeys(WIDE, str))
        assert polars.from_pandas(frame).shape == frame.shape
        with duckdb.connect() as connection:
            connection.register("frame", frame)
            assert connection.sql("select * from frame").fetchnumpy().keys() == set(frame.columns)


# --- bytes --------------------------------------------------------------------------------------------------------


def test_isin_knows_nuls() -> None:
    ip, data = EVENTS.ip, events("V").data
    assert ip.isin([b"\x0a\0\0\0"]).tolist() == [False, True, *[False] * 5]
    assert ip.isin([b"\0\0\0\0", b"abcd"]).tolist() == [False, False, True, True, False, False, False]
    assert not ip.isin([b"\x0a"]).any()
    assert data.isin([b"a"]).tolist() == [False, True, *[False] * 5]
    assert not data.isin([b""]).any()
    assert data.isin([b"\xf0\0"]).tolist() == [False] * 4 + [True, False, False]
    assert not data.isin([b"\xf0"]).any()
    assert data.isin([b"POST", None]).tolist() == [False] * 3 + [True] + [False] * 3
    assert data.isin([b"POST", b"\0"]).tolist() == [False] * 3 + [True, False, True, False]  # numpy says no more
    assert data.isin(pd.Series([b"\0", b"a"])).tolist() == [False, True, *[False] * 5]


def test_bytes_are_looked_at_where_they_are() -> None:
    """A frame copies neither them nor where they begin."""
    table = Table(Schema((Bytes("ip", 0, 4),), 4), epoch_ns=0)
    frames = []
    for n in range(3):
        table.append(np.full((1000, 4), n, np.uint8), np.empty(0, np.uint8), 0)
        frames.append(table.frame())
    grown = table._columns["ip"]
    assert isinstance(grown, BytesColumn)
    buffers = [buffer.address for buffer in frames[-1].ip.array._pa_array.chunk(0).buffers()[1:]]
    assert buffers == [buffer.all.ctypes.data for buffer in (grown._ends, grown._buffer)]
    assert [frame.ip.value_counts().to_dict() for frame in frames] == [
        {bytes([n] * 4): 1000 for n in range(count)} for count in (1, 2, 3)
    ]
