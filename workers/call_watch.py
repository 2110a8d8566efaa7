"""Watches the leader and its followers while the leader is inside a call, or a request.

Ranks that share a call's tokens or weights meet in collectives. If one of them fails alone, or dies, or hangs, the
leader may be waiting in a collective that never ends, on the one thread that reads the followers' answers. This thread
looks at the connections meanwhile, without reading from them, and at the clock: the leader's own part may hang too.

On a GPU the leader's thread can be stuck outside of calls as well: what it has sent, or is to receive, lies in the
device's queue behind a peer that is gone, and whatever asks for a value next waits for ever. So connections that end
are seen throughout a request.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from workers.errors import GroupDiedError
from workers.wire import Wire

logger = logging.getLogger(__name__)
POLL_S = 0.25
HANG_UP_GRACE_S = 1.0
"""How long the leader's own thread has to find out by itself that a connection has ended."""
_SLEEP_AFTER_S = 2.0
_ERROR_START = b'{"op":"error"'
"""How a failed call's answer begins (`lanes.describe_error`)."""


class CallWatch:
    """One daemon thread for the life of a group; started at the first call that it has to watch.

    Args:
        failure_grace_s: how long the leader may go on after a follower's call has failed.
        on_death: told once, from this thread.
    """

    def __init__(self, *, failure_grace_s: float, on_death: Callable[[GroupDiedError], None]) -> None:
        self._failure_grace_s = failure_grace_s
        self._on_death = on_death
        self._changed = threading.Condition()
        self._watched: Mapping[int, Wire] = {}
        self._call_end: _End | None = None
        self._request_end: _End | None = None
        self._request_wires: Mapping[int, Wire] = {}
        self._hung_up_at: float | None = None
        self._failed_at: float | None = None
        self._death: GroupDiedError | None = None
        self._is_closed = False
        self._is_asleep = False
        self._thread: threading.Thread | None = None

    @contextmanager
    def during(self, wires: Mapping[int, Wire], *, timeout_s: float) -> Iterator[None]:
        """Watches a call until the block ends; nothing may read from these followers' connections in it.

        Raises:
            GroupDiedError: at the end of the block, if the group was found dead in it.
        """
        self._watch(wires, _End.after(timeout_s, "a call"))
        try:
            yield
        finally:
            self._watch({}, None)
        if self._death is not None:
            raise self._death

    @contextmanager
    def during_request(self, wires: Mapping[int, Wire], timeout_s: float | None) -> Iterator[None]:
        """Watches everything that a request does: its time (None for no limit), and whether all peers are there."""
        with self._changed:
            self._request_end = None if timeout_s is None else _End.after(timeout_s, "a request")
            self._request_wires, self._hung_up_at = wires, None
            self._wake()
        try:
            yield
        finally:
            with self._changed:
                self._request_end, self._request_wires = None, {}

    def close(self) -> None:
        """Ends the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def _watch(self, wires: Mapping[int, Wire], end: "_End | None") -> None:
        with self._changed:
            self._watched, self._call_end, self._failed_at = wires, end, None
            if end is not None:
                self._wake()

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="call-watch", daemon=True)
            self._thread.start()
        if self._is_asleep:
            self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            idle_since = time.monotonic()
            while not self._is_closed and self._death is None:
                is_idle = self._call_end is None and self._request_end is None and not self._request_wires
                idle_since = idle_since if is_idle else time.monotonic()
                # Asleep between requests, so that an idle group costs nothing; not between calls, so that none of
                # them has to wake a thread.
                self._is_asleep = is_idle and time.monotonic() - idle_since > _SLEEP_AFTER_S
                self._changed.wait(None if self._is_asleep else POLL_S)
                self._death = self._find_death()
        if self._death is not None:
            logger.error("the group is dead: %s", self._death)
            self._on_death(self._death)

    def _find_death(self) -> GroupDiedError | None:
        now = time.monotonic()
        try:
            failed = [
                rank for rank, wire in self._watched.items() if (wire.peek_header(16) or b"").startswith(_ERROR_START)
            ]
        except GroupDiedError as error:
            return error
        if failed and self._failed_at is None:
            self._failed_at = now
        if self._failed_at is not None and now - self._failed_at > self._failure_grace_s:
            return GroupDiedError(
                f"a call failed on rank {', '.join(map(str, failed))} alone, and the leader still waits for it after "
                f"{self._failure_grace_s:g} s"
            )
        gone = [rank for rank, wire in self._request_wires.items() if wire.has_hung_up()]
        if gone and self._hung_up_at is None:
            self._hung_up_at = now
        if gone and self._hung_up_at is not None and now - self._hung_up_at > HANG_UP_GRACE_S:
            return GroupDiedError(f"rank {', '.join(map(str, gone))} is gone, and the leader is stuck on its device")
        for end in (self._call_end, self._request_end):
            if end is not None and now > end.at:
                return GroupDiedError(f"{end.what} did not end within {end.timeout_s:g} s: a rank hangs")
        return None


@dataclass(frozen=True, slots=True)
class _End:
    at: float
    timeout_s: float
    what: str

    @classmethod
    def after(cls, timeout_s: float, what: str) -> "_End":
        return cls(time.monotonic() + timeout_s, timeout_s, what)
