"""CPUs that go offline and come back. Only where nobody else is at work: in a guest of scripts/vm."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from waiting import until

import bpfnb

CPU = 1
ONLINE = Path(f"/sys/devices/system/cpu/cpu{CPU}/online")
_libc = ctypes.CDLL(None)
PERF = """
BPF_PERF_OUTPUT(events);
int f(struct pt_regs *ctx, int pid) {
    u32 cpu = bpf_get_smp_processor_id();
    if (pid == 1234567) events.perf_submit(ctx, &cpu, sizeof(cpu));
    return 0;
}
"""
PRINT = """
int f(struct pt_regs *ctx, int pid) {
    if (pid == 1234567) bpf_trace_printk("x\\n");
    return 0;
}
"""
PROFILE = """
BPF_ARRAY(ticks, u64, 4);
int f(void *ctx) {
    ticks.increment(bpf_get_smp_processor_id() & 3);
    return 0;
}
"""
CALLS = {"syscall:getpgid": "f"}


pytestmark = [
    pytest.mark.portable,
    pytest.mark.skipif(
        not (ONLINE.exists() and os.environ.get("BPFNB_HOTPLUG", "0") == "1"),
        reason="takes a CPU offline: only in a guest (BPFNB_HOTPLUG=1), where nobody else is at work",
    ),
]


def off_and_on() -> None:
    """For less time than anybody looks, as a suspend does it."""
    ONLINE.write_text("0")
    ONLINE.write_text("1")


@contextmanager
def on_it() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {CPU})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def burst(count: int) -> None:
    with on_it():
        for _ in range(count):
            _libc.getpgid(1234567)


def test_a_perf_output_goes_on_and_counts_what_it_missed() -> None:
    with bpfnb.trace(PERF, name="s", attach=CALLS) as session:
        burst(100)
        off_and_on()
        burst(100)  # there is nobody on that CPU, or just now
        made = 200

        def there() -> bool:
            nonlocal made
            before = session.outputs["events"].rows
            burst(10)
            made += 10
            time.sleep(0.2)
            return session.outputs["events"].rows == before + 10

        until(there)
    assert len(session.df) + session.lost == made
    assert 110 <= len(session.df) < made


def test_lines_go_on_to_the_last() -> None:
    with bpfnb.trace(PRINT, name="s", attach=CALLS) as session:
        burst(100)
        off_and_on()
        burst(100)
    assert (len(session.df), session.lost) == (200, 0)


def test_a_profile_goes_on_and_says_what_it_lacks() -> None:
    with bpfnb.trace(PROFILE, name="s", attach={"profile:99": "f"}) as session:
        off_and_on()
        until(lambda: any("has come online: profile:99" in w.message for w in session.warnings))
        before = session.maps["ticks"][CPU]
        until(lambda: session.maps["ticks"][CPU] > before)
    assert "CPU 1 has come online" in repr(session)


def test_what_starts_while_a_cpu_is_offline_sees_it_later() -> None:
    ONLINE.write_text("0")
    try:
        with (
            bpfnb.trace(PERF, name="perf", attach=CALLS) as perf,
            bpfnb.trace(PRINT, name="print", attach=CALLS) as lines,
            bpfnb.trace(PROFILE, name="profile", attach={"profile:99": "f"}) as profile,
        ):
            ONLINE.write_text("1")
            until(lambda: profile.maps["ticks"][CPU] > 0)
            time.sleep(1)
            burst(100)
        assert (len(perf.df), perf.lost) == (100, 0)
        assert (len(lines.df), lines.lost) == (100, 0)
    finally:
        ONLINE.write_text("1")
