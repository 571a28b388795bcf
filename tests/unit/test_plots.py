"""Pictures by matplotlib: what is drawn is what the table says, whatever names, times and settings there are."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import font_manager, rc_context
from matplotlib.axes import Axes
from matplotlib.dates import num2date
from matplotlib.figure import Figure
from PIL import Image

import bpfnb.views.events  # noqa: F401  (registers df.bpf)
from bpfnb.views import look, svg
from bpfnb.views.plots import style
from bpfnb.views.plots.figure import PlotAxes, PlotFigure, png

RNG = np.random.default_rng(13)
HOSTILE = [
    "<b>&'\"",
    "$x_$",
    "$\\frac{",
    "_hidden",
    "",
    "\N{GRINNING FACE}",
    "日本",
    "k" * 10_000,
    "שלום",
    "\u202eabc\n\t",
]


@pytest.fixture(autouse=True)
def _fonts_closed() -> Iterator[None]:
    """matplotlib keeps the font files it has opened; the leak check need not hear of them."""
    yield
    font_manager._get_font.cache_clear()


def events(n: int = 2_000, names: list[str] | None = None, seed: int = 1) -> pd.DataFrame:
    """Events of a known seed: time, comm, pid, cpu, latency (timedelta), size."""
    rng = np.random.default_rng(seed)
    names = names or ["nginx", "redis", "make"]
    seconds = np.sort(rng.random(n) * 12)
    return pd.DataFrame(
        {
            "time": pd.Timestamp("2026-11-30 23:59:53.5", tz="UTC") + pd.to_timedelta((seconds * 1e9).astype(int)),
            "comm": pd.Categorical(rng.choice(names, n)),
            "pid": rng.integers(100, 130, n).astype(np.uint32),
            "cpu": rng.integers(0, 4, n),
            "latency": pd.to_timedelta(rng.lognormal(10, 2, n).astype(np.int64), unit="ns"),
            "size": rng.integers(0, 9_000, n),
        }
    )


def moments(x: Any) -> pd.DatetimeIndex:
    """The times at places on the axis, to a microsecond, which is as exact as places are."""
    return pd.DatetimeIndex(num2date(np.asarray(x, float))).tz_convert("UTC").round("us")


def same_times(x: Any, times: Any) -> bool:
    """Whether places are these times, within two microseconds: so exact are days since 1970 as floats."""
    return bool((abs(moments(x) - pd.DatetimeIndex(times)) <= pd.Timedelta("2us")).all())


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()] if ax.get_legend() else []


def drawn(ax: Axes) -> Image.Image:
    assert isinstance(ax.figure, Figure)
    return Image.open(io.BytesIO(png(ax.figure))).convert("RGBA")


PICTURES: dict[str, Callable[..., Axes]] = {
    "rate": lambda frame, **o: frame.bpf.plot_rate(by="comm", **o),
    "rate alone": lambda frame, **o: frame.bpf.plot_rate(**o),
    "hist": lambda frame, **o: frame.bpf.plot_hist("latency", by="comm", **o),
    "hist alone": lambda frame, **o: frame.bpf.plot_hist("size", **o),
    "heatmap": lambda frame, **o: frame.bpf.plot_heatmap("latency", **o),
    "timeline": lambda frame, **o: frame.bpf.plot_timeline("comm", **o),
    "scatter": lambda frame, **o: frame.bpf.plot_scatter("latency", by="comm", **o),
}


# --- colours ------------------------------------------------------------------------------------------------------


def linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    a, b = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (one, other))
    return (b + 0.05) / (a + 0.05)


def oklab(rgb: np.ndarray) -> np.ndarray:
    to_lms = [[0.41222, 0.53633, 0.05145], [0.21190, 0.68070, 0.10740], [0.08830, 0.28172, 0.62998]]
    to_lab = [[0.21045, 0.79362, -0.00407], [1.97800, -2.42859, 0.45059], [0.02590, 0.78277, -0.80868]]
    return np.cbrt(np.clip(rgb, 0, 1) @ np.array(to_lms).T) @ np.array(to_lab).T * 100


# Machado, Oliveira, Fernandes 2009, severity 1.0.
SIGHTS = {
    "normal": (np.eye(3), 16.0),
    "deuteranopia": ([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]], 9.5),
    "protanopia": ([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]], 9.5),
    "tritanopia": ([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]], 8.5),
}


@pytest.mark.parametrize("colour", look.COLOURS)
@pytest.mark.parametrize("page", ["#ffffff", "#111111"])
def test_colours_stand_out_on_a_light_page_and_on_a_dark_one(colour: str, page: str) -> None:
    assert contrast(colour, page) >= 3.0
    assert contrast(look.THEMES["auto"].ink, page) >= 4.2


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_theme_of_its_own_background_has_the_contrast_of_text(theme: Any) -> None:
    assert contrast(*look.THEMES[theme]) >= 7


def test_a_page_draws_with_the_same_colours() -> None:
    theme = (Path(__file__).parents[2] / "frontend" / "widgets" / "src" / "theme.js").read_text()
    series, other = (re.search(rf"export const {name} = (.*?);", theme) for name in ("series", "other"))
    assert series
    assert other
    assert json.loads(series[1]) == list(look.COLOURS)
    assert json.loads(other[1]) == look.OTHER


@pytest.mark.parametrize("sight", SIGHTS)
def test_colours_are_told_apart_by_everybody(sight: str) -> None:
    matrix, least = SIGHTS[sight]
    seen = oklab(np.array([linear(colour) for colour in look.COLOURS]) @ np.array(matrix).T)
    apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
    assert apart[~np.eye(len(seen), dtype=bool)].min() >= least


# --- what is drawn is the table -----------------------------------------------------------------------------------


@pytest.mark.parametrize("top", [1, 2, 5])
def test_lines_are_the_table_of_rates(top: int) -> None:
    frame = events()
    ax = frame.bpf.plot_rate("500ms", by="comm", top=top)
    table = frame.bpf.rate("500ms", by="comm", top=top)
    assert len(ax.lines) == len(table.columns) == min(top + 1, 3)
    for line, name in zip(ax.lines, table.columns, strict=True):
        assert line.get_ydata().tolist() == table[name].tolist()
        assert same_times(line.get_xdata(), table.index)
    assert texts(ax) == [str(name) for name in table.columns]
    # By another way: every event is in one line.
    assert sum(line.get_ydata().sum() for line in ax.lines) * 0.5 == pytest.approx(len(frame))


def test_the_largest_groups_come_first_and_the_others_are_summed() -> None:
    frame = events()
    sizes = frame.comm.value_counts()
    table = frame.bpf.rate("1s", by="comm", top=1)
    assert list(table.columns) == [sizes.index[0], "other (2)"]
    plain = frame.bpf.rate("1s", by="comm")
    assert table["other (2)"].tolist() == plain.drop(columns=sizes.index[0]).sum(axis=1).tolist()


@pytest.mark.parametrize("by", [None, "comm", ["comm", "cpu"]])
def test_bars_and_outlines_are_the_table_of_counts(by: Any) -> None:
    frame = events()
    ax = frame.bpf.plot_hist("latency", by=by, top=5)
    table = frame.bpf.hist("latency", by, top=5)
    counts = table.iloc[:, 3:]
    if by is None:
        assert [bar.get_height() for bar in ax.patches] == table["count"].tolist()
        assert [bar.get_x() for bar in ax.patches] == table.low.tolist()
        assert [bar.get_x() + bar.get_width() for bar in ax.patches] == pytest.approx(table.high.tolist())
    else:
        assert len(ax.patches) == len(counts.columns)
        for patch, i in zip(ax.patches, range(len(counts.columns)), strict=True):
            values, edges, _ = patch.get_data()  # type: ignore[attr-defined]
            assert values.tolist() == counts.iloc[:, i].tolist()
            assert edges.tolist() == [*table.low.tolist(), table.high.iloc[-1]]
    assert counts.to_numpy().sum() == len(frame)


def test_numbers_up_to_the_last_float_have_a_picture() -> None:
    frame = pd.DataFrame({"n": [np.nan, np.inf, -np.inf, 1e308, -1e308, 5e-324, 1.0]})
    ax = frame.bpf.plot_hist("n")
    ax.figure.savefig(io.BytesIO())
    assert np.isfinite(ax.get_xlim()).all()
    assert sum(bar.get_height() for bar in ax.patches) == 4


def test_times_further_apart_than_pandas_can_say_are_one_line() -> None:
    times = pd.to_datetime([-(2**62), 0, 2**62], utc=True)
    frame = pd.DataFrame({"time": times, "n": [1.0, 2.0, 3.0]})
    for draw in (frame.bpf.plot_rate, lambda: frame.bpf.plot_heatmap("n")):
        with pytest.raises(ValueError, match=r"these events span 106,\d+ days: there are too many intervals of 1 s"):
            draw()


def test_what_has_no_place_on_a_logarithmic_axis_stands_beside_it() -> None:
    frame = pd.DataFrame({"n": [-5, 0, 0, 1, 3, 3, 3, 200]})
    ax = frame.bpf.plot_hist("n")
    spans = [(bar.get_x(), bar.get_x() + bar.get_width(), bar.get_height()) for bar in ax.patches]
    assert spans[:4] == [(0.25, 0.5, 1), (0.5, 1, 2), (1, 2, 1), (2, 4, 3)]
    drawn(ax)
    assert [label.get_text() for label in ax.get_xticklabels()][:2] in (["0", "<0"], ["<0", "0"])


def test_a_histogram_that_there_is_already_is_drawn() -> None:
    wide = pd.DataFrame(
        {"low": [1.0, 4.0], "high": [2.0, 8.0], "label": ["[1]", "[4, 8)"], "low_": [3, 1], "b": [0, 5]}
    )
    wide = wide.rename(columns={"low_": "low"})  # a group may be called so
    ax = wide.bpf.plot_hist()
    assert [patch.get_data().values.tolist() for patch in ax.patches] == [[3, 0, 1], [0, 0, 5]]  # type: ignore[attr-defined]
    assert texts(ax) == ["low", "b"]
    long = pd.DataFrame(
        {"comm": ["a", "b", "a"], "low": [1.0, 1, 2], "high": [2.0, 2, 4], "label": "x", "count": [3, 4, 5]}
    )
    ax = long.bpf.plot_hist(by="comm")
    assert [patch.get_data().values.tolist() for patch in ax.patches] == [[3, 5], [4, 0]]  # type: ignore[attr-defined]
    assert [bar.get_height() for bar in long.bpf.plot_hist().patches] == [7, 5]


def test_small_groups_of_a_histogram_are_summed() -> None:
    wide = pd.DataFrame({"low": [1.0, 2], "high": [2.0, 4], "a": [1, 1], "b": [9, 0], "c": [0, 2], "d": [5, 5]})
    ax = wide.bpf.plot_hist(top=2)
    assert texts(ax) == ["b", "d", "other (2)"]
    heights = [patch.get_data().values.tolist() for patch in ax.patches]  # type: ignore[attr-defined]
    assert heights == [[9, 0], [5, 5], [1, 3]]


@pytest.mark.parametrize("kind", ["log2", "linear"])
def test_cells_are_the_table_of_a_heat_map(kind: Any) -> None:
    frame = events()
    table = frame.bpf.heatmap("size", "1s", kind)
    # By another way.
    again = frame.groupby(
        [frame.time.dt.floor("1s"), pd.cut(frame["size"], [*table.low.unique(), table.high.max()], right=False)],
        observed=False,
    ).size()
    assert table["count"].tolist() == again.tolist()
    assert table.time.unique().tolist() == frame.time.dt.floor("1s").unique().tolist()
    ax = frame.bpf.plot_heatmap("size", "1s", kind)
    mesh = ax.collections[0]
    cells = np.ma.filled(mesh.get_array(), 0)  # type: ignore[arg-type]
    assert cells.T.reshape(-1).tolist() == table["count"].tolist()
    corners = mesh.get_coordinates()  # type: ignore[attr-defined]
    assert moments(corners[0, :-1, 0]).tolist() == table.time.unique().tolist()
    assert moments(corners[0, -1:, 0])[0] - moments(corners[0, -2:-1, 0])[0] == pd.Timedelta("1s")


def test_a_heat_map_of_snapshots_of_a_map_is_drawn() -> None:
    times = pd.to_datetime([0, 0, 7, 7], unit="s", utc=True)
    table = pd.DataFrame({"time": times, "low": [1.0, 2, 1, 2], "high": [2.0, 4, 2, 4], "count": [1, 0, 2, 3]})
    mesh = table.bpf.plot_heatmap().collections[0]
    assert np.ma.filled(mesh.get_array(), 0).tolist() == [[1, 2], [0, 3]]  # type: ignore[arg-type]


def intervals_of(frame: pd.DataFrame, by: str, gap: pd.Timedelta) -> dict[Any, list[tuple[Any, Any, int]]]:
    """Intervals of each group, joined one by one: rows end at ``time`` and lasted ``latency``."""
    found: dict[Any, list[tuple[Any, Any, int]]] = {}
    rows = sorted(zip(frame[by], frame.time - frame.latency, frame.time, strict=True), key=lambda row: row[1])
    for key, start, end in rows:
        mine = found.setdefault(key, [])
        if mine and start <= mine[-1][1] + gap:
            mine[-1] = (mine[-1][0], max(mine[-1][1], end), mine[-1][2] + 1)
        else:
            mine.append((start, end, 1))
    return found


@pytest.mark.parametrize("gap", ["0s", "3ms", "1s"])
@pytest.mark.parametrize("seed", range(3))
def test_bars_are_the_table_of_a_timeline(gap: str, seed: int) -> None:
    frame = events(400, seed=seed).sample(frac=1, random_state=seed)
    frame["latency"] *= 1000
    table = frame.bpf.timeline("cpu", gap=gap)
    got = {key: list(zip(rows.start, rows.end, rows.events, strict=True)) for key, rows in table.groupby("cpu")}
    assert got == intervals_of(frame, "cpu", pd.Timedelta(gap))
    ax = frame.bpf.plot_timeline("cpu", gap=gap)
    bars = [path.get_extents() for path in ax.collections[0].get_paths()]
    assert same_times([bar.x0 for bar in bars], table.start)
    assert same_times([bar.x1 for bar in bars], table.end)
    rows = [round((bar.y0 + bar.y1) / 2) for bar in bars]
    assert [ax.get_yticklabels()[row].get_text() for row in rows] == [str(cpu) for cpu in table.cpu]


def test_pairs_last_from_start_to_end_and_moments_join() -> None:
    at = pd.to_datetime([0, 10, 12, 300], unit="ms", utc=True)
    pairs = pd.DataFrame({"pid": [1, 1, 1, 2], "start": at, "end": at + pd.Timedelta("11ms")})
    assert pairs.bpf.timeline(gap="0s").events.tolist() == [3, 1]
    points = pd.DataFrame({"time": at, "pid": [1, 1, 1, 1]})
    assert points.bpf.timeline(gap="5ms")[["start", "end", "events"]].to_numpy().tolist() == [
        [at[0], at[0], 1], [at[1], at[2], 2], [at[3], at[3], 1]
    ]  # fmt: skip


def test_durations_are_those_of_the_column_that_is_named() -> None:
    frame = events(50).assign(other=pd.Timedelta("1ms"))
    with_other = frame.bpf.timeline("pid", gap="0s", duration="other")
    assert (with_other.end - with_other.start >= pd.Timedelta("1ms")).all()
    several = frame.bpf.timeline("pid", gap="0s")  # two columns of durations: neither is meant
    assert (several.end == several.start).all()


def test_only_the_most_active_are_drawn_and_the_picture_says_so() -> None:
    frame = events()
    sizes = frame.pid.value_counts()
    ax = frame.bpf.plot_timeline("pid", top=4)
    drawn(ax)
    drawn_pids = [int(label.get_text()) for label in ax.get_yticklabels()]
    assert sorted(sizes[drawn_pids], reverse=True) == sizes.tolist()[:4]
    assert "26 more not shown" in ax.texts[0].get_text()


def test_points_are_the_rows() -> None:
    frame = events(300)
    frame.loc[[3, 5], "latency"] = [pd.NaT, pd.Timedelta(0)]
    ax = frame.bpf.plot_scatter("latency", unit="us")
    kept = frame.drop(index=[3, 5])
    assert ax.lines[0].get_ydata().tolist() == pytest.approx((kept.latency / pd.Timedelta("1us")).tolist())
    assert same_times(ax.lines[0].get_xdata(), kept.time)
    assert ax.texts[-1].get_text() == "not shown: 1 without a value, 1 of zero or less"
    grouped = frame.bpf.plot_scatter("size", by="comm", top=2)
    assert [len(line.get_xdata()) for line in grouped.lines] == [
        *(frame[frame["size"] > 0].comm.value_counts().head(2).tolist()),
        int((frame[frame["size"] > 0].comm.value_counts())[2:].sum()),
    ]


def test_axes_say_units_and_that_times_are_utc() -> None:
    frame = events()
    frame["time"] = frame["time"].dt.tz_convert("Asia/Tokyo")
    ax = frame.bpf.plot_heatmap("latency")
    drawn(ax)
    assert ax.get_xlabel() == "time (UTC), 2026-11-30"
    assert [label.get_text() for label in ax.get_xticklabels()][-1].startswith("00:00:")
    assert any("\n12-01" in label.get_text() for label in ax.get_xticklabels())
    assert {"1us", "16us", "1ms"} <= {label.get_text() for label in ax.get_yticklabels()}


@pytest.mark.parametrize(
    ("unit", "low", "high", "expected"),
    [
        ("ns", 512, 70_000, ["1us", "2us", "4us", "8us", "16us", "32us", "64us", "512ns"]),
        ("ns", 1, 40e9, ["1ns", "16ns", "256ns", "1us", "16us", "256us", "1ms", "16ms", "256ms", "1s", "16s"]),
        ("us", 200, 5e5, ["256us", "1ms", "2ms", "256ms"]),
        ("bytes", 1, 2**21, ["1B", "4B", "1KiB", "4KiB", "1MiB"]),
        (None, 1, 4096, ["1", "2", "1K", "4K"]),
    ],
)
def test_ticks_of_powers_of_two(unit: str | None, low: float, high: float, expected: list[str]) -> None:
    places = style.Log2Locator(unit).tick_values(low, high)
    assert all(low * 0.999 <= place <= high for place in places)
    assert 3 <= len(places) <= 13
    write = look.with_unit(unit) if unit else look.power_of_two
    assert set(expected) <= {write(place) for place in places}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0, "0"), (0.25, "0.25"), (999.6, "999.6"), (999.96, "1k"), (1000, "1k"), (1_250_000, "1.25M")),
        *((-2e9, "-2G"), (9.9999e5, "1M"), (float("inf"), "inf")),
    ],
)
def test_numbers_have_prefixes(value: float, text: str) -> None:
    assert look.short(value) == text


# --- whatever there is --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PICTURES)
def test_any_name_is_drawn_as_it_is(name: str) -> None:
    # Warnings are errors here: of glyphs that the font lacks, of labels that begin with "_".
    ax = PICTURES[name](events(names=HOSTILE))
    drawn(ax)
    for text in [*ax.findobj(lambda artist: hasattr(artist, "get_parse_math"))]:
        if text.get_text() and text.get_visible():
            assert not text.get_parse_math(), text  # type: ignore[attr-defined]
            assert len(text.get_text()) <= 60  # type: ignore[attr-defined]
            assert text.get_text().replace("\n", "").isprintable()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", PICTURES)
def test_settings_of_the_user_change_nothing(name: str) -> None:
    plain = drawn(PICTURES[name](events())).tobytes()
    settings = {
        "text.usetex": True, "lines.linestyle": ":", "lines.marker": "o", "figure.facecolor": "red", "font.size": 30,
        "axes.grid": False, "axes.facecolor": "red", "axes.edgecolor": "red", "xtick.color": "red",
        "ytick.minor.visible": True, "xtick.top": True, "savefig.dpi": 30, "text.color": "red",
        "axes.formatter.use_mathtext": True, "timezone": "Asia/Tokyo", "legend.frameon": True,
    }  # fmt: skip
    with rc_context(settings):
        assert drawn(PICTURES[name](events())).tobytes() == plain
    from matplotlib import style as styles

    with styles.context("dark_background"):
        assert drawn(PICTURES[name](events())).tobytes() == plain


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(events().head(0), id="empty"),
        pytest.param(events().head(1), id="one row"),
        pytest.param(events()[::-1], id="backwards"),
        pytest.param(
            events().assign(latency=pd.Series([pd.NaT] * 2000, dtype="timedelta64[ns]"), size=np.nan), id="NaN"
        ),
        pytest.param(events().assign(time=events().time.mask(events().index % 2 == 0)), id="half without a time"),
        pytest.param(events().assign(comm=pd.Categorical([None] * 2000, ["a"])), id="no names"),
        pytest.param(events().assign(latency=-events().latency, size=0), id="negative"),
        pytest.param(pd.concat([events(50), events(50)]), id="index twice"),
    ],
)
def test_odd_frames_are_drawn(name: str, frame: pd.DataFrame) -> None:
    drawn(PICTURES[name](frame))


def test_frames_of_nothing_say_so() -> None:
    for name, draw in PICTURES.items():
        said = [text.get_text() for text in draw(events().head(0)).texts]
        assert set(said) & {"no events", "no values"}, name


@pytest.mark.parametrize("year", ["1700", "1970", "2026", "2100"])
@pytest.mark.parametrize("span", ["300ns", "4us", "70ms", "50s", "3h", "40D", "9000D"])
def test_times_of_any_span_have_ticks(year: str, span: str) -> None:
    # Warnings are errors: matplotlib's own locator warns of microseconds in 2100.
    frame = events(2).assign(time=pd.to_datetime([year, year], utc=True) + pd.to_timedelta(["0s", span]))
    ax = frame.bpf.plot_scatter("size")
    drawn(ax)
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert 1 <= len(labels) <= 8
    assert len(set(labels)) == len(labels) or span == "300ns"
    places = np.diff(np.asarray(ax.get_xticks(), float))
    assert np.allclose(places, places[0] if len(places) else 0, rtol=0.2)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_values_of_any_size_are_drawn(scale: float) -> None:
    frame = events(50).assign(x=np.linspace(-1, 1, 50) * scale)
    for ax in (frame.bpf.plot_hist("x"), frame.bpf.plot_heatmap("x"), frame.bpf.plot_scatter("x")):
        drawn(ax)


def test_a_million_groups_are_a_line_each_for_the_largest() -> None:
    n = 1_000_000
    frame = pd.DataFrame({"time": events(n).time, "comm": np.arange(n).astype(np.uint32), "latency": events(n).latency})
    frame.loc[:9, "comm"] = 7
    ax = frame.bpf.plot_rate(by="comm", top=3)
    assert texts(ax)[0] == "7"
    assert texts(ax)[-1] == "other (999,988)"
    assert sum(line.get_ydata().sum() for line in ax.lines) == n
    assert len(frame.bpf.plot_hist("latency", by="comm", top=3).patches) == 4
    assert frame.bpf.timeline("comm", gap="0s").attrs["left_out"] == frame.comm.nunique() - 20


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f.bpf.plot_rate(by="com"), "no column 'com'; did you mean comm?"),
        (lambda f: f.bpf.plot_rate("100us"), "more than a picture has room for"),
        (lambda f: f.bpf.plot_rate("1ns"), "too many intervals"),
        (lambda f: f.bpf.plot_rate("soon"), "not an interval"),
        (lambda f: f.bpf.plot_rate(top=0, by="comm"), "1 or more"),
        (lambda f: f.bpf.plot_rate(theme="drak"), "did you mean dark?"),
        (lambda f: f.bpf.plot_hist("comm"), "a histogram is of numbers"),
        (lambda f: f.bpf.plot_hist("size", unit="byte"), "bytes"),
        (lambda f: f.bpf.plot_hist(), "this is no histogram"),
        (lambda f: f.bpf.plot_heatmap(), "this is no heat map"),
        (lambda f: f.bpf.plot_heatmap("size", "1ms"), "more than a picture has room for"),
        (lambda f: f.bpf.plot_heatmap("time"), "a histogram is of numbers"),
        (lambda f: f.drop(columns="time").bpf.plot_heatmap("size"), "no column 'time'"),
        (lambda f: f.assign(time=1).bpf.plot_scatter("size"), "needs times"),
        (lambda f: f.assign(time=1).bpf.plot_timeline(), "needs times"),
        (lambda f: f.bpf.plot_timeline("pid", gap="-1s"), "not shorter than nothing"),
        (lambda f: f.bpf.plot_timeline("pid", duration="size"), "no column of durations 'size'"),
        (lambda f: f.bpf.plot_timeline("latency", top=5_000), "more than a picture has room for"),
        (lambda f: f.bpf.plot_scatter("comm"), "points are of numbers"),
        (lambda f: f.bpf.plot_scatter("latency", unit="bytes"), "durations are not in bytes"),
    ],
)
def test_mistakes_are_one_line(call: Callable[[pd.DataFrame], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        call(events())
    assert "\n" not in str(raised.value)


# --- Axes, figures, pyplot ----------------------------------------------------------------------------------------


def test_pyplot_is_not_even_imported() -> None:
    code = """
import sys
import bpfnb, pandas as pd
assert "matplotlib" not in sys.modules
frame = pd.DataFrame({"time": pd.to_datetime([1, 2], unit="s", utc=True), "n": [1, 2], "pid": [1, 2]})
ax = frame.bpf.plot_rate(); ax.figure.savefig("/dev/null", format="png")
frame.bpf.plot_hist("n"); frame.bpf.plot_heatmap("n"); frame.bpf.plot_timeline(); frame.bpf.plot_scatter("n")
assert "matplotlib.pyplot" not in sys.modules
import matplotlib.pyplot as plt
assert plt.get_fignums() == []
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", PICTURES)
def test_it_is_drawn_on_the_axes_that_are_given(name: str) -> None:
    figure = Figure()
    mine, other = figure.subplots(2)
    assert PICTURES[name](events(names=["$x_$", "_y"]), ax=mine) is mine
    figure.savefig(io.BytesIO())
    assert not other.has_data()
    ours = PICTURES[name](events())
    assert isinstance(ours, PlotAxes)
    assert isinstance(ours.figure, PlotFigure)


def test_a_theme_has_its_background_and_else_there_is_none() -> None:
    corner = {theme: drawn(events().bpf.plot_rate(theme=theme)).getpixel((2, 2)) for theme in ("auto", "light", "dark")}
    assert corner["auto"][3] == 0  # type: ignore[index]
    assert corner["light"] == (255, 255, 255, 255)
    assert corner["dark"] == (0x11, 0x11, 0x11, 255)


def test_a_line_has_its_colour_in_a_png_of_few_colours() -> None:
    pixels = np.asarray(drawn(events().bpf.plot_rate(by="comm")))
    for colour in look.COLOURS[:3]:
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        near = np.abs(pixels[..., :3].astype(int) - wanted).max(axis=-1) <= 8
        assert (near & (pixels[..., 3] > 200)).sum() > 300, colour


def test_help_and_repr_name_the_pictures() -> None:
    text = repr(events().bpf)
    for method in ("plot_rate", "plot_hist", "plot_heatmap", "plot_timeline", "plot_scatter", "heatmap", "timeline"):
        assert f".{method}(" in text


# --- without matplotlib -------------------------------------------------------------------------------------------

_SVG = "{http://www.w3.org/2000/svg}"


def test_svg_lines_are_the_table() -> None:
    table = events().bpf.rate("1s", by="comm")
    page = ET.fromstring(svg.rate(table))
    for shape, name in zip(page.iter(f"{_SVG}polyline"), table.columns, strict=True):
        points = np.array([point.split(",") for point in shape.attrib["points"].split()], float)
        scale = max(svg.round_steps(table.to_numpy().max()))
        bottom, top = 204.0, 14.0
        assert (bottom - points[:, 1]) / (bottom - top) * scale == pytest.approx(table[name].tolist(), abs=scale / 1000)
        assert points[:, 0] == pytest.approx(np.linspace(points[0, 0], points[-1, 0], len(table)), abs=0.06)
    said = [text.text for text in page.iter(f"{_SVG}text")]
    assert said[-3:] == [str(name) for name in table.columns]
    assert "23:59:53" in said


def test_svg_bars_are_the_counts() -> None:
    table = events().bpf.hist("latency")
    page = ET.fromstring(svg.hist(table))
    heights = [path.attrib["d"] for path in page.iter(f"{_SVG}path") if path.attrib.get("fill") == look.COLOURS[0]]
    scale = max(svg.round_steps(table["count"].max()))
    got = [(204.0 - float(d.split("V")[1].split("h")[0])) / 190.0 * scale for d in heights]
    assert got == pytest.approx(table["count"][table["count"] > 0].tolist(), abs=scale / 1000)


def test_svg_is_small_and_any_name_is_text() -> None:
    names = [*HOSTILE, "\x00\x1b", "a" * 30]
    table = pd.DataFrame(np.ones((60, len(names))), pd.date_range("2026", periods=60, freq="s", tz="UTC"), names)
    page = ET.fromstring(svg.rate(table))
    assert {element.tag for element in page.iter()} <= {f"{_SVG}{tag}" for tag in ("svg", "path", "text", "polyline")}
    assert len(svg.rate(table.iloc[:, :4])) < 6_000
    table.iloc[20] = np.nan
    pieces = [len(shape.attrib["points"].split()) for shape in ET.fromstring(svg.rate(table)).iter(f"{_SVG}polyline")]
    assert pieces == [20, 39] * len(names)
    for odd in (table.iloc[:0], table.iloc[:1], table.iloc[:, :0], table * np.nan):
        ET.fromstring(svg.rate(odd))
    ET.fromstring(svg.hist(events().head(0).bpf.hist("size")))


@pytest.mark.parametrize("most", [0, 1e-9, 0.3, 1, 4, 5, 6, 10, 99.5, 1e5 + 1, 1e18])
def test_svg_scale_is_round_and_high_enough(most: float) -> None:
    steps = svg.round_steps(most)
    assert 2 <= len(steps) <= 6
    assert steps[0] == 0
    assert steps[-1] >= most * (1 - 1e-9)
    assert len(steps) == 2 or steps[-2] < most
