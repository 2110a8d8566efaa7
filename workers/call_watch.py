"""Watches the followers while the leader is inside a call whose ranks wait for each other.

Ranks that share a call's tokens or weights meet in collectives. If one of them fails alone, or dies, or hangs, the
leader may be waiting in a collective that never ends, on the one thread that reads the followers' answers. This thread
looks at the connections meanwhile, without reading from them.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from workers.errors import GroupDiedError
from workers.wire import Wire

logger = logging.getLogger(__name__)
POLL_S = 0.25
_ERROR_START = b'{"op":"error"'
"""How a failed call's answer begins (`lanes.describe_error`)."""


class CallWatch:
    """One daemon thread for the life of a group; started at the first call that it has to watch.

    Args:
        timeout_s: a call that takes longer is a dead group.
        failure_grace_s: how long the leader may go on after a follower's call has failed.
        on_death: told once, from this thread.
    """

    def __init__(self, *, timeout_s: float, failure_grace_s: float, on_death: Callable[[GroupDiedError], None]) -> None:
        self._timeout_s = timeout_s
        self._failure_grace_s = failure_grace_s
        self._on_death = on_death
        self._changed = threading.Condition()
        self._watched: Mapping[int, Wire] = {}
        self._started_at = 0.0
        self._failed_at: float | None = None
        self._death: GroupDiedError | None = None
        self._is_closed = False
        self._thread: threading.Thread | None = None

    @contextmanager
    def during(self, wires: Mapping[int, Wire]) -> Iterator[None]:
        """Watches these followers' connections until the block ends; nothing may read from them in it.

        Raises:
            GroupDiedError: at the end of the block, if the group was found dead in it.
        """
        if not wires:
            yield
            return
        self._watch(wires)
        try:
            yield
        finally:
            self._watch({})
        if self._death is not None:
            raise self._death

    def close(self) -> None:
        """Ends the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def _watch(self, wires: Mapping[int, Wire]) -> None:
        with self._changed:
            self._watched, self._started_at, self._failed_at = wires, time.monotonic(), None
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="call-watch", daemon=True)
                self._thread.start()
            if wires:
                self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while not self._is_closed and self._death is None:
                # Woken by the next call; between calls nothing is looked at, and an idle group costs nothing.
                self._changed.wait(POLL_S if self._watched else None)
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
        if self._watched and now - self._started_at > self._timeout_s:
            return GroupDiedError(f"a call did not end within {self._timeout_s:g} s")
        return None
