"""Requests that kill groups: remembered by what they ask for, and refused before they end another one."""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable

from deployments.errors import PoisonedRequestError
from deployments.schemas import GenerationRequest

MAX_DEATHS = 3
LIFETIME_S = 3600.0
MAX_REMEMBERED = 1024
# What changes neither the pixels nor the work of one picture or video.
_IRRELEVANT = {"n", "response_format", "stream", "background_job", "user", "safety_identifier"}


def fingerprint(request: GenerationRequest, *, seed: int) -> str:
    """Names the work of one picture or video. A request that leaves its seed open is the same with each seed drawn."""
    named_seed = "any" if request.seed is None else str(seed)
    content = request.model_dump_json(exclude={*_IRRELEVANT, "seed"}, exclude_unset=True)
    return hashlib.sha256(f"{named_seed}\n{content}".encode()).hexdigest()


class PoisonMemory:
    """Counts the groups that died while they worked on a request.

    It belongs to one model in one ingress replica: each replica learns by itself, and forgets when it ends.

    Args:
        lifetime_s: a request's deaths are forgotten this long after the last of them.
        max_remembered: requests remembered at once; the one whose last death is the oldest goes first.
        clock: seconds.
    """

    def __init__(
        self,
        *,
        lifetime_s: float = LIFETIME_S,
        max_remembered: int = MAX_REMEMBERED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lifetime_s = lifetime_s
        self._max_remembered = max_remembered
        self._clock = clock
        self._deaths: OrderedDict[str, tuple[int, float]] = OrderedDict()  # the oldest death first

    def __len__(self) -> int:
        return len(self._deaths)

    def check(self, name: str) -> None:
        """Refuses a request under which `MAX_DEATHS` groups died.

        Raises:
            PoisonedRequestError: it is one.
        """
        self._expire()
        num_deaths, at = self._deaths.get(name, (0, 0.0))
        if num_deaths >= MAX_DEATHS:
            minutes = max(1, round((at + self._lifetime_s - self._clock()) / 60))
            raise PoisonedRequestError(
                f"{num_deaths} groups died while they worked on this very request, so it is not tried again for "
                f"{minutes} min: change its arguments or its seed; the service's log says how the groups died"
            )

    def add_death(self, name: str) -> None:
        """A group died while it worked on the request."""
        self._expire()
        num_deaths, _ = self._deaths.pop(name, (0, 0.0))
        self._deaths[name] = num_deaths + 1, self._clock()
        if len(self._deaths) > self._max_remembered:
            self._deaths.popitem(last=False)

    def clear(self, name: str) -> None:
        """The request was answered: the deaths under it had other causes."""
        self._deaths.pop(name, None)

    def _expire(self) -> None:
        end = self._clock() - self._lifetime_s
        while self._deaths and next(iter(self._deaths.values()))[1] <= end:
            self._deaths.popitem(last=False)
