"""What is written around the updates of maps, and what is said of those that are not exact."""

from __future__ import annotations

import pytest

from bpfnb.language.program import parse
from bpfnb.language.scan import scan
from bpfnb.tracer.compile.rewrite import rewrite
from bpfnb.tracer.compile.updates import Updates, shown_entries, updates

MAPS = 'BPF_HASH(counts, u32); BPF_ARRAY(slots, u64, 8); BPF_TABLE("percpu_hash", u32, u64, pcpu, 10);'


def found(statement: str, maps: str = MAPS) -> Updates:
    return updates(scan(f"{maps}\nint f(void *ctx) {{ u32 k = 1; {statement}\n return 0; }}"), late=True, in_tasks=True)


def compiled(statement: str, maps: str = MAPS) -> str:
    program = parse(f"{maps}\nint f(void *ctx) {{ u32 k = 1; {statement}\n return 0; }}", {"syscall:sync": "f"})
    return rewrite(program, tag="", syscall_mode="tracepoint").text


def test_maps_have_their_counters_in_the_order_they_are_declared_in() -> None:
    made = found("slots.increment(1); counts.increment(k);")
    assert made.counted == ("counts", "slots")
    assert "#define BPFNB_COUNTERS 256" in made.prelude
    text = compiled("slots.increment(1); counts.increment(k);")
    assert "bpfnb_refuse(128, -7)" in text  # an array's index past its end: E2BIG
    assert "bpfnb_refuse(0, bpfnb_result)" in text


@pytest.mark.parametrize(
    "statement",
    [
        "counts.lookup(&k);",
        "counts.delete(&k);",
        "other.increment(k);",
        "x->counts.increment(k);",
        "counts.increment();",
        "counts.increment(k, 1, 2);",
        "counts.update(&k);",
        "counts.increment",
    ],
)
def test_what_cannot_be_refused_and_what_clang_will_refuse_is_left_alone(statement: str) -> None:
    made = found(statement)
    assert (made.edits, made.counted) == ([], ())
    assert "BPFNB_COUNTERS" not in made.prelude


def test_a_macro_that_stands_for_key_and_number_is_left_to_bcc() -> None:
    assert found("counts.increment(BOTH);", f"#define BOTH k, 2\n{MAPS}").edits == []


def test_the_arguments_stay_where_they_are() -> None:
    source = f"{MAPS}\nint f(void *ctx) {{ counts.increment(\n  nope, 3); return 0; }}"
    rewritten = rewrite(parse(source, {"syscall:sync": "f"}), tag="", syscall_mode="tracepoint")
    line = rewritten.text.split("\n")[-1]
    for word, column in (("nope", 3), ("3", 9)):
        at = line.index(f"= {word}") + 3
        assert rewritten.to_cell(3, at) == (3, column)
        assert not rewritten.is_inserted(3, at)


def test_a_lookup_that_cannot_make_its_entry_asks_for_the_reason_where_that_does_no_harm() -> None:
    assert "bpfnb_result = counts.insert(& k, & zero)" in compiled("counts.lookup_or_try_init(&k, &zero);")
    assert "bpfnb_refuse(0, 0)" in compiled("counts.lookup_or_try_init(next(&k), &zero);")


def test_bccs_lookup_or_init_goes_on_to_leave_the_function() -> None:
    text = compiled("u64 *v = counts.lookup_or_init(&k, &zero);")
    assert "counts.lookup_or_try_init(&k, &zero)" in text
    assert "if (!bpfnb_leaf) return 0;" in text


def test_sizes_that_the_cell_states_are_left_to_it() -> None:
    assert found("", 'BPF_TABLE("hash", u32, u64, counts, 10);').prelude == ""
    late, early = (updates(scan(MAPS), late=late, in_tasks=True).prelude for late in (True, False))
    assert "BPF_HASH3" in late
    assert "BPF_HASH3" not in early  # where hashes would have to be allocated at once, they are bcc's
    assert "BPF_HASH4" not in late


@pytest.mark.parametrize(
    ("probe", "roomy"),
    [
        ("syscall:sync", True),
        ("uprobe:/bin/sh:main", True),
        ("tracepoint:syscalls:sys_enter_sync", True),
        ("tracepoint:sched:sched_switch", False),
        ("rawtracepoint:sched_switch", False),
        ("profile:99", False),
    ],
)
def test_a_per_cpu_hash_has_more_room_where_its_keys_can_be_made_while_interrupts_are_on(
    probe: str, roomy: bool
) -> None:
    program = parse(f"{MAPS} int f(void *ctx) {{ return 0; }}", {"syscall:sync": "f", probe: "f"})
    text = rewrite(program, tag="", syscall_mode="tracepoint").text
    assert ("BPF_PERCPU_HASH3" in text) == roomy
    assert "BPF_HASH3" in text


@pytest.mark.parametrize(
    ("declared", "shown"),
    [
        ("BPF_HISTOGRAM(h)", 64),
        ("BPF_HISTOGRAM(h, int)", 64),
        ("BPF_HISTOGRAM(h, struct key)", 0),
        ("BPF_HISTOGRAM(h, int, 100)", 0),
        ("BPF_ARRAY(h)", 0),
    ],
)
def test_a_histogram_without_a_stated_size_is_shown_as_bcc_makes_it(declared: str, shown: int) -> None:
    assert shown_entries(scan(f"{declared};"), "h") == shown


@pytest.mark.parametrize(
    ("addition", "exact"),
    [
        ("(*v)++;", "__sync_fetch_and_add(v, 1)"),
        ("++*v;", "__sync_fetch_and_add(v, 1)"),
        ("++(*v);", "__sync_fetch_and_add(v, 1)"),
        ("(*v)--;", "__sync_fetch_and_add(v, -1)"),
        ("*v += n;", "__sync_fetch_and_add(v, n)"),
        ("if (v) *v += n * 2;", "__sync_fetch_and_add(v, (n * 2))"),
        ("(*v) -= n;", "__sync_fetch_and_add(v, -(n))"),
        ("*v = *v + 4;", "__sync_fetch_and_add(v, 4)"),
        ("v->count++;", "__sync_fetch_and_add(&v->count, 1), of a member of 4 or 8 bytes"),
        ("v->a.slots[1] += n;", "__sync_fetch_and_add(&v->a.slots[1], n), of a member of 4 or 8 bytes"),
    ],
)
def test_an_addition_that_is_not_exact_is_noted_with_the_exact_way(addition: str, exact: str) -> None:
    (note,) = found(f"u64 n = 2; u64 *v = counts.lookup(&k); if (!v) return 0;\n {addition}").notes
    assert (note.line, note.severity) == (3, "note")
    assert note.message.endswith(f"exact: {exact}")


@pytest.mark.parametrize(
    "statement",
    [
        "u64 *v = pcpu.lookup(&k); (*v)++;",  # each CPU has its own
        "u64 *v = counts.lookup(&k); __sync_fetch_and_add(v, 1);",
        "u64 *v = counts.lookup(&k); u64 n = 2 * *v + 1; *v = n;",
        "u64 *v = counts.lookup(&k); u64 n = 0; n += *v; n = n * *v;",
        "u64 x = 1; u64 *v = &x; (*v)++;",
        "counts.increment(k);",
    ],
)
def test_what_is_exact_or_adds_nothing_is_not_noted(statement: str) -> None:
    assert found(statement).notes == ()
