"""The committed tables of constants, against the headers of this machine and what the machine itself answers."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from bpfnb.language import syscalls
from bpfnb.results.decode import constants

ROOT = Path(__file__).parents[2]
EVENTS = Path("/sys/kernel/tracing/events/syscalls")


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """scripts/tables.py, where it can work."""
    if not shutil.which("gcc") or not Path("/usr/include/asm-generic/unistd.h").exists():
        pytest.skip("needs gcc and the kernel's user headers")
    if platform.machine() != "x86_64":
        pytest.skip("the headers of other architectures have no unistd_64.h of x86_64")
    spec = importlib.util.spec_from_file_location("tables_script", ROOT / "scripts" / "tables.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_headers_system_calls_are_in_the_table_with_their_numbers(generator: ModuleType) -> None:
    for machine, found in zip(syscalls.MACHINES, generator.headers_syscalls(), strict=True):
        assert len(found) > 300
        assert found.items() <= syscalls.numbers(machine).items()


def test_the_headers_constants_are_in_the_tables_with_their_numbers(generator: ModuleType) -> None:
    found = generator.headers_constants()
    assert {"errno", "signal", "open", "prot", "mmap", "clone", "capability", "family", "tcp_state"} <= found.keys()
    for table, expected in found.items():
        kind, _, machine = table.partition(".")
        committed = {name: number for number, name in constants.names(kind, machine).items()}
        assert expected
        assert expected.items() <= committed.items()


@pytest.mark.parametrize("machine", syscalls.MACHINES)
def test_a_system_call_has_one_number_and_a_number_one_name(machine: str) -> None:
    names, numbers = syscalls.names(machine), syscalls.numbers(machine)
    assert len(set(names.values())) == len(names)
    assert all(numbers[name] == number for number, name in names.items())
    assert set(numbers.values()) == set(names)


def test_both_names_of_a_system_call_have_its_number() -> None:
    assert syscalls.numbers("x86_64")["stat"] == syscalls.numbers("x86_64")["newstat"] == 4
    assert syscalls.numbers("aarch64")["fadvise64"] == syscalls.numbers("aarch64")["fadvise64_64"] == 223
    assert syscalls.names("x86_64")[4] == "stat"


def test_a_machine_without_a_table_has_no_names() -> None:
    assert not syscalls.names("vax")
    assert not syscalls.numbers("vax")


@pytest.mark.skipif(platform.machine() not in syscalls.MACHINES, reason="no table for this machine")
def test_this_kernel_answers_to_the_numbers() -> None:
    libc, numbers = ctypes.CDLL(None, use_errno=True), syscalls.numbers()
    assert libc.syscall(ctypes.c_long(numbers["getpid"])) == os.getpid()
    assert libc.syscall(ctypes.c_long(numbers["getppid"])) == os.getppid()
    assert libc.syscall(ctypes.c_long(numbers["getuid"])) == os.getuid()


@pytest.mark.skipif(platform.machine() not in syscalls.MACHINES, reason="no table for this machine")
def test_every_system_call_that_this_kernel_traces_has_a_number() -> None:
    if not os.access(EVENTS, os.R_OK):
        pytest.skip("needs to read tracefs")
    traced = {path.name.removeprefix("sys_enter_") for path in EVENTS.glob("sys_enter_*")}
    assert traced <= set(syscalls.numbers())
