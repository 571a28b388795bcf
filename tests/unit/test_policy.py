"""The policy file: what it says, for whom, and that a mistake in it lets nobody trace."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bpfnb.errors import PrivilegeError, SetupError
from bpfnb.language.program import parse
from bpfnb.protocol.messages import Limits
from bpfnb.tracer.access.peer import Peer
from bpfnb.tracer.access.policy import Policy, Rules

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root's file is a policy")

ALICE = Peer(4711, 1001, 1001, frozenset({2000, 2001}))
CELL = parse("int f(void *ctx) { return 0; }", {"syscall:clone": "f", "kprobe:vfs_read": "f"})


def written(folder: Path, text: str) -> Path:
    path = folder / "policy.conf"
    path.write_text(text)
    path.chmod(0o644)
    folder.chmod(0o755)
    return path


def rules(folder: Path, text: str, peer: Peer = ALICE, *, service: bool = False) -> Rules:
    return Policy(peer, service=service, path=written(folder, text)).rules


def mistake(folder: Path, text: str) -> str:
    with pytest.raises(SetupError) as caught:
        Policy(ALICE, path=written(folder, text))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_a_file_nothing_is_limited_but_by_the_service(tmp_path: Path) -> None:
    path = tmp_path / "policy.conf"
    assert Policy(ALICE, path=path).rules == Rules()
    assert Policy(ALICE, path=path).audit.to == ""
    by_service = Policy(ALICE, service=True, path=path)
    assert by_service.rules == Rules(interfere=False, pinned=False)
    assert (by_service.audit.to, by_service.audit.required) == ("journal", False)


def test_the_first_section_that_names_the_user_holds_and_default_fills_up(tmp_path: Path) -> None:
    text = """
    # for everybody else
    [default]
    trace = no
    max_time = 10min
    [group 2001]
    trace = yes
    probes = syscall, sysret uprobe
    [user 1001]
    trace = yes
    max_time = 2h
    """
    assert rules(tmp_path, text) == Rules(probes=frozenset({"syscall", "sysret", "uprobe"}), max_time=600)
    swapped = text.replace("[group 2001]", "[group 3000]")
    assert rules(tmp_path, swapped) == Rules(max_time=7200)
    assert not rules(tmp_path, text, Peer(1, 5, 5, frozenset())).trace


def test_default_does_not_hold_for_root(tmp_path: Path) -> None:
    root = Peer(1, 0, 0, frozenset())
    assert rules(tmp_path, "[default]\ntrace = no\n", root) == Rules()
    assert rules(tmp_path, "[user root]\nstacks = no\n", root) == Rules(stacks=False)


def test_names_are_looked_up(tmp_path: Path) -> None:
    text = "[user nobody]\nstacks = no\n[group nogroup]\ninterfere = no\n"
    assert rules(tmp_path, text, Peer(1, 65534, 1, frozenset())) == Rules(stacks=False)
    assert rules(tmp_path, text, Peer(1, 5, 65534, frozenset())) == Rules(interfere=False)


def test_every_value_is_read(tmp_path: Path) -> None:
    text = """[default]
    probes = all
    files = own
    processes = own
    kernel_memory = no
    stacks = no
    interfere = no
    pinned = no
    max_time = 90s
    max_memory = 512M
    max_rate = 100000
    max_cost = 12.5%
    [audit]
    to = /var/log/bpfnb/audit
    required = yes
    source = yes
    """
    policy = Policy(ALICE, path=written(tmp_path, text))
    assert policy.rules == Rules(True, None, True, True, False, False, False, False, 90, 512 << 20, 100000, 0.125)
    assert (policy.audit.to, policy.audit.required, policy.audit.source) == ("/var/log/bpfnb/audit", True, True)
    assert rules(tmp_path, "[default]\nmax_time = unlimited\ninterfere = yes", service=True).interfere


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[default]\nprbes = all\n", "line 2: unknown key 'prbes' in [default]; did you mean probes?"),
        ("[default]\nprobes = kprobes\n", "line 2: 'kprobes' is not a kind of probe"),
        ("[default]\nprobes =\n", "line 2: name kinds of probes"),
        ("[default]\ntrace = maybe\n", "line 2: write yes or no, not 'maybe'"),
        ("[default]\nprocesses = mine\n", "line 2: write own or any"),
        ("[default]\nmax_time = 10\n", "line 2: write 10min"),
        ("[default]\nmax_cost = 0%\n", "line 2: write 25%"),
        ("[default]\nmax_memory = many\n", "line 2: write 512M"),
        ("[default]\ntrace = no\ntrace = yes\n", "line 3: 'trace' is given twice"),
        ("[default]\n[default]\n", "line 2: there is a [default] before"),
        ("trace = no\n", "line 1: 'trace' is in no section"),
        ("[defualt]\ntrace = no\n", "line 1: not a section"),
        ("[default]\ntrace\n", "line 2: neither a [section] nor key = value"),
        ("[user nosuchuser]\n", "line 1: there is no user 'nosuchuser'"),
        ("[group nosuchgroup]\n", "line 1: there is no group 'nosuchgroup'"),
        ("[audit]\nto = syslog\n", "line 2: write journal"),
        ("[audit]\ntrace = no\n", "line 2: unknown key 'trace' in [audit]"),
        ("[default]\ntrace = no  # never\n", "line 2: write yes or no"),
    ],
)
def test_a_mistake_is_said_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    message = mistake(tmp_path, text)
    assert says in message
    assert message.endswith("nobody can trace until that is fixed")


def test_a_file_that_others_could_have_written_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "[default]\ntrace = yes\n")
    Policy(ALICE, path=path)
    for change, back in (
        (lambda: path.chmod(0o664), lambda: path.chmod(0o644)),
        (lambda: os.chown(path, 1001, 0), lambda: os.chown(path, 0, 0)),
        (lambda: tmp_path.chmod(0o777), lambda: tmp_path.chmod(0o755)),
        (lambda: os.chown(tmp_path, 1001, 0), lambda: os.chown(tmp_path, 0, 0)),
    ):
        change()
        with pytest.raises(SetupError, match="users other than root may write to"):
            Policy(ALICE, path=path)
        back()
    path.rename(tmp_path / "other")
    path.symlink_to("other")
    with pytest.raises(SetupError, match="cannot be read"):
        Policy(ALICE, path=path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(SetupError, match="is not a file"):
        Policy(ALICE, path=path)
    path.unlink()
    path.write_bytes(b"\xff")
    with pytest.raises(SetupError, match="UTF-8"):
        Policy(ALICE, path=path)


def refusal(folder: Path, text: str, attach: str, source: str = "int f(void *ctx) { return 0; }") -> str:
    policy = Policy(ALICE, path=written(folder, text))
    try:
        policy.check_load(parse(source, {attach: "f"}))
    except PrivilegeError as error:
        return str(error)
    return ""


def test_what_probes_and_text_ask_for_is_checked(tmp_path: Path) -> None:
    said = refusal(tmp_path, "[default]\nprobes = syscall\n", "kprobe:vfs_read")
    assert "kprobe probes (kprobe:vfs_read): [default] of" in said
    assert said.startswith("line 1: the administrator does not allow user 1001")
    assert not refusal(tmp_path, "[default]\nprobes = kprobe\n", "kprobe:vfs_read")
    for probe in ("kprobe:vfs_*", "uprobe:c:mem*", "tracepoint:syscalls:sys_enter_*"):  # many are no way around it
        assert f"({probe})" in refusal(tmp_path, "[default]\nprobes = syscall\n", probe)
    assert "tracing" in refusal(tmp_path, "[default]\ntrace = no\n", "syscall:clone")
    assert "lsm probes" in refusal(tmp_path, "[default]\ninterfere = no\n", "lsm:file_open")
    assert "which read the kernel's memory" in refusal(tmp_path, "[default]\nkernel_memory = no\n", "fentry:vfs_read")
    assert "cannot be confined" in refusal(tmp_path, "[default]\nprocesses = own\n", "fentry:vfs_read")
    pinned = 'BPF_TABLE_PINNED("hash", u32, u64, m, 10, "/sys/fs/bpf/m"); int f(void *ctx) { return 0; }'
    assert "pinned maps" in refusal(tmp_path, "[default]\npinned = no\n", "syscall:clone", pinned)


def test_a_cell_may_ask_for_less_than_the_policy_allows_and_not_for_more(tmp_path: Path) -> None:
    text = "[default]\nmax_cost = 25%\nmax_memory = 1M\nmax_rate = 1000\n"
    policy = Policy(ALICE, path=written(tmp_path, text))
    assert policy.capped(Limits()) == Limits(0.25, 1000, 1 << 20, True), "also where the guard was switched off"
    assert policy.capped(Limits(0.5, 10, 2 << 20)) == Limits(0.25, 10, 1 << 20, True)
    (tmp_path / "policy.conf").unlink()
    assert Policy(ALICE, path=tmp_path / "policy.conf").capped(Limits(0.5)) == Limits(0.5)


def test_files_and_symbols_of_others(tmp_path: Path) -> None:
    policy = Policy(ALICE, path=written(tmp_path, "[default]\nfiles = own\nprocesses = own\n"))
    policy.check_file(1001, "/home/alice/a.out")
    with pytest.raises(PrivilegeError, match="/bin/bash"):
        policy.check_file(0, "/bin/bash")
    policy.check_symbols(0)
    with pytest.raises(PrivilegeError, match="functions of others' processes"):
        policy.check_symbols(1)
    without = Policy(ALICE, path=written(tmp_path, "[default]\nstacks = no\n"))
    with pytest.raises(PrivilegeError, match="stacks"):
        without.check_symbols(0)


def test_the_doctors_row_says_what_holds(tmp_path: Path) -> None:
    text = "[default]\nprobes = syscall\nprocesses = own\nmax_time = 10min\n[audit]\nto = /nowhere/log\n"
    row = Policy(ALICE, path=written(tmp_path, text)).check()
    assert row.found == (
        "user 1001: only syscall, own processes only, sessions of at most 10 min "
        f"([default] of {tmp_path}/policy.conf); sessions cannot be logged in /nowhere/log: No such file or directory"
    )
    assert row.ok
    assert not Policy(ALICE, path=written(tmp_path, "[default]\ntrace = no\n")).check().ok
    (tmp_path / "policy.conf").unlink()
    assert "there is no" in Policy(ALICE, path=tmp_path / "policy.conf").check().found
