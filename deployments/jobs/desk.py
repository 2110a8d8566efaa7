"""What clients do with jobs: hand in, look, list, cancel, delete, fetch; and files behind expiring names."""

import asyncio
import hashlib
import logging
import re
import secrets
import time
import uuid
from dataclasses import dataclass
from typing import Literal

from deployments.errors import (
    BadRequestError,
    BusyError,
    ConflictError,
    NotFoundError,
    StillRunningError,
    request_error,
)
from deployments.jobs.records import UNFINISHED, Download, Job, JobKind, JobState, NewJob, Page, StoredFile
from deployments.jobs.results import ResultStorage
from deployments.jobs.runner import JobRunner
from deployments.jobs.state_check import StateCheck
from deployments.jobs.store import JobStore
from deployments.pipeline_call import frames_per_second
from deployments.schemas import ImageRequest, VideoRequest
from deployments.served_model import ServedModel
from deployments.service import Service, draw_seed
from planner.plan import ServingDefaults

logger = logging.getLogger(__name__)
_BUSY_RETRY_S = 10
_FIRST_LOOK_S = 0.05
_LAST_LOOK_S = 0.5
_NAME_BYTES = 32
_ID = re.compile(r"[a-z0-9_]{1,64}")  # databases refuse some texts, such as a zero byte, with an error of their own


@dataclass(frozen=True, slots=True)
class Published:
    """The unguessable name of a file, and when it ends."""

    name: str
    expires_at: int


class JobDesk:
    """Any replica answers for any job: nothing is kept here.

    Args:
        service: checks requests.
        store: all jobs.
        storage: where files are.
        runner: of this replica; told of new and of ended jobs.
        state: whether jobs can be accepted at all.
    """

    def __init__(
        self, service: Service, store: JobStore, storage: ResultStorage, runner: JobRunner, state: StateCheck
    ) -> None:
        self.state = state
        self.storage = storage
        self._service = service
        self._store = store
        self._runner = runner
        self._settings = service.settings.jobs

    async def submit(self, request: ImageRequest | VideoRequest, *, owner: str, idempotency_key: str | None) -> Job:
        """Accepts a job: when this returns, it is not lost any more.

        Raises:
            BadRequestError: the request must change.
            BusyError: too many unfinished jobs.
            ConflictError: the idempotency key belongs to another request.
        """
        model = self._service.check(request)
        if await self._store.num_unfinished(model.name) >= self._settings.max_queued:
            raise BusyError(f"{self._settings.max_queued} jobs are waiting already: try again later", _BUSY_RETRY_S)
        new = _new_job(request, model, owner=owner, idempotency_key=idempotency_key)
        job = await self._store.add(new)
        if job.request_hash != new.request_hash:
            raise ConflictError("this Idempotency-Key was used for another request: use a new one", "Idempotency-Key")
        self._runner.wake()
        return job

    async def num_unfinished(self, model: str) -> int:
        """Accepted jobs of a model that are neither finished nor failed."""
        return await self._store.num_unfinished(model)

    async def num_untaken(self) -> dict[str, int]:
        """Accepted jobs that no replica has taken yet, by model."""
        return await self._store.num_untaken()

    async def get(self, job_id: str, *, owner: str, kind: JobKind) -> Job:
        """A job.

        Raises:
            NotFoundError: there is none, or it is somebody else's.
        """
        job = await self._store.get(job_id, owner=owner, kind=kind) if _ID.fullmatch(job_id) else None
        if job is None:
            raise _no_such_job(job_id, kind)
        return job

    async def finished(self, job: Job, *, timeout_s: float) -> Job:
        """Waits for a job's end, as a caller does who wants the answer itself.

        Raises:
            RequestError: what the job failed with.
            StillRunningError: it is not over; it goes on.
            NotFoundError: it was deleted meanwhile.
        """
        end, pause_s = time.monotonic() + timeout_s, _FIRST_LOOK_S
        while job.state in UNFINISHED:
            if time.monotonic() > end:
                raise StillRunningError(
                    f"not finished after {timeout_s:g} s; it goes on: ask again with the same Idempotency-Key"
                )
            await asyncio.sleep(pause_s)
            pause_s = min(1.5 * pause_s, _LAST_LOOK_S)
            job = await self.get(job.id, owner=job.owner, kind=job.kind)
        if job.state is JobState.FAILED:
            raise request_error(job.error_code or "generation_failed", job.error_message or "the job failed")
        return job

    async def page(
        self, *, owner: str, kind: JobKind, after: str | None, limit: int, order: Literal["asc", "desc"]
    ) -> Page:
        """One page of an owner's jobs.

        Raises:
            BadRequestError: `after` is none of them.
        """
        page = None
        if after is None or _ID.fullmatch(after):
            page = await self._store.page(owner=owner, kind=kind, after=after, limit=limit, order=order)
        if page is None:
            raise BadRequestError(f"after: there is no {kind} {after[:100] if after else after!r}", "after")
        return page

    async def cancel(self, job_id: str, *, owner: str, kind: JobKind) -> Job:
        """Ends a job at its next denoising step; it stays, as failed with the code `cancelled`. A finished one stays
        as it is.

        Raises:
            NotFoundError: there is none, or it is somebody else's.
        """
        before = await self.get(job_id, owner=owner, kind=kind)
        token = await self._store.cancel(job_id, owner=owner, kind=kind)
        if token is not None:
            await self._stop(before, token)
        return await self.get(job_id, owner=owner, kind=kind)

    async def delete(self, job_id: str, *, owner: str, kind: JobKind) -> None:
        """Removes a job and its files; one that runs ends at its next denoising step.

        Raises:
            NotFoundError: there is none, or it is somebody else's.
        """
        before = await self.get(job_id, owner=owner, kind=kind)
        token = await self._store.delete(job_id, owner=owner, kind=kind)
        if token is None:
            raise _no_such_job(job_id, kind)
        await self._stop(before, token)
        await self.storage.remove_folder(job_id)

    async def file(self, job_id: str, *, owner: str, kind: JobKind, variant: str) -> StoredFile:
        """One of a finished job's files.

        Raises:
            NotFoundError: there is no such job or variant, or it is not finished.
        """
        job = await self.get(job_id, owner=owner, kind=kind)
        if job.state is not JobState.COMPLETED:
            raise NotFoundError(f"{job_id} has no content: it is {job.state}", None, "content_not_ready")
        file = job.file(variant)
        if file is None:
            raise NotFoundError(f"{job_id} has no {variant}", "variant")
        return file

    async def publish(self, content: bytes, media_type: str) -> Published:
        """Puts a file behind a name that nobody can guess and that ends by itself. Only the name's hash is kept."""
        name = secrets.token_urlsafe(_NAME_BYTES)
        download = Download(f"file_{uuid.uuid4().hex}", media_type, len(content))
        lifetime_s = self._settings.url_lifetime_s
        await self._store.add_download(_hash(name), download, lifetime_s=lifetime_s)
        await self.storage.write(download.key, content)
        return Published(name, int(time.time() + lifetime_s))

    async def published(self, name: str) -> Download:
        """The file behind a name.

        Raises:
            NotFoundError: there is none, or not any more.
        """
        download = await self._store.get_download(_hash(name))
        if download is None:
            raise NotFoundError("there is no such file, or not any more")
        return download

    async def _stop(self, job: Job, token: str) -> None:
        self._runner.drop(job.id)
        if token and job.model in self._service.models:
            await self._service.models[job.model].group.cancel(token)


def _new_job(
    request: ImageRequest | VideoRequest, model: ServedModel, *, owner: str, idempotency_key: str | None
) -> NewJob:
    sent, attachments = request.dump_parts()
    seed = draw_seed() if request.seed is None else request.seed
    body, _ = request.model_copy(update={"seed": seed, "model": model.name}).dump_parts()
    kind: JobKind = "video" if isinstance(request, VideoRequest) else "image"
    return NewJob(
        id=f"{kind}_{uuid.uuid4().hex}",
        kind=kind,
        model=model.name,
        owner=owner,
        request=body,
        attachments=attachments,
        request_hash=_hash(sent + (attachments or "")),
        seed=seed,
        size=_size(request, model.plan.defaults),
        seconds=_seconds(request, model.plan.defaults) if isinstance(request, VideoRequest) else "",
        idempotency_key=idempotency_key,
    )


def _size(request: ImageRequest | VideoRequest, defaults: ServingDefaults) -> str:
    """What is asked for, as far as it is known; a finished job has what it became."""
    if request.width_and_height is not None:
        return "{}x{}".format(*request.width_and_height)
    return f"{defaults.width}x{defaults.height}" if defaults.width and defaults.height else "auto"


def _seconds(request: VideoRequest, defaults: ServingDefaults) -> str:
    if request.seconds is not None:
        return request.seconds
    num_frames = request.num_frames or defaults.num_frames
    return f"{num_frames / frames_per_second(request, defaults):.3g}" if num_frames else "auto"


def _no_such_job(job_id: str, kind: JobKind) -> NotFoundError:
    return NotFoundError(f"there is no {kind} {job_id[:100]!r}", f"{kind}_id")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
