"""Which flags reach clang."""

from __future__ import annotations

import pytest

from bpfnb.errors import ProgramError
from bpfnb.language.cflags import check
from bpfnb.language.program import parse

CELL = "int f(void *ctx) { return 0; }"


@pytest.mark.parametrize(
    "flags",
    [
        "-DX -DX=1 -UX -Ifolder -I/a/b -O2 -O -Wall -Werror=vla -Wno-unused -Wframe-larger-than=512 -w -g -std=gnu11",
        "-D X=1 -I folder -include file.h -imacros m.h -isystem /usr/include -iquote . -idirafter /x -iquote/x",
        "-fno-unroll-loops -funroll-loops -fms-extensions -ferror-limit=3 -fno-builtin -fno-builtin-memcpy -mcpu=v3",
        "-D -fplugin=x -U @file",  # values, and no flags
    ],
)
def test_flags_that_say_how_to_compile(flags: str) -> None:
    check(flags.split())


@pytest.mark.parametrize(
    "flags",
    [
        # Code that clang would load.
        "-fpass-plugin=/tmp/x.so",
        "-fplugin=/tmp/x.so",
        "-Xclang -load",
        "-mllvm -load=x",
        # Files that it would write.
        "-MF /tmp/x",
        "-MD",
        "-MJ/tmp/x",
        "-o /tmp/x",
        "--serialize-diagnostics /tmp/x",
        "-Xclang -dependency-file",
        "-save-temps",
        "-save-stats=obj",
        "-ftime-trace",
        "-fproc-stat-report=/tmp/x",
        "-gsplit-dwarf",
        "-fmodules-cache-path=/tmp/x",
        "-fprofile-instr-generate=/tmp/x",
        "-ftest-coverage",
        "-fcrash-diagnostics-dir=/tmp/x",
        "-foptimization-record-file=/tmp/x",
        # Flags that come from elsewhere, and are handed on.
        "@/tmp/flags",
        "--config /tmp/flags",
        "-Wp,-MF,/tmp/x",
        "-Wl,x",
        "-Wa,x",
        "-Wall,-MF,x",
        # Programs run in its place, other ways to compile, other inputs.
        "-B/tmp",
        "-fno-integrated-as",
        "-fno-integrated-cc1",
        "-include-pch x",
        "-working-directory /",
        "-x c++",
        "other.c",
        "-",
        "-I-",
        "-ivfsoverlay x",
        "--sysroot=/",
        "-isystem-after /x",
        "-D",
        "-I",
    ],
)
def test_flags_that_do_more_are_refused(flags: str) -> None:
    for before in ([], ["-DX=1", "-I", "-Wall"]):
        with pytest.raises(ProgramError) as caught:
            check([*before, *flags.split()])
        assert flags.split()[0] in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_nul_hides_nothing() -> None:
    """clang would read "-I", take "-D" for its value, and the plugin for a flag."""
    for flags in (["-I\0x", "-D", "-fplugin=x"], ["-D", "\0"]):
        with pytest.raises(ProgramError, match="NUL"):
            check(flags)


def test_a_cell_with_such_a_flag_is_refused_when_it_is_read() -> None:
    with pytest.raises(ProgramError, match="the flag -fplugin=x is not passed on to clang") as caught:
        parse(CELL, cflags=["-Wall", "-fplugin=x"])
    assert "-I" in (caught.value.hint or "")
