"""Finished parts of a recording: from Arrow streams to Parquet, and how many rows they have.

Parquet parts are half the size of streams, columns are read one by one, and row groups that lie outside a time are not
read at all. A part is replaced as a whole, so that whoever reads the recording meanwhile, or after a crash, finds its
rows once.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet

from bpfnb.interrupts import Flag, start_new_thread, undoing

__all__ = ["ROW_GROUP", "Compactor", "stream_rows", "to_parquet", "whole_messages"]

ROW_GROUP = (
    1 << 17
)  # rows: a tenth of a second at a million events a second, and what a thread of DuckDB's reads at once
_LEVEL = 1  # of zstd: higher ones take several times as long for some percent


def to_parquet(stream: Path, *, rows: int = ROW_GROUP) -> Path:
    """Replace a part that is a complete Arrow stream by the same in Parquet; return its file. ``rows``: of a row group.

    OSError and pyarrow's errors where that cannot be done: the stream is then still there.
    """
    parquet = stream.with_suffix(".parquet")
    unfinished = stream.with_suffix(".parquet.tmp")
    try:
        with stream.open("rb") as source, unfinished.open("xb") as target:
            reader = pa.ipc.open_stream(source)
            _write(reader, target, rows)
            target.flush()
            os.fsync(target.fileno())
        unfinished.replace(parquet)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise
    stream.unlink()
    return parquet


def _write(reader: pa.RecordBatchReader, target: BinaryIO, rows: int) -> None:
    with pa.parquet.ParquetWriter(
        target, reader.schema, compression="zstd", compression_level=_LEVEL, version="2.6"
    ) as writer:
        for table in _groups(reader, rows):
            writer.write_table(table, row_group_size=rows)


def _groups(reader: pa.RecordBatchReader, rows: int) -> Iterator[pa.Table]:
    """Return the rows of a stream in tables of so many. The names of a category are the same in all of a table: of two
    dictionaries in one row group Parquet keeps the first only, and the rest as plain text."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in reader:
        waiting.append(batch)
        count += batch.num_rows
        if count >= rows:
            table = pa.Table.from_batches(waiting).unify_dictionaries()
            whole = count - count % rows
            yield table.slice(0, whole)
            waiting, count = table.slice(whole).to_batches(), count - whole
    if waiting:
        yield pa.Table.from_batches(waiting).unify_dictionaries()


class Compactor:
    """Makes Parquet of parts, one at a time, on a thread that runs while there are any. What fails, as on a full disk,
    stays a stream."""

    def __init__(self) -> None:
        self._due: SimpleQueue[Path | None] = SimpleQueue()
        self._done = Flag()
        self._begun = False
        self._closed = False

    def add(self, stream: Path) -> None:
        """Have a finished part become Parquet, sometime soon."""
        self._due.put(stream)
        if not self._begun:
            self._begun = True
            start_new_thread(undoing, (self._run,))

    def close(self, seconds: float = 30.0) -> None:
        """Wait until all parts are Parquet, at most so many seconds and until the one that is being made is. The others
        stay streams."""
        if self._begun and not self._closed:
            self._due.put(None)
            self._done.wait(seconds)
            self._closed = True
            self._done.wait()

    def _run(self) -> None:
        try:
            while not self._closed and (stream := self._due.get()):
                with suppress(OSError, pa.ArrowException):
                    to_parquet(stream)
        finally:
            self._done.set()


# --- counting -----------------------------------------------------------------------------------------------------

_CONTINUED = 0xFFFFFFFF
_MAX_HEAD = 256 << 20  # bytes of a message's metadata
_DICTIONARY, _BATCH = 2, 3  # of MessageHeader, in Arrow's format/Message.fbs


def stream_rows(file: BinaryIO) -> list[int]:
    """Return the rows of each whole batch in an Arrow stream. Reads the heads of its messages only: what is in them is
    seen to be damaged when it is read."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    counts: list[int] = []
    while len(head := file.read(8)) == 8:
        continued, length = struct.unpack("<II", head)
        if continued != _CONTINUED or not 0 < length <= _MAX_HEAD or len(message := file.read(length)) < length:
            break
        try:
            kind, rows, body = _message(message)
        except (struct.error, IndexError):
            break
        if body < 0 or file.seek(body, os.SEEK_CUR) > size:
            break
        if kind == _BATCH:
            counts.append(rows)
    return counts


def whole_messages(file: BinaryIO, most: int) -> int:
    """Return where the whole messages of an Arrow stream end. Their compressed parts say how large they are: ValueError
    for a message that claims more than ``most`` bytes, before anything takes room for them."""
    size = file.seek(0, os.SEEK_END)
    end = file.seek(0)
    while len(head := file.read(8)) == 8:
        continued, length = struct.unpack("<II", head)
        if continued != _CONTINUED or not 0 < length <= _MAX_HEAD or len(message := file.read(length)) < length:
            break
        begin = end + 8 + length
        try:
            body = _message(message)[2]
            if body < 0 or begin + body > size:
                break
            places = [at for at, count in _compressed(message) if 8 <= count <= body and 0 <= at <= body - 8]
            claimed = sum(_claimed(file, begin + at) for at in places)
        except (struct.error, IndexError):
            break
        if claimed > most:
            raise ValueError(f"a batch of it claims {claimed:,} bytes")
        end = file.seek(begin + body)
    return end


def _compressed(data: bytes) -> Iterator[tuple[int, int]]:
    """Return where each buffer of a batch lies in the body of its message, and its bytes; of one that is not compressed
    none."""
    table = struct.unpack_from("<I", data)[0]
    kind, at = _field(data, table, 1, "<B"), _follow(data, _place(data, table, 2))
    if kind == _DICTIONARY:
        at = _follow(data, _place(data, at, 1))
    if kind not in (_BATCH, _DICTIONARY) or not at or not _place(data, at, 3):
        return
    buffers = _follow(data, _place(data, at, 2))
    count = struct.unpack_from("<I", data, buffers)[0] if buffers else 0
    for number in range(min(count, len(data) // 16)):
        yield struct.unpack_from("<qq", data, buffers + 4 + 16 * number)


def _claimed(file: BinaryIO, at: int) -> int:
    """Return how many bytes a compressed buffer says that it has; it begins with that. -1: they are not compressed."""
    file.seek(at)
    claimed: int = struct.unpack("<q", file.read(8))[0]
    return max(claimed, 0)


def _follow(data: bytes, place: int) -> int:
    """Return the place that a field leads to; 0 where it is not there."""
    return place + struct.unpack_from("<I", data, place)[0] if place else 0


def _message(data: bytes) -> tuple[int, int, int]:
    """Return a message's kind, its rows (of a batch) and the bytes of its body. A flatbuffer: tables that begin with
    the distance back to where their fields' places are."""
    table = struct.unpack_from("<I", data)[0]
    kind, body = _field(data, table, 1, "<B"), _field(data, table, 3, "<q")
    rows = 0
    if kind == _BATCH:
        at = _place(data, table, 2)
        rows = _field(data, at + struct.unpack_from("<I", data, at)[0], 0, "<q")
    return kind, rows, body


def _place(data: bytes, table: int, number: int) -> int:
    places = table - struct.unpack_from("<i", data, table)[0]
    if places < 0 or 4 + 2 * number + 2 > struct.unpack_from("<H", data, places)[0]:
        return 0
    offset: int = struct.unpack_from("<H", data, places + 4 + 2 * number)[0]
    return table + offset if offset else 0


def _field(data: bytes, table: int, number: int, kind: str) -> int:
    place = _place(data, table, number)
    value: int = struct.unpack_from(kind, data, place)[0] if place else 0
    return value
