"""``bpfnb setup``: what it makes, who may trace by it, and that nothing of theirs runs as root.

In a mount namespace whose /etc and /opt are overlays in memory. systemd-socket-activate stands in for systemd, with the
unit's own capabilities; tests/vm has a guest that systemd runs.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from namespaces import (
    GROUP,
    ROOT,
    SETUP,
    Machine,
    bare_machine,
    group_of,
    listening_on,
    needs_root_and_systemd,
)

from bpfnb import release
from bpfnb.host import ways
from bpfnb.protocol import messages
from bpfnb.protocol.connection import Connection
from bpfnb.protocol.messages import FromTracer, Hello

NOBODY = pwd.getpwnam("nobody")
VERSION = release.version()
FOLDER = ways.FOLDER / VERSION
LAUNCHER = ways.launcher_of(VERSION)
SOCKET = ways.socket_of(VERSION)

# Traces a call of its own; prints how it went and by which way.
TRACE = """
import bpfnb, os
from bpfnb.hosts import default_host
PRINTS = 'int f(void *ctx) { bpf_trace_printk("x\\\\n"); return 0; }'
try:
    with bpfnb.trace(PRINTS, attach={"syscall:getpgid": "f"}) as s:
        os.getpgid(0)
    print((s.df.pid == os.getpid()).sum(), "rows by", default_host.connect().peer.way.kind)
except bpfnb.BpfnbError as error:
    print(f"{type(error).__name__}: {error}")
"""

pytestmark = needs_root_and_systemd


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine that nothing is installed on yet."""
    with bare_machine(tmp_path_factory.mktemp("machine")) as made:
        yield made


@pytest.fixture(scope="module")
def installed(machine: Machine) -> Machine:
    """The same, once bpfnb is set up for systemd."""
    machine.run(*SETUP, "--group", GROUP, "--by", "systemd")
    return machine


@pytest.fixture(scope="module")
def group(installed: Machine) -> int:
    return group_of(installed)


@pytest.fixture(scope="module")
def listening(installed: Machine) -> Iterator[Machine]:
    with listening_on(installed):
        yield installed


def as_nobody(machine: Machine, code: str, *groups: int) -> list[str]:
    done = machine.run(sys.executable, "-c", code, uid=NOBODY.pw_uid, gid=NOBODY.pw_gid, groups=groups)
    return done.stdout.splitlines()


def test_dry_run_says_all_and_does_nothing(machine: Machine) -> None:
    before = machine.run("find", "/etc", "/opt", "-printf", "%p %m %s\n").stdout
    said = machine.run(*SETUP, "--group", "bpfnb-dry", "--by", "systemd", "--dry-run").stdout
    for word in ("groupadd", str(FOLDER), "hashes", f"from {ROOT}/bpfnb: this step trusts", f"{LAUNCHER}", ".socket"):
        assert word in said
    assert machine.run("find", "/etc", "/opt", "-printf", "%p %m %s\n").stdout == before
    assert ways.installed() == ways.Record()


def test_without_root_it_says_so(machine: Machine) -> None:
    done = machine.run(*SETUP, "--group", GROUP, "--by", "sudo", uid=NOBODY.pw_uid, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "bpfnb setup: this needs root: run it with sudo (--dry-run shows what it would do)\n"


def test_a_wheel_with_another_hash_is_refused(machine: Machine, tmp_path: Path) -> None:
    lock = (ROOT / "bpfnb/setup/tracer.lock").read_text()
    name = f"msgspec-{re.search('msgspec==([0-9.]+)', lock)[1]}-py3-none-any.whl"  # type: ignore[index]
    (tmp_path / name).write_bytes(b"PK")
    empty = tmp_path / "empty"
    empty.mkdir()
    done = machine.run(*SETUP, "--group", GROUP, "--by", "sudo", "--wheels", empty, check=False)
    assert (done.returncode, done.stderr) == (1, f"bpfnb setup: there are no wheels in {empty}\n")
    assert machine.run("ls", "-d", ways.FOLDER, check=False).returncode
    done = machine.run(*SETUP, "--group", GROUP, "--by", "sudo", "--wheels", tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr == f"bpfnb setup: a wheel has another hash than the one bpfnb was released with: {name}\n"
    assert machine.run("ls", "-A", ways.FOLDER).stdout == "installed.json\n"
    machine.run(*SETUP, "--undo")
    assert machine.run("ls", "-d", ways.FOLDER, check=False).returncode
    assert machine.run("getent", "group", GROUP, check=False).returncode


def test_all_of_it_is_roots(installed: Machine) -> None:
    found = installed.run("find", ways.FOLDER, "(", "!", "-user", "root", "-o", "!", "-group", "root", ")").stdout
    assert found == ""
    assert installed.run("find", ways.FOLDER, "!", "-type", "l", "-perm", "/7022").stdout == ""
    assert installed.run("readlink", FOLDER / "bin/python3").stdout == "/usr/bin/python3\n"


def test_it_holds_what_the_tracer_imports_and_no_more(installed: Machine) -> None:
    (site,) = installed.run("sh", "-c", f"echo {FOLDER}/lib/python3*/site-packages").stdout.split()
    there = {name for name in installed.run("ls", site).stdout.split() if not name.endswith(("-info", ".libs"))}
    assert there == {"bpfnb", "msgspec", "numpy", "tree_sitter", "tree_sitter_c"}
    lines = installed.run("find", f"{site}/bpfnb", "-name", "*.py", "-printf", "%P\n").stdout.split()
    assert set(lines) == {str(name) for name in release.tracer_files() if name.suffix == ".py"} | {"__init__.py"}


def test_run_again_it_does_what_is_missing(installed: Machine) -> None:
    again = [*SETUP, "--group", GROUP, "--by", "systemd"]
    assert installed.run(*again).stdout.startswith("nothing to do\n")
    unit = f"/etc/systemd/system/{ways.unit_of(VERSION)}.socket"
    was = installed.run("cat", unit).stdout
    installed.run("sed", "-i", "s/0660/0666/", unit)
    assert f"write {unit}" in installed.run(*again).stdout
    assert installed.run("cat", unit).stdout == was
    installed.run("chmod", "g+w", LAUNCHER)
    assert str(LAUNCHER) in installed.run(*again).stdout
    assert installed.run("stat", "-c", "%a", LAUNCHER).stdout == "755\n"
    assert installed.run(*again).stdout.startswith("nothing to do\n")


def test_the_units_are_what_systemd_expects(installed: Machine) -> None:
    unit = ways.unit_of(VERSION)
    files = [f"/etc/systemd/system/{unit}.socket", f"/etc/systemd/system/{unit}@.service"]
    done = installed.run("systemd-analyze", "verify", *files, check=False)
    assert unit not in done.stderr


def test_a_member_traces_through_the_socket(listening: Machine, group: int) -> None:
    assert as_nobody(listening, TRACE, group) == ["1 rows by socket"]


def test_the_doctor_shows_the_way(listening: Machine, group: int) -> None:
    code = "import bpfnb; r = bpfnb.doctor(); print(r.ok); print([x.found for x in r if x.name == 'way to the tracer'])"
    ok, way = as_nobody(listening, code, group)
    assert ok == "True"
    assert f"{SOCKET}, with root's own copy of bpfnb" in way


def test_the_services_own_rules_hold_where_there_is_no_policy(listening: Machine, group: int) -> None:
    code = "import bpfnb; print([row.found for row in bpfnb.doctor() if row.name == 'policy'][0])"
    (said,) = as_nobody(listening, code, group)
    assert said == (
        "there is no /etc/bpfnb/policy.conf: user nobody has no signals, overrides or lsm, no pinned maps"
        "; sessions cannot be logged in the journal: No such file or directory"
    )


def test_who_is_no_member_gets_the_one_line_that_says_how(listening: Machine) -> None:
    expected = (
        f"PrivilegeError: user nobody may not trace; members of the group {GROUP} may: an administrator runs: "
        f"sudo usermod -aG {GROUP} nobody; then log in anew"
    )
    assert as_nobody(listening, TRACE) == [expected]


def test_who_has_just_become_a_member_logs_in_anew(listening: Machine) -> None:
    listening.run("usermod", "-aG", GROUP, "nobody")
    (line,) = as_nobody(listening, TRACE)
    listening.run("gpasswd", "-d", "nobody", GROUP)
    assert "log in anew and start Jupyter again" in line


def test_root_traces_as_before(listening: Machine) -> None:
    assert listening.run(sys.executable, "-c", TRACE).stdout == "1 rows by direct\n"


def test_a_tracer_of_another_build_is_told(listening: Machine, group: int) -> None:
    (site,) = listening.run("sh", "-c", f"echo {FOLDER}/lib/python3*/site-packages").stdout.split()
    listening.run("sh", "-c", f"echo '# other' >> {site}/bpfnb/tracer/access/peer.py")
    (line,) = as_nobody(listening, TRACE, group)
    assert line.startswith(f"SetupError: the tracer installed on this machine ({SOCKET}) is another build than")
    assert line.endswith(f"bpfnb setup --group {GROUP}")
    listening.run("sed", "-i", "/# other/d", f"{site}/bpfnb/tracer/access/peer.py")
    assert as_nobody(listening, TRACE, group) == ["1 rows by socket"]


def test_nobody_listening_is_told(installed: Machine, group: int) -> None:
    """As where an administrator has stopped the socket's unit."""
    installed.run("mount", "-t", "tmpfs", "none", ways.SOCKETS)
    (line,) = as_nobody(installed, TRACE, group)
    installed.run("umount", ways.SOCKETS)
    assert (
        line
        == f"SetupError: there is a socket for tracing, {SOCKET}, but it does not answer: No such file or directory"
    )


@pytest.fixture
def hostile() -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder and an environment that take over any Python that minds them; it then writes ``caught`` there."""
    tmp_path = Path(tempfile.mkdtemp(prefix="bpfnb-hostile-"))  # pytest's own are closed to others
    tmp_path.chmod(0o777)
    caught = tmp_path / "caught"
    trap = f"open({str(caught)!r}, 'a').write(__name__ + '\\n')\n"
    home = tmp_path / "home/.local/lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    for folder in (tmp_path, home):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("numpy", "msgspec", "sitecustomize", "usercustomize", "struct", "socket", "bpfnb", "bcc"):
            (folder / name).mkdir()
            (folder / name / "__init__.py").write_text(trap)
    library = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libz" in line)
    shutil.copy(library, tmp_path / "x.so")
    (tmp_path / "x.so").chmod(0o755)
    environment = {
        "PYTHONPATH": str(tmp_path),
        "PYTHONSTARTUP": str(tmp_path / "numpy/__init__.py"),
        "PYTHONINSPECT": "1",
        "PYTHONUSERBASE": str(tmp_path / "home/.local"),
        "HOME": str(tmp_path / "home"),
        "PYTHONHOME": str(tmp_path),
        "BPFNB_BCC": str(tmp_path),
        "BCC_KERNEL_SOURCE": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path),
        "LD_PRELOAD": str(tmp_path / "x.so"),
        "LD_LIBRARY_PATH": str(tmp_path),
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "TMPDIR": str(tmp_path),
        "BASH_ENV": str(tmp_path / "sh"),
        "ENV": str(tmp_path / "sh"),
    }
    yield tmp_path, environment
    shutil.rmtree(tmp_path)


@contextmanager
def spoken_to(sock: socket.socket) -> Iterator[Hello]:
    sock.settimeout(60)
    connection: Connection[FromTracer] = Connection(sock, FromTracer)
    message, _ = connection.receive()
    assert isinstance(message, Hello), message
    yield message
    connection.send(messages.RunChecks(1))
    message, _ = connection.receive()
    assert isinstance(message, messages.Checks)
    connection.close()


LAX = 'Defaults setenv, env_keep += "PYTHONPATH PYTHONHOME LD_PRELOAD LD_LIBRARY_PATH HOME BPFNB_BCC"\n'


@pytest.mark.parametrize("by", ["sudo", "the launcher alone"])
def test_nothing_of_the_callers_runs_as_root(
    installed: Machine, group: int, hostile: tuple[Path, dict[str, str]], tmp_path: Path, by: str
) -> None:
    """From the worst of folders with the worst of environments, on a machine whose sudo lets all of it through."""
    folder, environment = hostile
    loader = {name: environment.pop(name) for name in ("LD_PRELOAD", "LD_LIBRARY_PATH")}
    member = {"uid": NOBODY.pw_uid, "gid": NOBODY.pw_gid, "groups": (group,)}
    at = ["env", "-C", str(folder), *(f"{k}={v}" for k, v in (environment | loader).items())]
    maps = [sys.executable, "-c", "import numpy; print(open('/proc/self/maps').read())"]
    control = [word for word in at if not word.startswith("PYTHONHOME=")] + maps
    assert str(folder / "x.so") in installed.run(*control, **member).stdout  # type: ignore[arg-type]
    assert "numpy" in (folder / "caught").read_text()
    (folder / "caught").unlink()
    with set_up_for_sudo(installed):
        if by == "sudo":
            (tmp_path / "lax").write_text(LAX)
            installed.run("install", "-m", "440", tmp_path / "lax", "/etc/sudoers.d/aa-lax")
            command = installed.command(*at, "/usr/bin/sudo", "-n", "--", LAUNCHER, **member)  # type: ignore[arg-type]
        else:  # nobody but root reaches it otherwise; the loader's variables are for sudo to take away
            command = installed.command(*(word for word in at if not word.startswith("LD_")), LAUNCHER)
        ours, theirs = socket.socketpair()
        with ours, subprocess.Popen(command, stdin=theirs):
            theirs.close()
            with spoken_to(ours) as hello:
                assert Path(f"/proc/{hello.pid}/cwd").readlink() == Path("/")
                mapped = Path(f"/proc/{hello.pid}/maps").read_text()
                assert str(folder) not in mapped
                assert "/numpy/" in mapped
                assert "/pandas/" not in mapped  # the notebook's
                if by == "sudo":
                    assert os.fsencode(folder) not in Path(f"/proc/{hello.pid}/environ").read_bytes()
        installed.run("rm", "-f", "/etc/sudoers.d/aa-lax")
    assert not (folder / "caught").exists()


@contextmanager
def set_up_for_sudo(machine: Machine) -> Iterator[None]:
    machine.run(*SETUP, "--group", GROUP, "--by", "sudo")
    try:
        yield
    finally:
        machine.run(*SETUP, "--group", GROUP, "--by", "systemd")


def test_by_sudo_a_member_traces_and_may_do_nothing_else(installed: Machine, group: int) -> None:
    installed.run("mount", "-t", "tmpfs", "none", ways.SOCKETS)
    with set_up_for_sudo(installed):
        assert as_nobody(installed, TRACE, group) == ["1 rows by launcher"]
        (line,) = as_nobody(installed, TRACE)
        assert line.startswith(f"PrivilegeError: user nobody may not trace; members of the group {GROUP} may: ")
        for words in ([LAUNCHER, "-c", "x"], ["-E", LAUNCHER], ["PYTHONPATH=/tmp", LAUNCHER], [FOLDER / "bin/python3"]):
            done = installed.run(
                "/usr/bin/sudo", "-n", *words, uid=NOBODY.pw_uid, gid=NOBODY.pw_gid, groups=[group], check=False
            )
            assert done.returncode == 1, words
            assert done.stderr.startswith("sudo: "), words
    installed.run("umount", ways.SOCKETS)


def test_the_tracer_ends_with_whoever_connected(listening: Machine, group: int) -> None:
    """By kill -9, while a child of theirs holds the connection open."""
    code = (
        "import subprocess, socket, sys; from bpfnb.hosts import default_host; c = default_host.connect(); "
        "c._connection._socket.set_inheritable(True); child = subprocess.Popen(['sleep', '60'], close_fds=False); "
        "print(c.hello().pid, child.pid, flush=True); sys.stdin.read()"
    )
    command = listening.command(sys.executable, "-c", code, uid=NOBODY.pw_uid, gid=NOBODY.pw_gid, groups=[group])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        tracer, child = map(int, process.stdout.readline().split())
        assert "bpfnb-tracer" in Path(f"/proc/{tracer}/cmdline").read_text()
        process.kill()
    gone(tracer)
    os.kill(child, signal.SIGKILL)


def gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_undo_leaves_nothing(machine: Machine) -> None:
    """Last in this file: of what was there before, nothing else is changed either."""
    machine.run(*SETUP, "--undo")
    assert machine.run("sh", "-c", f"ls -d {ways.FOLDER} {ways.SOCKETS}/*", check=False).stdout == ""
    names = machine.run("find", "/etc", "-name", "*bpfnb*").stdout
    assert names == ""
    assert machine.run("cat", "/etc/group").stdout == Path("/etc/group").read_text()
    assert machine.run(*SETUP, "--undo").stdout == "nothing to do\n"
    assert GROUP not in [entry.gr_name for entry in grp.getgrall()]
