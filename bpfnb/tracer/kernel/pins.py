"""Maps that are pinned to a file (BPF_TABLE_PINNED): they outlive their session, and others use them.

bcc makes such a map and pins it where the file is not there yet. Where it is, bcc opens the map by its number, which
takes CAP_SYS_ADMIN (bpf(2), BPF_MAP_GET_FD_BY_ID): the compiling child of such a cell has it in force. Nobody removes
the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from bpfnb.errors import ProgramError
from bpfnb.language.program import MapDecl
from bpfnb.tracer.kernel import bpf, capabilities
from bpfnb.tracer.kernel.files import mounts

__all__ = ["opened", "pin_new", "prepare"]

_USUAL = Path("/sys/fs/bpf")


def prepare(maps: Sequence[MapDecl]) -> None:
    """Mount bpffs where maps are to be pinned; ProgramError where they cannot be."""
    for declared in maps:
        if declared.pinned:
            folder = Path(os.path.normpath(declared.pinned)).parent
            if folder.is_relative_to(_USUAL) and _file_system(_USUAL) != "bpf":
                capabilities.mount("bpf", _USUAL)
            if _file_system(folder) != "bpf":
                message = f"{declared.name} cannot be pinned at {declared.pinned}, which is in no bpf file system"
                there = f"there is one at {_USUAL}" if _file_system(_USUAL) == "bpf" else None
                raise ProgramError(message, line=declared.line, hint=there)


@contextmanager
def opened(maps: Sequence[MapDecl]) -> Iterator[dict[str, int]]:
    """Open what is pinned already where maps are to be pinned: path to descriptor."""
    found: dict[str, int] = {}
    try:
        for declared in maps:
            with suppress(FileNotFoundError):
                if declared.pinned and declared.pinned not in found:
                    found[declared.pinned] = bpf.open_pinned(declared.pinned)
        yield found
    finally:
        for fd in found.values():
            os.close(fd)


def pin_new(maps: Sequence[MapDecl], there: Mapping[str, int], tables: Mapping[str, int]) -> None:
    """Pin what was not there. ProgramError where that is refused."""
    done = set(there)
    for declared in maps:
        if declared.pinned and declared.pinned not in done and declared.name in tables:
            done.add(declared.pinned)  # two names of a cell's may be pinned to one file: they are one map
            try:
                Path(declared.pinned).parent.mkdir(mode=0o700, exist_ok=True)
                bpf.pin(tables[declared.name], declared.pinned)
            except OSError as error:
                message = f"{declared.name} cannot be pinned at {declared.pinned}: {error.strerror}"
                raise ProgramError(message, line=declared.line) from None


def _file_system(path: Path) -> str:
    """Return the type of the file system that a path is in, or would be."""
    found, depth = "", -1
    for place, kind in mounts():
        if path.is_relative_to(place) and len(Path(place).parts) >= depth:
            found, depth = kind, len(Path(place).parts)
    return found
