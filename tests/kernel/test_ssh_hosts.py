"""Another machine by ssh: bpfnb gets there by itself, traces exactly, and says in a line what keeps it from that.

The other machine is a namespace of this one (tests/sshd.py), with the same kernel and processes: this process is the
workload, and knows what it does.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from examples import EXAMPLES
from IPython.core.interactiveshell import InteractiveShell
from sshd import ANYTHING, Sshd, needs_sshd, sshd
from traitlets.config import Config
from waiting import until

import bpfnb
from bpfnb.errors import BpfnbError
from bpfnb.host.ssh.bring import there
from bpfnb.host.ssh.bring.bundles import Target, packages_part
from bpfnb.host.ssh.bring.destination import Destination
from bpfnb.host.ssh.bring.prepare import prepare
from bpfnb.hosts import hosts

pytestmark = [
    *needs_sshd,
    pytest.mark.skipif(
        Path("/run/vm/start").exists(), reason="a guest of scripts/vm has no network: see tests/vm/test_ssh_guests.py"
    ),
]

PRINTS = 'int f(void *ctx) { bpf_trace_printk("seen\\n"); return 0; }'
CACHE = "/mnt/{}/.cache/bpfnb"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of this user's that has nothing in it yet."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A machine that nothing has been brought to. nobody may use sudo there."""
    with sshd(tmp_path_factory.mktemp("machine"), sudoers=ANYTHING) as made:
        yield made


@pytest.fixture(scope="module")
def web(machine: Sshd) -> Iterator[bpfnb.Host]:
    """The machine as root, from nothing."""
    with bpfnb.Host.ssh("root", name="web", options=machine.options) as host:
        host.connect()
        yield host


def call(times: int) -> None:
    for _ in range(times):
        os.getpgid(0)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path.relative_to(folder)): (path.lstat().st_ino, path.lstat().st_size) for path in folder.rglob("*")}


def test_a_host_traces_and_counts_exactly(web: bpfnb.Host, tmp_path: Path) -> None:
    counted = web.count("syscall:getpgid", pid=os.getpid())
    with web.trace(PRINTS, attach={"syscall:getpgid": "f"}, pid=os.getpid()) as printed:
        call(500)
    counted.stop()
    assert counted.df["count"].tolist() == [500]
    assert (len(printed.df), printed.lost, set(printed.df.pid)) == (500, 0, {os.getpid()})
    assert repr(printed).startswith(f"<Session {printed.name}: stopped on web, 500 rows")
    assert "on <b>web</b>" in printed._repr_html_()
    printed.save(tmp_path / "kept")
    kept: Any = bpfnb.open(tmp_path / "kept")
    assert (kept.manifest.host, len(kept.df)) == ("web", 500)  # not this machine's name
    assert repr(web) == "<Host web: ssh root, connected, 0 sessions>"


def test_it_leaves_its_cache_there_and_nothing_else(web: bpfnb.Host, machine: Sshd) -> None:
    home = machine.there("/mnt/root")
    assert [path.name for path in home.iterdir()] == [".cache"]
    assert [path.name for path in (home / ".cache").iterdir()] == ["bpfnb"]
    parts = list(machine.there(CACHE.format("root")).iterdir())
    assert sorted(re.sub(r"-[0-9a-f]{16}$", "", path.name) for path in parts) == [bpfnb.__version__, "packages"]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in parts)


def test_a_second_connection_takes_what_is_there_and_mends_what_is_damaged(web: bpfnb.Host, machine: Sshd) -> None:
    base = machine.there(CACHE.format("root"))
    before = listing(base)
    prepare(Destination("root", machine.options))
    assert listing(base) == before
    (damaged,) = base.glob(f"{bpfnb.__version__}-*/bpfnb/errors.py")
    sound = damaged.read_text()
    damaged.write_text(sound + "\n")
    prepare(Destination("root", machine.options))
    assert damaged.read_text() == sound
    after = listing(base)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert not [name for name in changed if name.startswith("packages")]
    assert not [name for name in after if "/." in f"/{name}" and not name.endswith((".brought", ".lock"))]


def test_a_user_who_may_use_sudo(machine: Sshd) -> None:
    with bpfnb.Host.ssh("nobody", options=machine.options) as host:
        with host.trace(PRINTS, attach={"syscall:getpgid": "f"}, pid=os.getpid()) as session:
            call(20)
        assert len(session.df) == 20
        pid = host.connect().hello().pid
        assert Path(f"/proc/{pid}/status").read_text().split("Uid:\t")[1].split()[0] == "0"
        assert "sudo -n" in host.connect().reached
    assert all(path.stat().st_uid == 65534 for path in machine.there("/mnt/nobody/.cache").rglob("*"))
    with pytest.raises(bpfnb.PrivilegeError, match="user nobody may not trace there; sudo=False leaves only"):
        bpfnb.Host.ssh("nobody", name="without", options=machine.options, sudo=False).connect()
    bpfnb.Host.ssh("nobody", name="without", options=machine.options, sudo=False).close()


def test_root_runs_nothing_that_has_changed_since(machine: Sshd) -> None:
    """Between the look at the host and sudo; what is changed before is brought anew."""
    from bpfnb.host.ssh.bring.brought import tracer_code

    (folder,) = machine.there(CACHE.format("root")).glob(f"{bpfnb.__version__}-*")
    digest, _ = there.digests(folder)
    (folder / "bpfnb/evil.py").write_text("print('evil')")
    command = [sys.executable, "-I", "-B", "-c", tracer_code("bpfnb.evil"), f'[["{folder}", "{digest}"]]']
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (folder / "bpfnb/evil.py").unlink()
    assert (done.returncode, done.stdout) == (1, "")
    assert "has changed since it was brought" in done.stderr


def test_the_doctors_table_is_the_hosts(web: bpfnb.Host) -> None:
    report = web.doctor()
    found = {row.name: row for row in report}
    assert report.ok
    assert "saw a call" in found["a first trace"].found
    assert found["way to the tracer"].found.startswith("ssh web")
    assert "ipykernel" not in found


# --- what cannot be -----------------------------------------------------------------------------------------------


def refusal(machine: Sshd, host: str, **options: object) -> BpfnbError:
    """What keeps a host from tracing: one line, and what helps."""
    with bpfnb.Host.ssh(host, name="refused", options=machine.options, **options) as made:  # type: ignore[arg-type]
        with pytest.raises(BpfnbError) as caught:
            made.connect()
        assert "\n" not in str(caught.value)
        assert caught.value.hint
        return caught.value


@pytest.mark.parametrize(
    ("host", "said", "helps"),
    [
        ("no-such-host.invalid", "Could not resolve hostname", "~/.ssh/config"),
        ("closed", "Connection refused", "is the host up"),
        ("stranger", r"Permission denied \(publickey\)", "ssh-copy-id stranger"),
        ("locked", r"Permission denied \(publickey\)", "ssh-add"),
        ("unknown", "Host key verification failed", "unknown true once in a terminal"),
        ("changed", "REMOTE HOST IDENTIFICATION HAS CHANGED", "ssh-keygen -R"),
    ],
)
def test_what_ssh_says_is_said(machine: Sshd, host: str, said: str, helps: str) -> None:
    error = refusal(machine, host)
    assert re.match(f"ssh {host}: .*{said}", str(error))
    assert helps in (error.hint or "")


def test_a_python_that_is_not_there_or_too_old(machine: Sshd) -> None:
    error = refusal(machine, "root", python="/usr/bin/python3.0")
    assert str(error).startswith("root: there is no /usr/bin/python3.0 that runs")
    old = machine.there("/mnt/python3.9")
    old.write_text("#!/usr/bin/python3\nimport sys\nsys.version_info = (3, 9, 2)\nexec(sys.argv[-1])\n")
    old.chmod(0o755)
    error = refusal(machine, "root", python="/mnt/python3.9")
    assert str(error) == "root: /mnt/python3.9 is Python 3.9: bpfnb needs 3.10 or newer"


def test_a_machine_that_lacks_things(tmp_path: Path) -> None:
    """Users who may not trace, a cache without room or execution, no bcc, no BTF."""
    mounts = [f"mkdir /mnt/{name}" for name in ("small", "noexec", "others")]
    mounts += ["mount -t tmpfs -o size=20M none /mnt/small", "mount -t tmpfs -o noexec none /mnt/noexec"]
    mounts += ["mkdir -m 777 /mnt/others/bpfnb", "chmod 777 /mnt/others/bpfnb"]
    mounts += [f"mount -t tmpfs none {folder}" for folder in ("/sys/kernel/btf", *bcc_folders())]
    with sshd(tmp_path, *mounts, sudoers="nobody ALL=(root) NOPASSWD: /bin/true\n") as machine:
        error = refusal(machine, "nobody")
        assert isinstance(error, bpfnb.PrivilegeError)
        assert str(error).startswith("nobody: user nobody may not trace there; sudo: ")
        assert list(machine.there("/mnt/nobody").iterdir()) == []
        assert "noexec" in str(refusal(machine, "root", cache="/mnt/noexec"))
        assert re.search(r"has 2\d MB free, and bpfnb needs", str(refusal(machine, "root", cache="/mnt/small")))
        assert "other users can write to /mnt/others/bpfnb" in str(refusal(machine, "root", cache="/mnt/others"))
        with bpfnb.Host.ssh("root", name="lacking", options=machine.options) as host:
            found = {row.name: row for row in host.doctor()}
        assert "iovisor's bcc for Python is not installed" in found["tracer"].found
        assert not found["bcc"].ok
        assert "install" in found["bcc"].remedy
        assert not found["BTF"].ok


def bcc_folders() -> list[str]:
    from bpfnb.tracer.compile.engine import find_bcc

    return [str(find_bcc())]


def test_a_machine_that_there_are_no_packages_for(tmp_path: Path) -> None:
    target = Target("cpython-311-vax-linux-gnu", "vax", (3, 11, 2), "cpython", ("glibc", "2.36"))
    with pytest.raises(bpfnb.SetupError, match=r"there is no wheel of \S+ for Python 3.11 on vax \(glibc 2.36\)"):
        packages_part(target, tmp_path)


def test_without_a_network_what_is_installed_here_is_brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    part = packages_part(Target.here(), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    assert part.size > 10_000_000
    other = Target.here()._replace(machine="aarch64", soabi="cpython-311-aarch64-linux-gnu")
    with pytest.raises(bpfnb.SetupError, match="this machine reaches no package index"):
        packages_part(other, tmp_path / "cache")


# --- what people type ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ipython() -> InteractiveShell:
    config = Config()
    config.HistoryManager.enabled = False
    return InteractiveShell.instance(config=config, colors="nocolor")


@pytest.fixture
def shell(ipython: InteractiveShell, machine: Sshd, monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    monkeypatch.setenv("PATH", f"{machine.bin}:{os.environ['PATH']}")
    ipython.run_line_magic("load_ext", "bpfnb")
    yield ipython
    for host in hosts()[1:]:
        if host.name != "web":
            host.stop_all()
            host.close()


def test_magics(web: bpfnb.Host, shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    def said(line: str) -> str:
        capsys.readouterr()
        shell.run_cell(line)
        return "".join(capsys.readouterr())

    shell.run_cell(f"%%bpf over --host web --pid {os.getpid()} -a syscall:getpgid=f\n{PRINTS}")
    shell.run_cell(f"%bpf count syscall:getpgid --host=web --pid {os.getpid()} --name counted")
    call(30)
    over, counted = shell.user_ns["over"], shell.user_ns["counted"]
    assert (over.host, counted.host) == ("web", "web")
    assert re.search(r"^over +web +running", said("%bpf list"), re.MULTILINE)
    listed = said("%bpf host list").splitlines()
    assert re.match(rf"web +ssh root +connected +{os.uname().release} +[\d.]+ +2$", listed[2])
    assert "syscall:getpgid" in said("%bpf probes syscall:getpgid --host web")
    assert "Tracing works." in said("%bpf doctor --host web")
    assert said("%bpf stop over").startswith("<Session over: stopped on web, 30 rows")
    assert counted.df["count"].tolist() == [30]
    said("%bpf stop --all --host web")
    assert counted.state == "stopped"
    assert "no host called 'wob' is traced; did you mean web?" in said("%bpf stop --all --host wob")
    assert "is left" in said("%bpf run syscount --host root --name calls\n%bpf host stop root")
    assert shell.user_ns["calls"].state == "stopped"
    assert [host.name for host in hosts()] == ["", "web"]


ON_A_LINE = "%bpf count syscall:openat --by comm --host root@web1 --name there -t 1s"
CELL = "%%bpf over --host root@web1 -a syscall:clone=hello"
BLOCK = 'with bpfnb.Host.ssh("root@web1", name="web1") as web1:'


def test_the_examples_of_the_documents(shell: InteractiveShell) -> None:
    shell.run_cell("import bpfnb").raise_error()
    shell.run_cell(EXAMPLES[CELL].text).raise_error()
    for _ in range(3):
        os.waitpid(os.fork() or os._exit(0), 0)
    for name in (ON_A_LINE, BLOCK, 'bpfnb.Host.ssh("root@web1")'):
        shell.run_cell(EXAMPLES[name].text).raise_error()
    values = shell.user_ns
    shell.run_cell("over.stop()").raise_error()
    assert (values["over"].df.pid == os.getpid()).sum() == 3
    assert values["over"].host == values["there"].host == "root@web1"
    assert values["there"].df["count"].sum() > 0
    assert values["opens"].df["count"].sum() > 0
    assert {host.name for host in hosts()} - {"web"} == {"", "root@web1"}  # the block's is closed


def test_a_tool_in_a_terminal(machine: Sshd) -> None:
    words = [sys.executable, "-m", "bpfnb", "run", "execsnoop", "--host", "root", "--json", "--name", "run"]
    environment = {**os.environ, "PATH": f"{machine.bin}:{os.environ['PATH']}"}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(words, stdout=said, env=environment)
        try:
            command = ["/bin/echo", f"bpfnb-{os.getpid()}"]

            def seen() -> bool:
                subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
                return command[1].encode() in os.pread(said.fileno(), 1 << 20, 0)

            until(seen)
        finally:
            process.terminate()
            process.wait()
        assert process.returncode == 0


def test_no_option_of_ssh_is_taken_for_a_host(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "bpfnb", "run", "execsnoop", f"--host=-oProxyCommand=id>{tmp_path}/x"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "not a destination for ssh: '-oProxyCommand=" in done.stderr
    assert list(tmp_path.iterdir()) == []
