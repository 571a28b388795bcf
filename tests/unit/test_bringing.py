"""What is brought to a host, for which Python; what hosts are called; what is refused there. No host is reached."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import bpfnb
from bpfnb.host.ssh.bring import bundles, there
from bpfnb.host.ssh.bring.bundles import Target
from bpfnb.host.ssh.bring.destination import configured, ssh_command
from bpfnb.hosts import Host, host_of, hosts
from bpfnb.testing import FakeTracer
from magics.completion import line

HELLO = 'int kprobe__sys_clone(void *ctx) { bpf_trace_printk("x\\n"); return 0; }'


def target(version: tuple[int, int, int], machine: str = "x86_64", libc: tuple[str, str] = ("glibc", "2.36")) -> Target:
    return Target("cpython-{}{}-{}-linux-gnu".format(*version[:2], machine), machine, version, "cpython", libc)


@pytest.fixture
def fake() -> Iterator[FakeTracer]:
    with FakeTracer() as tracer:
        yield tracer


@pytest.mark.parametrize(("version", "numpy"), [((3, 10, 4), "2.2"), ((3, 11, 2), "2.4"), ((3, 13, 0), "2.5")])
def test_the_locks_packages_are_those_for_the_hosts_python(version: tuple[int, int, int], numpy: str) -> None:
    """Whatever Python runs here: the lock has a numpy for each."""
    found = dict(bundles.requirements(target(version)))
    assert set(found) == {"msgspec", "numpy", "tree-sitter", "tree-sitter-c"}
    assert found["numpy"].startswith(f"numpy=={numpy}.")
    assert all("--hash=sha256:" in text and ";" not in text for text in found.values())


def test_wheels_are_those_that_the_hosts_libc_runs() -> None:
    old = target((3, 11, 2), libc=("glibc", "2.18")).platforms()
    assert old[:3] == ["manylinux_2_18_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"]
    assert "manylinux1_x86_64" in old
    assert target((3, 11, 2), "aarch64", ("musl", "1.2")).platforms()[0] == "musllinux_1_2_aarch64"
    assert target((3, 11, 2), libc=("", "")).platforms() == []


def test_what_is_brought_is_known_by_the_digest_that_the_host_computes(tmp_path: Path) -> None:
    part = bundles.bpfnb_part()
    there.unpack(io.BytesIO(part.data), tmp_path)
    assert there.digests(tmp_path)[0] == part.digest
    assert part.name == f"{bpfnb.__version__}-{part.digest[:16]}"
    names = {path.relative_to(tmp_path / "bpfnb").parts[0] for path in (tmp_path / "bpfnb").rglob("*.py")}
    assert {"tracer", "host", "protocol"} <= names
    assert not {"views", "session", "results"} & names
    (tmp_path / "bpfnb/new.py").write_text("")
    assert there.digests(tmp_path)[0] != part.digest
    (tmp_path / "bpfnb/new.py").unlink()
    (tmp_path / "bpfnb/new.py").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="is no file"):
        there.digests(tmp_path)


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x"])
def test_nothing_is_unpacked_outside(tmp_path: Path, name: str) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    packed.seek(0)
    (tmp_path / "in").mkdir()
    with pytest.raises(tarfile.TarError, match="has no place here"):
        there.unpack(packed, tmp_path / "in")
    assert [path.name for path in tmp_path.rglob("*")] == ["in"]


def small_part() -> bundles.Part:
    return bundles.packages_part(target((3, 11, 2)), Path("/nonexistent"), lambda _: {"x/__init__.py": b"x = 1\n"})


def test_two_notebooks_may_bring_the_same_at_once(tmp_path: Path) -> None:
    part = small_part()
    folder = tmp_path / "packages" / "x"
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(there.take, folder, part.digest, io.BytesIO(part.data)) for _ in range(8)]:
            done.result()
    assert there.intact(folder) == part.digest
    assert [path.name for path in folder.parent.iterdir()] == ["x"]
    with pytest.raises(OSError, match="what arrived is not what was sent"):
        there.take(tmp_path / "y", "0" * 32, io.BytesIO(part.data))
    assert [path.name for path in tmp_path.iterdir()] == ["packages"]


def test_what_nobody_uses_any_longer_is_removed(tmp_path: Path) -> None:
    part = small_part()
    names = ("new", "old", "held", "kept")
    for name in names:
        there.take(tmp_path / name, part.digest, io.BytesIO(part.data))
    for name in names[1:]:
        os.utime(tmp_path / name / ".lock", (0, 0))
    (tmp_path / ".new-x").mkdir()
    os.utime(tmp_path / ".new-x", (0, 0))
    with (tmp_path / "held/.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        there.clean(tmp_path, [tmp_path / "kept"])
    assert {path.name for path in tmp_path.iterdir()} == {"new", "held", "kept"}


def test_a_download_that_was_changed_is_made_again(tmp_path: Path) -> None:
    made = []

    def download(_: Target) -> dict[str, bytes]:
        made.append(1)
        return {"x/__init__.py": b"1"}

    first = bundles.packages_part(target((3, 11, 2)), tmp_path, download)
    assert bundles.packages_part(target((3, 11, 2)), tmp_path, download) == first
    (kept,) = tmp_path.glob("*.tar.gz")
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    assert bundles.packages_part(target((3, 11, 2)), tmp_path, download) == first
    assert len(made) == 2
    assert hashlib.blake2b(kept.read_bytes()).digest() == hashlib.blake2b(first.data).digest()


def test_ssh_gets_our_options_before_others() -> None:
    host = Host.ssh("web1", options=["-o", "BatchMode=no"])
    assert host.destination
    words = ssh_command(host.destination, "true")
    assert words.index("BatchMode=yes") < words.index("BatchMode=no")
    assert words[-3:] == ["--", "web1", "true"]
    host.close()


def test_hosts_of_the_persons_configuration(tmp_path: Path) -> None:
    (tmp_path / "more").write_text("Host=db1\n")
    config = tmp_path / "config"
    config.write_text(
        f'# Host no\nHost web1 web2 *.example\n  HostName x\nhost "web3" !not\nInclude {tmp_path}/mo*\nHost "open\n'
    )
    assert configured(config) == ["web1", "web2", "web3", "db1"]
    assert configured(tmp_path / "none") == []


def test_a_host_is_the_same_until_it_is_closed() -> None:
    web = Host.ssh("root@web1", name="web")
    assert Host.ssh("root@web1", name="web") is host_of("web") is web
    assert repr(web) == "<Host web: ssh root@web1, not connected, 0 sessions>"
    with pytest.raises(bpfnb.ProgramError, match="web is another host already"):
        Host.ssh("root@web2", name="web")
    assert [item.text for item in line.for_line("probes x --host w", 0)[1]] == ["web"]
    assert [item.text for item in line.for_line("host stop ", 0)[1]] == ["web"]
    web.close()
    assert hosts() == [host_of(None)]


def test_what_would_be_about_this_machine_is_refused(fake: FakeTracer) -> None:
    with Host(fake.launch, name="web") as host:
        with pytest.raises(bpfnb.ProgramError, match="command starts a process on this machine, and web is another"):
            host.trace(HELLO, command="true")
        with pytest.raises(bpfnb.ProgramError, match="uid='root' would be looked up on this machine"):
            host.trace(HELLO, uid="root")
        with pytest.raises(bpfnb.ProgramError, match="record writes on this machine what its own tracer delivers"):
            host.trace(HELLO, record="/nonexistent/x")
        with host.trace(HELLO, uid=0, name="s") as session:
            assert (session.host, session.snapshot().host) == ("web", "web")
        assert bpfnb.trace(HELLO, uid="root").host == ""
        bpfnb.stop_all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"destination": ""}, "not a destination for ssh"),
        ({"destination": "-oProxyCommand=x"}, "not a destination for ssh"),
        ({"destination": "a b"}, "not a destination for ssh"),
        ({"destination": "web", "options": ["2222"]}, "not an option of ssh: '2222'"),
        ({"destination": "web", "python": "python3"}, "a Python's whole path"),
        ({"destination": "web", "python": "/usr/bin/python3; rm"}, "a Python's whole path"),
        ({"destination": "web", "cache": "here"}, "cache must be a folder's whole path"),
        ({"destination": "web", "sudo": 1}, "sudo must be True or False"),
        ({"destination": "web", "name": "-x"}, "not a name for a host"),
    ],
)
def test_what_cannot_be_meant(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(bpfnb.ProgramError, match=said):
        Host.ssh(**arguments)  # type: ignore[arg-type]
    assert hosts() == [host_of(None)]
