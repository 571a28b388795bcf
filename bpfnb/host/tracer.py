"""The interface between sessions and what runs their programs: a ``Tracer``, and the ``Listener`` it reports to.

A tracer on this machine (``local``) and the fake one of ``bpfnb.testing`` implement it; remote and recorded tracers
would be further implementations. Sessions, the doctor and the magics use nothing else.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Protocol

from bpfnb.errors import TracerDied
from bpfnb.language.program import Program
from bpfnb.language.signature import Signature
from bpfnb.protocol.messages import (
    Check,
    CostsAdded,
    CountersAdded,
    Ended,
    Hello,
    Limits,
    Loaded,
    MapLost,
    MapRead,
    NamesFound,
    Noted,
    ProbesListed,
    SegmentAdded,
    Stopped,
    TypeDescribed,
)

__all__ = ["Listener", "Tracer"]


class Listener:
    """Receives what a tracer reports about a session. Called on one thread; must neither wait nor raise.

    Descriptors belong to the tracer, which closes them after the call.
    """

    def on_loaded(self, message: Loaded) -> None:
        """The session runs. Comes after its first segments, counters and costs."""

    def on_segment(self, message: SegmentAdded, fd: int) -> None:
        """An output continues in another segment."""

    def on_counters(self, message: CountersAdded, fd: int) -> None:
        """The memory where refused updates of maps are counted."""

    def on_costs(self, message: CostsAdded, fd: int) -> None:
        """The memory with the costs of programs."""

    def on_map(self, message: MapRead, data: bytes) -> None:
        """A map as it was at the session's end."""

    def on_map_lost(self, message: MapLost) -> None:
        """Why a map could not be read at the session's end."""

    def on_ended(self, message: Ended) -> None:
        """The session ended without being asked to."""

    def on_note(self, message: Noted) -> None:
        """Something happened that the session's user should know of."""

    def on_detached(self) -> None:
        """The kernel has detached everything, and nothing else follows."""

    def on_death(self, error: TracerDied) -> None:
        """The tracer is gone, and nothing else follows."""


class Tracer(Protocol):
    """Runs programs, and answers questions about them and about its machine.

    ``died`` is set, and stays set, once the tracer is gone. ``reached`` says in words how it was reached.

    Any thread may call any method. Each raises the BpfnbError that the tracer answers with, or what kept the tracer
    from coming up, or TracerDied. Sessions are named by the numbers that ``load`` returns.
    """

    died: TracerDied | None

    @property
    def reached(self) -> str: ...

    def hello(self) -> Hello:
        """Wait until the tracer is up."""

    def ping(self) -> None:
        """Wait until the tracer answers. Then all that it had sent before has been received."""

    def load(
        self, program: Program, listener: Listener, limits: Limits, keep: int, follower: socket.socket | None = None
    ) -> int:
        """Run a program and return the number of its session. ``listener`` gets its reports from now on.

        ``keep``: bytes of rows that the session may keep. ``follower``: one end of a UNIX socketpair, which stays the
        caller's to close. Whoever has the other end gets the reports too (``Client``, with ``follow``): all rows, also
        those that this process does not take in time. UnsupportedError from a tracer that has none.
        """

    def stop(self, session: int) -> Stopped:
        """Stop a session. On return its programs are detached and all its reports have been received.

        ``on_detached`` follows where the kernel has still to let go of attachments, or large maps are still to be read.
        """

    def read_map(self, session: int, name: str) -> tuple[int, bytes]:
        """Return how many entries a map has, and their bytes, as MapRead lays them out."""

    def look_up(self, session: int, name: str, key: bytes) -> bytes | None:
        """Return a key's value, as MapValue has it."""

    def take_map(self, session: int, name: str, most: int) -> tuple[int, bytes]:
        """Take entries out of a map, as TakeMap says. Nobody has them but the caller."""

    def write_map(self, session: int, name: str, key: bytes, value: bytes | None) -> bool:
        """Set an entry of a map, or delete it where ``value`` is None; False where there was none to delete."""

    def clear_map(self, session: int, name: str) -> None:
        """Delete all entries of a map; the values of an array become zero."""

    def open_counter(self, session: int, name: str, kind: str, event: str) -> None:
        """Fill a perf array with a counter on every CPU."""

    def find_symbols(
        self, pid: int, addresses: Sequence[int], session: int = 0
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the names of code addresses of a process, and the modules or files they are in. 0 is the kernel.

        ``session``: the one that followed the process; the tracer then knows it also once it has ended.
        """

    def find_probes(self, pattern: str, limit: int) -> tuple[tuple[str, ...], int]:
        """Return up to ``limit`` probes whose names match a shell pattern, and how many more there are."""

    def list_probes(self, pattern: str, limit: int) -> ProbesListed:
        """Return up to ``limit`` probes whose names match a shell pattern, with what is known of each."""

    def describe(self, probes: Sequence[str], paths: Sequence[tuple[str, ...]], limit: int) -> tuple[Signature, ...]:
        """Return the signatures of probes as -a takes them, wildcards too, in the order given; of a wildcard by name.

        ``paths``: of members, such as ("sk", "__sk_common", "skc_dport"), looked up in each probe's arguments: see
        Signature. AttachError, with near names, for what matches nothing; ProgramError for more than ``limit`` probes.
        """

    def describe_type(self, name: str, path: Sequence[str], limit: int) -> TypeDescribed:
        """Return what the kernel knows of a type, or of what a path of members leads to: see DescribeType."""

    def find_names(self, start: str, limit: int) -> NamesFound:
        """Return up to ``limit`` of the kernel's types and constants whose names begin so."""

    def run_checks(self) -> tuple[Check, ...]:
        """Return the doctor's rows about the tracer's machine."""

    def close(self) -> None:
        """End the tracer, and with it every session it runs. Idempotent."""

    def forget(self) -> None:
        """Drop the connection without a word, in a forked child: the tracer is the parent's."""
