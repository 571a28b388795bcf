"""Live histograms, heat maps and tables of the largest: what they read and send, without a page."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib import font_manager

import bpfnb
from bpfnb.errors import ProgramError
from bpfnb.language.signature import Signature, Type
from bpfnb.session import Session
from bpfnb.testing import FakeTracer
from bpfnb.views.live.counts.heatmap import HeatmapView
from bpfnb.views.live.counts.hist import HistView
from bpfnb.views.live.counts.largest import ColumnLargest, Question
from bpfnb.views.live.counts.top import TopView
from bpfnb.views.live.specs import specs_of
from bpfnb.views.live.view import Part, ViewSpec

EVENT = np.dtype([("time", "<u8"), ("delta_ns", "<i8"), ("ratio", "<f8"), ("pid", "<u4"), ("comm", "S16")])
CELL = """
BPF_HISTOGRAM(sizes);
BPF_HASH(counts, u32, u64);
BPF_PERF_OUTPUT(events);
int kprobe__sys_sync(void *ctx) { sizes.increment(bpf_log2l(7)); return 0; }
"""


def maps() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {
        "sizes": (np.array([1, 3, 4], "<i4"), np.array([4, 2, 1], "<u8")),
        "counts": (np.arange(1, 51, dtype="<u4"), np.arange(100, 150, dtype="<u8")),
    }


@pytest.fixture(autouse=True)
def _fonts_closed() -> Iterator[None]:
    """matplotlib keeps the font files it has opened; the leak check need not hear of them."""
    yield
    font_manager._get_font.cache_clear()


@pytest.fixture
def tracer() -> Iterator[FakeTracer]:
    with FakeTracer(maps=maps(), outputs={"events": EVENT}) as fake:
        yield fake


def events(count: int, seed: int = 1, seconds: int = 20) -> np.ndarray:
    """Events of the last seconds, of this moment on."""
    rng = np.random.default_rng(seed)
    rows = np.zeros(count, EVENT)
    rows["time"] = np.sort(time.monotonic_ns() - rng.integers(0, seconds * 10**9, count))
    rows["delta_ns"] = rng.lognormal(9, 2, count).astype(np.int64)
    rows["ratio"] = rng.normal(0, 1, count)
    rows["pid"] = rng.integers(1, 40, count)
    rows["comm"] = rng.choice([b"bash", b"make", b"<b>$x$"], count)
    return rows


def counts_of(part: Part, dtype: str = "<f8") -> np.ndarray:
    json.dumps(part.header, allow_nan=False)  # a page must be able to read it
    return np.frombuffer(part.buffers[0], dtype)


def table_of(part: Part) -> dict[str, dict[float, int]]:
    """Of each group the count by where its bucket begins."""
    header = part.header
    counts = counts_of(part).reshape(len(header["groups"]), len(header["low"]))
    return {
        name: {low: int(n) for low, n in zip(header["low"], row.tolist(), strict=True) if n}
        for name, row in zip(header["groups"], counts, strict=True)
    }


def expected(frame: pd.DataFrame, column: str, by: str | None = None) -> dict[str, dict[float, int]]:
    table = frame.bpf.hist(column, by=by)
    names = [name for name in table.columns if name not in ("low", "high", "label")]
    return {
        str(name) if by else "": {
            low: n for low, n in zip(table["low"].tolist(), table[name].tolist(), strict=True) if n
        }
        for name in names
    }


# --- what live() is given -----------------------------------------------------------------------------------------


def test_maps_and_outputs_are_shown_by_what_fits_them(tracer: FakeTracer) -> None:
    session = bpfnb.trace(CELL)
    groups = specs_of([session.maps["sizes"], session.maps["counts"], session.outputs["events"]], window=30)
    assert [(g[0].kind, g[0].map, g[0].output, g[0].window) for g in groups] == [
        ("hist", "sizes", None, 30), ("top", "counts", None, 30), ("rates", None, "events", 30),
    ]  # fmt: skip
    with pytest.raises(ProgramError, match=r"live\(\) shows sessions, outputs, maps and views, not Map"):
        specs_of([session.maps["sizes"].frozen()])
    with pytest.raises(ProgramError, match="does not change"):
        session.maps["sizes"].frozen().live()


def test_a_session_of_maps_shows_them() -> None:
    with FakeTracer(maps=maps()):
        session = bpfnb.trace(CELL.replace("BPF_PERF_OUTPUT(events);", ""))
        assert [(g[0].kind, g[0].map) for g in specs_of([session])] == [("hist", "sizes"), ("top", "counts")]
        for panel in (session.live(), session.maps["sizes"].live(), session.maps["counts"].live()):
            panel.close()
        session.stop()
        assert session.live().closed or session.live().wait(5)


def test_a_heat_map_is_a_panel_of_one_view(tracer: FakeTracer) -> None:
    session = bpfnb.trace(CELL)
    tracer.events(session, "events", events(100), time="time")
    panel = session.heatmap("delta_ns", by="comm")
    panel.close()
    with pytest.raises(ValueError, match="no column 'delta'"):
        session.heatmap("delta")
    with pytest.raises(KeyError, match="no map 'size'"):
        session.heatmap(map="size")
    session.stop()
    assert session.heatmap("delta_ns").wait(5)


# --- histograms ---------------------------------------------------------------------------------------------------


def test_a_column_is_counted_as_hist_counts_it(tracer: FakeTracer) -> None:
    session = bpfnb.trace(CELL)
    tracer.events(session, "events", events(5000), time="time")
    view = HistView([ViewSpec(session, "hist", "delta_ns", by="comm")])
    assert table_of(view.whole()) == expected(session.df, "delta_ns", "comm")
    assert view.whole().header["unit"] == "ns"
    assert view.delta() is None
    tracer.events(session, "events", events(3000, seed=2, seconds=1), time="time")
    view.update(last=False)
    part = view.delta()
    assert part is not None
    assert table_of(view.whole()) == expected(session.df, "delta_ns", "comm")


def test_a_column_of_another_output_is_found() -> None:
    other = np.dtype([("time", "<u8"), ("size", "<u4")])
    with FakeTracer(maps=maps(), outputs={"events": EVENT, "reads": other}) as fake:
        session = bpfnb.trace(
            CELL.replace("BPF_PERF_OUTPUT(events);", "BPF_PERF_OUTPUT(events); BPF_PERF_OUTPUT(reads);")
        )
        rows = np.zeros(9, other)
        rows["time"], rows["size"] = time.monotonic_ns(), 7
        fake.events(session, "reads", rows, time="time")
        view = HistView([session.view("hist", "size")])
        view.update(False)
        assert table_of(view.whole()) == {"": {4.0: 9}}
        with pytest.raises(ValueError, match="no column 'none' in "):
            HistView([session.view("hist", "none")])


def test_a_window_and_the_whole_time_and_what_may_be_chosen(tracer: FakeTracer) -> None:
    session = bpfnb.trace(CELL)
    tracer.events(session, "events", events(5000, seconds=200), time="time")
    view = HistView([ViewSpec(session, "hist", "delta_ns", window=10)])
    before, after = int(time.time()), 0
    shown = int(counts_of(view.whole()).sum())
    seconds = session.df["time"].astype("int64") // 10**9
    after = int(time.time())
    assert shown in {int((seconds > now - 10).sum()) for now in (before, after)}
    view.choose(window=0)
    assert counts_of(view.whole()).sum() == 5000
    view.choose(scale="linear", by="comm", top=1)
    part = view.whole()
    assert len(part.header["groups"]) == 2
    assert part.header["groups"][1] == "other (2)"
    assert counts_of(part).sum() == 5000
    assert len(part.header["low"]) <= 100
    for wrong in ({"window": -1}, {"window": "x"}, {"window": float("nan")}, {"scale": "log3"}, {"by": "cmm"},
                  {"top": 0}, {"unit": 7}, {"html": "<b>"}, {"by": ["comm"]}):  # fmt: skip
        with pytest.raises(ValueError, match=r"window|cannot be|top is|chosen") as raised:
            view.choose(**wrong)
        assert "\n" not in str(raised.value)


def test_a_histogram_is_an_svg_until_it_has_ended(tracer: FakeTracer) -> None:
    session = bpfnb.trace(CELL)
    rows = events(3000)
    tracer.events(session, "events", rows, time="time")
    view = HistView([ViewSpec(session, "hist", "delta_ns", by="pid", top=24, window=3600)])
    static = view.static()
    assert static.mimetype == "image/svg+xml"
    texts = [text.text for text in ElementTree.fromstring(static.image).iter("{http://www.w3.org/2000/svg}text")]
    largest = np.argsort(-np.bincount(rows["pid"]))[:12]
    assert {str(pid) for pid in largest} <= set(texts)
    assert "other (15)" in texts  # 24 and one more are told apart
    assert "\n" in static.text
    view.update(last=True)
    assert view.static().mimetype == "image/png"


def test_what_is_no_number_is_counted_apart(tracer: FakeTracer) -> None:
    session = bpfnb.trace(CELL)
    rows = events(10)
    rows["ratio"] = [np.nan, np.inf, -np.inf, -1, -2, 0, 0.25, 0.75, 1, 5]
    tracer.events(session, "events", rows, time="time")
    view = HistView([ViewSpec(session, "hist", "ratio")])
    part = view.whole()
    assert part.header["missing"] == 3
    assert part.header["low"][0] is None
    assert table_of(part)[""] == {None: 2, 0.0: 1, 0.25: 1, 0.5: 1, 1.0: 1, 4.0: 1}
    assert "(..., 0)" in view.static().text


def test_a_map_is_read_as_it_grows(tracer: FakeTracer) -> None:
    session = bpfnb.trace(CELL)
    view = HistView([ViewSpec(session, "hist", map="sizes")])
    assert view.whole().header["groups"] == []  # what was before is not of the last minute
    session.maps["sizes"][3] = 12
    session.maps["sizes"][7] = 5
    view.update(last=True)
    assert table_of(view.whole()) == {"": {4.0: 10, 64.0: 5}}
    view.choose(window=0)
    assert table_of(view.whole()) == {"": {0.0: 4, 4.0: 12, 8.0: 1, 64.0: 5}}
    assert (
        view.frame().query("count > 0")["label"].tolist()
        == session.maps["sizes"].hist().query("count > 0")["label"].tolist()
    )


def test_the_buckets_of_a_one_liner() -> None:
    call = Signature("syscall:sync", (), Type("long", "int", 8, signed=True))
    slots = (np.array([64, 74, 76], "<i4"), np.array([1, 4, 2], "<u8"))
    with FakeTracer(["syscall:sync"], signatures=[call], maps={"hist": slots}):
        session = bpfnb.latency("syscall:sync")
        view = HistView([ViewSpec(session, "hist")])
        view.choose(window=0)
        part = view.whole()
        assert part.header["unit"] == "ns"
        frame = session.df
        assert table_of(part)[""] == dict(zip(frame["low"].tolist(), frame["count"].tolist(), strict=True))
        with pytest.raises(ProgramError, match="has no rows: there is no column 'latency'"):
            HistView([ViewSpec(session, "hist", "latency")])


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ({"value": "delta"}, ValueError, "no column 'delta'; did you mean delta_ns"),
        ({"value": "comm"}, ValueError, "a histogram is of numbers"),
        ({"value": "ratio", "by": "com"}, ValueError, "no column 'com'; did you mean comm"),
        ({"value": "ratio", "output": "event"}, KeyError, "no output 'event'; did you mean events"),
        ({"map": "size"}, KeyError, "no map 'size'; did you mean sizes"),
        ({"map": "sizes", "by": "comm"}, ProgramError, "cannot be told apart by 'comm'"),
        ({}, ProgramError, "of which column of bpf"),
        ({"value": "ratio", "window": 0}, ValueError, "a window is of 1 to 3,600 seconds"),
        ({"value": "ratio", "top": 0}, ValueError, "top is a whole number"),
    ],
)
@pytest.mark.parametrize("view", [HistView, HeatmapView])
def test_what_is_not_there_is_one_line(
    tracer: FakeTracer, view: Any, spec: dict[str, Any], error: type[Exception], says: str
) -> None:
    session = bpfnb.trace(CELL)
    with pytest.raises(error) as raised:
        view([ViewSpec(session, "hist", **spec)])
    assert says in str(raised.value).replace(f" in {session.name}", "")
    assert "\n" not in str(raised.value)


def test_an_ended_session_is_shown_whole(tracer: FakeTracer) -> None:
    session = bpfnb.trace(CELL)
    tracer.events(session, "events", events(2000, seconds=300), time="time")
    session.stop()
    view = HistView([ViewSpec(session, "hist", "delta_ns")])
    assert counts_of(view.whole()).sum() == 2000
    heat = HeatmapView([ViewSpec(session, "heatmap", "delta_ns")])
    assert counts_of(heat.whole(), "<u4").sum() == 2000
    assert HistView([ViewSpec(session, "hist", map="sizes")]).whole().header["total"] == 7
    with pytest.raises(ProgramError, match="a map's counts have no times"):
        HeatmapView([ViewSpec(session, "heatmap", map="sizes")])


def test_a_tracer_that_died_leaves_the_view_with_a_line(tracer: FakeTracer) -> None:
    session = bpfnb.trace(CELL)
    view = HistView([ViewSpec(session, "hist", map="sizes")])
    view.choose(window=0)
    tracer.die()
    view.update(last=True)
    part = view.whole()
    assert part.header["note"]
    assert "\n" not in part.header["note"]
    assert part.header["total"] == 7


# --- heat maps ----------------------------------------------------------------------------------------------------


def cells(frame: pd.DataFrame) -> dict[tuple[int, float], int]:
    frame = frame[frame["count"] > 0]
    seconds = frame["time"].astype("int64") // 10**9
    return dict(zip(zip(seconds.tolist(), frame["low"].tolist(), strict=True), frame["count"].tolist(), strict=True))


def by_hand(frame: pd.DataFrame) -> dict[tuple[int, float], int]:
    low = 2.0 ** np.floor(np.log2(frame["delta_ns"].to_numpy(np.float64)))
    seconds = frame["time"].astype("int64") // 10**9
    return pd.Series(1, index=range(len(frame))).groupby([seconds.to_numpy(), low]).sum().to_dict()


def test_a_heat_map_has_each_second_and_bucket(tracer: FakeTracer) -> None:
    session = bpfnb.trace(CELL)
    tracer.events(session, "events", events(3000), time="time")
    view = HeatmapView([ViewSpec(session, "heatmap", "delta_ns")])
    time.sleep(1)
    view.update(last=False)  # the second is over
    assert cells(view.frame()) == by_hand(session.df)
    header = view.whole().header
    assert (header["step"], header["intervals"], header["unit"]) == (1, 60, "ns")


def test_what_a_page_gets_bit_by_bit_is_the_whole(tracer: FakeTracer) -> None:
    session = bpfnb.trace(CELL)
    tracer.events(session, "events", events(500), time="time")
    view = HeatmapView([ViewSpec(session, "heatmap", "delta_ns", window=10)])
    part = view.whole()
    shape = (part.header["intervals"], len(part.header["low"]))
    page = counts_of(part, "<u4").reshape(shape)
    begin = part.header["begin"]
    sizes = []
    for seed in range(2, 6):
        time.sleep(0.4)
        tracer.events(session, "events", events(200, seed=seed, seconds=1), time="time")
        view.update(last=False)
        part = view.delta() or view.whole()
        header, first = part.header, part.header["first"]
        new = counts_of(part, "<u4")
        sizes.append(len(new))
        if first:
            shift = (header["begin"] - begin) // header["step"]
            new = new.reshape(header["intervals"] - first, page.shape[1])
            page = np.concatenate([page[shift : shift + first], new])
        else:
            page = new.reshape(header["intervals"], len(header["low"]))
        begin = header["begin"]
        whole = HeatmapView([ViewSpec(session, "heatmap", "delta_ns", window=10)])
        whole.update(last=False)
        shown = view.whole()
        assert page.reshape(-1).tolist() == counts_of(shown, "<u4").tolist()
    assert min(sizes) < page.size


def test_a_group_may_be_chosen(tracer: FakeTracer) -> None:
    session = bpfnb.trace(CELL)
    tracer.events(session, "events", events(900), time="time")
    view = HeatmapView([ViewSpec(session, "heatmap", "delta_ns", by="comm")])
    assert sorted(view.whole().header["groups"]) == ["<b>$x$", "bash", "make"]
    time.sleep(1)
    view.choose(group="bash")
    assert cells(view.frame()) == by_hand(session.df[session.df["comm"] == "bash"])
    with pytest.raises(ValueError, match="no group 'nobody'"):
        view.choose(group="nobody")
    view.choose(by="pid")
    assert view.frame()["count"].sum() == 900


# --- the largest --------------------------------------------------------------------------------------------------


def rows_of(view: TopView) -> list[list[Any]]:
    part = view.whole()
    json.dumps(part.header, allow_nan=False)
    return [row[1:] for row in part.header["rows"]]


def test_the_largest_entries_of_a_map(tracer: FakeTracer) -> None:
    session = bpfnb.trace(CELL)
    view = TopView([ViewSpec(session, "top", map="counts", top=3)])
    assert rows_of(view) == [["50", 149], ["49", 148], ["48", 147]]
    assert view.whole().header["entries"] == 50
    session.maps["counts"][7] = 1000
    view.update(last=True)
    assert rows_of(view)[0] == ["7", 1000]
    view.choose(filter="4", n=5)
    assert [row[0] for row in rows_of(view)] == ["49", "48", "47", "46", "45"]
    assert view.delta() is None


def test_a_second_is_what_has_come_since(tracer: FakeTracer) -> None:
    session = bpfnb.trace(CELL)
    view = TopView([ViewSpec(session, "top", map="counts", top=3)])
    view.choose(rate=True)
    time.sleep(1.0)
    session.maps["counts"][7] = 106 + 500
    view.update(last=False)
    rows = rows_of(view)
    assert len(rows) == 1
    assert rows[0][0] == "7"
    assert 100 < rows[0][1] <= 510
    session.stop()
    view.update(last=True)
    assert rows_of(view)[0] == ["7", 606]  # nothing is a second any more


def test_a_million_entries_leave_only_the_largest() -> None:
    keys = np.arange(1_000_000, dtype="<u4")
    values = np.random.default_rng(3).permutation(1_000_000).astype("<u8")
    with FakeTracer(maps={"counts": (keys, values)}):
        session = bpfnb.trace(CELL)
        began = time.monotonic()
        view = TopView([ViewSpec(session, "top", map="counts")])
        took = time.monotonic() - began
        rows = rows_of(view)
        assert [row[1] for row in rows] == list(range(999_999, 999_989, -1))
        assert [int(row[0]) for row in rows] == np.argsort(-values.astype(np.int64))[:10].tolist()
        assert view.whole().header["period"] > 1  # it is read less often, and says so
        assert took < 10


def test_the_commonest_values_of_a_column(tracer: FakeTracer) -> None:
    session = bpfnb.trace(CELL)
    tracer.events(session, "events", events(1000), time="time")
    view = TopView([ViewSpec(session, "top", "comm")])
    tracer.events(session, "events", events(700, seed=2), time="time")
    view.update(last=True)
    top = session.df.bpf.top("comm")
    assert rows_of(view) == [list(row) for row in zip(top["comm"], top["count"], strict=True)]
    view = TopView([ViewSpec(session, "top", "delta_ns", by="pid", top=4)])
    top = session.df.bpf.top("pid", n=4, value="delta_ns")
    assert [row[1] for row in rows_of(view)] == top["sum"].tolist()
    assert [row[0] for row in rows_of(view)] == top["pid"].astype(str).tolist()


def test_values_without_end_are_not_all_kept(tracer: FakeTracer) -> None:
    session = bpfnb.trace(CELL)
    largest = ColumnLargest(session.main_output, None, "pid", None, most=30)
    tracer.events(session, "events", events(1000), time="time")
    largest.update()
    assert len(largest.find(Question("count", False, "", 50)).frame) == 39
    tracer.events(session, "events", events(1), time="time")
    for _ in range(2):  # what is counted then lacks some, for good
        tracer.events(session, "events", events(1), time="time")
        with pytest.raises(ProgramError, match="pid has more than 30 different values"):
            largest.update()


def test_text_in_a_table_is_harmless_and_short() -> None:
    key = np.dtype([("name", "S10000")])
    names = np.array([(b"x" * 9999,), ("\u202e<script>$\\frac".encode(),), (b"a\tb\x1b[2J",)], key)
    with FakeTracer(maps={"counts": (names, np.array([3, 2, 1], "<u8"))}):
        session: Session = bpfnb.trace(CELL)
        view = TopView([ViewSpec(session, "top", map="counts")])
        texts = [row[0] for row in rows_of(view)]
        assert len(texts[0]) == 200
        assert texts[1] == "\\u202e<script>$\\frac"
        assert "\x1b" not in texts[2]
        assert "<script>" not in view.static().html
        assert len({row[0] for row in view.whole().header["rows"]}) == 3


def test_the_same_entry_keeps_its_key_when_the_order_changes(tracer: FakeTracer) -> None:
    session = bpfnb.trace(CELL)
    view = TopView([ViewSpec(session, "top", map="counts", top=2)])
    before = {row[1]: row[0] for row in view.whole().header["rows"]}
    session.maps["counts"][49] = 5000
    view.update(last=True)
    after = {row[1]: row[0] for row in view.whole().header["rows"]}
    assert list(after) == ["49", "50"]
    assert after == before


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ({"map": "count"}, KeyError, "no map 'count'; did you mean counts"),
        ({"map": "counts", "value": "valu"}, ProgramError, "no number 'valu'; did you mean value"),
        ({"value": "cmm"}, ValueError, "no column 'cmm'; did you mean comm"),
        ({"by": "pid", "value": "comm"}, ValueError, "there is no sum of it"),
        ({}, ProgramError, "the commonest values of which column"),
        ({"map": "counts", "top": 0}, ValueError, "top is a whole number"),
        ({"map": "counts", "by": "nope"}, ProgramError, "counts cannot be told apart by 'nope'"),
        ({"map": "counts", "window": float("nan")}, ValueError, "a window is a number of seconds"),
    ],
)
def test_a_table_of_what_is_not_there_is_one_line(
    tracer: FakeTracer, spec: dict[str, Any], error: type[Exception], says: str
) -> None:
    session = bpfnb.trace(CELL)
    with pytest.raises(error) as raised:
        TopView([ViewSpec(session, "top", **spec)])
    assert says in str(raised.value).replace(f" in {session.name}", "")
    assert "\n" not in str(raised.value)
