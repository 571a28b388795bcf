"""Stack traces with names: a row a frame; folded for flame graphs, a row a stack.

Pure: no tracer, no kernel. Who knows names is a callable, ``resolve(pid, addresses) -> (names, modules)``, with pid 0
for the kernel's own addresses; a name it does not know is "[unknown]", a module "".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb.errors import ProgramError
from bpfnb.progress import step
from bpfnb.results.columns.text import text_dtype
from bpfnb.results.decode import constants

__all__ = ["Resolve", "folded", "lines", "symbolise"]

Resolve = Callable[[int, Sequence[int]], tuple[Sequence[str], Sequence[str]]]

UNKNOWN = "[unknown]"
_EFAULT = 14
_ERRORS = constants.names("errno", "")  # the kernel's numbers, whatever system this is read on

# Where the kernel's half of the addresses begins, on the 64-bit machines there is BPF for. A stack is the kernel's or a
# process's, and its innermost frame, which is where the processor was, tells which. The others of a process that has no
# frame pointers may be any number.
_KERNEL = 1 << 63

_STACK_COLUMN = re.compile(r"stack", re.I)
_KERNEL_COLUMN = re.compile(r"(?:^|_)k(?:ern|ernel)?_?stack|stack.*(?:_|^)k(?:ern|ernel)?(?:_|$)", re.I)
_USER_COLUMN = re.compile(r"(?:^|_)u(?:ser)?_?stack|stack.*(?:_|^)u(?:ser)?(?:_|$)", re.I)


def symbolise(frames: pd.DataFrame, resolve: Resolve, pid: int = 0) -> pd.DataFrame:
    """Add names to the frames of stacks.

    ``frames``   one row a frame, as the ``df`` of a stack trace map: stack (int32), depth (int16: 0 is where the stack
                 was taken, the rest are its callers), address (uint64)
    ``pid``      the process that stacks outside the kernel belong to; 0: not known

    The result has these columns, and two more:

    ``symbol``   category: the function; "[unknown] 0x7f..." where there is no name, and outside the kernel without pid
    ``module``   category: the kernel module, as "[nf_tables]", or the file; "" for the kernel itself, or not known
    """
    codes, kernel = _code(frames), _of_kernel(frames)
    names = _Names(resolve)
    names.ask(0, codes[kernel])
    names.ask(pid or None, codes[~kernel])
    symbols, modules = [], []
    for address, code, inside in zip(frames["address"].tolist(), codes.tolist(), kernel.tolist(), strict=True):
        name, module = names.of(0 if inside else pid or None, code)
        symbols.append(name if name != UNKNOWN else f"{UNKNOWN} {address:#x}")
        modules.append(module)
    return frames.assign(symbol=_categories(symbols), module=_categories(modules))


def folded(
    counts: pd.DataFrame,
    frames: pd.DataFrame,
    resolve: Resolve,
    *,
    kernel: str | None = None,
    user: str | None = None,
    weight: str | None = None,
    pid: int | None = None,
    owner: str | None = None,
    by: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Fold counted stacks for flame graphs: a row a stack, the outermost function first.

    ``counts``   rows with one or two stack ids: a map's ``df``, or events
    ``frames``   the ``df`` of the stack trace map the ids are of
    ``kernel``, ``user``   the columns with the ids; by default the integer columns with "stack" in their name, which
                 also says whose they are: kernel_stack_id, user_stack_id, kstack, u_stack_id. One alone may be either's
    ``weight``   the column to add up; by default "value" or "count", and without these each row counts one
    ``pid``      only this process's rows; where no column tells whose they are, all are taken to be its
    ``owner``    the column that tells whose they are
    ``by``       columns to tell stacks apart by: they come first in the result, and no name begins the stack

    A column "tgid" or "pid" (bpf_get_current_pid_tgid() as it is will do) tells whose the stacks outside the kernel
    are; without one and without ``pid`` they stay "[unknown] 0x7f...". A column "comm" or "name" begins the stack.

    Returns a DataFrame, the greatest count first:

    ``stack``    string: "comm;main;read;__x64_sys_read_[k]". First the process's frames, then the kernel's, these with
                 "_[k]" behind. A function without a name is "[unknown] libfoo.so", or "[unknown] 0x7f..." where no file
                 is known either. A ";" in a name is ":" here.
    ``count``    int64

    In place of a stack that is missing: "[no stack: EEXIST]", another one has its slot in the map (make that larger);
    "[no stack: gone]", it is not in ``frames`` any more; "[no stack: EFAULT]", there was none, as a kernel thread has
    none outside the kernel: this is said only where there was none inside either.

    ProgramError (a ValueError) when columns are missing, or it is not clear which.
    """
    ids = _id_columns(counts, kernel, user)
    owner = owner or _first(counts, ("tgid", "pid"), pd.api.types.is_integer_dtype)
    comm = None
    if by is None:
        comm = _first(counts, ("comm", "name"), lambda kind: not pd.api.types.is_numeric_dtype(kind))
    weights = _weights(counts, weight)
    if owner and pid is not None:
        mine = np.array(_pids(counts[owner]), np.int64) == pid
        counts, weights = counts[mine], weights[mine]
    apart = list(by or ())
    rows = _grouped(counts, list(dict.fromkeys([*ids, *filter(None, (owner, comm)), *apart])), weights)
    stacks = _Stacks(frames, resolve)
    pids = _pids(rows[owner]) if owner else [pid or 0] * len(rows)
    # An id kept in an unsigned field is -14 all the same.
    sides = [rows[column].to_numpy().astype(np.int32).tolist() for column in ids]
    stacks.prepare(pids, sides)
    texts = [stacks.text(process, these) for process, these in zip(pids, zip(*sides, strict=True), strict=True)]
    if comm:
        texts = [f"{_clean(str(name))};{text}" for name, text in zip(rows[comm], texts, strict=True)]
    stack = pd.Series(texts, dtype=text_dtype())
    result = rows[apart].assign(stack=stack, count=rows["count"].to_numpy(np.int64))
    result = result.groupby([*apart, "stack"], as_index=False, sort=True, observed=True, dropna=False)[["count"]].sum()
    return result.sort_values("count", ascending=False, kind="stable", ignore_index=True)


def lines(stacks: pd.DataFrame) -> str:
    """Write the text for flamegraph.pl, speedscope and inferno: "comm;main;read 42", a line a row of ``folded``."""
    pairs = zip(stacks["stack"], stacks["count"], strict=True)
    return "".join(f"{stack} {count}\n" for stack, count in pairs)


# --- names --------------------------------------------------------------------------------------------------------


class _Names:
    """Names that were asked for: once for each process, and once for the kernel.

    An owner is a process, 0 the kernel, None somebody nobody knows.
    """

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self._known: dict[tuple[int | None, int], tuple[str, str]] = {}

    def ask(self, owner: int | None, addresses: npt.NDArray[np.uint64]) -> None:
        """Ask for the names of these addresses."""
        wanted = [a for a in np.unique(addresses).tolist() if (owner, a) not in self._known]
        if wanted and owner is not None:
            found = zip(*self._resolve(owner, wanted), strict=True)
            self._known.update(zip(((owner, a) for a in wanted), found, strict=True))

    def of(self, owner: int | None, address: int) -> tuple[str, str]:
        """Return the name and the module of an address that was asked for."""
        return self._known.get((owner, address), (UNKNOWN, ""))


def _of_kernel(frames: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Return whether each frame's stack is the kernel's."""
    innermost = frames.sort_values("depth", kind="stable").drop_duplicates("stack")
    inside = innermost["stack"][innermost["address"].to_numpy(np.uint64) >= _KERNEL]
    kernel: npt.NDArray[np.bool_] = frames["stack"].isin(inside).to_numpy()
    return kernel


def _code(frames: pd.DataFrame) -> npt.NDArray[np.uint64]:
    """Return an address inside each frame's own code. A caller's address is of the instruction after the call, which is
    another function's where the call is the last thing a function does."""
    _must_have(frames, "address")  # BPF_F_STACK_BUILD_ID keeps build ids instead
    addresses = frames["address"].to_numpy(np.uint64)
    return addresses - ((frames["depth"].to_numpy() > 0) & (addresses > 0)).astype(np.uint64)


class _Stacks:
    """The stacks of a map by id, and their texts."""

    def __init__(self, frames: pd.DataFrame, resolve: Resolve) -> None:
        ordered = frames.sort_values(["stack", "depth"], ascending=[True, False], kind="stable")
        self._codes, self._kernel = _code(ordered), _of_kernel(ordered)
        self._addresses = ordered["address"].to_numpy(np.uint64)
        ids, begins = np.unique(ordered["stack"].to_numpy(), return_index=True)
        ends = [*begins[1:].tolist(), len(ordered)]
        self._slices = dict(zip(ids.tolist(), map(slice, begins.tolist(), ends), strict=True))
        self._names = _Names(resolve)
        self._texts: dict[tuple[int, int], str] = {}

    def prepare(self, pids: Sequence[int], sides: Iterable[Sequence[int]]) -> None:
        """Ask for all names these processes' stacks need."""
        needed: dict[int | None, set[int]] = {}
        for side in sides:
            for pid, number in zip(pids, side, strict=True):
                if number in self._slices:
                    needed.setdefault(self._owner(pid, number), set()).add(number)
        with step("naming stacks of processes", len(needed)) as naming:
            for done, (owner, numbers) in enumerate(needed.items()):
                naming.tick(done)
                self._names.ask(owner, np.concatenate([self._codes[self._slices[number]] for number in numbers]))

    def _owner(self, pid: int, number: int) -> int | None:
        return 0 if self._kernel[self._slices[number].start] else pid or None

    def text(self, pid: int, numbers: Sequence[int]) -> str:
        """Return one line for the stacks with these ids, of one moment: the process's part before the kernel's."""
        taken = [number for number in numbers if number != -_EFAULT] or [-_EFAULT]
        return ";".join(self._part(pid, number) for number in taken)

    def _part(self, pid: int, number: int) -> str:
        if (pid, number) not in self._texts:
            self._texts[pid, number] = self._fold(pid, number)
        return self._texts[pid, number]

    def _fold(self, pid: int, number: int) -> str:
        if number not in self._slices:
            return f"[no stack: {_ERRORS.get(-number, str(number)) if number < 0 else 'gone'}]"
        here, owner = self._slices[number], self._owner(pid, number)
        pairs = zip(self._addresses[here].tolist(), self._codes[here].tolist(), strict=True)
        return ";".join(self._frame(owner, address, code) for address, code in pairs)

    def _frame(self, owner: int | None, address: int, code: int) -> str:
        name, module = self._names.of(owner, code)
        if name == UNKNOWN:
            name = f"{UNKNOWN} {module.rpartition('/')[2] or hex(address)}"
        return _clean(name) + ("_[k]" if owner == 0 else "")


def _clean(name: str) -> str:
    """Return the name without what would part it in two, or its line."""
    return re.sub(r"[\x00-\x1f\x7f]", "?", name).replace(";", ":")


# --- columns ------------------------------------------------------------------------------------------------------


def _id_columns(counts: pd.DataFrame, kernel: str | None, user: str | None) -> list[str]:
    """Return the columns of stack ids, the process's first."""
    for name in filter(None, (kernel, user)):
        _must_have(counts, name)
    if kernel or user:
        return [name for name in (user, kernel) if name]
    found = [str(c) for c in counts.columns if _STACK_COLUMN.search(str(c)) and _integers(counts, c)]
    if len(found) == 1:
        return found
    sides = [bool(_KERNEL_COLUMN.search(name)) - bool(_USER_COLUMN.search(name)) for name in found]
    if len(found) == 2 and sides[0] != sides[1]:
        return found if sides[0] < sides[1] else found[::-1]
    columns = ", ".join(found or map(str, counts.columns))
    which = f"these may be: {columns}" if found else f"no integer column has stack in its name (there are {columns})"
    raise ProgramError(f"which columns are stack ids? {which}; name them: kernel=..., user=...")


def _pids(column: pd.Series[Any]) -> list[int]:
    return [number >> 32 or number for number in column.to_numpy().astype(np.int64).tolist()]


def _categories(texts: list[str]) -> pd.Categorical:
    return pd.Categorical(pd.Series(texts, dtype=text_dtype()))


def _integers(counts: pd.DataFrame, column: Any) -> bool:
    return pd.api.types.is_integer_dtype(counts[column].dtype)


def _first(counts: pd.DataFrame, names: Iterable[str], fits: Callable[[Any], bool]) -> str | None:
    return next((name for name in names if name in counts.columns and fits(counts[name].dtype)), None)


def _weights(counts: pd.DataFrame, weight: str | None) -> npt.NDArray[np.int64]:
    if weight is not None:
        _must_have(counts, weight)
    column = weight or _first(counts, ("value", "count"), pd.api.types.is_numeric_dtype)
    if column is None:
        return np.ones(len(counts), np.int64)
    if not pd.api.types.is_numeric_dtype(counts[column].dtype):
        raise ProgramError(f"column {column!r} cannot be added up: it has no numbers")
    return counts[column].to_numpy().astype(np.int64)


def _must_have(df: pd.DataFrame, name: str) -> None:
    if name not in df.columns:
        raise ProgramError(f"no column {name!r}: there are {', '.join(map(str, df.columns))}")


def _grouped(counts: pd.DataFrame, by: list[str], weights: npt.NDArray[np.int64]) -> pd.DataFrame:
    """Add up the rows that differ only in their count: millions of events have few different stacks."""
    rows = counts[by].assign(count=weights)
    return rows.groupby(by, as_index=False, observed=True, sort=False, dropna=False)[["count"]].sum()
