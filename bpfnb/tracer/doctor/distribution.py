"""Whose distribution this is, and its own commands for what may be missing: only those that are certain.

A command is certain where the distribution is known by name, and, for what belongs to a kernel (its headers, its
configuration), where the running kernel is one that the distribution itself built, by its release's shape.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

__all__ = ["Distribution", "as_root", "here"]

# The family whose packages a distribution has, by ID or ID_LIKE of os-release(5). openSUSE by ID alone: others that
# are like it have another installer (MicroOS) or no package of bcc (SLES).
_FAMILIES = {
    "debian": "debian", "ubuntu": "debian",
    "fedora": "fedora", "rhel": "fedora", "centos": "fedora",
    "arch": "arch",
}  # fmt: skip
_SUSE = ("opensuse-leap", "opensuse-tumbleweed")
_INSTALL = {"debian": "apt install", "fedora": "dnf install", "arch": "pacman -S", "suse": "zypper install"}
_BCC = {"debian": "python3-bpfcc", "fedora": "python3-bcc", "arch": "python-bcc", "suse": "python3-bcc"}

_DEBIAN_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
_KERNELS = {"ubuntu": "linux-image-generic", "fedora": "kernel", "rhel": "kernel", "arch": "linux"}

_ROOT = Path("/")
_CONTAINERS = (".dockerenv", "run/.containerenv", "run/systemd/container", "proc/sys/fs/binfmt_misc/WSLInterop")

# What the release of a distribution's own kernel looks like, and the package of its headers.
_HEADERS = {
    "debian": [(r"-(cloud-|rt-)?(amd64|arm64)$", "linux-headers-{}")],
    "ubuntu": [(r"^\d+\.\d+\.\d+-\d+-[a-z]", "linux-headers-{}")],
    "fedora": [(r"\.(fc|el)\d.*\.(x86_64|aarch64|s390x|ppc64le)$", "kernel-devel-{}")],
    "arch": [
        (r"-arch\d+-\d+$", "linux-headers"),
        (r"-lts$", "linux-lts-headers"),
        (r"-zen$", "linux-zen-headers"),
        (r"-hardened$", "linux-hardened-headers"),
    ],
    "suse": [(r"-default$", "kernel-default-devel")],
}


class Distribution(NamedTuple):
    """``name`` for a person, ``id`` as os-release has it, ``family``: debian, fedora, arch, suse, or "" for others.

    ``root``: the folder it is in.
    """

    name: str
    id: str
    family: str
    root: Path = _ROOT

    def install_bcc(self) -> str:
        """The command that installs iovisor's bcc for Python; "" where it is not known."""
        return self._install(_BCC.get(self.family, ""))

    def install_headers(self, release: str) -> str:
        """The command that installs a kernel's headers; "" where that kernel is not the distribution's own."""
        vendor = "ubuntu" if self.id == "ubuntu" else self.family
        for shape, package in _HEADERS.get(vendor, ()):
            if re.search(shape, release):
                return self._install(package.format(release))
        return ""

    def owns_kernel(self, release: str) -> bool:
        """Whether a kernel is one of the distribution's own."""
        return bool(self.install_headers(release))

    def install_kernel(self, machine: str) -> str:
        """The command that installs the distribution's own kernel; "" where it is not known, or would not be booted."""
        if any((self.root / mark).exists() for mark in _CONTAINERS):
            return ""
        if self.id == "debian" and machine in _DEBIAN_MACHINES:
            return self._install(f"linux-image-{_DEBIAN_MACHINES[machine]}")
        return self._install("kernel-default" if self.family == "suse" else _KERNELS.get(self.id, ""))

    def install_configuration(self, release: str) -> str:
        """The command that brings /boot/config-RELEASE; "" where it is not known. Others have it with the kernel."""
        packages = {"debian": f"linux-image-{release}", "ubuntu": f"linux-modules-{release}"}
        return self._install(packages.get(self.id, "")) if self.owns_kernel(release) else ""

    def _install(self, package: str) -> str:
        if not package or (self.root / "run/ostree-booted").exists():  # where packages are layered onto an image
            return ""
        return as_root(f"{_INSTALL[self.family]} {package}")


def here(root: Path = _ROOT) -> Distribution:
    """The distribution we run on, of the first of os-release's two places that can be read."""
    for place in ("etc/os-release", "usr/lib/os-release"):
        try:
            return _read((root / place).read_text(errors="replace"))._replace(root=root)
        except OSError:
            continue
    return Distribution("unknown", "", "", root)


def as_root(command: str) -> str:
    """A command as to be typed: with sudo for those who need it and have it."""
    if os.geteuid() == 0 and "SUDO_UID" not in os.environ:
        return command
    return f"sudo {command}" if shutil.which("sudo") else f"as root: {command}"


def _read(text: str) -> Distribution:
    fields = dict(line.split("=", 1) for line in text.splitlines() if re.match(r"\w+=", line))
    values = {key: " ".join(_words(value)) for key, value in fields.items()}
    identity = values.get("ID", "")
    alike = [identity, *values.get("ID_LIKE", "").split()]
    family = "suse" if identity in _SUSE else next((_FAMILIES[name] for name in alike if name in _FAMILIES), "")
    return Distribution(values.get("PRETTY_NAME") or values.get("NAME") or identity or "unknown", identity, family)


def _words(value: str) -> list[str]:
    """A value of os-release, which is quoted as for a shell."""
    try:
        return shlex.split(value)
    except ValueError:  # no closing quotation
        return [value]
