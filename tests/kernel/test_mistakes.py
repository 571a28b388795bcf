"""What people get wrong, and what they are told: the place in their own text, the words, what to do.

In each cell a § stands where the error has to be; it is taken out before the cell is compiled.
"""

from __future__ import annotations

import ctypes
import os
import re
from typing import NamedTuple

import pytest

import bpfnb
from bpfnb.errors import CompileError, ProgramError, VerifierError
from bpfnb.hosts import default_host
from bpfnb.tracer.link import functions
from bpfnb.tracer.link.kprobe import has_kprobes

ROUND = "int g(u32 i, u64 *sum) { *sum += i; return 0; }"
EACH = "static long g(void *map, u32 *key, u64 *value, void *sum) { return 0; }\n"
DATA = "struct data_t { u32 pid; u64 ts; };\n"
PERF = f"{DATA}BPF_PERF_OUTPUT(events);\n"
RING = f"{DATA}BPF_RINGBUF_OUTPUT(events, 8);\n"
HASH = "BPF_HASH(counts, u32, u64);\n"
TASK = "struct task_struct *t = (struct task_struct *)bpf_get_current_task();"
WANT = (
    'char want[] = "bash", other = 0; for (int i = 0; i < sizeof(want); i++) other |= comm[i] ^ want[i]; '
    "if (other) return 0;"
)
COMM = "char comm[16]; bpf_get_current_comm(&comm, sizeof(comm));"


def f(body: str, before: str = "") -> str:
    return f"{before}int kprobe__sys_getpgid(struct pt_regs *ctx) {{\n    {body}\n    return 0;\n}}\n"


def fork(body: str) -> str:
    return f"TRACEPOINT_PROBE(sched, sched_process_fork) {{\n    {body}\n    return 0;\n}}\n"


def exec_(body: str) -> str:
    return f"TRACEPOINT_PROBE(sched, sched_process_exec) {{\n    {body}\n    return 0;\n}}\n"


class Mistake(NamedTuple):
    """``hint``: words of it; "" where there must be none, None where it may be any."""

    cell: str
    words: str
    hint: str | None = ""
    kind: type[bpfnb.BpfnbError] = CompileError


MISTAKES = {
    # --- the language ---
    "semicolon": Mistake(f("u32 x = 1§\n    x++;"), "expected ';'"),
    "semicolon after what is rewritten": Mistake(f('bpf_trace_printk("hi")§'), "expected ';'"),
    "semicolon after a submit": Mistake(
        f("struct data_t d = {}; events.perf_submit(ctx, &d, sizeof(d))§", PERF), "expected ';'"
    ),
    "unknown type": Mistake(f("§uint46_t x = 1;"), "did you mean 'uint16_t'?"),
    "brace": Mistake("int kprobe__sys_getpgid(void *ctx) {\n    if (ctx) {\n    return 0;\n}§", "expected '}'"),
    "string without an end": Mistake(f('bpf_trace_printk(§"hello);'), "missing terminating '\"'"),
    "a string that Python has broken": Mistake(
        f('bpf_trace_printk(§"hello\n");'), "missing terminating '\"'", 'a raw string, r"""..."""'
    ),
    "a character that Python has broken": Mistake(
        f("char c = §'\n'; return c;"), "missing terminating '", 'a raw string, r"""..."""'
    ),
    "what Python has made of \\0": Mistake(
        f("char c = '§\0'; return c;"), "contains a NUL character", 'a raw string, r"""..."""', ProgramError
    ),
    "comment without an end": Mistake(f("§/* hello"), "unterminated /* comment"),
    "quotes of a text processor": Mistake(f("bpf_trace_printk(§\u201chi\u201d);"), "U+201C", "straight quotes"),
    "what nobody sees": Mistake(f("int x§\u200b = 1;\n    return x;"), "U+200B"),
    "a guess that is far off": Mistake(f("return §nothere;"), "undeclared identifier 'nothere'"),
    "a guess that is near": Mistake(f("u32 number = 1; return §nubmer;"), "did you mean 'number'?"),
    "undeclared in a submit": Mistake(
        f("struct data_t d = {}; events.perf_submit(ctx, &d, sizeof(§dd));", PERF), "undeclared identifier 'dd'"
    ),
    "wide characters before": Mistake(f('char s[] = "\u65e5\u672c\U0001f642"; return §);'), "expected expression"),
    "a tab before": Mistake(f("\tint x = 3;\t\treturn §);"), "expected expression"),
    "a form feed before": Mistake(f("int x = 1;\x0c\n    return §);"), "expected expression"),
    "a line separator before": Mistake(f("/* a\u2028b */ return §);"), "expected expression"),
    "lines of Windows": Mistake(f("int x = 1;\n    return §);").replace("\n", "\r\n"), "expected expression"),
    "lines of an old Mac": Mistake(f("int x = 1;\n    return §);").replace("\n", "\r"), "expected expression"),
    "in a macro": Mistake(f("int x = §BAD(3);", "#define BAD(a) (a + nothere)\n"), "nothere"),
    "#error": Mistake("#§error too old\n" + f(""), "too old"),
    "#defien": Mistake("#§defien X 1\n" + f(""), "directive", "did you mean define?"),
    "a comment of Python": Mistake(f("# §a comment"), "directive", "//"),
    "Python": Mistake("§from bcc import BPF\n" + f(""), "unknown type name 'from'", "this is Python"),
    "C library's header": Mistake("#include §<stdio.h>\n" + f(""), "'stdio.h' file not found", "no C library"),
    "libbpf's header": Mistake("#include §<bpf/bpf_helpers.h>\n" + f(""), "not found", "libbpf's"),
    "libbpf's SEC": Mistake('SEC(§"kprobe/x")\n' + f(""), "expected", "SEC() is libbpf's"),
    "libbpf's map": Mistake("struct { §__uint(type, 1); } m;\n" + f(""), "", "write BPF_HASH("),
    # --- functions ---
    "misspelt helper": Mistake(
        f("return §bpf_get_curent_pid_tgid();"),
        "there is no function bpf_get_curent",
        "did you mean bpf_get_current_pid_tgid?",
    ),
    "printf": Mistake(f('§printf("x");'), "there is no function printf", "bpf_trace_printk("),
    "bpf_printk": Mistake(f('§bpf_printk("x");'), "there is no function bpf_printk", "bpf_trace_printk("),
    "strcmp": Mistake(f(f'{COMM} return §strcmp(comm, "sh");'), "no function strcmp", WANT),
    "strlen": Mistake(f(f"{COMM} return §strlen(comm);"), "no function strlen", "return the length"),
    "too few arguments": Mistake(
        f("char c[16]; bpf_get_current_comm(&c§);"), "too few arguments", "bpf_get_current_comm(&comm, sizeof(comm))"
    ),
    "too many arguments": Mistake(
        f("return bpf_ktime_get_ns(§1);"), "too many arguments", "it is u64 bpf_ktime_get_ns(void)"
    ),
    "helper function not static": Mistake(
        f("return §g(3);", "int g(int a) { return a; }\n"), "non-static", "static inline"
    ),
    "ctx in TRACEPOINT_PROBE": Mistake(fork("return §ctx->pid;"), "'ctx'", "the context is called args"),
    "no parameter": Mistake(
        "int kprobe__sys_getpgid() { return PT_REGS_RC(§ctx); }",
        "'ctx'",
        "int kprobe__sys_getpgid(struct pt_regs *ctx)",
    ),
    # --- structs ---
    "the kernel's member": Mistake(f(f"{TASK} return t->§pidd;"), "did you mean 'pid'?"),
    "the cell's member": Mistake(
        f("struct data_t d = {}; return d.§pdi;", DATA), "no member named 'pdi'", "did you mean pid?"
    ),
    "no such member": Mistake(f("struct data_t d = {}; return d.§zzz;", DATA), "'zzz'", "there are pid, ts"),
    "the kernel's struct": Mistake(f("struct task_strct *t = 0; return t§->pid;"), "incomplete", "task_struct?"),
    "a struct declared too late": Mistake(
        f("struct k k = {}; counts.increment(k);", "§BPF_HASH(counts, struct k);\nstruct k { u32 a; };\n"),
        "incomplete type 'struct k'",
        "it stands in line 2",
    ),
    "a tracepoint's field": Mistake(fork("return args->§chld_pid;"), "did you mean 'child_pid'?"),
    "no such field": Mistake(
        fork("return args->§filename;"),
        "sched:sched_process_fork has no field filename",
        "there are parent_pid, ",
    ),
    "a field of changing length": Mistake(
        exec_("char text[64]; bpf_probe_read_kernel_str(text, 64, args->§filename);"),
        "args has no member filename: in sched:sched_process_exec it is a field of changing length (__data_loc)",
        "char text[64]; TP_DATA_LOC_READ_STR(text, filename, sizeof(text));",
    ),
    "nearly a field of changing length": Mistake(
        exec_("char text[64]; bpf_probe_read_kernel_str(text, 64, args->§filenam);"),
        "sched:sched_process_exec has no field filenam",
        "did you mean filename? filename is text of changing length: char text[64]; TP_DATA_LOC_READ_STR(text,",
    ),
    # --- maps ---
    "misspelt method": Mistake(f("u32 k = 0; counts.§incremet(k);", HASH), "counts has no method incremet"),
    "no such method": Mistake(
        f("u32 k = 0; counts.§add(k);", HASH), "counts has no method add", "BPF_HASH has lookup(&key)"
    ),
    "another map's method": Mistake(
        f("u64 x = 1; events.§ringbuf_output(&x, 8, 0);", PERF),
        "events has no method ringbuf_output",
        "BPF_PERF_OUTPUT has perf_submit(",
    ),
    "method without arguments": Mistake(f("counts.update(§);", HASH), "too few", "counts.update(&key, &value)"),
    "as in Python": Mistake(f("u32 k = 0; counts§[k]++;", HASH), "subscripted", "counts.lookup(&key)"),
    "libbpf's lookup": Mistake(
        f("u32 k = 0; u64 *v = bpf_map_lookup_elem(§&counts, &k); return v ? 1 : 0;", HASH),
        "R1 type=scalar expected=map_ptr",
        "write counts.lookup(&key)",
        VerifierError,
    ),
    "libbpf's lookup without an address": Mistake(
        f("u32 k = 0; u64 *v = bpf_map_lookup_elem(§counts, &k); return v ? 1 : 0;", HASH),
        "passing 'map counts' to parameter of incompatible type",
        "write counts.lookup(&key)",
    ),
    "libbpf's stacks": Mistake(
        f("return §bpf_get_stackid(ctx, &stacks, 0);", "BPF_STACK_TRACE(stacks, 64);\n"),
        "there is no function bpf_get_stackid",
        "write stacks.get_stackid(ctx, 0)",
    ),
    "libbpf's events": Mistake(
        f("u64 x = 1; §bpf_perf_event_output(ctx, &events, BPF_F_CURRENT_CPU, &x, sizeof(x));", PERF),
        "expected=map_ptr",
        "write events.perf_submit(ctx, &data, sizeof(data))",
        VerifierError,
    ),
    "misspelt map": Mistake(f("u32 k = 0; §count.increment(k);", HASH), "did you mean 'counts'?"),
    "misspelt macro": Mistake("§BPF_HSAH(counts, u32);\n" + f(""), "no macro BPF_HSAH; did you mean BPF_HASH?"),
    "a macro that bcc does not have": Mistake(
        "§BPF_LRU_HASH(counts, u32);\n" + f(""),
        'no macro BPF_LRU_HASH; write BPF_TABLE("lru_hash", KEY, VALUE, NAME, SIZE)',
    ),
    "misspelt probe": Mistake(
        "§TRACEPOINT_PROB(sched, sched_switch) { return 0; }\n" + f(""), "no macro TRACEPOINT_PROB"
    ),
    "macro without arguments": Mistake(
        "BPF_RINGBUF_OUTPUT(events§);\n" + f(""), "too few arguments", "write BPF_RINGBUF_OUTPUT(NAME, PAGES)"
    ),
    "quotes around a name": Mistake('§BPF_HASH("counts");\n' + f(""), "no name", "without quotes"),
    "the same map twice": Mistake(f("", f"{HASH}BPF_HASH(§counts, u32, u64);\n"), "redefinition of 'counts'"),
    "unknown key type": Mistake(f("", "BPF_HASH(counts, §u23);\n"), "unknown type name 'u23'"),
    "a map in a function": Mistake(f("§BPF_HASH(counts, u32);"), "cannot stand in a function", "before"),
    "a map too large": Mistake(
        f("", "BPF_HASH(§counts, u32, u64, 4000000000);\n"), "it is too large", "", ProgramError
    ),
    "three pages": Mistake(
        f("u64 x = 1; events.ringbuf_output(&x, 8, 0);", "BPF_RINGBUF_OUTPUT(§events, 3);\n"),
        "power of two of pages",
        "",
        ProgramError,
    ),
    # --- outputs ---
    "no pointer": Mistake(
        f("u64 x = 1; events.perf_submit(ctx, §x, sizeof(x));", PERF), "events must be given a pointer, not 'u64'", "&"
    ),
    "no pointer but a struct": Mistake(
        f("struct data_t d = {}; events.perf_submit(ctx, §d, sizeof(d));", PERF),
        "events must be given a pointer, not 'struct data_t'",
        "&",
    ),
    "the size of a pointer": Mistake(
        f("struct data_t d = {}, *p = &d; events.perf_submit(ctx, §p, sizeof(p));", PERF),
        "events is given the size of a pointer",
        "sizeof(*POINTER)",
    ),
    "too few arguments of a submit": Mistake(
        f("struct data_t d = {}; events.perf_submit(ctx, &d§);", PERF),
        "too few",
        "events.perf_submit(ctx, &data, sizeof(data))",
    ),
    "a pointer to nothing known": Mistake(
        f("u64 x; void *p = &x; events.perf_submit(ctx, §p, 8);", PERF),
        "void pointer",
        "struct or a number",
        ProgramError,
    ),
    "two types": Mistake(
        f("u64 x = 1; u32 y = 1;\n    events.ringbuf_output(&x, 8, 0);\n    events.ringbuf_output(§&y, 4, 0);", RING),
        "something else here than in line 5",
        "another output",
        ProgramError,
    ),
    # --- bpf_trace_printk ---
    "a format in a variable": Mistake(
        f('char s[] = "x"; bpf_trace_printk(§s);'), "must be a string literal", "in the call itself"
    ),
    "single quotes": Mistake(f("bpf_trace_printk(§'hello');"), "must be a string literal", None),
    "too few values": Mistake(
        f('bpf_trace_printk(§"%d %d", 1);'), "more values (2) than the call has (1)", "", ProgramError
    ),
    "too many values": Mistake(f('bpf_trace_printk("%d", 1, 2, 3, §4);'), "at most 3 values", "", ProgramError),
    # --- what a BPF program has not ---
    "floating point": Mistake(f("double x = §bpf_ktime_get_ns() / 2.0; return x;"), "floating-point", "integers"),
    "signed division": Mistake(f("s64 a = bpf_ktime_get_ns(); return a §/ -3;"), "signed division", "unsigned"),
    "assembler": Mistake(f('asm volatile("§nonsense");'), "invalid register"),
    "memset": Mistake(
        f("char b§[4096] = {}; bpf_get_current_comm(b, 16); return b[1];").replace("b§", "§b"), "memset of this size"
    ),
    "a global variable": Mistake(f("§counter++; return counter;", "int counter;\n"), "", "BPF_ARRAY(", VerifierError),
    "a global variable's address": Mistake(
        f("u32 c = 0; bpf_probe_read_kernel(&c, sizeof(c), &§counter); return c;", "int counter = 1;\n"),
        "wants the address of the variable counter",
        "BPF_ARRAY(",
    ),
    "a table of pointers": Mistake(
        f(
            "char to[8]; §bpf_probe_read_kernel_str(to, 8, names[PT_REGS_PARM1(ctx) & 3]); return to[0];",
            'static const char *names[] = {"a", "b", "cc", "d"};\n',
        ),
        "",
        'static const char names[][16] = {"a", "b"};',
        VerifierError,
    ),
    "a float in a struct": Mistake(
        f(
            "struct f_t d = {}; floats.perf_submit(ctx, &d, sizeof(d));",
            "struct f_t { u32 pid; float §share; };\nBPF_PERF_OUTPUT(floats);\n",
        ),
        "share is a float",
        "make it an integer",
        bpfnb.UnsupportedError,
    ),
    "noinline without its macro": Mistake(
        f("return g();", "static __attribute__((§noinline)) int g(void) { return 1; }\n"),
        "undeclared identifier 'noinline'",
        "remove the attribute",
    ),
    "a callback": Mistake(
        f("u64 sum = 0; §bpf_loop(4, g, &sum, 0); return sum;", f"static {ROUND}\n"),
        "R2 type=scalar expected=func",
        "for (int i = 0; i < 16; i++)",
        VerifierError,
    ),
    "a callback that is not static": Mistake(
        f("u64 sum = 0; bpf_loop(4, g, &sum, 0); return sum;", f"{ROUND}\n".replace(" g", " §g")),
        "g is not static: bcc takes it for a program",
        "static inline",
    ),
    "a callback for each entry": Mistake(
        f("§bpf_for_each_map_elem(&counts, g, 0, 0); return 0;", f"{HASH}{EACH}"),
        "expected=map_ptr",
        "session.maps[NAME].df",
        VerifierError,
    ),
    "bpf_strncmp": Mistake(
        f(f'char want[] = "bash"; {COMM} return §bpf_strncmp(comm, sizeof(comm), want);'),
        "expected=map_value",
        'write bpf_strncmp(comm, sizeof(comm), "bash")',
        VerifierError,
    ),
    "bpf_strncmp as strncmp": Mistake(
        f(f'char want[] = "bash"; {COMM} return §bpf_strncmp(comm, want, 4);'),
        "R2 type=fp",
        'write bpf_strncmp(comm, sizeof(comm), "bash")',
        VerifierError,
    ),
    "bpf_snprintf": Mistake(
        f('char to[8], how[] = "%d"; u64 v[] = {1}; §bpf_snprintf(to, sizeof(to), how, v, sizeof(v)); return to[0];'),
        "expected=map_value",
        'write the format as a string literal: bpf_snprintf(to, sizeof(to), "%d", values, sizeof(values))',
        VerifierError,
    ),
    "memcmp": Mistake(
        f(f'char want[] = "bash"; {COMM} return §__builtin_memcmp(comm, want, 4);'), "", WANT, VerifierError
    ),
    "noinline": Mistake(
        f("return §g();", "static noinline int g(void) { return bpf_get_prandom_u32(); }\n"),
        "",
        "remove noinline",
        VerifierError,
    ),
    # --- probes of the cell's own ---
    "no such tracepoint": Mistake(
        "§TRACEPOINT_PROBE(sched, sched_swich) { return args->x; }\n",
        "no tracepoint sched:sched_swich",
        "did you mean tracepoint:sched:sched_switch?",
        bpfnb.AttachError,
    ),
    "no such syscall": Mistake(
        "§int kprobe__sys_opnat(void *ctx) { return 0; }\n", "no syscall opnat", "syscall:openat", bpfnb.AttachError
    ),
}

# What is ours, bcc's or LLVM's. Of a verifier's log instructions and map names remain, which are what they are.
OURS = re.compile(r"bpfnb_|BPFNB_|____|/virtual/|/proc/self/fd|_table_t'|Traceback|Failed to compile|Cannot select")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_the_cells_own_terms(mistake: str) -> None:
    marked, words, hint, kind = MISTAKES[mistake]
    before, _, _ = re.sub(r"\r\n?", "\n", marked).partition("\u00a7")
    line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
    with pytest.raises(kind) as caught:
        bpfnb.trace(marked.replace("\u00a7", ""), name="mistake")
    error = caught.value
    assert words in str(error)
    assert error.line == line
    if kind in (CompileError, ProgramError):
        assert error.column == column
    assert hint is None or (hint in (error.hint or "") if hint else not error.hint), error.hint
    assert len(str(error).splitlines()) == 1
    log = getattr(error, "log", "") if kind is VerifierError else ""
    shown = [text for text in error.report() if text.strip() not in log]
    assert not OURS.search("\n".join(shown)), shown
    said = getattr(error, "diagnostics", ())
    assert len(set(said)) == len(said)


# How the hint of a mistake is followed: what to replace by what, pair by pair. By default the word at the place is
# replaced by the first that the hint or the message has after "did you mean".
FOLLOWED: dict[str, tuple[str, ...]] = {
    "a string that Python has broken": ('hello\n"', 'hello\\n"'),
    "a character that Python has broken": ("'\n'", "'\\n'"),
    "what Python has made of \\0": ("\0", "\\0"),
    "quotes of a text processor": ("\u201c", '"', "\u201d", '"'),
    "a comment of Python": ("# a", "// a"),
    "Python": ("from bcc import BPF\n", ""),
    "C library's header": ("#include <stdio.h>", ""),
    "libbpf's header": ("#include <bpf/bpf_helpers.h>", ""),
    "libbpf's SEC": ('SEC("kprobe/x")', ""),
    "libbpf's map": ("struct { __uint(type, 1); } m;", "BPF_HASH(m, u32, u64, 8);"),
    "printf": ("printf(", "bpf_trace_printk("),
    "bpf_printk": ("bpf_printk(", "bpf_trace_printk("),
    "strcmp": ('return strcmp(comm, "sh");', WANT),
    "strlen": ("strlen(comm)", "bpf_probe_read_kernel_str(comm, 16, comm)"),
    "too many arguments": ("bpf_ktime_get_ns(1)", "bpf_ktime_get_ns()"),
    "too few arguments": ("(&c)", "(&c, sizeof(c))"),
    "helper function not static": ("int g", "static inline int g"),
    "ctx in TRACEPOINT_PROBE": ("ctx->pid", "args->child_pid"),
    "no parameter": ("sys_getpgid()", "sys_getpgid(struct pt_regs *ctx)", "_RC", "_PARM1"),
    "no such member": ("zzz", "ts"),
    "a struct declared too late": (
        "BPF_HASH(counts, struct k);\nstruct k { u32 a; };",
        "struct k { u32 a; };\nBPF_HASH(counts, struct k);",
    ),
    "the kernel's struct": ("task_strct *t = 0", "task_struct *t = (struct task_struct *)bpf_get_current_task()"),
    "no such tracepoint": ("sched_swich", "sched_switch", "args->x", "args->next_pid"),
    "no such syscall": ("opnat", "openat"),
    "no such field": ("filename", "parent_pid"),
    "a field of changing length": (
        "bpf_probe_read_kernel_str(text, 64, args->filename)",
        "TP_DATA_LOC_READ_STR(text, filename, sizeof(text))",
    ),
    "nearly a field of changing length": (
        "bpf_probe_read_kernel_str(text, 64, args->filenam)",
        "TP_DATA_LOC_READ_STR(text, filename, sizeof(text))",
    ),
    "no such method": ("add", "increment"),
    "another map's method": ("ringbuf_output(&x, 8, 0)", "perf_submit(ctx, &x, sizeof(x))"),
    "method without arguments": ("counts.update()", "u32 key = 0; u64 value = 0; counts.update(&key, &value)"),
    "as in Python": ("counts[k]++", "counts.lookup(&k)"),
    "libbpf's lookup": ("bpf_map_lookup_elem(&counts, &k)", "counts.lookup(&k)"),
    "libbpf's lookup without an address": ("bpf_map_lookup_elem(counts, &k)", "counts.lookup(&k)"),
    "libbpf's stacks": ("bpf_get_stackid(ctx, &stacks, 0)", "stacks.get_stackid(ctx, 0)"),
    "libbpf's events": (
        "bpf_perf_event_output(ctx, &events, BPF_F_CURRENT_CPU, &x, sizeof(x))",
        "events.perf_submit(ctx, &x, sizeof(x))",
    ),
    "macro without arguments": ("(events)", "(events, 8)"),
    "quotes around a name": ('"counts"', "counts"),
    "a map in a function": ("BPF_HASH(counts, u32);", "", "int kprobe", "BPF_HASH(counts, u32);\nint kprobe"),
    "no pointer": (", x", ", &x"),
    "no pointer but a struct": (", d", ", &d"),
    "the size of a pointer": ("sizeof(p)", "sizeof(*p)"),
    "too few arguments of a submit": (", &d)", ", &d, sizeof(d))"),
    "a pointer to nothing known": ("void *p", "u64 *p"),
    "two types": (
        "events.ringbuf_output(&y, 4", "other.ringbuf_output(&y, 4",
        "int k", "BPF_RINGBUF_OUTPUT(other, 8);\nint k",
    ),
    "a format in a variable": ('char s[] = "x"; bpf_trace_printk(s)', 'bpf_trace_printk("x")'),
    "single quotes": ("'hello'", '"hello"'),
    "floating point": ("double x = bpf_ktime_get_ns() / 2.0", "u64 x = bpf_ktime_get_ns() / 2"),
    "signed division": ("a / -3", "(u64)a / 3"),
    "a global variable": (
        "int counter;", "BPF_ARRAY(counter, u64, 1);",
        "counter++; return counter;", "int zero = 0; u64 *count = counter.lookup(&zero); if (count) *count += 1;",
    ),
    "a global variable's address": (
        "int counter = 1;", "BPF_ARRAY(counter, u64, 1);",
        "u32 c = 0; bpf_probe_read_kernel(&c, sizeof(c), &counter); return c;",
        "int zero = 0; u64 *c = counter.lookup(&zero); return c ? *c : 0;",
    ),
    "a table of pointers": ("*names[]", "names[][16]"),
    "a float in a struct": ("float share", "u32 share"),
    "noinline": ("noinline ", ""),
    "noinline without its macro": ("__attribute__((noinline)) ", ""),
    "a callback": ("bpf_loop(4, g, &sum, 0)", "for (int i = 0; i < 16; i++) g(i, &sum)"),
    "a callback that is not static": ("int g", "static int g", "bpf_loop(4, g, &sum, 0)", "g(0, &sum)"),
    "a callback for each entry": ("bpf_for_each_map_elem(&counts, g, 0, 0); ", ""),
    "bpf_strncmp": ("sizeof(comm), want", 'sizeof(comm), "bash"'),
    "bpf_strncmp as strncmp": ("bpf_strncmp(comm, want, 4)", 'bpf_strncmp(comm, sizeof(comm), "bash")'),
    "bpf_snprintf": (', how[] = "%d"', "", ", how", ', "%d"'),
    "memcmp": ('char want[] = "bash"; ', "", "return __builtin_memcmp(comm, want, 4);", WANT),
}  # fmt: skip
GUESS = re.compile(r"did you mean '?([\w:]+)")


@pytest.mark.parametrize("mistake", [name for name, m in MISTAKES.items() if m.hint or "mean" in m.words])
def test_who_follows_a_hint_gets_past_the_error(mistake: str) -> None:
    """What the hint says must be in FOLLOWED, or a name in the place of another; and then the cell runs."""
    marked = MISTAKES[mistake].cell
    cell = marked.replace("\u00a7", "")
    pairs = FOLLOWED.get(mistake, ())
    if not pairs:
        with pytest.raises(bpfnb.BpfnbError) as caught:
            bpfnb.trace(cell, name="mistake")
        guess = GUESS.search(f"{caught.value.hint} {caught.value}")
        assert guess, "there is nothing that says how this hint is followed"
        cell = re.sub(r"\u00a7(\w+)", guess[1], marked)
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        assert old in cell
        cell = cell.replace(old, new)
    bpfnb.trace(cell, name="mistake").stop()


def test_the_tracer_lives_on() -> None:
    tracer = default_host.connect().hello().pid
    with pytest.raises(CompileError):
        bpfnb.trace(f("return nothere;"))
    assert default_host.connect().hello().pid == tracer


# attachment, words, hint ("": none); all of them beside the cell, so that none has a place in it
ATTACHMENTS = [
    ("syscall:opeat", "no syscall opeat", "did you mean syscall:openat?"),
    ("syscall:nothing_like_it", "no syscall nothing_like_it", ""),
    ("tracepoint:sched:sched_swich", "no tracepoint sched:sched_swich", "did you mean tracepoint:sched:sched_switch?"),
    ("tracepoint:sch:sched_switch", "no tracepoint sch:sched_switch", "did you mean tracepoint:sched:sched_switch?"),
    ("rawtracepoint:sched_swich", "no raw tracepoint sched_swich", "did you mean rawtracepoint:sched_switch?"),
    ("syscall:recv", "no syscall recv: glibc's recv() makes recvfrom", "did you mean syscall:recvfrom?"),
    ("tracepoint:syscalls:sys_enter_stat", "no tracepoint", "did you mean tracepoint:syscalls:sys_enter_newstat?"),
    ("uprobe:/bin/bsh:readline", "there is no file /bin/bsh", "did you mean /bin/bash?"),
    ("uprobe:/bin:readline", "/bin is a directory", ""),
    ("uprobe:bsh:readline", "there is no library or program bsh", "did you mean uprobe:bash"),
    ("uprobe:./bash:readline", "there is no file ./bash", ""),
    ("uprobe:c:mallok", "has no function mallok", "did you mean uprobe:c:malloc?"),
    ("uprobe:c:time", "implementation outside of the file", ""),
    ("uprobe:/etc/passwd:main", "/etc/passwd is no program or library", ""),
    ("uprobe:/bin/bash:readlin", "/bin/bash has no function readlin", "did you mean uprobe:/bin/bash:readline?"),
    ("uprobe:/bin/bash:qqqq*", "no function matches", ""),
    ("uprobe:/bin/bash:raedline*", "no function matches", "did you mean uprobe:/bin/bash:readline*"),
    ("tracepoint:schd:*", "no tracepoint matches", "did you mean tracepoint:sched:*"),
    ("tracepoint:syscalls:sys_entr_*", "no tracepoint matches", "did you mean tracepoint:syscalls:sys_enter_*?"),
    ("uprobe:c:*", "at most 1,000 can be attached", "narrow it"),
    ("uprobe:/bin/bash:0xyz", "0xyz is no address", ""),
    ("usdt:/usr/bin/python3:gc__strat", "has no probe gc__strat", "did you mean usdt:/usr/bin/python3:gc__start"),
    ("usdt:/bin/bash:no:such", "/bin/bash has no probe no:such", ""),
    ("profile:100000000", "perf_event_max_sample_rate", ""),
]


@pytest.mark.parametrize(("probe", "words", "hint"), ATTACHMENTS)
def test_a_probe_that_cannot_be_says_why_and_what_there_is(probe: str, words: str, hint: str) -> None:
    with pytest.raises(bpfnb.AttachError) as caught:
        bpfnb.trace("int f(void *ctx) { return 0; }", attach={probe: "f"})
    error = caught.value
    assert words in str(error)
    assert str(error).startswith(f"{probe}: ")
    assert error.probe == probe
    assert error.line is None
    assert hint in (error.hint or "") if hint else error.hint is None


@pytest.mark.parametrize("probe", [probe for probe, _, hint in ATTACHMENTS if hint.startswith("did you mean")])
def test_who_follows_the_hint_of_a_probe_attaches(probe: str) -> None:
    cell = "int f(void *ctx) { return 0; }"
    with pytest.raises(bpfnb.AttachError) as caught:
        bpfnb.trace(cell, attach={probe: "f"})
    for meant in re.findall(r"(?:mean|or) ([^ ?]+)", caught.value.hint or ""):
        kind, _, rest = probe.partition(":")
        whole = f"{kind}:{meant}:{rest.partition(':')[2]}" if meant.startswith("/") else meant
        bpfnb.trace(cell, attach={whole: "f"}).stop()


@pytest.mark.skipif(has_kprobes(), reason="a function that is there needs no other place")
def test_who_follows_the_hint_of_a_kernel_function_attaches() -> None:
    """Every tracepoint and system call that stands for a function, where this kernel has it."""
    told = 0
    for function in [*functions.TRACEPOINTS, *functions.SYSCALLS]:
        with pytest.raises(bpfnb.AttachError) as caught:
            bpfnb.trace("int f(void *ctx) { return 0; }", attach={f"kprobe:{function}": "f"})
        if found := re.search(r"-a (\S+)=f", caught.value.hint or ""):
            told += 1
            bpfnb.trace("int f(void *ctx) { return 0; }", attach={found[1]: "f"}).stop()
    assert told > 20


def test_a_probe_is_missed_before_the_cell_is_compiled() -> None:
    with pytest.raises(bpfnb.AttachError, match="no syscall"):
        bpfnb.trace("int f(void *ctx) { this is no C }", attach={"syscall:nothing_like_it": "f"})


def test_a_function_that_reads_registers_of_a_tracepoint_is_told_so() -> None:
    source = 'int f(struct pt_regs *ctx) { bpf_trace_printk("%d", PT_REGS_PARM1(ctx)); return 0; }'
    with pytest.raises(bpfnb.AttachError, match="reads beyond this tracepoint's fields"):
        bpfnb.trace(source, attach={"tracepoint:sched:sched_switch": "f"})


LIBC = "/lib/x86_64-linux-gnu/libc.so.6"


@pytest.mark.parametrize("what", ["PT_REGS_PARM1(ctx)", "PT_REGS_PARM6((struct pt_regs *)ctx)"])
@pytest.mark.parametrize("through", ["itself", "another name", "a helper"])
def test_arguments_that_are_gone_when_a_function_returns_are_refused(what: str, through: str) -> None:
    cell = {
        "itself": f"int f(struct pt_regs *ctx) {{ return {what}; }}",
        "another name": f"int f(struct pt_regs *r) {{ struct pt_regs *ctx = r; return {what}; }}",
        "a helper": f"static int g(struct pt_regs *ctx) {{ return {what}; }} int f(void *r) {{ return g(r); }}",
    }[through]
    with pytest.raises(ProgramError, match=re.escape(f"{what}: when the function returns its arguments")) as caught:
        bpfnb.trace(cell, attach={f"uretprobe:{LIBC}:getpgid": "f"})
    assert (caught.value.line, caught.value.column) == (1, cell.index(what) + 1)
    assert "save them in a BPF_HASH" in (caught.value.hint or "")


def test_arguments_saved_on_the_entry_are_there_on_the_return() -> None:
    """What the hint says; and of other registers, and on several kinds of probe, all is as it was."""
    cell = """
    BPF_HASH(saved, u64, u64);
    int entry(struct pt_regs *ctx) {
        u64 id = bpf_get_current_pid_tgid(), pid = PT_REGS_PARM1(ctx);
        saved.update(&id, &pid);
        return 0;
    }
    int back(struct pt_regs *ctx) {
        u64 id = bpf_get_current_pid_tgid(), *pid = saved.lookup(&id);
        if (pid) bpf_trace_printk("%d %d", (int)*pid, (int)PT_REGS_RC(ctx));
        return 0;
    }
    int within(struct pt_regs *ctx) { return PT_REGS_RC(ctx) + PT_REGS_IP(ctx); }
    int other(struct pt_regs *ctx) { return ctx->dx; }
    int both(struct pt_regs *ctx) { return PT_REGS_PARM1(ctx) + PT_REGS_RC(ctx); }
    """
    getpgid = f"{LIBC}:getpgid"
    attach = {
        f"uprobe:{getpgid}": ["entry", "both"],
        f"uretprobe:{getpgid}": ["back", "other", "both"],
        f"uprobe:{getpgid}+4": "within",
        "profile:1": "within",
    }
    with bpfnb.trace(cell, attach=attach) as session:
        ctypes.CDLL(None).getpgid(os.getpid())
    df = session.df
    assert df[df.pid == os.getpid()].msg.tolist() == [f"{os.getpid()} {os.getpgid(0)}"]


COUNTED = """
struct key { u32 pid; char c; u64 x; };
BPF_HASH(counts, struct key);
BPF_PERCPU_ARRAY(scratch, struct key, 1);
int f(void *ctx) {
    u32 zero = 0;
    struct key *k = scratch.lookup(&zero);
    if (!k || bpf_get_current_pid_tgid() >> 32 != PID) return 0;
    u64 *raw = (void *)k;
    *raw = bpf_get_prandom_u32() | (u64)bpf_get_prandom_u32() << 32;
    DECLARED
    counts.increment(KEY);
    return 0;
}
"""
MEMBERS = "k->pid = 1; k->c = 2; k->x = 3;"


@pytest.mark.portable
def test_padding_that_makes_several_rows_of_one_key_is_told_of() -> None:
    flags = [f"-DPID={os.getpid()}"]
    cell = COUNTED.replace("DECLARED", MEMBERS).replace("KEY", "*k")
    with bpfnb.trace(cell, attach={"syscall:getpgid": "f"}, cflags=flags) as session:
        for _ in range(5):
            os.getpgid(0)
    words = r"4 rows of counts \(line 3\) have the key of another row: they differ in 3 bytes of padding after c"
    with pytest.warns(RuntimeWarning, match=words) as caught:
        df = session.maps["counts"].df
    assert caught[0].filename == __file__
    assert len(df) == 5
    assert len(df.drop_duplicates(["pid", "c", "x"])) == 1
    assert session.maps["counts"].df.equals(df)  # and is not told again
    declared = f"struct key key = {{}}; {MEMBERS.replace('k->', 'key.')}"  # what the warning says
    cell = COUNTED.replace("DECLARED", declared).replace("KEY", "key")
    with bpfnb.trace(cell, attach={"syscall:getpgid": "f"}, cflags=flags) as session:
        for _ in range(5):
            os.getpgid(0)
    assert session.maps["counts"].df[["pid", "c", "x", "value"]].to_numpy().tolist() == [[1, 2, 3, 5]]


def test_functions_that_all_came_out_false_are_told_of() -> None:
    source = "#if LINUX_VERSION_CODE < 3\nint f(void *ctx) { return 0; }\n#endif\n"
    with pytest.raises(ProgramError, match="line 2: nothing would run: f stands under an #if that came out false"):
        bpfnb.trace(source, attach={"syscall:sync": "f"})


def test_a_flag_that_clang_cannot_follow_is_told_of() -> None:
    cell = f("")
    for flag, words in {"-D1X=2": "#define 1X 2", "-std=c89": "in helpers.h"}.items():
        with pytest.raises(CompileError) as caught:
            bpfnb.trace(cell, cflags=[flag])
        assert words in str(caught.value)
        assert len(caught.value.report()) <= 6
