"""The check that every test is under: what is ours and stays is seen, what is somebody else's is not."""

from __future__ import annotations

import os
import threading
import time

import leaks
import pytest


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "_PATIENCE", 0.3)
    monkeypatch.setattr(leaks, "_PATIENCE_WITH_OTHERS", 0.3)


def test_a_descriptor_that_stays_is_seen() -> None:
    baseline = leaks.Baseline()
    ours, its = os.pipe()
    try:
        assert len([line for line in baseline.check() if "descriptor" in line]) == 2
    finally:
        os.close(ours)
        os.close(its)
    assert baseline.check() == []


def test_what_goes_in_a_moment_is_none() -> None:
    baseline = leaks.Baseline()
    thread = threading.Thread(target=time.sleep, args=(0.1,))
    thread.start()
    assert baseline.check() == []
    thread.join()


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """BPF programs' ids, as a machine shows them that others use: a new one at every look."""
    known = {1, 2}
    monkeypatch.setattr(leaks, "held_elsewhere", lambda kind, ours: set())
    monkeypatch.setattr(leaks, "bpf_ids", lambda kind: known | {time.monotonic_ns()} if kind == "program" else set())
    return known


def test_what_others_make_and_take_away_is_not_ours(programs: set[int]) -> None:
    assert leaks.Baseline().check() == []


def test_among_them_what_stays_is(programs: set[int]) -> None:
    baseline = leaks.Baseline()
    programs.add(3)
    assert baseline.check() == ["BPF program 3"]
