"""Parts of recordings: Parquet has the rows and types of the stream it was made of, and rows are counted unread."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_recording_files import NAMES, TABLES, assert_same, every_kind, recorded, rows_of

from bpfnb.recordings.parts import Compactor, stream_rows, to_parquet
from bpfnb.recordings.reader import RecordedRows, open_recording
from bpfnb.results.table import Table

EPOCH = 1_700_000_000_000_000_001


def pieces(schema_is_text: bool = True) -> tuple[Table, list[pd.DataFrame]]:
    """A frame in ten pieces: names come one after another, so that the stream's dictionaries grow."""
    table = Table(every_kind(schema_is_text), EPOCH)
    table.append(*rows_of(every_kind(schema_is_text), 100, NAMES), 0)
    return table, [table.part(begin, begin + 10) for begin in range(0, 100, 10)]


@pytest.mark.parametrize("kind", list(TABLES))
def test_parquet_has_the_frame_of_the_stream(kind: str, tmp_path: Path) -> None:
    schema, make = TABLES[kind]
    frame = make().frame()
    recording = recorded(tmp_path / "r", schema, [frame])
    assert_same(recording.outputs[0].frame(), frame)
    for part in recording.outputs[0].parts():
        assert part.file
        assert to_parquet(part.file, rows=7).suffix == ".parquet"
        assert not part.file.exists()
    (again,) = recorded_again(tmp_path / "r")
    assert {part.kind for part in again.parts()} <= {"parquet"}
    assert_same(again.frame(), frame)


def recorded_again(path: Path) -> tuple[RecordedRows, ...]:
    return open_recording(path).outputs


def test_full_parts_become_parquet_and_the_last_stays_a_stream(tmp_path: Path) -> None:
    table, ten = pieces()
    recording = recorded(tmp_path / "r", every_kind(True), ten, part=1)
    assert {part.kind for part in recording.outputs[0].parts()} == {"parquet"}  # all of them were full
    assert_same(recording.outputs[0].frame(), table.frame())
    for options in ({}, {"part": 1, "parquet": False}):
        recording = recorded(tmp_path / f"r{len(options)}", every_kind(True), ten, **options)
        assert {part.kind for part in recording.outputs[0].parts()} == {"arrows"}


def test_types_and_units_are_kept_and_row_groups_say_their_times(tmp_path: Path) -> None:
    table, _ = pieces()
    recording = recorded(tmp_path / "r", every_kind(True), [table.frame()])
    (part,) = recording.outputs[0].parts()
    assert part.file
    parquet = pq.ParquetFile(to_parquet(part.file, rows=16))
    with parquet:
        assert parquet.schema_arrow.equals(recording.outputs[0].schema, check_metadata=True)
        meta = parquet.metadata
        assert [meta.row_group(n).num_rows for n in range(meta.num_row_groups)] == [16] * 6 + [4]
        assert meta.row_group(0).column(0).compression == "ZSTD"
        times = table.frame().time
        for n in range(meta.num_row_groups):
            said = meta.row_group(n).column(0).statistics
            assert (said.min, said.max) == (times[16 * n], times[min(16 * n + 15, 99)])


def test_one_that_cannot_be_written_stays_a_stream(tmp_path: Path) -> None:
    table, _ = pieces()
    recording = recorded(tmp_path / "r", every_kind(True), [table.frame()])
    (part,) = recording.outputs[0].parts()
    assert part.file
    (tmp_path / "r" / "outputs" / "0" / "000000.parquet.tmp").mkdir()  # nothing can be written there
    compactor = Compactor()
    compactor.add(part.file)
    compactor.close()
    (again,) = recorded_again(tmp_path / "r")
    assert_same(again.frame(), table.frame())


def test_rows_are_counted_without_being_read() -> None:
    schema = pa.schema([("x", pa.int64()), ("name", pa.dictionary(pa.int32(), pa.string()))])
    file = io.BytesIO()
    sizes = [3, 1, 70_000, 0, 5]
    with pa.ipc.new_stream(file, schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        for size in sizes:
            names = pa.array([f"n{n % 7}" for n in range(size)], pa.string()).dictionary_encode()
            names = pa.DictionaryArray.from_arrays(names.indices.cast(pa.int32()), names.dictionary)
            writer.write_batch(pa.RecordBatch.from_arrays([pa.array(range(size)), names], schema=schema))
    data = file.getvalue()
    assert stream_rows(io.BytesIO(data)) == sizes
    for end in range(0, len(data), 997):  # cut short: the batches that can be read, and no other
        try:
            whole = [batch.num_rows for batch in _readable(data[:end])]
        except pa.ArrowException:
            whole = []
        assert stream_rows(io.BytesIO(data[:end])) == whole
    assert stream_rows(io.BytesIO(b"\xff" * 100)) == stream_rows(io.BytesIO(b"")) == []


def _readable(data: bytes) -> list[pa.RecordBatch]:
    found: list[pa.RecordBatch] = []
    try:
        reader = pa.ipc.open_stream(data)
        while True:
            found.append(reader.read_next_batch())
    except (StopIteration, pa.ArrowException, OSError):
        return found
