"""Stamped events of a ring buffer laid out by hand: in order of time, whatever order they were stamped in."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from bpfnb.protocol.schema import Number, Schema, Tail
from bpfnb.protocol.segments import ROWS, Layout, SegmentWriter, parts
from bpfnb.tracer.read import ringbuf
from bpfnb.tracer.read.ringbuf import RingSource

BUSY, DISCARD = 1 << 31, 1 << 30
SIZE = 1 << 12
EVENT = Schema((Number("n", 0, "<u4"),), 4)
TAILED = Schema((Number("n", 0, "<u4"), Tail("text", 4, text=False)), 4)
MS = 1_000_000


class Ring:
    """The memory of a BPF ring buffer, in a memfd: the consumer's page, the producer's, and the data twice."""

    def __init__(self, schema: Schema = EVENT, **arguments: int) -> None:
        self.now = 0
        self._fd = os.memfd_create("ring")
        os.ftruncate(self._fd, 2 * mmap.PAGESIZE + 2 * SIZE)
        self._memory = mmap.mmap(self._fd, 0)
        self.position = 0
        self._segments: list[tuple[Layout, mmap.mmap]] = []
        self._writers: list[SegmentWriter] = []
        self.source = RingSource(
            self._fd,
            schema,
            self._open_writer,
            lambda: 0,
            stamped=True,
            size=SIZE,
            clock=lambda: self.now,
            **arguments,
        )

    def close(self) -> None:
        self.source.close()
        for writer in self._writers:
            writer.close()
        for _, memory in self._segments:
            memory.close()
        self._memory.close()
        os.close(self._fd)

    def add(self, n: int, stamp: int, *, text: bytes = b"", bits: int = 0) -> int:
        """Submit an event, as submits.py's text does; its position."""
        event = struct.pack("<I", n) + text
        padding = -len(event) % 8
        body = event + b"\xee" * padding + struct.pack("<q", stamp) + b"\xee" * padding
        at = self.position
        self.put(at, struct.pack("<II", len(body) | bits, 0) + body)
        self.position += 8 + (len(body) + 7 & ~7)
        self._memory[mmap.PAGESIZE : mmap.PAGESIZE + 8] = struct.pack("<Q", self.position)
        return at

    def put(self, at: int, data: bytes) -> None:
        """Write at a position; the kernel shows every byte twice."""
        for i, byte in enumerate(data):
            place = 2 * mmap.PAGESIZE + (at + i) % SIZE
            self._memory[place] = self._memory[place + SIZE] = byte

    def drain(self, now: int, *, last: bool = False) -> int:
        self.now = now
        return self.source.drain(last=last)

    @property
    def read(self) -> int:
        return int(struct.unpack("<Q", self._memory[:8])[0])

    @property
    def rows(self) -> list[tuple[int, int]]:
        """The stamp and the number of what was written so far."""
        found = []
        columns = {c.name: c for c in self.source.schema.columns}
        for layout, memory in self._segments:
            head, rows, _ = parts(memoryview(memory), self.source.schema, layout)
            rows = rows[: int(head[ROWS])]
            times, numbers = columns[self.source.schema.time].values(rows), columns["n"].values(rows)
            found += list(zip(times.tolist(), numbers.tolist(), strict=True))
        return found

    @property
    def texts(self) -> list[bytes]:
        ((layout, memory),) = self._segments
        head, rows, text = parts(memoryview(memory), self.source.schema, layout)
        at = self.source.schema.text_end
        ends = [0, *rows[: int(head[ROWS]), at : at + 8].copy().view(np.int64)[:, 0].tolist()]
        return [text[a:b].tobytes() for a, b in pairwise(ends)]

    def _open_writer(self, schema: Schema) -> SegmentWriter:
        writer = SegmentWriter(schema, lambda layout, fd: self._segments.append((layout, mmap.mmap(fd, 0))))
        self._writers.append(writer)
        return writer


@pytest.fixture
def ring(request: pytest.FixtureRequest) -> Iterator[Ring]:
    """``indirect`` parameters are the source's arguments."""
    made = Ring(**getattr(request, "param", {}))
    yield made
    made.close()


def turns_of(size: int) -> pytest.MarkDecorator:
    """Drains that read so many bytes."""
    return pytest.mark.parametrize("ring", [{"turn": size}], indirect=True, ids=[""])


def test_events_stamped_out_of_turn_are_written_in_order_of_time(ring: Ring) -> None:
    for n, stamp in enumerate([10, 40, 20, 30, 50, 45]):
        ring.add(n, stamp * MS)
    assert ring.drain(100 * MS) == 0
    assert ring.rows == [(10 * MS, 0), (20 * MS, 2), (30 * MS, 3), (40 * MS, 1), (45 * MS, 5), (50 * MS, 4)]
    assert ring.read == ring.position


def test_what_was_stamped_during_a_drain_waits_for_what_may_be_older(ring: Ring) -> None:
    ring.add(0, 10 * MS)
    ring.add(1, 21 * MS)  # after this drain has begun
    assert ring.drain(20 * MS) == 1
    assert ring.rows == [(10 * MS, 0)]
    assert ring.read == ring.position  # its room is given back nevertheless
    ring.add(2, int(20.5 * MS))
    ring.add(3, 22 * MS)
    assert ring.drain(30 * MS) == 0
    assert ring.rows[1:] == [(int(20.5 * MS), 2), (21 * MS, 1), (22 * MS, 3)]


def test_an_event_not_yet_submitted_holds_back_what_is_younger(ring: Ring) -> None:
    """GIVEN a program that stops between being stamped and submitting THEN its event comes in its place."""
    ring.drain(5 * MS)
    ring.add(0, 30 * MS)  # stopped before it was stamped
    late = ring.add(1, 20 * MS, bits=BUSY)
    ring.add(2, 31 * MS)
    assert ring.drain(40 * MS) == 1
    assert ring.rows == []
    assert ring.read == late
    ring.put(late, struct.pack("<I", 4 + 2 * 4 + 8))
    assert ring.drain(50 * MS) == 0
    assert ring.rows == [(20 * MS, 1), (30 * MS, 0), (31 * MS, 2)]


def test_the_last_drain_holds_nothing_back(ring: Ring) -> None:
    ring.add(0, 21 * MS)
    ring.add(1, 20 * MS)
    ring.drain(1 * MS)
    assert ring.rows == []
    ring.add(2, 19 * MS)
    assert ring.drain(1 * MS, last=True) == 0
    assert ring.rows == [(19 * MS, 2), (20 * MS, 1), (21 * MS, 0)]


@turns_of(400)
def test_a_backlog_is_read_in_turns_and_stays_in_order(ring: Ring) -> None:
    """GIVEN more than a turn takes, and stamps that step back WHEN it is drained THEN each drain takes a part, and what
    may still be older than what comes next waits."""
    for n in range(100):
        ring.add(n, MS * (10 + n - 2 * (n % 3)))
    reads, rows = [], []
    while ring.read < ring.position:
        answer = ring.drain(200 * MS)
        assert answer == ringbuf.HIGH_WATER or ring.read == ring.position
        reads.append(ring.read)
        rows.append(len(ring.rows))
    assert len(reads) == 8
    assert rows[0] < rows[1] < rows[2] < rows[-1] == 100
    assert ring.rows == sorted((MS * (10 + n - 2 * (n % 3)), n) for n in range(100))


@turns_of(50)
def test_the_last_drain_takes_every_turn(ring: Ring) -> None:
    for n in range(100):
        ring.add(n, (100 - n) * MS)
    ring.drain(200 * MS, last=True)
    assert ring.rows == [((100 - n) * MS, n) for n in range(99, -1, -1)]


def test_it_goes_on_beyond_the_rings_end_and_past_what_is_discarded(ring: Ring) -> None:
    now = 0
    for n in range(2000):
        now += MS
        ring.add(n, now - (n % 3) * MS * 2, bits=DISCARD if n % 5 == 0 else 0)
        if n % 40 == 39:
            ring.drain(now)
    ring.drain(now, last=True)
    expected = sorted((MS * (n + 1) - (n % 3) * MS * 2, n) for n in range(2000) if n % 5)
    assert sorted(ring.rows) == expected
    assert [n for _, n in ring.rows if n >= 1990] == [n for _, n in expected if n >= 1990]
    assert ring.position > 10 * SIZE


def test_texts_of_any_length_end_where_they_end() -> None:
    ring = Ring(TAILED)
    try:
        for n in range(40):
            ring.add(n, (100 - n) * MS, text=b"x" * n)
        ring.drain(200 * MS)
        assert ring.texts == [b"x" * n for n in range(39, -1, -1)]
        assert ring.rows == [((100 - n) * MS, n) for n in range(39, -1, -1)]
    finally:
        ring.close()
