"""bpfnb.compare: two sessions side by side, with what each lost."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest

import bpfnb
from bpfnb.comparison import frames
from bpfnb.results.presentation import Table
from bpfnb.session import Session
from bpfnb.testing import FakeTracer

SOURCE = """
struct event { u32 pid; u64 latency; char comm[16]; };
BPF_PERF_OUTPUT(events);
int kprobe__sys_sync(void *ctx) { struct event e = {}; events.perf_submit(ctx, &e, sizeof(e)); return 0; }
"""
EVENT = np.dtype([("pid", "<u4"), ("latency", "<u8"), ("comm", "S16")])


@pytest.fixture
def tracer() -> Iterator[FakeTracer]:
    with FakeTracer() as tracer:
        yield tracer
        bpfnb.stop_all()


def session(tracer: FakeTracer, name: str, rows: list[tuple[int, int, bytes]]) -> Session:
    made = bpfnb.trace(SOURCE, name=name)
    tracer.events(made, "events", np.array(rows, EVENT))
    made.stop()
    return made


def test_rates_are_of_the_time_that_each_ran(tracer: FakeTracer) -> None:
    a, b = session(tracer, "a", [(1, 5, b"x")] * 3), session(tracer, "b", [(1, 5, b"x")] * 12)
    comparison = bpfnb.compare(a, b)
    seconds = comparison.sessions["seconds"].tolist()
    assert comparison.sessions[["session", "name", "rows", "lost"]].to_numpy().tolist() == [
        ["a", "a", 3, 0],
        ["b", "b", 12, 0],
    ]
    rates = comparison.rates().set_index("output").loc["events"]
    assert (rates.a, rates.b) == (3 / seconds[0], 12 / seconds[1])
    assert rates.ratio == rates.b / rates.a
    assert rates.change == rates.b - rates.a


def test_a_histogram_has_each_value_of_both_in_the_same_buckets(tracer: FakeTracer) -> None:
    a = session(tracer, "a", [(1, value, b"x") for value in (1, 2, 3, 1000)])
    b = session(tracer, "b", [(1, value, b"x") for value in (3, 3)])
    table = bpfnb.compare(a, b).hist("latency").set_index("low")
    assert {low: (row.a, row.b) for low, row in table.iterrows() if row.a or row.b} == {
        1: (1, 0), 2: (2, 2), 512: (1, 0),
    }  # fmt: skip
    empty = session(tracer, "empty", [])
    assert bpfnb.compare(empty, b).hist("latency")[["a", "b"]].sum().tolist() == [0, 2]


def test_quantiles_are_those_of_the_columns(tracer: FakeTracer) -> None:
    a = session(tracer, "a", [(1, value, b"x") for value in range(1, 102)])
    b = session(tracer, "b", [(1, value, b"x") for value in range(2, 203, 2)])
    table = bpfnb.compare(a, b).quantiles("latency", (0, 0.5, 1)).set_index("quantile")
    assert table["a"].tolist() == [1, 51, 101]
    assert table["b"].tolist() == [2, 102, 202]
    assert table["ratio"].tolist() == [2, 2, 2]


def test_the_groups_that_changed_most_come_first(tracer: FakeTracer) -> None:
    a = session(tracer, "a", [(1, 10, b"same")] * 5 + [(2, 10, b"gone")] * 3)
    b = session(tracer, "b", [(1, 10, b"same")] * 5 + [(3, 10, b"new")] * 40)
    comparison = bpfnb.compare(a, b)
    seconds = comparison.sessions["seconds"].tolist()
    table = comparison.top("comm").set_index("comm")
    assert table.index[0] == "new"
    assert (table.a["new"], table.b["new"], table.ratio["new"]) == (0, 40 / seconds[1], math.inf)
    assert (table.a["gone"], table.b["gone"]) == (3 / seconds[0], 0)
    assert comparison.top(n=1)["comm"].tolist() == ["new"]
    summed = comparison.top("comm", value="latency").set_index("comm")
    assert summed.b["new"] == 400 / seconds[1]


def test_tables_of_buckets_are_joined_by_group_and_bucket() -> None:
    a = pd.DataFrame({"comm": ["x", "x"], "low": [1.0, 2.0], "high": [2.0, 4.0], "label": ["[1]", "[2, 4)"],
                      "count": [7, 1]})  # fmt: skip
    b = pd.DataFrame({"comm": ["x", "y"], "low": [2.0, 1.0], "high": [4.0, 2.0], "label": ["[2, 4)", "[1]"],
                      "count": [5, 9]})  # fmt: skip
    table = frames.joined_buckets(a, b)
    assert table.to_dict("list") == {
        "comm": ["x", "x", "y"],
        "low": [1, 2, 1],
        "high": [2, 4, 2],
        "label": ["[1]", "[2, 4)", "[1]"],
        "a": [7, 1, 0],
        "b": [0, 5, 9],
    }
    quantiles = frames.joined_quantiles(a, b, [0.5]).set_index("comm")
    assert (quantiles.a["x"], quantiles.b["x"]) == ("[1]", "[2, 4)")
    assert (quantiles.a_low["x"], quantiles.b_high["x"]) == (1, 4)
    with pytest.raises(bpfnb.ProgramError, match="different groups: comm, and none"):
        frames.joined_buckets(a, b.drop(columns="comm"))


def test_the_flame_graph_is_of_the_difference(tracer: FakeTracer) -> None:
    stacks = [pd.DataFrame({"stack": ["main;read", "main;write"], "count": counts}) for counts in ([3, 1], [3, 5])]
    a, b = session(tracer, "a", []), session(tracer, "b", [])
    a._presentation, b._presentation = (Table(lambda maps, frame=frame: frame, view="flame") for frame in stacks)
    graph = bpfnb.compare(a, b).flame(normalise=False)
    nodes = graph.df.set_index("name")
    assert (nodes.total["write"], nodes.before["write"], nodes.total["read"], nodes.before["read"]) == (5, 1, 3, 3)


def test_what_was_lost_is_said_and_counts_in_rates_only(tracer: FakeTracer) -> None:
    a = bpfnb.trace(SOURCE, name="a")
    tracer.events(a, "events", np.array([(1, 5, b"x")] * 3, EVENT))
    tracer.lose(a, 9, "events")
    b = session(tracer, "b", [(1, 5, b"x")] * 3)
    with pytest.warns(RuntimeWarning, match="9 events"):
        comparison = bpfnb.compare(a, b)
    assert comparison.notes == [
        "a lost 9 events, 75 % of its own: only its rates have them",
        f"a is still running: this is what it had after {comparison.sessions['seconds'][0]:.1f} s",
    ]
    assert comparison.rates().a[0] == 12 / comparison.sessions["seconds"][0]
    assert "a lost 9 events" in repr(comparison)
    assert "a lost 9 events" in comparison._repr_html_()


def test_names_of_others_are_escaped(tracer: FakeTracer) -> None:
    a, b = (session(tracer, name, [(1, 5, b"<b>\x1b[31m")]) for name in "ab")
    comparison = bpfnb.compare(a, b)
    assert "\x1b" not in repr(comparison)
    assert "<b>" not in comparison._repr_html_()
    assert re.search(r"&lt;b&gt;", comparison._repr_html_())


def test_what_cannot_be_compared_is_one_line(tracer: FakeTracer) -> None:
    a = session(tracer, "a", [(1, 5, b"x")])
    with pytest.raises(bpfnb.ProgramError, match=r"two sessions, such as bpfnb\.open makes, not str"):
        bpfnb.compare(a, "b")  # type: ignore[arg-type]
    with pytest.raises(bpfnb.ProgramError, match="no column 'size'"):
        bpfnb.compare(a, a).hist("size")
    with pytest.raises(bpfnb.ProgramError, match="which column"):
        bpfnb.compare(a, a).quantiles()
    with pytest.raises(bpfnb.ProgramError, match="quantiles are of numbers"):
        bpfnb.compare(a, a).quantiles("comm")
    with pytest.raises(KeyError):
        bpfnb.compare(a, a, output="none")
