"""The counters' view: what is sent, and what is not sent again."""

from __future__ import annotations

from made_up import FakeSession, snapshot

from bpfnb.views.live.counters import CountersView
from bpfnb.views.live.view import ViewSpec


def test_an_idle_session_is_not_sent_again_for_what_its_tracer_takes() -> None:
    session, now = FakeSession(), [0.0]
    shares = [0.0, 0.00087]
    session.snapshot = lambda: snapshot(name="idle", state="running", shares=tuple(shares))
    view = CountersView([ViewSpec(session, "counters")], clock=lambda: now[0])
    view.whole()

    def sent(tracer: float) -> object:
        shares[1], now[0] = tracer, now[0] + 1.1
        view.update(False)
        part = view.delta()
        return part and part.header["rows"][0]["tracer"]

    assert sent(0.00092) is None
    assert sent(0.0005) is None
    assert sent(0.002) == 0.002
    assert sent(0.3) == 0.3
    assert sent(0.31) is None
    assert sent(0.33) == 0.33
