"""``bpfnb run``: what it prints, of a tracer without a kernel."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pandas as pd
import pytest
from waiting import until

import bpfnb
from bpfnb.__main__ import main
from bpfnb.results.maps.map import Map
from bpfnb.results.presentation import Table
from bpfnb.session import Session
from bpfnb.terminal.run import run_tool
from bpfnb.terminal.text import histogram_lines, json_lines, stack_lines, table_writer
from bpfnb.testing import FakeTracer
from bpfnb.tools.tool import Column, Spec, Tool
from bpfnb.tools.toolbox import names

EVENT = [
    ("time", "u8"),
    ("pcomm", "S16"),
    ("pid", "u4"),
    ("ppid", "u4"),
    ("tid", "u4"),
    ("age", "u8"),
    ("exit_code", "i4"),
]
ENDED = np.array([(1, b"a\x1b[2J\nb", 7, 1, 7, 1_500_000_000, 256)], EVENT)


@pytest.fixture
def tracer() -> Iterator[FakeTracer]:
    with FakeTracer(outputs={"events": ENDED.dtype}) as tracer:
        yield tracer


def while_it_runs(act: Callable[[Session], object]) -> threading.Thread:
    """Act on the session that the command is about to start, on another thread."""

    def run() -> None:
        until(bpfnb.sessions, 5)
        act(*bpfnb.sessions().values())

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def run(act: Callable[[Session], object], *words: str) -> int:
    thread = while_it_runs(act)
    try:
        return main(["run", *words])
    finally:
        thread.join()


def test_rows_under_one_heading(tracer: FakeTracer, capsys: pytest.CaptureFixture[str]) -> None:
    def act(session: Session) -> None:
        tracer.events(session, "events", ENDED)
        tracer.events(session, "events", np.concatenate([ENDED, ENDED]))
        tracer.lose(session, 5, "events")
        session.stop()

    assert run(act, "exitsnoop") == 0
    out, err = capsys.readouterr()
    heading, *rows = out.splitlines()
    assert heading.split() == ["TIME", "PCOMM", "PID", "PPID", "TID", "AGE(s)", "EXIT_CODE"]
    assert len(rows) == 3
    assert rows[0].split()[1:] == [r"a\x1b[2J\nb", "7", "1", "7", "1.50", "code", "1"]
    assert err == "exitsnoop: lost 5 events\n"


def test_json_has_exact_numbers_and_times(tracer: FakeTracer, capsys: pytest.CaptureFixture[str]) -> None:
    def act(session: Session) -> None:
        tracer.events(session, "events", ENDED)
        session.stop()

    assert run(act, "exitsnoop", "--json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    row = json.loads(line)
    assert row.pop("time")
    assert row == {
        "pcomm": "a\x1b[2J\nb", "pid": 7, "ppid": 1, "tid": 7, "age": 1_500_000_000, "exit_code": 256,
        "exit_code_wait": "exited 1",
    }  # fmt: skip
    assert line.isprintable()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_shows_what_is_left_and_is_no_failure(
    tracer: FakeTracer, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    before = signal.getsignal(number)

    def act(session: Session) -> None:
        until(lambda: signal.getsignal(number) is not before, 5)
        tracer.events(session, "events", ENDED)
        os.kill(os.getpid(), number)

    assert run(act, "exitsnoop") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert signal.getsignal(number) is before
    assert not bpfnb.sessions()


def test_it_ends_after_the_time(tracer: FakeTracer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "exitsnoop", "-t", "100ms"]) == 0
    assert not bpfnb.sessions()


def test_a_session_that_is_ended_is_a_failure(tracer: FakeTracer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda session: tracer.end(session, "the guard ended it"), "exitsnoop") == 1
    assert capsys.readouterr().err == "exitsnoop: the guard ended it\n"


COUNTING = """
BPF_HASH(counts, u32, u64);
int f(void *ctx) { counts.increment(1); return 0; }
"""


def counting(interval: float | None = None) -> Tool:
    """A tool with a table, of which a tracer without a kernel has the entry 7: 3."""

    def table(maps: Mapping[str, Map]) -> pd.DataFrame:
        return maps["counts"].df.set_axis(["number", "count"], axis=1)

    columns = [Column("number", "NUMBER", "which"), Column("count", "COUNT", "how many")]
    spec = Spec(COUNTING, Table(table), [("tracepoint:sched:sched_switch", "f")])
    return Tool("sample", "process", "sample: counts", columns, lambda: spec, view="table", interval=interval)


@pytest.fixture
def counts(tracer: FakeTracer) -> Iterator[FakeTracer]:
    with FakeTracer(maps={"counts": (np.array([7], "u4"), np.array([3], "u8"))}) as tracer:
        yield tracer


def test_a_table_at_the_end(counts: FakeTracer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool(counting(), ["-t", "100ms"]) == 0
    assert capsys.readouterr().out.split() == ["NUMBER", "COUNT", "7", "3"]


def test_tables_at_intervals(counts: FakeTracer, capsys: pytest.CaptureFixture[str]) -> None:
    """One heading; each table has what was counted since the last."""

    def act(session: Session) -> None:
        time.sleep(0.3)
        session.maps["counts"][7] = 5
        time.sleep(0.3)
        session.stop()

    thread = while_it_runs(act)
    assert run_tool(counting(), ["--every", "100ms"]) == 0
    thread.join()
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["NUMBER", "COUNT"]
    stamps, rows = [], []
    for line in [lines[0], *lines[2:]]:
        (stamps if line.startswith("[") else rows).append(line.split())
    assert len(stamps) >= 4
    assert rows == [["7", "3"], ["7", "5"]]  # an entry that is written counts anew


def test_the_last_table_when_the_session_is_just_ending(counts: FakeTracer, capsys: pytest.CaptureFixture[str]) -> None:
    """The tracer has let go of the maps, and the session does not know yet."""

    def act(session: Session) -> None:
        counts.ending(session)
        time.sleep(0.5)
        counts.end(session, "stopped")

    thread = while_it_runs(act)
    assert run_tool(counting(interval=0.2), []) == 0
    thread.join()
    out, err = capsys.readouterr()
    assert (out.split()[1:], err) == (["NUMBER", "COUNT", "7", "3"], "")


def test_tables_at_intervals_as_json_have_a_time(counts: FakeTracer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool(counting(interval=0.1), ["--json", "-t", "250ms"]) == 0
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert pd.Timestamp(row.pop("until")).tz
    assert row == {"number": 7, "count": 3}


def test_tools_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in names())


def test_help_has_columns_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "exitsnoop", "--help"])
    assert not ended.value.code
    out = capsys.readouterr().out
    assert all(word in out for word in ("--failed", "--json", "--pid", "exit_code", "cannot"))


@pytest.mark.parametrize(
    ("words", "said", "status"),
    [
        ("exitsnop", "bpfnb run: there is no tool 'exitsnop'; did you mean exitsnoop?", 2),
        ("--json", "bpfnb run: there is no tool '--json'", 2),
        ("exitsnoop --fialed", "did you mean --failed?", 2),
        ("exitsnoop -time 2s", "did you mean --time?", 2),
        ("exitsnoop -t", "expected one argument", 2),
        ("exitsnoop -t x", "bpfnb run exitsnoop: not a duration: 'x'", 2),
        ("exitsnoop --keep x", "not a size: 'x'", 2),
        ("exitsnoop --every 1s", "unrecognized arguments: --every", 2),
        ("exitsnoop --name 1x", "must be a Python identifier", 2),
    ],
)
def test_wrong_arguments(
    tracer: FakeTracer, capsys: pytest.CaptureFixture[str], words: str, said: str, status: int
) -> None:
    assert main(["run", *words.split()]) == status
    out, err = capsys.readouterr()
    assert said in err
    assert err.count("\n") == 1
    assert not out
    assert not tracer.loaded


def test_a_tool_that_this_kernel_cannot_run(tracer: FakeTracer, capsys: pytest.CaptureFixture[str]) -> None:
    tracer.refuse(bpfnb.UnsupportedError("this kernel has no such thing"))
    assert main(["run", "exitsnoop"]) == 1
    assert capsys.readouterr().err == "bpfnb run exitsnoop: this kernel has no such thing\n"


def test_nobody_reads_any_more(tracer: FakeTracer, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        assert main(["run", "exitsnoop", "-t", "5s"]) == 0
    assert not bpfnb.sessions()


# --- text ---------------------------------------------------------------------------------------------------------

COLUMNS = [
    Column("name", "NAME", "", width=6),
    Column("n", "N", "", width=4),
    Column("hidden", "", ""),
    Column("d", "D(ms)", "", width=6, show=lambda d: f"{d.total_seconds() * 1000:.1f}"),
    Column("text", "TEXT", ""),
]


def test_a_table_aligns_numbers_to_the_right_and_shows_what_is_missing() -> None:
    frame = pd.DataFrame(
        {
            "text": ["x\ty", None],
            "name": pd.Categorical(["longer than that", "b"]),
            "n": pd.array([12, None], "Int64"),
            "hidden": [1, 2],
            "d": pd.to_timedelta([1_500_000, None]),
        }
    )
    heading, write = table_writer(COLUMNS, frame)
    assert heading == "NAME      N  D(ms) TEXT"
    assert list(write(frame)) == [r"longer than that   12    1.5 x\ty", "b         -      - -"]


def test_json_of_every_kind_of_value() -> None:
    frame = pd.DataFrame(
        {
            "u": np.array([2**64 - 1], "u8"),
            "f": [float("nan")],
            "i": pd.array([None], "Int64"),
            "b": [b"\x00\xff"],
            "t": pd.to_datetime([1], utc=True),
            "d": pd.to_timedelta([5]),
            "c": pd.Categorical(["x"]),
            "yes": [True],
        }
    )
    (line,) = json_lines(frame)
    assert json.loads(line) == {
        "u": 2**64 - 1, "f": None, "i": None, "b": "00ff", "t": "1970-01-01T00:00:00.000000001+00:00", "d": 5, "c": "x",
        "yes": True,
    }  # fmt: skip


def test_a_histogram_has_a_bar_for_each_bucket() -> None:
    columns = [Column(name, heading, "") for name, heading in (("disk", "disk"), ("low", ""), ("label", "LATENCY"))]
    labels = ["[0us, 2us)", "[2us, 4us)", "[0us, 2us)"]
    frame = pd.DataFrame({"disk": ["a", "a", "b"], "low": [0.0, 2, 0], "label": labels, "count": [1, 4, 2]})
    assert list(histogram_lines(columns, frame)) == [
        "disk = a",
        "                 LATENCY : count    distribution",
        f"              [0us, 2us) : 1        |{'*' * 10:<40}|",
        f"              [2us, 4us) : 4        |{'*' * 40}|",
        "",
        "disk = b",
        "                 LATENCY : count    distribution",
        f"              [0us, 2us) : 2        |{'*' * 40}|",
        "",
    ]


def test_stacks_begin_with_the_innermost_frame() -> None:
    columns = [Column("stack", "STACK", ""), Column("pid", "PID", ""), Column("count", "COUNT", "")]
    frame = pd.DataFrame({"stack": ["main;f\n;g"], "pid": [3], "count": [2]})
    assert list(stack_lines(columns, frame)) == ["    g", r"    f\n", "    main", "    -  3  2", ""]
