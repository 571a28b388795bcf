"""What clang and the verifier refuse, with the cell's own line; and the tracer lives on."""

from __future__ import annotations

import os

import pytest

import bpfnb
from bpfnb.hosts import default_host

HEAD = "int kprobe__sys_getpgid(void *ctx) {\n"

CASES = [
    ("    return nothing;\n}", bpfnb.CompileError, "undeclared identifier 'nothing'", 2, 12),
    ("    u32 x = 1;\n\treturn 0\n}", bpfnb.CompileError, "expected ';'", 3, 10),
    ('    bpf_trace_prinkt("x");\n    return 0;\n}', bpfnb.CompileError, "bpf_trace_prinkt", 2, 5),
    ('    bpf_trace_printk("\u2603\\n"); return nothing;\n}', bpfnb.CompileError, "nothing", 2, 37),
    ('    bpf_trace_printk("%d\\n",\n 1, 2, 3, 4);\n    return 0;\n}', bpfnb.ProgramError, "at most 3 values", 3, 11),
    # LLVM ends its process over these.
    (
        '    char b[600];\n    bpf_probe_read_kernel(b, 600, 0);\n    bpf_trace_printk("%s", b);\n    return 0;\n}',
        bpfnb.CompileError,
        "stack limit of 512 bytes",
        None,
        None,
    ),
    ("    double x = bpf_ktime_get_ns();\n    return x * 1.5;\n}", bpfnb.CompileError, "not supported", 2, 16),
    (
        "    char b[bpf_get_prandom_u32()];\n    bpf_probe_read_kernel(b, 4, 0);\n    return b[2];\n}",
        bpfnb.CompileError,
        "dynamic stack",
        None,
        None,
    ),
    ('    asm volatile("nonsense");\n    return 0;\n}', bpfnb.CompileError, "invalid register", None, None),
    ("    int *p = 0;\n    return *p;\n}", bpfnb.VerifierError, "R0 !read_ok", 3, None),
    ("    int i = 0;\n    for (;;) i++;\n    return i;\n}", bpfnb.VerifierError, "infinite loop", None, None),
    (
        "    int i = 0;\n    while (bpf_ktime_get_ns()) i++;\n    return i;\n}",
        bpfnb.VerifierError,
        "too large",
        3,
        None,
    ),
]


@pytest.mark.parametrize(("body", "error", "words", "line", "column"), CASES, ids=range(len(CASES)))
def test_a_refused_cell_says_where(
    body: str, error: type[bpfnb.BpfnbError], words: str, line: int | None, column: int | None
) -> None:
    tracer = default_host.connect().hello().pid
    source = HEAD + body
    with pytest.raises(error) as caught:
        bpfnb.trace(source)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.source == source
    if line:
        assert caught.value.line == line
    if column:
        assert caught.value.column == column
    assert default_host.connect().hello().pid == tracer


def test_a_crash_of_the_compiler_costs_no_other_session() -> None:
    hit = 'int hit(void *ctx) { bpf_trace_printk("hit"); return 0; }'
    with bpfnb.trace(hit, name="other", attach={"syscall:getpgid": "hit"}) as other:
        with pytest.raises(bpfnb.CompileError, match="stack limit"):
            bpfnb.trace(HEAD + "char b[600]; bpf_probe_read_kernel(b, 600, 0); return b[9]; }", name="crash")
        os.getpgid(0)
        assert bpfnb.sessions() == {"other": other}
    assert (other.df.pid == os.getpid()).sum() == 1


def test_warnings_do_not_stop_a_cell() -> None:
    with bpfnb.trace('int kprobe__sys_getpgid(void *ctx) {\n    bpf_trace_printk("x");\n}') as session:
        assert [(w.line, w.severity) for w in session.warnings] == [(3, "warning")]
        assert "does not return a value" in session.warnings[0].message


def test_a_type_outside_the_quick_headers_is_found_all_the_same() -> None:
    source = (
        "int kprobe__sys_getpgid(void *ctx) {\n    struct nf_conntrack_tuple t = {};\n"
        '    bpf_trace_printk("%d\\n", (int)sizeof(t));\n    return 0;\n}'
    )
    with bpfnb.trace(source) as session:
        assert session.state == "running"


def test_a_function_under_an_if_that_came_out_false_is_not_attached() -> None:
    source = (
        'int kprobe__sys_getpgid(void *ctx) { bpf_trace_printk("x"); return 0; }\n'
        "#if LINUX_VERSION_CODE < KERNEL_VERSION(4, 0, 0)\nint kprobe__sys_sync(void *ctx) { return 0; }\n#endif\n"
    )
    with bpfnb.trace(source) as session:
        assert [probe.requested for probe in session.probes] == ["kprobe__sys_getpgid"]


NEAR = {
    "helper": ("    u64 id = bpf_get_curent_pid_tgid();\n    return id;\n}", "bpf_get_current_pid_tgid"),
    "method": ("    u32 k = 0;\n    u64 *v = counts.lookpu(&k);\n    return !v;\n}", "lookup"),
    "member": ("    struct task_struct *t = (void *)bpf_get_current_task();\n    return t->tgit;\n}", "tgid"),
}


@pytest.mark.parametrize("case", NEAR)
def test_a_name_that_is_not_there_has_near_ones_offered(case: str) -> None:
    body, near = NEAR[case]
    with pytest.raises(bpfnb.CompileError) as caught:
        bpfnb.trace("BPF_HASH(counts, u32);\n" + HEAD + body)
    said = f"{caught.value} {caught.value.hint}"
    assert "did you mean" in said
    assert near in said
    assert caught.value.line == (3 if case == "helper" else 4)


def test_an_unknown_field_of_a_tracepoint_has_the_real_ones_listed() -> None:
    source = "TRACEPOINT_PROBE(sched, sched_process_fork) {\n    return args->nothing_like_it;\n}"
    with pytest.raises(bpfnb.CompileError) as caught:
        bpfnb.trace(source)
    assert caught.value.line == 2
    assert "child_pid" in (caught.value.hint or "")
    assert "common_pid" not in (caught.value.hint or "")


def test_notes_and_fixes_are_data_and_stand_in_the_picture() -> None:
    source = "static int g(int a) { return a; }\nint kprobe__sys_getpgid(void *ctx) {\n    g(1, 2);\n    return 0\n}"
    with pytest.raises(bpfnb.CompileError) as caught:
        bpfnb.trace(source)
    found = [(d.severity, d.line) for d in caught.value.diagnostics]
    assert ("error", 3) in found
    assert ("note", 1) in found
    assert [d.fix for d in caught.value.diagnostics if d.line == 4] == [";"]
    report = caught.value.report()
    assert any(line.startswith("    line 1:") and "note" in line for line in report)
    assert any("clang would put here: ;" in line for line in report)
