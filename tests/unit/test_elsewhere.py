"""bpfnb where there is no Linux: recordings are read there, and tracing says in a line that it cannot be."""

from __future__ import annotations

import pytest
from elsewhere import run_elsewhere

_TRACING = """
import bpfnb
ways = [
    lambda: bpfnb.trace("int f(void *ctx) { return 0; }", attach={"syscall:clone": "f"}),
    lambda: bpfnb.count("syscall:clone"),
    lambda: bpfnb.tools.execsnoop(),
    lambda: bpfnb.probes("*clone*"),
]
for way in ways:
    try:
        way()
    except bpfnb.SetupError as error:
        print(error)
print(bpfnb.doctor()[0].found)
"""


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_tracing_says_that_it_needs_linux(platform: str) -> None:
    said = run_elsewhere(_TRACING, platform=platform).splitlines()
    assert said == ["tracing needs Linux; recordings can be read here: bpfnb.open(PATH)"] * 5
