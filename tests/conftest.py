"""Shared by every lane: each test is checked for what it leaves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from leaks import Baseline


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail a test that leaves a descriptor, thread, process, BPF object or tracefs instance behind."""
    baseline = Baseline()
    yield
    left = baseline.check()
    assert not left, "left behind: " + "; ".join(left)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Iterator[None]:
    """Show with an InternalError where it happened in the tracer."""
    outcome = yield
    trace = call.excinfo and getattr(call.excinfo.value, "remote_traceback", "")
    if trace:
        outcome.get_result().sections.append(("in the tracer", trace))  # type: ignore[attr-defined]
