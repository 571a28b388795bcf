"""What the doctor says of this machine, against what the machine says itself and what really attaches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from namespaces import ROOT, opened
from other_user import NOBODY, SHADOW

import bpfnb
from bpfnb.host import local, ways
from bpfnb.hosts import default_host
from bpfnb.protocol.messages import Check

Rows = dict[str, Check]

COMMAND = [sys.executable, "-m", "bpfnb", "doctor", "--json"]
SOURCES = Path("/sys/bus/event_source/devices")
# What each row speaks of, where there is something to attach to on every machine.
PROBES = {
    "kprobes": "kprobe:vfs_read",
    "fentry": "fentry:vfs_read",
    "tracepoints": "tracepoint:sched:sched_process_exit",
    "raw tracepoints": "rawtracepoint:sched_process_exit",
    "uprobes": "uprobe:/bin/bash:main",
    "software events": "profile:9",
    "hardware events": "hardware:cpu-cycles",
    "syscall probes": "syscall:getpgid",
}

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def examined() -> Rows:
    return {row.name: row for row in bpfnb.doctor()}


@pytest.fixture(scope="module")
def rows(_tracing: int) -> Rows:
    return examined()


def attaches(probe: str) -> bool:
    """Whether a cell can really be attached there."""
    try:
        with bpfnb.trace("int f(void *ctx) { return 0; }", attach={probe: "f"}):
            return True
    except bpfnb.BpfnbError:
        return False


def setting(name: str) -> str:
    return Path("/proc/sys", name).read_text().strip()


def configured() -> dict[str, str]:
    """This kernel's configuration, as zcat and grep read it; {} where it is not to be had."""
    release = os.uname().release
    command = f"(zcat /proc/config.gz || cat /boot/config-{release} || cat /lib/modules/{release}/config) 2>/dev/null"
    done = subprocess.run(["sh", "-c", f"{command} | grep ^CONFIG_"], capture_output=True, text=True, check=False)
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


# --- what is found ------------------------------------------------------------------------------------------------


@pytest.mark.portable
def test_the_findings_are_this_machines() -> None:
    rows = examined()
    assert {name: row for name, row in rows.items() if row.level == "required" and not row.ok} == {}
    assert rows["kernel"].found == f"Linux {os.uname().release} on {os.uname().machine}"
    assert rows["kprobes"].ok == (SOURCES / "kprobe/type").exists() == attaches("kprobe:vfs_read")
    assert rows["uprobes"].ok == (SOURCES / "uprobe/type").exists()
    assert rows["fentry"].ok == attaches("fentry:vfs_read")
    assert rows["syscall probes"].found == f"attach as {'kprobe' if rows['kprobes'].ok else 'tracepoint'}s"
    assert rows["BTF"].ok == Path("/sys/kernel/btf/vmlinux").exists()
    assert rows["JIT"].ok == (setting("net/core/bpf_jit_enable") != "0")
    assert rows["perf_event_paranoid"].found.startswith(setting("kernel/perf_event_paranoid") + ":")
    assert rows["ring buffers"].ok  # Linux 5.8, and this lane's kernels are newer
    for kind, name in {"debugfs": "debugfs", "bpf": "bpffs", "tracefs": "tracefs"}.items():
        places = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if line.split()[2] == kind]
        assert (rows[name].found.removeprefix("mounted at ") in places) == rows[name].ok == bool(places)
    config = configured()
    for name, row in rows.items():
        if name.startswith("CONFIG_"):
            value = config.get(name, "not set")
            assert row.found.startswith(value if config else "cannot be read")
            assert row.state == ("unknown" if not config else "ok" if value in "ym" else "missing"), row


@pytest.mark.parametrize("name", PROBES)
def test_what_is_said_to_attach_attaches(rows: Rows, name: str) -> None:
    assert rows[name].ok == attaches(PROBES[name])


def test_capabilities_are_the_tracers(rows: Rows) -> None:
    status = Path(f"/proc/{default_host.connect().hello().pid}/status").read_text()
    held = int(status.partition("CapPrm:")[2].split()[0], 16)
    known = {"CAP_DAC_READ_SEARCH": 2, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
    assert {name: name in rows["capabilities"].found for name in known} == {
        n: bool(held >> c & 1) for n, c in known.items()
    }
    assert f"process {default_host.connect().hello().pid}" in rows["tracer"].found


def test_bcc_is_the_one_that_is_used(rows: Rows) -> None:
    loaded = Path(f"/proc/{default_host.connect().hello().pid}/maps").read_text()
    assert "libbcc.so.0" in loaded
    version, _, folder = rows["bcc"].found.partition(" in ")
    assert version == default_host.connect().hello().bcc
    assert Path(folder, "libbcc.py").exists()


def test_the_tracer_has_nothing_of_the_notebooks_side() -> None:
    """It imports numpy. To import pandas as well took longer than all the rest of its start."""
    loaded = Path(f"/proc/{default_host.connect().hello().pid}/maps").read_text()
    assert "/numpy/" in loaded
    assert "/pandas/" not in loaded
    assert "/pyarrow/" not in loaded


def test_findings_of_ours_name_their_remedy(rows: Rows) -> None:
    """Whatever is not configured can be had with another kernel."""
    missing = [row for row in rows.values() if row.name.startswith("CONFIG_") and row.state == "missing"]
    assert all(row.name in row.remedy for row in missing)
    assert rows["kprobes"].ok or not configured() or "CONFIG_KPROBES is not set" in rows["kprobes"].found


# --- what it costs ------------------------------------------------------------------------------------------------


def test_it_is_quick_and_leaves_nothing(rows: Rows) -> None:
    """Descriptors, programs, maps, links and instances are every test's to check (conftest.py); probes are not."""
    begun = time.monotonic()
    for _ in range(3):
        bpfnb.doctor()
    assert time.monotonic() - begun < 6
    made = [Path("/sys/kernel/tracing", name) for name in ("uprobe_events", "kprobe_events")]
    assert not [path for path in made if path.exists() and "bpfnb_check" in path.read_text()]


def test_sessions_go_on() -> None:
    with bpfnb.trace(
        'int hit(void *ctx) { bpf_trace_printk("hit"); return 0; }', attach={"syscall:getpgid": "hit"}
    ) as s:
        os.getpgid(0)
        assert bpfnb.doctor().ok
        os.getpgid(0)
        assert list(bpfnb.sessions().values()) == [s]
    assert (s.df.pid == os.getpid()).sum() == 3  # the doctor's own call was the third


# --- where something is missing -----------------------------------------------------------------------------------


def command(*wrapper: str, cwd: str | Path = "/", **environment: str) -> tuple[int, Rows]:
    """`bpfnb doctor` as a command: its exit status, and its rows."""
    done = subprocess.run(
        [*wrapper, *COMMAND],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
        env=os.environ | environment,
        check=False,
    )
    assert not done.stderr, done.stderr
    report = json.loads(done.stdout)
    rows = {
        row["name"]: Check(
            row["name"], row["level"], row["state"] == "ok", row["found"], row["remedy"], row["state"] != "unknown"
        )
        for row in report["rows"]
    }
    assert report["ok"] == (done.returncode == 0)
    return done.returncode, rows


def lacking(rows: Rows) -> set[str]:
    return {name for name, row in rows.items() if row.level == "required" and not row.ok}


def inside(*commands: str, bounding: str = "") -> list[str]:
    """What runs a command in a mount namespace of its own, after others."""
    limit = ["setpriv", "--bounding-set", bounding] if bounding else []
    return ["unshare", "--mount", "sh", "-ec", "\n".join([*commands, 'exec "$@"']), "sh", *limit]


def as_nobody(*, ambient: bool = False) -> tuple[int, Rows]:
    """The command as a user without sudo; ``ambient``: with the three capabilities."""
    shadow = SHADOW
    commands = ["umask 022", f"mkdir -p {shadow} && mount -t tmpfs -o mode=755 none {shadow}"]
    for number, folder in enumerate({Path(sys.base_prefix), ROOT, Path(sys.prefix)}):
        commands += opened(folder, shadow / str(number))
    become = ["setpriv", "--reuid", str(NOBODY.pw_uid), "--regid", str(NOBODY.pw_gid), "--clear-groups"]
    if ambient:
        capabilities = "+bpf,+perfmon,+dac_read_search"
        become += ["--inh-caps", capabilities, "--ambient-caps", capabilities]
    try:
        return command(*inside(*commands), *become, HOME="/nonexistent")
    finally:
        with suppress(FileNotFoundError):
            shadow.rmdir()


def test_the_command_says_that_tracing_works() -> None:
    status, rows = command()
    assert (status, lacking(rows)) == (0, set())


def test_without_bcc(rows: Rows, tmp_path: Path) -> None:
    status, found = command(BPFNB_BCC=str(tmp_path))
    assert status == 1
    assert lacking(found) == {"tracer", "bcc"}
    assert any(package in found["bcc"].remedy for package in ("python3-bpfcc", "python3-bcc", "python-bcc"))
    assert "not installed" in found["tracer"].found
    # All else is tried out as always.
    for name in (*PROBES, "ring buffers", "BTF", "JIT", "CONFIG_DUMMY", "bpf_trace_printk"):
        assert (name, found[name].state) == (name, rows[name].state)


@root_only
def test_without_rights() -> None:
    status, rows = as_nobody()
    assert status == 1
    assert "sudo" in rows["tracer"].remedy
    assert (rows["capabilities"].level, rows["capabilities"].state) == ("required", "missing")
    assert "CAP_BPF" in rows["capabilities"].remedy
    for name in ("BPF programs", "fentry", "ring buffers", "bpf_trace_printk"):
        assert rows[name].state == "unknown"
    assert rows["bcc"].ok
    assert rows["BTF"].ok
    assert rows["CONFIG_BPF"].ok


@root_only
def test_three_capabilities_trace_but_do_not_print() -> None:
    status, rows = as_nobody(ambient=True)
    assert (status, lacking(rows)) == (0, set())
    assert (rows["bpf_trace_printk"].state, rows["a first trace"].ok) == ("ok", True)
    assert rows["bpf_trace_printk"].found.startswith("goes through a ring buffer")
    assert f"user {NOBODY.pw_uid} with" in rows["capabilities"].found


@root_only
def test_without_tracefs() -> None:
    status, rows = command(*inside("umount -l /sys/kernel/tracing", bounding="-sys_admin"))
    assert status == 1
    assert {"tracefs", "a first trace"} <= lacking(rows)
    assert "mount -t tracefs" in rows["tracefs"].remedy
    assert rows["BPF programs"].ok


@root_only
def test_tracefs_is_mounted_by_the_tracer() -> None:
    status, rows = command(*inside("umount -l /sys/kernel/tracing"))
    assert (status, rows["tracefs"].ok) == (0, True)


def test_a_tracer_that_dies() -> None:
    """With its last words, and the next one starts."""
    dies = (sys.executable, "-c", "import sys; sys.exit('libLLVM is broken')")
    those = iter([ways.Way("direct", dies)])
    with bpfnb.Host(lambda: local.launch(next(those, None))) as host:
        rows = {row.name: row for row in host.doctor()}
        assert "libLLVM is broken" in rows["tracer"].found
        assert rows["BPF programs"].ok
        assert host.doctor().ok
