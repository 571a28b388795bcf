"""kill -9 at random moments, of the notebook and of each of its tracer's processes: nothing stays, no row is gone, one
clear error, and another tracer. BPFNB_KILLS: how many."""

from __future__ import annotations

import os

import kills
import pytest


@pytest.mark.timeout(600)
def test_whoever_is_killed_nothing_stays_and_no_row_is_gone() -> None:
    report = kills.run(int(os.environ.get("BPFNB_KILLS", "15")), seed=os.getpid())
    assert not report.wrong, "\n".join(report.wrong)
