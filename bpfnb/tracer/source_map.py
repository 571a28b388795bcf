"""Edit a cell's text, and map places in what is compiled to places in the cell."""

from __future__ import annotations

import bisect
import dataclasses
import re
from collections.abc import Mapping, Sequence

from msgspec import Struct

from bpfnb.errors import Diagnostic
from bpfnb.language.cell import Cell
from bpfnb.protocol.schema import Schema

__all__ = ["WHOLE_POINTER", "Edit", "Payload", "Payloads", "Rewritten", "Submit", "assemble"]

WHOLE_POINTER = "is given the size of a pointer, not of what it points to"  # the compiler's error says so
_MAIN = "/virtual/main.c"  # what bcc calls the text it is given


@dataclasses.dataclass(frozen=True)
class Submit:
    """A call that submits an event to an output. ``line``, ``column``: of the event's argument, from 1. ``longer``: the
    size it names is that of a type and something that changes. ``reserves``: it only makes room for one."""

    output: str
    line: int
    column: int
    longer: bool = False
    reserves: bool = False


class Payload(Struct, frozen=True):
    """What a call submits. ``schema``: of what its pointer points to; None for void, a sentence where it cannot be
    described. ``size``: the bytes it names, or -1 where they change. ``is_bytes``: it points to single chars or u8s."""

    schema: Schema | str | None
    size: int = -1
    is_bytes: bool = False


# What each of a source's calls submits, by its number; those in text that was not compiled are not in it. None
# altogether where bcc gave the kernel no BTF.
Payloads = dict[int, Payload] | None


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """``text``: what bcc compiles. ``cell``: what the user wrote, read. ``submits``: where it submits to which output.
    ``tag``: what every printk format in ``text`` begins with. ``stamped``, ``padded``: outputs, as in submits.py.
    ``counted``: the maps that have counters of refused updates, in the order of these. ``notes``: on what is left as it
    is (updates.py)."""

    text: str
    cell: Cell
    # For each line of the cell the pieces it is compiled from: (column of the first byte, offset in the cell, bytes).
    # An inserted piece has no bytes: all of it stands for one place.
    _lines: tuple[tuple[tuple[int, int, bytes], ...], ...] = ()
    submits: tuple[Submit, ...] = ()
    tag: str = ""
    stamped: frozenset[str] = frozenset()
    padded: frozenset[str] = frozenset()
    counted: tuple[str, ...] = ()
    notes: tuple[Diagnostic, ...] = ()
    increments: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    def is_inserted(self, line: int, column: int) -> bool:
        """Whether a place of the compiled text (see to_cell) is in text the user did not write."""
        at_end = len(self._lines[min(max(line, 1), len(self._lines)) - 1]) == 1  # an empty line has one piece, empty
        return not at_end and not self._piece(line, column)[2]

    def to_cell(self, line: int, column: int) -> tuple[int, int]:
        """Where in the cell a place of the compiled text is: line and column from 1, the column in characters.

        ``line`` and ``column`` as clang gives them: the line follows ``#line``, the column counts bytes.
        """
        line = min(max(line, 1), len(self._lines))
        at, offset, copied = self._piece(line, column)
        inside = copied[: max(column - 1 - at, 0)].decode(errors="ignore")
        start = self.cell.source.rfind("\n", 0, offset) + 1
        return line, offset + len(inside) - start + 1

    def reaches(self, line: int) -> bool:
        """Whether the compiled text has this line: bcc puts text of its own behind the last."""
        return line <= len(self._lines)

    def written(self, line: int, column: int) -> str:
        """What the user wrote at a place of the compiled text (see to_cell), up to what follows of ours; "" in that."""
        at, _, copied = self._piece(line, column)
        return copied[max(column - 1 - at, 0) :].decode(errors="ignore")

    def _piece(self, line: int, column: int) -> tuple[int, int, bytes]:
        pieces = self._lines[min(max(line, 1), len(self._lines)) - 1]
        return pieces[max(bisect.bisect_right([at for at, _, _ in pieces], column - 1) - 1, 0)]


@dataclasses.dataclass(frozen=True, order=True)
class Edit:
    """Replace ``start`` to ``end`` by ``text``, which has no newline; ``reset`` says ``#line`` there as well."""

    start: int
    end: int
    text: str = ""
    reset: bool = False


def assemble(cell: Cell, edits: Sequence[Edit], prelude: str, path: str) -> Rewritten:
    """Apply the edits to the cell's text. ``prelude``: C to put before it. ``path``: the file that messages name."""
    out = _Output(cell.source)
    if prelude:
        out.text.append(f'#line 1 "/virtual/bpfnb.h"\n{prelude}')
    out.text.append(f'#line 1 "{path or _MAIN}"\n')
    at = 0
    for edit in sorted(edits, key=lambda e: (e.start, not e.reset, e.end)):
        assert at <= edit.start, "edits overlap"
        out.copy(at, edit.start)
        if edit.reset:
            out.reset()
        out.insert(edit.start, edit.text)
        out.newlines(edit.start, edit.end)
        at = edit.end
    out.copy(at, len(cell.source))
    return Rewritten("".join(out.text), cell, tuple(tuple(line) for line in out.lines))


class _Output:
    """Text as it grows, and where each piece came from."""

    def __init__(self, cell: str) -> None:
        self.cell = cell
        self.text: list[str] = []
        self.lines: list[list[tuple[int, int, bytes]]] = [[(0, 0, b"")]]
        self.column = 0  # in bytes, from 0

    def copy(self, start: int, end: int) -> None:
        for line in self.cell[start:end].splitlines(keepends=True) if start < end else []:
            self._piece(start, line, line.rstrip("\n").encode(errors="surrogatepass"))
            start += len(line)
            if line.endswith("\n"):
                self._newline(start)

    def insert(self, at: int, text: str) -> None:
        if text:
            self._piece(at, text, b"", len(text))

    def newlines(self, start: int, end: int) -> None:
        """The newlines of a part that was replaced stay, so that lines stay."""
        for match in re.finditer("\n", self.cell[start:end]):
            self.text.append("\n")
            self._newline(start + match.end())

    def reset(self) -> None:
        """Say the line's number anew; what follows on the line keeps its column."""
        self.text.append(f"\n#line {len(self.lines)}\n{' ' * self.column}")

    def _piece(self, at: int, text: str, copied: bytes, size: int = 0) -> None:
        self.text.append(text)
        self.lines[-1].append((self.column, at, copied))
        self.column += size or len(copied)

    def _newline(self, at: int) -> None:
        self.lines.append([(0, at, b"")])
        self.column = 0
