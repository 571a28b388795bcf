"""Frames through pipes; what far has to send, in order; the other host's clock."""

from __future__ import annotations

import mmap
import os
import random
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
import pytest
from scripted_far import SCHEMA, frame, rows

from bpfnb.host.ssh.deliveries import Assembly, Delivery
from bpfnb.host.ssh.frames import (
    MAGIC,
    Asked,
    FrameError,
    Frames,
    FromFar,
    Memory,
    Passed,
    Piece,
    Rows,
    Taken,
    ToFar,
    skip_noise,
)
from bpfnb.host.ssh.offset import Offset
from bpfnb.host.ssh.outgoing import Outgoing, Window
from bpfnb.protocol import messages
from bpfnb.protocol.segments import LOST, ROWS, TEXT, Layout

MIB = 1 << 20


class Link:
    """Both ends of a pipe."""

    def __init__(self) -> None:
        self.incoming, self.outgoing = os.pipe()
        self.far: Frames[ToFar] = Frames(self.incoming, self.outgoing, ToFar)
        self.near: Frames[FromFar] = Frames(self.incoming, self.outgoing, FromFar)

    def close(self) -> None:
        for fd in (self.incoming, self.outgoing):
            os.close(fd)


@pytest.fixture
def link() -> Iterator[Link]:
    made = Link()
    yield made
    made.close()


def test_frames_come_as_they_were_sent(link: Link) -> None:
    noise = random.Random(1).randbytes(20_000)
    sent = [
        Rows(1, "events", bytes(30_000), b"text" * 1000, 3, 2, -5),
        Rows(1, "events", noise, b"", 3, 2, 7),
        Rows(1, "events", bytes(30_000), b"", 3, 2, 7),
        Memory(2, "costs", bytes(64)),
        Passed(messages.Noted(1, "x")),
    ]
    before = 0
    for one, most in zip(sent, [2000, 21_000, 31_000, 200, 200], strict=True):
        link.far.send(one)
        assert link.near.receive() == one
        assert link.far.sent - before < most
        before = link.far.sent
    link.near.send(Asked(messages.Stop(1, 2)))
    assert link.far.receive() == Asked(messages.Stop(1, 2))


def test_a_message_of_the_other_direction_is_refused(link: Link) -> None:
    link.near.send(Taken(1))
    with pytest.raises(FrameError, match="means nothing"):
        link.near.receive()


@pytest.mark.parametrize(
    "said",
    [
        struct.pack("<IIB", 1 << 31, 1 << 31, 0),
        struct.pack("<IIB", 10, 1 << 31, 1),
        struct.pack("<IIB", 10, 20, 0),
        struct.pack("<IIB", 1, 1, 7),
        frame(b"\xc1" * 300),
        frame(b"\x80\x04cos\nsystem\n(S'true'\ntR." + bytes(300)),
        frame(msgspec.msgpack.encode(["x"] * 100)),
        struct.pack("<IIB", 5, 300, 1) + b"noise",
    ],
    ids=lambda said: said[:16].hex(),
)
def test_what_is_no_frame_is_refused(link: Link, said: bytes) -> None:
    threading.Thread(target=os.write, args=(link.outgoing, said), daemon=True).start()  # larger than the pipe
    with pytest.raises(FrameError):
        link.near.receive()


@pytest.mark.parametrize("announced", [100, 1000, 1 << 22, 5 << 20])
def test_no_more_is_unpacked_than_was_announced(link: Link, announced: int) -> None:
    body = msgspec.msgpack.encode(Piece(1 << 22, bytes(1 << 22)))
    threading.Thread(target=os.write, args=(link.outgoing, frame(body, announced=announced)), daemon=True).start()
    tracemalloc.start()
    with pytest.raises(FrameError, match="lies about its size"):
        link.near.receive()
    assert tracemalloc.get_traced_memory()[1] < 2 * announced + MIB
    tracemalloc.stop()


SESSION = 5


def announced(output: str = "events") -> messages.SegmentAdded:
    return messages.SegmentAdded(SESSION, output, SCHEMA, Layout(1, 1), 0)


@pytest.mark.parametrize(
    "lie",
    [
        lambda d: d.write(Rows(SESSION, "events", b"half", b"", 0, 0, 0)),
        lambda d: d.write(rows(SESSION, 1, end=1 << 40)),
        lambda d: d.write(Rows(SESSION, "events", struct.pack("<qqqq", 1, 3, 1, 2), b"ro", 0, 0, 0)),
        lambda d: d.write(Rows(SESSION, "events", struct.pack("<qqqq", 1, -3, 1, 2), b"ro", 0, 0, 0)),
        lambda d: d.write(rows(SESSION, 1, output="other")),
        lambda d: d.announce(announced()),
        lambda d: d.announce(messages.SegmentAdded(SESSION, "other", None, Layout(1, 1), 0)),
        lambda d: d.update(Memory(SESSION, "costs", bytes(64))),
        lambda d: d.share(messages.CountersAdded(SESSION, 1 << 50)),
        lambda d: Assembly().add(Piece(1 << 60, b"")),
        lambda d: Assembly().add(Piece(-1, b"")),
        lambda d: Assembly().add(Piece(1, b"12")),
    ],
)
def test_what_a_host_cannot_mean_is_refused_and_the_rest_kept(lie: Callable[[Delivery], None]) -> None:
    taken = []
    segments: list[mmap.mmap] = []
    delivery = Delivery(
        SESSION, 1 << 20, lambda message, fds: segments.append(mmap.mmap(fds[0], 0)), lambda: taken.append(1)
    )
    delivery.announce(announced())
    delivery.write(rows(SESSION, 7))
    with pytest.raises(FrameError):
        lie(delivery)
    head = np.frombuffer(segments[0], np.uint64, 3)
    assert list(head[[ROWS, TEXT, LOST]]) == [1, 3, 0]
    assert len(taken) == 1


def test_what_a_shell_prints_before_is_skipped(link: Link) -> None:
    os.write(link.outgoing, b"motd\n\0bpfnb-fa\n" + MAGIC)
    link.far.send(Passed(messages.Pong(1)))
    assert skip_noise(link.incoming) == b"motd\n\0bpfnb-fa\n"
    assert link.near.receive() == Passed(messages.Pong(1))
    os.write(link.outgoing, b"\0bpfnb-far 999\n")
    with pytest.raises(FrameError, match="version 999"):
        skip_noise(link.incoming)


def sent_by(put: Callable[[Outgoing], None], until: type) -> list[object]:
    """What is sent, up to the first of a kind, of what was put before anything could be sent."""
    link = Link()
    blocked = os.write(link.outgoing, bytes(os.fpathconf(link.outgoing, "PC_PIPE_BUF") * 16))  # the pipe is full
    broken = threading.Event()
    outgoing = Outgoing(link.far, broken.set)
    outgoing.put(Passed(messages.Pong(0)))  # which the thread now tries to send
    put(outgoing)
    left = blocked
    while left:
        left -= len(os.read(link.incoming, left))
    got: list[object] = []
    while not (got and isinstance(got[-1], Passed) and isinstance(got[-1].message, until)):
        got.append(link.near.receive())
    os.close(link.incoming)
    outgoing.put(Passed(messages.Pong(9)))
    broken.wait(10)
    os.close(link.outgoing)
    return got[1:]


def test_rows_overtake_maps_and_nothing_else() -> None:
    """GIVEN a map, an answer, rows and the end of a session to send WHEN the link takes them THEN rows go between the
    map's pieces, and all else in its order: the rows before the end, the map before what was put behind it."""
    entries = random.Random(1).randbytes(200_000)
    fd = os.memfd_create("map")
    os.write(fd, entries)

    def put(outgoing: Outgoing) -> None:
        outgoing.put_map(messages.MapRead(1, 5, "m", 1), fd)
        outgoing.put(Passed(messages.Pong(2)))
        for number in range(3):
            outgoing.put_rows(Rows(5, "events", bytes([number]), b"", 0, 0, 0))
        for number in range(10):
            outgoing.put_memory(5, "counters", bytes([number]))
        outgoing.put(Passed(messages.Stopped(3)))

    got = sent_by(put, messages.Stopped)
    os.close(fd)
    pieces = [frame for frame in got if isinstance(frame, Piece)]
    assert b"".join(piece.data for piece in pieces) == entries
    assert [frame.rows for frame in got if isinstance(frame, Rows)] == [b"\0", b"\1", b"\2"]
    assert [frame.data for frame in got if isinstance(frame, Memory)] == [bytes([9])]  # the last is all that counts
    names = [type(frame.message if isinstance(frame, Passed) else frame).__name__ for frame in got]
    assert names.index("Rows") < names.index("MapRead")
    assert names.index("Piece") < names.index("Rows") or names[0] == "Rows"
    assert [name for name in names if name in ("MapRead", "Pong", "Stopped")] == ["MapRead", "Pong", "Stopped"]
    assert names[-1] == "Stopped"
    assert max(i for i, name in enumerate(names) if name == "Piece") < names.index("MapRead")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_window_is_as_large_as_the_link_is_quick() -> None:
    """GIVEN links that take 100 MB/s and 1 MB/s WHEN more is made than they take THEN much is under way on the one, on
    the other what it takes in a few seconds; never more than 64 MiB, and one batch always goes."""
    limits = []
    for rate in (100 * MIB, MIB):
        clock = Clock()
        window = Window(clock)
        waiting = 0
        highest = 0
        for _ in range(2000):
            while window.allows(MIB):
                window.add(MIB)
                waiting += 1
            highest = max(highest, waiting)
            clock.now += MIB / rate
            window.taken(1)
            waiting -= 1
        limits.append(window.limit)
        assert highest <= 64
    assert limits[0] == 64 * MIB
    assert MIB // 2 <= limits[1] <= 4 * MIB
    window = Window(Clock())
    assert window.allows(1 << 40)
    window.add(1 << 40)
    assert not window.allows(1)


def test_the_clock_is_taken_from_the_quickest_answer_and_its_error_is_true() -> None:
    """GIVEN a clock that is ahead, and answers that take long one way WHEN they are added THEN the offset is never
    further from the truth than the error says, and as good as the quickest answer."""
    dice = random.Random(3)
    offset, truth, now = Offset(), 123_456_789_012_345, 10**15
    for _ in range(200):
        there, back = (int(dice.expovariate(1e-6)) + 20_000 for _ in range(2))
        offset.add(now, now + there + back, now + there + truth)
        assert abs(offset.ns - truth) <= offset.error_ns
        now += 2 * 10**9
    assert offset.error_ns < 30_000_000
