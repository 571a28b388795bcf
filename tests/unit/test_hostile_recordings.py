"""Recordings that were cut short, damaged or forged: what can be read is read, the rest is said; nothing happens."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from test_recording_files import assert_same, events, manifest_of

from bpfnb.errors import ProgramError
from bpfnb.protocol.messages import MapInfo
from bpfnb.protocol.schema import Number, Schema, Text, Wide
from bpfnb.recordings import store
from bpfnb.recordings.columns import arrow_schema
from bpfnb.recordings.reader import Recording, open_recording
from bpfnb.recordings.writer import Writer
from bpfnb.results.table import Table

SMALL = Schema((Number("at", 0, "<u8"), Text("comm", 8, 8), Wide("wide", 16)), 32, time="at")
COUNTS = MapInfo("counts", "BPF_HASH", "hash", Schema((Number("key", 0, "<u4"),), 4), SMALL, 4, 32, 32, 1, 10)
BATCHES = 4


def table() -> Table:
    made = Table(SMALL, 0)
    rows = np.zeros((BATCHES, 32), np.uint8)
    rows[:, 0] = np.arange(BATCHES)
    rows[:, 8] = 97 + np.arange(BATCHES) % 3
    made.append(rows, np.empty(0, np.uint8), 0)
    return made


def killed(path: Path) -> Table:
    """A recording whose process was killed: a row a flush."""
    writing = path.with_name("writing")
    writer, made = Writer(writing, manifest_of(events(SMALL), maps=(COUNTS,))), table()
    for number in range(BATCHES):
        writer.rows(0, made.part(number, number + 1))
        writer.snapshot(0, number, 1, bytes(8 + 32))
        writer.symbols(7, [number], [f"f{number}"], ["libf"])
        writer.progress(0, number + 1, number)
        writer.flush()
    shutil.copytree(writing, path)
    writer.abandon()
    return made


FILES = ("outputs/0/000000.arrows", "maps/0.arrows", "symbols.arrows", "progress.arrows")


def read_all(recording: Recording) -> list[int]:
    """Look at all there is; how much that was."""
    frames = [rows.frame() for rows in recording.outputs]
    assert all(frame["wide"].map(type).eq(int).all() for frame in frames)
    snapshots = [len(list(map_.snapshots())) for map_ in recording.maps]
    return [*map(len, frames), *snapshots, len(recording.symbols())]


def test_what_a_killed_process_had_flushed_is_there(tmp_path: Path) -> None:
    made = killed(tmp_path / "trace")
    recording = open_recording(tmp_path / "trace")
    assert not recording.ended
    assert_same(recording.outputs[0].frame(), made.frame())
    assert read_all(recording) == [BATCHES] * 3
    assert recording.missing == {"events": 0}
    assert recording.progress(0) == (BATCHES, BATCHES - 1)


@pytest.mark.parametrize("name", FILES)
def test_cut_at_any_byte_all_but_the_last_batch_is_there(name: str, tmp_path: Path) -> None:
    made = killed(tmp_path / "trace").frame()
    recording = open_recording(tmp_path / "trace")
    rows, count = recording.outputs[0], 0
    file = tmp_path / "trace" / name
    whole, counts = file.stat().st_size, []
    for size in range(whole, -1, -1):
        os.truncate(file, size)
        if name == FILES[0]:
            before, count = count, sum(batch.num_rows for batch in rows.batches())
            if count != before:
                assert open_recording(tmp_path / "trace").missing == {"events": BATCHES - count}
                assert rows.frame()["at"].tolist() == made["at"].tolist()[:count]
        elif name == FILES[1]:
            count = len(list(recording.maps[0].snapshots()))
        elif name == FILES[2]:
            count = len(recording.symbols())
        elif size % 7 == 0:  # it is read as the recording is opened, which takes longer
            count = open_recording(tmp_path / "trace").progress(0)[0]
        counts.append(count)
    assert sorted(counts, reverse=True) == counts
    assert set(counts) - {0} == set(range(1, BATCHES + 1))
    # A batch is lost with its own bytes, and not before.
    assert all(counts.count(number) < whole // 2 for number in range(1, BATCHES))


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_damaged_bytes_are_read_or_refused(name: str, tmp_path: Path) -> None:
    """Whatever byte is another: an error of a line, or what can be read. Not another exception, not the end of us."""
    killed(tmp_path / "trace")
    file = tmp_path / "trace" / name
    good = file.read_bytes()
    choose = random.Random(name)
    refused = []
    for _ in range(40):
        bad = bytearray(good)
        for _ in range(choose.choice((1, 1, 4))):
            bad[choose.randrange(len(bad))] = choose.choice((0, 0xFF, 0x7F, 0x80, choose.randrange(256)))
        file.write_bytes(bad)
        try:
            read_all(open_recording(tmp_path / "trace"))
        except ProgramError as error:
            refused.append(str(error))
    assert refused
    assert not any("\n" in line for line in refused)


# --- forged -------------------------------------------------------------------------------------------------------


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    writer = Writer(tmp_path / "trace", manifest_of(events(SMALL), maps=(COUNTS,)))
    writer.rows(0, table().frame(), whole=True)
    writer.snapshot(0, 1, 1, bytes(8 + 32))
    writer.close(manifest_of(events(SMALL, written=BATCHES), maps=(COUNTS,), state="stopped"))
    return tmp_path / "trace"


def forge(trace: Path, *path: str | int, value: Any) -> None:
    """Change one value of the manifest."""
    manifest = json.loads((trace / "manifest.json").read_bytes())
    place = manifest
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    (trace / "manifest.json").write_text(json.dumps(manifest))


COLUMN = ("outputs", 0, "schema", "columns", 0)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("version",), 0),
        (("version",), "one"),
        (("outputs",), [{"name": "x"}]),
        (("outputs",), "many"),
        (("outputs", 0, "schema", "size"), 1 << 60),
        (("outputs", 0, "schema", "size"), -1),
        (("outputs", 0, "schema", "text_end"), 31),
        (("outputs", 0, "schema", "time"), "comm"),
        (("outputs", 0, "schema", "time"), "nothing"),
        ((*COLUMN, "dtype"), "O"),
        ((*COLUMN, "dtype"), "V1000000000"),
        ((*COLUMN, "dtype"), "<M8[ns]"),
        ((*COLUMN, "dtype"), "i4,(1000000000,)i4"),
        ((*COLUMN, "offset"), -8),
        ((*COLUMN, "offset"), 25),
        ((*COLUMN, "offset"), 1 << 70),
        ((*COLUMN, "kind"), "pickle"),
        ((*COLUMN, "name"), "comm"),
        (("outputs", 0, "schema", "columns", 1, "size"), -3),
        (("outputs", 0, "schema", "columns", 1, "size"), 1 << 40),
        (("maps", 0, "key_size"), 1 << 40),
        (("maps", 0, "value_stride"), 0),
        (("maps", 0, "cpus"), 0),
        (("maps", 0, "cpus"), 1 << 40),
        (("maps", 0, "value", "size"), 64),
        (("program",), {}),
        (("costs",), {"programs": ["f"], "words": [1, 2]}),
        (("counters",), {"counts": {"a": 1}}),
    ],
)
def test_a_forged_manifest_is_refused(path: tuple[str | int, ...], value: Any, trace: Path) -> None:
    forge(trace, *path, value=value)
    with pytest.raises(ProgramError, match="trace is no recording: ") as caught:
        open_recording(trace)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"[" * 100_000, b'{"a":' * 100_000, pickle.dumps({"version": 1}), b"\xff\xfe"],
    ids=["empty", "open", "list", "null", "deep list", "deep", "pickle", "no text"],
)
def test_what_is_no_manifest(data: bytes, trace: Path) -> None:
    (trace / "manifest.json").write_bytes(data)
    with pytest.raises(ProgramError, match=r"trace is no recording: its manifest\.json says "):
        open_recording(trace)


def test_a_manifest_that_is_huge_is_not_read(trace: Path) -> None:
    os.truncate(trace / "manifest.json", 1 << 40)
    with pytest.raises(ProgramError, match="has more than 67,108,864 bytes"):
        open_recording(trace)


def test_a_newer_version_is_said(trace: Path) -> None:
    forge(trace, "version", value=2)
    forge(trace, "bpfnb", value="9.0")
    forge(trace, "outputs", value="in another way")
    with pytest.raises(ProgramError, match=r"by bpfnb 9\.0, in version 2 of the format: this bpfnb reads .* 1$"):
        open_recording(trace)


def test_fields_that_nobody_knows_are_no_mistake(trace: Path) -> None:
    forge(trace, "colour", value="blue")
    forge(trace, "outputs", 0, "colour", value="red")
    (trace / "README").write_text("mine")
    assert len(open_recording(trace).outputs[0].frame()) == BATCHES


def test_neither_folder_nor_zip(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ProgramError, match="text is no recording: neither a folder nor a zip"):
        open_recording(tmp_path / "text")
    with pytest.raises(ProgramError, match=r"empty is no recording: it has no manifest\.json"):
        open_recording(tmp_path / "empty")
    with pytest.raises(ProgramError, match="nothing is not there"):
        open_recording(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ProgramError, match="pipe is no recording"):
        open_recording(tmp_path / "pipe")


class Trap:
    """What a pickle would do."""

    def __reduce__(self) -> Any:
        return os.system, ("touch was-run",)


def batches(schema: pa.Schema, *columns: pa.Array) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(list(columns), schema=schema))
    return bytes(sink.getvalue())


def forged_rows(change: Callable[[dict[str, pa.Array], dict[str, pa.Field]], None]) -> bytes:
    """A part of one row, with columns that are not as they were."""
    schema = arrow_schema(SMALL)
    arrays = {
        "time": pa.array([1], pa.int64()).view(pa.timestamp("ns", "UTC")),
        "at": pa.array([1], pa.uint64()),
        "comm": pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), pa.array(["a"])),
        "wide": pa.array([bytes(16)], pa.binary(16)),
    }
    fields = {field.name: field for field in schema}
    change(arrays, fields)
    return batches(pa.schema(list(fields.values())), *arrays.values())


def no_number(arrays: dict[str, pa.Array], fields: dict[str, pa.Field]) -> None:
    arrays["at"] = pa.array([None], pa.uint64())


def other_type(arrays: dict[str, pa.Array], fields: dict[str, pa.Field]) -> None:
    arrays["at"], fields["at"] = pa.array(["x"]), pa.field("at", pa.string())


def other_name(arrays: dict[str, pa.Array], fields: dict[str, pa.Field]) -> None:
    fields["at"] = pa.field("ta", pa.uint64())


def far_name(arrays: dict[str, pa.Array], fields: dict[str, pa.Field]) -> None:
    arrays["comm"] = pa.DictionaryArray.from_arrays(pa.array([1000], pa.int32()), pa.array(["a"]), safe=False)


def negative_name(arrays: dict[str, pa.Array], fields: dict[str, pa.Field]) -> None:
    arrays["comm"] = pa.DictionaryArray.from_arrays(pa.array([-5], pa.int32()), pa.array(["a"]), safe=False)


def name_twice(arrays: dict[str, pa.Array], fields: dict[str, pa.Field]) -> None:
    arrays["comm"] = pa.DictionaryArray.from_arrays(pa.array([1], pa.int32()), pa.array(["a", "a"]))


def no_text(arrays: dict[str, pa.Array], fields: dict[str, pa.Field]) -> None:
    buffers = [None, pa.py_buffer(np.array([0, 2], "<i4")), pa.py_buffer(b"\xff\xfe")]
    names = pa.Array.from_buffers(pa.string(), 1, buffers)
    arrays["comm"] = pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), names)


def pickled_type(arrays: dict[str, pa.Array], fields: dict[str, pa.Field]) -> None:
    metadata = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Trap()).decode("latin1"),
    }
    fields["at"] = pa.field("at", pa.binary(8), metadata=metadata)
    arrays["at"] = pa.array([bytes(8)], pa.binary(8))


FORGED = [no_number, other_type, other_name, far_name, negative_name, name_twice, no_text, pickled_type]


@pytest.mark.parametrize("change", FORGED)
def test_forged_rows_are_refused(change: Any, trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trace.parent)
    (trace / "outputs/0/000000.arrows").write_bytes(forged_rows(change))
    with pytest.raises(ProgramError, match=r"trace: outputs/0/000000\.arrows ") as caught:
        open_recording(trace).outputs[0].frame()
    assert "\n" not in str(caught.value)
    assert [path.name for path in trace.parent.iterdir()] == ["trace"]


def test_as_forged_as_that_is_read_when_nothing_is_changed(trace: Path) -> None:
    (trace / "outputs/0/000000.arrows").write_bytes(forged_rows(lambda arrays, fields: None))
    assert open_recording(trace).outputs[0].frame()["comm"].tolist() == ["a"]


LZ4 = b"\x04\x22\x4d\x18"  # how a frame of it begins


@pytest.mark.parametrize("name", ["outputs/0/000000.arrows", "maps/0.arrows"])
def test_a_batch_that_claims_to_be_huge_takes_no_room(name: str, trace: Path) -> None:
    """What is compressed begins with the bytes that it will have."""
    file = trace / name
    data = file.read_bytes()
    begin = data.rindex(LZ4) - 8
    assert struct.unpack_from("<q", data, begin)[0] < 1000
    file.write_bytes(data[:begin] + struct.pack("<q", 1 << 40) + data[begin + 8 :])
    with pytest.raises(ProgramError, match=rf"{name} is damaged: a batch of it claims 1,099,511,"):
        read_all(open_recording(trace))


def test_a_snapshot_has_the_size_of_its_entries(trace: Path) -> None:
    file = trace / "maps/0.arrows"
    schema = pa.ipc.open_stream(file.read_bytes()).schema
    for count, size in ((-1, 0), (2, 40), (1 << 62, 40), (1, 39)):
        values = pa.array([0], pa.int64()), pa.array([count]), pa.array([bytes(size)], pa.large_binary()), pa.array([0])
        file.write_bytes(batches(schema, values[0].view(schema.field("time").type), *values[1:]))
        with pytest.raises(ProgramError, match=r"trace: maps/0\.arrows: .* entries do not have that size"):
            open_recording(trace).maps[0].last()


def test_parquet_is_checked_as_a_stream_is(trace: Path) -> None:
    whole = pa.Table.from_batches(open_recording(trace).outputs[0].batches())
    file = trace / "outputs/0/000000.parquet"
    pa.parquet.write_table(whole, file, compression="zstd")
    assert_same(open_recording(trace).outputs[0].frame(), table().frame())  # it comes before the stream
    for columns in (whole.drop_columns("at"), whole.set_column(1, "at", pa.array([None] * BATCHES, pa.uint64()))):
        pa.parquet.write_table(columns, file)
        with pytest.raises(ProgramError, match=r"outputs/0/000000\.parquet "):
            open_recording(trace).outputs[0].frame()
    for data in (b"", b"PAR1" * 3, file.read_bytes()[:-1], b"PAR1\xff\xff\xff\x7fPAR1"):
        file.write_bytes(data)
        with pytest.raises(ProgramError, match=r"outputs/0/000000\.parquet is damaged: "):
            open_recording(trace).outputs[0].frame()


# --- links and zips -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["manifest.json", "outputs", "outputs/0", "outputs/0/000000.arrows", "maps/0.arrows"])
def test_links_are_not_followed(name: str, trace: Path) -> None:
    elsewhere = trace.parent / "elsewhere"
    (trace / name).rename(elsewhere)
    (trace / name).symlink_to(elsewhere)
    with pytest.raises(ProgramError, match="is a link: a recording has none"):
        open_recording(trace)


def test_a_pipe_is_not_waited_for(trace: Path) -> None:
    (trace / "outputs/0/000000.arrows").unlink()
    os.mkfifo(trace / "outputs/0/000000.arrows")
    with pytest.raises(ProgramError, match="is no file"):
        open_recording(trace).outputs[0].frame()


def zipped(trace: Path, prefix: str = "", method: int = zipfile.ZIP_STORED) -> Path:
    path = trace.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(trace.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + file.relative_to(trace).as_posix())
    return path


@pytest.mark.parametrize("prefix", ["", "trace/"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_zips_that_others_made_of_a_folder(prefix: str, method: int, trace: Path) -> None:
    recording = open_recording(zipped(trace, prefix, method))
    assert_same(recording.outputs[0].frame(), table().frame())
    assert recording.maps[0].last() is not None


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a/../../x", "..\\x", "outputs/0/../../../x"])
def test_names_that_lead_out_of_a_zip_are_refused(name: str, trace: Path) -> None:
    path = zipped(trace)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"mine")
    with pytest.raises(ProgramError, match=r"trace\.zip has a file named .*: it is no recording"):
        open_recording(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_file_that_a_zip_has_twice(trace: Path) -> None:
    path = zipped(trace)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("manifest.json", b"{}")
    with pytest.raises(ProgramError, match=r"trace\.zip has manifest\.json twice"):
        open_recording(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_zips_are_read_or_refused(method: int, trace: Path) -> None:
    path = zipped(trace, method=method)
    good = path.read_bytes()
    choose = random.Random(method)
    refused = []
    for number in range(30):
        bad = bytearray(good)
        for _ in range(3):  # mostly in the directory, whose sizes then lie
            begin = choose.choice((0, len(bad) * 3 // 4))
            bad[choose.randrange(begin, len(bad))] = choose.choice((0, 0xFF, choose.randrange(256)))
        path.write_bytes(bad[: choose.randrange(len(bad))] if number % 5 == 0 else bad)
        try:
            read_all(open_recording(path))
        except ProgramError as error:
            refused.append(str(error))
    assert refused
    assert not any("\n" in line for line in refused)


def test_a_bomb_is_not_unpacked(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (trace / "outputs/0/000000.arrows").open("ab") as file:
        file.truncate(1_000_001)
    small = zipped(trace, method=zipfile.ZIP_DEFLATED)
    assert small.stat().st_size < 10_000
    assert len(open_recording(small).outputs[0].frame()) == BATCHES
    monkeypatch.setattr(store, "MAX_DEFLATED", 1_000_000)
    with pytest.raises(ProgramError, match=r"has 1,000,001 bytes, and is compressed: unpack the zip"):
        open_recording(small).outputs[0].frame()
