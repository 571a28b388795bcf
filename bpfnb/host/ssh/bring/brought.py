"""On the host: run far, and its tracer, from the parts that were brought.

    ssh HOST exec python3 -c '...; run(far, ...)'      this user: locks the parts
      far  ->  [sudo -n] python3 -c TRACER parts       root: checks the parts' digests, then imports from them

Whoever may run Python with ``sudo -n`` may do anything there; the check finds what is damaged, not an attack by that
user. An installed tracer (``bpfnb setup``) is root's own copy, and nothing of these parts runs as root then.
"""

from __future__ import annotations

import fcntl
import inspect
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bpfnb.host import ways
from bpfnb.host.ssh.bring import there
from bpfnb.host.ways import Way

__all__ = ["Parts", "far_code", "hold", "tracer_code", "way_of"]

Parts = Sequence[tuple[str, str]]  # folders, whole paths, and their digests

# Runs there first, as the user who logs in. {parts}: as a literal.
_FAR = """\
import os, runpy, sys
os.environ["OPENBLAS_NUM_THREADS"] = "1"
parts, sudo = {parts!r}, {sudo!r}
sys.path[:0] = [folder for folder, _ in parts]
from bpfnb.host.ssh.bring import brought
held = brought.hold(parts)
sys.argv[:] = ["far"]
from bpfnb.host.ssh import far
sys.exit(far.main(brought.way_of(parts, sudo)))
"""

# Runs as root. One thread until privileges are dropped: see ways.py.
_CHECKED = """\
import hashlib, json, os, runpy, stat, sys
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"


{digests}

parts = json.loads(sys.argv.pop(1))
for folder, digest in parts:
    if digests(Path(folder))[0] != digest:
        sys.exit(f"bpfnb: {{folder}} has changed since it was brought: connect again, and it is brought anew")
sys.path[:0] = [folder for folder, _ in parts]
runpy.run_module({module!r}, run_name="__main__")
"""


def far_code(parts: Parts, sudo: bool) -> str:
    """Return the Python that runs far."""
    return _FAR.format(parts=list(parts), sudo=sudo)


def tracer_code(module: str = "bpfnb.tracer") -> str:
    """Return the Python that checks the parts, which are its argument, and runs a module of them."""
    return _CHECKED.format(digests=inspect.getsource(there.digests), module=module)


def hold(parts: Parts) -> list[int]:
    """Lock the parts, so that nobody cleans them away, and note that they are used; return descriptors to keep."""
    held = []
    for folder, _ in parts:
        fd = os.open(Path(folder, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_SH)
        os.utime(fd)
        held.append(fd)
    return held


def way_of(parts: Parts, sudo: bool) -> Way:
    """Return how a tracer is reached here: as ways.choose says, but from the parts, which are checked by who runs them.

    PrivilegeError or SetupError where there is no way; with ``sudo`` False also where only sudo would be one.
    """
    way = ways.choose()
    if not way.own:
        return way
    if way.kind == "sudo" and not sudo:
        raise ways.refused()
    python = (sys.executable, "-I", "-B", "-c", tracer_code(), json.dumps(list(parts)))
    return Way(way.kind, (*(("sudo", "-n", "--") if way.kind == "sudo" else ()), *python))
