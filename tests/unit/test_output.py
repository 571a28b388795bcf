"""Outputs: segments taken, decoded once and let go, rows and losses counted."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpfnb.protocol.schema import PRINTK, PRINTK_ROW, Enum, Number, Rows, Schema, Tail, Text
from bpfnb.protocol.segments import SegmentSizes, SegmentWriter
from bpfnb.results import table
from bpfnb.results.output import Keep, Output, Position
from bpfnb.results.printk import PrintkTable
from bpfnb.results.table import Table

EVENT = np.dtype([("ts", "<u8"), ("end", "<i8"), ("pid", "<u4"), ("state", "<u4"), ("comm", "S8")])
COLUMNS = (
    Number("ts", 0, "<u8"),
    Number("pid", 16, "<u4"),
    Enum("state", 20, "<u4", labels=(("IDLE", 0), ("BUSY", 1))),
    Text("comm", 24, 8),
)
SCHEMA = Schema(COLUMNS, EVENT.itemsize, time="ts")
TAILED = Schema((*COLUMNS, Tail("args", 32, text=True)), EVENT.itemsize, time="ts", text_end=8)
KEEP = 1 << 30


DROPPING = pytest.mark.filterwarnings("ignore:the oldest .* were dropped:RuntimeWarning")


def events(count: int, first: int = 0) -> Rows:
    numbers = np.arange(first, first + count)
    rows = np.zeros(count, EVENT)
    rows["ts"], rows["pid"], rows["state"], rows["comm"] = numbers, numbers, numbers % 3, b"task"
    rows["end"] = np.cumsum(numbers % 5)
    return rows.view(np.uint8).reshape(count, EVENT.itemsize)


def tails(count: int, first: int = 0) -> np.ndarray:
    return np.frombuffer(b"".join(b"abcde"[: n % 5] for n in range(first, first + count)), np.uint8)


def mapped() -> int:
    """Segments in this process's memory."""
    return Path("/proc/self/maps").read_text().count("bpfnb-segment")


SMALL = SegmentSizes(EVENT.itemsize * 100, mmap.PAGESIZE)


@contextmanager
def filled(
    schema: Schema, keep: int = KEEP, kind: str = "perf", sizes: SegmentSizes = SMALL, batch: int = 40
) -> Iterator[tuple[Output, SegmentWriter]]:
    """An output, and who fills it: in small segments, which are decoded in several goes."""
    output = Output(kind, schema, 0, Keep(keep), kind, batch=batch)
    writer = SegmentWriter(schema, output.add_segment, sizes=sizes)
    yield output, writer
    writer.close()
    output.finish()


@pytest.fixture(params=[SCHEMA, TAILED], ids=["fixed", "tailed"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Output, SegmentWriter]]:
    with filled(request.param) as pair:
        yield pair


def assert_events(output: Output, first: int, end: int) -> None:
    df = output.df
    assert df["pid"].tolist() == list(range(first, end))
    assert df["state"].tolist() == [("IDLE", "BUSY", "2")[n % 3] for n in range(first, end)]
    if "args" in df:
        assert df["args"].tolist() == ["abcde"[: n % 5] for n in range(first, end)]


def test_an_output_without_rows(pair: tuple[Output, SegmentWriter]) -> None:
    output, _ = pair
    assert output.df.empty
    assert tuple(output.df) == output.names
    assert output.names[:5] == ("time", "ts", "pid", "state", "comm")
    assert output.df.attrs == {"lost": 0, "dropped": 0}
    assert (output.rows, output.lost, output.dropped, output.kind) == (0, 0, 0, "perf")
    assert output.since(Position(), "comm").position == Position()


@pytest.mark.parametrize("asked_often", [False, True])
def test_rows_come_in_segments(pair: tuple[Output, SegmentWriter], asked_often: bool) -> None:
    """Also such that begin or end in the middle of one."""
    output, writer = pair
    first = 0
    for count in (0, 1, 98, 1, 100, 250, 7, 300):
        writer.append(events(count, first), tails(count, first))
        first += count
        assert output.rows == first
        if asked_often:
            assert_events(output, 0, first)
    assert_events(output, 0, first)
    assert output.rows == first


def test_segments_are_let_go_once_decoded(pair: tuple[Output, SegmentWriter]) -> None:
    output, writer = pair
    before = mapped()
    writer.append(events(1000), tails(1000))
    assert mapped() > before + 5
    df = output.df
    assert mapped() == before  # the newest, which more may come to
    output.finish()
    assert mapped() == before - 1  # the writer's own
    assert len(df) == len(output.df) == output.rows == 1000


def test_what_was_read_of_a_segment_is_not_kept_in_memory() -> None:
    """GIVEN a segment that more rows may come to, most of it read THEN its pages are the tracer's alone."""
    with filled(SCHEMA, sizes=SegmentSizes(), batch=table.BATCH) as (output, writer):
        writer.append(events(200_000))
        assert len(output.df) == 200_000
        smaps = Path("/proc/self/smaps").read_text()
        ours = re.search(r"^[0-9a-f-]+ r--s .*bpfnb-segment.*\n(?:[A-Z].*\n)*?Rss: +(\d+) kB", smaps, re.M)
        assert ours
        assert int(ours[1]) < 1024
        writer.append(events(1, 200_000))
        assert_events(output, 0, 200_001)


def test_ending_takes_no_longer_than_it_may_and_loses_nothing(pair: tuple[Output, SegmentWriter]) -> None:
    output, writer = pair
    writer.append(events(250), tails(250))
    writer.set_lost(3)
    writer.close()
    output.finish(deadline=0)  # long past
    assert mapped() > 0
    assert (output.rows, output.lost) == (250, 3)
    assert output.df.ts.tolist() == list(range(250))
    output.finish()
    assert mapped() == 0
    assert (output.rows, output.lost, len(output.df)) == (250, 3, 250)


def test_lost_is_what_was_last_said(pair: tuple[Output, SegmentWriter]) -> None:
    output, writer = pair
    writer.set_lost(3)
    assert output.lost == output.df.attrs["lost"] == 3
    writer.append(events(150), tails(150))
    writer.set_lost(5)
    assert output.df.attrs["lost"] == 5
    output.finish()
    assert output.lost == 5
    assert repr(output) == "<Output perf: 150 rows, 5 lost>"


def test_raw(pair: tuple[Output, SegmentWriter]) -> None:
    output, writer = pair
    writer.append(events(4), tails(4))
    assert output.raw("comm").tolist() == [b"task\0\0\0\0"] * 4
    assert output.raw("state").tolist() == [0, 1, 2, 0]
    with pytest.raises(ValueError, match="'pid' is no category"):
        output.raw("pid")
    with pytest.raises(KeyError, match="no column 'nothing'"):
        output.raw("nothing")


def test_dropped_rows_are_said_once() -> None:
    with filled(SCHEMA, 30_000) as (output, writer):
        writer.append(events(100))
        assert len(output.df) == 100
        writer.append(events(2_000))
        with pytest.warns(
            RuntimeWarning, match=r"the oldest [0-9,]+ rows of perf were dropped: keep is 30,000 bytes"
        ) as said:
            df = output.df
        assert f"{df.attrs['dropped']:,} rows" in str(said[0].message)
        writer.append(events(2_000))
        assert output.df.attrs["dropped"] > df.attrs["dropped"]


@DROPPING
@pytest.mark.parametrize("ask", ["never", "df", "since"])
def test_keep(ask: str) -> None:
    """GIVEN far more rows than may be kept, asked for now and then or not THEN the oldest are dropped, and counted."""
    seen, position = 0, Position()
    with filled(SCHEMA, 30_000) as (output, writer):
        for first in range(0, 50_000, 125):
            writer.append(events(125, first))
            if ask == "df":
                assert len(output.df) == first + 125 - output.dropped
                assert_events(output, output.dropped, first + 125)
            elif ask == "since":
                position, times, groups, _ = output.since(position, "state")
                assert position.row == first + 125
                assert times.tolist() == list(range(first, first + 125))
                assert list(groups or []) == [("IDLE", "BUSY", "2")[n % 3] for n in times]
                seen += len(times)
        df = output.df
        assert output.rows == output.dropped + len(df) == 50_000
        assert df.attrs["dropped"] == output.dropped
        assert output._table.nbytes <= 30_000
        assert len(df) > 200
        assert_events(output, output.dropped, 50_000)
        assert seen in (0, 50_000)


@DROPPING
def test_since_what_was_dropped_undecoded() -> None:
    """Row numbers go on from those nobody ever decoded."""
    with filled(SCHEMA, 30_000) as (output, writer):
        writer.append(events(10_000))
        assert output.dropped > 0
        position, times, *_ = output.since(Position(), None)
        assert position.row + position.undecoded == 10_000
        assert position.dropped == output.dropped
        assert times.tolist() == list(range(output.dropped, 10_000))
        assert output.since(position._replace(row=position.row - 10), None).times.tolist() == list(range(9_990, 10_000))


@DROPPING
def test_a_reader_that_was_away_while_rows_were_dropped_undecoded_gets_none_twice() -> None:
    with filled(SCHEMA, 30_000) as (output, writer):
        writer.append(events(100))
        position, times, *_ = output.since(Position(), None)
        seen = times.tolist()
        writer.append(events(10_000, 100))
        position, times, *_ = output.since(position, None)
        seen += times.tolist()
        assert seen == [*range(100), *range(10_200 - len(seen), 10_100)]
        assert position.dropped == output.dropped == 10_100 - len(seen) > 0


@pytest.mark.parametrize("after", [False, True])
def test_an_interrupted_df_loses_and_repeats_nothing(
    pair: tuple[Output, SegmentWriter], after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GIVEN Ctrl-C while segments are decoded THEN the next df has every row once."""
    output, writer = pair
    real = table.Batch
    left = iter([5, 3, 1, 0])
    due = next(left)

    def interrupted(*arguments: Any) -> Any:
        nonlocal due
        due -= 1
        if due == 0:
            due = next(left, 0)
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(table, "Batch", interrupted)
    writer.append(events(550), tails(550))
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            len(output.df)
        assert output.rows == 550
    assert_events(output, 0, 550)
    if after:
        writer.append(events(1, 550), tails(1, 550))
        assert_events(output, 0, 551)


def test_an_unchanged_df_costs_microseconds(
    pair: tuple[Output, SegmentWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No column is asked for anything."""
    output, writer = pair
    writer.append(events(500), tails(500))
    first = output.df
    monkeypatch.setattr(Table, "_build", None)
    monkeypatch.setattr(Table, "reserve", None)
    monkeypatch.setattr(Table, "shrink", None)
    second = output.df
    assert second is not first
    assert second.equals(first)


def test_printk_has_its_own_table() -> None:
    assert Output("printk", PRINTK, 5, Keep(KEEP)).kind == "printk"
    rows = np.zeros(2, PRINTK_ROW)
    rows["mono_ns"], rows["text_end"], rows["comm"] = [1, 2], [2, 5], [b"a", b"b"]
    with filled(PRINTK, kind="printk", sizes=SegmentSizes(), batch=table.BATCH) as (output, writer):
        assert output.names == PrintkTable.COLUMNS
        writer.append(rows.view(np.uint8).reshape(2, -1), np.frombuffer(b"hithe", np.uint8))
        assert output.df["msg"].tolist() == ["hi", "the"]
        assert list(output.since(Position(), "msg").groups or []) == ["hi", "the"]
        assert output.raw("comm").tolist() == [b"a".ljust(16, b"\0"), b"b".ljust(16, b"\0")]


def test_rows_after_a_suspend_have_the_new_offset_those_before_keep_theirs() -> None:
    epoch = 1000
    output = Output("events", SCHEMA, epoch, Keep(KEEP))
    writer = SegmentWriter(SCHEMA, lambda layout, fd: output.add_segment(layout, fd, epoch), lambda: epoch)
    writer.append(events(2))
    before = output.df
    writer.append(events(1, 2))
    epoch = 5000
    writer.append(events(2, 3))
    assert output.df["time"].astype("int64").tolist() == [1000, 1001, 1002, 5003, 5004]
    assert before["time"].astype("int64").tolist() == [1000, 1001]
    assert (output.clock, Output("p", PRINTK, 0, Keep(KEEP)).clock) == ("ts", "submitted")
    assert Output("n", Schema(COLUMNS, EVENT.itemsize), 0, Keep(KEEP)).clock is None
    writer.close()
    output.finish()


@DROPPING
def test_keep_is_of_all_outputs_together() -> None:
    rows = 20_000
    probe = Output("probe", SCHEMA, 0, Keep(KEEP), "perf")
    writer = SegmentWriter(SCHEMA, probe.add_segment)
    writer.append(events(rows))
    assert len(probe.df) == rows
    keep = Keep(int(probe.nbytes * 1.5))
    first, second = (Output(name, SCHEMA, 0, keep, "perf") for name in ("first", "second"))
    writers = [SegmentWriter(SCHEMA, output.add_segment) for output in (first, second)]
    writers[0].append(events(rows))
    assert (len(first.df), first.dropped) == (rows, 0)  # alone, it may have all
    writers[1].append(events(rows))
    assert len(second.df) + second.dropped == rows
    assert first.dropped + second.dropped > 0
    assert first.nbytes + second.nbytes <= keep.bytes
    assert len(first.df) + first.dropped == rows
    for output in (first, second):
        assert output.df["pid"].tolist() == list(range(output.dropped, rows))  # the oldest went
        assert len(output.df) > rows // 4
    for end in (writer, *writers):
        end.close()
    for output in (probe, first, second):
        output.finish()


def test_what_nobody_decodes_is_bounded_for_all_outputs_together() -> None:
    size = Output("one", SCHEMA, 0, Keep(KEEP), "perf")
    writer = SegmentWriter(SCHEMA, size.add_segment, sizes=SMALL)
    keep = Keep(8 * size.undecoded)
    outputs = [Output(name, SCHEMA, 0, keep, "perf") for name in ("first", "second", "third")]
    writers = [SegmentWriter(SCHEMA, output.add_segment, sizes=SMALL) for output in outputs]
    for n in range(10):
        for end in writers:
            end.append(events(100, 100 * n))
    assert sum(output.undecoded for output in outputs) <= keep.bytes
    assert [output.rows for output in outputs] == [1000] * 3
    assert sum(output.dropped for output in outputs) > 0
    for end in (writer, *writers):
        end.close()
    for output in (size, *outputs):
        output.finish()
