"""What a cell's text contains: functions, maps, outputs, macros, tokens. ``scan`` (scan.py) reads a text into a
Cell."""

from __future__ import annotations

import bisect
import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import msgspec

from bpfnb.errors import ProgramError
from bpfnb.language.preprocessor import Macro
from bpfnb.language.tokens import Token

__all__ = ["Asked", "Body", "Cell", "Function", "MapDecl", "Output"]


class Function(msgspec.Struct, frozen=True):
    """One function of the cell. ``name``: as bcc compiles it. ``line``, ``column``: of its name, from 1.

    ``parameters``: the text of each. ``conditional``: the function is inside an ``#if`` that only the compiler can
    decide, so it may not be compiled.
    """

    name: str
    line: int
    column: int
    static: bool
    parameters: tuple[str, ...]
    conditional: bool = False


class Output(msgspec.Struct, frozen=True):
    """A stream of events: ``kind`` is "perf" (BPF_PERF_OUTPUT) or "ringbuf" (BPF_RINGBUF_OUTPUT)."""

    name: str
    kind: Literal["perf", "ringbuf"]
    line: int


class MapDecl(msgspec.Struct, frozen=True):
    """A map that is not an output. ``macro``: what declares it, such as "BPF_HASH". ``type``: the kind of map that an
    argument of BPF_TABLE and the like names, such as "lru_hash". ``pinned``: the file it is pinned to, or ""."""

    name: str
    macro: str
    line: int
    type: str = ""
    pinned: str = ""

    @property
    def is_pinned(self) -> bool:
        """Whether it is pinned, to a file that the text may not name: a macro may."""
        return bool(self.pinned) or "PINNED" in self.macro

    @property
    def holds_programs(self) -> bool:
        return self.macro == "BPF_PROG_ARRAY" or self.type == "prog"


class Asked(NamedTuple):
    """A probe that is asked for before a function: ``PROBE("uprobe:c:malloc")``. ``text``: as written there. ``start``,
    ``end``: the macro's use, in offsets from the cell's start."""

    text: str
    start: int
    end: int


@dataclasses.dataclass
class Body:
    """A function as it was found in the text. Offsets count from the cell's start; ``open``, ``close``: its braces.

    ``probe``, ``requested``: the probe that its macro names, and the text that names it. ``generated``: a macro of the
    cell writes the function; then the offsets are those of the macro's use, and it has no text of its own. ``asked``:
    the probes that are asked for before it.
    """

    name: str
    name_at: int
    start: int
    open: int
    close: int
    static: bool
    parameters: tuple[str, ...]
    conditional: bool
    tokens: list[Token]
    requested: str
    probe: tuple[str, str] | None = None
    generated: bool = False
    asked: tuple[Asked, ...] = ()

    def uses(self, names: Iterable[str]) -> bool:
        """Return whether the function's body contains one of these names."""
        words = {t.text for t in self.tokens if t.start > self.open}
        return not words.isdisjoint(names)

    def public(self, cell: Cell) -> Function:
        """Return what a Program says of the function."""
        line, column = cell.place(self.name_at)
        return Function(self.name, line, column, self.static, self.parameters, self.conditional)


@dataclasses.dataclass
class Cell:
    """A text and what was found in it. Offsets count characters of ``source``, and of ``masked``, which is ASCII.

    ``tokens``: what may be compiled, without comments and directives. ``masked``: the same as text, with blanks for
    attributes and for branches of ``#if`` that would unbalance braces. ``doubtful``: some text could not be read, so
    there may be a function that is not in ``functions``.
    """

    source: str
    tokens: list[Token] = dataclasses.field(default_factory=list)
    directives: list[Token] = dataclasses.field(default_factory=list)
    macros: dict[str, list[Macro]] = dataclasses.field(default_factory=dict)
    functions: list[Body] = dataclasses.field(default_factory=list)
    outputs: list[Output] = dataclasses.field(default_factory=list)
    maps: list[MapDecl] = dataclasses.field(default_factory=list)
    masked: str = ""
    doubtful: bool = False

    def __post_init__(self) -> None:
        self._starts = [0, *(m.end() for m in re.finditer("\n", self.source))]

    def place(self, at: int) -> tuple[int, int]:
        """Return the line and column of an offset, from 1."""
        line = bisect.bisect_right(self._starts, at)
        return line, at - self._starts[line - 1] + 1

    def error(self, message: str, at: int, *, hint: str | None = None) -> ProgramError:
        """Return an error at an offset."""
        line, column = self.place(at)
        return ProgramError(message, line=line, column=column, hint=hint, source=self.source)

    def mentions(self, tokens: Iterable[Token], name: str) -> bool:
        """Return whether the tokens contain the name, directly or through the macros they use."""
        return any(t.text == name for t in self.expanded(tokens))

    def expanded(self, tokens: Iterable[Token]) -> Iterator[Token]:
        """Yield the words of the tokens and of the bodies of all macros they use, at any depth."""
        seen: set[str] = set()
        todo = list(tokens)
        while todo:
            token = todo.pop()
            if token.kind != "word":
                continue
            yield token
            if token.text not in seen:
                seen.add(token.text)
                todo += [t for macro in self.macros.get(token.text, ()) for t in macro.tokens]
