"""Sessions against a tracer without a kernel: what is delivered, counted, kept and dropped."""

from __future__ import annotations

import errno
import gc
import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest

import bpfnb
from bpfnb.errors import AttachError, CompileError, Diagnostic, VerifierError
from bpfnb.host import client
from bpfnb.hosts import default_host
from bpfnb.protocol import messages
from bpfnb.protocol.segments import SegmentSizes
from bpfnb.results import output, printk
from bpfnb.testing import FakeTracer, Line

HELLO = 'int kprobe__sys_clone(void *ctx) { bpf_trace_printk("Hello, World!\\n"); return 0; }'


def test_lines_become_rows() -> None:
    with FakeTracer() as tracer, bpfnb.trace(HELLO, name="hello") as session:
        now = time.monotonic_ns()
        tracer.printk(session, [Line("bash", 42, "one", cpu=1, mono_ns=now), Line("sh", 43, "", mono_ns=now + 5)])
        tracer.printk(session, [Line("bash", 44, "three \u2603")])
        df = session.df
    assert df.comm.tolist() == ["bash", "sh", "bash"]
    assert df.pid.tolist() == [42, 43, 44]
    assert df.cpu.tolist() == [1, 0, 0]
    assert df.msg.tolist() == ["one", "", "three \u2603"]
    assert df.ts[0] == now / 1e9
    assert abs(df.time[0].timestamp() - time.time()) < 5
    assert (df.time[1] - df.time[0]).value == 5
    assert tracer.stopped == [session._number]


def test_a_frame_never_changes_once_handed_out() -> None:
    """Later lines go into later frames; what a person writes into one goes nowhere else."""
    with FakeTracer() as tracer, bpfnb.trace(HELLO, name="hello") as session:
        tracer.printk(session, [("bash", 1, "first")])
        early = session.df
        again = session.df
        again.loc[0, "pid"] = 99
        again["msg"] = "overwritten"
        tracer.printk(session, [("zsh", 2, "second")])
        late = session.df
    assert early.pid.tolist() == [1]
    assert early.msg.tolist() == ["first"]
    assert list(early.comm.cat.categories) == ["bash"]
    assert late.pid.tolist() == [1, 2]
    assert late.msg.tolist() == ["first", "second"]


def test_an_unchanged_frame_is_not_built_again(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    build = printk.PrintkTable._build
    monkeypatch.setattr(printk.PrintkTable, "_build", lambda table: built.append(table.end) or build(table))
    with FakeTracer() as tracer, bpfnb.trace(HELLO, name="hello") as session:
        tracer.printk(session, [("bash", n, "x") for n in range(1000)])
        first, second = session.df, session.df
        assert built == [1000]
        tracer.printk(session, [("bash", 1, "x")])
        third = session.df
    assert built == [1000, 1001]
    assert first is not second
    assert [len(df) for df in (first, second, third)] == [1000, 1000, 1001]


def test_an_empty_session_has_the_columns_and_their_types() -> None:
    with FakeTracer(), bpfnb.trace(HELLO, name="hello") as session:
        df = session.df
    assert df.empty
    assert {n: str(t) for n, t in df.dtypes.items() if n != "msg"} == {
        "time": "datetime64[ns, UTC]",
        "comm": "category",
        "pid": "int32",
        "cpu": "int16",
        "flags": "category",
        "ts": "float64",
    }
    assert df.attrs == {"lost": 0, "dropped": 0}


def test_the_main_output_is_one_that_is_submitted_to_even_where_an_error_path_prints() -> None:
    cell = "BPF_PERF_OUTPUT(unused); BPF_PERF_OUTPUT(events); BPF_PERF_OUTPUT(others);\n" + HELLO
    rows = np.array([(7,), (8,)], [("seq", "<u8")])
    with FakeTracer() as tracer, bpfnb.trace(cell, name="hello") as session:
        assert session.df.columns.tolist() == session.outputs["printk"].df.columns.tolist()
        tracer.printk(session, [("bash", 1, "it failed")])
        tracer.events(session, "others", rows)
        tracer.events(session, "events", rows[:1])
        assert session.df.seq.tolist() == [7]
        meter = session.meter()
        meter.update()
        assert meter.total == 1
        assert session.outputs["printk"].df.msg.tolist() == ["it failed"]


def test_what_is_lost_is_said_everywhere() -> None:
    with FakeTracer() as tracer, bpfnb.trace(HELLO, name="hello") as session:
        tracer.printk(session, [("bash", 1, "x")])
        tracer.lose(session, 17)
        assert session.lost == session.outputs["printk"].lost == session.df.attrs["lost"] == 17
        assert "17 lost" in repr(session)
        assert "17" in session._repr_html_()
    assert session.lost == 17  # also once the shared memory is gone


def test_a_segment_is_followed_by_the_next() -> None:
    """Whether rows or text fill it, in one append or in many."""
    with FakeTracer(sizes=SegmentSizes(40 * 100, 4096)) as tracer, bpfnb.trace(HELLO, name="hello") as session:
        lines = [("bash", n, f"{n:04d}" * (1 if n < 500 else 250)) for n in range(600)]
        tracer.printk(session, lines[:1])
        tracer.printk(session, lines[1:450])
        assert len(session.df) == 450
        tracer.printk(session, lines[450:])
        tracer.lose(session, 3)
        df = session.df
    assert df.pid.tolist() == list(range(600))
    assert df.msg.tolist() == [message for _, _, message in lines]
    assert session.lost == 3
    assert session.snapshot().rows == 600


@pytest.mark.filterwarnings("ignore:the oldest .* were dropped:RuntimeWarning")
def test_memory_is_bounded_and_says_so() -> None:
    """The oldest rows go, whether anybody asks for the frame meanwhile or not; nothing is counted twice."""
    sizes = SegmentSizes(40 * 1000, 1 << 16)
    for ask in (False, True):
        with FakeTracer(sizes=sizes) as tracer, bpfnb.trace(HELLO, name="hello", keep=200_000) as session:
            for start in range(0, 50_000, 500):
                tracer.printk(session, [("bash", n, "message") for n in range(start, start + 500)])
                if ask:
                    len(session.df)
            df = session.df
            snapshot = session.snapshot()
            assert df.attrs["dropped"] == snapshot.dropped == 50_000 - len(df) > 0
            assert df.pid.tolist() == list(range(50_000 - len(df), 50_000))
            assert snapshot.rows == session.outputs["printk"].rows == 50_000
            assert 1000 < len(df) < 10_000


def test_keep_has_a_sensible_default() -> None:
    assert 256 << 20 <= output.default_keep() <= 4 << 30


def test_rate() -> None:
    second = 1_000_000_000
    start = (time.monotonic_ns() // second + 10) * second
    with FakeTracer() as tracer, bpfnb.trace(HELLO, name="hello") as session:
        epoch = session.outputs["printk"]._table._epoch_ns
        start -= epoch % second  # so that whole seconds of the wall clock begin there
        lines = [Line("a", 1, "x", mono_ns=start + n * second // 4) for n in range(8)]
        lines += [Line("b", 2, "x", mono_ns=start + 3 * second + 1)]
        tracer.printk(session, lines)
        whole, by_comm, fine = session.rate(), session.rate(by="comm"), session.rate("500ms")
        with pytest.raises(ValueError, match="no column 'nothing'"):
            session.rate(by="nothing")
        for wrong in ("fast", "1 month", "s"):
            with pytest.raises(ValueError, match=f"not an interval: {wrong!r}; write 1s, 100ms or 2min"):
                session.rate(wrong)
        with pytest.raises(ValueError, match="longer than nothing"):
            session.rate("0s")
    assert whole["rate"].tolist() == [4.0, 4.0, 0.0, 1.0]
    assert by_comm["a"].tolist() == [4.0, 4.0, 0.0, 0.0]
    assert by_comm["b"].tolist() == [0.0, 0.0, 0.0, 1.0]
    assert fine["rate"].tolist() == [4.0, 4.0, 4.0, 4.0, 0.0, 0.0, 2.0]
    by_comm["sum"] = by_comm.sum(axis=1)
    assert by_comm["sum"].tolist() == whole["rate"].tolist()
    assert by_comm.columns.name == "comm"
    assert str(whole.index.dtype) == "datetime64[ns, UTC]"
    assert (whole.index[1] - whole.index[0]) == pd.Timedelta("1s")


def test_rate_of_nothing() -> None:
    with FakeTracer(), bpfnb.trace(HELLO, name="hello") as session:
        assert session.rate().empty
        assert session.rate(by="comm").empty


def test_a_meter_counts_what_is_new() -> None:
    with FakeTracer() as tracer, bpfnb.trace(HELLO, name="hello") as session:
        meter = session.meter(by="comm")
        meter.update()
        assert meter.total == 0
        tracer.printk(session, [("a", 1, "x"), ("b", 1, "x"), ("a", 1, "x")])
        meter.update()
        tracer.printk(session, [("b", 1, "x")])
        meter.update()
        with pytest.raises(ValueError, match="no column"):
            session.meter(by="nothing")
    meter.update()
    assert meter.total == 4
    assert meter.rates().index[-1].timestamp() == int(session.df.time.iloc[-1].timestamp())
    assert meter.counts_of(["a", "b"], meter.oldest, meter.until).sum(axis=1).tolist() == [2, 2]
    assert len(meter.rates()) == 60


def test_errors_cross_over_whole() -> None:
    """Class, line, hint and data are what they were on the tracer's side."""
    for error in (
        CompileError("bad", diagnostics=[Diagnostic(2, 3, "error", "bad")], log="clang said", line=2, column=3),
        VerifierError("no", summary="R0 !read_ok", log="0: exit", explanation="set r0", line=1),
        AttachError("there is none", probe="kprobe:x", errno=2, hint="did you mean y?"),
    ):
        with FakeTracer() as tracer:
            tracer.refuse(error)
            with pytest.raises(type(error)) as caught:
                bpfnb.trace(HELLO, name="hello")
            assert bpfnb.sessions() == {}
        assert vars(caught.value) == vars(error)
        assert str(caught.value) == str(error)


def test_a_refused_program_leaves_the_old_session() -> None:
    with FakeTracer() as tracer:
        old = bpfnb.trace(HELLO, name="hello")
        tracer.refuse(AttachError("no"))
        with pytest.raises(AttachError):
            bpfnb.trace(HELLO, name="hello")
        assert bpfnb.sessions() == {"hello": old}
        assert old.state == "running"
        old.stop()


def test_when_the_tracer_dies_the_rows_stay() -> None:
    with FakeTracer() as tracer:
        session = bpfnb.trace(HELLO, name="hello")
        tracer.printk(session, [("bash", 1, "x")])
        tracer.lose(session, 2)
        tracer.die()
        assert session.wait(5)
        assert (session.state, len(session.df), session.lost) == ("failed", 1, 2)
        assert "the tracer process ended" in session.reason
        assert bpfnb.sessions() == {}
        session.stop()
        assert session.state == "failed"


def test_a_session_ended_by_the_tracer_says_why_and_keeps_its_rows() -> None:
    with FakeTracer() as tracer:
        session = bpfnb.trace(HELLO, name="hello")
        assert session.reason == ""
        tracer.printk(session, [("bash", 1, "x")])
        tracer.end(session, "its source failed", detaching=1)
        assert session.wait(5)
        assert (session.state, session.reason, len(session.df)) == ("stopped", "its source failed", 1)
        assert "its source failed" in repr(session)
        assert "its source failed" in session._repr_html_()
        assert bpfnb.sessions() == {}
        assert session.detaching
        tracer.detached(session)
        session.stop()
        assert (session.reason, session.detaching, tracer.stopped) == ("its source failed", False, [])


def test_one_that_was_stopped_says_so_once() -> None:
    with FakeTracer():
        session = bpfnb.trace(HELLO, name="hello")
        session.stop()
        assert session.reason == "stopped"
        assert repr(session).count("stopped") == 1


def test_stopping_from_many_threads_stops_once() -> None:
    with FakeTracer() as tracer:
        session = bpfnb.trace(HELLO, name="hello")
        threads = [threading.Thread(target=session.stop) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert tracer.stopped == [session._number]


def test_sessions_and_stop_all() -> None:
    with FakeTracer():
        one, two = (bpfnb.trace(HELLO, name=name) for name in ("one", "two"))
        assert bpfnb.sessions() == {"one": one, "two": two}
        bpfnb.stop_all()
        assert bpfnb.sessions() == {}
        assert (one.state, two.state) == ("stopped", "stopped")


@pytest.mark.parametrize("name", ["", "a b", "class", "1st", "a-b", "x;y"])
def test_a_name_must_be_an_identifier(name: str) -> None:
    with FakeTracer() as tracer:
        with pytest.raises(bpfnb.ProgramError, match="identifier"):
            bpfnb.trace(HELLO, name=name)
        assert tracer.loaded == []


def test_keep_must_be_positive() -> None:
    with FakeTracer(), pytest.raises(bpfnb.ProgramError, match="positive"):
        bpfnb.trace(HELLO, name="hello", keep=0)
    with FakeTracer(), pytest.raises(bpfnb.ProgramError, match="whole number of bytes, not '1G'"):
        bpfnb.trace(HELLO, name="hello", keep="1G")  # type: ignore[arg-type]


BOTH = (
    "BPF_HASH(counts, u32);\nBPF_PERF_OUTPUT(events);\nBPF_RINGBUF_OUTPUT(others, 8);\n"
    "int kprobe__sys_clone(void *ctx) { u32 k = 0; counts.increment(k);"
    " events.perf_submit(ctx, &k, sizeof(k)); return 0; }"
)
EVENT = np.dtype([("ts", "<u8"), ("pid", "<u4"), ("comm", "S16")])


def events(count: int, first: int = 0) -> np.ndarray:
    return np.array(
        [(1_000_000_000 + n, n, b"bash" if n % 2 else b"python3") for n in range(first, first + count)], EVENT
    )


def test_events_of_a_struct_are_a_dataframe() -> None:
    with FakeTracer() as tracer, bpfnb.trace(BOTH, name="both") as session:
        tracer.events(session, "events", events(3), time="ts")
        df = session.df
        assert list(df.columns) == ["time", "ts", "pid", "comm"]
        assert df.comm.tolist() == ["python3", "bash", "python3"]
        assert df.pid.dtype == np.uint32
        tracer.events(session, "events", events(2, 3), time="ts")
        assert session.outputs["events"].df.pid.tolist() == [0, 1, 2, 3, 4]
        assert df.pid.tolist() == [0, 1, 2]  # what was handed out stays
        assert session.outputs["events"].kind == "perf"
        assert session.rate("1s", by="comm").to_numpy().sum() == 5
        assert set(session.outputs) == {"events"}
        with pytest.raises(KeyError, match="others is declared, but nothing in this cell submits to it"):
            session.outputs["others"]
        with pytest.raises(KeyError, match=r"counts is a map, not an output: both.maps\['counts'\]"):
            session.outputs["counts"]


def test_loss_is_said_once_and_everywhere() -> None:
    with FakeTracer() as tracer, bpfnb.trace(BOTH, name="both") as session:
        tracer.events(session, "events", events(3), time="ts")
        tracer.lose(session, 1200, "events")
        with pytest.warns(RuntimeWarning, match="1,200 events of events were lost"):
            df = session.df
        assert df.attrs["lost"] == session.lost == session.outputs["events"].lost == 1200
        assert "1,200 lost" in repr(session)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(session.df) == 3


def test_maps_are_read_written_and_outlive_the_session() -> None:
    entries = {"counts": (np.array([1, 2], "<u4"), np.array([10, 20], "<u8"))}
    with FakeTracer(maps=entries):
        with bpfnb.trace(BOTH, name="both") as session:
            counts = session.maps["counts"]
            assert counts.df.to_dict("list") == {"key": [1, 2], "value": [10, 20]}
            counts[3] = 30
            del counts[1]
            assert dict(counts.items()) == {2: 20, 3: 30}
            with pytest.raises(KeyError):
                counts[1]
            with pytest.raises(KeyError, match="has no map 'count'; did you mean counts"):
                session.maps["count"]
            with pytest.raises(KeyError, match="both has no map 'events'"):
                session.maps["events"]
        assert counts.df.value.tolist() == [20, 30]
        with pytest.raises(bpfnb.ProgramError, match="stopped"):
            counts[4] = 40
        with pytest.raises(bpfnb.ProgramError, match="stopped"):
            counts.clear()


def test_a_map_of_a_session_whose_tracer_died_is_gone_with_it() -> None:
    entries = {"counts": (np.array([1], "<u4"), np.array([10], "<u8"))}
    with FakeTracer(maps=entries) as tracer:
        session = bpfnb.trace(BOTH, name="both")
        tracer.die()
        session.wait(5)
        with pytest.raises(bpfnb.TracerDied):
            len(session.maps["counts"].df)


def test_updates_refused_are_seen_without_asking_and_stay_after_the_end() -> None:
    entries = {name: (np.array([1], "<u4"), np.array([10], "<u8")) for name in ("other", "counts")}
    source = f"BPF_HASH(other, u32);\n{BOTH}"
    with FakeTracer(maps=entries) as tracer, bpfnb.trace(source, name="both") as session:
        counts = session.maps["counts"]
        tracer.refuse_updates(session, "counts", 3)
        tracer.refuse_updates(session, "counts", 2, errno.EBUSY)
        tracer.refuse_updates(session, "counts", 9, errno.EINVAL)  # no fault of the map
        assert (counts.lost, session.maps["other"].lost, session.lost) == (5, 0, 0)
        said = r"5 updates .* full, with room for 10,240 entries \(3\), another program was .* \(2\); declare it larger"
        with pytest.warns(RuntimeWarning, match=said):
            assert counts.df.attrs["lost"] == 5
        assert "counts (hash, 5 updates refused)" in repr(session)
        tracer.refuse_updates(session, "counts", 4)
        tracer.die()
        session.wait(5)
        assert counts.lost == 6


def test_a_session_that_only_fills_maps_says_where_to_look() -> None:
    source = "BPF_HASH(counts, u32);\nint kprobe__sys_clone(void *ctx) { u32 k = 0; counts.increment(k); return 0; }"
    entries = {"counts": (np.array([1], "<u4"), np.array([10], "<u8"))}
    with FakeTracer(maps=entries), bpfnb.trace(source, name="counting") as session:
        with pytest.raises(bpfnb.ProgramError, match=r"counting.maps\['counts'\].df"):
            len(session.df)
        assert "maps: counts (hash)" in repr(session)
        assert "counts" in session._repr_html_()


def test_an_output_that_is_not_there_names_those_that_are() -> None:
    with FakeTracer(), bpfnb.trace(HELLO, name="hello") as session:
        assert list(session.outputs) == ["printk"]
        with pytest.raises(KeyError, match="did you mean printk"):
            session.outputs["print"]


def test_what_a_wire_brings_is_checked() -> None:
    """A client that hears no protocol ends the conversation instead of guessing."""
    import socket

    ours, theirs = socket.socketpair()
    talker = client.Client(ours)
    theirs.sendall(b"\xff" * 64)
    with pytest.raises(bpfnb.TracerDied):
        talker.hello()
    talker.close()
    theirs.close()


def test_the_child_of_a_fork_has_no_sessions() -> None:
    with FakeTracer(), bpfnb.trace(HELLO, name="hello") as session:
        pid = os.fork()
        if pid == 0:
            os._exit(0 if not bpfnb.sessions() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert session.state == "running"


def test_unnamed_sessions_of_a_script_run_side_by_side() -> None:
    with FakeTracer():
        first = bpfnb.trace(HELLO)
        second = bpfnb.trace(HELLO)
        assert [s.state for s in (first, second)] == ["running", "running"]
        assert bpfnb.sessions() == {first.name: first, second.name: second}
        numbers = [int(s.name.removeprefix("bpf")) for s in (first, second)]
        assert numbers[1] == numbers[0] + 1
        bpfnb.stop_all()


def test_one_line_that_starts_several_keeps_the_last_and_warns() -> None:
    with FakeTracer():
        with pytest.warns(RuntimeWarning, match="replaces the one started from the same line before") as caught:
            started = [bpfnb.trace(HELLO) for _ in range(2)]
        assert caught[0].filename == __file__
        assert [s.state for s in started] == ["stopped", "running"]
        assert bpfnb.sessions() == {started[0].name: started[1]}
        named = [bpfnb.trace(HELLO, name=f"loop{n}") for n in range(2)]  # what the warning says
        assert [s.state for s in named] == ["running", "running"]
        bpfnb.stop_all()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python knows the columns of calls from 3.11 on")
def test_several_calls_on_a_line_run_side_by_side() -> None:
    def both() -> list[bpfnb.Session]:
        return [bpfnb.trace(HELLO, keep=int("100000")), bpfnb.trace(HELLO)]

    with FakeTracer():
        with bpfnb.trace(HELLO) as a, bpfnb.trace(HELLO) as b:
            assert [s.state for s in (a, b)] == ["running", "running"]
        with pytest.warns(RuntimeWarning, match="replaces the one started from the same line before") as caught:
            first, second = (both() for _ in range(2))
        assert len(caught) == 2  # each its own
        assert [s.state for s in (*first, *second)] == ["stopped", "stopped", "running", "running"]
        assert [s.name for s in first] == [s.name for s in second]
        bpfnb.stop_all()


def test_a_named_session_notes_what_it_replaces() -> None:
    with FakeTracer():
        first = bpfnb.trace(HELLO, name="hello")
        assert first.warnings == ()
        second = bpfnb.trace(HELLO, name="hello")
        note = "hello replaces the session of that name, which is stopped"
        assert second.warnings == (Diagnostic(0, 0, "note", note),)
        assert note in repr(second)
        second.stop()


def test_where_no_line_is_known_unnamed_sessions_run_side_by_side() -> None:
    with FakeTracer():
        start = "import bpfnb; started.append(bpfnb.trace(source))"
        started: list[bpfnb.Session] = []
        for _ in range(2):
            exec(start, {"started": started, "source": HELLO})
        assert [s.state for s in started] == ["running", "running"]
        bpfnb.stop_all()


def test_a_fake_tracer_answers_for_single_keys_and_drains() -> None:
    source = "BPF_HASH(counts, u32, u64);\nBPF_PERF_ARRAY(clock, 2);\nint kprobe__sys_sync(void *ctx) { return 0; }"
    entries = {"counts": (np.array([1, 2], "<u4"), np.array([10, 20], "<u8"))}
    with FakeTracer(maps=entries), bpfnb.trace(source, name="faked") as session:
        counts = session.maps["counts"]
        assert (counts[2], counts.get(3), 1 in counts) == (20, None, True)
        assert counts.drain().value.tolist() == [10, 20]
        assert (len(counts), counts.get(2)) == (0, None)
        counts[2] = 5
        assert counts.drain("entries").value.tolist() == [5]


def test_an_unnamed_session_is_no_variable_of_the_notebook() -> None:
    """What a message says to write must not begin with bpf1, which is bound to nothing."""
    counting = "BPF_HASH(counts);\nint kprobe__sys_clone(void *ctx) { counts.increment(1); return 0; }"
    entries = {"counts": (np.array([1], "<u8"), np.array([2], "<u8"))}
    with FakeTracer(maps=entries):
        for name, variable in ((None, "session"), ("clones", "clones")):
            with bpfnb.trace(counting, name=name) as session, pytest.raises(bpfnb.ProgramError) as caught:
                session.df  # noqa: B018
            assert f"{variable}.maps['counts'].df" in str(caught.value)


class Behind(FakeTracer):
    """A tracer that reads maps behind the stop of their session."""

    def _reply(self, message: messages.ToTracer) -> messages.FromTracer:
        if isinstance(message, messages.Stop):
            return messages.Stopped(message.request, 0, tuple(self._maps))
        return super()._reply(message)


@contextmanager
def large_map() -> Iterator[tuple[Behind, bpfnb.Session]]:
    source = "BPF_HASH(counts, u32, u64); int kprobe__sys_clone(void *ctx) { return 0; }"
    entries = {"counts": (np.array([1, 2], np.uint32), np.array([5, 6], np.uint64))}
    with Behind(maps=entries) as tracer, bpfnb.trace(source, name="s") as session:
        yield tracer, session


def test_a_map_that_is_read_behind_the_stop_is_waited_for() -> None:
    with large_map() as (tracer, session):
        session.stop()
        assert (session.state, session.detaching) == ("stopped", False)
        timer = threading.Timer(0.2, tracer._send_map, [0, session._number, "counts"])
        timer.start()
        assert session.maps["counts"].df.value.tolist() == [5, 6]
        timer.join()
        tracer.detached(session)
        tracer._client.ping()
        assert tracer._client._listeners == {}


def test_a_map_that_could_not_be_read_in_time_is_an_error_with_its_size() -> None:
    why = "the map counts: it has more than 9 entries"
    with large_map() as (tracer, session):
        session.stop()
        tracer._connection.send(messages.MapLost(session._number, "counts", why))
        tracer.detached(session)
        with pytest.raises(bpfnb.MapError, match="more than 9 entries"):
            len(session.maps["counts"].df)
        assert why in repr(session)
        assert why in session._repr_html_()
        assert why in session.maps["counts"]._repr_html_()
        assert isinstance(bpfnb.MapError(""), bpfnb.ProgramError)


def test_a_session_that_was_detached_is_held_by_nobody() -> None:
    """Its rows would stay in memory."""
    with FakeTracer() as tracer:
        tracer.detaching = 1
        session = bpfnb.trace(HELLO, name="hello")
        session.stop()
        tracer.detached(session)
        default_host.connect().ping()  # its answer comes after
        alive = weakref.ref(session)
        del session
        gc.collect()
        assert alive() is None
