"""Headers of the user's own in a cell: which are read, what repeated ones mean, and the way back to their lines."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bpfnb.errors import ProgramError
from bpfnb.language import includes
from bpfnb.language.includes import expand, reachable
from bpfnb.language.program import parse

GUARDED = "// ours\n#ifndef X_H\n#define X_H\nstruct x { int a; };\nBPF_PERF_OUTPUT(events);\n#endif // X_H\n"
ONCE = "#pragma once\nBPF_HASH(counts, u32, u64);\n"
F = "int f(void *ctx) { return 0; }\n"
PROBE = {"syscall:clone": "f"}
Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write headers into the current folder: names with "/" for "__"."""
    monkeypatch.chdir(tmp_path)

    def write(**texts: str) -> None:
        for name, text in texts.items():
            path = tmp_path / f"{name.replace('__', '/')}.h"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def text(source: str, *cflags: str) -> list[str]:
    """The lines there are."""
    return [line for line in expand(source, cflags)[0].splitlines() if line.strip()]


def test_outputs_maps_functions_and_probes_of_a_header_are_the_cells(write: Write) -> None:
    write(x=GUARDED + 'TRACEPOINT_PROBE(a, b) { bpf_trace_printk(""); return 0; }\n', maps=ONCE)
    program = parse(f'#include "x.h"\n#include "maps.h"\n{F}', PROBE)
    assert [o.name for o in program.outputs] == ["events"]
    assert [m.name for m in program.maps] == ["counts"]
    assert [p.function for p in program.probes] == ["tracepoint__a__b", "f"]
    assert program.prints
    assert not any(f.conditional for f in program.functions)
    assert program.cell.startswith('#include "x.h"')


@pytest.mark.parametrize(
    "header",
    [GUARDED, "#pragma once\nstruct x { int a; };\n", GUARDED.replace("#ifndef X_H", "#if !defined(X_H)")],
)
def test_a_header_is_there_once(write: Write, header: str) -> None:
    write(x=header, y='#include "x.h"\n', z='#include "y.h"\n#include "x.h"\n')
    for source in ('#include "x.h"\n#include "x.h"\n', '#include "z.h"\n#include "./x.h"\n#include "y.h"\n'):
        assert text(source).count("struct x { int a; };") == 1


def test_a_header_without_a_guard_is_there_as_often_as_it_is_included(write: Write) -> None:
    write(x="FIELD\n")
    assert text('#include "x.h"\n#include "x.h"\n') == ["FIELD", "FIELD"]


def test_a_header_under_a_condition_stays_under_it(write: Write) -> None:
    """Which of the two is there only the compiler knows: both are, with their guards."""
    write(x="#ifndef X_H\n#define X_H\nONE\n#endif\n", y="#pragma once\nTWO\n")
    for header, word in (("x", "ONE"), ("y", "TWO")):
        lines = text(f'#ifdef A\n#include "{header}.h"\n#endif\n#include "{header}.h"\n#include "{header}.h"\n')
        assert lines.count(word) == 3
        guards = [line for line in lines if line.startswith("#ifndef")]
        assert len(guards) == 3
        assert len(set(guards)) == 1


def test_a_guard_that_the_cell_or_a_flag_has_set_keeps_a_header_out(write: Write) -> None:
    write(x=GUARDED, y='#include "x.h"\n')
    assert parse(f'#define X_H\n#include "x.h"\n{F}', PROBE).outputs == ()
    assert parse(f'#include "y.h"\n{F}', PROBE, ["-DX_H"]).outputs == ()
    assert parse(f'#include "y.h"\n{F}', PROBE, ["-D", "X_H=1"]).outputs == ()


def test_headers_that_include_one_another_end(write: Write) -> None:
    write(a='#pragma once\n#include "b.h"\nA\n', b='#pragma once\n#include "a.h"\nB\n', c='#include "c.h"\nC\n')
    assert text('#include "a.h"\n') == ["B", "A"]
    assert len(text('#include "c.h"\n')) <= 100  # clang says what is wrong


def test_folders_are_those_of_c(write: Write) -> None:
    """Quoted: the folder of the file that includes, then those named; in brackets only the latter."""
    declared = "BPF_HASH({}, u32);\n"
    write(x=declared.format("here"), inc__x=declared.format("there"), inc__y='#include "x.h"\n', inc__z="struct z;\n")
    assert text('#include "x.h"\n', "-Iinc") == ["BPF_HASH(here, u32);"]
    assert text('#include "inc/y.h"\n') == ["BPF_HASH(there, u32);"]
    for flags in (["-Iinc"], ["-I", "inc"], ["-isystem", f"{Path.cwd()}/inc"], ["-Inothing", "-iquoteinc"]):
        assert text("#include <x.h>\n", *flags) == ["BPF_HASH(there, u32);"]
        assert text('#include "y.h"\n', *flags) == ["BPF_HASH(there, u32);"]
    assert text("#include <x.h>\n") == ["#include <x.h>"]
    assert text(f'#include "{Path.cwd()}/inc/x.h"\n') == ["BPF_HASH(there, u32);"]


def test_a_header_of_another_folder_is_read_only_for_what_a_cell_alone_can_have(write: Write, tmp_path: Path) -> None:
    """clang finds it as well: what is large and plain C is left to it."""
    write(lib__plain="struct z;\n", lib__ours="BPF_HASH(h, u32);\n", lib__over='#include "ours.h"\n', here__x="")
    os.chdir(tmp_path / "here")
    assert text("#include <plain.h>\n", "-I../lib") == ["#include <plain.h>"]
    assert text("#include <ours.h>\n", "-I../lib") == text('#include "over.h"\n', "-I../lib") == ["BPF_HASH(h, u32);"]


def test_clang_gets_folders_from_the_root(write: Write) -> None:
    write(inc__x="")
    here = Path.cwd()
    assert reachable(["-Iinc", "-DX=1"]) == (f"-I{here}/inc", "-Iinc", "-DX=1")
    flags = ("-I", "inc", "-I/usr", "-Iarch/x86/include")
    assert reachable(flags) == (f"-I{here}/inc", *flags)


@pytest.mark.parametrize(
    "include", ["#include <linux/sched.h>", '#include "linux/sched.h"', "#include <bcc/proto.h>", "#include HEADER"]
)
def test_the_kernels_headers_are_left_to_clang(write: Write, include: str) -> None:
    write(k__linux__sched="BPF_HASH(h, u32);\n", k__bcc__proto="BPF_HASH(h, u32);\n")
    assert expand(f"{include}\n{F}", ["-Ik"]) == (f"{include}\n{F}", ())


def test_what_is_no_text_is_left_to_clang(write: Write, tmp_path: Path) -> None:
    write(big="BPF_HASH(h, u32);\n" * 1000, nul="\0")
    (tmp_path / "latin.h").write_bytes(b"// \xe9\n")
    (tmp_path / "folder.h").mkdir()
    (tmp_path / "dangling.h").symlink_to("nowhere")
    for name in ("missing", "big", "nul", "latin", "folder", "dangling"):
        assert expand(f'#include "{name}.h"\n', max_bytes=10_000) == (f'#include "{name}.h"\n', ())


def test_what_is_no_file_is_refused(tmp_path: Path, write: Write) -> None:
    write()
    os.mkfifo(tmp_path / "fifo.h")
    for name in (tmp_path / "fifo.h", "/dev/zero"):
        with pytest.raises(ProgramError, match="is a FIFO or a device") as caught:
            expand(f'\n#include "{name}"\n')
        assert caught.value.line == 2


def test_all_headers_together_are_bounded(write: Write) -> None:
    """WHEN each includes the one before twice THEN the text does not double for ever."""
    write(h0="X\n" * 1000, **{f"h{n}": f'#include "h{n - 1}.h"\n#include "h{n - 1}.h"\n' for n in range(1, 30)})
    assert len(expand('#include "h29.h"\n', max_bytes=100_000)[0]) < 300_000


def test_includes_in_comments_and_strings_are_none(write: Write) -> None:
    write(x="BPF_HASH(h, u32);\n")
    source = '/*\n#include "x.h"\n*/\n// #include "x.h"\nchar *s = "\\\n#include";\n'
    assert expand(source) == (source, ())


def test_every_line_has_its_place(write: Write) -> None:
    write(a="a1\na2\n", b='b1\n#include "a.h"\n#include \\\n  "a.h"\nb5', c="")
    source = 'one\n#include "b.h" // why\nthree\n  /* here */ #include "a.h"\n#include "c.h"\nsix\n'
    whole, pieces = expand(source)
    places = includes.LineMap(source, pieces)
    files = {"": source, "b.h": 'b1\n#include "a.h"\n#include \\\n  "a.h"\nb5', "a.h": "a1\na2\n"}
    for number, line in enumerate(whole.split("\n"), 1):
        place = places.place(number)
        there = files.get(place.file, "").split("\n")
        if line.strip():
            assert line.split()[-1] == there[place.line - 1].split()[-1], line
        assert (place.within > 0) == bool(place.file)
    assert [places.describe(n) for n in range(1, 9)] == [
        "line 1", "line 1 of b.h", "line 1 of a.h", "line 2 of a.h", "line 1 of a.h", "line 2 of a.h", "line 5 of b.h",
        "line 3",
    ]  # fmt: skip
    assert [places.place(n).within for n in range(1, 9)] == [0, 2, 2, 2, 2, 2, 2, 0]


def test_an_error_in_a_header_names_its_line_and_the_include(write: Write) -> None:
    write(x="\n\nBPF_HASH(h, u32);\nstatic int hello(void *ctx) { return 0; }\n")
    source = f'// cell\n#include "x.h"\n{F}'
    with pytest.raises(ProgramError) as caught:
        parse(source, {"syscall:clone": "hello"})
    error = caught.value
    assert str(error).startswith("line 2: function 'hello' is static")
    assert str(error).endswith("(in x.h, line 4)")
    assert (error.line, error.column, error.source) == (2, None, source)
    assert '    2 | #include "x.h"' in error.report()


def test_an_error_behind_a_header_is_at_its_line_in_the_cell(write: Write) -> None:
    write(x="\n" * 40 + "BPF_HASH(h, u32);\n")
    with pytest.raises(ProgramError) as caught:
        parse(f'#include "x.h"\n  static {F}', PROBE)
    assert (caught.value.line, caught.value.column) == (2, 14)
    (warning,) = parse(f'#include "x.h"\n{F}\nint g(void *ctx) {{ return 0; }}', PROBE).warnings
    assert (warning.line, warning.column) == (4, 5)
