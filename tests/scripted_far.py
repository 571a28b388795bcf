"""What near hears of a host whose CLOCK_MONOTONIC is another, or that lies: a far that plays a script.

    python scripted_far.py AHEAD [LIE]

``AHEAD``: seconds that its clock is ahead. It answers each Load with one output, with a row of the moment, and then
with a ``LIE``, one of LIES.
"""

from __future__ import annotations

import os
import struct
import sys
import time
import zlib
from contextlib import suppress
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from bpfnb import release
from bpfnb.host.ssh.frames import MAGIC, Asked, Bye, Frames, Passed, Rows, Tick, Tock, ToFar, Up
from bpfnb.protocol import messages
from bpfnb.protocol.messages import CostsAdded, Hello, Load, Loaded, SegmentAdded, Stop, Stopped
from bpfnb.protocol.schema import Number, Schema, Tail
from bpfnb.protocol.segments import Layout

SCHEMA = Schema((Number("mono", 0, "<i8"), Tail("text", 16, text=True)), 16, time="mono", text_end=8, clock="submitted")
_WALL_AHEAD = 3600 * 10**9  # of its wall clock


def rows(session: int, stamp: int, *, text: bytes = b"row", end: int = 3, output: str = "events") -> Rows:
    return Rows(session, output, struct.pack("<qq", stamp, end), text, 0, 0, 0)


def frame(body: bytes, *, announced: int | None = None) -> bytes:
    """A packed frame that says to be of another size than it is."""
    packed = zlib.compress(body)
    return struct.pack("<IIB", len(packed), len(body) if announced is None else announced, 1) + packed


LIES = {
    "another session's rows": lambda n: rows(n + 77, 1),
    "a pickle": lambda n: frame(b"\x80\x04cos\nsystem\n(S'true'\ntR." + bytes(300)),
}


def main(ahead: float, lie: str) -> None:
    out = os.dup(1)
    os.dup2(2, 1)
    frames: Frames[ToFar] = Frames(0, out, ToFar)
    os.write(out, MAGIC)
    frames.receive()

    def clock() -> int:
        return time.monotonic_ns() + int(ahead * 1e9)

    loaded = False
    frames.send(Up("by a script"))
    frames.send(Passed(Hello(1, "", "", release.version(), release.build())))
    while True:
        match frames.receive():
            case Tick(number):
                if loaded:  # so a session is there before its clock is known
                    frames.send(Tock(number, clock()))
            case Asked(Load(number)):
                loaded = True
                epoch = time.time_ns() + _WALL_AHEAD - clock()
                frames.send(Passed(SegmentAdded(number, "events", SCHEMA, Layout(1, 1), epoch)))
                row = rows(number, clock())
                frames.send(Passed(CostsAdded(number, ())))
                frames.send(Rows(number, "events", row.rows, row.text, 0, 0, epoch))
                if lie:
                    said = LIES[lie](number)
                    if isinstance(said, bytes):
                        os.write(out, said)
                    else:
                        frames.send(said)
                frames.send(Passed(Loaded(number, (), ())))
            case Asked(Stop(number)):
                frames.send(Passed(Stopped(number)))
            case Bye():
                return
            case Asked(request):
                frames.send(Passed(messages.Pong(request.request)))


if __name__ == "__main__":
    with suppress(EOFError):
        main(float(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
