"""What /proc says of a process: its parent and children, and the BPF objects that it holds."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_KEYS = {"prog_id": "program", "map_id": "map", "link_id": "link"}


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
    found: set[int] = set()
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):  # a thread that has just ended
                found |= {int(child) for child in (task / "children").read_text().split()}
    return found


def objects(pid: int) -> set[tuple[str, int]]:
    """The BPF programs, maps and links that a process holds: kind and id. FileNotFoundError where it has ended."""
    found = set()
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(OSError):  # closed meanwhile
            for line in info.read_text().splitlines():
                key, _, value = line.partition(":")
                if key in _KEYS:
                    found.add((_KEYS[key], int(value)))
    return found


def _stat(pid: int) -> list[str]:
    """The fields behind the name, which may hold anything: state, parent ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
