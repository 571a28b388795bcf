"""Rows as they come: each once, to every reader, whatever ends or interrupts it."""

from __future__ import annotations

import itertools
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from interrupting import every_point
from test_output import SCHEMA, events, filled

import bpfnb
from bpfnb.errors import AttachError, ProgramError
from bpfnb.hosts import default_host
from bpfnb.interrupts import Flag
from bpfnb.language.program import parse
from bpfnb.protocol.schema import BitField, Bytes, Enum, Number, NumberArray, Schema, Tail, Text, Wide
from bpfnb.protocol.segments import SegmentSizes, SegmentWriter
from bpfnb.results.output import Keep, Output, Position
from bpfnb.results.presentation import Presentation, Rows, Table
from bpfnb.results.stream import Batches, Events, Source, field_names
from bpfnb.session import Session
from bpfnb.testing import FakeTracer

pytestmark = pytest.mark.timeout(60)

CELL = "BPF_PERF_OUTPUT(events);\nint kprobe__sys_sync(void *ctx) { events.perf_submit(ctx, &e, sizeof(e)); return 0; }"
MAPS = "BPF_HASH(counts, u32, u64);\nint kprobe__sys_sync(void *ctx) { return 0; }"
ROW = np.dtype([("when", "<u8"), ("seq", "<u4"), ("comm", "S8")])


def rows(first: int, count: int, dtype: np.dtype[Any] = ROW) -> np.ndarray:
    made = np.zeros(count, dtype)
    made["seq"], made["when"], made["comm"] = np.arange(first, first + count), np.arange(first, first + count), b"task"
    return made


@pytest.fixture
def tracer() -> Iterator[FakeTracer]:
    with FakeTracer(sizes=SegmentSizes(ROW.itemsize * 100, 4096)) as tracer:
        yield tracer
        bpfnb.stop_all()


def started(tracer: FakeTracer, count: int = 3, time: str = "", keep: int | None = None) -> Session:
    session = bpfnb.trace(CELL, name="s", keep=keep)
    tracer.events(session, "events", rows(0, count), time)
    return session


def presented(presentation: Presentation, cell: str = CELL) -> Session:
    return default_host.start(parse(cell), name="s", presentation=presentation)


def read_by_thread(read: Callable[[], object]) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(read()))
    thread.start()
    return thread, found


# --- what comes ---------------------------------------------------------------------------------------------------


def test_events_come_one_by_one_until_the_session_ends(tracer: FakeTracer) -> None:
    session = started(tracer)
    seen = []
    for event in session:
        seen.append(event.seq)
        if event.seq == 2:
            assert session.state == "running"
            tracer.events(session, "events", rows(3, 250))
        if event.seq == 252:
            session.stop()
    assert seen == list(range(253))
    assert [event.seq for event in session] == seen  # those of a stopped session, as often as one likes


def test_batches_are_what_is_new_and_never_empty(tracer: FakeTracer) -> None:
    session = started(tracer)
    batches = session.stream(every="1ms")
    assert next(batches).seq.tolist() == [0, 1, 2]
    thread, found = read_by_thread(lambda: next(batches))
    time.sleep(0.05)
    assert not found
    tracer.events(session, "events", rows(3, 1))
    thread.join()
    assert found[0].seq.tolist() == [3]
    assert list(found[0].index) == [0]
    tracer.events(session, "events", rows(4, 300))
    session.stop()
    rest = pd.concat(list(batches))
    assert rest.seq.tolist() == list(range(4, 304))
    assert rest.dtypes.to_dict() == session.df.dtypes.to_dict()


def test_the_last_rows_come_before_the_end(tracer: FakeTracer) -> None:
    """GIVEN a reader that waits WHEN the last rows and the end come together THEN it has them first."""
    for read in (lambda s: [e.seq for e in s], lambda s: [n for b in s.stream(every="10s") for n in b.seq.tolist()]):
        session = started(tracer)
        thread, found = read_by_thread(lambda read=read, session=session: read(session))
        time.sleep(0.03)
        tracer.events(session, "events", rows(3, 500))
        session.stop()
        thread.join(2)  # not ten seconds
        assert found == [list(range(503))]


@pytest.mark.parametrize(("end", "state"), [("reason", "stopped"), ("death", "failed")])
def test_however_it_ends_all_rows_come_first(end: str, state: str) -> None:
    with FakeTracer() as tracer:
        session = started(tracer)
        threads = [read_by_thread(lambda: [e.seq for e in session]) for _ in range(2)]
        time.sleep(0.03)
        tracer.events(session, "events", rows(3, 10))
        tracer.die() if end == "death" else tracer.end(session, "the guard had enough")
        for thread, found in threads:
            thread.join(5)
            assert found == [list(range(13))]
        assert session.state == state


def test_rows_that_come_as_it_ends_are_not_missed() -> None:
    """WHEN rows and the end come right after a reader has looked for rows THEN it looks once more."""

    class Ending(Output):
        def read(self, position: Position, most: int | None = None) -> tuple[pd.DataFrame, Position]:
            found = super().read(position, most)
            if not ended.is_set():
                writer.append(events(5, 5))  # follow those there are, or are the first
                ended.set()
            return found

    for first, reader in ((5, Events), (0, lambda source: Batches(source, "1ms", new=False))):
        ended = Flag()
        output = Ending("o", SCHEMA, 0, Keep(1 << 30), "perf")
        writer = SegmentWriter(SCHEMA, output.add_segment)
        writer.append(events(first))
        found = list(reader(Source(output, ended)))
        pids = [event.pid for event in found] if reader is Events else pd.concat(found).pid.tolist()
        assert pids == list(range(5 - first, 10))
        writer.close()
        output.finish()


def test_every_reader_has_every_row(tracer: FakeTracer) -> None:
    """Also beside df, which decodes rows before the readers look."""
    session = started(tracer, 0)
    reads: list[Callable[[], list[int]]] = [
        lambda: [e.seq for e in session],
        lambda: [e.seq for e in session],
        lambda: [n for batch in session.stream(every="2ms") for n in batch.seq.tolist()],
        lambda: [n for batch in session.stream("events", every="20ms") for n in batch.seq.tolist()],
    ]
    threads = [read_by_thread(read) for read in reads]
    for n in range(100):
        tracer.events(session, "events", rows(n * 37, 37))
        if n % 5 == 0:
            assert len(session.df) == 37 * (n + 1)
    session.stop()
    for thread, found in threads:
        thread.join(10)
        assert found == [list(range(3700))]


def test_new_ones_only(tracer: FakeTracer) -> None:
    session = started(tracer)
    batches = session.stream(new=True)  # from the call on, not from the first next()
    tracer.events(session, "events", rows(3, 2))
    session.stop()
    assert pd.concat(list(batches)).seq.tolist() == [3, 4]
    assert list(session.stream(new=True)) == []


def test_rows_are_sorted_within_a_batch_where_they_have_times(tracer: FakeTracer) -> None:
    session = bpfnb.trace(CELL, name="s")
    for order in ([5, 3, 4], [1, 2, 9]):
        tracer.events(session, "events", rows(0, 10)[order], "when")
        assert session.df.seq.tolist()[-3:] == order
        batch = next(session.stream(new=False)).seq.tolist()
        assert batch == sorted(session.df.seq)
    assert [e.seq for e in itertools.islice(session, 6)] == [1, 2, 3, 4, 5, 9]


def test_a_batch_is_the_readers_own(tracer: FakeTracer) -> None:
    session = started(tracer)
    first = next(session.stream())
    first.loc[0, "seq"] = 99
    first["comm"] = "x"
    assert session.df.seq.tolist() == next(session.stream()).seq.tolist() == [0, 1, 2]
    early = next(session.stream())
    tracer.events(session, "events", rows(3, 1000))
    assert len(session.df) == 1003
    assert early.seq.tolist() == [0, 1, 2]
    assert early.comm.tolist() == ["task"] * 3


def test_batches_come_at_the_pace_asked_for(tracer: FakeTracer) -> None:
    session = started(tracer)
    batches = session.stream(every="150ms")
    next(batches)
    began = time.monotonic()
    tracer.events(session, "events", rows(3, 1))
    next(batches)
    assert 0.1 < time.monotonic() - began < 1


# --- values -------------------------------------------------------------------------------------------------------

KINDS = Schema(
    (
        Number("ts", 0, "<u8"),
        Number("big", 8, "<u8"),
        Number("real", 16, "<f8"),
        Number("small", 24, "i1"),
        Number("flag", 25, "?"),
        BitField("bits", 26, "<u2", 3, 5),
        Enum("state", 28, "<u4", labels=(("IDLE", 0), ("BUSY", 1))),
        Text("comm", 32, 8),
        Bytes("raw", 40, 3),
        NumberArray("slots", 44, "<u2", (2,)),
        Wide("wide", 48, True),
        Tail("args", 72, text=True),
    ),
    72,
    time="ts",
    text_end=64,
)


def test_values_are_pythons_own() -> None:
    """Against struct.pack of the same, column by column, also of rows in the middle of many."""
    made = np.zeros((600, 72), np.uint8)
    texts = [f"arg{n}".encode() * (n % 3) for n in range(600)]
    for n in range(600):
        made[n, 0:8] = list((1_000_000_000 + n).to_bytes(8, "little"))
        made[n, 8:16] = list((2**64 - 1 - n).to_bytes(8, "little"))
        made[n, 16:24] = np.array([n / 2 if n else np.nan]).view(np.uint8)
        made[n, 24], made[n, 25] = (-n) % 256, n % 2
        made[n, 26:28] = list(((n % 32) << 3).to_bytes(2, "little"))
        made[n, 28] = n % 3
        made[n, 32:40] = list(f"c{n}".encode().ljust(8, b"\0"))
        made[n, 40:43] = [n % 256, 0, 7]
        made[n, 44:48] = np.array([n, n + 1], "<u2").view(np.uint8)
        made[n, 48:64] = list((-n * 2**70).to_bytes(16, "little", signed=True))
        made[n, 64:72] = np.array([sum(map(len, texts[: n + 1]))], np.int64).view(np.uint8)
    output = Output("o", KINDS, 0, Keep(1 << 30), "perf")
    writer = SegmentWriter(KINDS, output.add_segment, sizes=SegmentSizes(72 * 50, 1 << 16))
    ended = Flag()
    reader = Events(Source(output, ended))
    seen = []
    done = 0
    for end in (1, 7, 300, 600):
        begin = sum(map(len, texts[:done]))
        part = made[done:end].copy()
        part[:, 64:72].view(np.int64)[:, 0] -= begin
        writer.append(part, np.frombuffer(b"".join(texts[done:end]), np.uint8))
        seen += list(itertools.islice(reader, end - done))
        done = end
    ended.set()
    assert list(reader) == []
    pieces, position = [], Position()
    while len(piece := (read := output.read(position, 7))[0]):
        pieces.append(piece)
        position = read[1]
    assert {len(piece) for piece in pieces} == {7, 600 % 7}
    pd.testing.assert_frame_equal(pd.concat(pieces, ignore_index=True), output.df)
    assert seen[0]._fields == (
        *("time", "ts", "big", "real", "small", "flag", "bits", "state", "comm", "raw"),
        *("slots_0_", "slots_1_", "wide", "args"),
    )
    for n, event in enumerate(seen):
        assert event.time == pd.Timestamp(1_000_000_000 + n, tz="UTC")
        assert type(event.time) is pd.Timestamp
        assert event.real == n / 2 if n else event.real != event.real
        rest = event._replace(time=None, real=None)
        state = ("IDLE", "BUSY", "2")[n % 3]
        small = (-n + 128) % 256 - 128
        assert rest == (
            *(None, 1_000_000_000 + n, 2**64 - 1 - n, None, small, bool(n % 2), n % 32, state, f"c{n}"),
            *(bytes([n % 256, 0, 7]), n, n + 1, -n * 2**70, texts[n].decode()),
        )
        assert {type(value) for value in event} <= {pd.Timestamp, int, float, bool, str, bytes}
    writer.close()
    output.finish()


def test_missing_values_are_none(tracer: FakeTracer) -> None:
    def convert(frame: pd.DataFrame) -> pd.DataFrame:
        odd = frame.seq % 2 == 1
        times = pd.Series(pd.to_timedelta(frame.seq, unit="us"))
        return pd.DataFrame(
            {
                "name": frame.comm.where(odd),
                "text": frame.comm.astype(str).where(odd),
                "number": frame.seq.astype("Int64").where(odd),
                "took": times.where(odd),
                "share": frame.seq.astype(float).where(odd),
                "few": pd.Categorical.from_codes([-1] * len(frame), ["a"]),
            }
        )

    with presented(Rows(convert)) as session:
        tracer.events(session, "events", rows(0, 2))
        missing, there = itertools.islice(session, 2)
    assert missing[:4] == (None, None, None, None)
    assert missing.share != missing.share
    assert missing.few is None
    assert there == ("task", "task", 1, pd.Timedelta("1us"), 1.0, None)


def test_field_names() -> None:
    columns = {
        "slots[0]": "slots_0_",
        "slots_0_": "slots_0__",
        "key.pid": "key_pid",
        "class": "class_",
        "_pad": "x_pad",
        "2 * n": "x2___n",
        "é": "é",
        "": "x_",
        "count": "count",
        "len(path)": "len_path_",
        "from": "from_",
        "from_": "from__",
    }
    assert field_names(columns) == list(columns.values())


# --- what else is streamed ----------------------------------------------------------------------------------------


def test_an_error_names_a_line_only_of_what_somebody_wrote(tracer: FakeTracer) -> None:
    wrong = AttachError("uprobe:c:*: it matches 6,488 functions", line=1)
    tracer.refuse(wrong)
    with pytest.raises(AttachError) as caught:
        presented(Rows(lambda frame: frame))
    assert caught.value.report() == ["AttachError: uprobe:c:*: it matches 6,488 functions"]
    tracer.refuse(wrong)
    with pytest.raises(AttachError, match=r"^line 1: uprobe:c:\*: it"):
        bpfnb.trace(CELL)


def test_converted_rows_are_what_df_has(tracer: FakeTracer) -> None:
    """A batch of which nothing is left is none."""

    def convert(frame: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"double": frame.seq[frame.seq % 100 == 0] * 2}).reset_index(drop=True)

    with presented(Rows(convert)) as session:
        tracer.events(session, "events", rows(0, 50))
        batches = session.stream(every="1ms")
        assert next(batches).double.tolist() == [0]
        tracer.events(session, "events", rows(50, 40))
        tracer.events(session, "events", rows(90, 250))
        raw = session.stream("events")
    assert [n for batch in batches for n in batch.double.tolist()] == [200, 400, 600]
    assert [event.double for event in session] == session.df.double.tolist() == [0, 200, 400, 600]
    assert len(next(raw)) == 340


def test_what_has_no_rows_says_so() -> None:
    with FakeTracer(maps={"counts": (np.array([1], "<u4"), np.array([1], "<u8"))}):
        with bpfnb.trace(MAPS, name="s") as session:
            for act in (lambda: iter(session), session.stream):
                with pytest.raises(ProgramError, match=r"s has no output.*in maps: s\.maps\['counts'\]\.df"):
                    act()
            with pytest.raises(KeyError, match="counts is a map, not an output"):
                session.stream("counts")
        with presented(Table(lambda maps: maps["counts"].df), MAPS) as session:
            for act in (lambda: iter(session), session.stream):
                with pytest.raises(ProgramError, match=r"s counts in maps.*s\.df.*s\.maps\['counts'\]\.every\('1s'\)"):
                    act()


def test_bad_input_is_said_at_once(tracer: FakeTracer) -> None:
    session = started(tracer)
    with pytest.raises(KeyError, match=r"no output 'event'.*events"):
        session.stream("event")
    for every in ("soon", "-1s", "0s", "10us", "", None, object()):
        with pytest.raises(ValueError, match="interval"):
            session.stream(every=every)  # type: ignore[arg-type]


# --- what is lost -------------------------------------------------------------------------------------------------


def test_rows_dropped_before_they_were_read_are_counted_and_warned_of_once() -> None:
    """Whether they were decoded before they were dropped or not."""
    for beside in (False, True):
        with filled(SCHEMA, keep=40_000) as (output, writer):
            ended = Flag()
            batches = Batches(Source(output, ended), "1ms", new=False)
            writer.append(events(10))
            assert next(batches).attrs == {"lost": 0, "dropped": 0}
            got, warned = 10, []
            for n in range(20):
                writer.append(events(500, 10 + n * 500))
                if beside:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        assert len(output.df)
                if n % 7 == 6:
                    with warnings.catch_warnings(record=True) as caught:
                        warnings.simplefilter("always")
                        batch = next(batches)
                    warned += [str(w.message) for w in caught]
                    got += len(batch)
                    done = 10 + (n + 1) * 500
                    assert batch.pid.tolist()[-1] == done - 1
                    assert batch.attrs["dropped"] == batches.dropped == done - got > 0
            assert len(warned) == 1
            assert "not yet read rows of perf were dropped: keep is 40,000 bytes" in warned[0]


def test_a_fast_reader_misses_nothing_however_small_keep_is() -> None:
    with filled(SCHEMA, keep=40_000) as (output, writer):
        ended = Flag()
        batches, one_by_one = Batches(Source(output, ended), "1ms", new=False), Events(Source(output, ended))
        for n in range(200):
            writer.append(events(100, n * 100))
            assert next(batches).pid.tolist() == list(range(n * 100, (n + 1) * 100))
            assert [e.pid for e in itertools.islice(one_by_one, 100)] == list(range(n * 100, (n + 1) * 100))
        assert batches.dropped == one_by_one.dropped == 0
        assert output.dropped > 0


def test_one_that_begins_late_says_what_is_gone_already_unless_it_asks_for_new_ones() -> None:
    with filled(SCHEMA, keep=40_000) as (output, writer):
        for n in range(50):
            writer.append(events(100, n * 100))
            output.end()
        late, new = (Batches(Source(output, Flag()), "1ms", new=new) for new in (False, True))
        with pytest.warns(RuntimeWarning, match="were dropped"):
            batch = next(late)
        assert batch.attrs["dropped"] == 5000 - len(batch) > 0
        writer.append(events(5, 5000))
        assert next(new).attrs["dropped"] == 0


def test_a_warning_that_is_an_error_costs_no_row(tracer: FakeTracer) -> None:
    session = started(tracer)
    tracer.lose(session, 7, "events")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for reader in (iter(session), session.stream()):
            session.outputs["events"]._loss_said = False
            with pytest.raises(RuntimeWarning, match="7 events of events were lost"):
                next(reader)
            assert next(reader)[0] is not None if isinstance(reader, Events) else len(next(reader)) == 3


def test_a_warning_names_the_line_that_reads(tracer: FakeTracer) -> None:
    session = started(tracer)
    tracer.lose(session, 7, "events")
    for read in (lambda: next(iter(session)), lambda: next(session.stream()), lambda: session.outputs["events"].df):
        session.outputs["events"]._loss_said = False
        with pytest.warns(RuntimeWarning, match="lost") as caught:
            read()
        assert caught[0].filename == __file__


# --- interrupts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behind", [True, False])
def test_an_interrupt_costs_no_row_and_gives_none_twice(tracer: FakeTracer, behind: bool) -> None:
    """At every point of the next event or frame, whether some are ready or it has to look for new ones."""
    session = started(tracer, 0)
    put = 0
    one_by_one, batches = iter(session), session.stream(every="1ms")
    seen: list[int] = []
    by_batch: list[int] = []

    def read() -> None:
        seen.append(next(one_by_one).seq)
        by_batch.extend(next(batches).seq.tolist())

    def more() -> None:
        nonlocal put
        tracer.events(session, "events", rows(put, 3))
        put += 3

    more()
    read()
    tries = 0
    for _ in every_point(read):
        if not behind:
            seen += [event.seq for event in itertools.islice(one_by_one, put - len(seen))]
        more()
        tries += 1
    assert tries > 20
    session.stop()
    seen += [event.seq for event in one_by_one]
    by_batch += [n for batch in batches for n in batch.seq.tolist()]
    assert seen == by_batch == list(range(put))


def test_leaving_a_loop_leaves_the_session_running(tracer: FakeTracer) -> None:
    session = started(tracer)
    for _ in session:
        break
    for _ in session.stream():
        break
    assert session.state == "running"
