"""What the benchmarks share: a producer of events, processes for the contenders, medians, the table.

A *contender* is a function that measures one reader once and returns its figures by name. It runs in a process of its
own, pinned to one CPU together with all it starts; the producer has another CPU. A *group* (a module each) runs its
contenders in turn, several times over, and makes rows of the medians.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = [
    "CPUS",
    "LIMIT",
    "PRODUCER",
    "TRACEPOINT",
    "Contender",
    "Figures",
    "Group",
    "Producer",
    "Row",
    "Runs",
    "at_least",
    "at_most",
    "build_producer",
    "comparison",
    "count",
    "cpu_of",
    "interleave",
    "missing",
    "nothing",
    "percent",
    "quiet",
    "rate",
    "seconds",
    "size_of",
    "table",
    "times",
    "under",
]

HERE = Path(__file__).parent
TRACEPOINT = "syscalls:sys_enter_getppid"
PRODUCER = "BPFNB_BENCH_PRODUCER"  # environment: the compiled producer.c, for the contenders
LIMIT = "BPFNB_BENCH_LIMIT"  # and limit.c, as a library
CPUS = sorted(os.sched_getaffinity(0))
_PATIENCE = 300.0  # seconds for one contender
_NEVER = 1 << 62

Figures = dict[str, float]


# --- the producer -------------------------------------------------------------------------------------------------


def build_producer(folder: Path) -> str:
    """Compile producer.c and limit.c for the contenders to come. Returns what will produce, for the report."""
    compiler = shutil.which("cc")
    if not compiler:
        return "producer.py (no C compiler)"
    subprocess.run([compiler, "-O2", "-o", folder / "producer", HERE / "producer.c"], check=True)
    os.environ[PRODUCER] = str(folder / "producer")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", folder / "limit.so", HERE / "limit.c"], check=True)
    os.environ[LIMIT] = str(folder / "limit.so")
    return "producer.c"


class Producer:
    """A process that calls getppid when told to ``go``: ``count`` times, or for so long, at most ``rate`` a second."""

    def __init__(self, count: int = _NEVER, rate: float = 0, seconds: float = _PATIENCE) -> None:
        program = os.environ.get(PRODUCER)
        command = [program] if program else [sys.executable, "-I", "-S", str(HERE / "producer.py")]
        arguments = [str(max(CPUS)), str(count), str(rate), str(seconds)]
        self._process = subprocess.Popen([*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin
        assert self._process.stdout
        self._start, self._report = self._process.stdin, self._process.stdout
        self.pid = self._process.pid

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def go(self) -> None:
        self._start.write(b"\n")
        self._start.flush()

    def done(self) -> bool:
        return bool(select.select([self._report], [], [], 0)[0])

    def wait(self) -> tuple[int, float]:
        """How many calls it made, and in how many seconds."""
        made, nanoseconds = self._report.readline().split()
        return int(made), int(nanoseconds) / 1e9

    def run(self) -> tuple[int, float]:
        self.go()
        return self.wait()


def cpu_of(pid: int) -> float:
    """Seconds of processor time a process has used, all its threads: clock_getcpuclockid(3)."""
    return time.clock_gettime(~pid << 3 | 2)


def quiet(count: Callable[[], int], enough: int = _NEVER) -> None:
    """Wait until there is enough, or until nothing more has come for a while."""
    calm = 2.0
    last, since = count(), time.monotonic()
    while last < enough and time.monotonic() - since < calm:
        time.sleep(0.05)
        now = count()
        if now != last:
            last, since = now, time.monotonic()


# --- contenders ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """A function measured in a process of its own, and its arguments (what JSON can hold).

    ``warm``: it is called twice, and the second time counts, when memory and caches are no longer new; the first
    time's figures are there as ``first_...``.
    """

    function: Callable[..., Figures]
    arguments: dict[str, Any] = field(default_factory=dict)
    warm: bool = False

    def measure(self) -> Figures:
        """One run. RuntimeError with the last it said when it fails."""
        name = f"{self.function.__module__}:{self.function.__name__}"
        arguments = [name, json.dumps(self.arguments), *(["twice"] if self.warm else [])]
        with tempfile.TemporaryFile("w+", errors="replace") as complaints:
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "benchmarks.contender", *arguments],
                cwd=HERE.parent,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
                start_new_session=True,  # a group of its own: what it leaves behind ends with it
            )
            try:
                output, _ = process.communicate(timeout=_PATIENCE)
            except subprocess.TimeoutExpired:
                raise RuntimeError(f"still running after {_PATIENCE:g} s") from None
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            complaints.seek(0)
            said = complaints.read().strip().splitlines()
        if process.returncode < 0:
            raise RuntimeError(f"ended by signal {-process.returncode}")
        if process.returncode:
            raise RuntimeError(said[-1] if said else f"exit status {process.returncode}")
        figures: Figures = json.loads(output.splitlines()[-1])
        return figures


class Runs:
    """What the contenders of a group measured: ``figures`` by contender, a dict a run, and why others did not."""

    def __init__(self) -> None:
        self.figures: dict[str, list[Figures]] = {}
        self.failures: dict[str, str] = {}

    def derive(self, key: str, value: Callable[[Figures], float]) -> None:
        """Add a figure to every run."""
        for figures in self.figures.values():
            for run in figures:
                run[key] = value(run)

    def median(self, name: str, key: str) -> float | None:
        """None for one that failed in any run."""
        runs = self._of(name)
        return statistics.median(run[key] for run in runs) if runs else None

    def worst(self, name: str, key: str) -> float | None:
        """The largest of all runs, and of the first times that were only to warm. None as for ``median``."""
        runs = self._of(name)
        return max(run.get(k, 0) for run in runs for k in (key, f"first_{key}")) if runs else None

    def _of(self, name: str) -> list[Figures]:
        return [] if name in self.failures else self.figures.get(name, [])


def interleave(contenders: Mapping[str, Contender], runs: int) -> Runs:
    """Each contender in turn, so many times over. One that fails is not asked again."""
    results = Runs()
    for run in range(runs):
        for name, contender in contenders.items():
            if name in results.failures:
                continue
            print(f"bench: run {run + 1} of {runs}: {name}", file=sys.stderr, flush=True)
            try:
                figures = contender.measure()
            except RuntimeError as error:
                results.failures[name] = str(error)
                print(f"bench: {name} failed: {error}", file=sys.stderr, flush=True)
            else:
                results.figures.setdefault(name, []).append(figures)
    return results


@dataclass(frozen=True)
class Group:
    """Contenders measured together, and the rows their medians make."""

    title: str
    contenders: Callable[[bool], dict[str, Contender]]  # of whether it is to be quick
    rows: Callable[[Runs], list[Row]]


def missing(command: str) -> str:
    """What to say of a command that is not there."""
    return f"{command} is not installed (scripts/bench --install)"


# --- the table ----------------------------------------------------------------------------------------------------

Show = Callable[[float], str]


@dataclass(frozen=True)
class Wanted:
    """What a row should say: ``holds`` of our figure and its ratio to the peer's; None where that cannot be known."""

    text: str
    holds: Callable[[float, float | None], bool | None]


def at_least(least: float) -> Wanted:
    return Wanted(f"at least {least:g} x", lambda _, ratio: None if ratio is None else ratio >= least)


def at_most(most: float) -> Wanted:
    return Wanted(f"at most {most:g} x", lambda _, ratio: None if ratio is None else ratio <= most)


def under(most: float, text: str) -> Wanted:
    return Wanted(f"under {text}", lambda ours, _: ours < most)


def nothing() -> Wanted:
    return Wanted("0", lambda ours, _: ours == 0)


@dataclass(frozen=True)
class Row:
    what: str
    ours: str
    peer: str
    ratio: str
    wanted: str

    @property
    def known(self) -> bool:
        """Whether either figure was measured."""
        return not self.ours.startswith(_FAILED) or not (self.peer or _FAILED).startswith(_FAILED)


def comparison(
    runs: Runs,
    what: str,
    key: str,
    show: Show,
    *,
    ours: str,
    peer: str = "",
    peer_key: str = "",
    label: str = "",
    wanted: Wanted | None = None,
    worst: bool = False,
) -> Row:
    """Two contenders' medians of a figure, or the worst of it, side by side.

    ``peer_key``: the peer's figure, where it is another; ``label``: the peer's name, where it is not the contender's.
    """
    choose = runs.worst if worst else runs.median
    mine, theirs = choose(ours, key), choose(peer, peer_key or key)
    ratio = mine / theirs if mine is not None and theirs else None
    holds = wanted.holds(mine, ratio) if wanted and mine is not None else None
    return Row(
        what,
        _FAILED if mine is None else show(mine),
        f"{_FAILED if theirs is None else show(theirs)} ({label or peer})" if peer else "",
        "" if ratio is None else "< 0.01" if 0 < ratio < 0.005 else f"{ratio:.2f}",
        f"{wanted.text}: {_VERDICTS[holds]}" if wanted else "",
    )


_FAILED = "failed, see below"
_VERDICTS = {True: "yes", False: "NO", None: "?"}


def rate(value: float) -> str:
    return f"{value / 1e6:.2f} M/s" if value >= 1e5 else f"{value:,.0f} /s"


def count(value: float) -> str:
    return f"{value:,.0f}"


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def size_of(value: float) -> str:
    return f"{value:.1f} B"


def times(value: float) -> str:
    return f"{value:.2f} x"


def percent(value: float) -> str:
    return f"{value:.2f} %"


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The rows as lines of Markdown, padded to be read as they are."""
    cells = [["what", "bpfnb", "peer", "ratio", "wanted"]]
    cells += [[row.what, row.ours, row.peer, row.ratio, row.wanted] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    for line in cells:
        padded = (cell.replace("|", "/").ljust(width) for cell, width in zip(line, widths, strict=True))
        yield f"| {' | '.join(padded)} |"
