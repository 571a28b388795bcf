"""benchmarks/side_by_side.py: what is called right, missing and wrong."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.side_by_side import Score, score

TRUTH = [{"pid": 1, "path": "/a", "err": 0}, {"pid": 1, "path": "/b", "err": 2}, {"pid": 2, "path": "/a", "err": 0}]


@pytest.mark.parametrize(
    ("shown", "result"),
    [
        (TRUTH, Score(3, 0, 0)),
        ([{name: str(value) for name, value in row.items()} for row in TRUTH], Score(3, 0, 0)),
        ([{"pid": row["pid"], "path": row["path"]} for row in TRUTH], Score(3, 0, 0)),  # a column that it does not have
        ([*TRUTH, {"pid": 3, "path": "/a", "err": 0}], Score(3, 0, 0)),  # another process's
        (TRUTH[1:], Score(2, 1, 0)),
        ([*TRUTH, TRUTH[0]], Score(3, 0, 1)),  # twice
        ([*TRUTH[:2], {"pid": 2, "path": "a", "err": 0}], Score(2, 0, 1)),
        ([TRUTH[0], {"pid": 2, "path": "/a", "err": 1}], Score(1, 1, 1)),
        ([], Score(0, 3, 0)),
    ],
)
def test_rows_are_held_against_what_was_so(shown: list[dict[str, Any]], result: Score) -> None:
    assert score(TRUTH, shown, ["pid"]) == result


@pytest.mark.parametrize(("shown", "right"), [("9.9", 0), ("10", 1), (12.0, 1), (12.1, 0)])
def test_sums_may_lie_between_two_numbers(shown: object, right: int) -> None:
    assert score([{"sum": [10, 12]}], [{"sum": shown}], []) == Score(right, 0, 1 - right)
