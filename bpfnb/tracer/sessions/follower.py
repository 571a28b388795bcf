"""Somebody who follows a session: its recorder, a process of the notebook's user.

The notebook sends one end of a socketpair along with a session's Load. The recorder, at the other end, gets all that
the notebook is told of the session, with a credit of its own, and may ask for what belongs to it (FromFollower). One
that does not read, or dies, costs the session nothing: nothing here waits for it, and it is limited in memory, in
requests (they are answered one after the other) and in time once the session has ended.
"""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress

from msgspec import Struct

from bpfnb.errors import BpfnbError, InternalError, ProgramError
from bpfnb.protocol import messages
from bpfnb.protocol.connection import Connection
from bpfnb.protocol.credit import Credit
from bpfnb.protocol.messages import FromFollower
from bpfnb.tracer.access import peer
from bpfnb.tracer.access.peer import Peer
from bpfnb.tracer.outbox import Outbox

__all__ = ["Answer", "Follower", "accepted"]

_KEEP = 256 << 20  # bytes of rows that may be under way to it
_LINGER = 30.0  # seconds that it may still ask for names, once its session has ended
_END_TIMEOUT = 1.0  # seconds without progress; at the tracer's end
_MAX_END = 5.0  # seconds at the tracer's end

# What answers a request: None where the answer is sent by itself.
Answer = Callable[["messages.ReadMap | messages.FindSymbols", Outbox], "Struct | None"]


def accepted(fds: Sequence[int], notebook: Peer) -> socket.socket:
    """Return the socket of a follower, of the descriptors that came with its Load. ProgramError where there is none, or
    another kind of file.

    The socketpair has to be of the notebook's own making (SO_PEERCRED). Else the tracer could be had to write, with its
    rights, to a service that somebody else offers.
    """
    if len(fds) != 1:
        raise ProgramError("the descriptor of the session's follower did not arrive")
    if not stat.S_ISSOCK(os.fstat(fds[0]).st_mode):
        raise ProgramError("a session's follower needs a socket")
    sock = socket.socket(fileno=os.dup(fds[0]))
    try:
        kind = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
        if sock.family != socket.AF_UNIX or kind != socket.SOCK_STREAM:
            raise ProgramError("a session's follower needs a UNIX stream socket")
        made_by = peer.of(sock)
        if (made_by.pid, made_by.uid) != (notebook.pid, notebook.uid):
            raise ProgramError("a session's follower needs a socketpair that the notebook itself has made")
    except OSError as error:
        sock.close()
        raise ProgramError(f"a session's follower needs a UNIX stream socket: {error.strerror}") from None
    except ProgramError:
        sock.close()
        raise
    return sock


class Follower:
    """Follows a session. ``outbox``: what is sent to it; ``credit``: what may be under way."""

    def __init__(self, sock: socket.socket, hello: messages.Hello, answer: Answer) -> None:
        self.credit = Credit(_KEEP)
        self._answer = answer
        self._connection: Connection[FromFollower] = Connection(sock, FromFollower, descriptors=0)
        try:
            self.outbox = Outbox(self._connection)
        except OSError:
            self._connection.close()
            raise
        self._gone = threading.Event()
        self._timer: threading.Timer | None = None
        self._asked = 0  # how many requests were answered
        self.outbox.send(hello)
        threading.Thread(target=self._serve, name="bpfnb-follower", daemon=True).start()

    @property
    def gone(self) -> bool:
        """Return whether it has hung up, or was hung up on."""
        return self._gone.is_set()

    def finish(self) -> None:
        """Let it ask for some seconds more, and then hang up; its session has ended, and all is said."""
        self._timer = threading.Timer(_LINGER, self.hang_up)
        self._timer.daemon = True
        self._timer.start()
        if self._gone.is_set():
            self._timer.cancel()

    def leave(self) -> None:
        """Hang up, once it has read what was sent and asked what it wants to know; wait for that, but not long."""
        until = time.monotonic() + _MAX_END
        self.outbox.flush(_END_TIMEOUT)
        asked = -1
        while not self._gone.is_set() and asked != self._asked and time.monotonic() < until:
            asked = self._asked
            self._gone.wait(_END_TIMEOUT)
        self.hang_up()
        self._gone.wait(_END_TIMEOUT)

    def hang_up(self) -> None:
        """Hang up. Its thread hears that, and closes all."""
        self._connection.hang_up()

    def _serve(self) -> None:
        try:
            while True:
                message, _ = self._connection.receive()
                if isinstance(message, messages.Received):
                    self.credit.acknowledge(message.segments)
                elif self.outbox.wait_for_room():
                    self._reply(message)
        except (EOFError, OSError):
            pass  # it has hung up, or is none; or it has made its socket one that does not wait
        except Exception:
            traceback.print_exc()
        finally:
            self._close()

    def _reply(self, message: messages.ReadMap | messages.FindSymbols) -> None:
        try:
            reply = self._answer(message, self.outbox)
        except BpfnbError as error:
            reply = messages.Failed.of(message.request, error)
        except Exception as error:
            traceback.print_exc()
            reply = messages.Failed.of(message.request, InternalError(f"the tracer failed: {error}"))
        self._asked += 1
        if reply:
            with suppress(UnicodeEncodeError):  # a name that is no text: it is not answered
                self.outbox.send(reply)

    def _close(self) -> None:
        self.credit.close()
        self.outbox.close(0)
        self._connection.close()
        self._gone.set()
        if self._timer:
            self._timer.cancel()
