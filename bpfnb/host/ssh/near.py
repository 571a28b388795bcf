"""near: the local process that speaks to far, through a command's pipes, and serves a notebook as a tracer does.

    near NAME SILENCE COMMAND...

Standard input is the socketpair to the notebook, standard output a file for reports (peer.Report). A process of its
own, so that a busy notebook loses no row.

Threads: the main one hears far. ``bpfnb-near-requests`` hears the notebook. ``bpfnb-near-ticks`` measures the other
clock. ``bpfnb-near-watch``, which waits for nobody, minds the silence, and whether the notebook still lives.
``bpfnb-near-words`` keeps what the command prints.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress

import msgspec
from msgspec import Struct

from bpfnb.errors import BpfnbError, ProgramError, UnsupportedError
from bpfnb.host.ssh.deliveries import Assembly, Delivery
from bpfnb.host.ssh.frames import (
    Asked,
    Bye,
    Died,
    FrameError,
    Frames,
    FromFar,
    Memory,
    Passed,
    Piece,
    Rows,
    Start,
    Taken,
    Tick,
    Tock,
    Up,
    skip_noise,
)
from bpfnb.host.ssh.offset import Offset
from bpfnb.host.ssh.peer import Report
from bpfnb.protocol import messages
from bpfnb.protocol.connection import Connection
from bpfnb.protocol.messages import FromTracer, ToTracer

__all__ = ["main"]

_CONNECT_TIMEOUT = 60.0  # seconds until far has to be there
_TICK_SECONDS = 2.0
_FIRST_TICKS, _FIRST_SECONDS = 8, 0.05  # the clock is measured by several at first
_CHECK_SECONDS = 0.25
_LEAVE_SILENCE, _LEAVE_TIMEOUT = 4.0, 60.0  # seconds, while the tracer is being ended
_RETRY_SECONDS = 0.01
_END_TIMEOUT = 1.0  # seconds for the command to end by itself
_MAX_WORDS = 64 << 10
_PR_SET_PDEATHSIG = 1
_KEPT = "what was collected so far is kept"


def main(arguments: Sequence[str]) -> int:
    """Run the command, and serve the notebook until either is gone. Return the exit status."""
    name, silence, *command = arguments
    sock = socket.socket(fileno=os.dup(0))
    report = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    _Near(name, float(silence), sock, report, command).serve()
    return 0


class _Near:
    """``_lock``: of the deliveries, which two threads write to: frames and credit arrive on different ones."""

    def __init__(self, name: str, silence: float, sock: socket.socket, report: int, command: Sequence[str]) -> None:
        self._name = name
        self._silence = silence
        self._sock = sock
        self._connection: Connection[ToTracer] = Connection(sock, ToTracer, descriptors=0)
        self._notebook = _pidfd(sock)
        self._report_fd = report
        self._report = Report()
        self._lock = threading.RLock()
        self._sessions: dict[int, Delivery] = {}
        self._stops: dict[int, int] = {}  # sessions, by the request to stop them
        self._map = Assembly()
        self._offset = Offset()
        self._ticks: dict[int, int] = {}  # when each was sent
        self._heard = time.monotonic()
        self._hearing = True  # not while the notebook takes what was heard
        self._up = False
        self._leaving = 0.0  # since when
        self._lost = ""  # why we gave the link up
        self._words = bytearray()
        self._begun = time.monotonic()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        assert self._process.stdin
        assert self._process.stdout
        self._out = self._process.stdout.fileno()
        self._frames: Frames[FromFar] = Frames(self._out, self._process.stdin.fileno(), FromFar, self._on_bytes)

    def serve(self) -> None:
        """Hear far until it is gone; then say why, and end."""
        listener = threading.Thread(target=self._listen, name="bpfnb-near-words", daemon=True)
        listener.start()
        threading.Thread(target=self._watch, name="bpfnb-near-watch", daemon=True).start()
        why = ""
        try:
            self._note_words(skip_noise(self._out))
            self._frames.send(Start(self._silence))
            self._on_bytes()
            self._up = True
            threading.Thread(target=self._ask, name="bpfnb-near-requests", daemon=True).start()
            threading.Thread(target=self._tick, name="bpfnb-near-ticks", daemon=True).start()
            while True:
                self._handle(self._frames.receive())
        except FrameError as error:
            why = str(error)
        except EOFError as error:
            if not self._up and error.args and isinstance(error.args[0], bytes):
                self._note_words(error.args[0])
        except OSError:
            pass  # the notebook is gone, or the command
        except BaseException as error:
            traceback.print_exc()
            why = f"{type(error).__name__}: {error}"
        self._end(listener, why)

    # --- far ---

    def _handle(self, frame: FromFar) -> None:
        match frame:
            case Passed(message):
                self._pass(message)
            case Rows(session):
                with self._lock:
                    self._delivery(session).write(frame)
                    self._note_dropped(session)
            case Memory(session):
                with self._lock:
                    self._delivery(session).update(frame)
            case Piece():
                self._map.add(frame)
            case Tock(number, clock):
                self._measure(number, clock)
            case Up(reached):
                self._write_report(Report(reached=reached))
            case Died(message, status, output, hint):
                self._flush()
                self._write_report(
                    Report(self._report.reached, False, f"{self._name}: {message}", status, output, hint)
                )

    def _pass(self, message: FromTracer) -> None:
        """Pass a message on to the notebook, with what belongs to it."""
        match message:
            case messages.SegmentAdded(session):
                with self._lock:
                    self._delivery(session).announce(message)
                return
            case messages.CountersAdded(session) | messages.CostsAdded(session):
                with self._lock:
                    self._delivery(session).share(message)
                return
            case messages.MapRead():
                fd = self._map.take()
                try:
                    self._send(message, [fd])
                finally:
                    os.close(fd)
                return
            case messages.Stopped(request):
                self._finish(self._stops.pop(request, 0))
            case messages.Ended(session):
                self._finish(session)
            case messages.Failed(request):
                self._stops.pop(request, None)
                self._finish(request)  # a session that did not start
        self._send(message)

    def _delivery(self, session: int) -> Delivery:
        if session not in self._sessions:
            raise FrameError(f"a session that nobody asked for: {session}")
        return self._sessions[session]

    def _finish(self, session: int) -> None:
        with self._lock:
            if delivery := self._sessions.pop(session, None):
                delivery.close()

    def _flush(self) -> None:
        with self._lock:
            for session in list(self._sessions):
                self._finish(session)

    def _note_dropped(self, session: int) -> None:
        for output in self._sessions[session].dropped():
            text = f"the link to {self._name} was too slow for all events"
            self._send(messages.Noted(session, text, output))

    def _measure(self, number: int, clock: int) -> None:
        now = time.monotonic_ns()
        sent = self._ticks.pop(number, None)
        if sent is None:
            raise FrameError("an answer to a Tick that was not sent")
        self._offset.add(sent, now, clock)
        with self._lock:
            for delivery in self._sessions.values():
                delivery.set_clock(self._offset.ns)

    # --- the notebook ---

    def _ask(self) -> None:
        """Pass the notebook's requests on, until it hangs up."""
        try:
            while True:
                message, _ = self._connection.receive()
                if isinstance(message, messages.Received):
                    self._receive(message)
                elif refused := self._refusal(message):
                    self._send(messages.Failed.of(message.request, refused))
                else:
                    self._expect(message)
                    self._frames.send(Asked(message))
        except (EOFError, OSError):
            pass  # it is gone, which the watch notices

    def _expect(self, message: messages.Request) -> None:
        match message:
            case messages.Load(number, keep=keep):
                with self._lock:
                    delivery = Delivery(number, keep, self._send, self._taken)
                    delivery.clock_ns = self._offset.ns
                    self._sessions[number] = delivery
            case messages.Stop(number, session):
                self._stops[number] = session

    def _refusal(self, message: messages.Request) -> BpfnbError | None:
        if not isinstance(message, messages.Load):
            return None
        if message.program.filters.held:
            return ProgramError(
                f"a command is started on this machine, and {self._name} is another: start it there, and trace its pid"
            )
        if message.follower:
            return UnsupportedError(
                f"a session on {self._name}, another host, is not recorded while it runs: save it with session.save"
            )
        return None

    def _receive(self, message: messages.Received) -> None:
        with self._lock:
            if delivery := self._sessions.get(message.session):
                delivery.acknowledge(message.segments)
                delivery.flush()

    def _taken(self) -> None:
        with suppress(OSError):  # the command is gone, which the main thread notices
            self._frames.send(Taken(1))

    def _send(self, message: Struct, fds: Sequence[int] = ()) -> None:
        """Send to the notebook; while it does not read, nothing is heard of far either."""
        self._hearing = False
        try:
            self._connection.send(message, fds)
        finally:
            self._on_bytes()
            self._hearing = True

    # --- the link ---

    def _on_bytes(self) -> None:
        self._heard = time.monotonic()

    def _tick(self) -> None:
        with suppress(OSError):
            for number in itertools.count(1):
                self._ticks[number] = time.monotonic_ns()
                self._frames.send(Tick(number))
                time.sleep(_FIRST_SECONDS if number < _FIRST_TICKS else _TICK_SECONDS)

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._sock, select.POLLRDHUP)
        if self._notebook >= 0:  # a child that it forked may hold the socket
            poll.register(self._notebook, select.POLLIN)
        while True:
            if not self._leaving and poll.poll(0):
                self._leaving = time.monotonic()
                threading.Thread(target=self._say_bye, name="bpfnb-near-bye", daemon=True).start()
            self._check(time.monotonic())
            time.sleep(_CHECK_SECONDS)

    def _check(self, now: float) -> None:
        """Give the link up where nothing was heard for too long, or where the command has ended but not what it has
        started."""
        if self._status() is not None:
            self._kill()
        if not self._up:
            if now - self._begun > _CONNECT_TIMEOUT:
                self._give_up(f"it has not answered for {_CONNECT_TIMEOUT:g} s")
            return
        limit = min(self._silence, _LEAVE_SILENCE) if self._leaving else self._silence
        if self._leaving and now - self._leaving > _LEAVE_TIMEOUT:
            self._give_up("its tracer does not end")
        if self._hearing and now - self._heard > limit:
            self._give_up(f"nothing was heard for {limit:g} s")

    def _give_up(self, why: str) -> None:
        self._lost = self._lost or why
        self._kill()  # the main thread then reads the end of its pipe

    def _status(self) -> int | None:
        """Return how the command ended, as subprocess says it. It stays a zombie, so its group keeps its number."""
        how = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if how is None:
            return None
        return how.si_status if how.si_code == os.CLD_EXITED else -how.si_status

    def _kill(self) -> None:
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _say_bye(self) -> None:
        """The notebook is gone: have far end, or end the command where it has not come so far."""
        if not self._up:
            self._kill()
            return
        with suppress(OSError):
            self._frames.send(Bye())

    # --- the end ---

    def _listen(self) -> None:
        assert self._process.stderr
        while words := os.read(self._process.stderr.fileno(), 1 << 12):
            self._note_words(words)

    def _note_words(self, words: bytes) -> None:
        self._words += words
        del self._words[:-_MAX_WORDS]

    def _end(self, listener: threading.Thread, why: str) -> None:
        """Deliver the rest, write the report, hang up, and end the command. Does not return."""
        with suppress(OSError, FrameError):
            self._flush()
        deadline = time.monotonic() + _END_TIMEOUT
        while (status := self._status()) is None and time.monotonic() < deadline:
            time.sleep(_RETRY_SECONDS)
        self._kill()  # also those that the command has started
        listener.join(_END_TIMEOUT)  # a process that lives on may hold the pipe
        if not self._report.message:
            self._write_report(self._failure(why, status))
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        sys.stderr.flush()
        os._exit(0)

    def _failure(self, why: str, status: int | None) -> Report:
        """Say why far is gone: what we found, or the command's own last words, or how it ended."""
        words = self._words.decode(errors="replace").strip()
        how = "" if status is None else f"signal {-status}" if status < 0 else f"exit status {status}"
        why = self._lost or why or (words.splitlines()[-1].strip() if words else "") or how or "it hung up"
        if not self._up:
            return Report(setup=True, message=f"{self._name} cannot be reached: {why}", output=words)
        message = f"the connection to {self._name} was lost: {why}; {_KEPT}"
        return Report(self._report.reached, False, message, status, words)

    def _write_report(self, report: Report) -> None:
        self._report = report
        os.write(self._report_fd, msgspec.json.encode(report) + b"\n")


def _pidfd(sock: socket.socket) -> int:
    """Return a descriptor that is readable once the process that made the socket has ended; -1 where there is none."""
    pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1


def _die_with_parent() -> None:
    """Have the command end when near is killed, also while it hangs."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
