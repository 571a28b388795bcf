"""What the lanes share that run real BPF in the kernel under us: a tracer for all of them, and a look at what each
test leaves there.

BPFNB_KERNEL_TESTS: unset runs where possible, 0 skips, 1 insists.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lanes import require_tracing
from leaks import Baseline

import bpfnb
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
def no_leaks(_tracing: int) -> Iterator[None]:
    """As in every lane, and nothing may be left in the tracer either. A test may end the tracer; we then start one."""
    pid = default_host.connect().hello().pid
    baseline = Baseline(pid)
    yield
    running = list(bpfnb.sessions())
    bpfnb.stop_all()
    assert not running, f"sessions left running: {running}"
    if default_host.connect().hello().pid == pid:
        left = baseline.check()
        assert not left, "left behind: " + "; ".join(left)
