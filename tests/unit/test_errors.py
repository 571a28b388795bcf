"""One line for str, the picture in report(), a hint only where there is one."""

from __future__ import annotations

import re

import pytest

from bpfnb import errors
from bpfnb.errors import CompileError, Diagnostic, ProgramError, VerifierError

SOURCE = "int f(void *ctx) {\n\treturn nothing;\n}\n"


def test_the_place_is_shown_with_a_caret_under_the_column() -> None:
    error = ProgramError("no such thing", line=2, column=9, source=SOURCE, hint="declare it")
    assert str(error) == "line 2: no such thing"
    assert error.report() == [
        "ProgramError: line 2: no such thing",
        "    2 | \treturn nothing;",
        "      | \t       ^",
        "hint: declare it",
    ]
    assert error._render_traceback_() == error._render_traceback_() == error.report()


def test_without_a_place_it_is_one_line() -> None:
    assert ProgramError("no").report() == ["ProgramError: no"]
    assert ProgramError("no", line=99, source=SOURCE).report() == ["ProgramError: line 99: no"]


def test_a_compile_error_shows_the_first_error_then_all_else_that_was_said() -> None:
    diagnostics = [
        Diagnostic(1, 5, "warning", "odd"),
        Diagnostic(2, 9, "error", "undeclared", "something"),
        Diagnostic(1, 1, "note", "in this function"),
        Diagnostic(0, 0, "error", "in a header"),
    ]
    error = CompileError("undeclared", diagnostics=diagnostics, source=SOURCE, line=2, column=9, hint="declare it")
    assert error.report() == [
        "CompileError: line 2: undeclared",
        "    2 | \treturn nothing;",
        "      | \t       ^",
        "      | clang would put here: something",
        "    line 1:1: note: in this function",
        "        1 | int f(void *ctx) {",
        "          | ^",
        "hint: declare it",
        "line 1:5: warning: odd",
        "    1 | int f(void *ctx) {",
        "      |     ^",
        "error: in a header",
    ]


def test_a_fix_that_the_message_names_is_not_said_twice() -> None:
    said = Diagnostic(2, 9, "error", "undeclared; did you mean 'nothings'?", "nothings")
    error = CompileError(said.message, diagnostics=[said], source=SOURCE, line=2, column=9)
    assert not any("clang would" in line for line in error.report())


def test_a_compile_error_without_diagnostics_shows_what_clang_said() -> None:
    assert CompileError("failed", log="clang: first\nsecond").report()[1:] == ["clang: first", "second"]


def test_a_verifier_error_shows_what_it_means_before_the_end_of_a_long_log() -> None:
    log = "\n".join(f"line {n}" for n in range(100)) + "\n\nHINT: bcc's\n"
    said = Diagnostic(2, 2, "warning", "odd")
    error = VerifierError("refused", log=log, explanation="because", hint="do", diagnostics=[said], source=SOURCE)
    shown = error.report()
    assert shown[:4] == ["VerifierError: refused", "because", "hint: do", "line 2:2: warning: odd"]
    assert "the end of the verifier's log; all 100 lines are in error.log:" in shown
    assert shown[-1] == "  line 99"


def test_the_caret_stands_under_its_column_whatever_stands_before() -> None:
    source = "\u65e5\u672c x e\u0301 y\tz"
    for column, before in {4: " " * 5, 9: " " * 9, 11: " " * 10 + "\t"}.items():
        assert errors.excerpt(source, 1, column)[1] == f"      | {before}^"


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_lines_end_where_they_do_for_a_compiler(newline: str) -> None:
    source = newline.join(["one \x0c \x85 \u2028 \x1c", "two"])
    assert errors.excerpt(source, 2, 1) == ["    2 | two", "      | ^"]


def test_what_nobody_sees_is_seen_and_cannot_act_on_a_terminal() -> None:
    assert errors.excerpt("a\u200b\xa0\x1b[2J", 1, 5) == [
        "    1 | a\\u200b\\xa0\\x1b[2J",
        "      | " + " " * 15 + "^",
    ]
    error = ProgramError("\x1b[2J\u202e\nhint: none", hint="\x9b31m")
    assert str(error) == "\\x1b[2J\\u202e\\nhint: none"
    assert error._render_traceback_() == [f"ProgramError: {error}", "hint: \\x9b31m"]
    assert error.message == "\x1b[2J\u202e\nhint: none"  # the data stays


@pytest.mark.parametrize("mark", "\x1b\x07\x7f\x9b\u202a\u202e\u2066\u2069\u200e\u200f\u061c\u2028\u2029")
def test_marks_that_terminals_and_browsers_obey_are_escapes(mark: str) -> None:
    shown = errors.printable(f"a{mark}b\n\t", keep="\n\t")
    assert mark not in shown
    assert shown.startswith("a\\")
    assert shown.endswith("b\n\t")


def test_of_a_long_line_the_part_around_the_column_is_shown() -> None:
    source = "a" * 300 + "HERE" + "b" * 300
    text, caret = errors.excerpt(source, 1, 301)
    assert len(text) < 140
    assert text[caret.index("^") :].startswith("HERE")
    assert text.count("...") == 2
    text, caret = errors.excerpt(source, 1, 604)
    assert text[caret.index("^") :] == "b"


NEAR = [
    ("opeat", ["open", "openat", "openat2", "read"], "did you mean openat?"),
    ("null", ["NULL", "all"], "did you mean NULL?"),
    ("ab", ["xy"], ""),
    ("same", ["same"], ""),
    ("cat", ["car", "cab", "cap", "can"], "did you mean car or cap or can?"),
]


@pytest.mark.parametrize(("word", "names", "said"), NEAR)
def test_near_names(word: str, names: list[str], said: str) -> None:
    assert errors.did_you_mean(word, names) == said


@pytest.mark.parametrize(
    ("name", "builtin"), [("PrivilegeError", PermissionError), ("ProgramError", ValueError), ("UnknownName", KeyError)]
)
def test_what_a_caller_would_catch_anyway(name: str, builtin: type[Exception]) -> None:
    assert issubclass(getattr(errors, name), builtin)
    assert issubclass(getattr(errors, name), errors.BpfnbError)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert errors.__doc__
    drawn = set(re.findall(r"\+- (\w+)", errors.__doc__))
    kinds = [*errors.BpfnbError.__subclasses__(), *errors.ProgramError.__subclasses__()]
    real = {kind.__name__ for kind in kinds if kind.__module__ == "bpfnb.errors"}
    assert drawn == real
    functions = {"did_you_mean", "few_descriptors", "log_lines", "near_names", "near_or_all", "printable"}
    assert real | functions | {"BpfnbError", "Diagnostic"} == set(errors.__all__)
