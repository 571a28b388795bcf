"""From the schema's columns to the columns of a DataFrame: a row a kind in ``KINDS``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from bpfnb.protocol import schema
from bpfnb.protocol.schema import Rows
from bpfnb.results.columns.base import ColumnBuffer
from bpfnb.results.columns.buffers import Array
from bpfnb.results.columns.categories import EnumColumn, TextColumn
from bpfnb.results.columns.numeric import NumberColumn, WideColumn, bits_of, number_reader
from bpfnb.results.columns.strings import BytesColumn, StringColumn
from bpfnb.results.columns.values import pack_array, pack_bits, pack_number, pack_tail, pack_text, pack_wide

__all__ = ["KINDS", "Kind", "column_buffer", "shown"]

_MAX_ELEMENTS = 1024  # of an array that has a column an element


class Kind(NamedTuple):
    """What is done with a kind of column: ``decode`` makes its ColumnBuffer, ``pack`` a value's bytes (values.py)."""

    decode: Callable[[Any], ColumnBuffer]
    pack: Callable[[Any, Any, bytearray], bytes]


def shown(columns: Iterable[schema.Column]) -> tuple[schema.Column, ...]:
    """Return the columns as a DataFrame has them: for an array a column an element, for more than 1,024 one of bytes.

    A column of lists would not do: files, drop_duplicates() and describe() fail on it.
    """
    return tuple(itertools.chain.from_iterable(map(_elements, columns)))


def _elements(column: schema.Column) -> Sequence[schema.Column]:
    if not isinstance(column, schema.NumberArray):
        return [column]
    name, begin, size = column.name, column.offset, np.dtype(column.dtype).itemsize
    if math.prod(column.shape) > _MAX_ELEMENTS:
        return [schema.Bytes(name, begin, column.size)]
    indices = itertools.product(*map(range, column.shape))
    names = [name + "".join(f"[{n}]" for n in index) for index in indices]
    return [schema.Number(element, begin + i * size, column.dtype) for i, element in enumerate(names)]


def column_buffer(column: schema.Column) -> ColumnBuffer:
    """Make the column that decodes what the schema describes, for one of the ``shown`` columns."""
    return KINDS[type(column)].decode(column)


def _bit_field(column: schema.BitField) -> ColumnBuffer:
    read = partial(bits_of, column)
    return _constants(column, read) if column.labels else NumberColumn(read, column.dtype)


def _array(column: schema.NumberArray) -> ColumnBuffer:
    raise ValueError(f"array {column.name} has a column an element")


def _constants(column: schema.Enum | schema.BitField, read: Callable[[Rows], Array]) -> EnumColumn:
    """Make a column of constants' names, in their order; of two with one number the first. Others are numbers."""
    dtype = np.dtype(column.dtype)
    names: dict[int, str] = {}
    for name, number in column.labels:
        # BTF gives 32-bit constants as signed, whatever the enum is.
        names.setdefault(int(np.array(number % 2**64, np.uint64).astype(dtype)), name)
    return EnumColumn(read, column.dtype, lambda n: names.get(n, str(n)), tuple(names.values()))


KINDS: dict[type[schema.Column], Kind] = {
    schema.Number: Kind(lambda column: NumberColumn(number_reader(column), column.dtype), pack_number),
    schema.Enum: Kind(lambda column: _constants(column, number_reader(column)), pack_number),
    schema.BitField: Kind(_bit_field, pack_bits),
    schema.Text: Kind(TextColumn, pack_text),
    schema.Bytes: Kind(BytesColumn, pack_text),
    schema.Wide: Kind(WideColumn, pack_wide),
    schema.NumberArray: Kind(_array, pack_array),
    schema.Tail: Kind(lambda column: StringColumn(binary=not column.text, cut=column.text), pack_tail),
}
