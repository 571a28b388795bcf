"""Start a session: load its program, begin to read its outputs, attach its probes, and guard it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

from bpfnb.errors import AttachError, Diagnostic, ProgramError, UnsupportedError
from bpfnb.language.probes import Probe
from bpfnb.language.program import Program
from bpfnb.protocol import messages
from bpfnb.protocol.messages import CountersAdded, Limits, Noted, ProbeInfo
from bpfnb.tracer.access.audit import Audit
from bpfnb.tracer.access.policy import Policy, spoken_time
from bpfnb.tracer.cancel import Cancel
from bpfnb.tracer.filters.selection import Selection, select
from bpfnb.tracer.guard.guard import Guard
from bpfnb.tracer.kernel import bpf, capabilities, features
from bpfnb.tracer.kernel.cpus import CpuWatch
from bpfnb.tracer.link import kinds
from bpfnb.tracer.link.kinds import Files
from bpfnb.tracer.link.link import Closer, Link, silence
from bpfnb.tracer.link.many import attachment, numbers, ways
from bpfnb.tracer.link.many.expand import Skipped, expand
from bpfnb.tracer.loaded import Loaded
from bpfnb.tracer.loaders import Loaders
from bpfnb.tracer.sessions.audience import Audience
from bpfnb.tracer.sessions.readers import Readers
from bpfnb.tracer.sessions.session import Session, Starting

__all__ = ["Starter"]

_PROGRESS_EVERY = 0.5  # seconds


class Starter:
    """Starts sessions; for any thread. ``end``: has a session end, by its number, for a reason."""

    def __init__(
        self,
        loaders: Loaders,
        audience: Audience,
        policy: Policy,
        audit: Audit,
        closer: Closer,
        end: Callable[[int, str], None],
    ) -> None:
        self._loaders = loaders
        self._audience = audience
        self._policy = policy
        self._audit = audit
        self._closer = closer
        self._end = end
        self._guard = Guard(end)
        self._cpus = CpuWatch(capabilities.with_sys_admin)
        self.readers = Readers(audience, self._cpus, end)

    def start(
        self, number: int, program: Program, folder: str, limits: Limits, keep: int, starting: Starting
    ) -> tuple[Session, messages.Loaded]:
        """Start a session, and return it with the answer to its request. On any error nothing stays attached.

        What is begun first ends last: links, then the last drains, then what they read from, then the programs.
        """
        selection = select(program.filters, self._policy.peer.pid)
        try:
            return self._start(number, program, folder, limits, keep, starting, selection)
        finally:
            selection.close()

    def _start(
        self,
        number: int,
        program: Program,
        folder: str,
        limits: Limits,
        keep: int,
        starting: Starting,
        selection: Selection,
    ) -> tuple[Session, messages.Loaded]:
        program, files, skipped = expand(program, folder, selection.pid)
        self._policy.check_load(program)
        loaded = self._loaders[program.kind].load(program, files, self._policy.confinement, starting.cancel)
        try:
            selection.load(loaded)
        except BaseException:
            loaded.close()
            raise
        session = Session(number, loaded)
        try:
            with self._closer.paused():
                starting.attach()
                session.stack.callback(self._say_lost, session, selection)
                watch = self.readers.watch(session) if self._names_past(program) else None
                selection.install(loaded, session.stack)
                if watch:
                    watch(selection.followed)
                self.readers.read(session, keep)
                probes = self._attach(session, program, files, skipped, starting.cancel)
            self._send_counters(session)
            self._limit_time(session)
            session.meter.add_links(session.links)
            self._audience.send(session.meter.message(number), [session.meter.fd])
            self._guard.add(number, session.meter, limits)
            self._audit.started(number, program, probes)
        except BaseException:
            session.close()
            self._closer.close(session.events())
            raise
        warnings = (*loaded.warnings, *skipped.warnings(), *_unguarded(limits))
        return session, messages.Loaded(number, probes, warnings, loaded.map_infos, loaded.notes)

    def _names_past(self, program: Program) -> bool:
        """Return whether functions of processes are to be named that have ended: of all that a session follows, as
        stacks may be in any map. A policy of own processes alone asks whose a process is, which nobody knows of one
        that has ended."""
        rules = self._policy.rules
        return bool(program.filters.follow) and rules.stacks and not rules.own_processes

    def _attach(
        self, session: Session, program: Program, files: Files, skipped: Skipped, cancel: Cancel
    ) -> tuple[ProbeInfo, ...]:
        links, where = session.links, numbers.places(program)
        # First of all at the end, so that no probe sees events when another, its counterpart, sees none any more.
        session.stack.callback(silence, links)
        unsure = _conditional(program)
        infos: list[ProbeInfo] = []
        groups = list(ways.groups(_compiled(program, session.loaded)))
        due = time.monotonic() + _PROGRESS_EVERY
        for group in groups:
            cancel.check()
            if time.monotonic() >= due:
                due = time.monotonic() + _PROGRESS_EVERY
                self._audience.send(messages.Progress(session.number, len(infos), sum(map(len, groups))))
            if group[0].function in unsure and not self._is_there(group[0], files, skipped):
                continue
            with capabilities.with_sys_admin():
                for link in attachment.attach(session.loaded, group, len(infos), files, where, skipped.add):
                    links.append(link)
                    infos += link.infos
                    if link.renew:
                        session.follow_cpus(self._cpus, partial(self._renew, session.number, link))
        skipped.require_some(links)
        if not links:
            raise _nothing_compiled(program)
        return tuple(infos)

    @staticmethod
    def _is_there(probe: Probe, files: Files, skipped: Skipped) -> bool:
        """Return whether a probe is there whose function might not have been compiled: others were looked for before
        they were compiled."""
        try:
            kinds.require(probe, files.folder)
        except (AttachError, UnsupportedError) as error:
            skipped.add(probe, error)
            return False
        return True

    def _renew(self, number: int, link: Link, cpu: int) -> None:
        """Attach a probe to a CPU that has come online."""
        assert link.renew
        with capabilities.with_sys_admin():
            link.renew(cpu)
        what = f"{link.info.requested} is attached there now; up to a second of it is missing"
        self._audience.send(Noted(number, f"CPU {cpu} has come online: {what}", ""))

    def _say_lost(self, session: Session, selection: Selection) -> None:
        """Say at a session's end which processes it did not follow."""
        if text := selection.note(session.loaded):
            self._audience.send(Noted(session.number, text, ""))

    def _send_counters(self, session: Session) -> None:
        """Hand the notebook the memory in which the programs count what their maps refuse."""
        if refused := session.loaded.refused:
            bpf.freeze(refused.fd)
            self._audience.send(CountersAdded(session.number, refused.count), [refused.fd])

    def _limit_time(self, session: Session) -> None:
        """End the session when the time is over that the policy allows."""
        if (seconds := self._policy.rules.max_time) is not None:
            reason = f"the policy allows sessions of at most {spoken_time(seconds)}"
            timer = threading.Timer(seconds, self._end, (session.number, reason))
            timer.daemon = True
            timer.start()
            session.stack.callback(timer.cancel)


def _compiled(program: Program, loaded: Loaded) -> list[Probe]:
    """Return the probes whose function was compiled: one under an ``#if`` that came out false asks for nothing."""
    conditional = _conditional(program)
    probes = []
    for probe in program.probes:
        if kinds.spec(probe) in loaded.programs:
            probes.append(probe)
        elif probe.function not in conditional:
            raise ProgramError(f"there is no function {probe.function} in the compiled program")
    return probes


def _conditional(program: Program) -> set[str]:
    """Return the functions that may turn out not to be compiled."""
    return {f.name for f in program.functions if f.conditional}


def _nothing_compiled(program: Program) -> ProgramError:
    if not program.probes:
        return ProgramError("nothing in this cell is attached to a probe", hint="name one: -a syscall:clone=hello")
    first = program.probes[0]
    why = f"nothing would run: {first.function} stands under an #if that came out false"
    return ProgramError(why, line=first.line or None)


def _unguarded(limits: Limits) -> list[Diagnostic]:
    """Warn where a limit was asked for that cannot be kept."""
    if limits.cost is None or not limits.asked:
        return []
    try:
        with capabilities.with_sys_admin():
            features.run_statistics()
    except OSError as error:
        message = f"max_cost is not guarded: the kernel does not time programs ({error.strerror})"
        return [Diagnostic(0, 0, "warning", message)]
    return []
