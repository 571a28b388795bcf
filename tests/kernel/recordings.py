"""What bcc's tools, as the distribution ships them, ask of bcc on this kernel (benchmarks/compatibility/record.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

ROOT = Path(__file__).parents[2]
SBIN = next((p for p in map(Path, ("/usr/sbin", "/usr/share/bcc/tools")) if list(p.glob("opensnoop*"))), None)


class Recording(msgspec.Struct):
    """A tool's C, what clang is to be told, and its attachments: pairs of a probe and a function."""

    text: str
    cflags: list[str] = []
    probes: list[tuple[str, str]] = []


def record(*tools: str) -> dict[str, Recording]:
    """Each tool at its defaults. Skips where there are none; with BPFNB_KERNEL_TESTS=1 that is a failure."""
    if SBIN is None:
        if os.environ.get("BPFNB_KERNEL_TESTS") == "1":
            pytest.fail("bcc's tools are not installed: scripts/setup --test")
        pytest.skip("bcc's tools are not installed; BPFNB_KERNEL_TESTS=1 makes this a failure")
    command = [sys.executable, "-m", "benchmarks.compatibility.record", str(SBIN), *tools]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return msgspec.json.decode(done.stdout, type=dict[str, Recording])
