"""Code run as user nobody, whom sudo grants what a test says: a real other user, in a mount namespace of its own."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from namespaces import ROOT, opened

NOBODY = pwd.getpwnam("nobody")
# There while a test runs; its contents in the test's namespace.
SHADOW = Path(f"/run/bpfnb-test-shadow-{os.getpid()}")
ANYTHING = "nobody ALL=(root) NOPASSWD: ALL\n"  # a sudoers rule


def run_as_nobody(
    code: str, tmp_path: Path, *, sudoers: str = "", ambient: bool = False, first: Sequence[str] = (), cwd: str = "/"
) -> list[str]:
    """Run Python as user nobody, sudo granting what ``sudoers`` says; the lines it printed. ``first``: commands of the
    shell, as root, in the namespace."""
    rules = tmp_path / "sudoers.d"
    rules.mkdir()
    (rules / "bpfnb-test").write_text(sudoers)
    (rules / "bpfnb-test").chmod(0o440)
    become = ["setpriv", "--reuid", str(NOBODY.pw_uid), "--regid", str(NOBODY.pw_gid), "--clear-groups"]
    if ambient:
        capabilities = "+bpf,+perfmon,+dac_read_search"
        become += ["--inh-caps", capabilities, "--ambient-caps", capabilities]
    commands = [
        "umask 022",
        f"mkdir -p {SHADOW} && mount -t tmpfs -o mode=755 none {SHADOW}",
    ]
    for number, folder in enumerate({Path(sys.base_prefix), ROOT, Path(sys.prefix)}):
        commands += opened(folder, SHADOW / str(number))
    commands += first  # they may mount something on /etc
    if Path("/etc/sudoers.d").is_dir():
        commands.append(f"mount --bind '{rules}' /etc/sudoers.d")
    commands.append('exec "$@"')
    inside = ["unshare", "--mount", "sh", "-ec", "\n".join(commands), "sh"]
    try:
        done = subprocess.run(
            [*inside, *become, sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=cwd,
            check=False,
        )
    finally:
        SHADOW.rmdir()
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
