"""Rates kept up to date, against counts of the DataFrame."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd
import pytest

import bpfnb
from bpfnb.results.output import Arrivals, Position
from bpfnb.results.rates import KEPT, Life, RateMeter, step_of
from bpfnb.testing import FakeTracer, Line

HELLO = 'int kprobe__sys_sync(void *ctx) { bpf_trace_printk("hi\\n"); return 0; }'
TWO = "BPF_PERF_OUTPUT(opens); BPF_PERF_OUTPUT(reads);\n" + HELLO
SECOND = 1_000_000_000
T0 = 1_700_000_000 * SECOND


class Rows:
    """Events that are made up: times in nanoseconds, and their values."""

    def __init__(self, began: int = T0) -> None:
        self.times: list[int] = []
        self.values: list[Any] = []
        self.dropped = 0
        self.life = Life(began, began, False)

    def add(self, *times: float, value: Any = "a") -> None:
        self.times += [T0 + round(t * 1e9) for t in times]
        self.values += [value] * len(times)

    def at(self, seconds: float, ended: bool = False) -> Rows:
        self.life = Life(self.life.began, T0 + round(seconds * 1e9), ended)
        return self

    def drop(self, count: int) -> None:
        del self.times[:count], self.values[:count]
        self.dropped += count

    def since(self, position: Position, by: str | None) -> Arrivals:
        start = max(position.row, self.dropped)
        after = Position(self.dropped + len(self.times), 0, position.dropped + start - position.row)
        times = np.array(self.times[start - self.dropped :], np.int64)
        return Arrivals(after, times, pd.Categorical(self.values[start - self.dropped :]) if by else None)

    def meter(self, by: str | None = None, window: float = 60.0, **options: Any) -> RateMeter:
        return RateMeter(self.since, by, window, life=lambda: self.life, **options)

    def counted(self, meter: RateMeter) -> pd.DataFrame:
        """Count them the slow way: a row an interval of the window, a column a value."""
        step = round(meter.step * 1e9)
        numbers = np.array(self.times) // step
        index = range(meter.until - round(meter.window / meter.step), meter.until)
        return pd.crosstab(numbers, np.array(self.values, object)).reindex(index, fill_value=0)


def test_counts_are_those_of_a_count_by_hand_whatever_the_rows_order_and_however_often_it_is_updated() -> None:
    random = np.random.default_rng(13)
    for window in (10.0, 60.0, 600.0, 3600.0):
        rows = Rows()
        meter = rows.meter("comm", window)
        for second in range(0, 400, 20):
            for value in random.choice(["x", "y", "z", 7, float("nan")], 3).tolist():
                rows.add(*(second + random.uniform(-30, 20, int(random.integers(0, 50)))), value=str(value))
            rows.at(second + 20)
            if random.integers(2):
                meter.update()
        rows.at(400.2)
        meter.update()
        counted = rows.counted(meter)
        names = list(meter.top(99))
        first = meter.until - len(counted)
        assert set(names) == set(counted.columns[counted.sum() > 0])
        assert meter.counts_of(names, first, meter.until).tolist() == counted[names].to_numpy().T.tolist()
        assert meter.counts(first, meter.until).tolist() == counted.sum(axis=1).tolist()
        assert meter.total == len(rows.times)


def test_only_intervals_that_are_over_are_shown() -> None:
    rows = Rows()
    meter = rows.meter()
    rows.add(0.5, 1.5, 2.05)
    for now, shown in ((2.1, 1), (2.2, 2), (2.9, 2)):
        rows.at(now)
        meter.update()
        assert meter.until - meter.oldest == shown
    assert meter.rates().rate.tail(2).tolist() == [1.0, 1.0]


def test_a_row_that_comes_late_changes_an_interval_that_was_shown() -> None:
    rows = Rows()
    meter = rows.meter("comm")
    rows.add(0.5)
    rows.at(5.2)
    meter.update()
    assert meter.top(2) == {"a": 1}
    meter.changed = None
    rows.add(1.5, 1.6, value="b")
    meter.update()
    assert meter.changed == T0 // SECOND + 1
    assert list(meter.top(2).items()) == [("b", 2), ("a", 1)]
    assert meter.rates(1).tail(5).fillna(-1).to_numpy().tolist() == [[0, 1], [2, 0], [0, 0], [0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("began", "ended", "expected"),
    [
        (0.5, 3.5, [10.0, 10.0, 10.0, 10.0]),  # half a second each counts as what it is
        (0.9, 3.1, [None, 10.0, 10.0, None]),  # too short to say
        (0.2, 0.6, [10.0]),
        (0.9, 1.1, [10.0, 10.0]),  # short, but there is nothing else
    ],
)
def test_the_first_and_the_last_interval_are_as_long_as_they_were_traced(
    began: float, ended: float, expected: list[float | None]
) -> None:
    """Ten a second from beginning to end never looks like more, or like fewer."""
    rows = Rows(T0 + round(began * 1e9))
    rows.add(*(began + 0.05 + n / 10 for n in range(round((ended - began) * 10))))
    rows.at(ended, ended=True)
    meter = rows.meter()
    meter.update()
    shown = meter.rates().rate.tail(len(expected)).round(6).tolist()
    assert [None if np.isnan(value) else value for value in shown] == expected
    assert meter.rates().rate.notna().sum() == sum(value is not None for value in expected)


def test_the_most_frequent_values_of_the_window_are_exact_and_the_rest_is_their_difference() -> None:
    """GIVEN thousands of values, each for a while THEN the top is that of the window, as time goes on."""
    random = np.random.default_rng(5)
    rows = Rows()
    meter = rows.meter("comm", 10.0)
    for second in range(40):
        for value in random.zipf(1.3, 300) % 3000 + second // 8:
            rows.add(second + random.uniform(), value=f"task-{value}")
        rows.at(second + 1.2)
        meter.update()
        counted = rows.counted(meter).sum().sort_values(ascending=False)
        top = meter.top(10)
        assert list(top.values()) == counted.head(10).tolist(), second
        assert top == {name: counted[name] for name in top}
        shown = meter.rates(10)
        assert (shown.fillna(0) * meter.step).sum().sum() == pytest.approx(counted.sum())
    assert not meter.rounded


def test_values_are_bounded_and_the_frequent_ones_stay() -> None:
    """GIVEN more values than there is room for THEN the rarest are counted in the sum alone, and that is said."""
    rows = Rows()
    meter = rows.meter("comm", most=2_000)
    for second in range(50):
        for n in range(200):
            rows.add(second + n / 200, value=f"once-{second}-{n}")
        rows.add(*(second + n / 20 for n in range(20)), value="often")
        rows.at(second + 1.2)
        meter.update()
        assert meter._values is not None
        assert meter._values._size <= 2_000 + 201
    assert meter.rounded
    assert list(meter.top(1)) == ["often"]
    first = meter.until - 50
    assert meter.counts_of(["often"], first, meter.until).tolist() == [[20] * 50]
    assert meter.counts(first, meter.until).tolist() == [220] * 50


def test_memory_is_bounded_in_time() -> None:
    rows = Rows()
    meter = rows.meter("comm")
    rows.add(0.5)
    rows.at(2)
    meter.update()
    rows.add(2 * KEPT, value="b")
    rows.at(2 * KEPT + 2)
    meter.update()
    assert meter.until - meter.oldest <= KEPT
    assert meter._values is not None
    assert len(meter._values._counts) == 1
    assert meter.counts(meter.oldest, meter.until).sum() == 1


@pytest.mark.parametrize("time", [-1e9, -3 * KEPT, 100.0, 5e9])
def test_times_that_cannot_be_shown_are_counted(time: float) -> None:
    rows = Rows()
    rows.add(0.5, time, 0.6)
    rows.at(3)
    meter = rows.meter("comm")
    meter.update()
    assert (meter.total, meter.outside) == (3, 1)
    assert meter.rates().dropna().to_numpy().tolist() == [[2], [0]]


def test_rows_dropped_before_they_were_counted_leave_a_gap() -> None:
    rows = Rows()
    meter = rows.meter()
    rows.add(0.5, 1.5, 2.5, 3.5, 4.5)
    rows.at(2)
    meter.update()
    rows.add(5.5, 6.5)
    rows.drop(6)
    rows.at(8.2)
    meter.update()
    rates = meter.rates().rate.tail(8)
    assert rates.isna().tolist() == [False] * 4 + [True] * 3 + [False]


def test_a_meter_that_comes_late_knows_since_when_it_counts() -> None:
    rows = Rows()
    rows.add(0.5, 1.5, 2.0, 3.5)
    rows.drop(2)
    meter = rows.at(5.2).meter()
    meter.update()
    assert meter.oldest == T0 // SECOND + 2
    assert meter.rates().rate.dropna().tolist() == [1.0, 1.0, 0.0]


def test_codes_that_change_their_meaning_as_rows_are_dropped_are_told_apart() -> None:
    """GIVEN a session that drops its oldest rows, and with them names THEN each name's count goes on."""
    with FakeTracer() as tracer, bpfnb.trace(HELLO, name="hello", keep=20_000) as session:
        meter, sent = session.meter(by="comm"), dict.fromkeys([f"task-{n}" for n in range(40)], 0)
        for turn in range(60):
            lines = [(f"task-{(turn // 4 + n) % 40}", 1, "x") for n in range(0, 20, 1 + turn % 3)]
            for name, *_ in lines:
                sent[name] += 1
            tracer.printk(session, lines)
            meter.update()
        assert session.outputs["printk"].dropped > 0
    meter.update()
    names = list(sent)
    counts = meter.counts_of(names, meter.oldest, meter.until).sum(axis=1)
    assert dict(zip(names, counts.tolist(), strict=True)) == sent


def test_thousands_of_values_take_little_time() -> None:
    """A turn with 5,000 values, each in every interval, takes as long as counting the rows does."""
    names = [f"task-{n:05}" for n in range(5_000)]
    with FakeTracer() as tracer, bpfnb.trace(HELLO, name="hello") as session:
        meter = session.meter(by="comm")
        taken = []
        for _ in range(8):
            tracer.printk(session, [(name, 1, "x") for name in names])
            session.outputs["printk"].end()  # decodes
            begin = time.thread_time()
            meter.update()
            meter.counts_of(list(meter.top(10)), meter.until - 1, meter.until)
            taken.append(time.thread_time() - begin)
    assert sorted(taken)[len(taken) // 2] < 0.005


def test_a_meter_is_of_the_output_that_has_the_column() -> None:
    now = time.monotonic_ns()
    opens = np.array([(now, 1, b"a"), (now, 2, b"b")], [("time", "<u8"), ("pid", "<u4"), ("file", "S8")])
    reads = np.array([(now, 1, 10), (now, 1, 20), (now, 2, 5)], [("time", "<u8"), ("pid", "<u4"), ("size", "<u4")])
    with (
        FakeTracer(outputs={"opens": opens.dtype, "reads": reads.dtype}) as tracer,
        bpfnb.trace(TWO, name="two") as session,
    ):
        tracer.events(session, "opens", opens)
        tracer.events(session, "reads", reads)
        totals = {}
        for by, output in ((None, None), ("file", None), ("size", None), (None, "reads"), ("pid", "reads")):
            meter = session.meter(by, output)
            meter.update()
            totals[by, output] = meter.total
        assert list(totals.values()) == [2, 2, 3, 3, 3]
        assert session.rate("1h", by="size").sum().sum() * 3600 == pytest.approx(3)
        assert session.rate("1h", output="reads").sum().sum() * 3600 == pytest.approx(3)
        with pytest.raises(ValueError, match="no column 'sise' in two; did you mean size"):
            session.meter("sise")
        with pytest.raises(ValueError, match="no column 'sise' in two; did you mean size"):
            session.rate(by="sise")
        with pytest.raises(ValueError, match="output reads has no column 'file'; there are time, time_, pid, size"):
            session.meter("file", "reads")
        with pytest.raises(KeyError, match="did you mean reads"):
            session.meter(output="raeds")


def test_an_ambiguous_column_has_to_be_chosen_from() -> None:
    rows = np.array([(1,)], [("size", "<u4")])
    cell = "BPF_PERF_OUTPUT(opens);" + TWO.replace("opens", "writes")
    with FakeTracer() as tracer, bpfnb.trace(cell, name="two") as session:
        tracer.events(session, "opens", np.array([(1,)], [("pid", "<u4")]))
        tracer.events(session, "writes", rows)
        tracer.events(session, "reads", rows)
        with pytest.raises(ValueError, match=r"several outputs of two have a column 'size': choose one, output='"):
            session.meter("size")


@pytest.mark.parametrize("ends", [False, True])
def test_the_clock_is_that_of_the_rows(ends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """GIVEN a system clock that was set an hour back after the tracer started THEN the newest rows are still the
    newest."""
    with FakeTracer() as tracer, bpfnb.trace(HELLO, name="hello") as session:
        tracer.printk(session, [Line("a", 1, "x")])
        wall = time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda: wall() - 3600 * SECOND)
        meter = session.meter(window=10.0)
        if ends:
            session.stop()
        else:
            time.sleep(0.5)
        meter.update()
        assert meter.counts(meter.until - 50, meter.until).sum() == 1


@pytest.mark.parametrize(("window", "step"), [(10, 0.2), (30, 0.5), (60, 1), (300, 1), (900, 2), (3600, 5)])
def test_intervals_are_of_a_length_that_fits_the_window(window: float, step: float) -> None:
    assert step_of(window) == step
