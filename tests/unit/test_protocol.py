"""What travels between the two processes arrives whole, or not at all."""

from __future__ import annotations

import os
import pickle
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest

from bpfnb import errors
from bpfnb.errors import BpfnbError, CompileError, Diagnostic
from bpfnb.language.program import parse
from bpfnb.protocol import messages
from bpfnb.protocol.connection import Connection
from bpfnb.protocol.messages import Failed, FromTracer, Load, SegmentAdded, Stop, ToTracer
from bpfnb.protocol.schema import PRINTK
from bpfnb.protocol.segments import Layout

SOURCE = 'int kprobe__sys_clone(void *ctx) { bpf_trace_printk("\u2603\\n"); return 0; }'


@contextmanager
def pair() -> Iterator[tuple[Connection[FromTracer], Connection[ToTracer]]]:
    ours, theirs = socket.socketpair()
    notebook: Connection[FromTracer] = Connection(ours, FromTracer)
    tracer: Connection[ToTracer] = Connection(theirs, ToTracer)
    try:
        yield notebook, tracer
    finally:
        notebook.close()
        tracer.close()


def test_a_program_arrives_as_it_was() -> None:
    program = parse(SOURCE, {"syscall:clone3": "kprobe__sys_clone"}, ["-DX=1"])
    with pair() as (notebook, tracer):
        notebook.send(Load(7, program))
        message, fds = tracer.receive()
    assert message == Load(7, program)
    assert fds == []


def test_descriptors_come_with_their_own_message() -> None:
    with pair() as (notebook, tracer):
        files = [os.memfd_create(f"test-{n}") for n in range(3)]
        for n, fd in enumerate(files):
            os.write(fd, b"%d" % n)
            tracer.send(SegmentAdded(n, "printk", PRINTK, Layout(10, 10), 0), [fd])
            tracer.send(messages.Stopped(n))
            os.close(fd)
        for n in range(3):
            message, received = notebook.receive()
            assert isinstance(message, SegmentAdded)
            assert message.session == n
            (fd,) = received
            assert os.pread(fd, 8, 0) == b"%d" % n
            os.close(fd)
            assert notebook.receive() == (messages.Stopped(n), [])


def test_a_message_larger_than_the_sockets_buffer() -> None:
    """A verifier's log runs to megabytes."""
    error = errors.VerifierError("no", log="x" * (8 << 20))
    with pair() as (notebook, tracer):
        sender = threading.Thread(target=tracer.send, args=[Failed.of(1, error)])
        sender.start()
        message, _ = notebook.receive()
        sender.join()
    assert isinstance(message, Failed)
    assert len(vars(message.exception())["log"]) == 8 << 20


def test_messages_sent_at_once_do_not_mix() -> None:
    with pair() as (notebook, tracer):
        senders = [
            threading.Thread(target=lambda n=n: [notebook.send(Stop(n, i)) for i in range(200)])  # type: ignore[misc]
            for n in range(4)
        ]
        for sender in senders:
            sender.start()
        received = [tracer.receive()[0] for _ in range(800)]
        for sender in senders:
            sender.join()
    for n in range(4):
        assert [m.session for m in received if isinstance(m, Stop) and m.request == n] == list(range(200))


def test_the_end_of_one_side_is_told_to_the_other() -> None:
    with pair() as (notebook, tracer):
        notebook.close()
        with pytest.raises(EOFError):
            tracer.receive()


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<IB", 1 << 30, 0),
        struct.pack("<IB", 4, 255),
        struct.pack("<IB", 4, 0) + b"\xc1\xc1\xc1\xc1",
        struct.pack("<IB", 2, 0) + b"\x81\xa0",
        (lambda body: struct.pack("<IB", len(body), 0) + body)(pickle.dumps(Stop(1, 2))),
        (lambda body: struct.pack("<IB", len(body), 0) + body)(
            msgspec.msgpack.encode({"type": "Load", "request": "x"})
        ),
        (lambda body: struct.pack("<IB", len(body), 0) + body)(msgspec.msgpack.encode({"type": "Exec", "request": 1})),
    ],
    ids=["huge", "too many descriptors", "no msgpack", "cut short", "pickle", "wrong types", "unknown message"],
)
def test_what_is_not_the_protocol_ends_the_conversation(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    tracer: Connection[ToTracer] = Connection(theirs, ToTracer)
    ours.sendall(data)
    with pytest.raises(EOFError):
        tracer.receive()
    ours.close()
    tracer.close()


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name.endswith("Error") or name == "TracerDied"])
def test_every_error_crosses_over(name: str) -> None:
    kind: type[BpfnbError] = getattr(errors, name)
    before = kind("what happened", line=3, column=4, hint="do this", source="int x;")
    encoded = msgspec.msgpack.encode(Failed.of(5, before))
    after = msgspec.msgpack.decode(encoded, type=Failed).exception()
    assert type(after) is kind
    assert vars(after) == vars(before)
    assert str(after) == "line 3: what happened"


def test_diagnostics_cross_over_as_diagnostics() -> None:
    before = CompileError("bad", diagnostics=[Diagnostic(1, 2, "error", "bad")])
    after = msgspec.msgpack.decode(msgspec.msgpack.encode(Failed.of(5, before)), type=Failed).exception()
    assert isinstance(after, CompileError)
    assert after.diagnostics == (Diagnostic(1, 2, "error", "bad"),)
