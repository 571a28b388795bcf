"""The recorded programs, compiled, loaded and attached: through bpfnb, and for comparison through plain bcc.

Runs on the kernel to be measured, as root, and writes a line of JSON for every run of a tool.
"""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.compatibility.record import Recorder, Recording
from benchmarks.compatibility.tools import Run, runs
from bpfnb.errors import (
    AttachError,
    BpfnbError,
    CompileError,
    PrivilegeError,
    ProgramError,
    UnsupportedError,
    VerifierError,
)
from bpfnb.language import program as programs
from bpfnb.language.probes import Probe
from bpfnb.language.program import Program, parse
from bpfnb.language.scan import scan
from bpfnb.tracer.compile import jobs
from bpfnb.tracer.compile.compiler import Compiler
from bpfnb.tracer.compile.engine import Engine
from bpfnb.tracer.compile.headers import choice
from bpfnb.tracer.compile.jobs import CELL_PATH
from bpfnb.tracer.compile.rewrite import rewrite
from bpfnb.tracer.link import kinds, syscall, usdt

__all__ = ["MARK", "Plain", "Result", "Tried", "measure"]

MARK = "@@"


class Tried(msgspec.Struct, omit_defaults=True):
    """How far a program got. ``attached``: of ``probes``. ``why``: the first thing that stopped it. ``idle``: bpfnb
    insists that every function be attached; the tool leaves this one out with these arguments."""

    compiled: bool = False
    loaded: bool = False
    attached: int = 0
    probes: int = 0
    why: str = ""
    log: str = ""
    idle: str = ""
    seconds: float = 0.0


class Plain(msgspec.Struct, omit_defaults=True):
    """The same text through plain bcc with the headers package."""

    compiled: bool = False
    loaded: bool = False
    why: str = ""


class Result(msgspec.Struct, omit_defaults=True):
    name: str
    tool: str
    first: bool
    gave_up: str = ""  # what the tool itself says on this kernel
    program: bool = True
    bpfnb: Tried | None = None
    plain: Plain | None = None


def measure(
    sbin: Path, standins: dict[str, Path], only: set[str], *, headers_there: bool, emit: Callable[[Any], None]
) -> None:
    """``headers_there``: /lib/modules has this kernel's real headers, to compare with."""
    if headers_there:
        choice.has_real_headers = lambda *_: False
    jobs.TIMEOUT = 400.0  # a guest's processor is emulated
    engine = Engine()
    bench = _Bench(engine, headers_there)
    recorder = Recorder(engine.bcc, fentry=bench.fentry())
    with _processes(standins) as names:
        for run in runs(sbin):
            if not only or run.tool in only:
                emit(bench.result(run, recorder.record(run, names)))
    bench.close()


@contextmanager
def _processes(standins: dict[str, Path]) -> Iterator[dict[str, str]]:
    """What the placeholders in the tools' arguments stand for, while it is there."""
    with ExitStack() as stack:
        started = {}
        for name, command in {**{name: [str(path)] for name, path in standins.items()}, "": ["sleep", "inf"]}.items():
            process = subprocess.Popen(command)
            stack.callback(process.wait)
            stack.callback(process.kill)
            started[f"pid_{name}" if name else "pid"] = str(process.pid)
        controlling, terminal = pty.openpty()
        stack.callback(os.close, controlling)
        stack.callback(os.close, terminal)
        paths = {f"path_{name}": str(path) for name, path in standins.items()}
        maps = Path("/proc/self/maps").read_text()
        libc = next(line.split()[-1] for line in maps.splitlines() if "/libc." in line)
        yield {**started, **paths, "pty": os.ttyname(terminal), "disk": "254:0", "libc": libc}


def _parse(recording: Recording) -> tuple[Program, str]:
    """The program, and what bpfnb had to say about a function that the tool does not attach. bcc compiles such a
    function and leaves it at that; so do we here, to see the rest of the program."""
    try:
        return parse(recording.text, recording.probes, recording.cflags), ""
    except ProgramError as error:
        if "nothing attaches" not in str(error):
            raise
        check, programs._check = programs._check, lambda *_: None
        try:
            return parse(recording.text, recording.probes, recording.cflags), str(error)
        finally:
            programs._check = check


class _Bench:
    """Compiles and loads. Made before there are threads."""

    def __init__(self, engine: Engine, headers_there: bool) -> None:
        self._engine = engine
        self._headers_there = headers_there
        self._compiler = Compiler(engine)
        if headers_there:
            engine.compile("int warm(void *ctx) { return 0; }")

    def close(self) -> None:
        self._compiler.close()

    def fentry(self) -> bool:
        """Whether this kernel loads such programs. bcc only looks whether it was built with them."""
        text = "KFUNC_PROBE(vfs_read) { return 0; }"
        return self._through_bpfnb(Recording(text)).attached == 1

    def result(self, run: Run, recording: Recording) -> Result:
        result = Result(run.name, run.tool, run.first, recording.said, bool(recording.text))
        if recording.text:
            result.bpfnb = self._through_bpfnb(recording)
            # What bpfnb loads needs no comparison: with real headers a program takes a guest up to two minutes.
            if self._headers_there and not result.bpfnb.loaded:
                result.plain = self._through_bcc(recording)
        return result

    def _through_bpfnb(self, recording: Recording) -> Tried:
        tried = Tried(probes=len(recording.probes))
        began = time.monotonic()
        try:
            self._try(recording, tried)
        except VerifierError as error:
            tried.compiled = True
            tried.why, tried.log = f"{error}", error.log[-4000:]
        except PrivilegeError as error:
            tried.compiled = True
            tried.why = f"{error}"
        except CompileError as error:
            tried.why, tried.log = f"{error}", error.log[-4000:]
        except BpfnbError as error:
            tried.why, tried.log = f"{type(error).__name__}: {error}", str(getattr(error, "remote_traceback", ""))
        tried.seconds = tried.seconds or time.monotonic() - began
        return tried

    def _try(self, recording: Recording, tried: Tried) -> None:
        program, tried.idle = _parse(recording)
        tried.probes = len(program.probes)
        tag = "measured" if program.prints else ""
        files = kinds.Files(usdt=usdt.find_all(program))
        readers = usdt.readers(scan(program.source, program.cflags), files.usdt)
        source = rewrite(program, tag=tag, syscall_mode=syscall.mode(), path=CELL_PATH, readers=readers)
        loads = dict.fromkeys(kinds.spec(probe) for probe in program.probes)
        tables = [output.name for output in program.outputs] + [map_.name for map_ in program.maps]
        began = time.monotonic()
        loaded, _ = self._compiler.build(source, program.cflags, list(loads), list(dict.fromkeys(tables)))
        tried.seconds = time.monotonic() - began
        tried.compiled = tried.loaded = True
        links = []
        try:
            for probe in program.probes:
                if kinds.spec(probe) not in loaded.programs:
                    tried.probes -= 1  # under an #if that came out false
                    continue
                try:
                    kinds.require(probe)
                    links.append(kinds.attach(loaded, probe, files))
                    tried.attached += 1
                except (AttachError, UnsupportedError) as error:
                    tried.why = tried.why or str(error)
        finally:
            for link in links:
                link.close()
            loaded.close()

    # --- plain bcc ---

    def _through_bcc(self, recording: Recording) -> Plain:
        """The text as the tool has it, with the kernel's real headers, in a process of its own."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            os.write(writer, msgspec.json.encode(self._with_real_headers(recording)))
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            answer = pipe.read()
        os.waitpid(child, 0)
        return msgspec.json.decode(answer, type=Plain) if answer else Plain(why="bcc ended the process")

    def _with_real_headers(self, recording: Recording) -> Plain:
        os.environ.pop("BCC_KERNEL_SOURCE")
        plain = Plain()
        try:
            program, _ = _parse(recording)
            compiled = self._engine.compile(recording.text, recording.cflags, usdt=self._usdt(program))
            plain.compiled = True
            for spec in dict.fromkeys(kinds.spec(probe) for probe in program.probes):
                if compiled.has(spec.function):
                    compiled.load(spec)
            plain.loaded = True
        except Exception as error:  # bcc raises nothing more exact
            plain.why = str(error)
        return plain

    def _usdt(self, program: Program) -> list[_BccUsdt]:
        return [_BccUsdt(self._engine, probe) for probe in program.probes if probe.kind == "usdt"]


class _BccUsdt:
    """A USDT probe in bcc's own hands, which attaches nothing."""

    def __init__(self, engine: Engine, probe: Probe) -> None:
        path, _, name = probe.target.rsplit(":", 2)
        self._context = engine.bcc.USDT(path=path)
        self._context.enable_probe(probe=name, fn_name=probe.function)

    def get_context(self) -> Any:
        return self._context.get_context()

    def attach_uprobes(self, bpf: Any, ignore_pid: bool) -> None:
        """Nothing runs here."""


def main(arguments: list[str]) -> None:
    """SBIN STANDINS HEADERS|none [TOOL ...]. HEADERS: an archive of Debian's two packages, for a guest to unpack."""
    sbin, standins, there, *only = arguments
    if there != "none":
        release = os.uname().release
        subprocess.run(["tar", "-C", "/", "-xf", there], check=True)
        place = Path("/lib/modules") / release
        place.mkdir(parents=True, exist_ok=True)
        (place / "build").symlink_to(f"/usr/src/linux-headers-{release}")
        (place / "source").symlink_to(f"/usr/src/linux-headers-{release.removesuffix('-amd64')}-common")

    def emit(result: Any) -> None:
        sys.stdout.write(f"{MARK}{msgspec.json.encode(result).decode()}\n")
        sys.stdout.flush()

    programs = {path.name: path for path in Path(standins).iterdir()}
    measure(Path(sbin), programs, set(only), headers_there=there != "none", emit=emit)


if __name__ == "__main__":
    main(sys.argv[1:])
