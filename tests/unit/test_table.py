"""Tables: the frame's columns, what is handed out, what is dropped, and what an interruption leaves."""

from __future__ import annotations

import itertools
import pickle
import time
import weakref
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bpfnb.protocol.schema import PRINTK_ROW, Number, Rows, Schema, Tail, Text
from bpfnb.results import rates
from bpfnb.results import table as tables
from bpfnb.results.columns.categories import CategoryColumn, TextColumn
from bpfnb.results.columns.text import PANDAS, text_dtype
from bpfnb.results.output import Arrivals, Position
from bpfnb.results.printk import PrintkTable
from bpfnb.results.rates import Life, RateMeter
from bpfnb.results.table import Table

EVENT = np.dtype(
    [("header", "V8"), ("ts", "<u8"), ("pid", "<u4"), ("value", "<i4"), ("comm", "S16"), ("end", "<i8")], align=False
)
COLUMNS = (
    Number("ts", 8, "<u8"),
    Number("pid", 16, "<u4"),
    Number("value", 20, "<i4"),
    Text("comm", 24, 16),
)
SCHEMA = Schema(COLUMNS, EVENT.itemsize, time="ts")
TAILED = Schema((*COLUMNS, Tail("args", 40, text=True)), EVENT.itemsize, time="ts", text_end=40)
EPOCH = 1_700_000_000_000_000_000
NO_TEXT = np.empty(0, np.uint8)


def events(count: int, first: int = 0, comms: int = 5) -> Rows:
    """Events whose every value follows from their number; ten nanoseconds apart."""
    numbers = np.arange(first, first + count)
    rows = np.zeros(count, EVENT)
    rows["ts"], rows["pid"], rows["value"] = numbers * 10, numbers % 1000, -numbers
    rows["comm"] = np.char.add(b"comm-", (numbers % comms).astype("S8"))
    return as_bytes(rows)


def as_bytes(rows: np.ndarray) -> Rows:
    return rows.view(np.uint8).reshape(len(rows), rows.dtype.itemsize)


def with_tails(rows: Rows, tails: list[bytes], begin: int = 0) -> tuple[Rows, np.ndarray, int]:
    """What append takes: the text of these rows begins behind ``begin`` bytes of others'."""
    rows.view(EVENT)["end"][:, 0] = begin + np.cumsum([len(tail) for tail in tails])
    return rows, np.frombuffer(b"!" * begin + b"".join(tails), np.uint8), begin


def table_of(*batches: Rows, schema: Schema = SCHEMA) -> Table:
    table = Table(schema, EPOCH)
    for rows in batches:
        table.append(rows, NO_TEXT, 0)
    return table


def assert_events(frame: pd.DataFrame, first: int, end: int, comms: int = 5) -> None:
    numbers = np.arange(first, end)
    assert frame["ts"].tolist() == (numbers * 10).tolist()
    assert frame["pid"].tolist() == (numbers % 1000).tolist()
    assert frame["value"].tolist() == (-numbers).tolist()
    assert frame["comm"].tolist() == [f"comm-{number % comms}" for number in numbers]
    assert frame["time"].astype("int64").tolist() == (numbers * 10 + EPOCH).tolist()
    assert frame.index.tolist() == list(range(end - first))


# --- the columns --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 100])
def test_columns_and_dtypes(count: int) -> None:
    table = table_of(events(count))
    frame = table.frame()
    assert table.names == tuple(frame) == ("time", "ts", "pid", "value", "comm")
    assert [str(dtype) for dtype in frame.dtypes] == [
        "datetime64[ns, UTC]",
        "uint64",
        "uint32",
        "int32",
        "category",
    ]
    assert_events(frame, 0, count)


@pytest.mark.parametrize(
    ("clock", "others", "shown"),
    [
        ("ts", (), ["time", "ts"]),
        ("time", (), ["time", "time_"]),
        ("mono_ns", (), ["time", "mono_ns"]),
        ("ts", ("time",), ["time", "ts", "time_"]),
        ("ts", ("time", "time_"), ["time", "ts", "time__", "time_"]),
        ("", ("time",), ["time"]),
        ("", ("ts", "mono_ns"), ["ts", "mono_ns"]),
    ],
)
def test_the_clock_among_the_columns(clock: str, others: tuple[str, ...], shown: list[str]) -> None:
    """``time`` comes first, and every member is a column, whatever it is called."""
    names = [*([clock] if clock else []), *others]
    columns = tuple(Number(name, 8 * n, "<i8") for n, name in enumerate(names))
    rows = np.array([[1000 * n for n in range(1, len(names) + 1)]], np.int64)
    table = table_of(
        as_bytes(rows.view([("", "V8")] * len(names))[:, 0]), schema=Schema(columns, 8 * len(names), clock)
    )
    frame = table.frame()
    assert list(frame) == list(table.names) == shown
    if clock:
        assert frame["time"].tolist() == [pd.Timestamp(EPOCH + 1000, tz="UTC")]
    for name, value in zip(names, rows[0].tolist(), strict=True):
        column = name if not clock or name != "time" else "time__" if "time_" in names else "time_"
        assert frame[column].tolist() == [value]


@pytest.mark.parametrize("kind", ["submitted", "stamp"])
def test_a_clock_that_is_nobodys_own_is_shown_as_time_only(kind: str) -> None:
    columns = (Number("(time)", 0, "<i8"), Number("time", 8, "<i8"))
    rows = as_bytes(np.array([(1000, 7)], [("a", "<i8"), ("b", "<i8")]))
    frame = table_of(rows, schema=Schema(columns, 16, "(time)", clock=kind)).frame()
    assert frame.to_dict("records") == [{"time": pd.Timestamp(EPOCH + 1000, tz="UTC"), "time_": 7}]


def test_the_offset_to_the_wall_clock_may_change_for_rows_to_come() -> None:
    """As it does after a suspend: what was decoded before keeps its times."""
    table = Table(SCHEMA, EPOCH)
    table.append(events(2), NO_TEXT, 0)
    before = table.frame()
    table.append(events(1, 2), NO_TEXT, 0, EPOCH + 5)
    table.append(events(1, 3), NO_TEXT, 0)
    assert table.frame()["time"].astype("int64").tolist() == [EPOCH, EPOCH + 10, EPOCH + 25, EPOCH + 35]
    assert before["time"].astype("int64").tolist() == [EPOCH, EPOCH + 10]


def test_a_tail_belongs_to_its_row() -> None:
    """Also when the batch before ended elsewhere in the text, and when rows are decoded in several goes."""
    tails = [b"one", b"", b"three\0cut", b"\xff", b"5"]
    table = Table(TAILED, EPOCH)
    table.append(*with_tails(events(2), tails[:2]))
    table.append(*with_tails(events(3, 2), tails[2:], begin=100))
    frame = table.frame()
    assert frame["args"].tolist() == ["one", "", "three", "\N{REPLACEMENT CHARACTER}", "5"]
    assert_events(frame, 0, 5)


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_batches_of_any_size_make_the_same_frame(at_once: int) -> None:
    tails = [b"x" * (n % 7) for n in range(500)]
    whole = Table(TAILED, EPOCH)
    whole.append(*with_tails(events(500), tails))
    for seed in range(5):
        cuts = [0, *sorted(np.random.default_rng(seed).integers(0, 500, 6).tolist()), 500]
        table = Table(TAILED, EPOCH, batch=at_once)
        for begin, end in itertools.pairwise(cuts):
            table.append(*with_tails(events(end - begin, begin), tails[begin:end], begin=begin))
            table.frame()
        pd.testing.assert_frame_equal(table.frame(), whole.frame())


def test_raw() -> None:
    table = table_of(events(7))
    raw = table.raw("comm")
    assert raw.name == "comm"
    assert raw.tolist() == [f"comm-{n % 5}".encode().ljust(16, b"\0") for n in range(7)]
    with pytest.raises(ValueError, match="'pid' is no category"):
        table.raw("pid")
    with pytest.raises(KeyError, match="no column 'common': there are time, ts, pid"):
        table.raw("common")


# --- what is handed out -------------------------------------------------------------------------------------------


def test_a_frame_stays_as_it_was() -> None:
    """GIVEN frames taken while rows come and go, buffers are left for larger ones, and the oldest rows are dropped."""
    table = Table(SCHEMA, EPOCH)
    handed = []
    for step in range(60):
        table.append(events(50 + step, table.end, comms=10 + step), NO_TEXT, 0)
        frame = table.frame()
        handed.append((frame, frame.copy(deep=True)))
        if step % 7 == 6:
            table.shrink(table.nbytes - 1)
            frame = table.frame()
            handed.append((frame, frame.copy(deep=True)))
    assert table.begin > 0
    for frame, was in handed:
        pd.testing.assert_frame_equal(frame, was)


def write_one(frame: pd.DataFrame) -> None:
    frame.loc[0, "pid"] = 7
    frame.iloc[1, 3] = 8
    frame.at[2, "ts"] = 9
    frame.loc[0, "comm"] = "comm-1"
    frame.loc[0, "time"] = pd.Timestamp(0, tz="UTC")


def write_columns(frame: pd.DataFrame) -> None:
    frame["pid"] += 1
    frame["value"] = 0
    frame.iloc[:, 1] = 5
    frame.loc[frame["pid"] > 3, "pid"] = 0
    frame["comm"] = frame["comm"].cat.rename_categories(lambda name: name.upper())


def write_in_place(frame: pd.DataFrame) -> None:
    frame.update(frame[["pid"]] * 0)
    frame.insert(0, "new", 1)
    del frame["ts"]
    frame.columns = pd.Index(["a", "b", "c", "d", "e"])
    frame.index = frame.index + 5


def write_memory(frame: pd.DataFrame) -> None:
    """Through numpy: pandas 3 refuses, before it is the frame's own memory."""
    for name in ("pid", "ts"):
        values = frame[name].to_numpy()
        if PANDAS >= (3, 0):
            with pytest.raises(ValueError, match="read-only"):
                values[:] = 0
        else:
            values[:] = 0


@pytest.mark.parametrize("write", [write_one, write_columns, write_in_place, write_memory])
@pytest.mark.parametrize("when", ["now", "later", "much later", "dropped"])
@pytest.mark.parametrize("alone", [False, True])
def test_writing_into_a_frame_changes_nothing_else(write: Any, when: str, alone: bool) -> None:
    """GIVEN a frame handed out, and perhaps another of the same rows WHEN a person writes into it, at once or when the
    table has gone on THEN the other, and those made later, know nothing of it."""
    table = table_of(events(100))
    frame, other = table.frame(), None if alone else table.frame()
    if when == "later":
        table.append(events(10, 100), NO_TEXT, 0)  # into the same buffers, but the cached frame is gone
    elif when == "much later":
        table.append(events(10_000, 100), NO_TEXT, 0)
        table.frame()
    elif when == "dropped":
        table.shrink(table.nbytes // 2)
    write(frame)
    if other is not None:
        assert_events(other, 0, 100)
    assert_events(table.frame(), table.begin, table.end)
    table.append(events(20, table.end), NO_TEXT, 0)
    assert_events(table.frame(), table.begin, table.end)


@pytest.mark.parametrize("alone", [False, True])
def test_writing_into_a_frame_with_fewer_categories(alone: bool) -> None:
    """GIVEN a frame handed out, then rows with new names, which another frame shows WHEN a person writes into the first
    THEN the table's codes stay as they are."""
    table = table_of(events(100))
    frame, other = table.frame(), None if alone else table.frame()
    table.append(events(10, 100, comms=7), NO_TEXT, 0)
    table.frame()
    write_one(frame)
    expected = [f"comm-{n % (5 if n < 100 else 7)}" for n in range(110)]
    assert other is None or other["comm"].tolist() == expected[:100]
    assert table.frame()["comm"].tolist() == expected
    assert table.frame()["comm"].cat.categories.tolist() == [f"comm-{n}" for n in (0, 1, 2, 3, 4, 5, 6)]


def test_a_frame_that_is_the_last_to_look_at_a_buffer_may_be_written() -> None:
    """GIVEN the table has left the frame's buffers THEN pandas writes into them, and none of them is read-only."""
    table = table_of(events(10))
    frame = table.frame()
    table.append(events(100_000, 10), NO_TEXT, 0)
    write_one(frame)
    assert frame["pid"].tolist() == [7, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert frame["comm"][0] == "comm-1"


@pytest.mark.skipif(PANDAS < (3, 0), reason="pandas copies lazily from 3 on")
def test_neither_numbers_nor_codes_are_copied() -> None:
    table = table_of(events(1000))
    one, other = table.frame(), table.frame()
    table.append(events(10, 1000), NO_TEXT, 0)
    for frame in (one, other, table.frame()):
        assert np.shares_memory(frame["comm"].array.codes, table._columns["comm"]._codes.all)  # type: ignore[attr-defined]
    for name in ("ts", "pid", "value"):
        assert np.shares_memory(one[name].to_numpy(), other[name].to_numpy())
        assert np.shares_memory(one[name].to_numpy(), table._columns[name]._buffer.all)  # type: ignore[attr-defined]


def test_an_unchanged_frame_is_not_built_again(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    build = Table._build
    monkeypatch.setattr(Table, "_build", lambda table: built.append(table.end) or build(table))
    table = table_of(events(10))
    one, other = table.frame(), table.frame()
    table.append(events(0), NO_TEXT, 0)
    table.frame()
    table.append(events(1, 10), NO_TEXT, 0)
    table.frame()
    assert built == [10, 11]
    assert one is not other


# --- dropping -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("comms", [5, 100_000])
@pytest.mark.parametrize("schema", [SCHEMA, TAILED], ids=["fixed", "tailed"])
def test_keep_bounds_what_is_kept(schema: Schema, comms: int) -> None:
    """GIVEN far more rows than may be kept THEN the newest are, in so much memory, however many names there are."""
    keep = 200_000
    table = Table(schema, EPOCH)
    for first in range(0, 50_000, 500):
        rows = events(500, first, comms)
        table.append(*with_tails(rows, [b"x" * (n % 30) for n in range(500)]))
        table.shrink(keep)
        assert table.nbytes <= keep
        assert len(table.frame()) == table.end - table.begin
    assert table.end == 50_000
    assert table.nbytes > keep * 0.6
    assert_events(table.frame(), table.begin, 50_000, comms)
    held = sum(part.all.nbytes for part in vars(table._columns["comm"]).values() if hasattr(part, "all"))
    assert held < 4 * keep


def test_one_row_always_stays() -> None:
    table = table_of(events(1000))
    table.shrink(1)
    assert (table.begin, table.end) == (999, 1000)
    assert_events(table.frame(), 999, 1000)
    table.append(events(3, 1000), NO_TEXT, 0)
    table.shrink(1)
    assert_events(table.frame(), 1002, 1003)


def test_dropping_is_done_in_large_steps() -> None:
    """What remains is copied: were it copied for every row that comes, keeping would cost more than decoding."""
    table = table_of(events(10_000))
    keep = table.nbytes
    begins = set()
    for _ in range(1000):
        table.append(events(10, table.end), NO_TEXT, 0)
        table.shrink(keep)
        begins.add(table.begin)
    assert len(begins) < 8


# --- since --------------------------------------------------------------------------------------------------------


def test_since() -> None:
    table = table_of(events(100))
    times, groups = table.since(90, "comm")
    assert times.tolist() == [EPOCH + 10 * n for n in range(90, 100)]
    assert groups is not None
    assert list(groups) == [f"comm-{n % 5}" for n in range(90, 100)]
    assert table.since(90, None)[1] is None
    assert list(table.since(95, "pid")[1] or []) == [95, 96, 97, 98, 99]
    for behind in (100, 1000):
        times, groups = table.since(behind, "comm")
        assert len(times) == len(groups or []) == 0


def test_since_across_drops() -> None:
    """GIVEN rows asked for that are gone THEN those still there, each with its own time and group."""
    table = table_of(events(1000))
    table.shrink(table.nbytes // 2)
    assert table.begin > 400
    for row in (0, table.begin - 1, table.begin, table.begin + 10):
        first = max(row, table.begin)
        times, groups = table.since(row, "comm")
        assert times.tolist() == [EPOCH + 10 * n for n in range(first, 1000)]
        assert list(groups or []) == [f"comm-{n % 5}" for n in range(first, 1000)]


def test_what_since_gives_cannot_be_written() -> None:
    times, _ = table_of(events(10)).since(0, None)
    with pytest.raises(ValueError, match="read-only"):
        times[0] = 0


def test_rows_without_a_clock_have_the_time_they_came(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100, 1000, 100))
    monkeypatch.setattr(time, "time_ns", lambda: next(clock))
    table = table_of(events(2), events(0), events(3, 2), events(1, 5), schema=Schema(COLUMNS, EVENT.itemsize))
    assert list(table.names) == ["ts", "pid", "value", "comm"]
    assert table.since(0, None)[0].tolist() == [100, 100, 200, 200, 200, 300]
    assert table.since(3, None)[0].tolist() == [200, 200, 300]
    assert table.since(5, None)[0].tolist() == [300]
    assert table.since(6, None)[0].tolist() == table.since(99, None)[0].tolist() == []
    table.shrink(table.nbytes - 1)
    assert table.begin in (1, 2, 3)
    assert table.since(0, None)[0].tolist() == [100, 100, 200, 200, 200, 300][table.begin :]
    assert len(table.since(0, "comm")[1] or []) == 6 - table.begin
    table.append(events(1, 6), NO_TEXT, 0)
    assert table.since(5, None)[0].tolist() == [300, 400]


def test_the_times_rows_came_at_go_with_them() -> None:
    table = Table(Schema(COLUMNS, EVENT.itemsize), EPOCH)
    for first in range(0, 20_000, 10):
        table.append(events(10, first), NO_TEXT, 0)
        table.shrink(20_000)
    assert table._arrivals is not None
    assert len(table._arrivals._ends) == len(table._arrivals._times) < 200


def test_an_empty_table_without_a_clock() -> None:
    table = Table(Schema(COLUMNS, EVENT.itemsize), EPOCH)
    assert table.since(0, "comm")[0].tolist() == []
    assert table.frame().empty


# --- interruptions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["append", "_name", "part"])
@pytest.mark.parametrize("call", range(6))
def test_an_interrupted_table_goes_on(target: str, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """GIVEN Ctrl-C in the middle of an append or a drop, before or after the column's work THEN the same rows, appended
    again, are there once, and nothing else is."""
    owner: Any = CategoryColumn if target == "part" else TextColumn
    real = getattr(owner, target)
    for after in (False, True):
        calls = itertools.count()

        def interrupted(*arguments: Any, calls: Any = calls, after: bool = after) -> Any:
            due = next(calls) == call
            if due and not after:
                raise KeyboardInterrupt
            result = real(*arguments)
            if due:
                raise KeyboardInterrupt
            return result

        with monkeypatch.context() as patch:
            patch.setattr(owner, target, interrupted)
            table = Table(TAILED, EPOCH, batch=8)
            handed = []
            for first in range(0, 400, 20):
                tails = [b"tail-%d" % n for n in range(first, first + 20)]
                while table.end == first or table.nbytes > 6000:
                    with suppress(KeyboardInterrupt):
                        if table.end == first:
                            table.append(*with_tails(events(20, first, comms=40), tails))
                        table.shrink(6000)
                frame = table.frame()
                handed.append((frame, table.begin, table.end))
        assert table.end == 400
        assert table.begin > 0
        assert next(calls) > call
        for frame, begin, end in handed:
            assert_events(frame, begin, end, comms=40)
            assert frame["args"].tolist() == [f"tail-{n}" for n in range(begin, end)]


# --- bpf_trace_printk's -------------------------------------------------------------------------------------------


def lines(*values: tuple[int, bytes, int, int, int, int, bytes]) -> tuple[Rows, np.ndarray, int]:
    rows = np.zeros(len(values), PRINTK_ROW)
    for row, (mono, comm, pid, cpu, flags, preempt, _) in zip(rows, values, strict=True):
        row["mono_ns"], row["comm"], row["pid"], row["cpu"] = mono, comm, pid, cpu
        row["flags"], row["preempt"] = flags, preempt
    messages = [value[-1] for value in values]
    rows["text_end"] = np.cumsum([len(message) for message in messages])
    return as_bytes(rows), np.frombuffer(b"".join(messages), np.uint8), 0


def test_lines() -> None:
    table = PrintkTable(EPOCH)
    table.append(
        *lines(
            (1_500_000_000, b"bash", 42, 1, 0x01, 0x02, b"one"),
            (1_500_000_001, b"a\xff", 43, 0, 0x00, 0x00, b""),
            (3, b"bash", -1, 300, 0x41, 0x21, "nul\0 stays, caf\N{LATIN SMALL LETTER E WITH ACUTE}".encode()),
            (4, b"x" * 16, 1, 0, 0x02, 0x00, b"bad \xc3"),
        )
    )
    frame = table.frame()
    assert tuple(frame) == table.names == PrintkTable.COLUMNS
    assert {name: str(dtype) for name, dtype in frame.dtypes.items() if name != "msg"} == {
        "time": "datetime64[ns, UTC]",
        "comm": "category",
        "pid": "int32",
        "cpu": "int16",
        "flags": "category",
        "ts": "float64",
    }
    assert frame["msg"].dtype == text_dtype()
    assert frame["time"].astype("int64").tolist() == [EPOCH + n for n in (1_500_000_000, 1_500_000_001, 3, 4)]
    assert frame["ts"].tolist() == [1_500_000_000 / 1e9, 1_500_000_001 / 1e9, 3 / 1e9, 4 / 1e9]
    assert frame["comm"].tolist() == ["bash", "a\N{REPLACEMENT CHARACTER}", "bash", "x" * 16]
    assert frame["pid"].tolist() == [42, 43, -1, 1]
    assert frame["cpu"].tolist() == [1, 0, 300, 0]
    assert frame["flags"].tolist() == ["d..2.", ".....", "d.z12", ".l..."]
    assert frame["msg"].tolist() == ["one", "", "nul\0 stays, café", "bad \N{REPLACEMENT CHARACTER}"]
    assert table.raw("comm").tolist()[1] == b"a\xff".ljust(16, b"\0")


def test_no_lines() -> None:
    frame = PrintkTable(EPOCH).frame()
    assert tuple(frame) == PrintkTable.COLUMNS
    assert frame.empty


# --- rates --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        table_of(events(5), schema=Schema(COLUMNS, EVENT.itemsize)).frame(),
        pd.DataFrame({"time": [1, 2, 3]}),  # the struct's own, and no clock
    ],
    ids=["no time", "time is a number"],
)
def test_a_rate_needs_times(frame: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"these events have none: .* clock is None"):
        rates.rate(frame)


def test_a_meter_of_a_number_column() -> None:
    """Also of a float that is no number."""
    schema = Schema((Number("ts", 0, "<u8"), Number("load", 8, "<f8")), 16, time="ts")
    rows = np.array([(0, 0.5), (1, np.nan), (2, 0.5), (3, np.nan)], [("ts", "<u8"), ("load", "<f8")])
    table = table_of(as_bytes(rows), schema=schema)
    now = EPOCH + 2_000_000_000
    meter = RateMeter(
        lambda position, by: Arrivals(Position(table.end), *table.since(position.row, by)),
        by="load",
        life=lambda: Life(EPOCH - 5_000_000_000, now, False),
    )
    meter.update()
    assert meter.rates().sum().to_dict() == {"0.5": 2, "nan": 2}


def test_a_frame_shows_marks_as_escapes_and_keeps_its_values() -> None:
    marked = "\x1b[31mred\u202e<b>"
    frame = tables.with_escapes(pd.DataFrame({"comm": pd.Categorical([marked])}))
    for text in (frame.to_html(), frame._repr_html_(), frame.to_string(), repr(frame)):
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "\\x1b[31mred\\u202e" in text
    assert "&lt;b&gt;" in frame.to_html()
    assert frame.comm.tolist() == [marked]
    assert pickle.loads(pickle.dumps(frame)).equals(frame)
    assert frame.copy().equals(frame)
    alive = weakref.ref(frame)
    del frame
    assert alive() is None  # no cycle keeps it


@pytest.mark.parametrize("write", ["to_string", "to_html", "_repr_html_"])
def test_a_frame_that_nobody_keeps_is_shown(write: str) -> None:
    text = getattr(tables.with_escapes(pd.DataFrame({"comm": ["\x1b"]})), write)()  # an assertion would keep it
    assert "\\x1b" in text


def test_a_frame_with_escapes_passes_for_any_other() -> None:
    plain = pd.DataFrame({"comm": ["a"]})
    plain.attrs["lost"] = 1
    shown = tables.with_escapes(plain.copy())
    pd.testing.assert_frame_equal(plain, shown)
    pd.testing.assert_frame_equal(shown, plain)
    for made in (shown.copy(), shown[["comm"]], pickle.loads(pickle.dumps(shown))):
        assert type(made) is pd.DataFrame
        assert made.attrs == plain.attrs
