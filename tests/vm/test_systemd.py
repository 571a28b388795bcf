"""``bpfnb setup`` on a machine that systemd runs: Debian's 6.12 in QEMU, with this machine's systemd."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_kernels import ROOT, VM, possible  # noqa: F401 (a fixture)

LOCK = ROOT / "bpfnb/setup/tracer.lock"
LIMIT = 600  # seconds; alone on two cores the guest takes 100


@pytest.fixture(scope="module")
def found(possible: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:  # noqa: F811
    """What tests/vm/systemd_guest.py saw. There is no network in the guest: the wheels are fetched here."""
    if not Path("/lib/systemd/systemd").exists():
        pytest.skip("this machine has no systemd to run the guest with")
    wheels = tmp_path_factory.mktemp("wheels")
    tools = tmp_path_factory.mktemp("tools")
    subprocess.run(["/usr/bin/python3", "-I", "-m", "venv", tools], check=True)
    pip = [f"{tools}/bin/python", "-I", "-m", "pip", "--isolated", "download", "-qq", "--disable-pip-version-check"]
    take = ["--require-hashes", "--no-deps", "--only-binary", ":all:", "-d", str(wheels), "-r", str(LOCK)]
    subprocess.run([*pip, *take], check=True)
    guest = [sys.executable, str(ROOT / "tests/vm/systemd_guest.py"), str(wheels)]
    command = [
        VM,
        "run",
        "6.12",
        "--systemd",
        "--timeout",
        str(LIMIT),
        "--",
        "env",
        "PYTHONDONTWRITEBYTECODE=1",
        *guest,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


pytestmark = pytest.mark.timeout(LIMIT + 60)


def test_setup_goes_through_and_once_is_enough(found: dict[str, str]) -> None:
    assert "systemctl restart bpfnb-" in found["setup"]
    assert found["setup"].endswith("then NAME logs in again\n")
    assert found["again"].startswith("nothing to do\n")


def test_a_member_of_the_group_traces(found: dict[str, str]) -> None:
    assert found["way"] == "socket"
    assert found["instances"] >= 1  # type: ignore[operator]


def test_others_get_the_one_line_that_says_how(found: dict[str, str]) -> None:
    (line,) = found["other"].splitlines()
    assert line.startswith("PrivilegeError: user nobody may not trace; members of the group bpfnb may: ")
    assert "sudo usermod -aG bpfnb nobody" in line


def test_the_tracer_has_no_more_than_it_needs(found: dict[str, dict[str, str]]) -> None:
    status = found["status"]
    # dac_read_search, setgid, setuid, ipc_lock, sys_ptrace, sys_admin, syslog, perfmon, bpf
    needed = (2, 6, 7, 14, 19, 21, 34, 38, 39)
    assert int(status["CapBnd"], 16) & ~sum(1 << number for number in needed) == 0
    assert int(status["CapEff"], 16) == 1 << 2 | 1 << 38 | 1 << 39
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert "/bpfnb-" in found["cgroup"]  # type: ignore[comparison-overlap]
    for line in str(found["writes"]).splitlines():
        assert line.endswith("Read-only file system")
    assert len(str(found["writes"]).splitlines()) == 4


def test_stopping_the_service_ends_sessions_in_order(found: dict[str, str]) -> None:
    assert found["after stop"] == "failed 1\n"
    assert found["instances after stop"] == 0


def test_a_killed_supervisor_leaves_nothing(found: dict[str, str]) -> None:
    assert found["after kill"] == "failed 1\n"
    assert found["instances after kill"]


def test_a_killed_notebook_leaves_nothing(found: dict[str, str]) -> None:
    assert found["ends with who traced"]
    assert found["units"]


def test_undo_leaves_nothing(found: dict[str, str]) -> None:
    assert "groupdel bpfnb" in found["undo"]
    assert found["left"] == ""
    assert found["group left"] is False
