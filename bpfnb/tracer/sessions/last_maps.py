"""Send a session's maps as they are when it ends: small ones at once, large ones behind it."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from functools import partial

from bpfnb.errors import BpfnbError, MapError
from bpfnb.protocol.messages import MapInfo, MapLost
from bpfnb.tracer.kernel import maps as kernel_maps
from bpfnb.tracer.kernel.maps import Limit
from bpfnb.tracer.sessions.audience import Audience
from bpfnb.tracer.sessions.maps import send_map
from bpfnb.tracer.sessions.session import Session

__all__ = ["LastMaps"]

# Maps that are together no larger, and take no longer, are sent before the notebook hears of a session's end; the rest
# behind it, for so long.
_MAX_SMALL = 64 << 20  # bytes
_SMALL_TIMEOUT = 0.5  # seconds
_LARGE_TIMEOUT = 10.0


class LastMaps:
    """Sends maps of sessions that end; for any thread."""

    def __init__(self, audience: Audience) -> None:
        self._audience = audience
        self._reading = threading.Lock()  # held while large maps are read, one session's at a time

    def send_small(self, session: Session) -> tuple[str, ...]:
        """Send the maps that are not too large to be waited for: return the names of the rest."""
        left, until = _MAX_SMALL, time.monotonic() + _SMALL_TIMEOUT
        unread = []
        for info in session.loaded.map_infos:
            if not info.value:
                continue
            try:
                if self._audience.full(session.number):
                    raise MapError("the notebook does not read")
                left -= self._send(session, info, Limit(left, until))
            except MapError:
                unread.append(info.name)
            except BpfnbError as error:
                self._say_lost(session, info.name, error.message)
        return tuple(unread)

    def start_large(self, session: Session, done: Callable[[], None]) -> None:
        """Send the session's ``unread`` maps from a thread, for some seconds; then release the session and call
        ``done``."""
        threading.Thread(target=self._send_large, args=(session, done), name="bpfnb-maps", daemon=True).start()

    def _send_large(self, session: Session, done: Callable[[], None]) -> None:
        until = time.monotonic() + _LARGE_TIMEOUT
        late = f"it could not be read in the {_LARGE_TIMEOUT:g} seconds after its session ended: "
        held = self._reading.acquire(timeout=_LARGE_TIMEOUT)
        try:
            for name in session.unread:
                try:
                    if not held:
                        raise MapError("those of other sessions were being read")
                    if not self._audience.wait_for_room(session.number, max(until - time.monotonic(), 0)):
                        raise MapError("the notebook did not take what was sent before")
                    self._send(session, session.info(name), Limit(1 << 62, until))
                except MapError as error:
                    self._say_lost(session, name, late + error.message)
                except BpfnbError as error:
                    self._say_lost(session, name, error.message)
        except Exception:
            traceback.print_exc()
        finally:
            if held:
                self._reading.release()
            session.release()
            done()

    def _send(self, session: Session, info: MapInfo, limit: Limit) -> int:
        """Send a map: return how many bytes."""
        # A queue shows its head alone, but nobody needs it any more. A pinned one others may.
        take = info.kind in ("queue", "stack") and "PINNED" not in info.macro
        read = partial(kernel_maps.take_all if take else kernel_maps.dump, limit=limit)
        return send_map(self._audience, 0, session, info.name, read)

    def _say_lost(self, session: Session, name: str, why: str) -> None:
        self._audience.send(MapLost(session.number, name, f"the map {name}: {why}"))
