"""The doctor: kernels, distributions and packages it has never met, and how it says what it found."""

from __future__ import annotations

import gzip
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import bpfnb
from bpfnb.__main__ import main
from bpfnb.errors import BpfnbError, PrivilegeError, SetupError, TracerDied
from bpfnb.host import ways
from bpfnb.host.tracer import Tracer
from bpfnb.hosts import default_host
from bpfnb.protocol.messages import Check
from bpfnb.testing import FakeTracer
from bpfnb.tracer.doctor import checks, distribution, kconfig
from bpfnb.tracer.doctor.checks import Machine, Outcome
from bpfnb.tracer.doctor.distribution import Distribution
from bpfnb.tracer.doctor.kconfig import Config
from bpfnb.tracer.kernel import features

doctor = importlib.import_module("bpfnb.doctor")  # "bpfnb.doctor" itself is the function

SEED = [  # what the text that bpfnb began with asks of a kernel
    *("CONFIG_BPF", "CONFIG_BPF_SYSCALL", "CONFIG_NET_CLS_BPF", "CONFIG_NET_ACT_BPF", "CONFIG_BPF_JIT"),
    *("CONFIG_HAVE_BPF_JIT", "CONFIG_HAVE_EBPF_JIT", "CONFIG_BPF_EVENTS", "CONFIG_NET_SCH_SFQ"),
    *("CONFIG_NET_ACT_POLICE", "CONFIG_NET_ACT_GACT", "CONFIG_DUMMY", "CONFIG_VXLAN"),
]
DEBIAN = Distribution("Debian GNU/Linux 12 (bookworm)", "debian", "debian", Path("/nonexistent"))  # in no container
HOSTILE = "<script>alert('x')</script>\x1b[31m\u202e"


@pytest.fixture(autouse=True)
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root, whoever runs the tests."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.delenv("SUDO_UID", raising=False)


def machine(
    config: Config,
    outcome: Outcome | Callable[[object], Outcome],
    release: str = "6.1.0",
    vendor: Distribution = DEBIAN,
    root: Path = Path("/"),
) -> Machine:
    """A machine on which everything that is tried comes out in one way, or as a function says."""
    act = outcome if callable(outcome) else lambda act: outcome
    return Machine(release, "x86_64", vendor, config, act, root=root)


def option(name: str, config: Config, outcome: Outcome, release: str = "6.1.0", vendor: Distribution = DEBIAN) -> Check:
    (row,) = (row for row in checks.option_rows(machine(config, outcome, release, vendor)) if row.name == name)
    return row


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


WORKS, UNTRIED = Outcome(True), Outcome(None, "not tried: it takes the tracer's rights")
REFUSED = Outcome(False, "Operation not permitted", 1)
EMPTY, UNREADABLE = Config("/boot/config-6.1.0", {}), Config("", {}, "there is none")


class TestOptions:
    @pytest.mark.parametrize(
        ("release", "jit"),
        [
            ("4.0.9", set()),
            ("4.1.0", {"CONFIG_HAVE_BPF_JIT"}),
            ("4.6.7-300.fc24.x86_64", {"CONFIG_HAVE_BPF_JIT"}),
            ("4.7.0-rc1+", {"CONFIG_HAVE_EBPF_JIT"}),
            ("4.18.0-15-generic", {"CONFIG_HAVE_EBPF_JIT"}),
            ("6.18.44-fc-v669", {"CONFIG_HAVE_EBPF_JIT"}),
            ("7.0-rc1", {"CONFIG_HAVE_EBPF_JIT"}),
        ],
    )
    def test_every_option_of_the_seed_where_the_version_has_it(self, release: str, jit: set[str]) -> None:
        names = [option.name for option in kconfig.options(release)]
        assert len(names) == len(set(names))
        assert set(names) == {name for name in SEED if not name.startswith("CONFIG_HAVE_")} | jit

    def test_required_is_what_tracing_cannot_do_without(self) -> None:
        required = {option.name for option in kconfig.options("6.1") if option.level == "required"}
        assert required == {"CONFIG_BPF", "CONFIG_BPF_SYSCALL", "CONFIG_BPF_EVENTS"}

    def test_built_in_and_module_are_both_there(self) -> None:
        config = Config("/proc/config.gz", {"CONFIG_NET_CLS_BPF": "y", "CONFIG_VXLAN": "m"})
        assert option("CONFIG_NET_CLS_BPF", config, WORKS).found == "y, for tc filters"
        assert option("CONFIG_VXLAN", config, WORKS).found == "m, a module, for bcc's networking examples"
        assert option("CONFIG_VXLAN", config, WORKS).ok
        missing = option("CONFIG_DUMMY", config, WORKS)
        assert (missing.state, missing.found) == ("missing", "not set, for bcc's networking examples")
        assert "CONFIG_DUMMY" in missing.remedy
        assert "make menuconfig" in missing.remedy
        assert "apt install linux-image-amd64" in missing.remedy

    @pytest.mark.parametrize(
        ("value", "outcome", "state", "found"),
        [
            ("y", WORKS, "ok", "y, and a program loads"),
            ("y", REFUSED, "ok", "y, yet no program loads (Operation not permitted)"),
            ("", WORKS, "ok", "not set, yet a program loads"),
            ("", REFUSED, "missing", "not set, and no program loads (Operation not permitted)"),
            ("y", UNTRIED, "ok", "y, for loading programs"),
            ("", UNTRIED, "missing", "not set, for loading programs"),
        ],
    )
    def test_the_option_and_what_was_tried_are_both_said(
        self, value: str, outcome: Outcome, state: str, found: str
    ) -> None:
        row = option(
            "CONFIG_BPF_SYSCALL", EMPTY._replace(values={"CONFIG_BPF_SYSCALL": value} if value else {}), outcome
        )
        assert (row.level, row.state, row.found) == ("required", state, found)
        assert bool(row.remedy) == (state == "missing")

    @pytest.mark.parametrize("outcome", [WORKS, REFUSED, UNTRIED])
    def test_what_cannot_be_read_is_not_guessed(self, outcome: Outcome) -> None:
        rows = list(checks.option_rows(machine(UNREADABLE, outcome)))
        assert len(rows) == len(SEED) - 1
        for row in rows:
            assert (row.level, row.state) == ("info", "unknown")
            assert row.found.startswith("cannot be read; ")
        assert ("; a program loads" in rows[0].found) == bool(outcome.works)

    def test_a_distributions_own_kernel_is_not_offered_against_itself(self) -> None:
        row = option("CONFIG_DUMMY", EMPTY, WORKS, release="6.1.0-25-amd64")
        assert row.remedy == "boot a kernel built with CONFIG_DUMMY (make menuconfig)"

    def test_in_a_container_no_kernel_is_to_be_installed(self, tmp_path: Path) -> None:
        vendor = DEBIAN._replace(root=tmp_path)
        assert "install" in option("CONFIG_DUMMY", EMPTY, WORKS, vendor=vendor).remedy
        (tmp_path / ".dockerenv").touch()
        assert "install" not in option("CONFIG_DUMMY", EMPTY, WORKS, vendor=vendor).remedy


class TestConfiguration:
    TEXT = '# Linux\nCONFIG_BPF=y\n# CONFIG_DUMMY is not set\nCONFIG_VXLAN=m\nCONFIG_LSM="lockdown,bpf"\n'

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        for folder in ("proc", "boot", "lib/modules/6.1.0"):
            (tmp_path / folder).mkdir(parents=True)
        return tmp_path

    def test_of_the_running_kernel_first(self, root: Path) -> None:
        (root / "proc/config.gz").write_bytes(gzip.compress(self.TEXT.encode()))
        (root / "boot/config-6.1.0").write_text("CONFIG_OTHER=y\n")
        config = kconfig.read("6.1.0", root)
        assert config.source == str(root / "proc/config.gz")
        assert config.values == {"CONFIG_BPF": "y", "CONFIG_VXLAN": "m", "CONFIG_LSM": '"lockdown,bpf"'}
        assert [config.is_set(f"CONFIG_{name}") for name in ("BPF", "VXLAN", "DUMMY", "NONE")] == [
            True,
            True,
            False,
            False,
        ]
        assert config.say("CONFIG_BPF") == "CONFIG_BPF=y"
        assert config.say("CONFIG_DUMMY") == "CONFIG_DUMMY is not set"

    @pytest.mark.parametrize("place", ["boot/config-6.1.0", "lib/modules/6.1.0/config"])
    def test_else_beside_the_kernel(self, root: Path, place: str) -> None:
        (root / place).write_text(self.TEXT)
        (root / "boot/config-6.2.0").write_text("CONFIG_OTHER=y\n")
        assert kconfig.read("6.1.0", root) == Config(str(root / place), kconfig.read("6.1.0", root).values)
        assert kconfig.read("6.1.0", root).is_set("CONFIG_BPF")

    @pytest.mark.parametrize("data", [b"no gzip", gzip.compress(b"CONFIG_BPF=y\n")[:-6], b"\x1f\x8b\x08\0" + b"x" * 20])
    def test_a_broken_file_is_passed_over_and_named(self, root: Path, data: bytes) -> None:
        (root / "proc/config.gz").write_bytes(data)
        config = kconfig.read("6.1.0", root)
        assert (config.source, config.say("CONFIG_BPF")) == ("", "")
        assert str(root / "proc/config.gz") in config.why
        (root / "boot/config-6.1.0").write_text(self.TEXT)
        assert kconfig.read("6.1.0", root).is_set("CONFIG_BPF")

    def test_where_there_is_none_the_ways_to_one_are_named(self, root: Path) -> None:
        config = kconfig.read("6.1.0-25-amd64", root)
        assert config.why == "there is neither /proc/config.gz nor /boot/config-6.1.0-25-amd64"
        rows = {row.name: row for row in checks.checks(machine(config, UNTRIED, "6.1.0-25-amd64"))}
        row = rows["kernel configuration"]
        assert (row.level, row.state) == ("info", "unknown")
        assert "modprobe configs" in row.remedy
        assert "apt install linux-image-6.1.0-25-amd64" in row.remedy


def os_release(**fields: str) -> Callable[[], dict[str, str]]:
    """Reads this os-release, as platform.freedesktop_os_release does: with its defaults."""
    return lambda: {"NAME": "Linux", "ID": "linux", "PRETTY_NAME": "Linux", **fields}


def no_os_release() -> dict[str, str]:
    raise OSError("Unable to read files /etc/os-release, /usr/lib/os-release")


class TestDistributions:
    @pytest.mark.parametrize(
        ("fields", "bcc", "kernel"),
        [
            (
                {"ID": "debian", "PRETTY_NAME": "Debian GNU/Linux 12"},
                "apt install python3-bpfcc",
                "apt install linux-image-amd64",
            ),
            ({"ID": "ubuntu", "ID_LIKE": "debian"}, "apt install python3-bpfcc", "apt install linux-image-generic"),
            ({"ID": "linuxmint", "ID_LIKE": "ubuntu debian"}, "apt install python3-bpfcc", ""),
            ({"ID": "raspbian", "ID_LIKE": "debian"}, "apt install python3-bpfcc", ""),
            ({"ID": "fedora"}, "dnf install python3-bcc", "dnf install kernel"),
            ({"ID": "rhel", "ID_LIKE": "fedora"}, "dnf install python3-bcc", "dnf install kernel"),
            ({"ID": "rocky", "ID_LIKE": "rhel centos fedora"}, "dnf install python3-bcc", ""),
            ({"ID": "arch"}, "pacman -S python-bcc", "pacman -S linux"),
            (
                {"ID": "opensuse-tumbleweed", "ID_LIKE": "opensuse suse"},
                "zypper install python3-bcc",
                "zypper install kernel-default",
            ),
            ({"ID": "opensuse-microos", "ID_LIKE": "opensuse suse"}, "", ""),
            ({"ID": "sles", "ID_LIKE": "suse"}, "", ""),
            ({"ID": "nixos"}, "", ""),
            ({}, "", ""),
            ({"ID": "'unclosed"}, "", ""),
        ],
    )
    def test_each_with_its_own_commands(self, tmp_path: Path, fields: dict[str, str], bcc: str, kernel: str) -> None:
        found = distribution.here(tmp_path, os_release(**fields))
        assert (found.install_bcc(), found.install_kernel("x86_64")) == (bcc, kernel)
        assert found.name

    @pytest.mark.parametrize(
        ("vendor", "release", "package"),
        [
            ("debian", "6.1.0-25-amd64", "linux-headers-6.1.0-25-amd64"),
            ("debian", "6.12.117+deb12-cloud-arm64", "linux-headers-6.12.117+deb12-cloud-arm64"),
            ("debian", "6.18.44-fc-v669", ""),
            ("ubuntu", "6.8.0-45-generic", "linux-headers-6.8.0-45-generic"),
            ("ubuntu", "6.5.0-1020-aws", "linux-headers-6.5.0-1020-aws"),
            ("ubuntu", "5.15.153.1-microsoft-standard-WSL2", ""),
            ("fedora", "6.11.4-301.fc41.x86_64", "kernel-devel-6.11.4-301.fc41.x86_64"),
            ("fedora", "6.11.4", ""),
            ("arch", "6.11.5-arch1-1", "linux-headers"),
            ("arch", "6.6.58-1-lts", "linux-lts-headers"),
            ("opensuse-leap", "6.4.0-150600.23.25-default", "kernel-default-devel"),
        ],
    )
    def test_headers_only_of_a_kernel_that_is_its_own(
        self, tmp_path: Path, vendor: str, release: str, package: str
    ) -> None:
        found = distribution.here(tmp_path, os_release(ID=vendor))
        command = found.install_headers(release)
        assert command.split()[-1:] == ([package] if package else [])
        assert found.owns_kernel(release) == bool(package)

    def test_no_os_release(self, tmp_path: Path) -> None:
        assert distribution.here(tmp_path, no_os_release) == Distribution("unknown", "", "", tmp_path)

    @pytest.mark.parametrize(
        ("user", "sudo_uid", "path", "command"),
        [
            (0, None, "/usr/bin/sudo", "x"),
            (0, "1000", "/usr/bin/sudo", "sudo x"),  # a tracer that was started with sudo speaks to who started it
            (1000, None, "/usr/bin/sudo", "sudo x"),
            (1000, None, None, "as root: x"),
        ],
    )
    def test_root_needs_no_sudo(
        self, monkeypatch: pytest.MonkeyPatch, user: int, sudo_uid: str | None, path: str | None, command: str
    ) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: user)
        monkeypatch.setattr(distribution.shutil, "which", lambda name: path)
        if sudo_uid:
            monkeypatch.setenv("SUDO_UID", sudo_uid)
        assert distribution.as_root("x") == command


class TestMachine:
    """Rows of machines that are not this one."""

    def rows(
        self, outcome: Outcome | Callable[[object], Outcome], root: Path = Path("/"), **config: str
    ) -> dict[str, Check]:
        values = {f"CONFIG_{name}": value for name, value in config.items()}
        return {row.name: row for row in checks.checks(machine(EMPTY._replace(values=values), outcome, root=root))}

    def test_the_required_come_first_and_the_informational_last(self) -> None:
        levels = [row.level for row in self.rows(WORKS).values()]
        assert levels == sorted(levels, key=["required", "optional", "info"].index)

    def test_a_feature_that_is_not_configured(self) -> None:
        row = self.rows(Outcome(False, "this kernel has no kprobes", 2), PERF_EVENTS="y")["kprobes"]
        assert row.found == "no: this kernel has no kprobes; CONFIG_KPROBES is not set"
        assert "CONFIG_KPROBES" in row.remedy
        assert row.level == "optional"

    def test_a_feature_that_is_configured_and_refused(self) -> None:
        row = self.rows(REFUSED, DEBUG_INFO_BTF="y", DYNAMIC_FTRACE_WITH_DIRECT_CALLS="y")["fentry"]
        assert row.found == (
            "no: Operation not permitted, though CONFIG_DEBUG_INFO_BTF=y, CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS=y"
        )
        assert not row.remedy

    def test_a_feature_that_works_against_the_configuration(self) -> None:
        assert self.rows(WORKS, PERF_EVENTS="y")["uprobes"].found.endswith(
            "attach, though CONFIG_UPROBE_EVENTS is not set"
        )
        assert self.rows(WORKS)["ring buffers"].found == "BPF_RINGBUF_OUTPUT can be made"

    def test_a_setting_that_forbids_perf_events(self, tmp_path: Path) -> None:
        write(tmp_path / "proc/sys/kernel/perf_event_paranoid", "3\n")
        write(tmp_path / "proc/thread-self/status", f"CapInh:\t0\nCapPrm:\t{1 << 38 | 1 << 39:016x}\n")
        options = {"PERF_EVENTS": "y", "TRACEPOINTS": "y", "FTRACE_SYSCALLS": "y"}
        rows = self.rows(Outcome(False, "Permission denied", 13), tmp_path, **options)
        assert rows["tracepoints"].remedy == "sysctl kernel.perf_event_paranoid=2"
        assert rows["syscall probes"].remedy == "sysctl kernel.perf_event_paranoid=2"
        assert not rows["raw tracepoints"].remedy
        assert rows["perf_event_paranoid"].found.startswith("3: ")

    def test_the_interpreter_is_named_with_the_setting_that_ends_it(self, tmp_path: Path) -> None:
        write(tmp_path / "proc/sys/net/core/bpf_jit_enable", "0\n")
        row = self.rows(Outcome(False), tmp_path)["JIT"]
        assert (row.level, row.found) == ("optional", "programs are interpreted: net.core.bpf_jit_enable is 0")
        assert row.remedy == "sysctl net.core.bpf_jit_enable=1"

    @pytest.mark.parametrize(
        ("text", "outcome", "state"),
        [
            ("[none] integrity confidentiality\n", WORKS, "ok"),
            ("none [integrity] confidentiality\n", WORKS, "ok"),
            ("none integrity [confidentiality]\n", Outcome(False, "Invalid argument", 22), "missing"),
            ("none integrity [confidentiality]\n", UNTRIED, "missing"),
            ("none [integrity] confidentiality\n", UNTRIED, "ok"),
            (None, WORKS, "ok"),
            (None, Outcome(False, "Invalid argument", 22), "missing"),
            (None, UNTRIED, "unknown"),
        ],
    )
    def test_lockdown(self, tmp_path: Path, text: str | None, outcome: Outcome, state: str) -> None:
        if text:
            write(tmp_path / "sys/kernel/security/lockdown", text)
        row = self.rows(outcome, tmp_path)["lockdown"]
        assert (row.level, row.state) == ("required", state)
        assert ("boot without" in row.remedy) == (text is not None and state == "missing")

    @pytest.mark.parametrize(
        ("active", "state", "remedy"),
        [
            ("lockdown,capability,bpf", "ok", ""),
            ("lockdown,capability", "missing", "boot with lsm=lockdown,capability,bpf"),
            (None, "ok", ""),
        ],
    )
    def test_lsm_programs_that_are_never_run(self, tmp_path: Path, active: str | None, state: str, remedy: str) -> None:
        if active:
            write(tmp_path / "sys/kernel/security/lsm", active)
        row = self.rows(WORKS, tmp_path, DEBUG_INFO_BTF="y", BPF_LSM="y")["LSM hooks"]
        assert (row.state, row.remedy) == (state, remedy)

    @pytest.mark.parametrize(
        ("release", "there"), [("4.18.0", True), ("5.10.200", True), ("5.11.0", False), ("6.1", False)]
    )
    def test_locked_memory_matters_before_5_11(self, release: str, there: bool) -> None:
        rows = {row.name for row in checks.checks(machine(EMPTY, WORKS, release))}
        assert ("locked memory" in rows) == there

    def test_without_rights_nothing_is_tried_and_nothing_claimed(self) -> None:
        rows = self.rows(UNTRIED)
        for name in ("kprobes", "fentry", "ring buffers", "JIT", "BPF programs", "bpf_trace_printk", "syscall probes"):
            assert (rows[name].state, rows[name].found) == ("unknown", UNTRIED.why)

    def test_a_check_that_goes_wrong_costs_no_other(self) -> None:
        def broken(machine: Machine) -> None:
            raise ZeroDivisionError("of course")

        table = (checks.Row("a", "required", broken), *checks.ROWS)
        rows = {row.name: row for row in checks.checks(machine(EMPTY, WORKS), table)}
        assert (rows["a"].state, rows["a"].found) == ("unknown", "cannot be checked: of course")
        assert rows["BTF"].ok or rows["BTF"].remedy

    @pytest.mark.parametrize(
        ("error", "outcome"),
        [
            (PermissionError(13, "Permission denied"), Outcome(False, "Permission denied", 13)),
            (SetupError("tracefs is not mounted"), Outcome(False, "tracefs is not mounted")),
            (ValueError("strange"), Outcome(None, "cannot be tried: strange")),
        ],
    )
    def test_trying_never_raises(self, error: Exception, outcome: Outcome) -> None:
        def act() -> None:
            raise error

        assert checks.attempt("", act) == outcome
        assert checks.attempt("forbidden", act) == Outcome(None, "forbidden")

    def test_a_missing_bcc_and_missing_headers_come_with_the_command(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("BPFNB_BCC", str(tmp_path))
        lacking = machine(EMPTY, WORKS, "6.1.0-25-amd64", root=tmp_path)
        rows = {row.name: row for row in checks.checks(lacking)}
        assert (rows["bcc"].level, rows["bcc"].state) == ("required", "missing")
        assert rows["bcc"].remedy == "apt install python3-bpfcc"
        assert (rows["kernel headers"].level, rows["kernel headers"].state) == ("required", "missing")
        assert rows["kernel headers"].remedy == "apt install linux-headers-6.1.0-25-amd64"
        assert rows["BTF"].found.endswith("; CONFIG_DEBUG_INFO_BTF is not set")
        assert "CONFIG_DEBUG_INFO_BTF" in rows["BTF"].remedy

    def test_a_function_that_btf_does_not_know(self) -> None:
        with pytest.raises(FileNotFoundError, match="no function vfs_read"):
            features.type_id("vfs_read", {"vfs_write": 7})


class TestReport:
    ROWS = (
        Check("kernel", "info", True, "Linux"),
        Check("kprobes", "optional", False, HOSTILE, HOSTILE),
        Check("bcc", "required", True, "0.26"),
        Check("uprobes", "optional", False, "not tried", known=False),
    )

    def test_is_a_sequence_with_the_required_first(self) -> None:
        report = doctor.Report(self.ROWS)
        assert [row.name for row in report] == ["bcc", "kprobes", "uprobes", "kernel"]
        assert (len(report), report[0].name, report[1:3]) == (4, "bcc", report.rows[1:3])
        assert report.ok

    @pytest.mark.parametrize("known", [True, False])
    def test_something_required_that_is_missing_or_unknown_is_not_ok(self, known: bool) -> None:
        assert not doctor.Report([*self.ROWS, Check("tracefs", "required", False, "", known=known)]).ok

    def test_as_a_frame(self) -> None:
        df = doctor.Report(self.ROWS).df
        assert list(df.columns) == ["name", "level", "state", "found", "remedy"]
        assert list(df.state) == ["ok", "missing", "unknown", "ok"]
        assert list(doctor.Report([]).df.columns) == list(df.columns)

    def test_shows_itself_and_escapes_everything(self) -> None:
        report = doctor.Report(self.ROWS)
        assert repr(report).startswith("Tracing works.\n")
        assert report._repr_html_().startswith("<div")
        for shown in (repr(report), report._repr_html_()):
            assert "\x1b" not in shown
            assert "\u202e" not in shown
        assert "<script" not in report._repr_html_()


class TestPython:
    @pytest.mark.parametrize(
        ("version", "wanted", "fits"),
        [
            ("7.4.0", ">=6.29,!=7.0.*", True),
            ("6.31.0", "!=7.0.*,>=6.29", True),
            ("7.0.1", ">=6.29,!=7.0.*", False),
            ("7.0.0rc1", ">=6.29,!=7.0.*", False),
            ("6.28.9", ">=6.29,!=7.0.*", False),
            ("8.1.9", ">=8.1", True),
            ("8.1", ">=8.1", True),
            ("10.0.dev3+g12", ">=8.1", True),
            ("1.0", "", True),
            ("8.1rc1", ">=8.1", False),
            ("my own build", ">=8.1", True),
        ],
    )
    def test_versions(self, version: str, wanted: str, fits: bool) -> None:
        assert doctor._fits(version, wanted) == fits

    def test_pyproject_asks_in_no_other_way(self) -> None:
        for wanted in doctor._requirements().values():
            assert all(clause.strip()[:2] in (">=", "!=") for clause in wanted.split(",")), wanted
        assert doctor._PACKAGES.keys() <= doctor._requirements().keys()

    def test_ipykernel_7_0_is_named_with_the_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(metadata, "version", lambda name: "7.0.1")
        row = doctor._package("ipykernel", ">=6.29,!=7.0.*", "it runs the notebook")
        assert (row.level, row.state) == ("optional", "missing")
        assert row.found.startswith("7.0.1, but bpfnb needs >=6.29,!=7.0.*")
        assert row.remedy == f"{sys.executable} -m pip install 'ipykernel>=6.29,!=7.0.*'"

    def test_a_package_that_is_not_there(self) -> None:
        row = doctor._package("pyarrow", ">=15", "it is there")
        assert row.ok
        row = doctor._package("no-such-package", ">=1", "it is missed")
        assert (row.state, row.found) == ("missing", "is not installed; it is missed")

    def test_each_kind_of_environment_has_its_installer(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        assert doctor._install("x>=1") == f"uv pip install --python {sys.executable} 'x>=1'"
        (tmp_path / "EXTERNALLY-MANAGED").touch()
        monkeypatch.setattr(sys, "prefix", sys.base_prefix)
        monkeypatch.setattr(doctor.sysconfig, "get_path", lambda name: str(tmp_path))
        assert "virtual environment" in doctor._install("x>=1")
        (tmp_path / "conda-meta").mkdir()
        monkeypatch.setattr(sys, "prefix", str(tmp_path))
        assert doctor._install("x>=1") == f"conda install -p {tmp_path} -c conda-forge 'x>=1'"

    def test_the_other_bcc_is_named(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        assert list(doctor._impostor()) == []
        (tmp_path / "bcc").mkdir()
        (tmp_path / "bcc/__init__.py").touch()
        monkeypatch.syspath_prepend(tmp_path)
        (row,) = doctor._impostor()
        assert (row.name, row.level, row.ok) == ("bcc of PyPI", "info", False)
        assert row.remedy.endswith("-m pip uninstall bcc")
        (tmp_path / "bcc/libbcc.py").touch()  # now it is iovisor's
        assert list(doctor._impostor()) == []

    def test_widgets_need_an_extension_beside_the_server(self, tmp_path: Path) -> None:
        server = tmp_path
        row = doctor._widgets(server, in_notebook=True)
        assert (row.level, row.state) == ("optional", "missing")
        assert row.remedy == f"{server}/bin/python -m pip install jupyterlab_widgets"
        (server / doctor._WIDGETS).parent.mkdir(parents=True)
        (server / doctor._WIDGETS).write_text('{"version": "5.0.15"}')
        row = doctor._widgets(server, in_notebook=True)
        assert row.ok
        assert "5.0.15" in row.found

    def test_jupyters_version_is_the_servers(self, tmp_path: Path) -> None:
        server = tmp_path
        assert doctor._front_ends(server).state == "unknown"
        package = server / "lib/python3.12/site-packages/jupyterlab-4.2.1.dist-info"
        package.mkdir(parents=True)
        (package / "METADATA").write_text("Metadata-Version: 2.1\nName: jupyterlab\nVersion: 4.2.1\n")
        row = doctor._front_ends(server)
        assert (row.level, row.state, row.found) == ("info", "ok", "jupyterlab 4.2.1")

    def test_widgets_where_no_server_is_seen(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("JPY_PARENT_PID", raising=False)
        monkeypatch.setattr(sys, "prefix", str(tmp_path))
        row = doctor._widgets(doctor._server(), in_notebook=True)
        assert (row.level, row.state, row.remedy) == ("info", "unknown", "")

    def test_the_server_is_the_process_that_started_the_kernel(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "bin").mkdir()
        python = tmp_path / "bin/python"
        python.symlink_to(sys.executable)
        script = tmp_path / "bin/jupyter-lab"
        script.write_text("import sys; print(flush=True); sys.stdin.read()")
        process = subprocess.Popen([python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            assert process.stdout
            process.stdout.readline()
            monkeypatch.setenv("JPY_PARENT_PID", str(process.pid))
            assert doctor._server() == tmp_path
        finally:
            process.communicate()
        assert doctor._server() is None  # it is gone
        monkeypatch.setenv("JPY_PARENT_PID", str(os.getpid()))
        assert doctor._server() is None  # pytest is no server


ROWS = [Check("kprobes", "optional", False, "no"), Check("bcc", "required", False, "gone", "apt install python3-bpfcc")]


class TestWithoutTracer:
    """A tracer that cannot start: the rest of the table is there all the same."""

    # What the process of its own answers.
    ANSWER = "[" + ",".join(json.dumps({n: getattr(row, n) for n in row.__struct_fields__}) for row in ROWS) + "]"

    def examine(self, error: BpfnbError, code: str = f"print({ANSWER!r})", **arguments: Any) -> doctor.Report:
        def refuse() -> Tracer:
            raise error

        return doctor.examine(refuse, bpfnb.trace, partial(doctor.without_tracer, code=code, **arguments))

    @pytest.mark.parametrize(
        ("error", "found", "remedy"),
        [
            (SetupError("no bcc", hint="install it"), "no bcc", "install it"),
            (PrivilegeError("no rights", hint="become root"), "no rights", "become root"),
            (TracerDied("it ended", output="first\nImportError: x\n"), "it ended: ImportError: x", ""),
            (TracerDied("it ended"), "it ended", ""),
        ],
    )
    def test_the_row_that_failed_and_those_there_can_be(self, error: BpfnbError, found: str, remedy: str) -> None:
        report = self.examine(error)
        rows = {row.name: row for row in report}
        assert (rows["tracer"].level, rows["tracer"].state) == ("required", "missing")
        assert (rows["tracer"].found, rows["tracer"].remedy) == (found, remedy)
        assert [rows["kprobes"], rows["bcc"]] == ROWS
        assert rows["pandas"].ok
        assert "a first trace" not in rows
        assert not report.ok

    @pytest.mark.parametrize("code", ["raise SystemExit(3)", "print('[')", "print('[1]')"])
    def test_a_machine_that_cannot_be_looked_at(self, code: str) -> None:
        report = self.examine(SetupError("no bcc"), code)
        rows = {row.name: row for row in report}
        assert rows["machine"].state == "unknown"
        assert rows["pandas"].ok

    def test_sudo_is_asked_where_the_tracer_was_started_by_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []

        def run(command: list[str], **options: object) -> subprocess.CompletedProcess[bytes]:
            asked.append(command[:3])
            if command[0] == "sudo":
                raise subprocess.CalledProcessError(1, command)
            return subprocess.CompletedProcess(command, 0, b"[]")

        monkeypatch.setattr(subprocess, "run", run)
        choose = partial(ways.Way, "sudo", ways.with_sudo())
        self.examine(SetupError("no bcc"), choose=choose)
        assert [command[0] for command in asked] == ["sudo", sys.executable]
        asked.clear()
        self.examine(PrivilegeError("sudo wants a password"), choose=choose)
        assert [command[0] for command in asked] == [sys.executable]


class TestTrace:
    def test_a_trace_that_delivers_nothing_is_a_failure(self) -> None:
        with FakeTracer(checks=[Check("bcc", "required", True, "here")]) as tracer:
            report = bpfnb.doctor()
            assert len(tracer.loaded) == len(tracer.stopped) == 1
        rows = {row.name: row for row in report}
        assert rows["bcc"].ok
        assert rows["tracer"].ok
        assert "did not see a call" in rows["a first trace"].found
        assert not report.ok
        assert not bpfnb.sessions()

    def test_who_may_not_print_may_trace(self) -> None:
        with FakeTracer() as tracer:
            tracer.refuse(PrivilegeError("may not read what programs print"))
            report = bpfnb.doctor()
            assert "printk" not in tracer.loaded[-1]
        assert report.ok

    def test_a_refusal_is_the_row(self) -> None:
        with FakeTracer() as tracer:
            tracer.refuse(SetupError("tracefs is not mounted", hint="mount it"))
            row = bpfnb.doctor()[1]
        assert (row.name, row.found, row.remedy) == ("a first trace", "tracefs is not mounted", "mount it")


class TestCommand:
    @pytest.fixture
    def report(self, monkeypatch: pytest.MonkeyPatch) -> list[Check]:
        rows = [Check("bcc", "required", True, "0.26"), Check("kprobes", "optional", False, "no", "boot another")]
        monkeypatch.setattr(default_host, "doctor", lambda: doctor.Report(rows))
        return rows

    def test_exit_status_says_whether_tracing_works(
        self, report: list[Check], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["doctor"]) == 0
        assert "Tracing works." in capsys.readouterr().out
        report.append(Check("tracefs", "required", False, "not mounted"))
        assert main(["doctor"]) == 1
        assert "Tracing does not work: tracefs" in capsys.readouterr().out

    def test_json(self, report: list[Check], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["doctor", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {
            "ok": True,
            "rows": [
                {"name": "bcc", "level": "required", "state": "ok", "found": "0.26", "remedy": ""},
                {"name": "kprobes", "level": "optional", "state": "missing", "found": "no", "remedy": "boot another"},
            ],
        }

    @pytest.mark.parametrize("arguments", [[], ["docter"], ["doctor", "--yaml"], ["doctor", "x"]])
    def test_a_wrong_call_has_a_status_of_its_own(
        self, report: list[Check], arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert "usage: bpfnb" in capsys.readouterr().err

    def test_help_and_version(self) -> None:
        """As a module, and without a tracer."""

        def run(*arguments: str) -> str:
            command = [sys.executable, "-m", "bpfnb", *arguments]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        assert "doctor" in run("--help")
        assert " %load_ext bpfnb" in run("--help")
        assert "Exit status" in run("doctor", "--help")
        assert run("--version") == f"bpfnb {bpfnb.__version__}\n"

    def test_is_installed_as_a_command(self) -> None:
        pyproject = Path(__file__).parents[2].joinpath("pyproject.toml").read_text()
        assert '[project.scripts]\nbpfnb = "bpfnb.__main__:main"\n' in pyproject

    CODE = (
        "import bpfnb; from bpfnb.__main__ import main; from bpfnb.protocol.messages import Check\n"
        "import importlib; doctor = importlib.import_module('bpfnb.doctor')\n"
        "bpfnb.doctor = lambda: doctor.Report([Check('bcc', 'required', True, '0.26')]); main(['doctor'])"
    )

    def test_a_reader_may_stop_early(self) -> None:
        """As ``bpfnb doctor | head`` does."""
        reading, writing = os.pipe()
        os.close(reading)
        try:
            done = subprocess.run([sys.executable, "-c", self.CODE], stdout=writing, stderr=subprocess.PIPE, check=True)
        finally:
            os.close(writing)
        assert done.stderr == b""

    def test_marks_that_the_terminal_has_not(self) -> None:
        environment = os.environ | {"PYTHONIOENCODING": "ascii"}
        done = subprocess.run(
            [sys.executable, "-c", self.CODE], capture_output=True, text=True, check=True, env=environment
        )
        assert "? ok" in done.stdout
