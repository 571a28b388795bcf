"""Debian's 6.1 and 6.12 as hosts that ssh reaches: another kernel, which bpfnb is brought to. scripts/test --full."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sshd import SSHD, free_ports, make_keys
from test_kernels import VERSIONS, VM, WHOLE, no_leaks, possible  # noqa: F401 (fixtures)

import bpfnb

LIMIT = 900  # seconds
CALLS = 200
# The guest's own: a root that is thrown away with it.
GUEST = "mkdir -p /run/sshd && cp {folder}/authorized /run/authorized && exec {sshd} -D -e -f {folder}/sshd_config"
SSHD_CONFIG = """\
ListenAddress 10.0.2.15
HostKey {folder}/host
AuthorizedKeysFile /run/authorized
UsePAM no
StrictModes no
PidFile none
"""
SSH_CONFIG = """\
Host guest
  HostName 127.0.0.1
  Port {port}
  User root
  IdentityFile {folder}/id
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known
"""
COUNTED = "import os, sys; sys.stdin.readline(); [os.getpgid(0) for _ in range({})]"

pytestmark = [
    pytest.mark.timeout(LIMIT),
    pytest.mark.skipif(not WHOLE, reason="BPFNB_VM_WHOLE=1 (scripts/test --full): an emulated guest takes minutes"),
    pytest.mark.skipif(not SSHD, reason="sshd is not installed: scripts/setup --test gets it"),
]


@contextmanager
def guest(version: str, folder: Path) -> Iterator[tuple[str, ...]]:
    """A guest with sshd; options for ssh to reach it as "guest"."""
    (port,) = free_ports(1)
    make_keys(folder, port)
    (folder / "sshd_config").write_text(SSHD_CONFIG.format(folder=folder))
    (folder / "config").write_text(SSH_CONFIG.format(folder=folder, port=port))
    script = GUEST.format(folder=folder, sshd=SSHD)
    command = [VM, "run", version, "--timeout", str(LIMIT), "--forward", f"{port}:22", "--", "sh", "-c", script]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    options = ("-F", str(folder / "config"))
    try:
        deadline = time.monotonic() + LIMIT
        while subprocess.run(["ssh", *options, "guest", "true"], capture_output=True, check=False).returncode:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(1)
        yield options
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_guest_is_a_host(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with guest(version, tmp_path) as options, bpfnb.Host.ssh("guest", options=options, cache="/run/cache") as host:
        assert host.connect().hello().kernel.startswith(f"{version}.")
        workload = f"exec python3 -S -c '{COUNTED.format(CALLS)}'"
        with subprocess.Popen(
            ["ssh", *options, "guest", f"echo $$; {workload}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as there:
            assert there.stdin
            assert there.stdout
            pid = int(there.stdout.readline())
            # kprobes are not to be had on the kernel that the tests run on
            with (
                host.count("kprobe:__x64_sys_getpgid", pid=pid) as counted,
                host.rows("syscall:getpgid", pid=pid) as rows,
            ):
                there.stdin.write("\n")
                there.stdin.flush()
                there.wait()
        assert counted.df["count"].tolist() == [CALLS]
        assert (len(rows.df), rows.lost) == (CALLS, 0)
        assert os.uname().release not in host.connect().hello().kernel
