"""The offset from the kernel's clock to the time of day."""

from __future__ import annotations

import time

import pytest

from bpfnb.tracer.read.clock import Clock


class Clocks:
    """Three clocks that go on by 30 ns with every look at one."""

    def __init__(self) -> None:
        self.mono = 1_000_000_000
        self.ahead = {time.CLOCK_MONOTONIC: 0, time.CLOCK_BOOTTIME: 0, time.CLOCK_REALTIME: 1_700_000_000_000_000_000}
        self.pauses: list[int] = []  # how long this thread does not run before its next looks

    def read(self, which: int) -> int:
        self.mono += 30 + (self.pauses.pop(0) if self.pauses else 0)
        return self.mono + self.ahead[which]


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def test_the_offset_is_measured_between_two_looks(clocks: Clocks) -> None:
    assert Clock(clocks.read).epoch_ns() == clocks.ahead[time.CLOCK_REALTIME]


def test_a_thread_that_was_stopped_measures_no_worse(clocks: Clocks) -> None:
    clocks.pauses = [0, 7_000_000, 0, 0, 0, 5_000_000] * 50
    assert Clock(clocks.read).epoch_ns() == clocks.ahead[time.CLOCK_REALTIME]


def test_a_step_of_the_wall_clock_moves_nothing(clocks: Clocks) -> None:
    measured = Clock(clocks.read)
    before = measured.epoch_ns()
    clocks.ahead[time.CLOCK_REALTIME] += 3_600_000_000_000
    assert measured.epoch_ns() == before
    clocks.pauses = [0, 9_000_000_000]
    assert measured.epoch_ns() == before


def test_after_a_suspend_it_is_measured_again(clocks: Clocks) -> None:
    measured = Clock(clocks.read)
    for which in (time.CLOCK_BOOTTIME, time.CLOCK_REALTIME):
        clocks.ahead[which] += 60_000_000_000
    assert measured.epoch_ns() == clocks.ahead[time.CLOCK_REALTIME]


def test_it_is_that_of_this_machine() -> None:
    before = time.time_ns() - time.monotonic_ns()
    assert abs(Clock().epoch_ns() - before) < 1_000_000
