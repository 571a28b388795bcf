"""What maps hold when their session ends: small ones are there when ``stop`` returns, large ones soon after; of what
could not be read in time the size is said."""

from __future__ import annotations

import os
import time

import pytest
from leaks import bpf_ids

import bpfnb
from bpfnb.hosts import default_host
from bpfnb.tracer.kernel import bpf
from bpfnb.tracer.kernel import maps as kernel_maps
from bpfnb.tracer.kernel.maps import Limit

ATTACH = {"syscall:getpgid": "f"}
ENTRIES = 6_000_000  # of 12 bytes: beyond the 64 MiB that are waited for
BOTH = f"""
BPF_ARRAY(large, u64, {ENTRIES});
BPF_ARRAY(small, u64, 1000);
int f(void *ctx) {{ return 0; }}
"""


def wait_until_gone(before: set[int]) -> None:
    deadline = time.monotonic() + 5
    while bpf_ids("map") - before:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_large_map_is_read_behind_the_stop() -> None:
    maps = bpf_ids("map")
    with bpfnb.trace(BOTH, name="s", attach=ATTACH) as session:
        session.maps["large"][ENTRIES - 1] = 42
        session.maps["small"][7] = 7
        begun = time.monotonic()
        session.stop()
        assert time.monotonic() - begun < 1
    assert session.state == "stopped"
    assert int(session.maps["small"].df.value.sum()) == 7
    df = session.maps["large"].df
    assert (len(df), int(df.value.sum()), int(df.value.iloc[-1])) == (ENTRIES, 42, 42)
    wait_until_gone(maps)
    assert default_host.connect()._listeners == {}


@pytest.mark.ends_tracer
def test_a_tracer_that_ends_before_a_large_map_was_read_says_so() -> None:
    with bpfnb.trace(BOTH, name="s", attach=ATTACH) as session:
        tracer = default_host.connect()
        session.stop()
        assert session._pending == {"large"}
        tracer.close()
    assert len(session.maps["small"].df) == 1000
    if isinstance(session._final_maps["large"], tuple):
        pytest.skip("it was quicker")
    with pytest.raises(bpfnb.MapError, match="the map large had not been read when the tracer ended"):
        len(session.maps["large"].df)
    assert "the map large had not been read" in repr(session)


@pytest.mark.parametrize(
    ("kind", "size", "limit", "message"),
    [
        (2, 100_000, Limit(1 << 20, 1e9), "it has 100,000 entries of 12 bytes, 1,200,000 bytes in all"),
        (2, 100_000, Limit(1 << 30, 0), "it has 100,000 entries of 12 bytes, 1,200,000 bytes in all"),
        (1, 100_000, Limit(1 << 16, 1e9), "it has more than 20,000 entries of 12 bytes, 240,000 bytes in all"),
        (1, 100_000, Limit(1 << 30, 0), "it has more than 20,000 entries of 12 bytes, 240,000 bytes in all"),
        (22, 100_000, Limit(1 << 16, 1e9), "it has room for 100,000 entries of 8 bytes, 800,000 bytes in all"),
    ],
    ids=["array", "array, late", "hash", "hash, late", "queue"],
)
def test_what_is_too_large_is_said_with_its_size(kind: int, size: int, limit: Limit, message: str) -> None:
    queue = kind == 22
    attributes = bpf.MapAttributes(kind, 0 if queue else 4, 8, size, 0, b"m", 0, 0, 0, 0, 0)
    fd = bpf.create_map(attributes, 0)
    try:
        for key in range(0 if kind == 2 else 20_000):
            bpf.update(fd, b"" if queue else key.to_bytes(4, "little"), bytes(8))
        with pytest.raises(bpfnb.MapError) as caught:
            (kernel_maps.take_all if queue else kernel_maps.dump)(fd, limit)
        assert str(caught.value) == message
        count, entries = (kernel_maps.take_all if queue else kernel_maps.dump)(fd, Limit(1 << 30, 1e9))
        os.close(entries)
        assert count == (size if kind == 2 else 20_000)  # and nothing was taken out
    finally:
        os.close(fd)
