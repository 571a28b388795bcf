"""What hosts report, what the client keeps of it, and how it adds up: without dask and without a kernel."""

from __future__ import annotations

import sys
import time
import zlib

import msgspec
import numpy as np
import pandas as pd
import pytest

import bpfnb
from bpfnb.errors import ProgramError, UnsupportedError
from bpfnb.fleets import tables
from bpfnb.fleets.heard import Counts, FleetMeter
from bpfnb.fleets.sums import MAX_TABLE, Counter, HostSums, OutputSums, SessionSums, pack, unpack
from bpfnb.results.rates import Life
from bpfnb.testing import FakeTracer, Line

CELL = 'int kprobe__sys_sync(void *ctx) { bpf_trace_printk("hi\\n"); return 0; }'
NOW = 1_800_000_000 * 10**9  # nanoseconds
TICK = NOW // 10**8  # tenths of a second


def heard(name: str, ticks: list[int], counts: list[int]) -> OutputSums:
    return OutputSums(name, sum(counts), 0, 0, ticks, counts)


def test_each_row_is_in_one_report() -> None:
    with FakeTracer() as tracer, bpfnb.trace(CELL) as session:
        counter = Counter(session, 7)
        began = time.monotonic_ns()
        tracer.printk(session, [Line("a", 1, "hi", mono_ns=began + 10**8 * n) for n in range(5)])
        first = counter.read()
        tracer.printk(session, [Line("a", 1, "hi", mono_ns=began), Line("b", 1, "hi", mono_ns=began)])
        tracer.lose(session, 3)
        second = counter.read()
        assert [sum(sums.outputs[0].counts) for sums in (first, second)] == [5, 2]
        assert len(first.outputs[0].ticks) == 5
        assert (second.outputs[0].rows, second.outputs[0].lost) == (7, 3)
        assert (second.session, second.state, counter.done) == (7, "running", False)
        session.stop()
        last = counter.read()
        assert (last.state, last.outputs[0].counts, counter.done) == ("stopped", [], True)


def test_a_report_survives_its_way() -> None:
    sums = SessionSums(1, "running", "", [heard("events", [TICK], [2])], {"m": 1}, {"": b"x"}, NOW)
    report = HostSums(3, NOW, -5, 7, [sums])
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(report), type=HostSums) == report


def test_tables_that_are_kept_come_back_with_their_types() -> None:
    frame = pd.DataFrame({
        "comm": pd.Categorical(["a", "b"]),
        "pid": np.array([1, 2], np.uint32),
        "took": pd.to_timedelta([1, 2], unit="ns"),
        "count": np.array([1, 1 << 62]),
    })  # fmt: skip
    pd.testing.assert_frame_equal(unpack(pack(frame)), frame, check_categorical=False)


@pytest.mark.parametrize("data", [b"", b"no", zlib.compress(b"no"), zlib.compress(bytes(64 << 20))])
def test_what_is_no_table_is_refused(data: bytes) -> None:
    assert len(data) < 20 * MAX_TABLE
    with pytest.raises(ValueError, match="table"):
        unpack(data)


def test_tables_of_hosts_add_up() -> None:
    one = pd.DataFrame({"comm": ["x", "y"], "count": [1, 2], "sum": [10, 4], "mean": [10.0, 2.0], "min": [10, 1]})
    two = pd.DataFrame({"comm": pd.Categorical(["y"]), "count": [3], "sum": [6], "mean": [2.0], "min": [0]})
    whole = tables.summed({"a": one, "b": two})
    assert whole.to_dict("list") == {
        "comm": ["y", "x"], "count": [5, 1], "sum": [10, 10], "mean": [2.0, 10.0], "min": [0, 10],
    }  # fmt: skip
    assert tables.summed({"a": one, "b": two}, ["host"])["count"].tolist() == [3, 3]
    assert tables.summed({"a": one, "b": two}, [])["count"].tolist() == [6]
    with pytest.raises(ProgramError, match="no column 'con'"):
        tables.summed({"a": one}, ["con"])
    with pytest.raises(ProgramError, match="no counts"):
        tables.summed({"a": one[["comm", "mean"]]})


def test_the_largest_groups_of_all_are_not_those_of_any() -> None:
    frames = {
        "a": pd.DataFrame({"comm": ["x"] * 5 + ["y"] * 4, "size": range(9)}),
        "b": pd.DataFrame({"comm": ["z"] * 6 + ["y"] * 4, "size": range(10)}),
    }
    found = {host: tables.groups(frame, ["comm"], None, "sum") for host, frame in frames.items()}
    assert tables.add_groups(found, ["comm"], 2, "count").to_dict("list") == {"comm": ["y", "z"], "count": [8, 6]}
    assert tables.add_groups(found, ["host"], 2, "count")["host"].tolist() == ["b", "a"]
    largest = {host: tables.groups(frame, ["comm"], "size", "max") for host, frame in frames.items()}
    assert tables.add_groups(largest, ["comm"], 1, "max").to_dict("list") == {"comm": ["y"], "max": [9]}
    with pytest.raises(ProgramError, match="did you mean comm"):
        tables.groups(frames["a"], ["com"], None, "sum")
    many = tables.groups(pd.DataFrame({"n": [*range(10_001), 0]}), ["n"], None, "sum")
    assert (len(many.frame), many.rows, many.left_out) == (10_000, 10_002, 1)


def test_buckets_of_hosts_add_up() -> None:
    frames = [pd.DataFrame({"size": [1, 3, 3], "comm": ["x", "x", "y"]}), pd.DataFrame({"size": [2], "comm": ["x"]})]
    found = {str(n): tables.buckets(frame, "size", ["comm"], "log2", None, None) for n, frame in enumerate(frames)}
    whole = tables.summed(found, ["comm"])
    assert whole[["comm", "low", "count"]].to_numpy().tolist() == [["x", 1, 1], ["x", 2, 2], ["y", 2, 1]]


def test_maps_of_hosts_are_reduced_in_64_bits() -> None:
    frame = pd.DataFrame({"key": [1], "value": np.array([1 << 31], np.uint32)})
    whole = tables.merged({"a": frame, "b": frame}, ["key"], ["value"], "sum")
    assert whole.to_dict("list") == {"key": [1], "value": [1 << 32]}
    with pytest.raises(ProgramError, match="no reduction over hosts 'mean'"):
        tables.merged({"a": frame}, ["key"], ["value"], "mean")


def test_a_row_has_its_host_and_a_column_of_that_name_another() -> None:
    frame = tables.with_host(pd.DataFrame({"host": ["x"]}), "b", ["a", "b"])
    assert frame.columns.tolist() == ["host", "host_"]
    assert frame["host"].tolist() == ["b"]
    assert frame["host"].cat.categories.tolist() == ["a", "b"]


def test_rates_are_on_our_clock() -> None:
    counts = Counts(now=lambda: NOW)
    counts.add("ahead", heard("x", [TICK + 50, TICK + 51], [2, 3]), offset_ns=5 * 10**9)
    counts.add("right", heard("x", [TICK, TICK - 10], [5, 7]), offset_ns=0)
    rates = counts.rates(1, by_host=True)
    assert rates.index.tolist() == [pd.Timestamp(NOW - 10**9, tz="UTC"), pd.Timestamp(NOW, tz="UTC")]
    assert rates.to_dict("list") == {"ahead": [0, 5], "right": [7, 5]}
    assert counts.rates(2, by_host=False)["rate"].sum() * 2 == 17


def test_what_a_host_claims_of_the_far_future_is_not_drawn() -> None:
    counts = Counts(now=lambda: NOW)
    counts.add("a", heard("x", [TICK + 10_000, -5, TICK], [1, 2, 4]), 0)
    assert (counts.total, counts.outside) == (7, 3)
    assert counts.rates(1, by_host=False)["rate"].tolist() == [4]


@pytest.mark.parametrize("window", [10, 30, 60, 300])
def test_a_panels_lines_have_every_event(window: float) -> None:
    counts = Counts(now=lambda: NOW)
    began = NOW - 8 * 10**9
    meter = FleetMeter(counts, "host", window, lambda: Life(began, NOW, True))
    for host, number in (("a", 3), ("b", 4)):
        counts.add(host, heard("x", [TICK - n for n in range(number)], [n + 1 for n in range(number)]), 0)
    meter.update()
    assert meter.counts(meter.oldest, meter.until).sum() == 16
    assert meter.top(2, meter.oldest) == {"b": 10, "a": 6}
    lines = meter.counts_of(["a", "b", "none"], meter.oldest, meter.until)
    assert lines.sum(axis=1).tolist() == [6, 10, 0]
    assert meter.changed is not None
    assert meter.rates()["b"].max() > 0
    with pytest.raises(ProgramError, match="by host, not by 'comm'"):
        FleetMeter(counts, "comm", window, lambda: Life(began, NOW, True))


def test_without_dask_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask.dataframe", None)
    with pytest.raises(UnsupportedError, match="a fleet needs dask") as caught:
        bpfnb.fleet(None)
    assert caught.value.hint == "pip install 'bpfnb[fleet]'"
