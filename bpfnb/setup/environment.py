"""Make root's own Python environment, with only the tracer and what it imports."""

from __future__ import annotations

import hashlib
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bpfnb import release
from bpfnb.errors import SetupError
from bpfnb.host import ways
from bpfnb.setup import texts

__all__ = ["LOCK", "PYTHON", "Command", "lock_digest", "make", "plan", "python_version", "remove", "run", "strangers"]

PYTHON = "/usr/bin/python3"  # the distribution's: it belongs to root and is kept up to date
LOCK = Path(__file__).with_name("tracer.lock")
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}
_MAX_WHEEL = 1 << 28  # bytes
_TIMEOUT = 600  # seconds, for a command that may download

_INIT = '"""The tracer of bpfnb, without its notebook side: installed by `bpfnb setup`."""\n'
_METADATA = "Metadata-Version: 2.1\nName: bpfnb\nVersion: {version}\n"
# Imports every module of the tracer before anybody relies on them, and finds the distribution's bcc.
_TRY = """\
import pkgutil
import bpfnb.tracer, bpfnb.tracer.compile.engine
for module in pkgutil.walk_packages(bpfnb.tracer.__path__, "bpfnb.tracer."):
    if not module.name.endswith("__main__"):
        __import__(module.name)
from bpfnb.errors import BpfnbError
try:
    print(bpfnb.tracer.compile.engine.find_bcc())
except BpfnbError as error:
    raise SystemExit("; ".join(filter(None, (str(error), error.hint))))
"""

Command = Sequence[str | Path]


def run(command: Command, what: str = "") -> str:
    """Run a command in a clean environment, in /, and return its output. Raise SetupError if it fails.

    ``what``: what to call the command in the error; by default its own words.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, cwd="/", env=_ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupError(f"{what or words[0]} failed: {error}") from None
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        why = next((line for line in said if line.startswith("ERROR: ")), said[-1] if said else "")
        if other := re.search(r"^ERROR: THESE PACKAGES DO NOT MATCH.*\n +.*/(\S+?\.whl)", "\n".join(said), re.M):
            raise SetupError(f"a wheel has another hash than the one bpfnb was released with: {other[1]}")
        why = why.removeprefix("ERROR: ") or f"exit status {done.returncode}"
        raise SetupError(f"{what or ' '.join(words)} failed: {why}")
    return done.stdout.decode(errors="replace").strip()


def lock_digest() -> str:
    """Return a digest of the lock file."""
    return hashlib.blake2b(LOCK.read_bytes(), digest_size=8).hexdigest()


def python_version() -> str:
    """Return the version of the distribution's Python, as "3.11". Raise SetupError where it is missing or too old."""
    try:
        version = run([PYTHON, "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"])
    except SetupError:
        raise SetupError(f"there is no {PYTHON}: install your distribution's Python") from None
    if tuple(map(int, version.split("."))) < (3, 10):
        raise SetupError(f"{PYTHON} is Python {version}: bpfnb needs 3.10 or newer")
    try:
        run([PYTHON, "-I", "-c", "import ensurepip, venv"])
    except SetupError:
        raise SetupError(
            f"{PYTHON} has no venv: install your distribution's package (Debian, Ubuntu: python3-venv)"
        ) from None
    return version


def plan(folder: Path, wheels: Path | None) -> list[str]:
    """Describe what ``make`` does, one line for each step."""
    packages = f"the wheels in {wheels}" if wheels else "the package index"
    source = LOCK.parent.parent
    return [
        f"make {folder} with {PYTHON} -I -m venv",
        f"install the packages of {LOCK.name} into it from {packages}, checking their hashes",
        f"copy the tracer of bpfnb {release.version()} into it from {source}: this step trusts that copy{_who(source)}",
        f"write {ways.launcher_of(release.version())}, which starts it with an empty environment, in /",
        f"check that nobody but root can write to {folder}, and that the tracer and bcc can be imported",
    ]


def make(folder: Path, wheels: Path | None) -> None:
    """Make the environment. It replaces an existing one only when it is complete."""
    new, old, tools = _made_meanwhile(folder)
    _remove(new, old, tools)
    try:
        run([PYTHON, "-I", "-m", "venv", "--without-pip", new])
        run([PYTHON, "-I", "-m", "venv", tools])
        python = new / "bin" / "python3"
        site = Path(run([python, "-I", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]))
        _install_packages(tools / "bin" / "python3", site, wheels)
        _copy_tracer(site)
        launcher = new / "bin" / "bpfnb-tracer"
        launcher.write_text(texts.LAUNCHER.format(folder=folder))
        launcher.chmod(0o755)
        run(
            [python, "-I", "-c", _TRY], "importing the tracer"
        )  # this also compiles the modules, since the tracer may not write here
        if found := next(strangers(new), ""):
            raise SetupError(found)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        _remove(new, old, tools)


def strangers(folder: Path, *, inside: bool = True) -> Iterator[str]:
    """Yield, in words, what lets users other than root change a folder: its parents, and what is ``inside`` it."""
    for path in (*folder.parents, folder, *(folder.rglob("*") if inside else ())):
        if not path.exists() and not path.is_symlink():
            continue
        status = path.lstat()
        if status.st_uid != 0:
            yield f"{path} belongs to user {status.st_uid}, not to root"
        elif not stat.S_ISLNK(status.st_mode) and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            yield f"users other than root can write to {path}"


def remove(folder: Path) -> None:
    """Remove an environment, and leftovers of making one."""
    _remove(folder, *_made_meanwhile(folder))


def _remove(*folders: Path) -> None:
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)


def _made_meanwhile(folder: Path) -> list[Path]:
    """Return where a new environment is made, where the old one is moved to, and where pip's own is made."""
    return [folder.with_name(f".{what}-{folder.name}") for what in ("new", "old", "pip")]


def _who(source: Path) -> str:
    found = next(strangers(source), "")
    return f" ({found})" if found else ""


def _install_packages(python: Path, site: Path, wheels: Path | None) -> None:
    """Install the lock file's packages. pip checks their hashes. Of pip's settings only /etc/pip.conf applies."""
    command: list[str | Path] = [python, "-I", "-m", "pip", "--isolated", "install", "-qq", "--no-input"]
    command += ["--disable-pip-version-check", "--no-cache-dir", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-compile", "--target", site]
    with tempfile.TemporaryDirectory(prefix="bpfnb-setup-") as name:
        copied = Path(name)
        shutil.copyfile(LOCK, copied / LOCK.name)
        if wheels:
            # pip reads a wheel twice, to check its hash and to unpack it. Copies cannot be changed in between.
            _copy_wheels(wheels, copied)
            command += ["--no-index", "--find-links", copied]
        run([*command, "--require-hashes", "-r", copied / LOCK.name], "pip install")
    _remove(site / "bin")


def _copy_wheels(wheels: Path, to: Path) -> None:
    for wheel in wheels.glob("*.whl"):
        if not wheel.is_file() or wheel.stat().st_size > _MAX_WHEEL:
            raise SetupError(f"{wheel} is not a wheel")
        shutil.copyfile(wheel, to / wheel.name)


def _copy_tracer(site: Path) -> None:
    source = LOCK.parent.parent
    for name in release.tracer_files():
        target = site / "bpfnb" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target)
    (site / "bpfnb" / "__init__.py").write_text(_INIT)
    version = release.version()
    about = site / f"bpfnb-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(_METADATA.format(version=version))
