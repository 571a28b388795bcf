"""Tables of rows: what is written of each value, what goes onto the page, and that it stays within its budget."""

from __future__ import annotations

import html
import json
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

import bpfnb
from bpfnb.errors import ProgramError
from bpfnb.results.events.rows import RowsTable
from bpfnb.testing import FakeTracer

HELLO = 'int hello(void *ctx) { bpf_trace_printk("x\\n"); return 0; }'
HOSTILE = "</script><script>alert(1)</script><b>&'\"\u2028\u202e\x1b[2J\n"


def frame(n: int = 100) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    return pd.DataFrame(
        {
            "time": pd.Timestamp("2026-11-30 21:00", tz="UTC") + pd.to_timedelta(np.arange(n) * 250, unit="ms"),
            "comm": pd.Categorical(rng.choice(["nginx", "bash", HOSTILE], n)),
            "pid": rng.integers(0, 2**32, n).astype(np.uint32),
            "big": rng.integers(2**62, 2**63, n),
            "latency": pd.to_timedelta(rng.lognormal(10, 3, n).astype(np.int64), unit="ns"),
            "share": rng.random(n),
        }
    )


def data(page: str) -> dict[str, Any]:
    """What the page's script is given."""
    found = re.fullmatch(r'.*\)\("bpfnb-table-\w+", (\{.*\})\)</script>', page, re.S)
    assert found
    return json.loads(found[1])  # type: ignore[no-any-return]


def cells(page: str) -> list[list[str]]:
    """The rows that are there without a script."""
    body = page.partition("<tbody>")[2].partition("</tbody>")[0]
    return [[html.unescape(c) for c in re.findall(r"<td[^>]*>(.*?)</td>", row)] for row in body.split("</tr>")[:-1]]


def values(page: str) -> list[list[str]]:
    """All rows, as the script has them."""
    columns = data(page)["columns"]
    return [
        list(row)
        for row in zip(*([["-", *texts][code + 1] for code in codes] for texts, codes in columns), strict=True)
    ]


def test_the_newest_come_first_and_no_value_differs() -> None:
    table = frame()
    page = table.bpf.table()._repr_html_()
    assert data(page)["total"] == 100
    shown, newest = values(page), table[::-1].reset_index(drop=True)
    assert [row[2] for row in shown] == [str(pid) for pid in newest.pid]
    assert [row[3] for row in shown] == [str(big) for big in newest.big]
    assert [f"2026-11-30 {row[0]}" for row in shown] == [
        f"{time:%Y-%m-%d %H:%M:%S}.{time.microsecond // 1000:03}" for time in newest.time
    ]
    assert [float(row[5]) for row in shown] == pytest.approx(newest.share.tolist(), rel=1e-5)
    assert cells(page) == shown[:20]
    assert "UTC 2026-11-30" in page


@pytest.mark.parametrize("column", ["time", "pid", "big", "latency", "share", "comm"])
def test_the_order_of_texts_is_that_of_values(column: str) -> None:
    table = frame()
    texts, codes = data(table.bpf.table()._repr_html_())["columns"][list(table.columns).index(column)]
    by_code = table[::-1].iloc[np.argsort(codes, kind="stable")][column].astype(object)
    assert by_code.tolist() == sorted(table[column].astype(object))
    assert len(set(texts)) == len(texts)


def test_durations_have_the_unit_that_suits_them_and_missing_is_a_dash() -> None:
    table = pd.DataFrame(
        {"d": pd.to_timedelta([3, 4_500, None, -2_000_000, 7_000_000_000]), "n": [1.5, np.nan, 2, 3, np.inf]}
    )
    shown = cells(table.bpf.table()._repr_html_())
    assert [row[0] for row in shown] == ["3ns", "4.5us", "-", "-2ms", "7s"]
    assert [row[1] for row in shown] == ["1.5", "-", "2", "3", "inf"]


def test_close_numbers_stay_different() -> None:
    table = pd.DataFrame({"ts": [53374.030477, 53374.030478, 1.0], "d": pd.to_timedelta([1_000_001, 1_000_002, 5])})
    for column, _ in data(table.bpf.table()._repr_html_())["columns"]:
        assert len(set(column)) == 3


def test_text_is_text_and_cannot_end_the_script() -> None:
    table = frame().rename(columns={"pid": HOSTILE})
    page = table.bpf.table()._repr_html_()
    assert page.count("</script>") == page.count("<script>") == 1
    assert "alert(1)</" not in page.replace("&lt;/", "")
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert "\u202e" not in repr(table.bpf.table())
    assert repr(table.bpf.table()).count("\n") == 11  # a line a row


@pytest.mark.parametrize("budget", [20_000, 60_000])
def test_it_stays_within_its_budget_and_says_so(budget: int) -> None:
    page = frame(5_000).bpf.table(rows=5_000, budget=budget)._repr_html_()
    assert budget * 0.8 < len(page.encode()) <= budget
    shown = data(page)["total"]
    assert 10 < shown < 5_000
    assert f"the newest {shown:,} of 5,000 rows: more would take over {budget:,} bytes" in page
    assert "budget" not in frame(50).bpf.table()._repr_html_()


def test_a_thousand_rows_are_small() -> None:
    assert len(frame(1_000).bpf.table()._repr_html_()) < 120_000
    assert len(RowsTable(frame(10), sorts=False)._repr_html_()) < 12_000


@pytest.mark.parametrize(
    "odd",
    [
        pd.DataFrame(),
        frame(0),
        frame(1),
        pd.DataFrame({"x": [[1, 2], {"a": 1}, None, b"\x00\xff"]}),
        pd.DataFrame([[1, 2]], columns=["same", "same"]),
        pd.DataFrame({("a", "b"): [1], 3: [2]}),
        pd.DataFrame(np.zeros((3, 200))),
        pd.DataFrame({"long": ["x" * 10_000]}),
        pd.DataFrame({"time": pd.to_datetime([5, 3, None, 90_000], unit="s", utc=True)}),
        pd.DataFrame({"mixed": pd.Categorical(["b", "a", None])}, index=[7, 7, 7]),
    ],
)
def test_odd_frames_are_shown(odd: pd.DataFrame) -> None:
    table = odd.bpf.table()
    assert len(table._repr_html_()) < 60_000
    assert repr(table)
    assert len(cells(table._repr_html_())) == len(odd) * bool(len(odd.columns))


@pytest.mark.parametrize(("rows", "budget"), [(0, 1), (-1, 1), (1.5, 1), (True, 1), ("9", 1), (1, 0)])
def test_limits_are_whole_numbers(rows: Any, budget: Any) -> None:
    with pytest.raises(ValueError, match="is a whole number of 1 or more, not"):
        frame().bpf.table(rows, budget)


def test_a_session_and_its_outputs_show_their_newest_rows() -> None:
    with FakeTracer() as tracer, bpfnb.trace(HELLO, name="hello", attach={"syscall:clone": "hello"}) as session:
        tracer.printk(session, [("a", 1, f"line {n}") for n in range(30)])
        output = session.outputs["printk"]
        assert "&lt;Output printk: 30 rows, 0 lost&gt;" in output._repr_html_()
        assert [row[-1] for row in cells(output._repr_html_())] == [f"line {n}" for n in range(29, 19, -1)]
        assert "<script>" not in output._repr_html_()
        assert "the newest 10 of 30 rows" in str(output)
        assert [row[-1] for row in values(session.table()._repr_html_())] == [f"line {n}" for n in range(29, -1, -1)]
        assert len(values(session.table("printk", rows=7)._repr_html_())) == 7
        assert "the newest 7 of 30 rows" in session.table(rows=7)._repr_html_()
        with pytest.raises(KeyError, match="prink"):
            session.table("prink")
        with pytest.raises(ValueError, match="whole number"):
            session.table(rows=-1)
        assert "line 29" not in session._repr_html_()  # a running one's rows are not decoded for its card
        session.stop()
        assert re.findall(r"line \d+", session._repr_html_()) == [f"line {n}" for n in range(29, 24, -1)]


def test_a_session_without_rows_has_no_table_of_them() -> None:
    with FakeTracer(), bpfnb.trace(HELLO, name="hello", attach={"syscall:clone": "hello"}) as session:
        assert "no rows" in repr(session.table())
        session.stop()
        assert session.snapshot().newest is None
    with (
        FakeTracer(),
        bpfnb.trace(
            "BPF_HASH(h); int f(void *c) { h.increment(1); return 0; }", name="m", attach={"syscall:clone": "f"}
        ) as session,
        pytest.raises(ProgramError),
    ):
        session.table()
