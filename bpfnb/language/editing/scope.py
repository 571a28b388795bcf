"""Which names a cell has where the cursor is. C declares before it uses: the text behind the cursor does not matter."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bpfnb.language.editing.types import CType, Declared, Types, text_of, type_named
from bpfnb.language.syntax import Node, function_declarator, parse_c, walk
from bpfnb.language.tokens import Token, arguments, closing, lex, opens
from bpfnb.language.vocabulary import ATTACH, ATTRIBUTES, PROBES, TABLES

__all__ = ["Scope", "Table", "as_ascii", "functions", "scope_of"]

_MARK = "bpfnb_cursor_"
_CLOSES = {"(": ")", "[": "]", "{": "}"}
_WORD = re.compile(r"\w+", re.ASCII)
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_DEFINE = re.compile(r"#\s*define\s+(\w+)(\(.*?\))?(.*)", re.DOTALL)


def as_ascii(text: str) -> str:
    """Return the text with a "_" for each character that is not ASCII: offsets stay, and names stay names."""
    return _NOT_ASCII.sub("_", text)


class Table(NamedTuple):
    """A map or an output: the macro that declares it, and the types of its keys and values."""

    name: str
    macro: str
    key: str
    value: str


class Scope(NamedTuple):
    """What can be named at the cursor. ``inside``: the cursor is in a function's body.

    ``variables``: with the parameters, the innermost of each name. ``functions``: with what they return. ``macros``:
    those that #define has, with their text.
    """

    types: Types
    variables: dict[str, Declared]
    functions: dict[str, str]
    tables: dict[str, Table]
    macros: dict[str, str]
    inside: bool


def scope_of(before: str) -> Scope:
    """Return what can be named behind a text, which may break off anywhere but within a token."""
    tokens = [token for token in lex(before, directives=True) if token.kind != "comment"]
    code = [token for token in tokens if token.kind != "directive"]
    tables = {table.name: table for table in _tables(code)}
    text = _plain_c(before, code)
    unclosed = _unclosed(code)
    closers = "".join(_CLOSES[bracket] for bracket in reversed(unclosed))
    inner = len(unclosed) - unclosed[::-1].index("{") if "{" in unclosed else 0
    statement, blocks = closers[: len(unclosed) - inner], closers[len(unclosed) - inner :]
    root = parse_c(f"{text} {_MARK}{statement};{blocks}\n")
    types = Types(root)
    variables = {found.name: found for found in _visible(root, types, len(text))}
    macros = {m[1]: m[2] or m[3].strip() for t in tokens if t.kind == "directive" and (m := _DEFINE.match(t.text))}
    return Scope(types, variables, _functions(root), tables, macros, bool(inner))


def functions(text: str) -> list[str]:
    """Return the names of a text's functions, in order, for ``-a PROBE=``: without those that a macro attaches."""
    code = [token for token in lex(as_ascii(text), directives=True) if token.kind not in ("comment", "directive")]
    depth, found = 0, []
    for i, token in enumerate(code):
        if not depth and token.kind == "word" and opens(code, i + 1) and i and code[i - 1].text not in ("(", ",", "="):
            end = closing(code, i + 1)
            if end + 1 < len(code) and code[end + 1].text == "{" and token.text not in PROBES:
                found.append(token.text)
        depth += (token.text in "({[") - (token.text in ")}]") if token.kind == "punct" else 0
    return found


def _tables(code: Sequence[Token]) -> Iterator[Table]:
    for i, token in enumerate(code):
        macro = TABLES.get(token.text)
        if not macro or not opens(code, i + 1):
            continue
        given = [" ".join(t.text for t in argument) for argument in arguments(code, i + 1)]
        named = dict(zip(macro.parameters, given, strict=False))
        if name := named.get("NAME"):
            yield Table(name, token.text, named.get("KEY", _key_of(token.text)), named.get("VALUE", "u64"))


def _key_of(macro: str) -> str:
    return "int" if "ARRAY" in macro or "HIST" in macro else "u64" if "HASH" in macro or "LPM" in macro else ""


def _plain_c(text: str, code: Sequence[Token]) -> str:
    """Return the text with bcc's macros out of the way: functions have their parameters, maps are blanks."""
    pieces, at = [], 0
    for i, token in enumerate(code):
        if token.start < at or token.kind != "word":
            continue
        if token.text in ATTRIBUTES and token.text != "BPF_PROG":
            pieces += [text[at : token.start], " " * len(token.text)]
            at = token.end
        elif (token.text in TABLES or token.text in PROBES or token.text == ATTACH) and opens(code, i + 1):
            end = closing(code, i + 1)
            if end == len(code):
                continue
            stop = code[end].end
            replaced = ""
            if token.text in PROBES:
                replaced = _signature(token.text, [_joined(text, a) for a in arguments(code, i + 1)])
            pieces += [text[at : token.start], replaced or " "]
            at = stop
            if token.text in TABLES and end + 1 < len(code) and code[end + 1].text == ";":
                at = code[end + 1].end
    return as_ascii("".join([*pieces, text[at:]]))


def _joined(text: str, tokens: Sequence[Token]) -> str:
    return text[tokens[0].start : tokens[-1].end] if tokens else ""


def _signature(word: str, given: Sequence[str]) -> str:
    macro = PROBES[word]
    names = [given[i] if i < len(given) else "x" for i in range(macro.named)]
    context = macro.context.format(*names) if "{}" in macro.context else macro.context
    return f"int {macro.function.format(*names)}({', '.join([context, *given[macro.named :]])})"


def _unclosed(code: Sequence[Token]) -> list[str]:
    found: list[str] = []
    for token in code:
        if token.kind != "punct":
            continue
        if token.text in _CLOSES:
            found.append(token.text)
        elif token.text in _CLOSES.values() and token.text in (_CLOSES[b] for b in found):
            while _CLOSES[found.pop()] != token.text:
                pass
    return found


_SCOPES = ("compound_statement", "for_statement", "function_definition", "function_declarator")


def _visible(root: Node, types: Types, cursor: int) -> Iterator[Declared]:
    """Yield what is declared where the cursor can see it, in the order of the text."""
    for node in walk(root):
        if node.type not in ("declaration", "parameter_declaration") or node.start_byte > cursor:
            continue
        if _sees(node, cursor):
            yield from types.declared(node)


def _sees(node: Node, cursor: int) -> bool:
    around = node.parent
    while around is not None:
        if around.type in _SCOPES:
            inside = around.start_byte <= cursor < around.end_byte
            of_a_function = around.type == "function_declarator" and around.parent
            if of_a_function:
                around = around.parent
                while around is not None and around.type not in ("function_definition", "declaration", "ERROR"):
                    around = around.parent
                return around is None or around.start_byte <= cursor < around.end_byte
            if not inside:
                return False
        around = around.parent
    return True


def _functions(root: Node) -> dict[str, str]:
    found = {}
    for node in walk(root):
        if node.type == "function_definition" and (declarator := function_declarator(node)):
            kind = text_of(node.child_by_field_name("type"))
            outer = text_of(node.child_by_field_name("declarator"))
            stars = len(outer) - len(outer.lstrip("* "))
            name = text_of(declarator.child_by_field_name("declarator"))
            found[name] = f"{kind} *" if stars else kind
    return found


def table_type(scope: Scope, name: str, returns: str) -> CType:
    """Return the type that a method of a map returns, which has KEY and VALUE for the types of the map."""
    table = scope.tables[name]
    made = type_named(returns.replace("VALUE", "").replace("KEY", ""))
    word = table.value if "VALUE" in returns else table.key if "KEY" in returns else ""
    if not word:
        return made
    base = type_named(word)
    return CType(base.name, base.stars + returns.count("*"))
