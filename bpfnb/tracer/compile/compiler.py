"""Compile and load cells, each in a process of its own.

LLVM ends the process it runs in when a stack frame is too large or an operation has no BPF for it, and bcc leaks what
it compiled. So the worker, before it has threads, forks a process that warms LLVM once and forks again for each cell:
the child compiles, has the kernel load the programs, passes their descriptors to the worker and exits. Whatever becomes
of it, the worker and the other sessions live on. Every job travels with a socket of its own, on which it is answered:
so no answer can be taken for another's, and a worker that closes its end has the child killed.

The child also writes down how to load the same without compiling (cache.py). A cell that comes again unchanged is
then the worker's own work, and a tenth of it.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from collections.abc import Hashable, Sequence
from pathlib import Path

from msgspec.structs import replace

from bpfnb.errors import (
    BpfnbError,
    CompileError,
    Diagnostic,
    InternalError,
    ProgramError,
    UnsupportedError,
    few_descriptors,
)
from bpfnb.language import cflags as clang_flags
from bpfnb.language.program import MapDecl
from bpfnb.protocol.connection import Connection
from bpfnb.tracer.access.confine import NO_LIMITS, Confinement
from bpfnb.tracer.access.impersonate import User
from bpfnb.tracer.cancel import Cancel
from bpfnb.tracer.compile import cache, headers, jobs
from bpfnb.tracer.compile.cache import Lru
from bpfnb.tracer.compile.child import serve
from bpfnb.tracer.compile.engine import Engine
from bpfnb.tracer.compile.headers import clashes as clashing
from bpfnb.tracer.compile.jobs import (
    Answer,
    Bug,
    Built,
    Crashed,
    Forbidden,
    Job,
    NoAddress,
    NotCompiled,
    Nothing,
    NotLoaded,
    OtherMap,
    Unfit,
)
from bpfnb.tracer.diagnose import errors
from bpfnb.tracer.kernel import pins
from bpfnb.tracer.link.many.raw_syscalls import Task
from bpfnb.tracer.loaded import Loaded, LoadedMap, NotAllowed, ProgramSpec
from bpfnb.tracer.source_map import Payloads, Rewritten

__all__ = ["WARNINGS", "Compiler"]

_MAX_DESCRIPTORS = 250  # descriptors that one message can carry (the kernel's SCM_MAX_FD is 253)
_MAX_CACHED = 16
_CLOSE_TIMEOUT = 2.0  # seconds for the compiling process to end by itself

# In C a call of an unknown function is a warning only. The verifier's later error is unclear, so it is an error here. A
# function that ends without a value works by accident.
WARNINGS = ("-Werror=implicit-function-declaration", "-Wreturn-type", "-Wuninitialized", "-Wvla")


class Compiler:
    """The worker's hold on the compiling process; ``build`` may be called from several threads at once.

    ``user``: whose files a cell may include, where that is another than the tracer's (impersonate.py).

    ``pidfd`` becomes readable when the process has ended. It cannot be had again: by then the worker has threads.
    """

    def __init__(self, engine: Engine, user: User | None = None) -> None:
        self._user = user
        ours, theirs = socket.socketpair()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            serve(engine, theirs, user)
        self.pidfd = os.pidfd_open(self._pid)
        theirs.close()
        self._connection: Connection[Nothing] = Connection(ours, Nothing)
        self._cache: Lru[Built] = Lru(_MAX_CACHED)

    def build(
        self,
        source: Rewritten,
        cflags: Sequence[str],
        specs: Sequence[ProgramSpec],
        maps: Sequence[str] = (),
        headers_from: str = "auto",
        pinned: Sequence[MapDecl] = (),
        confinement: Confinement = NO_LIMITS,
        cancel: Cancel | None = None,
        places: Sequence[int | None] = (),
        task: Task | None = None,
    ) -> tuple[Loaded, Payloads]:
        """Compile a cell, or take what was compiled of it before, and load what is asked for; functions and maps
        that are not in the compiled text are left out. ``headers_from``: see headers.choose. ``pinned``: those of its
        maps that are. ``confinement``: what programs may not do; NotAllowed where one does.
        ``cancel``: what ends the wait, with CancelledError. ``places``: of each spec's program (link/many/numbers.py).
        ``task``: where there are programs that system calls share.
        Also return what each of the source's calls submits.

        CompileError, VerifierError, PrivilegeError, SetupError; ProgramError for a flag that clang is not to have.
        """
        clang_flags.check(cflags)
        cancel = cancel or Cancel()
        if len(specs) + len(maps) > _MAX_DESCRIPTORS:
            raise UnsupportedError(
                f"a cell can have at most {_MAX_DESCRIPTORS} programs and maps, not {len(specs) + len(maps)}"
            )
        flags = (*WARNINGS, *cflags)
        ours = headers_from in ("auto", "btf")
        # A folder of the user's is looked at by the child: a file there may keep whoever opens it waiting for ever.
        tree = headers.choose(headers_from) if ours else headers.Tree()
        # And what it holds may change.
        cacheable = not pinned and ours and cache.decided(source.text, cflags)
        job = Job(
            source.text,
            source.cell.source,
            tree,
            flags,
            tuple(specs),
            tuple(maps),
            source.tag,
            cacheable,
            tuple(pinned),
            confinement=confinement,
            headers_folder="" if ours else headers_from,
            formats=tuple(cache.formats(source.text).items()),
            places=tuple(places) or (None,) * len(specs),
            task=task,
        )
        # All that the compiler is told, but for the tag.
        key = replace(job, text=source.text.replace(source.tag, ""), tag="")
        return self._again(source, job, key) or self._anew(source, job, key, cancel)

    @property
    def ended(self) -> bool:
        """Whether the compiling process has ended."""
        return bool(select.select([self.pidfd], [], [], 0)[0])

    @property
    def status(self) -> int:
        """How the compiling process, which has ended, did: its exit status, or minus the signal."""
        ended = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        assert ended
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def close(self) -> None:
        """End the compiling process, and what it compiles."""
        self._connection.close()
        if not select.select([self.pidfd], [], [], _CLOSE_TIMEOUT)[0]:
            os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self.pidfd)

    def _again(self, source: Rewritten, job: Job, key: Hashable) -> tuple[Loaded, Payloads] | None:
        """Instantiate a cached program; None where there is none, or the kernel rejects it: compiling tells why."""
        built = self._cache.get(key)
        if not built or not built.cached:
            return None
        try:
            fds = built.cached.instantiate(source.tag)
        except OSError:
            self._cache.forget(key)
            return None
        return _loaded(source, job, built, fds)

    def _anew(self, source: Rewritten, job: Job, key: Hashable, cancel: Cancel) -> tuple[Loaded, Payloads]:
        try:
            built, fds = self._compile_with_types(source, job, cancel)
        except (CompileError, OSError):
            if not job.tree.generated or headers.whole(Path(job.tree.source)):
                raise
            # Somebody has damaged the headers, or removed a part of them.
            healed = replace(job, tree=headers.choose("btf"))
            built, fds = self._compile_with_types(source, healed, cancel)
        if built.cached:
            self._cache.put(key, built)
        return _loaded(source, job, built, fds)

    def _compile_with_types(self, source: Rewritten, job: Job, cancel: Cancel) -> tuple[Built, list[int]]:
        """The types most programs use are parsed quickly; one that needs another pays for parsing them all, and one
        with a name of its own that the headers have too for parsing them anew."""
        first: CompileError | None = None
        while True:
            try:
                built, fds = self._compile(source, job, cancel)
                again = _with_other_headers(job, built.log)  # of macros defined twice clang but warns
                if again == job:
                    return replace(built, clashes=job.clashes), fds
                for fd in fds:
                    os.close(fd)
            except CompileError as error:
                again = _with_other_headers(job, error.log)
                if again == job and first and not error.line:  # bcc's own text needs what was renamed
                    raise first from None
                if again == job:
                    raise
                first = first or error
            job = again

    def _compile(self, source: Rewritten, job: Job, cancel: Cancel) -> tuple[Built, list[int]]:
        if not (self._user and job.pinned):
            return self._ask(source, job, cancel)
        with pins.opened(job.pinned) as there:
            built, fds = self._ask(source, replace(job, pinned_files=tuple(there)), cancel, list(there.values()))
            maps = dict(zip((t.name for t in built.maps), fds[len(built.loaded) :], strict=True))
            try:
                pins.pin_new(job.pinned, there, maps)
            except BaseException:
                for fd in fds:
                    os.close(fd)
                raise
            return built, fds

    def _ask(self, source: Rewritten, job: Job, cancel: Cancel, there: Sequence[int] = ()) -> tuple[Built, list[int]]:
        ours, theirs = socket.socketpair()
        answers: Connection[Answer] = Connection(ours, Answer)
        try:
            with theirs, cancel.by(answers.hang_up):
                self._connection.send(job, [theirs.fileno(), *there])
                theirs.close()
                answer, fds = answers.receive()
        except (OSError, EOFError) as error:
            cancel.check()
            if why := few_descriptors(error):
                raise why from None
            select.select([self.pidfd], [], [], _CLOSE_TIMEOUT)  # if it has ended, ``ended`` is to say so
            raise InternalError(f"the compiling process has not answered: {error}") from None
        finally:
            answers.close()
        if not isinstance(answer, Built):
            raise _error(answer, source)
        return answer, fds


def _with_other_headers(job: Job, log: str) -> Job:
    """The job with headers that have what clang misses, and not what it says is there twice; the same where neither
    is so."""
    if not (job.tree.generated and log):
        return job
    clashes = tuple(sorted({*job.clashes, *clashing.find(log, job.cell)}))
    everything = headers.EVERYTHING
    if job.cflags[-len(everything) :] != everything and headers.lacks_a_type(log, job.tree.source):
        job = replace(job, cflags=(*job.cflags, *everything))
    return replace(job, clashes=clashes)


def _loaded(source: Rewritten, job: Job, built: Built, fds: Sequence[int]) -> tuple[Loaded, Payloads]:
    programs = {job.specs[index]: fd for index, fd in zip(built.loaded, fds, strict=False)}
    maps = {m.name: LoadedMap(fd, m.key, m.value) for m, fd in zip(built.maps, fds[len(programs) :], strict=True)}
    warnings = (*clashing.warnings(source.cell, built.clashes), *errors.diagnostics(source, built.log))
    if warning := job.tree.warning or built.warning:
        warnings = (Diagnostic(0, 0, "warning", warning), *warnings)
    rejected = {answer.function: _error(answer, source) for answer in built.rejected}
    return Loaded(programs, maps, warnings, rejected), built.payloads


def _error(answer: Answer, source: Rewritten) -> BpfnbError:
    match answer:
        case NotCompiled(reason, log):
            return errors.compile_error(source, log, reason)
        case NotLoaded(function, number, log, lines, compiling):
            return errors.load_error(source, function, number, log, lines, compiling)
        case NoAddress(function, line, name, compiling):
            return errors.address_error(source, function, line, name, compiling)
        case Unfit(failed):
            return failed.exception()
        case Forbidden(what, line):
            return NotAllowed(what, line)
        case OtherMap(line, message, hint):
            return ProgramError(message, line=line, hint=hint)
        case Bug(trace):
            return InternalError("the compiling process failed", remote_traceback=trace)
        case Crashed(status, log):
            return errors.crash_error(source, status, log, jobs.TIMEOUT)
    raise AssertionError(answer)
