"""Another machine that ssh reaches: an sshd of our own on loopback, in a mount namespace with homes of its own.

It has the kernel and the processes of this machine. Users: root, and nobody, whom sudo grants what a test says. Nothing
of this machine's ssh is used or changed: keys, configuration and known hosts are the test's.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from waiting import until

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/bin:/sbin:/usr/local/sbin")
HOMES = Path("/mnt")  # of the namespace: in memory
ANYTHING = "nobody ALL=(root) NOPASSWD: ALL\n"  # a sudoers rule

needs_sshd = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make the other machine"),
    pytest.mark.skipif(not SSHD, reason="sshd is not installed: scripts/setup --test gets it"),
]

_SSHD_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile /mnt/authorized
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
PidFile none
"""
_SSH_CONFIG = """\
Host root web1 nobody stranger unknown changed refused
  HostName 127.0.0.1
  Port {port}
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile {folder}/known
Host nobody
  User nobody
Host *
  User root
Host stranger
  IdentityFile {folder}/other
Host locked
  HostName 127.0.0.1
  Port {port}
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile {folder}/known
  IdentityFile {folder}/locked
Host unknown
  HostKeyAlias nobody-knows-it
Host changed
  HostKeyAlias it-was-another
Host closed
  HostName 127.0.0.1
  Port {closed}
Host root web1 nobody unknown changed
  IdentityFile {folder}/id
"""


class Sshd:
    """``options``: for ssh, so that it knows the hosts root, nobody, and others of the errors. ``bin``: a folder for
    PATH with an ssh that has them by itself. ``pid``: sshd's, and so the namespace's."""

    def __init__(self, folder: Path, port: int, pid: int) -> None:
        self.options = ("-F", str(folder / "config"))
        self.bin = folder / "bin"
        self.folder = folder
        self.port = port
        self.pid = pid

    def there(self, path: str | Path) -> Path:
        """A path of the other machine, from here."""
        return Path(f"/proc/{self.pid}/root{path}")


@contextmanager
def sshd(folder: Path, *first: str, sudoers: str = "") -> Iterator[Sshd]:
    """The other machine. ``first``: commands of its shell, as root, before sshd starts. ``sudoers``: what sudo there
    grants."""
    port, closed = free_ports(2)
    make_keys(folder, port)
    (folder / "sshd_config").write_text(_SSHD_CONFIG.format(port=port, folder=folder))
    (folder / "config").write_text(_SSH_CONFIG.format(port=port, closed=closed, folder=folder))
    (folder / "bin").mkdir()
    (folder / "bin/ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/config "$@"\n')
    (folder / "bin/ssh").chmod(0o755)
    (folder / "sudoers.d").mkdir()
    (folder / "sudoers.d/bpfnb-test").write_text(sudoers)
    (folder / "sudoers.d/bpfnb-test").chmod(0o440)
    users = [line.split(":") for line in Path("/etc/passwd").read_text().splitlines()]
    homes = {"root": ["/mnt/root", "/bin/sh"], "nobody": ["/mnt/nobody", "/bin/sh"]}
    lines = [":".join([*user[:5], *homes.get(user[0], user[5:])]) for user in users]
    (folder / "passwd").write_text("\n".join(lines) + "\n")
    commands = [
        "umask 022",
        f"mount -t tmpfs -o mode=755 none {HOMES}",
        f"mkdir -m 700 {HOMES}/root {HOMES}/nobody",
        f"chown nobody: {HOMES}/nobody",
        f"cp '{folder}/authorized' {HOMES}/authorized",
        f"mount --bind '{folder}/passwd' /etc/passwd",
        "[ -d /run/sshd ] || mkdir -m 755 /run/sshd",
        *([f"mount --bind '{folder}/sudoers.d' /etc/sudoers.d"] if Path("/etc/sudoers.d").is_dir() else []),
        *first,
        f"exec {SSHD} -D -e -f '{folder}/sshd_config'",
    ]
    folder.chmod(0o755)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-ec", "\n".join(commands)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        until(lambda: process.poll() is not None or listens(port))
        assert process.poll() is None, (folder / "log").read_text()
        yield Sshd(folder, port, process.pid)
    finally:
        process.terminate()
        process.wait()


def make_keys(folder: Path, port: int) -> None:
    for name, passphrase in (("host", ""), ("id", ""), ("other", ""), ("locked", "secret"), ("was", "")):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "", "-f", str(folder / name)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    shutil.copyfile(folder / "id.pub", folder / "authorized")
    with (folder / "authorized").open("a") as file:
        file.write((folder / "locked.pub").read_text())
    host, was = ((folder / f"{name}.pub").read_text() for name in ("host", "was"))
    (folder / "known").write_text(f"[127.0.0.1]:{port} {host}it-was-another {was}")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
