"""The ipython lane: the magics in a real IPython shell, against a tracer without a kernel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from IPython.core.interactiveshell import InteractiveShell
from shell import Shell
from traitlets.config import Config

import bpfnb
from bpfnb.hosts import default_host
from bpfnb.protocol.messages import Check
from bpfnb.testing import FakeTracer


@pytest.fixture(scope="session")
def _ipython() -> InteractiveShell:
    config = Config()
    config.HistoryManager.enabled = False
    return InteractiveShell.instance(config=config, colors="nocolor")


@pytest.fixture
def tracer() -> Iterator[FakeTracer]:
    probes = ["syscall:clone", "syscall:clone3", "tracepoint:sched:sched_process_fork"]
    with FakeTracer(
        probes, [Check("bcc", "required", True, "here"), Check("kprobes", "optional", False, "no")]
    ) as fake:
        yield fake


@pytest.fixture
def shell(_ipython: InteractiveShell, tracer: FakeTracer) -> Iterator[Shell]:
    default_host.forget_names()
    _ipython.run_cell("%load_ext bpfnb")
    yield Shell(_ipython)
    bpfnb.stop_all()
    _ipython.run_cell("%unload_ext bpfnb")
    _ipython.reset(new_session=False)
