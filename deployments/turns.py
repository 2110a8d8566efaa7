"""Whose turn it is at the groups: an ingress replica sends its share of what they take, the rest waits here in order.

Without it every replica offers all that it has to groups which take two calls at a time. Who gets a free place is then
chance, so that a request may wait a third longer than its place in the queue says; and routers that try again every few
milliseconds take time from ranks on the same cores.
"""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from deployments.settings import ModelSettings


class Turns:
    """Lets so many calls through at once, in the order of their coming. Belongs to one event loop.

    Args:
        num_at_once: calls; None for all of them, where somebody else must see how many wait.
    """

    def __init__(self, num_at_once: int | None) -> None:
        self._places = None if num_at_once is None else asyncio.Semaphore(num_at_once)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Waits for a place and holds it. A cancelled wait leaves the others' order as it is."""
        if self._places is None:
            yield
            return
        async with self._places:
            yield


def share_of_calls(model: ModelSettings, *, num_ingress_replicas: int) -> int | None:
    """Calls that one ingress replica may have at a model's groups.

    At least one a group: a single replica can keep all groups busy. None where groups come and go: Serve counts what
    waits for them by what the replicas offer.
    """
    if model.autoscaling is not None:
        return None
    num_places = model.num_replicas * model.max_ongoing_requests
    return max(model.num_replicas, math.ceil(num_places / num_ingress_replicas))
