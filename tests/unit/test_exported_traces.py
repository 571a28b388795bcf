"""Perfetto, Chrome's JSON, pprof and OpenMetrics, read back by their own schemas and readers."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from examples import EXAMPLES
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from test_stream import ROW, rows
from traces import read_trace

import bpfnb
from bpfnb.errors import ProgramError
from bpfnb.exports.perfetto import Clocks, write_perfetto
from bpfnb.exports.pprof import profile
from bpfnb.exports.timeline import Choice, events
from bpfnb.protocol.segments import SegmentSizes
from bpfnb.results.flame.fold import fold
from bpfnb.session import Session
from bpfnb.testing import FakeTracer

BEGAN = 1_800_000_000_123_456_789
HOSTILE = 'a"\n\x1b\u202e\udc80\\'


def at(*offsets: int) -> pd.DatetimeIndex:
    return pd.to_datetime([BEGAN + offset for offset in offsets], utc=True)


def waits() -> pd.DataFrame:
    """Of threads 11 and 12 of process 11: two that touch, one inside another, one that overlaps, one of no length."""
    return pd.DataFrame(
        {
            "time": at(100, 200, 200, 250, 300, 300),
            "comm": pd.Categorical(["main", "main", "main", "main", "worker", "worker"]),
            "pid": np.array([11] * 6, np.uint32),
            "tid": np.array([11, 11, 11, 11, 12, 12], np.uint32),
            "lat": pd.to_timedelta([100, 100, 20, 100, 0, None], unit="ns"),
            "big": np.array([2**64 - 1, 1, 2, 3, 4, 5], np.uint64),
            "low": np.array([-(2**63), 1, 2, 3, 4, 5]),
            "note": pd.Series([HOSTILE, None, "x", "y", "z", "z"], dtype=object),
            "ok": [True, False, True, True, True, True],
        }
    )


# --- Perfetto -----------------------------------------------------------------------------------------------------


def test_slices_of_durations(tmp_path: Path) -> None:
    waits().bpf.to_perfetto(tmp_path / "w", title="waits")
    trace = read_trace(tmp_path / "w")
    assert trace.processes == {11: "main"}
    assert trace.threads == {(11, 11): "main", (11, 12): "worker"}
    found = sorted((s.begin - BEGAN, (s.end or 0) - BEGAN, s.tid, s.name) for s in trace.slices)
    assert found == [
        (0, 100, 11, "waits"),
        (100, 200, 11, "waits"),
        (150, 250, 11, "waits"),
        (180, 200, 11, "waits"),
        (300, 300, 12, "waits"),
    ]
    assert {s.track for s in trace.slices} == {("main", "main"), ("main", "main", "waits"), ("main", "worker")}
    (moment,) = trace.instants  # how long it took is not known
    assert (moment.begin - BEGAN, moment.tid, moment.args["big"]) == (300, 12, 5)
    first = trace.slices[0]
    assert first.args == {
        "comm": "main", "big": 2**64 - 1, "low": -(2**63), "note": HOSTILE.replace("\udc80", "\\udc80"), "ok": True,
    }  # fmt: skip
    assert first.category == "waits"
    assert trace.clock == 1  # REALTIME: of a frame nothing else is known


def test_slices_of_pairs_and_names(tmp_path: Path) -> None:
    calls = pd.DataFrame(
        {
            "time": at(0, 10, 20, 40),
            "kind": pd.Categorical(["entry", "entry", "exit", "exit"]),
            "tid": [1, 2, 1, 2],
            "pid": 1,
            "call": ["read", "write", "", ""],
        }
    )
    pairs = calls.bpf.between("kind == 'entry'", "kind == 'exit'", by=["pid", "tid"], start_columns="call")
    pairs.bpf.to_perfetto(tmp_path / "p")
    trace = read_trace(tmp_path / "p")
    assert [(s.name, s.begin - BEGAN, (s.end or 0) - BEGAN, s.pid, s.tid) for s in trace.slices] == [
        ("read", 0, 20, 1, 1),
        ("write", 10, 40, 1, 2),
    ]
    assert trace.slices[0].args == {"latency": 20, "call": "read"}
    pairs.bpf.to_perfetto(tmp_path / "q", name=["call", "tid"], track="call")
    assert [(s.name, s.track) for s in read_trace(tmp_path / "q").slices] == [
        ("read 1", ("call read",)),
        ("write 2", ("call write",)),
    ]


def test_the_clocks_agree_with_other_traces(tmp_path: Path) -> None:
    clocks = Clocks(realtime=BEGAN + 5, monotonic=1_000_005, boottime=7_000_005)
    write_perfetto(tmp_path / "c", events([waits()], Choice(), "w"), "w", clocks)
    trace = read_trace(tmp_path / "c")
    assert trace.clock == 6  # BOOTTIME
    assert trace.slices[0].begin == 7_000_000
    write_perfetto(tmp_path / "m", events([waits()], Choice(), "w"), "w", clocks._replace(boottime=None))
    trace = read_trace(tmp_path / "m")
    assert (trace.clock, trace.slices[0].begin) == (3, 1_000_000)


def test_lines_and_rows_without_a_process(tmp_path: Path) -> None:
    lines = pd.DataFrame(
        {"time": at(0, 1), "comm": ["a", "b"], "pid": [5, 6], "cpu": 0, "flags": "", "ts": 0.5, "msg": "hi"}
    )
    lines.bpf.to_perfetto(tmp_path / "l")
    assert [(s.name, s.pid, s.track) for s in read_trace(tmp_path / "l").instants] == [
        ("hi", None, ("a (thread 5)",)),
        ("hi", None, ("b (thread 6)",)),
    ]
    opens = pd.DataFrame({"time": at(0, 1), "comm": ["a", "b"], "pid": [5, 6], "path": ["/x", "/y"]})
    opens.bpf.to_perfetto(tmp_path / "o")
    trace = read_trace(tmp_path / "o")
    assert [(s.name, s.pid, s.tid, s.track) for s in trace.instants] == [
        ("/x", 5, None, ("a",)),
        ("/y", 6, None, ("b",)),
    ]


def test_counters_and_rates(tmp_path: Path) -> None:
    frame = waits()
    frame.bpf.to_perfetto(tmp_path / "c", counters=["big", "low"], duration="", rate="100ns", title="w")
    trace = read_trace(tmp_path / "c")
    found = [(names[-1], time - BEGAN, value) for names, time, value in trace.counters if len(names) == 2]
    assert found[:2] == [("big", 100, float(2**64 - 1)), ("low", 100, -(2**63))]
    assert len(trace.instants) == 6
    rate = [value for names, _, value in trace.counters if names == ("w events/s",)]
    assert sum(rate) == pytest.approx(6 / 1e-7)
    assert rate[-1] == 0
    frame.bpf.rate("100ns", by="comm").bpf.to_perfetto(tmp_path / "r")
    counted = {names for names, _, _ in read_trace(tmp_path / "r").counters}
    assert counted == {("main",), ("worker",)}


def test_callstacks(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"time": at(0, 1), "pid": 5, "tid": [5, 6], "comm": "a", "stack": ["main;read;sys_read_[k]", "main;read"]}
    )
    frame.bpf.to_perfetto(tmp_path / "s")
    user = (("main", "user"), ("read", "user"))
    assert [(pid, tid, time - BEGAN, stack) for pid, tid, time, stack in read_trace(tmp_path / "s").samples] == [
        (5, 5, 0, (*user, ("sys_read", "kernel"))),
        (5, 6, 1, user),
    ]


def test_many_batches_and_names(tmp_path: Path) -> None:
    """Slices that overlap across batches, and so many names that the sequence begins anew."""
    frames = []
    for batch in range(4):
        ends = np.arange(100) * 50 + batch * 5000
        times = pd.to_datetime(BEGAN + ends, utc=True)
        names = [f"{batch}.{n}" for n in range(100)]
        frames.append(
            pd.DataFrame(
                {"time": times, "pid": 1, "tid": 1, "lat": pd.to_timedelta(ends % 7000, unit="ns"), "path": names}
            )
        )
    write_perfetto(tmp_path / "b", events(frames, Choice(), "w"), "w", most_names=64)
    whole = pd.concat(frames)
    found = sorted((s.name, (s.end or 0) - s.begin, (s.end or 0) - BEGAN) for s in read_trace(tmp_path / "b").slices)
    expected = zip(whole["path"], whole["lat"].astype("int64"), whole["time"].astype("int64") - BEGAN, strict=True)
    assert found == sorted(expected)


def test_what_is_no_timeline(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(ProgramError, match=r"^a timeline wants times: columns start and end, or time: stacks that are"):
        pd.DataFrame({"stack": ["a;b"], "count": [1]}).bpf.to_perfetto(path)
    with pytest.raises(ProgramError, match=r"^no column 'paht'; did you mean path"):
        pd.DataFrame({"time": at(0), "path": ["a"]}).bpf.to_perfetto(path, name="paht")
    with pytest.raises(ProgramError, match=r"^several columns are durations: choose one, duration='a' or 'b'$"):
        pd.DataFrame({"time": at(0), "a": pd.Timedelta(1), "b": pd.Timedelta(1)}).bpf.to_chrome(path)
    with pytest.raises(ProgramError, match=r"^column 'pid' is int64, no duration"):
        pd.DataFrame({"time": at(0), "pid": [1]}).bpf.to_perfetto(path, duration="pid")
    with pytest.raises(ProgramError, match=r"^column 'path' is .*: a counter is of numbers$"):
        pd.DataFrame({"time": at(0), "path": ["a"]}).bpf.to_perfetto(path, counters="path")
    assert not list(tmp_path.iterdir())


# --- Chrome -------------------------------------------------------------------------------------------------------


def test_chrome(tmp_path: Path) -> None:
    waits().bpf.to_chrome(tmp_path / "w.json", title="waits", rate="100ns")
    read = json.loads((tmp_path / "w.json").read_text(), parse_float=lambda text: int(text.replace(".", "")))
    origin = pd.Timestamp(read["otherData"]["origin"]).value
    found = read["traceEvents"]
    whole = [(e["ts"] + origin - BEGAN, e["dur"], e["tid"]) for e in found if e["ph"] == "X"]
    assert sorted(whole) == [(0, 100, 11), (100, 100, 11), (300, 0, 12)]
    begun = {e["id"]: e["ts"] + origin - BEGAN for e in found if e["ph"] == "b"}
    ended = {e["id"]: e["ts"] + origin - BEGAN for e in found if e["ph"] == "e"}
    assert sorted((begun[n], ended[n]) for n in begun) == [(150, 250), (180, 200)]
    names = {(e["name"], e["tid"]): e["args"]["name"] for e in found if e["ph"] == "M"}
    assert names["thread_name", 12] == "worker"
    first = next(e for e in found if e["ph"] == "X")
    assert first["args"]["big"] == str(2**64 - 1)  # a browser would round it
    assert first["args"]["note"] == HOSTILE.replace("\udc80", "\\udc80")
    assert any(e["ph"] == "C" for e in found)
    pd.DataFrame({"time": at()}).bpf.to_chrome(tmp_path / "none.json")
    assert json.loads((tmp_path / "none.json").read_text())["traceEvents"] == []


# --- pprof --------------------------------------------------------------------------------------------------------

# github.com/google/pprof, proto/profile.proto: message, field, its number, its type, whether it is repeated.
PROFILE: dict[str, list[tuple[str, int, str, bool]]] = {
    "Profile": [
        ("sample_type", 1, "ValueType", True), ("sample", 2, "Sample", True), ("mapping", 3, "Mapping", True),
        ("location", 4, "Location", True), ("function", 5, "Function", True), ("string_table", 6, "string", True),
        ("time_nanos", 9, "int64", False), ("comment", 13, "int64", True),
    ],
    "ValueType": [("type", 1, "int64", False), ("unit", 2, "int64", False)],
    "Sample": [("location_id", 1, "uint64", True), ("value", 2, "int64", True), ("label", 3, "Label", True)],
    "Label": [("key", 1, "int64", False), ("str", 2, "int64", False), ("num", 3, "int64", False)],
    "Mapping": [("id", 1, "uint64", False), ("filename", 5, "int64", False), ("has_functions", 7, "bool", False)],
    "Location": [("id", 1, "uint64", False), ("mapping_id", 2, "uint64", False), ("line", 4, "Line", True)],
    "Line": [("function_id", 1, "uint64", False), ("line", 2, "int64", False)],
    "Function": [("id", 1, "uint64", False), ("name", 2, "int64", False), ("system_name", 3, "int64", False)],
}  # fmt: skip


def read_profile(data: bytes) -> Any:
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="profile.proto", package="p", syntax="proto3")
    for name, members in PROFILE.items():
        message = file.message_type.add(name=name)
        for member, number, kind, repeated in members:
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            made = message.field.add(name=member, number=number, label=label)
            if kind in PROFILE:
                made.type, made.type_name = kinds.TYPE_MESSAGE, f".p.{kind}"
            else:
                made.type = getattr(kinds, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("p.Profile")).FromString(data)


def test_pprof(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "comm": ["a", "b;c"],
            "stack": ["main;read;sys_read_[k]", "main;write"],
            "total": pd.to_timedelta([5, 7], unit="ns"),
        }
    )
    frame.bpf.to_pprof(tmp_path / "x.pb.gz")
    read = read_profile(gzip.decompress((tmp_path / "x.pb.gz").read_bytes()))
    strings = read.string_table
    assert strings[0] == ""
    assert [(strings[t.type], strings[t.unit]) for t in read.sample_type] == [("time", "nanoseconds")]
    functions = {f.id: strings[f.name] for f in read.function}
    mappings = {m.id: strings[m.filename] for m in read.mapping}
    places = {place.id: (functions[place.line[0].function_id], mappings[place.mapping_id]) for place in read.location}
    assert all(places)  # 0 is no number of a location
    found = [
        ({strings[e.key]: strings[e.str] for e in s.label}, [places[i] for i in s.location_id], list(s.value))
        for s in read.sample
    ]
    assert found == [
        ({"comm": "a"}, [("sys_read", "[kernel]"), ("read", "[user]"), ("main", "[user]")], [5]),
        ({"comm": "b:c"}, [("write", "[user]"), ("main", "[user]")], [7]),
    ]
    assert profile(fold(frame.iloc[:0]), "x")


# --- OpenMetrics --------------------------------------------------------------------------------------------------

CELL = """
struct key { u32 pid; char comm[16]; };
BPF_HASH(counts, struct key, u64);
BPF_HISTOGRAM(sizes, int, 64);
BPF_PERF_OUTPUT(events);
int kprobe__sys_sync(void *ctx) { events.perf_submit(ctx, &e, sizeof(e)); return 0; }
"""
KEY = np.dtype([("pid", "<u4"), ("comm", "S16")])


@pytest.fixture
def session() -> Iterator[Session]:
    keys = np.zeros(3, KEY)
    keys["pid"], keys["comm"] = [1, 2, 3], [b'a"\\\nb', b"b", b"c"]
    counts = (keys, np.array([2**64 - 1, 7, 1], "<u8"))
    sizes = (np.array([0, 1, 3], "<i4"), np.array([4, 5, 6], "<u8"))
    with FakeTracer(sizes=SegmentSizes(ROW.itemsize * 100, 4096), maps={"counts": counts, "sizes": sizes}) as tracer:
        session = bpfnb.trace(CELL, name="s1")
        tracer.events(session, "events", rows(0, 1000), "when")
        tracer.lose(session, 3, "events")
        yield session
        bpfnb.stop_all()


@pytest.mark.filterwarnings("ignore:3 events of events were lost:RuntimeWarning")
def test_openmetrics(session: Session) -> None:
    text = session.openmetrics(entries=2)
    assert text.endswith("\n# EOF\n")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    of = {name: {tuple(s.labels.items()): s.value for s in family.samples} for name, family in families.items()}
    output = (("session", "s1"), ("output", "events"))
    assert of["bpfnb_events"] == {output: 1000}
    assert of["bpfnb_events_lost"] == {output: 3}
    assert of["bpfnb_events_dropped"] == {output: 0}
    assert of["bpfnb_running"] == {output[:1]: 1}
    assert families["bpfnb_events"].type == "counter"
    assert list(of["bpfnb_map_counts"].items()) == [
        ((output[0], ("pid", "1"), ("comm", 'a"\\\nb')), 2**64 - 1),
        ((output[0], ("pid", "2"), ("comm", "b")), 7),
    ]
    assert str(2**64 - 1) in text
    assert of["bpfnb_map_hidden_entries"][output[0], ("map", "counts")] == 1
    assert families["bpfnb_map_sizes"].type == "histogram"
    buckets = [(s.name, s.labels["le"], s.value) for s in families["bpfnb_map_sizes"].samples]
    assert buckets[-1] == ("bpfnb_map_sizes_bucket", "+Inf", 15)
    session.stop()
    assert '\nbpfnb_running{session="s1"} 0\n' in session.openmetrics()
    with pytest.raises(ProgramError, match="entries must be at least 1, not 0"):
        session.openmetrics(0)


IN_DOCUMENTS = (
    'clones.to_parquet("clones.parquet")',
    """calls.bpf.between("kind == 'entry'", "kind == 'exit'", by=["pid", "tid"]).bpf.to_perfetto("calls.pftrace")""",
)


@pytest.mark.filterwarnings("ignore:3 events of events were lost:RuntimeWarning")
def test_the_examples(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    calls = pd.DataFrame({"time": at(0, 9), "kind": ["entry", "exit"], "pid": 1, "tid": 2})
    for name in IN_DOCUMENTS:
        exec(EXAMPLES[name].text, {"clones": session, "calls": calls})
    assert {path.name for path in tmp_path.iterdir()} == {"clones.parquet", "clones.pftrace", "calls.pftrace"}
    assert len(read_trace(tmp_path / "calls.pftrace").slices) == 1
    trace = read_trace(tmp_path / "clones.pftrace")
    ahead = trace.snapshot[6] - trace.snapshot[3]  # BOOTTIME, of MONOTONIC, which the tracer's times are of
    assert [moment.begin - ahead for moment in trace.instants] == list(range(1000))
