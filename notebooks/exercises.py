"""The exercises of the tutorials, checked: what your session saw, against a workload that keeps count.

    exercises.check("ends", globals())

An exercise asks for a session of its own name. The check starts a workload, looks at what the session has of it, stops
the session, and says what is right or missing. It never looks at how the answer was written.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import workload

import bpfnb


@dataclass
class Verdict:
    """What a check came to: ``if exercises.check(...)`` is whether it is right."""

    right: bool
    text: str

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return f"{'Right' if self.right else 'Not yet'}: {self.text}"


class _Wrong(Exception):
    """Its text says what is missing."""


def check(name: str, names: Mapping[str, Any]) -> Verdict:
    """Check the session of this name, which has to be running. It is stopped then."""
    if name not in _CHECKS:
        raise ValueError(f"there is no exercise {name!r}; there are {', '.join(_CHECKS)}")
    session = names.get(name)
    if not isinstance(session, bpfnb.Session):
        return Verdict(False, f"there is no session called {name}. Write it in the cell above, and run it")
    if session.state != "running":
        return Verdict(False, f"{name} is {session.state}. Run the cell above again")
    try:
        return Verdict(True, _CHECKS[name](session))
    except (_Wrong, bpfnb.BpfnbError) as error:
        return Verdict(False, str(error))
    finally:
        session.stop()


def _expect(holds: object, text: str) -> None:
    if not holds:
        raise _Wrong(text)


def _column(session: bpfnb.Session, *names: str) -> pd.DataFrame:
    for name in names:
        _expect(name in session.df, f"{session.name}.df has no column {name}: it has {', '.join(session.df)}")
    return session.df


def _map(session: bpfnb.Session) -> pd.DataFrame:
    """Return the only map's entries."""
    _expect(len(session.maps) == 1, f"{session.name} has {len(session.maps)} maps; one is asked for")
    return next(iter(session.maps.values())).df


def _counted(session: bpfnb.Session) -> pd.DataFrame:
    """Return a one-liner's counts, or the entries of a cell's only map."""
    try:
        frame = session.df
    except bpfnb.ProgramError:  # C whose results are in maps
        frame = _map(session)
    return frame if "count" in frame else _map(session)


# --- the checks: each returns what is right -----------------------------------------------------------------------


def _caller(session: bpfnb.Session) -> str:
    made = workload.start(forks=5).result()["processes"]
    session.stop()
    rows = session.df[session.df.pid.isin(made)]
    _expect(len(rows) == 5, f"5 processes were made, and {len(rows)} lines are there of who made them")
    wrong = [row.msg for row in rows.itertuples() if str(row.pid) not in row.msg.split()]
    _expect(not wrong, f"process {rows.pid.iloc[0]} made one, and the line says {wrong and wrong[0]!r}")
    return "5 processes were made, and each line has the number of who made it"


def _ends(session: bpfnb.Session) -> str:
    at = [probe.name for probe in session.probes]
    _expect(at == ["sysret:sync"], f"it is attached to {', '.join(at)}: asked for is the return of sync alone")
    pid = workload.start(syncs=6).result()["sync_pid"]
    session.stop()
    found = (session.df.pid == pid).sum()
    _expect(found == 6, f"sync returned 6 times, and {found} lines are there")
    return "sync returned 6 times, and 6 lines are there"


def _made(session: bpfnb.Session) -> str:
    done = workload.start(forks=3, vforks=3, spawns=3, subshells=4).result()
    session.stop()
    found = session.df.pid.isin(done["processes"]).sum()
    _expect(
        found == done["created"], f"{done['created']} processes were made in four ways, and {found} lines are there"
    )
    return f"{found} processes were made in four ways, and all are there"


def _quick(session: bpfnb.Session) -> str:
    begun = time.monotonic()
    pid = workload.start(syncs=5, seconds=0.5).result()["sync_pid"]
    most = 1000 * (time.monotonic() - begun)
    session.stop()
    rows = _column(session, "pid", "ms")
    ours = rows[rows.pid == pid].ms.astype("int64")
    _expect(
        len(ours) in (4, 5), f"5 syncs followed one another quickly, so 4 or 5 rows are due, and {len(ours)} are there"
    )
    last = ours.tail(4)
    _expect(last.between(0, most).all(), f"the milliseconds cannot be: {last.tolist()}; all took {most:.0f}")
    # Not more: others may sync in between. In microseconds they would be too many, in seconds none.
    _expect(last.max() >= 60, f"the syncs were 100 ms apart, and the rows say {', '.join(map(str, last))}")
    return f"the last four syncs came {', '.join(map(str, last))} ms after the one before"


def _sync_count(session: bpfnb.Session) -> str:
    before = _map(session).value.sum()
    workload.start(syncs=7).result()
    after = _map(session)
    _expect(len(after) == 1, f"the map has {len(after)} keys, and one is enough for a single count")
    found = after.value.sum() - before
    _expect(found >= 7, f"sync was called 7 times, and the count grew by {found}")
    return f"sync was called 7 times here, and the count grew by {found}"


def _strings(session: bpfnb.Session) -> str:
    text = f"exercise {os.getpid()}"
    code = (
        "import ctypes, pathlib, sys\n"
        "pathlib.Path('/proc/self/comm').write_text('measurer')\n"
        "strlen = ctypes.CDLL(None).strlen\n"
        "for _ in range(9): strlen(sys.argv[1].encode())\n"
    )
    _python(code, text)
    frame = _counted(session)
    count = "count" if "count" in frame else "value"
    keys = frame.drop(columns=count).astype(str)
    found = frame.loc[(keys == text).any(axis=1), count].sum()
    # Python itself may ask for the length of its arguments, too.
    _expect(found >= 9, f"strlen was called 9 times with {text!r}, and {found} are counted")
    return f"strlen was called with {text!r} 9 times, and {found} are counted"


def _switches(session: bpfnb.Session) -> str:
    first, second, times = _ping_pong(50)
    frame = _counted(session)
    count = "count" if "count" in frame else "value"
    pairs = frame.drop(columns=count)
    _expect(pairs.shape[1] >= 2, "a row needs two columns: whom a CPU left, and whom it went to")
    ours = frame[(pairs == first).any(axis=1) & (pairs == second).any(axis=1)]
    found = ours[count].sum()
    _expect(found >= times, f"{first} and {second} took turns {times} times on a CPU, and {found} switches are counted")
    return f"{first} and {second} took turns {times} times on a CPU, and {found} switches between them are counted"


def _ping_pong(times: int) -> tuple[int, int, int]:
    """Have two processes on one CPU wait for each other; return both, and how often one gave way to the other."""
    code = (
        "import os, sys\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "a, b = os.pipe(), os.pipe()\n"
        "pid = os.fork()\n"
        "near, far = (a[0], b[1]) if pid else (b[0], a[1])\n"
        f"for _ in range({times}):\n"
        "    if pid: os.write(far, b'x'); os.read(near, 1)\n"
        "    else: os.read(near, 1); os.write(far, b'x')\n"
        "if not pid: os._exit(0)\n"
        "os.waitpid(pid, 0)\n"
        "print(os.getpid(), pid)\n"
    )
    first, second = map(int, _python(code).split())
    return first, second, times


def _python(code: str, *arguments: str) -> str:
    """Return what a Python process prints."""
    words = [sys.executable, "-I", "-c", code, *arguments]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def _setuids(session: bpfnb.Session) -> str:
    code = "import ctypes, os; c = ctypes.CDLL(None); [c.setuid(os.getuid()) for _ in range(4)]; print(os.getpid())"
    pid = int(_python(code))
    session.stop()
    rows = _column(session, "pid", "uid")
    ours = rows[rows.pid == pid]
    _expect(len(ours) == 4, f"setuid was called 4 times, and {len(ours)} rows are there")
    _expect(
        (ours.uid == os.getuid()).all(), f"it was called for user {os.getuid()}, and the rows have {ours.uid.tolist()}"
    )
    return f"setuid was called 4 times, for user {os.getuid()}, and 4 rows say so"


def _misses(session: bpfnb.Session) -> str:
    workload.start(searches=5).result()
    rows = _column(session, "errno", "count")
    missing = rows.loc[rows.errno.astype(str).isin(("ENOENT", "2")), "count"].sum()
    there = rows["count"].sum() - missing
    _expect(missing >= 15, f"15 files were looked for in vain, and {missing} are counted")
    _expect(
        missing == 15, f"15 files were looked for in vain by searcher, and {missing} are counted: somebody else's, too"
    )
    _expect(there == 5, f"5 files were found, and {there} are counted")
    return "15 files were looked for in vain, 5 were found, and both are counted"


def _touched(session: bpfnb.Session) -> str:
    workload.start(pages=400).result()
    rows = _column(session, "comm", "count")
    found = rows.loc[rows.comm == "toucher", "count"].sum()
    _expect(found >= 400, f"toucher wrote to 400 fresh pages, and {found} stacks of it are counted")
    return f"toucher wrote to 400 fresh pages, and {found} stacks of it are counted"


_CHECKS: dict[str, Callable[[bpfnb.Session], str]] = {
    "caller": _caller,
    "ends": _ends,
    "made": _made,
    "setuids": _setuids,
    "touched": _touched,
    "misses": _misses,
    "quick": _quick,
    "sync_count": _sync_count,
    "strings": _strings,
    "switches": _switches,
}
