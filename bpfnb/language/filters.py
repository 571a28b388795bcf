"""Filters: which tasks a session's programs are about, beside what the programs themselves test."""

from __future__ import annotations

import msgspec

__all__ = ["Filters"]


class Filters(msgspec.Struct, frozen=True):
    """What must hold for the current task, all of it; the kernel tests it before a program's own work.

    ``pid``: its process, ``follow``: its process or one that this has started, at any depth; both as the notebook's pid
    namespace numbers them; 0 for any. ``held``: the process of ``follow`` waits to be let go, and counts from then on.
    ``comm``: the thread's name, or what it begins with and "*"; "" for any. ``cgroup``: the path of a cgroup (v2) that
    it is in, or below; "" for any. ``uid``: its real user's number, as the host has it; None for any.
    """

    pid: int = 0
    follow: int = 0
    held: bool = False
    comm: str = ""
    cgroup: str = ""
    uid: int | None = None

    def __bool__(self) -> bool:
        return self != Filters()

    def __str__(self) -> str:
        """Return them as a card shows them: "pid 42, comm nginx*"."""
        uid = "" if self.uid is None else str(self.uid)
        given = {"pid": self.pid, "follow": self.follow, "comm": self.comm, "cgroup": self.cgroup, "uid": uid}
        return ", ".join(f"{name} {value}" for name, value in given.items() if value)
