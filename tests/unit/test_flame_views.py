"""Flame graphs on their way to a page: what is sent, of a window, a range, a comparison; without a tracer."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import font_manager

import bpfnb  # noqa: F401  (registers df.bpf)
from bpfnb.errors import ProgramError
from bpfnb.results.flame.kinds import KINDS
from bpfnb.views.flamegraph import FlameGraph, amount, flame
from bpfnb.views.live.flame import FlameView
from bpfnb.views.live.view import Part, ViewSpec

ROOT = Path(__file__).parents[2]
PALETTE = ROOT / "frontend" / "widgets" / "src" / "flame" / "palette.js"


@pytest.fixture(autouse=True)
def _fonts_closed() -> Iterator[None]:
    """matplotlib keeps the font files it has opened; the leak check need not hear of them."""
    yield
    font_manager._get_font.cache_clear()


class Page:
    """What a page has, by the messages alone: paths and what was counted at each."""

    def __init__(self, part: Part) -> None:
        self.header = part.header
        kinds, parents, names, own, *before = part.buffers
        self.names = list(part.header["names"])
        self.kinds = list(kinds)
        self.parents, self.name_of = ints(parents), ints(names)
        self.own = numbers(own, part)
        self.before = numbers(before[0], part) if before else []

    def take(self, part: Part | None) -> None:
        assert part
        kinds, parents, names, changed, values = part.buffers
        self.header |= part.header
        self.names += part.header["names"]
        self.kinds += list(kinds)
        self.parents += ints(parents)
        self.name_of += ints(names)
        self.own += [0] * (len(self.parents) - len(self.own))
        for node, value in zip(ints(changed), numbers(values, part), strict=True):
            self.own[node] = value

    def counts(self, values: list[float] | None = None) -> dict[str, float]:
        own = self.own if values is None else values
        return {self.path(node): value for node, value in enumerate(own) if value}

    def path(self, node: int) -> str:
        names = []
        while node:
            assert self.parents[node] < node
            names.append(self.names[self.name_of[node]])
            node = self.parents[node]
        return ";".join(names[::-1])


def ints(data: bytes) -> list[int]:
    return list(np.frombuffer(data, "<i4").tolist())


def numbers(data: bytes, part: Part) -> list[float]:
    return list(np.frombuffer(data, "<" + part.header["values"]).tolist())


class Session:
    """A session whose table grows: what is put into ``now`` is counted."""

    name = "cpu"

    def __init__(self) -> None:
        self.outputs: dict[str, Any] = {}
        self.maps: dict[str, Any] = {}
        self.state = "running"
        self.now: dict[str, int] = {}
        self.seconds = 5.0
        self.whole_each_time = False

    @property
    def df(self) -> pd.DataFrame:
        return self.frame({"main": 1})

    def frame(self, counts: dict[str, int]) -> pd.DataFrame:
        columns = {"comm": "x", "stack": np.array(list(counts), object), "count": list(counts.values())}
        return pd.DataFrame(columns).astype({"count": "int64"})

    def growth(self) -> Callable[[], pd.DataFrame]:
        def grown() -> pd.DataFrame:
            frame, self.now = self.frame(self.now), self.now if self.whole_each_time else {}
            frame.attrs["grown"] = not self.whole_each_time
            return frame

        return grown

    def snapshot(self) -> Any:
        return SimpleNamespace(seconds=self.seconds)


class Clock:
    def __init__(self) -> None:
        self.time = 1_000_000.0

    def __call__(self) -> float:
        return self.time


def view(session: Session, clock: Clock, window: float = 10.0) -> FlameView:
    return FlameView([ViewSpec(session, "flame", window=window)], clock, every=0)


def test_a_window_has_what_was_counted_in_it() -> None:
    session, clock = Session(), Clock()
    session.now = {"main;a": 3}
    shown = view(session, clock)
    page = Page(shown.whole())
    assert page.counts() == {"x;main;a": 3}  # the session is five seconds old: all of it is in the window
    for second in range(1, 13):
        clock.time += 1
        session.seconds += 1
        session.now = {"main;b": second, "main;a": 1} if second < 12 else {}
        shown.update(False)
        page.take(shown.delta())
    # Of the last 10 seconds, and what began within a second before: those of the 1st to the 11th look.
    assert page.counts() == Page(shown.whole()).counts() == {"x;main;b": sum(range(2, 12)), "x;main;a": 10}
    session.state = "stopped"
    shown.update(True)
    assert Page(shown.whole()).counts() == {"x;main;b": sum(range(1, 12)), "x;main;a": 14}


def test_nothing_is_sent_where_nothing_has_changed() -> None:
    session, clock = Session(), Clock()
    session.now = {"main;a": 3}
    shown = view(session, clock)
    shown.whole()
    shown.update(False)
    assert shown.delta() is None


def test_names_are_sent_once() -> None:
    session, clock = Session(), Clock()
    session.now = {"main;a": 3}
    shown = view(session, clock)
    shown.whole()
    session.now = {"main;a": 1, "main;a;new": 1}
    clock.time += 1
    shown.update(False)
    part = shown.delta()
    assert part
    assert part.header["names"] == ["new"]
    assert [len(buffer) for buffer in part.buffers] == [1, 4, 4, 8, 8]


def test_a_range_that_was_brushed() -> None:
    session, clock = Session(), Clock()
    shown = view(session, clock)
    start = clock.time
    for second in range(1, 6):
        clock.time = start + second
        session.now = {f"main;f{second}": second}
        shown.update(False)
    shown.choose(range=[start + 2.1, start + 3.9])
    page = Page(shown.whole())
    assert page.counts() == {"x;main;f3": 3, "x;main;f4": 4}
    assert page.header["range"] == [start + 2.1, start + 3.9]
    shown.choose(range=None)
    assert sum(Page(shown.whole()).counts().values()) == 15
    shown.choose(window=300)
    assert Page(shown.whole()).header["window"] == 300


@pytest.mark.parametrize(
    "choice",
    [
        {"window": "60"}, {"window": 0}, {"window": 1e9}, {"window": True}, {"window": float("nan")}, {"range": [2, 1]},
        {"range": ["a", "b"]}, {"range": 3}, {"range": [1, 2, 3]}, {"range": [float("nan"), 1]}, {"<b>": 1},
    ],
)  # fmt: skip
def test_what_cannot_be_chosen(choice: dict[str, Any]) -> None:
    shown = view(Session(), Clock())
    with pytest.raises(ValueError, match=r"window|range") as said:
        shown.choose(**choice)
    assert "\n" not in str(said.value)


def test_a_tool_that_shows_what_there_is_replaces_what_there_was() -> None:
    session, clock = Session(), Clock()
    session.whole_each_time = True
    session.now = {"main;a": 3}
    shown = view(session, clock)
    clock.time += 1
    session.now = {"main;a": 2, "main;b": 1}
    shown.update(False)
    assert Page(shown.whole()).counts() == {"x;main;a": 2, "x;main;b": 1}
    assert "now" in shown.title


def test_an_empty_one_says_so() -> None:
    shown = view(Session(), Clock())
    assert Page(shown.whole()).header["empty"] == "no stacks were counted in this time"
    static = shown.static()
    assert (static.image, "no stacks were counted" in static.text) == (b"", True)
    graph = flame(pd.DataFrame({"stack": [], "count": []}))
    assert "no stacks were counted" in repr(graph)


def test_a_session_without_stacks() -> None:
    class Nothing(Session):
        @property
        def df(self) -> pd.DataFrame:
            return pd.DataFrame({"comm": ["x"], "count": [1]})

    with pytest.raises(ProgramError, match="cpu has no stacks: no column and no map's key"):
        view(Nothing(), Clock())
    with pytest.raises(ProgramError, match="cpu has no stacks"):
        flame(Nothing())


def test_a_comparison_is_scaled_and_says_so(tmp_path: Path) -> None:
    now = pd.DataFrame({"stack": ["a;b", "a;c"], "count": [30, 10]})
    (tmp_path / "old.folded").write_text("a;b 10\na;d 10\n")
    graph = flame(now, minus=tmp_path / "old.folded")
    part = graph.whole()
    page = Page(part)
    assert page.counts() == {"a;b": 30, "a;c": 10}
    assert page.counts(page.before) == {"a;b": 20, "a;d": 20}
    assert part.header["note"] == "old.folded has 20 in all, scaled to 40"
    graph = flame(now, minus=str(tmp_path / "old.folded"), normalise=False)
    page = Page(graph.whole())
    assert page.counts(page.before) == {"a;b": 10, "a;d": 10}
    assert page.header["note"] == "old.folded has 20 in all, not scaled"
    frame = graph.df.set_index("name")
    assert frame.loc["d", ["self", "total", "before"]].tolist() == [0, 0, 10]
    with pytest.raises(ProgramError, match="these cannot be compared: one counts count, the other ns"):
        flame(now, minus=pd.DataFrame({"stack": ["a"], "total": pd.to_timedelta([1])}))


def test_large_numbers_arrive_whole() -> None:
    page = Page(flame(pd.DataFrame({"stack": ["a", "b"], "count": [(1 << 53) - 1, 7]})).whole())
    assert page.counts() == {"a": float((1 << 53) - 1), "b": 7.0}


def test_hostile_names_are_shown_as_escapes_and_kept_in_files(tmp_path: Path) -> None:
    name = "<b>\N{RIGHT-TO-LEFT OVERRIDE}$x^2$" + "y" * 10_000
    graph = flame(pd.DataFrame({"stack": [f"main;{name}"], "count": [1]}))
    page = Page(graph.whole())
    assert "\\u202e" in page.names[-1]
    assert len(page.names[-1]) < 1_100
    static = graph.static()
    assert "<b>" not in static.html
    assert static.image.startswith(b"\x89PNG")
    graph.to_folded(tmp_path / "x")
    assert (tmp_path / "x").read_text() == f"main;{name} 1\n"
    with pytest.raises(ProgramError, match="overwrite=True"):
        graph.to_folded(tmp_path / "x")
    graph.to_speedscope(tmp_path / "x", overwrite=True)


def test_the_hottest_stacks_in_words() -> None:
    graph = flame(
        pd.DataFrame({"comm": ["x", "x"], "stack": ["main;read_[k]", "main"], "total": pd.to_timedelta([3e9, 1e9])})
    )
    assert repr(graph).splitlines() == [
        "DataFrame: flame graph of 4 s",
        " 75.0%         3 s  x > main > read",
        " 25.0%         1 s  x > main",
    ]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1234567, "count", "1,234,567"), (1.5, "count", "1.5"), (1_500_000, "ns", "1.5 ms"), (7e12, "ns", "7,000 s"),
        (0, "ns", "0 ns"), (2048, "bytes", "2 KiB"),
    ],
)  # fmt: skip
def test_amounts(value: float, unit: Any, text: str) -> None:
    assert amount(value, unit) == text


def test_what_is_no_source() -> None:
    with pytest.raises(ProgramError, match="of a session, a DataFrame or a file, not of int"):
        flame(7)
    assert isinstance(flame(flame(pd.DataFrame({"stack": ["a"]}))), FlameGraph)


# --- of a frame ---------------------------------------------------------------------------------------------------


def test_a_frame_as_a_flame_graph_a_picture_and_files(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"comm": ["x", "y"], "stack": ["main;read_[k]", "main"], "total": pd.to_timedelta([3, 1], "s")}
    )
    assert frame.bpf.flame().total == 4_000_000_000
    frame.bpf.to_folded(tmp_path / "x.folded", by=())
    assert (tmp_path / "x.folded").read_text() == "main;read_[k] 3000000000\nmain 1000000000\n"
    frame.bpf.to_speedscope(tmp_path / "x.json")
    with pytest.raises(ProgramError, match="overwrite=True"):
        frame.bpf.to_speedscope(tmp_path / "x.json")
    for theme in ("auto", "light", "dark"):
        axes = frame.bpf.plot_flame(theme=theme)
        texts = [text.get_text() for text in axes.texts]
        assert sorted(texts) == ["all", "main", "main", "read", "x", "y"]
        widths = sorted(np.ptp(path.vertices[:, 0]) for path in axes.collections[0].get_paths())
        assert widths == [1e9, 1e9, 3e9, 3e9, 3e9, 4e9]
        assert axes.get_ylim() == (4, 0)  # rows from above: all, comm, main, read
    with pytest.raises(ProgramError, match="no column 'pid'"):
        frame.bpf.plot_flame(by="pid")
    empty = frame.iloc[:0].bpf.plot_flame()
    assert [text.get_text() for text in empty.texts] == ["no stacks were counted"]


# --- colours ------------------------------------------------------------------------------------------------------


def test_the_kinds_and_colours_are_those_of_the_page() -> None:
    from bpfnb.views.plots.flame import FILLS, INK, LESS, MORE, SAME

    text = PALETTE.read_text()
    assert re.findall(r'"([^"]+)"', text[text.index("KINDS") :].split(";")[0]) == list(KINDS)
    light = text[text.index("const LIGHT") :].split("};")[0]
    colours = re.findall(r"#[0-9a-f]{6}", light)
    assert colours == [INK, *FILLS, colours[7], LESS, SAME, MORE]


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
@pytest.mark.parametrize("dark", ["false", "true"])
def test_text_can_be_read_on_every_colour(dark: str) -> None:
    """A contrast of 4.5:1 (WCAG 2.2, 1.4.3), on all shades, changes, and what a search has not found."""
    script = (
        f"import {{ palette }} from {str(PALETTE)!r}; const p = palette({dark});"
        "console.log([p.ink, p.muted, ...p.fills.flat(), ...p.changes].join(' '))"
    )
    done = subprocess.run(["node", "--input-type=module", "-e", script], capture_output=True, text=True, check=True)
    ink, *fills = done.stdout.split()
    assert len(fills) > 30
    assert min(contrast(ink, fill) for fill in fills) >= 4.5


def contrast(first: str, second: str) -> float:
    low, high = sorted(map(luminance, (first, second)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
