"""bpfnb.open: what made a recording's df is found again, or it is said that it is not; what is missing is said."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
from made_up_recording import ROWS, manifest_of, rows, write
from pandas.testing import assert_frame_equal

import bpfnb
from bpfnb.recordings.writer import Writer
from bpfnb.results.presentation import Shown

NOT_THERE = {
    "a tool of a newer bpfnb": (
        Shown("tool", "quicsnoop", {"own": {}, "has": [], "cpu": False}),
        "no tool 'quicsnoop'",
    ),
    "what is no tool": (Shown("tool", "../../etc/passwd", {}), "no tool '../../etc/passwd'"),
    "a module that is no tool": (Shown("tool", "_sockets", {}), "no tool '_sockets'"),
    "options of a newer tool": (
        Shown("tool", "execsnoop", {"own": {"colour": "red"}, "has": [], "cpu": False}),
        "execsnoop: these are no options of it",
    ),
    "a value that cannot be": (
        Shown("tool", "execsnoop", {"own": {"fails": "x" * 9}, "has": [], "cpu": False}),
        "execsnoop: fails must be True or False",
    ),
    "a question of a newer bpfnb": (Shown("question", "correlate", {}), "no question of this bpfnb"),
    "a question without an answer": (
        Shown("question", "count", {"probe": "syscall:sync"}),
        "no question of this bpfnb",
    ),
}


@pytest.mark.parametrize("case", NOT_THERE)
def test_what_made_a_df_and_is_not_there_is_said(case: str, tmp_path: Path) -> None:
    shown, why = NOT_THERE[case]
    write(tmp_path / "cell")
    write(tmp_path / "other", shown)
    opened = bpfnb.open(tmp_path / "other")
    assert f"its rows and maps are as they are, without what {shown.kind} {shown.name}" in repr(opened)
    assert why in repr(opened)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_frame_equal(opened.df, bpfnb.open(tmp_path / "cell").df)


def test_what_is_no_recording_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place, why in (("empty", "is no recording: it has no manifest.json"), ("nothing", "is not there")):
        with pytest.raises(bpfnb.ProgramError, match=why):
            bpfnb.open(tmp_path / place)


def test_a_recording_that_was_cut_short(tmp_path: Path) -> None:
    """As a recorder leaves it that was killed: its last batch is torn."""
    path = tmp_path / "torn"
    writer = Writer(tmp_path / "trace", manifest_of())
    frame = rows().frame()
    for first in range(0, ROWS, ROWS // 10):
        writer.rows(0, frame.iloc[first : first + ROWS // 10].reset_index(drop=True))
        writer.progress(0, first + ROWS // 10, first // 100)
        writer.flush()
    shutil.copytree(tmp_path / "trace", path)
    writer.abandon()
    part = next(path.glob("outputs/0/*"))
    part.write_bytes(part.read_bytes()[:-100])
    opened = bpfnb.open(path)
    assert (opened.state, opened.reason) == ("failed", "its recording was cut short")
    assert opened.missing == {"events": 100}
    assert (opened.outputs["events"].rows, opened.outputs["events"].dropped, opened.lost) == (ROWS, 100, 9)
    with pytest.warns(RuntimeWarning, match="100 rows of events are not in the recording"):
        assert_frame_equal(opened.df, frame.iloc[:900], check_categorical=False)
    assert "; 100 rows are not in it" in repr(opened)
    assert "the recording was cut short" in opened._repr_html_()
    with pytest.raises(bpfnb.MapError, match="the map counts is not in the recording"):
        _ = opened.maps["counts"].df
    assert opened.live(speed=1e12).wait(20)
    opened.save(tmp_path / "whole")
    whole = bpfnb.open(tmp_path / "whole")
    assert whole.elapsed == opened.elapsed  # not until it was saved
    flushes = opened.recording.outputs[0].flushes  # when rows without times came is known from these
    assert whole.recording.outputs[0].flushes[: len(flushes)] == flushes
    with pytest.warns(RuntimeWarning, match="not in the recording"):
        assert_frame_equal(whole.df, opened.outputs["events"].newest(ROWS), check_categorical=False)
