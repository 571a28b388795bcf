"""A cell, read: its functions, tables, macros and tokens. ``scan`` (scan.py) makes one of a text."""

from __future__ import annotations

import bisect
import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from bpfnb.errors import ProgramError
from bpfnb.language.preprocessor import Macro
from bpfnb.language.tokens import Token

__all__ = ["Body", "Cell", "Function", "MapDecl", "Output"]


class Function(msgspec.Struct, frozen=True):
    """One function of the cell. ``name``: as bcc compiles it. ``line``, ``column``: of its name, from 1.

    ``parameters``: each one's text. ``conditional``: stands in an ``#if`` this module could not decide, so it may turn
    out not to be compiled.
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
    """A table that is no output. ``macro``: the macro that declared it, such as "BPF_HASH". ``type``: of BPF_TABLE and
    its like, the kind it names, such as "lru_hash". ``pinned``: the file it is pinned at, or ""."""

    name: str
    macro: str
    line: int
    type: str = ""
    pinned: str = ""

    @property
    def holds_programs(self) -> bool:
        return self.macro == "BPF_PROG_ARRAY" or self.type == "prog"


@dataclasses.dataclass
class Body:
    """A function found in the text. Offsets are into the cell; ``open`` and ``close`` are its braces.

    ``probe``, ``requested``: what its name or macro asks for by itself. ``generated``: a macro of the cell wrote it, so
    the offsets are those of the macro's use and there is no text of its own.
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

    def uses(self, names: Iterable[str]) -> bool:
        """Whether the function's text, its signature left out, has one of these names."""
        words = {t.text for t in self.tokens if t.start > self.open}
        return not words.isdisjoint(names)

    def public(self, cell: Cell) -> Function:
        line, column = cell.place(self.name_at)
        return Function(self.name, line, column, self.static, self.parameters, self.conditional)


@dataclasses.dataclass
class Cell:
    """The text, read. Offsets count characters of ``source``; so do those into ``masked``, which is ASCII.

    ``tokens``: all that may be compiled, comments and directives left out. ``masked``: the same as text, attribute
    words and the branches that would unbalance braces blanked. ``doubtful``: something here could not be read, so a
    function may exist that is not in ``functions``.
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
        """Line and column of an offset, from 1."""
        line = bisect.bisect_right(self._starts, at)
        return line, at - self._starts[line - 1] + 1

    def error(self, message: str, at: int, *, hint: str | None = None) -> ProgramError:
        line, column = self.place(at)
        return ProgramError(message, line=line, column=column, hint=hint, source=self.source)

    def mentions(self, tokens: Iterable[Token], name: str) -> bool:
        """Whether the tokens contain the name, by themselves or through the macros they use."""
        return any(t.text == name for t in self.expanded(tokens))

    def expanded(self, tokens: Iterable[Token]) -> Iterator[Token]:
        """The words of the tokens and of the bodies of all macros they use, however deep."""
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
