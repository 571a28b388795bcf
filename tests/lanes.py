"""Whether a lane that needs this kernel can run."""

from __future__ import annotations

import os

import pytest

import bpfnb
from bpfnb.hosts import default_host


def require_tracing() -> int:
    """Connect to a tracer: its process id. Skips where that is impossible or unwanted (BPFNB_KERNEL_TESTS=0).

    BPFNB_KERNEL_TESTS=1 makes the impossible a failure.
    """
    wanted = os.environ.get("BPFNB_KERNEL_TESTS")
    if wanted == "0":
        pytest.skip("BPFNB_KERNEL_TESTS=0")
    try:
        return default_host.connect().hello().pid
    except bpfnb.BpfnbError as error:
        if wanted == "1":
            raise
        pytest.skip(f"cannot trace here: {error}; BPFNB_KERNEL_TESTS=1 makes this a failure")
