"""Which way to a tracer is taken, and what is said where there is none."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from bpfnb import release
from bpfnb.errors import PrivilegeError, SetupError
from bpfnb.host import client, local, ways
from bpfnb.host.ways import Installed, Record, Way
from bpfnb.protocol.connection import Connection
from bpfnb.protocol.messages import Hello

VERSION = release.version()
NOBODY = pwd.getpwnam("nobody")


@pytest.fixture
def somebody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A user with no rights and no sudo, on a machine where nothing is installed."""
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY.pw_uid)
    monkeypatch.setattr(os, "getegid", lambda: NOBODY.pw_gid)
    monkeypatch.setattr(os, "getgroups", list)
    monkeypatch.setenv("PATH", "/nonexistent")
    for folder in ("run/bpfnb", "opt/bpfnb", "proc/self"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("Name:\tpython\nCapAmb:\t0000000000000000\n")
    return monkeypatch


def install(somebody: pytest.MonkeyPatch, root: Path, version: str, by: str, *, member: bool) -> None:
    """Of a group that the user is in, or not."""
    record = Record([], {version: Installed("tracers", by)})
    (root / "opt/bpfnb/installed.json").write_bytes(msgspec.json.encode(record))

    def tracers(name: str) -> grp.struct_group:
        if name != "tracers":
            raise KeyError(name)
        return grp.struct_group(("tracers", "x", NOBODY.pw_gid + (not member), []))

    somebody.setattr(grp, "getgrnam", tracers)


def with_sudo(somebody: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "sudo").touch(mode=0o755)
    somebody.setenv("PATH", str(folder))


def test_without_any_way_the_error_names_the_group_and_root(somebody: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(
        PrivilegeError, match=r"^user nobody may not trace; members of the group bpfnb may once an admin"
    ) as e:
        ways.choose(tmp_path)
    assert str(e.value).endswith(f"sudo {sys.prefix}/bin/bpfnb setup --group bpfnb")
    assert "sudo -n" in (e.value.hint or "")


def test_a_member_takes_what_is_installed(somebody: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_sudo(somebody, tmp_path)
    install(somebody, tmp_path, VERSION, "systemd", member=True)
    assert ways.choose(tmp_path) == Way("socket", socket=str(tmp_path / f"run/bpfnb/bpfnb-{VERSION}.sock"))
    install(somebody, tmp_path, VERSION, "sudo", member=True)
    assert ways.choose(tmp_path) == Way(
        "launcher", ("sudo", "-n", "--", f"{tmp_path}/opt/bpfnb/{VERSION}/bin/bpfnb-tracer")
    )


@pytest.mark.parametrize("by", ["systemd", "sudo"])
def test_who_is_no_member_is_left_with_sudo(somebody: pytest.MonkeyPatch, tmp_path: Path, by: str) -> None:
    install(somebody, tmp_path, VERSION, by, member=False)
    with pytest.raises(PrivilegeError, match="members of the group tracers may: an administrator runs: sudo usermod"):
        ways.choose(tmp_path)
    with_sudo(somebody, tmp_path)
    assert ways.choose(tmp_path).kind == "sudo"


def test_another_version_is_named_with_what_to_run(somebody: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(somebody, tmp_path, "0.0.9", "systemd", member=True)
    expected = (
        f"^bpfnb 0.0.9 is installed for the group tracers, this notebook's is bpfnb {VERSION}: an administrator runs"
    )
    with pytest.raises(SetupError, match=expected):
        ways.choose(tmp_path)


def test_a_socket_alone_is_enough(somebody: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a container that has been given it."""
    (tmp_path / f"run/bpfnb/bpfnb-{VERSION}.sock").touch()
    assert ways.choose(tmp_path).kind == "socket"


@pytest.mark.parametrize(("version", "build"), [("9.9", ""), ("", ""), (VERSION, "0123456789abcdef")])
def test_another_tracer_than_ours_is_hung_up_on(version: str, build: str) -> None:
    ours, theirs = socket.socketpair()
    mine = client.Client(ours, local.LocalTracer(Way("socket", socket="/run/bpfnb/x.sock")))
    connection: Connection[Hello] = Connection(theirs, Hello)
    connection.send(Hello(1, "0", "0", version, build))
    with pytest.raises(SetupError, match=r"\(/run/bpfnb/x.sock\) is .*another .*: an administrator runs"):
        mine.hello()
    with pytest.raises(EOFError):
        connection.receive()
    mine.close()
    assert mine.died
    connection.close()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"versions": 3}', "\udc80"])
def test_a_record_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    assert ways.installed(tmp_path) == Record()
    record = tmp_path / ways.RECORD.relative_to("/")
    record.parent.mkdir(parents=True)
    record.write_bytes(text.encode(errors="surrogateescape"))
    assert ways.installed(tmp_path) == Record()


def test_the_names_of_units_are_names_that_systemd_takes() -> None:
    assert ways.unit_of("0.2.0.dev1+g12ab") == "bpfnb-0.2.0.dev1_g12ab"


def test_the_build_is_the_same_for_the_same_files_only(tmp_path: Path) -> None:
    code = "from bpfnb import release; print(release.build())"

    def build() -> str:
        return subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    for name in release.tracer_files():
        (tmp_path / "bpfnb" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "bpfnb" / name).write_bytes((Path(release.__file__).parent / name).read_bytes())
    (tmp_path / "bpfnb" / "__init__.py").touch()
    assert build() == release.build()
    (tmp_path / "bpfnb" / "session.py").touch()
    assert build() == release.build()
    (tmp_path / "bpfnb" / "tracer" / "more.py").touch()
    assert build() != release.build()
