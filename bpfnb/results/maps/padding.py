"""Bytes of a row that a DataFrame does not show: padding, unused bits, and what follows the end of a text.

A map tells keys apart by all their bytes. Where a program leaves some as they happened to be, one key is several.
"""

from __future__ import annotations

import numpy as np

from bpfnb.protocol.schema import BitField, Rows, Schema, Text

__all__ = ["count_duplicates", "hidden_bytes"]


def count_duplicates(schema: Schema, rows: Rows) -> int:
    """Return how many rows look the same as one before, although their bytes differ."""
    shown = _shown_bits(schema)
    plain = rows & shown
    for column in _texts(schema):
        text = plain[:, column.offset : column.offset + column.size]
        text[np.cumsum(text == 0, axis=1) > 0] = 0
    if not len(rows) or not schema.size or np.array_equal(plain, rows):
        return 0
    return len(rows) - len(np.unique(np.ascontiguousarray(plain).view(f"V{schema.size}")))


def hidden_bytes(schema: Schema) -> str:
    """Describe what is not shown: "3 bytes of padding after c"; "" where all is."""
    places = []
    gap = 0
    for at, bits in enumerate([*_shown_bits(schema), 0xFF]):
        if not bits:
            gap += 1
        elif gap:
            before = [column.name for column in schema.columns if column.offset < at - gap]
            places.append(
                f"{gap} byte{'s' * (gap > 1)} of padding {f'after {before[-1]}' if before else 'at its start'}"
            )
            gap = 0
    places += [f"what follows the end of {column.name}" for column in _texts(schema)]
    places += ["unused bits"] if any(0 < bits < 0xFF for bits in _shown_bits(schema)) else []
    return ", ".join(places)


def _texts(schema: Schema) -> list[Text]:
    return [column for column in schema.columns if isinstance(column, Text)]


def _shown_bits(schema: Schema) -> np.ndarray:
    """Return for each byte of a row the bits that belong to a column."""
    shown = np.zeros(schema.size, np.uint8)
    for column in schema.columns:
        if isinstance(column, BitField):
            first = column.offset * 8 + column.first
            bits = np.zeros(schema.size * 8, np.uint8)
            bits[first : first + column.width] = 1
            shown |= np.packbits(bits, bitorder="little")
        else:
            shown[column.offset : column.offset + column.size] = 0xFF
    return shown
