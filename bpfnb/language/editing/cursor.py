"""What is at the cursor of a cell of C: which names fit there, or what the word there is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from bpfnb.language.editing.expressions import postfix_start, type_of
from bpfnb.language.editing.scope import Scope, as_ascii, scope_of
from bpfnb.language.editing.types import CType
from bpfnb.language.tokens import Token, lex
from bpfnb.language.vocabulary import ATTACH, PROBES

__all__ = ["Spot", "spot_at", "tracepoint_of", "word_at"]

Kind = Literal["nothing", "name", "tag", "member", "initializer", "macro", "probe", "include"]
_PART = re.compile(r"[A-Za-z_]\w*\Z", re.ASCII)
_WORD = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_CONTEXT = re.compile(r"struct tracepoint__([A-Za-z0-9_]+?)__(\w+)", re.ASCII)
_INCLUDE = re.compile(r'#\s*include\s*(?:<([^>"]*)|"([^>"]*))?\Z')
_MAX_TEXT = 1 << 20  # of a cell; beyond that nothing is said


class Spot(NamedTuple):
    """Where the cursor is. ``word``: the part of a word before it.

    ``kind``: "member" (behind . or ->, of ``owner``), "initializer" (.name = in braces, of ``owner``), "tag" (behind
    ``given[0]``: struct, union or enum), "macro" (in the arguments of a macro that writes a function: ``macro``, and
    the arguments ``given`` before), "probe" (in the string of PROBE), "include" (a header's name), "name" (any other
    name), or "nothing" (a comment, a string, a number). ``scope``: not for "nothing", "probe" and "include".
    """

    kind: Kind
    word: str
    scope: Scope | None = None
    owner: CType = CType()
    macro: str = ""
    given: tuple[str, ...] = ()


def spot_at(text: str, cursor: int) -> Spot:
    """Return what is at the cursor of a text of C, which need not be complete."""
    before = as_ascii(text[:cursor])
    if len(text) > _MAX_TEXT:
        return Spot("nothing", "")
    tokens = list(lex(before, directives=True))
    last = tokens[-1] if tokens else None
    if last and last.end == len(before) and last.kind in ("comment", "string", "char", "number", "directive"):
        return _in_token(last, tokens)
    found = _PART.search(before)
    word = found[0] if found else ""
    rest = before[: len(before) - len(word)]
    code = [t for t in lex(rest, directives=True) if t.kind not in ("comment", "directive")]
    return _in_code(rest, code, word)


def _in_token(last: Token, tokens: Sequence[Token]) -> Spot:
    if last.kind == "directive":
        found = _INCLUDE.match(last.text)
        return Spot("include", found[1] or found[2] or "") if found else Spot("nothing", "")
    if last.kind == "comment" and last.text.startswith("/*") and last.text.endswith("*/") and len(last.text) > 3:
        return Spot("nothing", "")
    open_string = last.kind == "string" and (len(last.text) == 1 or not last.text.endswith('"'))
    if open_string and len(tokens) > 2 and tokens[-2].text == "(" and tokens[-3].text == ATTACH:
        return Spot("probe", last.text[1:])
    return Spot("nothing", "")


def _in_code(rest: str, code: Sequence[Token], word: str) -> Spot:
    last = code[-1].text if code else ""
    if macro := _macro_around(code):
        return Spot("macro", word, None, CType(), *macro)
    if last in (".", "->"):
        start = postfix_start(code[:-1])
        if start >= 0:
            scope = scope_of(rest[: code[start].start])
            return Spot("member", word, scope, type_of(rest[code[start].start : code[-1].start], scope))
        if last == "." and (owner := _initialized(rest, code)):
            return Spot("initializer", word, *owner)
        return Spot("nothing", word)
    scope = scope_of(rest)
    if last in ("struct", "union", "enum"):
        return Spot("tag", word, scope, given=(last,))
    return Spot("name", word, scope)


def _macro_around(code: Sequence[Token]) -> tuple[str, tuple[str, ...]] | None:
    """Return the macro of a probe in whose brackets the cursor is, and its arguments so far."""
    given: list[str] = [""]
    for at in range(len(code) - 1, 0, -1):
        token = code[at]
        if token.text == "(":
            word = code[at - 1].text
            return (word, tuple(given[:-1])) if word in PROBES and len(given) <= PROBES[word].named else None
        if token.text == ",":
            given.insert(0, "")
        elif token.kind == "word":
            given[0] = token.text
        else:
            return None
    return None


def _initialized(rest: str, code: Sequence[Token]) -> tuple[Scope, CType] | None:
    """Return the type of the struct that is initialized in the braces around: ``struct data_t d = { .``."""
    depth = 0
    for at in range(len(code) - 2, 0, -1):
        text = code[at].text
        depth += (text in ")]}") - (text in "([{") if code[at].kind == "punct" else 0
        if depth < 0:
            break
    else:
        return None
    if code[at].text != "{":
        return None
    scope = scope_of(f"{rest[: code[at].start]} 0;")
    if code[at - 1].text == "=" and at >= 2:
        return scope, type_of(code[at - 2].text, scope)
    if code[at - 1].text == ")":  # a compound literal: (struct data_t){ .
        inside = [t.text for t in code[:at] if t.start >= rest.rindex("(", 0, code[at - 1].start)]
        return scope, CType(" ".join(word for word in inside if word.isidentifier()))
    return None


def tracepoint_of(type_: CType) -> str:
    """Return the tracepoint whose fields a type has, as ``struct tracepoint__CATEGORY__EVENT``; "" for another."""
    found = _CONTEXT.fullmatch(type_.name) if not type_.path else None
    return f"tracepoint:{found[1]}:{found[2]}" if found else ""


def word_at(text: str, cursor: int) -> tuple[str, int]:
    """Return the word around the cursor, or just before it, and where it ends; ("", cursor) where there is none.

    Between the brackets of a call that is the function's name.
    """
    line = as_ascii(text)
    for match in _WORD.finditer(line):
        if match.start() <= cursor <= match.end():
            return match[0], match.end()
        if match.start() > cursor:
            break
    depth = 0
    code = [t for t in lex(line[:cursor], directives=True) if t.kind != "comment"]
    for at in range(len(code) - 1, 0, -1):
        token = code[at]
        if token.kind != "punct":
            continue
        depth += (token.text in ")]}") - (token.text in "([{")
        if depth < 0:
            named = code[at - 1] if token.text == "(" else None
            return (named.text, named.end) if named and named.kind == "word" else ("", cursor)
        if token.text in (";", "{", "}") and not depth:
            break
    return "", cursor
