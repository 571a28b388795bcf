"""The files that a session is written to, for other tools and other people."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import pandas as pd

from bpfnb.errors import ProgramError
from bpfnb.exports import tables
from bpfnb.results.output import Output, Position
from bpfnb.results.presentation import Presentation, Table

if TYPE_CHECKING:
    from bpfnb.results.maps.map import Map
    from bpfnb.results.stream import Source

__all__ = ["Files"]

_BATCH = 1 << 17  # rows in memory at a time
_Path = str | os.PathLike[str]


class Files:
    """The methods of a session that write files. All are written beside and renamed, so that there is never half a
    file; ProgramError, in one line, for a path that exists, unless ``overwrite``, and one that cannot be written."""

    if TYPE_CHECKING:  # what a session has
        name: str

        @property
        def df(self) -> pd.DataFrame: ...
        @property
        def outputs(self) -> Mapping[str, Output]: ...
        @property
        def maps(self) -> Mapping[str, Map]: ...
        @property
        def presentation(self) -> Presentation | None: ...
        def _source(self, output: str | None) -> Source: ...

    def to_parquet(
        self, path: _Path, output: str | None = None, *, map: str | None = None, overwrite: bool = False
    ) -> None:
        """Write ``df`` as Parquet, compressed by zstd: for pandas, polars, DuckDB, Spark and others.

        ``output``, ``map``: the rows of an output, or the entries of a map, instead. Columns keep their types;
        categories are dictionaries, durations and times have nanoseconds. Integers of 128 bits are decimal digits, as
        text. A field's metadata has its unit ("ns", "bytes"), the file's has lost and dropped rows.
        """
        units = dict(self.presentation.units) if self.presentation and output is None and map is None else {}
        tables.write_parquet(path, self._frames(output, map), units, self._about(output, map), overwrite)

    def to_csv(
        self,
        path: _Path,
        output: str | None = None,
        *,
        map: str | None = None,
        spreadsheet: bool = False,
        overwrite: bool = False,
    ) -> None:
        """Write ``df`` as CSV in UTF-8: times in ISO 8601 with nanoseconds, durations as nanoseconds, bytes as
        hexadecimal digits, all integers exact, text in quotes and as it is. What is missing is empty.

        ``output``, ``map``: the rows of an output, or the entries of a map, instead. ``spreadsheet``: text that begins
        like a formula has a ' in front: names come from other people's processes, and a spreadsheet would compute them.
        """
        tables.write_csv(path, self._frames(output, map), spreadsheet=spreadsheet, overwrite=overwrite)

    def to_jsonl(
        self, path: _Path, output: str | None = None, *, map: str | None = None, overwrite: bool = False
    ) -> None:
        """Write ``df`` as JSON lines, an object a row: values as in ``to_csv``; integers of 128 bits are text. NaN and
        infinite numbers are null.

        ``output``, ``map``: the rows of an output, or the entries of a map, instead.
        """
        tables.write_jsonl(path, self._frames(output, map), overwrite)

    def _frames(self, output: str | None, map: str | None) -> Iterator[pd.DataFrame]:
        """Return what is written, batch by batch: rows that are there now. At least one frame, with all columns."""
        if output is not None and map is not None:
            raise ProgramError("an output or a map, not both")
        if map is not None:
            return iter([self.maps[map].df])
        if output is None and isinstance(self.presentation, Table):
            return iter([self.df])
        return _batches(self._source(output))

    def _about(self, output: str | None, map: str | None) -> dict[str, str]:
        """Return what a file's metadata says."""
        about = {"bpfnb.session": self.name}
        if map is None and not (output is None and isinstance(self.presentation, Table)):
            of = self._source(output).output
            about |= {"bpfnb.output": of.name, "bpfnb.lost": str(of.lost), "bpfnb.dropped": str(of.dropped)}
        return about


def _batches(source: Source) -> Iterator[pd.DataFrame]:
    end = source.output.rows  # a flood does not keep it going for ever
    position, first = Position(), True
    while True:
        frame, position = source.read(position, _BATCH, stacklevel=6)
        done = position.row + position.undecoded >= end or not len(frame)
        if len(frame) or first:
            yield frame
        first = False
        if done:
            return
