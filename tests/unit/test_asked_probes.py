"""PROBE("...") before a function: what it attaches, and where it cannot stand."""

from __future__ import annotations

import pytest

from bpfnb.errors import ProgramError
from bpfnb.language.program import parse
from bpfnb.tracer.compile.rewrite import rewrite

F = "int f(void *ctx) { return 0; }"


def asked(source: str, **attach: str) -> list[tuple[str, str, str, int]]:
    return [(p.kind, p.target, p.function, p.asked) for p in parse(source, attach).probes]


def test_it_attaches_the_function_that_follows() -> None:
    source = (
        f'PROBE("t:sched:sched_switch")\n\nPROBE("uprobe:c:malloc")\n{F}\nPROBE("syscall:clone") int g(void *c) {{ }}'
    )
    assert asked(source) == [
        ("tracepoint", "sched:sched_switch", "f", 1),
        ("uprobe", "c:malloc", "f", 3),
        ("syscall", "clone", "g", 5),
    ]


@pytest.mark.parametrize(
    "source",
    [
        f'PROBE("syscall:clone");\n{F}',
        f'PROBE("syscall:" "clone") // who\n/* why */ {F}',
        f'PROBE(\n"syscall:clone"\n)\n__always_inline {F}',
        f'#define NOTHING 1\n#ifdef NOTHING\nPROBE("syscall:clone")\n#else\nPROBE("no such")\n#endif\n{F}',
        'PROBE("syscall:clone")\nint syscall__read(void *ctx) { }'.replace("syscall__read", "f"),
        '#define NAME f\n#define MAKE(n) int n(void *ctx)\nPROBE("syscall:clone")\nMAKE(f) { return 0; }',
    ],
)
def test_it_may_be_written_in_many_ways(source: str) -> None:
    assert [(kind, target, f) for kind, target, f, _ in asked(source)] == [("syscall", "clone", "f")]


def test_what_is_asked_for_twice_is_attached_once() -> None:
    assert len(parse(f'PROBE("syscall:clone")\n{F}', [("syscall:clone", "f")]).probes) == 1


def test_it_stands_before_what_a_name_asks_for_by_convention() -> None:
    assert asked('PROBE("syscall:read")\nint syscall__clone(void *ctx) { }') == [
        ("syscall", "read", "syscall__clone", 1)
    ]
    both = asked('PROBE("syscall:read")\nTRACEPOINT_PROBE(sched, sched_switch) { return 0; }')
    assert [kind for kind, _, _, _ in both] == ["syscall", "tracepoint"]


@pytest.mark.parametrize(
    ("source", "line", "message"),
    [
        (f"\nPROBE(syscall:clone)\n{F}", 2, "names no probe"),
        (f"PROBE()\n{F}", 1, "names no probe"),
        (f'PROBE("syscall:clone", "f")\n{F}', 1, "names no probe"),
        (f'{F}\nPROBE("syscall:clone")', 2, "stands before no function"),
        (f'PROBE("syscall:clone")\nBPF_HASH(counts);\n{F}', 1, "stands before no function"),
        (f'PROBE("syscall:clone")\nint x;\n{F}', 1, "stands before no function"),
        (f'\n\nPROBE("sycall:clone")\n{F}', 3, "unknown kind of probe 'sycall'"),
        (f'PROBE("clone")\n{F}', 1, "not a probe: 'clone'"),
        ('PROBE("syscall:clone")\nstatic int f(void *ctx) { return 0; }', 2, "is static"),
        (f'\n#define P PROBE("syscall:clone")\nP {F}', 2, "cannot come out of a macro"),
        (f'#define P(x) PROBE(x)\nP("syscall:clone") {F}', 1, "cannot come out of a macro"),
        (f'#if LINUX_VERSION_CODE > 1\nPROBE("syscall:clone")\n#endif\n{F}', 2, "under an #if"),
    ],
)
def test_where_it_means_nothing(source: str, line: int, message: str) -> None:
    with pytest.raises(ProgramError, match=message.replace("(", r"\(")) as raised:
        parse(source, [("syscall:read", "f")] if "f(" in source else ())
    assert raised.value.line == line


def test_the_compiler_sees_none_of_it() -> None:
    program = parse(f'PROBE("syscall:clone")\n{F}')
    text = rewrite(program, tag="", syscall_mode="tracepoint").text
    assert text.splitlines()[:2] == ['#line 1 "/virtual/bpfnb.h"', "#define PROBE(probe)"]
    own = parse("#define PROBE(x) int x(void *ctx)\nPROBE(f) { return 0; }", [("syscall:clone", "f")])
    assert "#define PROBE(probe)" not in rewrite(own, tag="", syscall_mode="tracepoint").text


def test_a_function_that_reads_fields_is_at_no_other_tracepoints() -> None:
    reads = "int f(struct tracepoint__sched__sched_switch *args) { return args->prev_pid; }"
    assert parse(reads, {"tracepoint:sched:sched_switch": "f"}).probes
    with pytest.raises(ProgramError, match="reads the fields of sched:sched_switch, and tracepoint:sched:"):
        parse(reads, {"tracepoint:sched:*": "f"})
