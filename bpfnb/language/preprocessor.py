"""Macros and conditionals of a cell, as far as the preprocessor's work is known without the headers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from bpfnb.language.tokens import SPLICE, Token, lex

__all__ = ["Conditionals", "Macro", "read_macro"]


@dataclasses.dataclass(frozen=True)
class Macro:
    """A ``#define`` of the cell. ``tokens`` is its body; ``parameters`` is None for an object-like one."""

    name: str
    parameters: tuple[str, ...] | None
    tokens: tuple[Token, ...]

    def expand(self, args: Sequence[str]) -> str:
        """Return the body with the arguments put in and ``#`` and ``##`` applied; macros in it are not expanded."""
        names = self.parameters or ()
        values = dict(zip(names, args, strict=False))
        if names and names[-1] == "__VA_ARGS__":
            values["__VA_ARGS__"] = ", ".join(args[len(names) - 1 :])
        out = ""
        previous = ""
        for token in self.tokens:
            text = values.get(token.text, token.text) if token.kind == "word" else token.text
            if previous == "#" and token.text in values:
                out, text = out[:-1], '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
            if token.text == "##" or previous == "##":
                out = out.rstrip()
            out += "" if token.text == "##" else text if token.text == "#" else text + " "
            previous = token.text
        return out


def _directive(token: Token) -> tuple[str, str, int]:
    """Split a directive into its name, the rest, and the rest's offset; comments and splices become blanks."""
    text = re.sub(SPLICE, lambda m: " " * len(m.group()), token.text)
    clean = "".join(" " * len(t.text) if t.kind == "comment" else t.text for t in _with_space(text))
    match = re.match(r"#\s*(\w*)[ \t]*", clean)
    assert match is not None  # a directive token starts with "#"
    return match[1], clean[match.end() :].rstrip(), token.start + match.end()


def _with_space(text: str) -> Iterator[Token]:
    """Yield all of the text as tokens, white space included."""
    at = 0
    for token in lex(text):
        if token.start > at:
            yield Token("space", text[at : token.start], at, token.start)
        yield token
        at = token.end
    yield Token("space", text[at:], at, len(text))


def read_macro(directive: Token) -> Macro | None:
    """Return the macro that a directive defines; None where it is another directive."""
    name, rest, at = _directive(directive)
    match = re.match(r"([A-Za-z_]\w*)(\(([^)]*)\))?", rest) if name == "define" else None
    if not match:
        return None
    parameters = None
    if match[2]:
        parameters = tuple(p.strip().removesuffix("...").strip() or "__VA_ARGS__" for p in match[3].split(","))
        parameters = () if not match[3].strip() else parameters
    body = [Token(t.kind, t.text, t.start + at, t.end + at) for t in lex(rest, match.end())]
    return Macro(match[1], parameters, tuple(body))


State = Literal["live", "maybe", "dead"]  # compiled, known to the compiler alone, not compiled


@dataclasses.dataclass
class _Branch:
    """The text between two directives of a conditional."""

    start: int
    state: State
    end: int = 0


_STATES: dict[bool | None, State] = {True: "live", False: "dead", None: "maybe"}


class Conditionals:
    """Follows ``#if`` ... ``#endif`` through a text. ``state``: of the text after the last directive. ``maybe``: the
    ranges that only the compiler can decide on."""

    def __init__(self, defined: set[str]) -> None:
        self.state: State = "live"
        self.maybe: list[tuple[int, int]] = []
        self._defined = defined
        self._open: list[list[_Branch]] = []
        self._closed: list[list[_Branch]] = []

    def directive(self, token: Token) -> bool:
        """Take the next directive. Return whether it takes effect: not in dead text, and not itself a conditional."""
        name, rest, _ = _directive(token)
        if name in ("if", "ifdef", "ifndef"):
            self._open.append([_Branch(token.end, self._first(name, rest))])
        elif name in ("elif", "else") and self._open:
            self._open[-1][-1].end = token.start
            self._open[-1].append(_Branch(token.end, self._next(self._open[-1], name, rest)))
        elif name == "endif" and self._open:
            self._close(token.start)
        else:
            self._note(name, rest)
            return self.state != "dead"
        states = [group[-1].state for group in self._open]
        self.state = "dead" if "dead" in states else "maybe" if "maybe" in states else "live"
        return False

    def finish(self, end: int) -> None:
        """Close the conditionals that the text leaves open."""
        while self._open:
            self._close(end)

    def hidden(self, tokens: Sequence[Token]) -> list[tuple[int, int]]:
        """Return the branches to leave out so that braces balance: all but the first of each conditional that would
        unbalance them."""
        ranges = []
        for group in self._closed:
            present = [b for b in group if b.state != "dead"]
            if any(_net(t for t in tokens if b.start <= t.start < b.end) for b in present):
                ranges += [(b.start, b.end) for b in present[1:]]
        return ranges

    def _close(self, end: int) -> None:
        group = self._open.pop()
        group[-1].end = end
        self._closed.append(group)
        self.maybe += [(b.start, b.end) for b in group if b.state == "maybe"]

    def _note(self, name: str, rest: str) -> None:
        macro = re.match(r"\w+", rest)
        if macro and name == "define" and self.state == "live":
            self._defined.add(macro.group())
        elif macro and name == "undef":
            self._defined.discard(macro.group())

    def _first(self, name: str, rest: str) -> State:
        if name == "if":
            return _STATES[self._truth(rest)]
        if rest.strip() not in self._defined:
            return "maybe"  # a header may define it
        return "live" if name == "ifdef" else "dead"

    def _next(self, group: list[_Branch], name: str, rest: str) -> State:
        if any(b.state == "live" for b in group):
            return "dead"
        truth = True if name == "else" else self._truth(rest)
        undecided = any(b.state == "maybe" for b in group)
        return "dead" if truth is False else "live" if truth and not undecided else "maybe"

    def _truth(self, expression: str) -> bool | None:
        """Return whether an expression is true; None where that depends on more than this text."""
        words = "".join(t.text for t in lex(expression) if t.text not in "()")
        negated, words = words.startswith("!"), words.removeprefix("!")
        if re.fullmatch(r"[0-9]+", words):
            return (int(words) != 0) is not negated
        known = re.fullmatch(r"defined([A-Za-z_]\w*)", words)
        return not negated if known and known[1] in self._defined else None


def _net(tokens: Iterable[Token]) -> int:
    """Return how many brackets stay open."""
    marks = [t.text for t in tokens if t.kind == "punct"]
    return sum((m in "([{") - (m in ")]}") for m in marks)
