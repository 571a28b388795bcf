"""Histograms, heat maps and tables of the largest in an empty page: what they draw, say under the mouse, and send."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from pages import PanelPage

import bpfnb
from bpfnb.session import Session
from bpfnb.testing import FakeTracer
from bpfnb.views.live.panel import Panel
from bpfnb.views.live.specs import specs_of, views_of
from bpfnb.views.live.view import ViewSpec

EVENT = np.dtype([("time", "<u8"), ("delta_ns", "<i8"), ("comm", "S16")])
KEY = np.dtype([("name", "S64"), ("pid", "<u4")])
HOSTILE = ["<img src=x onerror=window.hit=1>", "\u202ertl", "$\\frac{a}{b}$", "x" * 60]
CELL = """
struct key_t { char name[64]; u32 pid; };
BPF_HASH(counts, struct key_t, u64);
BPF_PERF_OUTPUT(events);
int kprobe__sys_sync(void *ctx) { return 0; }
"""


@pytest.fixture
def tracer() -> Iterator[FakeTracer]:
    keys = np.array([(name.encode(), number) for number, name in enumerate([*HOSTILE, "first", "second"])], KEY)
    values = np.array([1, 2, 3, 4, 60, 50], "<u8")
    with FakeTracer(maps={"counts": (keys, values)}, outputs={"events": EVENT}) as fake:
        yield fake


@pytest.fixture
def session(tracer: FakeTracer) -> Session:
    session = bpfnb.trace(CELL, name="calls")
    rng = np.random.default_rng(5)
    rows = np.zeros(900, EVENT)
    rows["time"] = np.sort(time.monotonic_ns() - rng.integers(2 * 10**9, 20 * 10**9, 900))
    rows["delta_ns"] = 2.0 ** rng.integers(0, 12, 900)
    rows["comm"] = rng.choice([b"bash", b"make"], 900)
    tracer.events(session, "events", rows, time="time")
    return session


def show(page: PanelPage, session: Session, *specs: ViewSpec) -> Panel:
    panel = page.show(views_of(specs_of(specs)), [session])
    page.until(lambda: page.page.locator(".bpfnb-counted").count() == len(specs), what="the views are not there")
    return panel


def tip(page: PanelPage, canvas: str, x: float, y: float) -> list[str]:
    """Move the mouse to a place on a canvas; return the lines that it says there."""
    box = page.page.locator(canvas).first.bounding_box()
    page.page.mouse.move(box["x"] + x, box["y"] + y)
    page.until(lambda: page.page.locator(".bpfnb-tip:visible").count() == 1, what="no tip")
    return str(page.page.locator(".bpfnb-tip:visible").inner_text()).splitlines()


def test_a_histogram_says_what_is_in_a_bucket_and_takes_choices(panel_page: PanelPage, session: Session) -> None:
    panel = show(panel_page, session, session.view("hist", "delta_ns", window=3600))
    panel_page.until(lambda: panel_page.text(".bpfnb-hist-name span") == "900 in all")
    table = session.df.bpf.hist("delta_ns")
    width = panel_page.page.locator(".bpfnb-hist canvas").bounding_box()["width"] - 44 - 12
    each = min(width / len(table), 84)
    for at, count in [(0, table["count"][0]), (7, table["count"][7])]:
        said = tip(panel_page, ".bpfnb-hist canvas", 44 + (at + 0.5) * each, 100)
        assert said[0] == {0: "1ns to 2ns", 7: "128ns to 256ns"}[at]
        assert said[1] == f"{count}, {100 * count / 900:.3g} %"
    panel_page.page.locator(".bpfnb-hist").press("ArrowRight")
    panel_page.until(lambda: "256ns" in panel_page.text(".bpfnb-tip"), what="the arrow key does not move on")
    panel_page.page.get_by_label("by", exact=True).select_option("comm")
    panel_page.until(lambda: panel_page.page.locator(".bpfnb-hist").count() == 2, what="no histogram for each comm")
    sizes = session.df.groupby("comm", observed=True).size().sort_values(ascending=False)
    names = panel_page.page.locator(".bpfnb-hist-name b").all_inner_texts()
    assert names == sizes.index.tolist()
    sums = panel_page.page.locator(".bpfnb-hist-name span").all_inner_texts()
    assert sums == [f"{size:,} in all" for size in sizes]
    panel.close()


def test_a_heat_map_says_its_cells_and_a_brush_selects_rows(panel_page: PanelPage, session: Session) -> None:
    panel = show(panel_page, session, session.view("heatmap", "delta_ns"))
    panel_page.until(lambda: "scale" in panel_page.text(".bpfnb-heat-key"))
    box = panel_page.page.locator(".bpfnb-heat canvas").bounding_box()
    wide, tall = box["width"] - 52 - 8, 215 - 20 - 6
    # The cell under the mouse, by what it says of itself.
    for place in (0.72, 0.8, 0.9):
        bucket, at = tip(panel_page, ".bpfnb-heat canvas", 52 + place * wide, 6 + 0.47 * tall)
        low, count = bucket.split(" to ")[0], int(bucket.rpartition(": ")[2].replace(",", ""))
        second = pd.Timestamp(f"{session.df['time'].iloc[-1]:%Y-%m-%d} {at.removesuffix(' UTC')}", tz="UTC")
        ns = {"32ns": 32, "64ns": 64}[low]
        rows = session.df[(session.df["time"].dt.floor("s") == second) & (session.df["delta_ns"] == ns)]
        assert count == len(rows)
    mouse = panel_page.page.mouse
    mouse.move(box["x"] + 52 + 0.75 * wide, box["y"] + 50)
    mouse.down()
    mouse.move(box["x"] + 52 + 0.9 * wide, box["y"] + 60, steps=4)
    mouse.up()
    panel_page.until(lambda: panel.selection, what="nothing is selected")
    begin, end = panel.selection or pytest.fail("nothing is selected")
    said = panel_page.text(".bpfnb-heat-key .bpfnb-range").split()
    assert [f"{begin:%H:%M:%S.%f}", f"{end:%H:%M:%S.%f}"] == [f"{said[0]}.000000", f"{said[2]}.000000"]
    assert len(panel.df) == ((session.df["time"] >= begin) & (session.df["time"] < end)).sum() < 900
    panel_page.page.get_by_role("button", name="no selection").click()
    panel_page.until(lambda: panel.selection is None, what="the selection stays")
    panel.close()


def test_a_table_keeps_its_rows_and_shows_text_as_text(panel_page: PanelPage, session: Session) -> None:
    panel = show(panel_page, session, session.view("top", map="counts"))
    rows = panel_page.page.locator(".bpfnb-lines .bpfnb-row")
    panel_page.until(lambda: rows.count() == 6)

    def names() -> list[str]:
        return [str(text).split("\n")[0] for text in rows.all_inner_texts()]

    assert names() == ["first", "second", "x" * 60, "$\\frac{a}{b}$", "\\u202ertl", HOSTILE[0]]
    panel_page.page.evaluate("document.querySelectorAll('.bpfnb-lines .bpfnb-row')[1].mark = 'second'")
    session.maps["counts"][("second", 5)] = 1000
    panel_page.until(lambda: names()[0] == "second", what="the order does not change")
    assert panel_page.page.evaluate("document.querySelectorAll('.bpfnb-lines .bpfnb-row')[0].mark") == "second"
    assert "1,000" in rows.first.inner_text()
    panel_page.page.get_by_placeholder("filter").fill("RTL")
    panel_page.until(lambda: names() == ["\\u202ertl"], what="the filter does nothing")
    assert "of 6 entries" in panel_page.text(".bpfnb-tools")
    assert panel_page.page.evaluate("window.hit") is None
    assert panel_page.page.locator(".bpfnb-lines img").count() == 0
    panel.close()
