"""Measure which of Debian's bpfcc-tools compile, load and attach on each kernel, and write docs/compatibility.md."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from benchmarks.compatibility import report, standin
from benchmarks.compatibility.measure import MARK, Result
from benchmarks.compatibility.tools import runs

ROOT = Path(__file__).resolve().parents[2]
_STORES = ROOT / ".vm" / "compatibility", ROOT / ".vm" / "coverage"  # the second is its former name
STORE = next((folder for folder in _STORES if folder.exists()), _STORES[0])
KERNELS = ("host", "6.1", "6.12")
APT_GET = ["apt-get", "-q", "-oAPT::Sandbox::User=root", "-oAcquire::Retries=3"]
_MOST = 3 * 3600  # seconds for a guest


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compatibility",
        description=f"{__doc__} Results are kept in {STORE.relative_to(ROOT)}; the table is made of all of them.",
    )
    parser.add_argument("--kernel", choices=KERNELS, action="append", help="where to run; again for more (all)")
    parser.add_argument("--only", metavar="TOOL", action="append", default=[], help="this tool; the table stays")
    parser.add_argument("--plain", action="store_true", help="on 6.1, also plain bcc with Debian's real headers")
    parser.add_argument("--table", action="store_true", help="run nothing: make the table of what is there")
    arguments = parser.parse_args()
    if not arguments.table:
        sbin, standins = prepare()
        for kernel in arguments.kernel or KERNELS:
            there = real_headers(kernel) if arguments.plain and kernel == "6.1" else None
            results, release = run(kernel, sbin, standins, there, arguments.only)
            if arguments.only:
                continue
            kept = {"release": release, "results": msgspec.to_builtins(results)}
            (STORE / f"{kernel}.json").write_text(json.dumps(kept, indent=1))
    if not arguments.only:
        kernels = {}
        for kernel in KERNELS:
            if (file := STORE / f"{kernel}.json").exists():
                kept = json.loads(file.read_text())
                kernels[kept["release"]] = msgspec.convert(kept["results"], list[Result])
        (ROOT / "docs" / "compatibility.md").write_text(report.page(kernels))
    return 0


def prepare() -> tuple[Path, Path]:
    """The tools, unpacked but not installed, and the processes they look for."""
    tools = STORE / "bpfcc-tools"
    if not tools.exists():
        unpack(tools, "bpfcc-tools")
    standins = STORE / "standins"
    standins.mkdir(exist_ok=True)
    standin.build(standins)
    return tools / "usr/sbin", standins


def real_headers(kernel: str) -> Path:
    """An archive of the headers of the kernel that scripts/vm runs. Unpacked in the guest alone: read one by one
    through its shared file system they take a minute a program, and here nobody is to find them."""
    release = (ROOT / ".vm" / kernel / "release").read_text().strip()
    archive = STORE / f"headers-{release}.tar"
    if not archive.exists():
        folder = STORE / f"headers-{release}"
        unpack(folder, f"linux-headers-{release}", f"linux-headers-{release.removesuffix('-amd64')}-common")
        subprocess.run(["tar", "-C", folder, "-cf", archive, "usr"], check=True)
        shutil.rmtree(folder)
    return archive


def unpack(folder: Path, *packages: str) -> None:
    STORE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=STORE) as temporary:
        subprocess.run([*APT_GET, "download", *packages], cwd=temporary, check=True, stdout=subprocess.DEVNULL)
        for deb in Path(temporary).glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", deb, Path(temporary) / "kept"], check=True)
        shutil.move(Path(temporary) / "kept", folder)


def run(kernel: str, sbin: Path, standins: Path, there: Path | None, only: list[str]) -> tuple[list[Result], str]:
    """The results of one kernel, shown as they come."""
    python = ROOT / ".venv/bin/python"
    command = [
        str(part) for part in (python, "-m", "benchmarks.compatibility.measure", sbin, standins, there or "none")
    ]
    release = ".".join(os.uname().release.split(".")[:2])  # what follows is nobody else's
    if kernel != "host":
        release = (ROOT / ".vm" / kernel / "release").read_text().strip()
        command = [str(ROOT / "scripts/vm"), "run", kernel, "--timeout", str(_MOST), "--memory", "4G", "--", *command]
    count = sum(not only or run.tool in only for run in runs(sbin))
    results: list[Result] = []
    with subprocess.Popen([*command, *only], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if not line.startswith(MARK):
                continue
            result = msgspec.json.decode(line[len(MARK) :], type=Result)
            results.append(result)
            print(f"{kernel} {len(results):3}/{count} {report.stage(result):9} {result.name}", flush=True)
    if process.returncode or len(results) != count:
        sys.exit(f"{kernel}: ended with {process.returncode} after {len(results)} of {count} runs")
    return results, release


if __name__ == "__main__":
    sys.exit(main())
