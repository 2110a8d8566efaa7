"""Whether jobs can be accepted and their files stored, found out by trying."""

import asyncio
import logging
import time
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from deployments.errors import StorageError
from deployments.jobs.results import ResultStorage
from deployments.jobs.store import JobStore

logger = logging.getLogger(__name__)
_PERIOD_S = 3.0


class StateCheck:
    """Tries the database and the results' storage by writing. Belongs to one event loop.

    Args:
        store: all jobs.
        storage: where files go.
        timeout_s: what has not answered by then does not work.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        store: JobStore,
        storage: ResultStorage,
        *,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._storage = storage
        self._timeout_s = timeout_s
        self._clock = clock
        self._lock = asyncio.Lock()
        self._tried_at: float | None = None
        self._problem: str | None = None

    async def problem(self) -> str | None:
        """What does not work; None if all does. Tried anew when the last try is some seconds old."""
        async with self._lock:
            if self._tried_at is None or self._clock() - self._tried_at >= _PERIOD_S:
                found = await self._try()
                if found != self._problem:
                    logger.warning("state: %s", found or "works again")
                self._problem, self._tried_at = found, self._clock()
            return self._problem

    async def _try(self) -> str | None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._store.check()
        except (SQLAlchemyError, TimeoutError) as error:
            return f"the database takes no jobs ({type(error).__name__})"
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._storage.check()
        except StorageError as error:
            return error.message
        except TimeoutError:
            return "the results' storage does not answer"
        return None
