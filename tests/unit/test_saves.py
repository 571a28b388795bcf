"""Session.save: all that a session has is in the file, or the file is not there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from examples import EXAMPLES
from test_recording_files import assert_same, small_files

import bpfnb
from bpfnb.errors import ProgramError
from bpfnb.protocol.messages import Noted
from bpfnb.recordings.reader import open_recording
from bpfnb.session import Session
from bpfnb.session.listener import SessionListener
from bpfnb.testing import FakeTracer, Line

SOURCE = """
BPF_PERF_OUTPUT(events);
BPF_HASH(counts, u32, u64);
int f(void *ctx) { bpf_trace_printk("x"); events.perf_submit(ctx, 0, 0); counts.increment(1); return 0; }
"""
EVENT = np.dtype([("time", "<u8"), ("pid", "<u4"), ("comm", "S16"), ("at", "<u8")])
COUNTS = np.array([1, 2], "<u4"), np.array([10, 20], "<u8")


@pytest.fixture
def tracer() -> Iterator[FakeTracer]:
    with FakeTracer(maps={"counts": COUNTS}, outputs={"events": EVENT}) as tracer:
        yield tracer


def started(tracer: FakeTracer, **options: int) -> Session:
    session = bpfnb.trace(SOURCE, attach={"syscall:sync": "f"}, **options)
    for first in (0, 5):
        numbers = np.arange(first, first + 5)
        rows = [(n * 1000, n, f"task {n % 3}".encode(), n * n) for n in numbers.tolist()]
        tracer.events(session, "events", np.array(rows, EVENT))
    tracer.printk(session, [Line("bash", 42, "caf\xe9".encode("latin1")), Line("zsh", 43, "x")])
    SessionListener(session).on_note(Noted(1, "events", "another process read along"))
    return session


@pytest.mark.parametrize("place", ["trace", "trace.zip"])
@pytest.mark.parametrize("state", ["running", "stopped"])
def test_all_of_a_session_is_in_the_file(tracer: FakeTracer, state: str, place: str, tmp_path: Path) -> None:
    session = started(tracer)
    if state == "stopped":
        session.stop()
    before = time.time_ns()
    session.save(tmp_path / place)
    assert session.state == state
    recording = open_recording(tmp_path / place)
    assert [output.info.name for output in recording.outputs] == list(session.outputs)
    for rows in recording.outputs:
        output = session.outputs[rows.info.name]
        assert_same(rows.frame(), output.df)
        assert (rows.info.rows, rows.info.lost, rows.info.kind) == (output.rows, output.lost, output.kind)
    assert recording.missing == dict.fromkeys(session.outputs, 0)
    last = recording.maps[0].last()
    assert last is not None
    assert (last.count, last.entries) == (2, COUNTS[0].tobytes() + COUNTS[1].tobytes())
    assert before <= last.time <= time.time_ns()
    manifest = recording.manifest
    assert manifest.program == session.program
    assert (manifest.probes, manifest.warnings) == (session.probes, session.warnings)
    assert (manifest.state, manifest.note) == ("stopped", "")
    assert manifest.reason == ("stopped" if state == "stopped" else "saved while it ran")
    assert manifest.began_ns <= manifest.ended_ns
    assert abs(manifest.began_ns - before) < 60e9
    assert [path.name for path in tmp_path.iterdir()] == [place]


def test_the_documents_examples(tracer: FakeTracer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"session": started(tracer), "bpfnb": bpfnb}
    exec(EXAMPLES['session.save("opens.bpfnb.zip")'].text, names)
    pd.testing.assert_frame_equal(names["opened"].df, names["session"].df)
    names["session"].save("opens.bpfnb")
    exec(EXAMPLES["import pyarrow as pa"].text, names)
    assert names["rows"].num_rows == 2
    assert names["rows"].schema.field("pid").type == "int32"


def test_rows_that_were_dropped_are_said(tracer: FakeTracer, tmp_path: Path) -> None:
    session = started(tracer, keep=10_000)
    output = session.outputs["events"]
    for first in range(10, 1000, 10):
        numbers = range(first, first + 10)
        names = [b"early" if first < 500 or n == 999 else b"late" for n in numbers]  # the last row has the first name
        tracer.events(session, "events", np.array([(n, n, c, n) for n, c in zip(numbers, names, strict=True)], EVENT))
        assert len(output.newest(1)) == 1
    assert output.dropped > 100
    session.save(tmp_path / "trace")
    rows = next(rows for rows in open_recording(tmp_path / "trace").outputs if rows.info.name == "events")
    with pytest.warns(RuntimeWarning, match="were dropped"):
        assert_same(rows.frame(), output.df)
    assert rows.frame()["at"].tolist() == [n if n > 9 else n * n for n in range(output.dropped, 1000)]
    assert (rows.info.rows, rows.info.written) == (1000, 1000 - output.dropped)


def test_nothing_but_a_recording_is_replaced(tracer: FakeTracer, tmp_path: Path) -> None:
    session = started(tracer)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "manifest.json").write_text('{"version": 1, "bpfnb": "1"}')
    (mine / "thesis.txt").write_text("years of work")
    link = tmp_path / "link"
    for path in (mine, tmp_path / "file", tmp_path / "zip.zip", link):
        if path == link:
            link.symlink_to(tmp_path)
        elif path != mine:
            path.write_bytes(b"PK\3\4 something else")
        with pytest.raises(ProgramError, match="is there already: overwrite=True replaces a recording"):
            session.save(path)
        with pytest.raises(ProgramError, match=r"no recording of bpfnb.* not replaced"):
            session.save(path, overwrite=True)
    assert (mine / "thesis.txt").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "mine", "zip.zip"]


@pytest.mark.parametrize("place", ["trace", "trace.zip"])
def test_a_recording_is_replaced_once_the_new_one_is_whole(tracer: FakeTracer, place: str, tmp_path: Path) -> None:
    session = started(tracer)
    session.save(tmp_path / place)
    tracer.events(session, "events", np.array([(99, 99, b"new", 99)], EVENT))
    with small_files(100), pytest.raises(ProgramError, match=f"{place} cannot be written: File too large"):
        session.save(tmp_path / place, overwrite=True)
    assert len(events_of(tmp_path / place)) == 10
    session.save(tmp_path / place, overwrite=True)
    assert len(events_of(tmp_path / place)) == 11
    assert [path.name for path in tmp_path.iterdir()] == [place]


def test_an_interrupted_save_leaves_nothing(tracer: FakeTracer, tmp_path: Path) -> None:
    session = started(tracer)

    class Interrupting(type(session.outputs["events"])):  # type: ignore[misc]
        def read(self, *args: object) -> None:
            raise KeyboardInterrupt

    session.outputs["events"].__class__ = Interrupting
    with pytest.raises(KeyboardInterrupt):
        session.save(tmp_path / "trace")
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_not_there(tracer: FakeTracer, tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="nowhere/trace cannot be written: No such file or directory"):
        started(tracer).save(tmp_path / "nowhere" / "trace")


def events_of(path: Path) -> pd.DataFrame:
    return next(rows.frame() for rows in open_recording(path).outputs if rows.info.name == "events")
