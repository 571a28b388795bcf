"""Rows as tables: Parquet, CSV, JSON lines. Batch by batch, so that memory does not grow with them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import msgspec
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from bpfnb.exports.arrow import as_text, tables
from bpfnb.exports.files import written
from bpfnb.release import version

__all__ = ["write_csv", "write_jsonl", "write_parquet"]

_Path = str | os.PathLike[str]
_FORMULA = r"^([=+\-@\t\r])"  # how a cell begins that a spreadsheet computes (OWASP, "CSV Injection")


def write_parquet(
    path: _Path,
    frames: Iterable[pd.DataFrame],
    units: Mapping[str, str],
    about: Mapping[str, str],
    overwrite: bool = False,
) -> int:
    """Write rows as Parquet, compressed by zstd; return how many. The columns are those of ``arrow.to_arrow``.
    ``about``: goes into the file's metadata, beside ``bpfnb``, the version that wrote it."""
    rows = 0
    with written(path, overwrite) as file:
        writer = None
        try:
            for table in tables(frames, units):
                if writer is None:
                    # Arrow's own schema goes into the file as well: it has durations, and dictionaries.
                    schema = table.schema.with_metadata({**about, "bpfnb": version()})
                    writer = pq.ParquetWriter(file, schema, compression="zstd")
                if table.num_rows or not rows:
                    writer.write_table(table.replace_schema_metadata(schema.metadata))
                rows += table.num_rows
        finally:
            if writer is not None:
                with suppress(ValueError):
                    writer.close()
    return rows


def write_csv(
    path: _Path,
    frames: Iterable[pd.DataFrame],
    *,
    spreadsheet: bool = False,
    overwrite: bool = False,
) -> int:
    """Write rows as CSV (RFC 4180), in UTF-8; return how many.

    Text is in quotes and exact, line ends and control characters included; what is missing is an empty field without
    quotes. ``spreadsheet``: text that a spreadsheet would take for a formula has a ' in front.
    """
    rows = 0
    with written(path, overwrite) as file:
        for table in tables(frames, {}):
            text = as_text(table)
            if spreadsheet:
                text = _without_formulas(text)
            options = pa.csv.WriteOptions(include_header=not rows and file.tell() == 0, quoting_style="needed")
            pa.csv.write_csv(text, file, options)
            rows += table.num_rows
    return rows


def write_jsonl(path: _Path, frames: Iterable[pd.DataFrame], overwrite: bool = False) -> int:
    """Write rows as JSON lines: an object a row, in UTF-8; return how many. NaN and infinite numbers are null, which
    JSON has no other word for."""
    rows, encoder = 0, msgspec.json.Encoder()
    with written(path, overwrite) as file:
        for table in tables(frames, {}):
            for batch in as_text(table).to_batches(max_chunksize=1 << 14):
                names = batch.schema.names
                columns = [_finite(column).to_pylist() for column in batch.columns]
                lines: list[dict[str, Any]] = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
                file.write(encoder.encode_lines(lines))
            rows += table.num_rows
    return rows


def _without_formulas(table: pa.Table) -> pa.Table:
    columns = [
        pc.replace_substring_regex(column, pattern=_FORMULA, replacement=r"'\1")
        if pa.types.is_string(column.type)
        else column
        for column in table.columns
    ]
    return pa.Table.from_arrays(columns, names=table.column_names)


def _finite(column: pa.Array) -> pa.Array:
    if not pa.types.is_floating(column.type):
        return column
    return pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))
