"""System calls and their numbers, on each architecture: one table for both processes (syscalls.txt)."""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

__all__ = ["MACHINES", "names", "numbers", "of_machine", "this_machine"]

SYSCALLS_FILE = Path(__file__).with_name("syscalls.txt")
MACHINES = ("x86_64", "aarch64")


class _Call(NamedTuple):
    name: str
    number: int
    entry: str


_machine: ContextVar[str] = ContextVar("machine", default="")


@contextmanager
def of_machine(machine: str) -> Iterator[None]:
    """Have ``this_machine`` be another one, in a ``with`` block and on this thread: that of a recording."""
    token = _machine.set(machine)
    try:
        yield
    finally:
        _machine.reset(token)


def this_machine() -> str:
    """Return the machine whose numbers are meant where none is named, as ``platform.machine()`` calls it."""
    return _machine.get() or platform.machine()


def names(machine: str | None = None) -> Mapping[int, str]:
    """Return {number: name} of a machine, by default this one; empty for one without a table.

    ``machine``: as ``platform.machine()`` calls it. Names are the calls' own, stat, not newstat.
    """
    return _names(machine or this_machine())


def numbers(machine: str | None = None) -> Mapping[str, int]:
    """Return {name: number} of a machine. Both names of a call are in it: stat, and its entry's, newstat."""
    return _numbers(machine or this_machine())


@functools.cache
def _names(machine: str) -> Mapping[int, str]:
    return MappingProxyType({call.number: call.name for call in _calls(machine)})


@functools.cache
def _numbers(machine: str) -> Mapping[str, int]:
    by_entry = {call.entry: call.number for call in _calls(machine)}
    return MappingProxyType(by_entry | {call.name: call.number for call in _calls(machine)})


@functools.cache
def _calls(machine: str) -> tuple[_Call, ...]:
    if machine not in MACHINES:
        return ()
    column = 1 + MACHINES.index(machine)
    rows = [line.split() for line in SYSCALLS_FILE.read_text().splitlines() if not line.startswith("#")]
    return tuple(_Call(row[0], int(row[column]), (row[3:] or row[:1])[0]) for row in rows if row[column] != "-")
