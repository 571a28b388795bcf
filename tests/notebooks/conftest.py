"""The notebook lane: notebooks, demo and workload, on the kernel under us. BPFNB_KERNEL_TESTS as in the kernel lane."""

from __future__ import annotations

import pytest
from lanes import require_tracing

from bpfnb.hosts import default_host


@pytest.fixture(scope="session")
def tracing() -> None:
    """Skip where this machine cannot trace, or fail where BPFNB_KERNEL_TESTS=1 insists."""
    try:
        require_tracing()
    finally:
        default_host.close()
