"""The view of rates, read as a page reads it, against counts of the DataFrame."""

from __future__ import annotations

import gc
import io
import json
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import font_manager
from PIL import Image

import bpfnb
from bpfnb.errors import ProgramError
from bpfnb.testing import FakeTracer, Line
from bpfnb.views.live.rates import RatesView
from bpfnb.views.live.selection import Selection
from bpfnb.views.live.specs import specs_of, views_of
from bpfnb.views.live.view import Part, ViewSpec

HELLO = 'int kprobe__sys_sync(void *ctx) { bpf_trace_printk("hi\\n"); return 0; }'
TWO = "BPF_PERF_OUTPUT(opens); BPF_PERF_OUTPUT(reads);\n" + HELLO
OPEN = np.dtype([("time", "<u8"), ("pid", "<u4"), ("file", "S8")])
READ = np.dtype([("time", "<u8"), ("pid", "<u4"), ("size", "<u4")])
HOSTILE = "<b>\x1b[2J\u202e" + "x" * 10_000


@pytest.fixture(autouse=True)
def _fonts_closed() -> Iterator[None]:
    """matplotlib keeps the font files it has opened; the leak check need not hear of them."""
    yield
    font_manager._get_font.cache_clear()


class Reader:
    """What a page makes of the messages: counts by label, in intervals by their number. Written after rates.py's text,
    as counts.js is."""

    def __init__(self) -> None:
        self.header: dict[str, Any] = {}
        self.totals: list[dict[int, int]] = []
        self.lines: dict[int, dict[str, Any]] = {}
        self.bytes = 0

    def take(self, part: Part | None) -> None:
        if part is None:
            return
        header = json.loads(json.dumps(part.header))
        self.bytes += len(json.dumps(part.header)) + sum(map(len, part.buffers))
        if "step" in header:
            self.totals, self.lines = [{} for _ in header["sources"]], {}
        self.header.update(header)
        first, until = header["first"], header["until"]
        if "lines" in header:
            before, self.lines = self.lines, {}
            for line in header["lines"]:
                known = line["from"] is not None and not line.get("new")
                self.lines[line["slot"]] = line | {"counts": before[line["slot"]]["counts"] if known else {}}
        numbers = np.frombuffer(part.buffers[0], "<u4").tolist()

        def put(counts: dict[int, int], begin: int) -> None:
            counts.update(zip(range(begin, until), [numbers.pop(0) for _ in range(begin, until)], strict=True))

        for counts in self.totals:
            put(counts, first)
        for line in self.lines.values():
            if line["from"] is not None:
                put(line["counts"], line["from"] if line.pop("new", False) else first)
        assert not numbers

    def shown(self) -> dict[str, dict[int, int]]:
        """Return the counts of each line that are not 0."""
        found = {}
        for line in self.lines.values():
            counts = self.totals[line["source"]] if line["from"] is None else line["counts"]
            found[line["label"]] = {number: count for number, count in counts.items() if count}
        return found


def spread(tracer: FakeTracer, session: bpfnb.Session, comms: dict[str, int], seconds: float = 20.0) -> None:
    """Lines whose times lie in the last seconds."""
    now, random = time.monotonic_ns(), np.random.default_rng(3)
    lines = [
        Line(comm, 1, "x", mono_ns=now - int(ago * 1e9))
        for comm, count in comms.items()
        for ago in random.uniform(0.01, seconds, count)
    ]
    tracer.printk(session, sorted(lines, key=lambda line: line.mono_ns))


def by_hand(frame: pd.DataFrame, view: RatesView, column: str | None = None) -> dict[Any, dict[int, int]]:
    """Count with pandas, of the intervals that are over."""
    step, until = round(view._step * 1e9), view._until()
    numbers = frame["time"].astype("int64") // step
    frame = frame.assign(number=numbers)[numbers < until]
    groups = [(None, frame)] if column is None else list(frame.groupby(column, observed=True))
    return {name: {int(n): int(c) for n, c in part.number.value_counts().items()} for name, part in groups}


def test_two_outputs_are_two_lines_with_their_names() -> None:
    with (
        FakeTracer(outputs={"opens": OPEN, "reads": READ}) as tracer,
        bpfnb.trace(TWO, name="two") as session,
    ):
        now = time.monotonic_ns()
        opens, reads = np.zeros(30, OPEN), np.zeros(70, READ)
        opens["time"], reads["time"] = now - np.arange(30) * 10**9 // 3, now - np.arange(70) * 10**9 // 7
        tracer.events(session, "opens", opens[::-1])
        tracer.events(session, "reads", reads[::-1])
        view, page = RatesView([ViewSpec(session, "rates")]), Reader()
        page.take(view.whole())
        shown = page.shown()
        assert set(shown) >= {"opens", "reads"}
        for name in ("opens", "reads"):
            assert shown[name] == by_hand(session.outputs[name].df, view)[None]
        assert view.title == "two"
        assert {"pid", "size", "file"} <= set(page.header["columns"])
        view.choose(by="size")
        page.take(view.whole())
        assert list(page.shown()) == ["0"]
        with pytest.raises(ValueError, match="no column 'sise' in two; did you mean size"):
            view.choose(by="sise")
        with pytest.raises(KeyError, match="did you mean reads"):
            RatesView([ViewSpec(session, "rates", output="raeds")])


def test_what_is_given_twice_is_one_line() -> None:
    def drawn(*specs: ViewSpec) -> tuple[str, list[str]]:
        view = RatesView(specs)
        view.update(False)
        return view.title, [line["label"] for line in view.whole().header["lines"]]

    silent = "BPF_PERF_OUTPUT(opens); BPF_PERF_OUTPUT(reads);\nint kprobe__sys_sync(void *ctx) { return 0; }"
    with FakeTracer(outputs={"opens": OPEN, "reads": READ}), bpfnb.trace(silent, name="two") as two:
        whole, reads = (ViewSpec(two, "rates", output=name) for name in (None, "reads"))
        assert drawn(whole, whole) == ("two", ["opens", "reads"])
        assert drawn(reads, reads) == ("two: reads", ["two"])
        title, labels = drawn(whole, reads, whole)
        assert (title, sorted(labels)) == ("two", ["opens", "reads"])
    one = silent.replace("BPF_PERF_OUTPUT(opens);", "")
    with FakeTracer(outputs={"reads": READ}), bpfnb.trace(one, name="one") as session:
        assert drawn(ViewSpec(session, "rates"), ViewSpec(session, "rates", output="reads")) == ("one", ["reads"])


@pytest.mark.parametrize("window", [10.0, 60.0])
def test_what_deltas_add_up_to_is_what_is_there(window: float) -> None:
    """GIVEN rows and frames at odd times, rows that come late, another grouping in between THEN a page that had all
    frames shows what a new one is sent, and that is what pandas counts."""
    with FakeTracer() as tracer, bpfnb.trace(HELLO, name="hello") as session:
        spread(tracer, session, {f"task-{n}": 3 * n for n in range(12)})
        view, page = RatesView([ViewSpec(session, "rates", by="comm", top=4, window=window)]), Reader()
        page.take(view.whole())
        for turn in range(8):
            spread(tracer, session, {f"task-{n}": 3 + turn for n in range(turn, turn + 4)}, seconds=0.5 + turn)
            time.sleep(0.15)
            view.update(False)
            page.take(view.delta())
        fresh = Reader()
        fresh.take(view.whole())
        assert page.shown() == fresh.shown()
        # A page has an hour of intervals, or less where a line is new; the window it has whole.
        hand = by_hand(session.df, view, "comm")
        first = view._until() - round(window / view._step)
        sums = {name: sum(c for n, c in counts.items() if n >= first) for name, counts in hand.items()}
        top = sorted(sums.values(), reverse=True)[:4]
        shown = fresh.shown()
        assert sorted((sum(c for n, c in shown[name].items() if n >= first) for name in shown), reverse=True) == top
        assert all(shown[name] == hand[name] for name in shown)
        assert {n: c for n, c in fresh.totals[0].items() if c} == by_hand(session.df, view)[None]


def test_a_line_keeps_its_colour_while_others_come_and_go() -> None:
    with FakeTracer() as tracer, bpfnb.trace(HELLO, name="hello") as session:
        view = RatesView([ViewSpec(session, "rates", by="comm", top=3)])
        slots: list[dict[str, int]] = []
        for comms in ({"a": 9, "b": 4, "c": 3}, {"d": 50, "b": 1}, {"e": 60, "d": 10}):
            spread(tracer, session, comms, 5.0)
            time.sleep(0.01)
            view.update(False)
            slots.append({line["label"]: line["slot"] for line in view.whole().header["lines"]})
    assert all(sorted(each.values()) == [0, 1, 2] for each in slots)
    for before, after in pairwise(slots):
        kept = before.keys() & after.keys()
        assert {name: before[name] for name in kept} == {name: after[name] for name in kept}
    assert set(slots[2]) == {"a", "d", "e"}


def test_nothing_is_sent_where_nothing_happens() -> None:
    with FakeTracer() as tracer, bpfnb.trace(HELLO, name="hello") as session:
        view = RatesView([ViewSpec(session, "rates", window=10)])
        view.whole()
        sent = 0
        for _ in range(10):
            time.sleep(0.1)
            view.update(False)
            sent += view.delta() is not None
        assert sent == 0
        tracer.printk(session, [("a", 1, "x")])
        time.sleep(0.5)
        view.update(False)
        assert view.delta() is not None


def test_a_quiet_view_says_that_its_session_has_ended() -> None:
    with FakeTracer(), bpfnb.trace(HELLO, name="hello") as session:
        view = RatesView([ViewSpec(session, "rates", window=10)])
        view.whole()
        for _ in range(4):
            time.sleep(0.25)
            view.update(False)
            assert view.delta() is None
        session.stop()
        view.update(True)
        part = view.delta()
        assert part is not None
        assert part.header["sources"][0]["until"] is not None


def test_five_thousand_values_are_ten_lines_and_an_other() -> None:
    with FakeTracer() as tracer, bpfnb.trace(HELLO, name="hello") as session:
        spread(tracer, session, {f"task-{n:04}": 1 + (n < 10) * (20 - n) for n in range(5_000)})
        session.stop()
        view, page = RatesView([ViewSpec(session, "rates", by="comm")]), Reader()
        page.take(view.whole())
        assert list(page.shown()) == [f"task-{n:04}" for n in range(10)]
        assert sum(page.totals[0].values()) == len(session.df)
        assert page.bytes < 8_000
        table = view.table()
        assert list(table) == [*page.shown(), "other"]
        taken = []
        for _ in range(20):
            begin = time.thread_time()
            view.update(False)
            view.delta()
            taken.append(time.thread_time() - begin)
        assert sorted(taken)[10] < 0.002


def test_sessions_are_told_apart_by_name_and_a_stopped_one_ends() -> None:
    with FakeTracer() as tracer, bpfnb.trace(HELLO, name="a") as one, bpfnb.trace(HELLO, name="b") as two:
        spread(tracer, one, {"x": 5}, 3.0)
        one.stop()
        time.sleep(1.2)
        tracer.printk(two, [("y", 1, "x")])
        view = RatesView([ViewSpec(one, "rates"), ViewSpec(two, "rates")])
        header = view.whole().header
        assert [line["label"] for line in header["lines"]] == ["a", "b"]
        ended, running = header["sources"]
        assert running["until"] is None
        assert ended["until"] <= header["until"]
        assert view.table()["a"].isna().any()
        view.choose(by="comm")
        view.update(False)
        assert {line["label"] for line in view.whole().header["lines"]} >= {"a: x"}


@pytest.mark.parametrize(
    ("choices", "why"),
    [
        ({"window": 9}, "a window is 10 to 3600 seconds long, not 9"),
        ({"window": float("nan")}, "a window is 10 to 3600 seconds long, not nan"),
        ({"window": "60"}, "a window is"),
        ({"window": True}, "a window is"),
        ({"top": 0}, "top is a number from 1 to 20, not 0"),
        ({"top": 10**9}, "top is a number from 1 to 20"),
        ({"by": 7}, "by is a column's name"),
        ({"by": HOSTILE}, "no column '<b>"),
        ({"wide": 1}, "no choice 'wide': there are window, by, top"),
    ],
)
def test_what_cannot_be_chosen_is_refused_in_one_line_and_changes_nothing(choices: dict[str, Any], why: str) -> None:
    with FakeTracer() as tracer, bpfnb.trace(HELLO, name="hello") as session:
        spread(tracer, session, {"x": 5}, 3.0)
        view = RatesView([ViewSpec(session, "rates", by="comm")])
        before = view.whole()
        with pytest.raises(ValueError, match=why) as refused:
            view.choose(**choices)
        assert "\n" not in str(refused.value)
        assert view.whole().header["lines"] == before.header["lines"]


def test_choosing_a_window_shows_what_came_before() -> None:
    with FakeTracer() as tracer, bpfnb.trace(HELLO, name="hello") as session:
        spread(tracer, session, {"x": 100}, 50.0)
        view, page = RatesView([ViewSpec(session, "rates", window=60)]), Reader()
        for window, step in ((10, 0.2), (300, 1), (3600, 5), (60, 1)):
            view.choose(window=window)
            view.update(False)
            page.take(view.whole())
            assert page.header["step"] == step
            assert page.shown()["hello"] == by_hand(session.df, view)[None]


def test_any_name_is_shown_short_and_as_escapes() -> None:
    with FakeTracer() as tracer, bpfnb.trace(HELLO, name="hello") as session:
        tracer.printk(session, [("a", 1, HOSTILE), ("a", 1, HOSTILE + "y"), ("a", 1, "$x_$"), ("", 1, "")])
        session.stop()
        view = RatesView([ViewSpec(session, "rates", by="msg")])
        labels = [line["label"] for line in view.whole().header["lines"]]
        assert len(labels) == len(set(labels)) + 1 == 4  # two begin alike
        assert all(len(label) <= 120 and label.isprintable() for label in labels)
        assert Image.open(io.BytesIO(view.static().image)).size[0] > 400


def test_an_output_beside_its_session_has_one_line() -> None:
    with FakeTracer(outputs={"opens": OPEN, "reads": READ}), bpfnb.trace(TWO, name="io") as io:

        def labels(*things: object) -> list[str]:
            view = views_of(specs_of(things))[0]
            return [line["label"] for line in view.whole().header["lines"]]

        opens, reads = (io.outputs[name] for name in ("opens", "reads"))
        shown = [labels(io), labels(io, reads), labels(reads, io), labels(opens, reads)]
        assert [sorted(set(names) & {"opens", "reads", "io"}) for names in shown] == [["opens", "reads"]] * 4
        assert [len(set(names)) == len(names) for names in shown] == [True] * 4
        assert labels(opens, opens) == ["io"]


def test_the_static_picture_has_its_text() -> None:
    with FakeTracer() as tracer, bpfnb.trace(HELLO, name="hello") as session:
        spread(tracer, session, {"x": 100}, 50.0)
        live = RatesView([ViewSpec(session, "rates")]).static()
        session.stop()
        static = RatesView([ViewSpec(session, "rates")]).static()
    assert live.mimetype == "image/svg+xml"
    assert live.image.startswith(b"<svg")
    assert len(live.image) < 4_000
    assert static.text.startswith("hello: events per second\n  hello: ")
    assert static.text.endswith(" UTC")
    assert static.mimetype == "image/png"


def test_a_frame_of_four_lines_takes_less_than_a_millisecond() -> None:
    with FakeTracer() as tracer, bpfnb.trace(HELLO, name="hello") as session:
        view = RatesView([ViewSpec(session, "rates", by="cpu", window=10)])
        taken = []
        for _ in range(30):
            tracer.printk(session, [Line("a", 1, "x", cpu=n % 4) for n in range(200)])
            time.sleep(0.02)
            session.outputs["printk"].end()  # decodes: what a panel costs beside it is measured
            begin = time.thread_time()
            view.update(False)
            view.delta()
            taken.append(time.thread_time() - begin)
    assert sorted(taken)[15] < 0.001


# --- what was brushed ---------------------------------------------------------------------------------------------


def test_brushed_rows_are_those_that_pandas_finds() -> None:
    with FakeTracer() as tracer, bpfnb.trace(HELLO, name="hello") as session:
        spread(tracer, session, {"x": 200}, 20.0)
        selection = Selection([[ViewSpec(session, "rates")], [ViewSpec(session, "counters")]])
        assert selection.range is None
        assert len(selection.frame()) == 200
        end = int(time.time())
        selection.brush(end - 12.5, end - 3)
        begin, end_ = (pd.Timestamp(seconds, unit="s", tz="UTC") for seconds in (end - 12.5, end - 3))
        assert selection.range == (begin, end_)
        expected = [time for time in session.df.time if begin <= time < end_]
        assert 0 < len(expected) < 200
        assert selection.frame().time.tolist() == expected
        assert list(selection.frame()) == list(session.df)
        for nonsense in ((5, 1), (float("nan"), 2), (1, float("inf")), (-5, 3), (1, 1e300)):
            selection.brush(*nonsense)
            assert selection.range == (begin, end_)
        selection.brush(0, 0)
        assert selection.range is None


def test_brushed_rows_of_two_sessions_say_whose_they_are() -> None:
    with FakeTracer() as tracer, bpfnb.trace(HELLO, name="a") as one, bpfnb.trace(HELLO, name="b") as two:
        tracer.printk(one, [("x", 1, "m")] * 3)
        tracer.printk(two, [("y", 1, "m")] * 2)
        selection = Selection([[ViewSpec(one, "rates"), ViewSpec(two, "rates", output="printk")]])
        selection.brush(time.time() - 60, time.time() + 60)
        assert selection.frame().source.tolist() == ["a"] * 3 + ["b: printk"] * 2


def test_a_selection_keeps_no_session_alive() -> None:
    with FakeTracer():
        session = bpfnb.trace(HELLO, name="a")
        selection = Selection([[ViewSpec(session, "rates")]])
        session.stop()
        del session
        bpfnb.stop_all()
        gc.collect()
        with pytest.raises(ProgramError, match="a is gone"):
            selection.frame()
