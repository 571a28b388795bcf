"""A tree -> C. Types are checked on the way; numbers mean what they mean in Python, within 64 bits.

What has no value ends the program: a division by zero, memory that cannot be read. ``return skip();`` counts such an
event and leaves it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Protocol

from bpfnb.errors import ProgramError
from bpfnb.language.oneliner.expressions import (
    Binary,
    Boolean,
    Cast,
    Choice,
    Comparison,
    Expression,
    Len,
    Member,
    Membership,
    Name,
    Negation,
    Node,
    Number,
    StartsWith,
    Str,
    Text,
    Unary,
)
from bpfnb.language.oneliner.values import S64, U64, Integer, String, Value, literal, of_type, quoted
from bpfnb.language.signature import Type

__all__ = ["MAX_LEN", "NUMBERS", "Scope", "condition", "translate"]

MAX_LEN = 128  # bytes of a string that len() measures


# Names of numbers that are no addresses.
NUMBERS = ("pid", "tid", "ppid", "uid", "gid", "cpu", "cgroup", "time", "probe", "retval", "errno", "latency")


class Scope(Protocol):
    """The names at one place of a program. Both raise ProgramError for what is not there."""

    def name(self, expression: Expression, name: str) -> Value: ...

    def member(self, expression: Expression, path: tuple[str, ...]) -> Value: ...

    def string_at(self, expression: Expression, address: Node) -> Value | None:
        """Return the string at an address, where it was read before; None where it is to be read now."""


def translate(expression: Expression, scope: Scope) -> Value:
    """Return an expression's value as C. ProgramError for what does not fit together."""
    return _Translator(expression, scope).value(expression.root)


def condition(expression: Expression, scope: Scope) -> str:
    """Return a condition as C that is true or false."""
    translator = _Translator(expression, scope)
    return translator.truth(expression.root)


class _Translator:
    def __init__(self, expression: Expression, scope: Scope) -> None:
        self.expression, self.scope = expression, scope

    def error(self, message: str, hint: str | None = None) -> ProgramError:
        return self.expression.error(message, hint)

    def value(self, node: Node) -> Value:
        result: Value = getattr(self, f"on_{type(node).__name__.lower()}")(node)
        return result

    def integer(self, node: Node, what: str) -> Integer:
        value = self.value(node)
        if isinstance(value, String):
            raise self.error(f"{what} takes numbers, and {_shown(node)} is a string")
        return value

    def truth(self, node: Node) -> str:
        """Return C that is true where Python takes the value for true."""
        value = self.value(node)
        if isinstance(value, Integer):
            return value.code
        if value.place == "constant":
            raise self.error(f"{_shown(node)} is always the same")
        return self.with_text(value, 2, "{text}[0] != 0")

    # --- leaves

    def on_number(self, node: Number) -> Value:
        return literal(node.value)

    def on_text(self, node: Text) -> Value:
        return String(quoted(node.value), "constant", len(node.value) + 1, node.value)

    def on_name(self, node: Name) -> Value:
        return self.scope.name(self.expression, node.name)

    def on_member(self, node: Member) -> Value:
        return self.scope.member(self.expression, node.path)

    # --- arithmetic

    def on_unary(self, node: Unary) -> Value:
        if node.operator == "-":
            return self.on_binary(Binary("-", Number(0), node.operand))
        return self.on_binary(Binary("^", node.operand, Number(-1)))

    def on_binary(self, node: Binary) -> Value:
        left, right = self.integer(node.left, node.operator), self.integer(node.right, node.operator)
        if node.operator in ("//", "%"):
            return self.quotient(node, left, right)
        if node.operator in ("<<", ">>"):
            return self.shift(node, left, right)
        low, high = _range(node.operator, left, right)
        code = f"({left.wide()} {node.operator} {right.wide()})"
        natural = "u64" if "u64" in (left.type, right.type) else "s64"
        exact = S64[0] <= low and high <= S64[1]
        if not exact and natural == "s64" and node.operator in ("+", "-", "*"):  # C leaves a signed overflow undefined
            code, natural = f"((u64){left.code} {node.operator} (u64){right.code})", "u64"
        return _cast(code, natural, low, high)

    def quotient(self, node: Binary, left: Integer, right: Integer) -> Value:
        if right.constant and right.low == 0:
            raise self.error("a division by zero")
        unsigned = left.low >= 0 and right.low >= 0
        kind = "u64" if unsigned else "s64"
        by = right.code if right.constant else "by"
        if unsigned:
            code = f"(u64){left.code} {'/' if node.operator == '//' else '%'} {by}"
        else:
            code = f"{'floor_div' if node.operator == '//' else 'floor_mod'}({left.code}, {by})"
        if not right.constant:
            code = f"({{ {kind} by = {right.code}; if (!by) return skip(); {code}; }})"
        low, high = U64 if unsigned else S64
        if unsigned:
            high = left.high if node.operator == "//" else min(left.high, right.high)
        return Integer(f"({code})", "u64" if unsigned else "s64", low, high)

    def shift(self, node: Binary, left: Integer, right: Integer) -> Value:
        if right.constant and not 0 <= right.low <= 63:
            raise self.error(f"a shift by {right.low}: numbers have 64 bits")
        unsigned = left.low >= 0
        kind = "u64" if unsigned else "s64"
        if right.constant:
            if node.operator == ">>":
                return Integer(
                    f"({left.wide()} >> {right.code})", _natural(left), left.low >> right.low, left.high >> right.low
                )
            return _cast(f"((u64){left.code} << {right.code})", "u64", left.low << right.low, left.high << right.low)
        beyond = "0" if unsigned or node.operator == "<<" else "(value < 0 ? -1 : 0)"
        shifted = "value >> by" if node.operator == ">>" else f"({kind})((u64)value << by)"
        negative = "if (by < 0) return skip(); " if right.low < 0 else ""
        code = f"({{ s64 by = {right.code}; {kind} value = {left.code}; {negative}by > 63 ? {beyond} : {shifted}; }})"
        low, high = (left.low, left.high) if node.operator == ">>" else (U64 if unsigned else S64)
        return Integer(code, "u64" if unsigned else "s64", min(low, 0), max(high, 0))

    def on_cast(self, node: Cast) -> Value:
        value = self.integer(node.operand, node.type)
        signed, bits = node.type.startswith("i"), int(node.type.lstrip("uint"))
        name = f"{'s' if signed else 'u'}{bits}"
        return replace(of_type(f"(({name}){value.code})", Type(name, "int", bits // 8, signed)), meaning=None)

    # --- comparisons

    def on_comparison(self, node: Comparison) -> Value:
        left, right = self.value(node.left), self.value(node.right)
        if isinstance(left, String) or isinstance(right, String):
            return self.compare_strings(node, left, right)
        return Integer(_compared(node.operator, left, right), "int", 0, 1)

    def compare_strings(self, node: Comparison, left: Value, right: Value) -> Value:
        if not (isinstance(left, String) and isinstance(right, String)):
            text, number = (node.left, node.right) if isinstance(left, String) else (node.right, node.left)
            hint = f"write str({_shown(number)}) for the string at that address" if self.is_argument(number) else None
            raise self.error(f"compares a string, {_shown(text)}, with a number, {_shown(number)}", hint)
        if node.operator not in ("==", "!="):
            raise self.error(f"strings are compared by == and !=, not by {node.operator}")
        if left.place == "constant":
            left, right = right, left
        if right.place != "constant" or left.place == "constant":
            raise self.error("a string is compared with a constant, such as comm == 'nginx'")
        return self.any_of(left, [right.constant], whole=True, negated=node.operator == "!=")

    def is_argument(self, node: Node) -> bool:
        return isinstance(node, Name) and node.name not in NUMBERS

    def on_membership(self, node: Membership) -> Value:
        value = self.value(node.operand)
        numbers = [option.value for option in node.options if isinstance(option, Number)]
        texts = [option.value for option in node.options if isinstance(option, Text)]
        if isinstance(value, String):
            if numbers:
                raise self.error(f"{_shown(node.operand)} is a string, and {numbers[0]} a number")
            return self.any_of(value, texts, whole=True)
        if texts:
            raise self.error(f"{_shown(node.operand)} is a number, and {_shown(Text(texts[0]))} a string")
        kind = "u64" if value.high > S64[1] else "s64"
        once = Integer("value", kind, value.low, value.high)  # type: ignore[arg-type]
        tests = " || ".join(_compared("==", once, literal(number)) for number in dict.fromkeys(numbers))
        return Integer(f"({{ {kind} value = {value.code}; {tests}; }})", "int", 0, 1)

    def on_startswith(self, node: StartsWith) -> Value:
        value = self.value(node.operand)
        if isinstance(value, Integer):
            raise self.error(f"startswith is of strings, and {_shown(node.operand)} is a number")
        return self.any_of(value, [prefix.value for prefix in node.prefixes], whole=False)

    def any_of(self, value: String, texts: Sequence[bytes], *, whole: bool, negated: bool = False) -> Value:
        """Return whether a string is one of these, or begins with one."""
        if value.place == "constant":
            raise self.error("two constants are compared")
        tests = [f"same({{text}}, {quoted(text)}, {len(text) + whole})" for text in texts]
        code = " || ".join(tests)
        code = f"!({code})" if negated else f"({code})"
        return Integer(self.with_text(value, max(len(text) for text in texts) + 2, code), "int", 0, 1)

    def with_text(self, value: String, size: int, code: str) -> str:
        """Return C that reads up to ``size`` bytes of a string, and then is ``code`` of it."""
        if value.place == "local":
            return code.format(text=value.code)
        read = f"bpf_probe_read_{value.place}_str(text, sizeof(text), (void *){value.code})"
        return f"({{ char text[{size}] = {{}}; if ({read} < 0) return skip(); {code.format(text='text')}; }})"

    def on_len(self, node: Len) -> Value:
        value = self.value(node.operand)
        if isinstance(value, Integer):
            raise self.error(f"len() takes a string, and {_shown(node.operand)} is a number")
        if value.place == "constant":
            return literal(len(value.constant))
        place = "kernel" if value.place == "local" else value.place
        size = min(value.size or MAX_LEN, MAX_LEN)
        read = f"bpf_probe_read_{place}_str(text, sizeof(text), (void *){value.code})"
        code = f"({{ char text[{size}]; int length = {read}; if (length < 0) return skip(); length - 1; }})"
        return Integer(code, "int", 0, size - 1)

    def on_str(self, node: Str) -> Value:
        if (before := self.scope.string_at(self.expression, node.operand)) is not None:
            return before
        value = self.value(node.operand)
        if isinstance(value, String):
            return value
        if value.constant:
            raise self.error("str() takes an address, such as str(arg0)")
        kernel = value.meaning is not None and value.meaning.kind == "pointer" and not value.meaning.user
        return String(f"({value.code})", "kernel" if kernel else "user")

    # --- logic

    def on_boolean(self, node: Boolean) -> Value:
        operator = " && " if node.operator == "and" else " || "
        return Integer(f"({operator.join(map(self.truth, node.operands))})", "int", 0, 1)

    def on_negation(self, node: Negation) -> Value:
        return Integer(f"!({self.truth(node.operand)})", "int", 0, 1)

    def on_choice(self, node: Choice) -> Value:
        then, otherwise = self.value(node.then), self.value(node.otherwise)
        if isinstance(then, String) or isinstance(otherwise, String):
            raise self.error("x if c else y chooses between numbers")
        low, high = min(then.low, otherwise.low), max(then.high, otherwise.high)
        kind = "u64" if low >= 0 and high > S64[1] else "s64"
        code = f"({self.truth(node.condition)} ? ({kind}){then.code} : ({kind}){otherwise.code})"
        return _cast(code, kind, low, high)


def _shown(node: Node) -> str:
    if isinstance(node, Name):
        return node.name
    if isinstance(node, Member):
        return ".".join(node.path)
    if isinstance(node, Text):
        return repr(node.value.decode(errors="replace"))
    if isinstance(node, Number):
        return str(node.value)
    if isinstance(node, Str):
        return f"str({_shown(node.operand)})"
    return "the value"


def _natural(value: Integer) -> Literal["u64", "s64"]:
    return "u64" if value.type == "u64" else "s64"


def _cast(code: str, natural: str, low: int, high: int) -> Integer:
    """Return 64 bits as the type that holds the range; what does not fit wraps."""
    kind = "s64" if low < 0 or high <= S64[1] else "u64"
    least, most = S64 if kind == "s64" else U64
    if not (least <= low and high <= most):
        low, high = least, most
    return Integer(code if kind == natural else f"(({kind}){code})", kind, low, high)  # type: ignore[arg-type]


def _range(operator: str, a: Integer, b: Integer) -> tuple[int, int]:
    """Return the least and greatest result, in whole numbers of any size."""
    if operator == "+":
        return a.low + b.low, a.high + b.high
    if operator == "-":
        return a.low - b.high, a.high - b.low
    if operator == "*":
        products = [x * y for x in (a.low, a.high) for y in (b.low, b.high)]
        return min(products), max(products)
    bits = max(value.bit_length() for value in (a.low, a.high, b.low, b.high))
    if operator == "&" and (a.low >= 0 or b.low >= 0):
        return 0, min(value.high for value in (a, b) if value.low >= 0)
    if a.low >= 0 and b.low >= 0:
        return 0, (1 << bits) - 1
    return -(1 << bits), (1 << bits) - 1


def _compared(operator: str, a: Integer, b: Integer) -> str:
    """Return a comparison as Python means it, whatever C would convert."""
    if a.high < b.low or b.high < a.low:  # such as an unsigned number with -1: known beforehand
        less = a.high < b.low
        return str(int({"==": False, "!=": True, "<": less, "<=": less, ">": not less, ">=": not less}[operator]))
    if (a.low >= 0 and b.low >= 0) or "u" not in a.type[0] + b.type[0]:
        return f"({a.code} {operator} {b.code})"
    if a.high <= S64[1] and b.high <= S64[1]:
        return f"((s64){a.code} {operator} (s64){b.code})"
    if a.low < 0:
        flipped = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}.get(operator, operator)
        return _compared(flipped, b, a)
    smaller = {"==": 0, "!=": 1, "<": 0, "<=": 0, ">": 1, ">=": 1}[operator]  # where b is negative
    return f"({{ s64 other = {b.code}; other < 0 ? {smaller} : (u64){a.code} {operator} (u64)other; }})"
