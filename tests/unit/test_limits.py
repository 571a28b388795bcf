"""The guard's judgement, and what it is judged by, in a time that is made up; and what a person may ask of it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import bpfnb
from bpfnb.errors import ProgramError
from bpfnb.hosts import default_host, limits_of
from bpfnb.language.program import parse
from bpfnb.protocol.messages import Limits
from bpfnb.testing import FakeTracer
from bpfnb.tracer.guard import cost
from bpfnb.tracer.guard.cost import Sample, Window, Windows
from bpfnb.tracer.guard.guard import Watch

HELLO = 'int kprobe__sys_clone(void *ctx) { bpf_trace_printk("Hello, World!\\n"); return 0; }'
CPUS = 4
STEP, WINDOW = 0.2, 0.008


def ended(limits: Limits, shares: Iterable[float], **more: Any) -> tuple[float, str]:
    """When a session with such shares of all CPUs, a window each, is ended, in seconds since its start, and why."""
    watch = Watch(limits, began=100.0)
    at = 100.0
    for number, share in enumerate(shares):
        at = 100.0 + (number + 1) * STEP
        window = Window(WINDOW, share * WINDOW * CPUS, more.get("traps", 0.0) * WINDOW * CPUS)
        passed = at - 100.0
        look = Sample(
            at,
            window,
            int(more.get("rate", 0) * passed),
            more.get("reading", 0.0) * passed * CPUS,
            more.get("memory", 0),
        )
        if reason := watch.add(look, CPUS):
            return passed, reason
    return 0.0, ""


def test_what_is_beyond_the_limit_ends_within_five_seconds() -> None:
    for share in (0.26, 0.3, 0.5, 1.0):
        after, reason = ended(Limits(0.25), [share] * 100)
        assert after == pytest.approx(5 * 0.25 / share, abs=2 * STEP)
        assert reason.startswith(f"the guard ended it: {100 * share:g} % of all CPUs for ")
        assert "\n" not in reason


def test_what_is_within_the_limit_goes_on() -> None:
    assert ended(Limits(0.25), [0.24] * 3000) == (0.0, "")
    assert ended(Limits(0.25), [0.24] * 3000, rate=1e6, memory=1 << 40) == (0.0, "")
    assert ended(Limits(), [1.0] * 3000, rate=1e6, memory=1 << 40, reading=1.0, traps=1.0) == (0.0, "")


def test_a_short_burst_is_forgiven_and_a_long_one_is_not() -> None:
    quiet, burst = [0.01] * 50, [1.0] * 5  # one second of all CPUs
    assert ended(Limits(0.25), (quiet + burst) * 50) == (0.0, "")
    after, _ = ended(Limits(0.25), quiet + burst * 3)
    assert 11 < after < 12.5


def test_no_session_is_ended_by_chance() -> None:
    """A tenth of all CPUs in bursts that are shorter than the windows are apart, for two hours: some five seconds look
    like more than a quarter."""
    dice = random.Random(1)
    shares = [0.5 if dice.random() < 0.2 else 0.0 for _ in range(36_000)]
    worst = pd.Series(shares).rolling(25).mean().max()
    assert worst > 0.25
    assert ended(Limits(0.25), shares) == (0.0, "")


def test_bursts_that_are_too_much_are_found_when_that_is_sure() -> None:
    for seed in range(20):
        dice = random.Random(seed)
        after, _ = ended(Limits(0.25), [0.5 if dice.random() < 0.7 else 0.0 for _ in range(1000)])
        assert 0 < after < 60


def test_traps_and_reading_are_costs_as_well() -> None:
    _, reason = ended(Limits(0.25), [0.02] * 100, traps=0.2, reading=0.1)
    said = "the guard ended it: 32 % of all CPUs for 4.0 s, and max_cost is 25 % over 5 s: "
    assert reason == said + "its programs 2 %, the traps of its uprobes 20 %, reading its events 10 %"


def test_without_windows_no_cost_is_made_up() -> None:
    watch = Watch(Limits(0.001), began=0.0)
    assert not any(watch.add(Sample(float(at), None, 0, at * 10.0, 0), CPUS) for at in range(1, 100))


def test_a_rate() -> None:
    assert ended(Limits(rate=1000), [0.0] * 1000, rate=990) == (0.0, "")
    after, reason = ended(Limits(rate=1000), [0.0] * 1000, rate=1100)
    assert 4.5 < after < 5
    after, reason = ended(Limits(rate=1000), [0.0] * 1000, rate=1_000_000)
    assert after == pytest.approx(STEP)  # five seconds' worth have come
    assert reason == "the guard ended it: 200,000 events in 0.2 s, and max_rate is 1,000 a second over 5 s"


def test_memory() -> None:
    assert ended(Limits(memory=1 << 20), [0.0] * 10, memory=1 << 20) == (0.0, "")
    after, reason = ended(Limits(memory=1 << 20), [0.0] * 10, memory=(1 << 20) + 1)
    assert after == pytest.approx(STEP)
    assert reason == "the guard ended it: 1,048,577 bytes of memory in the kernel, and max_memory is 1,048,576"


# --- when programs are timed --------------------------------------------------------------------------------------


class Clock:
    """Time that passes in sleeps only, each somewhat longer than asked for."""

    def __init__(self, seed: int, late: float) -> None:
        self._dice, self._late, self.now = random.Random(seed), late, 50.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self._dice.expovariate(1 / self._late)


@pytest.mark.parametrize("late", [0.00005, 0.003, 0.02])
def test_never_more_than_fifty_milliseconds_of_a_second(monkeypatch: pytest.MonkeyPatch, late: float) -> None:
    """Whatever the scheduler makes of a sleep: but the window that is on may itself be late."""
    clock = Clock(7, late)
    monkeypatch.setattr(cost, "time", clock)
    monkeypatch.setattr(cost.bpf, "enable_run_statistics", lambda: os.open(os.devnull, os.O_RDONLY))
    monkeypatch.setattr(cost.random, "uniform", random.Random(3).uniform)
    windows, on = Windows(), []
    while clock.now < 250:
        windows.wait()
        begun = clock.now
        windows.measure([])
        on.append((begun, clock.now))
    begins, ends = np.array(on).T
    for i, end in enumerate(ends):
        within = np.clip(ends[: i + 1] - np.maximum(begins[: i + 1], end - 1), 0, None)
        assert within.sum() - (within[-1] - WINDOW) <= 0.05 + 1e-9
    assert (ends - begins).sum() / 200 > 0.02
    if late < 0.001:
        # At random moments of a fifth of a second: what happens five times a second is not always in them, nor never.
        assert np.histogram(begins % 0.2, 8, (0, 0.2))[0].min() > 50


def test_windows_are_rarer_and_longer_where_it_takes_long_to_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an emulator: switching takes a hundredth of the time at most, and as much is seen as elsewhere."""
    clock = Clock(7, 0.00005)

    def enable() -> int:
        clock.now += 0.01
        return os.open(os.devnull, os.O_RDONLY)

    monkeypatch.setattr(cost, "time", clock)
    monkeypatch.setattr(cost.bpf, "enable_run_statistics", enable)
    windows, on = Windows(), []
    while clock.now < 250:
        windows.wait()
        begun = clock.now
        windows.measure([])
        on.append(clock.now - begun - 0.01)
    assert len(on) * 0.01 / 200 == pytest.approx(0.01, rel=0.05)
    assert max(on) < 0.05
    assert 0.035 < sum(on) / 200 < 0.045


# --- whether the kernel counts missed runs ------------------------------------------------------------------------


def test_an_unreadable_btf_tells_nothing(tmp_path: Path) -> None:
    assert not cost._counts_of_events(tmp_path / "none")


# --- what is asked for --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message", "hint"),
    [
        ({"max_cost": 25}, "max_cost must be a share of all CPUs, above 0 and at most 1, not 25", "max_cost=0.25"),
        ({"max_cost": 0}, "max_cost must be", None),
        ({"max_cost": -0.1}, "max_cost must be", None),
        ({"max_cost": "25%"}, "not '25%'", None),
        ({"max_cost": True}, "not True", None),
        ({"max_cost": float("nan")}, "not nan", None),
        ({"max_rate": 0}, "max_rate must be a positive number of events a second, not 0", None),
        ({"max_rate": float("inf")}, "max_rate", None),
        ({"max_rate": 10**400}, "max_rate", None),
        ({"max_memory": 1 << 70}, "max_memory", None),
        ({"guard": None}, "guard must be True or False, not None", None),
        ({"max_rate": "20k"}, "max_rate", None),
        ({"max_memory": 1.5}, "max_memory must be a positive whole number of bytes, not 1.5", "512 << 20"),
        ({"max_memory": -1}, "max_memory", "512 << 20"),
        ({"guard": False, "max_rate": 5}, "guard=False takes no limits", None),
        ({"guard": False, "max_cost": 0.5}, "guard=False takes no limits", None),
    ],
)
def test_limits_that_cannot_be_meant(wrong: dict[str, Any], message: str, hint: str | None) -> None:
    with FakeTracer() as tracer, pytest.raises(ProgramError, match=message) as caught:
        bpfnb.trace(HELLO, **wrong)
    assert not tracer.loaded
    assert hint is None or hint in (caught.value.hint or "")


def test_limits_as_they_are_asked_for() -> None:
    assert limits_of(0.25, None, None, True) == Limits(0.25)
    assert limits_of(np.float32(0.5), np.int64(7), np.int32(9), True) == Limits(0.5, 7.0, 9, asked=True)
    assert limits_of(None, None, None, True) == Limits()
    assert limits_of(0.25, None, None, False) == Limits()


# --- what is shown ------------------------------------------------------------------------------------------------


def test_costs_of_a_running_a_stopped_and_a_dead_session() -> None:
    with FakeTracer() as tracer:
        session = bpfnb.trace(HELLO, name="hello")
        none = session.cost
        assert none.columns.tolist() == ["program", "runs", "ns_per_run", "cpu_share", "missed"]
        assert [str(dtype) for dtype in none.dtypes[1:]] == ["Int64", "float64", "float64", "Int64"]
        assert none.program.tolist() == ["kprobe__sys_clone"]
        assert none[["runs", "ns_per_run", "cpu_share"]].isna().all(axis=None)
        assert "cost" not in repr(session)
        tracer.cost(session, {"kprobe__sys_clone": (1000, 240_000, 3)}, seconds=0.02, memory=4096)
        after = session.cost
        assert after.iloc[0].tolist() == ["kprobe__sys_clone", 1000, 240.0, 0.012, 3]
        assert (after.attrs["seconds"], after.attrs["memory"]) == (0.02, 4096)
        assert "\n  cost: 1.2 % of a CPU, 240 ns a run" in repr(session)
        assert "1.2 % of a CPU, 240 ns a run" in session._repr_html_()
        assert none.runs.isna().all()  # a frame that was handed out stays as it is
        tracer.cost(session, {"kprobe__sys_clone": (0, 0, -1)}, seconds=0.02)
        idle = session.cost
        assert (idle.runs[0], idle.cpu_share[0]) == (0, 0.0)
        assert pd.isna(idle.ns_per_run[0])
        assert pd.isna(idle.missed[0])
        tracer.cost(session, {"kprobe__sys_clone": (1, 500, 0)}, seconds=1)
        tracer.die()
        session.wait(5)
        assert session.state == "failed"
        assert session.cost.ns_per_run.tolist() == [500.0]
    assert session.cost.runs.tolist() == [1]


def test_a_session_that_could_not_start_has_no_costs() -> None:
    assert bpfnb.Session("x", parse(HELLO), 1, default_host.connect).cost.empty
