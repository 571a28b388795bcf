"""The poller: sources take turns, one waits for no other, and one that fails harms no other."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from bpfnb.tracer.read.poller import HIGH_WATER, Poller


@pytest.fixture(scope="module")
def poller() -> Poller:
    """Its thread lives as long as its process."""
    return Poller()


@contextmanager
def readable() -> Iterator[int]:
    """A descriptor that is readable all the time."""
    fd = os.eventfd(1)
    yield fd
    os.close(fd)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_removing_a_source_waits_for_its_own_step_only(poller: Poller) -> None:
    """GIVEN a source in the middle of a long step WHEN another is removed THEN that is done at once, its last drain
    too; the first one's removal waits for the step, after which there is none."""
    begun, go_on = threading.Event(), threading.Event()
    steps: list[str] = []

    def long() -> int:
        begun.set()
        go_on.wait()
        steps.append("long")
        return HIGH_WATER

    with readable() as one, readable() as other:
        poller.add([other], lambda: 0)
        poller.add([one], long)
        assert begun.wait(5)
        poller.remove([other], last=lambda: steps.append("last"))
        assert steps == ["last"]
        removing = threading.Thread(target=poller.remove, args=([one], lambda: steps.append("end")))
        removing.start()
        removing.join(0.05)
        assert removing.is_alive()
        go_on.set()
        removing.join(5)
        assert steps == ["last", "long", "end"]


def test_a_source_that_always_has_more_leaves_others_their_turn(poller: Poller) -> None:
    calls = {"flood": 0, "quiet": 0}

    def call(name: str, answer: int) -> Callable[[], int]:
        def drain() -> int:
            calls[name] += 1
            return answer

        return drain

    with readable() as flood, readable() as quiet:
        poller.add([flood], call("flood", HIGH_WATER))
        poller.add([quiet], call("quiet", 0))
        wait_for(lambda: calls["flood"] > 50)
        poller.remove([flood])
        poller.remove([quiet])
    assert abs(calls["flood"] - calls["quiet"]) <= 2


def test_a_source_that_fails_is_told_and_called_no_more(poller: Poller) -> None:
    calls: list[str] = []
    errors: list[Exception] = []

    def fails() -> int:
        calls.append("fails")
        raise ValueError("no more")

    with readable() as one, readable() as second, readable() as other:
        poller.add([one, second], fails, fail=errors.append)
        poller.add([other], lambda: calls.append("other") or 0)
        wait_for(lambda: calls.count("other") > 3)
        assert calls.count("fails") == 1
        assert [str(error) for error in errors] == ["no more"]
        poller.remove([one, second], last=lambda: calls.append("last"))  # there is nothing it could still read
        poller.remove([other])
    assert "last" not in calls
