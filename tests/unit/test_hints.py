"""Who does what a hint says gets past the error. The compiler's and the verifier's: tests/kernel/test_mistakes.py."""

from __future__ import annotations

import ast
import re

import pytest

from bpfnb.errors import BpfnbError, ProgramError
from bpfnb.language.probes import parse_probe, split_attach
from bpfnb.language.program import parse
from bpfnb.options import parse_duration, parse_size
from bpfnb.tracer.compile.rewrite import rewrite
from magics.options import parse_define

HELLO = "int f(void *ctx) { return 0; }"
FORMS = [
    "syscall", "syscall:", "sysret:a b", "kprobe:", "kprobe:1", "kretprobe:f+1", "fentry:", "fentry:f+0x1",
    "fexit:a:b:c",
    "tracepoint:sched", "rawtracepoint:a:b", "uprobe:/bin/bash", "uretprobe:/bin/bash:f+1", "usdt:/bin/bash",
    "profile:",
    "profile:h:3", "profile:0", "software:page-faults:0", "hardware:cache-misses:x", "lsm:a:b",
]  # fmt: skip


@pytest.mark.parametrize("wrong", FORMS)
def test_the_examples_of_a_probes_form_are_probes(wrong: str) -> None:
    with pytest.raises(ProgramError) as caught:
        parse_probe(wrong)
    examples = re.findall(r"\w+:[a-z/][\w:/.-]*|profile:\d+", (caught.value.hint or "").partition("such as")[2])
    assert examples
    for example in examples:
        parse_probe(example)


def test_an_attachment_as_the_hint_has_it() -> None:
    with pytest.raises(ProgramError) as caught:
        split_attach("syscall:clone")
    assert split_attach((caught.value.hint or "").split()[-1]) == ("syscall:clone", "hello")


@pytest.mark.parametrize(
    ("given", "argument"),
    [({"cflags": "-DX=1 '-DY=a b'"}, "cflags"), ({"attach": "syscall:clone=f"}, "attach")],
)
def test_an_argument_as_the_hint_has_it(given: dict[str, str], argument: str) -> None:
    with pytest.raises(ProgramError) as caught:
        parse(HELLO, **{"attach": {"syscall:clone": "f"}, **given})
    hint = (caught.value.hint or "").removeprefix(f"write {argument}=")
    program = parse(HELLO, **{"attach": {"syscall:clone": "f"}, argument: ast.literal_eval(hint)})
    assert program.cflags == (("-DX=1", "-DY=a b") if argument == "cflags" else ())


@pytest.mark.parametrize("parser", [parse_duration, parse_size, parse_define])
def test_a_value_as_the_hint_has_it(parser: object) -> None:
    assert callable(parser)
    with pytest.raises(ProgramError) as caught:
        parser("?")
    examples = re.findall(r"\d+\w+|NAME(?:=VALUE)?", caught.value.hint or "")
    assert examples
    for example in examples:
        parser(example)


# A cell and its probe, and the cell with what the hint says.
CELLS = {
    "static": ("static int f(void *ctx) { return 0; }", "syscall:clone", HELLO),
    "a number first": (
        "int f(int fd) { return fd; }",
        "syscall:close",
        "int f(struct pt_regs *ctx, int fd) { return fd; }",
    ),
    "a context without registers": (
        "int f(void *ctx, int fd) { return fd; }",
        "uprobe:/bin/bash:main",
        "int f(struct pt_regs *ctx, int fd) { return fd; }",
    ),
    "registers of another name": (
        "int f(struct pt_regs *ctx) { return ctx->orig_x0; }",
        "syscall:close",
        "int f(struct pt_regs *ctx) { return PT_REGS_PARM1(ctx); }",
    ),
    "a register there is none of": (
        "int f(struct pt_regs *ctx) { return PT_REGS_IP(ctx); }",
        "syscall:close",
        "int f(struct pt_regs *ctx) { return PT_REGS_PARM1(ctx); }",
    ),
    "a result before the return": (
        "int f(struct pt_regs *ctx) { return PT_REGS_RC(ctx); }",
        "syscall:close",
        "sysret:close",
    ),
    "a tracepoint's struct": (
        "int f(struct args *ctx) { return ctx->di; }",
        "syscall:close",
        "int f(struct pt_regs *ctx) { return PT_REGS_PARM1(ctx); }",
    ),
    "a context with another meaning": (
        "int f(struct pt_regs *ctx) { ctx = (struct pt_regs *)PT_REGS_PARM1(ctx); return PT_REGS_PARM1(ctx); }",
        "syscall:close",
        "int f(struct pt_regs *ctx) { struct pt_regs *r = (void *)PT_REGS_PARM1(ctx); return PT_REGS_PARM1(r); }",
    ),
    "a macro": (
        "#define FIRST PT_REGS_PARM1(ctx)\nint f(struct pt_regs *ctx) { return FIRST; }",
        "syscall:close",
        "int f(struct pt_regs *ctx) { return PT_REGS_PARM1(ctx); }",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CELLS)
def test_a_cell_as_the_hint_has_it(case: str) -> None:
    cell, probe, mended = CELLS[case]
    with pytest.raises(BpfnbError) as caught:
        rewrite(parse(cell, {probe: "f"}), tag="", syscall_mode="tracepoint")
    assert caught.value.hint
    cell, probe = (cell, mended) if ":" in mended and "{" not in mended else (mended, probe)
    rewrite(parse(cell, {probe: "f"}), tag="", syscall_mode="tracepoint")
