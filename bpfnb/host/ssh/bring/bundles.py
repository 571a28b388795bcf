"""What is brought to a host, as parts (there.py): bpfnb's tracer and far; the packages that they import.

The packages are those of setup/tracer.lock, for the host's Python and machine, downloaded by pip on this machine, which
checks their hashes. They are kept in this user's cache. Where they cannot be had and the host's Python and machine are
the same as here, what is installed here is taken.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from bpfnb import release
from bpfnb.errors import SetupError

__all__ = ["Part", "Target", "bpfnb_part", "downloaded", "packages_part", "requirements"]

# Modules and packages, beside the tracer's, that far imports.
_FAR = ("host", "interrupts", "progress")
_INIT = '"""The tracer of bpfnb, without its notebook side: brought by bpfnb over ssh."""\n'
_METADATA = "Metadata-Version: 2.1\nName: bpfnb\nVersion: {version}\n"
_LOCK = Path(__file__).parents[3] / "setup" / "tracer.lock"
_PIP_TIMEOUT = 600  # seconds
_RETRIES = "1"
# Files of packages that nothing at run time reads.
_LEFT_OUT = re.compile(r"(/tests/|^numpy/(f2py|distutils)/|\.(pyi|pyc|h|a|pxd)$|\.data/|^\.\.|^/)")
_NO_NETWORK = re.compile(
    r"NewConnectionError|Failed to establish|name resolution|ConnectTimeout|timed out|Connection (refused|reset|broken)"
)


class Part(NamedTuple):
    """``name``: its folder below the cache's there. ``data``: the packed tar. ``size``: bytes once unpacked."""

    name: str
    digest: str
    data: bytes
    size: int


class Target(NamedTuple):
    """A Python that packages are for, and its machine. ``libc``: such as ("glibc", "2.36")."""

    soabi: str
    machine: str
    version: tuple[int, int, int]
    implementation: str
    libc: tuple[str, str]

    @property
    def tag(self) -> str:
        """As there.py names folders."""
        return f"{self.soabi}-{self.machine}"

    def __str__(self) -> str:
        return f"Python {self.version[0]}.{self.version[1]} on {self.machine} ({' '.join(self.libc) or 'unknown libc'})"

    @classmethod
    def here(cls) -> Target:
        return cls(
            sysconfig.get_config_var("SOABI") or "",
            platform.machine(),
            sys.version_info[:3],
            sys.implementation.name,
            platform.libc_ver(),
        )

    def platforms(self) -> list[str]:
        """Return the platforms of wheels that run there (PEP 600, PEP 656), the newest first."""
        with suppress(ValueError):
            name = self.libc[0]
            major, minor = map(int, self.libc[1].split(".")[:2])
            if name == "glibc":
                older = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
                found = []
                for number in range(minor, 4, -1):
                    found.append(f"manylinux_{major}_{number}_{self.machine}")
                    if number in older:
                        found.append(f"{older[number]}_{self.machine}")
                return found
            if name == "musl":
                return [f"musllinux_{major}_{number}_{self.machine}" for number in range(minor, -1, -1)]
        return []

    def environment(self) -> dict[str, str]:
        """Return what markers of requirements are about."""
        full = ".".join(map(str, self.version))
        return {
            "implementation_name": self.implementation,
            "implementation_version": full,
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython" if self.implementation == "cpython" else self.implementation,
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": full,
            "python_version": ".".join(map(str, self.version[:2])),
            "sys_platform": "linux",
        }


def bpfnb_part() -> Part:
    """Return this very bpfnb: the tracer's files, far's, and what says which version it is."""
    package = Path(__file__).parents[3]
    paths = [package / name for name in release.tracer_files()]
    for name in _FAR:
        path = package / name
        paths += [path.with_suffix(".py")] if path.with_suffix(".py").exists() else path.rglob("*.py")
    version = release.version()
    files = {f"bpfnb/{path.relative_to(package).as_posix()}": path.read_bytes() for path in paths}
    files["bpfnb/__init__.py"] = _INIT.encode()
    files[f"bpfnb-{version}.dist-info/METADATA"] = _METADATA.format(version=version).encode()
    part = _packed("", files)
    return part._replace(name=f"{version}-{part.digest[:16]}")


def packages_part(
    target: Target, cache: Path | None = None, download: Callable[[Target], dict[str, bytes]] | None = None
) -> Part:
    """Return the packages for a host. SetupError where they cannot be had.

    ``cache``: a folder that keeps them, by default in this user's. ``download``: what returns their files.
    """
    cache = cache or _cache()
    lock = hashlib.blake2b(_LOCK.read_bytes(), digest_size=8).hexdigest()
    kept = cache / f"{target.tag}-{'-'.join(target.libc)}-{lock}"
    with suppress(OSError, ValueError, KeyError):
        about = json.loads(kept.with_name(f"{kept.name}.json").read_text())
        data = kept.with_name(f"{kept.name}.tar.gz").read_bytes()
        if about["data"] == hashlib.blake2b(data, digest_size=16).hexdigest():
            return Part(about["name"], about["digest"], data, about["size"])
    try:
        part = _packages(target, (download or downloaded)(target))
    except SetupError as error:
        files = _installed_here(target)
        if not files:
            raise error from None
        return _packages(target, files)
    _keep(kept, part)
    return part


def _packages(target: Target, files: Mapping[str, bytes]) -> Part:
    part = _packed("", files)
    return part._replace(name=f"packages/{target.tag}-{part.digest[:16]}")


def _cache() -> Path:
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    return Path(chosen if chosen.startswith("/") else Path.home() / ".cache", "bpfnb", "for-hosts")


def _keep(kept: Path, part: Part) -> None:
    about = {"name": part.name, "digest": part.digest, "size": part.size}
    about["data"] = hashlib.blake2b(part.data, digest_size=16).hexdigest()
    with suppress(OSError):  # a full disk costs the next host a download
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for suffix, content in ((".tar.gz", part.data), (".json", json.dumps(about).encode())):
            with tempfile.NamedTemporaryFile(dir=kept.parent, prefix=".new-", delete=False) as file:
                file.write(content)
            Path(file.name).replace(kept.with_name(kept.name + suffix))


def _packed(name: str, files: Mapping[str, bytes]) -> Part:
    """Pack files; their digest is the one of there.digests."""
    digest = hashlib.blake2b(digest_size=16)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6) as archive:
        for path, content in sorted(files.items()):
            digest.update(f"{hashlib.blake2b(content, digest_size=16).hexdigest()} {path}\n".encode())
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return Part(name, digest.hexdigest(), buffer.getvalue(), sum(map(len, files.values())))


# --- the packages -------------------------------------------------------------------------------------------------


def requirements(target: Target) -> Iterator[tuple[str, str]]:
    """Yield the lock's packages for a host, and their lines for pip. pip itself takes markers to be about its own
    machine."""
    from packaging.requirements import Requirement  # here: most sessions are on this machine

    for line in re.sub(r"\\\n", " ", _LOCK.read_text()).splitlines():
        if line.strip() and not line.startswith("#"):
            text, *hashes = re.split(r"\s+(?=--hash=)", line.strip())
            requirement = Requirement(text)
            if not requirement.marker or requirement.marker.evaluate(target.environment()):
                yield requirement.name, " ".join([f"{requirement.name}{requirement.specifier}", *hashes])


def downloaded(target: Target) -> dict[str, bytes]:
    """Return the files of the packages, downloaded by pip. SetupError where they cannot be had."""
    number = "{}{}".format(*target.version)
    with tempfile.TemporaryDirectory(prefix="bpfnb-") as name:
        folder = Path(name)
        lines = [line for _, line in requirements(target)]
        (folder / "lock").write_text("\n".join(lines))
        command = [sys.executable, "-I", "-m", "pip", "download", "-q", "--no-input", "--disable-pip-version-check"]
        command += ["--retries", _RETRIES, "--no-deps", "--only-binary", ":all:", "--require-hashes"]
        command += ["--implementation", "cp", "--python-version", number]
        command += [word for abi in (f"cp{number}", "abi3", "none") for word in ("--abi", abi)]
        command += [word for platform in target.platforms() for word in ("--platform", platform)]
        command += ["-r", str(folder / "lock"), "-d", str(folder / "wheels")]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PIP_TIMEOUT)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SetupError(f"the packages for {target} cannot be downloaded: {error}") from None
        if not lines or done.returncode:
            raise _why(target, done.stderr.decode(errors="replace"))
        return {path: data for wheel in sorted((folder / "wheels").iterdir()) for path, data in _unpacked(wheel)}


def _unpacked(wheel: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if not member.is_dir() and not _LEFT_OUT.search(member.filename):
                yield member.filename, archive.read(member)


def _why(target: Target, said: str) -> SetupError:
    if "No module named pip" in said:
        return SetupError(
            f"the packages for {target} are downloaded with pip, which this Python has not",
            hint=f"{sys.executable} -m ensurepip",
        )
    if _NO_NETWORK.search(said):
        return SetupError(
            f"the packages for {target} cannot be downloaded: this machine reaches no package index",
            hint="they are downloaded once: connect to a host of that kind while there is a network",
        )
    errors = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
    if any("No matching distribution" in line or "satisfies the requirement" in line for line in errors):
        which = next((match[1] for line in errors if (match := re.search(r"requirement (\S+)", line))), "a package")
        return SetupError(
            f"there is no wheel of {which} for {target}",
            hint='name another Python that is there: Host.ssh(..., python="/usr/bin/python3.11"); or run bpfnb there',
        )
    return SetupError(f"the packages for {target} cannot be downloaded: {errors[0] if errors else said.strip()[-200:]}")


def _installed_here(target: Target) -> dict[str, bytes]:
    """Return the files of the packages as they are installed here; {} where they would not run there."""
    here = Target.here()
    if (here.tag, here.version[:2]) != (target.tag, target.version[:2]):
        return {}
    fit = {*target.platforms(), "any", *([f"linux_{here.machine}"] if here.libc == target.libc else [])}
    files: dict[str, bytes] = {}
    for name, _ in requirements(target):
        try:
            found = importlib.metadata.distribution(name)
            tags = re.findall(r"^Tag: \S+-\S+-(\S+)$", found.read_text("WHEEL") or "", re.MULTILINE)
            if not fit & set(tags):
                return {}
            for path in found.files or ():
                if not _LEFT_OUT.search(path.as_posix()):
                    files[path.as_posix()] = Path(str(path.locate())).read_bytes()
        except (importlib.metadata.PackageNotFoundError, OSError):
            return {}
    return files
