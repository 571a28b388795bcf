"""What the lanes share that run real BPF in the kernel under us: a tracer for all of them, and a look at what each
test leaves there.

A test that ends this tracer on purpose is marked ends_tracer. Where it ends otherwise, the test that ran then fails
with what the tracer said, or the next one where that is only seen then; those behind have another tracer.

BPFNB_KERNEL_TESTS: unset runs where possible, 0 skips, 1 insists.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from lanes import require_tracing
from leaks import Baseline
from processes import alive
from waiting import until

import bpfnb
from bpfnb.host.tracer import Tracer
from bpfnb.hosts import default_host

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
sys.path.insert(0, str(NOTEBOOKS))  # for workload.py


@pytest.fixture(scope="session")
def _tracing() -> Iterator[int]:
    """A tracer for all tests of the lane; its process id."""
    try:
        yield require_tracing()
    finally:
        default_host.close()


@pytest.fixture(autouse=True)
def no_leaks(_tracing: int, request: pytest.FixtureRequest) -> Iterator[None]:
    """As in every lane, and nothing may be left in the tracer either; nor may it end."""
    tracer = _living_tracer()
    pid = tracer.hello().pid
    ends_tracer = request.node.get_closest_marker("ends_tracer")
    baseline = Baseline(pid)
    yield
    if ends_tracer:
        _may_end.add(pid)
        with suppress(bpfnb.TracerDied):
            _may_end.add(default_host.connect().hello().pid)  # one that it has started, and ended as well
    running = list(bpfnb.sessions())
    bpfnb.stop_all()
    assert not running, f"sessions left running: {running}"
    left = []
    with suppress(FileNotFoundError):  # it ends while we look
        left = baseline.check() if alive(pid) else []
    _check_alive(tracer)
    assert not left, "left behind: " + "; ".join(left)


def _living_tracer() -> Tracer:
    """The notebook's tracer; another where that has ended, which the notebook hears of some time later."""
    while True:
        tracer = default_host.connect()
        _used.append(tracer)
        for known in _used[-2:]:  # that of the test before, too
            _check_alive(known)
        if tracer is default_host.connect():
            return tracer


_used: list[Tracer] = []
_may_end: set[int] = set()


def _check_alive(tracer: Tracer) -> None:
    """Fail where it has ended, unless it may."""
    pid = tracer.hello().pid
    if alive(pid):
        return
    until(lambda: tracer.died)
    assert tracer.died
    expected = pid in _may_end
    _may_end.add(pid)  # it is said once
    assert expected, f"{tracer.died}. It said: {tracer.died.output or 'nothing'}"
