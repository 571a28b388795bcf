"""The type of an expression, as far as the cell's own text says it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bpfnb.language.editing.scope import Scope, as_ascii, table_type
from bpfnb.language.editing.types import CType, text_of, type_named
from bpfnb.language.syntax import Node, parse_c, walk
from bpfnb.language.tokens import Token
from bpfnb.language.vocabulary import METHODS, helpers

__all__ = ["postfix_start", "type_of"]

_NO_OPERAND = frozenset(("return", "if", "while", "for", "switch", "else", "case", "do", "goto"))
_DEEPEST = 64
_SAME = {  # what has the type of one of its parts
    "parenthesized_expression": 0,
    "update_expression": "argument",
    "assignment_expression": "left",
    "binary_expression": "left",
    "comma_expression": "right",
    "conditional_expression": "consequence",
}


def postfix_start(tokens: Sequence[Token]) -> int:
    """Return the index at which the operand begins that a "." or "->" behind the tokens is about; -1 for none."""
    at = len(tokens) - 1
    start = -1
    while at >= 0:
        token = tokens[at]
        if token.text in (")", "]"):
            at = _opening(tokens, at)
            if at < 0:
                return -1
            start = at
            before = tokens[at - 1] if at else None
            if before and (before.text in (")", "]") or (before.kind == "word" and before.text not in _NO_OPERAND)):
                at -= 1
                continue
            return start if token.text == ")" else -1
        if token.kind != "word" or token.text in _NO_OPERAND:
            return start
        start = at
        if at >= 2 and tokens[at - 1].text in (".", "->"):
            at -= 2
            continue
        return start
    return start


def _opening(tokens: Sequence[Token], at: int) -> int:
    depth = 0
    for i in range(at, -1, -1):
        if tokens[i].kind == "punct":
            depth += (tokens[i].text in ")]}") - (tokens[i].text in "([{")
        if not depth:
            return i
    return -1


def type_of(text: str, scope: Scope) -> CType:
    """Return the type of an expression; ``CType()`` where it is not known."""
    root = parse_c(as_ascii(f"void f(void) {{ {text}; }}"))
    statement = next((n for n in walk(root) if n.type == "expression_statement"), None)
    if statement is None or not statement.named_children:
        return type_of_name(text, scope) if re.fullmatch(r"\w+", text) else CType()
    return _of(statement.named_children[0], scope, 0)


def type_of_name(name: str, scope: Scope) -> CType:
    """Return the type of a variable, or the map or output of this name."""
    if found := scope.variables.get(name):
        return found.type
    return CType(table=name) if name in scope.tables else CType()


def _of(node: Node | None, scope: Scope, depth: int) -> CType:
    if node is None or depth > _DEEPEST:
        return CType()
    part = _SAME.get(node.type)
    if part is not None:
        inner = node.child_by_field_name(part) if isinstance(part, str) else _first(node)
        return _of(inner, scope, depth + 1)
    match node.type:
        case "identifier":
            return type_of_name(text_of(node), scope)
        case "field_expression":
            owner = _of(node.child_by_field_name("argument"), scope, depth + 1)
            return scope.types.member(owner, text_of(node.child_by_field_name("field")))
        case "subscript_expression":
            return _of(node.child_by_field_name("argument"), scope, depth + 1).element()
        case "pointer_expression":
            inner_type = _of(node.child_by_field_name("argument"), scope, depth + 1)
            return inner_type.pointed() if text_of(node).startswith("&") else inner_type.element()
        case "cast_expression" | "compound_literal_expression":
            return scope.types.of(node.child_by_field_name("type"))
        case "call_expression":
            return _called(node, scope, depth)
    return CType()


def _first(node: Node) -> Node | None:
    return node.named_children[0] if node.named_children else None


def _called(node: Node, scope: Scope, depth: int) -> CType:
    function = node.child_by_field_name("function")
    if function is None:
        return CType()
    if function.type == "field_expression":
        owner = _of(function.child_by_field_name("argument"), scope, depth + 1)
        method = METHODS.get(text_of(function.child_by_field_name("field")))
        return table_type(scope, owner.table, method.returns) if owner.table and method else CType()
    name = text_of(function)
    if name == "container_of":
        return _of_container(node)
    if name in scope.functions:
        return type_named(scope.functions[name])
    helper = helpers().get(name)
    return type_named(helper.returns) if helper else CType()


def _of_container(node: Node) -> CType:
    """Return what container_of(pointer, struct outer, member) points to."""
    found = re.fullmatch(r"container_of\s*\(.*,\s*([\w\s]+?)\s*,\s*[\w.]+\s*\)", text_of(node), re.DOTALL)
    return type_named(f"{found[1]} *") if found else CType()
