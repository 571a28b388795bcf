"""Recordings that are played: what there is at each moment, and what panels show of it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from made_up import eventually
from made_up_recording import ROWS, write
from pandas.testing import assert_frame_equal

import bpfnb
from bpfnb.session.recorded import Recorded
from bpfnb.session.replay import Replay
from bpfnb.views.live.specs import Played as Played_
from bpfnb.views.live.specs import specs_of, views_of


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    path = tmp_path_factory.mktemp("replay") / "recording"
    write(path)
    return bpfnb.open(path)


class Played:
    """A replay, and a clock for it."""

    def __init__(self, recorded: Recorded, speed: float = 1.0) -> None:
        self.seconds = 1000.0
        self.replay = Replay(recorded, speed, lambda: self.seconds)


@pytest.fixture
def played(recorded: Recorded) -> Iterator[Played]:
    made = Played(recorded)
    yield made
    made.replay.stop()
    eventually(lambda: "bpfnb-replay" not in {thread.name for thread in threading.enumerate()}, "its thread ends")


def test_rows_come_as_they_came(played: Played, recorded: Recorded) -> None:
    play = played.replay
    assert (play.state, play.name, play.outputs["events"].rows) == ("running", "played", 1)  # the first, at once
    played.seconds += 10
    assert play.outputs["events"].rows == ROWS // 2 + 1
    assert_frame_equal(play.df, recorded.df.iloc[: ROWS // 2 + 1], check_exact=True)
    assert play.elapsed == pytest.approx(10)
    assert play.now() == pytest.approx(1_700_000_060)
    assert play.outputs["events"].lost == 0  # nobody knows when they were lost: they were counted at the end
    played.seconds += 1000
    assert play.wait(10)
    assert (play.state, play.reason) == ("stopped", "it was played to its end")
    with pytest.warns(RuntimeWarning, match="7 events of events were lost"):
        assert_frame_equal(play.df, recorded.df, check_exact=True)
    assert (play.lost, play.maps["counts"].lost) == (7, 2)


def test_maps_are_as_they_were(played: Played, recorded: Recorded) -> None:
    counts, moved = played.replay.maps["counts"], recorded.maps["counts"].every("5s")
    assert dict(counts.items()) == {1: 0, 2: 0}
    played.seconds += 7.5
    assert dict(counts.items()) == {1: 70, 2: 7}
    assert (counts[1], counts.lost) == (70, 0)
    assert counts.drain()["value"].tolist() == [70, 7]
    played.seconds += 4
    assert (counts.lost, counts.drain()["value"].tolist()) == (1, [40, 4])
    assert counts.every("5s").df["value"].tolist() == [0, 0, 50, 5, 100, 10, 110, 11]
    assert moved.df["value"].tolist() == [0, 0, 50, 5, 100, 10, 150, 15, 200, 20]
    assert moved.df["time"].dt.second.tolist() == [10, 10, 15, 15, 20, 20, 25, 25, 30, 30]
    assert recorded.maps["counts"].every("5s", drain=True).df["value"].tolist() == [0, 0, *[50, 5] * 4]
    with pytest.raises(bpfnb.ProgramError, match="played is a recording: its map counts cannot be changed"):
        counts[1] = 5


def test_a_replay_can_be_held_and_stopped(played: Played) -> None:
    play = played.replay
    played.seconds += 5
    play.pause()
    held = play.outputs["events"].rows
    played.seconds += 5
    assert play.outputs["events"].rows == held
    play.resume()
    played.seconds += 1
    assert play.outputs["events"].rows == held + 50
    play.stop()
    played.seconds += 5
    assert (play.state, len(play.df), play.outputs["events"].rows) == ("stopped", held + 50, held + 50)
    assert "played, 1 times as fast as it was; recorded on there" in repr(play)


def test_the_thread_of_a_replay_that_nobody_has_ends(recorded: Recorded) -> None:
    play = recorded.replay(speed=0.001)
    assert play.state == "running"
    del play
    gc.collect()
    eventually(lambda: "bpfnb-replay" not in {thread.name for thread in threading.enumerate()}, "its thread ends")


def test_a_stream_of_a_replay_has_every_row_and_ends(recorded: Recorded) -> None:
    play = recorded.replay(speed=100)
    assert sum(len(frame) for frame in play.stream(every="10ms")) == ROWS
    assert play.state == "stopped"


@pytest.mark.parametrize("speed", [0, -1.0, float("nan"), float("inf"), "fast", True])
def test_what_is_no_speed_is_said(recorded: Recorded, speed: Any) -> None:
    with pytest.raises(ValueError, match="a speed is a number above 0"):
        recorded.replay(speed)


def test_panels_show_it_at_the_times_it_was(played: Played, recorded: Recorded) -> None:
    play = played.replay
    shown = [play.view("rates", by="comm"), play.view("hist", "size", window=10), play.view("heatmap", "size")]
    rates, hist, heat, moving = views = views_of(specs_of([*shown, play.view("heatmap", map="sizes")]))
    for _ in range(15):
        played.seconds += 1
        for view in views:
            view.update(False)
    top, largest = views_of(specs_of([play.view("top", by="pid"), play.view("top", map="counts")]))
    assert [row[1:] for row in top.whole().header["rows"]] == [["0", 251], ["1", 250], ["2", 250]]
    assert [row[1:] for row in largest.whole().header["rows"]] == [["1", 150], ["2", 15]]
    table = rates.table().dropna()
    assert (list(table), str(table.index[0])) == (["a", "b"], "2023-11-14 22:14:10+00:00")
    assert set(table.sum(axis=1).iloc[1:-1].round()) == {50.0}
    assert 450 <= hist.frame()["count"].sum() <= 501  # the last ten seconds, of which one has begun
    for view, each in ((heat, 50), (moving, 5)):
        seconds = view.frame().groupby("time")["count"].sum()
        assert set(seconds[seconds > 0]) == {each}
    assert str(seconds[seconds > 0].index[0])[:17] == "2023-11-14 22:14:"
    (flame,) = views_of(specs_of([play.view("flame", map="by_stack")]))
    assert flame.own().sum() == 15
    (numbers,) = views_of(specs_of([play.view("counters")]))
    played.seconds += 100
    assert play.wait(10)
    for view in [*views, top, numbers]:
        view.update(True)
    assert heat.frame()["count"].sum() == ROWS
    assert sum(row[2] for row in top.whole().header["rows"]) == ROWS
    assert (numbers.whole().header["rows"][0]["rate"], numbers.whole().header["rows"][0]["lost"]) == (50, 7)


def test_live_without_a_speed_shows_all_of_it(recorded: Recorded) -> None:
    assert specs_of([recorded, recorded.view("heatmap", "size")])
    views = views_of(specs_of([recorded, recorded.view("heatmap", "size"), recorded.view("hist", map="sizes")]))
    for view in views:
        view.update(True)
    assert views[1].frame()["count"].sum() == ROWS
    assert views[2].frame()["count"].tolist()[-1] == 100
    panel = recorded.live()
    assert panel.wait(10)
    assert panel.closed


def test_a_panel_plays_it_to_its_end(recorded: Recorded, played: Played) -> None:
    assert isinstance(played.replay, Played_)
    assert not isinstance(recorded, Played_)
    panel = recorded.live(speed=1000)
    assert panel.wait(20)
    with pytest.raises(ValueError, match="no column 'nothing'"):
        recorded.live(by="nothing", speed=2)
