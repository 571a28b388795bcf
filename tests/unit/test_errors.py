"""One line for str, the picture in report(), a hint only where there is one."""

from __future__ import annotations

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


def test_a_compile_error_shows_every_diagnostic() -> None:
    diagnostics = [Diagnostic(2, 9, "error", "undeclared"), Diagnostic(0, 0, "note", "in a header")]
    error = CompileError("undeclared", diagnostics=diagnostics, source=SOURCE, line=2, column=9)
    assert error.report() == [
        "CompileError: line 2: undeclared",
        "line 2:9: error: undeclared",
        "    2 | \treturn nothing;",
        "      | \t       ^",
        "    note: in a header",
    ]


def test_a_compile_error_without_diagnostics_shows_what_clang_said() -> None:
    assert CompileError("failed", log="clang: first\nsecond").report()[1:] == ["clang: first", "second"]


def test_a_verifier_error_shows_the_end_of_a_long_log() -> None:
    error = VerifierError("refused", log="\n".join(f"line {n}" for n in range(100)), explanation="because")
    shown = error.report()
    assert "(88 lines of the verifier's log omitted; all of it is in error.log)" in shown
    assert shown[-1] == "  line 99"
    assert "because" in shown


@pytest.mark.parametrize(
    ("name", "builtin"), [("PrivilegeError", PermissionError), ("ProgramError", ValueError), ("TracerDied", Exception)]
)
def test_what_a_caller_would_catch_anyway(name: str, builtin: type[Exception]) -> None:
    assert issubclass(getattr(errors, name), builtin)
    assert issubclass(getattr(errors, name), errors.BpfnbError)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert errors.__doc__
    drawn = {line.split()[1] for line in errors.__doc__.splitlines() if line.strip().startswith("+-")}
    real = {kind.__name__ for kind in errors.BpfnbError.__subclasses__() if kind.__module__ == "bpfnb.errors"}
    assert drawn == real
    assert real | {"BpfnbError", "Diagnostic"} == set(errors.__all__)
