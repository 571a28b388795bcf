"""C's tokens. Strings, comments and directives are one token each.

lex(text)                  the tokens of a text
closing(tokens, index)     where a bracket closes
arguments(tokens, index)   the tokens of each argument in brackets
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

__all__ = ["SPLICE", "Token", "arguments", "closing", "lex", "opens"]

SPLICE = r"\\\r?\n"
_LEXER = re.compile(
    rf"""
    (?P<comment> //(?:{SPLICE}|[^\n])* | /\*.*?(?:\*/|\Z) )
    | (?P<string> (?:u8|[uUL])?"(?:\\.|[^"\\\n])*"? )
    | (?P<char> [uUL]?'(?:\\.|[^'\\\n])*'? )
    | (?P<number> \.?[0-9](?:[eEpP][+-]|[\w.])* )
    | (?P<word> [^\W\d]\w* )
    | (?P<space> (?:\s|{SPLICE})+ )
    | (?P<punct> -> | \#\# | . )
    """,
    re.VERBOSE | re.DOTALL,
)
_DIRECTIVE = re.compile(
    rf"""\#(?: {SPLICE} | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*' | /\*.*?(?:\*/|\Z) | //(?:{SPLICE}|[^\n])*
         | [^\n] )*""",
    re.VERBOSE | re.DOTALL,
)


class Token(NamedTuple):
    """A token of C. ``kind``: comment, string, char, number, word, punct or directive; white space has none."""

    kind: str
    text: str
    start: int
    end: int


_CLOSES = {"(": ")", "[": "]", "{": "}"}


def lex(text: str, start: int = 0, end: int | None = None, *, directives: bool = False) -> Iterator[Token]:
    """Yield the tokens of ``text[start:end]``. ``directives``: whether a directive is one token, or all that are in
    it."""
    fresh = True  # nothing but white space and comments so far on this line
    at, end = start, len(text) if end is None else end
    while at < end:
        match = _DIRECTIVE.match(text, at, end) if directives and fresh and text[at] == "#" else None
        kind = "directive" if match else ""
        match = match or _LEXER.match(text, at, end)
        assert match is not None  # the last alternative takes any character
        kind = kind or str(match.lastgroup)
        at = match.end()
        if kind == "space":
            fresh = fresh or "\n" in match.group().replace("\\\n", "").replace("\\\r\n", "")
            continue
        fresh = fresh and kind == "comment"
        yield Token(kind, match.group(), match.start(), at)


def closing(tokens: Sequence[Token], index: int) -> int:
    """Return the index of the bracket that closes the one at ``index``; len(tokens) where none does, or a wrong one."""
    due: list[str] = []
    for i in range(index, len(tokens)):
        text = tokens[i].text
        if text in _CLOSES:
            due.append(_CLOSES[text])
        elif text in _CLOSES.values():
            if not due or due.pop() != text:
                break
            if not due:
                return i
    return len(tokens)


def arguments(tokens: Sequence[Token], index: int) -> list[list[Token]]:
    """Return the tokens of each argument in the brackets that open at ``index``; [[]] for ``f()``."""
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in tokens[index + 1 : closing(tokens, index)]:
        if token.kind == "punct":
            depth += (token.text in "([{") - (token.text in ")]}")
        if token.text == "," and not depth:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def opens(tokens: Sequence[Token], index: int) -> bool:
    """Return whether there is a "(" at ``index``."""
    return index < len(tokens) and tokens[index].text == "("
