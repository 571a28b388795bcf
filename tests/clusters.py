"""A Dask cluster with TLS, as processes: a scheduler, and workers that a test starts and kills one by one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from distributed import Client, Security

ROOT = Path(__file__).parents[1]


def machine(worker: Any) -> str:
    """Return the worker's name: so workers of one machine pretend to be several."""
    return str(worker.name)


class Cluster:
    """``folder``: for keys and the scheduler's address. ``listen``: where the scheduler is."""

    def __init__(self, folder: Path, listen: str = "127.0.0.1") -> None:
        self.folder = folder
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        made = Security.temporary()
        self._ca, self._key = folder / "ca.pem", folder / "key.pem"
        self._ca.write_text(made.tls_ca_file)
        self._key.write_text(made.tls_client_key + made.tls_client_cert)
        self._key.chmod(0o600)
        self.security = Security(
            tls_ca_file=str(self._ca),
            tls_client_cert=str(self._key),
            tls_client_key=str(self._key),
            require_encryption=True,
        )
        self._file = folder / "scheduler.json"
        where = ["--scheduler-file", str(self._file), "--protocol", "tls", "--host", listen, "--port", "0"]
        command = self._dask("scheduler", *where, "--no-dashboard", "--dashboard-address", f"{listen}:0")
        with (folder / "scheduler.log").open("wb") as log:
            self._scheduler = subprocess.Popen(command, stdout=log, stderr=log)

    @property
    def address(self) -> str:
        found: str = json.loads(self._file.read_text())["address"]
        return found

    def command(self, name: str, *options: str) -> list[str]:
        """Return the command of a worker."""
        where = [] if any(option.startswith("tls://") for option in options) else ["--scheduler-file", str(self._file)]
        plain = ["--no-nanny", "--nthreads", "1", "--memory-limit", "0", "--no-dashboard", "--death-timeout", "60"]
        return [*self._dask("worker", *options), *where, "--name", name, *plain, "--local-directory", "/tmp"]

    def start(self, name: str, *options: str, under: Sequence[str] = ()) -> None:
        """Start a worker. ``under``: a command that runs it."""
        log = (self.folder / f"{name}.log").open("wb")
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
        command = [*under, *self.command(name, *options)]
        with log:
            self.workers[name] = subprocess.Popen(command, stderr=log, stdout=log, env=environment)

    def kill(self, name: str) -> None:
        """Kill a worker, as a machine that loses its power."""
        process = self.workers.pop(name)
        process.kill()
        process.wait()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def client(self) -> Client:
        return Client(scheduler_file=str(self._file), security=self.security, timeout=30)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self.workers):
            self.kill(name)
        self._scheduler.kill()
        self._scheduler.wait()

    def _dask(self, what: str, *options: str) -> list[str]:
        tls = ["--tls-ca-file", str(self._ca), "--tls-cert", str(self._key), "--tls-key", str(self._key)]
        return [sys.executable, "-m", f"distributed.cli.dask_{what}", *options, *tls]
