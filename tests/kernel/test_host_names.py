"""gethostlatency, against names that a server of ours on the loopback resolves after a known time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from bpfnb import tools

DELAY = 0.15
# In namespaces of its own: the loopback, a server on port 53, and a resolv.conf that names it.
PROGRAM = r"""
import ctypes, fcntl, json, os, socket, struct, subprocess, sys, threading, time

folder, delay = sys.argv[1], float(sys.argv[2])
for name in ("resolv.conf", "nsswitch.conf", "hosts"):
    subprocess.run(["mount", "--bind", f"{folder}/{name}", f"/etc/{name}"], check=True)
with socket.socket() as s:
    fcntl.ioctl(s, 0x8914, struct.pack("16sh", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))

def serve():
    while True:
        query, sender = server.recvfrom(2048)
        end = 12
        while query[end]:
            end += query[end] + 1
        question = query[12 : end + 5]
        there = b"slow" in question or b"long" in question
        head = query[:2] + struct.pack("!HHHHH", 0x8180 if there else 0x8183, 1, int(there), 0, 0)
        answer = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 0, 4) + bytes([127, 0, 0, 9]) if there else b""
        time.sleep(delay)
        server.sendto(head + question + answer, sender)

threading.Thread(target=serve, daemon=True).start()
libc = ctypes.CDLL("libc.so.6")
libc.gethostbyname.restype = libc.gethostbyname2.restype = ctypes.c_void_p
done = []

def call(function, host, act):
    began = time.monotonic_ns()
    try:
        failed = not act()
    except OSError:
        failed = True
    done.append([function, host, failed, time.monotonic_ns() - began])

long = ".".join(["l" * 60, "o" * 60, "n" * 60, "g" * 40, "long"])
call("getaddrinfo", "slow.example", lambda: socket.getaddrinfo("slow.example", 80, socket.AF_INET))
call("getaddrinfo", "missing.example", lambda: socket.getaddrinfo("missing.example", 80, socket.AF_INET))
call("getaddrinfo", long, lambda: socket.getaddrinfo(long, 80, socket.AF_INET))
call("getaddrinfo", "at-once", lambda: socket.getaddrinfo("at-once", 80, socket.AF_INET))
call("getaddrinfo", None, lambda: socket.getaddrinfo(None, 80))
call("gethostbyname", "slow.example", lambda: libc.gethostbyname(b"slow.example"))
call("gethostbyname", "missing.example", lambda: libc.gethostbyname(b"missing.example"))
call("gethostbyname2", "slow.example", lambda: libc.gethostbyname2(b"slow.example", socket.AF_INET))
threads = [threading.Thread(target=socket.getaddrinfo, args=(f"slow{n}.example", 80, socket.AF_INET)) for n in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps([os.getpid(), done]))
"""


def test_every_call_with_its_time_its_name_and_whether_it_failed(tmp_path: Path) -> None:
    if not shutil.which("unshare"):
        pytest.skip("unshare is not installed")
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:5 attempts:1\n")
    (tmp_path / "nsswitch.conf").write_text("hosts: files dns\n")
    (tmp_path / "hosts").write_text("127.0.0.1 at-once\n")
    command = ["unshare", "-nm", sys.executable, "-ISc", PROGRAM, str(tmp_path), str(DELAY)]
    with tools.gethostlatency() as session:
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    pid, done = json.loads(said)
    df = session.df[session.df.pid == pid]
    assert session.lost == 0
    first = df[: len(done)]
    seen = [[*row[:2], not pd.isna(row[2])] for row in first[["function", "host", "error"]].to_numpy().tolist()]
    assert [[f, None if pd.isna(host) else host, failed] for f, host, failed in seen] == [call[:3] for call in done]
    assert first.error[first.function == "getaddrinfo"].dropna().tolist() == ["EAI_NONAME"]
    assert (first.tid == pid).all()
    for lat, (function, host, _, took) in zip(first.lat, done, strict=True):
        assert lat.value <= took, function
        assert lat.value >= took - 20e6, (function, host)  # all but what Python adds
        if host not in (None, "at-once"):
            assert lat >= pd.Timedelta(seconds=DELAY)
    together = df[len(done) :]
    assert sorted(together.host) == [f"slow{n}.example" for n in range(4)]  # four threads at a time
    assert together.tid.nunique() == 4
    assert together.lat.min() >= pd.Timedelta(seconds=DELAY)


NESTED = r"""
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* A library that stands in for the C library: each call makes another. */
__attribute__((noinline)) int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints,
                                          struct addrinfo **found) {
    char next[8] = {(char)(host[0] + 1), 0};
    usleep(20000);
    int ret = host[0] < 'c' ? getaddrinfo(next, service, hints, found) : EAI_AGAIN;
    usleep(20000);
    return ret == 0 || host[0] == 'a' ? 0 : ret;
}
__attribute__((noinline)) struct hostent *gethostbyname(const char *host) {
    struct addrinfo *found;
    getaddrinfo(host, 0, 0, &found);
    static struct hostent one;
    return &one;
}
struct hostent *gethostbyname2(const char *host, int family) { return 0; }
int main() {
    gethostbyname("a");
    gethostbyname2("none", 0);
    return 0;
}
"""


def test_calls_within_calls_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "nested.c").write_text(NESTED)
    program = tmp_path / "nested"
    subprocess.run(["gcc", "-O0", "-o", program, tmp_path / "nested.c"], check=True)
    with tools.gethostlatency(path=str(program)) as session:
        subprocess.run([program], check=True)
    df = session.df
    rows = [[f, host, None if pd.isna(error) else error] for f, host, error in df[["function", "host", "error"]].values]
    assert rows == [
        ["getaddrinfo", "c", "EAI_AGAIN"],
        ["getaddrinfo", "b", "EAI_AGAIN"],
        ["getaddrinfo", "a", None],
        ["gethostbyname", "a", None],
        ["gethostbyname2", "none", "failed"],
    ]
    for lat, least in zip(df.lat, (40, 80, 120, 120), strict=False):
        assert pd.Timedelta(milliseconds=least) <= lat < pd.Timedelta(milliseconds=least + 100)
