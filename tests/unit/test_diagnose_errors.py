"""From what clang, LLVM, bcc and the kernel said to an error, where it cannot be provoked at will."""

from __future__ import annotations

import errno
import os

import pytest

from bpfnb.errors import CompileError, PrivilegeError, ProgramError, VerifierError
from bpfnb.language.scan import scan
from bpfnb.tracer.diagnose.errors import compile_error, crash_error, load_error
from bpfnb.tracer.diagnose.lineinfo import Lines
from bpfnb.tracer.source_map import Rewritten, assemble

FILE = "/proc/self/fd/200"
CELL = """\
BPF_RINGBUF_OUTPUT(events, 8);
int f(void *ctx) {
    u64 x = 1;
    return __builtin_memcmp(&x, ctx, 8);
}
"""


def source() -> Rewritten:
    return assemble(scan(CELL), [], "", FILE)


# --- LLVM ---------------------------------------------------------------------------------------------------------


def test_a_compiler_that_only_crashed_says_how() -> None:
    assert str(crash_error(source(), -11, "", 60)) == "the compiler crashed (signal 11)"
    assert str(crash_error(source(), 1, "", 60)) == "the compiler crashed (exit status 1)"
    assert str(crash_error(source(), None, "", 60)) == "compiling took more than 60 s and was ended"


CRASHES = {
    f"Error at line 3: Unsupport signed division\nLLVM ERROR: Cannot select: 0x5: i64 = sdiv 0x6, {FILE}:3:13": (
        "signed division",
        (3, 13),
    ),
    f"error: {FILE}:4:12: in function f i32 (i8*): A call to built-in function '__muldf3' is not supported.": (
        "f: floating-point numbers",
        (4, 12),
    ),
    f"error: {FILE}:0:0: in function f i32 (i8*): Looks like the BPF stack limit of 512 bytes is exceeded.": (
        "f: the variables need more than the stack limit of 512 bytes",
        (2, None),
    ),
    "LLVM ERROR: something that nobody has seen": ("something that nobody has seen", (None, None)),
    f"{FILE}:3:7: warning: variable length array used [-Wvla]\nLLVM ERROR: Unsupported dynamic stack allocation": (
        "an array's size must be a constant",
        (3, 7),
    ),
    'error: <inline asm>:1:2: invalid token\n\treturn __builtin_memcmp(\n\t^': ("invalid token", (4, 5)),
}  # fmt: skip


@pytest.mark.parametrize("log", CRASHES)
def test_what_llvm_says_is_told_with_its_place(log: str) -> None:
    words, place = CRASHES[log]
    error = crash_error(source(), -6, log, 60)
    assert words in str(error)
    assert (error.line, error.column) == place
    assert FILE not in "\n".join(error.report())


def test_an_error_of_clangs_is_the_reason_whatever_bcc_falls_over_then() -> None:
    log = f"{FILE}:3:9: error: expected ';'\npython: CallExpr::getArg: Assertion `Arg < getNumArgs()' failed.\n"
    error = crash_error(source(), -6, log, 60)
    assert (str(error), error.column) == ("line 3: expected ';'", 9)


# --- maps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EINVAL, "power of two of pages"),
        (errno.E2BIG, "it is too large"),
        (errno.ENOMEM, "it is larger than the memory there is"),
        (errno.EPERM, "Operation not permitted"),
    ],
)
def test_a_map_that_the_kernel_will_not_make(number: int, words: str) -> None:
    error = compile_error(source(), f"could not open bpf map: events, error: {os.strerror(number)}", "failed")
    assert isinstance(error, ProgramError)
    assert str(error).startswith("line 1: the kernel will not make events: ")
    assert words in str(error)
    assert error.column == 20


# --- clang --------------------------------------------------------------------------------------------------------


def test_what_has_no_place_is_told_all_the_same() -> None:
    assert "no idea" in str(compile_error(source(), "", "no idea"))
    log = "error: unable to handle compilation, expected exactly one compiler job in '-cc1'"
    error = compile_error(source(), log, "")
    assert str(error) == "the flags ask clang for something else than to compile the cell"
    assert "cc1" not in "\n".join(error.report())


# --- the verifier -------------------------------------------------------------------------------------------------


def refused(log: str, number: int = errno.EACCES, compiling: str = "") -> VerifierError:
    error = load_error(source(), "f", number, log, Lines(), compiling)
    assert isinstance(error, VerifierError)
    return error


def test_what_clang_had_warned_of_is_told_with_the_verdict() -> None:
    error = refused("R2 type=scalar expected=fp\n", compiling=f"{FILE}:3:9: warning: take the address with &\n")
    assert [d.message for d in error.diagnostics] == ["take the address with &"]
    assert "line 3:9: warning: take the address with &" in error.report()


def test_the_log_names_the_cells_lines_and_nothing_else() -> None:
    error = refused("; u64 x = 1; @ 200:3\n0: (b7) r1 = 1\n;  @ bpfnb.h:6\n;  @ 200:0\n1: (95) exit\nR0 !read_ok\n")
    assert error.log == "; u64 x = 1; @ line 3\n0: (b7) r1 = 1\n1: (95) exit\nR0 !read_ok\n"
    assert error.line == 3


def test_an_address_that_bcc_left_empty() -> None:
    for summary in ("R1 invalid mem access 'scalar'", "R1 type=scalar expected=fp"):
        error = refused(f"0: (18) r1 = 0x0 ; R1=0\n2: (61) r3 = *(u32 *)(r1 +0)\n{summary}\n")
        assert error.kind == "global variable"
    assert refused("0: (18) r1 = 0x1234\n2: (61) r3 = 1\nR1 invalid mem access 'scalar'\n").kind != "global variable"


def test_a_call_without_a_line_has_that_of_the_function_that_is_none() -> None:
    error = refused("last insn is not an exit or jmp\n", errno.EINVAL)
    assert (error.kind, error.line) == ("call of a function", 4)


def test_no_rights_are_told_from_a_verdict() -> None:
    assert isinstance(load_error(source(), "f", errno.EPERM, "", Lines()), PrivilegeError)


def test_compile_errors_keep_clangs_whole_text() -> None:
    log = f"{FILE}:3:9: error: x\n/virtual/include/bcc/helpers.h:1:1: note: y\n"
    error = compile_error(source(), log, "")
    assert isinstance(error, CompileError)
    assert error.log == log
