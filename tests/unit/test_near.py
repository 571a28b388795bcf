"""near with a far that plays a script: another host's clock, and a host that lies."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from scripted_far import LIES
from waiting import until

import bpfnb
from bpfnb.errors import BpfnbError
from bpfnb.host.ssh.peer import launch
from bpfnb.session.map_access import MapAccess

_FAR = str(Path(__file__).parents[1] / "scripted_far.py")
_CELL = "BPF_PERF_OUTPUT(events); int f(void *ctx) { return 0; }"


def scripted(ahead: float, lie: str = "") -> bpfnb.Host:
    return bpfnb.Host(lambda: launch((sys.executable, _FAR, str(ahead), lie), "box"))


@pytest.mark.parametrize("ahead", [-12345.0, 1e6])
def test_the_present_is_that_of_the_rows_host(ahead: float) -> None:
    """GIVEN a host whose monotonic clock is another, and whose wall clock is an hour ahead WHEN it sends a row of the
    moment THEN the row has that host's wall time, and the present on the rows' clock is a moment later; also when the
    session has stopped."""
    hour = 3600 * 10**9
    with scripted(ahead) as host:
        session = host.trace(_CELL, attach={"syscall:getpgid": "f"})
        output = session.outputs["events"]
        until(lambda: abs(output.now() - time.time_ns() - hour) < 50e6)  # once the clock is measured
        assert abs(session.df.time.astype("int64").iloc[0] - time.time_ns() - hour) < 30e9
        session.stop()
        assert abs(output.now() - time.time_ns() - hour) < 50e6
        assert MapAccess(session, "").moment / 1e9 == pytest.approx(time.monotonic() + ahead, abs=5)
        another = host.trace(_CELL, name="another", attach={"syscall:getpgid": "f"})
        another.stop()  # before anybody has asked for the present
        assert abs(another.outputs["events"].now() - time.time_ns() - hour) < 50e6


@pytest.mark.parametrize("lie", LIES)
def test_a_host_that_lies_is_left_and_the_rows_are_kept(lie: str) -> None:
    """WHEN a host sends what cannot be THEN its sessions have failed, in a line, with what was right."""
    with scripted(0, lie) as host:
        try:
            session = host.trace(_CELL, attach={"syscall:getpgid": "f"})
            until(lambda: session.state == "failed")
            assert len(session.df) == 1
            reason = session.reason
        except BpfnbError as error:  # it came before the session was up
            reason = str(error)
        assert reason.startswith("the connection to box was lost: ")
        assert reason.endswith("; what was collected so far is kept")
        assert "\n" not in reason
        assert "Error" not in reason
