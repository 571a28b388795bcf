"""Maps over time: snapshots that miss nothing, end with the session, and stay within keep."""

from __future__ import annotations

import os
import struct
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from interrupting import every_point
from waiting import until

import bpfnb
from bpfnb.errors import ProgramError, TracerDied
from bpfnb.interrupts import Flag
from bpfnb.protocol.messages import MapInfo
from bpfnb.protocol.schema import Number, Schema
from bpfnb.results.maps.frames import EntryFrames
from bpfnb.results.maps.snapshots import MapSnapshots
from bpfnb.results.output import Keep
from bpfnb.session import Session
from bpfnb.testing import FakeTracer

# Those of a busy machine; the test of them catches them all the same.
LATE = pytest.mark.filterwarnings("ignore:.* snapshots of .* were left out:RuntimeWarning")
pytestmark = [pytest.mark.timeout(60), LATE]

CELL = "BPF_HASH(counts, u32, u64); BPF_HISTOGRAM(sizes);\nint kprobe__sys_sync(void *ctx) { counts.increment(1); }"
COUNTS = np.array([1, 2], "<u4"), np.array([10, 20], "<u8")
SIZES = np.array([0, 1, 2, 3], "<u4"), np.array([0, 4, 0, 2], "<u8")


@pytest.fixture
def tracer() -> Iterator[FakeTracer]:
    with FakeTracer(maps={"counts": COUNTS, "sizes": SIZES}) as tracer:
        yield tracer
        bpfnb.stop_all()


@pytest.fixture
def session(tracer: FakeTracer) -> Session:
    return bpfnb.trace(CELL, name="s")


def put(tracer: FakeTracer, key: int, value: int, name: str = "counts") -> None:
    """As a program would: without the notebook's knowledge."""
    tracer._maps[name].write(struct.pack("<I", key), struct.pack("<Q", value))


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "bpfnb-snapshots"]


def test_cumulative_snapshots_are_the_map_as_it_was(tracer: FakeTracer, session: Session) -> None:
    before = pd.Timestamp.now("UTC")
    moving = session.maps["counts"].every("20ms")
    until(lambda: moving.snapshots >= 2)
    put(tracer, 1, 15)
    seen = moving.snapshots
    until(lambda: moving.snapshots >= seen + 2)
    moving.stop()
    assert (moving.reason, session.state, threads()) == ("stopped", "running", [])
    df = moving.df
    assert df.columns.tolist() == ["time", "key", "value"]
    assert df.dtypes.astype(str).tolist() == ["datetime64[ns, UTC]", "uint32", "uint64"]
    each = [group[["key", "value"]].to_numpy().tolist() for _, group in df.groupby("time")]
    assert len(each) == moving.snapshots == df.attrs["snapshots"]
    assert each[0] == [[1, 10], [2, 20]]
    assert each[-1] == [[1, 15], [2, 20]]
    assert all(one in (each[0], each[-1]) for one in each)
    assert df.time.is_monotonic_increasing
    assert before <= df.time.min() <= df.time.max() <= pd.Timestamp.now("UTC")
    assert {**df.attrs, "snapshots": 0} == {
        "map": "counts",
        "kind": "hash",
        "lost": 0,
        "snapshots": 0,
        "dropped": 0,
        "skipped": 0,
    }
    count = moving.snapshots
    moving.stop()
    assert moving.snapshots == count


def test_drained_snapshots_have_each_count_once(tracer: FakeTracer, session: Session) -> None:
    """Also the counts between the last tick and the end, by stop of the snapshots or of the session."""
    counts = session.maps["counts"]
    total = 10
    for end in ("stop", "session"):
        moving = counts.every("10ms", drain=True)
        for _ in range(50):
            total += 1
            put(tracer, 1, total)
            time.sleep(0.001)
        if end == "stop":
            moving.stop()
            given = int(moving.df.value[moving.df.key == 1].sum())
            assert given == total
    session.stop()
    assert given + moving.df.value[moving.df.key == 1].sum() == total
    assert moving.reason == "the session ended"
    assert moving.snapshots > 3


def test_two_at_once_and_a_drained_one_leaves_nothing_for_df(tracer: FakeTracer, session: Session) -> None:
    counts = session.maps["counts"]
    with counts.every("10ms") as one, counts.every("15ms") as two:
        until(lambda: min(one.snapshots, two.snapshots) > 2)
        assert len(threads()) == 2
    assert threads() == []
    assert one.df.groupby("time").value.sum().eq(30).all()
    with counts.every("1h", drain=True) as drained:
        until(lambda: drained.snapshots)
        assert counts.df.empty
    assert drained.df.value.tolist() == [10, 20]


def test_the_period_does_not_drift_and_what_is_late_is_left_out() -> None:
    """GIVEN reads that take a while WHEN one takes several periods THEN those are skipped, counted and said, and the
    others come at multiples of the period."""
    frames = EntryFrames(MapInfo("m", "BPF_HASH", "hash", *[Schema((Number("v", 0, "<u8"),), 8)] * 2, 8, 8, 8, 1, 9, 1))
    rows = np.zeros((1, 8), np.uint8)
    number = 0

    def take() -> Any:
        nonlocal number
        number += 1
        time.sleep(0.35 if number == 4 else 0.03)
        return rows, rows

    moving = MapSnapshots("m", 0.1, take, frames, lambda frame: frame, Keep(1 << 20), Flag())
    moving.start()
    until(lambda: moving.snapshots >= 8)
    moving.stop()
    with pytest.warns(RuntimeWarning, match="[34] snapshots of m were left out: reading it took longer than 0.1 s"):
        df = moving.df
    assert df.attrs["skipped"] in (3, 4)  # a busy machine may be late by one
    ticks = (df.time - df.time[0]) / pd.Timedelta("100ms")
    assert 9 < ticks[7] < 12
    assert ((ticks + 0.05) % 1).median() < 0.3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(moving.df) == moving.snapshots


def test_the_oldest_are_dropped_beyond_keep(tracer: FakeTracer) -> None:
    session = bpfnb.trace(CELL, name="s", keep=600)
    with session.maps["counts"].every("2ms") as moving:  # 24 bytes each
        until(lambda: moving.dropped > 20)
    with pytest.warns(RuntimeWarning, match=f"oldest {moving.dropped} snapshots of counts were dropped: keep is 600 b"):
        df = moving.df
    assert df.attrs["dropped"] == moving.dropped
    assert 5 <= moving.snapshots <= 25
    assert len(df) == 2 * moving.snapshots


def test_histograms_over_time(tracer: FakeTracer, session: Session) -> None:
    with session.maps["sizes"].every("1h", drain=True) as moving:
        until(lambda: moving.snapshots == 1)
        put(tracer, 3, 12, "sizes")
    hist = moving.hist()
    assert hist.columns.tolist() == ["time", "bucket", "low", "high", "label", "count"]
    table = hist.pivot(index="time", columns="bucket", values="count")
    assert table.to_numpy().tolist() == [[4, 0, 2], [0, 0, 10]]
    assert table.columns.tolist() == [1, 2, 3]
    assert hist.label.tolist() == ["[0, 2)", "[2, 4)", "[4, 8)"] * 2
    assert hist["count"].dtype == np.int64
    with pytest.raises(ProgramError, match="no key column 'slots'"):
        moving.hist(bucket="slots")


def info(kind: str, cpus: int) -> MapInfo:
    key = Schema((Number("slot", 0, "<u4"), Number("pid", 4, "<u4")), 8)
    return MapInfo("m", "BPF_HASH", kind, key, Schema((Number("count", 0, "<u8"),), 8), 8, 8, 8, cpus, 9, 1)


def taken(kind: str, cpus: int, *snapshots: list[tuple[int, ...]]) -> MapSnapshots:
    """Snapshots of entries (slot, pid, counts...), ended."""
    left = list(snapshots)
    ended = Flag()

    def take() -> Any:
        entries = left.pop(0)
        if len(left) == 1:
            ended.set()
        keys = np.array([entry[:2] for entry in entries], "<u4").reshape(-1, 2)
        values = np.array([entry[2:] for entry in entries], "<u8").reshape(-1, cpus)
        return keys.view(np.uint8).reshape(-1, 8), values.view(np.uint8).reshape(-1, 8 * cpus)

    moving = MapSnapshots("m", 0.001, take, EntryFrames(info(kind, cpus)), lambda f: f, Keep(1 << 20), ended)
    moving.start()
    moving._done.wait()
    return moving


def test_per_cpu_maps_over_time() -> None:
    moving = taken("percpu_hash", 2, [(1, 7, 10, 1)], [], [(1, 7, 11, 2), (2, 8, 5, 0)])
    df = moving.df
    assert df.drop(columns="time").to_numpy().tolist() == [
        *([1, 7, 0, 10], [1, 7, 1, 1]),
        *([1, 7, 0, 11], [1, 7, 1, 2], [2, 8, 0, 5], [2, 8, 1, 0]),
    ]
    assert df.time.nunique() == 2
    reduced = moving.reduced("sum")
    assert reduced["count"].tolist() == [11, 13, 5]
    assert reduced.time.tolist() == [df.time[0], df.time[2], df.time[2]]
    hist = moving.hist(by="pid")
    assert hist.columns.tolist() == ["time", "pid", "bucket", "low", "high", "label", "count"]
    cube = hist["count"].to_numpy().reshape(3, 2, 2)  # also of the snapshot in which there is nothing
    assert cube.tolist() == [[[11, 0], [0, 0]], [[0, 0], [0, 0]], [[13, 0], [0, 5]]]
    assert hist.pid.tolist() == [7, 7, 8, 8] * 3
    together = moving.hist(by=[])
    assert together["count"].to_numpy().reshape(3, 2).tolist() == [[11, 0], [0, 0], [13, 5]]


def test_nothing_yet_has_the_columns() -> None:
    moving = taken("hash", 1, [], [])
    assert moving.df.columns.tolist() == ["time", "slot", "pid", "count"]
    assert moving.df.empty
    assert moving.hist().columns.tolist() == ["time", "pid", "bucket", "low", "high", "label", "count"]
    assert moving.hist().empty


def test_they_end_with_the_session_and_have_its_last_state(tracer: FakeTracer, session: Session) -> None:
    moving = session.maps["counts"].every("1h")
    until(lambda: moving.snapshots)
    put(tracer, 1, 99)
    session.stop()
    assert moving.df.value.tolist() == [10, 20, 99, 20]  # at once, though the thread may not have noticed yet
    until(lambda: not threads())
    assert "counts: 2, one every 3600 s, ended: the session ended" in repr(moving)
    after = session.maps["counts"].every("1s")  # of a stopped session: as the map was, once
    until(lambda: after.reason)
    assert after.df.value.tolist() == [99, 20]


def test_a_dead_tracer_ends_them_with_the_reason() -> None:
    with FakeTracer(maps={"counts": COUNTS, "sizes": SIZES}) as tracer:
        session = bpfnb.trace(CELL, name="s")
        moving = session.maps["counts"].every("10ms")
        until(lambda: moving.snapshots > 2)
        tracer.die()
        until(lambda: moving.reason)
        assert session.state == "failed"
        assert moving.reason == session.reason
        assert len(moving.df) == 2 * moving.snapshots
        with pytest.raises(TracerDied):
            session.maps["counts"].df  # noqa: B018
        until(lambda: not threads())


def test_bad_input(session: Session) -> None:
    for every in ("soon", "0s", "10us", None):
        with pytest.raises(ValueError, match="interval"):
            session.maps["counts"].every(every)  # type: ignore[arg-type]
    assert threads() == []


def test_an_interrupt_leaves_no_thread_and_loses_no_snapshot(tracer: FakeTracer, session: Session) -> None:
    got: list[MapSnapshots] = []
    for _ in every_point(lambda: got.append(session.maps["counts"].every("1h")), step=3):
        while got:
            got.pop().stop()
        until(lambda: not threads())
    moving = session.maps["counts"].every("1h", drain=True)
    until(lambda: moving.snapshots)
    for _ in every_point(lambda: (moving.df, moving.hist("linear")), step=5):
        assert moving.df.value.tolist() == [10, 20]
    moving.stop()


def test_a_forked_child_has_what_was_taken_and_no_thread(session: Session) -> None:
    moving = session.maps["counts"].every("1h")
    until(lambda: moving.snapshots)
    pid = os.fork()
    if pid == 0:
        moving.stop()
        right = moving.df.value.tolist() == [10, 20] and moving.reason == "this process was forked"
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    moving.stop()
    assert moving.reason == "stopped"
