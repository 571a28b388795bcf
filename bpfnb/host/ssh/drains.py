"""What a session's tracer shares through memory, copied into frames: rows of segments, and numbers."""

from __future__ import annotations

import mmap
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

from bpfnb.host.ssh.frames import Rows as Frame
from bpfnb.host.ssh.outgoing import Outgoing
from bpfnb.protocol.messages import COSTS_EACH, COSTS_HEAD, CostsAdded, CountersAdded, SegmentAdded
from bpfnb.protocol.schema import Rows, Schema
from bpfnb.protocol.segments import SegmentReader

__all__ = ["Drains"]

_MAX_BATCH = 1 << 20  # bytes of rows and text in a frame; a single event may be more
_TRIES = 200


class Drains:
    """A session's. For one thread at a time. ``received``: called for each segment that is received."""

    def __init__(self, session: int, outgoing: Outgoing, received: Callable[[], None]) -> None:
        self._session = session
        self._outgoing = outgoing
        self._received = received
        self._outputs: dict[str, _Output] = {}
        self._memory: list[_Memory] = []

    def add_segment(self, message: SegmentAdded, fd: int) -> None:
        """Add a segment; an output's first is announced."""
        output = self._outputs.get(message.output)
        if output is None:
            assert message.schema  # the tracer's first has one
            output = _Output(self._session, message.output, message.schema, self._outgoing, self._received)
            self._outputs[message.output] = output
        output.add(message, fd)

    def add_memory(self, message: CountersAdded | CostsAdded, fd: int) -> None:
        self._memory.append(_Memory(message, fd))

    def drain(self) -> None:
        """Send what rows there are, as far as they may be sent; the others are counted."""
        for output in self._outputs.values():
            output.drain()

    def copy_memory(self) -> None:
        """Send the numbers that have changed."""
        for memory in self._memory:
            data = memory.changed()
            if data is not None:
                self._outgoing.put_memory(self._session, memory.kind, data)

    def finish(self) -> None:
        """Send what there is a last time, and let go of the memory."""
        for output in self._outputs.values():
            output.drain(last=True)
        self.copy_memory()
        self._outputs.clear()
        self._memory.clear()


class _Output:
    """One output's segments that are not drained yet. ``_dropped``: rows that could not be sent."""

    def __init__(
        self, session: int, name: str, schema: Schema, outgoing: Outgoing, received: Callable[[], None]
    ) -> None:
        self._session, self._name, self._schema = session, name, schema
        self._outgoing = outgoing
        self._received = received
        self._segments: deque[SegmentReader] = deque()
        self._epoch = 0
        self._dropped = 0
        self._said = 0  # the losses that were sent last

    def add(self, message: SegmentAdded, fd: int) -> None:
        """Add a segment. It is received once those before it are drained, so there are never many."""
        self._segments.append(SegmentReader(fd, self._schema, message.layout, message.epoch_ns))
        if len(self._segments) == 1:
            self._received()

    def drain(self, *, last: bool = False) -> None:
        while self._segments:
            segment = self._segments[0]
            complete = len(self._segments) > 1  # asked first: what is read next is then all there will be
            segment.read(self._send)
            if not complete:
                break
            self._segments.popleft()
            self._received()
        if self._lost != self._said and (last or self._outgoing.allows(0)):
            self._put(b"", b"")

    @property
    def _lost(self) -> int:
        return (self._segments[-1].lost if self._segments else 0) + self._dropped

    def _send(self, rows: Rows, text: Rows, begin: int, epoch_ns: int | None) -> None:
        """Send rows in batches. ``begin``: where the first one's text begins."""
        self._epoch = self._epoch if epoch_ns is None else epoch_ns
        ends = self._ends(rows) if self._schema.text_end >= 0 else None
        at = 0
        while at < len(rows):
            end = self._batch(rows, at, ends, begin)
            until = begin if ends is None else int(ends[end - 1])
            if self._outgoing.allows(rows[at:end].nbytes + until - begin):
                batch = rows[at:end].copy()
                if ends is not None:
                    self._ends(batch)[:] -= begin
                self._put(batch.tobytes(), text[begin:until].tobytes())
            else:
                self._dropped += end - at
            at, begin = end, until

    def _batch(self, rows: Rows, at: int, ends: npt.NDArray[np.int64] | None, begin: int) -> int:
        """Return where the batch from row ``at`` on ends."""
        end = min(at + max(_MAX_BATCH // self._schema.size, 1), len(rows))
        if ends is not None:
            end = min(end, int(np.searchsorted(ends, begin + _MAX_BATCH, side="right")))
        return max(end, at + 1)

    def _put(self, rows: bytes, text: bytes) -> None:
        self._said = self._lost
        frame = Frame(self._session, self._name, rows, text, self._said, self._dropped, self._epoch)
        self._outgoing.put_rows(frame)

    def _ends(self, rows: Rows) -> npt.NDArray[np.int64]:
        at = self._schema.text_end
        return rows[:, at : at + 8].view(np.int64)[:, 0]


class _Memory:
    """64-bit numbers that a tracer or its programs write."""

    def __init__(self, message: CountersAdded | CostsAdded, fd: int) -> None:
        costs = isinstance(message, CostsAdded)
        self.kind: Literal["counters", "costs"] = "costs" if costs else "counters"
        words = message.words if isinstance(message, CountersAdded) else COSTS_HEAD + COSTS_EACH * len(message.programs)
        self._words = np.frombuffer(mmap.mmap(fd, 8 * words, prot=mmap.PROT_READ), np.int64)
        self._before = bytes(8 * words)

    def changed(self) -> bytes | None:
        """Return what is there, None where that is what it was."""
        data = self._read()
        if data == self._before:
            return None
        self._before = data
        return data

    def _read(self) -> bytes:
        for _ in range(_TRIES):
            before = int(self._words[0])
            data = self._words.tobytes()
            if self.kind == "counters" or (before % 2 == 0 and before == int(self._words[0])):
                break  # costs are odd while they are being written: see CostsAdded
            time.sleep(0.0001)
        return data
