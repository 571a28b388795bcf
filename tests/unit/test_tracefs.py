"""The ring buffer's pages, made by hand after the kernel's description of them."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfnb.tracer.kernel.tracefs import Events, Field, Pipe, join, parse_pages

PAGE = 4096


@dataclass
class Page:
    """A page as kernel/trace/ring_buffer.c lays it out; ``records`` is what a reader must find."""

    time: int
    body: bytes = b""
    records: list[tuple[int, bytes]] = field(default_factory=list)

    def event(self, delta: int, data: bytes) -> None:
        data += b"\0" * (-len(data) % 4)
        if 0 < len(data) <= 28 * 4:
            self.body += struct.pack("<I", delta << 5 | len(data) // 4) + data
        else:
            self.body += struct.pack("<II", delta << 5, len(data) + 4) + data
        self.time += delta
        self.records.append((self.time, data))

    def extend(self, delta: int) -> None:
        self.body += struct.pack("<II", (delta & (1 << 27) - 1) << 5 | 30, delta >> 27)
        self.time += delta

    def stamp(self, time: int) -> None:
        low = time & (1 << 59) - 1
        self.body += struct.pack("<II", (low & (1 << 27) - 1) << 5 | 31, low >> 27)
        self.time = time

    def discarded(self, delta: int, size: int) -> None:
        self.body += struct.pack("<II", delta << 5 | 29, size + 4) + b"\xee" * size
        self.time += delta

    def padding(self) -> None:
        self.body += struct.pack("<I", 29)

    def bytes(self, start: int, flags: int = 0) -> bytes:
        head = struct.pack("<QQ", start, len(self.body) | flags)
        return head + self.body + b"\xcc" * (PAGE - 16 - len(self.body))


def parsed(pages: list[bytes]) -> list[tuple[int, bytes]]:
    events = parse_pages(np.frombuffer(b"".join(pages), np.uint8).reshape(-1, PAGE), 3)
    assert set(events.cpu.tolist()) <= {3}
    found = zip(events.time.tolist(), events.start.tolist(), events.length.tolist(), strict=True)
    return [(time, events.data[start : start + length].tobytes()) for time, start, length in found]


def test_every_kind_of_record() -> None:
    page = Page(10_000)
    page.event(5, b"abcd")
    page.discarded(7, 12)
    page.event(1, b"x" * 112)
    page.event(1, b"long" * 60)
    page.extend(1 << 40)
    page.event(2, b"late")
    page.stamp((3 << 59) + 77)  # an absolute stamp carries 59 bits; the rest are those of the time before it
    page.time = 77
    page.event(1, b"back")
    page.padding()
    assert parsed([page.bytes(10_000)]) == page.records


@pytest.mark.parametrize("flags", [1 << 31, 1 << 30, 3 << 30])
def test_the_flags_of_a_page_that_missed_events_are_not_its_length(flags: int) -> None:
    page = Page(1)
    page.event(1, b"only")
    assert parsed([page.bytes(1, flags)]) == page.records


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Pipe]:
    """600 pages of one CPU, with an event at 10, 20, 30, ... each; every third event discarded."""
    made = []
    for n in range(1, 601):
        page = Page(10 * n)
        page.discarded(0, 8) if n % 3 == 0 else page.event(0, b"line")
        made.append(page.bytes(10 * n))
    (tmp_path / "trace_pipe_raw").write_bytes(b"".join(made))
    opened = Pipe(0, tmp_path / "trace_pipe_raw", PAGE)
    yield opened
    os.close(opened.fd)


def times(batches: list[Events]) -> list[int]:
    return [time for events in batches for time in events.time.tolist()]


def test_a_step_reads_so_many_pages_and_says_how_far_it_came(pipe: Pipe) -> None:
    found, pages = pipe.read(until=1 << 60, most=5)
    assert (times(found), pages, pipe.reached, pipe.behind) == ([10, 20, 40, 50], 5, 50, True)
    found, pages = pipe.read(until=1 << 60, most=1)  # it has nothing but a discarded event
    assert (times(found), pages, pipe.reached, pipe.behind) == ([], 1, 60, True)
    found, pages = pipe.read(until=5 << 20, most=1 << 20)
    assert (len(times(found)), pages, pipe.reached, pipe.behind) == (396, 594, 5 << 20, False)


def test_reading_ends_soon_after_what_is_younger(pipe: Pipe) -> None:
    """Whoever writes as fast as we read: what lay there when reading began is all that is read."""
    found, pages = pipe.read(until=100, most=1 << 20)
    assert pages == 256  # a batch
    assert times(found)[-1] == 2560
    assert not pipe.behind


def test_an_empty_page_has_nothing() -> None:
    assert parsed([Page(1).bytes(1)]) == []


@st.composite
def filled_pages(draw: st.DrawFn) -> list[tuple[bytes, list[tuple[int, bytes]]]]:
    made = []
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, 1 << 58))
        page = Page(start)
        for kind in draw(st.lists(st.sampled_from("eeeexds"), max_size=25)):
            delta = draw(st.integers(0, (1 << 27) - 1))
            size = draw(st.integers(1, 150))
            if len(page.body) + size + 24 > PAGE - 16:
                break
            if kind == "e":
                page.event(delta, draw(st.binary(min_size=size, max_size=size)))
            elif kind == "x":
                page.extend(delta + (draw(st.integers(0, 1 << 20)) << 27))
            elif kind == "d":
                page.discarded(delta or 1, size * 4 if len(page.body) + size * 4 + 24 < PAGE else 4)
            else:
                page.stamp(page.time + delta)
        made.append((page.bytes(start), page.records))
    return made


@settings(deadline=None)
@given(filled_pages())
def test_pages_read_in_step_read_like_pages_read_alone(pages: list[tuple[bytes, list[tuple[int, bytes]]]]) -> None:
    wanted = [record for _, records in pages for record in records]
    assert sorted(parsed([page for page, _ in pages])) == sorted(wanted)


def test_fields_are_read_where_the_format_says() -> None:
    data = np.frombuffer(struct.pack("<HBBi", 7, 1, 2, -5) + struct.pack("<HBBi", 8, 3, 4, 99), np.uint8)
    one = np.array([0, 8], np.int64)
    events = Events(data, one, one * 0 + 8, one, one.astype(np.int16))
    assert events.read(Field(0, 2), "<u2").tolist() == [7, 8]
    assert events.read(Field(4, 4), "<i4").tolist() == [-5, 99]


def test_joined_batches_keep_their_bytes() -> None:
    first, second = Page(1), Page(5)
    first.event(1, b"one1")
    second.event(1, b"two2")
    parts = [
        parse_pages(np.frombuffer(page.bytes(start), np.uint8).reshape(1, PAGE), cpu)
        for cpu, (page, start) in enumerate([(first, 1), (second, 5)])
    ]
    events = join(parts)
    texts = [
        events.data[s : s + n].tobytes() for s, n in zip(events.start.tolist(), events.length.tolist(), strict=True)
    ]
    assert texts == [b"one1", b"two2"]
    assert events.cpu.tolist() == [0, 1]
    assert len(join([])) == 0
