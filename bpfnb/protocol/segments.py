"""Segments: the shared memory that rows travel in. The tracer writes them, the notebook maps and reads them.

A segment is a memfd::

    0       8 bytes   rows committed           written after the rows themselves
    8       8 bytes   text bytes committed
    16      8 bytes   events lost so far, by this output since its session began
    24      8 bytes   nanoseconds to add to the reader's CLOCK_MONOTONIC to get that of the rows: another host's
    4096    rows      fixed-width records of ``Schema.size`` bytes
    ...     text      the rows' variable text end to end, on the next page boundary (only when ``Schema.text_end``)

The writer fills a segment, then starts the next. A reader needs no lock: it never looks past what is committed.

Rows are written by pwrite(2), which costs a third of storing them in mapped memory: no page has to be faulted in, or
cleared before it is overwritten. Only the header is mapped.

The notebook acknowledges each segment it has received. A notebook that is stopped, or in a long call, acknowledges
none. So that segments do not fill the memory meanwhile, a session has ``Credit`` (credit.py). Rows beyond it are
counted as lost.

Where a recorder follows a session, both get the same segments, each as far as its own credit goes. Rows are lost only
where neither has any; what one of them alone misses, its next segment says.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from bpfnb.protocol.credit import Credit
from bpfnb.protocol.schema import Rows, Schema

__all__ = [
    "CLOCK",
    "HEADER",
    "LOST",
    "MAX_EVENT",
    "PAGE",
    "ROWS",
    "TEXT",
    "Append",
    "Layout",
    "Publish",
    "Recipient",
    "SegmentReader",
    "SegmentSizes",
    "SegmentWriter",
    "parts",
]

PAGE = 4096
HEADER = PAGE
ROWS, TEXT, LOST, CLOCK = 0, 1, 2, 3  # indices into the header seen as 64-bit words
_WORDS = 4

MAX_EVENT = 24 << 20  # bytes of an event's struct

_SEGMENTS = 16  # in flight at most, a session; they are smaller where ``keep`` is
_MIN_RETURNED = 1 << 20  # bytes that are worth giving back to the kernel
_NO_TEXT = np.empty(0, np.uint8)


class SegmentSizes(NamedTuple):
    """What an ordinary segment has room for, in bytes. A text longer than ``text`` cannot be delivered.

    Large, since each segment the notebook has not decoded costs it a descriptor; memory is taken as it is touched.
    """

    rows: int = 24 << 20
    text: int = 40 << 20


_SIZES = SegmentSizes()


class Layout(Struct, frozen=True):
    """How many rows and text bytes a segment can hold, and so where its parts lie."""

    rows: int
    text: int

    def text_offset(self, schema: Schema) -> int:
        return HEADER + -(-self.rows * schema.size // PAGE) * PAGE

    def size(self, schema: Schema) -> int:
        return self.text_offset(schema) + self.text


def parts(memory: memoryview, schema: Schema, layout: Layout) -> tuple[npt.NDArray[np.uint64], Rows, Rows]:
    """The header words, the rows and the text area of a mapped segment, as views of its memory."""
    head = np.frombuffer(memory, np.uint64, _WORDS)
    rows = np.frombuffer(memory, np.uint8, layout.rows * schema.size, HEADER).reshape(layout.rows, schema.size)
    text = np.frombuffer(memory, np.uint8, layout.text, layout.text_offset(schema))
    return head, rows, text


Publish = Callable[[Layout, int], None]  # the descriptor stays the writer's
_Words = npt.NDArray[np.uint64]


class Recipient:
    """Who gets the segments of an output, as far as its ``credit`` goes.

    ``publish`` is given a segment's layout and descriptor, and how many rows there were since the segment before that
    this recipient did not get. ``head``: the header of the segment that it has got last.
    """

    def __init__(self, publish: Callable[[Layout, int, int], None], credit: Credit) -> None:
        self.publish = publish
        self.credit = credit
        self.head: _Words = np.zeros(_WORDS, np.uint64)
        self.missed = 0

    def give(self, layout: Layout, fd: int, head: _Words) -> None:
        """Publish a segment."""
        missed, self.missed, self.head = self.missed, 0, head
        self.publish(layout, fd, missed)


class SegmentWriter:
    """Appends rows to the newest segment of one output. All rows of a segment have the epoch it began with.

    A row that cannot be delivered is counted as lost: one beyond the credit, or with a text larger than any segment.
    ``to``: what publishes the segments, as far as ``credit`` goes; or several recipients. A row is lost then only where
    none of them can get it.
    """

    def __init__(
        self,
        schema: Schema,
        to: Publish | Sequence[Recipient],
        epoch: Callable[[], int] = lambda: 0,
        credit: Credit | None = None,
        *,
        sizes: SegmentSizes = _SIZES,
    ) -> None:
        self._schema = schema
        self._epoch = epoch
        self._recipients = to if isinstance(to, Sequence) else [_sole(to, credit or Credit())]
        self._absent: list[Recipient] = []  # those who have not got the newest segment
        self._has_text = schema.text_end >= 0
        self._max_text = sizes.text
        limit = min(recipient.credit.limit for recipient in self._recipients)
        self._layout = _layout(schema, limit // _SEGMENTS, sizes)
        self.rows = self.lost = 0  # since its session began
        self._refused = 0  # events the kernel could not deliver
        self._unsent = 0  # events we could not deliver
        self._clock = 0
        self._wanted = 0  # the size of a segment that there was no credit for
        self._close: Callable[[], object] = lambda: None
        self._start(first=True)

    @property
    def blocked(self) -> bool:
        """Return whether rows would be lost now. They should stay in the kernel's buffers."""
        return self._wanted > 0 and not any(one.credit.allows(self._wanted) for one in self._recipients)

    def append(self, rows: Rows, text: npt.NDArray[np.uint8] = _NO_TEXT) -> None:
        """Add rows; with text, each row's word at ``Schema.text_end`` ends its run within ``text``, from its start."""
        ends = self._ends(rows) if self._has_text else None
        begin, taken = 0, 0  # rows and text bytes written so far
        if any(one.credit.ample for one in self._absent):
            self._start()  # with one who takes rows again; the segment at hand goes on where that cannot be
        stale = self._epoch() != self._since
        while begin < len(rows):
            end = begin if stale else begin + self._fitting(len(rows) - begin, begin, ends, taken)
            if end > begin:
                until = int(ends[end - 1]) if ends is not None else 0
                self._write(rows[begin:end], text[taken:until], taken)
                begin, taken = end, until
                continue
            length = int(ends[begin]) - taken if ends is not None else 0
            if length > self._max_text:
                self._lose(1)
                begin, taken = begin + 1, taken + length
            elif self._start(length):
                stale = False
            else:
                self._lose(len(rows) - begin)
                return

    def set_lost(self, lost: int) -> None:
        """Publish how many events the kernel could not deliver since the session began; ours are added."""
        self._refused = lost
        self.lost = lost + self._unsent
        for one in self._recipients:
            one.head[LOST] = self.lost

    def set_clock(self, ns: int) -> None:
        """Publish how far the clock of the rows is ahead of the reader's CLOCK_MONOTONIC, where that is another."""
        self._clock = ns
        self._head[CLOCK] = np.int64(ns).view(np.uint64)

    def close(self) -> None:
        """Let go of the segment. The notebook has its own descriptor. Idempotent.

        Who has missed the last rows gets an empty segment, which says so.
        """
        if late := [one for one in self._recipients if one.missed and not one.credit.closed]:
            self._open(Layout(1, 0), late)
        self._close()
        self._head = np.zeros(_WORDS, np.uint64)
        for one in self._recipients:
            one.head = self._head

    def _lose(self, count: int) -> None:
        self._unsent += count
        self.set_lost(self._refused)

    def _ends(self, rows: Rows) -> npt.NDArray[np.int64]:
        at = self._schema.text_end
        return rows[:, at : at + 8].view(np.int64)[:, 0]

    def _fitting(self, wanted: int, begin: int, ends: npt.NDArray[np.int64] | None, taken: int) -> int:
        """Return how many rows from ``begin`` the segment has room for."""
        room = min(self._room.rows - int(self._head[ROWS]), wanted)
        if ends is not None:
            limit = taken + self._room.text - int(self._head[TEXT])
            room = min(room, int(np.searchsorted(ends, limit, side="right")) - begin)
        return room

    def _write(self, rows: Rows, text: npt.NDArray[np.uint8], taken: int) -> None:
        at, base = int(self._head[ROWS]), int(self._head[TEXT])
        if self._has_text:
            rows = rows.copy()
            self._ends(rows)[:] += base - taken
            self._put(text, self._room.text_offset(self._schema) + base)
            self._head[TEXT] = base + len(text)
        self._put(rows, HEADER + at * self._schema.size)
        # Committed last: the reader in the other process never sees a row before its bytes.
        self._head[ROWS] = at + len(rows)
        self.rows += len(rows)
        for one in self._absent:
            one.missed += len(rows)

    def _put(self, data: npt.NDArray[Any], at: int) -> None:
        left = np.ascontiguousarray(data).reshape(-1).data
        while left:
            written = os.pwrite(self._fd, left, at)
            left, at = left[written:], at + written

    def _start(self, text: int = 0, *, first: bool = False) -> bool:
        """Begin a segment with room for ``text`` bytes of text. Return whether there was credit for it."""
        room = Layout(self._layout.rows, max(self._layout.text, _pages(text)))
        size = room.size(self._schema)
        takers = [one for one in self._recipients if one.credit.take(size, first=first)]
        if not takers and not first:
            self._wanted = size
            return False
        self._wanted = 0
        self._open(room, takers)
        return True

    def _open(self, room: Layout, takers: Sequence[Recipient]) -> None:
        """Make a segment, and publish it to some."""
        self._close()
        self._room = room
        self._since = self._epoch()
        self._fd = os.memfd_create("bpfnb-segment", os.MFD_CLOEXEC)
        self._close = weakref.finalize(self, os.close, self._fd)
        os.ftruncate(self._fd, room.size(self._schema))
        self._head = np.frombuffer(mmap.mmap(self._fd, HEADER), np.uint64, _WORDS)
        self._head[LOST] = self.lost
        self._absent = [one for one in self._recipients if one not in takers]
        self.set_clock(self._clock)
        for one in takers:
            one.give(room, self._fd, self._head)


# Rows, the text area, where the first row's text begins in it, and the segment's epoch.
Append = Callable[[Rows, Rows, int, int | None], None]


class SegmentReader:
    """A mapped segment, and how far it has been read. ``size``: its bytes."""

    def __init__(self, fd: int, schema: Schema, layout: Layout, epoch_ns: int | None) -> None:
        """``epoch_ns``: what turns its rows' stamps into times; None: that of the segment before."""
        self._epoch_ns = epoch_ns
        self.size = layout.size(schema)
        self._text_end = schema.text_end
        self._memory = mmap.mmap(fd, self.size, prot=mmap.PROT_READ)
        self._head, self._rows, self._text = parts(memoryview(self._memory), schema, layout)
        self._done = 0

    @property
    def unread(self) -> int:
        return int(self._head[ROWS]) - self._done

    @property
    def lost(self) -> int:
        return int(self._head[LOST])

    @property
    def clock_ns(self) -> int:
        """How far the clock of the rows is ahead of this machine's CLOCK_MONOTONIC, in nanoseconds."""
        return int(self._head[CLOCK].view(np.int64))

    def read(self, append: Append) -> int:
        """Append the rows committed since the last call. Return how many there were. Those appended count as read."""
        end = int(self._head[ROWS])
        rows = self._rows[self._done : end]
        append(rows, self._text, self._text_read(), self._epoch_ns)
        self._done = end
        if rows.nbytes > _MIN_RETURNED:
            self._memory.madvise(mmap.MADV_DONTNEED)  # what was read is the tracer's memory, and no longer ours as well
        return len(rows)

    def _text_read(self) -> int:
        """Return where the text of the next row begins."""
        if self._text_end < 0 or not self._done:
            return 0
        word = self._rows[self._done - 1, self._text_end : self._text_end + 8]
        return int(word.view(np.int64)[0])


def _sole(publish: Publish, credit: Credit) -> Recipient:
    """Return the only recipient, who misses nothing that is not lost."""
    return Recipient(lambda layout, fd, missed: publish(layout, fd), credit)


def _layout(schema: Schema, share: int, sizes: SegmentSizes) -> Layout:
    """Return the layout of an ordinary segment of at most ``share`` bytes, if a row takes no more."""
    if schema.text_end < 0:
        return Layout(max(min(sizes.rows, share) // schema.size, 1), 0)
    rows = min(sizes.rows, share * 3 // 8)
    return Layout(max(rows // schema.size, 1), min(sizes.text, _pages(share * 5 // 8)))


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE
