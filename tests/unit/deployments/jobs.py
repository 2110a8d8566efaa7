"""Databases and jobs for tests of what works on them."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from deployments.jobs.database import migrate, open_database
from deployments.jobs.records import NewJob, StoredFile
from deployments.jobs.store import JobStore

FILE = StoredFile("video", "video_1/a.mp4", "video/mp4", 3, "32x32", 7)


@asynccontextmanager
async def open_store(url: str, *, retention_s: float = 1000.0) -> AsyncGenerator[JobStore, None]:
    """A store on a database of its own engine, as every replica has one."""
    engine = open_database(url)
    store = JobStore(engine, retention_s=retention_s)
    try:
        await migrate(engine)
        yield store
    finally:
        await store.close()


def make_job(job_id: str, *, owner: str = "alice", model: str = "shapes", key: str | None = None) -> NewJob:
    """A video of `{"prompt": "a", "seed": 7}`."""
    return NewJob(
        id=job_id, kind="video", model=model, owner=owner, request='{"prompt": "a", "seed": 7}', attachments=None,
        request_hash="hash", seed=7, size="32x32", seconds="1", idempotency_key=key,
    )  # fmt: skip


async def set_all(engine: AsyncEngine, assignment: str) -> None:
    """Changes every job by hand, to say that time has passed."""
    async with engine.connect() as connection:
        await connection.execute(text(f"UPDATE jobs SET {assignment}"))


async def expire_leases(store: JobStore) -> None:
    """As if every holder had died long ago."""
    await set_all(store._engine, "lease_expires_at = 1")
