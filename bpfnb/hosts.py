"""Hosts: where programs run, and the sessions that run there."""

from __future__ import annotations

import keyword
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral, Real
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from msgspec import structs

from bpfnb import progress
from bpfnb.command import Command
from bpfnb.doctor import Report, examine, examine_there
from bpfnb.errors import Diagnostic, ProgramError, printable
from bpfnb.host import local
from bpfnb.host.connector import Connector, Launch
from bpfnb.host.ssh.bring.destination import PYTHON, Destination, check, configured
from bpfnb.host.tracer import Tracer
from bpfnb.interrupts import start_new_thread, undoing, uninterrupted
from bpfnb.language.program import Missing, Program, parse
from bpfnb.oneliners import Questions
from bpfnb.options import SessionOptions, check_options, command_of, filters_of, missing_of, record_of
from bpfnb.origins import Origin, origin, stack_level
from bpfnb.protocol.messages import Check, Limits
from bpfnb.recordings.running import RecordFailed, RunningRecording
from bpfnb.registry import Registry
from bpfnb.results.columns.text import text_dtype
from bpfnb.results.output import default_keep
from bpfnb.results.presentation import Presentation
from bpfnb.results.table import with_escapes
from bpfnb.session import DETACH_TIMEOUT, Session
from bpfnb.tools.toolbox import Toolbox
from bpfnb.views.live import live as live_views
from bpfnb.views.progress import open_line

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["MAX_COST", "Host", "check_name", "default_host", "host_names", "host_of", "hosts", "limits_of"]

MAX_COST = 0.25  # of all CPUs, unless told otherwise
_MAX_PROBES = 200_000  # in a DataFrame


class Host(Questions):
    """A machine whose kernel is traced, by a tracer of its own, and the sessions that run there.

    ``bpfnb.trace``, ``sessions``, ``stop_all``, ``probes``, ``doctor`` and ``live`` are methods of the default host,
    this machine. ``Host()`` is this machine once more, with a second tracer process and sessions of its own.
    ``Host.ssh("root@web1")`` is another machine:

        with bpfnb.Host.ssh("root@web1") as host:
            session = host.trace(source, attach={"syscall:clone": "hello"})

    Leaving the block stops its sessions and ends its tracer, which else lives until the process exits.

    ``launch`` starts the tracer, or connects to one (see ``bpfnb.host.tracer.Tracer``). That is done when a tracer is
    first needed, and again once it has died. ``name``: "" is this machine; else sessions say that they run there.
    """

    def __init__(self, launch: Launch = local.launch, name: str = "") -> None:
        self.name = name
        self.destination: Destination | None = None
        self._connector = Connector(launch)
        self._registry = Registry()
        self.tools = Toolbox(self)

    @classmethod
    def ssh(
        cls,
        destination: str,
        *,
        name: str | None = None,
        sudo: bool = True,
        python: str = PYTHON,
        options: Sequence[str] = (),
        cache: str = "",
    ) -> Host:
        """Return another machine as a host, reached by ssh when it is first needed.

        ``destination``  as ssh takes it: "root@web1", or a Host of your ~/.ssh/config. Keys, agent, jump hosts, known
                         hosts and shared connections are as you have them; ssh must not need to ask for anything.
        ``name``         what ``%%bpf --host``, ``%bpf host list`` and the sessions call it; else the destination.
        ``sudo``         whether a user who is not root may become root there with ``sudo -n``.
        ``python``       the Python that runs the tracer there, 3.10 or newer.
        ``options``      further words for ssh, such as ["-p", "2222"].
        ``cache``        a folder there to put bpfnb into, in place of that user's cache (~/.cache).

        What that machine lacks of bpfnb is brought: it needs its distribution's Python and bcc only, and a user who is
        root, may use ``sudo -n``, or is a member of ``bpfnb setup``'s group there. See docs/hosts.md.

        The same call again returns the same host until that is closed. Sessions there have no ``command``, and ``uid``
        takes numbers only. ProgramError for what cannot be meant, or where the name is another host's.
        """
        there = Destination(destination, tuple(options), python, sudo, cache)
        check(there)
        shown = destination if name is None else name
        if not isinstance(shown, str) or not shown or shown.startswith("-") or not shown.isprintable():
            raise ProgramError(f"not a name for a host: {shown!r}", hint='write name="web1"')
        if host := _hosts.get(shown):
            if host.destination == there:
                return host
            raise ProgramError(
                f"{shown} is another host already: {host!r}", hint=f"stop that one first: %bpf host stop {shown}"
            )
        host = cls(partial(_launch_there, there, shown), shown)
        host.destination = there
        return _hosts.setdefault(shown, host)

    def trace(
        self,
        source: str,
        *,
        name: str | None = None,
        attach: Mapping[str, str | Sequence[str]] | Sequence[tuple[str, str]] = (),
        cflags: Sequence[str] = (),
        headers: str = "auto",
        keep: int | None = None,
        cpu: bool = False,
        max_cost: float | None = MAX_COST,
        max_rate: float | None = None,
        max_memory: int | None = None,
        guard: bool = True,
        missing: Missing | None = None,
        pid: int | None = None,
        follow: int | None = None,
        comm: str | None = None,
        cgroup: str | os.PathLike[str] | None = None,
        uid: int | str | None = None,
        command: str | Sequence[str] | None = None,
        record: str | os.PathLike[str] | None = None,
        record_failed: RecordFailed = "continue",
    ) -> Session:
        """Compile C, attach it, and return the running session.

        ``attach``   probe to function name(s): {"syscall:clone": "hello"}. Functions with bcc's own names
                     (kprobe__..., TRACEPOINT_PROBE(...), syscall__...) attach by themselves.
        ``name``     a Python identifier. A running session of that name is stopped once the new one is attached.
                     Without one, sessions are called bpf1, bpf2, ...; one started again from the same line of the same
                     cell or script replaces its predecessor, and says so: a loop that starts several has to name them.
        ``cflags``   for clang, such as "-DLIMIT=10".
        ``headers``  what the C is compiled against: "auto" (this kernel's headers where exactly they are installed,
                     else "btf"), "btf" (made from the kernel's own type information), or a folder of kernel headers.
        ``keep``     bytes of rows to keep, the oldest being dropped; by default an eighth of the memory, at most 4 GiB.
        ``cpu``      events of BPF_PERF_OUTPUT and BPF_RINGBUF_OUTPUT have the number of their CPU as a column: "cpu"
                     (int16), or "cpu_" where their struct has a member of that name.

        The guard ends a session that takes more than these. Its rows stay, and ``reason`` says why. None: no limit.

        ``max_cost``    share of all CPUs, over five seconds: of its programs, of its uprobes' traps, and of the tracer
                        that reads its events. It is measured in short windows, as ``Session.cost`` is, and no session
                        is ended that may exceed the limit by chance only. Without CAP_SYS_ADMIN it is neither measured
                        nor guarded.
        ``max_rate``    events a second, delivered or lost, over five seconds.
        ``max_memory``  bytes in the kernel, of the session's maps and buffers; rows are bounded by ``keep``.
        ``guard``       False: no limits.
        ``missing``     what becomes of a probe that is not there or that the kernel does not let be attached: "error";
                        "warn": it is left out, and a warning of the session names it; "ignore": it is left out. By
                        default "error", but "warn" for each of those that match a wildcard.

        Filters. The kernel tests them before a program's own work, on the current task: the one on the CPU. All must
        hold. A program that calls ``bpfnb_selected()`` or ``bpfnb_selected_task(task)`` tests them itself.

        ``pid``      a process, as the caller's pid namespace numbers it. Probes in files are put into it alone.
        ``follow``   a process, those it has started, and those that any of them starts from now on.
        ``comm``     the name of a thread; one that ends in * is what the name begins with.
        ``cgroup``   a cgroup (v2) and those below it, by its path: under /sys/fs/cgroup, or as in /proc/PID/cgroup.
        ``uid``      a user, by name or number: the task's real user id, as the host numbers it.
        ``command``  a command to start, follow and trace from its exec on. A string is split as a shell would, a list
                     is taken as it is. The session stops when the command ends, see ``Session.returncode``; a session
                     that is stopped before ends it.

        ``record``         a new folder, or a zip, that all rows and maps are written to while the session runs:
                           ``bpfnb.open`` makes a session of it again. A process of its own writes it, so that it gets
                           every row, however busy this one is and however little ``keep`` is. See
                           ``Session.recording``.
        ``record_failed``  what becomes of the session where that cannot go on, as on a full disk: "continue", with a
                           warning, or "stop". What was written until then can be opened.

        Raises ProgramError, CompileError, VerifierError, AttachError, PrivilegeError, SetupError, UnsupportedError or
        TracerDied. Then nothing is left attached, and a running session of that name goes on. Interrupted by Ctrl-C,
        nothing new is left attached either; the session it was about to replace may have been stopped already.
        """
        program = parse(source, attach, cflags, headers)
        return self.run(
            program,
            name=name,
            keep=keep,
            cpu=cpu,
            max_cost=max_cost,
            max_rate=max_rate,
            max_memory=max_memory,
            guard=guard,
            missing=missing,
            pid=pid,
            follow=follow,
            comm=comm,
            cgroup=cgroup,
            uid=uid,
            command=command,
            record=record,
            record_failed=record_failed,
        )

    def run(
        self, program: Program, presentation: Presentation | None = None, **options: Unpack[SessionOptions]
    ) -> Session:
        """Run a parsed program with the options that every session takes; see ``trace``. ``presentation``: how its
        results become ``df``. ProgramError for options that there are not, or that cannot be meant."""
        check_options(options)
        self._refuse_local(options)
        limits = limits_of(
            options.get("max_cost", MAX_COST),
            options.get("max_rate"),
            options.get("max_memory"),
            options.get("guard", True),
        )
        cpu, missing = bool(options.get("cpu", program.cpu)), missing_of(options)
        program = structs.replace(program, filters=filters_of(options), cpu=cpu, missing=missing)
        words, (record, record_failed) = command_of(options), record_of(options)
        start = partial(
            self.start,
            name=options.get("name"),
            keep=options.get("keep"),
            limits=limits,
            presentation=presentation,
            record=record,
            record_failed=record_failed,
        )
        return start(program) if words is None else self._run_command(Command(words), program, start)

    def _run_command(self, command: Command, program: Program, start: Callable[..., Session]) -> Session:
        """Run a program about a command, which is ended should anything go wrong."""
        try:
            command.start()
            filters = structs.replace(program.filters, follow=command.pid, held=True)
            return start(structs.replace(program, filters=filters), command=command)
        except:
            start_new_thread(undoing, (command.end,))
            raise

    def start(
        self,
        program: Program,
        *,
        name: str | None = None,
        keep: int | None = None,
        limits: Limits | None = None,
        presentation: Presentation | None = None,
        command: Command | None = None,
        record: str | os.PathLike[str] | None = None,
        record_failed: RecordFailed = "continue",
    ) -> Session:
        """Run a parsed program; see ``trace``. ``limits``: unless there are any, the usual ones. ``presentation``: how
        its results become ``df``; without one that is its main output. ``command``: what it follows, held until now.
        """
        if name is not None:
            check_name(name)
        if keep is not None and (not isinstance(keep, int) or keep <= 0):
            raise ProgramError(
                f"keep must be a positive whole number of bytes, not {keep!r}", hint="write keep=512 << 20 for 512M"
            )
        line = origin()
        recording = None if record is None else RunningRecording(record)
        session = Session(
            name or "bpf",
            program,
            keep or default_keep(),
            self.connect,
            self._registry.remove,
            presentation,
            command,
            recording,
            record_failed,
        )
        session.host = self.name
        # Ctrl-C may come at any call. Up to the last one nobody has the session: it is stopped. From there on the
        # caller has it; there is no point at which neither holds (but Python 3.10 looks for signals once more as this
        # returns: then it is in ``sessions()``).
        try:
            if self._begin(session, line, limits or Limits(MAX_COST), named=name is not None):
                _say_replaced(session, line, named=name is not None)
            session._tell_recorder()
            return session
        except:
            progress.drop()
            session._abandoned = True
            if recording and session.state == "starting":
                start_new_thread(undoing, (recording.abandon,))
            start_new_thread(undoing, (session._stop, 0))
            raise

    def sessions(self) -> dict[str, Session]:
        """Return the running sessions, by name."""
        return self._registry.running()

    @uninterrupted
    def stop_all(self) -> None:
        """Stop every running session; see ``Session.stop``."""
        running = self._registry.unstopped()
        for session in running:
            session._stop(timeout=0)
        deadline = time.monotonic() + DETACH_TIMEOUT
        for session in running:
            session._stop(timeout=max(deadline - time.monotonic(), 0))

    def detaching(self) -> list[Session]:
        """Return the sessions that have stopped and whose probes the kernel is still detaching."""
        return self._registry.detaching()

    def probes(self, pattern: str) -> pd.DataFrame:
        """Return the probes whose names match a shell pattern, or contain it where it has no wildcard: a row each.

        "*clone*" is looked for among the kernel's probes, "kprobe:tcp_*" among those of a kind, "usdt:PATH:*",
        "uprobe:PATH:*" and "uretprobe:PATH:*" in a program or library. Of kinds that see the same (kretprobe, fentry,
        fexit, rawtracepoint) a pattern that names none lists one. The columns are text:

        ``probe``      as ``attach`` and ``-a`` take it, such as "tracepoint:sched:sched_process_fork"
        ``kind``       its first word: "tracepoint"
        ``arguments``  as C declares them: "int dfd, const char *filename, int flags"; "" where they are not known
        ``returns``    a type, and what it means where that is known: "long: negative errno on failure"
        ``note``       why it cannot be attached on this kernel, and what can instead; or ""

        Probes of a kind that this kernel has not are listed where the pattern names the kind, or nothing else matches.

        ``attrs["more"]``: how many further probes match, beyond the 200,000 that are listed at most.

        Raises AttachError where there is no such file, PrivilegeError, SetupError or TracerDied.
        """
        found = self.connect().list_probes(pattern, _MAX_PROBES)
        columns = {
            "probe": found.names,
            "kind": [name.partition(":")[0] for name in found.names],
            "arguments": [", ".join(arguments) for arguments in found.arguments],
            "returns": found.returns,
            "note": found.notes,
        }
        frame = pd.DataFrame(columns, index=range(len(found.names)), dtype=text_dtype())
        frame.attrs["more"] = found.more
        return with_escapes(frame)

    def doctor(self) -> Report:
        """Find out whether this machine can trace, and what else it can do.

        What the kernel and our rights allow is tried out by the tracer, where tracing happens; by another process with
        the rights there are, where no tracer starts. Nothing is left behind. Raises nothing that it is there to report.
        """
        if self.destination is None:
            return examine(self.connect, self.trace)
        return examine_there(self.connect, self.trace, partial(_checks_there, self.destination))

    live = staticmethod(live_views)

    # --- its tracer ---

    def connect(self) -> Tracer:
        """Return the host's tracer, once it is up; started when there is none. Raises what keeps it from starting."""
        return self._connector.connect()

    def warm_up(self) -> None:
        """Start the tracer without waiting for it; errors are left to the first one who needs it."""
        self._connector.start()

    @uninterrupted
    def exchange(self, connector: Connector) -> Connector:
        """Reach another tracer from now on; returns the way to the one before, which lives on with its sessions.

        So a test has the default host, and with it ``bpfnb.trace`` and all the others, use a tracer of its own:
        ``bpfnb.testing`` does.
        """
        before, self._connector = self._connector, connector
        return before

    def close(self) -> None:
        """End the host's tracer, and with it its sessions; another is started when needed."""
        self._connector.close()
        if _hosts.get(self.name) is self:
            del _hosts[self.name]

    def tracer(self) -> Tracer | None:
        """Return the host's tracer if it lives, without starting one."""
        tracer = self._connector.current
        return None if tracer is None or tracer.died else tracer

    @property
    def state(self) -> str:
        """Return "connected", "not connected" (it is reached when it is needed) or "lost"."""
        tracer = self._connector.current
        return "not connected" if tracer is None else "lost" if tracer.died else "connected"

    def __repr__(self) -> str:
        where = f"ssh {self.destination}" if self.destination else "this machine"
        name = f" {self.name}:" if self.name not in ("", str(self.destination or "")) else ""
        sessions = len(self.sessions())
        return printable(f"<Host{name} {where}, {self.state}, {sessions} session{'s' if sessions != 1 else ''}>")

    def __enter__(self) -> Host:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_all()
        self.close()

    def forget_names(self) -> None:
        """Name sessions that are given no name from bpf1 on, as in a new process."""
        self._registry.forget_names()

    def _refuse_local(self, options: SessionOptions) -> None:
        """ProgramError for options that would be about this machine, on a host that is another."""
        if not self.name:
            return
        if options.get("record") is not None:
            raise ProgramError(
                f"record writes on this machine what its own tracer delivers, and {self.name} is another",
                hint="session.save(path) writes what is kept of it",
            )
        if options.get("command") is not None:
            raise ProgramError(
                f"command starts a process on this machine, and {self.name} is another",
                hint="start it there, and write follow=PID with its number there",
            )
        uid = options.get("uid")
        if isinstance(uid, str) and not (uid.isdecimal() and uid.isascii()):
            raise ProgramError(
                f"uid={uid!r} would be looked up on this machine, and {self.name} is another",
                hint="write the user's number there, as id -u prints it",
            )

    @uninterrupted
    def _begin(self, session: Session, line: Origin, limits: Limits, *, named: bool) -> bool:
        """Run a session and list it, unless its caller has left. Whether it replaces another, which is stopped."""
        with session._stopping:
            if session._abandoned:
                return False
            session._run(limits)
        if session._command:
            try:
                session._command.let_go()
            except BaseException:
                session._stop(DETACH_TIMEOUT)
                raise
        previous = self._registry.add(session, line, named=named)
        if previous:
            previous._stop(timeout=0)
        return previous is not None


_hosts: dict[str, Host] = {}  # those of Host.ssh that are not closed, by name
default_host = Host()
progress.show_on(open_line)


def hosts() -> list[Host]:
    """Return this machine, and the hosts that ``Host.ssh`` made and that are not closed."""
    return [default_host, *_hosts.values()]


def host_of(name: str | None) -> Host:
    """Return the host that ``--host`` means: by the name that it was given, else as a destination of ssh; without any
    this machine."""
    if name is None:
        return default_host
    return _hosts.get(name) or Host.ssh(name)


def host_names() -> list[str]:
    """Return what ``--host`` is completed to: the hosts of this process, and those that ~/.ssh/config names."""
    return list(dict.fromkeys([*_hosts, *configured()]))


def _launch_there(destination: Destination, name: str) -> Tracer:
    from bpfnb.host.ssh import peer  # here: most sessions are on this machine
    from bpfnb.host.ssh.bring.prepare import prepare

    return peer.launch(prepare(destination).command, name)


def _checks_there(destination: Destination) -> list[Check]:
    from bpfnb.host.ssh.bring.prepare import checks_there, prepare

    return checks_there(prepare(destination), destination)


def _say_replaced(session: Session, line: Origin, *, named: bool) -> None:
    """Note on a session that it replaced another, and say so: in a notebook always, else where no name asked for it."""
    which = "the session of that name" if named else "the one started from the same line before"
    note = f"replaces {which}, which is stopped"
    session.warnings += (Diagnostic(0, 0, "note", f"{session.name} {note}"),)
    more = "" if named else "; those with names of their own run side by side"
    if line.notebook:
        print(printable(f"{session.name} {note}{more}"))
    elif not named:
        warnings.warn(f"{session.name} {note}{more}", RuntimeWarning, stacklevel=stack_level())


def limits_of(max_cost: float | None, max_rate: float | None, max_memory: int | None, guard: bool) -> Limits:
    """The limits of a session, see ``trace``. ProgramError for values that cannot be meant."""
    if not isinstance(guard, (bool, np.bool_)):
        raise ProgramError(f"guard must be True or False, not {guard!r}")
    if not guard:
        if max_rate is not None or max_memory is not None or max_cost not in (None, MAX_COST):
            raise ProgramError("guard=False takes no limits: leave out max_cost, max_rate and max_memory, or the guard")
        return Limits()
    if max_cost is not None and not (_is_number(max_cost) and 0 < max_cost <= 1):
        hint = "write max_cost=0.25 for a quarter of all CPUs" if _is_number(max_cost) and 1 < max_cost <= 100 else None
        raise ProgramError(f"max_cost must be a share of all CPUs, above 0 and at most 1, not {max_cost!r}", hint=hint)
    if max_rate is not None and not (_is_number(max_rate) and 0 < max_rate <= sys.float_info.max):
        raise ProgramError(f"max_rate must be a positive number of events a second, not {max_rate!r}")
    if max_memory is not None and not (
        _is_number(max_memory) and isinstance(max_memory, Integral) and 0 < max_memory < 1 << 63
    ):
        raise ProgramError(
            f"max_memory must be a positive whole number of bytes, not {max_memory!r}", hint="write 512 << 20 for 512M"
        )
    cost, rate = (None if limit is None else float(limit) for limit in (max_cost, max_rate))
    memory = None if max_memory is None else int(max_memory)
    return Limits(cost, rate, memory, asked=cost not in (None, MAX_COST))


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def check_name(name: str) -> None:
    """ProgramError unless a session can have this name."""
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise ProgramError(f"a session's name must be a Python identifier, not {name!r}")
