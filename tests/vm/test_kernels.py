"""Debian's 6.1 and 6.12, where kprobes exist: the kernel lane's portable tests, run there by scripts/vm.

BPFNB_VM_TESTS: unset runs where scripts/vm has its kernels and QEMU, 0 skips, 1 insists.
BPFNB_VM_WHOLE=1 runs the whole kernel lane there, which takes hours (scripts/test --full).
"""

from __future__ import annotations

import os
import queue
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VM = ROOT / "scripts" / "vm"
VERSIONS = ["6.1", "6.12"]
ENOUGH = 20  # fewer passed tests than this mean that the selection has gone wrong
WHOLE = os.environ.get("BPFNB_VM_WHOLE") == "1"
LIMIT = 6 * 3600 if WHOLE else 2400
# Emulation is slow, and its CPUs' clocks differ; Python died in pandas' sorting once, and only in a guest. What fails
# there is run once more: a second time it is a failure. On the kernel that the tests run on, nothing is.
CRASHED = "Fatal Python error: Segmentation fault"
MOST_AGAIN = 3  # tests; more that fail are no accident
BOOT_LIMIT = 300  # seconds; a quiet machine takes 15
PYTEST = [
    *("env", "BPFNB_KERNEL_TESTS=1", "BPFNB_HOTPLUG=1", "PYTHONDONTWRITEBYTECODE=1", "PYTHONUNBUFFERED=1"),
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1",  # importing plugins takes ten seconds there
    *(sys.executable, "-m", "pytest"),
    *("-p", "pytest_timeout", "-o", "timeout=300", "-p", "no:cacheprovider", "-v", "--color=no", "--durations=10"),
]
LANES = ["tests/kernel", "tests/faults", *([] if WHOLE else ["-m", "portable"])]


class Guest:
    """One run of scripts/vm. Its output is collected by a thread and read by whoever waits for the end."""

    def __init__(self, version: str, *command: str, timeout: float, options: Sequence[str] = ()) -> None:
        self.version = version
        self.output: list[str] = []
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [VM, "run", version, "--timeout", str(timeout), *options, "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, name=f"vm-{version}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(None)

    def wait(self, show: Callable[[str], None]) -> int:
        """Hand each line to show as it comes; the command's exit status."""
        while (line := self._lines.get()) is not None:
            self.output.append(line)
            show(f"[{self.version}] {line}")
        return self._process.wait()

    def close(self) -> None:
        self._process.terminate()  # scripts/vm then ends QEMU
        self._process.wait()
        self._reader.join()


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Guests outlive a test on purpose; the fixture that starts them ends them."""


@pytest.fixture(scope="module", autouse=True)
def possible() -> None:
    wanted = os.environ.get("BPFNB_VM_TESTS")
    if wanted == "0":
        pytest.skip("BPFNB_VM_TESTS=0")
    missing = [name for name in ("qemu-system-x86_64", "busybox") if not shutil.which(name)]
    missing += [f".vm/{version}" for version in VERSIONS if not (ROOT / ".vm" / version / "vmlinuz").exists()]
    if missing:
        reason = f"no {', no '.join(missing)}: scripts/setup --test gets them"
        if wanted == "1":
            pytest.fail(reason)
        pytest.skip(f"{reason}; BPFNB_VM_TESTS=1 makes this a failure")


@pytest.fixture
def show(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Print past pytest's capturing: a guest takes minutes, and somebody may be watching."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def write(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(line, end="", flush=True)

    return write


@pytest.fixture(scope="module")
def guests(possible: None) -> Iterator[dict[str, Guest]]:
    """The kernel lane's guests, side by side: each takes one core (scripts/vm)."""
    made = {version: Guest(version, *PYTEST, *LANES, timeout=LIMIT) for version in VERSIONS}
    try:
        yield made
    finally:
        for guest in made.values():
            guest.close()


@pytest.mark.timeout(BOOT_LIMIT + 60)
@pytest.mark.parametrize("version", VERSIONS)
def test_the_kernel_is_the_one_wanted(version: str, show: Callable[[str], None]) -> None:
    script = (
        "uname -r; cat /sys/bus/event_source/devices/kprobe/type; stat -f -c %T /sys/kernel/tracing; "
        "echo from the guest | busybox nc -l -p 7; exit 7"
    )
    port = free_port()
    guest = Guest(version, "sh", "-c", script, timeout=BOOT_LIMIT, options=("--forward", f"{port}:7"))
    try:
        assert received(port, time.monotonic() + BOOT_LIMIT) == b"from the guest\n"
        status = guest.wait(show)
    finally:
        guest.close()
    release, kprobe, tracing = (line.strip() for line in guest.output)
    assert release.startswith(f"{version}.")
    assert kprobe.isdigit()
    assert tracing == "tracefs"
    assert status == 7


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def received(port: int, deadline: float) -> bytes:
    """What comes from a forwarded port; until somebody listens in the guest, QEMU closes the connection."""
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
            if data := sock.recv(100):
                return data
        time.sleep(0.5)
    return b""


@pytest.mark.timeout(2 * LIMIT + 200)
@pytest.mark.parametrize("version", VERSIONS)
def test_kernel_lane(version: str, guests: dict[str, Guest], show: Callable[[str], None]) -> None:
    status = guests[version].wait(show)
    output = "".join(guests[version].output)
    if status and (again := run_again(output)):
        show(f"[{version}] once more: {' '.join(again)}\n")
        guests[version].close()
        guests[version] = Guest(version, *PYTEST, *again, timeout=LIMIT)
        status = guests[version].wait(show)
        output += "".join(guests[version].output)
    assert status == 0, output
    summaries = "".join(re.findall(r"^=+ .* in [\d.]+s.*$", output, re.MULTILINE))
    counts = re.findall(r"(\d+) (passed|skipped|error)", summaries)
    assert max(int(number) for number, word in counts if word == "passed") >= ENOUGH, output
    assert {word for _, word in counts} <= ({"passed", "skipped"} if WHOLE else {"passed"}), output


def run_again(output: str) -> list[str]:
    """What of a guest's tests is run once more: those that failed, if they are few, or all where Python died."""
    if CRASHED in output:
        return LANES
    failed = re.findall(r"^(tests/\S+?\.py::.+?) FAILED +\[", output, re.MULTILINE)
    return failed if len(failed) <= MOST_AGAIN and not re.search(r"^ERROR ", output, re.MULTILINE) else []
