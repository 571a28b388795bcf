"""The language of one-liners: what is in it, what is not, and what it means: beside Python's own ``eval``."""

from __future__ import annotations

import operator
import random
import subprocess
import tracemalloc
from pathlib import Path

import pytest

from bpfnb.errors import ProgramError
from bpfnb.language.oneliner.expressions import Expression, Member, Node, parse, walk
from bpfnb.language.oneliner.generate import generate
from bpfnb.language.oneliner.names import unused
from bpfnb.language.oneliner.question import ask
from bpfnb.language.oneliner.support import used_in
from bpfnb.language.oneliner.translate import condition, translate
from bpfnb.language.oneliner.values import Integer, String, Value, of_type
from bpfnb.language.program import parse as parse_program
from bpfnb.language.signature import Argument, Signature, Type

INTS = {"a": 8, "b": 8, "c": 4, "d": 4, "e": 2, "f": 1}  # and whether it has a sign, by its place
TYPES = {name: Type(name, "int", size, signed=at % 2 == 0) for at, (name, size) in enumerate(INTS.items())}


class Names:
    def name(self, expression: Expression, name: str) -> Value:
        return String("text", "local", 16) if name == "text" else of_type(name, TYPES[name])

    def member(self, expression: Expression, path: tuple[str, ...]) -> Value:
        raise NotImplementedError

    def string_at(self, expression: Expression, address: Node) -> Value | None:
        return None


def made(chance: random.Random, depth: int) -> str:
    """A random expression."""
    pick = chance.choice
    if not depth:
        return pick([*INTS, *INTS, str(chance.randrange(-9, 9)), str(chance.randrange(-(1 << 40), 1 << 40))])
    one, two = made(chance, depth - 1), made(chance, depth - 1)
    return pick(
        [
            f"({one} {pick(['+', '-', '*', '//', '%', '&', '|', '^'])} {two})",
            f"({one} {pick(['==', '!=', '<', '<=', '>', '>='])} {two})",
            f"({one} {pick(['==', '!=', '<', '<=', '>', '>='])} {two})",
            f"({one} < {two} <= {made(chance, 0)})",
            f"(1 if {one} {pick(['and', 'or'])} not {two} else 0)",  # the language's own is 0 or 1
            f"({one} >> {chance.randrange(64)})",
            f"({pick('cdef')} << {chance.randrange(20)})",
            f"({one} if {two} else {made(chance, 0)})",
            f"({one} {pick(['in', 'not in'])} (1, 2, -1))",
            f"{pick(['-', '~'])}{one}",
        ]
    )


def fits(text: str, values: dict[str, int], most: int) -> int | None:
    """What Python says; None where a part of it has more bits than the kernel's numbers, or no value."""

    class Bounded(int):
        pass

    def checked(function):  # type: ignore[no-untyped-def]
        def method(self, *others):  # type: ignore[no-untyped-def]
            result = function(int(self), *map(int, others))
            if not -(1 << 63) <= result < most:
                raise OverflowError
            return Bounded(result)

        return method

    for name in ("add", "sub", "mul", "floordiv", "mod", "and_", "or_", "xor", "lshift", "rshift", "neg", "invert"):
        special = name.strip("_")
        function = getattr(operator, name)
        setattr(Bounded, f"__{special}__", checked(function))
        setattr(Bounded, f"__r{special}__", checked(lambda x, y, f=function: f(y, x)))
    try:
        result = eval(text, {name: Bounded(value) for name, value in values.items()})
    except (OverflowError, ZeroDivisionError):
        return None
    return int(result) if -(1 << 63) <= int(result) < most else None


def test_numbers_mean_what_they_mean_in_python(tmp_path: Path) -> None:
    """Random expressions over extreme values, compiled by gcc and evaluated by Python."""
    chance = random.Random(12)
    lines, expected = [], []
    while len(lines) < 800:
        # Parts of an expression are cut to 63 bits and a sign where they may be negative: deep ones stay within that.
        depth = chance.randrange(1, 4)
        text, most, values = made(chance, depth), 1 << (64 if depth == 1 else 63), {}
        for name, type_ in TYPES.items():
            bits = 8 * type_.size - type_.signed
            edges = [0, 1, 2, (1 << bits) - 1, chance.getrandbits(bits), *([-1, -(1 << bits)] if type_.signed else [])]
            values[name] = min(chance.choice(edges), most - 1)
        result = fits(text, values, most)
        if result is None:
            continue
        try:
            value = translate(parse(text, "value"), Names())
        except ProgramError:  # a division by a constant that is zero
            continue
        assert isinstance(value, Integer)
        if max(abs(value.low), value.high) >= 1 << 63 and not value.low <= result <= value.high:
            continue  # the range was cut to 64 bits
        assert value.low <= result <= value.high, text
        declared = "".join(
            f"{'s' if TYPES[name].signed else 'u'}{8 * TYPES[name].size} {name} = {number & (1 << 64) - 1}ULL; "
            for name, number in values.items()
        )
        lines.append(f"long test{len(lines)}(void) {{ {declared} return {value.code}; }}")
        expected.append((result, text, values, value))
    body = "\n".join(lines)
    calls = "".join(f'printf("%ld\\n", test{at}());' for at in range(len(lines)))
    types = "".join(f"typedef int{n}_t s{n}; typedef uint{n}_t u{n};" for n in (8, 16, 32, 64))
    helpers = "".join(helper for helper in used_in(body) if "floor" in helper)
    (tmp_path / "t.c").write_text(
        f"#include <stdint.h>\n#include <stdio.h>\n{types}\nint skip(void) {{ return 0; }}\n{helpers}\n{body}\n"
        f"int main(void) {{ {calls} }}"
    )
    subprocess.run(["gcc", "-O1", "-w", "-fwrapv", "-o", tmp_path / "t", tmp_path / "t.c"], check=True)
    printed = subprocess.run([tmp_path / "t"], check=True, capture_output=True, text=True).stdout.split()
    for line, (result, text, values, value) in zip(printed, expected, strict=True):
        assert (int(line) - result) % (1 << 64) == 0, (text, values, value.code, result, line)


def test_a_comparison_is_pythons_not_cs() -> None:
    assert condition(parse("-1 < b", "where"), Names()) == "1"
    assert condition(parse("d == -1", "where"), Names()) == "0"
    assert condition(parse("d < c", "where"), Names()) == "((s64)d < (s64)c)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a = 3", "write =="),
        ("a / 3", "write //"),
        ("a ** 3", "'a [*][*] 3' is not in the language"),
        ("a @ 3", "not in the language"),
        ("open('/etc/passwd')", "not in the language"),
        ("__import__('os').system('x')", "not in the language"),
        ("[x for x in (1, 2)]", "not in the language"),
        ("lambda: 1", "not in the language"),
        ("a; b", "not an expression"),
        ("a is b", "write == or !="),
        ("a in b", "constants in brackets"),
        ("1.5 < a", "computes with integers"),
        ("f'{a}'", "not in the language"),
        ("a + 99999999999999999999999", "more than 64 bits"),
        ("text == 'x\\0y'", "NUL"),
        (f"text == '{'x' * 64}'", "at most 63 bytes"),
        ("a" + " + a" * 300, "200 parts"),
        ("(" * 3000 + "a" + ")" * 3000, "longer than|deep"),
        ("-" * 90 + "a", "nested more than"),
        ("a // 0", "division by zero"),
        ("a << 64", "shift by 64"),
        ("text == 3", "compares a string, text, with a number, 3"),
        ("a == 'x'", "compares a string, 'x', with a number, a"),
        ("text < 'x'", "compared by == and !="),
        ("text + 1", "text is a string"),
        ("a.b.startswith(3)", "startswith takes a string"),
        ("a.startswith('x')", "startswith is of strings, and a is a number"),
        ("text in ('a', 3)", "text is a string, and 3 a number"),
        ("len(a)", "len[(][)] takes a string"),
        ("a if text else 'x'", "chooses between numbers"),
    ],
)  # fmt: skip
def test_what_is_not_in_the_language_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ProgramError, match=message) as error:
        translate(parse(text, "where"), Names())
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_members_are_paths() -> None:
    (member,) = [n for n in walk(parse("sk.__sk_common.skc_dport", "by").root) if isinstance(n, Member)]
    assert member.path == ("sk", "__sk_common", "skc_dport")


# --- programs -----------------------------------------------------------------------------------------------------

_STRING = Type("const char *", "string", 8, user=True)
OPENAT = Signature(
    "syscall:openat",
    (Argument("dfd", Type("int", "int", 4, signed=True), 0), Argument("filename", _STRING, 1)),
    Type("long", "int", 8, signed=True),
)


def source(verb: str, signatures: list[Signature] | None = None, **asked: object) -> str:
    return generate(ask(verb, "syscall:openat", **asked), signatures or [OPENAT]).source  # type: ignore[arg-type]


@pytest.mark.parametrize("evil", ['"; evil(); //', "*/ evil(); /*", "a\\", "%s\\n", "??/", "é\n\r evil();", "\u2028"])
def test_nothing_that_a_person_writes_gets_into_the_c_as_code(evil: str) -> None:
    """A constant, a column's name, a comment: the C has the functions it has without them."""
    text = source("count", columns={evil.strip() if evil.isprintable() else "x": f"filename == {evil!r}"})
    plain = source("count", columns={"x": "filename == 'x'"})
    names = [function.name for function in parse_program(text).functions]
    assert names == [function.name for function in parse_program(plain).functions]
    assert not any("evil()" in line for line in text.splitlines() if not line.startswith("//"))


def test_arguments_with_names_of_the_generated_c_are_renamed() -> None:
    number = Type("int", "int", 4, signed=True)
    signature = Signature(
        "syscall:openat", tuple(Argument(n, number, at) for at, n in enumerate(["key", "value", "ctx"]))
    )
    text = source("stats", [signature], value="value", columns=["key", "ctx"])
    assert "int on_openat(struct pt_regs *ctx, int key_, int value_, int ctx_)" in text
    parse_program(text)


def test_a_name_that_a_task_has_comes_first_and_the_argument_is_args() -> None:
    signature = Signature("syscall:openat", (Argument("pid", Type("int", "int", 4, signed=True), 0),))
    assert "bpf_get_current_pid_tgid() >> 32" in source("count", [signature], columns="pid")
    assert "bpf_get_current_pid_tgid" not in source("count", [signature], columns="args.pid")


def test_a_name_that_not_all_probes_have_is_an_error_that_says_which() -> None:
    other = Signature("syscall:close", (Argument("fd", Type("int", "int", 4), 0),))
    with pytest.raises(ProgramError, match="syscall:close has no filename"):
        source("count", [OPENAT, other], columns="filename")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"verb": "hist", "value": "dfd", "kind": "linear"}, "takes bins=[(]low, high, step[)]"),
        ({"verb": "hist", "value": "dfd", "kind": "linear", "bins": (5, 1, 1)}, "rise from low to high"),
        ({"verb": "hist", "value": "dfd", "kind": "linear", "bins": (0, 10**9, 1)}, "at most 10,000"),
        ({"verb": "hist", "value": "dfd", "kind": "lin"}, "no histogram is 'lin'"),
        ({"verb": "hist", "value": "filename"}, "hist is of a number"),
        ({"verb": "count", "columns": [f"dfd + {n}" for n in range(17)]}, "at most 16"),
        ({"verb": "count", "columns": 3}, "is a name, a list of names"),
        ({"verb": "stacks", "kernel": False, "user": False}, "both False"),
        ({"verb": "count", "columns": "nothing"}, "syscall:openat has no nothing"),
        ({"verb": "count", "columns": "dfd.x"}, "dfd is int, which has no member x"),
    ],
)
def test_what_cannot_be_asked(asked: dict[str, object], message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        source(**asked)  # type: ignore[arg-type]


def test_the_examples_of_the_reference() -> None:
    text = source("count", columns="len(filename)", where="filename.startswith(('/etc', '/usr'))")
    assert text.count("same(text, ") == 2
    uprobe = Signature("uprobe:c:puts")
    text = source("count", [uprobe], columns=["str(arg0)", "int32(arg0)"])
    assert "bpf_probe_read_user_str(&key.str_arg0, sizeof(key.str_arg0), (void *)(arg0))" in text
    assert "key.int32_arg0 = ((s32)arg0);" in text


def test_columns_called_as_those_of_the_answer_have_an_underline() -> None:
    number = Type("size_t", "int", 8)
    signature = Signature("syscall:write", (Argument("count", number, 0), Argument("low", number, 1)))
    for verb, names in {"count": ["count_", "low"], "hist": ["count_", "low_"], "rows": ["count", "low"]}.items():
        value = "count" if verb == "hist" else None
        answer = generate(ask(verb, "syscall:write", value=value, columns=["count", "low"]), [signature])  # type: ignore[arg-type]
        assert [column.column for column in answer.columns] == names
        assert not {column.member for column in answer.columns} & {"count", "low", "value"}


def test_a_name_that_is_not_taken_is_found_after_any_number() -> None:
    """And without making names that nobody asks for."""
    tracemalloc.start()
    try:
        assert unused("tid", {"pid"}) == "tid"
        assert unused("tid", {"tid", *(f"tid{n}" for n in range(2, 150))}) == "tid150"
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
