"""Arrays whose entries are the kernel's own objects: programs to call, cgroups to compare with, counters to read.

    set_program(fd, index, function, loaded)    a function of the cell, for tail calls
    program_at(fd, index, loaded)               which one is there
    set_cgroup(fd, index, path)                 a cgroup (v2), by its directory
    open_counters(fd, kind, event)              a perf event on every CPU
    empty(fd, index)                            nothing is there any more

bcc's names for them: BPF_PROG_ARRAY, BPF_CGROUP_ARRAY, BPF_PERF_ARRAY.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from bpfnb.errors import ProgramError, UnsupportedError, near_or_all
from bpfnb.language import probes
from bpfnb.tracer.kernel import bpf, capabilities
from bpfnb.tracer.kernel.cpus import online_cpus
from bpfnb.tracer.kernel.files import mounts
from bpfnb.tracer.link.link import close_all
from bpfnb.tracer.link.perf_event import open_counter
from bpfnb.tracer.loaded import Loaded

__all__ = ["KINDS", "empty", "open_counters", "program_at", "set_cgroup", "set_program"]

KINDS = ("prog_array", "cgroup_array")
_INDEX = struct.Struct("=I")


def set_program(fd: int, index: bytes, function: str, loaded: Loaded) -> None:
    """Put a function into a program array. ProgramError when there is no such function, or none that the array takes;
    what the verifier said of it, where it refused."""
    _require_index(index)
    found = [program for spec, program in loaded.programs.items() if spec.function == function]
    if not found:
        names = dict.fromkeys(spec.function for spec in loaded.programs)
        unknown = ProgramError(f"the cell has no function {function!r} to call{near_or_all(function, names)}")
        raise loaded.rejected.get(function) or unknown
    with _explained(fd, f"{function} is a program of another type than those that would call it"):
        _put_first(fd, index, found)


def _put_first(fd: int, index: bytes, programs: list[int]) -> None:
    """Put the first of some programs that the array takes: those that call are of one type, and it knows which."""
    for program in programs:
        try:
            bpf.update(fd, index, _INDEX.pack(program))
            return
        except OSError as error:
            if error.errno != errno.EINVAL or program == programs[-1]:
                raise


def program_at(fd: int, index: bytes, loaded: Loaded) -> str | None:
    """Return the function that an entry of a program array calls; None where it is empty."""
    _require_index(index)
    with _explained(fd, "its programs cannot be told"):
        data = bpf.lookup(fd, index, _INDEX.size)  # the kernel answers with the program's number
    if data is None:
        return None
    number = int(_INDEX.unpack(data)[0])
    names = {bpf.program_id(program): spec.function for spec, program in loaded.programs.items()}
    return names.get(number, f"program {number}")


def set_cgroup(fd: int, index: bytes, path: str) -> None:
    """Put a cgroup into an array, by the path of its directory, from the root. ProgramError when it is none."""
    _require_index(index)
    if not path.startswith("/"):
        raise ProgramError(f"a cgroup is a directory, from the root, not {path!r}", hint=_where_cgroups_are())
    try:
        cgroup = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ProgramError(f"{path} cannot be opened: {reason}", hint=_where_cgroups_are()) from None
    try:
        with _explained(fd, f"{path} is no cgroup of the unified hierarchy (cgroup2)"):
            bpf.update(fd, index, _INDEX.pack(cgroup))
    finally:
        os.close(cgroup)


def _where_cgroups_are() -> str | None:
    places = [place for place, kind in mounts() if kind == "cgroup2"]
    return f"they are below {places[0]}" if places else None


def empty(fd: int, index: bytes) -> bool:
    """Take out what is there; False where nothing was."""
    _require_index(index)
    with _explained(fd, "it has no such entry"):
        return bpf.delete(fd, index)


def open_counters(fd: int, kind: str, event: str) -> list[int]:
    """Open a counter on every CPU that is online, and put each into its CPU's entry: the descriptors that hold them,
    which are the caller's.

    ``kind``, ``event``: as probes.KINDS has them. UnsupportedError where the machine has no such counter.
    """
    if kind not in probes.KINDS or event not in probes.KINDS[kind].events:
        raise ProgramError(f"there is no counter {kind}:{event}")
    cpus, room = sorted(online_cpus()), bpf.map_shape(fd).max_entries
    if cpus[-1] >= room:
        raise ProgramError(f"the map has room for {room:,} entries, and this machine's CPUs go up to {cpus[-1]}")
    opened: list[int] = []
    try:
        for cpu in cpus:
            opened.append(_open(kind, event, cpu))
            with _explained(fd, "programs may not read this counter"):
                bpf.update(fd, _INDEX.pack(cpu), _INDEX.pack(opened[-1]))
    except BaseException:
        close_all(opened)
        raise
    return opened


def _open(kind: str, event: str, cpu: int) -> int:
    try:
        with capabilities.with_sys_admin():
            return open_counter(kind, event, cpu=cpu)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.ENODEV):
            raise UnsupportedError(f"this machine has no counter {kind}:{event} ({error.strerror})") from None
        raise ProgramError(f"{kind}:{event} cannot be opened: {error.strerror}") from None


def _require_index(index: bytes) -> None:
    if len(index) != _INDEX.size:
        raise ProgramError(f"an index has {_INDEX.size} bytes, not {len(index)}")


@contextmanager
def _explained(fd: int, rejected: str) -> Iterator[None]:
    """Raise the kernel's errors as ProgramError; ``rejected``: what EINVAL and EBADF mean."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.E2BIG:
            room = bpf.map_shape(fd).max_entries
            reason = f"it has room for {room:,} {'entry' if room == 1 else 'entries'}"
        else:
            reason = rejected if error.errno in (errno.EINVAL, errno.EBADF) else error.strerror or str(error)
        raise ProgramError(f"the map cannot be changed: {reason}") from None
