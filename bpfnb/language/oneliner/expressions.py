"""The expressions of one-liners: Python's syntax, parsed with ``ast`` to a small tree. Nothing is ever evaluated.

    parse("filename.startswith('/etc') and flags & 1")

What is in the language is what has a class here. Anything else is a ProgramError that says what there is.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Literal

from bpfnb.errors import ProgramError

__all__ = [
    "Binary",
    "Boolean",
    "Cast",
    "Choice",
    "Comparison",
    "Expression",
    "Len",
    "Member",
    "Membership",
    "Name",
    "Negation",
    "Node",
    "Number",
    "StartsWith",
    "Str",
    "Text",
    "Unary",
    "parse",
    "walk",
]

_MAX_CHARACTERS = 2_000
_MAX_DEPTH = 40
_MAX_NODES = 200
_MAX_TEXT = 63  # bytes of a string constant
_LANGUAGE = (
    "names, numbers and strings; + - * // % & | ^ ~ << >>; == != < <= > >=, in, not in; and, or, not; x if c else y; "
    "name.member; name.startswith('...'), len(name), str(arg0), int32(arg0)"
)


@dataclass(frozen=True)
class Number:
    value: int


@dataclass(frozen=True)
class Text:
    value: bytes


@dataclass(frozen=True)
class Name:
    name: str


@dataclass(frozen=True)
class Member:
    """``sk.__sk_common.skc_dport``: the first part is a name."""

    path: tuple[str, ...]


@dataclass(frozen=True)
class Unary:
    operator: Literal["-", "~"]
    operand: Node


@dataclass(frozen=True)
class Binary:
    operator: Literal["+", "-", "*", "//", "%", "&", "|", "^", "<<", ">>"]
    left: Node
    right: Node


@dataclass(frozen=True)
class Comparison:
    operator: Literal["==", "!=", "<", "<=", ">", ">="]
    left: Node
    right: Node


@dataclass(frozen=True)
class Membership:
    """``operand in options``, with constants as options."""

    operand: Node
    options: tuple[Node, ...]


@dataclass(frozen=True)
class Boolean:
    operator: Literal["and", "or"]
    operands: tuple[Node, ...]


@dataclass(frozen=True)
class Negation:
    operand: Node


@dataclass(frozen=True)
class Choice:
    condition: Node
    then: Node
    otherwise: Node


@dataclass(frozen=True)
class StartsWith:
    operand: Node
    prefixes: tuple[Text, ...]


@dataclass(frozen=True)
class Len:
    operand: Node


@dataclass(frozen=True)
class Str:
    """``str(arg0)``: the string at an address."""

    operand: Node


@dataclass(frozen=True)
class Cast:
    """``int32(retval)``: the low bits of a number, as a type of C has them."""

    type: str
    operand: Node


CASTS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
Node = (
    Number | Text | Name | Member | Unary | Binary | Comparison | Membership | Boolean | Negation | Choice | StartsWith
    | Len | Str | Cast
)  # fmt: skip


@dataclass(frozen=True)
class Expression:
    """A parsed expression. ``what``: what it is for, such as "where", for messages."""

    text: str
    what: str
    root: Node

    def names(self) -> tuple[str, ...]:
        """Return the names that are used, each once, in their order."""
        found = (n.name if isinstance(n, Name) else n.path[0] for n in walk(self.root) if isinstance(n, Name | Member))
        return tuple(dict.fromkeys(found))

    def paths(self) -> tuple[tuple[str, ...], ...]:
        """Return the paths of members that are used."""
        return tuple(dict.fromkeys(n.path for n in walk(self.root) if isinstance(n, Member)))

    def error(self, message: str, hint: str | None = None) -> ProgramError:
        return ProgramError(f"{self.what} {self.text!r}: {message}", hint=hint)


def walk(node: Node) -> Iterator[Node]:
    """Yield a node and all below it."""
    yield node
    for field in fields(node):
        value = getattr(node, field.name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, Node):
                yield from walk(part)


def parse(text: str, what: str) -> Expression:
    """Parse an expression. ``what``: what it is for, such as "where". ProgramError for what is not in the language."""
    if not isinstance(text, str):
        raise ProgramError(f"{what} must be a str with an expression, not {text!r}")
    text = text.strip()
    shown = text if len(text) <= 80 else f"{text[:80]}..."
    if not text:
        raise ProgramError(f"{what} is empty: write an expression, such as pid == 1")
    if len(text) > _MAX_CHARACTERS:
        raise ProgramError(f"{what} {shown!r}: longer than {_MAX_CHARACTERS:,} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python's: "is" with a literal
            tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ProgramError(
            f"{what} {shown!r}: {_why(text, error)}", hint=f"it is an expression of {_LANGUAGE}"
        ) from None
    except (ValueError, RecursionError, MemoryError):
        raise ProgramError(f"{what} {shown!r}: nested too deeply, or with characters that no expression has") from None
    try:
        return Expression(text, what, _Parser(text, what).node(tree, 0))
    except RecursionError:
        raise ProgramError(f"{what} {shown!r}: nested too deeply") from None


def _why(text: str, error: SyntaxError) -> str:
    single = "=" in text and not any(pair in text for pair in ("==", "!=", "<=", ">="))
    return "one = compares nothing: write ==" if single else f"not an expression ({error.msg})"


_BINARY = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.FloorDiv: "//", ast.Mod: "%",
    ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^", ast.LShift: "<<", ast.RShift: ">>",
}  # fmt: skip
_COMPARISONS = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Is: "==", ast.IsNot: "!="
}  # fmt: skip


class _Parser:
    def __init__(self, text: str, what: str) -> None:
        self.text, self.what = text, what
        self.count = 0

    def node(self, tree: ast.expr, depth: int) -> Node:
        self.count += 1
        if depth > _MAX_DEPTH or self.count > _MAX_NODES:
            raise self.error(f"larger than {_MAX_NODES} parts, or nested more than {_MAX_DEPTH} deep")
        method: Callable[[ast.expr, int], Node] | None = getattr(self, f"on_{type(tree).__name__.lower()}", None)
        if method is None:
            raise self.unknown(tree)
        return method(tree, depth + 1)

    def error(self, message: str, hint: str | None = None) -> ProgramError:
        shown = self.text if len(self.text) <= 80 else f"{self.text[:80]}..."
        return ProgramError(f"{self.what} {shown!r}: {message}", hint=hint)

    def unknown(self, tree: ast.expr, message: str = "") -> ProgramError:
        part = ast.get_source_segment(self.text, tree) or type(tree).__name__
        part = part if len(part) <= 40 else f"{part[:40]}..."
        return self.error(message or f"{part!r} is not in the language of one-liners", hint=f"it has {_LANGUAGE}")

    # One method a class of ast.

    def on_constant(self, tree: ast.Constant, depth: int) -> Node:
        value = tree.value
        if isinstance(value, bool | int):
            if not -(1 << 63) <= value < 1 << 64:
                raise self.error(f"{value if abs(value) < 1 << 80 else 'the number'} has more than 64 bits")
            return Number(int(value))
        if isinstance(value, str | bytes):
            return self.string(tree, value)
        if isinstance(value, float):
            raise self.error(f"{value} is no whole number: the kernel computes with integers")
        raise self.unknown(tree)

    def string(self, tree: ast.expr, value: str | bytes) -> Text:
        data = value.encode(errors="surrogateescape") if isinstance(value, str) else value
        if len(data) > _MAX_TEXT:
            raise self.error(f"a string constant has at most {_MAX_TEXT} bytes, not {len(data)}")
        if b"\0" in data:
            raise self.error("a string of the kernel's has no NUL character")
        return Text(data)

    def on_name(self, tree: ast.Name, depth: int) -> Node:
        return Name(tree.id)

    def on_attribute(self, tree: ast.Attribute, depth: int) -> Node:
        path = [tree.attr]
        below: ast.expr = tree.value
        while isinstance(below, ast.Attribute):
            path.append(below.attr)
            below = below.value
        if not isinstance(below, ast.Name):
            raise self.unknown(tree)
        return Member((below.id, *reversed(path)))

    def on_unaryop(self, tree: ast.UnaryOp, depth: int) -> Node:
        operand = self.node(tree.operand, depth)
        if isinstance(tree.op, ast.Not):
            return Negation(operand)
        if isinstance(tree.op, ast.UAdd):
            return operand
        if isinstance(operand, Number):
            value = -operand.value if isinstance(tree.op, ast.USub) else ~operand.value
            if value < -(1 << 63):
                raise self.error(f"{value} has more than 64 bits")
            return Number(value)
        return Unary("-" if isinstance(tree.op, ast.USub) else "~", operand)

    def on_binop(self, tree: ast.BinOp, depth: int) -> Node:
        if isinstance(tree.op, ast.Div):
            raise self.unknown(tree, "/ gives fractions, and the kernel computes with integers: write //")
        if type(tree.op) not in _BINARY:
            raise self.unknown(tree)
        left, right = self.node(tree.left, depth), self.node(tree.right, depth)
        return Binary(_BINARY[type(tree.op)], left, right)  # type: ignore[arg-type]

    def on_boolop(self, tree: ast.BoolOp, depth: int) -> Node:
        operands = tuple(self.node(value, depth) for value in tree.values)
        return Boolean("and" if isinstance(tree.op, ast.And) else "or", operands)

    def on_compare(self, tree: ast.Compare, depth: int) -> Node:
        sides: list[ast.expr] = [tree.left, *tree.comparators]
        parts = [self.compare(tree, *pair, depth) for pair in zip(sides, tree.ops, sides[1:], strict=False)]
        return parts[0] if len(parts) == 1 else Boolean("and", tuple(parts))

    def compare(self, tree: ast.expr, left: ast.expr, operator: ast.cmpop, right: ast.expr, depth: int) -> Node:
        if isinstance(operator, ast.In | ast.NotIn):
            if not isinstance(right, ast.Tuple | ast.List | ast.Set) or not right.elts:
                raise self.unknown(tree, "in takes constants in brackets: errno in (2, 13), comm in ('sh', 'bash')")
            options = tuple(self.node(option, depth) for option in right.elts)
            if not all(isinstance(option, Number | Text) for option in options):
                raise self.unknown(tree, "in takes constants in brackets: errno in (2, 13), comm in ('sh', 'bash')")
            found = Membership(self.node(left, depth), options)
            return Negation(found) if isinstance(operator, ast.NotIn) else found
        if isinstance(operator, ast.Is | ast.IsNot):
            raise self.unknown(tree, "'is' is not in the language: write == or !=; a NULL pointer is 0")
        return Comparison(_COMPARISONS[type(operator)], self.node(left, depth), self.node(right, depth))  # type: ignore[arg-type]

    def on_ifexp(self, tree: ast.IfExp, depth: int) -> Node:
        return Choice(self.node(tree.test, depth), self.node(tree.body, depth), self.node(tree.orelse, depth))

    def on_call(self, tree: ast.Call, depth: int) -> Node:
        if tree.keywords:
            raise self.unknown(tree)
        function, args = tree.func, tree.args
        if isinstance(function, ast.Attribute) and function.attr == "startswith" and len(args) == 1:
            options = args[0].elts if isinstance(args[0], ast.Tuple) else [args[0]]
            prefixes = [self.node(option, depth) for option in options]
            texts = tuple(prefix for prefix in prefixes if isinstance(prefix, Text))
            if not texts or len(texts) != len(prefixes):
                raise self.unknown(tree, "startswith takes a string: filename.startswith('/etc')")
            return StartsWith(self.node(function.value, depth), texts)
        if isinstance(function, ast.Name) and function.id in CASTS and len(args) == 1:
            return Cast(function.id, self.node(args[0], depth))
        if isinstance(function, ast.Name) and function.id in ("len", "str") and len(args) == 1:
            operand = self.node(args[0], depth)
            return Len(operand) if function.id == "len" else Str(operand)
        raise self.unknown(tree)
