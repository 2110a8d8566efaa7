"""Jobs in the database. Every method is one statement that says what must still hold, or a read."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

from sqlalchemy import ColumnElement, Row, and_, delete, func, insert, or_, select, tuple_, update
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from deployments.jobs.database import DatabaseNow
from deployments.jobs.records import (
    CANCELLED_CODE,
    UNFINISHED,
    Download,
    Job,
    JobKind,
    JobState,
    LeasedJob,
    NewJob,
    Page,
    StoredFile,
)
from deployments.jobs.tables import downloads, jobs

_PUBLIC = (
    jobs.c.id, jobs.c.kind, jobs.c.model, jobs.c.owner, jobs.c.state, jobs.c.progress, jobs.c.request,
    jobs.c.request_hash, jobs.c.seed, jobs.c.size, jobs.c.seconds, jobs.c.num_attempts, jobs.c.created_at,
    jobs.c.completed_at, jobs.c.expires_at, jobs.c.error_code, jobs.c.error_message, jobs.c.files,
)  # fmt: skip
_FOLDERS_A_QUERY = 500
_NO_LEASE: dict[str, Any] = {"lease_owner": None, "lease_expires_at": None}


class JobStore:
    """The jobs of all replicas. What is asked for by an owner is that owner's only.

    Args:
        engine: of `open_database`, migrated.
        retention_s: seconds that a finished job and its files are kept.
    """

    def __init__(self, engine: AsyncEngine, *, retention_s: float) -> None:
        self._engine = engine
        self._retention_s = retention_s
        self._on_their_way: set[asyncio.Task[list[Row[Any]]]] = set()

    async def add(self, new: NewJob) -> Job:
        """Accepts a job; a second one under the same owner and idempotency key gets the first."""
        now = DatabaseNow()
        values = {**asdict(new), "state": JobState.QUEUED, "progress": 0, "num_attempts": 0}
        statement = insert(jobs).values(**values, created_at=now, not_before=now).returning(*_PUBLIC)
        same_key = and_(jobs.c.owner == new.owner, jobs.c.idempotency_key == new.idempotency_key)
        while True:
            try:
                return _as_job((await self._write(statement))[0])
            except IntegrityError:
                if new.idempotency_key is None:
                    raise
            await self._write(delete(jobs).where(same_key, jobs.c.expires_at < DatabaseNow()).returning(jobs.c.id))
            rows = await self._read(select(*_PUBLIC).where(same_key))
            if rows:  # else it has expired, or was deleted meanwhile: then the key is free
                return _as_job(rows[0])

    async def num_unfinished(self, model: str) -> int:
        """Jobs that wait or run."""
        unfinished = and_(jobs.c.model == model, jobs.c.state.in_(UNFINISHED))
        rows = await self._read(select(func.count()).select_from(jobs).where(unfinished))
        return int(rows[0][0])

    async def num_untaken(self) -> dict[str, int]:
        """Jobs that wait for a replica to take them, by model; models that have none are left out."""
        untaken = and_(jobs.c.state.in_(UNFINISHED), _unleased(DatabaseNow()))
        rows = await self._read(
            select(jobs.c.model, func.count().label("num_jobs")).where(untaken).group_by(jobs.c.model)
        )
        return {row.model: int(row.num_jobs) for row in rows}

    async def get(self, job_id: str, *, owner: str, kind: JobKind) -> Job | None:
        """A job, unless it is somebody else's or expired."""
        rows = await self._read(select(*_PUBLIC).where(_visible(owner, kind), jobs.c.id == job_id))
        return _as_job(rows[0]) if rows else None

    async def page(
        self, *, owner: str, kind: JobKind, after: str | None, limit: int, order: Literal["asc", "desc"]
    ) -> Page | None:
        """One page by time of creation; None if `after` is no job of this owner."""
        query = select(*_PUBLIC).where(_visible(owner, kind))
        position = tuple_(jobs.c.created_at, jobs.c.id)
        if after is not None:
            last = await self.get(after, owner=owner, kind=kind)
            if last is None:
                return None
            here = tuple_(last.created_at, last.id)
            query = query.where(position > here if order == "asc" else position < here)
        columns = (jobs.c.created_at, jobs.c.id)
        query = query.order_by(*(column.asc() if order == "asc" else column.desc() for column in columns))
        found = [_as_job(row) for row in await self._read(query.limit(limit + 1))]
        return Page(tuple(found[:limit]), has_more=len(found) > limit)

    async def take(self, *, models: Sequence[str], token: str, lease_s: float) -> LeasedJob | None:
        """Leases the oldest job that is due; one whose lease ran out starts again from its beginning."""
        now = DatabaseNow()
        due = and_(
            jobs.c.state.in_(UNFINISHED),
            jobs.c.model.in_(models),
            jobs.c.not_before <= now,
            _unleased(now),
        )
        oldest = select(jobs.c.id).where(due).order_by(jobs.c.created_at, jobs.c.id).limit(1)
        statement = (
            update(jobs)
            .where(jobs.c.id == oldest.with_for_update(skip_locked=True).scalar_subquery(), due)
            .values(
                state=JobState.QUEUED,
                progress=0,
                num_attempts=jobs.c.num_attempts + 1,
                lease_owner=token,
                lease_expires_at=now + lease_s,
            )
            .returning(*_PUBLIC, jobs.c.attachments)
        )
        rows = await self._write(statement)
        return LeasedJob(_as_job(rows[0]), token, rows[0].attachments) if rows else None

    async def renew(self, job_id: str, *, token: str, lease_s: float) -> bool:
        """Extends a lease. False: it is not the caller's any more, or the job is over."""
        return await self._update_leased(job_id, token, lease_expires_at=DatabaseNow() + lease_s)

    async def report(self, job_id: str, *, token: str, progress: int) -> bool:
        """Says how far a job is, from its first step on. False as for `renew`."""
        return await self._update_leased(job_id, token, state=JobState.IN_PROGRESS, progress=progress)

    async def complete(self, job_id: str, *, token: str, files: Sequence[StoredFile]) -> bool:
        """Finishes a job with its files. False as for `renew`: then the files are nobody's."""
        return await self._update_leased(
            job_id, token, **self._finished(JobState.COMPLETED), progress=100,
            files=json.dumps([asdict(file) for file in files]), size=files[0].size,
        )  # fmt: skip

    async def fail(self, job_id: str, *, token: str, code: str, message: str) -> bool:
        """Ends a job that cannot be done."""
        values = self._finished(JobState.FAILED)
        return await self._update_leased(job_id, token, **values, error_code=code, error_message=message)

    async def give_back(self, job_id: str, *, token: str, delay_s: float, counts: bool) -> bool:
        """Puts a job back into the queue; `counts` says whether the attempt was the job's own failure."""
        return await self._update_leased(
            job_id, token, state=JobState.QUEUED, progress=0, not_before=DatabaseNow() + delay_s, **_NO_LEASE,
            num_attempts=jobs.c.num_attempts - (0 if counts else 1),
        )  # fmt: skip

    async def cancel(self, job_id: str, *, owner: str, kind: JobKind) -> str | None:
        """Ends a job that is not finished. Returns the token of whoever works on it, "" if nobody, None if no job."""
        mine = and_(_visible(owner, kind), jobs.c.id == job_id, jobs.c.state.in_(UNFINISHED))
        values = {**self._finished(JobState.FAILED), "error_code": CANCELLED_CODE}
        values["lease_owner"] = jobs.c.lease_owner  # kept: RETURNING sees the new row
        statement = update(jobs).where(mine).values(**values, error_message="cancelled on request")
        rows = await self._write(statement.returning(jobs.c.lease_owner))
        return (rows[0].lease_owner or "") if rows else None

    async def delete(self, job_id: str, *, owner: str, kind: JobKind) -> str | None:
        """Removes a job in any state. Returns as `cancel`; its files are the caller's to remove."""
        mine = and_(_visible(owner, kind), jobs.c.id == job_id)
        rows = await self._write(delete(jobs).where(mine).returning(jobs.c.lease_owner))
        return (rows[0].lease_owner or "") if rows else None

    async def delete_expired(self) -> list[str]:
        """Removes what has expired; returns its folders, which are the caller's to remove."""
        old_files = delete(downloads).where(downloads.c.expires_at < DatabaseNow())
        old_jobs = delete(jobs).where(jobs.c.expires_at < DatabaseNow())
        rows = await self._write(old_files.returning(downloads.c.folder)) + await self._write(
            old_jobs.returning(jobs.c.id)
        )
        return [row[0] for row in rows]

    async def existing(self, folders: Sequence[str]) -> set[str]:
        """Which of these folders belong to a row."""
        found: set[str] = set()
        for start in range(0, len(folders), _FOLDERS_A_QUERY):
            some = folders[start : start + _FOLDERS_A_QUERY]
            for column in (jobs.c.id, downloads.c.folder):
                found |= {row[0] for row in await self._read(select(column).where(column.in_(some)))}
        return found

    async def add_download(self, name_hash: str, download: Download, *, lifetime_s: float) -> None:
        """Makes a file fetchable by a name of which only the hash is kept."""
        values = {"name_hash": name_hash, **asdict(download), "expires_at": DatabaseNow() + lifetime_s}
        await self._write(insert(downloads).values(**values).returning(downloads.c.folder))

    async def get_download(self, name_hash: str) -> Download | None:
        """The file of a name, unless it expired."""
        alive = and_(downloads.c.name_hash == name_hash, downloads.c.expires_at > DatabaseNow())
        rows = await self._read(select(downloads).where(alive))
        return Download(rows[0].folder, rows[0].media_type, rows[0].num_bytes) if rows else None

    def _finished(self, state: JobState) -> dict[str, Any]:
        now = DatabaseNow()
        values = {"state": state, "completed_at": now, "expires_at": now + self._retention_s}
        return {**values, **_NO_LEASE, "attachments": None}

    async def _update_leased(self, job_id: str, token: str, **values: Any) -> bool:
        mine = and_(jobs.c.id == job_id, jobs.c.lease_owner == token, jobs.c.state.in_(UNFINISHED))
        return bool(await self._write(update(jobs).where(mine).values(**values).returning(jobs.c.id)))

    async def check(self) -> None:
        """Writes nothing, in a way that a database which takes no writes refuses.

        Raises:
            SQLAlchemyError: it does not answer, or takes no writes.
        """
        await self._write(delete(downloads).where(downloads.c.name_hash == "").returning(downloads.c.folder))

    async def close(self) -> None:
        """Waits for statements that are on their way, and closes the connections."""
        await asyncio.gather(*self._on_their_way, return_exceptions=True)
        await self._engine.dispose()

    async def _read(self, query: Any) -> list[Row[Any]]:
        """Rows of a statement, which is finished also when the caller is cancelled: in SQLite a statement that nobody
        reads to its end keeps the database locked for all writers.
        """
        task = asyncio.create_task(self._execute(query))
        self._on_their_way.add(task)
        task.add_done_callback(self._on_their_way.discard)
        return await asyncio.shield(task)

    _write = _read  # in autocommit there is no difference

    async def _execute(self, query: Any) -> list[Row[Any]]:
        try:
            connection = await self._engine.connect()
        except SQLAlchemyError:
            raise
        except Exception as error:  # while connecting, SQLAlchemy lets the driver's and the system's errors through
            raise OperationalError("connecting", None, error) from error
        try:
            return list((await connection.execute(query)).all())
        finally:
            await connection.close()


def _visible(owner: str, kind: JobKind) -> ColumnElement[bool]:
    alive = or_(jobs.c.expires_at.is_(None), jobs.c.expires_at > DatabaseNow())
    return and_(jobs.c.owner == owner, jobs.c.kind == kind, alive)


def _unleased(now: DatabaseNow) -> ColumnElement[bool]:
    return or_(jobs.c.lease_owner.is_(None), jobs.c.lease_expires_at < now)


def _as_job(row: Row[Any]) -> Job:
    values = {column.name: getattr(row, column.name) for column in _PUBLIC}
    files = tuple(StoredFile(**file) for file in json.loads(row.files or "[]"))
    return Job(**{**values, "state": JobState(row.state), "files": files})
