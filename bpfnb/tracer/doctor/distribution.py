"""Name the distribution, and its commands that install what is missing. Commands are given only when certain.

A command is certain where the distribution is known by name. A command for a kernel's headers or configuration is
certain where also the kernel's release looks like one that the distribution itself built.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = ["Distribution", "as_root", "here"]

# The family whose packages a distribution has, by ID or ID_LIKE of os-release(5). openSUSE only by ID: of those like
# it, MicroOS has another installer and SLES no package of bcc.
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

# Patterns of the releases of a distribution's own kernels, and the packages of their headers.
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
    """A distribution. ``name`` is for people, ``id`` is os-release's.

    ``family``: debian, fedora, arch, suse, or "" for others. ``root``: the folder it is installed in.
    """

    name: str
    id: str
    family: str
    root: Path = _ROOT

    def install_bcc(self) -> str:
        """Return the command that installs iovisor's bcc for Python; "" where it is not known."""
        return self._install(_BCC.get(self.family, ""))

    def install_headers(self, release: str) -> str:
        """Return the command that installs a kernel's headers; "" where the kernel is not the distribution's own."""
        vendor = "ubuntu" if self.id == "ubuntu" else self.family
        for pattern, package in _HEADERS.get(vendor, ()):
            if re.search(pattern, release):
                return self._install(package.format(release))
        return ""

    def owns_kernel(self, release: str) -> bool:
        """Return whether a kernel is one of the distribution's own."""
        return bool(self.install_headers(release))

    def install_kernel(self, machine: str) -> str:
        """Return the command that installs the distribution's own kernel; "" where it is unknown or would not boot."""
        if any((self.root / mark).exists() for mark in _CONTAINERS):
            return ""
        if self.id == "debian" and machine in _DEBIAN_MACHINES:
            return self._install(f"linux-image-{_DEBIAN_MACHINES[machine]}")
        return self._install("kernel-default" if self.family == "suse" else _KERNELS.get(self.id, ""))

    def install_configuration(self, release: str) -> str:
        """Return the command that installs /boot/config-RELEASE; "" where it is not known, or comes with the kernel."""
        packages = {"debian": f"linux-image-{release}", "ubuntu": f"linux-modules-{release}"}
        return self._install(packages.get(self.id, "")) if self.owns_kernel(release) else ""

    def _install(self, package: str) -> str:
        if not package or (self.root / "run/ostree-booted").exists():  # packages are layered onto an image there
            return ""
        return as_root(f"{_INSTALL[self.family]} {package}")


def here(
    root: Path = _ROOT, os_release: Callable[[], Mapping[str, str]] = platform.freedesktop_os_release
) -> Distribution:
    """Return the distribution that this system runs. Its name is "unknown" where os-release(5) cannot be read.

    ``root``: the folder it is installed in. ``os_release``: reads os-release(5).
    """
    try:
        fields = os_release()
    except (OSError, UnicodeDecodeError):
        return Distribution("unknown", "", "", root)
    identity = fields["ID"]
    alike = [identity, *fields.get("ID_LIKE", "").split()]
    family = "suse" if identity in _SUSE else next((_FAMILIES[name] for name in alike if name in _FAMILIES), "")
    return Distribution(fields["PRETTY_NAME"], identity, family, root)


def as_root(command: str) -> str:
    """Return a command as a user types it: with sudo for those who need it and have it."""
    if os.geteuid() == 0 and "SUDO_UID" not in os.environ:
        return command
    return f"sudo {command}" if shutil.which("sudo") else f"as root: {command}"
