"""The sessions on the tracer's side: what each has loaded, its links, its sources, and the order they close in."""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TypeVar

import numpy as np

from bpfnb.errors import BpfnbError, Diagnostic, MapError, ProgramError, near_or_all
from bpfnb.language.probes import Probe
from bpfnb.language.program import Program
from bpfnb.protocol import messages
from bpfnb.protocol.messages import (
    CountersAdded,
    Detached,
    Ended,
    Limits,
    MapInfo,
    MapLost,
    MapRead,
    Noted,
    ProbeInfo,
    SegmentAdded,
)
from bpfnb.protocol.schema import PRINTK, Schema
from bpfnb.protocol.segments import Credit, Layout, SegmentWriter
from bpfnb.tracer.access.audit import Audit
from bpfnb.tracer.access.policy import Policy, spoken_time
from bpfnb.tracer.cancel import Cancel, CancelledError
from bpfnb.tracer.compile.engine import Engine
from bpfnb.tracer.guard.cost import Meter, map_memory
from bpfnb.tracer.guard.guard import Guard
from bpfnb.tracer.kernel import bpf, capabilities, features
from bpfnb.tracer.kernel import maps as kernel_maps
from bpfnb.tracer.kernel.cpus import CpuWatch
from bpfnb.tracer.kernel.maps import Limit
from bpfnb.tracer.link import attach, slots, usdt
from bpfnb.tracer.link.attach import Surroundings
from bpfnb.tracer.link.link import Closer, Link, silence
from bpfnb.tracer.loaded import Counters, Loaded, LoadedOutput, NotAllowed
from bpfnb.tracer.loaders import Loaders
from bpfnb.tracer.outbox import Outbox
from bpfnb.tracer.read import lines
from bpfnb.tracer.read.clock import Clock
from bpfnb.tracer.read.comms import CommHistory
from bpfnb.tracer.read.perf import PerfSource
from bpfnb.tracer.read.poller import Poller
from bpfnb.tracer.read.printk import PrintkSource
from bpfnb.tracer.read.records import OpenWriter
from bpfnb.tracer.read.ringbuf import RingSource

__all__ = ["Sessions"]

Writer = TypeVar("Writer", bound=SegmentWriter)

# When a session ends, maps that are together no larger, and take no longer, are sent before the notebook hears of its
# end; the rest behind it, for so long.
_SMALL = 64 << 20
_SMALL_SECONDS = 0.5
_LARGE_SECONDS = 10.0
_TAKING_TIMEOUT = 5.0  # seconds for those who take entries out of a map when their session ends
_LEAVING_SECONDS = 2.0  # for sessions that are starting or ending when the tracer ends
_Source = RingSource | PerfSource | PrintkSource


class _Running:
    """A session: what it has loaded, and ``stack``, which undoes all that was done with it, the last first.

    Programs and maps are there for as long as anybody uses them: the session itself, until it is closed, and requests.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.stack = ExitStack()
        self.links: list[Link] = []
        self.counters: dict[str, list[int]] = {}  # the descriptors that hold a perf array's, by its name
        self.over = False  # it is being ended: no request begins any more
        self.unread: tuple[str, ...] = ()  # maps that are still to be read when it has ended
        self._changed = threading.Condition()
        self._users = 1
        self._taking = 0
        self.failure = ""  # why an output could not be read to its end
        self.writers: list[SegmentWriter] = []
        self.buffers = 0  # bytes of memory in the kernel, beside the maps'
        programs: dict[str, list[int]] = {}
        for spec, fd in loaded.programs.items():
            if not spec.optional:  # the time of one that is only called by another is in that one's
                programs.setdefault(spec.function, []).append(fd)
        self.meter = Meter(programs, self._events, self._memory)
        self.stack.callback(self.meter.close)

    def info(self, name: str) -> MapInfo:
        """A map of the session; ProgramError where there is none of this name."""
        infos = {info.name: info for info in self.loaded.map_infos}
        if name not in infos:
            raise ProgramError(f"the session has no map {name!r}{near_or_all(name, list(infos))}")
        return infos[name]

    def table(self, name: str) -> int:
        """The descriptor of a map there is."""
        return self.loaded.maps[self.info(name).name].fd

    @contextmanager
    def used(self, *, taking: bool = False) -> Iterator[None]:
        """Programs and maps stay inside; ``taking``: entries are taken out of a map. ProgramError when it is over."""
        with self._changed:
            if self.over:
                raise _ended()
            self._users += 1
            self._taking += taking
        try:
            yield
        finally:
            self._leave(taking)

    def hold(self) -> None:
        """Keep programs and maps until ``release``, also after the session has been closed."""
        with self._changed:
            self._users += 1

    def release(self) -> None:
        self._leave(False)

    def end(self) -> None:
        """Take no more requests, and wait for those who take entries out of a map: they end with what they have."""
        with self._changed:
            self.over = True
            self._changed.wait_for(lambda: not self._taking, _TAKING_TIMEOUT)

    def _events(self) -> int:
        return sum(writer.rows + writer.lost for writer in self.writers)

    def _memory(self) -> int:
        return self.buffers + sum(map_memory(table.fd) for table in self.loaded.maps.values())

    def close(self) -> None:
        self.over = True
        try:
            self.stack.close()
        finally:
            self.release()

    def events(self) -> list[int]:
        """The descriptors that are left when it is closed: no program runs at them, but closing them may take long."""
        return [fd for link in self.links for fd in link.events]

    def _leave(self, taking: bool) -> None:
        with self._changed:
            self._users -= 1
            self._taking -= taking
            self._changed.notify_all()
            last = not self._users
        if last:
            for opened in self.counters.values():
                slots.close_all(opened)
            self.loaded.close()


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


class _Starting:
    """A session on its way. ``reason``: why it is to end as soon as it runs, or ""."""

    def __init__(self) -> None:
        self.cancel = Cancel()
        self.reason = ""
        self.done = threading.Event()
        self._lock = threading.Lock()
        self._attaching = False

    def attach(self) -> None:
        """From here on programs may run. CancelledError when it was cancelled."""
        with self._lock:
            self.cancel.check()
            self._attaching = True

    def give_up(self) -> None:
        """Have no program run any more, nor begin to. What is compiled is let go; what is being attached is waited for,
        and taken off."""
        with self._lock:
            self.cancel.cancel()
        if self._attaching:
            self.done.wait()


class Sessions:
    """The sessions, by number, and what they share; for any thread."""

    def __init__(self, engine: Engine, loaders: Loaders, outbox: Outbox, policy: Policy, audit: Audit) -> None:
        self._policy = policy
        self._audit = audit
        self._engine = engine
        self._loaders = loaders
        self._outbox = outbox
        self._poller = Poller()
        self._clock = Clock()
        self._closer = Closer()
        self._guard = Guard(self.end)
        self._cpus = CpuWatch(capabilities.with_sys_admin)
        self._lock = threading.Lock()  # for bookkeeping, never held while waiting
        self._running: dict[int, _Running] = {}
        self._starting: dict[int, _Starting] = {}
        self._ending: dict[int, threading.Event] = {}  # those that are being ended
        # Of ended ones: attachments that the kernel still has to let go of, and maps that are still to be read.
        self._behind: dict[int, tuple[int, tuple[str, ...]]] = {}
        self._reading = threading.Lock()  # held while large maps are read, one session's at a time
        self._naming = threading.Lock()  # held while the history of names is made or removed
        self._comms: CommHistory | None = None
        self._printing: set[int] = set()
        self._credits: dict[int, Credit] = {}

    def expect(self, number: int) -> None:
        """Know of a session that will be started: from now on it can be stopped."""
        with self._lock:
            self._starting[number] = _Starting()

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
        starting = self._starting[number]
        capabilities.mount_tracefs()  # somebody may have unmounted it since
        try:
            self._policy.check_load(program)
            limits = self._policy.capped(limits)
            running, loaded = self._start(number, program, folder, limits, keep, starting)
            reply(loaded)
            with self._lock:
                self._running[number] = running
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
        running = self._take(number)
        if not running:
            if ending := self._ending.get(number):
                ending.wait()  # it is being ended just now: with the answer everything is delivered here too
            reply(*self._behind.get(number, (0, ())))
            return
        try:
            with self._closer.paused():
                self._finish(number, running)
            if running.failure:
                self._say_ended(number, running.failure, running)
            else:
                self._audit.ended(number, "stopped by its user")
        except Exception as error:
            # All the same none of its programs runs any more, and it is not to be taken for a running one.
            traceback.print_exc()
            self._say_ended(number, f"stopped, but not all it had is here: {error}", running)
        try:
            reply(len(running.events()), running.unread)
        finally:
            try:
                self._let_go(number, running)
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
        if running := self._take(number):
            threading.Thread(target=self._end, args=(number, running, reason), name="bpfnb-end", daemon=True).start()

    def _end(self, number: int, running: _Running, reason: str) -> None:
        try:
            with self._closer.paused():
                self._finish(number, running)
        except Exception:
            traceback.print_exc()  # it ends for a reason already, of which this may be a part
        try:
            self._say_ended(number, reason, running)
            self._let_go(number, running)
        finally:
            self._ending.pop(number).set()  # somebody may wait for it to be stopped

    def _say_ended(self, number: int, reason: str, running: _Running) -> None:
        self._audit.ended(number, reason)
        self._outbox.send(Ended(number, reason, len(running.events()), running.unread))

    def _take(self, number: int) -> _Running | None:
        """Whoever takes a session ends it."""
        with self._lock:
            running = self._running.pop(number, None)
            if running:
                self._ending[number] = threading.Event()
            return running

    def _let_go(self, number: int, running: _Running) -> None:
        """Close what the kernel is slow to close and read the large maps, side by side; then say so."""
        events = running.events()
        parts = bool(events) + bool(running.unread)
        if not parts:
            return
        self._behind[number] = len(events), running.unread
        done = _Countdown(parts, partial(self._say_detached, number))
        self._closer.close(events, done.step)
        if running.unread:
            reading = (number, running, done.step)
            threading.Thread(target=self._read_large, args=reading, name="bpfnb-maps", daemon=True).start()

    def _finish(self, number: int, running: _Running) -> None:
        try:
            running.end()
            running.stack.close()
            running.unread = self._send_small(number, running)
            if running.unread:
                running.hold()
        finally:
            running.close()

    def _send_small(self, number: int, running: _Running) -> tuple[str, ...]:
        """Send the maps as they are at the end, those not too large to be waited for: the names of the rest."""
        left, until = _SMALL, time.monotonic() + _SMALL_SECONDS
        unread = []
        for info in running.loaded.map_infos:
            if not info.value:
                continue
            try:
                if self._outbox.full:
                    raise MapError("the notebook does not read")
                left -= self._send_last(number, info, running, Limit(left, until))
            except MapError:
                unread.append(info.name)
            except BpfnbError as error:
                self._say_lost(number, info.name, error.message)
        return tuple(unread)

    def _read_large(self, number: int, running: _Running, done: Callable[[], None]) -> None:
        """Send the maps that were too large to be waited for, for some seconds; one session at a time."""
        until = time.monotonic() + _LARGE_SECONDS
        late = f"it could not be read in the {_LARGE_SECONDS:g} seconds after its session ended: "
        held = self._reading.acquire(timeout=_LARGE_SECONDS)
        try:
            for name in running.unread:
                try:
                    if not held:
                        raise MapError("those of other sessions were being read")
                    if not self._outbox.wait_for_room(max(until - time.monotonic(), 0)):
                        raise MapError("the notebook did not take what was sent before")
                    self._send_last(number, running.info(name), running, Limit(1 << 62, until))
                except MapError as error:
                    self._say_lost(number, name, late + error.message)
                except BpfnbError as error:
                    self._say_lost(number, name, error.message)
        except Exception:
            traceback.print_exc()
        finally:
            if held:
                self._reading.release()
            running.release()
            done()

    def _send_last(self, number: int, info: MapInfo, running: _Running, limit: Limit) -> int:
        """Send a map of a session that ends: how many bytes."""
        # A queue shows its head alone, but nobody needs it any more. A pinned one others may.
        take = info.kind in ("queue", "stack") and "PINNED" not in info.macro
        read = partial(kernel_maps.take_all if take else kernel_maps.dump, limit=limit)
        return self._send_map(0, number, info.name, read, running)

    def _say_lost(self, number: int, name: str, why: str) -> None:
        self._outbox.send(MapLost(number, name, f"the map {name}: {why}"))

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
            until = time.monotonic() + _LEAVING_SECONDS
            for done in others:
                done.wait(max(until - time.monotonic(), 0))
            self._close_all()  # what came to run all the same

    def _close_all(self) -> None:
        with self._lock:
            ending, self._running = self._running, {}
        silence([link for running in ending.values() for link in running.links])
        for number, running in ending.items():
            running.close()
            self._audit.ended(number, "the notebook or the tracer ended")

    def _say_detached(self, number: int) -> None:
        self._behind.pop(number, None)
        self._outbox.send(Detached(number))

    def received(self, number: int, segments: int) -> None:
        """The notebook has received so many more of a session's segments."""
        if credit := self._credits.get(number):
            credit.acknowledge(segments)

    # --- maps ---

    def read_map(self, request: int, number: int, name: str) -> None:
        """Send a map's entries, as MapRead has them."""
        running = self._of(number)
        with running.used():
            self._send_map(request, number, name, kernel_maps.dump, running)

    def take_map(self, request: int, number: int, name: str, most: int) -> None:
        """Send entries, taken out of the map."""
        if most < 0:
            raise ProgramError(f"{most} entries cannot be taken")
        running = self._of(number)
        with running.used(taking=True):
            take = partial(kernel_maps.take, most=most, over=lambda: running.over)
            self._send_map(request, number, name, take, running, taken=True)

    def look_up(self, number: int, name: str, key: bytes) -> bytes | None:
        running = self._of(number)
        with running.used():
            fd = running.table(name)
            if running.info(name).kind == "prog_array":
                function = slots.program_at(fd, key, running.loaded)
                return function.encode() if function is not None else None
            return kernel_maps.look_up(fd, key)

    def write_map(self, number: int, name: str, key: bytes, value: bytes | None) -> bool:
        running = self._of(number)
        with running.used():
            kind, fd = running.info(name).kind, running.table(name)
            if kind in slots.KINDS:
                return self._write_slot(running, kind, fd, key, value)
            if value is not None and kind.endswith("_of_maps"):  # it is the inner map's name
                inner = value.decode(errors="replace")
                if inner not in running.loaded.maps:
                    raise ProgramError(f"there is no map {inner!r} to put into {name}")
                value = struct.pack("=I", running.loaded.maps[inner].fd)
            return kernel_maps.write(fd, key, value)

    def _write_slot(self, running: _Running, kind: str, fd: int, key: bytes, value: bytes | None) -> bool:
        if value is None:
            return slots.empty(fd, key)
        name = value.decode(errors="surrogateescape")
        if kind == "prog_array":
            slots.set_program(fd, key, name, running.loaded)
        else:
            slots.set_cgroup(fd, key, name)
        return True

    def open_counter(self, number: int, name: str, kind: str, event: str) -> None:
        """Fill a perf array with a counter, for as long as the session runs; it takes the place of one before it."""
        running = self._of(number)
        with running.used():
            if running.info(name).kind != "perf_event_array":
                raise ProgramError(f"{name} holds no counters")
            opened = slots.open_counters(running.table(name), kind, event)
            slots.close_all(running.counters.pop(name, []))
            running.counters[name] = opened

    def clear_map(self, number: int, name: str) -> None:
        running = self._of(number)
        with running.used():
            kernel_maps.clear(running.table(name))

    def _of(self, number: int) -> _Running:
        with self._lock:
            if number not in self._running:
                raise _ended()
            return self._running[number]

    def _send_map(
        self,
        request: int,
        number: int,
        name: str,
        read: Callable[[int], tuple[int, int]],
        running: _Running,
        taken: bool = False,
    ) -> int:
        """Read a map and send its entries: how many bytes."""
        count, fd = read(running.table(name))
        try:
            self._outbox.send(MapRead(request, number, name, count, taken), [fd])
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    # --- starting ---

    def _start(
        self, number: int, program: Program, folder: str, limits: Limits, keep: int, starting: _Starting
    ) -> tuple[_Running, messages.Loaded]:
        """What is begun first ends last: links, then the last drains, then what they read from, then the programs."""
        around = Surroundings(folder, usdt.find_all(program, folder))
        _require(program, around)
        loader = self._loaders[program.kind]
        running = _Running(loader.load(program, around, self._policy.confinement, starting.cancel))
        loaded = running.loaded
        self._credits[number] = Credit(keep)
        running.stack.callback(self._credits.pop, number)
        try:
            with self._closer.paused():
                starting.attach()
                if loaded.tag:
                    self._read_printk(number, loaded.tag, running)
                for output in loaded.outputs:
                    self._read_output(number, output, running)
                probes = self._attach(number, program, running, around, starting.cancel)
            self._send_counters(number, loaded)
            self._limit_time(number, running)
            running.meter.reached_by(running.links)
            self._outbox.send(running.meter.message(number), [running.meter.fd])
            self._guard.add(number, running.meter, limits)
            self._audit.started(number, program, probes)
        except BaseException:
            running.close()
            self._closer.close(running.events())
            raise
        warnings = (*loaded.warnings, *_unguarded(limits))
        return running, messages.Loaded(number, probes, warnings, loaded.map_infos, loaded.notes)

    def _limit_time(self, number: int, running: _Running) -> None:
        """The session ends when the time is over that the policy allows."""
        if (seconds := self._policy.rules.max_time) is not None:
            reason = f"the policy allows sessions of at most {spoken_time(seconds)}"
            timer = threading.Timer(seconds, self.end, (number, reason))
            timer.daemon = True
            timer.start()
            running.stack.callback(timer.cancel)

    def _attach(
        self, number: int, program: Program, running: _Running, around: Surroundings, cancel: Cancel
    ) -> tuple[ProbeInfo, ...]:
        links = running.links
        # First of all at the end, so that no probe sees events when another, its counterpart, sees none any more.
        running.stack.callback(silence, links)
        unsure = _conditional(program)
        for probe in self._compiled(program, running.loaded):
            cancel.check()
            if probe.function in unsure:  # now it is sure; the others were asked for before they were compiled
                attach.require(probe, around.folder)
            with capabilities.with_sys_admin():
                link = attach.attach(self._engine, running.loaded, probe, around)
            links.append(link)
            if link.renew:
                self._follow_cpus(partial(self._renew, number, link), running.stack)
        if not links:
            raise _nothing_compiled(program)
        return tuple(link.info for link in links)

    def _follow_cpus(self, renew: Callable[[int], None], stack: ExitStack) -> None:
        self._cpus.subscribe(renew)
        stack.callback(self._cpus.unsubscribe, renew)

    def _renew(self, number: int, link: Link, cpu: int) -> None:
        """Attach a probe to a CPU that has come online."""
        assert link.renew
        with capabilities.with_sys_admin():
            link.renew(cpu)
        what = f"{link.info.requested} is attached there now; up to a second of it is missing"
        self._note(number, "", f"CPU {cpu} has come online: {what}")

    def _compiled(self, program: Program, loaded: Loaded) -> list[Probe]:
        """The probes whose function was compiled: one under an ``#if`` that came out false asks for nothing."""
        conditional = _conditional(program)
        probes = []
        for probe in program.probes:
            if attach.spec(probe) in loaded.programs:
                probes.append(probe)
            elif probe.function not in conditional:
                raise ProgramError(f"there is no function {probe.function} in the compiled program")
        return probes

    def _send_counters(self, number: int, loaded: Loaded) -> None:
        """Hand the notebook the memory in which the programs count what their maps refuse."""
        if loaded.refused:
            bpf.freeze(loaded.refused.fd)
            self._outbox.send(CountersAdded(number, loaded.refused.count), [loaded.refused.fd])

    # --- reading ---

    def _read_output(self, number: int, output: LoadedOutput, running: _Running) -> None:
        source: RingSource | PerfSource
        if output.kind == "lines":
            source = self._line_source(number, output, running)
        else:
            with capabilities.with_sys_admin():
                source = _event_source(output, partial(self._writer, number, output.name, running))
        self._read(number, output.name, source, running)

    def _read_printk(self, number: int, tag: str, running: _Running) -> None:
        comms = self._share_comms(number, running.stack)
        note = partial(self._note, number, "printk")
        source = PrintkSource(tag, comms, self._writer(number, "printk", running, PRINTK), note)
        self._read(number, "printk", source, running)

    def _line_source(self, number: int, output: LoadedOutput, running: _Running) -> RingSource:
        writer = self._writer_of(lines.LineWriter, number, output.name, running, output.schema)
        return RingSource(output.fd, lines.LINES, writer.reads, _counter(output.lost), stamped=output.stamped)

    def _read(self, number: int, output: str, source: _Source, running: _Running) -> None:
        """Have a source drained until the session closes. One that fails ends its session."""

        def failed(error: Exception) -> None:
            traceback.print_exception(error)
            why = str(error) if isinstance(error, BpfnbError) else f"{type(error).__name__}: {error}"
            running.failure = f"{output} could not be read any further: {why}".splitlines()[0]
            self.end(number, running.failure)

        def last() -> None:
            try:
                source.drain(last=True)
            except Exception as error:
                failed(error)

        running.buffers += source.memory
        running.stack.callback(source.close)
        self._poller.add(source.fds, running.meter.timed(source.drain), needs_polling=source.needs_polling, fail=failed)
        running.stack.callback(self._poller.remove, source.fds, last=last)
        if not isinstance(source, RingSource):
            self._follow_cpus(source.renew, running.stack)

    def _writer(self, number: int, output: str, running: _Running, schema: Schema) -> SegmentWriter:
        return self._writer_of(SegmentWriter, number, output, running, schema)

    def _writer_of(self, kind: type[Writer], number: int, output: str, running: _Running, schema: Schema) -> Writer:
        epoch = self._clock.epoch_ns
        news: Schema | None = schema

        def publish(layout: Layout, fd: int) -> None:
            nonlocal news
            self._outbox.send(SegmentAdded(number, output, news, layout, epoch()), [fd])
            news = None

        writer = kind(schema, publish, epoch, self._credits[number])
        running.writers.append(writer)
        running.stack.callback(writer.close)
        return writer

    def _note(self, number: int, output: str, text: str) -> None:
        self._outbox.send(Noted(number, text, output))

    def _share_comms(self, number: int, stack: ExitStack) -> CommHistory:
        """The history of names, there while any session prints."""
        with self._naming:
            if self._comms is None:
                comms = CommHistory()
                try:
                    self._cpus.subscribe(comms.renew)
                except OSError:
                    comms.close()
                    raise
                self._poller.add(comms.fds, comms.drain, fail=self._names_failed)
                self._comms = comms
            self._printing.add(number)
            stack.callback(self._release_comms, number)
            return self._comms

    def _release_comms(self, number: int) -> None:
        with self._naming:
            self._printing.discard(number)
            if self._comms and not self._printing:
                self._cpus.unsubscribe(self._comms.renew)
                self._poller.remove(self._comms.fds)
                self._comms.close()
                self._comms = None

    def _names_failed(self, error: Exception) -> None:
        traceback.print_exception(error)
        for number in list(self._printing):
            self.end(number, f"tasks' names could not be read any further: {type(error).__name__}: {error}")


def _ended() -> ProgramError:
    return ProgramError("the session has ended")


def _require(program: Program, around: Surroundings) -> None:
    """AttachError, before anything is compiled, where a probe is not there. What stands under an #if may not be asked
    for."""
    unsure = _conditional(program)
    for probe in program.probes:
        if probe.function not in unsure and probe not in around.usdt:
            attach.require(probe, around.folder)


def _event_source(output: LoadedOutput, open_writer: OpenWriter) -> RingSource | PerfSource:
    lost = _counter(output.lost)
    if output.kind == "perf":
        return PerfSource(
            output.fd, output.schema, open_writer, lost, sizes=output.sizes, padded=output.padded, cpu=output.cpu
        )
    return RingSource(output.fd, output.schema, open_writer, lost, stamped=output.stamped, cpu=output.cpu)


def _unguarded(limits: Limits) -> list[Diagnostic]:
    """A warning where a limit was asked for that cannot be kept."""
    if limits.cost is None or not limits.asked:
        return []
    try:
        with capabilities.with_sys_admin():
            features.run_statistics()
    except OSError as error:
        message = f"max_cost is not guarded: the kernel does not time programs ({error.strerror})"
        return [Diagnostic(0, 0, "warning", message)]
    return []


def _conditional(program: Program) -> set[str]:
    """The functions that may turn out not to be compiled."""
    return {f.name for f in program.functions if f.conditional}


def _nothing_compiled(program: Program) -> ProgramError:
    if not program.probes:
        return ProgramError("nothing in this cell is attached to a probe", hint="name one: -a syscall:clone=hello")
    first = program.probes[0]
    why = f"nothing would run: {first.function} stands under an #if that came out false"
    return ProgramError(why, line=first.line or None)


def _counter(counters: Counters) -> Callable[[], int]:
    """What reads a counter that programs keep: from the kernel's own memory."""
    numbers = np.frombuffer(mmap.mmap(counters.fd, mmap.PAGESIZE, prot=mmap.PROT_READ), np.uint64)
    return lambda: int(numbers[counters.first])
