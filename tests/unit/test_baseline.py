"""What values have grown by since the last drain: against Python's own integers."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfnb.protocol.schema import Number, NumberArray, Rows, Schema, Text, Wide
from bpfnb.results.maps.baseline import Baseline, counters, positions

# struct { u32 n; char comm[4]; s64 balance; unsigned __int128 sum; u16 slots[3]; bool seen; }
VALUE = Schema(
    (
        Number("n", 0, "<u4"),
        Text("comm", 4, 4),
        Number("balance", 8, "<i8"),
        Wide("sum", 16),
        NumberArray("slots", 32, "<u2", (3,)),
        Number("seen", 38, "|b1"),
    ),
    40,
)


def rows(*entries: bytes) -> Rows:
    return np.frombuffer(b"".join(entries), np.uint8).reshape(len(entries), -1)


def value(n: int, comm: bytes, balance: int, total: int, slots: tuple[int, int, int]) -> bytes:
    wide = (total % 2**128).to_bytes(16, "little")
    return struct.pack("<I4sq16s3H?x", n % 2**32, comm, balance, wide, *(s % 2**16 for s in slots), True)


def grown(before: dict[int, bytes], after: dict[int, bytes], schema: Schema, array: bool = False) -> dict[int, bytes]:
    both = [(rows(*(struct.pack("<I", k) for k in part)), rows(*part.values())) for part in (before, after)]
    baseline = Baseline(*both[0], counters(schema), 1, schema.size)
    keys, values = baseline.since(*both[1], array)
    return {int(k): v.tobytes() for k, v in zip(keys.view("<u4")[:, 0], values, strict=True)}


def test_numbers_are_subtracted_and_the_rest_is_as_it_is() -> None:
    before = {1: value(10, b"old", 5, 2**100, (1, 2, 3)), 2: value(1, b"same", 0, 0, (0, 0, 0))}
    after = {2: before[2], 3: value(7, b"new", 1, 1, (9, 9, 9)), 1: value(15, b"now", -5, 2**101, (1, 5, 3))}
    assert grown(before, after, VALUE) == {3: after[3], 1: value(5, b"now", -10, 2**100, (0, 3, 0))}
    whole = grown(before, after, VALUE, array=True)
    assert list(whole) == [2, 3, 1]
    assert whole[2] == value(0, b"same", 0, 0, (0, 0, 0))


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**31 - 1))
def test_a_counter_that_wraps_is_right(before: int, by: int) -> None:
    schema = Schema((Number("value", 0, "<u4"),), 4)
    after = struct.pack("<I", (before + by) % 2**32)
    found = grown({1: struct.pack("<I", before)}, {1: after}, schema)
    assert found == ({1: struct.pack("<I", by)} if by else {})


@settings(deadline=None)
@given(st.integers(0, 2**128 - 1), st.integers(0, 2**127 - 1))
def test_a_wide_counter_that_wraps_is_right(before: int, by: int) -> None:
    schema = Schema((Wide("value", 0),), 16)
    after = ((before + by) % 2**128).to_bytes(16, "little")
    found = grown({1: before.to_bytes(16, "little")}, {1: after}, schema)
    assert found == ({1: by.to_bytes(16, "little")} if by else {})


def test_an_entry_of_which_a_number_went_down_is_another_and_counts_from_zero() -> None:
    before = {1: value(100, b"a", 5, 50, (1, 1, 1))}
    after = {1: value(3, b"b", 7, 60, (2, 2, 2))}
    assert grown(before, after, VALUE) == after
    assert grown({1: value(100, b"a", 5, 50, (1, 1, 1))}, {1: value(100, b"a", 5, 49, (1, 1, 1))}, VALUE) == {
        1: value(100, b"a", 5, 49, (1, 1, 1))
    }


def test_a_per_cpu_entry_is_another_on_all_cpus() -> None:
    schema = Schema((Number("value", 0, "<u4"),), 4)
    key = rows(struct.pack("<I", 1))
    baseline = Baseline(key, rows(struct.pack("<I4xI4x", 5, 9)), counters(schema), 2, 8)
    _, values = baseline.since(key, rows(struct.pack("<I4xI4x", 6, 12)), False)
    assert values.tobytes() == struct.pack("<I4xI4x", 1, 3)
    _, values = baseline.since(key, rows(struct.pack("<I4xI4x", 6, 2)), False)
    assert values.tobytes() == struct.pack("<I4xI4x", 6, 2)


def test_members_can_be_left_as_they_are() -> None:
    assert [c.name for c in counters(VALUE)] == ["n", "balance", "sum", "slots"]
    assert [c.name for c in counters(VALUE, ["sum"])] == ["n", "balance", "slots"]


def test_an_entry_that_was_set_is_forgotten() -> None:
    schema = Schema((Number("value", 0, "<u4"),), 4)
    keys, values = rows(b"k1k1", b"k2k2"), rows(struct.pack("<I", 5), struct.pack("<I", 6))
    baseline = Baseline(keys, values, counters(schema), 1, 4).without(b"k2k2")
    assert [k.tobytes() for k in baseline.since(keys, values, False)[0]] == [b"k2k2"]


@pytest.mark.parametrize("size", [1, 3, 4, 8, 12])
@settings(deadline=None)
@given(data=st.data())
def test_keys_are_found_where_they_were(size: int, data: st.DataObject) -> None:
    part = st.lists(st.binary(min_size=size, max_size=size), unique=True, max_size=20)
    among, keys = data.draw(part), data.draw(part)
    keys = list(dict.fromkeys([*keys, *data.draw(st.lists(st.sampled_from(among)) if among else st.just([]))]))
    shaped = [np.frombuffer(b"".join(p), np.uint8).reshape(len(p), size) for p in (keys, among)]
    assert positions(*shaped).tolist() == [among.index(k) if k in among else -1 for k in keys]
