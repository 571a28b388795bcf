"""Find the functions, maps, outputs, macros and tokens of a cell, without a compiler.

A C grammar cannot parse bcc's macros and the kernel's attributes (``TRACEPOINT_PROBE(a, b) {``, ``BPF_HASH(counts, u32,
struct k)``, ``const char __user *p``). So the text is *masked* first: comments, directives, dead code, attributes and
bcc's macros are replaced by text of the same length. Then tree-sitter parses the signatures. Offsets in the masked text
are offsets in the cell, in characters (non-ASCII becomes ``_``).

Syntax errors are not reported: clang's messages are better. A cell with text that could not be read is ``doubtful``.
"""

from __future__ import annotations

import bisect
import dataclasses
import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from bpfnb.language.cell import Asked, Body, Cell, MapDecl, Output
from bpfnb.language.preprocessor import Conditionals, read_macro
from bpfnb.language.syntax import Node, function_declarator, parse_c, walk
from bpfnb.language.tokens import Token, arguments, closing, lex, opens
from bpfnb.language.vocabulary import ATTACH, ATTRIBUTES, ATTRIBUTES_WITH_ARGUMENTS, PROBES, TABLES, TableMacro

__all__ = ["scan"]


def scan(source: str, cflags: Sequence[str] = ()) -> Cell:
    """Read a cell. The ``-D`` options among ``cflags`` decide ``#ifdef``. ProgramError for a PROBE(...) that cannot be
    meant."""
    cell = Cell(source)
    conditionals = Conditionals(_defined(cflags))
    for token in lex(source, directives=True):
        if token.kind == "directive":
            live = conditionals.directive(token)
            if live and (macro := read_macro(token)):
                cell.macros.setdefault(macro.name, []).append(macro)
            if live:
                cell.directives.append(token)
        elif token.kind != "comment" and conditionals.state != "dead":
            cell.tokens.append(token)
    conditionals.finish(len(source))
    _require_none_in_macros(cell)
    hidden = conditionals.hidden(cell.tokens)
    visible = [t for t in cell.tokens if not _within(t.start, hidden)] if hidden else cell.tokens
    structure = _Structure(cell, visible, conditionals.maybe)
    structure.read()
    structure.place_asked()
    cell.functions.sort(key=lambda f: f.name_at)
    return cell


def _require_none_in_macros(cell: Cell) -> None:
    """ProgramError where a macro of the cell is to write PROBE(...): only what is written out is read."""
    for macros in () if ATTACH in cell.macros else cell.macros.values():
        for macro in macros:
            for i, token in enumerate(macro.tokens):
                if token.text == ATTACH and opens(macro.tokens, i + 1):
                    raise cell.error(f"{ATTACH}(...) cannot come out of a macro: write it out", token.start)


def _within(at: int, ranges: Iterable[tuple[int, int]]) -> bool:
    return any(start <= at < end for start, end in ranges)


def _defined(cflags: Sequence[str]) -> set[str]:
    flags = " ".join(cflags)
    return set(re.findall(r"(?:^|\s)-D\s*([A-Za-z_]\w*)", flags))


_QUALIFIERS = frozenset({"static", "inline", "const", "volatile", "extern", "register"})


_START = operator.attrgetter("start")


class _Made(NamedTuple):
    """A function whose signature is a macro's use."""

    name: str
    parameters: tuple[str, ...]
    static: bool
    requested: str
    probe: tuple[str, str] | None
    generated: bool


class _Structure:
    """Finds functions, maps and outputs at the top level of the visible tokens, and adds them to the cell."""

    def __init__(self, cell: Cell, visible: list[Token], maybe: list[tuple[int, int]]) -> None:
        self.cell = cell
        self.tokens = visible
        self.maybe = maybe
        self.text = _blank(cell.source)  # signatures only: what tree-sitter gets
        self.braces: dict[int, int] = {}  # the index of a top-level "{" among the tokens, by offset
        self.made: dict[int, _Made] = {}
        self.statics: list[int] = []
        self.ends: list[int] = []  # where top-level items end: after a closing brace or a semicolon
        self.starts: list[tuple[int, str]] = []  # of functions, with their names
        self.asked: list[Asked] = []

    def read(self) -> None:
        self._mask()
        self._top_level()
        signatures = "".join(self.text)
        self.ends = [match.end() for match in re.finditer(r"[;}]", signatures)]
        root = parse_c(signatures)
        self.cell.doubtful |= root.has_error
        for node in walk(root):
            if node.type == "function_definition":
                self._function(node)

    def _mask(self) -> None:
        """Drop attributes, also those that are macros of the cell, and set ``cell.masked``."""
        kept = []
        i = 0
        while i < len(self.tokens):
            token = self.tokens[i]
            if token.text in ATTRIBUTES_WITH_ARGUMENTS and opens(self.tokens, i + 1):
                i = closing(self.tokens, i + 1)
            elif self._is_attribute(token.text):
                if any(t.text == "static" for t in self.cell.expanded([token])):
                    self.statics.append(token.start)
            else:
                kept.append(token)
            i += 1
        self.tokens = kept
        masked = _blank(self.cell.source)
        for token in kept:
            _fill(masked, token.start, token.text)
        self.cell.masked = "".join(masked)

    def _is_attribute(self, word: str, depth: int = 8) -> bool:
        if word in ATTRIBUTES:
            return True
        macros = self.cell.macros.get(word)
        if not macros or macros[0].parameters is not None or not depth:
            return False
        words = [t.text for t in _no_arguments(macros[0].tokens)]
        return all(word in _QUALIFIERS or self._is_attribute(word, depth - 1) for word in words)

    def _top_level(self) -> None:
        i = 0
        while i < len(self.tokens):
            token = self.tokens[i]
            if token.text == "{":
                self.braces[token.start] = i
                end = closing(self.tokens, i)
                _fill(self.text, token.start, "{")
                if end < len(self.tokens):
                    _fill(self.text, self.tokens[end].start, "}")
                i = end + 1
            elif token.kind == "word" and opens(self.tokens, i + 1):
                i = self._call(i)
            else:
                _fill(self.text, token.start, token.text)
                i += 1

    def _call(self, i: int) -> int:
        """Read ``word(`` at the top level: a map or output, a function that a macro writes, or a declarator. Return the
        index after it."""
        token, end = self.tokens[i], closing(self.tokens, i + 1)
        word = token.text
        if word in self.cell.macros:
            self._use(i, end)
        elif word in TABLES:
            self._table(TABLES[word], token, arguments(self.tokens, i + 1))
        elif word in PROBES:
            self._make(i, end)
        elif word == ATTACH:
            self._ask(i, end)
        elif word != "asm":
            _fill(self.text, token.start, word)
            return i + 1
        return end + 1

    def _table(self, macro: TableMacro, token: Token, args: list[list[Token]]) -> None:
        index = macro.name_at
        name = args[index][0].text if index < len(args) and args[index] else ""
        line = self.cell.place(token.start)[0]
        if not name:
            self.cell.doubtful = True
        elif macro.output:
            self.cell.outputs.append(Output(name, macro.output, line))
        else:
            pinned = self._string(args, macro.pinned_at) if macro.pinned_at >= 0 else ""
            self.cell.maps.append(MapDecl(name, token.text, line, self._string(args, 0), pinned))

    def _string(self, args: list[list[Token]], index: int) -> str:
        """Return an argument that is a string, or a macro that stands for one; "" where it is neither."""
        tokens = args[index] if index < len(args) else []
        macro = self.cell.macros.get(tokens[0].text) if len(tokens) == 1 else None
        strings = macro[0].tokens if macro else tokens
        return "".join(t.text[1:-1] for t in strings) if all(t.kind == "string" for t in strings) else ""

    def _make(self, i: int, end: int) -> None:
        token, macro, args = self.tokens[i], PROBES[self.tokens[i].text], arguments(self.tokens, i + 1)
        names = [_text(self.cell, arg) for arg in args[: macro.named]]
        if len(names) < macro.named or not all(names):
            self.cell.doubtful = True
            return
        target = ":".join(names).removeprefix("vmlinux:")
        made = _Made(
            name=macro.function.format(*names),
            parameters=(macro.context.format(*names), *(_text(self.cell, arg) for arg in args[macro.named :])),
            static=False,
            requested=f"{token.text}({', '.join(names)})" if macro.kind else names[0],
            probe=(macro.kind, target) if macro.kind else None,
            generated=False,
        )
        self._signature(token, end, made)

    def _ask(self, i: int, end: int) -> None:
        """Read ``PROBE("KIND:TARGET")``."""
        start, strings = self.tokens[i].start, self.tokens[i + 2 : end]
        if end == len(self.tokens) or not strings or any(t.kind != "string" or t.text[0] != '"' for t in strings):
            hint = f'write {ATTACH}("uprobe:c:malloc"), with one probe in quotes'
            raise self.cell.error(f"{ATTACH}(...) names no probe", start, hint=hint)
        text = "".join(t.text[1:-1] for t in strings)
        self.asked.append(Asked(text, start, self.tokens[end].end))

    def place_asked(self) -> None:
        """Give each PROBE(...) to the function that follows it. ProgramError where none does."""
        self.starts.sort()
        for asked in self.asked:
            at, name = next(((at, name) for at, name in self.starts if at >= asked.end), (len(self.cell.source), ""))
            if not name and self.cell.doubtful:
                continue
            if not name or any(self._stands_alone(t) for t in self.tokens if asked.end <= t.start < at):
                hint = f'write {ATTACH}("{asked.text}") on a line before the function'
                raise self.cell.error(f"{ATTACH}(...) stands before no function", asked.start, hint=hint)
            if _within(asked.start, self.maybe) and not _within(at, self.maybe):
                what = f"{ATTACH}(...) stands under an #if that only the compiler can decide"
                raise self.cell.error(what, asked.start, hint="put the function under the #if as well")
            f = next(f for f in self.cell.functions if f.name == name)
            f.asked += (asked,)

    def _stands_alone(self, token: Token) -> bool:
        """Return whether a token is part of neither a PROBE(...) nor its semicolon."""
        return token.text != ";" and not any(asked.start <= token.start < asked.end for asked in self.asked)

    def _signature(self, token: Token, end: int, made: _Made) -> None:
        """Replace a macro's use by a signature that the C grammar knows: ``a bbb()``."""
        stop = self.tokens[end].end if end < len(self.tokens) else token.end
        if "\n" in self.cell.source[token.start : stop]:
            stop = self.cell.source.index("\n", token.start)
        if stop - token.start < len("a b()"):
            self.cell.doubtful = True
            return
        _fill(self.text, token.start, f"a {'b' * (stop - token.start - 4)}()")
        self.made[token.start + 2] = made

    def _use(self, i: int, end: int) -> None:
        """Read what a macro of the cell expands to at the top level."""
        token, macro = self.tokens[i], self.cell.macros[self.tokens[i].text][0]
        if macro.parameters is None:
            self.cell.doubtful = True
            return
        args = [_text(self.cell, arg) for arg in arguments(self.tokens, i + 1)]
        body_follows = end + 1 < len(self.tokens) and self.tokens[end + 1].text == "{"
        written = Cell(macro.expand(args) + ("{}" if body_follows else ""))
        written.macros = {k: v for k, v in self.cell.macros.items() if k != macro.name}
        written.tokens = [t for t in lex(written.source) if t.kind != "comment"]
        _Structure(written, written.tokens, []).read()
        self.cell.doubtful |= written.doubtful
        line = self.cell.place(token.start)[0]
        self.cell.outputs += [msgspec.structs.replace(o, line=line) for o in written.outputs]
        self.cell.maps += [msgspec.structs.replace(m, line=line) for m in written.maps]
        if body_follows and written.functions:
            f = written.functions.pop()
            self._signature(token, end, _Made(f.name, f.parameters, f.static, f.requested, f.probe, True))
        self.cell.functions += [self._generated(f, token) for f in written.functions]

    def _generated(self, f: Body, use: Token) -> Body:
        maybe = _within(use.start, self.maybe)
        at = use.start
        return dataclasses.replace(f, name_at=at, start=at, open=0, close=0, conditional=maybe, generated=True)

    def _function(self, node: Node) -> None:
        declarator, body = function_declarator(node), node.child_by_field_name("body")
        index = self.braces.get(body.start_byte) if body else None
        if declarator is None or body is None or index is None:
            self.cell.doubtful = True
            return
        name = declarator.child_by_field_name("declarator")
        assert name is not None  # function_declarator() returns no other
        end = closing(self.tokens, index)
        made = self.made.get(name.start_byte)
        found = Body(
            name=made.name if made else self.cell.source[name.start_byte : name.end_byte],
            name_at=node.start_byte if made else name.start_byte,
            start=node.start_byte,
            open=body.start_byte,
            close=self.tokens[end].start if end < len(self.tokens) else len(self.cell.source),
            static=made.static if made else self._static(node, declarator),
            parameters=made.parameters if made else self._parameters(declarator),
            conditional=_within(name.start_byte, self.maybe),
            tokens=self.tokens[index + 1 : end],
            requested="",
            probe=made.probe if made else None,
            generated=bool(made),
        )
        found.requested = made.requested if made and made.requested else found.name
        self.starts.append((found.start, found.name))
        if all(f.name != found.name for f in self.cell.functions):  # the other half of an #if / #else
            self.cell.functions.append(found)

    def _static(self, node: Node, declarator: Node) -> bool:
        words = {t.text for t in lex("".join(self.text[node.start_byte : declarator.start_byte]))}
        before = bisect.bisect_right(self.ends, node.start_byte)
        since = self.ends[before - 1] if before else 0
        return "static" in words or any(since <= at < declarator.start_byte for at in self.statics)

    def _parameters(self, declarator: Node) -> tuple[str, ...]:
        parameters = declarator.child_by_field_name("parameters")
        assert parameters is not None  # the grammar gives every function_declarator one
        tokens = self.cell.tokens
        first, end = (bisect.bisect_left(tokens, at, key=_START) for at in (parameters.start_byte, parameters.end_byte))
        texts = [_text(self.cell, arg) for arg in arguments(tokens[first:end], 0)]
        return () if texts in ([""], ["void"]) else tuple(texts)


def _no_arguments(tokens: Sequence[Token]) -> Iterator[Token]:
    """Yield the tokens, but not attributes that take arguments."""
    i = 0
    while i < len(tokens):
        if tokens[i].text in ATTRIBUTES_WITH_ARGUMENTS and opens(tokens, i + 1):
            i = closing(tokens, i + 1)
        else:
            yield tokens[i]
        i += 1


def _text(cell: Cell, tokens: Sequence[Token]) -> str:
    """Return the source of some tokens on one line, without comments."""
    out = ""
    for before, token in zip([None, *tokens], tokens, strict=False):
        out += (" " if before and before.end < token.start else "") + token.text
    return out


def _blank(source: str) -> list[str]:
    return ["\n" if c == "\n" else " " for c in source]


def _fill(text: list[str], at: int, word: str) -> None:
    text[at : at + len(word)] = word if word.isascii() else [c if c.isascii() else "_" for c in word]
