"""Who may wait: a bounded number of requests and of seconds of work, and an honest answer to those above it."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deployments.errors import BusyError
from deployments.group_client import GeneratedMedia, GroupEvent
from deployments.work import Work, WorkModel
from workers.calls import Progress


class Ticket:
    """One request's place: how far it is. Feeds what it measures back into the model.

    Args:
        work: what it asks for.
        model: seconds for work.
        clock: monotonic seconds.
    """

    def __init__(self, work: Work, model: WorkModel, clock: Callable[[], float]) -> None:
        self._work = work
        self._model = model
        self._clock = clock
        self._num_done = 0
        self._num_steps_done = 0
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, float] | None = None

    @property
    def seconds_left(self) -> float:
        """Predicted seconds of a group until it is finished."""
        return self._model.seconds_left(self._work, num_done=self._num_done, num_steps_done=self._num_steps_done)

    def note(self, event: GroupEvent) -> None:
        """Takes in an event of the running request. A group that died begins the picture's steps again."""
        if isinstance(event, GeneratedMedia):
            self._finish_picture()
        elif isinstance(event, Progress) and event.stage == "denoise":
            mark = (event.step, self._clock())
            if self._first is None or self._last is None or event.step <= self._last[0]:
                self._first = mark
            self._last, self._num_steps_done = mark, event.step

    def _finish_picture(self) -> None:
        if self._first is not None and self._last is not None and self._last[0] > self._first[0]:
            step_s = (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])
            self._model.learn(self._work, step_s=step_s, rest_s=self._clock() - self._last[1])
        self._num_done += 1
        self._num_steps_done, self._first, self._last = 0, None, None


class Admission:
    """The work that one ingress replica has at a model's groups. Belongs to one event loop; decides without waiting.

    Args:
        model: seconds for work.
        max_requests: interactive requests admitted at once.
        max_seconds: predicted work, shared by the groups, that may wait or run; one request alone may be more.
        num_servers: groups that work on them.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        model: WorkModel,
        *,
        max_requests: int,
        max_seconds: float = math.inf,
        num_servers: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._max_requests = max_requests
        self._max_seconds = max_seconds
        self._num_servers = num_servers
        self._clock = clock
        self._num_admitted = 0
        self._tickets: list[Ticket] = []

    @contextmanager
    def admitted(self, work: Work) -> Iterator[Ticket]:
        """Holds a place while a request waits and runs.

        Raises:
            BusyError: no place is free, or too much work is waiting.
        """
        self._check(work)
        self._num_admitted += 1
        try:
            with self.held(work) as ticket:
                yield ticket
        finally:
            self._num_admitted -= 1

    @contextmanager
    def held(self, work: Work) -> Iterator[Ticket]:
        """Counts work that is done whatever waits: that of jobs, which have a queue of their own."""
        ticket = Ticket(work, self._model, self._clock)
        self._tickets.append(ticket)
        try:
            yield ticket
        finally:
            self._tickets.remove(ticket)

    @property
    def queued_seconds(self) -> float:
        """Predicted seconds until the groups are through with all there is."""
        return sum(ticket.seconds_left for ticket in self._tickets) / self._num_servers

    @property
    def known_seconds(self) -> float | None:
        """`queued_seconds`; None while there is work, and nothing says how long it takes."""
        return self.queued_seconds if self._model.knows_seconds or not self._tickets else None

    def _check(self, work: Work) -> None:
        if self._num_admitted >= self._max_requests:
            next_s = self.queued_seconds / len(self._tickets)
            raise BusyError(f"{self._num_admitted} requests are waiting already: try again later", _whole(next_s))
        queued_s = self.queued_seconds
        above_s = queued_s + self._model.seconds_left(work) / self._num_servers - self._max_seconds
        if above_s > 0 and self._tickets:
            # Alone it would be let in, however long it takes: it never waits for more than the whole queue.
            raise BusyError(
                f"the work that is waiting takes {queued_s:.0f} s, at most {self._max_seconds:g} s may wait: try again "
                "later",
                _whole(min(above_s, queued_s)),
            )


def _whole(seconds: float) -> int:
    return max(1, math.ceil(seconds))
