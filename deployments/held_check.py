"""A health check that stays open while all is well, so that Serve sees the end of a replica at once.

Serve's controller asks a replica now and then, but looks at a check that is open ten times a second. The end of the
replica's process ends the check too; between two checks it would be seen only by the next one.
"""

from collections.abc import Awaitable, Callable

HELD_CHECK_S = 2.0
"""How long a check stays open. Well below the time after which Serve gives up on it."""
MAX_HELD_CHECKS = 200
"""With more groups than this the controller would spend a good part of a core on looking at open checks."""


class HeldCheck:
    """Serve's health check of one replica.

    Args:
        check: raises, or ends the process, if something is wrong.
        wait_for_an_end: returns early when something may be wrong by now, else after the given seconds.
        num_replicas: of the deployment.
    """

    def __init__(
        self,
        check: Callable[[], Awaitable[None]],
        wait_for_an_end: Callable[[float], Awaitable[None]],
        *,
        num_replicas: int,
    ) -> None:
        self._check = check
        self._wait_for_an_end = wait_for_an_end
        self._held_s = HELD_CHECK_S if num_replicas <= MAX_HELD_CHECKS else 0.0
        self._is_up = False

    async def run(self) -> None:
        """The first one is answered at once: before it Serve sends no requests."""
        await self._check()
        if self._is_up and self._held_s:
            await self._wait_for_an_end(self._held_s)
            await self._check()
        self._is_up = True
