"""The check that every test is under: what is ours and stays is seen, what is somebody else's is not."""

from __future__ import annotations

import os
import threading
import time

import leaks
import pytest


def brief() -> leaks.Baseline:
    """One that does not wait for long."""
    return leaks.Baseline(timeout=0.3, timeout_with_others=0.3)


def test_a_descriptor_that_stays_is_seen() -> None:
    baseline = brief()
    ours, its = os.pipe()
    try:
        assert len([line for line in baseline.check() if "descriptor" in line]) == 2
    finally:
        os.close(ours)
        os.close(its)
    assert baseline.check() == []


def test_what_goes_in_a_moment_is_none() -> None:
    baseline = brief()
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
    assert brief().check() == []


def test_among_them_what_stays_is(programs: set[int]) -> None:
    baseline = brief()
    programs.add(3)
    assert baseline.check() == ["BPF program 3"]
