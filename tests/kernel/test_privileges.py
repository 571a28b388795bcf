"""Who may trace, and how the tracer gets its rights: a real other user and real sudo, in a mount namespace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from other_user import NOBODY, run_as_nobody

CODE = """
import bpfnb, os
from bpfnb.hosts import default_host
try:
    with bpfnb.trace({source!r}, attach={{"syscall:getpgid": "f"}}) as session:
        os.getpgid(0)
        tracer = default_host.connect().hello().pid
        print("loaded by user", [line.split()[1] for line in open(f"/proc/{{tracer}}/status") if line[:4] == "Uid:"][0])
    if session.outputs:
        print("rows", (session.df.pid == os.getpid()).sum())
except bpfnb.BpfnbError as error:
    print(type(error).__name__, isinstance(error, PermissionError))
    print(error)
    print(error.hint)
"""
PRINTS = 'int f(void *ctx) { bpf_trace_printk("x\\n"); return 0; }'
SILENT = "int f(void *ctx) { return 0; }"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def as_nobody(code: str, tmp_path: Path, *, sudoers: str = "", ambient: bool = False) -> list[str]:
    return run_as_nobody(code, tmp_path, sudoers=sudoers, ambient=ambient)


def as_root(source: str, *commands: str, bounding: str = "", **environment: str) -> list[str]:
    """Run a trace in a mount namespace of its own, after these commands; with some capabilities out of reach."""
    limit = ["setpriv", "--bounding-set", bounding] if bounding else []
    inside = ["unshare", "--mount", "sh", "-ec", "\n".join([*commands, 'exec "$@"']), "sh"]
    done = subprocess.run(
        [*inside, *limit, sys.executable, "-c", CODE.format(source=source)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=os.environ | environment,
    )
    return done.stdout.splitlines()


def test_tracefs_is_mounted_where_it_is_missing() -> None:
    assert as_root(PRINTS, "umount -l /sys/kernel/tracing") == ["loaded by user 0", "rows 1"]


def test_tracefs_that_cannot_be_mounted_is_named() -> None:
    kind, message, hint = as_root(PRINTS, "umount -l /sys/kernel/tracing", bounding="-sys_admin")
    assert kind == "SetupError False"
    assert "tracefs is not mounted" in message
    assert "mount -t tracefs" in hint


def test_a_missing_bcc_is_named_with_its_package(tmp_path: Path) -> None:
    kind, message, hint = as_root(SILENT, BPFNB_BCC=str(tmp_path))
    assert kind == "SetupError False"
    assert "bcc for Python is not installed" in message
    assert "python3-bpfcc" in hint


def test_the_other_bcc_of_pypi_is_told_apart(tmp_path: Path) -> None:
    """A package named bcc where pip puts packages: never imported, and named as what misleads."""
    (tmp_path / "bcc").mkdir()
    (tmp_path / "bcc" / "__init__.py").write_text("raise RuntimeError('the wrong bcc was imported')")
    site = next(path for path in sys.path if path.endswith("site-packages"))
    mount = f"mount -t overlay -o lowerdir='{tmp_path}:{site}' none '{site}'"
    assert as_root(PRINTS, mount) == ["loaded by user 0", "rows 1"]
    _, message, _ = as_root(SILENT, mount, BPFNB_BCC="/nowhere")
    assert "the package named bcc on PyPI, installed here, is another project" in message


def test_without_rights_the_error_names_the_ways(tmp_path: Path) -> None:
    kind, message, hint = as_nobody(CODE.format(source=PRINTS), tmp_path)
    assert kind == "PrivilegeError True"
    assert message.startswith(
        "user nobody may not trace; members of the group bpfnb may once an administrator runs: sudo "
    )
    assert message.endswith("bpfnb setup --group bpfnb")
    assert "root" in hint
    assert "sudo -n" in hint


def test_sudo_without_a_password_is_enough(tmp_path: Path) -> None:
    assert as_nobody(CODE.format(source=PRINTS), tmp_path, sudoers="nobody ALL=(root) NOPASSWD: ALL\n") == [
        "loaded by user 0",
        "rows 1",
    ]


def test_three_capabilities_load_and_attach(tmp_path: Path) -> None:
    assert as_nobody(CODE.format(source=SILENT), tmp_path, ambient=True) == [f"loaded by user {NOBODY.pw_uid}"]


def test_three_capabilities_read_what_programs_print(tmp_path: Path) -> None:
    said = as_nobody(CODE.format(source=PRINTS), tmp_path, ambient=True)
    assert said == [f"loaded by user {NOBODY.pw_uid}", "rows 1"]
