"""The sessions, by number: started, running, ended; and telling the notebook how each ended."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from functools import partial

from bpfnb.errors import BpfnbError, ProgramError
from bpfnb.language.program import Program
from bpfnb.protocol import messages
from bpfnb.protocol.messages import Detached, Ended, Limits, MapLost
from bpfnb.tracer.access.audit import Audit
from bpfnb.tracer.access.policy import Policy
from bpfnb.tracer.cancel import CancelledError
from bpfnb.tracer.kernel import capabilities
from bpfnb.tracer.link.link import Closer, silence
from bpfnb.tracer.loaded import NotAllowed
from bpfnb.tracer.loaders import Loaders
from bpfnb.tracer.sessions.audience import Audience
from bpfnb.tracer.sessions.last_maps import LastMaps
from bpfnb.tracer.sessions.maps import Maps
from bpfnb.tracer.sessions.session import Session, Starting, has_ended
from bpfnb.tracer.sessions.start import Starter

__all__ = ["Sessions"]

_TRACER_ENDED = "the notebook or the tracer ended"  # why
_LEAVING_TIMEOUT = 2.0  # seconds for sessions that are starting or ending when the tracer ends


class Sessions:
    """The sessions, by number, and what they share; for any thread. ``maps``: requests for their maps.

    ``received``, ``past``: see Readers.
    """

    def __init__(self, loaders: Loaders, audience: Audience, policy: Policy, audit: Audit) -> None:
        self._policy = policy
        self._audit = audit
        self._audience = audience
        self._closer = Closer()
        self._starter = Starter(loaders, audience, policy, audit, self._closer, self.end)
        self._last_maps = LastMaps(audience)
        self._lock = threading.Lock()  # for bookkeeping, never held while waiting
        self._running: dict[int, Session] = {}
        self._starting: dict[int, Starting] = {}
        self._ending: dict[int, threading.Event] = {}  # those that are being ended
        # Of ended ones: attachments that the kernel still has to let go of, and maps that are still to be read.
        self._behind: dict[int, tuple[int, tuple[str, ...]]] = {}
        self.maps = Maps(audience.notebook, self._find)
        self.received = self._starter.readers.received
        self.past = self._starter.readers.past

    def expect(self, number: int) -> None:
        """Know of a session that will be started: from now on it can be stopped."""
        with self._lock:
            self._starting[number] = Starting()

    def start(
        self,
        number: int,
        program: Program,
        folder: str,
        limits: Limits,
        keep: int,
        reply: Callable[[messages.Loaded], None],
    ) -> None:
        """Compile, load, attach, and ``reply``: a session that was announced (``expect``). On any error nothing stays
        attached. ``folder``, ``limits`` and ``keep``: see Load."""
        starting, started = self._starting[number], False
        capabilities.mount_tracefs()  # somebody may have unmounted it since
        try:
            self._policy.check_load(program)
            limits = self._policy.capped(limits)
            session, answer = self._starter.start(number, program, folder, limits, keep, starting)
            reply(answer)
            with self._lock:
                self._running[number] = session
            started = True
        except CancelledError:
            raise ProgramError("the session was stopped before it ran") from None
        except NotAllowed as error:
            refused = self._policy.refused_instruction(error.what, error.line or 0)
            refused.source = program.source
            self._audit.refused(number, program, refused)
            raise refused from None
        except BpfnbError as error:
            error.source = error.source or program.source
            self._audit.refused(number, program, error)
            raise
        finally:
            with self._lock:
                del self._starting[number]
            starting.done.set()
            if not started:
                self._audience.drop(number)
        if starting.reason:
            self.end(number, starting.reason)

    def stop(self, number: int, reply: Callable[[int, tuple[str, ...]], None]) -> None:
        """Take the programs off, deliver the rest, and the maps as they are then, free, and ``reply``: how many
        attachments are still to be let go of, and the maps too large to be waited for. That goes on behind; the
        notebook hears when it is done.

        A session unknown or stopped is no error. One that is being compiled is given up at once.
        """
        if starting := self._starting.get(number):
            starting.give_up()
        session = self._take(number)
        if not session:
            if ending := self._ending.get(number):
                ending.wait()  # it is being ended just now: with the answer everything is delivered here too
            reply(*self._behind.get(number, (0, ())))
            return
        try:
            with self._closer.paused():
                self._finish(session)
            if session.failure:
                self._say_ended(session, session.failure)
            else:
                self._audit.ended(number, "stopped by its user")
                self._audience.say_stopped(Ended(number, "stopped", len(session.events()), session.unread))
        except Exception as error:
            # All the same none of its programs runs any more, and it is not to be taken for a running one.
            traceback.print_exc()
            self._say_ended(session, f"stopped, but not all it had is here: {error}")
        try:
            reply(len(session.events()), session.unread)
        finally:
            try:
                self._let_go(session)
            finally:
                self._ending.pop(number).set()

    def end(self, number: int, reason: str) -> None:
        """Have a session end that nobody asked to: it is stopped, in a thread of its own, and the notebook hears why.

        ``reason``: one line. May be called from any thread, again, and for a session that is only starting.
        """
        with self._lock:
            if number in self._starting:
                self._starting[number].reason = self._starting[number].reason or reason
                return
        if session := self._take(number):
            threading.Thread(target=self._end, args=(session, reason), name="bpfnb-end", daemon=True).start()

    def stop_all(self) -> None:
        """End every session; nobody is there any more to read what they leave.

        What the kernel is slow to close it closes when this process ends. Those that are only starting, or ending, are
        waited for: what they have made in tracefs stays there if nobody removes it, and the supervisor may be gone.
        """
        with self._lock:
            starting = list(self._starting.values())
            others = [*(session.done for session in starting), *self._ending.values()]
        for session in starting:
            session.cancel.cancel()
        with self._closer.paused():
            self._close_all()
            until = time.monotonic() + _LEAVING_TIMEOUT
            for done in others:
                done.wait(max(until - time.monotonic(), 0))
            self._close_all()  # what came to run all the same

    def _find(self, number: int) -> Session:
        with self._lock:
            if number not in self._running:
                raise has_ended()
            return self._running[number]

    def _take(self, number: int) -> Session | None:
        """Whoever takes a session ends it."""
        with self._lock:
            session = self._running.pop(number, None)
            if session:
                self._ending[number] = threading.Event()
            return session

    def _end(self, session: Session, reason: str) -> None:
        try:
            with self._closer.paused():
                self._finish(session)
        except Exception:
            traceback.print_exc()  # it ends for a reason already, of which this may be a part
        try:
            self._say_ended(session, reason)
            self._let_go(session)
        finally:
            self._ending.pop(session.number).set()  # somebody may wait for it to be stopped

    def _finish(self, session: Session) -> None:
        try:
            session.end()
            session.stack.close()
            session.unread = self._last_maps.send_small(session)
            if session.unread:
                session.hold()
        finally:
            session.close()

    def _say_ended(self, session: Session, reason: str) -> None:
        self._audit.ended(session.number, reason)
        self._audience.send(Ended(session.number, reason, len(session.events()), session.unread))

    def _let_go(self, session: Session) -> None:
        """Close what the kernel is slow to close and read the large maps, side by side; then say so."""
        events = session.events()
        parts = bool(events) + bool(session.unread)
        if not parts:
            self._audience.release(session.number)
            return
        self._behind[session.number] = len(events), session.unread
        done = _Countdown(parts, partial(self._say_detached, session.number))
        self._closer.close(events, done.step)
        if session.unread:
            self._last_maps.start_large(session, done.step)

    def _say_detached(self, number: int) -> None:
        self._behind.pop(number, None)
        self._audience.send(Detached(number))
        self._audience.release(number)

    def _close_all(self) -> None:
        with self._lock:
            ending, self._running = self._running, {}
        silence([link for session in ending.values() for link in session.links])
        for number, session in ending.items():
            if self._audience.follows(number):
                self._end_for_followers(session)
            session.close()
            self._audit.ended(number, _TRACER_ENDED)

    def _end_for_followers(self, session: Session) -> None:
        """Deliver a session's last rows and maps at the tracer's end: somebody may be there to whom they matter."""
        try:
            session.end()
            session.stack.close()
            for name in self._last_maps.send_small(session):
                self._audience.send(MapLost(session.number, name, f"the map {name}: {_TRACER_ENDED}"))
        except Exception:
            traceback.print_exc()
        self._audience.send(Ended(session.number, _TRACER_ENDED))


class _Countdown:
    """Calls ``done`` when ``step`` has been called so many times, from any thread."""

    def __init__(self, steps: int, done: Callable[[], None]) -> None:
        self._steps = steps
        self._done = done
        self._lock = threading.Lock()

    def step(self) -> None:
        with self._lock:
            self._steps -= 1
            last = not self._steps
        if last:
            self._done()
