"""Recordings that are larger than memory: opened unread, ``df`` bounded, and every row asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars
import pytest
from test_recording_files import NAMES, assert_same, every_kind, manifest_of, rows_of

import bpfnb
from bpfnb.errors import ProgramError
from bpfnb.language.program import parse
from bpfnb.recordings.format import OutputInfo
from bpfnb.recordings.output import RecordedOutput
from bpfnb.recordings.reader import open_recording
from bpfnb.recordings.writer import Writer
from bpfnb.results.output import Keep
from bpfnb.results.queries import sql
from bpfnb.results.table import Table
from bpfnb.views import events  # registers df.bpf

SCHEMA = every_kind(True)
PROGRAM = parse("BPF_PERF_OUTPUT(events); int kprobe__f(void *ctx) { events.perf_submit(ctx, &ctx, 8); return 0; }")
ROWS, EPOCH = 600, 1_700_000_000_000_000_001
FILE = "outputs/0/{:06}"
polars.from_pandas(pd.DataFrame({"x": [1]})).group_by("x").len()  # what it opens once for its threads is no leak
assert events


@pytest.fixture(scope="module")
def whole() -> Table:
    table = Table(SCHEMA, EPOCH)
    table.append(*rows_of(SCHEMA, ROWS, NAMES), 0)
    return table


@pytest.fixture(scope="module")
def path(whole: Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five Parquet parts and a stream, of a hundred rows each."""
    path = tmp_path_factory.mktemp("larger") / "trace"
    info = OutputInfo("events", "perf", SCHEMA, EPOCH)
    size = 150_000  # less than a hundred rows take
    writer = Writer(path, manifest_of(info, program=PROGRAM), part=size)
    for begin in range(0, ROWS - 100, 100):
        writer.rows(0, whole.part(begin, begin + 100))
        writer.flush()
    writer.rows(0, whole.part(ROWS - 100, ROWS - 60))  # the newest part is not full
    writer.flush()
    writer.rows(0, whole.part(ROWS - 60, ROWS))
    ended = OutputInfo("events", "perf", SCHEMA, EPOCH, rows=ROWS + 7, written=ROWS, lost=0)
    writer.close(manifest_of(ended, program=PROGRAM, state="stopped"))
    return path


def opened(path: Path, keep: int = 1 << 30) -> RecordedOutput:
    recording = open_recording(path)
    return RecordedOutput(recording.outputs[0], *recording.progress(0), Keep(keep), small=0)


def by_duckdb(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sql.available()


def by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "available", lambda: False)


@pytest.fixture(params=[by_duckdb, by_blocks], ids=["DuckDB", "blocks"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    request.param(monkeypatch)


def test_it_has_parts_of_both_kinds(path: Path) -> None:
    kinds = [part.kind for part in opened(path).recorded.parts()]
    assert set(kinds) == {"parquet", "arrows"}
    assert kinds.count("parquet") >= 3


def test_it_is_opened_and_counted_unread(path: Path, tmp_path: Path) -> None:
    """Values that nobody can read do not matter to who opens it; who asks for them is told."""
    import shutil

    shutil.copytree(path, tmp_path / "broken")
    first = tmp_path / "broken" / (FILE.format(0) + ".parquet")
    data = bytearray(first.read_bytes())
    data[200:4000] = b"\xaa" * 3800
    first.write_bytes(data)
    output = opened(tmp_path / "broken")
    assert (output.rows, output.dropped, output.unrecorded) == (ROWS + 7, 7, 7)
    assert len(output.newest(50)) == 50 if output.table_of_rows.kept < ROWS else True
    with pytest.raises(ProgramError, match=r"000000\.parquet is damaged"):
        list(output.recorded.batches())


@pytest.mark.filterwarnings("ignore:7 rows of events are not in the recording")
def test_df_is_the_newest_that_keep_has_room_for(path: Path, whole: Table) -> None:
    assert_same_rows(opened(path).df, whole.frame())
    output = opened(path, keep=300_000)
    kept = output.table_of_rows.kept
    assert 20 < kept < 300
    assert (output.rows, output.dropped) == (ROWS + 7, ROWS + 7 - kept)
    with pytest.warns(RuntimeWarning, match=f"oldest {ROWS - kept} rows of events are not in df.*sql, between"):
        frame = output.df
    assert_same_rows(frame, whole.part(ROWS - kept, ROWS))
    assert frame.attrs == {"lost": 0, "dropped": ROWS + 7 - kept}
    assert frame.memory_usage(deep=True).sum() < 3 * 300_000
    assert_same_rows(output.newest(5), whole.part(ROWS - 5, ROWS))


def assert_same_rows(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """The same, but for names of categories that no row has."""
    used = {name: other[name].cat.remove_unused_categories() for name in other if is_category(other[name])}
    for name, column in used.items():
        assert one[name].astype(object).tolist() == column.astype(object).tolist()
    plain = [name for name in other if name not in used]
    assert_same(one[plain], other[plain])


def is_category(column: pd.Series[Any]) -> bool:
    return isinstance(column.dtype, pd.CategoricalDtype)


ASKED: dict[str, Callable[[Any], pd.DataFrame]] = {
    "rate": lambda asked: asked.rate("1min"),
    "rate by": lambda asked: asked.rate("5min", by=["kind", "flag"]),
    "rate top": lambda asked: asked.rate("5min", by="comm", top=2),
    "hist": lambda asked: asked.hist("n<u8", by="kind"),
    "hist float": lambda asked: asked.hist("n<i2", kind="linear", bins=[-5, 0.5, 9]),
    "top": lambda asked: asked.top("comm", 3),
    "top wide": lambda asked: asked.top("wide", 3),
    "top bytes": lambda asked: asked.top("mac", 3),
    "top value": lambda asked: asked.top(["named", "flag"], 5, value="signed", agg="max"),
    "top quantile": lambda asked: asked.top("kind", value="n<i4", agg="p75"),
    "top text": lambda asked: asked.top("rest", 20),
}


@pytest.mark.parametrize("name", ASKED)
def test_every_row_is_asked(name: str, engine: None, path: Path, whole: Table) -> None:
    found = ASKED[name](opened(path, keep=100_000))
    expected = ASKED[name](whole.frame().assign(comm=in_order(whole.frame().comm)).bpf)
    pd.testing.assert_frame_equal(found, expected, check_categorical=False, rtol=1e-12)
    assert found.attrs == expected.attrs


def in_order(column: pd.Series[Any]) -> pd.Series[Any]:
    return column.cat.reorder_categories(sorted(column.cat.categories))


def test_a_part_of_the_time_is_asked(engine: None, path: Path, whole: Table) -> None:
    frame, output = whole.frame(), opened(path, keep=400_000)
    begin, end = frame.time[123], frame.time[177]
    chosen = frame[(frame.time >= begin) & (frame.time < end)]
    assert_same_rows(output.between(begin, end), chosen.reset_index(drop=True))
    asked = output.asked((str(begin), end.tz_convert("Asia/Tokyo")))
    pd.testing.assert_frame_equal(asked.top("kind"), chosen.bpf.top("kind"), check_categorical=False)
    assert asked.hist("n<u1")["count"].sum() == len(output.between(begin.value, end.value)) == len(chosen)
    assert len(output.between(end, begin)) == 0
    with pytest.warns(RuntimeWarning, match="rows of this time are left out"):
        rest = output.between(frame.time[50])
    assert rest.attrs["dropped"] == ROWS - 50 - len(rest)
    assert_same_rows(rest, whole.part(ROWS - len(rest), ROWS))
    with pytest.raises(ProgramError, match="no time with its day: '10:00:00'"):
        output.between("10:00:00")


def test_row_groups_of_other_times_are_not_read(path: Path, whole: Table, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(path, tmp_path / "broken")
    for number in (0, 2):
        file = tmp_path / "broken" / (FILE.format(number) + ".parquet")
        data = bytearray(file.read_bytes())
        data[200:4000] = b"\xaa" * 3800
        file.write_bytes(data)
    output, frame = opened(tmp_path / "broken"), whole.frame()
    ends = np.cumsum([output.recorded._count(part) for part in output.recorded.parts()])
    between = output.between(frame.time[ends[0]], frame.time[ends[1]])
    assert_same_rows(between, whole.part(int(ends[0]), int(ends[1])))
    with pytest.raises(ProgramError, match="damaged"):
        output.between(frame.time[ends[0] - 1], frame.time[ends[1]])


@pytest.fixture
def session(path: Path) -> bpfnb.Session:
    return bpfnb.open(path, keep=100_000)


@pytest.mark.filterwarnings("ignore:.* not in the recording:RuntimeWarning")
def test_sql_reads_every_row(session: bpfnb.Session, whole: Table, path: Path) -> None:
    frame = whole.frame()
    counts = session.sql("select kind, count(*) as n, min(time) as first from events group by 1 order by 2, 3")
    expected = (
        frame.groupby("kind", observed=True).agg(n=("at", "size"), first=("time", "min")).sort_values(["n", "first"])
    )
    assert counts.n.tolist() == expected.n.tolist()
    assert counts["first"].tolist() == expected["first"].tolist()
    assert (
        session.sql("select count(*) as n, sum(hash(df)) = (select sum(hash(e)) from events e) as same from df").n[0]
        == ROWS
    )
    with pytest.raises(ProgramError, match="disabled by configuration"):
        session.sql(f"select * from read_text('{path}/manifest.json')")
    with pytest.raises(ProgramError):
        session.sql(f"copy (select 1) to '{path}/outputs/0/000000.parquet'")


def test_the_arrow_stream_has_every_row(session: bpfnb.Session, whole: Table) -> None:
    frame = whole.frame()
    taken = polars.DataFrame(session.outputs["events"])
    assert taken["at"].to_list() == frame["at"].tolist()
    assert taken["rest"].to_list() == frame["rest"].tolist()
    with duckdb.connect() as connection:
        connection.register("taken", session)
        assert connection.execute("select count(*) from taken").fetchone() == (ROWS,)
        assert connection.execute("select count(*) from taken").fetchone() == (ROWS,)


def test_the_session_asks_every_row(session: bpfnb.Session, whole: Table) -> None:
    frame = whole.frame()
    assert session.outputs["events"].dropped > 7
    assert session.top("kind")["count"].sum() == ROWS
    assert session.hist("n<u1")["count"].sum() == ROWS
    assert session.rate("1min").sum().item() * 60 == pytest.approx(ROWS)
    middle = (frame.time[100], frame.time[105])
    assert session.top("kind", between=middle)["count"].sum() == len(session.between(*middle)) == 5
    assert session.missing == {"events": 7}  # type: ignore[attr-defined]


def test_a_zip_is_asked_as_a_folder_is(path: Path, whole: Table, tmp_path: Path, engine: None) -> None:
    import shutil

    zipped = Path(shutil.make_archive(str(tmp_path / "trace"), "zip", path))
    output = opened(zipped, keep=100_000)
    assert output.top("kind")["count"].sum() == ROWS
    assert len(output.between(whole.frame().time[10], whole.frame().time[20])) == 10
