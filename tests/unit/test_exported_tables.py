"""Parquet, CSV and JSON lines, read back by pandas, polars, DuckDB and pyarrow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_stream import ROW, rows

import bpfnb
from bpfnb.errors import ProgramError
from bpfnb.exports.files import written
from bpfnb.exports.tables import write_csv, write_jsonl, write_parquet
from bpfnb.protocol.segments import SegmentSizes
from bpfnb.session import Session
from bpfnb.testing import FakeTracer

CELL = "BPF_PERF_OUTPUT(events);\nint kprobe__sys_sync(void *ctx) { events.perf_submit(ctx, &e, sizeof(e)); return 0; }"
HOSTILE = [
    'a"b',
    "a,b",
    "a\nb\r\nc\rd",
    "\x1b[2J\x01\x7f",
    "",
    " ",
    "=1+1",
    "@SUM(A1)",
    "-2",
    "NULL",
    "\\N",
    "nan",
    "é\U0001f600",
]


def frame(first: int = 0) -> pd.DataFrame:
    """Every kind of column that an output's frame has, with values at the limits of each."""
    count = len(HOSTILE)
    numbers = np.arange(count)
    return pd.DataFrame(
        {
            "time": pd.to_datetime(1_800_000_000_123_456_789 + numbers, utc=True),
            "big": np.array([2**64 - 1 - n for n in range(count)], np.uint64),
            "low": np.array([-(2**63) + n for n in range(count)], np.int64),
            "small": numbers.astype(np.int8) - 5,
            "flag": numbers % 2 == 0,
            "comm": pd.Categorical([*HOSTILE[:-1], None], categories=[*reversed(HOSTILE), f"never seen {first}"]),
            "text": pd.array(HOSTILE, dtype="str"),
            "data": pd.array([bytes([n, 0, 255]) for n in range(count)], dtype=pd.ArrowDtype(pa.large_binary())),
            "wide": pd.Series([2**127 - 1 - n for n in range(count - 1)] + [-(2**127)], dtype=object),
            "ratio": 0.1 * numbers,
            "lat": pd.array([pd.NaT, *(pd.Timedelta(2**62 + n, "ns") for n in range(1, count))], "timedelta64[ns]"),
        }
    )


def pieces() -> list[pd.DataFrame]:
    """The second has other categories, in another order."""
    return [frame(), frame(1)]


WHOLE = pd.concat([frame(), frame()], ignore_index=True)


def durations(column: pd.Series[Any]) -> list[int | None]:
    return [None if pd.isna(value) else value.value for value in column]


def texts(column: pd.Series[Any]) -> list[str | None]:
    return [None if pd.isna(value) else str(value) for value in column]


@pytest.fixture(autouse=True, scope="module")
def started_engines(parquet: Path) -> None:
    """polars and DuckDB keep threads and descriptors from their first file on: no leaks of a test."""
    pl.read_parquet(parquet)
    duckdb.sql(f"select count(*) from read_parquet('{parquet}')").fetchall()


# --- Parquet ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "all.parquet"
    assert write_parquet(path, iter(pieces()), {"small": "bytes"}, {"bpfnb.lost": "7"}) == len(WHOLE)
    return path


def test_parquet_keeps_types_and_units(parquet: Path) -> None:
    schema = pq.read_schema(parquet)
    assert schema.field("comm").type == pa.dictionary(pa.int32(), pa.string())
    assert schema.field("time").type == pa.timestamp("ns", "UTC")
    assert schema.field("lat").type == pa.duration("ns")
    assert schema.field("small").metadata[b"unit"] == b"bytes"
    assert schema.field("lat").metadata[b"unit"] == b"ns"
    assert schema.field("wide").metadata[b"bpfnb.type"] == b"integer"
    assert schema.metadata[b"bpfnb.lost"] == b"7"


def test_parquet_in_pandas(parquet: Path) -> None:
    back = pd.read_parquet(parquet)
    assert back["wide"].map(int).tolist() == WHOLE["wide"].tolist()
    exact = WHOLE.drop(columns=["wide", "comm", "data"])
    pd.testing.assert_frame_equal(back[list(exact)], exact)
    assert isinstance(back["comm"].dtype, pd.CategoricalDtype)
    assert texts(back["comm"]) == texts(WHOLE["comm"])
    assert back["data"].tolist() == WHOLE["data"].tolist()


def test_parquet_in_polars(parquet: Path) -> None:
    back = pl.read_parquet(parquet)
    assert back["big"].to_list() == WHOLE["big"].tolist()
    assert back["low"].to_list() == WHOLE["low"].tolist()
    assert back["comm"].cast(pl.String).to_list() == texts(WHOLE["comm"])
    assert back["text"].to_list() == texts(WHOLE["text"])
    assert back["data"].to_list() == WHOLE["data"].tolist()
    assert back["time"].dtype == pl.Datetime("ns", "UTC")
    assert back["time"].dt.epoch("ns").to_list() == WHOLE["time"].astype("int64").tolist()
    assert back["lat"].cast(pl.Int64).to_list() == durations(WHOLE["lat"])


def test_parquet_in_duckdb(parquet: Path) -> None:
    columns = "big, low, flag, comm, text, data, wide::hugeint, epoch_ns(time), ratio"
    back = duckdb.sql(f"select {columns} from read_parquet('{parquet}')").fetchall()
    expected = zip(
        *(WHOLE[name].tolist() for name in ("big", "low", "flag")),
        *(texts(WHOLE[name]) for name in ("comm", "text")),
        *(WHOLE[name].tolist() for name in ("data", "wide")),
        WHOLE["time"].astype("int64").tolist(),
        WHOLE["ratio"].tolist(),
        strict=True,
    )
    assert back == list(expected)


# --- CSV, JSON lines ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "all.csv"
    assert write_csv(path, iter(pieces())) == len(WHOLE)
    return path


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "all.jsonl"
    assert write_jsonl(path, iter(pieces())) == len(WHOLE)
    return path


def test_csv_in_pandas(csv: Path) -> None:
    types = {"big": "uint64", "wide": "str", "data": "str", "comm": "str", "text": "str", "lat": "Int64"}
    back = pd.read_csv(csv, dtype=types, keep_default_na=False, na_values={"lat": [""]})
    assert pd.to_datetime(back["time"]).tolist() == WHOLE["time"].tolist()
    for name in ("big", "low", "small", "flag", "ratio"):
        assert back[name].tolist() == WHOLE[name].tolist(), name
    assert back["text"].tolist() == WHOLE["text"].tolist()
    assert back["wide"].map(int).tolist() == WHOLE["wide"].tolist()
    assert [bytes.fromhex(value) for value in back["data"]] == WHOLE["data"].tolist()
    assert [None if pd.isna(value) else int(value) for value in back["lat"]] == durations(WHOLE["lat"])


def test_csv_in_polars_and_duckdb_missing_is_not_empty(csv: Path) -> None:
    types = {"big": pl.UInt64, "comm": pl.String, "text": pl.String, "wide": pl.String}
    back = pl.read_csv(csv, schema_overrides=types)
    assert back["big"].to_list() == WHOLE["big"].tolist()
    assert back["text"].to_list() == texts(WHOLE["text"])
    kinds = "{'comm': 'varchar', 'text': 'varchar', 'big': 'ubigint', 'wide': 'hugeint', 'time': 'timestamp_ns'}"
    options = "quote='\"', escape='\"', allow_quoted_nulls=false"
    sql = f"select comm, text, big, wide, epoch_ns(time) from read_csv('{csv}', types={kinds}, {options})"
    names = ("comm", "text")
    assert duckdb.sql(sql).fetchall() == list(
        zip(
            *(texts(WHOLE[name]) for name in names),
            *(WHOLE[name].tolist() for name in ("big", "wide")),
            WHOLE["time"].astype("int64").tolist(),
            strict=True,
        )
    )


def test_a_spreadsheet_computes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    write_csv(path, [frame()], spreadsheet=True)
    back = pd.read_csv(path, dtype={"text": "str"}, keep_default_na=False)
    assert not back["text"].str.match(r"[=+\-@\t\r]").any()
    assert "'=1+1" in back["text"].tolist()
    assert (back["low"] < 0).all()  # numbers stay numbers


def test_json_lines_in_python(jsonl: Path) -> None:
    back = [json.loads(line) for line in jsonl.read_text("utf-8").split("\n")[:-1]]
    assert [row["big"] for row in back] == WHOLE["big"].tolist()
    assert [int(row["wide"]) for row in back] == WHOLE["wide"].tolist()
    assert [row["text"] for row in back] == WHOLE["text"].tolist()
    assert [row["comm"] for row in back] == texts(WHOLE["comm"])
    assert [row["lat"] for row in back] == durations(WHOLE["lat"])
    assert [pd.Timestamp(row["time"]) for row in back] == WHOLE["time"].tolist()
    assert [bytes.fromhex(row["data"]) for row in back] == WHOLE["data"].tolist()


def test_json_lines_in_polars_and_duckdb(jsonl: Path) -> None:
    assert pl.read_ndjson(jsonl, schema_overrides={"big": pl.UInt64})["big"].to_list() == WHOLE["big"].tolist()
    kinds = "{'comm': 'varchar', 'text': 'varchar', 'big': 'ubigint'}"
    sql = f"select comm, text, big from read_json('{jsonl}', columns={kinds})"
    expected = zip(texts(WHOLE["comm"]), texts(WHOLE["text"]), WHOLE["big"].tolist(), strict=True)
    assert duckdb.sql(sql).fetchall() == list(expected)


def test_what_json_has_no_number_for(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a", [pd.DataFrame({"x": [np.nan, np.inf, -np.inf, 1.5]})])
    assert [json.loads(line)["x"] for line in (tmp_path / "a").read_text().splitlines()] == [None, None, None, 1.5]


def test_invalid_text_and_odd_columns(tmp_path: Path) -> None:
    odd = pd.DataFrame({"x": pd.Series(["\udc80", None], dtype=object), ("a", 1): [1, 2]})
    write_parquet(tmp_path / "a.parquet", [odd], {}, {})
    assert pq.read_table(tmp_path / "a.parquet").to_pydict() == {"x": ["\\udc80", None], "a_1": [1, 2]}
    with pytest.raises(ProgramError, match=r"^column 'x' holds object, which no file has$"):
        write_csv(tmp_path / "b.csv", [pd.DataFrame({"x": [object()]})])
    with pytest.raises(ProgramError, match=r"^several columns are called 'x': a file has each name once$"):
        write_csv(tmp_path / "b.csv", [pd.DataFrame([[1, 2]], columns=["x", "x"])])
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


# --- files --------------------------------------------------------------------------------------------------------


def interrupted(path: Path, error: type[BaseException]) -> None:
    with written(path, overwrite=True) as file:
        file.write(b"half")
        raise error


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error):
            interrupted(path, error)
        assert not list(tmp_path.iterdir())
    with written(path) as file:
        file.write(b"old")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt):
        interrupted(path, KeyboardInterrupt)
    assert path.read_bytes() == b"old"
    with pytest.raises(ProgramError, match=r"f is there already: overwrite=True replaces it$"), written(path):
        raise AssertionError
    late = tmp_path / "late"
    with pytest.raises(ProgramError, match="late is there already"), written(late) as file:
        late.write_bytes(b"of another")
    assert late.read_bytes() == b"of another"
    with written(path, overwrite=True) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f", "late"]


def test_what_is_no_file_stays(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match=r"^/dev/null is there already, and is no file$"):
        write_csv("/dev/null", [frame()], overwrite=True)
    with pytest.raises(ProgramError, match=r"nowhere/f: No such file or directory$"):
        write_csv(tmp_path / "nowhere/f", [frame()])
    link, file = tmp_path / "link", tmp_path / "file"
    file.write_text("old")
    link.symlink_to(file)
    write_csv(link, [pd.DataFrame({"x": [1]})], overwrite=True)
    assert link.is_symlink()
    assert file.read_text() == '"x"\n1\n'


# --- sessions -----------------------------------------------------------------------------------------------------


@pytest.fixture
def session() -> Iterator[Session]:
    with FakeTracer(sizes=SegmentSizes(ROW.itemsize * 100, 4096)) as tracer:
        session = bpfnb.trace(CELL, name="s")
        tracer.events(session, "events", rows(0, 1000), "when")
        yield session
        bpfnb.stop_all()


def test_a_running_sessions_rows(session: Session, tmp_path: Path) -> None:
    session.to_parquet(tmp_path / "a.parquet")
    session.stop()
    back = pd.read_parquet(tmp_path / "a.parquet")
    assert back["seq"].tolist() == list(range(1000))
    assert list(back) == list(session.df)
    assert pq.read_schema(tmp_path / "a.parquet").metadata[b"bpfnb.output"] == b"events"
    session.to_csv(tmp_path / "a.csv", "events")
    assert pd.read_csv(tmp_path / "a.csv")["seq"].tolist() == list(range(1000))
    with pytest.raises(KeyError):
        session.to_jsonl(tmp_path / "a.jsonl", "none")
    with pytest.raises(ProgramError, match="an output or a map, not both"):
        session.to_jsonl(tmp_path / "a.jsonl", "events", map="x")
    assert not (tmp_path / "a.jsonl").exists()


def test_more_rows_than_are_in_memory_at_a_time(tmp_path: Path) -> None:
    with FakeTracer() as tracer:
        session = bpfnb.trace(CELL, name="s")
        tracer.events(session, "events", rows(0, 300_000), "when")
        session.to_parquet(tmp_path / "a.parquet")
        bpfnb.stop_all()
    assert pq.read_metadata(tmp_path / "a.parquet").num_row_groups == 3
    assert pd.read_parquet(tmp_path / "a.parquet")["seq"].tolist() == list(range(300_000))
