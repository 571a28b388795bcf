"""A shop on the loopback interface, which is sometimes slow, and customers who time it.

``with shop.open(folder) as open_shop`` starts it in a process of its own; ``open_shop.visit()`` has customers in
another process. It serves HTTP, a thread for each connection:

GET /price    the price of something
POST /order   writes the order to the journal in ``folder``, and what is left to the stock; answers when both are on
              the disk

``shop.open(folder, mended=True)`` starts it with the remedy that notebook 10 comes to.
"""

from __future__ import annotations

import argparse
import http.client
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO


class Shop:
    """What all requests share."""

    def __init__(self, folder: Path, mended: bool) -> None:
        self._folder = folder
        self._mended = mended
        self._lock = threading.Lock()
        self._prices = {"tea": 3, "cup": 8}
        self._sold = 0

    def price(self) -> int:
        with self._lock:
            return self._prices["tea"]

    def order(self) -> int:
        with self._lock:
            self._sold += 1
            number = self._sold
            if not self._mended:
                self._write(number)
        if self._mended:
            self._write(number)
        return number

    def _write(self, number: int) -> None:
        with (self._folder / "journal").open("a") as journal:
            journal.write(f"{number} tea\n")
            _flush(journal)
        new = self._folder / f"stock.{number}"
        with new.open("w") as stock:
            json.dump({"tea": 1_000_000 - number}, stock)
            _flush(stock)
        new.replace(self._folder / "stock")  # a reader sees the old one or the new one, whole


def _flush(file: TextIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def serve(folder: Path, mended: bool) -> None:
    """Serve until somebody ends the process; print the port first."""
    shop = Shop(folder, mended)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(shop.price())

        def do_POST(self) -> None:
            self._answer(shop.order())

        def _answer(self, value: int) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"{value}\n".encode())

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        print(server.server_port, flush=True)
        server.serve_forever()


def visit(port: int, seconds: float) -> list[dict[str, Any]]:
    """Five customers for so long, two of whom buy: {"request", "port" of the customer's end, "ms"} of each request."""
    end = time.monotonic() + seconds
    requests: list[dict[str, Any]] = []

    def customer(method: str, path: str, pause: float) -> None:
        while time.monotonic() < end:
            begun = time.perf_counter()
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request(method, path)
            own_port = connection.sock.getsockname()[1]
            connection.getresponse().read()
            connection.close()
            milliseconds = 1000 * (time.perf_counter() - begun)
            requests.append({"request": f"{method} {path}", "port": own_port, "ms": milliseconds})
            time.sleep(pause)

    kinds = [("POST", "/order", 0.03)] * 2 + [("GET", "/price", 0.015)] * 3
    customers = [threading.Thread(target=customer, args=kind) for kind in kinds]
    for thread in customers:
        thread.start()
    for thread in customers:
        thread.join()
    return requests


class OpenShop:
    """A shop in a process of its own, ``pid``, on a ``port``."""

    def __init__(self, folder: str | os.PathLike[str], mended: bool) -> None:
        mend = ["--mended"] if mended else []
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, "serve", os.fspath(folder), *mend], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout
        self.pid = self._process.pid
        self.port = int(self._process.stdout.readline())

    def visit(self, seconds: float = 2) -> list[dict[str, Any]]:
        """Have customers for so long; what ``visit`` returns."""
        command = [sys.executable, "-I", __file__, "visit", str(self.port), str(seconds)]
        found: list[dict[str, Any]] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> OpenShop:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open(folder: str | os.PathLike[str], mended: bool = False) -> OpenShop:
    """Start a shop that keeps its journal in ``folder``."""
    return OpenShop(folder, mended)


def main() -> None:
    parser = argparse.ArgumentParser(description="A shop on the loopback interface, and its customers.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("serve")
    command.add_argument("folder", type=Path)
    command.add_argument("--mended", action="store_true")
    command = commands.add_parser("visit")
    command.add_argument("port", type=int)
    command.add_argument("seconds", type=float)
    asked = parser.parse_args()
    if asked.command == "serve":
        serve(asked.folder, asked.mended)
    else:
        print(json.dumps(visit(asked.port, asked.seconds)))


if __name__ == "__main__":
    main()
