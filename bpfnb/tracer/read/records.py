"""Split the bytes of the kernel's buffers into records, and turn records into rows, many at a time.

Nothing here uses the kernel or a descriptor. A buffer holds records end to end. Each begins with an 8-byte header and
is a multiple of 8 bytes long. Nearly always many records of equal length follow each other; these are rows as they lie.
Where lengths change, headers are followed one by one, and everything else is done for all records at once.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import replace as replaced
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from bpfnb.protocol.schema import Number, Rows, Schema, Tail
from bpfnb.protocol.segments import SegmentWriter

__all__ = [
    "FOREVER",
    "NONE",
    "PERF",
    "RING",
    "SLACK_NS",
    "Bytes",
    "Format",
    "Ints",
    "OpenWriter",
    "Records",
    "RowFormat",
    "cut",
    "in_order",
    "join",
    "merge",
    "with_time",
]

Bytes = npt.NDArray[np.uint8]  # one-dimensional
Ints = npt.NDArray[np.int64]
OpenWriter = Callable[[Schema], SegmentWriter]  # the writer stays the caller's to close

# An event's time is read before its record becomes visible, and an event in a ring is stamped after its space is
# reserved. In between, the CPU may be interrupted, or be a virtual one that is not running.
SLACK_NS = 5_000_000
FOREVER = (1 << 63) - 1

_SAMPLE = 256  # headers compared before all are; where these differ, lengths are mixed
_TIME = "(time)"
_MIN_WALK, _MAX_WALK = 64, 2048  # records followed one by one before equal lengths are tried again


@dataclass(frozen=True)
class Format:
    """The layout of a record's header.

    The header begins with a word of type ``word``. ``size`` is the (shift, mask) of the record's length in it, to which
    ``header`` bytes are added. Records with ``word & kind[0] == kind[1]`` are events. A record with a bit of ``busy``
    is still being written.
    """

    word: type[np.uint32] | type[np.uint64]
    size: tuple[int, int]
    header: int
    kind: tuple[int, int]
    busy: int

    def length(self, words: Any) -> Any:
        """Return records' lengths in bytes, headers included."""
        return (words >> self.size[0] & self.size[1]) + self.header

    @property
    def bits(self) -> int:
        """The bits of the first word that matter: length, kind, busy."""
        return self.size[1] << self.size[0] | self.kind[0] | self.busy


# Linux: kernel/bpf/ringbuf.c, struct bpf_ringbuf_hdr. Bit 30: discarded. Bit 31: not submitted yet.
RING = Format(np.uint32, (0, (1 << 30) - 1), 8, (1 << 30, 0), 1 << 31)
# include/uapi/linux/perf_event.h, struct perf_event_header: u32 type (9: PERF_RECORD_SAMPLE), u16 misc, u16 size.
PERF = Format(np.uint64, (48, 0xFFFF), 0, (0xFFFFFFFF, 9), 0)


@dataclass(frozen=True)
class Records:
    """Events in ``data``. The i-th is ``data[start[i]:start[i] + length[i]]``, its header first.

    ``stride``: the bytes from one event's start to the next, where all events take the same space and lie end to end;
    else 0. ``equal``: the events' length, where all are known to have the same; else 0.
    """

    data: Bytes
    start: Ints
    length: Ints
    stride: int = 0
    equal: int = 0

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, part: slice) -> Records:
        """Return a part of the events, without a step."""
        return Records(self.data, self.start[part], self.length[part], self.stride, self.equal)

    def take(self, index: Ints) -> Records:
        """Return the events at these indices."""
        return Records(self.data, self.start[index], self.length[index], equal=self.equal)

    def shortened(self, lengths: Ints) -> Records:
        """Return the same events with other lengths."""
        return replaced(self, length=lengths, equal=0)

    def words(self, at: int) -> Ints:
        """Return the 64-bit word ``at`` bytes from the start of each event."""
        every = self.data.view(np.int64)
        if self.stride and len(self):
            words: Ints = every[int(self.start[0]) + at >> 3 :: self.stride >> 3][: len(self)]
        else:
            words = every[(self.start + at) >> 3]
        return words

    def matrix(self) -> Rows:
        """Return events that have a stride as a matrix, without copying: a row of ``stride`` bytes each."""
        first = int(self.start[0])
        return self.data[first : first + len(self) * self.stride].reshape(-1, self.stride)

    def pieces(self, begin: int) -> Bytes:
        """Return the bytes of each event from its byte ``begin`` on, end to end."""
        memory = self.data.data
        starts, ends = (self.start + begin).tolist(), (self.start + self.length).tolist()
        return np.frombuffer(b"".join([memory[a:b] for a, b in zip(starts, ends, strict=True)]), np.uint8)

    def compact(self) -> Records:
        """Return a copy in memory of its own, which does not keep ``data`` alive."""
        padded = _aligned(self.length)
        data = self.matrix().reshape(-1).copy() if self.stride and len(self) else self._padded(padded)
        return Records(data, np.cumsum(padded) - padded, self.length, self.stride, self.equal)

    def _padded(self, lengths: Ints) -> Bytes:
        memory, starts = self.data.data, self.start.tolist()
        pieces = [memory[at : at + length] for at, length in zip(starts, lengths.tolist(), strict=True)]
        return np.frombuffer(b"".join(pieces), np.uint8)


NONE = Records(np.empty(0, np.uint8), np.empty(0, np.int64), np.empty(0, np.int64))


def cut(data: Bytes, at: int, end: int, form: Format) -> tuple[list[Records], int]:
    """Return the events that begin in ``data[at:end]``, in order, up to the first that is still being written.

    Also return where the first record begins that was not read. Every record that begins before ``end`` has to lie in
    ``data`` completely.
    """
    words: npt.NDArray[Any] = data.view(form.word)
    unit = words.itemsize
    found = []
    walk = _MIN_WALK
    while at < end:
        first = int(words[at // unit])
        if first & form.busy:
            break
        length = form.length(first)
        stride = _aligned(length)
        count = _equal(words[at // unit : -(-end // unit) : stride // unit], form)
        if count >= _SAMPLE or at + count * stride >= end:
            if first & form.kind[0] == form.kind[1]:
                starts = np.arange(at, at + count * stride, stride)
                found.append(Records(data, starts, np.full(count, length), stride, int(length)))
            at += count * stride
            walk = _MIN_WALK
        else:
            starts, at = _followed(words.data, at, end, form, walk)
            walk = min(2 * walk, _MAX_WALK)
            heads = words[starts // unit]
            unready = np.flatnonzero(heads & form.busy)
            if len(unready):
                at, heads, starts = int(starts[unready[0]]), heads[: unready[0]], starts[: unready[0]]
            events = np.flatnonzero(heads & form.kind[0] == form.kind[1])
            found.append(Records(data, starts[events], form.length(heads[events]).astype(np.int64)))
    return [records for records in found if len(records)], at


def join(data: Bytes, parts: Sequence[Records]) -> Records:
    """Join parts of one ``data``, in this order. No bytes are copied."""
    parts = [part for part in parts if len(part)]
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return NONE
    stride = parts[0].stride
    for left, right in pairwise(parts):
        if right.stride != stride or left.start[-1] + stride != right.start[0]:
            stride = 0
    starts, lengths = (np.concatenate(column) for column in zip(*((p.start, p.length) for p in parts), strict=True))
    equal = parts[0].equal if len({part.equal for part in parts}) == 1 else 0
    return Records(data, starts, lengths, stride, equal)


def merge(parts: Sequence[Records]) -> Records:
    """Copy parts of several buffers into one, in this order."""
    copies = [part.compact() for part in parts if len(part)]
    if len(copies) < 2:
        return copies[0] if copies else NONE
    begins = np.cumsum([0, *(len(copy.data) for copy in copies)])
    data = np.concatenate([copy.data for copy in copies])
    return join(
        data, [replaced(copy, data=data, start=copy.start + at) for copy, at in zip(copies, begins[:-1], strict=True)]
    )


class RowFormat:
    """How records become rows. A record is a header of ``header`` bytes followed by a C struct.

    A row is the record as it lies, and ``schema`` describes it. Bytes that a short record lacks are zero. Bytes beyond
    the struct are left out, unless it ends in a flexible array: then they are the row's text.

    ``stamp``: how many bytes, a multiple of 8, submits.py adds behind every event. In rows they begin at ``stamp_at``.
    """

    def __init__(self, struct: Schema, header: int, stamp: int = 0) -> None:
        tails = [column.offset for column in struct.columns if isinstance(column, Tail)]
        self._needed = header + struct.size
        self._stamp = stamp
        self.stamp_at = _aligned(self._needed)
        self._width = self.stamp_at + stamp
        self._tail = header + tails[0] if tails else -1
        self.schema = struct.shifted(header, self._width)
        if tails:
            self.schema = replace(self.schema, size=self._width + 8, text_end=self._width)

    def write(self, records: Records, writer: SegmentWriter) -> None:
        """Append records to a segment as rows."""
        if self._tail < 0:
            writer.append(self._rows(records))
            return
        rows, lengths = self._rows(records), self._lengths(records)
        whole = np.empty((len(rows), self.schema.size), np.uint8)
        whole[:, : self._width] = rows
        whole[:, self._width :].view(np.int64)[:, 0] = np.cumsum(np.maximum(lengths - self._tail, 0))
        writer.append(whole, records.shortened(lengths).pieces(self._tail))

    def stamps(self, records: Records) -> Ints:
        """Return the first word of each event's stamp."""
        if records.equal:
            return records.words(self._stamp_in(records.equal))
        words: Ints = records.data.view(np.int64)[records.start + self._stamp_in(records.length) >> 3]
        return words

    def _stamp_in(self, length: Any) -> Any:
        """Return where the stamp begins in a record of this length."""
        return (length & ~7) - self._stamp

    def _lengths(self, records: Records) -> Ints:
        """Return records' lengths without their stamps and the padding before these."""
        return records.length - self._stamp - 2 * (records.length & 7) if self._stamp else records.length

    def _rows(self, records: Records) -> Rows:
        if self._are_rows(records):
            return records.matrix()[:, : self._width]
        rows = _gathered(records.data, records.start, self.stamp_at)
        lengths = self._lengths(records)
        short = np.flatnonzero(lengths < self._needed)
        if len(short):
            rows[short] *= np.arange(self.stamp_at) < lengths[short, None]
        if not self._stamp:
            return rows
        stamps = _gathered(records.data, records.start + self._stamp_in(records.length), self._stamp)
        return np.concatenate([rows, stamps], axis=1)

    def _are_rows(self, records: Records) -> bool:
        """Return whether the records are rows as they lie."""
        if not records.stride:
            return False
        if not self._stamp:
            return int(records.length.min()) >= self._needed
        length = records.equal
        whole = length - self._stamp - 2 * (length & 7) >= self._needed
        return whole and self._stamp_in(length) == self.stamp_at


def _gathered(data: Bytes, starts: Ints, width: int) -> Rows:
    """Copy ``width`` bytes from each start into a row. Starts and width are multiples of 8."""
    if int(starts.max()) + width > len(data):  # the last row reaches past the end
        data = np.concatenate([data, np.zeros(width, np.uint8)])
    places = (len(data) - width) // 8 + 1
    every: npt.NDArray[np.void] = np.ndarray(places, f"V{width}", data, strides=(8,))
    rows: Rows = every[starts >> 3].view(np.uint8).reshape(-1, width)
    return rows


def _aligned(size: Any) -> Any:
    return (size + 7) & ~7


def _equal(heads: npt.NDArray[Any], form: Format) -> int:
    """Return how many of the first words agree in the bits that matter."""
    for count in (_SAMPLE, len(heads)):
        differ = (heads[:count] ^ heads[0]) & form.bits != 0
        if differ.any():
            return int(differ.argmax())
    return len(heads)


def _followed(words: memoryview, at: int, end: int, form: Format, most: int) -> tuple[Ints, int]:
    """Follow headers from ``at`` on. Return where up to ``most`` records begin, and where the next one does."""
    (shift, mask), more, unit = form.size, form.header + 7, words.itemsize
    starts = array("q")
    for _ in range(most):
        if at >= end:
            break
        starts.append(at)
        at += (words[at // unit] >> shift & mask) + more & ~7
    return np.frombuffer(starts, np.int64), at


# --- time -------------------------------------------------------------------------------------------------------------


def in_order(times: Sequence[npt.NDArray[np.int64]]) -> bool:
    """Return whether times, in several parts, never decrease."""
    if any(right[0] < left[-1] for left, right in pairwise(times)):
        return False
    return not any(np.any(part[1:] < part[:-1]) for part in times)


def with_time(schema: Schema, clock: str, at: int, cpu_at: int) -> Schema:
    """Put columns for a record's time and its CPU before a schema's columns: int64 at ``at``, int16 at ``cpu_at``.

    A negative ``cpu_at`` adds no CPU. The time's name is none that a member can have. The CPU's is "cpu", or "cpu_"
    where a member has that name.
    """
    added = [Number(_TIME, at, "<i8")]
    if cpu_at >= 0:
        name = "cpu"
        while any(column.name == name for column in schema.columns):
            name += "_"
        added.append(Number(name, cpu_at, "<i2"))
    return replace(schema, columns=(*added, *schema.columns), time=_TIME, clock=clock)
