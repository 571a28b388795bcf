"""What must be true of a manifest before anything is computed with it: whoever made it, decoding rows by it stays
within their bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable

from bpfnb.protocol.messages import MapInfo
from bpfnb.protocol.schema import BitField, Column, Enum, Number, NumberArray, Schema, Tail
from bpfnb.recordings.format import Manifest
from bpfnb.results.cost import Costs

__all__ = ["check"]

MAX_ROW = 1 << 24  # bytes: far above what a record, a key or a value can have
MAX_COLUMNS = 20_000
MAX_OUTPUTS = MAX_MAPS = 10_000
MAX_CPUS = 8192
MAX_DIMENSIONS = 32

_NUMBER = re.compile(r"[<|=]?(u1|u2|u4|u8|i1|i2|i4|i8|f4|f8|b1)")
_INTEGER = re.compile(r"[<|=]?(u1|u2|u4|u8|i1|i2|i4|i8|b1)")


def check(manifest: Manifest) -> None:
    """Raise ValueError, which says what is wrong, for a manifest that cannot be true."""
    _require(len(manifest.outputs) <= MAX_OUTPUTS and len(manifest.maps) <= MAX_MAPS, "too many outputs or maps")
    _require_different(output.name for output in manifest.outputs)
    _require_different(map_.name for map_ in manifest.maps)
    for output in manifest.outputs:
        _check_schema(output.schema, output.name)
    for map_ in manifest.maps:
        _check_map(map_)
    if manifest.costs:
        Costs.kept(manifest.costs.programs, manifest.costs.words)


def _require(true: bool, what: str) -> None:
    if not true:
        raise ValueError(what)


def _require_different(names: Iterable[str]) -> None:
    listed = list(names)
    _require(len(set(listed)) == len(listed), "two outputs or maps of one name")


def _check_map(map_: MapInfo) -> None:
    what = f"a size of map {map_.name} that cannot be"
    sizes = map_.key_size, map_.value_size, map_.value_stride
    _require(all(0 <= size <= MAX_ROW for size in sizes) and 1 <= map_.cpus <= MAX_CPUS, what)
    _require(map_.value_size <= map_.value_stride and map_.max_entries >= 0 and map_.shown >= 0, what)
    _require(map_.cpus == 1 or ("percpu" in map_.kind and map_.value_stride > 0), what)
    if map_.kind == "stack_trace":  # a value is as many frames as fit into it
        frame = map_.value
        _require(map_.key_size == 4 and frame is not None and 0 < frame.size <= map_.value_size, what)
        _require(frame is not None and not any(isinstance(column, NumberArray) for column in frame.columns), what)
    for schema, size in ((map_.key, map_.key_size), (map_.value, map_.value_size)):
        if schema is not None:
            _require(schema.size <= size and schema.text_end < 0, what)
            _check_schema(schema, map_.name)


def _check_schema(schema: Schema, name: str) -> None:
    what = f"columns of {name} that cannot be"
    _require(0 <= schema.size <= MAX_ROW and len(schema.columns) <= MAX_COLUMNS, what)
    _require(-1 <= schema.text_end <= max(schema.size - 8, -1), what)
    _require_different(column.name for column in schema.columns)
    clocks = [column for column in schema.columns if column.name == schema.time]
    _require(not schema.time or (bool(clocks) and isinstance(clocks[0], Number) and clocks[0].size == 8), what)
    for column in schema.columns:
        _require(_possible(column, schema), what)


def _possible(column: Column, schema: Schema) -> bool:
    if isinstance(column, Tail):
        return schema.text_end >= 0
    if isinstance(column, Number | NumberArray) and not _NUMBER.fullmatch(column.dtype):
        return False
    if isinstance(column, Enum | BitField) and not _INTEGER.fullmatch(column.dtype):
        return False
    if isinstance(column, BitField) and not (0 <= column.first < 64 and 1 <= column.width <= 64):
        return False
    if isinstance(column, NumberArray) and not (0 < len(column.shape) <= MAX_DIMENSIONS and min(column.shape) >= 0):
        return False
    return column.offset >= 0 and column.size >= 0 and column.offset + column.size <= schema.size
