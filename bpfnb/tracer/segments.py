"""The writing end of segments (schema.py): appends rows, hands each new memfd to ``publish``.

Rows go in by pwrite(2), which costs a third of storing them in mapped memory: no page has to be faulted in, or cleared
before it is overwritten. Only the header is mapped.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from bpfnb.schema import HEADER, LOST, ROWS, TEXT, Layout, Rows, Schema

__all__ = ["Publish", "SegmentWriter"]

Publish = Callable[[Layout, int], None]  # the descriptor stays the writer's

# Large, since each segment the notebook has not decoded costs it a descriptor; memory is taken as it is touched.
_ROW_BYTES = 24 << 20
_TEXT_BYTES = 40 << 20
_NO_TEXT = np.empty(0, np.uint8)


class SegmentWriter:
    """Appends to the newest segment of one output. What ``epoch`` says holds for all rows of a segment."""

    def __init__(self, schema: Schema, publish: Publish, epoch: Callable[[], int] = lambda: 0) -> None:
        self._schema = schema
        self._publish = publish
        self._epoch = epoch
        self._has_text = schema.text_end >= 0
        self._layout = Layout(_ROW_BYTES // schema.size, _TEXT_BYTES if self._has_text else 0)
        self.rows = self.lost = 0  # since its session began
        self._close: Callable[[], object] = lambda: None
        self._start()

    def append(self, rows: Rows, text: npt.NDArray[np.uint8] = _NO_TEXT) -> None:
        """Add rows; with text, each row's word at ``Schema.text_end`` ends its run within ``text``, from its start."""
        if self._epoch() != self._since:
            self._start()
        ends = self._ends(rows) if self._has_text else None
        begin, taken = 0, 0  # rows and text bytes written so far
        while begin < len(rows):
            end = begin + self._fitting(len(rows) - begin, begin, ends, taken)
            if end > begin:
                until = int(ends[end - 1]) if ends is not None else 0
                self._write(rows[begin:end], text[taken:until], taken)
                begin, taken = end, until
            elif not self._head[ROWS]:
                raise ValueError("a row's text is larger than a segment")
            if begin < len(rows):
                self._start()

    def set_lost(self, lost: int) -> None:
        """Publish how many events this output has lost since its session began."""
        self.lost = lost
        self._head[LOST] = lost

    def close(self) -> None:
        """Let go of the segment; the notebook has its own hold on it. Idempotent."""
        self._close()
        self._head = np.zeros(3, np.uint64)

    def _ends(self, rows: Rows) -> npt.NDArray[np.int64]:
        at = self._schema.text_end
        return rows[:, at : at + 8].view(np.int64)[:, 0]

    def _fitting(self, wanted: int, begin: int, ends: npt.NDArray[np.int64] | None, taken: int) -> int:
        """How many rows from ``begin`` the segment can still hold."""
        room = min(self._layout.rows - int(self._head[ROWS]), wanted)
        if ends is not None:
            limit = taken + self._layout.text - int(self._head[TEXT])
            room = min(room, int(np.searchsorted(ends, limit, side="right")) - begin)
        return room

    def _write(self, rows: Rows, text: npt.NDArray[np.uint8], taken: int) -> None:
        at, base = int(self._head[ROWS]), int(self._head[TEXT])
        if self._has_text:
            rows = rows.copy()
            self._ends(rows)[:] += base - taken
            self._put(text, self._layout.text_offset(self._schema) + base)
            self._head[TEXT] = base + len(text)
        self._put(rows, HEADER + at * self._schema.size)
        # Committed last: a reader in the other process never sees a row before its bytes.
        self._head[ROWS] = at + len(rows)
        self.rows += len(rows)

    def _put(self, data: npt.NDArray[Any], at: int) -> None:
        left = np.ascontiguousarray(data).reshape(-1).data
        while left:
            written = os.pwrite(self._fd, left, at)
            left, at = left[written:], at + written

    def _start(self) -> None:
        self._close()
        self._since = self._epoch()
        self._fd = os.memfd_create("bpfnb-segment", os.MFD_CLOEXEC)
        self._close = weakref.finalize(self, os.close, self._fd)
        os.ftruncate(self._fd, self._layout.size(self._schema))
        self._head = np.frombuffer(mmap.mmap(self._fd, HEADER), np.uint64, 3)
        self._head[LOST] = self.lost
        self._publish(self._layout, self._fd)
