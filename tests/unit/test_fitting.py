"""Which view a session or a map gets when nothing else is asked for."""

from __future__ import annotations

import numpy as np
import pytest

import bpfnb
from bpfnb.errors import ProgramError
from bpfnb.language.signature import Signature, Type
from bpfnb.testing import FakeTracer
from bpfnb.views.live.fitting import fitting_maps, fitting_view, spec_of_map

CELL = """
struct key_t { u32 pid; int stack_id; };
BPF_HASH(sizes_of, u32, u64);
BPF_HISTOGRAM(sizes);
BPF_HASH(names, u32, struct name_t);
BPF_HASH(counts, struct key_t, u64);
BPF_PROG_ARRAY(calls, 4);
int kprobe__sys_sync(void *ctx) { return 0; }
"""
MAPS: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "sizes_of": (np.array([1], "<u4"), np.array([10], "<u8")),
    "sizes": (np.array([1, 2], "<i4"), np.array([10, 20], "<u8")),
    "names": (np.array([1], "<u4"), np.array([b"bash"], "S16")),
    "counts": (np.array([(1, 2)], [("pid", "<u4"), ("stack_id", "<i4")]), np.array([3], "<u8")),
}


def test_histograms_come_first_and_what_holds_no_numbers_not_at_all() -> None:
    with FakeTracer(maps=MAPS):
        session = bpfnb.trace(CELL)
        assert [(spec.kind, spec.map) for spec in fitting_maps(session)][:1] == [("hist", "sizes")]
        assert {(spec.kind, spec.map) for spec in fitting_maps(session)} == {
            ("hist", "sizes"),
            ("top", "sizes_of"),
            ("top", "counts"),
        }
        assert fitting_view(session) is None
        assert spec_of_map(session, "sizes").session is session
        with pytest.raises(KeyError, match="no map 'size'; did you mean sizes"):
            spec_of_map(session, "size")


def test_a_map_that_nothing_shows_is_said_to_be_one() -> None:
    with FakeTracer(maps=MAPS), pytest.raises(ProgramError, match="names is a map of kind"):
        spec_of_map(bpfnb.trace(CELL), "names")


@pytest.mark.parametrize(
    ("verb", "arguments", "view"),
    [
        ("count", (), "top"),
        ("hist", ("pid",), "hist"),
        ("latency", (), "hist"),
        ("stacks", (), "flame"),
        ("rows", (["pid"],), "rates"),
    ],
)
def test_a_one_liner_says_what_shows_it(verb: str, arguments: tuple[object, ...], view: str) -> None:
    call = Signature("syscall:sync", (), Type("long", "int", 8, signed=True))
    with FakeTracer(["syscall:sync"], signatures=[call]):
        assert fitting_view(getattr(bpfnb, verb)("syscall:sync", *arguments)) == view


def test_a_tool_says_what_shows_it() -> None:
    with FakeTracer(probes=["rawtracepoint:sched_wakeup"]):
        assert fitting_view(bpfnb.tools.runqlat()) == "hist"
