"""The pictures of rates and the counters in an empty page: what a person sees and can press, without JupyterLab."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pages import PanelPage

import bpfnb
from bpfnb.testing import FakeTracer, Line
from bpfnb.views.live.panel import Panel
from bpfnb.views.live.specs import specs_of, views_of
from bpfnb.views.live.view import ViewSpec

HELLO = 'int kprobe__sys_sync(void *ctx) { bpf_trace_printk("hi\\n"); return 0; }'
TWO = "BPF_PERF_OUTPUT(opens); BPF_PERF_OUTPUT(reads);\n" + HELLO
EVENT = np.dtype([("time", "<u8"), ("pid", "<u4")])


@pytest.fixture
def tracer() -> Iterator[FakeTracer]:
    with FakeTracer(outputs={"opens": EVENT, "reads": EVENT}) as tracer:
        yield tracer


def show(page: PanelPage, *things: Any, **options: Any) -> Panel:
    specs = specs_of(things, **options)
    sessions = {id(spec.session): spec.session for group in specs for spec in group}
    panel = page.show(views_of(specs), list(sessions.values()))
    page.until(lambda: page.page.locator(".u-over").count(), what="the picture")
    return panel


def lines(tracer: FakeTracer, session: bpfnb.Session, count: int, seconds: float, names: int = 3) -> None:
    """``count`` lines in the last seconds, evenly; the first names have more."""
    now = time.monotonic_ns()
    at = now - (np.arange(count)[::-1] * seconds * 1e9 / count).astype(int)
    tracer.printk(session, [Line(f"task-{int((n % names) ** 2 / names)}", 1, "x", 0, t) for n, t in enumerate(at)])


def point_at(page: PanelPage, share: float) -> None:
    box = page.page.locator(".u-over").bounding_box()
    page.page.mouse.move(box["x"] + share * box["width"], box["y"] + 60)


def tip(page: PanelPage) -> tuple[str, dict[str, float]]:
    """What is said beside the cursor: the time, and the value of each name."""
    said = page.page.locator(".bpfnb-rt-tip")
    entries = said.locator(".bpfnb-rt-entry").all()
    values = {}
    for entry in entries:
        value = entry.locator(".bpfnb-rt-entry-value").inner_text()
        values[entry.locator(".bpfnb-rt-entry-name").inner_text()] = float(value.replace(",", ""))
    return said.locator(".bpfnb-rt-tip-time").first.inner_text(), values


def legend(page: PanelPage) -> list[str]:
    return page.page.locator(".bpfnb-rt-legend .bpfnb-rt-entry-name").all_inner_texts()


def in_time(frame: pd.DataFrame, said: str) -> pd.DataFrame:
    """The rows of the time that is said, found by its text."""
    begin, end = re.findall(r"\d\d:\d\d:\d\d", said)
    day = frame.time.iloc[-1].strftime("%Y-%m-%d ")
    return frame[(frame.time >= pd.Timestamp(day + begin, tz="UTC")) & (frame.time < pd.Timestamp(day + end, tz="UTC"))]


def test_two_outputs_are_two_lines_and_hover_says_their_values(panel_page: PanelPage, tracer: FakeTracer) -> None:
    with bpfnb.trace(TWO, name="two") as session:
        for output, count in (("opens", 300), ("reads", 900)):
            rows = np.zeros(count, EVENT)
            rows["time"] = time.monotonic_ns() - np.arange(count)[::-1] * 40 * 10**9 // count
            tracer.events(session, output, rows)
        show(panel_page, session)
        panel_page.until(lambda: {"opens", "reads"} <= set(legend(panel_page)), what="two names")
        for share in (0.5, 0.85):
            point_at(panel_page, share)
            panel_page.until(lambda: len(tip(panel_page)[1]) >= 2, what="values")
            said, values = tip(panel_page)
            assert said.endswith(" UTC")
            for output in ("opens", "reads"):
                assert values[output] == len(in_time(session.outputs[output].df, said)) > 0


def test_a_name_in_the_legend_turns_its_line_off_and_on(panel_page: PanelPage, tracer: FakeTracer) -> None:
    with bpfnb.trace(HELLO, name="hello") as session:
        lines(tracer, session, 600, 50)
        show(panel_page, session, by="comm")
        point_at(panel_page, 0.6)
        panel_page.until(lambda: len(tip(panel_page)[1]) == 2, what="both values")
        name = legend(panel_page)[0]
        button = panel_page.page.locator(".bpfnb-rt-legend button").first
        button.click()
        assert button.get_attribute("aria-pressed") == "false"
        point_at(panel_page, 0.6)
        panel_page.until(lambda: set(tip(panel_page)[1]) == set(legend(panel_page)) - {name}, what="one value")
        panel_page.rest(1.2)  # frames come
        assert button.get_attribute("aria-pressed") == "false"
        button.click()
        point_at(panel_page, 0.61)
        panel_page.until(lambda: len(tip(panel_page)[1]) == 2, what="both values again")


def test_a_range_that_is_brushed_is_the_rows_that_pandas_finds(panel_page: PanelPage, tracer: FakeTracer) -> None:
    with bpfnb.trace(HELLO, name="hello") as session:
        lines(tracer, session, 3_000, 55)
        panel = show(panel_page, session)
        assert panel.selection is None
        assert len(panel.df) == 3_000
        mouse = panel_page.page.mouse
        point_at(panel_page, 0.3)
        mouse.down()
        point_at(panel_page, 0.4)
        point_at(panel_page, 0.6)
        mouse.up()
        panel_page.until(lambda: panel.selection, what="the range in Python")
        assert panel.selection
        begin, end = panel.selection
        assert 15 <= (end - begin).total_seconds() <= 20
        frame = session.df
        expected = frame[(frame.time >= begin) & (frame.time < end)]
        assert 500 < len(expected) < 1_500
        assert panel.df.time.tolist() == expected.time.tolist()
        said = panel_page.text(".bpfnb-rt-range")
        assert f"{begin:%H:%M:%S} to {end:%H:%M:%S} in panel.df" in said
        panel.close()
        assert len(panel.df) == len(expected)  # the session is still there


def test_brushing_is_undone(panel_page: PanelPage, tracer: FakeTracer) -> None:
    with bpfnb.trace(HELLO, name="hello") as session:
        lines(tracer, session, 300, 55)
        panel = show(panel_page, session)
        point_at(panel_page, 0.3)
        panel_page.page.mouse.down()
        point_at(panel_page, 0.6)
        panel_page.page.mouse.up()
        panel_page.until(lambda: panel.selection, what="the range")
        panel_page.page.get_by_role("button", name="no selection").click()
        panel_page.until(lambda: panel.selection is None, what="no range")
        assert panel_page.text(".bpfnb-rt-range") == ""


def test_what_is_looked_back_at_stays_while_rows_come(panel_page: PanelPage, tracer: FakeTracer) -> None:
    with bpfnb.trace(HELLO, name="hello") as session:
        lines(tracer, session, 1_200, 110)
        show(panel_page, session)
        chart = panel_page.page.locator(".bpfnb-rt-chart")

        def shown() -> str:
            return str(chart.get_attribute("aria-label"))

        follows = shown()
        panel_page.until(lambda: shown() != follows, what="the picture to move")
        chart.focus()
        panel_page.page.keyboard.press("ArrowLeft")
        held = shown()
        begin, end = (pd.Timestamp(text) for text in re.findall(r"\d\d:\d\d:\d\d", held))
        assert (end - begin).total_seconds() % 86_400 == 60
        point_at(panel_page, 0.1)
        said, values = tip(panel_page)
        assert values["hello"] == len(in_time(session.df, said)) > 0
        tracer.printk(session, [("late", 1, "x")] * 3)
        panel_page.rest(2.5)
        assert shown() == held
        panel_page.page.get_by_role("button", name="follow what comes").click()
        panel_page.until(lambda: shown() not in (held, follows), what="to follow again")
        panel_page.page.get_by_role("button", name="zoom in").click()
        begin, end = (pd.Timestamp(text) for text in re.findall(r"\d\d:\d\d:\d\d", shown()))
        assert 29 <= (end - begin).total_seconds() % 86_400 <= 31


def test_window_group_and_number_are_chosen_on_the_page(panel_page: PanelPage, tracer: FakeTracer) -> None:
    with bpfnb.trace(HELLO, name="hello") as session:
        lines(tracer, session, 3_000, 55, names=20)
        show(panel_page, session)
        tools = panel_page.page.locator(".bpfnb-rt-tools select")
        tools.nth(1).select_option("comm")
        panel_page.until(lambda: len(legend(panel_page)) == 11, what="ten names and other")
        counts = session.df.comm.value_counts()
        assert sorted(legend(panel_page)[:10]) == sorted(counts.index[:10])
        tools.nth(2).select_option("3")
        panel_page.until(lambda: sorted(legend(panel_page)) == ["other", *sorted(counts.index[:3])], what="three names")
        tools.nth(0).select_option("10")
        panel_page.until(lambda: "in intervals of 0.2 s" in panel_page.text(".bpfnb-rt-unit"), what="the short window")
        panel_page.page.get_by_role("button", name="logarithmic scale").click()
        assert panel_page.page.locator(".bpfnb-rt-tools button").first.get_attribute("aria-pressed") == "true"
        assert not panel_page.page.locator(".bpfnb-error").count()


def test_five_thousand_names(panel_page: PanelPage, tracer: FakeTracer) -> None:
    with bpfnb.trace(HELLO, name="hello") as session:
        now = time.monotonic_ns()
        names = [f"<b>{n:04}</b>" for n in range(5_000) for _ in range(1 + (n < 10) * (20 - n))]
        ago = [int((len(names) - n) * 5e9 / len(names)) for n in range(len(names))]
        tracer.printk(session, [Line(name, 1, "x", 0, now - back) for name, back in zip(names, ago, strict=True)])
        show(panel_page, session, by="comm")
        panel_page.until(lambda: len(legend(panel_page)) == 11, what="ten names and other")
        assert legend(panel_page) == [*(f"<b>{n:04}</b>" for n in range(10)), "other"]
        assert not panel_page.page.locator(".bpfnb-rates b").count()


def test_a_session_without_rows_says_so(panel_page: PanelPage, tracer: FakeTracer) -> None:
    with bpfnb.trace(HELLO, name="hello") as session:
        show(panel_page, session)
        panel_page.until(lambda: panel_page.text(".bpfnb-rt-empty") == "no events yet", what="the remark")
        tracer.printk(session, [("a", 1, "x")])
        panel_page.until(lambda: panel_page.text(".bpfnb-rt-empty") == "", what="the event")


def test_counters_follow_the_session(panel_page: PanelPage, tracer: FakeTracer) -> None:
    def numbers() -> dict[str, str]:
        tiles = panel_page.page.locator(".bpfnb-count").all()
        return {tile.locator("dt").inner_text(): tile.locator("dd").inner_text() for tile in tiles}

    with bpfnb.trace(HELLO, name="hello") as session:
        tracer.cost(session, {"kprobe__sys_sync": (1_000, 31_000_000, 0)})
        panel_page.show(views_of([[ViewSpec(session, "counters")]]), [session])
        panel_page.until(lambda: numbers().get("events") == "0", what="the counters")
        assert numbers()["of a CPU: its programs"] == "3.1 %"
        tracer.printk(session, [("a", 1, "x")] * 1_234)
        panel_page.until(lambda: numbers()["events"] == "1,234", what="the events")
        assert float(numbers()["per second"].replace(",", "")) > 500
        sent = panel_page.wire.count if panel_page.wire else 0
        panel_page.until(lambda: numbers()["per second"] == "0", what="the rate to fall")
        panel_page.rest(2.5)
        assert panel_page.wire
        assert panel_page.wire.count - sent <= 2  # once more, for the rate
