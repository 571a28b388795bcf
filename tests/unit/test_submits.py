"""What is found of a cell's submits, and what is written around them."""

from __future__ import annotations

import pytest

from bpfnb.errors import ProgramError, UnsupportedError
from bpfnb.language.program import parse
from bpfnb.language.scan import scan
from bpfnb.language.tokens import Token, lex
from bpfnb.protocol.schema import Column, Number, Schema, Tail
from bpfnb.tracer.compile.outputs import PayloadType, payload_types
from bpfnb.tracer.compile.rewrite import rewrite
from bpfnb.tracer.compile.submits import Submits, _uncast, padded_maps, submits
from bpfnb.tracer.source_map import Payload, Submit

CELL = """\
BPF_PERF_OUTPUT(events);
BPF_RINGBUF_OUTPUT(ring, 8);
int f(void *ctx) {
    u64 ts = bpf_ktime_get_ns();
    if (!ts) events.perf_submit(ctx, &ts, sizeof(ts)); else ring.ringbuf_output(&ts, sizeof(ts), 0);
    u64 *room = ring.ringbuf_reserve(sizeof(u64));
    if (room) { *room = 1; ring.ringbuf_submit(room, 0); }
    return 0;
}
"""


def program(source: str = CELL):  # type: ignore[no-untyped-def]
    return parse(source, {"syscall:sync": "f"})


def scalar(size: int = -1, dtype: str = "<u8", *, is_bytes: bool = False) -> Payload:
    return Payload(Schema((Number("value", 0, dtype),), int(dtype[2])), size, is_bytes)


def test_every_call_that_hands_something_over_has_a_number_and_a_place() -> None:
    found = submits(scan(CELL))
    assert found.calls == (
        Submit("events", 5, 38),
        Submit("ring", 5, 81),
        Submit("ring", 6, 38, reserves=True),
        Submit("ring", 7, 48),
    )
    text = rewrite(program(), tag="", syscall_mode="tracepoint").text
    assert text.count("bpfnb_count(0)") == 1  # perf_submit
    assert text.count("bpfnb_count(1)") == 2  # ringbuf_output and ringbuf_reserve; ringbuf_submit cannot fail
    assert "BPF_RINGBUF_OUTPUT(ring, BPFNB_PAGES(8));" in text
    assert "#define BPFNB_OUTPUTS 2" in text


def test_an_array_handed_to_a_ring_by_its_name_is_made_a_pointer() -> None:
    """bcc 0.26 crashes over it."""
    cell = "BPF_RINGBUF_OUTPUT(r, 8);\nint f(void *ctx) { char a[8]; int n = 8; r.ringbuf_output(a, n, 0); return 0; }"
    assert "r.ringbuf_output((a) + 0, n, 0)" in rewrite(program(cell), tag="", syscall_mode="kprobe").text


def test_a_cell_without_outputs_gets_nothing() -> None:
    assert submits(scan("BPF_HASH(h); int f(void *ctx) { h.increment(1); return 0; }")) == Submits([], "", ())


@pytest.mark.parametrize(
    ("call", "checked"),
    [
        ("events.perf_submit(ctx, p, sizeof(p))", True),
        ("events.perf_submit(ctx, (p), sizeof p)", True),
        ("events.perf_submit(ctx, p, sizeof(*p))", False),
        ("events.perf_submit(ctx, &a, sizeof(a))", False),
    ],
)
def test_the_size_of_what_is_handed_over_is_looked_at_where_it_may_be_a_pointers(call: str, checked: bool) -> None:
    cell = f"BPF_PERF_OUTPUT(events);\nint f(void *ctx) {{ u64 a, *p = &a; {call}; return 0; }}"
    assert ("_Static_assert" in rewrite(program(cell), tag="", syscall_mode="kprobe").text) == checked


@pytest.mark.parametrize("call", ["other.perf_submit(ctx, &a, 8)", "events.perf_submit", "events.unknown(ctx, &a, 8)"])
def test_what_is_no_submit_of_an_output_is_left_alone(call: str) -> None:
    found = submits(scan(f"BPF_PERF_OUTPUT(events);\nint f(void *ctx) {{ u64 a; {call}; return 0; }}"))
    assert found.edits == []
    assert found.calls == ()


def test_diagnostics_in_added_text_are_told_from_the_cells_own() -> None:
    rewritten = rewrite(program(), tag="", syscall_mode="tracepoint")
    line = rewritten.text.split("\n")[-6]
    assert "ring.ringbuf_reserve" in line
    own, added = line.index("events.perf_submit") + 1, line.index("BPFNB_CARRIES") + 1
    assert not rewritten.is_inserted(5, own)
    assert rewritten.is_inserted(5, added)
    assert rewritten.to_cell(5, own) == (5, CELL.splitlines()[4].index("events") + 1)


def test_all_submits_of_an_output_agree() -> None:
    calls = submits(scan(CELL)).calls
    assert payload_types(program(), calls, {0: scalar(8), 1: scalar(), 2: Payload(None, 8), 3: scalar()}) == {
        "events": PayloadType(scalar().schema, frozenset({8})),
        "ring": PayloadType(scalar().schema, frozenset()),
    }
    with pytest.raises(ProgramError, match=r"line 7: ring is given something else here than in line 5") as caught:
        payload_types(program(), calls, {0: scalar(), 1: scalar(), 3: scalar(dtype="<u4")})
    assert caught.value.column == 48


def test_more_reserved_than_the_type_has_is_shown() -> None:
    calls = submits(scan(CELL)).calls
    (carries,) = payload_types(program(), calls, {2: Payload(None, 24), 3: scalar()}).values()
    assert [column.name for column in carries.schema.columns] == ["value", "rest"]


def test_a_size_may_have_operators_of_two_characters() -> None:
    cell = "BPF_PERF_OUTPUT(p);\nint f(void *ctx) { char a[16]; p.perf_submit(ctx, a, 1 << 4); return 0; }"
    assert "char (*size)[1 << 4];" in rewrite(program(cell), tag="", syscall_mode="kprobe").text


def test_a_call_that_was_not_compiled_says_nothing() -> None:
    assert list(payload_types(program(), submits(scan(CELL)).calls, {0: scalar()})) == ["events"]


def test_what_cannot_be_known_is_an_error_at_the_call() -> None:
    calls = submits(scan(CELL)).calls
    with pytest.raises(ProgramError, match=r"line 5: events is given a void pointer"):
        payload_types(program(), calls, {0: Payload(None)})
    with pytest.raises(UnsupportedError, match=r"line 5: events cannot be read: too strange"):
        payload_types(program(), calls, {0: Payload("too strange")})


@pytest.mark.parametrize(
    ("dtype", "size", "column"),
    [
        ("|i1", 32, Tail("value", 0, text=True)),
        ("|i1", -1, Tail("value", 0, text=True)),
        ("|u1", -1, Tail("value", 0, text=False)),
        ("|u1", 1, Number("value", 0, "|u1")),
    ],
)
def test_of_a_pointer_to_bytes_the_size_is_believed(dtype: str, size: int, column: Column) -> None:
    handed = scalar(size, dtype, is_bytes=True)
    assert payload_types(program(), submits(scan(CELL)).calls, {0: handed})["events"].schema.columns == (column,)


def test_what_is_submitted_beyond_the_type_is_shown_as_bytes() -> None:
    calls = submits(scan(CELL)).calls
    beyond = Tail("rest", 8, text=False)
    assert payload_types(program(), calls, {0: scalar(12)})["events"].schema.columns == (
        *scalar().schema.columns,
        beyond,
    )
    assert payload_types(program(), calls, {0: scalar(4)})["events"].schema == scalar().schema


def test_a_type_and_something_more_is_shown_as_both() -> None:
    cell = perf_cell("sizeof(a) + n")
    calls = submits(scan(cell)).calls
    assert [column.name for column in payload_types(program(cell), calls, {0: scalar()})["events"].schema.columns] == [
        *("value", "rest"),
    ]
    for size in ("4 + n", "sizeof(a) - n", "sizeof(a) + 4"):
        assert not submits(scan(perf_cell(size))).calls[0].longer


# --- casts, sizes, stamps --------------------------------------------------------------------------------------------


def words(text: str) -> list[Token]:
    return list(lex(text))


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ("(void *)&e", "&e"),
        ("(char *)buf", "buf"),
        ("(u8 *)(&e)", "&e"),
        ("((const unsigned char *)(void *)&x->y[2])", "&x->y[2]"),
        ("(void *)(long)p", "(long)p"),
        ("(struct data_t *)buf", "(struct data_t *)buf"),  # says more than the array does
        ("(char *)&e + 4", "(char *)&e + 4"),  # the sum is of what was cast
        ("(u64 *)buf", "(u64 *)buf"),
        ("(a)", "a"),
        ("(a) + (b)", "(a) + (b)"),
        ("f(&e)", "f(&e)"),
    ],
)
def test_casts_that_say_less_are_looked_through(given: str, seen: str) -> None:
    assert [t.text for t in _uncast(words(given))] == [t.text for t in words(seen)]


def perf_cell(*sizes: str, before: str = "") -> str:
    calls = " ".join(f"events.perf_submit(ctx, &a, {size});" for size in sizes)
    return f"{before}BPF_PERF_OUTPUT(events);\nint f(void *ctx) {{ u64 a; int n = 3; {calls} return 0; }}"


@pytest.mark.parametrize(
    ("cell", "is_padded"),
    [
        (perf_cell("sizeof(a)"), False),
        (perf_cell("sizeof(a)", "sizeof a"), False),
        (perf_cell("sizeof a"), False),
        (perf_cell("SIZE", before="#define SIZE (4 + sizeof(u32))\n"), False),
        (perf_cell("(u32)8"), False),
        (perf_cell("TASK_COMM_LEN"), False),
        (perf_cell("offsetof(struct s, text) + 4"), False),
        (perf_cell("4 + n"), True),
        (perf_cell("sizeof(a) - n"), True),
        (perf_cell("SIZE", before="#define SIZE (4 + n)\n"), True),
        (perf_cell("SIZE(4)", before="#define SIZE(x) (x)\n"), True),
        (perf_cell("g(4)"), True),
        (perf_cell("5", "8"), True),  # which of the two it was must be told
        (perf_cell("sizeof(a)", "sizeof(a) - 3"), True),
        (perf_cell("sizeof(a)", "sizeof(struct head)"), True),
    ],
)
def test_sizes_that_change_are_submitted_through_maps_for_each_padding(cell: str, is_padded: bool) -> None:
    found = submits(scan(cell))
    assert found.padded == ({"events"} if is_padded else set())
    assert all((f"BPF_PERF_OUTPUT({name});" in found.prelude) == is_padded for name in padded_maps("events"))


def ring_cell(body: str, before: str = "") -> str:
    return f"{before}BPF_RINGBUF_OUTPUT(ring, 8);\nint f(void *ctx) {{ u64 a; int n; {body} return 0; }}"


OUTPUT = "ring.ringbuf_output(&a, sizeof(a), 0);"


@pytest.mark.parametrize(
    ("cell", "is_stamped"),
    [
        (ring_cell(OUTPUT), True),
        (CELL, True),
        (ring_cell("u64 *x = ring.ringbuf_reserve(8); if (x) ring.ringbuf_discard(x, 0);"), True),
        (ring_cell("ring.ringbuf_output(&a, n, 0);"), False),
        (ring_cell("PUT(ring)", before="#define PUT(r) r.ringbuf_output(&a, 8, 0);\n"), False),
        (ring_cell("PUT", before="#define PUT ring.ringbuf_output(&a, 8, 0);\n"), False),
        (ring_cell("u64 *x = ring.ringbuf_reserve(8); if (x) bpf_ringbuf_submit(x, 0);"), True),
        (ring_cell(OUTPUT + "ring.ringbuf_query(0);"), False),
        (ring_cell(OUTPUT + "ring.ringbuf_output(&a);"), False),
        (ring_cell(OUTPUT, before='#include "mine.h"\n'), False),
        (ring_cell(OUTPUT, before="#include <linux/sched.h>\n"), True),
    ],
)
def test_a_ring_is_stamped_where_every_use_of_it_is_seen(cell: str, is_stamped: bool) -> None:
    found = submits(scan(cell))
    assert found.stamped == ({"ring"} if is_stamped else set())
    text = rewrite(program(cell), tag="", syscall_mode="kprobe").text
    assert ("bpfnb_stamp(bpfnb_room, bpfnb_size)" in text) == is_stamped


def test_the_cpu_is_stamped_when_it_is_asked_for() -> None:
    asked = parse(ring_cell(OUTPUT), {"syscall:sync": "f"}, cpu=True)
    with_it, without = (rewrite(p, tag="", syscall_mode="kprobe").text for p in (asked, program(ring_cell(OUTPUT))))
    assert "#define BPFNB_STAMP 16" in with_it
    assert "bpf_get_smp_processor_id" in with_it
    assert "#define BPFNB_STAMP 8" in without
    assert "bpf_get_smp_processor_id" not in without
