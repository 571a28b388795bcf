"""BPF_TABLE_PINNED: a map that outlives its session, and is another's too."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import bpfnb
from bpfnb.errors import ProgramError
from bpfnb.language.cell import MapDecl
from bpfnb.tracer.kernel import bpf, pins
from bpfnb.tracer.kernel.uapi import MapType

BPFFS = Path("/sys/fs/bpf")
PIN = BPFFS / "bpfnb-test" / f"shared-{os.getpid()}"
CELL = f"""
BPF_TABLE_PINNED("hash", u32, u64, shared, 1024, "{PIN}");
int f(void *ctx) {{
    u32 pid = bpf_get_current_pid_tgid() >> 32;
    u64 zero = 0, *v = shared.lookup_or_try_init(&pid, &zero);
    if (v) __sync_fetch_and_add(v, 1);
    return 0;
}}
"""
PROBE = {"syscall:getpgid": "f"}


@pytest.fixture
def unpinned() -> Iterator[None]:
    """Without the pin; and, where nobody has pinned anything, without the file system, which the tracer then mounts."""
    if BPFFS.is_mount() and not [path for path in BPFFS.iterdir() if not path.name.endswith(".debug")]:
        subprocess.run(["umount", BPFFS], check=False)
    yield
    PIN.unlink(missing_ok=True)
    if PIN.parent.is_dir():
        PIN.parent.rmdir()


@pytest.mark.portable
def test_a_second_session_uses_what_the_first_has_pinned(unpinned: None) -> None:
    me = os.getpid()
    with bpfnb.trace(CELL, name="first", attach=PROBE) as first:
        os.getpgid(0)
        assert first.maps["shared"][me] == 1
        assert f"shared stays after the session, pinned at {PIN}: rm {PIN} removes it" in repr(first)
        assert f"rm {PIN} removes it" in first._repr_html_()
        with bpfnb.trace(CELL, name="second", attach=PROBE) as second:
            os.getpgid(0)
            assert first.maps["shared"][me] == second.maps["shared"][me] == 3  # both have counted the second call
    assert PIN.exists()  # as the cell asked
    with bpfnb.trace(CELL, name="third", attach=PROBE) as third:
        os.getpgid(0)
        assert third.maps["shared"][me] == 4


def test_what_is_pinned_and_another_map_is_named_before_the_verifier_wonders(unpinned: None) -> None:
    bpfnb.trace(CELL, name="first", attach=PROBE).stop()
    for kind, key, what in (
        ("hash", "u64", "a hash with keys of 8 bytes"),
        ("lru_hash", "u32", "a lru_hash with keys of 4"),
    ):
        other = CELL.replace('"hash", u32', f'"{kind}", {key}').replace("u32 pid", f"{key} pid")
        with pytest.raises(
            ProgramError, match=f"line 2: the map pinned at {PIN} is a hash with keys of 4 bytes"
        ) as failure:
            bpfnb.trace(other, name="other", attach=PROBE)
        assert what in str(failure.value)
        assert failure.value.hint == f"pin it elsewhere, or remove the other: rm {PIN}"
    PIN.unlink()  # the hint is right
    bpfnb.trace(other, name="other", attach=PROBE).stop()


def test_elsewhere_there_is_nothing_to_pin_to(unpinned: None) -> None:
    with pytest.raises(
        ProgramError, match=r"line 2: shared cannot be pinned at /tmp/x/y, which is in no bpf file system"
    ):
        bpfnb.trace(CELL.replace(str(PIN), "/tmp/x/y"), name="nowhere", attach=PROBE)


def test_a_pinned_queue_is_not_emptied_at_the_end(unpinned: None) -> None:
    cell = f"""
    BPF_QUEUESTACK_PINNED("queue", todo, u64, 16, 0, "{PIN}");
    int f(void *ctx) {{ return 0; }}
    """
    with bpfnb.trace(cell, name="first", attach=PROBE) as first:
        first.maps["todo"].push(7)
        first.maps["todo"].push(8)
    assert first.maps["todo"].df.value.tolist() == [7]
    with bpfnb.trace(cell, name="second", attach=PROBE) as second:
        assert [second.maps["todo"].pop(), second.maps["todo"].pop()] == [7, 8]


@pytest.fixture
def array() -> Iterator[int]:
    """A map's descriptor."""
    fd = bpf.create_map(bpf.MapAttributes(MapType.ARRAY, 4, 8, 1))
    yield fd
    os.close(fd)


def test_a_pin_that_the_kernel_refuses_is_an_error(array: int, tmp_path: Path) -> None:
    declared = MapDecl("shared", "BPF_TABLE_PINNED", 3, pinned=str(tmp_path / "shared"))  # in no bpffs
    with pytest.raises(ProgramError, match=f"shared cannot be pinned at {tmp_path}/shared: ") as caught:
        pins.pin_new([declared], {}, {"shared": array})
    assert caught.value.line == 3


def test_two_names_of_one_pin_are_pinned_once(array: int, unpinned: None) -> None:
    pins.prepare([declared := MapDecl("shared", "BPF_TABLE_PINNED", 3, pinned=str(PIN))])
    pins.pin_new(
        [declared, MapDecl("other", "BPF_TABLE_PINNED", 4, pinned=str(PIN))],
        {},
        dict.fromkeys(("shared", "other"), array),
    )
    assert PIN.exists()
