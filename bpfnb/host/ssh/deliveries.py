"""A session of another host, as its notebook gets it: rows in segments, numbers in memory, maps in memfds."""

from __future__ import annotations

import mmap
import os
import weakref
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from msgspec import Struct

from bpfnb.host.ssh.frames import MAX_MAP, FrameError, Memory, Piece
from bpfnb.host.ssh.frames import Rows as Frame
from bpfnb.protocol.credit import Credit
from bpfnb.protocol.messages import COSTS_CLOCK, COSTS_EACH, COSTS_HEAD, CostsAdded, CountersAdded, SegmentAdded
from bpfnb.protocol.schema import Schema
from bpfnb.protocol.segments import Layout, SegmentWriter

__all__ = ["Assembly", "Delivery", "Send"]

Send = Callable[[Struct, Sequence[int]], None]
_MAX_HELD = 8 << 20  # bytes of rows that wait for the notebook to acknowledge segments
_MAX_WORDS = 1 << 20  # of counters


class Delivery:
    """Writes what arrives of a session. For one thread at a time; ``acknowledge`` for any.

    ``taken``: called for each Rows frame that is written. Rows that there is no credit for wait a while, and are then
    counted as lost. ``clock_ns``: how far the host's clock is ahead, for the headers of segments and the costs.
    """

    def __init__(self, session: int, keep: int, send: Send, taken: Callable[[], None]) -> None:
        self._session = session
        self._send = send
        self._taken = taken
        self._credit = Credit(keep)
        self._outputs: dict[str, _Output] = {}
        self._memory: dict[str, mmap.mmap] = {}
        self._held: deque[Frame] = deque()
        self._held_bytes = 0
        self.clock_ns = 0

    def announce(self, message: SegmentAdded) -> None:
        """Begin an output."""
        if message.schema is None or message.schema.size < 1 or message.output in self._outputs:
            raise FrameError(f"an output announced twice, or without its columns: {message.output!r}")
        self._outputs[message.output] = _Output(self._session, message, self._credit, self._send)
        self.set_clock(self.clock_ns)

    def share(self, message: CountersAdded | CostsAdded) -> None:
        """Make the memory of a message, and pass it on."""
        costs = isinstance(message, CostsAdded)
        words = COSTS_HEAD + COSTS_EACH * len(message.programs) if isinstance(message, CostsAdded) else message.words
        if not 0 < words <= _MAX_WORDS:
            raise FrameError(f"memory of {words} numbers")
        fd = os.memfd_create("bpfnb-numbers", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, 8 * words)
            self._memory["costs" if costs else "counters"] = mmap.mmap(fd, 8 * words)
            self._put_clock()
            self._send(message, [fd])
        finally:
            os.close(fd)

    def update(self, frame: Memory) -> None:
        memory = self._memory.get(frame.kind)
        if memory is None or len(memory) != len(frame.data):
            raise FrameError(f"numbers that were not announced: {frame.kind}")
        if frame.kind == "counters":
            memory[:] = frame.data
            return
        count = np.frombuffer(memory, np.int64, 1)  # odd while they are being written: see CostsAdded
        count[0] |= 1
        memory[8:] = frame.data[8:]
        self._put_clock()
        count[0] += 1

    def write(self, frame: Frame) -> None:
        """Write rows, or hold them while they would be lost: the notebook may be busy for a moment."""
        self._held.append(frame)
        self._held_bytes += len(frame.rows) + len(frame.text)
        self.flush()

    def flush(self, *, last: bool = False) -> None:
        """Write what waits, as far as there is credit for it; ``last``: all."""
        while self._held:
            frame = self._held[0]
            output = self._outputs.get(frame.output)
            if output is None:
                raise FrameError(f"rows of an output that was not announced: {frame.output!r}")
            if output.writer.blocked and not last and self._held_bytes <= _MAX_HELD:
                return
            output.write(self._held.popleft())
            self._held_bytes -= len(frame.rows) + len(frame.text)
            self._taken()

    def acknowledge(self, segments: int) -> None:
        self._credit.acknowledge(segments)

    def set_clock(self, ns: int) -> None:
        self.clock_ns = ns
        self._put_clock()
        for output in self._outputs.values():
            output.writer.set_clock(ns)

    def _put_clock(self) -> None:
        if memory := self._memory.get("costs"):
            np.frombuffer(memory, np.int64)[COSTS_CLOCK] = self.clock_ns

    def dropped(self) -> list[str]:
        """Return the outputs with rows that the link did not take, each once."""
        return [name for name, output in self._outputs.items() if output.newly_dropped()]

    def close(self) -> None:
        self.flush(last=True)
        for output in self._outputs.values():
            output.writer.close()
        self._outputs.clear()
        self._memory.clear()


class _Output:
    def __init__(self, session: int, first: SegmentAdded, credit: Credit, send: Send) -> None:
        self._first: Schema | None = first.schema
        self._session, self._name, self._send = session, first.output, send
        assert first.schema
        self._schema = first.schema
        self._epoch = first.epoch_ns
        self._dropped = 0
        self._said = False
        self.writer = SegmentWriter(first.schema, self._publish, lambda: self._epoch, credit)

    def write(self, frame: Frame) -> None:
        self._epoch = frame.epoch_ns
        self._dropped = frame.dropped
        if frame.rows:
            self.writer.append(*self._arrays(frame))
        self.writer.set_lost(frame.lost)

    def newly_dropped(self) -> bool:
        now = self._dropped > 0 and not self._said
        self._said |= now
        return now

    def _arrays(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """Return a frame's rows and text; FrameError where they do not fit together."""
        size, at = self._schema.size, self._schema.text_end
        if len(frame.rows) % size:
            raise FrameError("half a row")
        rows = np.frombuffer(frame.rows, np.uint8).reshape(-1, size)
        text = np.frombuffer(frame.text, np.uint8)
        if at >= 0:
            ends = rows[:, at : at + 8].view(np.int64)[:, 0]
            if ends[0] < 0 or ends[-1] != len(text) or (np.diff(ends) < 0).any():
                raise FrameError("texts that end where there are none")
        return rows, text

    def _publish(self, layout: Layout, fd: int) -> None:
        self._send(SegmentAdded(self._session, self._name, self._first, layout, self._epoch), [fd])
        self._first = None


class Assembly:
    """A map that arrives in pieces. ``take`` gives it away, whole."""

    def __init__(self) -> None:
        self._fd = -1
        self._owned: weakref.finalize[[int], Assembly] | None = None  # closes it, should nobody take it
        self._size = self._total = 0

    def add(self, piece: Piece) -> None:
        if self._fd < 0:
            if not 0 <= piece.total <= MAX_MAP:
                raise FrameError(f"a map of {piece.total:,} bytes")
            self._fd = os.memfd_create("bpfnb-map", os.MFD_CLOEXEC)
            self._owned = weakref.finalize(self, os.close, self._fd)
            self._size, self._total = 0, piece.total
        if self._size + len(piece.data) > self._total:
            raise FrameError("more of a map than announced")
        left = memoryview(piece.data)
        while left:
            written = os.pwrite(self._fd, left, self._size)
            self._size, left = self._size + written, left[written:]

    def take(self) -> int:
        """Return the memfd of the map that is complete, which the caller closes."""
        if self._fd < 0:
            return os.memfd_create("bpfnb-map", os.MFD_CLOEXEC)  # no entries at all
        if self._size != self._total:
            raise FrameError("less of a map than announced")
        fd, self._fd = self._fd, -1
        if self._owned:
            self._owned.detach()
        return fd
