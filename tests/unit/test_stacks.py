"""Stacks with names, and folded, against a resolver that knows a few addresses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bpfnb.errors import ProgramError
from bpfnb.results import stacks

KERNEL = 0xFFFFFFFF81000000
LIBC = "/usr/lib/libc.so.6"
NAMES = {
    (0, KERNEL + 0x10): ("entry_SYSCALL_64", ""),
    (0, KERNEL + 0x20): ("__x64_sys_read", ""),
    (0, KERNEL + 0x30): ("nft_do_chain", "[nf_tables]"),
    (7, 0x1000): ("main", "/bin/cat"),
    (7, 0x2000): ("read", LIBC),
    (8, 0x1000): ("std::vector<int; 3>::push_back(int&&)", "/bin/other"),
    (8, 0x3000): ("[unknown]", LIBC),
}


class Resolver:
    """Knows the 16 bytes from each address in NAMES on; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, list[int]]] = []

    def __call__(self, pid: int, addresses: Sequence[int]) -> tuple[list[str], list[str]]:
        self.asked.append((pid, list(addresses)))
        found = [NAMES.get((pid, a // 16 * 16), ("[unknown]", "")) for a in addresses]
        return [name for name, _ in found], [module for _, module in found]


@pytest.fixture
def resolve() -> Resolver:
    return Resolver()


def frames(**stacks_: Sequence[int]) -> pd.DataFrame:
    """frames(s1=[innermost, ..., outermost]): what a stack trace map's df is."""
    rows = [(int(n[1:]), depth, a) for n, addresses in stacks_.items() for depth, a in enumerate(addresses)]
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    kinds = {"stack": np.int32, "depth": np.int16, "address": np.uint64}
    return pd.DataFrame({n: np.array(c, k) for (n, k), c in zip(kinds.items(), columns, strict=True)})


FRAMES = frames(
    s1=[KERNEL + 0x25, KERNEL + 0x15],
    s2=[0x2008, 0x1008],
    s3=[0x3008, 0x1008],
    s4=[KERNEL + 0x31],
)


def folded(counts: pd.DataFrame, resolve: stacks.Resolve, **options: Any) -> dict[str, int]:
    result = stacks.folded(counts, FRAMES, resolve, **options)
    return dict(zip(result["stack"], result["count"], strict=True))


# --- symbolise ----------------------------------------------------------------------------------------------------


def test_frames_get_a_symbol_and_a_module(resolve: Resolver) -> None:
    df = stacks.symbolise(FRAMES, resolve, pid=7)
    assert list(df.columns) == ["stack", "depth", "address", "symbol", "module"]
    assert {n: str(t) for n, t in df.dtypes.items()} == {
        "stack": "int32",
        "depth": "int16",
        "address": "uint64",
        "symbol": "category",
        "module": "category",
    }
    assert df["symbol"].tolist() == [
        "__x64_sys_read",
        "entry_SYSCALL_64",
        "read",
        "main",
        "[unknown] 0x3008",
        "main",
        "nft_do_chain",
    ]
    assert df["module"].tolist() == ["", "", LIBC, "/bin/cat", "", "/bin/cat", "[nf_tables]"]
    assert "symbol" not in FRAMES.columns


def test_only_the_kernel_is_asked_for_when_no_process_is_known(resolve: Resolver) -> None:
    df = stacks.symbolise(FRAMES, resolve)
    assert df["symbol"].tolist()[:4] == ["__x64_sys_read", "entry_SYSCALL_64", "[unknown] 0x2008", "[unknown] 0x1008"]
    assert [pid for pid, _ in resolve.asked] == [0]


def test_each_address_is_asked_for_once(resolve: Resolver) -> None:
    many = pd.concat([FRAMES] * 3, ignore_index=True)
    stacks.symbolise(many, resolve, pid=7)
    for _, addresses in resolve.asked:
        assert len(addresses) == len(set(addresses))
    assert len(resolve.asked) == 2


def test_a_caller_that_ends_with_the_call_keeps_its_name(resolve: Resolver) -> None:
    """The return address of a call that never returns is where the next function begins."""
    df = stacks.symbolise(frames(s1=[KERNEL + 0x20, KERNEL + 0x20]), resolve)
    assert df["symbol"].tolist() == ["__x64_sys_read", "entry_SYSCALL_64"]
    assert df["address"].tolist() == [KERNEL + 0x20] * 2


def test_no_frames(resolve: Resolver) -> None:
    df = stacks.symbolise(frames(), resolve, pid=7)
    assert df.empty
    assert str(df["symbol"].dtype) == str(df["module"].dtype) == "category"
    assert resolve.asked == []


# --- folded -------------------------------------------------------------------------------------------------------


def test_a_stack_is_the_process_then_the_kernel_outermost_first(resolve: Resolver) -> None:
    counts = pd.DataFrame(
        {"pid": [7], "kernel_stack_id": [1], "user_stack_id": [2], "comm": pd.Categorical(["cat"]), "value": [42]}
    )
    result = stacks.folded(counts, FRAMES, resolve)
    assert result["stack"].tolist() == ["cat;main;read;entry_SYSCALL_64_[k];__x64_sys_read_[k]"]
    assert result["count"].tolist() == [42]
    assert str(result["count"].dtype) == "int64"
    assert pd.api.types.is_string_dtype(result["stack"].dtype)


def test_the_same_stacks_are_summed_and_the_most_frequent_come_first(resolve: Resolver) -> None:
    counts = pd.DataFrame({"pid": [7, 7, 7, 9], "stackid": [4, 1, 4, 4], "value": [2, 5, 2, 2]})
    assert list(folded(counts, resolve).items()) == [
        ("nft_do_chain_[k]", 6),
        ("entry_SYSCALL_64_[k];__x64_sys_read_[k]", 5),
    ]


def test_without_a_count_each_row_counts_one(resolve: Resolver) -> None:
    events = pd.DataFrame({"ts": [0.1, 0.2, 0.3], "stack_id": [4, 4, 1]})
    assert folded(events, resolve) == {"nft_do_chain_[k]": 2, "entry_SYSCALL_64_[k];__x64_sys_read_[k]": 1}


def test_the_column_to_add_up_can_be_named(resolve: Resolver) -> None:
    events = pd.DataFrame({"stack_id": [4, 4], "value": [1, 1], "ns": np.array([1 << 40, 5], np.uint64)})
    assert folded(events, resolve, weight="ns") == {"nft_do_chain_[k]": (1 << 40) + 5}
    assert folded(events, resolve) == {"nft_do_chain_[k]": 2}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("kernel_stack_id", "user_stack_id"),
        ("k_stack_id", "u_stack_id"),
        ("kstack", "ustack"),
        ("kern_stack", "user_stack"),
        ("KernelStack", "UserStack"),
        ("stack_kernel", "stack_user"),
        ("kernel_stackid", "stackid"),
        ("stack_id", "user_stack_id"),
    ],
)
def test_the_columns_tell_whose_stacks_they_are(first: str, second: str, resolve: Resolver) -> None:
    counts = pd.DataFrame({first: [4], second: [2], "tgid": [7]})
    expected = {"main;read;nft_do_chain_[k]": 1}
    assert folded(counts, resolve) == expected
    assert folded(counts[[second, "tgid", first]], resolve) == expected


def test_the_columns_can_be_named(resolve: Resolver) -> None:
    counts = pd.DataFrame({"key": [4], "below": [2], "pid": [7], "value": [3]})
    assert folded(counts, resolve, kernel="key", user="below") == {"main;read;nft_do_chain_[k]": 3}
    assert folded(counts, resolve, user="below") == {"main;read": 3}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["key"], "no integer column has stack in its name"),
        (["a_stack", "b_stack"], "these may be: a_stack, b_stack"),
        (["kstack", "ustack", "stack_depth"], "these may be: kstack, ustack, stack_depth"),
    ],
)
def test_columns_that_cannot_be_told_are_named(columns: list[str], message: str, resolve: Resolver) -> None:
    counts = pd.DataFrame({name: [1] for name in columns})
    with pytest.raises(ProgramError, match=message):
        stacks.folded(counts, FRAMES, resolve)


def test_a_missing_column_is_named(resolve: Resolver) -> None:
    counts = pd.DataFrame({"stack_id": [1], "text": ["x"]})
    with pytest.raises(ProgramError, match="no column 'ns': there are stack_id, text"):
        stacks.folded(counts, FRAMES, resolve, weight="ns")
    with pytest.raises(ProgramError, match="no column 'kernel_id'"):
        stacks.folded(counts, FRAMES, resolve, kernel="kernel_id")
    with pytest.raises(ProgramError, match="cannot be added up"):
        stacks.folded(counts, FRAMES, resolve, weight="text")
    with pytest.raises(ProgramError, match="no column 'address': there are stack, depth, build_id"):
        stacks.folded(counts, FRAMES.rename(columns={"address": "build_id"}), resolve)


def test_names_are_each_processs_own(resolve: Resolver) -> None:
    counts = pd.DataFrame({"pid": [7, 8], "user_stack_id": [3, 3], "name": ["cat", "other"]})
    assert folded(counts, resolve) == {
        "cat;main;[unknown] 0x3008": 1,
        "other;std::vector<int: 3>::push_back(int&&);[unknown] libc.so.6": 1,
    }


def test_the_thread_group_is_preferred_to_the_thread(resolve: Resolver) -> None:
    counts = pd.DataFrame({"pid": [70], "tgid": [7], "user_stack_id": [2]})
    assert folded(counts, resolve) == {"main;read": 1}


def test_the_helpers_own_number_will_do(resolve: Resolver) -> None:
    counts = pd.DataFrame({"pid": np.array([7 << 32 | 70], np.uint64), "user_stack_id": [2]})
    assert folded(counts, resolve) == {"main;read": 1}


def test_without_a_process_the_addresses_stay(resolve: Resolver) -> None:
    counts = pd.DataFrame({"user_stack_id": [2], "kernel_stack_id": [4]})
    assert folded(counts, resolve) == {"[unknown] 0x1008;[unknown] 0x2008;nft_do_chain_[k]": 1}


def test_a_process_may_have_any_address_in_its_stack(resolve: Resolver) -> None:
    """GIVEN no frame pointers, values in the kernel's half taken for some THEN they are not shown as its."""
    garbage = frames(s5=[0x2008, KERNEL + 0x25, 0x8B48535540F68548, 0x1008], s1=[KERNEL + 0x25, KERNEL + 0x15])
    counts = pd.DataFrame({"pid": [7], "user_stack_id": [5], "kernel_stack_id": [1]})
    (text,) = stacks.folded(counts, garbage, resolve)["stack"]
    assert text.split(";") == [
        "main",
        "[unknown] 0x8b48535540f68548",
        "[unknown] 0xffffffff81000025",
        "read",
        "entry_SYSCALL_64_[k]",
        "__x64_sys_read_[k]",
    ]
    resolve.asked.clear()
    df = stacks.symbolise(garbage, resolve, pid=7)
    assert df[df["stack"] == 5]["symbol"].tolist() == [
        "read",
        "[unknown] 0xffffffff81000025",
        "[unknown] 0x8b48535540f68548",
        "main",
    ]
    assert df[df["stack"] == 1]["symbol"].tolist() == ["__x64_sys_read", "entry_SYSCALL_64"]
    assert {pid: len(addresses) for pid, addresses in resolve.asked} == {0: 2, 7: 4}


def test_the_stacks_of_one_process(resolve: Resolver) -> None:
    counts = pd.DataFrame({"tgid": [7, 8, 7], "user_stack_id": [2, 3, 2], "value": [5, 1, 2]})
    assert folded(counts, resolve, pid=7) == {"main;read": 7}
    assert folded(counts, resolve, pid=9) == {}
    both = counts.assign(tgid=counts.tgid.astype(np.uint64) << np.uint64(32))
    assert folded(both, resolve, pid=8) == {"std::vector<int: 3>::push_back(int&&);[unknown] libc.so.6": 1}


def test_stacks_that_are_all_of_one_process(resolve: Resolver) -> None:
    """GIVEN no column that says whose they are."""
    counts = pd.DataFrame({"user_stack_id": [2, 2], "kernel_stack_id": [4, 4]})
    assert folded(counts, resolve, pid=7) == {"main;read;nft_do_chain_[k]": 2}


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint32, np.uint64])
def test_stacks_that_could_not_be_taken(kind: type[np.generic], resolve: Resolver) -> None:
    ids = np.array([[-14, 4], [-14, -14], [-17, 4], [2, -17], [99, 4], [-12, -14]]).astype(kind)
    counts = pd.DataFrame({"user_stack_id": ids[:, 0], "kernel_stack_id": ids[:, 1], "pid": 7})
    assert set(folded(counts, resolve)) == {
        "nft_do_chain_[k]",
        "[no stack: EFAULT]",
        "[no stack: EEXIST];nft_do_chain_[k]",
        "main;read;[no stack: EEXIST]",
        "[no stack: gone];nft_do_chain_[k]",
        "[no stack: ENOMEM]",
    }


def test_each_process_is_asked_for_once(resolve: Resolver) -> None:
    counts = pd.DataFrame({"pid": [7, 8] * 500, "user_stack_id": [2, 3] * 500, "kernel_stack_id": [1, 4] * 500})
    assert sum(folded(counts, resolve).values()) == 1000
    assert sorted(pid for pid, _ in resolve.asked if pid) == [7, 8]
    assert len(resolve.asked) <= 4


def test_no_rows(resolve: Resolver) -> None:
    result = stacks.folded(pd.DataFrame({"stack_id": np.array([], np.int32)}), FRAMES, resolve)
    assert list(result.columns) == ["stack", "count"]
    assert result.empty
    assert str(result["count"].dtype) == "int64"
    assert stacks.lines(result) == ""


# --- lines --------------------------------------------------------------------------------------------------------


def test_lines_are_one_a_stack_whatever_a_process_calls_itself(resolve: Resolver) -> None:
    counts = pd.DataFrame({"comm": ["a;b\nc d", "x"], "stack_id": [4, 4], "value": [1, 2]})
    result = stacks.folded(counts, FRAMES, resolve)
    assert stacks.lines(result) == "x;nft_do_chain_[k] 2\na:b?c d;nft_do_chain_[k] 1\n"
