"""C that is being typed: what is at the cursor. "|" is where it stands."""

from __future__ import annotations

import random
import time

import pytest

from bpfnb.language.editing.cursor import Spot, spot_at, tracepoint_of, word_at
from bpfnb.language.editing.meanings import METHOD_NOTES, helper_meanings, meaning_of, method, words
from bpfnb.language.editing.scope import functions
from bpfnb.language.editing.types import CType
from bpfnb.language.vocabulary import METHODS, PROBES, TABLES, helpers

DECLARED = """\
#include <linux/sched.h>
struct inner { int x; };
struct data_t {
    u32 pid; char comm[16]; struct task_struct *task; struct inner many[4];
    struct { int a; union { int b; long c; }; } in;
    struct { u8 flag; };
    struct sock **socks;
};
typedef struct { u64 a; struct data_t *d; } both_t;
typedef struct task_struct *task_p;
enum mode { SLOW = 1, FAST };
#define LIMIT 10
BPF_HASH(counts, both_t, struct data_t);
BPF_ARRAY(limit, u64, 1);
BPF_PERF_OUTPUT(events);
static inline struct sock *sock_of(void *ctx) { int hidden = 0; return 0; }
"""
F = DECLARED + "int f(struct pt_regs *ctx, int dfd) {\n    struct data_t d = {}, *p = &d;\n    both_t k = {};\n    "


def at(text: str) -> Spot:
    cursor = text.index("|")
    return spot_at(text[:cursor] + text[cursor + 1 :], cursor)


def members(text: str) -> list[str]:
    spot = at(text)
    assert spot.scope
    return [field.name for field in spot.scope.types.members(spot.owner) or ()]


OWN = ["pid", "comm", "task", "many", "in", "flag", "socks"]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("d.|", OWN),
        ("p->|", OWN),
        ("(&d)->pi|", OWN),
        ("(*p).|", OWN),
        ("k.d->|", OWN),
        ("k.d[2].|", OWN),
        ("(p + 1)->|", OWN),
        ("((struct data_t *)ctx)->|", OWN),
        ("struct data_t *v = counts.lookup(&k); if (v) v->|", OWN),
        ("counts.lookup(&k)->|", OWN),
        ("(dfd ? p : 0)->|", OWN),
        ("bpf_probe_read(&k, sizeof(k), &p->|);\n    return 0;\n}", OWN),
        ("if (p->|) return 0;\n}", OWN),
        ("for (struct data_t *i = p; i->|", OWN),
        ("struct data_t e = {.pid = 1, .|};", OWN),
        ("struct data_t e = {.|", OWN),
        ("e = (struct data_t){.pid = 1, .|", OWN),
        ("{ both_t d = {}; d.|", ["a", "d"]),  # the inner d hides the outer
        ("{ both_t d = {}; } d.|", OWN),
        ("d.in.|", ["a", "b", "c"]),
        ("d.many[1].|", ["x"]),
        ("hidden.|", []),  # another function's
        ("nothing.|", []),
        ("dfd.|", []),
    ],
)
def test_members_of_what_the_cell_declares(typed: str, expected: list[str]) -> None:
    assert members(F + typed) == expected


@pytest.mark.parametrize(
    ("typed", "name", "path"),
    [
        ("d.task->|", "struct task_struct", ()),
        ("d.task->mm->pg|", "struct task_struct", ("mm",)),
        ("d.task->files->fd_array[0]->f_inode->|", "struct task_struct", ("files", "fd_array", "0", "f_inode")),
        ("(*d.socks)->|", "struct sock", ()),
        ("((struct task_struct *)bpf_get_current_task())->|", "struct task_struct", ()),
        ("bpf_get_current_task_btf()->|", "struct task_struct", ()),
        ("task_p t = 0; t->real_parent->|", "struct task_struct", ("real_parent",)),
        ("sock_of(ctx)->__sk_common.|", "struct sock", ("__sk_common",)),
        ("container_of(p, struct mount, mnt)->|", "struct mount", ()),
        ("(&d.task->se)->|", "struct task_struct", ("se",)),
        ("ctx->|", "struct pt_regs", ()),
        ("struct file *file = 0; u64 \u00fc = 0; file->|", "struct file", ()),
    ],
)
def test_what_leads_to_the_kernels_types(typed: str, name: str, path: tuple[str, ...]) -> None:
    spot = at(F + typed)
    assert spot.kind == "member"
    assert spot.scope
    plain = spot.scope.types.plain(spot.owner)
    assert (plain.name, plain.path) == (name, path)
    assert spot.scope.types.members(spot.owner) is None


@pytest.mark.parametrize(
    ("text", "kind", "word"),
    [
        (F + "// d.|", "nothing", ""),
        (F + "/* d.|", "nothing", ""),
        (F + 'bpf_trace_printk("d.|', "nothing", ""),
        (F + "x = 5.|", "nothing", ""),
        (F + "#if d.|", "nothing", ""),
        ("#include <linux/sc|", "include", "linux/sc"),
        ('PROBE("syscall:clo|', "probe", "syscall:clo"),
        (F + "struct ta|", "tag", "ta"),
        (F + "bpf_k|", "name", "bpf_k"),
        ("BPF_HA|", "name", "BPF_HA"),
        ("|", "name", ""),
        ("TRACEPOINT_PROBE(|", "macro", ""),
        ("RAW_TRACEPOINT_PROBE(sched_|", "macro", "sched_"),
    ],
)
def test_kinds_of_places(text: str, kind: str, word: str) -> None:
    spot = at(text)
    assert (spot.kind, spot.word) == (kind, word)


def test_arguments_of_a_probes_macro() -> None:
    assert at("TRACEPOINT_PROBE(sched, sched_sw|) { }")[4:] == ("TRACEPOINT_PROBE", ("sched",))
    spot = at("TRACEPOINT_PROBE(sched, sched_switch) { int x = args->n|")
    assert tracepoint_of(spot.owner) == "tracepoint:sched:sched_switch"
    assert at("KFUNC_PROBE(vfs_read, struct file *file) { file->|").owner == CType("struct file", 1)
    assert tracepoint_of(CType("struct task_struct")) == ""


def test_names_in_scope() -> None:
    spot = at(F + "{ int inner = 0; } { int here = 0; x|")
    assert spot.scope
    assert list(spot.scope.variables) == ["ctx", "dfd", "d", "p", "k", "here"]
    assert spot.scope.variables["d"].text == "struct data_t"
    assert spot.scope.variables["p"].text == "struct data_t *"
    assert list(spot.scope.tables) == ["counts", "limit", "events"]
    assert spot.scope.tables["counts"][2:] == ("both_t", "struct data_t")
    assert spot.scope.tables["limit"][2:] == ("int", "u64")
    assert spot.scope.functions["sock_of"] == "struct sock *"
    assert spot.scope.macros == {"LIMIT": "10"}
    assert spot.scope.types.constants == {"SLOW": "enum mode", "FAST": "enum mode"}
    assert spot.scope.inside
    outside = at("int g(void) { return 0; }\n|").scope
    assert outside
    assert not outside.inside


def test_functions_for_an_option() -> None:
    assert functions(DECLARED + "int f(void *ctx) { return g(1); }\nTRACEPOINT_PROBE(a, b) { return 0; }") == [
        "sock_of",
        "f",
    ]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("bpf_ktime_|get_ns()", "bpf_ktime_get_ns"),
        ("bpf_ktime_get_ns|()", "bpf_ktime_get_ns"),
        ("bpf_get_current_comm(|)", "bpf_get_current_comm"),
        ("f(1, g(2), |)", "f"),
        ("f(1);  | ", ""),
        ("|", ""),
    ],
)
def test_the_word_at_the_cursor(text: str, word: str) -> None:
    cursor = text.index("|")
    assert word_at(text.replace("|", ""), cursor)[0] == word


def test_text_that_is_cut_off_or_mangled_anywhere_is_no_error_and_takes_no_time() -> None:
    text = F + 'd.task->mm->owner; struct data_t e = {.pid = 1}; if (a[1].b(c)) { s = "x\\"y"; }\n/* z */ }\n'
    generator = random.Random(1)
    began = time.monotonic()
    for cursor in range(len(text) + 1):
        spot_at(text[:cursor], cursor)
        mangled = "".join(generator.choice("(){}[].->*&;,\"'#/ax\n\u00e9\0") for _ in range(12))
        cut = text[: generator.randrange(len(text))] + mangled
        spot_at(cut + text[cursor:], len(cut))
        word_at(cut, cursor)
    assert time.monotonic() - began < 20
    deep = "(" * 20_000 + "p" + ")" * 20_000 + "->"
    assert spot_at(F + deep, len(F + deep)).kind == "member"
    assert spot_at("x" * (2 << 20), 5).kind == "nothing"


def test_every_word_of_the_dialect_has_a_meaning() -> None:
    assert helper_meanings().keys() == helpers().keys()
    for since, text in helper_meanings().values():
        assert since.replace(".", "").isdecimal()
        assert 10 < len(text) < 130
        assert text[0].islower() or text.split()[0].isupper()
    assert METHOD_NOTES.keys() == METHODS.keys()
    for name in [m.name for m in (*TABLES.values(), *PROBES.values()) if m.offered]:
        known = meaning_of(name)
        assert known
        assert known.text
        assert known.signature.startswith(name)
    assert all(meaning.example for meaning in words().values() if meaning.kind in ("helper", "function"))


def test_methods_are_those_of_the_kind_of_map() -> None:
    known = method("BPF_HASH", "counts", "lookup", "u32", "struct data_t")
    assert known
    assert known.signature == "struct data_t *counts.lookup(u32 *key)"
    assert method("BPF_HASH", "counts", "perf_submit") is None
    assert method("BPF_PERF_OUTPUT", "events", "perf_submit")
    assert method("BPF_HASH", "counts", "nothing") is None
