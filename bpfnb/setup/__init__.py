"""``bpfnb setup``: let the members of a group trace without becoming root.

Root gets its own copy of the tracer, in /opt/bpfnb/VERSION, which nobody else can change. systemd starts it for every
connection to a socket that only root and the group may connect to. Where there is no systemd, sudo starts it.
Everything is recorded (ways.Record) before it is made. So ``undo`` removes exactly that, even if ``install`` was
interrupted.
"""

from __future__ import annotations

import grp
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from bpfnb import release
from bpfnb.errors import PrivilegeError, SetupError
from bpfnb.host import ways
from bpfnb.host.ways import Installed, Record
from bpfnb.setup import environment, texts

__all__ = ["Step", "install", "run", "undo"]

_BOOTED = Path("/run/systemd/system")  # exists where systemd is init: sd_booted(3)
_UNITS = Path("/etc/systemd/system")
_RULES = Path("/etc/sudoers.d")
_MODES = {_UNITS: 0o644, _RULES: 0o440}
_END_TIMEOUT = 10  # seconds for tracers to end


class Step(NamedTuple):
    """Something to do: a description of one or more lines, and a function that does it."""

    words: str
    do: Callable[[], None]


def run(steps: list[Step], say: Callable[[str], None], *, dry: bool = False) -> None:
    """Do the steps, and describe each with ``say`` before it is done. With ``dry`` only describe them."""
    if not dry and os.geteuid() != 0:
        raise PrivilegeError("this needs root: run it with sudo (--dry-run shows what it would do)")
    os.umask(0o022)
    for step in steps:
        say(step.words)
        if not dry:
            step.do()


def install(group: str, *, by: str = "", wheels: Path | None = None) -> list[Step]:
    """Return the steps that are still needed to install; [] where nothing is. Raise SetupError where it is impossible.

    ``by``: "systemd" or "sudo"; "" for the one that is there. ``wheels``: a folder with the packages' wheels; without
    it they are downloaded.
    """
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", group):
        raise SetupError(f"{group!r} is not a name for a group: use small letters, digits, - and _")
    if wheels and not any(wheels.glob("*.whl")):
        raise SetupError(f"there are no wheels in {wheels}")
    by = by or _manager()
    version, python = release.version(), environment.python_version()
    record = ways.installed()
    folder = ways.FOLDER / version
    wanted = Installed(
        group, by, release.build(), environment.lock_digest(), python, sorted(map(str, _files(by, group)))
    )
    before = record.versions.get(version)
    if not before and ways.FOLDER.exists() and (folder.exists() or not ways.RECORD.exists()):
        raise SetupError(f"{folder if folder.exists() else ways.FOLDER} is there, and bpfnb setup did not make it")
    if found := next(environment.strangers(ways.FOLDER, inside=False), ""):
        raise SetupError(f"{found}: only root may be able to change what root runs")
    steps: list[Step] = []
    if not _group_exists(group):
        steps.append(Step(f"make the group {group}: groupadd --system {group}", partial(_make_group, group)))
    if _made(before) != _made(wanted) or next(environment.strangers(folder), ""):
        words = "\n".join(environment.plan(folder, wheels))
        steps.append(Step(words, partial(_make_environment, folder, wheels, wanted)))
    steps += _retire(version, before, wanted)
    if before != wanted or any(not _is(path, text) for path, text in _files(by, group).items()):
        steps += _put_files(version, wanted)
    return steps


def undo() -> list[Step]:
    """Return the steps that remove everything that ``install`` ever made here."""
    record = ways.installed()
    steps: list[Step] = []
    for version, there in record.versions.items():
        steps += _retire(version, there, None)
        folder = ways.FOLDER / version
        steps.append(Step(f"remove {folder}", partial(_remove_version, version)))
    for group in record.groups:
        steps.append(Step(f"remove the group {group}: groupdel {group}", partial(_remove_group, group)))
    if ways.FOLDER.exists() and ways.RECORD.exists():
        steps.append(Step(f"remove {ways.FOLDER}", _remove_rest))
    return steps


def _manager() -> str:
    """Return what starts tracers here: "systemd" where it is init, else "sudo"."""
    if _BOOTED.is_dir():
        return "systemd"
    if shutil.which("sudo") and shutil.which("visudo", path="/usr/sbin:/usr/bin:/sbin:/bin") and _RULES.is_dir():
        return "sudo"
    raise SetupError(
        "neither systemd nor sudo is here to start tracers with; --by systemd writes its units all the same"
    )


def _made(one: Installed | None) -> tuple[str, ...]:
    """Return what an environment's contents depend on."""
    return (one.build, one.lock, one.python) if one else ()


def _files(by: str, group: str) -> dict[Path, str]:
    """Return the files to write outside of our folder: text by path."""
    version = release.version()
    unit, launcher = ways.unit_of(version), ways.launcher_of(version)
    if by == "sudo":
        name = unit.replace(".", "_")  # sudo ignores names with a dot
        return {_RULES / name: texts.RULE.format(launcher=launcher, group=group)}
    socket = texts.SOCKET.format(version=version, group=group, socket=ways.socket_of(version))
    return {
        _UNITS / f"{unit}@.service": texts.SERVICE.format(version=version, launcher=launcher),
        _UNITS / f"{unit}.socket": socket,
    }


# --- the steps ----------------------------------------------------------------------------------------------------


def _make_group(group: str) -> None:
    record = ways.installed()
    record.groups.append(group)
    _write_record(record)
    environment.run(["groupadd", "--system", group])


def _make_environment(folder: Path, wheels: Path | None, wanted: Installed) -> None:
    record = ways.installed()
    before = record.versions.get(folder.name)
    files = before.files if before else []
    record.versions[folder.name] = msgspec.structs.replace(wanted, build="", files=files)
    _write_record(record)
    environment.make(folder, wheels)
    record.versions[folder.name] = msgspec.structs.replace(wanted, files=files)
    _write_record(record)


def _put_files(version: str, wanted: Installed) -> Iterator[Step]:
    """Write the files, and make systemd load them."""
    files = _files(wanted.by, wanted.group)
    unit = ways.unit_of(version)

    def write() -> None:
        record = ways.installed()
        record.versions[version] = wanted
        _write_record(record)
        for path, text in files.items():
            _write(path, text, _MODES[path.parent], check=wanted.by == "sudo")

    yield Step("\n".join(f"write {path}" for path in files), write)
    if wanted.by == "systemd" and _BOOTED.is_dir():
        yield Step("systemctl daemon-reload", partial(_systemctl, "daemon-reload"))
        yield Step(f"systemctl enable {unit}.socket", partial(_systemctl, "enable", f"{unit}.socket"))
        yield Step(f"systemctl restart {unit}.socket", partial(_systemctl, "restart", f"{unit}.socket"))
    elif wanted.by == "systemd":
        yield Step(
            f"systemctl enable {unit}.socket (systemd does not run here: it begins to listen at the next start)",
            partial(_systemctl, "enable", f"{unit}.socket"),
        )


def _retire(version: str, before: Installed | None, wanted: Installed | None) -> Iterator[Step]:
    """Remove the files of an installation that are no longer wanted."""
    gone = [path for path in (before.files if before else []) if not wanted or path not in wanted.files]
    if not gone or not before:
        return
    unit = ways.unit_of(version)
    if before.by == "systemd":
        yield Step(
            f"systemctl disable {unit}.socket; systemctl stop {unit}.socket {unit}@*", partial(_stop_units, unit)
        )
    yield Step("\n".join(f"remove {path}" for path in gone), partial(_remove_files, version, gone))
    if before.by == "systemd" and _BOOTED.is_dir():
        yield Step("systemctl daemon-reload", partial(_systemctl, "daemon-reload"))


def _stop_units(unit: str) -> None:
    with suppress(SetupError):  # the unit is gone
        _systemctl("disable", f"{unit}.socket")
    if _BOOTED.is_dir():
        for what in (f"{unit}.socket", f"{unit}@*.service"):
            with suppress(SetupError):
                _systemctl("stop", what)


def _systemctl(*words: str) -> None:
    environment.run(["systemctl", "--quiet", "--no-ask-password", *words])


def _remove_files(version: str, gone: list[str]) -> None:
    for path in gone:
        Path(path).unlink(missing_ok=True)
    record = ways.installed()
    record.versions[version].files = [path for path in record.versions[version].files if path not in gone]
    _write_record(record)


def _remove_version(version: str) -> None:
    folder = ways.FOLDER / version
    _end_tracers(folder)
    environment.remove(folder)
    ways.socket_of(version).unlink(missing_ok=True)
    with suppress(OSError):  # another version's socket is there
        ways.SOCKETS.rmdir()
    record = ways.installed()
    del record.versions[version]
    _write_record(record)


def _end_tracers(folder: Path) -> None:
    """Ask tracers of this version that sudo started to end, since their files will be removed."""
    program = os.fsencode(folder / "bin" / "python3")
    for _ in range(_END_TIMEOUT * 10):
        # Path.glob is not used: it raises when a process ends meanwhile.
        processes = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        running = [pid for pid in processes if _words(pid)[:1] == [program]]
        if not running:
            return
        for pid in running:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        time.sleep(0.1)


def _words(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _remove_group(group: str) -> None:
    if _group_exists(group):
        environment.run(["groupdel", group])
    record = ways.installed()
    record.groups.remove(group)
    _write_record(record)


def _remove_rest() -> None:
    ways.RECORD.unlink()
    ways.FOLDER.rmdir()


# --- files --------------------------------------------------------------------------------------------------------


def _group_exists(group: str) -> bool:
    with suppress(KeyError):
        return bool(grp.getgrnam(group))
    return False


def _is(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text
    except OSError:
        return False


def _write_record(record: Record) -> None:
    ways.FOLDER.mkdir(mode=0o755, exist_ok=True)
    _write(ways.RECORD, msgspec.json.format(msgspec.json.encode(record)).decode() + "\n", 0o644)


def _write(path: Path, text: str, mode: int, *, check: bool = False) -> None:
    """Write a file atomically. ``check``: only if visudo accepts it."""
    fd, name = tempfile.mkstemp(prefix=".bpfnb-", dir=path.parent)  # sudo and systemd ignore such names
    os.close(fd)
    new = Path(name)
    try:
        new.write_text(text)
        new.chmod(mode)
        if check:
            environment.run(["visudo", "-c", "-q", "-f", new])
        new.replace(path)
    except BaseException:
        new.unlink()
        raise
