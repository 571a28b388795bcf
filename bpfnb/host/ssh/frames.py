"""Frames: what near and far send each other through two pipes, and how.

far begins with a line (``MAGIC``); what a login shell has printed before is skipped. Then both send frames: the bytes
that follow, how many they are unpacked, whether they are packed (zlib, level 1), and a msgpack body. Never pickle. Both
numbers are bounded, and no more is unpacked than was announced.
"""

from __future__ import annotations

import os
import re
import struct
import threading
import zlib
from collections.abc import Callable
from typing import Generic, Literal, TypeVar

import msgspec
from msgspec import Struct

from bpfnb.protocol.messages import FromTracer, Request

__all__ = [
    "MAGIC",
    "MAX_MAP",
    "VERSION",
    "Asked",
    "Bye",
    "Died",
    "FrameError",
    "Frames",
    "FromFar",
    "Memory",
    "Passed",
    "Piece",
    "Rows",
    "Start",
    "Taken",
    "Tick",
    "ToFar",
    "Tock",
    "Up",
    "skip_noise",
]

VERSION = 1
MAGIC = b"\0bpfnb-far %d\n" % VERSION
MAX_MAP = 4 << 30  # bytes of a map

_ANY_MAGIC = re.compile(rb"\0bpfnb-far (\d{1,9})\n")
_HEADER = struct.Struct("<IIB")
_MAX_FRAME = 72 << 20  # a message has 64 MiB at most, an event with its text as well
_MAX_NOISE = 64 << 10
_MIN_PACKED = 256  # bytes that are worth packing
_PAYS = 0.9  # packed to at most so much
_SKIPPED = 15  # frames of a kind sent as they are after one that did not pay

Incoming = TypeVar("Incoming")


class FrameError(EOFError):
    """The other side does not speak this."""


# --- far -> near --------------------------------------------------------------------------------------------------


class Up(Struct, tag=True, frozen=True):
    """A tracer has been started. ``reached``: how, in words."""

    reached: str


class Passed(Struct, tag=True, frozen=True):
    """A message of the tracer's, as it is. What travelled along is sent in other frames: after the first SegmentAdded
    of an output ``Rows``, after CountersAdded and CostsAdded ``Memory``, before MapRead each ``Piece``."""

    message: FromTracer


class Rows(Struct, tag=True, frozen=True):
    """Rows of an output, and their text: the words at ``Schema.text_end`` count from its beginning.

    ``lost``: events that could not be delivered so far, at that host; ``dropped`` of them because near did not take
    what was sent before. ``epoch_ns``: see SegmentAdded.
    """

    session: int
    output: str
    rows: bytes
    text: bytes
    lost: int
    dropped: int
    epoch_ns: int


class Memory(Struct, tag=True, frozen=True):
    """What the memory of CountersAdded or CostsAdded is now."""

    session: int
    kind: Literal["counters", "costs"]
    data: bytes


class Piece(Struct, tag=True, frozen=True):
    """The next part of the entries of a map, whose MapRead follows. ``total``: the bytes of all."""

    total: int
    data: bytes


class Tock(Struct, tag=True, frozen=True):
    """The answer to a Tick. ``clock``: CLOCK_MONOTONIC there, in nanoseconds."""

    number: int
    clock: int


class Died(Struct, tag=True, frozen=True):
    """The tracer is gone; far ends. The fields are TracerDied's."""

    message: str
    status: int | None = None
    output: str = ""
    hint: str | None = None


# --- near -> far --------------------------------------------------------------------------------------------------


class Start(Struct, tag=True, frozen=True):
    """The first frame. ``silence``: seconds after which far ends if it hears nothing."""

    silence: float


class Asked(Struct, tag=True, frozen=True):
    """A request to the tracer."""

    message: Request


class Taken(Struct, tag=True, frozen=True):
    """So many more ``Rows`` have been taken, in the order they were sent."""

    frames: int


class Tick(Struct, tag=True, frozen=True):
    """Sent every few seconds, so that each side knows that the other is there. Answered by Tock at once."""

    number: int


class Bye(Struct, tag=True, frozen=True):
    """End the tracer, and yourself once it has ended."""


FromFar = Up | Passed | Rows | Memory | Piece | Tock | Died
ToFar = Start | Asked | Taken | Tick | Bye


class Frames(Generic[Incoming]):
    """Both pipes, whose descriptors stay the caller's. ``send`` may be called from any thread, ``receive`` from one.

    ``on_bytes``: called with each read that brought something. ``sent``: bytes sent so far.
    """

    def __init__(
        self, incoming: int, outgoing: int, kind: object, on_bytes: Callable[[], object] = lambda: None
    ) -> None:
        self._in, self._out = incoming, outgoing
        self._on_bytes = on_bytes
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Incoming] = msgspec.msgpack.Decoder(kind)
        self._sending = threading.Lock()
        self._skip: dict[type, int] = {}
        self.sent = 0

    def send(self, frame: Struct) -> None:
        """Send a frame; wait until the pipe has taken it. OSError when the other end is gone."""
        body = self._encoder.encode(frame)
        with self._sending:
            packed = self._packed(type(frame), body)
            data = body if packed is None else packed
            self._write(_HEADER.pack(len(data), len(body), packed is not None) + data)

    def receive(self) -> Incoming:
        """Wait for a frame. EOFError when the other end is gone; FrameError when it speaks something else."""
        size, unpacked, packed = _HEADER.unpack(self._read(_HEADER.size))
        if size > _MAX_FRAME or unpacked > _MAX_FRAME or packed > 1 or (not packed and size != unpacked):
            raise FrameError("a frame of impossible size")
        body = self._read(size)
        try:
            return self._decoder.decode(_unpacked(body, unpacked) if packed else body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, zlib.error) as error:
            raise FrameError(f"a frame that means nothing: {error}") from None

    def _packed(self, kind: type, body: bytes) -> bytes | None:
        """Return it packed, None where that does not pay, or did not lately."""
        if len(body) < _MIN_PACKED:
            return None
        if self._skip.get(kind):
            self._skip[kind] -= 1
            return None
        packed = zlib.compress(body, 1)
        if len(packed) <= len(body) * _PAYS:
            return packed
        self._skip[kind] = _SKIPPED
        return None

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(self._out, left) :]
        self.sent += len(data)

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        left = memoryview(data)
        while left:
            try:
                count = os.readv(self._in, [left])
            except OSError as error:
                raise EOFError(str(error)) from None
            if not count:
                raise EOFError("the connection has ended")
            self._on_bytes()
            left = left[count:]
        return data


def _unpacked(data: bytearray, size: int) -> bytes:
    unpacker = zlib.decompressobj()
    body = unpacker.decompress(data, size + 1)  # one more than announced, to see that there is none
    if len(body) != size or not unpacker.eof:
        raise FrameError("a frame that lies about its size")
    return body


def skip_noise(incoming: int) -> bytes:
    """Read up to the line that far begins with. Return what came before. EOFError, which has that as its argument, when
    the other end is gone before; FrameError for another version's line, or too much before."""
    seen = bytearray()
    while not (found := _ANY_MAGIC.search(seen)):
        if len(seen) > _MAX_NOISE:
            raise FrameError("it printed more than 64 KiB before it began")
        byte = os.read(incoming, 1)  # not beyond the line's end
        if not byte:
            raise EOFError(bytes(seen))
        seen += byte
    if int(found[1]) != VERSION:
        raise FrameError(f"its frames are of version {int(found[1])}, those of this bpfnb of version {VERSION}")
    return bytes(seen[: found.start()])
