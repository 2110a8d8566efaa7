"""A job as the rest of the service sees it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

JobKind = Literal["video", "image"]


class JobState(StrEnum):
    """The four states that clients know; cancelled is `FAILED` with a code."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"


UNFINISHED = (JobState.QUEUED, JobState.IN_PROGRESS)
CANCELLED_CODE = "cancelled"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file in the results' storage. `variant` says which of a job's files it is: video, thumbnail or image."""

    variant: str
    key: str
    media_type: str
    num_bytes: int
    size: str
    seed: int


@dataclass(frozen=True, slots=True)
class NewJob:
    """What is written when a job is accepted.

    Attributes:
        request: the request as JSON, its seed drawn, without images.
        attachments: the request's images as JSON, or None.
        request_hash: of what the client sent; tells a retry from another request under the same idempotency key.
    """

    id: str
    kind: JobKind
    model: str
    owner: str
    request: str
    attachments: str | None
    request_hash: str
    seed: int
    size: str
    seconds: str
    idempotency_key: str | None


@dataclass(frozen=True, slots=True)
class Job:
    """A row. Times are seconds since 1970 by the database's clock; `progress` is a percentage."""

    id: str
    kind: JobKind
    model: str
    owner: str
    state: JobState
    progress: int
    request: str
    request_hash: str
    seed: int
    size: str
    seconds: str
    num_attempts: int
    created_at: float
    completed_at: float | None
    expires_at: float | None
    error_code: str | None
    error_message: str | None
    files: tuple[StoredFile, ...]

    def file(self, variant: str) -> StoredFile | None:
        """The first file of a variant."""
        return next((file for file in self.files if file.variant == variant), None)


@dataclass(frozen=True, slots=True)
class LeasedJob:
    """A job that this process may work on while it renews the lease. `token` is new each time a job is taken."""

    job: Job
    token: str
    attachments: str | None


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list."""

    jobs: tuple[Job, ...]
    has_more: bool


@dataclass(frozen=True, slots=True)
class Download:
    """A file that can be fetched by an unguessable name until it expires; it is the only one in its folder."""

    folder: str
    media_type: str
    num_bytes: int

    @property
    def key(self) -> str:
        """Where it is in the results' storage."""
        return f"{self.folder}/file"
