"""Live histograms, heat maps and tables of real sessions: a workload that keeps count says what is right."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from matplotlib import font_manager

import bpfnb
from bpfnb.session import Session
from bpfnb.views.live.counts.heatmap import HeatmapView
from bpfnb.views.live.counts.hist import HistView
from bpfnb.views.live.counts.top import TopView

CELL = r"""
struct data_t { u64 size; u32 pid; };
BPF_PERF_OUTPUT(events);
BPF_HASH(calls, u32, u64);
BPF_HISTOGRAM(sizes);

int f(struct pt_regs *ctx, int fd, const char *from, size_t size) {
    struct data_t data = {.size = size, .pid = bpf_get_current_pid_tgid() >> 32};
    if (data.pid != OWNER)
        return 0;
    calls.increment(data.pid);
    sizes.increment(bpf_log2l(size));
    events.perf_submit(ctx, &data, sizeof(data));
    return 0;
}
"""
SIZES = {3: 7, 200: 40, 5000: 11}  # bytes a write: how many such writes


@pytest.fixture
def session() -> Iterator[Session]:
    with bpfnb.trace(CELL, attach={"syscall:write": "f"}, cflags=[f"-DOWNER={os.getpid()}"]) as session:
        yield session
    font_manager._get_font.cache_clear()  # matplotlib keeps fonts open


def write() -> None:
    sink = os.open("/dev/null", os.O_WRONLY)
    for size, times in SIZES.items():
        for _ in range(times):
            os.write(sink, bytes(size))
    os.close(sink)


@pytest.mark.portable
def test_views_have_what_a_workload_did(session: Session) -> None:
    of_map = HistView([session.view("hist", map="sizes")])
    of_column = HistView([session.view("hist", "size")])
    top = TopView([session.view("top", map="calls")])
    write()
    assert session.maps["sizes"].drain()["value"].sum() == sum(SIZES.values())  # changes nothing in the views
    write()
    deadline = time.monotonic() + 10
    while len(session.df) < 2 * sum(SIZES.values()) and time.monotonic() < deadline:
        time.sleep(0.02)
    heat = HeatmapView([session.view("heatmap", "size")])
    for view in (of_map, of_column, top, heat):
        view.update(last=True)
    expected = {1 << (size.bit_length() - 1): 2 * times for size, times in SIZES.items()}

    def counts(view: HistView) -> dict[float, int]:
        frame = view.frame()
        return {low: count for low, count in zip(frame["low"], frame["count"], strict=True) if count}

    assert counts(of_map) == {2: 14, 128: 80, 4096: 22} == expected
    assert counts(of_column) == expected
    assert [row[1:] for row in top.whole().header["rows"]] == [[str(os.getpid()), 2 * sum(SIZES.values())]]
    frame = heat.frame()
    assert frame.groupby("low")["count"].sum()[lambda sums: sums > 0].to_dict() == expected
    seconds = session.df["time"].dt.floor("s")
    assert frame[frame["count"] > 0]["time"].min() == seconds.min()
    session.stop()
    again = HistView([session.view("hist", map="sizes")])
    assert counts(again) == expected  # of an ended one all is shown
