"""Works on jobs, in every ingress replica: takes due ones under a lease, calls the groups, stores the files."""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from sqlalchemy.exc import SQLAlchemyError

from deployments.errors import GroupsDiedError, RequestError, StorageError, UnavailableError
from deployments.group_client import GeneratedMedia, GroupEvent
from deployments.jobs.records import Job, LeasedJob, StoredFile
from deployments.jobs.results import ResultStorage
from deployments.jobs.store import JobStore
from deployments.jobs.sweeper import Sweeper
from deployments.schemas import ImageEditRequest, ImageRequest, VideoRequest
from deployments.settings import JobSettings
from workers.calls import Progress

logger = logging.getLogger(__name__)
Work = Callable[[ImageRequest | VideoRequest, str], AsyncGenerator[GroupEvent, None]]
_REPORT_PERIOD_S = 0.25
_RETRY_DELAY_S = 5.0
_RENEWALS_A_LEASE = 3
_MOST_OF_THE_WAY = 99  # 100 is for jobs whose files are there


class JobRunner:
    """Runs until it is closed. Belongs to one event loop.

    Args:
        store: all jobs.
        storage: where files go.
        work: makes what a request asks for, under an id by which the groups can be told to stop.
        models: whose jobs are taken.
        num_slots: jobs worked on at once.
        settings: times and ceilings.
    """

    def __init__(
        self,
        store: JobStore,
        storage: ResultStorage,
        work: Work,
        *,
        models: Sequence[str],
        num_slots: int,
        settings: JobSettings,
    ) -> None:
        self._store = store
        self._storage = storage
        self._work = work
        self._models = models
        self._num_slots = num_slots
        self._settings = settings
        self._sweeper = Sweeper(store, storage)
        self._storage_failed = False
        self._wake = asyncio.Event()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._taking: list[asyncio.Task[None]] = []
        self._sweeping: list[asyncio.Task[None]] = []
        self._is_closing = False

    def start(self) -> None:
        """Begins to take jobs."""
        self._taking = [asyncio.create_task(self._take_jobs())]
        self._sweeping = [asyncio.create_task(self._sweeper.run())]

    async def close(self) -> None:
        """Takes no more, stops what runs, and gives the leases back, so that others go on at once."""
        self._is_closing = True
        self._wake.set()
        for task in self._sweeping:
            task.cancel()
        await asyncio.gather(*self._taking, *self._sweeping, return_exceptions=True)  # no lease is lost on the way
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def wake(self) -> None:
        """There is a new job: looks now instead of at the next poll."""
        self._wake.set()

    def drop(self, job_id: str) -> None:
        """Ends the work on a job that is over, if it is done here."""
        task = self._running.get(job_id)
        if task is not None:
            task.cancel()

    async def _take_jobs(self) -> None:
        while not self._is_closing:
            self._wake.clear()
            try:
                while self._has_free_slot() and await self._can_store() and (leased := await self._take()) is not None:
                    self._begin(leased)
            except SQLAlchemyError as error:  # the database may come back
                logger.error("cannot look for jobs: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.poll_s):
                    await self._wake.wait()

    def _has_free_slot(self) -> bool:
        return not self._is_closing and len(self._running) < self._num_slots

    async def _can_store(self) -> bool:
        """Whether a result could be stored; tried only after it could not be, so that nothing is made in vain."""
        if self._storage_failed:
            try:
                await self._storage.check()
            except StorageError as error:
                logger.error("no jobs are taken: %s", error)
                return False
            self._storage_failed = False
        return True

    async def _take(self) -> LeasedJob | None:
        return await self._store.take(models=self._models, token=uuid.uuid4().hex, lease_s=self._settings.lease_s)

    def _begin(self, leased: LeasedJob) -> None:
        is_hopeless = leased.job.num_attempts > self._settings.max_attempts
        task = asyncio.create_task(self._give_up(leased) if is_hopeless else self._run(leased))
        self._running[leased.job.id] = task

        def ended(done: asyncio.Task[None]) -> None:
            if self._running.get(leased.job.id) is done:
                del self._running[leased.job.id]
            self._wake.set()

        task.add_done_callback(ended)

    async def _give_up(self, leased: LeasedJob) -> None:
        message = f"{self._settings.max_attempts} attempts failed; the service's log says how"
        try:
            await self._store.fail(leased.job.id, token=leased.token, code="attempts_exhausted", message=message)
        except SQLAlchemyError as error:
            logger.error("job %s: the database fails; the lease will run out: %s", leased.job.id, error)

    async def _run(self, leased: LeasedJob) -> None:
        """One attempt; whatever happens, the row says it, or the lease runs out."""
        job, token = leased.job, leased.token
        work = asyncio.create_task(self._make(leased))
        try:
            await self._keep_lease(leased, work)
            await self._settle(leased, work)
        except asyncio.CancelledError:  # this replica stops, or the job was deleted: then there is no lease
            await self._stop(work)
            await self._store.give_back(job.id, token=token, delay_s=0.0, counts=False)
            raise
        except SQLAlchemyError as error:
            logger.error("job %s: the database fails; the lease will run out: %s", job.id, error)
        finally:
            await self._stop(work)

    async def _keep_lease(self, leased: LeasedJob, work: "asyncio.Task[list[StoredFile]]") -> None:
        """Renews until the work is over; ends the work when the job is not ours any more."""
        period_s = self._settings.lease_s / _RENEWALS_A_LEASE
        while not (await asyncio.wait({work}, timeout=period_s))[0]:
            try:
                is_ours = await self._store.renew(leased.job.id, token=leased.token, lease_s=self._settings.lease_s)
            except SQLAlchemyError as error:  # completing says whether the lease outlived this
                logger.error("job %s: cannot renew its lease: %s", leased.job.id, error)
                continue
            if not is_ours:
                await self._stop(work)

    async def _stop(self, work: "asyncio.Task[list[StoredFile]]") -> None:
        work.cancel()
        await asyncio.wait({work})

    async def _settle(self, leased: LeasedJob, work: "asyncio.Task[list[StoredFile]]") -> None:
        job, token = leased.job, leased.token
        if work.cancelled():
            return
        error = work.exception()
        if error is None:
            files = work.result()
            if not await self._store.complete(job.id, token=token, files=files):
                await self._remove(files)
            return
        if isinstance(error, RequestError) and not isinstance(error, UnavailableError):
            await self._store.fail(job.id, token=token, code=error.code or error.error_type, message=error.message)
            return
        self._storage_failed = self._storage_failed or isinstance(error, StorageError)
        is_own_failure = isinstance(error, GroupsDiedError) or not isinstance(error, UnavailableError)
        logger.warning("job %s: attempt %d: %s: %s", job.id, job.num_attempts, type(error).__name__, error)
        await self._store.give_back(job.id, token=token, delay_s=_RETRY_DELAY_S, counts=is_own_failure)

    async def _make(self, leased: LeasedJob) -> list[StoredFile]:
        """Makes and stores the files of a job, reporting how far it is."""
        request = read_request(leased.job, leased.attachments)
        files: list[StoredFile] = []
        reporter = _Reporter(self._store, leased, num_items=request.n)
        async with aclosing(self._work(request, leased.token)) as events:
            async for event in events:
                if isinstance(event, GeneratedMedia):
                    files += await self._save(leased, event, request, index=reporter.num_done)
                    reporter.num_done += 1
                elif isinstance(event, Progress):
                    await reporter.on_progress(event)
        return files

    async def _save(
        self, leased: LeasedJob, media: GeneratedMedia, request: ImageRequest | VideoRequest, *, index: int
    ) -> list[StoredFile]:
        contents = [("video" if isinstance(request, VideoRequest) else "image", media.content, request.media_type)]
        if media.thumbnail is not None:
            contents.append(("thumbnail", media.thumbnail, "image/webp"))
        files = []
        for variant, content, media_type in contents:
            key = f"{leased.job.id}/{leased.token}-{index}-{variant}.{media_type.rpartition('/')[2]}"
            await self._storage.write(key, content)
            size = f"{media.width}x{media.height}"
            files.append(StoredFile(variant, key, media_type, len(content), size, media.seed))
        return files

    async def _remove(self, files: Sequence[StoredFile]) -> None:
        for file in files:
            await self._storage.remove(file.key)


class _Reporter:
    """Writes a job's progress, at once when it begins and then not more often than the database should be asked."""

    def __init__(self, store: JobStore, leased: LeasedJob, *, num_items: int) -> None:
        self._store = store
        self._leased = leased
        self._num_items = num_items
        self._next_report = 0.0
        self.num_done = 0

    async def on_progress(self, event: Progress) -> None:
        """Reports an event.

        Raises:
            asyncio.CancelledError: the job is not ours any more.
        """
        now = asyncio.get_running_loop().time()
        if now < self._next_report:
            return
        self._next_report = now + _REPORT_PERIOD_S
        done = event.step / event.num_steps if event.num_steps else 0.0
        progress = int(_MOST_OF_THE_WAY * (self.num_done + min(done, 1.0)) / self._num_items)
        try:
            is_ours = await self._store.report(self._leased.job.id, token=self._leased.token, progress=progress)
        except SQLAlchemyError as error:  # progress may be missing for a while
            logger.warning("job %s: cannot report: %s", self._leased.job.id, error)
            return
        if not is_ours:
            raise asyncio.CancelledError


def read_request(job: Job, attachments: str | None) -> ImageRequest | VideoRequest:
    """The request that a job was accepted with."""
    if job.kind == "video":
        request = VideoRequest.load_parts(job.request, attachments)
    else:
        kind = ImageEditRequest if attachments else ImageRequest
        request = kind.load_parts(job.request, attachments)
    assert isinstance(request, ImageRequest | VideoRequest)
    return request
