"""Frames that no notebook sends, against a live tracer: mutations of valid ones, and what is no frame at all.

    python tests/fuzz_frames.py 100000 [seed]

For every frame: the tracer has answered a request that follows it, or has hung up on whoever sent it, and that only
where the frame was no message. What takes longer than two seconds is counted. At the end of each tracer's life it has
the descriptors it began with, and nothing in the kernel.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from leaks import bpf_ids, held_elsewhere
from raw import RawTracer

from bpfnb.language.program import parse
from bpfnb.protocol import messages
from bpfnb.protocol.messages import ToTracer

_LIMIT = 2.0  # seconds for an answer; what takes longer is counted
_HANG = 20.0  # and this is a failure
_FRAMES_A_TRACER = 5000  # before the next is started, so that leaks are looked for often
_HEADER = struct.Struct("<IB")
_SOURCE = """
BPF_HASH(calls, u32, u64); BPF_ARRAY(cells, u64, 8); BPF_QUEUE(queue, u32, 8); BPF_PROG_ARRAY(jumps, 4);
BPF_PERF_ARRAY(counters, 64); BPF_STACK_TRACE(stacks, 16); BPF_PERF_OUTPUT(events);
int f(void *ctx) { u32 k = 1; calls.increment(k); events.perf_submit(ctx, &k, sizeof(k)); return 0; }
"""
_MAPS = ("calls", "cells", "queue", "jumps", "counters", "stacks", "events")
_NUMBERS = (
    0,
    1,
    -1,
    2,
    255,
    256,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    (1 << 63) - 1,
    -(1 << 63),
    (1 << 64) - 1,
)
_TEXTS = (
    "",
    "\0",
    "x" * 5000,
    "../../etc/shadow",
    "*",
    "[",
    "\u202e\x1b[31m",
    "/dev/zero",
    "usdt:/dev/zero:*",
    "%s%n",
    "\ud7ff",
)
_VALUES: tuple[Any, ...] = (None, True, 1.5, float("nan"), b"", b"\xff" * 300, [], {}, [[]], {"a": 1}, {1: 2})


class Failure(AssertionError):
    """What a tracer did that it must not."""


def fuzz(frames: int, seed: int) -> Counter[str]:
    """Send so many frames; what became of them. Failure says the frame's number, to be tried again with this seed."""
    seen: Counter[str] = Counter()
    before = {kind: bpf_ids(kind) for kind in ("program", "map", "link")}
    sent, begun = 0, time.monotonic()
    while sent < frames:
        with _Run(seed + sent, seen) as run:
            end = min(sent + _FRAMES_A_TRACER, frames)
            while sent < end and not run.over:
                sent += run.step(end - sent)
        print(f"{sent:,} frames in {time.monotonic() - begun:.0f} s", flush=True)
    deadline = time.monotonic() + 5
    while left := [kind for kind, ids in before.items() if bpf_ids(kind) - ids - held_elsewhere(kind, set())]:
        if time.monotonic() > deadline:
            seen["kernel objects left: " + ", ".join(left)] += 1
            break
        time.sleep(0.05)
    return seen


class _Run:
    """A tracer's life: until it hangs up, as it may on what is no message."""

    def __init__(self, seed: int, seen: Counter[str]) -> None:
        self._random = random.Random(seed)
        self._seed = seed
        self._seen = seen
        self._step = 0
        self.over = False  # it has hung up
        self._tracer = RawTracer(seconds=_HANG)
        self._session = self._load()
        self._decoder = msgspec.msgpack.Decoder(ToTracer)
        self._fd = os.memfd_create("fuzz")
        self._first = self._tracer.descriptors()

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        words = self._tracer.close()
        if "Traceback" in words:
            raise Failure(f"seed {self._seed}, step {self._step}: it wrote\n{words}")

    def step(self, most: int) -> int:
        """Some frames, and an answer to all of them: how many there were. What is no message is the last."""
        batch: list[ToTracer | None] = []
        data, begun = b"", time.monotonic()
        try:
            for _ in range(min(self._random.choice((1, 4, 16, 64)), most)):
                self._step += 1
                data, message = self._frame()
                batch.append(message)
                self._send(data)
                if message is None or self._numbers_end(message):
                    break
            self._ask(batch)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._hung_up(data, batch, begun)
        except TimeoutError:
            raise Failure(f"seed {self._seed}, step {self._step}: it takes no more, after {data[:200]!r}") from None
        if time.monotonic() - begun > _LIMIT:
            kinds = sorted({type(message).__name__ for message in batch})
            self._seen[f"took more than {_LIMIT:g} s: {', '.join(kinds)}"] += 1
        if not self.over:
            self._look()
        return len(batch)

    def _numbers_end(self, message: ToTracer) -> bool:
        """Numbers rise: ours go on from a frame's. Whether there are hardly any left."""
        if message.request < 1 << 63:
            self._tracer._number = max(self._tracer._number, message.request)
        self.over = self._tracer._number > (1 << 63) - 1000
        return self.over

    # --- what is sent ---

    def _frame(self) -> tuple[bytes, ToTracer | None]:
        """A frame, and the message it is, None where it is none."""
        kind = self._random.choices(("valid", "field", "bytes", "frame"), (40, 40, 20, 0.01))[0]
        body = msgspec.msgpack.encode(self._message())
        if kind == "field":
            body = self._with_another_field(body)
        if kind == "bytes":
            body = self._damaged(body)
        length = len(body)
        if kind == "frame":
            return self._no_frame(body), None
        try:
            message = self._decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            if self._random.random() < 0.9998:  # starting a tracer takes longer than a thousand frames
                return self._frame()
            message = None
        return _HEADER.pack(length, self._random.choice((0, 0, 0, 1, 3, 250))) + body, message

    def _message(self) -> ToTracer:
        r, n = self._random, self._number()
        session = r.choice((self._session, self._session, self._session, r.choice(_NUMBERS)))
        name = r.choice((*_MAPS, *_MAPS, r.choice(_TEXTS)))
        key, value = (r.randbytes(r.choice((0, 1, 4, 8, 100))) for _ in range(2))
        makers: list[Callable[[], ToTracer]] = [
            lambda: messages.ReadMap(n, session, name),
            lambda: messages.LookupMap(n, session, name, key),
            lambda: messages.TakeMap(n, session, name, r.choice(_NUMBERS[:5])),
            lambda: messages.WriteMap(n, session, name, key, r.choice((value, None))),
            lambda: messages.ClearMap(n, session, name),
            lambda: messages.OpenCounter(n, session, name, r.choice(("software", "hardware", "")), r.choice(_TEXTS)),
            lambda: messages.FindSymbols(
                n, r.choice((0, os.getpid(), r.choice(_NUMBERS))), tuple(r.choices(_NUMBERS, k=3))
            ),
            lambda: messages.Ping(n),
            lambda: messages.DescribeProbes(
                n, tuple(r.choices(_TEXTS, k=2)), ((r.choice(_TEXTS), r.choice(_TEXTS)), ()), r.choice(_NUMBERS[:4])
            ),
            lambda: messages.DescribeType(
                n, r.choice(("struct sock", r.choice(_TEXTS))), tuple(r.choices((*_TEXTS, "0", "sk_lock"), k=3)), 10
            ),
            lambda: messages.FindNames(n, r.choice((*_TEXTS, "TCP_")), r.choice(_NUMBERS[:4])),
            lambda: messages.ListProbes(n, r.choice(_TEXTS), r.choice(_NUMBERS[:4]), r.choice(_TEXTS)),
            lambda: messages.FindProbes(n, r.choice(_TEXTS), r.choice(_NUMBERS[:4]), r.choice(_TEXTS)),
        ]
        if r.random() < 0.02:  # what takes a while, or ends the session
            makers = [*makers[-2:], lambda: messages.Stop(n, r.choice((r.choice(_NUMBERS), n, n + 1)))]
        elif r.random() < 0.002:
            makers = [lambda: messages.RunChecks(n), lambda: messages.Load(n, parse(_SOURCE, {"syscall:getpgid": "f"}))]
        else:
            del makers[-2:]
        return r.choice(makers)()

    def _number(self) -> int:
        choice = self._random.random()
        if choice < 0.05:
            return self._random.randint(1, max(self._tracer._number, 1))  # used before
        if choice < 0.1:
            return self._random.choice(_NUMBERS[:6])
        return self._tracer.number()

    def _with_another_field(self, body: bytes) -> bytes:
        fields = msgspec.msgpack.decode(body)
        name = self._random.choice(list(fields))
        value = self._random.choice(
            (self._random.choice(_NUMBERS), self._random.choice(_TEXTS), self._random.choice(_VALUES))
        )
        if self._random.random() < 0.3:
            fields["extra"] = [value] * self._random.choice((1, 1000))
        elif self._random.random() < 0.1:
            del fields[name]
        elif not (name == "request" and isinstance(value, int) and value > 1 << 40):  # it would use all numbers up
            fields[name] = value
        return msgspec.msgpack.encode(fields)

    def _damaged(self, body: bytes) -> bytes:
        data = bytearray(body)
        for _ in range(self._random.choice((1, 1, 2, 8))):
            at = self._random.randrange(len(data))
            what = self._random.random()
            if what < 0.5:
                data[at] = self._random.randrange(256)
            elif what < 0.75:
                del data[at : at + self._random.choice((1, 2, 9))]
            else:
                data[at:at] = self._random.randbytes(self._random.choice((1, 4)))
            if not data:
                return b"\xc0"
        return bytes(data)

    def _no_frame(self, body: bytes) -> bytes:
        r = self._random
        return r.choice(
            (
                _HEADER.pack(0xFFFFFFFF, 0),
                _HEADER.pack((64 << 20) + 1, 0) + body,
                _HEADER.pack(len(body), 255) + body,
                _HEADER.pack(0, 0),
                _HEADER.pack(100_000, 0) + b"\x91" * 100_000,  # nested
                _HEADER.pack(100_000, 0) + b"\x81\xa1x" * 33_333 + b"\xc0",
                _HEADER.pack(5, 0) + b"\xdd\xff\xff\xff\xff",  # an array of four thousand million
                _HEADER.pack(6, 0) + b"\xc6\xff\xff\xff\xffx",
                r.randbytes(r.choice((5, 100, 5000))),
            )
        )

    # --- what comes of it ---

    def _send(self, data: bytes) -> None:
        sock = self._tracer.sock
        count = self._random.choice((0, 0, 0, 0, 1, 5))
        cut = self._random.randrange(len(data)) if self._random.random() < 0.1 else len(data)
        if count and cut:
            cut = socket.send_fds(sock, [data[:cut]], [self._fd] * count)
        else:
            sock.sendall(data[:cut])
        sock.sendall(data[cut:])

    def _ask(self, batch: list[ToTracer | None]) -> None:
        """Hear of a request of our own; on the way, of the frames'."""
        number = self._tracer.number()
        self._tracer.send(messages.LookupMap(number, self._session, "cells", bytes(4)))
        while True:
            reply = self._tracer.receive()
            if isinstance(reply, messages.Failed):
                self._seen[reply.error] += 1
                if reply.error == "InternalError":
                    raise Failure(f"seed {self._seed}, step {self._step}: {reply} to one of {batch}")
            else:
                self._seen[type(reply).__name__] += 1
            if getattr(reply, "request", None) == number:
                if isinstance(reply, messages.Failed):  # a frame has stopped the session
                    self._session = self._load()
                return

    def _hung_up(self, data: bytes, batch: list[ToTracer | None], begun: float) -> None:
        self.over = True
        if time.monotonic() - begun >= _HANG:
            raise Failure(f"seed {self._seed}, step {self._step}: no answer in {_HANG:g} s to one of {batch}")
        if batch[-1] is not None:
            raise Failure(f"seed {self._seed}, step {self._step}: hung up on one of {batch} ({data[:100]!r})")
        if not self._tracer.ended_within(_HANG):
            raise Failure(f"seed {self._seed}, step {self._step}: it does not end after {data[:100]!r}")
        self._seen["hung up"] += 1

    def _look(self) -> None:
        """Descriptors are those it began with, once it has nothing to do."""
        deadline = time.monotonic() + 5
        while (now := self._tracer.descriptors()) > self._first + self._loaded():
            if time.monotonic() > deadline:
                raise Failure(f"seed {self._seed}, step {self._step}: {self._first} descriptors became {now}")
            time.sleep(0.02)

    def _loaded(self) -> int:
        """Descriptors that sessions and counters of the frames may have."""
        return 64 + 64 * self._seen["Loaded"]

    def _load(self) -> int:
        number = self._tracer.number()
        reply = self._tracer.ask(messages.Load(number, parse(_SOURCE, {"syscall:getpgid": "f"})))
        assert isinstance(reply, messages.Loaded), reply
        return number


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    start = time.monotonic()
    total = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    for what, count in fuzz(total, int(sys.argv[2]) if len(sys.argv) > 2 else 0).most_common():
        print(f"{count:9,}  {what}")
    print(f"{total:,} frames in {time.monotonic() - start:.0f} s")
