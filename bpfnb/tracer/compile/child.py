"""The compiling process: it forks a child for each job, which compiles a cell, loads it and answers."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import select
import signal
import socket
import time
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import NoReturn

from msgspec.structs import replace

from bpfnb.errors import BpfnbError, UnsupportedError, few_descriptors
from bpfnb.language.program import MapDecl
from bpfnb.protocol.connection import Connection
from bpfnb.protocol.messages import Failed
from bpfnb.protocol.schema import Schema
from bpfnb.tracer.access import confine, impersonate
from bpfnb.tracer.access.impersonate import User
from bpfnb.tracer.compile import cache, constants, headers, jobs
from bpfnb.tracer.compile.engine import Compiled, Engine, Function
from bpfnb.tracer.compile.headers import clashes as clashing
from bpfnb.tracer.compile.headers.contents import replaced
from bpfnb.tracer.compile.jobs import (
    CELL_FD,
    CELL_PATH,
    Answer,
    Bug,
    Built,
    Crashed,
    Forbidden,
    Job,
    Map,
    NoAddress,
    NotCompiled,
    Nothing,
    NotLoaded,
    OtherMap,
    Unfit,
)
from bpfnb.tracer.compile.submits import PAYLOAD_TYPE, UNKNOWN
from bpfnb.tracer.diagnose import lineinfo
from bpfnb.tracer.diagnose.lineinfo import Lines
from bpfnb.tracer.kernel import bpf, capabilities
from bpfnb.tracer.kernel import maps as kernel_maps
from bpfnb.tracer.kernel.btf import INT, STRUCT, Types, schema_of
from bpfnb.tracer.link.many import numbers, raw_syscalls
from bpfnb.tracer.link.many.multi import MULTI
from bpfnb.tracer.link.many.raw_syscalls import CALLS_MAP
from bpfnb.tracer.loaded import ProgramSpec
from bpfnb.tracer.source_map import Payload, Payloads

__all__ = ["serve"]

_MAX_MEMORY = 4 << 30  # bytes of a child's own: an ordinary cell takes a tenth of one GiB
_AT_ONCE = 0.25  # seconds in which a cell comes that is the reason why there is a tracer
_MAX_AT_ONCE = 4  # cells compiled side by side, so that one that hangs holds up no other


def serve(engine: Engine, sock: socket.socket, user: User | None) -> NoReturn:
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
            impersonate.impersonate(user)
        _Children(engine, Connection(sock, Job), user).run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(70)


class _Child:
    """A process that compiles. ``answers``: where its job is answered, as long as the worker wants to know."""

    def __init__(self, pid: int, answers: Connection[Nothing], log: int) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.answers = answers
        self.log = log
        self.until = time.monotonic() + jobs.TIMEOUT
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
                self.answers.send(Crashed(code, _text(self.log)))
        os.close(self.pidfd)
        os.close(self.log)
        self.answers.abandon()


class _Children:
    """The compiling process's children, each for a job; a few at a time."""

    def __init__(self, engine: Engine, connection: Connection[Job], user: User | None) -> None:
        self._engine = engine
        self._user = user
        self._connection = connection
        self._poll = select.poll()
        self._poll.register(connection.fileno(), select.POLLIN)
        self._waiting: deque[tuple[Job, Connection[Nothing], list[int]]] = deque()
        self._running: list[_Child] = []
        self._warm = False

    def run(self) -> NoReturn:
        """EOFError when the worker has hung up."""
        try:
            while True:
                ready = {fd for fd, _ in self._poll.poll(self._timeout())}
                if not (ready or self._running or self._warm):
                    self._warm_up()
                self._step(ready)
        finally:
            for child in self._running:
                child.kill()

    def _warm_up(self) -> None:
        """Start LLVM, so that the next cells need not. It takes as long as a cell and saves less: cells go first."""
        self._warm = True
        with suppress(Exception):  # where this fails, cells fail too, and say why
            self._engine.compile("int warm(void *ctx) { return 0; }")

    def _timeout(self) -> float | None:
        """Milliseconds until the next child has taken too long, or until it is time to warm up."""
        if not self._running:
            return None if self._warm else _AT_ONCE * 1000
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
            self._waiting.append((job, Connection(socket.socket(fileno=fd), Nothing), there))
        while self._waiting and len(self._running) < _MAX_AT_ONCE:
            self._start(*self._waiting.popleft())

    def _start(self, job: Job, answers: Connection[Nothing], there: Sequence[int]) -> None:
        log = os.memfd_create("bpfnb-compile")
        pid = os.fork()
        if pid == 0:
            self._connection.abandon()
            for other in self._running:
                other.answers.abandon()
            _run(self._engine, answers, job, log, dict(zip(job.pinned_files, there, strict=True)), self._user)
        for fd in there:
            os.close(fd)
        child = _Child(pid, answers, log)
        self._running.append(child)
        self._poll.register(child.pidfd, select.POLLIN)
        self._poll.register(answers.fileno(), select.POLLRDHUP)


def _run(
    engine: Engine,
    answers: Connection[Nothing],
    job: Job,
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
        os.dup2(cell, CELL_FD)
        answer, fds = _as_asked(engine, job, there, user)
        answers.send(answer, fds)
    except BaseException as error:
        why = few_descriptors(error)
        with suppress(OSError):
            answers.send(Unfit(Failed.of(0, why)) if why else Bug(traceback.format_exc()))
    os._exit(0)


def _as_asked(engine: Engine, job: Job, there: Mapping[str, int], user: User | None) -> tuple[Answer, list[int]]:
    """Compile and load, with the headers chosen, and with what another user may not read at hand."""
    try:
        if job.headers_folder:
            job = replace(job, tree=headers.choose(job.headers_folder))
        elif user and job.tree.source:
            job = replace(job, tree=job.tree._replace(source=impersonate.reachable(job.tree.source)))
        if user:
            impersonate.show_formats(dict(job.formats))
            impersonate.show_pins({d.pinned: there.get(d.pinned, -1) for d in job.pinned if d.pinned})
        return _do(engine, job)
    except BpfnbError as error:
        return Unfit(Failed.of(0, error)), []


def _do(engine: Engine, job: Job) -> tuple[Answer, list[int]]:
    inherited = _btf_descriptors()  # what was compiled to warm up
    try:
        with capabilities.with_sys_admin() if job.pinned else nullcontext():  # see pins.py
            compiled = engine.compile(job.text, (*job.cflags, *_other_headers(job)), tree=job.tree)
    except Exception as error:
        ctypes.CDLL(None).fflush(None)  # bcc writes some of its complaints through C's buffered stdout
        return NotCompiled(str(error), _text(2)), []
    log = _text(2)
    if other := next(filter(None, (_other_map(compiled, declared) for declared in job.pinned)), None):
        return other, []
    _forget_log()
    programs, loaded, rejected = [], [], []
    linked = _Linked(compiled)
    for index, spec in enumerate(job.specs):
        if not compiled.has(spec.function):
            continue
        function = linked.function(spec.function)
        function = function._replace(instructions=numbers.placed(function.instructions, job.places[index]))
        try:
            fd = compiled.load(spec, function.instructions)
        except OSError as error:
            rejection = _rejected(compiled, spec, function, error.errno or 0, _btf(inherited), log)
            if not spec.optional:
                return rejection, []
            rejected.append(rejection)
            _forget_log()
            continue
        if found := confine.forbidden(function.instructions, job.confinement, linked.constant_bytes):
            lines = lineinfo.find(btf, spec.function, CELL_PATH) if (btf := _btf(inherited)) else Lines()
            return Forbidden(found.what, lines.line(found.instruction) or 0), []
        before = _before(function.instructions, job, index, compiled)
        multi = spec.attach_type if spec.attach_type in MULTI else 0
        if before != function.instructions or multi:
            fd, function = _reloaded(fd, function._replace(attach_type=multi), before)
        programs.append((fd, function))
        loaded.append(index)
    btf = _btf(inherited)
    if linked.nowhere:  # the kernel takes it, since it cannot know that an address is none
        return _no_address(linked.nowhere[0], btf, log), []
    types = Types(btf) if btf else None
    maps = {name: table for name in job.maps if (table := compiled.table(name)) is not None}
    map_fds = list(maps.values())
    cached = None
    if job.cacheable:
        cached = cache.cached_program(programs, compiled.tables(), map_fds, btf, job.tag, linked.constants)
    built = Built(
        tuple(loaded),
        tuple(_map(types, name) for name in maps),
        _payloads(types),
        log,
        cached,
        tuple(rejected),
        warning=job.tree.warning if job.headers_folder else "",
    )
    return built, [*(fd for fd, _ in programs), *map_fds]


def _before(code: bytes, job: Job, index: int, compiled: Compiled) -> bytes:
    """Return a program with what is to be before it: a filter of system calls, and a guard."""
    place = job.places[index]
    calls = compiled.table(CALLS_MAP)
    if place is not None and numbers.is_raw(place) and job.task and calls is not None and not job.specs[index].optional:
        code = raw_syscalls.filtered(code, place - numbers.RAW, calls, job.task)
    return confine.guarded(code, job.confinement.guard) if job.confinement.guard else code


def _reloaded(fd: int, function: Function, code: bytes) -> tuple[int, Function]:
    """Load a program once more, with something before it or as bcc cannot, which the kernel is told no lines of: it has
    rejected none."""
    attributes = bpf.program_attributes(fd, function.licence, function.version, function.attach_type)
    os.close(fd)
    return bpf.load_program(attributes, code), function._replace(instructions=code)


def _other_map(compiled: Compiled, declared: MapDecl) -> OtherMap | None:
    """Say what is pinned, where it is another map than the cell declares: bcc does not look."""
    fd = compiled.table(declared.name)
    if fd is None:
        return None
    pinned = kernel_maps.kind(bpf.map_shape(fd))
    wanted = kernel_maps.kind(compiled.declared(declared.name))
    if pinned == wanted:
        return None
    message = f"the map pinned at {declared.pinned} is {pinned}, and {declared.name} is {wanted}"
    return OtherMap(declared.line, message, f"pin it elsewhere, or remove the other: rm {declared.pinned}")


def _other_headers(job: Job) -> list[str]:
    """Flags for clang to read other texts in place of the headers in which a name clashes; they are put into memory."""
    flags = []
    if job.clashes:
        for number, (file, text) in enumerate(clashing.replacements(Path(job.tree.source), job.clashes).items(), 1):
            fd = os.memfd_create(f"bpfnb-{file}")
            with open(fd, "w", closefd=False) as other:
                other.write(f'#line 1 "include/bpfnb/{file}"\n{text}')
            os.dup2(fd, CELL_FD + number)
            os.close(fd)
            flags.append(replaced(file, f"/proc/self/fd/{CELL_FD + number}"))
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


def _no_address(nowhere: tuple[str, int, str], btf: bytes, compiling: str) -> NoAddress:
    function, index, name = nowhere
    lines = lineinfo.find(btf, function, CELL_PATH) if btf else Lines()
    return NoAddress(function, lines.line(index) or 0, name, compiling)


def _rejected(
    compiled: Compiled, spec: ProgramSpec, function: Function, number: int, btf: bytes, compiling: str
) -> NotLoaded:
    """Return what there is to say of a program the kernel did not take."""
    log = _text(2)
    if number == errno.E2BIG:  # bcc then keeps the log to itself
        log = compiled.log(spec, function.instructions)
    lines = lineinfo.find(btf, spec.function, CELL_PATH) if btf else Lines()
    return NotLoaded(spec.function, number, log, lines, compiling)


def _btf(inherited: set[int]) -> bytes:
    """Return the type information of what was just compiled; b"" where there is none."""
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


def _map(types: Types | None, name: str) -> Map:
    """Return the types of a map's key and value: bcc declares a struct of the two (helpers.h, BPF_ANNOTATE_KV_PAIR)."""
    found = types.named([f"____btf_map_{name}"], STRUCT) if types else []
    if not types or not found:
        return Map(name, None, None)
    members = {member.name: member.type_id for member in types.members(found[0])}
    key, value = (_part(types, members, part) for part in ("key", "value"))
    return Map(name, key, value)


def _part(types: Types, members: dict[str, int], part: str) -> Schema | None:
    """A map's key or value; None where it has none, or one that cannot be described: it is then shown as bytes."""
    try:
        return schema_of(types, members[part], part) if part in members else None
    except UnsupportedError:
        return None


def _payloads(types: Types | None) -> Payloads:
    """Return what each call submits (submits.py); None where nothing is known of any."""
    if types is None:
        return None
    return {int(types.all[i].name.removeprefix(PAYLOAD_TYPE)): _payload(types, i) for i in types.structs(PAYLOAD_TYPE)}


def _payload(types: Types, holder: int) -> Payload:
    members = {member.name: member.type_id for member in types.members(holder)}
    value = members["value"]
    size = types.size(types.all[types.plain(members["size"])].ref) if "size" in members else -1
    plain = types.all[types.plain(value)]
    if plain.name == UNKNOWN:
        return Payload(None, size)
    try:
        schema = schema_of(types, value, "value")
    except UnsupportedError as error:
        return Payload(error.message, size)
    return Payload(schema, size, plain.kind == INT and plain.name in ("char", "unsigned char"))


def _forget_log() -> None:
    os.ftruncate(2, 0)
    os.lseek(2, 0, os.SEEK_SET)


def _text(fd: int) -> str:
    return os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="replace")
