"""Bars of histograms, in text and in HTML."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd
import pytest

import bpfnb
import bpfnb.results.accessor
from bpfnb.language.signature import Signature, Type
from bpfnb.results.distributions.bars import bars_html, bars_text, number_bars
from bpfnb.testing import FakeTracer

assert bpfnb.results.accessor

LINE = re.compile(r" *(\[.*[)\]]|\(.*\)) +([\d,]+) \|(\**) *\|")


def bars(text: str) -> list[tuple[str, int, int]]:
    """Of each line of bars: the label, the count, how long the bar is."""
    found = [LINE.fullmatch(line) for line in text.splitlines()]
    return [(m[1], int(m[2].replace(",", "")), len(m[3])) for m in found if m]


def test_a_bar_is_as_long_as_its_count_and_at_most_forty() -> None:
    frame = pd.DataFrame({"n": [0] + [1] * 80 + [5] * 40 + [20] * 1})
    assert bars(repr(frame.bpf.hist("n"))) == [
        ("[0]", 1, 0),
        ("[1]", 80, 40),
        ("[2, 4)", 0, 0),
        ("[4, 8)", 40, 20),
        ("[8, 16)", 0, 0),
        ("[16, 32)", 1, 0),
    ]
    assert repr(frame.bpf.hist("n")).endswith("[6 rows x 4 columns: low, high, label, count]")


def test_nothing_and_one_bucket() -> None:
    frame = pd.DataFrame({"n": [7, 7]})
    assert bars(repr(frame.bpf.hist("n"))) == [("[4, 8)", 2, 40)]
    assert repr(frame.iloc[:0].bpf.hist("n")).startswith("(no values)")
    assert "no values" in frame.iloc[:0].bpf.hist("n")._repr_html_()


def test_linear_and_durations() -> None:
    frame = pd.DataFrame({"n": [1.0, 1.5, 9.0], "d": pd.to_timedelta([1, 2, 3000], unit="us")})
    linear = frame.bpf.hist("n", kind="linear", bins=[0, 5, 10])
    assert bars(repr(linear)) == [("[0, 5)", 2, 40), ("[5, 10)", 1, 20)]
    assert next(label for label, _, _ in bars(repr(frame.bpf.hist("d")))) == "[512ns, 1.02us)"


def test_each_group_has_its_own_the_largest_first_and_names_are_harmless() -> None:
    frame = pd.DataFrame({"n": [1, 1, 2, 2, 2, 4], "comm": ["a", "a", "<b>\u202e", "<b>\u202e", "<b>\u202e", "count"]})
    text = repr(frame.bpf.hist("n", by="comm"))
    assert [line for line in text.splitlines() if line and "|" not in line and "rows" not in line] == [
        "<b>\\u202e",
        "a",
        "count",
    ]
    page = frame.bpf.hist("n", by="comm")._repr_html_()
    assert "<b>\\u202e" not in page
    assert "&lt;b&gt;" in page
    assert "\u202e" not in page


def test_a_thousand_groups_are_not_all_shown() -> None:
    frame = pd.DataFrame({"n": 1, "pid": np.arange(1000)})
    text = bars_text(frame.bpf.hist("n", by="pid"))
    assert text.endswith("... and 992 more")
    assert "... and 992 more" in bars_html(frame.bpf.hist("n", by="pid"))


def test_the_page_has_the_same_numbers_and_bars_without_a_style() -> None:
    page = pd.DataFrame({"n": [1] * 8 + [2] * 4 + [4]}).bpf.hist("n")._repr_html_()
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", page)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]
    assert cells == [["[1]", "8", "█" * 40], ["[2, 4)", "4", "█" * 20], ["[4, 8)", "1", "█" * 5]]


def test_it_stays_a_frame() -> None:
    table = pd.DataFrame({"n": [1, 2]}).bpf.hist("n")
    pd.testing.assert_frame_equal(table, table.copy())
    assert "count" in table.to_html()
    assert "|" not in table.to_string()
    assert "|" not in repr(table.head(1))  # made of it: a plain one
    assert bars(repr(table.head(1).bpf.bars())) == [("[1]", 1, 40)]
    assert "█" in table.head(1).bpf.bars()._repr_html_()
    del table["label"]
    assert "|" not in repr(table)
    with pytest.raises(ValueError, match="no buckets here"):
        table.bpf.bars()


def test_buckets_left_out_are_shown_as_empty_and_open_ones_as_open() -> None:
    low, high = [-math.inf, 0, 10, 20, 50], [0, 10, 20, 30, math.inf]
    frame = pd.DataFrame({"comm": "a", "low": low, "high": high, "label": list("uvwxy"), "count": [1, 2, 3, 4, 5]})
    lines = bars_text(frame).splitlines()
    assert lines[0] == "comm = a"
    assert [line.split()[0] for line in lines[1:5]] == ["u", "v", "w", "x"]
    assert [line.split()[:3] for line in lines[5:7]] == [["[30,", "40)", "0"], ["[40,", "50)", "0"]]
    assert lines[7].split()[0] == "y"


MAPS = {
    "sizes": (np.array([1, 3, 4], "<i4"), np.array([4, 2, 1], "<u8")),
    "counts": (np.array([5, 6, 7], "<u4"), np.array([1, 40, 20], "<u8")),
}
CELL = """
BPF_HISTOGRAM(sizes);
BPF_HASH(counts, u32, u64);
int kprobe__sys_sync(void *ctx) { sizes.increment(BUCKET); return 0; }
"""


def test_a_map_is_shown_with_bars() -> None:
    with FakeTracer(maps=MAPS):
        maps = bpfnb.trace(CELL.replace("BUCKET", "bpf_log2l(7)")).maps
        expected = [("[0, 2)", 4, 40), ("[2, 4)", 0, 0), ("[4, 8)", 2, 20), ("[8, 16)", 1, 10)]
        assert bars(str(maps["sizes"])) == expected
        assert bars(repr(maps["sizes"].hist())) == expected
        assert repr(maps["sizes"]) == "<Map sizes: array of key -> value, room for 10,240>"
        assert "█" * 40 in maps["sizes"]._repr_html_()
        counts = str(maps["counts"]).splitlines()
        assert [line.split()[:2] for line in counts[2:]] == [["6", "40"], ["7", "20"], ["5", "1"]]
        assert counts[3].count("█") == 20


def test_buckets_that_are_numbers_are_not_shown_as_powers_of_two() -> None:
    with FakeTracer(maps=MAPS):
        maps = bpfnb.trace(CELL.replace("BUCKET", "7")).maps
        assert bars(str(maps["sizes"])) == [
            ("[0]", 0, 0),
            ("[1]", 4, 40),
            ("[2]", 0, 0),
            ("[3]", 2, 20),
            ("[4]", 1, 10),
        ]


def test_the_table_of_latency_and_its_quantiles_have_bars() -> None:
    call = Signature("syscall:sync", (), Type("long", "int", 8, signed=True))
    slots = (np.array([74, 76, 80], "<i4"), np.array([1, 4, 2], "<u8"))
    with FakeTracer(["syscall:sync"], signatures=[call], maps={"hist": slots}):
        session = bpfnb.latency("syscall:sync")
        table = session.df
        shown = bars(repr(table))
        assert [(label, count) for label, count, _ in shown if count] == list(
            zip(table["label"], table["count"], strict=True)
        )
        assert len(shown) == 7  # those between are there as well
        ranges = repr(session.quantiles(0.1, 0.99)).splitlines()
        assert ranges[0].split()[0] == "p10"
        assert ranges[0].index("*") < ranges[1].index("*")
        assert ranges[1].endswith("*|")


def test_numbers_that_are_none_have_no_bar_and_do_not_hide_the_others() -> None:
    assert list(map(len, number_bars(np.array([np.nan, np.inf, -np.inf, -1, 0, 1, 2])))) == [0, 40, 0, 0, 0, 20, 40]
    assert list(map(len, number_bars(np.array([np.inf, 0.0])))) == [40, 0]
    assert number_bars(np.array([np.nan])) == [""]
