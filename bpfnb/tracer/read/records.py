"""Records, as the kernel's buffers hold them, found and made into rows: many at a time.

Pure: no kernel, no descriptors. A buffer's bytes hold records end to end, each from an 8-byte header on and each a
multiple of 8 bytes long. Nearly always many equal ones follow each other: then they are rows as they lie. Where lengths
change, headers are followed one by one, and the rest is done for all of them at once.
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
    "Shape",
    "cut",
    "in_order",
    "join",
    "merge",
    "with_time",
]

Bytes = npt.NDArray[np.uint8]  # one-dimensional
Ints = npt.NDArray[np.int64]
OpenWriter = Callable[[Schema], SegmentWriter]  # the writer stays the caller's to close

# An event's time is read before its record can be seen (and a ring's event is stamped after it has got its place). In
# between the CPU may be interrupted, or be a virtual one that does not run.
SLACK_NS = 5_000_000
FOREVER = (1 << 63) - 1

_PROBE = 256  # headers looked at before all are: where these differ, lengths are mixed
_TIME = "(time)"
_WALK = (64, 2048)  # records followed one by one before equal ones are hoped for again: at first, and at most


@dataclass(frozen=True)
class Format:
    """What a record's header says.

    Its first word, ``word``, has the length at ``size``: (shift, mask), and ``header`` bytes have to be added to it.
    Records with ``word & kind[0] == kind[1]`` are events. One with a bit of ``busy`` is still being written.
    """

    word: type[np.uint32] | type[np.uint64]
    size: tuple[int, int]
    header: int
    kind: tuple[int, int]
    busy: int

    def length(self, words: Any) -> Any:
        """Records' lengths, header included."""
        return (words >> self.size[0] & self.size[1]) + self.header

    @property
    def told(self) -> int:
        """All bits that say something."""
        return self.size[1] << self.size[0] | self.kind[0] | self.busy


# Linux: kernel/bpf/ringbuf.c, struct bpf_ringbuf_hdr; bit 30 discards, bit 31 is set until the record is complete.
RING = Format(np.uint32, (0, (1 << 30) - 1), 8, (1 << 30, 0), 1 << 31)
# include/uapi/linux/perf_event.h, struct perf_event_header: u32 type (9: PERF_RECORD_SAMPLE), u16 misc, u16 size.
PERF = Format(np.uint64, (48, 0xFFFF), 0, (0xFFFFFFFF, 9), 0)


@dataclass(frozen=True)
class Records:
    """Events found in ``data``: the i-th is ``data[start[i]:start[i] + length[i]]``, its header first.

    ``stride``: where all take equally much room and lie end to end, how far apart they begin; else 0. ``equal``: where
    all are known to be equally long, how long; else 0.
    """

    data: Bytes
    start: Ints
    length: Ints
    stride: int = 0
    equal: int = 0

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, part: slice) -> Records:
        """Neighbours."""
        return Records(self.data, self.start[part], self.length[part], self.stride, self.equal)

    def take(self, index: Ints) -> Records:
        return Records(self.data, self.start[index], self.length[index], equal=self.equal)

    def shortened(self, lengths: Ints) -> Records:
        """The same, so long each."""
        return replaced(self, length=lengths, equal=0)

    def words(self, at: int) -> Ints:
        """Of each, the 64-bit word ``at`` bytes from its beginning."""
        every = self.data.view(np.int64)
        if self.stride and len(self):
            words: Ints = every[int(self.start[0]) + at >> 3 :: self.stride >> 3][: len(self)]
        else:
            words = every[(self.start + at) >> 3]
        return words

    def matrix(self) -> Rows:
        """Equal ones as they lie: a row of ``stride`` bytes each."""
        first = int(self.start[0])
        return self.data[first : first + len(self) * self.stride].reshape(-1, self.stride)

    def pieces(self, begin: int) -> Bytes:
        """What follows each one's first ``begin`` bytes, end to end."""
        memory = self.data.data
        starts, ends = (self.start + begin).tolist(), (self.start + self.length).tolist()
        return np.frombuffer(b"".join([memory[a:b] for a, b in zip(starts, ends, strict=True)]), np.uint8)

    def compact(self) -> Records:
        """The same, without the memory they were found in."""
        padded = _aligned(self.length)
        data = self.matrix().reshape(-1).copy() if self.stride and len(self) else self._padded(padded)
        return Records(data, np.cumsum(padded) - padded, self.length, self.stride, self.equal)

    def _padded(self, lengths: Ints) -> Bytes:
        memory, starts = self.data.data, self.start.tolist()
        pieces = [memory[at : at + length] for at, length in zip(starts, lengths.tolist(), strict=True)]
        return np.frombuffer(b"".join(pieces), np.uint8)


NONE = Records(np.empty(0, np.uint8), np.empty(0, np.int64), np.empty(0, np.int64))


def cut(data: Bytes, at: int, end: int, form: Format) -> tuple[list[Records], int]:
    """The events that begin from ``at`` on, before ``end``, up to the first that is still being written; in order.

    Also where the first one begins that was not looked at. All of what begins before ``end`` has to lie in ``data``.
    """
    words: npt.NDArray[Any] = data.view(form.word)
    unit = words.itemsize
    found = []
    walk = _WALK[0]
    while at < end:
        first = int(words[at // unit])
        if first & form.busy:
            break
        length = form.length(first)
        stride = _aligned(length)
        count = _equal(words[at // unit : -(-end // unit) : stride // unit], form)
        if count >= _PROBE or at + count * stride >= end:
            if first & form.kind[0] == form.kind[1]:
                starts = np.arange(at, at + count * stride, stride)
                found.append(Records(data, starts, np.full(count, length), stride, int(length)))
            at += count * stride
            walk = _WALK[0]
        else:
            starts, at = _followed(words.data, at, end, form, walk)
            walk = min(2 * walk, _WALK[1])
            heads = words[starts // unit]
            unready = np.flatnonzero(heads & form.busy)
            if len(unready):
                at, heads, starts = int(starts[unready[0]]), heads[: unready[0]], starts[: unready[0]]
            events = np.flatnonzero(heads & form.kind[0] == form.kind[1])
            found.append(Records(data, starts[events], form.length(heads[events]).astype(np.int64)))
    return [records for records in found if len(records)], at


def join(data: Bytes, parts: Sequence[Records]) -> Records:
    """What was found in one ``data``, in this order."""
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
    """What was found in several places, in this order, in memory of its own."""
    copies = [part.compact() for part in parts if len(part)]
    if len(copies) < 2:
        return copies[0] if copies else NONE
    begins = np.cumsum([0, *(len(copy.data) for copy in copies)])
    data = np.concatenate([copy.data for copy in copies])
    return join(
        data, [replaced(copy, data=data, start=copy.start + at) for copy, at in zip(copies, begins[:-1], strict=True)]
    )


class Shape:
    """How records that begin with a header of ``header`` bytes, and go on with a C struct, become rows.

    A row is the record as it lies, ``schema`` describes it. What a short record lacks is zero; what a long one has
    more is left out, unless the struct ends in a flexible array: then it is the row's text.

    ``stamp``: so many bytes, a multiple of 8, follow every event that are none of its own (submits.py writes them). In
    the rows they are at ``stamp_at``.
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
        if self._tail < 0:
            writer.append(self._rows(records))
            return
        rows, lengths = self._rows(records), self._lengths(records)
        whole = np.empty((len(rows), self.schema.size), np.uint8)
        whole[:, : self._width] = rows
        whole[:, self._width :].view(np.int64)[:, 0] = np.cumsum(np.maximum(lengths - self._tail, 0))
        writer.append(whole, records.shortened(lengths).pieces(self._tail))

    def stamps(self, records: Records) -> Ints:
        """Of each, the first word of its stamp."""
        if records.equal:
            return records.words(self._stamp_in(records.equal))
        words: Ints = records.data.view(np.int64)[records.start + self._stamp_in(records.length) >> 3]
        return words

    def _stamp_in(self, length: Any) -> Any:
        """Where the stamp of a record of this length begins."""
        return (length & ~7) - self._stamp

    def _lengths(self, records: Records) -> Ints:
        """How long the records are without stamps, and without what was filled up before these."""
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
        """Whether they are rows as they lie."""
        if not records.stride:
            return False
        if not self._stamp:
            return int(records.length.min()) >= self._needed
        length = records.equal
        whole = length - self._stamp - 2 * (length & 7) >= self._needed
        return whole and self._stamp_in(length) == self.stamp_at


def _gathered(data: Bytes, starts: Ints, width: int) -> Rows:
    """A row of so many bytes from each start on, all multiples of 8."""
    if int(starts.max()) + width > len(data):  # the last one reaches past the end
        data = np.concatenate([data, np.zeros(width, np.uint8)])
    places = (len(data) - width) // 8 + 1
    every: npt.NDArray[np.void] = np.ndarray(places, f"V{width}", data, strides=(8,))
    rows: Rows = every[starts >> 3].view(np.uint8).reshape(-1, width)
    return rows


def _aligned(size: Any) -> Any:
    return (size + 7) & ~7


def _equal(heads: npt.NDArray[Any], form: Format) -> int:
    """How many of the words, from the first on, say the same."""
    for count in (_PROBE, len(heads)):
        differ = (heads[:count] ^ heads[0]) & form.told != 0
        if differ.any():
            return int(differ.argmax())
    return len(heads)


def _followed(words: memoryview, at: int, end: int, form: Format, most: int) -> tuple[Ints, int]:
    """Where records begin, from ``at`` on, as one leads to the next; and where the next one does."""
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
    if any(right[0] < left[-1] for left, right in pairwise(times)):
        return False
    return not any(np.any(part[1:] < part[:-1]) for part in times)


def with_time(schema: Schema, clock: str, at: int, cpu_at: int) -> Schema:
    """With the record's time, and the number of its CPU unless ``cpu_at`` is negative, as first columns.

    The time's name is none that a member can have. The CPU's is "cpu", or "cpu_" where a member is called so.
    """
    added = [Number(_TIME, at, "<i8")]
    if cpu_at >= 0:
        name = "cpu"
        while any(column.name == name for column in schema.columns):
            name += "_"
        added.append(Number(name, cpu_at, "<i2"))
    return replace(schema, columns=(*added, *schema.columns), time=_TIME, clock=clock)
