"""A panel and its thread, with sessions that are made up, and a wire in the place of a page."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import ipywidgets
import nbclient
import nbformat
import numpy as np
import pandas as pd
import pytest
from comm.base_comm import BaseComm
from made_up import HOSTILE, FakeSession, eventually, snapshot
from matplotlib import font_manager
from nbformat.v4 import new_code_cell, new_notebook

import bpfnb
from bpfnb.errors import ProgramError, UnsupportedError
from bpfnb.testing import FakeTracer
from bpfnb.views import html, refresh
from bpfnb.views.live.counters import CountersView
from bpfnb.views.live.panel import Panel, totals
from bpfnb.views.live.specs import specs_of
from bpfnb.views.live.view import Part, Static, ViewSpec
from bpfnb.views.notebook import Notebook


@pytest.fixture(autouse=True)
def _fonts_closed() -> Iterator[None]:
    """matplotlib keeps the font files it has opened; the leak check need not hear of them."""
    yield
    font_manager._get_font.cache_clear()


@pytest.fixture(autouse=True)
def _widgets_freed() -> Iterator[None]:
    """ipywidgets holds on to every widget that is not closed."""
    yield
    eventually(lambda: not refresh_threads(), "the thread's end")
    assert not ipywidgets.widgets.widget._instances


def refresh_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "bpfnb-refresh"]


# --- the refresh thread -------------------------------------------------------------------------------------------


class FakePanel:
    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.failed = error, None
        self.paints: list[float] = []
        self.done = self.urgent = False
        self.pause = 0.0

    def act(self) -> bool:
        return self.urgent

    def paint(self) -> float | None:
        if self.error:
            raise self.error
        self.paints.append(time.monotonic())
        return None if self.done else self.pause

    def fail(self, error: Exception) -> None:
        self.failed = error


def test_failing_panel_ends_alone() -> None:
    good, bad = FakePanel(), FakePanel(RuntimeError("no"))
    refresh.add(bad)
    refresh.add(good)
    eventually(lambda: len(good.paints) >= 2, "two paints of the good panel")
    assert bad.failed is bad.error
    good.done = True
    eventually(lambda: not refresh_threads(), "the thread's end")
    assert good.failed is None


def test_paints_at_most_five_times_a_second_however_often_woken() -> None:
    shown = FakePanel()
    shown.urgent = True
    refresh.add(shown)
    begin = time.monotonic()
    while time.monotonic() < begin + 1.5:
        refresh.wake()
        time.sleep(0.005)
    shown.done = True
    eventually(lambda: not refresh_threads(), "the thread's end")
    assert 3 <= len(shown.paints) <= 5 * (time.monotonic() - begin) + 2


def test_panel_that_sleeps_costs_nothing_and_wakes_when_it_must() -> None:
    asleep, awake = FakePanel(), FakePanel()
    asleep.pause = 60.0
    refresh.add(asleep)
    refresh.add(awake)
    eventually(lambda: len(awake.paints) >= 4, "four paints of the other panel")
    assert len(asleep.paints) == 1
    asleep.urgent = asleep.done = awake.done = True
    refresh.wake()
    eventually(lambda: not refresh_threads(), "the thread's end")
    assert len(asleep.paints) == 2


def test_one_thread_for_panels_added_and_closed_from_everywhere() -> None:
    def use() -> None:
        for _ in range(5):
            shown = FakePanel()
            refresh.add(shown)
            assert len(refresh_threads()) == 1
            shown.done = True
            eventually(lambda shown=shown: shown.paints, "a paint")

    users = [threading.Thread(target=use) for _ in range(8)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    eventually(lambda: not refresh_threads(), "the thread's end")


# --- a panel and its pages ----------------------------------------------------------------------------------------


class Wire(BaseComm):
    """The widget's comm, with what is sent on it; ``page`` says something as a page does."""

    def __init__(self, **options: Any) -> None:
        self.frames: list[dict[str, Any]] = []
        self.said: list[dict[str, Any]] = []
        self.gone = False
        self.kept = dict(options["data"]["state"])  # as nbclient would write it into the file
        super().__init__(**options)

    def publish_msg(
        self, msg_type: str, data: Any = None, metadata: Any = None, buffers: Any = None, **keys: Any
    ) -> None:
        self.gone |= msg_type == "comm_close"
        if msg_type == "comm_msg" and data["method"] == "update":
            self.kept |= data["state"]
        elif msg_type == "comm_msg":
            (self.frames if "frame" in data["content"] else self.said).append(data["content"])

    def page(self, name: str = "one", **message: Any) -> None:
        self.raw({"page": name, **message})

    def raw(self, content: Any) -> None:
        self.handle_msg({"content": {"data": {"method": "custom", "content": content}}, "buffers": []})


class Counting:
    """A view with a number, which is the header; it can break."""

    kind, title = "hist", "counted"

    def __init__(self) -> None:
        self.number, self.updates, self.chosen = 0, 0, {}
        self.broken: Exception | None = None
        self._read = 0
        self._sent = -1

    def update(self, last: bool) -> None:
        self.updates += 1
        self._read = self.number
        if self.broken:
            raise self.broken

    def whole(self) -> Part:
        self._sent = self._read
        return Part({"number": self._read}, (b"1234", b"5678"))

    def delta(self) -> Part | None:
        if self._sent == self._read:
            return None
        self._sent = self._read
        return Part({"number": self._read})

    def choose(self, **choices: Any) -> None:
        float(choices.get("top", 0))
        if choices.get("top") == 0:
            raise ValueError("top must be at least 1")
        self.chosen = choices

    def static(self) -> Static:
        return Static(f"{self._read} counted", f"<b>{self._read}</b>")


class Shown:
    """A panel of made up views, and its wire."""

    def __init__(self, *views: Any, session: FakeSession | None = None) -> None:
        self.session = session or FakeSession()
        self.views = views or (Counting(),)
        self.panel = Panel([self.session], self.views, self._connect)
        refresh.add(self.panel)

    def _connect(self, **options: Any) -> Wire:
        self.wire = Wire(**options)
        return self.wire

    def opened(self) -> None:
        self.wire.page(ready=True)
        eventually(lambda: self.wire.frames, "the first frame")

    def settled(self) -> int:
        """Wait until no more comes; the number of frames."""
        count = -1
        while count != len(self.wire.frames):
            count = len(self.wire.frames)
            time.sleep(0.5)
        return count


@pytest.fixture
def shown() -> Iterator[Shown]:
    shown = Shown(Counting(), Counting())
    yield shown
    shown.panel.close()


def test_first_frame_is_whole_and_the_next_ones_have_what_changed(shown: Shown) -> None:
    shown.opened()
    first = shown.wire.frames[0]
    assert first["base"] is None
    assert first["status"]["names"] == ["clones"]
    assert [view["number"] for view in first["views"]] == [0, 0]
    assert [(view["kind"], view["title"]) for view in first["views"]] == [("hist", "counted")] * 2
    assert first["counts"] == [2, 2]
    shown.views[1].number = 7
    eventually(lambda: len(shown.wire.frames) > 1, "a second frame")
    assert shown.wire.frames[1] == {
        "frame": first["frame"] + 1, "base": first["frame"], "views": [None, {"number": 7}], "counts": [0, 0],
    }  # fmt: skip


def test_nothing_is_sent_where_nothing_changes_or_nobody_looks(shown: Shown) -> None:
    time.sleep(0.5)
    assert not shown.wire.frames  # no page has asked
    shown.opened()
    quiet = shown.settled()
    shown.wire.page(visible=False)
    time.sleep(0.3)
    shown.views[0].number = 1
    read = shown.views[0].updates
    time.sleep(0.6)
    assert len(shown.wire.frames) == quiet
    assert shown.views[0].updates == read  # nor is the session read
    shown.wire.page(visible=True)
    eventually(lambda: len(shown.wire.frames) == quiet + 1, "what has changed meanwhile")
    assert shown.wire.frames[-1]["views"][0] == {"number": 1}
    shown.wire.page(gone=True)
    time.sleep(0.3)
    shown.views[0].number = 2
    time.sleep(0.6)
    assert len(shown.wire.frames) == quiet + 1


def test_page_that_does_not_draw_is_sent_no_more_than_eight_frames(shown: Shown) -> None:
    shown.opened()
    for number in range(1, 20):
        shown.views[0].number = number
        time.sleep(0.22)
    assert len(shown.wire.frames) == 8
    shown.wire.page(ack=shown.wire.frames[-1]["frame"])
    eventually(lambda: shown.wire.frames[-1]["views"][0] == {"number": 19}, "the newest")


def test_two_pages_have_the_panel_and_the_slower_one_sets_the_pace(shown: Shown) -> None:
    shown.opened()
    shown.wire.page("two", ready=True)
    eventually(lambda: len(shown.wire.frames) == 2, "a frame for the second page")
    assert shown.wire.frames[1]["base"] is None
    shown.wire.page(visible=False)
    shown.views[0].number = 5
    eventually(lambda: len(shown.wire.frames) == 3, "a frame for the page that is seen")
    shown.wire.page("two", visible=False)
    time.sleep(0.3)
    shown.views[0].number = 6
    time.sleep(0.5)
    assert len(shown.wire.frames) == 3


def test_pause_holds_all_views_and_resume_catches_up(shown: Shown) -> None:
    shown.opened()
    shown.wire.page(do="pause")
    eventually(lambda: shown.wire.frames[-1].get("status", {}).get("paused"), "that it is paused")
    held = shown.settled()
    shown.views[0].number = 3
    shown.session.event("bash")
    time.sleep(1.2)
    assert len(shown.wire.frames) == held
    shown.wire.page("two", ready=True)  # a page that is opened meanwhile sees what the other sees
    eventually(lambda: len(shown.wire.frames) == held + 1, "a frame for the second page")
    shown.wire.page(do="resume")
    eventually(lambda: shown.wire.frames[-1].get("status", {}).get("paused") is False, "that it goes on")
    assert shown.wire.frames[-1]["views"][0] == {"number": 3}


def test_pause_holds_a_recording_that_is_played() -> None:
    did: list[str] = []
    played = FakeSession()
    played.pause, played.resume = partial(did.append, "held"), partial(did.append, "goes on")  # type: ignore[attr-defined]
    shown = Shown(Counting(), session=played)
    shown.opened()
    shown.wire.page(do="pause")
    eventually(lambda: did == ["held"], "that it is held")
    shown.wire.page(do="resume")
    eventually(lambda: did == ["held", "goes on"], "that it goes on")
    shown.panel.close()


def test_stop_on_the_page_stops_the_sessions_on_the_thread(shown: Shown) -> None:
    shown.opened()
    shown.wire.page(do="stop")
    assert shown.panel.wait(5)
    assert shown.session.stopped_on == ["bpfnb-refresh"]
    assert shown.wire.gone


def test_numbers_are_sent_once_a_second_at_most(shown: Shown) -> None:
    shown.opened()
    before, begin = len(shown.wire.frames), time.monotonic()
    while time.monotonic() < begin + 2.5:
        shown.session.event("bash")
        shown.wire.page(ack=shown.wire.frames[-1]["frame"])
        time.sleep(0.05)
    numbers = [frame for frame in shown.wire.frames[before:] if "status" in frame]
    assert 1 <= len(numbers) <= time.monotonic() - begin + 1
    assert set(numbers[-1]["status"]) == {"numbers"}  # what does not change is not said again


def test_numbers_are_read_once_a_second_and_states_at_once(shown: Shown) -> None:
    shown.opened()
    looks, snapshot = [], shown.session.snapshot
    shown.session.snapshot = lambda: looks.append(1) or snapshot()
    end = time.monotonic() + 2.2
    while time.monotonic() < end:
        shown.views[0].number += 1
        shown.wire.page(ack=shown.wire.frames[-1]["frame"])
        time.sleep(0.05)
    assert 1 <= len(looks) <= 3
    shown.session.state = "starting"
    begin = time.monotonic()
    eventually(lambda: shown.wire.frames[-1].get("status", {}).get("states") == ["starting"], "the state")
    assert time.monotonic() - begin < 0.9


def test_view_that_raises_says_so_in_its_place_and_the_others_go_on(shown: Shown) -> None:
    shown.opened()
    shown.views[0].broken = RuntimeError(HOSTILE)
    eventually(lambda: len(shown.wire.frames) > 1, "a word of it")
    error = shown.wire.frames[-1]["views"][0]["error"]
    assert error.startswith("RuntimeError: <script>alert")
    assert error.isprintable()
    shown.views[1].number = 9
    eventually(lambda: shown.wire.frames[-1]["views"] == [None, {"number": 9}], "the other view")
    shown.wire.page("two", ready=True)
    eventually(lambda: shown.wire.frames[-1]["base"] is None, "a frame for the second page")
    assert shown.wire.frames[-1]["views"][0]["error"] == error


def test_choices_go_to_their_view_and_what_is_refused_is_said(shown: Shown) -> None:
    shown.opened()
    shown.wire.page(choose=1, choices={"top": 5, "by": "comm", "log": True})
    eventually(lambda: shown.views[1].chosen, "the choice")
    assert shown.views[1].chosen == {"top": 5, "by": "comm", "log": True}
    eventually(lambda: shown.wire.frames[-1]["base"] is None and len(shown.wire.frames) > 1, "a whole frame")
    shown.wire.page(choose=0, choices={"top": 0})
    eventually(lambda: shown.wire.said, "why not")
    assert shown.wire.said == [{"method": "custom", "content": {"say": 0, "text": "top must be at least 1"}}] or (
        shown.wire.said == [{"say": 0, "text": "top must be at least 1"}]
    )


def test_no_choice_ends_a_view_whatever_it_runs_into(shown: Shown) -> None:
    """An OverflowError, say, of a window of 400 digits."""
    shown.opened()
    shown.wire.page(choose=0, choices={"top": 10**400})
    eventually(lambda: shown.wire.said, "why not")
    assert shown.wire.said[0]["text"] == "int too large to convert to float"
    shown.settled()
    shown.views[0].number = 4
    eventually(lambda: shown.wire.frames[-1]["views"][0] == {"number": 4}, "the view to go on")


def test_what_a_closed_panel_leaves_in_the_file_is_no_bundle(shown: Shown) -> None:
    shown.opened()
    shown.panel.close()
    assert shown.wire.gone
    assert len(str(shown.wire.kept)) < 2_000


@pytest.mark.parametrize(
    "message",
    [
        None, [], "stop", {}, {"page": 1}, {"page": "x" * 17, "do": "stop"}, {"page": "x", "do": "exec"},
        {"page": "x", "choose": -1}, {"page": "x", "choose": 99, "choices": {"top": 1}}, {"page": "x", "ack": 1e300},
        {"page": "x", "choose": 0, "choices": {"by": "b" * 1_001}}, {"page": "x", "choose": 0, "choices": {"a": [1]}},
        {"page": "x", "choose": 0, "choices": {f"n{n}": 1 for n in range(17)}}, {"page": "x", "brush": [1]},
        {"page": "x", "brush": [1, "2"]}, {"page": "x", "ready": "yes"},
    ],
)  # fmt: skip
def test_bad_messages_are_ignored(shown: Shown, message: Any) -> None:
    shown.wire.raw(message)
    shown.opened()
    shown.views[0].number = 4
    eventually(lambda: shown.wire.frames[-1]["views"][0]["number"] == 4, "the panel to go on")
    assert shown.views[0].chosen == {}
    assert shown.session.state == "running"


def test_pages_without_end_are_forgotten(shown: Shown) -> None:
    shown.opened()
    for number in range(500):
        shown.wire.page(f"page {number}", visible=True)
    eventually(lambda: shown.panel._widget.inbox.empty(), "the messages to be read")
    assert len(shown.panel._pages._pages) <= 32


def test_brushed_range_is_kept(shown: Shown) -> None:
    shown.opened()
    shown.wire.page(brush=[10.5, 12])
    expected = pd.Timestamp(10.5, unit="s", tz="UTC"), pd.Timestamp(12, unit="s", tz="UTC")
    eventually(lambda: shown.panel.selection == expected, "the range")


@pytest.mark.parametrize("state", ["stopped", "failed"])
def test_panel_ends_with_its_last_session_however_that_ended(state: str) -> None:
    clones, syncs = FakeSession("clones"), FakeSession("syncs")
    panel = bpfnb.live(clones, syncs)
    clones.state = state
    assert not panel.wait(0.6)
    syncs.event("sync")
    syncs.state = state
    assert panel.wait(5)
    assert "1 row," in repr(panel)  # what came just before the end as well
    assert clones.stopped_on == syncs.stopped_on == []


def test_stop_returns_when_all_sessions_have_stopped_and_the_panel_has_closed() -> None:
    sessions = [FakeSession("clones"), FakeSession("syncs")]
    panel = bpfnb.live(*sessions)
    panel.stop()
    assert panel.closed
    assert [session.state for session in sessions] == ["stopped", "stopped"]
    panel.stop()
    panel.close()
    assert [len(session.stopped_on) for session in sessions] == [1, 1]


def test_sessions_share_a_picture_and_views_have_their_own() -> None:
    clones, syncs = FakeSession("clones"), FakeSession("syncs")
    apart = ViewSpec(syncs, "rates", by="comm")

    def named(*things: Any) -> list[tuple[str, list[str]]]:
        return [(group[0].kind, [spec.session.name for spec in group]) for group in specs_of(things)]

    assert named(clones, syncs) == [("rates", ["clones", "syncs"]), ("counters", ["clones", "syncs"])]
    assert named(clones, apart) == [("rates", ["clones"]), ("rates", ["syncs"]), ("counters", ["clones"])]


def test_a_map_given_twice_is_one_view() -> None:
    with FakeTracer(maps={"counts": (np.arange(3, dtype="<u4"), np.arange(3, dtype="<u8"))}):
        session = bpfnb.trace("BPF_HASH(counts, u32, u64);\nint kprobe__sys_sync(void *ctx) { return 0; }")
        assert [group[0].kind for group in specs_of([session, session.maps["counts"], session])] == ["top"]


def test_a_view_that_is_asked_for_says_what_it_is_in_one_line() -> None:
    spec = ViewSpec(FakeSession("io\n"), "heatmap", "latency", by="comm")
    assert repr(spec) == "<ViewSpec heatmap of io\\n: latency by comm; bpfnb.live(it) shows it>"


def test_the_numbers_of_a_running_session_are_not_green_in_the_file() -> None:
    session = FakeSession()
    view = CountersView([ViewSpec(session, "counters")])
    assert html.badge("running", "twin") in view.static().html
    assert html.GOOD not in view.static().html
    assert view.title == ""


def test_a_session_of_maps_alone_has_no_number_of_rows() -> None:
    maps, rows = (snapshot(name="m", rows=0, outputs=(), maps=(("h", "hash", 0),)), snapshot(name="r", rows=7))
    assert "rows" not in totals([maps])
    assert ">0<" not in totals([maps, rows]).replace(html.lost_cell(0), "")
    assert ">7<" in totals([maps, rows])


def test_mistakes_show_in_the_cell_and_leave_nothing() -> None:
    with pytest.raises(ProgramError, match="needs a session"):
        bpfnb.live()
    with pytest.raises(ProgramError, match="shows sessions, outputs, maps and views, not DataFrame"):
        bpfnb.live(pd.DataFrame())
    with pytest.raises(ValueError, match="no column 'nonsense'"):
        bpfnb.live(FakeSession(), by="nonsense")
    silent = FakeSession()
    silent.broken = UnsupportedError("clones has no output")
    with pytest.raises(UnsupportedError, match="no output"):
        bpfnb.live(silent)
    assert not refresh_threads()


def test_without_a_notebook_there_is_a_line_of_text(capsys: pytest.CaptureFixture[str]) -> None:
    panel = bpfnb.live(FakeSession())
    assert capsys.readouterr().out == ""
    panel._ipython_display_()
    assert capsys.readouterr().out == "<Panel clones: running, 0 rows/s, 0 rows, 0 lost>\n"
    panel.close()


# --- in a notebook ------------------------------------------------------------------------------------------------


class FakeShell:
    """What IPython's shell is to a panel. ``outputs``: display_id -> what stands there."""

    def __init__(self) -> None:
        self.execution_count = 7
        self.outputs: dict[str, dict[str, str]] = {}
        self.parent: dict[str, Any] = {"metadata": {"cellId": "cell-7"}}
        self.kernel = SimpleNamespace(get_parent=lambda: self.parent)
        self.display_pub = SimpleNamespace(publish=self._publish)
        self.events = SimpleNamespace(
            callbacks={"pre_run_cell": [], "post_run_cell": []},
            register=lambda event, callback: self.events.callbacks[event].append(callback),
            unregister=lambda event, callback: self.events.callbacks[event].remove(callback),
        )

    def fire(self, event: str, info: object = None) -> None:
        for callback in list(self.events.callbacks[event]):
            callback(info)

    def _publish(self, data: dict[str, str], metadata: object, transient: dict[str, str], update: bool) -> None:
        assert update == (transient["display_id"] in self.outputs)
        self.outputs[transient["display_id"]] = data

    def shown(self) -> list[list[str]]:
        return [sorted(data) for data in self.outputs.values()]


VIEW = "application/vnd.jupyter.widget-view+json"


class InNotebook:
    def __init__(self, *views: Any) -> None:
        self.shell = FakeShell()
        self.session = FakeSession()
        self.views = views or (Counting(),)
        self.panel = Panel([self.session], self.views, self._connect, Notebook(self.shell))
        refresh.add(self.panel)

    def _connect(self, **options: Any) -> Wire:
        self.wire = Wire(**options)
        return self.wire


@pytest.fixture
def cell() -> Iterator[InNotebook]:
    cell = InNotebook(Counting(), Counting())
    yield cell
    cell.panel.close()


def test_notebook_gets_the_widget_and_twins_then_totals_and_pictures(cell: InNotebook) -> None:
    assert cell.shell.shown() == [[VIEW, "text/plain"]] + [["text/html", "text/plain"]] * 2
    cell.views[0].number = 3
    eventually(lambda: list(cell.shell.outputs.values())[1]["text/plain"] == "3 counted", "a new twin")
    cell.views[0].number = 4
    cell.panel.stop()
    totals, first, second = cell.shell.outputs.values()
    assert "stopped" in totals["text/html"]
    assert [first["text/plain"], second["text/plain"]] == ["4 counted", "0 counted"]
    assert "<b>4</b>" in first["text/html"]
    assert "display: none" not in first["text/html"]
    assert not any(cell.shell.events.callbacks.values())


def test_last_expression_of_its_cell_shows_no_second_panel(cell: InNotebook) -> None:
    cell.panel._ipython_display_()
    assert len(cell.shell.outputs) == 3


def test_another_cell_gets_pictures_that_the_refresh_thread_has_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    class Watched(Counting):
        def static(self) -> Static:
            drawn.append(threading.current_thread().name)
            return super().static()

    cell = InNotebook(Watched())
    try:
        cell.views[0].number = 7
        cell.shell.execution_count += 1
        monkeypatch.setattr("bpfnb.views.live.panel.notebook", lambda: Notebook(cell.shell))
        cell.panel._ipython_display_()
        assert [data["text/plain"] for data in cell.shell.outputs.values()][-1] == "7 counted"
        cell.panel.close()
        cell.panel._ipython_display_()
        assert [data["text/plain"] for data in cell.shell.outputs.values()][-1] == "7 counted"
        assert set(drawn) == {"bpfnb-refresh"}
    finally:
        cell.panel.close()


def test_cell_that_ends_the_session_ends_with_the_pictures_in_place(cell: InNotebook) -> None:
    cell.shell.fire("post_run_cell")
    assert not cell.panel.closed
    cell.session.state = "stopped"
    cell.shell.fire("post_run_cell")
    assert cell.panel.closed
    assert cell.shell.shown() == [["text/html", "text/plain"]] * 3


def test_cell_that_is_run_again_ends_its_panel_without_a_word(cell: InNotebook) -> None:
    cell.shell.fire("pre_run_cell", SimpleNamespace(cell_id="another"))
    assert not cell.panel.wait(0.5)
    before = dict(cell.shell.outputs)
    cell.shell.fire("pre_run_cell", SimpleNamespace(cell_id="cell-7"))
    assert cell.panel.wait(5)
    assert cell.shell.outputs == before
    assert cell.session.state == "running"
    assert cell.wire.gone


def test_where_pages_are_heard_between_cells_only_frames_go_on_by_time(cell: InNotebook) -> None:
    """As on ipykernel 6: messages of a page come on the main thread, and none while a cell runs."""
    cell.shell.fire("post_run_cell")
    cell.wire.page(ready=True)
    eventually(lambda: cell.wire.frames, "the first frame")
    assert cell.wire.frames[-1]["status"]["wait"] is False
    cell.shell.fire("pre_run_cell", SimpleNamespace(cell_id="another"))
    begin = len(cell.wire.frames)
    time.sleep(2.6)
    blind = cell.wire.frames[begin:]
    assert 2 <= len(blind) <= 4
    assert all(frame["base"] is None and frame["status"]["wait"] for frame in blind)
    cell.shell.fire("post_run_cell")
    cell.wire.page(ack=cell.wire.frames[-1]["frame"])
    eventually(lambda: cell.wire.frames[-1].get("status", {}).get("wait") is False, "that it hears again")


def test_notebook_that_cannot_be_reached_closes_the_panel(cell: InNotebook) -> None:
    cell.shell.display_pub.publish = None
    cell.session.state = "stopped"
    for place in (cell.panel._first, *cell.panel._places):
        place._publisher = cell.shell.display_pub
    assert cell.panel.wait(10)


def test_frames_arrive_while_a_cell_runs() -> None:
    """In a real kernel, whatever ipykernel is installed: frames sent by a thread arrive while the cell sleeps."""
    program = """int hello(void *ctx) { bpf_trace_printk("hi\\\\n"); return 0; }"""
    cells = [
        "import bpfnb, time\nfrom bpfnb.testing import FakeTracer, Line\ntracer = FakeTracer().__enter__()",
        f"clones = bpfnb.trace({program!r}, name='clones', attach={{'syscall:clone': 'hello'}})\nclones.live()",
        "for _ in range(12):\n    tracer.printk(clones, [Line('bash', 1, 'hi')] * 5)\n    time.sleep(0.25)",
        "clones.stop()\ntracer.__exit__(None, None, None)",
    ]
    client = nbclient.NotebookClient(new_notebook(cells=[new_code_cell(cell) for cell in cells]), timeout=60)
    asyncio.run(client.async_execute())  # client.execute() would leave its event loop open
    nbformat.validate(client.nb)
    first, rates, counters = client.nb.cells[1].outputs
    assert first["data"]["text/html"] == ""  # the counters have the totals
    assert "image/png" in rates["data"]
    assert ">60<" in counters["data"]["text/html"]
    assert len(str(client.nb.metadata.widgets)) < 10_000  # no bundle: the panel has closed


def test_mistakes_in_arguments_are_shown_in_one_line() -> None:
    """An exception of ours says itself what a notebook shows of it: no line of bpfnb's own code."""
    frame = pd.DataFrame({"time": pd.to_datetime([0], unit="s", utc=True), "pid": [1]})
    for mistake in (
        lambda: frame.bpf.rate(by="pod"),
        lambda: frame.bpf.rate("soon"),
        lambda: frame.bpf.plot_hist("none"),
        lambda: frame.bpf.top("pid", n=0),
    ):
        with pytest.raises(ProgramError) as raised:
            mistake()
        assert isinstance(raised.value, ValueError)
        assert len(raised.value._render_traceback_()) == 1
