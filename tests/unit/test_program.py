"""A cell becomes a Program: what is found, what is attached, what is refused, and where it says the fault is."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfnb.errors import ProgramError
from bpfnb.language.program import Function, Probe, Program, parse

HELLO = 'int hello(void *ctx) { bpf_trace_printk("hi\\n"); return 0; }'

# The three programs of the tutorial this project grew from, as C.
SEED_HELLO = 'int kprobe__sys_clone(void *ctx) { bpf_trace_printk("Hello, World!\\n"); return 0; }'
SEED_SYNC = 'int kprobe__sys_sync(void *ctx) { bpf_trace_printk("sys_sync() called\\n"); return 0; }'
SEED_CLONE = """
int hello(void *ctx) {
    bpf_trace_printk("my bcc program\\n");
    return 0;
}
"""


def names(program: Program) -> list[str]:
    return [f.name for f in program.functions]


def probes(program: Program) -> list[tuple[str, str, str]]:
    return [(p.kind, p.target, p.function) for p in program.probes]


def attached(body: str, *functions: str) -> Program:
    """A cell with each of the functions on some probe."""
    return parse(body, [("kprobe:vfs_read", f) for f in functions])


# --- the tutorial's programs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "target"), [(SEED_HELLO, "clone"), (SEED_SYNC, "sync")])
def test_seed_programs_attach_by_their_names(source: str, target: str) -> None:
    """GIVEN C of the tutorial, unescaped by Python or not THEN its name is the portable probe on the syscall."""
    for text in (source, source.replace("\n", "\\\\n")):
        program = parse(text)
        assert probes(program) == [("syscall", target, f"kprobe__sys_{target}")]
        assert program.probes[0].requested == f"kprobe__sys_{target}"
        assert program.prints


def test_seed_program_attached_by_call() -> None:
    program = parse(SEED_CLONE, {"syscall:clone": "hello"})
    assert program == Program(
        source=SEED_CLONE,
        functions=(Function("hello", 2, 5, False, ("void *ctx",)),),
        probes=(Probe("syscall", "clone", "hello", "syscall:clone", 2),),
        outputs=(),
        maps=(),
        prints=True,
    )


def test_a_program_travels() -> None:
    """GIVEN a parsed cell WHEN it goes through msgpack THEN it arrives equal, and hashable."""
    program = parse("BPF_HASH(m);\nBPF_PERF_OUTPUT(e);\n" + HELLO, {"k:vfs_read": "hello"}, ["-DX=1"])
    arrived = msgspec.msgpack.decode(msgspec.msgpack.encode(program), type=Program)
    assert arrived == program
    assert hash(arrived) == hash(program)


# --- what attaches ---------------------------------------------------------------------------------------------------


def test_attach_takes_mappings_with_several_functions_and_pairs() -> None:
    source = "int a(void *ctx) { return 0; }\nint b(void *ctx) { return 0; }"
    expected = [("syscall", "clone", "a"), ("syscall", "clone", "b"), ("kprobe", "vfs_read", "a")]
    assert probes(parse(source, {"syscall:clone": ["a", "b"], "k:vfs_read": "a"})) == expected
    pairs = [("syscall:clone", "a"), ("syscall:clone", "b"), ("k:vfs_read", "a")]
    assert probes(parse(source, pairs)) == expected


@pytest.mark.parametrize(
    ("signature", "kind", "target", "name", "requested"),
    [
        ("int kprobe__vfs_read(void *ctx)", "kprobe", "vfs_read", "kprobe__vfs_read", "kprobe__vfs_read"),
        ("int kprobe____x64_sys_clone(void *c)", "syscall", "clone", "kprobe____x64_sys_clone", None),
        ("int kprobe____vfs_x(void *c)", "kprobe", "__vfs_x", "kprobe____vfs_x", None),
        ("int kretprobe__sys_read(void *c)", "sysret", "read", "kretprobe__sys_read", None),
        ("int syscall__execve(struct pt_regs *ctx)", "syscall", "execve", "syscall__execve", None),
        ("int tracepoint__a__b__c(void *x)", "tracepoint", "a:b__c", "tracepoint__a__b__c", None),
        ("int raw_tracepoint__x(void *x)", "rawtracepoint", "x", "raw_tracepoint__x", None),
        ("int kfunc__f(void *x)", "fentry", "f", "kfunc__f", None),
        ("int kfunc__vmlinux__f(void *x)", "fentry", "f", "kfunc__vmlinux__f", None),
        ("int kretfunc__f(void *x)", "fexit", "f", "kretfunc__f", None),
        ("int lsm__file_open(void *x)", "lsm", "file_open", "lsm__file_open", None),
        ("TRACEPOINT_PROBE(a, b)", "tracepoint", "a:b", "tracepoint__a__b", "TRACEPOINT_PROBE(a, b)"),
        ("TRACEPOINT_PROBE(a,\n  b)\n", "tracepoint", "a:b", "tracepoint__a__b", "TRACEPOINT_PROBE(a, b)"),
        ("RAW_TRACEPOINT_PROBE( x )", "rawtracepoint", "x", "raw_tracepoint__x", "RAW_TRACEPOINT_PROBE(x)"),
        ("KFUNC_PROBE(f, struct file *f)", "fentry", "f", "kfunc__f", "KFUNC_PROBE(f)"),
        ("KFUNC_PROBE(f)", "fentry", "f", "kfunc__f", "KFUNC_PROBE(f)"),
        ("KRETFUNC_PROBE(f, int a, int r)", "fexit", "f", "kretfunc__f", "KRETFUNC_PROBE(f)"),
        ("MODULE_KFUNC_PROBE(m, f, int a)", "fentry", "m:f", "kfunc__m__f", "MODULE_KFUNC_PROBE(m, f)"),
        ("LSM_PROBE(h,\n\tstruct file *f)", "lsm", "h", "lsm__h", "LSM_PROBE(h)"),
    ],
)
def test_names_and_macros_that_attach_by_themselves(
    signature: str, kind: str, target: str, name: str, requested: str | None
) -> None:
    program = parse(f"\n{signature} {{ return 0; }}\n")
    assert names(program) == [name]
    assert program.probes == (Probe(kind, target, name, requested or name, 2),)


def test_parameters_of_bccs_macros() -> None:
    program = parse(
        "KFUNC_PROBE(f, struct file *file, const char *  b[4]) { return 0; }\nTRACEPOINT_PROBE(a, b) { return 0; }"
    )
    assert [f.parameters for f in program.functions] == [
        ("unsigned long long *ctx", "struct file *file", "const char * b[4]"),
        ("struct tracepoint__a__b *args",),
    ]


def test_a_syscall_name_said_elsewhere_attaches_only_there() -> None:
    source = "int syscall__execve(struct pt_regs *ctx) { return 0; }"
    assert probes(parse(source, {"syscall:execveat": "syscall__execve"})) == [
        ("syscall", "execveat", "syscall__execve")
    ]


def test_bccs_other_names_attach_there_as_well() -> None:
    source = "int kprobe__vfs_read(void *ctx) { return 0; }"
    found = probes(parse(source, {"kprobe:vfs_write": "kprobe__vfs_read"}))
    assert found == [("kprobe", "vfs_read", "kprobe__vfs_read"), ("kprobe", "vfs_write", "kprobe__vfs_read")]


def test_the_same_probe_twice_is_one_probe() -> None:
    program = parse(SEED_HELLO, [("syscall:clone", "kprobe__sys_clone"), ("kprobe:sys_clone", "kprobe__sys_clone")])
    assert probes(program) == [("syscall", "clone", "kprobe__sys_clone")]
    assert program.probes[0].requested == "kprobe__sys_clone"


# --- reading C -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "place", "static", "parameters"),
    [
        ("int f(void) { return 0; }", "f", (1, 5), False, ()),
        ("int f() { return 0; }", "f", (1, 5), False, ()),
        ("int\nf\n(\nvoid\n*\nctx\n)\n{\nreturn 0; }", "f", (2, 1), False, ("void * ctx",)),
        ("static inline int f(int a, int b) { return 0; }", "f", (1, 19), True, ("int a", "int b")),
        ("inline static int f(int a) { return 0; }", "f", (1, 19), True, ("int a",)),
        ("static __always_inline int f(int a) { return 0; }", "f", (1, 28), True, ("int a",)),
        ("__attribute__((always_inline)) static u64 f(int a) { return 0; }", "f", (1, 43), True, ("int a",)),
        ("static int __attribute__((noinline)) f(int a) { return 0; }", "f", (1, 38), True, ("int a",)),
        ("int f(void *ctx) __attribute__((section(\"x(\"))) { return 0; }", "f", (1, 5), False, ("void *ctx",)),
        ("struct task *f(struct task *t)\n{ return t; }", "f", (1, 14), False, ("struct task *t",)),
        ("static const char **f(void) { return 0; }", "f", (1, 21), True, ()),
        ("int f(const char __user *a, int (*b)(int, int)) { return 0; }", "f", (1, 5), False,
         ("const char __user *a", "int (*b)(int, int)")),
        ("int f(void *ctx /* , int no */, // more\n int a) { return 0; }", "f", (1, 5), False, ("void *ctx", "int a")),
        ("/* int g(void) {} */ int f(void) { return 0; } // int h(void) {", "f", (1, 26), False, ()),
        ("/* é */ int f(void) { return 0; }", "f", (1, 13), False, ()),
        ("char *s = \"int g(void) { } /*\"; int f(void) { return 0; } /* */", "f", (1, 37), False, ()),
        ("int f(void) { char c = '{', d = '\"'; return '\\''; }", "f", (1, 5), False, ()),
        ("int f(void) { if (1) { } else { struct { int a; } x = { 1 }; } return 0; }", "f", (1, 5), False, ()),
        ("int f(void); int f(void) { return 0; }", "f", (1, 18), False, ()),
        ("\r\nint f(void)\r\n{\r\n return 0;\r\n}\r\n", "f", (2, 5), False, ()),
        ("\tint f(void) { return 0; }", "f", (1, 6), False, ()),
        ("enum e { A, B }; struct s { union { int b; }; } __packed; typedef u64 t; int f(t a) { return 0; }", "f",
         (1, 78), False, ("t a",)),
        ("#define A(x) { ( \\\n [\nint f(void) { return 0; }", "f", (3, 5), False, ()),
    ],
)  # fmt: skip
def test_functions(text: str, name: str, place: tuple[int, int], static: bool, parameters: tuple[str, ...]) -> None:
    """GIVEN one function in hostile clothes THEN it is found where it stands, with its parameters, and nothing else."""
    program = parse(text + "\nint anchor(void *ctx) { return f; }", {"k:x": "anchor"})
    found = [f for f in program.functions if f.name != "anchor"]
    (function,) = found
    assert (function.name, (function.line, function.column)) == (name, place)
    assert function.static is static
    assert function.parameters == parameters


def test_order_is_the_texts() -> None:
    source = """
#define MAKE(n) int n(void *ctx) { return 0; }
int a(void *ctx) { return 0; }
MAKE(b)
TRACEPOINT_PROBE(x, y) { return 0; }
int c(void *ctx) { return 0; }
"""
    assert names(attached(source, "a", "b", "c")) == ["a", "b", "tracepoint__x__y", "c"]


def test_outputs_and_maps() -> None:
    program = parse(
        """
#define SIZE 10
BPF_HASH(counts, u32, struct key_t);
BPF_PERF_OUTPUT(events);
BPF_RINGBUF_OUTPUT(ring, 1 << 4) // no semicolon
BPF_ARRAY(a, u64, SIZE)
BPF_HISTOGRAM(dist, struct {int a, b;}, 64);
BPF_TABLE("percpu_hash", u32, struct { u64 a[2]; }, table, 10);
BPF_QUEUESTACK("queue", q, u64, 10, 0);
BPF_STACK_TRACE(stacks, 1024); BPF_PERCPU_ARRAY(pa); BPF_LPM_TRIE(trie);
BPF_XDP_REDIRECT_MAP("devmap", int, devs, 3);
/* BPF_HASH(commented); */ char *x = "BPF_HASH(quoted);";
"""
        + HELLO,
        {"k:f": "hello"},
    )
    assert [(o.name, o.kind, o.line) for o in program.outputs] == [("events", "perf", 4), ("ring", "ringbuf", 5)]
    assert [(m.name, m.macro, m.line) for m in program.maps] == [
        ("counts", "BPF_HASH", 3),
        ("a", "BPF_ARRAY", 6),
        ("dist", "BPF_HISTOGRAM", 7),
        ("table", "BPF_TABLE", 8),
        ("q", "BPF_QUEUESTACK", 9),
        ("stacks", "BPF_STACK_TRACE", 10),
        ("pa", "BPF_PERCPU_ARRAY", 10),
        ("trie", "BPF_LPM_TRIE", 10),
        ("devs", "BPF_XDP_REDIRECT_MAP", 11),
    ]


@pytest.mark.parametrize(
    ("source", "prints"),
    [
        ("{}", False),
        ('{ bpf_trace_printk("x"); }', True),
        ('{ bpf_trace_printk\n("x"); }', True),
        ('{ /* bpf_trace_printk("x"); */ char *a = "bpf_trace_printk(1)"; }', False),
        ("{ helper(); } static inline int helper(void) { return bpf_trace_printk(1); }", True),
        ("{ LOG(1); }\n#define LOG(x) bpf_trace_printk(x)", True),
        ("{ OUTER; }\n#define LOG(x) bpf_trace_printk(x)\n#define OUTER LOG(1)", True),
        ("{ }\n#define LOG(x) bpf_trace_printk(x)", False),
        ("{\n#if 0\nbpf_trace_printk(1);\n#endif\n}", False),
        ("{\n#ifdef DEBUG\nbpf_trace_printk(1);\n#endif\n}", True),
        ("{ LOG(1); }\n#ifdef D\n#define LOG(x) bpf_trace_printk(x)\n#else\n#define LOG(x)\n#endif", True),
    ],
)
def test_prints(source: str, prints: bool) -> None:
    assert attached("int f(void *ctx) " + source, "f").prints is prints


@pytest.mark.parametrize(
    ("before", "cflags", "found"),
    [
        ("#if 0", (), "b"),
        ("#if 1", (), "a"),
        ("#if (0)", (), "b"),
        ("#if !0", (), "a"),
        ("#define X\n#ifdef X", (), "a"),
        ("#define X 1\n#if defined(X)", (), "a"),
        ("#define X\n#ifndef X", (), "b"),
        ("#ifdef X", ("-DX",), "a"),
        ("#ifdef X", ("-DX=3",), "a"),
        ("#ifdef X", ("-D", "X"), "a"),
        ("#ifdef X", ("-DXY",), "ab"),
        ("#define X\n#undef X\n#ifdef X", (), "ab"),
        ("#if LINUX_VERSION_CODE > 5", (), "ab"),
        ("#if 0\n#ifdef Y\n#else\n#endif\n#elif 1", (), "a"),
        ("#if 1 // why", (), "a"),
        ("#  if 0 /* a\n comment */", (), "b"),
        ("/* before\n */ #if 0", (), "b"),
    ],
)
def test_conditions(before: str, cflags: tuple[str, ...], found: str) -> None:
    """GIVEN two functions in the branches of a condition THEN only what is surely dead is left out."""
    source = f"{before}\nint a(void *c) {{ return 0; }}\n#else\nint b(void *c) {{ return 0; }}\n#endif\n"
    attach = [("k:x", name) for name in (found if len(found) == 1 else "")]
    program = parse(source + "int anchor(void *ctx) { return 0; }", [*attach, ("k:x", "anchor")], cflags)
    assert names(program) == [*found, "anchor"]
    assert [f.conditional for f in program.functions] == [found == "ab"] * len(found) + [False]


def test_branches_that_share_a_body() -> None:
    """GIVEN a brace opened in both branches THEN there is one function, and what follows is found."""
    source = """
#ifdef OLD
int f(void *ctx, int a) {
#else
int f(void *ctx) {
#endif
    return 0;
}
int g(void *ctx) { return 0; }
"""
    program = attached(source, "f", "g")
    assert names(program) == ["f", "g"]
    assert program.functions[0].conditional


def test_one_function_in_two_branches_is_one() -> None:
    source = "#ifdef X\nint f(void *ctx) { return 1; }\n#else\nint f(void *ctx) { return 2; }\n#endif"
    program = attached(source, "f")
    assert [(f.name, f.line, f.conditional) for f in program.functions] == [("f", 2, True)]


@pytest.mark.parametrize(
    "define", ["static inline", "static __always_inline", "static", "__attribute__((always_inline)) static inline"]
)
def test_storage_hidden_in_a_macro(define: str) -> None:
    source = f"#define HELPER {define}\nHELPER int h(int a) {{ return a; }}\n" + HELLO.replace("hi", "x")
    program = attached(source, "hello")
    assert {f.name: f.static for f in program.functions} == {"h": True, "hello": False}


def test_macros_that_write_functions() -> None:
    """GIVEN signatures and whole functions written by macros THEN they are there, on the line of their use."""
    source = """
#define ENTER(name) int kprobe__##name(struct pt_regs *ctx, int number)
#define BOTH(name) BPF_HASH(name##_map); BPF_PERF_OUTPUT(name##_out); int trace_##name(void *ctx) \\
    { bpf_trace_printk(#name); return 0; }
ENTER(vfs_read) { return 0; }
BOTH(open)
BOTH(close);
"""
    program = attached(source, "trace_open", "trace_close")
    assert [(f.name, f.line) for f in program.functions] == [
        ("kprobe__vfs_read", 5),
        ("trace_open", 6),
        ("trace_close", 7),
    ]
    assert program.functions[0].parameters == ("struct pt_regs * ctx", "int number")
    assert [m.name for m in program.maps] == ["open_map", "close_map"]
    assert [(o.name, o.line) for o in program.outputs] == [("open_out", 6), ("close_out", 7)]
    assert program.prints


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["", "  \n\t\n", "// nothing\n", "/* nothing", "/* a */ // b"])
def test_an_empty_cell(source: str) -> None:
    with pytest.raises(ProgramError, match="the cell is empty"):
        parse(source, {"syscall:clone": "hello"})


@pytest.mark.parametrize(("text", "what"), [("\0", "a NUL character"), ("\ud800", "half a character")])
def test_what_is_no_text(text: str, what: str) -> None:
    with pytest.raises(ProgramError, match=what) as caught:
        parse(f"// a\r\n  {text}", {"syscall:clone": "hello"})
    assert (caught.value.line, caught.value.column) == (2, 3)


def test_lines_end_as_they_do_in_c() -> None:
    program = parse(HELLO.replace("\n", "\r\n") + "\r// an old Mac's\r", {"syscall:clone": "hello"})
    assert program.source == HELLO + "\n// an old Mac's\n"


def test_arguments_of_another_kind() -> None:
    with pytest.raises(ProgramError, match="the C must be a str, not bytes"):
        parse(HELLO.encode(), {"syscall:clone": "hello"})  # type: ignore[arg-type]
    with pytest.raises(ProgramError, match="cflags is a list of flags") as caught:
        parse(HELLO, {"syscall:clone": "hello"}, "-DX=1 -Wall")
    assert caught.value.hint == "write cflags=['-DX=1', '-Wall']"
    for attach in ("syscall:clone=hello", ["syscall:clone=hello"]):
        with pytest.raises(ProgramError, match="not an attachment") as caught:
            parse(HELLO, attach)  # type: ignore[arg-type]
        assert caught.value.hint == 'write attach={"syscall:clone": "hello"}'


@pytest.mark.parametrize("source", ["BPF_HASH(m);", "#include <linux/sched.h>", "#define X 1", "int x;"])
def test_no_function(source: str) -> None:
    with pytest.raises(ProgramError, match="defines no function"):
        parse(source)


def test_a_function_that_does_not_exist() -> None:
    with pytest.raises(ProgramError) as caught:
        parse(HELLO, {"syscall:clone": "helo"})
    assert str(caught.value).startswith("syscall:clone asks for the function 'helo', which the cell does not define")
    assert "did you mean hello?" in str(caught.value)
    with pytest.raises(ProgramError, match="the cell defines hello"):
        parse(HELLO, {"syscall:clone": "zzz"})


def test_a_static_function_cannot_be_attached() -> None:
    source = "\n  static inline int hello(void *ctx) { return 0; }"
    with pytest.raises(ProgramError, match="'hello' is static") as caught:
        parse(source, {"syscall:clone": "hello"})
    assert (caught.value.line, caught.value.column) == (2, 21)
    assert caught.value.source == source


def test_a_static_function_with_a_name_that_attaches() -> None:
    with pytest.raises(ProgramError, match="'kprobe__vfs_read' is static"):
        parse("static int kprobe__vfs_read(void *ctx) { return 0; }\n" + SEED_SYNC)
    # A helper that happens to be called so is a helper.
    used = "static int kprobe__common(void *ctx) { return 0; }\nint a(void *c) { return kprobe__common(c); }"
    assert probes(attached(used, "a")) == [("kprobe", "vfs_read", "a")]


def warned(source: str) -> list[str]:
    """The warnings about a cell in which something else is attached."""
    return [d.message for d in parse(SEED_SYNC + "\n" + source).warnings]


def test_a_function_nothing_attaches() -> None:
    """THEN the rest runs, and a warning names it, stands at it, and shows both ways to attach, and the way not to."""
    program = parse(SEED_SYNC + "\nint forgotten(void *ctx) { return 0; }")
    assert probes(program) == [("syscall", "sync", "kprobe__sys_sync")]
    (warning,) = program.warnings
    assert (warning.line, warning.column, warning.severity) == (2, 5, "warning")
    assert "nothing attaches the function 'forgotten', so it never runs" in warning.message
    assert "-a syscall:clone=forgotten" in warning.message
    assert 'attach={"syscall:clone": "forgotten"}' in warning.message
    assert "make forgotten static inline if it is a helper" in warning.message


@pytest.mark.parametrize(
    ("source", "probe"),
    [
        ("int g(struct pt_regs *ctx) { return 0; }", "syscall:clone"),
        ("int g() { return 0; }", "syscall:clone"),
        ("int g(struct bpf_perf_event_data *ctx) { return 0; }", "profile:99"),
        ("int g(struct bpf_raw_tracepoint_args *ctx) { return 0; }", "rawtracepoint:sched_switch"),
        ("int g(struct tracepoint__a__b *args) { return 0; }", "tracepoint:a:b"),
        # Which probe these are for is not sure.
        ("int g(struct pt_regs *ctx) { return PT_REGS_RC(ctx); }", "PROBE"),
        ("int g(struct pt_regs *ctx, struct file *f) { return 0; }", "PROBE"),
        ("struct my_args { u64 pad; }; int g(struct my_args *args) { return 0; }", "PROBE"),
    ],
)
def test_the_hint_on_a_function_nothing_attaches_can_be_followed(source: str, probe: str) -> None:
    (message,) = warned(source)
    assert f"-a {probe}=g or" in message
    if probe != "PROBE":
        assert not parse(SEED_SYNC + "\n" + source, {probe: "g"}).warnings
    assert not parse(SEED_SYNC + "\n" + source.replace("int g", "static inline int g")).warnings


def test_a_helper_that_is_not_static_is_told_to_be() -> None:
    (message,) = warned("int twice(int n) { return 2 * n; }")
    assert message.endswith("it never runs: make twice static inline if it is a helper")


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("BPF_ITER(task) { return 0; }", "iterators run when a file is read"),
        ("int g(struct xdp_md *ctx) { return XDP_PASS; }", "XDP programs run on network devices"),
        ("int g(struct __sk_buff *skb) { return 0; }", "programs on packets run on network devices and sockets"),
    ],
)
def test_what_bpfnb_cannot_attach_comes_without_a_hint(source: str, what: str) -> None:
    (message,) = warned(source)
    assert message.endswith(f"it never runs: {what}, and bpfnb attaches none")
    with pytest.raises(ProgramError, match=f"nothing would run: {what}, and bpfnb attaches none") as caught:
        parse(source)
    assert caught.value.hint is None


def test_the_targets_of_tail_calls_are_not_attached() -> None:
    assert warned("BPF_PROG_ARRAY(progs, 4);\nint target(void *ctx) { return 0; }") == []


@pytest.mark.parametrize(
    "more",
    [
        "int other(void *ctx) { return used(ctx); }",  # clang tells that it must be static
        "int other(void *ctx) { void *p = &used; return 0; }",
        "#define CALL used(0)\nint other(void *ctx) { return CALL; }",
    ],
)
def test_a_function_another_one_uses_is_left_to_clang(more: str) -> None:
    program = attached("int used(void *ctx) { return 0; }\n" + more, "other")
    assert names(program) == ["used", "other"]


def test_a_recursive_function_is_not_attached_by_calling_itself() -> None:
    (message,) = warned("int loop(void *ctx) { return loop(ctx); }")
    assert "nothing attaches the function 'loop'" in message


def test_only_static_functions() -> None:
    with pytest.raises(ProgramError, match="nothing would run: every function is static"):
        parse("static int helper(int a) { return a; }")


def test_a_function_in_a_condition_may_stay_unattached() -> None:
    source = "#ifdef DEBUG\nint debug(void *ctx) { return 0; }\n#endif\n" + SEED_SYNC
    assert probes(parse(source)) == [("syscall", "sync", "kprobe__sys_sync")]


@pytest.mark.parametrize(
    "source",
    [
        "int hello(void *ctx { return 0; }",
        "int hello(void *ctx) { return 0;",
        "int hello void *ctx) { return 0; }",
        "int (hello)(void *ctx) { return 0; }",  # correct, but more than we read
        "int hello(void *ctx) return 0; }",
        "}\nint hello(void *ctx) { return 0; }",
        "in t hello(void *ctx) { return 0; }",
        "TRACEPOINT_PROBE(sched { return 0; }",
        "#define A(x) x\nA(int hello(void *ctx) { )",
    ],
)
def test_clang_speaks_of_syntax_errors(source: str) -> None:
    """GIVEN C that does not parse THEN no claim is made about what it lacks: the probe is taken on trust."""
    program = parse(source, {"syscall:clone": "hello"})
    assert ("syscall", "clone", "hello") in probes(program)
    parse(source)  # nor that nothing is attached


PARAMETERS = [
    ("syscall:openat", "int dfd, const char *name", "is its context", "int f(struct pt_regs *ctx, int dfd, const char"),
    ("profile:99", "unsigned long long x", "is its context", "int f(struct pt_regs *ctx, unsigned long long x)"),
    ("tracepoint:a:b", "void *ctx, int x", "tracepoint:a:b has none to give", "args->NAME"),
    ("rawtracepoint:a", "void *ctx, int x", "rawtracepoint:a has none to give", None),
    ("kretprobe:vfs_read", "struct pt_regs *ctx, int x", "its arguments are gone", None),
    ("uprobe:/bin/bash:main", "void *ctx, int x", "declared 'void *ctx'", "int f(struct pt_regs *ctx, int x)"),
]


@pytest.mark.parametrize(("probe", "parameters", "words", "hint"), PARAMETERS)
def test_parameters_that_cannot_be(probe: str, parameters: str, words: str, hint: str | None) -> None:
    with pytest.raises(ProgramError) as caught:
        parse(f"\nint f({parameters}) {{ return x; }}", {probe: "f"})
    assert words in str(caught.value)
    assert (caught.value.line, caught.value.column) == (2, 5)
    assert hint in (caught.value.hint or "") if hint else caught.value.hint is None


@pytest.mark.parametrize(
    ("probe", "parameters"),
    [
        ("syscall:openat", "void *ctx, int dfd"),
        ("kprobe:vfs_read", "struct pt_regs *regs, struct file *file"),
        ("tracepoint:a:b", "struct tracepoint__a__b *args"),
        ("rawtracepoint:a", "struct bpf_raw_tracepoint_args *ctx"),
        ("kretprobe:vfs_read", "struct pt_regs *ctx"),
        ("kretprobe:vfs_read", "struct pt_regs *ctx, int unused"),
        ("profile:99", "struct bpf_perf_event_data *ctx"),
        ("uprobe:/bin/bash:main", "struct pt_regs *ctx, u64 x"),
        ("profile:99", "ctx_t ctx"),
        ("profile:99", ""),
    ],
)
def test_parameters_that_can_be(probe: str, parameters: str) -> None:
    parse(f"int f({parameters}) {{ return 0; }}", {probe: "f"})


def test_errors_stand_where_the_error_is_after_wide_characters() -> None:
    with pytest.raises(ProgramError) as caught:
        parse("/* ééé\n */ /*é*/int lonely(void *ctx) { return 0; }")
    assert (caught.value.line, caught.value.column) == (2, 14)
    quoted, marked = caught.value.report()[1:3]
    assert quoted[marked.index("^") :].startswith("lonely")


# --- anything at all -------------------------------------------------------------------------------------------------

_PIECES = st.sampled_from(
    [
        *(
            "int f(void *ctx) {",
            "}",
            "{",
            "(",
            ")",
            ";",
            ",",
            '"',
            "'",
            "/*",
            "*/",
            "//",
            "\\",
            "\n",
            "#if 0\n",
            "#else\n",
        ),
        *("#endif\n", "#define M(x) x {\n", "M(1)", "BPF_HASH(m", "TRACEPOINT_PROBE(a, b)", "static", "return 0;", "é"),
        *("#define", "#", "KFUNC_PROBE(", "__attribute__((", "#ifdef X\n", "bpf_trace_printk(", "BPF_TABLE(1)", "\r\n"),
    ]
)


@settings(deadline=None)
@given(st.lists(_PIECES, max_size=30).map("".join))
def test_any_text_is_read_or_refused_as_a_program(text: str) -> None:
    """GIVEN torn C THEN there is a Program or a ProgramError, never another exception, and places are in the text."""
    try:
        program = parse(text, {"syscall:clone": "f"})
    except ProgramError as error:
        assert error.line is None or 1 <= error.line <= text.count("\n") + 1  # noqa: PT017
    else:
        lines = text.split("\n")
        for f in program.functions:
            assert 1 <= f.column <= len(lines[f.line - 1]) + 1


# --- what maps are filled with ------------------------------------------------------------------------------------


def test_functions_without_a_probe_are_for_tail_calls_where_there_is_a_program_array() -> None:
    functions = (
        "int f(void *ctx) { return 0; }\nint g(void *ctx) { return 0; }\nstatic int h(void *ctx) { return 0; }\n"
    )
    for declaration in ("BPF_PROG_ARRAY(progs, 4);\n", 'BPF_TABLE("prog", int, int, progs, 4);\n'):
        program = parse(declaration + functions, {"syscall:clone": "f"})
        assert program.tail_calls == ("g",)
        assert not program.warnings
    program = parse("BPF_HASH(progs);\n" + functions, {"syscall:clone": "f"})
    assert program.tail_calls == ()
    assert len(program.warnings) == 1


def test_where_a_map_is_pinned_is_read_from_its_declaration() -> None:
    cell = """
    #define PLACE "/sys/fs/bpf/b"
    BPF_TABLE_PINNED("hash", u32, u64, a, 1024, "/sys/fs/bpf/" "a");
    BPF_TABLE_PINNED("lru_hash", u32, u64, b, 1024, PLACE, 0);
    BPF_QUEUESTACK_PINNED("queue", c, u64, 16, 0, "/sys/fs/bpf/c");
    BPF_TABLE("hash", u32, u64, d, 1024);
    BPF_TABLE_PINNED("hash", u32, u64, e, 1024, ELSEWHERE);
    int f(void *ctx) { return 0; }
    """
    maps = parse(cell, {"syscall:clone": "f"}).maps
    assert [(m.name, m.type, m.pinned) for m in maps] == [
        ("a", "hash", "/sys/fs/bpf/a"),
        ("b", "lru_hash", "/sys/fs/bpf/b"),
        ("c", "queue", "/sys/fs/bpf/c"),
        ("d", "hash", ""),
        ("e", "hash", ""),
    ]


def test_a_perf_array_that_is_read_is_warned_of_once() -> None:
    cell = """
    BPF_PERF_ARRAY(clock, 4);
    BPF_PERF_ARRAY(other, 4);
    int f(void *ctx) { return clock.perf_read(0) + clock.perf_read(1); }
    """
    (warning,) = parse(cell, {"syscall:clone": "f"}).warnings
    assert (warning.line, warning.message.startswith("clock has no counter yet")) == (4, True)
