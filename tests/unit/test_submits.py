"""What is found of a cell's submits, and what is written around them."""

from __future__ import annotations

import pytest

from bpfnb.cell import scan
from bpfnb.errors import ProgramError, UnsupportedError
from bpfnb.program import parse
from bpfnb.schema import Column, Schema
from bpfnb.tracer.edits import Submit
from bpfnb.tracer.outputs import carried
from bpfnb.tracer.rewrite import rewrite
from bpfnb.tracer.submits import submits

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


def scalar(name: str = "value", dtype: str = "<u8") -> Schema:
    return Schema((Column(name, "number", dtype, 0),), int(dtype[2]))


def test_every_call_that_hands_something_over_has_a_number_and_a_place() -> None:
    found = submits(scan(CELL))
    assert found.calls == (Submit("events", 5, 38), Submit("ring", 5, 81), Submit("ring", 7, 48))
    text = rewrite(program(), tag="", syscall_mode="tracepoint").text
    assert text.count("bpfnb_count(0)") == 1  # perf_submit
    assert text.count("bpfnb_count(1)") == 2  # ringbuf_output and ringbuf_reserve; ringbuf_submit cannot fail
    assert "BPF_RINGBUF_OUTPUT(ring, BPFNB_PAGES(8));" in text
    assert "#define BPFNB_OUTPUTS 2" in text


def test_an_array_handed_to_a_ring_by_its_name_is_made_a_pointer() -> None:
    """bcc 0.26 crashes over it."""
    cell = "BPF_RINGBUF_OUTPUT(r, 8);\nint f(void *ctx) { char a[8]; r.ringbuf_output(a, sizeof(a), 0); return 0; }"
    assert "r.ringbuf_output((a) + 0, sizeof(a), 0)" in rewrite(program(cell), tag="", syscall_mode="kprobe").text


def test_a_cell_without_outputs_gets_nothing() -> None:
    assert submits(scan("BPF_HASH(h); int f(void *ctx) { h.increment(1); return 0; }")) == ([], "", ())


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
    assert "ringbuf_output" in line
    own, added = line.index("events.perf_submit") + 1, line.index("__typeof__") + 1
    assert not rewritten.is_inserted(5, own)
    assert rewritten.is_inserted(5, added)
    assert rewritten.to_cell(5, own) == (5, CELL.splitlines()[4].index("events") + 1)


def test_all_submits_of_an_output_agree() -> None:
    calls = submits(scan(CELL)).calls
    schemas = carried(program(), calls, {0: scalar(), 1: scalar(), 2: scalar()})
    assert schemas == {"events": scalar(), "ring": scalar()}
    with pytest.raises(ProgramError, match=r"line 7: ring is given something else here than in line 5") as caught:
        carried(program(), calls, {0: scalar(), 1: scalar(), 2: scalar(dtype="<u4")})
    assert caught.value.column == 48


def test_a_call_that_was_not_compiled_says_nothing() -> None:
    assert carried(program(), submits(scan(CELL)).calls, {0: scalar()}) == {"events": scalar()}


def test_what_cannot_be_known_is_an_error_at_the_call() -> None:
    calls = submits(scan(CELL)).calls
    with pytest.raises(ProgramError, match=r"line 5: events is given a void pointer"):
        carried(program(), calls, {0: None})
    with pytest.raises(UnsupportedError, match=r"line 5: events cannot be read: too strange"):
        carried(program(), calls, {0: "too strange"})


def test_a_stamp_of_the_clock_is_the_time() -> None:
    calls = submits(scan(CELL)).calls
    assert carried(program(), calls, {0: scalar("ts")})["events"].time == "ts"
    assert carried(program(), calls, {0: scalar("ts", "<u4")})["events"].time == ""
    assert carried(program(), calls, {0: scalar("when")})["events"].time == ""
    without_clock = program(CELL.replace("bpf_ktime_get_ns()", "1"))
    assert carried(without_clock, calls, {0: scalar("ts")})["events"].time == ""
