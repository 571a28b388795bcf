"""Ctrl-C at random moments of a notebook: no hang, nothing left running, no row missing. BPFNB_INTERRUPTS: how many."""

from __future__ import annotations

import os

import ctrl_c
import pytest


@pytest.mark.timeout(600)
def test_a_notebook_survives_ctrl_c_at_any_moment() -> None:
    said: list[str] = []
    report = ctrl_c.run(int(os.environ.get("BPFNB_INTERRUPTS", "200")), seed=os.getpid(), say=said.append)
    assert (report.hangs, report.orphans, report.wrong) == (0, 0, 0), "\n".join([str(report), *said])
    assert report.interrupts > 100
