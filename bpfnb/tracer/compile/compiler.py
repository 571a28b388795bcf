"""Compiling and loading, each cell in a process of its own.

LLVM ends the process it runs in when a stack frame is too large or an operation has no BPF for it, and bcc leaks what
it compiled. So the worker, before it has threads, forks a process that warms LLVM once and forks again for each cell:
the child compiles, has the kernel load the programs, passes their descriptors to the worker and exits. Whatever becomes
of it, the worker and the other sessions live on. Every job travels with a socket of its own, on which it is answered:
so no answer can be taken for another's, and a worker that closes its end has the child killed.

The child also writes down how to load the same without compiling (recipes.py). A cell that comes again unchanged is
then the worker's own work, and a tenth of it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import NoReturn

from msgspec import Struct
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
from bpfnb.protocol.messages import Failed
from bpfnb.protocol.schema import Schema
from bpfnb.tracer.access import asker, confine
from bpfnb.tracer.access.asker import User
from bpfnb.tracer.access.confine import NO_LIMITS, Confinement, Guard
from bpfnb.tracer.cancel import Cancel
from bpfnb.tracer.compile import cache as recipes
from bpfnb.tracer.compile import clashes as clashing
from bpfnb.tracer.compile import constants, headers
from bpfnb.tracer.compile.cache import Kept, Recipe
from bpfnb.tracer.compile.clashes import Clash
from bpfnb.tracer.compile.engine import Compiled, Engine, Function
from bpfnb.tracer.compile.submits import CARRIES, UNKNOWN
from bpfnb.tracer.diagnose import errors as failures
from bpfnb.tracer.diagnose import lineinfo
from bpfnb.tracer.diagnose.lineinfo import Lines
from bpfnb.tracer.kernel import bpf, capabilities, pins
from bpfnb.tracer.kernel import maps as kernel_maps
from bpfnb.tracer.kernel.btf import INT, STRUCT, Types, schema_of
from bpfnb.tracer.loaded import Loaded, LoadedMap, NotAllowed, ProgramSpec
from bpfnb.tracer.source_map import Handed, Payloads, Rewritten

__all__ = ["CELL_PATH", "Compiler"]

# While a cell is compiled it is a file of this name: LLVM copies the lines from there that the verifier will quote.
_CELL_FD = min(200, max(resource.getrlimit(resource.RLIMIT_NOFILE)[1] % (1 << 31) - 8, 16))  # where few are allowed
CELL_PATH = f"/proc/self/fd/{_CELL_FD}"
# So are the headers that differ for this cell, from the next number on.

_MOST_DESCRIPTORS = 250  # descriptors that one message can carry (the kernel's SCM_MAX_FD is 253)
_MOST_RECIPES = 16
_MAX_MEMORY = 4 << 30  # bytes of a child's own: an ordinary cell takes a tenth of one GiB
_PATIENCE = 60.0  # seconds for a cell; an ordinary one takes a tenth of one
_MOST_AT_ONCE = 4  # cells compiled side by side, so that one that hangs holds up no other
_CLOSING = 2.0  # seconds for the compiling process to end by itself

# In C a call of an unknown function is but a warning, and then the verifier speaks in riddles. A function that ends
# without a value works by accident.
_WARNINGS = ("-Werror=implicit-function-declaration", "-Wreturn-type", "-Wuninitialized", "-Wvla")


class Compiler:
    """The worker's hold on the compiling process; ``build`` may be called from several threads at once.

    ``user``: whose files a cell may include, where that is another than the tracer's (asker.py).

    ``pidfd`` becomes readable when the process has ended. It cannot be had again: by then the worker has threads.
    """

    def __init__(self, engine: Engine, user: User | None = None) -> None:
        self._user = user
        ours, theirs = socket.socketpair()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            _serve(engine, theirs, user)
        self.pidfd = os.pidfd_open(self._pid)
        theirs.close()
        self._connection: Connection[_Nothing] = Connection(ours, _Nothing)
        self._kept: Kept[_Built] = Kept(_MOST_RECIPES)

    def build(
        self,
        source: Rewritten,
        cflags: Sequence[str],
        loads: Sequence[ProgramSpec],
        tables: Sequence[str] = (),
        headers_wish: str = "auto",
        pinned: Sequence[MapDecl] = (),
        confinement: Confinement = NO_LIMITS,
        cancel: Cancel | None = None,
    ) -> tuple[Loaded, Payloads]:
        """Compile a cell, or take what was compiled of it before, and load what is wished for; functions and tables
        that are not in the compiled text are left out. ``headers_wish``: see headers.choose. ``pinned``: those of its
        maps that are. ``confinement``: what programs may not do; NotAllowed where one does.
        ``cancel``: what ends the wait, with CancelledError. Also return what each of the source's submits hands over.

        CompileError, VerifierError, PrivilegeError, SetupError; ProgramError for a flag that clang is not to have.
        """
        clang_flags.check(cflags)
        cancel = cancel or Cancel()
        if len(loads) + len(tables) > _MOST_DESCRIPTORS:
            raise UnsupportedError(
                f"a cell can have at most {_MOST_DESCRIPTORS} programs and maps, not {len(loads) + len(tables)}"
            )
        flags = (*_WARNINGS, *cflags)
        ours = headers_wish in ("auto", "btf")
        # A folder of the user's is looked at by the child: a file there may keep whoever opens it waiting for ever.
        tree = headers.choose(headers_wish) if ours else headers.Tree()
        # And what it holds may change.
        kept = not pinned and ours and recipes.decided(source.text, cflags)
        job = _Job(
            source.text,
            source.cell.source,
            tree,
            flags,
            tuple(loads),
            tuple(tables),
            source.tag,
            kept,
            tuple(pinned),
            confinement=confinement,
            headers_folder="" if ours else headers_wish,
            formats=tuple(recipes.formats(source.text).items()),
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
        if not select.select([self.pidfd], [], [], _CLOSING)[0]:
            os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self.pidfd)

    def _again(self, source: Rewritten, job: _Job, key: Hashable) -> tuple[Loaded, Payloads] | None:
        """The cell from its recipe; None where there is none, or the kernel refuses: compiling will tell why."""
        built = self._kept.get(key)
        if not built or not built.recipe:
            return None
        try:
            fds = built.recipe.cook(source.tag)
        except OSError:
            self._kept.forget(key)
            return None
        return _loaded(source, job, built, fds)

    def _anew(self, source: Rewritten, job: _Job, key: Hashable, cancel: Cancel) -> tuple[Loaded, Payloads]:
        try:
            built, fds = self._compile_with_types(source, job, cancel)
        except (CompileError, OSError):
            if not job.tree.generated or headers.whole(Path(job.tree.source)):
                raise
            # Somebody has damaged the headers, or removed a part of them.
            healed = replace(job, tree=headers.choose("btf"))
            built, fds = self._compile_with_types(source, healed, cancel)
        if built.recipe:
            self._kept.put(key, built)
        return _loaded(source, job, built, fds)

    def _compile_with_types(self, source: Rewritten, job: _Job, cancel: Cancel) -> tuple[_Built, list[int]]:
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

    def _compile(self, source: Rewritten, job: _Job, cancel: Cancel) -> tuple[_Built, list[int]]:
        if not (self._user and job.pinned):
            return self._ask(source, job, cancel)
        with pins.opened(job.pinned) as there:
            built, fds = self._ask(source, replace(job, there=tuple(there)), cancel, list(there.values()))
            tables = dict(zip((t.name for t in built.tables), fds[len(built.loaded) :], strict=True))
            try:
                pins.pin_new(job.pinned, there, tables)
            except BaseException:
                for fd in fds:
                    os.close(fd)
                raise
            return built, fds

    def _ask(self, source: Rewritten, job: _Job, cancel: Cancel, there: Sequence[int] = ()) -> tuple[_Built, list[int]]:
        ours, theirs = socket.socketpair()
        answers: Connection[_Answer] = Connection(ours, _Answer)
        try:
            with theirs, cancel.by(answers.hang_up):
                self._connection.send(job, [theirs.fileno(), *there])
                theirs.close()
                answer, fds = answers.receive()
        except (OSError, EOFError) as error:
            cancel.check()
            if why := few_descriptors(error):
                raise why from None
            select.select([self.pidfd], [], [], _CLOSING)  # if it has ended, ``ended`` is to say so
            raise InternalError(f"the compiling process has not answered: {error}") from None
        finally:
            answers.close()
        if not isinstance(answer, _Built):
            raise _error(answer, source)
        return answer, fds


def _with_other_headers(job: _Job, log: str) -> _Job:
    """The job with headers that have what clang misses, and not what it says is there twice; the same where neither
    is so."""
    if not (job.tree.generated and log):
        return job
    clashes = tuple(sorted({*job.clashes, *clashing.find(log, job.cell)}))
    everything = headers.EVERYTHING
    if job.cflags[-len(everything) :] != everything and headers.lacks_a_type(log, job.tree.source):
        job = replace(job, cflags=(*job.cflags, *everything))
    return replace(job, clashes=clashes)


def _loaded(source: Rewritten, job: _Job, built: _Built, fds: Sequence[int]) -> tuple[Loaded, Payloads]:
    programs = {job.loads[index]: fd for index, fd in zip(built.loaded, fds, strict=False)}
    tables = {
        table.name: LoadedMap(fd, table.key, table.value)
        for table, fd in zip(built.tables, fds[len(programs) :], strict=True)
    }
    warnings = (*clashing.warnings(source.cell, built.clashes), *failures.diagnostics(source, built.log))
    if warning := job.tree.warning or built.warning:
        warnings = (Diagnostic(0, 0, "warning", warning), *warnings)
    refused = {answer.function: _error(answer, source) for answer in built.refused}
    return Loaded(programs, tables, warnings, refused), built.carried


# --- between the two ----------------------------------------------------------------------------------------------


class _Job(Struct, frozen=True):
    """``tag``: the printk tag in the text, or "". ``kept``: whether a recipe is wanted. ``clashes``: names
    of the cell's own that the headers must not have. ``headers_folder``: the headers to take instead of ``tree``'s.
    ``formats``: how the tracepoints look that the text names, see recipes.formats. ``there``: the files of pinned maps
    there already, whose descriptors travel along."""

    text: str
    cell: str
    tree: headers.Tree
    cflags: tuple[str, ...]
    loads: tuple[ProgramSpec, ...]
    tables: tuple[str, ...]
    tag: str
    kept: bool
    pinned: tuple[MapDecl, ...] = ()
    clashes: tuple[Clash, ...] = ()
    confinement: Confinement = NO_LIMITS
    headers_folder: str = ""
    formats: tuple[tuple[str, str], ...] = ()
    there: tuple[str, ...] = ()


class _Nothing(Struct, frozen=True):
    """What the compiling process says where it is asked: answers go elsewhere."""


class _Table(Struct, frozen=True):
    name: str
    key: Schema | None
    value: Schema | None


class _Built(Struct, tag=True, frozen=True):
    """``loaded``: indices of the wishes; their descriptors travel along, in this order, and then the tables'.
    ``warning``: about the headers of ``headers_folder``."""

    loaded: tuple[int, ...]
    tables: tuple[_Table, ...]
    carried: Payloads
    log: str
    recipe: Recipe | None
    refused: tuple[_NotLoaded, ...] = ()
    clashes: tuple[Clash, ...] = ()
    warning: str = ""


class _NotCompiled(Struct, tag=True, frozen=True):
    reason: str
    log: str


class _NotLoaded(Struct, tag=True, frozen=True):
    function: str
    errno: int
    log: str
    lines: Lines
    compiling: str


class _NoAddress(Struct, tag=True, frozen=True):
    """``line``: of the cell, or 0. ``name``: of the variable, or "" ."""

    function: str
    line: int
    name: str
    compiling: str


class _Unfit(Struct, tag=True, frozen=True):
    """What the cell asks for besides its C is not there: headers, a place to pin maps, descriptors."""

    failed: Failed


class _Forbidden(Struct, tag=True, frozen=True):
    """A function does what the policy does not allow (confine.py). ``line``: of the cell, or 0."""

    what: str
    line: int


class _OtherMap(Struct, tag=True, frozen=True):
    """What is pinned where the cell's map should be is another."""

    line: int
    message: str
    hint: str


class _Bug(Struct, tag=True, frozen=True):
    traceback: str


class _Crashed(Struct, tag=True, frozen=True):
    """``status``: a process's exit status, negative for a signal; None when it was ended for taking too long."""

    status: int | None
    log: str


_Answer = _Built | _NotCompiled | _NotLoaded | _NoAddress | _Forbidden | _Unfit | _OtherMap | _Bug | _Crashed


# --- the compiling process ----------------------------------------------------------------------------------------


def _serve(engine: Engine, sock: socket.socket, user: User | None) -> NoReturn:
    """Fork for each job, until the worker hangs up."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])  # the worker has them blocked
        # What the worker has open, its socket to the notebook above all, must not outlive it here.
        kept = sock.fileno()
        os.closerange(3, kept)
        os.closerange(kept + 1, 1 << 16)
        if user:
            asker.take_on(user)
        # The first cell must not pay for LLVM's start. Where this fails, that cell fails too, and says why.
        with suppress(Exception):
            engine.compile("int warm(void *ctx) { return 0; }")
        _Children(engine, Connection(sock, _Job), user).run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(70)


class _Child:
    """A process that compiles. ``answers``: where its job is answered, as long as the worker wants to know."""

    def __init__(self, pid: int, answers: Connection[_Nothing], log: int) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.answers = answers
        self.log = log
        self.until = time.monotonic() + _PATIENCE
        self.killed = False

    def kill(self) -> None:
        self.killed = True
        os.kill(self.pid, signal.SIGKILL)  # nobody has waited for it yet, so it is still this one

    def reap(self) -> None:
        """Take in how it ended, and say so where it ended without an answer."""
        _, status = os.waitpid(self.pid, 0)
        if status != 0:
            with suppress(OSError):  # the worker does not want to know any more
                code = None if self.killed else os.waitstatus_to_exitcode(status)
                self.answers.send(_Crashed(code, _text(self.log)))
        os.close(self.pidfd)
        os.close(self.log)
        self.answers.abandon()


class _Children:
    """The compiling process's children, each for a job; a few at a time."""

    def __init__(self, engine: Engine, connection: Connection[_Job], user: User | None) -> None:
        self._engine = engine
        self._user = user
        self._connection = connection
        self._poll = select.poll()
        self._poll.register(connection.fileno(), select.POLLIN)
        self._waiting: deque[tuple[_Job, Connection[_Nothing], list[int]]] = deque()
        self._running: list[_Child] = []

    def run(self) -> NoReturn:
        """EOFError when the worker has hung up."""
        try:
            while True:
                self._step({fd for fd, _ in self._poll.poll(self._timeout())})
        finally:
            for child in self._running:
                child.kill()

    def _timeout(self) -> float | None:
        """Milliseconds until the next child has taken too long."""
        if not self._running:
            return None
        return max(min(child.until for child in self._running) - time.monotonic(), 0) * 1000 + 1

    def _step(self, ready: set[int]) -> None:
        for child in list(self._running):
            if child.pidfd in ready:
                self._poll.unregister(child.pidfd)
                self._poll.unregister(child.answers.fileno())
                self._running.remove(child)
                child.reap()
            elif not child.killed and (child.answers.fileno() in ready or time.monotonic() > child.until):
                # The worker has hung up; or it takes too long. What is waited for now is the process's end alone.
                self._poll.modify(child.answers.fileno(), 0)
                child.kill()
        if self._connection.fileno() in ready:
            job, (fd, *there) = self._connection.receive()
            self._waiting.append((job, Connection(socket.socket(fileno=fd), _Nothing), there))
        while self._waiting and len(self._running) < _MOST_AT_ONCE:
            self._start(*self._waiting.popleft())

    def _start(self, job: _Job, answers: Connection[_Nothing], there: Sequence[int]) -> None:
        log = os.memfd_create("bpfnb-compile")
        pid = os.fork()
        if pid == 0:
            self._connection.abandon()
            for other in self._running:
                other.answers.abandon()
            _run(self._engine, answers, job, log, dict(zip(job.there, there, strict=True)), self._user)
        for fd in there:
            os.close(fd)
        child = _Child(pid, answers, log)
        self._running.append(child)
        self._poll.register(child.pidfd, select.POLLIN)
        self._poll.register(answers.fileno(), select.POLLRDHUP)


def _run(
    engine: Engine,
    answers: Connection[_Nothing],
    job: _Job,
    log: int,
    there: Mapping[str, int],
    user: User | None,
) -> NoReturn:
    """One job, in a process of its own. All that is written goes to ``log``."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_MAX_MEMORY if most < 0 else min(most, _MAX_MEMORY), most))
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        cell = os.memfd_create("bpfnb-cell")
        os.write(cell, job.cell.encode())
        os.dup2(cell, _CELL_FD)
        answer, fds = _as_asked(engine, job, there, user)
        answers.send(answer, fds)
    except BaseException as error:
        why = few_descriptors(error)
        with suppress(OSError):
            answers.send(_Unfit(Failed.of(0, why)) if why else _Bug(traceback.format_exc()))
    os._exit(0)


def _as_asked(engine: Engine, job: _Job, there: Mapping[str, int], user: User | None) -> tuple[_Answer, list[int]]:
    """Compile and load, with the headers chosen, and with what another user may not read at hand."""
    try:
        if job.headers_folder:
            job = replace(job, tree=headers.choose(job.headers_folder))
        elif user and job.tree.source:
            job = replace(job, tree=job.tree._replace(source=asker.reachable(job.tree.source)))
        if user:
            asker.show_formats(dict(job.formats))
            asker.show_pins({d.pinned: there.get(d.pinned, -1) for d in job.pinned if d.pinned})
        return _do(engine, job)
    except BpfnbError as error:
        return _Unfit(Failed.of(0, error)), []


def _do(engine: Engine, job: _Job) -> tuple[_Answer, list[int]]:
    inherited = _btf_descriptors()  # what was compiled to warm up
    try:
        with capabilities.with_sys_admin() if job.pinned else nullcontext():  # see pins.py
            compiled = engine.compile(job.text, (*job.cflags, *_other_headers(job)), tree=job.tree)
    except Exception as error:
        ctypes.CDLL(None).fflush(None)  # bcc writes some of its complaints through C's buffered stdout
        return _NotCompiled(str(error), _text(2)), []
    log = _text(2)
    if other := next(filter(None, (_other_map(compiled, declared) for declared in job.pinned)), None):
        return other, []
    _forget_log()
    programs, loaded, refused = [], [], []
    linked = _Linked(compiled)
    for index, load in enumerate(job.loads):
        if not compiled.has(load.function):
            continue
        function = linked.function(load.function)
        try:
            fd = compiled.load(load, function.instructions)
        except OSError as error:
            refusal = _refused(compiled, load, function, error.errno or 0, _btf(inherited), log)
            if not load.optional:
                return refusal, []
            refused.append(refusal)
            _forget_log()
            continue
        if found := confine.forbidden(function.instructions, job.confinement, linked.constant_bytes):
            lines = lineinfo.find(btf, load.function, CELL_PATH) if (btf := _btf(inherited)) else Lines()
            return _Forbidden(found.what, lines.line(found.instruction) or 0), []
        if job.confinement.guard:
            fd, function = _guarded(fd, function, job.confinement.guard)
        programs.append((fd, function))
        loaded.append(index)
    btf = _btf(inherited)
    if linked.nowhere:  # the kernel takes it, since it cannot know that an address is none
        return _no_address(linked.nowhere[0], btf, log), []
    types = Types(btf) if btf else None
    tables = {name: table for name in job.tables if (table := compiled.table(name)) is not None}
    handed = list(tables.values())
    recipe = None
    if job.kept:
        recipe = recipes.write(programs, compiled.tables(), handed, btf, job.tag, linked.constants)
    built = _Built(
        tuple(loaded),
        tuple(_table(types, name) for name in tables),
        _carried(types),
        log,
        recipe,
        tuple(refused),
        warning=job.tree.warning if job.headers_folder else "",
    )
    return built, [*(fd for fd, _ in programs), *handed]


def _guarded(fd: int, function: Function, guard: Guard) -> tuple[int, Function]:
    """The program loaded once more with a guard, which the kernel is told no lines of: it has refused none of them."""
    attributes = bpf.program_attributes(fd, function.licence, function.version)
    os.close(fd)
    function = function._replace(instructions=confine.guarded(function.instructions, guard))
    return bpf.load_program(attributes, function.instructions), function


def _other_map(compiled: Compiled, declared: MapDecl) -> _OtherMap | None:
    """Say what is pinned, where it is another map than the cell declares: bcc does not look."""
    fd = compiled.table(declared.name)
    if fd is None:
        return None
    pinned = kernel_maps.kind(bpf.map_shape(fd))
    wanted = kernel_maps.kind(compiled.declared(declared.name))
    if pinned == wanted:
        return None
    message = f"the map pinned at {declared.pinned} is {pinned}, and {declared.name} is {wanted}"
    return _OtherMap(declared.line, message, f"pin it elsewhere, or remove the other: rm {declared.pinned}")


def _other_headers(job: _Job) -> list[str]:
    """Flags for clang to read other texts in place of the headers in which a name clashes; they are put into memory."""
    flags = []
    if job.clashes:
        for number, (file, text) in enumerate(clashing.replacements(Path(job.tree.source), job.clashes).items(), 1):
            fd = os.memfd_create(f"bpfnb-{file}")
            with open(fd, "w", closefd=False) as other:
                other.write(f'#line 1 "include/bpfnb/{file}"\n{text}')
            os.dup2(fd, _CELL_FD + number)
            os.close(fd)
            flags.append(headers.replaced(file, f"/proc/self/fd/{_CELL_FD + number}"))
    return flags


class _Linked:
    """The functions of a compiled cell with the addresses of their constants (constants.py).

    ``constants``: the map that holds them, and what it holds. ``nowhere``: what has an address in no map: the function,
    the instruction that wants it, and the variable's name, where that is known.
    """

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled
        self._object: constants.Object | None = None
        self.constants: tuple[int, bytes] | None = None
        self.nowhere: list[tuple[str, int, str]] = []

    @property
    def constant_bytes(self) -> bytes:
        return self.constants[1] if self.constants else b""

    def function(self, name: str) -> Function:
        function = self._compiled.function(name)
        if not constants.unfilled(function.instructions):
            return function
        section = self._compiled.section(name)
        self._object = self._object or constants.find(section, function.instructions)
        references = self._object.references(section) if self._object else []
        if self._object and not self.constants and any(r.offset is not None for r in references):
            held = self._object.constants
            self.constants = bpf.create_constants(held), held
        self.nowhere += [(name, r.instruction, r.name) for r in references if r.offset is None and not r.is_function]
        fd = self.constants[0] if self.constants else -1
        return function._replace(instructions=constants.placed(function.instructions, references, fd))


def _no_address(nowhere: tuple[str, int, str], btf: bytes, compiling: str) -> _NoAddress:
    function, index, name = nowhere
    lines = lineinfo.find(btf, function, CELL_PATH) if btf else Lines()
    return _NoAddress(function, lines.line(index) or 0, name, compiling)


def _refused(
    compiled: Compiled, load: ProgramSpec, function: Function, number: int, btf: bytes, compiling: str
) -> _NotLoaded:
    """What there is to say of a program the kernel did not take."""
    log = _text(2)
    if number == errno.E2BIG:  # bcc then keeps the log to itself
        log = compiled.log(load, function.instructions)
    lines = lineinfo.find(btf, load.function, CELL_PATH) if btf else Lines()
    return _NotLoaded(load.function, number, log, lines, compiling)


def _btf(inherited: set[int]) -> bytes:
    """The type information of what was just compiled; b"" where there is none."""
    opened = _btf_descriptors() - inherited
    return bpf.btf(opened.pop()) if opened else b""


def _btf_descriptors() -> set[int]:
    """Type information this process has open: bcc keeps the descriptors to itself."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the one this loop reads from
            if str(entry.readlink()) == "anon_inode:btf":
                found.add(int(entry.name))
    return found


def _table(types: Types | None, name: str) -> _Table:
    """The types of a map's key and value: bcc declares a struct of the two (helpers.h, BPF_ANNOTATE_KV_PAIR)."""
    found = types.named([f"____btf_map_{name}"], STRUCT) if types else []
    if not types or not found:
        return _Table(name, None, None)
    members = {member.name: member.type_id for member in types.members(found[0])}
    key, value = (_part(types, members, part) for part in ("key", "value"))
    return _Table(name, key, value)


def _part(types: Types, members: dict[str, int], part: str) -> Schema | None:
    """A map's key or value; None where it has none, or one that cannot be described: it is then shown as bytes."""
    try:
        return schema_of(types, members[part], part) if part in members else None
    except UnsupportedError:
        return None


def _carried(types: Types | None) -> Payloads:
    """What each submit hands over (submits.py); None where nothing is known of any."""
    if types is None:
        return None
    return {int(types.all[i].name.removeprefix(CARRIES)): _handed(types, i) for i in types.structs(CARRIES)}


def _handed(types: Types, holder: int) -> Handed:
    members = {member.name: member.type_id for member in types.members(holder)}
    value = members["value"]
    size = types.size(types.all[types.plain(members["size"])].ref) if "size" in members else -1
    plain = types.all[types.plain(value)]
    if plain.name == UNKNOWN:
        return Handed(None, size)
    try:
        schema = schema_of(types, value, "value")
    except UnsupportedError as error:
        return Handed(error.message, size)
    return Handed(schema, size, plain.kind == INT and plain.name in ("char", "unsigned char"))


def _forget_log() -> None:
    os.ftruncate(2, 0)
    os.lseek(2, 0, os.SEEK_SET)


def _text(fd: int) -> str:
    return os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="replace")


# --- from what was said to an error -------------------------------------------------------------------------------


def _error(answer: _Answer, source: Rewritten) -> BpfnbError:
    match answer:
        case _NotCompiled(reason, log):
            return failures.compile_error(source, log, reason)
        case _NotLoaded(function, number, log, lines, compiling):
            return failures.load_error(source, function, number, log, lines, compiling)
        case _NoAddress(function, line, name, compiling):
            return failures.address_error(source, function, line, name, compiling)
        case _Unfit(failed):
            return failed.exception()
        case _Forbidden(what, line):
            return NotAllowed(what, line)
        case _OtherMap(line, message, hint):
            return ProgramError(message, line=line, hint=hint)
        case _Bug(trace):
            return InternalError("the compiling process failed", remote_traceback=trace)
        case _Crashed(status, log):
            return failures.crash_error(source, status, log, _PATIENCE)
    raise AssertionError(answer)
