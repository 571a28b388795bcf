"""What /proc says of processes: who there is, a process's parent and children, and the BPF objects that it holds.

What /proc lists may be gone when it is read: a process, a thread, a descriptor. Read such listings here alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_KEYS = {"prog_id": "program", "map_id": "map", "link_id": "link"}


def everyone() -> set[int]:
    """All processes of this machine. Not by Path.glob: that raises where one ends meanwhile."""
    return {int(process.name) for process in Path("/proc").iterdir() if process.name.isdigit()}


def command(pid: int) -> str:
    """A process's command line, "" of one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def parent(pid: int) -> int:
    return int(_stat(pid)[1])


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits for somebody to read its exit status does not."""
    try:
        return _stat(pid)[0] != "Z"
    except OSError:
        return False


def children(pid: int | str = "self") -> set[int]:
    """The processes that one has started, zombies included; none of one that has ended."""
    with suppress(OSError):
        return {int(child) for text in threads(pid, "children").values() for child in text.split()}
    return set()


def threads(pid: int | str, file: str) -> dict[int, str]:
    """What /proc/PID/task has in a file of each thread of a process. FileNotFoundError where it has ended."""
    return {int(path.parent.name): text for path, text in _read(Path(f"/proc/{pid}/task"), file)}


def descriptors(pid: int | str) -> dict[int, str]:
    """What a process's descriptors lead to. FileNotFoundError where it has ended."""
    found = {}
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile, as the listing's own
            found[int(fd.name)] = str(fd.readlink())
    return found


def descriptions(pid: int | str) -> dict[int, str]:
    """What /proc/PID/fdinfo says of a process's descriptors. FileNotFoundError where it has ended."""
    return {int(path.name): text for path, text in _read(Path(f"/proc/{pid}/fdinfo"))}


def objects(pid: int) -> set[tuple[str, int]]:
    """The BPF programs, maps and links that a process holds: kind and id. FileNotFoundError where it has ended."""
    lines = [line.partition(":") for text in descriptions(pid).values() for line in text.splitlines()]
    return {(_KEYS[key], int(value)) for key, _, value in lines if key in _KEYS}


def _read(folder: Path, file: str = "") -> Iterator[tuple[Path, str]]:
    """The files of a folder of /proc, or this one of each folder in it, but for those that have gone meanwhile."""
    for path in folder.iterdir():
        with suppress(OSError):
            yield path / file, (path / file).read_text()


def _stat(pid: int) -> list[str]:
    """The fields behind the name, which may hold anything: state, parent ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
