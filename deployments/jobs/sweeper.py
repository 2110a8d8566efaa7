"""Removes what has expired, and what a crash left behind."""

import asyncio
import logging

from sqlalchemy.exc import SQLAlchemyError

from deployments.jobs.results import ResultStorage
from deployments.jobs.store import JobStore

logger = logging.getLogger(__name__)
_PERIOD_S = 30.0
_PERIODS_AN_ORPHAN_SEARCH = 20


class Sweeper:
    """Every replica has one; that several do the same at once is harmless."""

    def __init__(self, store: JobStore, storage: ResultStorage) -> None:
        self._store = store
        self._storage = storage

    async def run(self) -> None:
        """Sweeps until cancelled; a database or storage that fails is tried again."""
        count = 0
        while True:
            try:
                await self.remove_expired()
                if count % _PERIODS_AN_ORPHAN_SEARCH == 0:
                    await self.remove_orphans()
            except (SQLAlchemyError, OSError) as error:
                logger.error("cannot sweep: %s", error)
            count += 1
            await asyncio.sleep(_PERIOD_S)

    async def remove_expired(self) -> None:
        """Rows first, so that nobody is sent to files that are gone."""
        for folder in await self._store.delete_expired():
            await self._storage.remove_folder(folder)

    async def remove_orphans(self) -> None:
        """Folders without a row: their job was deleted while somebody still wrote. No folder exists before its row."""
        folders = await self._storage.folders()
        existing = await self._store.existing(folders)
        for folder in folders:
            if folder not in existing:
                logger.info("removing the orphaned files of %s", folder)
                await self._storage.remove_folder(folder)
