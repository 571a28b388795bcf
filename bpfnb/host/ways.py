"""The ways from this process to a tracer, and which one is taken.

1. directly, where this process is root's or has the three capabilities ambient
2. through the socket that ``bpfnb setup`` made, for the members of its group
3. through the one program that ``bpfnb setup`` lets them run with sudo, where there is no systemd
4. with ``sudo -n`` and this very Python, which is for one's own machine: it makes who may do that root

For 2 and 3 what runs is root's own copy of bpfnb. Nothing in this process, its environment or its folder changes it.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct

from bpfnb import release
from bpfnb.errors import PrivilegeError, SetupError

__all__ = [
    "FOLDER",
    "RECORD",
    "SOCKETS",
    "Installed",
    "Record",
    "Way",
    "check",
    "choose",
    "connect",
    "installed",
    "launcher_of",
    "refused",
    "socket_of",
    "unit_of",
    "with_sudo",
]

FOLDER = Path("/opt/bpfnb")  # what ``bpfnb setup`` makes, a folder a version
RECORD = FOLDER / "installed.json"
SOCKETS = Path("/run/bpfnb")
_ROOT = Path("/")
_MAX_RECORD = 1 << 20

# One thread until privileges are dropped, since they are a thread's own: numpy's OpenBLAS would start more on import.
# The package itself is not executed: it imports the notebook's side, with pandas, which the tracer has no use for.
_BOOT = (
    "import importlib.util as i, os, runpy, sys; os.environ['OPENBLAS_NUM_THREADS'] = '1'; "
    "sys.path.insert(0, sys.argv.pop(1)); sys.modules['bpfnb'] = i.module_from_spec(i.find_spec('bpfnb')); "
    "runpy.run_module('bpfnb.tracer', run_name='__main__')"
)
_NEEDED = (2, 38, 39)  # CAP_DAC_READ_SEARCH, CAP_PERFMON, CAP_BPF


class Way(NamedTuple):
    """``command``: the tracer's, with the notebook at its standard input; () where ``socket`` is its path instead.

    ``own``: whether it is the bpfnb that runs here; else root's copy of it.
    """

    kind: str
    command: tuple[str, ...] = ()
    socket: str = ""

    @property
    def own(self) -> bool:
        return self.kind in ("direct", "sudo")

    def __str__(self) -> str:
        if self.kind == "direct":
            return "started directly"
        if self.kind == "sudo":
            return f"sudo -n, which runs this Python ({sys.executable}) as root"
        return self.socket if self.socket else f"sudo -n {self.command[-1]}"


class Installed(Struct):
    """One version that ``bpfnb setup`` installed. ``build``: release.build(), "" while it is being made. ``lock``: a
    digest of its packages. ``python``: the version of /usr/bin/python3. ``by``: "systemd" or "sudo". ``files``: what
    was made outside of its folder."""

    group: str
    by: str
    build: str = ""
    lock: str = ""
    python: str = ""
    files: list[str] = []


class Record(Struct):
    """What ``bpfnb setup`` made on this machine. ``groups``: those that were not there before."""

    groups: list[str] = []
    versions: dict[str, Installed] = {}


def installed(root: Path = _ROOT) -> Record:
    """Return what is installed here; nothing where that cannot be read."""
    record = _below(root, RECORD)
    with suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError), record.open("rb") as file:
        return msgspec.json.decode(file.read(_MAX_RECORD), type=Record)
    return Record()


def unit_of(version: str) -> str:
    """Return the name of the systemd units: letters, digits, ``.``, ``-`` and ``_``."""
    return "bpfnb-" + re.sub(r"[^A-Za-z0-9.-]", "_", version)


def socket_of(version: str, root: Path = _ROOT) -> Path:
    return _below(root, SOCKETS) / f"{unit_of(version)}.sock"


def launcher_of(version: str, root: Path = _ROOT) -> Path:
    return _below(root, FOLDER) / version / "bin" / "bpfnb-tracer"


def choose(root: Path = _ROOT) -> Way:
    """Return how to reach a tracer from here. PrivilegeError or SetupError where there is no way.

    ``root``: the folder whose /proc, /run and /opt are looked at.
    """
    if sys.platform != "linux":
        raise SetupError("tracing needs Linux; recordings can be read here: bpfnb.open(PATH)")
    if os.geteuid() == 0 or _inherits_capabilities(root):
        return Way("direct", _this_python())
    version = release.version()
    here, path = installed(root).versions.get(version), socket_of(version, root)
    member = here is not None and _is_member(here.group)
    if (here and member and here.by == "systemd") or os.access(path, os.R_OK | os.W_OK, effective_ids=True):
        return Way("socket", socket=str(path))
    if here and member and _has_sudo():
        return Way("launcher", ("sudo", "-n", "--", str(launcher_of(version, root))))
    if _has_sudo():
        return Way("sudo", with_sudo())
    raise refused(root)


def connect(way: Way) -> socket.socket:
    """Connect to the socket of a way that has one. SetupError where nobody listens."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(way.socket)
    except OSError as error:
        sock.close()
        unit = unit_of(release.version())
        raise SetupError(
            f"there is a socket for tracing, {way.socket}, but it does not answer: {error.strerror}",
            hint=f"an administrator runs: systemctl restart {unit}.socket",
        ) from None
    return sock


def check(way: Way, version: str, build: str) -> SetupError | None:
    """Return the error where the tracer at the other end is of another bpfnb than this one."""
    ours = release.version()
    if way.own or (version, build) == (ours, release.build()):
        return None
    what = f"of bpfnb {version or 'before 0.1.0'}, another version" if version != ours else "another build"
    here = installed().versions.get(version)
    return SetupError(
        f"the tracer installed on this machine ({way}) is {what} than this notebook's bpfnb {ours} in {_package()}: "
        + _ask_for_setup(here.group if here else "bpfnb")
    )


def refused(root: Path = _ROOT) -> PrivilegeError | SetupError:
    """Return the error for a user who may not trace: one line that says how to get there."""
    version, user = release.version(), _name()
    record = installed(root)
    if here := record.versions.get(version):
        return PrivilegeError(
            f"user {user} may not trace; members of the group {here.group} may: {_join(user, here.group)}"
        )
    for other, there in record.versions.items():
        if _is_member(there.group):
            return SetupError(
                f"bpfnb {other} is installed for the group {there.group}, this notebook's is bpfnb {version}: "
                + _ask_for_setup(there.group)
            )
    return PrivilegeError(
        f"user {user} may not trace; members of the group bpfnb may once {_ask_for_setup('bpfnb')}",
        hint="on your own machine, start Jupyter as root or allow this user `sudo -n`: a NOPASSWD rule for this Python",
    )


def with_sudo() -> tuple[str, ...]:
    """Return the command that runs the tracer of this Python and bpfnb as root."""
    return ("sudo", "-n", "--", *_this_python())


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def _this_python() -> tuple[str, ...]:
    # The tracer runs the very bpfnb that is imported here, in isolated mode: no user site, no current directory.
    return (sys.executable, "-I", "-c", _BOOT, str(_package().parent))


def _package() -> Path:
    return Path(__file__).parents[1]


def _ask_for_setup(group: str) -> str:
    command = Path(sys.prefix, "bin", "bpfnb")
    program = str(command) if command.exists() else f"{sys.executable} -m bpfnb"
    return f"an administrator runs: sudo {shlex.quote(program)} setup --group {group}"


# grp and pwd are imported where they are used: recordings are read on systems that have neither.


def _join(user: str, group: str) -> str:
    import grp

    with suppress(KeyError):
        if user in grp.getgrnam(group).gr_mem:
            return f"{user} is one since after this session began, so log in anew and start Jupyter again"
    return f"an administrator runs: sudo usermod -aG {group} {user}; then log in anew"


def _is_member(group: str) -> bool:
    import grp

    with suppress(KeyError):
        return grp.getgrnam(group).gr_gid in (os.getegid(), *os.getgroups())
    return False


def _name() -> str:
    import pwd

    with suppress(KeyError):
        return pwd.getpwuid(os.geteuid()).pw_name
    return f"user {os.geteuid()}"


def _has_sudo() -> bool:
    return any(os.access(Path(folder, "sudo"), os.X_OK) for folder in os.get_exec_path())


def _inherits_capabilities(root: Path) -> bool:
    for line in (root / "proc/self/status").read_text().splitlines():
        if line.startswith("CapAmb:"):
            mask = int(line.split()[1], 16)
            return all(mask >> capability & 1 for capability in _NEEDED)
    return False
