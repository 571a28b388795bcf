"""What the worker and its compiling processes tell each other: a job, and its answer."""

from __future__ import annotations

import resource

from msgspec import Struct

from bpfnb.language.program import MapDecl
from bpfnb.protocol.messages import Failed
from bpfnb.protocol.schema import Schema
from bpfnb.tracer.access.confine import NO_LIMITS, Confinement
from bpfnb.tracer.compile import headers
from bpfnb.tracer.compile.cache import CachedProgram
from bpfnb.tracer.compile.headers.clashes import Clash
from bpfnb.tracer.diagnose.lineinfo import Lines
from bpfnb.tracer.link.many.raw_syscalls import Task
from bpfnb.tracer.loaded import ProgramSpec
from bpfnb.tracer.source_map import Payloads

__all__ = [
    "CELL_FD",
    "CELL_PATH",
    "TIMEOUT",
    "Answer",
    "Bug",
    "Built",
    "Crashed",
    "Forbidden",
    "Job",
    "Map",
    "NoAddress",
    "NotCompiled",
    "NotLoaded",
    "Nothing",
    "OtherMap",
    "Unfit",
]

# While a cell is compiled it is a file of this name: LLVM copies the lines from there that the verifier will quote.
CELL_FD = min(200, max(resource.getrlimit(resource.RLIMIT_NOFILE)[1] % (1 << 31) - 8, 16))  # where few are allowed
CELL_PATH = f"/proc/self/fd/{CELL_FD}"
# So are the headers that differ for this cell, from the next number on.

TIMEOUT = 60.0  # seconds for a cell; an ordinary one takes a tenth of one


class Job(Struct, frozen=True):
    """A cell to compile and load.

    ``tag``: the printk tag in the text, or "". ``cacheable``: whether a cached program is wanted. ``clashes``: names of
    the cell's own that the headers must not have. ``headers_folder``: the headers to take instead of ``tree``'s.
    ``formats``: how the tracepoints look that the text names, see cache.formats. ``pinned_files``: the files of pinned
    maps that are there already, whose descriptors travel along. ``places``: of each spec's program, see
    link/many/numbers.py. ``task``: for programs that system calls share, see link/many/raw_syscalls.py.
    """

    text: str
    cell: str
    tree: headers.Tree
    cflags: tuple[str, ...]
    specs: tuple[ProgramSpec, ...]
    maps: tuple[str, ...]
    tag: str
    cacheable: bool
    pinned: tuple[MapDecl, ...] = ()
    clashes: tuple[Clash, ...] = ()
    confinement: Confinement = NO_LIMITS
    headers_folder: str = ""
    formats: tuple[tuple[str, str], ...] = ()
    pinned_files: tuple[str, ...] = ()
    places: tuple[int | None, ...] = ()
    task: Task | None = None


class Nothing(Struct, frozen=True):
    """What the compiling process says where it is asked: answers go elsewhere."""


class Map(Struct, frozen=True):
    name: str
    key: Schema | None
    value: Schema | None


class Built(Struct, tag=True, frozen=True):
    """``loaded``: indices of the specs; their descriptors travel along, in this order, and then the maps'.
    ``warning``: about the headers of ``headers_folder``."""

    loaded: tuple[int, ...]
    maps: tuple[Map, ...]
    payloads: Payloads
    log: str
    cached: CachedProgram | None
    rejected: tuple[NotLoaded, ...] = ()
    clashes: tuple[Clash, ...] = ()
    warning: str = ""


class NotCompiled(Struct, tag=True, frozen=True):
    reason: str
    log: str


class NotLoaded(Struct, tag=True, frozen=True):
    function: str
    errno: int
    log: str
    lines: Lines
    compiling: str


class NoAddress(Struct, tag=True, frozen=True):
    """``line``: of the cell, or 0. ``name``: of the variable, or "" ."""

    function: str
    line: int
    name: str
    compiling: str


class Unfit(Struct, tag=True, frozen=True):
    """What the cell asks for besides its C is not there: headers, a place to pin maps, descriptors."""

    failed: Failed


class Forbidden(Struct, tag=True, frozen=True):
    """A function does what the policy does not allow (confine.py). ``line``: of the cell, or 0."""

    what: str
    line: int


class OtherMap(Struct, tag=True, frozen=True):
    """What is pinned where the cell's map should be is another."""

    line: int
    message: str
    hint: str


class Bug(Struct, tag=True, frozen=True):
    traceback: str


class Crashed(Struct, tag=True, frozen=True):
    """``status``: a process's exit status, negative for a signal; None when it was ended for taking too long."""

    status: int | None
    log: str


Answer = Built | NotCompiled | NotLoaded | NoAddress | Forbidden | Unfit | OtherMap | Bug | Crashed
