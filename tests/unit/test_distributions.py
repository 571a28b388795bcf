"""Numbers counted in buckets as they come: against df.bpf.hist and pandas, which count them all at once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bpfnb.results.accessor
from bpfnb.results.distributions import history
from bpfnb.results.distributions.history import HOUR, History, top_groups
from bpfnb.results.distributions.scales import Given, Linear, Log2, filled

assert bpfnb.results.accessor

NOW = 1_800_000_000


def counted(buckets: history.Buckets, group: int = 0) -> dict[tuple[float, float], int]:
    rows = zip(buckets.low.tolist(), buckets.high.tolist(), buckets.counts[group].tolist(), strict=True)
    return {(low, high): count for low, high, count in rows if count}


def of_frame(frame: pd.DataFrame, column: str = "count") -> dict[tuple[float, float], int]:
    rows = zip(frame["low"].tolist(), frame["high"].tolist(), frame[column].tolist(), strict=True)
    return {(low, high): count for low, high, count in rows if count}


def seconds(numbers: Any, second: int = NOW) -> Any:
    return np.full(len(numbers), second)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20), max_size=5))
def test_powers_of_two_are_those_of_hist(batches: list[list[int]]) -> None:
    moving = History(Log2())
    for batch in batches:
        moving.add(np.array(batch, np.int64), seconds(batch))
    frame = pd.DataFrame({"n": np.array([n for batch in batches for n in batch], np.int64)})
    assert counted(moving.since_start()) == of_frame(frame.bpf.hist("n")) if len(frame) else moving.total == 0


def test_the_largest_numbers_are_in_their_own_buckets() -> None:
    moving = History(Log2())
    edge = np.array([2**63 - 1, 2**63, 2**64 - 1, 0, 1], np.uint64)
    moving.add(edge, seconds(edge))
    assert counted(moving.since_start()) == {
        (0, 1): 1, (1, 2): 1, (2.0**62, 2.0**63): 1, (2.0**63, 2.0**64): 2,
    }  # fmt: skip


def test_floats_have_buckets_below_one() -> None:
    moving = History(Log2())
    numbers = np.array([-1.5, 0.0, 0.3, 0.6, 1.0, 3.0])
    moving.add(numbers, seconds(numbers))
    found = moving.since_start()
    assert found.low.tolist() == [-math.inf, 0, 0.25, 0.5, 1, 2]
    assert found.high.tolist() == [0, 0.25, 0.5, 1, 2, 4]
    assert found.counts.tolist() == [[1, 1, 1, 1, 1, 1]]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.one_of(st.integers(-1000, 1000), st.integers(0, 2**53)), min_size=1, max_size=20), max_size=5),
    st.booleans(),
)
def test_linear_buckets_stay_exact_when_they_are_merged(batches: list[list[int]], floats: bool) -> None:
    moving = History(Linear())
    numbers = [n / 8 if floats else n for batch in batches for n in batch]
    for batch in batches:
        moving.add(np.array(batch) / 8 if floats else np.array(batch, np.int64), seconds(batch))
    found = moving.since_start()
    assert len(found.low) <= 100
    for (low, high), count in counted(found).items() if numbers else ():
        assert count == sum(low <= number < high for number in numbers), (low, high)
    assert found.counts.sum() == len(numbers)
    assert all(np.isclose(found.high[:-1], found.low[1:]))


def test_a_width_is_round_and_decimal_edges_are_as_written() -> None:
    moving = History(Linear())
    numbers = np.array([0.1, 0.3, 0.7, 3.9])
    moving.add(numbers, seconds(numbers))
    found = moving.since_start()
    assert {0.1, 0.3, 0.7, 3.9} <= set(np.round(found.low, 12).tolist())
    assert counted(found)[0.3, 0.4] == 1


def test_buckets_between_others_are_there_and_empty() -> None:
    low, high, at = filled(np.array([0.0, 8.0]), np.array([1.0, 16.0]), "log2")
    assert (low.tolist(), high.tolist(), at.tolist()) == ([0, 1, 2, 4, 8], [1, 2, 4, 8, 16], [0, -1, -1, -1, 1])
    low, high, at = filled(np.array([-7.0, 0.0]), np.array([-3.0, 1.0]), "log2")
    assert (low.tolist(), high.tolist()) == ([-7, -3, -1, 0], [-3, -1, 0, 1])
    low, high, at = filled(np.array([10.0, 25.0]), np.array([15.0, 30.0]), "linear")
    assert (low.tolist(), at.tolist()) == ([10, 15, 20, 25], [0, -1, -1, 1])


def test_a_window_is_its_seconds_and_the_past_hour_is_kept() -> None:
    moving = History(Log2())
    rng = np.random.default_rng(7)
    numbers, times = rng.integers(0, 5000, 20_000), rng.integers(NOW - 2 * HOUR, NOW, 20_000)
    frame = pd.DataFrame({"n": numbers, "second": times})
    for part in np.array_split(np.arange(len(frame)), 7):  # times go backwards from batch to batch
        moving.add(numbers[part], times[part])
    window = frame[(frame.second >= NOW - 60) & (frame.second < NOW)]
    assert counted(moving.between(NOW - 60, NOW)) == of_frame(window.bpf.hist("n"))
    assert counted(moving.since_start()) == of_frame(frame.bpf.hist("n"))
    newest = int(times.max())
    assert moving.newest == newest
    assert moving.oldest is not None
    assert moving.oldest > newest - HOUR
    assert moving.between(0, NOW).counts.sum() == (times > newest - HOUR).sum()


def test_columns_over_time_are_a_crosstab() -> None:
    moving = History(Log2())
    rng = np.random.default_rng(8)
    numbers, times = rng.integers(0, 300, 5000), rng.integers(NOW - 100, NOW, 5000)
    groups = pd.DataFrame({"comm": rng.choice(["a", "b"], 5000)})
    moving.add(numbers, times, groups)
    shown = moving.columns(NOW - 60, NOW, 10)
    bucket = np.where(numbers > 0, 2 ** np.floor(np.log2(np.maximum(numbers, 1))), 0)
    frame = pd.DataFrame({"at": (times - (NOW - 60)) // 10, "low": bucket, "comm": groups["comm"]})
    frame = frame[(times >= NOW - 60)]
    expected = pd.crosstab(frame["at"], frame["low"])
    assert shown.low.tolist() == expected.columns.tolist()
    assert shown.counts.tolist() == expected.to_numpy().tolist()
    mine = moving.columns(NOW - 60, NOW, 10, group="b")
    assert mine.counts.sum() == (frame["comm"] == "b").sum()
    assert moving.columns(NOW - 60, NOW, 10, group="nobody").counts.sum() == 0


def test_groups_are_told_apart_and_those_beyond_a_thousand_are_together() -> None:
    moving = History(Log2())
    owners = pd.DataFrame({"pid": np.concatenate([np.zeros(500, np.int64), np.arange(1, 200_001)])})
    moving.add(np.ones(len(owners), np.int64), None, owners)
    moving.add(np.ones(3, np.int64), None, pd.DataFrame({"pid": [0, 0, 700_000]}))
    largest = top_groups(moving.since_start(), 2)
    assert largest.groups[0] in ("other", "0")
    sums = dict(zip(largest.groups, largest.counts.sum(axis=1).tolist(), strict=True))
    assert sums["0"] == 502
    assert sum(sums.values()) == len(owners) + 3
    assert moving.newest is None


def test_text_of_groups_is_harmless_and_short() -> None:
    moving = History(Log2())
    names = ["<b>$x$", "\u202eabc", "x" * 10_000, "other"]
    moving.add(np.ones(4, np.int64), None, pd.DataFrame({"comm": names}))
    groups = moving.since_start().groups
    assert groups[0] == "<b>$x$"
    assert "\u202e" not in groups[1]
    assert len(groups[2]) == 200
    assert groups[3] == "other"


def test_given_buckets_keep_their_bounds_and_their_order() -> None:
    scale = Given()
    low, high = np.array([0.0, -1.0, -7.0, 4.0, -math.inf]), np.array([1.0, 0.0, -3.0, 8.0, -100.0])
    scale.learn(low, high)
    slots, _ = scale.slots(low)
    assert np.argsort(slots).tolist() == np.argsort(low).tolist()
    again = scale.bounds(slots)
    assert again[0].tolist() == low.tolist()
    assert again[1].tolist() == high.tolist()


@pytest.mark.parametrize("scale", [Log2(), Linear()])
def test_nothing_is_nothing(scale: Log2 | Linear) -> None:
    moving = History(scale)
    moving.add(np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert moving.since_start().counts.shape == (0, 0)
    assert moving.columns(NOW - 10, NOW, 1).counts.shape == (10, 0)
    assert top_groups(moving.between(0, NOW), 3).groups == []
