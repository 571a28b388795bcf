"""The writing end of segments: what a session may have under way, and what is done with the rest."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest

from bpfnb.protocol.credit import Credit
from bpfnb.protocol.schema import Number, Schema, Tail
from bpfnb.protocol.segments import LOST, MAX_EVENT, ROWS, Layout, SegmentWriter, parts

MIB = 1 << 20
PLAIN = Schema((Number("n", 0, "<u8"),), 1024)
TAILED = Schema((Number("n", 0, "<u8"), Tail("text", 16, text=True)), 16, text_end=8)


class Reader:
    """What a notebook would hold of one output."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.segments: list[tuple[Layout, mmap.mmap]] = []

    def publish(self, layout: Layout, fd: int) -> None:
        assert os.fstat(fd).st_size == layout.size(self.schema)
        self.segments.append((layout, mmap.mmap(fd, 0)))

    @property
    def numbers(self) -> list[int]:
        found: list[int] = []
        for layout, memory in self.segments:
            head, rows, _ = parts(memoryview(memory), self.schema, layout)
            found += rows[: int(head[ROWS]), :8].copy().view(np.int64)[:, 0].tolist()
        return found

    @property
    def lengths(self) -> list[int]:
        """Of the texts."""
        found: list[int] = []
        for layout, memory in self.segments:
            head, rows, _ = parts(memoryview(memory), self.schema, layout)
            ends = [0, *rows[: int(head[ROWS]), 8:16].copy().view(np.int64)[:, 0].tolist()]
            found += [b - a for a, b in pairwise(ends)]
        return found

    @property
    def lost(self) -> int:
        layout, memory = self.segments[-1]
        return int(parts(memoryview(memory), self.schema, layout)[0][LOST])


class Outputs:
    """Writers and readers of a session's outputs."""

    def __init__(self) -> None:
        self._writers: list[SegmentWriter] = []
        self._readers: list[Reader] = []

    def open(
        self, schema: Schema, credit: Credit, epoch: Callable[[], int] = lambda: 0
    ) -> tuple[SegmentWriter, Reader]:
        self._readers.append(Reader(schema))
        self._writers.append(SegmentWriter(schema, self._readers[-1].publish, epoch, credit))
        return self._writers[-1], self._readers[-1]

    def close(self) -> None:
        for writer in self._writers:
            writer.close()
        for _, memory in (segment for reader in self._readers for segment in reader.segments):
            memory.close()


@pytest.fixture
def outputs() -> Iterator[Outputs]:
    made = Outputs()
    yield made
    made.close()


@pytest.fixture
def plain(outputs: Outputs) -> tuple[SegmentWriter, Reader, Credit]:
    credit = Credit(16 * MIB)
    return *outputs.open(PLAIN, credit), credit


def rows(first: int, count: int) -> np.ndarray:
    made = np.zeros((count, PLAIN.size), np.uint8)
    made[:, :8].view(np.int64)[:, 0] = np.arange(first, first + count)
    return made


def texts(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    made = np.zeros((len(lengths), TAILED.size), np.uint8)
    made.view(np.int64)[:, 0] = np.arange(len(lengths))
    made.view(np.int64)[:, 1] = np.cumsum(lengths)
    return made, np.zeros(sum(lengths), np.uint8)


def test_what_is_not_acknowledged_is_bounded(plain: tuple[SegmentWriter, Reader, Credit]) -> None:
    """GIVEN 24 MiB of rows for a session that keeps 16 WHEN none is acknowledged THEN 16 are delivered, and what is
    lost is counted to the last row."""
    writer, reader, _ = plain
    for first in range(0, 24 << 10, 1000):
        writer.append(rows(first, min(1000, (24 << 10) - first)))
    assert sum(layout.size(PLAIN) for layout, _ in reader.segments) <= 16 * MIB
    assert len(reader.segments) == 15  # of 1 MiB and a page
    assert reader.numbers == list(range(15 << 10))
    assert reader.lost == writer.lost == 9 << 10
    assert writer.rows == 15 << 10
    assert writer.blocked


def test_it_goes_on_when_segments_are_acknowledged(plain: tuple[SegmentWriter, Reader, Credit]) -> None:
    writer, reader, credit = plain
    writer.append(rows(0, 20 << 10))
    credit.acknowledge(1)
    assert not writer.blocked
    writer.set_lost(7)  # by the kernel
    writer.append(rows(30_000, 2000))
    assert reader.numbers[15 << 10 :] == list(range(30_000, 31_024))
    assert reader.lost == (5 << 10) + 7 + 2000 - 1024
    credit.acknowledge(1 << 60)  # more than there were
    writer.append(rows(0, 2000))
    assert writer.lost == (5 << 10) + 7 + 2000 - 1024
    assert not writer.blocked


def test_outputs_share_a_sessions_credit_but_each_has_a_segment(outputs: Outputs) -> None:
    credit = Credit(8 * MIB)
    made = [outputs.open(PLAIN, credit) for _ in range(40)]
    for writer, _ in made:
        writer.append(rows(0, 600))
    assert [len(reader.numbers) for _, reader in made] == [512] * 40
    assert [reader.lost for _, reader in made] == [88] * 40


def test_a_row_larger_than_a_segments_share_has_one_of_its_own(outputs: Outputs) -> None:
    schema = Schema((Number("n", 0, "<u8"),), MAX_EVENT + 64)
    credit = Credit(1)
    writer, reader = outputs.open(schema, credit)
    for n in range(3):
        row = np.zeros((1, schema.size), np.uint8)
        row[0, 0] = n
        writer.append(row)
        credit.acknowledge(1)
    assert (reader.numbers, reader.lost, len(reader.segments)) == ([0, 1, 2], 0, 3)


def test_long_texts_have_segments_of_their_own_and_longer_ones_are_counted(outputs: Outputs) -> None:
    writer, reader = outputs.open(TAILED, Credit(64 * MIB))
    writer.append(*texts([10, 41 * MIB, 20, 39 * MIB, 30]))
    assert reader.numbers == [0, 2, 3, 4]
    assert reader.lengths == [10, 20, 39 * MIB, 30]
    assert reader.lost == 1


def test_rows_of_another_epoch_do_not_go_into_an_old_segment(outputs: Outputs) -> None:
    epoch = 1
    credit = Credit(8 * MIB)
    writer, reader = outputs.open(PLAIN, credit, lambda: epoch)
    writer.append(rows(0, 10))
    for _ in range(20):  # they take all the credit
        outputs.open(PLAIN, credit)
    epoch = 2
    writer.append(rows(10, 10))
    assert (reader.numbers, reader.lost) == (list(range(10)), 10)
    credit.acknowledge(21)
    writer.append(rows(20, 10))
    assert (reader.numbers, reader.lost) == ([*range(10), *range(20, 30)], 10)
