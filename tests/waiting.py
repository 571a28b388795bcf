"""Waiting for what comes about by itself."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(true: Callable[[], object], seconds: float = 60) -> None:
    """Wait until something is so; AssertionError where it never comes to that."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it does not come to this"
        time.sleep(0.02)
