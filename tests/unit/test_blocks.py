"""Rates, histograms and the largest groups by blocks and by DuckDB: what df.bpf says of the same rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from bpfnb.errors import ProgramError
from bpfnb.results.queries import blocks
from bpfnb.results.queries.blocks import Blocks, Reducer
from bpfnb.results.queries.reduced import SqlRows
from bpfnb.results.queries.sql import Files
from bpfnb.results.queries.tables import table_of
from bpfnb.views import events  # registers df.bpf

ROWS, BLOCK = 2500, 400
assert events


def frame() -> pd.DataFrame:
    dice = np.random.default_rng(5)
    times = 1_764_547_200_000_000_000 + np.sort(dice.integers(0, 3_000_000_000, ROWS))
    small = dice.integers(0, 40, ROWS)
    return pd.DataFrame(
        {
            "time": pd.to_datetime(times, unit="ns", utc=True),
            "comm": pd.Categorical.from_codes(dice.integers(0, 5, ROWS), ["", "bash", "caf\xe9", "x y", "zsh"]),
            "missing": pd.Categorical.from_codes(dice.integers(-1, 3, ROWS), ["a", "b", "c"]),
            "pid": small.astype(np.uint32),
            "size": (np.uint64(1) << dice.integers(0, 64, ROWS).astype(np.uint64)) - (small % 2 == 0),
            "ret": dice.integers(-(2**63), 2**63 - 1, ROWS),
            "near": dice.integers(-3, 9, ROWS).astype(np.int8),
            "load": np.where(small == 7, np.nan, dice.normal(0, 3, ROWS)),
            "wild": np.where(small == 7, np.nan, np.where(small == 8, np.inf, dice.integers(-9, 9, ROWS))),
            "share": 2.0 ** dice.integers(-80, 3, ROWS),
            "ok": small % 3 == 0,
            "path": pd.Series([f"/tmp/{n}" for n in small], dtype="str"),
        }
    )


FRAME = frame()


def by_blocks(tmp_path: Path) -> Reducer:
    """Blocks whose categories differ, as those of several parts do."""

    def read(columns: Sequence[str]) -> Iterator[pd.DataFrame]:
        for begin in range(0, ROWS, BLOCK):
            block = FRAME.iloc[begin : begin + BLOCK].reset_index(drop=True)
            for name in ("comm", "missing"):
                used = block[name].cat.remove_unused_categories()
                block[name] = used.cat.reorder_categories(list(used.cat.categories)[::-1])
            yield block[list(columns)]

    empty = FRAME.iloc[:0].copy()
    for name in ("comm", "missing"):
        empty[name] = empty[name].cat.remove_unused_categories()
    return Blocks(empty, read)


def by_duckdb(tmp_path: Path) -> Reducer:
    """Two files, and the newest rows in memory."""
    paths = []
    for begin in (0, 1000):
        paths.append(str(tmp_path / f"it's {begin}.parquet"))
        table = table_of(FRAME.iloc[begin : begin + 1000], nan_is_missing=False)
        pq.write_table(table, paths[-1], compression="zstd", row_group_size=300)
    rest = table_of(FRAME.iloc[2000:], nan_is_missing=False)
    return SqlRows(FRAME.iloc[:0], Files(paths, list(FRAME.columns), rest))


REDUCERS = {"blocks": by_blocks, "DuckDB": by_duckdb}


@pytest.fixture(params=list(REDUCERS))
def rows(request: pytest.FixtureRequest, tmp_path: Path) -> Reducer:
    return REDUCERS[request.param](tmp_path)


def assert_same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one, other, check_categorical=False, rtol=1e-12)
    assert [dtype.name for dtype in one.dtypes] == [dtype.name for dtype in other.dtypes]
    assert one.attrs == other.attrs


@pytest.mark.parametrize("by", [None, "pid", ["comm", "ok"], "missing", "wild"])
@pytest.mark.parametrize("top", [None, 2])
def test_rates(rows: Reducer, by: Any, top: int | None) -> None:
    if by is None and top:
        pytest.skip("nothing to choose from")
    assert_same(blocks.rate(rows, "100ms", by, top), FRAME.bpf.rate("100ms", by, top=top))


@pytest.mark.parametrize(
    ("column", "options"),
    [
        ("size", {}),
        ("size", {"by": "comm"}),
        ("size", {"by": ["comm", "ok"], "top": 3}),
        ("ret", {}),
        ("ret", {"kind": "linear", "bins": 7}),
        ("near", {"by": "missing"}),
        ("near", {"kind": "linear"}),
        ("near", {"kind": "linear", "bins": [-1, 0, 4]}),
        ("near", {"kind": "linear", "bins": [-0.5, 2, 3.5]}),
        ("load", {"by": "path"}),
        ("wild", {"kind": "linear", "by": "wild"}),
        ("wild", {"by": "path", "top": 3}),
        ("share", {"unit": "us"}),
        ("share", {"kind": "linear", "bins": 5}),
        ("ok", {"by": "pid", "top": 1}),
    ],
)
def test_histograms(rows: Reducer, column: str, options: dict[str, Any]) -> None:
    assert_same(blocks.hist(rows, column, **options), FRAME.bpf.hist(column, **options))


@pytest.mark.parametrize("by", ["missing", ["near", "ok"], "path"])
@pytest.mark.parametrize(
    ("value", "agg"),
    [
        (None, None), ("pid", None), ("near", "sum"), ("load", "sum"), ("load", "max"), ("load", "mean"),
        ("size", "max"), ("ret", "mean"), ("time", "max"), ("near", "median"), ("load", "p90"), ("ok", "sum"),
    ],
)  # fmt: skip
def test_the_largest(rows: Reducer, by: Any, value: str | None, agg: str | None) -> None:
    if value == by:
        pytest.skip("not of itself")
    found, expected = blocks.top(rows, by, 6, value, agg), FRAME.bpf.top(by, 6, value, agg)
    if "sum" in expected:  # pandas has the smallest integers that it fits into
        expected["sum"] = expected["sum"].astype(found["sum"].dtype)
    assert_same(found, expected)


@pytest.mark.parametrize(
    "ask",
    [
        lambda rows: blocks.rate(rows, "1s", "nobody"),
        lambda rows: blocks.rate(rows, "x"),
        lambda rows: blocks.hist(rows, "comm"),
        lambda rows: blocks.hist(rows, "pid", kind="log3"),
        lambda rows: blocks.hist(rows, "pid", bins=3),
        lambda rows: blocks.top(rows, "nobody"),
        lambda rows: blocks.top(rows, "comm", agg="sum"),
        lambda rows: blocks.top(rows, "comm", value="path", agg="max"),
        lambda rows: blocks.top(rows, "comm", 0),
    ],
)
def test_what_is_wrong_is_said(rows: Reducer, ask: Any) -> None:
    with pytest.raises(ProgramError):
        ask(rows)
