"""Runs in a guest of systemd's, as root: `bpfnb setup`, and tracing by its socket. Prints what came of it, as JSON.

``python systemd_guest.py WHEELS``
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import signal
import subprocess
import sys
import time
from pathlib import Path

from bpfnb import release
from bpfnb.host import ways

BPFNB = [sys.executable, "-m", "bpfnb", "setup"]
NOBODY = pwd.getpwnam("nobody")
UNIT = ways.unit_of(release.version())
INSTANCES = Path("/sys/kernel/tracing/instances")
# Traces until a line comes, then says how the session has ended; again and again.
TRACES = """
import bpfnb, os, sys
from bpfnb.hosts import default_host
PRINTS = 'int f(void *ctx) { bpf_trace_printk("x\\\\n"); return 0; }'
try:
    while True:
        session = bpfnb.trace(PRINTS, attach={"syscall:getpgid": "f"})
        os.getpgid(0)
        while len(session.df) < 1: pass
        print(default_host.connect().hello().pid, default_host.connect().peer.way.kind, flush=True)
        if not sys.stdin.readline(): break
        while session.state == "running": pass
        print(session.state, (session.df.pid == os.getpid()).sum(), flush=True)
except bpfnb.BpfnbError as error:
    print(f"{type(error).__name__}: {error}")
"""


def run(*words: str) -> str:
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout


def as_nobody(*groups: int) -> subprocess.Popen[str]:
    become = ["setpriv", "--reuid", str(NOBODY.pw_uid), "--regid", str(NOBODY.pw_gid)]
    become += ["--groups", ",".join(map(str, groups))] if groups else ["--clear-groups"]
    return subprocess.Popen(
        [*become, sys.executable, "-c", TRACES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def waited_for(done: object) -> bool:
    """Whether ``done()`` becomes true within a minute, which is little here."""
    deadline = time.monotonic() + 60
    while not done():  # type: ignore[operator]
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def main() -> None:
    for folder in (
        Path(sys.base_prefix),
        Path(__file__),
    ):  # for nobody to reach: what is written here goes with the guest
        for closed in folder.parents:
            closed.chmod(closed.stat().st_mode | 0o011)
    found: dict[str, object] = {}
    found["setup"] = run(*BPFNB, "--group", "bpfnb", "--wheels", sys.argv[1])
    found["again"] = run(*BPFNB, "--group", "bpfnb", "--wheels", sys.argv[1])
    member = grp.getgrnam("bpfnb").gr_gid
    with as_nobody() as other:
        found["other"] = other.communicate("")[0]
    with as_nobody(member) as tracing:
        assert tracing.stdin
        assert tracing.stdout

        def ask() -> str:
            assert tracing.stdin
            assert tracing.stdout
            tracing.stdin.write("\n")
            tracing.stdin.flush()
            return tracing.stdout.readline()

        worker, found["way"] = tracing.stdout.readline().split()
        status = Path(f"/proc/{worker}/status").read_text().splitlines()
        found["status"] = dict(line.split(":\t", 1) for line in status if ":\t" in line)
        found["cgroup"] = Path(f"/proc/{worker}/cgroup").read_text()
        places = ("etc/x", "usr/x", "tmp/x", "proc/sys/kernel/panic")
        found["writes"] = run("touch", *(f"/proc/{worker}/root/{place}" for place in places))
        found["instances"] = len(list(INSTANCES.iterdir()))
        run("systemctl", "stop", f"{UNIT}@*.service")
        found["after stop"] = ask()
        found["instances after stop"] = len(list(INSTANCES.iterdir()))
        worker, _ = tracing.stdout.readline().split()
        os.kill(parent(int(worker)), signal.SIGKILL)
        found["after kill"] = ask()
        found["instances after kill"] = waited_for(lambda: not list(INSTANCES.iterdir()))
        worker, _ = tracing.stdout.readline().split()
        tracing.kill()
    found["ends with who traced"] = waited_for(lambda: not Path(f"/proc/{worker}").exists())
    found["units"] = waited_for(lambda: run("systemctl", "list-units", "--no-legend", "--plain", f"{UNIT}@*") == "")
    found["undo"] = run(*BPFNB, "--undo")
    found["left"] = run("sh", "-c", f"ls -d {ways.FOLDER} {ways.SOCKETS} /etc/systemd/system/*bpfnb* 2>/dev/null")
    found["group left"] = "bpfnb" in run("getent", "group")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
