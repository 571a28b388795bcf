"""Recordings, written: rows, snapshots of maps, names and losses, each as it comes.

What was flushed is in the files: a process that is killed costs what came after its last ``flush``. The machine itself
may take more with it: files are synced at ``close``.
"""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from bpfnb.recordings import places
from bpfnb.recordings.columns import Encoder, arrow_schema
from bpfnb.recordings.format import PROGRESS, SNAPSHOTS, SYMBOLS, Manifest
from bpfnb.recordings.parts import Compactor
from bpfnb.recordings.places import MANIFEST, PROGRESS_FILE, SYMBOLS_FILE, map_name, part_name

__all__ = ["PART", "Writer"]

PART = 64 << 20  # bytes
_BATCH = 1 << 20  # bytes of a batch
_DICTIONARY = 8 << 20  # bytes of names: they are written anew in each part
_OFTEN = 0.25  # seconds
_OPTIONS = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True, compression="lz4")


class Writer:
    """Writes a recording at ``path``: a folder, or a zip where the name ends in .zip. For one thread at a time.

    ``folder``    where it is being written: ``path`` itself, but of a zip, and where it replaces another, a folder
                  beside it until ``close``: ``places.beside(path)``
    ``failed``    why nothing more is written, in one line, such as that the disk is full; "" while all is well. What
                  had been written until then can be read. Nothing but ``__init__`` raises because of a file
    ``finished``  called with each part that is complete: its output's number and its file

    ProgramError for a path that exists, unless ``overwrite``: then it must be a recording.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        manifest: Manifest,
        *,
        overwrite: bool = False,
        begun: Path | None = None,
        part: int = PART,
        finished: Callable[[int, Path], None] = lambda output, file: None,
        parquet: bool = True,
    ) -> None:
        """``begun``: the folder, if it was made before (places.begin). ``part``: bytes of a part, about. ``parquet``:
        parts that are full become Parquet, on another thread."""
        self.path = Path(path)
        self.failed = ""
        self.folder = begun or places.begin(self.path, overwrite)
        self._part = part
        self._finished = finished
        self._compactor = Compactor() if parquet else None
        self._manifest = manifest
        self._rows: dict[int, _Rows] = {}
        self._streams: dict[str, _Stream] = {}
        self._losses: dict[int, tuple[int, int]] = {}  # of outputs: rows delivered, events lost
        self._said: dict[int, tuple[int, int, int]] = {}  # the same and the rows written, as they were written last
        self._announced = -math.inf
        self.update(manifest)

    def update(self, manifest: Manifest) -> None:
        """Replace the manifest, as a whole: there may be further outputs or maps in it."""
        self._manifest = manifest
        self._write(lambda: places.replace(self.folder / MANIFEST, msgspec.json.encode(manifest)))

    def rows(self, output: int, rows: pd.DataFrame | pa.RecordBatch, *, whole: bool = False) -> None:
        """Add rows of an output: its columns, or a batch of them by its ``arrow_schema``. They are written once they
        make a megabyte, and by ``flush``. ``whole``: of category columns, write also the names that no row has."""

        def add() -> None:
            kept = self._of(output)
            kept.add(rows, whole)
            if kept.full:
                self._announce(_OFTEN)
                kept.flush()

        self._write(add)

    def written(self, output: int) -> int:
        """Return how many rows of an output are in its parts, or will be with the next ``flush``."""
        return self._of(output).count

    def progress(self, output: int, rows: int, lost: int) -> None:
        """Note how many rows an output had, and how many events it lost, since the session began."""
        self._losses[output] = rows, lost

    def came(self, output: int, times: npt.NDArray[np.int64]) -> None:
        """Note when each row of an output came, of those that have no times themselves: nanoseconds since 1970."""
        ends = np.append(np.flatnonzero(np.diff(times)), len(times) - 1) if len(times) else np.empty(0, np.intp)
        rows = ends + 1
        columns = {"time": times[ends], "output": np.full(len(rows), output), "rows": rows, "written": rows}
        self._put(PROGRESS_FILE, PROGRESS, {**columns, "lost": np.zeros(len(rows), np.int64)})

    def flushed(self, output: int, flushes: Sequence[tuple[int, int, int, int]]) -> None:
        """Add what another recording noted of an output: time, rows, written, lost, as format.PROGRESS has them."""
        if flushes:
            times, rows, written, lost = zip(*flushes, strict=True)
            columns = {"time": times, "output": [output] * len(times), "rows": rows, "written": written, "lost": lost}
            self._put(PROGRESS_FILE, PROGRESS, columns)

    def snapshot(self, map_: int, time_ns: int, count: int, entries: bytes, lost: int = 0) -> None:
        """Add a map's entries, as MapRead lays them out. ``time_ns``: since 1970. ``lost``: updates refused so far."""
        columns = {"time": [time_ns], "count": [count], "entries": [entries], "lost": [lost]}
        self._put(map_name(map_), SNAPSHOTS, columns)

    def symbols(self, pid: int, addresses: Sequence[int], names: Sequence[str], modules: Sequence[str]) -> None:
        """Add the names of code addresses of a process; 0 is the kernel."""
        if addresses:
            columns = {"pid": [pid] * len(addresses), "address": addresses, "name": names, "module": modules}
            self._put(SYMBOLS_FILE, SYMBOLS, columns)

    def flush(self) -> None:
        """Write all that was added. What it will be is noted before, so that it is known what a torn end lacks."""
        self._announce()
        for rows in self._rows.values():
            self._write(rows.flush)

    def _announce(self, every: float = 0.0) -> None:
        """Note how many rows there will be, unless that was done within so many seconds: each note has to be read when
        the recording is opened."""
        if (began := time.monotonic()) < self._announced + every:
            return
        self._announced = began
        now, said = time.time_ns(), []
        for output in sorted(self._losses.keys() | self._rows.keys()):
            rows, lost = self._losses.get(output, (0, 0))
            entry = max(rows, self.written(output)), self.written(output), lost
            if entry != self._said.get(output):
                said.append((now, output, *entry))
                self._said[output] = entry
        if said:
            columns = dict(zip(PROGRESS.names, zip(*said, strict=True), strict=True))
            self._put(PROGRESS_FILE, PROGRESS, columns)

    def close(self, manifest: Manifest) -> None:
        """End the recording with its last manifest, and put it at ``path``. ``failed`` becomes its ``note``."""
        self.flush()
        for stream in self._open():
            self._write(stream.close)
            stream.drop()
        if self._compactor:
            self._compactor.close()
        note = "; ".join(filter(None, (manifest.note, self.failed)))
        data = msgspec.json.encode(msgspec.structs.replace(manifest, note=note))
        try:  # also of one that failed: a manifest may have room where rows had none
            places.replace(self.folder / MANIFEST, data, sync=True)
        except OSError as error:
            self._fail(error)
        try:
            places.finish(self.folder, self.path)
        except OSError as error:
            self._fail(error)
            self.failed += f"; the recording is {self.folder}"

    def abandon(self) -> None:
        """Remove what was written: nobody wants it."""
        for stream in self._open():
            stream.drop()
        if self._compactor:
            self._compactor.close(0)
        places.remove(self.folder)

    def _open(self) -> list[_Rows | _Stream]:
        return [*self._rows.values(), *self._streams.values()]

    def _of(self, output: int) -> _Rows:
        if output not in self._rows:
            info = self._manifest.outputs[output]
            schema = arrow_schema(info.schema, info.units)
            self._rows[output] = _Rows(self.folder, output, schema, self._part, partial(self._part_ended, output))
        return self._rows[output]

    def _part_ended(self, output: int, file: Path, full: bool) -> None:
        self._finished(output, file)
        if full and self._compactor:
            self._compactor.add(file)

    def _put(self, name: str, schema: pa.Schema, columns: dict[str, Any]) -> None:
        def put() -> None:
            if name not in self._streams:
                self._streams[name] = _Stream(self.folder / name, schema)
            self._streams[name].write(pa.RecordBatch.from_pydict(columns, schema))

        self._write(put)

    def _write(self, write: Callable[[], None]) -> None:
        """Write something, unless writing has failed before."""
        if self.failed:
            return
        try:
            write()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.failed = self.failed or f"{self.path} cannot be written: {error.strerror or error}"


class _Rows:
    """The rows of one output, in parts."""

    def __init__(
        self, folder: Path, output: int, schema: pa.Schema, part: int, finished: Callable[[Path, bool], None]
    ) -> None:
        self._folder, self._output, self._schema = folder, output, schema
        self._part = part
        self._finished = finished
        self._parts = 0
        self._stream: _Stream | None = None
        self._encoder = Encoder(schema)
        self._written = 0
        self._waiting: list[list[pa.Array]] = []
        self._bytes = 0

    @property
    def count(self) -> int:
        return self._written + sum(len(arrays[0]) for arrays in self._waiting)

    def add(self, rows: pd.DataFrame | pa.RecordBatch, whole: bool) -> None:
        arrays = self._encoder.encode(rows, whole)
        self._waiting.append(arrays)
        self._bytes += sum(array.nbytes for array in arrays)

    @property
    def full(self) -> bool:
        """Whether what waits makes a batch."""
        return self._bytes >= _BATCH

    def flush(self) -> None:
        """Write what waits, and end the part where it is full."""
        if not self._waiting:
            return
        batch, size = self._encoder.batch(self._waiting), self._bytes
        self._waiting, self._bytes = [], 0
        if self._stream is None:
            self._stream = _Stream(self._folder / part_name(self._output, self._parts), self._schema)
        step = max(batch.num_rows * _BATCH // max(size, 1), 1)
        for first in range(0, max(batch.num_rows, 1), step):
            piece = batch.slice(first, step)
            self._stream.write(piece)
            self._written += piece.num_rows
        if self._stream.size + self._encoder.nbytes >= self._part or self._encoder.nbytes >= _DICTIONARY:
            self.close(full=True)

    def close(self, full: bool = False) -> None:
        """End the part. ``full``: another follows."""
        stream, self._stream, self._encoder = self._stream, None, Encoder(self._schema)
        if stream:
            self._parts += 1
            stream.close()
            self._finished(stream.path, full)

    def drop(self) -> None:
        """Close the part's file as it is."""
        if self._stream:
            self._stream.drop()


class _Stream:
    """An Arrow stream in a file. ``size``: bytes of its whole batches, which is all that is left once writing fails."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.size = 0
        self._file = path.open("xb", buffering=0)
        self._made = _Collected()
        self._writer = pa.ipc.new_stream(self._made, schema, options=_OPTIONS)

    def write(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch)
        self._save()

    def close(self) -> None:
        """End the stream. What is in the file is there also when the machine stops."""
        self._writer.close()
        self._save()
        os.fsync(self._file.fileno())
        self._file.close()

    def drop(self) -> None:
        self._file.close()

    def _save(self) -> None:
        left = memoryview(self._made.take())
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            with suppress(OSError):
                self._file.truncate(self.size)
            raise
        self.size = self._file.tell()


class _Collected(io.RawIOBase):
    """A file for pyarrow that keeps what is written to it until somebody takes it: pyarrow does not look at how much of
    it a file took."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._pieces.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)
