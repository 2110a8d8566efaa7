"""Who may wait: a bounded number of requests, and an honest answer to those above it."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deployments.errors import BusyError

_SMOOTHING = 0.2


class Admission:
    """Counts admitted requests of one ingress replica. Belongs to one event loop.

    Args:
        max_requests: requests admitted at once.
        num_servers: groups that work on them.
        clock: monotonic seconds.
    """

    def __init__(self, max_requests: int, *, num_servers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_requests = max_requests
        self._num_servers = num_servers
        self._clock = clock
        self._num_admitted = 0
        self._seconds_a_request = 1.0

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Holds a place while a request waits and runs.

        Raises:
            BusyError: no place is free.
        """
        if self._num_admitted >= self._max_requests:
            raise BusyError(f"{self._num_admitted} requests are waiting already: try again later", self.retry_after_s())
        self._num_admitted += 1
        num_before, start = self._num_admitted, self._clock()
        try:
            yield
            self._learn((self._clock() - start) * self._num_servers / num_before)
        finally:
            self._num_admitted -= 1

    def retry_after_s(self) -> int:
        """Seconds until a place is likely to be free: the time that one group needs for one request."""
        return max(1, math.ceil(self._seconds_a_request / self._num_servers))

    def _learn(self, seconds: float) -> None:
        self._seconds_a_request += _SMOOTHING * (seconds - self._seconds_a_request)
