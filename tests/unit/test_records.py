"""Records found in bytes made by hand after the kernel's description of them, and the rows they become."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfnb.protocol.schema import Number, Schema, Tail, Text
from bpfnb.protocol.segments import ROWS, Layout, SegmentWriter, parts
from bpfnb.tracer.read.perf import CpuBuffer
from bpfnb.tracer.read.records import NONE, PERF, RING, Records, RowFormat, cut, join, merge

BUSY, DISCARD = 1 << 31, 1 << 30
SAMPLE, LOST = 9, 2
FORMATS = {"ring": RING, "perf": PERF}
HEADERS = {"ring": 8, "perf": 20}
STRUCT = Schema((Number("n", 0, "<u4"), Text("name", 4, 16)), 20)
WITH_TAIL = Schema((*STRUCT.columns, Tail("tail", 20, text=True)), 24)  # as padding makes it: a tail within the size


class Made(NamedTuple):
    """A record as the kernel lays it out. ``event``: its header and data; None where there is nothing to find."""

    raw: bytes
    event: bytes | None
    busy: bool = False


def ring(data: bytes, bits: int = 0) -> Made:
    record = struct.pack("<II", len(data) | bits, 7) + data
    return Made(record + b"\xee" * (-len(data) % 8), None if bits else record, bool(bits & BUSY))


def perf(data: bytes, kind: int = SAMPLE, misc: int = 1, time: int = 0) -> Made:
    """perf's length of the data includes what rounds the record up."""
    if kind != SAMPLE:
        data += bytes(-len(data) % 8)
        return Made(struct.pack("<IHH", kind, misc, 8 + len(data)) + data, None)
    data += b"\xee" * (-(len(data) + 4) % 8)
    raw = struct.pack("<IHHQI", kind, misc, 20 + len(data), time, len(data)) + data
    return Made(raw, raw)


def laid_out(made: Iterable[Made]) -> np.ndarray:
    return np.frombuffer(b"".join(record.raw for record in made), np.uint8)


def one_by_one(made: Iterable[Made]) -> tuple[list[bytes], int]:
    """What a reader must find: the events up to the first record still being written, and where that one is."""
    events, at = [], 0
    for record in made:
        if record.busy:
            break
        if record.event is not None:
            events.append(record.event)
        at += len(record.raw)
    return events, at


def events_of(pieces: Iterable[Records]) -> list[bytes]:
    return [r.data[s : s + n].tobytes() for r in pieces for s, n in zip(r.start, r.length, strict=True)]


def written(struct_: Schema, header: int, pieces: Iterable[Records]) -> tuple[Schema, np.ndarray, list[bytes]]:
    """The schema, the rows and each row's text in a segment."""
    shape = RowFormat(struct_, header)
    segments: list[tuple[Layout, mmap.mmap]] = []
    writer = SegmentWriter(shape.schema, lambda layout, fd: segments.append((layout, mmap.mmap(fd, 0))))
    for records in pieces:
        shape.write(records, writer)
    writer.close()
    layout, memory = segments[0]
    head, rows, text = parts(memoryview(memory), shape.schema, layout)
    rows = rows[: int(head[ROWS])].copy()
    if shape.schema.text_end < 0:
        return shape.schema, rows, []
    at = shape.schema.text_end
    ends = [0, *rows[:, at : at + 8].view(np.int64)[:, 0].tolist()]
    return shape.schema, rows, [text[a:b].tobytes() for a, b in pairwise(ends)]


def check(kind: str, made: Sequence[Made]) -> None:
    """Found, and made into rows with and without a tail, the records read as one by one."""
    data, header = laid_out(made), HEADERS[kind]
    events, stop = one_by_one(made)
    pieces, at = cut(data, 0, len(data), FORMATS[kind])
    assert events_of(pieces) == events
    assert at == stop
    _, rows, _ = written(STRUCT, header, pieces)
    wanted = [event[header : header + 20].ljust(20, b"\0") for event in events]
    assert [row.tobytes() for row in rows[:, header : header + 20]] == wanted
    _, rows, texts = written(WITH_TAIL, header, pieces)
    assert [row.tobytes() for row in rows[:, header : header + 20]] == wanted
    assert texts == [event[header + 20 :] for event in events]


def data_of(length: int, seed: int = 1) -> bytes:
    return bytes((seed * 31 + i * 7) % 251 + 1 for i in range(length))


@st.composite
def mixes(draw: st.DrawFn, kind: str) -> list[Made]:
    made: list[Made] = []
    for _ in range(draw(st.integers(1, 8))):
        length = draw(st.sampled_from([0, 1, 4, 7, 8, 19, 20, 21, 23, 24, 25, 40, 300]))
        what = draw(st.sampled_from(["event"] * 6 + ["other"] * 2 + ["busy"] * (kind == "ring")))
        for _ in range(draw(st.sampled_from([1, 1, 1, 2, 40, 255, 256, 257]))):
            data = data_of(length, len(made))
            if kind == "perf":
                made.append(perf(data, SAMPLE if what == "event" else LOST, misc=len(made) % 3))
            else:
                made.append(ring(data, {"event": 0, "other": DISCARD, "busy": BUSY}[what]))
    return made


@settings(deadline=None)
@given(mixes("ring"))
def test_any_mix_in_a_ring_reads_as_one_by_one(made: list[Made]) -> None:
    check("ring", made)


@settings(deadline=None)
@given(mixes("perf"))
def test_any_mix_of_perfs_records_reads_as_one_by_one(made: list[Made]) -> None:
    check("perf", made)


@settings(deadline=None)
@given(mixes("ring"), st.integers(1, 100))
def test_what_is_read_in_steps_is_what_is_read_at_once(made: list[Made], step: int) -> None:
    data = laid_out(made)
    events, at = [], 0
    while at < len(data):
        pieces, until = cut(data, at, min(at + 8 * step, len(data)), RING)
        events += events_of(pieces)
        if until == at:
            break
        at = until
    assert (events, at) == one_by_one(made)


CASES = {
    "equal": [ring(data_of(20, i)) for i in range(5000)],
    "larger than the struct": [ring(data_of(50, i)) for i in range(100)],
    "smaller than the struct": [ring(data_of(5, i)) for i in range(100)],
    "as far apart, but shorter": [ring(data_of(18, i)) for i in range(100)],
    "empty": [ring(b"")] * 100,
    "in turns": [ring(data_of(20 + 9 * (i % 2), i)) for i in range(5000)],
    "every third discarded": [ring(data_of(20, i), DISCARD if i % 3 == 0 else 0) for i in range(5000)],
    "all discarded": [ring(data_of(20), DISCARD)] * 100,
    "one odd among many": [ring(data_of(20 + (i == 2500), i)) for i in range(5000)],
    "the first busy": [ring(b"x", BUSY)] + [ring(data_of(20))] * 100,
    "busy, and all behind it": [ring(data_of(20, i), BUSY if i > 49 else 0) for i in range(100)],
    "a discarded one, still busy": [ring(b"x"), ring(b"y", BUSY | DISCARD), ring(b"z")],
    "busy among odd ones": [ring(data_of(i), BUSY if i == 30 else 0) for i in range(60)],
    "runs": [ring(data_of(20 + 9 * (i // 300 % 2), i)) for i in range(5000)],
    "none": [],
}


@pytest.mark.parametrize("case", CASES)
def test_ring(case: str) -> None:
    check("ring", CASES[case])


PERF_CASES = {
    "equal": [perf(data_of(20, i)) for i in range(5000)],
    "from user mode and kernel": [perf(data_of(20, i), misc=1 + i % 2) for i in range(100)],
    "a lost record between": [perf(data_of(20, i), LOST if i == 50 else SAMPLE) for i in range(100)],
    "of the same length as lost ones": [perf(data_of(12, i), SAMPLE if i % 2 else 12) for i in range(100)],
    "in turns": [perf(data_of(20 + 9 * (i % 2), i)) for i in range(5000)],
    "as long as they can be": [perf(data_of(65000, i)) for i in range(20)],
}


@pytest.mark.parametrize("case", PERF_CASES)
def test_perf(case: str) -> None:
    check("perf", PERF_CASES[case])


def test_equal_records_are_rows_as_they_lie() -> None:
    """Nothing is copied: what is written is a view of the buffer."""
    data = laid_out(ring(data_of(20, i)) for i in range(100))
    (records,) = cut(data, 0, len(data), RING)[0]
    assert records.stride == 32
    assert np.shares_memory(records.matrix(), data)


def test_a_ring_is_read_past_its_end() -> None:
    """Its data is mapped twice in a row: a record that wraps lies in one piece."""
    made = [ring(data_of(20, i)) for i in range(64)]
    whole = laid_out(made)
    turned = np.roll(whole, 1000)
    pieces, at = cut(np.concatenate([turned, turned]), 1000, 1000 + len(whole), RING)
    assert events_of(pieces) == [record.event for record in made]
    assert at == 1000 + len(whole)


def test_a_struct_may_be_larger_than_all_that_is_left_of_the_buffer() -> None:
    huge = Schema((Number("n", 0, "<u4"),), 4096)
    data = laid_out([ring(b"abcd"), ring(b"efghi")])
    _, rows, _ = written(huge, 8, cut(data, 0, len(data), RING)[0])
    assert rows.shape == (2, 4104)
    assert rows[:, 8:].tobytes() == b"abcd".ljust(4096, b"\0") + b"efghi".ljust(4096, b"\0")


def test_rows_say_where_the_struct_is() -> None:
    for kind, size in (("ring", 8 + 24), ("perf", 40)):
        header = HEADERS[kind]
        schema = RowFormat(STRUCT, header).schema
        assert schema.size == size
        assert [(c.name, c.offset) for c in schema.columns] == [("n", header), ("name", header + 4)]
        schema = RowFormat(WITH_TAIL, header).schema
        assert (schema.text_end, schema.size) == ((32, 40) if kind == "ring" else (48, 56))


@pytest.mark.parametrize("begin", [0, 24, 4088])
def test_a_perf_buffer_is_taken_across_its_end(begin: int) -> None:
    buffer = CpuBuffer.__new__(CpuBuffer)
    whole = np.arange(4096, dtype=np.uint32).astype(np.uint8)
    buffer.size, buffer.tail, buffer._data = 4096, 3 * 4096 + begin, whole
    buffer._words = memoryview(bytearray(4096)).cast("Q")
    for length in (0, 8, 4000, 96):
        out = np.zeros(length, np.uint8)
        at = buffer.tail
        buffer.copy(out)
        assert buffer.tail == at
        buffer.release(at + length)
        assert out.tobytes() == np.roll(whole, -(at % 4096))[:length].tobytes()
        assert buffer._words[129] == buffer.tail == at + length


def test_joined_and_compacted_records_are_the_same_records() -> None:
    made = [perf(data_of(20, i), time=i) for i in range(40)]
    data = laid_out(made)
    half = len(data) // 2
    joined = join(data, [NONE, *cut(data, 0, half, PERF)[0], *cut(data, half, len(data), PERF)[0]])
    assert joined.stride == 40
    order = np.arange(40)[::-1].copy()
    apart = join(data, [joined[30:], joined[:10]])
    for records in (joined, joined[5:7], joined[3:3], joined.take(order), apart):
        copy = records.compact()
        assert events_of([copy]) == events_of([records])
        assert copy.words(8).tolist() == records.words(8).tolist()
        assert not np.shares_memory(copy.data, data)
    assert joined.words(8).tolist() == list(range(40))
    assert joined.take(order).words(8).tolist() == list(range(40))[::-1]
    assert not len(join(data, []))


@pytest.mark.parametrize("lengths", [[16] * 300, [16, 21, 3, 40], [13] * 300])
def test_records_of_several_places_are_merged_and_have_their_words(lengths: list[int]) -> None:
    """Each begins with a number; some are no multiple of 8 long."""
    made = [ring(struct.pack("<q", n)[:length] + data_of(max(length - 8, 0))) for n, length in enumerate(lengths)]
    halves = [laid_out(made[: len(made) // 2]), laid_out(made[len(made) // 2 :])]
    found = [piece for data in halves for piece in cut(data, 0, len(data), RING)[0]]
    together = merge([NONE, *found])
    assert events_of([together]) == events_of(found) == [record.event for record in made]
    numbers = [int(n) & 0xFFFF for n in together.words(8)]
    assert numbers == [n for piece in found for n in (piece.words(8) & 0xFFFF).tolist()] == list(range(len(made)))
    part = together[1:3]
    assert part.words(8).tolist() == together.words(8)[1:3].tolist()
