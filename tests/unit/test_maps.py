"""Maps on the notebook's side: entries as DataFrames, histograms and mappings, values into the kernel's bytes."""

from __future__ import annotations

import struct
from functools import partial
from typing import NoReturn

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfnb.errors import ProgramError, UnsupportedError
from bpfnb.protocol.messages import MapInfo
from bpfnb.protocol.schema import BitField, Bytes, Enum, Number, NumberArray, Schema, Text, Wide
from bpfnb.results.maps.frames import stack_frames
from bpfnb.results.maps.frozen import Growing
from bpfnb.results.maps.map import Map
from bpfnb.results.maps.pack import pack

U32 = Schema((Number("key", 0, "<u4"),), 4)
U64 = Schema((Number("value", 0, "<u8"),), 8)
STATES = (("IDLE", 0), ("BUSY", 1), ("GONE", 7))
# struct task { u32 pid; char comm[16]; enum state state; u64 in.bytes; }
TASK = Schema(
    (
        Number("pid", 0, "<u4"),
        Text("comm", 4, 16),
        Enum("state", 20, "<u4", labels=STATES),
        Number("in.bytes", 24, "<u8"),
    ),
    32,
)


class Kernel:
    """What a session would ask: entries in a dict, laid out as MapRead says."""

    running = True

    def __init__(self, entries: dict[bytes, bytes] | list[tuple[bytes, bytes]]) -> None:
        self.entries = dict(entries)
        self.asked: list[str] = []

    def read(self) -> tuple[int, bytes]:
        self.asked.append("read")
        keys = b"".join(self.entries)
        return len(self.entries), keys + bytes(-len(keys) % 8) + b"".join(self.entries.values())

    def look_up(self, key: bytes) -> bytes | None:
        self.asked.append("look_up")
        return self.entries.get(key)

    def take(self, most: int = 0) -> tuple[int, bytes]:
        taken = Kernel(dict(list(self.entries.items())[: most or None])).read()
        self.entries = dict(list(self.entries.items())[taken[0] :])
        return taken

    def write(self, key: bytes, value: bytes | None) -> bool:
        if value is not None:
            self.entries[key] = value
            return True
        return self.entries.pop(key, None) is not None

    def clear(self) -> None:
        self.entries.clear()


def make(
    entries: dict[bytes, bytes] | list[tuple[bytes, bytes]],
    key: Schema | None = U32,
    value: Schema | None = U64,
    kind: str = "hash",
    cpus: int = 1,
    value_size: int = 0,
) -> Map:
    size = value_size or (value.size if value else 0)
    stride = -(-size // 8) * 8 if cpus > 1 else size
    info = MapInfo("counts", "BPF_HASH", kind, key, value, key.size if key else 0, size, stride, cpus, 1024)
    return Map(info, Kernel(entries))


def numbers(**values: int) -> dict[bytes, bytes]:
    return {struct.pack("<I", int(k[1:])): struct.pack("<Q", v) for k, v in values.items()}


# --- DataFrames ---------------------------------------------------------------------------------------------------


def test_a_scalar_key_and_value_are_columns_of_these_names_and_types() -> None:
    df = make(numbers(k7=70, k3=30, k9=2**64 - 1)).df
    assert df.to_dict("list") == {"key": [7, 3, 9], "value": [70, 30, 2**64 - 1]}
    assert [str(t) for t in df.dtypes] == ["uint32", "uint64"]
    assert df.attrs == {"map": "counts", "kind": "hash", "lost": 0}


def test_structs_give_a_column_a_member() -> None:
    m = make({struct.pack("<I16sIQ", 42, b"bash", 7, 5): struct.pack("<Q", 1)}, TASK)
    df = m.df
    assert list(df.columns) == ["pid", "comm", "state", "in.bytes", "value"]
    assert df.iloc[0].to_dict() == {"pid": 42, "comm": "bash", "state": "GONE", "in.bytes": 5, "value": 1}


def test_a_frame_of_an_empty_map_has_its_columns_and_types() -> None:
    full, empty = make(numbers(k1=1)).df, make({}).df
    assert len(empty) == 0
    assert list(empty.dtypes) == list(full.dtypes)


def test_names_that_key_and_value_share_are_told_apart() -> None:
    both = Schema((Number("pid", 0, "<u4"), Number("n", 4, "<u4")), 8)
    df = make({struct.pack("<II", 1, 2): struct.pack("<II", 3, 4)}, both, both).df
    assert df.to_dict("list") == {"key.pid": [1], "key.n": [2], "value.pid": [3], "value.n": [4]}


def test_keys_and_values_of_odd_sizes_lie_where_the_protocol_says() -> None:
    key = Schema((Bytes("key", 0, 3),), 3)
    value = Schema((Bytes("value", 0, 5),), 5)
    df = make({b"abc": b"12345", b"def": b"67890"}, key, value).df
    assert df.to_dict("list") == {"key": [b"abc", b"def"], "value": [b"12345", b"67890"]}


def per_cpu(entries: dict[int, list[int]], name: str = "value") -> Map:
    """A per-CPU map of 32-bit values, which lie 8 bytes apart."""
    value = Schema((Number(name, 0, "<u4"),), 4)
    data = {struct.pack("<I", k): b"".join(struct.pack("<I4x", v) for v in each) for k, each in entries.items()}
    return make(data, U32, value, "percpu_hash", len(next(iter(entries.values()))))


def test_a_per_cpu_map_has_a_row_a_key_and_cpu() -> None:
    df = per_cpu({5: [1, 2, 3], 4: [0, 0, 9]}).df
    assert df.to_dict("list") == {"key": [5, 5, 5, 4, 4, 4], "cpu": [0, 1, 2, 0, 1, 2], "value": [1, 2, 3, 0, 0, 9]}
    assert df.cpu.dtype == np.int16


def test_a_member_called_cpu_is_told_apart_from_the_column_of_that_name() -> None:
    assert list(per_cpu({5: [1, 2]}, "cpu").df.columns) == ["key", "cpu", "value.cpu"]


def test_per_cpu_values_are_reduced_to_a_row_a_key() -> None:
    m = per_cpu({5: [1, 2, 2**32 - 1], 4: [0, 6, 3]})
    assert m.reduced().to_dict("list") == {"key": [5, 4], "value": [2**32 + 2, 9]}
    assert m.reduced("max").value.tolist() == [2**32 - 1, 6]
    assert m.reduced("min").value.tolist() == [1, 0]
    assert m.reduced("mean").value.tolist() == [(2**32 + 2) / 3, 3.0]
    assert m.reduced("sum").value.dtype == np.uint64
    with pytest.raises(ProgramError, match="sum, max, min, mean"):
        m.reduced("median")


def test_of_per_cpu_structs_the_numbers_are_reduced() -> None:
    cpus = [struct.pack("<I16sIQ", 1, b"a", 0, n) for n in (10, 20)]
    m = make({struct.pack("<I", 1): b"".join(cpus)}, U32, TASK, "percpu_hash", 2)
    assert m.reduced().to_dict("list") == {"key": [1], "pid": [2], "in.bytes": [30]}
    assert make(numbers(k1=1)).reduced("max").to_dict("list") == {"key": [1], "value": [1]}


def test_a_queue_shows_only_a_value() -> None:
    m = make({b"": struct.pack("<Q", 9)}, None, U64, "queue")
    assert m.df.to_dict("list") == {"value": [9]}
    assert m.values() == [9]
    assert len(m) == 1
    with pytest.raises(ProgramError, match="has no keys"):
        m[0]
    with pytest.raises(ProgramError, match="has no keys"):
        m.hist()


def stacks(*traces: list[int]) -> Map:
    frame = Schema((Number("address", 0, "<u8"),), 8)
    entries = {
        struct.pack("<I", 10 + i): np.array(t, "<u8").tobytes().ljust(127 * 8, b"\0") for i, t in enumerate(traces)
    }
    return make(entries, U32, frame, "stack_trace", value_size=127 * 8)


def test_stack_traces_have_a_row_a_frame() -> None:
    full = list(range(1, 128))
    df = stacks([0xFFFFFFFF81000000, 0, 7], [], full).df
    assert [str(t) for t in df.dtypes] == ["int32", "int16", "uint64"]
    assert df[df["stack"] == 10].to_dict("list") == {
        "stack": [10, 10, 10],
        "depth": [0, 1, 2],
        "address": [0xFFFFFFFF81000000, 0, 7],
    }
    assert not (df["stack"] == 11).any()
    assert df[df["stack"] == 12].address.tolist() == full
    assert stacks([5, 6])[10] == [5, 6]


def test_an_empty_map_of_stacks_has_no_frames() -> None:
    owner, depth, frames = stack_frames(np.empty((0, 1016), np.uint8), 8)
    assert (len(owner), len(depth), frames.shape) == (0, 0, (0, 8))


def test_stack_frames_of_any_size_can_be_told_apart() -> None:
    rows = np.zeros((2, 100), np.uint8)  # a frame of 32 bytes three times, and four bytes that are none
    rows[1, 40] = 1
    owner, depth, frames = stack_frames(rows, 32)
    assert (owner.tolist(), depth.tolist(), frames.shape) == ([1, 1], [0, 1], (2, 32))


def test_a_kind_without_entries_says_what_it_holds() -> None:
    m = make({}, None, None, "prog_array")
    with pytest.raises(UnsupportedError, match=r"counts \(prog_array\) cannot be cleared: it holds programs"):
        m.clear()
    assert m.get(1) is None  # single ones it tells
    for read in (lambda: m.df, lambda: len(m), m.hist, m.items):
        with pytest.raises(UnsupportedError, match=r"counts \(prog_array\) cannot be read: it holds programs"):
            read()
    assert repr(m) == "<Map counts: prog_array, room for 1,024>"
    assert "prog_array" in m._repr_html_()


# --- histograms ---------------------------------------------------------------------------------------------------


def bpf_log2l(value: int) -> int:
    """bcc's own (src/cc/export/helpers.h), in Python."""

    def bpf_log2(v: int) -> int:
        r = (v > 0xFFFF) << 4
        v >>= r
        shift = (v > 0xFF) << 3
        v >>= shift
        r |= shift
        shift = (v > 0xF) << 2
        v >>= shift
        r |= shift
        shift = (v > 0x3) << 1
        v >>= shift
        r |= shift
        return r | (v >> 1)

    return bpf_log2(value >> 32) + 32 + 1 if value >> 32 else bpf_log2(value) + 1


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 40), min_size=1))
def test_every_value_lies_within_the_bounds_of_the_bucket_bcc_counts_it_in(values: list[int]) -> None:
    counts = dict.fromkeys(range(65), 0)
    for value in values:
        counts[bpf_log2l(value)] += 1
    hist = make([(struct.pack("<I", k), struct.pack("<Q", v)) for k, v in counts.items()], kind="array").hist()
    assert hist["count"].sum() == len(values)
    assert hist.index[0] == 1
    assert hist["count"].iloc[-1] > 0
    for value in values:
        row = hist.loc[bpf_log2l(value)]
        assert int(row.low) <= value < int(row.high)


def test_a_log2_histogram_has_bccs_buckets() -> None:
    hist = make(numbers(k1=3, k2=0, k3=5, k11=1, k12=0)).hist()
    assert hist.index.tolist() == list(range(1, 12))
    assert hist.index.name == "bucket"
    assert hist.label.tolist()[:3] == ["[0, 2)", "[2, 4)", "[4, 8)"]
    assert hist.label.tolist()[-2:] == ["[512, 1K)", "[1K, 2K)"]
    assert hist["count"].tolist() == [3, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1]
    assert hist.dtypes[["low", "high", "count"]].tolist() == [np.float64, np.float64, np.int64]
    assert hist.loc[3, ["low", "high"]].tolist() == [4, 8]


def test_the_first_and_the_last_buckets_of_a_log2_histogram() -> None:
    hist = make(numbers(k0=1, k64=2)).hist()
    assert hist.loc[[0, 1, 64], "label"].tolist() == ["[0]", "[0, 2)", "[8E, 16E)"]
    assert hist.loc[64, "high"] == 2**64
    with pytest.raises(ProgramError, match="a bucket 65, and powers of two") as failure:
        make(numbers(k65=1)).hist()
    assert "linear" in (failure.value.hint or "")


def test_a_linear_histogram_counts_values() -> None:
    hist = make(numbers(k2=7, k4=1)).hist("linear")
    assert hist.index.tolist() == [0, 1, 2, 3, 4]
    assert hist["count"].tolist() == [0, 0, 7, 0, 1]
    assert hist.loc[2, ["low", "high", "label"]].tolist() == [2, 3, "[2]"]
    signed = Schema((Number("key", 0, "<i4"),), 4)
    below = make({struct.pack("<i", -2): struct.pack("<Q", 1)}, signed).hist("linear")
    assert below.index.tolist() == [-2]
    with pytest.raises(ProgramError, match="too many"):
        make(numbers(k1=1, k4000000=1)).hist("linear")


@pytest.mark.parametrize("kind", ["log2", "linear"])
def test_a_histogram_of_nothing_is_empty(kind: str) -> None:
    hist = make(numbers(k1=0)).hist(kind)
    assert list(hist.columns) == ["low", "high", "label", "count"]
    assert len(hist) == 0
    assert hist["count"].dtype == np.int64


def keyed(*rows: tuple[str, int, int, int]) -> Map:
    columns = (
        Text("disk", 0, 8),
        Number("slot", 8, "<u8"),
        Number("queue", 16, "<u4"),
    )
    entries = [(struct.pack("<8sQI4x", d.encode(), s, q), struct.pack("<Q", n)) for d, s, q, n in rows]
    return make(entries, Schema(columns, 24))


def test_a_keyed_histogram_has_a_column_a_key() -> None:
    m = keyed(("sda", 2, 0, 5), ("sda", 4, 0, 1), ("nvme", 3, 0, 2), ("nvme", 3, 1, 20))
    one = m.hist(by="disk")
    assert list(one.columns) == ["low", "high", "label", "sda", "nvme"]
    assert one.nvme.tolist() == [0, 0, 22, 0]
    assert one.sda.tolist() == [0, 5, 0, 1]
    all_others = m.hist()
    assert list(all_others.columns[3:]) == [("sda", 0), ("nvme", 0), ("nvme", 1)]
    assert all_others[("nvme", 1)].tolist() == [0, 0, 20, 0]
    assert m.hist(by=[])["count"].tolist() == [0, 5, 22, 1]
    assert m.hist("linear", bucket="queue", by=[])["count"].tolist() == [8, 20]
    assert len(keyed(("sda", 2, 0, 0)).hist()) == 0
    with pytest.raises(ProgramError, match="did you mean slot"):
        m.hist(bucket="slots")
    with pytest.raises(ProgramError, match="did you mean disk"):
        m.hist(by="disc")


def test_what_is_no_histogram_says_why() -> None:
    two = Schema((Number("a", 0, "<u4"), Number("b", 4, "<u4")), 8)
    with pytest.raises(ProgramError, match="which part of its key") as failure:
        make({}, two).hist()
    assert failure.value.hint == "name it: hist(bucket='b')"
    with pytest.raises(ProgramError, match="no histogram"):
        make(numbers(k1=1), U32, two).hist()
    with pytest.raises(ProgramError, match="no histogram"):
        make({}, Schema((TASK.columns[1],), 20)).hist()
    with pytest.raises(ProgramError, match="log2 or linear"):
        make({}).hist("log10")


def test_a_per_cpu_histogram_adds_up() -> None:
    assert per_cpu({2: [1, 2], 3: [0, 5]}).hist()["count"].tolist() == [0, 3, 5]


# --- mappings -----------------------------------------------------------------------------------------------------


def test_a_map_is_read_like_a_mapping() -> None:
    m = make(numbers(k7=70, k3=30))
    assert (m[7], m.get(3), m.get(4), m.get(4, 0)) == (70, 30, None, 0)
    assert (7 in m, 8 in m, len(m)) == (True, False, 2)
    assert list(m) == m.keys() == [7, 3]
    assert m.values() == [70, 30]
    assert dict(m.items()) == {7: 70, 3: 30}
    with pytest.raises(KeyError):
        m[8]


def test_a_map_is_written_like_a_mapping() -> None:
    m = make(numbers(k7=70))
    m[7] = 71
    m[np.uint32(8)] = np.int64(80)
    assert dict(m.items()) == {7: 71, 8: 80}
    del m[7]
    assert 7 not in m
    with pytest.raises(KeyError):
        del m[7]
    m.clear()
    assert len(m) == 0


def test_structs_are_dicts_and_tuples() -> None:
    m = make({}, TASK, TASK)
    m[42, "bash", "BUSY", 5] = {"pid": 1, "comm": b"x\xff", "state": 7}
    assert m[{"pid": 42, "comm": "bash", "state": 1, "in.bytes": 5}] == {
        "pid": 1,
        "comm": "x\N{REPLACEMENT CHARACTER}",
        "state": "GONE",
        "in.bytes": 0,
    }
    assert m.keys() == [(42, "bash", "BUSY", 5)]
    for key, value in m.items():
        m[key] = value | {"comm": "y"}
    assert m.values() == [{"pid": 1, "comm": "y", "state": "GONE", "in.bytes": 0}]


def test_a_per_cpu_value_is_a_list() -> None:
    m = per_cpu({5: [1, 2], 6: [3, 4]})
    assert m[6] == [3, 4]
    assert m.items() == [(5, [1, 2]), (6, [3, 4])]


def test_a_refused_deletion_of_a_key_that_is_there_says_why() -> None:
    class Refusing(Kernel):
        def write(self, key: bytes, value: bytes | None) -> bool:
            raise ProgramError("the session has stopped")

    m = Map(make({}).info, Refusing(numbers(k1=1)))
    with pytest.raises(ProgramError, match="stopped"):
        del m[1]
    with pytest.raises(ProgramError, match="stopped"):
        m[1] = 2


def test_maps_of_maps_take_maps_by_name() -> None:
    ids = Schema((Number("map_id", 0, "<u4"),), 4)
    outer = make({struct.pack("<I", 0): struct.pack("<I", 77)}, U32, ids, "array_of_maps")
    assert outer.df.to_dict("list") == {"key": [0], "map_id": [77]}
    outer[1] = make({})
    assert outer._access.entries[struct.pack("<I", 1)] == b"counts"  # type: ignore[attr-defined]
    with pytest.raises(ProgramError, match="holds maps"):
        outer[1] = 3


def test_stacks_cannot_be_written() -> None:
    with pytest.raises(ProgramError, match="from programs"):
        stacks([1])[3] = [1, 2]


# --- taking out ---------------------------------------------------------------------------------------------------


def add(m: Map, key: int, by: int) -> None:
    """As a program adds: in the kernel's map, behind the notebook's back."""
    entries, packed = m._access.entries, struct.pack("<I", key)  # type: ignore[attr-defined]
    before = struct.unpack("<Q", entries.get(packed, bytes(8)))[0]
    entries[packed] = struct.pack("<Q", before + by)


def test_what_is_drained_is_in_no_other_frame() -> None:
    m = make(numbers(k7=70, k3=30))
    assert m.drain().to_dict("list") == {"key": [7, 3], "value": [70, 30]}
    assert (len(m), len(m.df), m.items(), m.get(7), 7 in m) == (0, 0, [], None, False)
    add(m, 7, 5)
    add(m, 9, 1)
    assert m.df.to_dict("list") == {"key": [7, 9], "value": [5, 1]}
    assert (m[7], m[9], 3 in m) == (5, 1, False)
    assert m.hist("linear")["count"].tolist() == [0, 0, 0, 0, 0, 0, 0, 5, 0, 1]
    frame = m.drain()
    assert dict(zip(frame.key, frame.value, strict=True)) == {7: 5, 9: 1}
    assert frame.attrs == {"map": "counts", "kind": "hash", "lost": 0}
    assert len(m.drain()) == 0


def test_what_is_set_after_a_drain_is_read_as_it_was_set() -> None:
    m = make(numbers(k7=70, k3=30))
    m.drain()
    m[7] = 50
    assert dict(m.items()) == {7: 50}
    del m[3]
    add(m, 3, 100)  # another entry than the one that was deleted
    assert dict(m.items()) == {7: 50, 3: 100}
    m.clear()
    add(m, 7, 1000)
    assert dict(m.items()) == {7: 1000}


def test_members_that_are_no_counts_are_shown_as_they_are() -> None:
    value = Schema((Number("n", 0, "<u8"), Number("longest", 8, "<u8")), 16)
    m = make({struct.pack("<I", 1): struct.pack("<QQ", 3, 900)}, U32, value)
    m.drain(as_is="longest")
    m._access.entries[struct.pack("<I", 1)] = struct.pack("<QQ", 4, 900)  # type: ignore[attr-defined]
    assert m[1] == {"n": 1, "longest": 900}
    assert m.drain(as_is=["longest"]).to_dict("list") == {"key": [1], "n": [1], "longest": [900]}
    with pytest.raises(ProgramError, match="no member 'longst'; did you mean longest"):
        m.drain(as_is="longst")


def test_one_entry_with_a_struct_for_a_key_is_told_from_what_was_drained() -> None:
    keys = [struct.pack("<I16sIQ", n, b"a", 0, n) for n in range(3)]
    m = make({key: struct.pack("<Q", 10) for key in keys}, TASK)
    m.drain()
    m._access.entries |= {keys[1]: struct.pack("<Q", 14), struct.pack("<I16sIQ", 9, b"b", 0, 0): struct.pack("<Q", 5)}  # type: ignore[attr-defined]
    assert [m.get((n, "a", 0, n)) for n in range(3)] == [None, 4, None]
    assert (m[9, "b", 0, 0], (9, "b", 0, 1) in m) == (5, False)


def test_entries_are_taken_out_of_the_map_itself() -> None:
    m = make(numbers(k7=70, k3=30))
    assert m.drain("entries").value.tolist() == [70, 30]
    assert m._access.entries == {}  # type: ignore[attr-defined]
    add(m, 7, 1)
    m.drain()
    add(m, 7, 5)
    assert m.drain("entries").to_dict("list") == {"key": [7], "value": [5]}
    add(m, 7, 2)
    assert m[7] == 2


def test_what_an_interrupted_caller_had_taken_comes_with_the_next_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is taken waits for whoever asks next, and comes first."""

    def interrupted(*arguments: object) -> NoReturn:
        raise KeyboardInterrupt

    m = make(numbers(k7=70, k3=30))
    queue = make({}, None, U64, "queue")
    queue._access.entries = {b"": struct.pack("<Q", 5)}  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(Map, "_frame", interrupted)
        patch.setattr(Map, "_head", interrupted)
        for act in (m.drain, partial(m.drain, "entries"), queue.pop, queue.drain):
            with pytest.raises(KeyboardInterrupt):
                act()
    assert m.drain("entries").value.tolist() == [70, 30]
    assert len(m.drain("entries")) == 0
    assert queue.drain().value.tolist() == [5]
    queue._access.entries = {b"": struct.pack("<Q", 7)}  # type: ignore[attr-defined]
    assert queue.pop() == 7
    with pytest.raises(IndexError, match="counts is empty"):
        queue.pop()


@pytest.mark.parametrize("how", ["differences", "entries"])
def test_a_map_as_it_was_at_the_end_drains_once(how: str) -> None:
    m = make(numbers(k7=70, k3=30))
    m.drain("differences")
    add(m, 7, 5)
    m._access.running = False  # type: ignore[misc]
    assert m.drain(how).to_dict("list") == {"key": [7], "value": [5]}
    assert (len(m.drain(how)), len(m.df)) == (0, 0)


def test_the_end_of_a_queue_is_popped_and_drained_like_the_queue() -> None:
    queue = make([], None, U64, "queue")
    queue._access.read = lambda: (3, struct.pack("<QQQ", 5, 6, 7))  # type: ignore[method-assign]
    queue._access.running = False  # type: ignore[misc]
    assert (queue.peek(), queue.pop(), queue.df.value.tolist()) == (5, 5, [6, 7])
    assert queue.drain().value.tolist() == [6, 7]
    assert len(queue.drain()) == 0
    with pytest.raises(IndexError):
        queue.peek()


def test_what_cannot_be_drained_says_why() -> None:
    with pytest.raises(ProgramError, match="differences or entries, not 'all'"):
        make({}).drain("all")
    with pytest.raises(ProgramError, match="cannot take entries out of counts \\(array\\)"):
        make({}, kind="array").drain("entries")
    with pytest.raises(ProgramError, match="stack_trace, which counts nothing"):
        stacks([1]).drain()
    with pytest.raises(UnsupportedError, match="devmap\\) cannot be drained: it holds network devices"):
        make({}, None, None, "devmap").drain()


# --- arrays of the kernel's objects -------------------------------------------------------------------------------


def test_programs_and_cgroups_are_put_in_by_name() -> None:
    progs = make({}, None, None, "prog_array")
    progs[3] = "f"
    assert (progs[3], 3 in progs, progs.get(2)) == ("f", True, None)
    del progs[3]
    with pytest.raises(KeyError):
        del progs[3]
    with pytest.raises(ProgramError, match="index goes from 0"):
        progs[-1] = "f"
    groups = make({}, None, None, "cgroup_array")
    with pytest.raises(ProgramError, match="takes the path of a cgroup, not 7"):
        groups[0] = 7
    with pytest.raises(UnsupportedError, match="cgroup_array\\) cannot be read: it holds cgroups"):
        groups[0]
    with pytest.raises(UnsupportedError, match="devmap\\) cannot be set: it holds network devices"):
        make({}, None, None, "devmap")[0] = 1


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ("software:cpu-clok", "did you mean cpu-clock"),
        ("software:faults:100", "a counter is software:EVENT or hardware:EVENT"),
        ("syscall:clone", "a counter is software:EVENT or hardware:EVENT"),
        ("cycles", "not a probe: 'cycles'"),
    ],
)
def test_a_counter_is_named_as_a_probe_on_it_is(event: str, message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        make({}, None, None, "perf_event_array").open(event)
    with pytest.raises(ProgramError, match="kind hash: counters are opened in a BPF_PERF_ARRAY"):
        make({}).open(event)


# --- one entry ----------------------------------------------------------------------------------------------------


def test_one_entry_is_asked_for_alone() -> None:
    m = make(numbers(k7=70, k3=30))
    assert (m[7], m.get(4), 3 in m) == (70, None, True)
    assert m._access.asked == ["look_up"] * 3  # type: ignore[attr-defined]


def test_queues_and_stacks_have_values_and_no_keys() -> None:
    queue = make({}, None, TASK, "queue")
    queue.push({"pid": 3, "comm": "x"})
    assert queue.peek() == {"pid": 3, "comm": "x", "state": "IDLE", "in.bytes": 0}
    with pytest.raises(ProgramError, match="has no keys: it has push"):
        queue[0]
    for act in (lambda: make({}).push(1), lambda: make({}).pop(), lambda: make({}).peek()):
        with pytest.raises(ProgramError, match="kind hash: push, pop and peek are for queues"):
            act()


NETS = {"10.0.0.0/8": 1, "10.1.0.0/16": 2, "10.1.2.0/24": 3, "0.0.0.0/0": 9, "192.168.0.0/28": 4}


@pytest.mark.parametrize(
    ("address", "found"),
    [("10.1.2.3/32", 3), ("10.1.2.0/23", 2), ("10.2.0.0/16", 1), ("192.168.0.15/32", 4), ("192.168.0.16/32", 9)],
)
def test_a_trie_as_it_was_at_the_end_finds_the_longest_prefix(address: str, found: int) -> None:
    key = Schema((Number("prefixlen", 0, "<u4"), Bytes("data", 4, 4)), 8)

    def packed(text: str) -> tuple[int, bytes]:
        network, _, length = text.partition("/")
        return int(length), bytes(map(int, network.split(".")))

    entries = {pack(key, packed(text)): struct.pack("<Q", n) for text, n in NETS.items()}
    m = make(entries, key, U64, "lpm_trie")
    m._access.running = False  # type: ignore[misc]
    assert m[packed(address)] == found
    del m._access.entries[pack(key, packed("0.0.0.0/0"))]  # type: ignore[attr-defined]
    assert m.get(packed("11.0.0.0/32")) is None
    assert m.get((33, b"\n\1\2\0")) is None


# --- values into bytes --------------------------------------------------------------------------------------------

KINDS = Schema(
    (
        Number("u8", 0, "|u1"),
        Number("flag", 1, "|b1"),
        Number("i16", 2, "<i2"),
        Number("f32", 4, "<f4"),
        BitField("low", 8, "<u4", 0, 3),
        BitField("mid", 8, "<i4", 3, 7),
        BitField("on", 8, "|b1", 10, 1),
        BitField("state", 9, "<u4", 3, 4, labels=STATES),
        BitField("far", 16, "<u8", 7, 64),  # in nine bytes
        Wide("wide", 32),
        Wide("below", 48, signed=True),
        Enum("sign", 64, "<i4", labels=(("UP", 1), ("DOWN", -1))),
        Bytes("raw", 68, 4),
        Text("name", 72, 4),
        NumberArray("list", 76, "<i2", (2, 3)),
        Number("in.f64", 88, "<f8"),
    ),
    96,
)
FULL = {
    "u8": 255,
    "flag": True,
    "i16": -32768,
    "f32": 0.5,
    "low": 5,
    "mid": -64,
    "on": True,
    "state": "GONE",
    "far": 2**64 - 3,
    "wide": 2**128 - 1,
    "below": -(2**127),
    "sign": "DOWN",
    "raw": b"\0\1\2\xff",
    "name": "full",
    "in.f64": -1e300,
}


def test_every_kind_of_column_is_packed_where_it_lies() -> None:
    data = pack(KINDS, FULL | {"list": [[1, 2, 3], [-4, -5, -6]]})
    assert data[:8] == struct.pack("<B?hf", 255, True, -32768, 0.5)
    assert int.from_bytes(data[8:12], "little") == 5 | (-64 & 0x7F) << 3 | 1 << 10 | 7 << 11
    assert int.from_bytes(data[16:25], "little") == (2**64 - 3) << 7
    assert data[32:48] == b"\xff" * 16
    assert data[48:64] == bytes(15) + b"\x80"
    assert data[64:76] == struct.pack("<i4s4s", -1, b"\0\1\2\xff", b"full")
    assert data[76:88] == struct.pack("<6h", 1, 2, 3, -4, -5, -6)
    assert data[88:] == struct.pack("<d", -1e300)


def test_what_is_packed_is_read_back() -> None:
    m = make({}, U32, KINDS)
    m[1] = FULL | {"list": np.arange(6).reshape(2, 3)}
    value = m[1]
    assert np.array(value.pop("list")).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert value == FULL
    row = m.df.iloc[0]
    assert {name: row[name] for name in FULL} == FULL


def test_missing_members_are_zero() -> None:
    assert pack(KINDS, {}) == bytes(96)
    assert pack(KINDS, {"on": 1}) == bytes(9) + b"\4" + bytes(86)


def test_a_constant_is_packed_as_its_type_has_it() -> None:
    # BTF has the constants of an unsigned enum with a negative one in it as signed.
    schema = Schema((Enum("value", 0, "<u4", labels=(("NONE", -1), ("SOME", 1))),), 4)
    assert pack(schema, "NONE") == b"\xff" * 4
    assert pack(schema, "SOME") == pack(schema, 1)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"u8": 256}, "u8 goes from 0 to 255; 256 does not fit"),
        ({"u8": -1}, "u8 goes from 0 to 255; -1 does not fit"),
        ({"u8": 1.5}, "u8 is a whole number, not 1.5"),
        ({"u8": "x"}, "u8 is a whole number, not 'x'"),
        ({"flag": 2}, "flag goes from 0 to 1"),
        ({"i16": 32768}, "i16 goes from -32768 to 32767"),
        ({"f32": "x"}, "f32 is a number"),
        ({"low": 8}, "low goes from 0 to 7"),
        ({"mid": 64}, "mid goes from -64 to 63"),
        ({"state": "BUSI"}, "state has no constant 'BUSI'; did you mean BUSY?"),
        ({"state": 16}, "state goes from 0 to 15"),
        ({"wide": -1}, "wide goes from 0 to"),
        ({"below": 2**127}, "below goes from"),
        ({"raw": b"12345"}, "raw has room for 4 bytes, not for 5"),
        ({"name": "fuller"}, "name has room for 4 bytes, not for 6"),
        ({"name": 4}, "name is text or bytes, not 4"),
        ({"list": [1, 2, 3]}, "list has 2 by 3 elements, not 3"),
        ({"list": 1}, "list has 2 by 3 elements, not no"),
        ({"list": [[1, 2, 3], [4, 5, 70000]]}, "list goes from -32768 to 32767; 70000 does not fit"),
        ({"nane": 1}, "the value has no member 'nane'; did you mean name?"),
        ((1, 2), "the value is a dict of, or a tuple with, u8, flag"),
        (7, "the value is a dict of, or a tuple with, u8, flag"),
    ],
)
def test_what_does_not_fit_names_the_member(part: object, message: str) -> None:
    with pytest.raises(ProgramError) as failure:
        pack(KINDS, part)
    assert message in str(failure.value)


@settings(deadline=None)
@given(st.integers(-(2**66), 2**66))
def test_numbers_are_packed_exactly_or_not_at_all(number: int) -> None:
    for dtype in ("<u8", "<i8", "<u4", "<i1"):
        schema = Schema((Number("value", 0, dtype),), np.dtype(dtype).itemsize)
        try:
            assert int(np.frombuffer(pack(schema, number), dtype)[0]) == number
        except ProgramError:
            limits = np.iinfo(dtype)
            assert not limits.min <= number <= limits.max


# --- shown --------------------------------------------------------------------------------------------------------


def test_a_map_is_shown_in_a_line_and_as_a_table() -> None:
    m = make({struct.pack("<I16sIQ", n, b"<b>&", 1, 0): struct.pack("<Q", n) for n in range(30)}, TASK)
    assert repr(m) == "<Map counts: hash of pid, comm, state, in.bytes -> value, room for 1,024>"
    page = m._repr_html_()
    assert "&lt;b&gt;&amp;" in page
    assert "<b>" not in page
    assert page.count("<tr") == 21
    assert "30 entries" in page


def test_a_map_that_cannot_be_read_is_shown_nevertheless() -> None:
    class Gone(Kernel):
        def read(self) -> tuple[int, bytes]:
            raise ProgramError("ended <before> it was read")

    assert "&lt;before&gt;" in Map(make({}).info, Gone({}))._repr_html_()


def test_stacks_are_shown_as_frames() -> None:
    assert stacks(list(range(1, 100)))._repr_html_().count("<tr") == 21


def test_frames_are_the_callers_own() -> None:
    m = make(numbers(k1=1, k2=2))
    df = m.df
    df.loc[0, "value"] = 9
    assert isinstance(df, pd.DataFrame)
    assert m.df.value.tolist() == [1, 2]


def test_growth_is_what_came_since_it_was_asked_whoever_drains() -> None:
    class Access(Kernel):
        symbols = ended = keep = moment = None

    counts = Map(make({}).info, access := Access({}))  # type: ignore[arg-type]
    growing = Growing({"counts": counts})

    def turn(**now: int) -> dict[int, int]:
        access.entries = {struct.pack("<I", int(key[1:])): struct.pack("<Q", value) for key, value in now.items()}
        return growing.read(lambda maps: dict(maps["counts"].items()))

    assert turn(k1=10) == {1: 10}
    assert turn(k1=13, k2=7) == {1: 3, 2: 7}
    assert dict(counts.drain("differences")[["key", "value"]].to_numpy().tolist()) == {1: 13, 2: 7}
    assert turn(k1=13, k2=20) == {2: 13}
    assert dict(counts.items()) == {2: 13}
    assert turn(k1=13, k2=20) == {}
    growing.read(lambda maps: None)  # who does not look at a map, or fails, has its growth the next time
    with pytest.raises(ZeroDivisionError):
        growing.read(lambda maps: len(maps["counts"].df) // 0)
    assert turn(k1=14, k2=20) == {1: 1}
