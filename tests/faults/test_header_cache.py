"""The cache of header trees: damaged, half written, full, old, and written by several at once."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import bpfnb
from bpfnb.tracer.compile import headers

_libc = ctypes.CDLL(None)
COUNT = 'int count(void *ctx) { bpf_trace_printk("x\\n"); return 0; }'
GENERATE = """
import sys
from pathlib import Path
from bpfnb.tracer.compile import headers
print(headers.generate(caches=[Path(name) for name in sys.argv[1:]]))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return headers.generate(caches=[tmp_path_factory.mktemp("made")])


@pytest.fixture
def cache(tmp_path: Path, made: Path) -> Path:
    """A cache folder with a tree."""
    folder = tmp_path / "cache"
    shutil.copytree(made.parent, folder)
    return folder


def tree_of(cache: Path) -> Path:
    (tree,) = cache.glob("headers-*")
    return tree


def contents(tree: Path) -> dict[str, bytes]:
    return {str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*") if path.is_file()}


def in_another_process(cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", GENERATE, cache], capture_output=True, text=True, check=False)


def truncate(tree: Path) -> None:
    os.truncate(tree / "include/bpfnb/kernel.h", 1000)


def remove_one(tree: Path) -> None:
    (tree / "include/linux/kconfig.h").unlink()


def remove_a_folder(tree: Path) -> None:
    shutil.rmtree(tree / "include")


def change_a_byte(tree: Path) -> None:
    path = tree / "include/bpfnb/core.h"
    path.write_bytes(path.read_bytes().replace(b"unsigned", b"  signed", 1))


def empty_digests(tree: Path) -> None:
    (tree / "digests").write_text("")


DAMAGES = [truncate, remove_one, remove_a_folder, change_a_byte, empty_digests]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_tree_is_written_anew(cache: Path, damage: Callable[[Path], None]) -> None:
    tree = tree_of(cache)
    before = contents(tree)
    damage(tree)
    assert contents(tree) != before
    assert in_another_process(cache).stdout.strip() == str(tree)
    assert contents(tree) == before
    assert [path.name for path in cache.iterdir()] == [tree.name]


@pytest.fixture
def machines_tree() -> Iterator[Path]:
    """The tree that this lane's tracer compiles against, as it was again afterwards."""
    if headers.kernel_source() is None:
        pytest.skip("this kernel's headers are installed")
    session = bpfnb.trace(COUNT, name="s", attach={"syscall:getpgid": "count"})
    session.stop()
    tree = headers.generate()
    before = contents(tree)
    yield tree
    assert contents(tree) == before


def test_a_tracer_heals_what_is_damaged_under_it(machines_tree: Path) -> None:
    """Cells that others run meanwhile are made to fail by the damage; they heal it as this one does."""
    copy = machines_tree.with_name(".new-test-of-damage")  # what is done to the tree is done at once
    shutil.copytree(machines_tree, copy)
    truncate(copy)
    aside = machines_tree.with_name(".new-test-aside")
    machines_tree.rename(aside)
    copy.rename(machines_tree)
    shutil.rmtree(aside)
    fresh = f"#define NUMBER {time.monotonic_ns()}\n"  # so that it is not known
    with bpfnb.trace(fresh + "#include <linux/sched.h>\n" + COUNT, name="s", attach={"syscall:getpgid": "count"}):
        pass


@pytest.mark.parametrize("at", [0.0, 0.3])
def test_half_a_tree_of_one_who_was_killed_is_not_seen(tmp_path: Path, at: float) -> None:
    cache = tmp_path / "cache"
    process = subprocess.Popen([sys.executable, "-c", GENERATE, cache], stdout=subprocess.DEVNULL)
    while not list(cache.glob(".new-*")) and process.poll() is None:
        time.sleep(0.001)
    time.sleep(at)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for half in cache.glob(".new-*"):
        os.utime(half, (0, 0))  # of long ago
    tree = headers.generate(caches=[cache])
    assert headers.whole(tree)
    assert [path.name for path in cache.iterdir()] == [tree.name]


def test_several_write_the_same_tree_at_once(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", GENERATE, str(cache)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {process.communicate()[0].strip() for process in processes}
    assert said == {str(tree_of(cache))}
    assert headers.whole(tree_of(cache))
    assert len(list(cache.iterdir())) == 1


def with_mounts(mounts: str, *caches: Path, then: str = "true") -> subprocess.CompletedProcess[str]:
    """Make a tree in these folders after commands that mount, and have ``then`` look at what is there."""
    script = f"{mounts} && {sys.executable} -c '{GENERATE}' {' '.join(map(str, caches))}; {then}"
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    done = with_mounts(f"mount -t tmpfs -o size=1m,mode=755 none {place}", place, then=f"ls -A {place} | wc -l")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("bpfnb.errors.SetupError: the kernel's types cannot be kept: ")
    assert last.endswith(": No space left on device")
    assert done.stdout.split() == ["0"]


def test_where_the_first_folder_is_full_the_next_is_taken(tmp_path: Path) -> None:
    full, home = tmp_path / "full", tmp_path / "home"
    full.mkdir()
    done = with_mounts(f"mount -t tmpfs -o size=1m,mode=755 none {full}", full, home, then=f"ls -A {full} | wc -l")
    assert done.stdout.split() == [str(tree_of(home)), "0"]
    assert headers.whole(tree_of(home))


def test_a_read_only_cache_with_a_damaged_tree_is_one_line(cache: Path) -> None:
    truncate(tree_of(cache))
    done = with_mounts(f"mount --bind {cache} {cache} && mount -o remount,bind,ro {cache}", cache)
    (last,) = done.stderr.strip().splitlines()[-1:]
    assert last.startswith("bpfnb.errors.SetupError: the kernel's types cannot be kept: ")
    assert last.endswith(f"{cache} cannot be written")


def test_trees_nobody_uses_any_more_are_removed(cache: Path) -> None:
    tree = tree_of(cache)
    old, lately = cache / "headers-6.1.0-old-0123", cache / "headers-6.1.0-new-0123"
    other = cache / "something else"
    for path in (old, lately, other):
        shutil.copytree(tree, path)
    month = time.time() - 31 * 86400
    for path in (old, tree, other):
        os.utime(path, (month, month))
    assert in_another_process(cache).stdout.strip() == str(tree)
    assert {path.name for path in cache.iterdir()} == {tree.name, lately.name, other.name}
    assert time.time() - tree.stat().st_mtime < 60  # it has been used
