"""What a live panel costs: the processor time of the notebook's kernel, and bytes on its way to the page.

    .venv/bin/python -m benchmarks.panel [--runs 3] [--seconds 10] [--before FOLDER] [--peers SITE_PACKAGES] [NAME ...]

A real kernel (ipykernel), a real session on a workload's getppid calls, and a client that does what a page does:
subscribes to iopub, says that it is ready, acknowledges every fourth frame through a subshell. Processor time is that
of the kernel's process alone, all its threads, less what the same session takes there without a panel ("no panel").
Bytes are those of whole comm messages, as they are on the wire: topic, signature, headers, content, buffers. In the
last column is what Jupyter adds, the kernel's word that it is busy, and idle again, for what the page says.

``--before``  a checkout of bpfnb whose panel is measured as well: of before issue 13, ``git worktree add ... 581dff1``
``--peers``   a folder with ipympl and bokeh: ``pip install --target FOLDER --no-deps ipympl bokeh xyzservices narwhals
              tornado contourpy``. They are no dependencies of bpfnb.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from benchmarks.common import Producer, build_producer, cpu_of

_ACK_EVERY = 4  # frames, as in frontend/widgets/src/panel.js
_SETTLING = 4.0  # seconds, until the window is full enough and imports are over
_PER_SECOND = 2_000  # events, where nothing else is said
_DELIMITER = b"<IDS|MSG>"

# One event a call, of one of N groups in turn
_PROGRAM = """
struct event { u64 ts; u32 line; };
BPF_PERF_OUTPUT(events);
BPF_ARRAY(turn, u64, 1);
TRACEPOINT_PROBE(syscalls, sys_enter_getppid) {
    if ((bpf_get_current_pid_tgid() >> 32) != WORKLOAD) return 0;
    int zero = 0;
    u64 *n = turn.lookup(&zero);
    if (!n) return 0;
    struct event e = { .ts = bpf_ktime_get_ns(), .line = (*n)++ % GROUPS };
    events.perf_submit(args, &e, sizeof(e));
    return 0;
}
"""

_SESSION = """
import asyncio, sys, bpfnb
session = bpfnb.trace({program!r}, name="bench", cflags=["-DWORKLOAD={pid}", "-DGROUPS={groups}"], max_cost=1)
"""

_PANEL = "panel = bpfnb.live(session, by={by!r}, window={window})"
_TEN = 'panel = [bpfnb.live(session, by="line", window=10) for _ in range(10)]'
_BEFORE = "panel = bpfnb.live(session, by={by!r})"

# By hand, from the meter that a panel draws: five times a second, the last ten seconds.
_LOOP = """
sys.path.append({site!r})
meter = session.meter("line", window=10)
{head}
def series():
    meter.update()
    until = meter.until
    return until, meter.counts_of([str(n) for n in range({groups})], until - 50, until) / meter.step
{setup}
async def draw():
    while True:
        step()
        await asyncio.sleep(0.2)
task = asyncio.ensure_future(draw())
"""
_IPYMPL = (
    "import matplotlib; matplotlib.use('module://ipympl.backend_nbagg'); import matplotlib.pyplot as plt",
    """
fig, ax = plt.subplots(figsize=(8, 3))
_, y = series()
lines = [ax.plot(range(50), row)[0] for row in y]
ax.set_ylim(0, 2500)
plt.show()
def step():
    for line, row in zip(lines, series()[1]): line.set_ydata(row)
    fig.canvas.draw_idle()
""",
)
_BOKEH = (
    "from bokeh.plotting import figure, show; from bokeh.io import output_notebook, push_notebook\n"
    "from bokeh.models import ColumnDataSource; import bokeh.io.notebook as bn",
    """
output_notebook(hide_banner=True)
until, y = series()
names = [str(n) for n in range(len(y))]
source = ColumnDataSource({"x": list(range(until - 50, until)), **dict(zip(names, y))})
fig = figure(width=800, height=300)
for name in names: fig.line("x", name, source=source)
handle = show(fig, notebook_handle=True)
def step():
    global until
    now, y = series()
    new = min(now - until, 50)
    if new:
        x = list(range(now - new, now))
        source.stream({"x": x, **{name: list(row[-new:]) for name, row in zip(names, y)}}, rollover=50)
        push_notebook(handle=handle)
    until = now
""",
)


@dataclass(frozen=True)
class Case:
    """One row. ``cell``: what is run beside the session; ``does``: how the page behaves once it shows the panel."""

    title: str
    cell: str
    groups: int = 4
    rate: int = _PER_SECOND
    does: str = "watch"
    base: str = "none"
    where: str = "ours"


def _panel(title: str, groups: int, window: int = 10, **more: Any) -> Case:
    by = None if groups == 1 else "line"
    return Case(title, _PANEL.format(by=by, window=window), groups, **more)


def _by_hand(title: str, peer: tuple[str, str], groups: int, site: str) -> Case:
    head, setup = peer
    return Case(title, _LOOP.format(site=site, head=head, setup=setup, groups=groups), groups, where="peer")


def cases(before: Path | None, peers: Path | None) -> dict[str, Case]:
    found = {
        "none": Case("no panel", "", base=""),
        "none_fast": Case("no panel, 1 M events/s", "", rate=1_000_000, base=""),
        "one": _panel("1 line", 1),
        "four": _panel("4 lines", 4),
        "sixteen": Case("16 lines", _PANEL.format(by="line", window=10), 16, does="sixteen"),
        "sixty": _panel("60 groups: 10 lines and the rest", 60),
        "minute": _panel("4 lines, a window of 60 s (the default)", 4, 60),
        "fast": _panel("4 lines, 1 M events/s", 4, rate=1_000_000, base="none_fast"),
        "idle": _panel("4 lines, no events", 4, does="idle"),
        "hidden": _panel("4 lines, hidden", 4, does="hide"),
        "paused": _panel("4 lines, paused", 4, does="pause"),
        "ten": Case("ten panels of 4 lines: one is shown, nine are hidden", _TEN, 4, does="nine"),
    }
    if before:
        for name, groups in (("one", 1), ("four", 4), ("sixteen", 16)):
            cell = _BEFORE.format(by=None if groups == 1 else "line")
            title = f"{groups} line{'s' if groups > 1 else ''}: the panel before"
            found[f"before_{name}"] = Case(title, cell, groups, where="before", does="nothing")
        found["before_idle"] = Case(
            "no events: the panel before", _BEFORE.format(by="line"), where="before", does="idle"
        )
    if peers:
        found["ipympl"] = _by_hand("4 lines: ipympl by hand", _IPYMPL, 4, str(peers))
        found["bokeh"] = _by_hand("4 lines: bokeh's stream by hand", _BOKEH, 4, str(peers))
    return found


# --- the page -----------------------------------------------------------------------------------------------------


class Page(threading.Thread):
    """Counts what iopub carries and answers as a page would. Its own socket, since jupyter_client's are not for two
    threads."""

    def __init__(self, client: BlockingKernelClient, does: str) -> None:
        super().__init__(daemon=True)
        self._client, self._does = client, does
        self._subscriber = client.connect_iopub()
        self._sender = client.connect_shell(identity=b"page")
        self._subshell = self._make_subshell()
        self._ending = False
        self._panels: list[str] = []
        self.messages = self.comm_bytes = self.other_bytes = 0

    def run(self) -> None:
        while not self._ending:
            if self._subscriber.poll(50):
                self._take(self._subscriber.recv_multipart())
            while self._sender.poll(0):
                self._sender.recv_multipart()

    def end(self) -> None:
        self._ending = True
        self.join()
        self._subscriber.close(0)
        self._sender.close(0)

    def reset(self) -> None:
        self.messages = self.comm_bytes = self.other_bytes = 0

    def act(self) -> None:
        """Do what this page is for, once all is drawn."""
        for number, panel in enumerate(self._panels):
            if self._does == "hide" or (self._does == "nine" and number):
                self._say(panel, {"visible": False})
            elif self._does == "pause":
                self._say(panel, {"do": "pause"})
            elif self._does == "sixteen":
                self._say(panel, {"choose": 0, "choices": {"top": 16}})

    def _take(self, frames: list[bytes]) -> None:
        size = sum(map(len, frames))
        at = frames.index(_DELIMITER)
        kind = json.loads(frames[at + 2])["msg_type"]
        if not kind.startswith("comm_"):
            self.other_bytes += size
            if kind in ("update_display_data", "display_data"):
                self.comm_bytes += size  # pictures in outputs are the panel's as well
                self.other_bytes -= size
                self.messages += 1
            return
        self.messages += 1
        self.comm_bytes += size
        content = json.loads(frames[at + 5])
        model = content["comm_id"]
        data = content.get("data") or {}
        if kind == "comm_open":
            self._open(model, data.get("state", {}))
        elif isinstance(data, dict) and data.get("method") == "custom":
            self._answer(model, data["content"])

    def _open(self, model: str, state: dict[str, Any]) -> None:
        if "mark" in state and "_esm" in state:
            self._panels.append(model)
            self._say(model, {"ready": True})
            self._say(model, {"visible": True})
        elif state.get("_model_name") == "MPLCanvasModel":
            for kind in ("send_image_mode", "refresh", "initialized", "draw"):
                self._custom(model, {"type": kind})

    def _answer(self, model: str, content: dict[str, Any]) -> None:
        number = content.get("frame")
        if number is not None and (content["base"] is None or number % _ACK_EVERY == 0):
            self._say(model, {"ack": number})
        elif content.get("data") and json.loads(content["data"]).get("type") == "draw":
            self._custom(model, {"type": "draw"})  # ipympl's page asks for each picture

    def _say(self, model: str, content: dict[str, Any]) -> None:
        self._custom(model, {"page": "bench", **content}, self._subshell)

    def _custom(self, model: str, content: dict[str, Any], subshell: str | None = None) -> None:
        session = self._client.session
        data = {"method": "custom", "content": content}
        message = session.msg("comm_msg", {"comm_id": model, "data": data})
        if subshell:
            message["header"]["subshell_id"] = subshell
        session.send(self._sender, message)

    def _make_subshell(self) -> str | None:
        """What JupyterLab makes for comms. None: this ipykernel has none."""
        session, channel = self._client.session, self._client.control_channel
        channel.send(session.msg("create_subshell_request", {}))
        reply = channel.get_msg(timeout=20)
        subshell: str | None = reply["content"].get("subshell_id")
        return subshell


# --- one measurement ----------------------------------------------------------------------------------------------


@contextmanager
def workload(rate: int) -> Iterator[Any]:
    """A process that calls getppid, as soon as its standard input says so. Yields it, with ``go``."""
    if rate > 100_000:
        with Producer(rate=rate) as producer:
            yield producer
        return
    calls = f"import os, sys, time\nsys.stdin.readline()\nwhile True:\n [os.getppid() for _ in range({rate // 100})]\n"
    command = [sys.executable, "-I", "-S", "-c", calls + " time.sleep(0.01)"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as process:
        process.go = lambda: print(file=process.stdin, flush=True)  # type: ignore[attr-defined]
        try:
            yield process
        finally:
            process.kill()


def measure(case: Case, seconds: float, folder: Path) -> dict[str, float]:
    """One row, once: a share of a CPU, messages and bytes a second."""
    manager = KernelManager(transport="ipc", connection_file=str(Path(folder, f"{time.monotonic_ns()}.json")))
    assert manager.kernel_spec
    manager.kernel_spec.argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    manager.start_kernel(env=environment, extra_arguments=["--HistoryManager.enabled=False"])
    client = manager.blocking_client()
    client.start_channels()
    page = None
    try:
        client.wait_for_ready(timeout=60)
        assert manager.provisioner
        kernel = manager.provisioner.pid  # type: ignore[attr-defined]
        with workload(case.rate) as producer:
            page = Page(client, case.does)
            page.start()
            _run(client, _SESSION.format(program=_PROGRAM, pid=producer.pid, groups=case.groups))
            if case.does != "idle":
                producer.go()
            time.sleep(1)
            _run(client, case.cell)
            time.sleep(_SETTLING / 2)
            page.act()
            time.sleep(_SETTLING / 2)
            page.reset()
            used, began = cpu_of(kernel), time.monotonic()
            time.sleep(seconds)
            used, passed = cpu_of(kernel) - used, time.monotonic() - began
            return {
                "cpu": 100 * used / passed,
                "messages": page.messages / passed,
                "bytes": page.comm_bytes / passed,
                "rest": page.other_bytes / passed,
            }
    finally:
        if page:
            page.end()
        client.stop_channels()
        manager.shutdown_kernel()


def _run(client: BlockingKernelClient, cell: str) -> None:
    reply = client.execute_interactive(textwrap.dedent(cell), timeout=120, output_hook=lambda _: None)
    if reply["content"]["status"] != "ok":
        raise RuntimeError("\n".join(reply["content"]["traceback"]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.panel", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--before", type=Path, help="a checkout of bpfnb")
    parser.add_argument("--peers", type=Path, help="a folder with ipympl and bokeh")
    args = parser.parse_args()
    found = cases(args.before, args.peers)
    if unknown := [name for name in args.names if name not in found]:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(found)}")
    chosen = {name: found[name] for name in args.names or found}
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory(prefix="bpfnb-bench-") as folder:
        build_producer(Path(folder))
        for run in range(args.runs):
            for name, case in chosen.items():
                place = Path(folder, f"{run}-{name}")
                place.mkdir()
                root = args.before if case.where == "before" else Path(__file__).parents[1]
                for package in ("bpfnb", "magics"):
                    (place / package).symlink_to(root.absolute() / package)
                try:
                    figures[name].append(measure(case, args.seconds, place))
                except RuntimeError as error:
                    print(f"panel: {name}: {error}", file=sys.stderr)
                    continue
                print(f"panel: {run}: {name}: {figures[name][-1]}", file=sys.stderr, flush=True)
    load = os.getloadavg()[0]
    print(f"load {load:.1f}; medians of {args.runs} runs of {args.seconds:g} s, each in a kernel of its own\n")
    print("| what | CPU | ... beyond no panel | messages/s | bytes/s | ... of status messages |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, case in chosen.items():
        if figures[name]:
            middle = _medians(figures[name])
            base = _medians(figures[case.base]) if figures.get(case.base) else None
            beyond = f"{middle['cpu'] - base['cpu']:.2f} %" if base else ""
            cells = [case.title, f"{middle['cpu']:.2f} %", beyond, f"{middle['messages']:.1f}"]
            print(f"| {' | '.join([*cells, *(f'{middle[key]:,.0f}' for key in ('bytes', 'rest'))])} |")


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


if __name__ == "__main__":
    main()
