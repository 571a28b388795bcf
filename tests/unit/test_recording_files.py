"""Recordings as files: what is written is read, to the last value and dtype."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from bpfnb.errors import ProgramError
from bpfnb.language.program import parse
from bpfnb.protocol.messages import MapInfo
from bpfnb.protocol.schema import (
    PRINTK,
    PRINTK_LINES,
    PRINTK_ROW,
    BitField,
    Bytes,
    Enum,
    Number,
    NumberArray,
    Schema,
    Tail,
    Text,
    Wide,
)
from bpfnb.recordings.columns import arrow_schema
from bpfnb.recordings.format import Manifest, OutputInfo
from bpfnb.recordings.reader import Recording, open_recording
from bpfnb.recordings.writer import Writer
from bpfnb.results.printk import PrintkTable
from bpfnb.results.table import Table

NUMBERS = ["<u1", "<u2", "<u4", "<u8", "<i1", "<i2", "<i4", "<i8", "<f4", "<f8", "|b1"]
LABELS = (("SOCK_STREAM", 1), ("SOCK_DGRAM", 2), ("SOCK_NEVER_SEEN", 7))


def every_kind(text: bool) -> Schema:
    """A schema with every kind of column there is."""
    columns: list[Any] = [Number("at", 0, "<u8")]
    columns += [Number(f"n{dtype}", 16 + 8 * i, dtype) for i, dtype in enumerate(NUMBERS)]
    end = 16 + 8 * len(NUMBERS)
    columns += [
        Enum("kind", end, "<u4", LABELS),
        BitField("flag", end + 4, "|b1", 0, 1),
        BitField("signed", end + 4, "<i8", 1, 5),
        BitField("named", end + 4, "<u4", 6, 2, LABELS),
        Text("comm", end + 8, 16),
        Bytes("mac", end + 24, 6),
        Wide("wide", end + 32),
        Wide("wider", end + 48, True),
        NumberArray("grid", end + 64, "<i2", (2, 2)),
        NumberArray("much", end + 72, "|u1", (1030,)),
        Number("time", end + 1102, "|u1"),
        Tail("rest", 0, text),
    ]
    return Schema(tuple(columns), 1400, time="at", text_end=8)


def rows_of(schema: Schema, count: int, names: Sequence[bytes], seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    rows = random.integers(0, 256, (count, schema.size), np.uint8)
    comm = next(column for column in schema.columns if column.name == "comm")
    kind = next(column for column in schema.columns if column.name == "kind")
    for row in range(count):
        rows[row, comm.offset : comm.offset + 16] = np.frombuffer(names[row % len(names)].ljust(16, b"\0"), np.uint8)
        rows[row, kind.offset : kind.offset + 4].view("<u4")[:] = (1, 2, 99)[row % 3]
    rows[:, :8].view("<u8")[:, 0] = np.arange(count) * 1_000_000_007
    lengths = random.integers(0, 9, count)
    text = random.integers(0, 256, int(lengths.sum()), np.uint8)
    rows[:, 8:16].view("<i8")[:, 0] = np.cumsum(lengths)
    return rows, text


NAMES = [b"bash", b"caf\xc3\xa9", b"\xff\xfe\xfd", b"\xff\xfe\xfe", b"", b"x\0y", b"x\0z", b"sixteen bytes ..", b"zsh"]


def table_of(schema: Schema, count: int = 100) -> Table:
    table = Table(schema, 1_700_000_000_000_000_001)
    table.append(*rows_of(schema, count, NAMES), 0)
    return table


def printk_table(schema: Schema) -> Table:
    table = PrintkTable(1_700_000_000_000_000_001, schema)
    rows = np.zeros(4, PRINTK_ROW)
    rows["mono_ns"], rows["pid"], rows["comm"] = [1, 2, 3, 2**40], [7, 8, 9, 7], [b"a", b"b", b"a", b"\xff"]
    rows["flags"], rows["preempt"], rows["text_end"] = [0, 1, 4, 1], [0, 0, 2, 0], [2, 2, 5, 9]
    table.append(rows.view(np.uint8).reshape(4, -1), np.frombuffer(b"hi\xffaz\xc3\xa9!\n", np.uint8), 0)
    return table


TABLES: dict[str, tuple[Schema, Callable[[], Table]]] = {
    "strings": (every_kind(True), lambda: table_of(every_kind(True))),
    "bytes": (every_kind(False), lambda: table_of(every_kind(False))),
    "printk": (PRINTK, lambda: printk_table(PRINTK)),
    "lines": (PRINTK_LINES, lambda: printk_table(PRINTK_LINES)),
    "empty": (every_kind(True), lambda: Table(every_kind(True), 0)),
}


def manifest_of(*outputs: OutputInfo, maps: tuple[MapInfo, ...] = (), **changes: Any) -> Manifest:
    plain = {
        "version": 1, "bpfnb": "0", "bcc": "0", "kernel": "6", "machine": "x86_64", "host": "here", "boot": "",
        "name": "trace", "program": parse("int kprobe__f(void *ctx) { return 0; }"), "began_ns": 0, "epoch_ns": 0,
    }  # fmt: skip
    return Manifest(**{**plain, "outputs": outputs, "maps": maps, **changes})


def events(schema: Schema, **changes: Any) -> OutputInfo:
    return OutputInfo("events", "perf", schema, 0, **changes)


def recorded(path: Path, schema: Schema, pieces: Sequence[pd.DataFrame], **options: Any) -> Recording:
    writer = Writer(path, manifest_of(events(schema)), **options)
    for number, piece in enumerate(pieces):
        writer.rows(0, piece, whole=not number)
    writer.close(manifest_of(events(schema, rows=100, written=writer.written(0), lost=0), state="stopped"))
    assert not writer.failed
    return open_recording(path)


def assert_same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one, other, check_exact=True, check_freq=True)
    for name in one.columns:  # also what assert_frame_equal lets pass: categories' own dtype, and Python's types
        assert repr(one[name].dtype) == repr(other[name].dtype), name
        if isinstance(one[name].dtype, pd.CategoricalDtype):
            assert one[name].cat.categories.dtype == other[name].cat.categories.dtype
            assert list(one[name].cat.categories) == list(other[name].cat.categories)
        if one[name].dtype == object:
            assert list(map(type, one[name])) == list(map(type, other[name]))


@pytest.mark.parametrize("place", ["trace.bpfnb", "trace.bpfnb.zip"])
@pytest.mark.parametrize("kind", list(TABLES))
def test_frames_come_back_as_they_were(kind: str, place: str, tmp_path: Path) -> None:
    schema, make = TABLES[kind]
    frame = make().frame()
    pieces = [frame.iloc[begin : begin + 7].reset_index(drop=True) for begin in range(0, max(len(frame), 1), 7)]
    recording = recorded(tmp_path / place, schema, pieces)
    assert_same(recording.outputs[0].frame(), frame)
    assert recording.missing == {"events": 0}
    assert [path.name for path in tmp_path.iterdir()] == [place]


def test_many_parts_make_the_same_frame(tmp_path: Path) -> None:
    schema, make = TABLES["strings"]
    table = make()
    pieces = [table.part(begin, begin + 10) for begin in range(0, 100, 10)]
    writer = Writer(tmp_path / "trace", manifest_of(events(schema)), part=1)
    for number, piece in enumerate(pieces):
        writer.rows(0, piece, whole=not number)
        writer.flush()
    writer.close(manifest_of(events(schema, written=100), state="stopped"))
    recording = open_recording(tmp_path / "trace")
    assert len(recording.outputs[0].parts()) == 10
    assert_same(recording.outputs[0].frame(), table.frame())


def test_names_come_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    """As they are recorded: nobody knows the names to come, and each part has only those of its rows. Constants come
    first all the same."""
    schema = Schema((Text("comm", 0, 8), Enum("kind", 8, "<u4", LABELS)), 12)
    table, writer = Table(schema, 0), Writer(tmp_path / "trace", manifest_of(events(schema)), part=200)
    for begin, names in enumerate(("da", "cd", "ba", "ea")):
        rows = np.zeros((2, 12), np.uint8)
        rows[:, 0], rows[:, 8] = list(names.encode()), [9, 2]
        table.append(rows, np.empty(0, np.uint8), 0)
        writer.rows(0, table.part(2 * begin, 2 * begin + 2))
        writer.flush()
    writer.close(manifest_of(events(schema), state="stopped"))
    recording = open_recording(tmp_path / "trace")
    assert len(recording.outputs[0].parts()) > 1
    assert list(table.frame()["kind"].cat.categories) == ["SOCK_STREAM", "SOCK_DGRAM", "SOCK_NEVER_SEEN", "9"]
    assert_same(recording.outputs[0].frame(), table.frame())


def test_types_and_units_are_in_the_file(tmp_path: Path) -> None:
    schema = every_kind(True)
    recording = recorded(tmp_path / "trace", schema, [table_of(schema).frame()])
    part = recording.outputs[0].parts()[0]
    assert part.file is not None
    fields = pa.ipc.open_stream(part.file.read_bytes()).schema
    assert fields.equals(arrow_schema(schema), check_metadata=True)
    types = {field.name: field.metadata[b"type"].decode() for field in fields}
    wanted = {
        "n<u4": "__u32", "n<i8": "__s64", "n<f4": "float", "n|b1": "bool", "kind": "enum", "comm": "char[16]",
        "mac": "__u8[6]", "wide": "__u128", "signed": "__s64:5",
    }  # fmt: skip
    assert {name: types[name] for name in wanted} == wanted
    assert arrow_schema(schema, {"n<u8": "ns"}).field("n<u8").metadata[b"unit"] == b"ns"


def test_columns_that_are_not_the_output_s_are_refused(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "trace", manifest_of(events(every_kind(True))))
    with pytest.raises(ProgramError, match="rows have the columns pid, not "):
        writer.rows(0, pd.DataFrame({"pid": [1]}))
    writer.abandon()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [2000, 6000, 9000, 20_000])
def test_a_full_disk_is_said_and_what_was_written_is_good(size: int, tmp_path: Path) -> None:
    schema, make = TABLES["strings"]
    table, path = make(), tmp_path / "trace"
    writer = Writer(path, manifest_of(events(schema)), part=30_000)
    kept = manifest_of(events(schema))
    with small_files(size):
        for n in range(100):
            writer.rows(0, table.part(n, n + 1))
            writer.symbols(0, [n], ["f" * 10], [""])
            writer.flush()
        assert "trace cannot be written: File too large" in writer.failed
        written = writer.written(0)
        assert 0 <= written < 100
    writer.close(msgspec.structs.replace(kept, outputs=(events(schema, rows=100, written=written),), state="stopped"))
    recording = open_recording(path)
    assert "File too large" in recording.manifest.note
    frame = recording.outputs[0].frame()
    assert_rows(frame, table.frame().iloc[:written])
    assert recording.missing == {"events": 0}
    for part in recording.outputs[0].parts():  # nothing torn is left behind the last whole batch
        assert part.file is not None
        assert not part.size or len(pa.ipc.open_stream(part.file.read_bytes()).read_all())
    assert len(frame) + (size < 9000) > 0


def test_a_reader_that_comes_while_it_is_written_has_what_was_flushed(tmp_path: Path) -> None:
    schema, make = TABLES["strings"]
    table = make()
    writer = Writer(tmp_path / "trace", manifest_of(events(schema)))
    for n in range(3):
        writer.rows(0, table.part(n, n + 1))
        writer.progress(0, 10 * n, n)
        assert open_recording(tmp_path / "trace").outputs[0].rows == n
        writer.flush()
        recording = open_recording(tmp_path / "trace")
        assert not recording.ended
        assert recording.outputs[0].rows == n + 1
        assert recording.progress(0) == (max(10 * n, n + 1), n)
    writer.abandon()


def test_many_rows_are_written_in_batches_of_a_megabyte(tmp_path: Path) -> None:
    schema = Schema((Number("at", 0, "<u8"), Number("n", 8, "<u8")), 16, time="at")
    table = Table(schema, 0)
    rows = np.zeros((200_000, 16), np.uint8)
    rows.view("<u8")[:, 0] = np.arange(200_000)
    table.append(rows, np.empty(0, np.uint8), 0)
    recording = recorded(tmp_path / "trace", schema, [table.frame()])
    sizes = [batch.nbytes for batch in recording.outputs[0].batches()]
    assert max(sizes) <= 1 << 20
    assert len(sizes) < 8
    assert_same(recording.outputs[0].frame(), table.frame())


def assert_rows(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """The same values; of categories those that the rows have."""
    plain = {name: object for name in one if isinstance(one[name].dtype, pd.CategoricalDtype)}
    pd.testing.assert_frame_equal(one.astype(plain), other.astype(plain))


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """Have the kernel refuse to write files beyond so many bytes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
