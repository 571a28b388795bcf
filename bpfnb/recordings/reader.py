"""Recordings, read: also those that were cut short, and those that somebody forged.

Nothing of a recording is run, and no name in it is a path. What is not as the format has it is a ProgramError.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from bpfnb.errors import ProgramError
from bpfnb.protocol.messages import MapInfo
from bpfnb.recordings.checks import check
from bpfnb.recordings.columns import arrow_schema, frame_of
from bpfnb.recordings.format import PROGRESS, SNAPSHOTS, SYMBOLS, VERSION, Manifest, OutputInfo
from bpfnb.recordings.parts import stream_rows, whole_messages
from bpfnb.recordings.places import MANIFEST, MAX_MANIFEST, PROGRESS_FILE, SYMBOLS_FILE, Head, map_name
from bpfnb.recordings.store import Store, open_store

__all__ = ["Flush", "MapSnapshot", "Part", "RecordedMap", "RecordedRows", "Recording", "open_recording"]

_MAX_BATCH, _MAX_MAP = 256 << 20, 8 << 30  # bytes, decompressed
_PART = re.compile(r"outputs/(\d+)/(\d{6})\.(arrows|parquet)")


Between: TypeAlias = tuple[int | None, int | None]  # from, and up to before: nanoseconds since 1970


@dataclass(frozen=True)
class MapSnapshot:
    """A map at one moment. ``time``: nanoseconds since 1970. ``count``, ``entries``: as MapRead lays them out.
    ``lost``: updates that the kernel had refused."""

    time: int
    count: int
    entries: bytes
    lost: int


class Flush(NamedTuple):
    """What there was of an output at ``time``, nanoseconds since 1970: see format.PROGRESS."""

    time: int
    rows: int
    written: int
    lost: int


def open_recording(path: str | os.PathLike[str]) -> Recording:
    """Open a recording, a folder or a zip. ProgramError for what is none, of a newer version, or forged."""
    store = open_store(path)
    return Recording(store, _manifest(store))


def _manifest(store: Store) -> Manifest:
    where = store.path
    if MANIFEST not in store.names:
        raise ProgramError(f"{where} is no recording: it has no {MANIFEST}")
    with store.open(MANIFEST) as file:
        data = file.read(MAX_MANIFEST + 1)
    if len(data) > MAX_MANIFEST:
        raise ProgramError(f"{where} is no recording: its {MANIFEST} has more than {MAX_MANIFEST:,} bytes")
    try:
        head = msgspec.json.decode(data, type=Head)
        if head.version > VERSION:
            raise ProgramError(
                f"{where} was written by bpfnb {head.bpfnb}, in version {head.version} of the format: this bpfnb reads "
                f"versions up to {VERSION}"
            )
        if head.version < 1:
            raise ProgramError(f"{where} is no recording: there is no version {head.version} of the format")
        manifest = msgspec.json.decode(data, type=Manifest)
        check(manifest)
    except ProgramError:
        raise
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ProgramError(f"{where} is no recording: its {MANIFEST} says {_first_line(error)}") from None
    return manifest


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


class Recording:
    """A recording. ``outputs`` and ``maps``: one for each of ``manifest``, in its order. ``path``: where it is."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.path = store.path
        self.manifest = manifest
        self._store = store
        self._flushes = _flushes(store)
        self.outputs = tuple(
            RecordedRows(store, n, info, self._expected(n), tuple(self._flushes.get(n, ())))
            for n, info in enumerate(manifest.outputs)
        )
        self.maps = tuple(RecordedMap(store, number, info) for number, info in enumerate(manifest.maps))

    @property
    def ended(self) -> bool:
        """Whether it was written to its end: else what came after the last flush is not in it."""
        return self.manifest.state != "recording"

    def progress(self, output: int) -> tuple[int, int]:
        """Return how many rows an output had, and how many events it lost, as far as the recording knows."""
        info, last = self.manifest.outputs[output], self._last(output)
        return (last.rows if info.rows < 0 else info.rows), (last.lost if info.lost < 0 else info.lost)

    @property
    def missing(self) -> dict[str, int]:
        """Return how many rows of each output are known to have been written, and cannot be read. That reads them."""
        return {rows.info.name: rows.missing for rows in self.outputs}

    def symbols(self) -> dict[tuple[int, int], tuple[str, str]]:
        """Return the names and modules of code addresses, by process (0: the kernel) and address."""
        found: dict[tuple[int, int], tuple[str, str]] = {}
        for batch in _stream(self._store, SYMBOLS_FILE, SYMBOLS):
            pids, addresses, names, modules = (column.to_pylist() for column in batch.columns)
            keys = zip(pids, addresses, strict=True)
            found.update(zip(keys, zip(names, modules, strict=True), strict=True))
        return found

    def _expected(self, output: int) -> int:
        """Return how many rows of an output were written, or were about to be."""
        written = self.manifest.outputs[output].written
        return written if written >= 0 else self._last(output).written

    def _last(self, output: int) -> Flush:
        return self._flushes.get(output, [Flush(0, 0, 0, 0)])[-1]

    @property
    def newest(self) -> int:
        """Return when something was written last, in nanoseconds since 1970; 0 where nobody knows."""
        return max((flushes[-1].time for flushes in self._flushes.values()), default=0)


def _flushes(store: Store) -> dict[int, list[Flush]]:
    found: dict[int, list[Flush]] = {}
    for batch in _stream(store, PROGRESS_FILE, PROGRESS):
        times = batch.column("time").view(pa.int64()).to_pylist()
        outputs, *numbers = (batch.column(name).to_pylist() for name in ("output", "rows", "written", "lost"))
        for output, *flush in zip(outputs, times, *numbers, strict=True):
            found.setdefault(output, []).append(Flush(*flush))
    return found


class Part(NamedTuple):
    """A part of an output's rows. ``kind``: "arrows", an Arrow stream, or "parquet". ``file``: where it lies by itself;
    None in a zip. ``size``: its bytes."""

    name: str
    kind: str
    file: Path | None
    size: int


class RecordedRows:
    """The rows of one output. ``schema``: its columns in Arrow's types. ``expected``: rows that were written.
    ``flushes``: how many there were by when."""

    def __init__(self, store: Store, number: int, info: OutputInfo, expected: int, flushes: tuple[Flush, ...]) -> None:
        self.info = info
        self.flushes = flushes
        self.schema = arrow_schema(info.schema, info.units)
        self.expected = expected
        self._store = store
        self._number = number
        self._counts: tuple[int, ...] | None = None

    def parts(self) -> tuple[Part, ...]:
        """Return the parts, in the order of their rows. One that there is twice was about to become Parquet."""
        found: dict[int, Part] = {}
        for name in self._store.names:
            match = _PART.fullmatch(name)
            if match and int(match[1]) == self._number and (int(match[2]) not in found or match[3] == "parquet"):
                found[int(match[2])] = Part(name, match[3], self._store.file(name), self._store.size(name))
        return tuple(part for _, part in sorted(found.items()))

    def batches(
        self, part: Part | None = None, columns: Sequence[str] | None = None, between: Between = (None, None)
    ) -> Iterator[pa.RecordBatch]:
        """Return the rows of a part, or of all, in batches: up to where it is cut short or damaged.

        ``columns``: only these, in the output's order. ``between``: only rows with such times; batches that have none
        of them are not read where the part says so. ProgramError for columns that are not the output's, and values that
        these cannot have.
        """
        names = [name for name in self.schema.names if columns is None or name in columns]
        wanted = names if between == (None, None) else [n for n in self.schema.names if n in names or n == "time"]
        for each in self.parts() if part is None else (part,):
            read = _parquet if each.kind == "parquet" else _stream
            for batch in read(self._store, each.name, self.schema, wanted, between):
                yield batch if between == (None, None) else _within(batch, between).select(names)

    def require_columns(self, parts: Iterable[Part]) -> None:
        """Raise ProgramError for a Parquet part with other columns than the output's."""
        for part in parts:
            with self._store.open(part.name) as file:
                try:
                    there = pa.parquet.read_schema(file)
                except (pa.ArrowException, OSError, MemoryError) as error:
                    raise ProgramError(f"{self._store.path}: {part.name} is damaged: {_first_line(error)}") from None
            _require(self._store, part.name, there, self.schema)

    def newest(self, count: int) -> list[pa.RecordBatch]:
        """Return the newest rows, so many, in batches. Only the parts that they lie in are read."""
        found: list[pa.RecordBatch] = []
        for part in reversed(self.parts()):
            if count <= 0:
                break
            batches = list(self.batches(part)) if part.kind != "parquet" else self._newest_groups(part, count)
            for batch in reversed(batches):
                if count > 0:
                    found.append(batch.slice(max(batch.num_rows - count, 0)))
                    count -= found[-1].num_rows
        return found[::-1]

    def _newest_groups(self, part: Part, count: int) -> list[pa.RecordBatch]:
        """Return the rows of the last row groups of a Parquet part that have so many."""
        groups, there = _group_rows(self._store, part.name), 0
        first = len(groups)
        while first and there < count:
            first -= 1
            there += groups[first]
        return list(_parquet(self._store, part.name, self.schema, self.schema.names, groups=range(first, len(groups))))

    def frame(self) -> pd.DataFrame:
        """Return all rows, as ``Output.df`` has them."""
        return frame_of(self.info.schema, self.batches())

    @property
    def rows(self) -> int:
        """Return how many rows there are, by what the parts say of themselves: damage is seen when they are read."""
        if self._counts is None:
            self._counts = tuple(map(self._count, self.parts()))
        return sum(self._counts)

    def _count(self, part: Part) -> int:
        if part.kind == "parquet":
            return sum(_group_rows(self._store, part.name))
        with self._store.open(part.name) as file:
            return sum(stream_rows(file))

    @property
    def missing(self) -> int:
        return max(self.expected - self.rows, 0)


class RecordedMap:
    """The snapshots of one map."""

    def __init__(self, store: Store, number: int, info: MapInfo) -> None:
        self.info = info
        self._store = store
        self._name = map_name(number)

    def snapshots(self) -> Iterator[MapSnapshot]:
        """Return the snapshots, the oldest first."""
        each = self.info.key_size, self.info.cpus * self.info.value_stride
        for batch in _stream(self._store, self._name, SNAPSHOTS):
            times, counts, entries, lost = batch.columns
            for row in range(batch.num_rows):
                count, data = counts[row].as_py(), entries[row].as_py()
                if not count >= 0 or len(data) != -(-count * each[0] // 8) * 8 + count * each[1]:
                    raise ProgramError(f"{self._store.path}: {self._name}: {count:,} entries do not have that size")
                yield MapSnapshot(times[row].value, count, data, lost[row].as_py())

    def last(self) -> MapSnapshot | None:
        """Return the last snapshot: of a recording that has ended, the map at its end. None where there is none."""
        found = None
        for snapshot in self.snapshots():
            found = snapshot
        return found


# --- streams ------------------------------------------------------------------------------------------------------


def _stream(
    store: Store, name: str, schema: pa.Schema, columns: Sequence[str] | None = None, between: Between = (None, None)
) -> Iterator[pa.RecordBatch]:
    """Read an Arrow stream, up to where it ends, is cut short or damaged."""
    if name not in store.names:
        return
    with store.open(name) as file:
        try:
            end = whole_messages(file, _MAX_MAP if schema is SNAPSHOTS else _MAX_BATCH)
        except ValueError as error:
            raise ProgramError(f"{store.path}: {name} is damaged: {error}") from None
        file.seek(0)
        try:
            reader = pa.ipc.open_stream(pa.PythonFile(_Bounded(file, end), "r"))
        except (pa.ArrowException, OSError, MemoryError):
            return
        _require(store, name, reader.schema, schema)
        while True:
            try:
                batch = reader.read_next_batch()
            except (StopIteration, pa.ArrowException, OSError, MemoryError):
                return
            batch = batch if columns is None else batch.select(columns)
            _validate(store, name, batch)
            yield batch


class _Bounded:
    """A file, for pyarrow. No more is asked of it than it has, whatever length a message claims: room for that would be
    taken first."""

    closed = False

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data

    def flush(self) -> None: ...

    def close(self) -> None: ...


def _group_rows(store: Store, name: str) -> list[int]:
    """Return how many rows each row group of a Parquet file has."""
    with store.open(name) as file:
        try:
            metadata = pa.parquet.read_metadata(file)
        except (pa.ArrowException, OSError, MemoryError) as error:
            raise ProgramError(f"{store.path}: {name} is damaged: {_first_line(error)}") from None
        counts = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
    if min(counts, default=0) < 0:
        raise ProgramError(f"{store.path}: {name} is damaged: it has fewer than no rows")
    return counts


def _parquet(
    store: Store,
    name: str,
    schema: pa.Schema,
    columns: Sequence[str],
    between: Between = (None, None),
    groups: Sequence[int] | None = None,
) -> Iterator[pa.RecordBatch]:
    with store.open(name) as file:
        try:
            parquet = pa.parquet.ParquetFile(file, memory_map=False)
            _require(store, name, parquet.schema_arrow, schema)
            chosen = _overlapping(parquet, schema, between) if groups is None else list(groups)
            for batch in parquet.iter_batches(1 << 16, row_groups=chosen, columns=list(columns)) if chosen else ():
                _validate(store, name, batch)
                yield batch
        except (pa.ArrowException, OSError, MemoryError) as error:
            raise ProgramError(f"{store.path}: {name} is damaged: {_first_line(error)}") from None


def _overlapping(parquet: pa.parquet.ParquetFile, schema: pa.Schema, between: Between) -> list[int]:
    """Return the row groups that may have rows of a time."""
    every = range(parquet.metadata.num_row_groups)
    if between == (None, None):
        return list(every)
    column = schema.names.index("time")
    chosen = []
    for number in every:
        said = parquet.metadata.row_group(number).column(column).statistics
        if said is None or not said.has_min_max or _overlap(_ns(said.min), _ns(said.max), between):
            chosen.append(number)
    return chosen


def _ns(time: Any) -> int:
    return int(pd.Timestamp(time).as_unit("ns").value)


def _overlap(first: int, last: int, between: Between) -> bool:
    begin, end = between
    return (begin is None or last >= begin) and (end is None or first < end)


def _within(batch: pa.RecordBatch, between: Between) -> pa.RecordBatch:
    """Return the rows of a batch with such times."""
    times = batch.column("time").view(pa.int64()).to_numpy(zero_copy_only=False)
    begin, end = between
    inside = np.ones(len(times), np.bool_)
    if begin is not None:
        inside &= times >= begin
    if end is not None:
        inside &= times < end
    return batch if inside.all() else batch.filter(pa.array(inside))


def _require(store: Store, name: str, there: pa.Schema, wanted: pa.Schema) -> None:
    if not there.equals(wanted, check_metadata=False):
        raise ProgramError(f"{store.path}: {name} does not have the columns that the {MANIFEST} says")


def _validate(store: Store, name: str, batch: pa.RecordBatch) -> None:
    """Raise ProgramError for values that lie outside the batch, are no text, or are missing where none may be."""
    try:
        batch.validate(full=True)
    except (pa.ArrowException, MemoryError) as error:
        raise ProgramError(f"{store.path}: {name} is damaged: {_first_line(error)}") from None
    for field, array in zip(batch.schema, batch.columns, strict=True):
        dictionary: Any = array.dictionary if pa.types.is_dictionary(field.type) else None
        if dictionary is None and array.null_count:
            raise ProgramError(f"{store.path}: {name} is damaged: column {field.name} has no value in some row")
        if dictionary is not None and (dictionary.null_count or len(dictionary.unique()) != len(dictionary)):
            raise ProgramError(f"{store.path}: {name} is damaged: column {field.name} has a name twice, or none")
