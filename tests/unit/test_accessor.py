"""df.bpf: pairs against a plain account of the rule, histograms whose counts add up, and the edges of all four."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import pandas as pd
import pytest

import bpfnb.views.events  # noqa: F401  (registers df.bpf)
from bpfnb.results import printk, rates
from bpfnb.results.columns.text import text_dtype

EPOCH = 1_700_000_000_000_000_000


def times(ns: Any) -> pd.DatetimeIndex:
    return pd.DatetimeIndex((np.asarray(ns, np.int64) + EPOCH).view("M8[ns]")).tz_localize("UTC")


def events(ns: Any, kind: Any, pid: Any, **columns: Any) -> pd.DataFrame:
    data = {"time": times(ns), "pid": np.asarray(pid, np.int32), "kind": pd.Categorical(kind, ["entry", "exit"])}
    return pd.DataFrame({**data, **columns})


def calls() -> pd.DataFrame:
    """Two threads' calls; pid 1's first is interrupted by another entry, pid 2's last has no exit."""
    kind = ["entry", "entry", "exit", "entry", "exit", "exit", "entry"]
    return events([10, 20, 25, 30, 37, 60, 70], kind, [1, 1, 2, 2, 1, 2, 2])


ENTRY, EXIT = "kind == 'entry'", "kind == 'exit'"


# --- between ---


def account(stream: list[tuple[int, str, Hashable, int]]) -> list[tuple[int, int]]:
    """The rule told event by event: (time, "start" or "end", key, row), in the order they happened."""
    waiting: dict[Hashable, int] = {}
    pairs = []
    for _, side, key, row in stream:
        if side == "start":
            waiting[key] = row
        elif key in waiting:
            pairs.append((waiting.pop(key), row))
    return pairs


def random_events(seed: int) -> pd.DataFrame:
    """Few keys and fewer times than events, so that all that can coincide does; in no order; some keys missing."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(0, 60))
    frame = pd.DataFrame(
        {
            "time": times(rng.integers(0, rng.integers(1, 120), n)),
            "pid": rng.integers(0, 4, n).astype(np.int32),
            "comm": pd.Categorical.from_codes(rng.integers(-1, 3, n), ["bash", "sh", "zsh"]),
            "kind": pd.Categorical.from_codes(rng.integers(0, 2, n), ["entry", "exit"]),
            "row": np.arange(n),
        },
        index=rng.integers(0, 5, n),
    )
    return frame.sort_values("time", kind="stable") if seed % 2 else frame


def keyed(frame: pd.DataFrame) -> list[Hashable]:
    return [None if pd.isna(comm) else (pid, comm) for pid, comm in zip(frame.pid, frame.comm, strict=True)]


@pytest.mark.parametrize("seed", range(150))
def test_pairs_within_a_frame_are_those_of_the_plain_account(seed: int) -> None:
    frame = random_events(seed)
    pairs = frame.bpf.between(ENTRY, EXIT, by=["pid", "comm"], start_columns="row")

    rows = enumerate(zip(frame.time, frame.kind, keyed(frame), strict=True))
    stream = [(t.value, "start" if kind == "entry" else "end", key, at) for at, (t, kind, key) in rows if key]
    expected = account(sorted(stream, key=lambda event: event[0]))  # stable: a nanosecond's events in rows' order
    expected.sort(key=lambda pair: (frame.time.iloc[pair[0]], pair[0]))
    assert pairs["row"].tolist() == [frame["row"].iloc[a] for a, _ in expected]
    assert pairs["start"].tolist() == [frame.time.iloc[a] for a, _ in expected]
    assert pairs["end"].tolist() == [frame.time.iloc[b] for _, b in expected]
    assert pairs["comm"].tolist() == [frame.comm.iloc[a] for a, _ in expected]
    assert (pairs["latency"] == pairs["end"] - pairs["start"]).all()
    assert pairs.attrs == {
        "unmatched_starts": int((frame.kind == "entry").sum()) - len(expected),
        "unmatched_ends": int((frame.kind == "exit").sum()) - len(expected),
    }


@pytest.mark.parametrize("seed", range(150))
def test_pairs_of_two_frames_are_those_of_the_plain_account(seed: int) -> None:
    first, second = random_events(seed), random_events(seed + 1000)
    pairs = first.bpf.between(end=second, by=["pid", "comm"], start_columns="row")

    stream = [
        (t.value, side, key, at)
        for side, frame in (("start", first), ("end", second))
        for at, (t, key) in enumerate(zip(frame.time, keyed(frame), strict=True))
        if key
    ]
    expected = account(sorted(stream, key=lambda event: (event[0], event[1] == "end")))
    expected.sort(key=lambda pair: (first.time.iloc[pair[0]], pair[0]))
    assert pairs["row"].tolist() == [first["row"].iloc[a] for a, _ in expected]
    assert pairs["end"].tolist() == [second.time.iloc[b] for _, b in expected]
    assert pairs.attrs["unmatched_starts"] == len(first) - len(expected)
    assert pairs.attrs["unmatched_ends"] == len(second) - len(expected)


@pytest.mark.parametrize("seed", range(50))
def test_every_row_as_both_gives_the_pauses_between_events_of_a_key(seed: int) -> None:
    frame = random_events(seed)
    in_order = frame.sort_values("time", kind="stable")
    expected = in_order.groupby("pid").time.diff().dropna()
    assert sorted(frame.bpf.between(by="pid").latency) == sorted(expected)


def test_what_a_pair_tells() -> None:
    frame = calls()
    before = frame.copy()
    pairs = frame.bpf.between(ENTRY, EXIT, by="pid")
    assert {name: str(dtype) for name, dtype in pairs.dtypes.items()} == {
        "pid": "int32",
        "start": "datetime64[ns, UTC]",
        "end": "datetime64[ns, UTC]",
        "latency": "timedelta64[ns]",
    }
    assert pairs.index.equals(pd.RangeIndex(2))
    assert pairs.pid.tolist() == [1, 2]
    assert pairs.start.tolist() == times([20, 30]).tolist()
    assert [latency.value for latency in pairs.latency] == [17, 30]
    assert pairs.attrs == {"unmatched_starts": 2, "unmatched_ends": 1}
    pd.testing.assert_frame_equal(frame, before)


@pytest.mark.parametrize(
    "choose",
    [
        lambda frame: (ENTRY, EXIT),
        lambda frame: (frame.kind == "entry", frame.kind == "exit"),
        lambda frame: ((frame.kind == "entry").to_numpy(), (frame.kind == "exit").tolist()),
        lambda frame: ((frame.kind == "entry").astype("boolean").where(frame.kind == "entry"), EXIT),
        lambda frame: (lambda f: f.kind == "entry", lambda f: ~(f.kind == "entry")),
    ],
    ids=["query", "series", "array and list", "nullable", "function"],
)
@pytest.mark.parametrize("index", [[0, 1, 2, 3, 4, 5, 6], [3, 3, 3, 1, 1, 0, 0], list("abcdefg")])
def test_rows_are_chosen_in_every_way_and_under_any_index(choose: Callable[..., Any], index: list[Any]) -> None:
    frame = calls().set_axis(index)
    pairs = frame.bpf.between(*choose(frame), by="pid")
    assert [latency.value for latency in pairs.latency] == [17, 30]


def test_an_index_named_like_a_column_is_no_matter() -> None:
    frame = calls().set_index("pid", drop=False)
    assert frame.bpf.between(ENTRY, EXIT, by="pid").pid.tolist() == [1, 2]
    assert frame.bpf.top("pid")["count"].tolist() == [4, 3]
    assert frame.bpf.rate(by="pid").to_numpy().sum() == 7


def test_a_query_sees_the_names_of_whoever_asks() -> None:
    beginning = "entry"
    assert len(calls().bpf.between("kind == @beginning", "kind != @beginning", by="pid")) == 2
    assert beginning


def test_columns_of_either_event_come_along() -> None:
    frame = calls().assign(size=range(7), ret=range(100, 107))
    pairs = frame.bpf.between(ENTRY, EXIT, by="pid", start_columns=["size", "kind"], end_columns="ret")
    assert [*pairs.columns] == ["pid", "start", "end", "latency", "size", "kind", "ret"]
    assert pairs["size"].tolist() == [1, 3]
    assert pairs.ret.tolist() == [104, 105]
    assert pairs.kind.dtype == frame.kind.dtype


def test_keys_called_differently_tell_how_long_tasks_were_off_the_cpu() -> None:
    switches = pd.DataFrame({"time": times([0, 5, 9, 20]), "prev_pid": [1, 2, 3, 2], "next_pid": [2, 3, 2, 1]})
    pairs = switches.bpf.between(by={"prev_pid": "next_pid"})
    assert [*pairs.columns] == ["prev_pid", "start", "end", "latency"]
    assert dict(zip(pairs.prev_pid, [x.value for x in pairs.latency], strict=True)) == {1: 20, 2: 4}
    assert pairs.attrs == {"unmatched_starts": 2, "unmatched_ends": 2}


def test_without_a_key_all_events_are_of_one() -> None:
    pairs = calls().bpf.between(ENTRY, EXIT, by=None)
    assert [*pairs.columns] == ["start", "end", "latency"]
    assert [x.value for x in pairs.latency] == [5, 7]


def test_whole_nanoseconds_are_a_time_and_stay_exact() -> None:
    ts = np.array([2**62 + 1, 2**62 + 2, 2**62 + 1001], np.uint64)
    frame = pd.DataFrame({"ts": ts, "pid": [1, 2, 1], "kind": ["entry", "entry", "exit"]})
    pairs = frame.bpf.between(ENTRY, EXIT, by="pid", time="ts")
    assert pairs.start.dtype == np.uint64
    assert pairs.latency.tolist() == [pd.Timedelta(1000, "ns")]


def test_times_in_other_units_give_nanoseconds() -> None:
    frame = calls().assign(time=pd.DatetimeIndex(["2026-01-01"] * 6 + ["2026-01-02"]).as_unit("s"))
    pairs = frame.bpf.between(by="pid")
    assert str(pairs.latency.dtype) == "timedelta64[ns]"
    assert pairs.latency.max() == pd.Timedelta("1D")


def test_keys_of_two_frames_meet_whatever_their_types() -> None:
    """64-bit values of unlike signedness, and categories two sessions numbered differently."""
    address = 2**63 - 1
    starts = pd.DataFrame({"time": times([0, 1, 2]), "req": np.array([address, address - 1, 7], np.int64)})
    ends = pd.DataFrame({"time": times([10, 20, 30]), "req": np.array([address - 1, address, 2**64 - 1], np.uint64)})
    starts["comm"] = pd.Categorical(["a", "b", "c"])
    ends["comm"] = pd.Categorical(["b", "a", "z"], categories=["z", "b", "a"])
    pairs = starts.bpf.between(end=ends, by=["req", "comm"])
    assert pairs.req.tolist() == [address, address - 1]
    assert [x.value for x in pairs.latency] == [20, 9]
    assert starts.bpf.between(end=ends, by="comm").comm.tolist() == ["a", "b"]


def test_events_without_a_key_or_a_time_are_in_no_pair() -> None:
    frame = events([1, 2, 3, 4], ["entry", "exit", "entry", "exit"], [1, 1, 1, 1])
    frame["comm"] = pd.Categorical([None, None, "a", "a"])
    frame.loc[3, "time"] = pd.NaT
    pairs = frame.bpf.between(ENTRY, EXIT, by=["pid", "comm"])
    assert pairs.empty
    assert pairs.attrs == {"unmatched_starts": 2, "unmatched_ends": 2}


def test_an_empty_frame_gives_an_empty_one_of_the_same_columns() -> None:
    full, empty = calls().bpf.between(ENTRY, EXIT, by="pid"), calls().head(0).bpf.between(ENTRY, EXIT, by="pid")
    assert empty.empty
    assert empty.dtypes.equals(full.dtypes)
    assert empty.attrs == {"unmatched_starts": 0, "unmatched_ends": 0}
    assert calls().bpf.between(ENTRY, calls().head(0), by="pid").attrs == {"unmatched_starts": 4, "unmatched_ends": 0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"by": "pidd"}, "no column 'pidd'; did you mean pid?"),
        ({"time": "tyme"}, "no column 'tyme'; did you mean time?"),
        ({"by": {"pid": "ppid"}}, "no column 'ppid'; did you mean pid?"),
        ({"end": pd.DataFrame({"pid": [1]})}, "no column 'time'; there are pid"),
        ({"end_columns": "retval"}, "no column 'retval'; there are time, pid, kind"),
        ({"start": "knd == 'entry'"}, "name 'knd' is not defined; did you mean kind?"),
        ({"start": "kind = 'entry'"}, "must be true or false for each of the 7 rows"),
        ({"start": "pid"}, "'pid' must be true or false for each row, not int32"),
        ({"start": [True]}, "must be true or false for each of the 7 rows"),
        ({"start": pd.Series([True] * 7, index=range(1, 8))}, "has another index than the frame"),
        ({"time": "kind"}, "column 'kind' is category: times are datetime64 or whole nanoseconds"),
        ({"end": calls().assign(time=range(7))}, "'time' is datetime64 with a timezone in the starts, whole nanosec"),
        ({"end": calls().assign(time=times(range(7)).tz_localize(None))}, "with a timezone in the starts, datetime64 "),
        ({"start_columns": "kind", "end_columns": "kind"}, "the result would have two columns 'kind'"),
        ({"start_columns": "pid"}, "the result would have two columns 'pid'"),
        ({"start_columns": [["pid"]]}, "here a single column's name is meant, not ['pid']"),
        ({"by": {"pid": ["pid"]}}, "here a single column's name is meant, not ['pid']"),
        ({"time": ["time"]}, "here a single column's name is meant, not ['time']"),
    ],
)
def test_what_between_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        calls().bpf.between(**{"by": "pid", **arguments})


def test_another_frame_is_never_the_start() -> None:
    with pytest.raises(TypeError, match=r"between\(end=frame"):
        calls().bpf.between(calls())


# --- hist ---


def test_log2_has_the_buckets_of_bpftrace() -> None:
    frame = pd.DataFrame({"n": [-5, -1, 0, 0, 1, 2, 3, 4, 7, 8, 1023, 1024, 2047, 2**20]})
    hist = frame.bpf.hist("n")
    assert hist.label.tolist()[:6] == ["(..., 0)", "[0]", "[1]", "[2, 4)", "[4, 8)", "[8, 16)"]
    assert hist.label.tolist()[-2:] == ["[512K, 1M)", "[1M, 2M)"]
    counts = dict(zip(hist.label, hist["count"], strict=True))
    assert counts["(..., 0)"] == 2
    assert counts["[0]"] == 2
    assert counts["[2, 4)"] == 2
    assert counts["[512, 1K)"] == 1
    assert counts["[1K, 2K)"] == 2
    assert hist["count"].sum() == len(frame)
    assert {name: str(hist[name].dtype) for name in ("low", "high", "count")} == {
        "low": "float64",
        "high": "float64",
        "count": "int64",
    }
    assert hist.low[0] == -np.inf
    assert hist.index.equals(pd.RangeIndex(len(hist)))
    assert hist.attrs == {"missing": 0}


def test_log2_begins_and_ends_where_values_do() -> None:
    assert pd.DataFrame({"n": [5, 100]}).bpf.hist("n").label.tolist() == [
        "[4, 8)",
        "[8, 16)",
        "[16, 32)",
        "[32, 64)",
        "[64, 128)",
    ]
    assert pd.DataFrame({"n": [-3]}).bpf.hist("n").label.tolist() == ["(..., 0)"]
    assert pd.DataFrame({"n": [0]}).bpf.hist("n").label.tolist() == ["[0]"]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
def test_log2_is_exact_at_both_ends_of_a_type(dtype: Any) -> None:
    """float64 would put 2**63 - 1 into the bucket of 2**63."""
    limits = np.iinfo(dtype)
    bits = int(limits.max).bit_length()
    frame = pd.DataFrame({"n": np.array([limits.min, limits.max, limits.max >> 1, (limits.max >> 1) + 1], dtype)})
    hist = frame.bpf.hist("n")
    counts = dict(zip(hist.high, hist["count"], strict=True))
    assert counts[2.0**bits] == 2
    assert counts[2.0 ** (bits - 1)] == 1
    assert hist["count"].sum() == 4


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("kind", ["log2", "linear"])
def test_counts_add_up_and_each_value_is_in_its_bucket(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(0, 200))
    scale = 2.0 ** rng.integers(-4, 50)
    floats = rng.normal(rng.normal(0, scale), scale, n)
    values: Any = [floats, floats.astype(np.int64), floats.astype(np.int64).view("m8[ns]")][seed % 3]
    frame = pd.DataFrame({"value": values, "by": rng.integers(0, 3, n)})
    if seed % 3 != 1:
        frame.loc[rng.random(n) < 0.1, "value"] = None

    bins = int(rng.integers(1, 40))
    hist = frame.bpf.hist("value", kind=kind, bins=bins if kind == "linear" else None)
    known = frame.value.dropna()
    numbers = known.astype(np.int64) if seed % 3 == 2 else known
    assert hist.attrs["missing"] == n - len(known)
    inside = [int(((numbers >= low) & (numbers < high)).sum()) for low, high in zip(hist.low, hist.high, strict=True)]
    assert hist["count"].tolist() == inside
    assert hist["count"].sum() == len(known)
    assert hist.label.is_unique
    assert kind == "log2" or len(hist) <= bins + 1
    if len(hist):
        assert hist["count"].iloc[0] > 0
        assert hist["count"].iloc[-1] > 0
    apart = frame.bpf.hist("value", by="by", kind=kind, bins=bins if kind == "linear" else None)
    assert apart.drop(columns=["low", "high", "label"]).sum(axis=1).tolist() == hist["count"].tolist()


def test_a_column_of_counts_for_each_value_of_by() -> None:
    comm = pd.Categorical(["sh", "cat", "sh", None, "cat"], ["sh", "cat", "unseen"])
    frame = pd.DataFrame({"n": [1, 1, 2, 3, 9], "comm": comm})
    hist = frame.bpf.hist("n", by="comm")
    assert [*hist.columns] == ["low", "high", "label", "sh", "cat"]
    assert hist.sh.tolist() == [1, 1, 0, 0]
    assert hist["cat"].tolist() == [1, 0, 0, 1]
    assert hist["cat"].dtype == np.int64
    assert hist.attrs == {"missing": 1}
    hist["more"] = 0  # a plain index of columns takes further ones


def test_a_column_of_counts_for_each_values_of_several_columns() -> None:
    frame = pd.DataFrame(
        {"n": [1, 1, 2, 3, 9], "comm": pd.Categorical(["sh", "cat", "sh", None, "cat"]), "cpu": [0, 0, 1, 1, 0]}
    )
    hist = frame.bpf.hist("n", by=["comm", "cpu"])
    assert [*hist.columns] == ["low", "high", "label", ("cat", 0), ("sh", 0), ("sh", 1)]
    assert hist["cat", 0].tolist() == [1, 0, 0, 1]
    assert hist["sh", 1].tolist() == [0, 1, 0, 0]
    assert hist.attrs == {"missing": 1}
    hist["more"] = 0
    for one in (["comm"], ("comm",)):
        pd.testing.assert_frame_equal(frame.bpf.hist("n", by=one), frame.bpf.hist("n", by="comm"))
    pd.testing.assert_frame_equal(frame.bpf.hist("n", by=[]), frame.bpf.hist("n"))


def test_durations_are_counted_in_nanoseconds_and_read_as_times() -> None:
    frame = pd.DataFrame({"latency": pd.to_timedelta([0, 1, 1500, 3_000_000, None], unit="ns")})
    hist = frame.bpf.hist("latency")
    assert hist.label.iloc[0] == "[0, 1ns)"
    assert hist.label.iloc[1] == "[1ns, 2ns)"
    assert hist[hist["count"] > 0].label.tolist()[2:] == ["[1.02us, 2.05us)", "[2.1ms, 4.19ms)"]
    assert hist.low.iloc[-1] == 2**21
    assert hist.attrs == {"missing": 1, "unit": "ns"}


def test_durations_are_counted_in_the_unit_asked_for() -> None:
    frame = pd.DataFrame({"latency": pd.to_timedelta([-1, 999, 1999, 2_000_000], unit="ns").as_unit("ns")})
    hist = frame.bpf.hist("latency", unit="us")
    assert hist[hist["count"] > 0].label.tolist() == ["(..., 0)", "[500ns, 1us)", "[1us, 2us)", "[1.02ms, 2.05ms)"]
    assert hist.low.iloc[-1] == 1024
    seconds = pd.DataFrame({"latency": pd.to_timedelta([5, 6], unit="s").as_unit("s")}).bpf.hist("latency")
    assert seconds["count"].sum() == 2
    assert seconds.label.tolist() == ["[4.29s, 8.59s)"]


def test_fractions_have_buckets_of_their_own() -> None:
    """Latencies in seconds, as floats and as durations."""
    seconds = [0.00025, 0.0003, 0.002, 0.75, 1.0, 3.0, 0.0]
    hist = pd.DataFrame({"s": seconds}).bpf.hist("s")
    filled = hist[hist["count"] > 0]
    assert filled.low.tolist() == [0, 2**-12, 2**-9, 0.5, 1, 2]
    assert filled["count"].tolist() == [1, 2, 1, 1, 1, 1]
    assert hist.low.tolist() == [0, *[2.0**power for power in range(-12, 2)]]
    assert hist.label.tolist()[:3] == ["[0, 0.000244)", "[0.000244, 0.000488)", "[0.000488, 0.000977)"]
    frame = pd.DataFrame({"s": seconds, "latency": pd.to_timedelta(np.array(seconds) * 1e9, unit="ns")})
    for column in ("s", "latency"):
        named = frame.bpf.hist(column, unit="s")
        assert named["count"].tolist() == hist["count"].tolist()
        assert named.low.tolist() == hist.low.tolist()
        assert named.label.tolist()[:2] == ["[0, 244us)", "[244us, 488us)"]
    assert frame.bpf.hist("latency", unit="s", kind="linear", bins=[0, 0.5, 1.5])["count"].tolist() == [4, 2, 1]


def test_fractions_go_down_so_far_and_no_farther() -> None:
    hist = pd.DataFrame({"x": [1e-300, 2.0**-70, 2.0**-8, 0.9]}).bpf.hist("x")
    assert hist["count"].sum() == 4
    assert hist.low.tolist()[:2] == [0, 2.0**-65]
    assert hist["count"].tolist()[:1] == [2]
    assert hist.label.is_unique
    tiny = pd.DataFrame({"x": [1e-300, 3e-300]}).bpf.hist("x")
    assert tiny["count"].tolist() == [1, 0, 1] or tiny["count"].tolist() == [1, 1]
    assert ((tiny.low > 0) & (tiny.high < 1e-299)).all()


def test_numbers_that_are_times_are_labelled_so() -> None:
    hist = pd.DataFrame({"delta_us": [1, 3000]}).bpf.hist("delta_us", unit="us")
    assert hist.label.tolist()[0] == "[1us]"
    assert hist.label.tolist()[-1] == "[2.05ms, 4.1ms)"


def test_linear_buckets_have_a_round_width() -> None:
    frame = pd.DataFrame({"n": range(100), "cpu": [0, 1, 2, 3] * 25, "x": np.linspace(0, 1, 100, endpoint=False)})
    hist = frame.bpf.hist("n", kind="linear", bins=10)
    assert hist.label.tolist() == [f"[{n}, {n + 10})" for n in range(0, 100, 10)]
    assert hist["count"].tolist() == [10] * 10
    assert frame.bpf.hist("cpu", kind="linear").label.tolist() == ["[0]", "[1]", "[2]", "[3]"]
    assert frame.bpf.hist("x", kind="linear", bins=5).label.tolist()[1] == "[0.2, 0.4)"


def test_linear_keeps_large_whole_numbers_apart() -> None:
    frame = pd.DataFrame({"address": np.array([2**63 + 1, 2**63 + 2, 2**64 - 1], np.uint64)})
    near = frame.head(2).bpf.hist("address", kind="linear")
    assert near["count"].tolist() == [1, 1]
    assert near.label.tolist() == [f"[{2**63 + 1}]", f"[{2**63 + 2}]"]
    assert frame.bpf.hist("address", kind="linear")["count"].sum() == 3
    ends = pd.DataFrame({"n": np.array([-(2**63), 2**63 - 1], np.int64)})
    assert ends.bpf.hist("n", kind="linear")["count"].sum() == 2


def test_one_value_makes_one_bucket() -> None:
    labels = []
    for value in (0, 0.0, 7, -7, 0.001, 1e300, pd.Timedelta("5ms")):
        hist = pd.DataFrame({"x": [value] * 3}).bpf.hist("x", kind="linear")
        assert hist["count"].tolist() == [3]
        labels += hist.label.tolist()
    assert labels[:4] == ["[0]", "[0, 1)", "[7]", "[-7]"]
    assert labels[-1] == "[5ms, 5.5ms)"


def test_floats_next_to_each_other_are_told_apart() -> None:
    frame = pd.DataFrame({"x": [1e17, 1e17 + 16, 5e-324, 2.0**1023]})
    assert frame.head(2).bpf.hist("x", kind="linear")["count"].tolist() == [1, 1]
    assert frame.bpf.hist("x")["count"].sum() == 4
    assert frame.tail(1).bpf.hist("x").label.str.endswith(", ...)").all()


def test_edges_given_are_all_there_and_what_lies_outside_is_counted() -> None:
    frame = pd.DataFrame({"n": [5, 15, 99, -1]})
    hist = frame.bpf.hist("n", kind="linear", bins=[0, 10, 20, 30])
    assert hist.label.tolist() == ["(..., 0)", "[0, 10)", "[10, 20)", "[20, 30)", "[30, ...)"]
    assert hist["count"].tolist() == [1, 1, 1, 0, 1]
    assert frame.head(2).bpf.hist("n", kind="linear", bins=range(0, 31, 10)).label.tolist() == hist.label.tolist()[1:-1]
    assert frame.head(0).bpf.hist("n", kind="linear", bins=[0, 1.5]).label.tolist() == ["[0, 1.5)"]
    assert frame.bpf.hist("n", kind="linear", bins=[0.5, 1.5, np.inf]).label.tolist()[-1] == "[1.5, ...)"


def test_what_is_no_number_is_left_out_and_counted() -> None:
    frame = pd.DataFrame({"x": [1.0, np.nan, np.inf, -np.inf, 2.5]})
    hist = frame.bpf.hist("x")
    assert hist["count"].sum() == 2
    assert hist.label.tolist() == ["[1, 2)", "[2, 4)"]
    assert hist.attrs == {"missing": 3}
    nullable = pd.DataFrame({"x": pd.array([1, None, 3], "Int64"), "b": [True, False, True]})
    assert nullable.bpf.hist("x")["count"].tolist() == [1, 1]
    assert nullable.bpf.hist("b")["count"].tolist() == [1, 2]


@pytest.mark.parametrize("by", [None, "comm"])
@pytest.mark.parametrize("kind", ["log2", "linear"])
def test_no_values_make_no_buckets(by: str | None, kind: str) -> None:
    frame = pd.DataFrame({"n": np.array([], np.int64), "comm": pd.Categorical([])})
    hist = frame.bpf.hist("n", by=by, kind=kind)
    assert hist.empty
    assert [*hist.columns] == ["low", "high", "label"] + ["count"] * (by is None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"column": "latnecy"}, "no column 'latnecy'; did you mean latency?"),
        ({"column": "latency", "by": "com"}, "no column 'com'; did you mean comm?"),
        ({"column": "latency", "kind": "lin"}, "no kind 'lin'; did you mean linear?"),
        ({"column": "latency", "unit": "minutes"}, "no unit 'minutes'; there are ns, us, ms, s"),
        ({"column": "latency", "bins": 5}, "bins are for kind='linear'"),
        ({"column": "latency", "kind": "linear", "bins": 0}, "at least one bucket"),
        ({"column": "latency", "kind": "linear", "bins": [1]}, "at least two rising edges"),
        ({"column": "latency", "kind": "linear", "bins": [1, 1]}, "at least two rising edges"),
        ({"column": "latency", "kind": "linear", "bins": "ab"}, "at least two rising edges"),
        ({"column": "comm"}, "'comm' is category: a histogram is of numbers or durations; top('comm') counts"),
        ({"column": "time"}, "'time' is datetime64[ns, UTC]: a histogram is of numbers or durations"),
        ({"column": ["latency"]}, "here a single column's name is meant, not ['latency']"),
        ({"column": "latency", "by": [["comm"]]}, "here a single column's name is meant, not ['comm']"),
        ({"column": "latency", "by": ["comm", "tme"]}, "no column 'tme'; did you mean time?"),
        ({"column": "latency", "by": 5}, "no column 5; there are time, latency, comm"),
        ({"column": "latency", "unit": ["s"]}, "no unit ['s']; there are ns, us, ms, s"),
    ],
)
def test_what_hist_refuses(arguments: dict[str, Any], message: str) -> None:
    frame = pd.DataFrame({"time": times([1]), "latency": [1], "comm": pd.Categorical(["a"])})
    with pytest.raises(ValueError, match=re.escape(message)):
        frame.bpf.hist(**arguments)


# --- top ---


def reads() -> pd.DataFrame:
    comm = pd.Categorical(["sh", "cat", "sh", "vi", "vi", None], ["unused", "vi", "sh", "cat"])
    return pd.DataFrame({"comm": comm, "pid": [1, 2, 1, 3, 4, 5], "bytes": np.array([1, 100, 2, 7, 8, 9], np.uint8)})


def test_top_counts_groups() -> None:
    top = reads().bpf.top("comm")
    assert top.comm.tolist() == ["sh", "vi", "cat"]
    assert top.comm.dtype == reads().comm.dtype
    assert top["count"].tolist() == [2, 2, 1]
    assert top["count"].dtype == np.int64
    assert top.share.tolist() == [2 / 6, 2 / 6, 1 / 6]
    assert top.index.equals(pd.RangeIndex(3))
    assert reads().bpf.top("comm", n=1).comm.tolist() == ["sh"]


def test_top_by_several_columns_and_by_a_dotted_one() -> None:
    top = reads().rename(columns={"pid": "addr.v4"}).bpf.top(["comm", "addr.v4"], n=2)
    assert [*top.columns] == ["comm", "addr.v4", "count", "share"]
    assert top["addr.v4"].tolist() == [1, 2]


def test_top_of_a_value() -> None:
    frame = reads()
    assert frame.bpf.top("comm", value="bytes").to_dict("list") == {"comm": ["cat", "vi", "sh"], "sum": [100, 15, 3]}
    assert frame.bpf.top("comm", value="bytes", agg="mean")["mean"].tolist() == [100, 7.5, 1.5]
    assert frame.bpf.top("comm", value="bytes", agg="max")["max"].tolist() == [100, 8, 2]
    assert frame.bpf.top("pid", value="pid", agg="max")["max"].tolist() == [5, 4, 3, 2, 1]
    full = pd.DataFrame({"comm": ["a"] * 300, "bytes": np.full(300, 255, np.uint8)})
    assert full.bpf.top("comm", value="bytes")["sum"].tolist() == [300 * 255]


@pytest.mark.parametrize(("agg", "percent"), [("p50", 50), ("median", 50), ("p99", 99), ("p99.9", 99.9), ("p0", 0)])
@pytest.mark.parametrize("kind", ["uint32", "float64", "timedelta64[ns]"])
def test_top_of_a_quantile(agg: str, percent: float, kind: str) -> None:
    choose = np.random.default_rng(5)
    frame = pd.DataFrame({"comm": choose.choice(list("abc"), 5000), "value": choose.integers(0, 10**6, 5000)})
    frame["value"] = (frame.value * (1 + (frame.comm == "b"))).astype(kind)
    top = frame.bpf.top("comm", value="value", agg=agg)
    assert [*top.columns] == ["comm", agg]
    assert top.comm[0] == "b" or percent == 0
    for name, found in zip(top.comm, top[agg], strict=True):
        values = frame.value[frame.comm == name].to_numpy().astype(np.float64)
        assert pd.Series([found]).astype(np.float64 if kind != "timedelta64[ns]" else np.int64)[0] == pytest.approx(
            np.percentile(values, percent), abs=1
        )
    assert top[agg].is_monotonic_decreasing
    assert (top[agg].dtype == kind) == (kind != "uint32")


def test_top_of_durations_and_of_times() -> None:
    frame = reads().assign(latency=pd.to_timedelta(range(6), unit="ms"), time=times(range(6)))
    assert frame.bpf.top("comm", value="latency").comm.tolist() == ["vi", "sh", "cat"]
    assert frame.bpf.top("comm", 1, "latency", "mean")["mean"].tolist() == [pd.Timedelta("3.5ms")]
    assert frame.bpf.top("comm", 1, "time", "max").comm.tolist() == ["vi"]


@pytest.mark.parametrize("by", ["comm", ["comm", "pid"]])
@pytest.mark.parametrize("value", [None, "bytes"])
def test_top_of_nothing_is_nothing(by: Any, value: str | None) -> None:
    top = reads().head(0).bpf.top(by, value=value)
    assert top.empty
    assert [*top.columns] == [*([by] if isinstance(by, str) else by), *(["sum"] if value else ["count", "share"])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"by": "coom"}, "no column 'coom'; did you mean comm?"),
        ({"by": "comm", "value": "byte"}, "no column 'byte'; did you mean bytes?"),
        ({"by": "comm", "value": "bytes", "agg": "man"}, "no agg 'man'; did you mean mean?"),
        ({"by": "comm", "agg": "sum"}, "sum of which column"),
        ({"by": "comm", "value": "bytes", "agg": "count"}, "agg='count' is of rows"),
        ({"by": "pid", "value": "comm"}, "column 'comm' is category: there is no sum of it"),
        ({"by": "comm", "n": 0}, "an n of at least 1"),
        ({"by": []}, "columns to group by"),
        ({"by": ["pid", "pid"]}, "two columns 'pid'"),
        ({"by": [["pid"]]}, "here a single column's name is meant, not ['pid']"),
        ({"by": "comm", "value": ["bytes"]}, "here a single column's name is meant, not ['bytes']"),
        ({"by": "comm", "value": "bytes", "agg": "p101"}, "percentiles go from p0 to p100, with digits behind a point"),
        ({"by": "comm", "value": "bytes", "agg": "p999"}, "p99.9; there is no p999"),
        ({"by": "comm", "value": "bytes", "agg": ["max"]}, "no agg ['max']; did you mean max?"),
        ({"by": "comm", "value": "bytes", "agg": "q99"}, "no agg 'q99'; did you mean p99?"),
        ({"by": "comm", "agg": "p99"}, "p99 of which column"),
        ({"by": "pid", "value": "comm", "agg": "p99"}, "column 'comm' is category: there is no p99 of it"),
    ],
)
def test_what_top_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        reads().bpf.top(**arguments)


# --- rate, and the whole ---


def test_rate_is_the_rate_of_frames() -> None:
    frame = calls()
    pd.testing.assert_frame_equal(frame.bpf.rate("10ns", by="pid"), rates.rate(frame, "10ns", by="pid"))
    assert frame.bpf.rate()["rate"].tolist() == [7.0]
    both = frame.bpf.rate("10ns", by=["kind", "pid"])
    assert both.sum(axis=1).tolist() == frame.bpf.rate("10ns")["rate"].tolist()
    assert (
        both["entry", 1].tolist()
        == frame[(frame.kind == "entry") & (frame.pid == 1)]
        .bpf.rate("10ns")
        .reindex(both.index, fill_value=0)["rate"]
        .tolist()
    )
    pd.testing.assert_frame_equal(frame.bpf.rate("10ns", by=["pid"]), frame.bpf.rate("10ns", by="pid"))
    pd.testing.assert_frame_equal(frame.bpf.rate("10ns", by=[]), frame.bpf.rate("10ns"))
    with pytest.raises(ValueError, match="a single column's name is meant"):
        frame.bpf.rate(by=[["pid"]])
    with pytest.raises(ValueError, match="no column 'pdi'; did you mean pid"):
        frame.bpf.rate(by="pdi")
    with pytest.raises(ValueError, match="no column 'time'; there are n"):
        pd.DataFrame({"n": [1]}).bpf.rate()


def test_the_frame_of_a_session_takes_all_of_them() -> None:
    empty = printk.PrintkTable(0).frame()
    assert empty.bpf.rate().empty
    assert empty.bpf.between("msg == 'in'", "msg == 'out'").empty
    assert empty.bpf.hist("cpu").empty
    assert empty.bpf.top(["comm", "flags"]).empty


def test_text_chooses_rows_as_well() -> None:
    frame = calls().assign(msg=pd.array(["in", "in", "out", "in", "out", "out", None], dtype=text_dtype()))
    assert [x.value for x in frame.bpf.between("msg == 'in'", "msg == 'out'", by="pid").latency] == [17, 30]


def test_pairs_are_of_the_thread_unless_told() -> None:
    """GIVEN two threads of a process whose calls overlap WHEN they are paired THEN neither ends the other's."""
    frame = events([10, 20, 40, 70], ["entry", "entry", "exit", "exit"], [1, 1, 1, 1], tid=[1, 2, 1, 2])
    assert [x.value for x in frame.bpf.between(ENTRY, EXIT).latency] == [30, 50]
    assert frame.bpf.between(ENTRY, EXIT).columns[0] == "tid"


def test_what_to_pair_by_has_to_be_said_where_there_is_no_thread() -> None:
    with pytest.raises(ValueError, match=r"by=\.\.\.: pid, kind; .* by=None"):
        calls().bpf.between(ENTRY, EXIT)
    threads = calls().assign(tid=1)
    with pytest.raises(ValueError, match=r"by=\.\.\.: pid, kind;"):
        threads.bpf.between(end=calls())
    assert threads.bpf.between(end=threads).columns[0] == "tid"


def test_lines_of_printk_are_paired_by_pid_which_is_the_thread() -> None:
    frame = calls().assign(comm="a", cpu=0, flags="....", ts=0.0, msg=calls().kind.astype(str))
    pd.testing.assert_frame_equal(frame.bpf.between(ENTRY, EXIT), frame.bpf.between(ENTRY, EXIT, by="pid"))


def test_nothing_changes_the_frame() -> None:
    frame = calls().set_axis(list("abcdefg"))
    frame.attrs["lost"] = 3
    before = frame.copy()
    results = [
        frame.bpf.rate(by="pid"),
        frame.bpf.between(ENTRY, EXIT, by="pid", start_columns="kind"),
        frame.bpf.hist("pid", by="kind"),
        frame.bpf.top("pid", value="pid"),
    ]
    for result in results:
        result.iloc[:, 0] = result.iloc[0, 0]
    pd.testing.assert_frame_equal(frame, before)
    assert frame.attrs == {"lost": 3}


def test_the_accessor_says_what_it_can_do() -> None:
    text = repr(calls().bpf)
    assert "7 events" in text
    assert ".between(start, end, by, time, start_columns, end_columns)" in text
    assert ".hist(column, by, kind, bins, unit, top)" in text
    assert "`" not in text
