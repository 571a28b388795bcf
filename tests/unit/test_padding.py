"""Bytes of a row that no column shows."""

from __future__ import annotations

import numpy as np
import pytest

from bpfnb.protocol.schema import BitField, Number, NumberArray, Rows, Schema, Text
from bpfnb.results.maps.padding import count_duplicates, hidden_bytes

# struct { u32 pid; char c; u64 x; }
PADDED = Schema((Number("pid", 0, "<u4"), Number("c", 4, "|i1"), Number("x", 8, "<u8")), 16)
COMM = Schema((Number("pid", 0, "<u4"), Text("comm", 4, 8)), 12)
BITS = Schema((BitField("a", 0, "<u4", 0, 3), BitField("b", 0, "<u4", 3, 9)), 4)
WHOLE = Schema((NumberArray("m", 0, "<u4", (2, 2)),), 16)


def rows(*texts: bytes) -> Rows:
    return np.frombuffer(b"".join(texts), np.uint8).reshape(len(texts), -1)


@pytest.mark.parametrize(
    ("schema", "given", "twins"),
    [
        (PADDED, [b"\1\0\0\0\2\0\0\0" + bytes(8), b"\1\0\0\0\2\0\0\7" + bytes(8)], 1),
        (PADDED, [b"\1\0\0\0\2\0\0\0" + bytes(8), b"\1\0\0\0\3\0\0\7" + bytes(8)], 0),
        (PADDED, [b"\1\0\0\0\2\7\7\7" + bytes(8)], 0),
        (PADDED, [b"\1\0\0\0\2\0\0" + bytes([n]) + bytes(8) for n in range(5)], 4),
        (COMM, [b"\1\0\0\0bash\0\0\0\0", b"\1\0\0\0bash\0x\0\0", b"\1\0\0\0bashx\0\0\0", b"\1\0\0\0bashbash"], 1),
        (BITS, [b"\1\0\0\0", b"\1\x10\0\0", b"\1\0\0\1", b"\1\1\0\0"], 2),
        (WHOLE, [bytes(16), bytes(15) + b"\1"], 0),
        (PADDED, [], 0),
    ],
)
def test_keys_that_look_the_same_are_counted(schema: Schema, given: list[bytes], twins: int) -> None:
    keys = rows(*given) if given else np.zeros((0, schema.size), np.uint8)
    before = keys.copy()
    assert count_duplicates(schema, keys) == twins
    assert (keys == before).all()


def test_a_map_without_keys_has_no_twins() -> None:
    assert count_duplicates(Schema((), 0), np.zeros((3, 0), np.uint8)) == 0


def test_what_is_hidden_in_words() -> None:
    assert hidden_bytes(PADDED) == "3 bytes of padding after c"
    assert hidden_bytes(COMM) == "what follows the end of comm"
    assert hidden_bytes(BITS) == "2 bytes of padding after b, unused bits"
    assert hidden_bytes(WHOLE) == ""
    assert hidden_bytes(PADDED.shifted(1, 18)) == (
        "1 byte of padding at its start, 3 bytes of padding after c, 1 byte of padding after x"
    )
