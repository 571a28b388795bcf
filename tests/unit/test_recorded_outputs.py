"""RecordedOutput: what Output says of the same rows, and what it says of those that are not there."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from bpfnb.language.program import parse
from bpfnb.protocol.schema import Number, Schema, Text
from bpfnb.recordings.format import VERSION, Manifest, OutputInfo
from bpfnb.recordings.output import RecordedOutput
from bpfnb.recordings.reader import open_recording
from bpfnb.recordings.writer import Writer
from bpfnb.results.output import Keep, Output, Position
from bpfnb.results.table import Table

SCHEMA = Schema((Number("ts", 0, "<u8"), Number("pid", 8, "<u4"), Text("comm", 12, 4)), 16, time="ts")
UNTIMED = Schema((Number("pid", 8, "<u4"), Text("comm", 12, 4)), 16)
DTYPE = np.dtype([("ts", "<u8"), ("pid", "<u4"), ("comm", "S4")])
EPOCH = 1_700_000_000_000_000_000


def decoded(schema: Schema, rows: int) -> Table:
    table = Table(schema, EPOCH)
    array = np.zeros(rows, DTYPE)
    array["ts"] = np.arange(rows) * 1_000_000
    array["pid"], array["comm"] = np.arange(rows) % 7, [b"abc"[n % 3 : n % 3 + 1] for n in range(rows)]
    table.append(array.view(np.uint8).reshape(rows, 16), np.empty(0, np.uint8), 0)
    return table


def manifest(schema: Schema, **info: int) -> Manifest:
    program = parse("int f(void *ctx) { return 0; }", {"syscall:clone": "f"})
    outputs = (OutputInfo("events", "perf", schema, EPOCH, **info),)
    return Manifest(VERSION, "0", "0", "6.18", "x86_64", "here", "", "s", program, EPOCH, EPOCH, outputs)


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[..., tuple[RecordedOutput, Table]]:
    def make(schema: Schema = SCHEMA, delivered: int = 90, lost: int = 0) -> tuple[RecordedOutput, Table]:
        table = decoded(schema, 90)
        writer = Writer(tmp_path / "recording", manifest(schema))
        writer.rows(0, table.frame(), whole=True)
        ended = manifest(schema, rows=delivered, written=90, lost=lost)
        writer.close(msgspec.structs.replace(ended, state="stopped", ended_ns=EPOCH + 10**9))
        recording = open_recording(tmp_path / "recording")
        return RecordedOutput(recording.outputs[0], *recording.progress(0), Keep(1 << 20)), table

    return make


def test_rows_are_those_that_were_decoded(recorded: Callable[..., tuple[RecordedOutput, Table]]) -> None:
    output, table = recorded()
    assert_frame_equal(output.df, table.frame(), check_exact=True)
    assert (output.rows, output.lost, output.dropped, output.kind, output.clock) == (90, 0, 0, "perf", "ts")
    assert output.names == table.names
    first, after = output.read(Position(), 40)
    rest, end = output.read(after)
    assert_frame_equal(first, table.part(0, 40), check_exact=True)
    assert_frame_equal(rest, table.part(40, 90), check_exact=True)
    assert output.has_more(after)
    assert not output.has_more(end)
    assert end == output.end()
    assert_frame_equal(output.newest(5), table.part(85, 90), check_exact=True)
    changed = output.df
    changed.loc[0, "pid"] = 12345
    assert_frame_equal(output.df, table.frame(), check_exact=True)


@pytest.mark.parametrize("by", ["pid", "comm"])
def test_times_and_groups_are_those_of_a_table(by: str, recorded: Callable[..., tuple[RecordedOutput, Table]]) -> None:
    output, table = recorded()
    arrivals = output.since(Position(30), by)
    times, groups = table.since(30, by)
    assert arrivals.times.tolist() == times.tolist()
    assert groups is not None
    assert arrivals.groups is not None
    assert list(map(str, arrivals.groups)) == list(map(str, groups))
    assert arrivals.edition is output.since(Position(80), by).edition


def test_what_is_not_there_is_dropped_and_said(recorded: Callable[..., tuple[RecordedOutput, Table]]) -> None:
    output, table = recorded(delivered=100, lost=3)
    assert (output.rows, output.lost, output.dropped) == (100, 3, 10)
    with pytest.warns(RuntimeWarning) as said:
        frame = output.df
    assert [str(warning.message).partition(":")[0] for warning in said] == [
        "3 events of events were lost",
        "10 rows of events are not in the recording",
    ]
    assert_frame_equal(frame, table.frame(), check_exact=True)
    assert output.read(Position())[0].attrs == {"lost": 3, "dropped": 10}


def test_rows_without_times_came_when_they_were_written(
    recorded: Callable[..., tuple[RecordedOutput, Table]],
) -> None:
    before = time.time_ns()
    output, _ = recorded(UNTIMED)
    times = output.since(Position(), None).times
    assert len(times) == 90
    assert before <= times.min() <= times.max() <= time.time_ns()


def test_what_a_column_was_before_it_was_shown_is_not_there(
    recorded: Callable[..., tuple[RecordedOutput, Table]],
) -> None:
    output, _ = recorded()
    with pytest.raises(ValueError, match="a recording has column 'comm' as df shows it"):
        output.raw("comm")
    with pytest.raises(KeyError, match="no column 'com'"):
        output.raw("com")


def test_it_is_an_output(recorded: Callable[..., tuple[RecordedOutput, Table]]) -> None:
    output, _ = recorded()
    assert isinstance(output, Output)
    assert repr(output) == "<Output events: 90 rows, 0 lost>"
    assert "90 rows" in output.table(5)._repr_html_()
    assert isinstance(output.df, pd.DataFrame)
