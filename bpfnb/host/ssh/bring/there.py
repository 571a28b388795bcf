"""What runs on a host before bpfnb is there: it looks at the host, and takes what is brought.

bring.py sends this file's text over ssh, with a call of ``look`` or ``receive`` at its end: so it imports the standard
library alone. A call answers with one line of JSON after ``MARK``; a login shell may have printed something before.

What is brought are *parts*, folders below CACHE/bpfnb: bpfnb's tracer and far, and the packages that they import. A
part is unpacked beside its place, compiled, checked and renamed: it is there as a whole, or not. It is known by a
digest of its files. ``.brought`` has a digest of all files, with those that were compiled here. ``.lock`` is locked,
shared, by who uses the part.
"""

from __future__ import annotations

import compileall
import errno
import fcntl
import grp
import hashlib
import json
import os
import platform
import pwd
import py_compile
import shutil
import stat
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

MARK = "bpfnb-answer:"
KEPT = 7 * 86400  # seconds that a part stays that nobody uses
HALF = 600  # seconds, one that is being made
_INSTALLED = "/opt/bpfnb/installed.json"  # see bpfnb/host/ways.py
_NEEDED = (2, 38, 39)  # CAP_DAC_READ_SEARCH, CAP_PERFMON, CAP_BPF


def answer(**facts: Any) -> None:
    print(f"\n{MARK}{json.dumps(facts)}", flush=True)


# --- looking ------------------------------------------------------------------------------------------------------


def look(version: str, build: str, cache: str, names: Sequence[str], sudo: bool) -> None:
    """Answer what this host has. ``cache``: "" for the user's own. ``names``: of parts; one that ends in "/" is about
    those of this Python and machine in that folder."""
    base = folder_of(cache)
    tag = "{}-{}".format(sysconfig.get_config_var("SOABI") or "", platform.machine())
    rights, said = rights_of(version, build, sudo)
    answer(
        system=platform.system(),
        release=platform.release(),
        machine=platform.machine(),
        distribution=distribution(),
        node=platform.node(),
        user=user_name(),
        python=list(sys.version_info[:3]),
        implementation=sys.implementation.name,
        soabi=sysconfig.get_config_var("SOABI") or "",
        bits=sys.maxsize.bit_length() + 1,
        libc=libc(),
        btf=Path("/sys/kernel/btf/vmlinux").exists(),
        rights=rights,
        sudo=said,
        folder=str(base),
        stranger=stranger(base),
        parts=dict(parts(base, names, tag)),
        **room(base),
    )


def folder_of(cache: str) -> Path:
    """Return our folder in a cache, by default in the user's own."""
    chosen = cache or os.environ.get("XDG_CACHE_HOME", "")
    return Path(chosen if chosen.startswith("/") else Path.home() / ".cache", "bpfnb")


def parts(base: Path, names: Sequence[str], tag: str) -> Iterator[tuple[str, str]]:
    """Yield the parts that are whole, and their digests."""
    for name in names:
        found = sorted(base.glob(f"{name}{tag}-*")) if name.endswith("/") else [base / name]
        for folder in found:
            if digest := intact(folder):
                yield str(folder.relative_to(base)), digest


def digests(folder: Path) -> tuple[str, str]:
    """Return a digest of the files that were brought, and one of all, with those compiled here: names and contents.

    OSError where it holds anything but files and folders.
    """
    brought, everything = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    for name, path in sorted(found.items()):
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode) or name in (".brought", ".lock"):
            continue
        if not stat.S_ISREG(mode):
            raise OSError(f"{path} is no file")
        line = f"{hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()} {name}\n".encode()
        everything.update(line)
        if path.suffix != ".pyc":
            brought.update(line)
    return brought.hexdigest(), everything.hexdigest()


def intact(folder: Path) -> str:
    """Return a part's digest; "" where it is not there, or is not as it was made."""
    try:
        brought, everything = digests(folder)
        return brought if (folder / ".brought").read_text() == everything else ""
    except OSError:
        return ""


def stranger(base: Path) -> str:
    """Say who else may change what root would run; "" where nobody may."""
    for path in (base, *(base / name for name in ("packages",))):
        with suppress(FileNotFoundError):
            status = path.lstat()
            if not stat.S_ISDIR(status.st_mode):
                return f"{path} is no folder"
            if status.st_uid != os.geteuid():
                return f"{path} belongs to another user"
            if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return f"other users can write to {path}"
    return ""


def room(base: Path) -> dict[str, Any]:
    """Return what can be said of the file system that our folder is in, or will be in."""
    there = next(path for path in (base, *base.parents) if path.exists())
    status = os.statvfs(there)
    writable = os.access(there, os.W_OK | os.X_OK)
    return {
        "free": status.f_bavail * status.f_frsize,
        "noexec": bool(status.f_flag & os.ST_NOEXEC),
        "writable": writable and not status.f_flag & os.ST_RDONLY,
    }


def rights_of(version: str, build: str, sudo: bool) -> tuple[str, str]:
    """Return how a tracer can be started here: "root", "installed", "capabilities", "sudo", or "" and what sudo says.

    The order is that of ways.choose.
    """
    if os.geteuid() == 0:
        return "root", ""
    if has_capabilities():
        return "capabilities", ""
    if installed(version, build):
        return "installed", ""
    if not sudo:
        return "", ""
    try:
        done = subprocess.run(
            ["sudo", "-n", "--", sys.executable, "-I", "-c", ""],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=30,
        )
    except FileNotFoundError:
        return "", "sudo is not installed"
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", f"sudo: {error}"
    if done.returncode == 0:
        return "sudo", ""
    said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
    return "", said[-1] if said else f"sudo: exit status {done.returncode}"


def has_capabilities() -> bool:
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapAmb:"):
                mask = int(line.split()[1], 16)
                return all(mask >> capability & 1 for capability in _NEEDED)
    return False


def installed(version: str, build: str) -> bool:
    """Whether this user may use the tracer of this bpfnb that ``bpfnb setup`` installed."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        here = json.loads(Path(_INSTALLED).read_text())["versions"][version]
        member = grp.getgrnam(here["group"]).gr_gid in (os.getegid(), *os.getgroups())
        return member and here["build"] == build
    return False


def distribution() -> str:
    with suppress(OSError, AttributeError):
        return str(platform.freedesktop_os_release().get("PRETTY_NAME", ""))
    return ""


def user_name() -> str:
    with suppress(KeyError):
        return pwd.getpwuid(os.geteuid()).pw_name
    return str(os.geteuid())


def libc() -> list[str]:
    """Return the C library and its version: "glibc", "2.36", or "musl", "1.2"."""
    with suppress(OSError, ValueError):
        if name := os.confstr("CS_GNU_LIBC_VERSION"):
            return name.split()
    for loader in Path("/lib").glob("ld-musl-*"):
        said = subprocess.run([loader], capture_output=True, check=False).stderr.decode(errors="replace")
        for line in said.splitlines():
            if line.startswith("Version "):
                return ["musl", line.split()[1]]
    return ["", ""]


# --- taking what is brought ---------------------------------------------------------------------------------------


def receive(cache: str, brought: Sequence[tuple[str, str, int]]) -> None:
    """Take parts from standard input, one after the other, each a tar: its name, digest and bytes.

    Answers with ``error`` and ``errno`` where that goes wrong. Older parts that nobody uses are removed.
    """
    base = folder_of(cache)
    os.umask(0o077)
    try:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, digest, size in brought:
            take(base / name, digest, cast("IO[bytes]", Limited(sys.stdin.buffer, size)))
        clean(base, [base / name for name, _, _ in brought])
    except (OSError, tarfile.TarError) as error:
        answer(error=str(error), errno=getattr(error, "errno", None) or 0)
    else:
        answer(ok=True)


class Limited:
    """So many bytes of a file."""

    def __init__(self, file: IO[bytes], left: int) -> None:
        self._file = file
        self._left = left

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data


def take(folder: Path, digest: str, packed: IO[bytes]) -> None:
    """Unpack a part beside its place, compile it, and put it there."""
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    lock = (new / ".lock").open("wb")  # or another notebook's cleaning would remove it
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        unpack(packed, new)
        # Compiled once, here: who runs it writes nothing. mtimes may be anything, and are not looked at.
        compileall.compile_dir(new, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
        found, everything = digests(new)
        if found != digest:
            raise OSError(errno.EIO, "what arrived is not what was sent")
        (new / ".brought").write_text(everything)
        put(new, folder, digest)
    finally:
        lock.close()
        shutil.rmtree(new, ignore_errors=True)


def unpack(packed: IO[bytes], new: Path) -> None:
    with tarfile.open(fileobj=packed, mode="r|gz") as archive:
        for member in archive:
            path = Path(member.name)
            if not member.isreg() or path.is_absolute() or ".." in path.parts:
                raise tarfile.TarError(f"{member.name} has no place here")
            content = archive.extractfile(member)
            assert content
            target = new / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                shutil.copyfileobj(content, file)
    while packed.read(1 << 16):  # what is behind the archive's end
        pass


def put(new: Path, folder: Path, digest: str) -> None:
    """Rename a part to its place. One that is there and whole, of another notebook, stays."""
    try:
        new.rename(folder)
    except OSError:
        if intact(folder) == digest:
            return
        old = Path(tempfile.mkdtemp(prefix=".old-", dir=folder.parent))
        folder.rename(old / "x")
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def clean(base: Path, keep: Sequence[Path]) -> None:
    """Remove parts that nobody uses and nobody has for a week, and what is left of those half made."""
    for folder in (*base.iterdir(), *base.glob("packages/*")):
        if folder in keep or folder.name == "packages" or not folder.is_dir():
            continue
        half = folder.name.startswith((".new-", ".old-"))
        with suppress(OSError):  # gone meanwhile, or in use
            used = (folder if half else folder / ".lock").stat().st_mtime
            if time.time() - used < (HALF if half else KEPT):
                continue
            with (folder / ".lock").open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
