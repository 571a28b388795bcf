"""The messages between the notebook and the tracer, and their encoding.

One SOCK_STREAM socketpair, made by the notebook, inherited by the tracer as its standard input. A message is a
header (length of the body, number of file descriptors) and a msgpack body; descriptors ride on the header's first
byte (SCM_RIGHTS). Never pickle: the tracer is the privileged side, and must not run what it is sent.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

from bpfnb import errors
from bpfnb.errors import BpfnbError, Diagnostic
from bpfnb.language.program import Program
from bpfnb.language.signature import Signature
from bpfnb.protocol.schema import Schema
from bpfnb.protocol.segments import Layout

__all__ = [
    "COSTS_CLOCK",
    "COSTS_EACH",
    "COSTS_HEAD",
    "COUNTERS",
    "Check",
    "CheckLevel",
    "Checks",
    "ClearMap",
    "CostsAdded",
    "CountersAdded",
    "DescribeProbes",
    "DescribeType",
    "Detached",
    "Ended",
    "Failed",
    "FindNames",
    "FindProbes",
    "FindSymbols",
    "FromFollower",
    "FromTracer",
    "Hello",
    "Limits",
    "ListProbes",
    "Load",
    "Loaded",
    "LookupMap",
    "MapInfo",
    "MapLost",
    "MapRead",
    "MapValue",
    "MapWritten",
    "Member",
    "NamesFound",
    "Noted",
    "OpenCounter",
    "Ping",
    "Pong",
    "ProbeInfo",
    "ProbeNames",
    "ProbesDescribed",
    "ProbesListed",
    "Progress",
    "ReadMap",
    "Received",
    "Request",
    "RunChecks",
    "SegmentAdded",
    "Stop",
    "Stopped",
    "Symbols",
    "TakeMap",
    "ToTracer",
    "TypeDescribed",
    "WriteMap",
]

COUNTERS = 128  # of refused updates, a map: one an errno
COSTS_HEAD, COSTS_EACH = 8, 4  # 64-bit numbers of a session's costs, and of each of its programs'
COSTS_CLOCK = 5  # which of the first says how far the host's clock is ahead


class ProbeInfo(Struct, frozen=True):
    """An attached probe. ``requested``: as the user wrote it, which may be a pattern. ``attached``: what it is attached
    to; ``kind``: how; ``note``: why that differs from what was requested, or "". ``name``: the probe itself, its kind
    in full: "uprobe:c:malloc"."""

    requested: str
    attached: str
    kind: str
    note: str
    function: str
    name: str = ""


class MapInfo(Struct, frozen=True):
    """A map of a session. ``kind``: the kernel's name of its type, "percpu_hash" (bpftool's spelling).

    ``key`` and ``value`` are None where the map holds nothing to read (a program array, a devmap ...); ``key`` also
    for a queue or a stack. ``cpus``: values an entry has, one a possible CPU in per-CPU maps, else 1; they lie
    ``value_stride`` bytes apart. ``inner``: of a map of maps, the inner maps' name.
    ``pinned``: the file it is pinned at, and stays after the session; or "". ``counters``: the index of its first
    counter of refused updates (CountersAdded), -1 where nothing in the cell could be refused. ``shown``: of an array
    larger than the cell could expect, the entries that are shown; more only up to the last that is not zero.
    """

    name: str
    macro: str
    kind: str
    key: Schema | None
    value: Schema | None
    key_size: int
    value_size: int
    value_stride: int
    cpus: int
    max_entries: int
    line: int = 0
    inner: str = ""
    pinned: str = ""
    counters: int = -1
    shown: int = 0


CheckLevel = Literal["required", "optional", "info"]


class Check(Struct, frozen=True):
    """One check of the doctor: what was checked, what was found, and the remedy, or "".

    ``level``: "required" (without it nothing is traced), "optional" (without it something is lacking), "info".
    ``known``: False where the check could not tell; ``ok`` is False then.
    """

    name: str
    level: CheckLevel
    ok: bool
    found: str
    remedy: str = ""
    known: bool = True

    @property
    def state(self) -> Literal["ok", "missing", "unknown"]:
        """How it came out."""
        return "ok" if self.ok else "missing" if self.known else "unknown"


# --- notebook -> tracer -------------------------------------------------------------------------------------------


class Limits(Struct, frozen=True):
    """What the guard allows a session. None: no limit.

    ``cost``: a share of all CPUs, 1.0 being all of them. ``rate``: events a second. Both are averages over five
    seconds. ``memory``: bytes in the kernel. ``asked``: whether the user set this
    ``cost``, and so must be told where it cannot be measured.
    """

    cost: float | None = None
    rate: float | None = None
    memory: int | None = None
    asked: bool = False


class Load(Struct, tag=True, frozen=True):
    """Compile, verify, load, attach. Answered by Loaded or Failed; ``request`` names the session from then on.

    ``folder``: where relative paths of probes begin, "" where that is nowhere. ``keep``: bytes of rows that the
    session may keep; so many may be under way in segments that have not been received. ``follower``: one end of a
    UNIX socketpair travels along; at the other end somebody gets all that is said of the session too (FromFollower).
    """

    request: int
    program: Program
    folder: str = ""
    limits: Limits = Limits()
    keep: int = 0
    follower: bool = False


class Stop(Struct, tag=True, frozen=True):
    """Detach a session and deliver its last rows. Answered by Stopped."""

    request: int
    session: int


class Received(Struct, tag=True, frozen=True):
    """Acknowledge ``segments`` more segments of a session, in the order they were sent. Not answered."""

    session: int
    segments: int = 1


class FindProbes(Struct, tag=True, frozen=True):
    """List the probes of this kernel, or of a file (usdt:PATH:PATTERN), whose name matches a shell pattern. Answered by
    ProbeNames. ``folder``: as in Load."""

    request: int
    pattern: str
    limit: int
    folder: str = ""


class ListProbes(Struct, tag=True, frozen=True):
    """As FindProbes, with what is known of each probe, and with those that this kernel is known not to have. Answered
    by ProbesListed."""

    request: int
    pattern: str
    limit: int
    folder: str = ""


class DescribeProbes(Struct, tag=True, frozen=True):
    """Ask for the signatures of probes as -a takes them, wildcards too, and for the types along ``paths`` of members.
    Answered by ProbesDescribed. ``limit``: of probes; more are an error. ``folder``: as in Load."""

    request: int
    probes: tuple[str, ...]
    paths: tuple[tuple[str, ...], ...]
    limit: int
    folder: str = ""


class DescribeType(Struct, tag=True, frozen=True):
    """Ask for a type of this kernel: "struct task_struct", "pid_t", or what ``path`` leads to from it: ("mm", "pgd").
    A number, such as "0", is the element of an array or of what a pointer leads to. Answered by TypeDescribed."""

    request: int
    name: str
    path: tuple[str, ...]
    limit: int


class FindNames(Struct, tag=True, frozen=True):
    """List the types and constants of this kernel whose names begin with ``start``. Answered by NamesFound."""

    request: int
    start: str
    limit: int


class Ping(Struct, tag=True, frozen=True):
    """Ask whether the tracer answers. Answered by Pong, after all it sent before."""

    request: int


class RunChecks(Struct, tag=True, frozen=True):
    """Check what this kernel and this tracer can do. Answered by Checks."""

    request: int


class ReadMap(Struct, tag=True, frozen=True):
    """Read all entries of a session's map. Answered by MapRead."""

    request: int
    session: int
    map: str


class LookupMap(Struct, tag=True, frozen=True):
    """Read a key's value in a session's map, both in the bytes the kernel has them in. For an empty key, the value that
    would be taken next from a queue or a stack. Answered by MapValue."""

    request: int
    session: int
    map: str
    key: bytes


class TakeMap(Struct, tag=True, frozen=True):
    """Take entries out of a hash, a queue or a stack: each is delivered once. ``most``: of a queue or a stack at most
    so many; 0: all. Answered by MapRead, with ``taken``."""

    request: int
    session: int
    map: str
    most: int = 0


class WriteMap(Struct, tag=True, frozen=True):
    """Set the value of a key; delete the key when ``value`` is None. Both in the bytes the kernel has them in. But a
    map in a map of maps is given by its name, a program by its function's name, a cgroup by its path.

    Answered by MapWritten.
    """

    request: int
    session: int
    map: str
    key: bytes
    value: bytes | None


class ClearMap(Struct, tag=True, frozen=True):
    """Empty a map; the values of an array become zero. Answered by MapWritten."""

    request: int
    session: int
    map: str


class OpenCounter(Struct, tag=True, frozen=True):
    """Fill a perf array with a counter on every CPU. ``kind``: "software" or "hardware"; ``event``: see probes.KINDS.

    Answered by MapWritten.
    """

    request: int
    session: int
    map: str
    kind: str
    event: str


class FindSymbols(Struct, tag=True, frozen=True):
    """Find the names of code addresses: of process ``pid``, or of the kernel when it is 0. Answered by Symbols.

    ``session``: the one that has seen the process, and may remember it (Pasts); 0 for none.
    """

    request: int
    pid: int
    addresses: tuple[int, ...]
    session: int = 0


# --- tracer -> notebook -------------------------------------------------------------------------------------------


class Hello(Struct, tag=True, frozen=True):
    """The tracer is up: its own process id, the versions of bcc and the kernel, and its own: release.version() and
    build(). These fields never change: another version is recognised by them."""

    pid: int
    bcc: str
    kernel: str
    version: str = ""
    build: str = ""


class Loaded(Struct, tag=True, frozen=True):
    """The session is attached. ``warnings``: the compiler's, about the cell's own lines. ``notes``: on what is
    left as it is there."""

    request: int
    probes: tuple[ProbeInfo, ...]
    warnings: tuple[Diagnostic, ...]
    maps: tuple[MapInfo, ...] = ()
    notes: tuple[Diagnostic, ...] = ()


class Progress(Struct, tag=True, frozen=True):
    """How far a Load has come: so many of so many probes are attached. Sent now and then, where that takes long."""

    session: int
    done: int
    total: int


class SegmentAdded(Struct, tag=True, frozen=True):
    """A new segment of a session's output. Its memfd travels along. Later rows go there.

    An output's first segment comes before Loaded, and has the ``schema``. Each is acknowledged by Received.
    ``epoch_ns``: CLOCK_REALTIME minus CLOCK_MONOTONIC, to turn the
    records' stamps into times: one number for all outputs and sessions, until the machine was suspended.
    ``missed``: rows since the segment before that only others got, who follow the session: this one had not
    acknowledged what it had got.
    """

    session: int
    output: str
    schema: Schema | None
    layout: Layout
    epoch_ns: int
    missed: int = 0


class CountersAdded(Struct, tag=True, frozen=True):
    """The memory in which the session's programs count updates of maps that the kernel refuses: ``words`` 64-bit
    numbers. Its descriptor travels along. ``COUNTERS`` of them a map, from ``MapInfo.counters`` on, one an errno.

    Comes before Loaded. The programs write there while the session runs; nobody has to be asked.
    """

    session: int
    words: int


class CostsAdded(Struct, tag=True, frozen=True):
    """The memory in which the tracer keeps what a session costs. Its descriptor travels along. 64-bit numbers, updated
    a few times a second while the session runs, and a last time at its end.

    The first ``COSTS_HEAD`` are: how often they were written, odd while they are being written; nanoseconds that
    programs were timed; nanoseconds since the session started; nanoseconds of CPU that the tracer spent on its events;
    bytes of memory in the kernel; nanoseconds to add to the reader's CLOCK_MONOTONIC to get the host's, where that is
    another machine (COSTS_CLOCK); none yet. Then ``COSTS_EACH`` for each of ``programs``: runs, and their nanoseconds,
    while programs were timed; runs missed, -1 where that is not known; nanoseconds that the trap of its uprobe takes,
    0 where it has none. Comes before Loaded.
    """

    session: int
    programs: tuple[str, ...]


class Stopped(Struct, tag=True, frozen=True):
    """A session has stopped: none of its programs runs any more, and all rows are delivered.

    ``detaching``: how many of its attachments the kernel still has to let go of. ``maps``: those too large to be waited
    for; for each MapRead or MapLost follows. Where there are any of either, Detached is the last of the session.
    """

    request: int
    detaching: int = 0
    maps: tuple[str, ...] = ()


class Detached(Struct, tag=True, frozen=True):
    """The kernel has let go of all attachments of a stopped session, and its maps have been read."""

    session: int


class Ended(Struct, tag=True, frozen=True):
    """A session ended without having been asked to: what it had is delivered, its maps too, and none of its programs
    runs any more. ``reason``: one line. ``detaching``, ``maps``: as in Stopped.
    """

    session: int
    reason: str
    detaching: int = 0
    maps: tuple[str, ...] = ()


class Noted(Struct, tag=True, frozen=True):
    """A note on a running session for its user. ``output``: whose rows it concerns, "" for
    all. ``text``: one sentence."""

    session: int
    text: str
    output: str = ""


class MapRead(Struct, tag=True, frozen=True):
    """A map's entries, in a memfd that travels along: ``count`` keys end to end, then, on the next multiple of 8, the
    entries' values, ``cpus`` times ``value_stride`` bytes each.

    Also sent unasked (``request`` 0) for every map when its session ends, before Stopped or, for large ones, after it:
    a session's maps outlive it. ``taken``: the entries are no longer in the map.
    """

    request: int
    session: int
    map: str
    count: int
    taken: bool = False


class MapLost(Struct, tag=True, frozen=True):
    """Instead of MapRead when a session ends: why a map's entries could not be read, and how large it was."""

    session: int
    map: str
    message: str


class MapValue(Struct, tag=True, frozen=True):
    """A key's value, of a per-CPU map all CPUs' ``value_stride`` bytes apart; None where the map has no such key."""

    request: int
    value: bytes | None


class MapWritten(Struct, tag=True, frozen=True):
    """``found``: False where a key was to be deleted that the map does not have."""

    request: int
    found: bool = True


class Symbols(Struct, tag=True, frozen=True):
    """One entry an address, in the order asked: function name ("[unknown]" where there is none), and the module or
    file it is in, or ""."""

    request: int
    names: tuple[str, ...]
    modules: tuple[str, ...]


class ProbeNames(Struct, tag=True, frozen=True):
    """The matching probes, and how many more match."""

    request: int
    names: tuple[str, ...]
    more: int


class ProbesListed(Struct, tag=True, frozen=True):
    """The matching probes, and how many more match. One entry a probe: ``arguments`` as C declares them; ``returns`` a
    type, and what it means where that is known; ``notes`` such as why it cannot be attached, and what can instead."""

    request: int
    names: tuple[str, ...]
    arguments: tuple[tuple[str, ...], ...]
    returns: tuple[str, ...]
    notes: tuple[str, ...]
    more: int


class ProbesDescribed(Struct, tag=True, frozen=True):
    """The signatures of probes: in the order asked, those of a wildcard by name, each once."""

    request: int
    signatures: tuple[Signature, ...]


class Member(Struct, frozen=True):
    """A member of a struct or union. ``type``: as C writes it; "" of an enumeration's constant. ``offset``: in bytes
    from the struct's beginning; of a constant, its value. ``bits``: of a bit-field, else 0."""

    name: str
    type: str
    offset: int
    bits: int = 0


class TypeDescribed(Struct, tag=True, frozen=True):
    """A type of the kernel; ``text``, as C writes it, is "" where there is none of the name, or the path leads nowhere.

    ``meaning``: what a typedef stands for, else "". ``members``: of a struct or union, or of the one that it points to,
    those of members without a name among them; of an enumeration, its constants. ``more``: how many more there are.
    """

    request: int
    text: str = ""
    meaning: str = ""
    size: int = 0
    members: tuple[Member, ...] = ()
    more: int = 0


class NamesFound(Struct, tag=True, frozen=True):
    """Names of the kernel's types and constants, sorted, and how many more there are. ``kinds``: "struct", "union",
    "enum", "typedef" or "constant". ``values``: of a constant, else 0."""

    request: int
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    values: tuple[int, ...]
    more: int


class Pong(Struct, tag=True, frozen=True):
    """The tracer answers."""

    request: int


class Checks(Struct, tag=True, frozen=True):
    request: int
    rows: tuple[Check, ...]


class Failed(Struct, tag=True, frozen=True):
    """A request failed (``request`` 0: the tracer itself cannot start). ``error``: a class name of
    bpfnb.errors; ``detail``: its keyword arguments."""

    request: int
    error: str
    message: str
    detail: dict[str, object]

    @classmethod
    def of(cls, request: int, error: BpfnbError) -> Failed:
        """Return the message that carries an error to the other side."""
        detail = {key: value for key, value in vars(error).items() if key != "message"}
        return cls(request, type(error).__name__, error.message, detail)

    def exception(self) -> BpfnbError:
        """Return the error as it was on the other side."""
        detail: dict[str, Any] = dict(self.detail)
        if "diagnostics" in detail:
            detail["diagnostics"] = msgspec.convert(detail["diagnostics"], list[Diagnostic])
        kind: type[BpfnbError] = getattr(errors, self.error)
        return kind(self.message, **detail)


Request = (
    Load
    | Stop
    | Ping
    | FindProbes
    | ListProbes
    | DescribeProbes
    | DescribeType
    | FindNames
    | RunChecks
    | ReadMap
    | LookupMap
    | TakeMap
    | WriteMap
    | ClearMap
    | OpenCounter
    | FindSymbols
)
ToTracer = Request | Received
# What somebody who follows a session may ask, of that session. It is told all that answers no request, and Hello
# before; Loaded with the session's number; Ended also where the session was stopped.
FromFollower = Received | ReadMap | FindSymbols
FromTracer = (
    Hello
    | Loaded
    | SegmentAdded
    | CountersAdded
    | CostsAdded
    | Stopped
    | Detached
    | Ended
    | Noted
    | MapRead
    | MapLost
    | MapValue
    | MapWritten
    | Symbols
    | Pong
    | ProbeNames
    | ProbesListed
    | ProbesDescribed
    | TypeDescribed
    | NamesFound
    | Progress
    | Checks
    | Failed
)
