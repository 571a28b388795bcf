"""Sessions as Arrow tables, and asked in SQL: right values and types, and a query that reaches nothing else."""

from __future__ import annotations

import builtins
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pytest
from test_ecosystem import BYTES, KINDS, WIDE

import bpfnb
from bpfnb.errors import ProgramError, SetupError, UnknownName
from bpfnb.results.queries.sql import query
from bpfnb.results.queries.tables import frame_of, table_of
from bpfnb.testing import FakeTracer

SOURCE = """
struct data_t { u64 at; u32 pid; char comm[16]; };
BPF_PERF_OUTPUT(events);
BPF_HASH(counts, u32, u64);
int kprobe__sys_clone(void *ctx) {
    struct data_t data = {};
    events.perf_submit(ctx, &data, sizeof(data));
    return 0;
}
"""
EVENT = np.dtype([("at", "<u8"), ("pid", "<u4"), ("comm", "S16"), ("ret", "<i8"), ("load", "<f8")])
COUNTS = (np.array([1, 2], "<u4"), np.array([10, 2**64 - 1], "<u8"))
polars.from_pandas(pd.DataFrame({"x": [1]})).group_by("x").len()  # what it opens once for its threads is no leak


@pytest.fixture(scope="module")
def session() -> Iterator[bpfnb.Session]:
    with FakeTracer(maps={"counts": COUNTS}) as tracer:
        session = bpfnb.trace(SOURCE, name="clones")
        now = time.monotonic_ns()
        rows = [(now + n, n, [b"bash", b"sh"][n % 2], n - 1, np.nan if n == 3 else n / 2) for n in range(6)]
        tracer.events(session, "events", np.array(rows, EVENT), time="at")
        yield session


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in WIDE])
def test_a_table_has_the_frames_values(kind: str) -> None:
    column = table_of(KINDS[kind].to_frame("x"), nan_is_missing=False)["x"]
    expected: list[Any] = [None if value is pd.NA else value for value in KINDS[kind].tolist()]
    assert [pd.Timestamp(v) if isinstance(v, pd.Timestamp) else v for v in column.to_pylist()] == expected
    back = column.to_pandas()
    if kind not in BYTES:  # whose dtype is ArrowDtype in our frames
        assert back.dtype.kind == KINDS[kind].dtype.kind or back.dtype == KINDS[kind].dtype


@pytest.mark.parametrize("kind", WIDE)
def test_wide_integers_are_sixteen_bytes(kind: str) -> None:
    column = table_of(KINDS[kind].to_frame("x"))["x"]
    assert column.type == pa.binary(16)
    signed = kind == "far"
    assert [int.from_bytes(v, "little", signed=signed) for v in column.to_pylist()] == KINDS[kind].tolist()


def test_an_output_and_its_table_share_memory(session: bpfnb.Session) -> None:
    frame, table = session.df, session.arrow("events")
    for name in ("pid", "ret", "load"):
        assert table[name].chunk(0).buffers()[1].address == frame[name].to_numpy().ctypes.data
    assert table["load"].null_count == 0  # nan is a number there
    assert table["time"].chunk(0).buffers()[1].address == frame.time.array._ndarray.ctypes.data  # type: ignore[attr-defined]


def test_other_libraries_take_a_session_as_it_is(session: bpfnb.Session) -> None:
    taken = polars.DataFrame(session)
    assert taken.select("pid", "comm", "ret").rows() == [(n, ["bash", "sh"][n % 2], n - 1) for n in range(6)]
    assert taken["time"].dtype == polars.Datetime("ns", "UTC")
    assert taken["time"].cast(polars.Int64).to_list() == session.df.time.astype("int64").tolist()
    assert polars.DataFrame(session.outputs["events"]).equals(taken, null_equal=True)
    assert pa.table(session).drop(["load"]).equals(session.arrow().drop(["load"]))
    with duckdb.connect() as connection:
        connection.register("taken", session)
        assert connection.execute("select sum(ret), count(*) from taken").fetchall() == [(9, 6)]


def test_sql_answers_from_outputs_maps_and_df(session: bpfnb.Session) -> None:
    groups = session.sql("select comm, count(*) as n, max(ret) as most from events group by 1 order by 1")
    assert groups.to_dict("list") == {"comm": ["bash", "sh"], "n": [3, 3], "most": [3, 4]}
    assert session.sql("select key, value from COUNTS order by key")["value"].tolist() == [10, 2**64 - 1]
    joined = session.sql("select df.pid, value from df join counts on df.pid = counts.key order by 1")
    assert joined.pid.tolist() == [1, 2]
    quantiles = session.sql("select quantile_cont(ret, [0.5, 1]) as q from Events")  # DuckDB needs the table to read it
    assert list(quantiles.q[0]) == [1.5, 4]
    assert session.sql("select sum(pid) as n from events").n.dtype == np.int64
    assert session.sql("with e as (select ret from events where ret > 3) select * from e").ret.tolist() == [4]


def test_times_are_exact(session: bpfnb.Session) -> None:
    frame = session.sql("select time, epoch_ns(time) as ns, typeof(time) as kind, comm from events order by time")
    assert frame.kind[0].startswith("TIMESTAMP")
    if frame.kind[0] == "TIMESTAMPTZ_NS":
        assert frame.time.tolist() == session.df.time.tolist()
        assert frame.ns.tolist() == session.df.time.astype("int64").tolist()
    assert frame.time.dtype == pd.DatetimeTZDtype("ns", "UTC")
    assert session.sql("select typeof(comm) as kind from events").kind[0] == "VARCHAR"
    ends = session.sql("select max(time)::timestamptz - min(time)::timestamptz as whole from events")
    assert ends.whole.dtype == "m8[ns]"


def test_durations_keep_their_nanoseconds() -> None:
    table = table_of(pd.DataFrame({"took": pd.to_timedelta([1, 2_000_000_001, None], unit="ns")}))
    assert frame_of(query("select sum(took) as total from t", {"t": table}.get, list)).total[0] == 2_000_000_002


def test_results_are_not_rounded() -> None:
    big = 2**62 + 1
    one = frame_of(query(f"select {big}::bigint as x union all select null", {}.get, list))
    assert one.x.dtype == pd.Int64Dtype()
    assert sorted(one.x.dropna().tolist()) == [big]
    table = table_of(pd.DataFrame({"x": np.array([2**64 - 1] * 3, np.uint64)}))
    assert frame_of(query("select sum(x) as x from t", {"t": table}.get, list)).x.tolist() == [3 * (2**64 - 1)]
    assert frame_of(query("select 1 as a, 2 as a", {}.get, list)).columns.tolist() == ["a", "a_1"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("select * from evnts", "no table evnts; did you mean events?"),
        ("select * from xyz", "no table xyz; there are events, counts, df"),
        ("select comn from events", "no column comn; did you mean comm?"),
        ("select e.comn from events e", "no column comn; did you mean comm?"),
        ("selec 1", "syntax error"),
        ("", "one statement"),
        ("select 1; select 2", "one statement"),
        ("select 'x'::int", "Could not convert"),
        ("create table t as select 1", "no create"),
        ("delete from events", "no delete"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(session: bpfnb.Session, text: str, says: str) -> None:
    with pytest.raises(ProgramError, match=says) as error:
        session.sql(text)
    assert "\n" not in str(error.value)


def test_what_is_not_there_is_said(session: bpfnb.Session) -> None:
    with pytest.raises(UnknownName, match="evnts"):
        session.arrow("evnts")
    with pytest.raises(ProgramError) as error:
        session.sql("select time - time from events")
    assert "epoch_ns" in str(error.value.hint)


def test_a_query_reaches_no_files(session: bpfnb.Session, tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    database = tmp_path / "database"
    for text in (
        f"select * from '{secret}'",
        f"select * from read_csv('{secret}')",
        f"select * from read_text('{secret}')",
        f"select * from glob('{tmp_path}/*')",
        f"copy (select 1) to '{tmp_path}/out.csv'",
        f"attach '{database}' as d",
        "set enable_external_access = true",
        "set lock_configuration = false",
        "install httpfs",
        "load httpfs",
    ):
        with pytest.raises(ProgramError):
            session.sql(text)
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]


def test_a_query_that_needs_too_much_memory_ends() -> None:
    with pytest.raises(ProgramError, match=r"more memory than the 0\.0625 GiB"):
        query("select range from range(100000000) order by range % 1000007", {}.get, list, memory=64 << 20)


def test_ctrl_c_ends_a_query(session: bpfnb.Session) -> None:
    endless = "select count(*) from range(100000000) a, range(100000000) b where a.range * b.range % 7 = 3"
    before = set(Path("/proc/self/task").iterdir())
    timer = threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        session.sql(endless)
    timer.join()
    deadline = time.monotonic() + 20
    while len(set(Path("/proc/self/task").iterdir()) - before) > 1 and time.monotonic() < deadline:  # one is kept
        time.sleep(0.02)
    assert len(set(Path("/proc/self/task").iterdir()) - before) <= 1
    assert session.sql("select 1 as one").one.tolist() == [1]


def test_without_duckdb_it_says_what_to_install(session: bpfnb.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def missing(name: str, *args: Any, **options: Any) -> Any:
        if name == "duckdb":
            raise ImportError(name)
        return original(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(SetupError, match=r"pip install 'bpfnb\[sql\]'"):
        session.sql("select 1")
