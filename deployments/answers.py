"""What clients get, over HTTP and by Python handle alike."""

import base64
from typing import Literal

from pydantic import BaseModel


class MediaItem(BaseModel):
    """One picture or video, and the seed that makes it again. Has `b64_json` or `url`."""

    b64_json: str | None = None
    url: str | None = None
    seed: int

    @property
    def content(self) -> bytes:
        """The file's bytes."""
        assert self.b64_json is not None, "the file is behind the url"
        return base64.b64decode(self.b64_json)


class MediaResponse(BaseModel):
    """The answer to a request; OpenAI's `ImagesResponse` with the seeds."""

    created: int
    model: str
    size: str
    output_format: str
    data: list[MediaItem]


class ProgressEvent(BaseModel):
    """One server-sent event of a running request; `step` counts finished denoising steps of picture `image_index`."""

    type: Literal["image_generation.progress", "image_edit.progress", "video_generation.progress"]
    stage: Literal["queued", "encode", "denoise", "decode"]
    step: int = 0
    num_steps: int | None = None
    seconds_left: float | None = None
    image_index: int = 0


class PartialImageEvent(BaseModel):
    """A preview, in OpenAI's form, of picture `image_index`; `partial_image_index` counts its previews from 0."""

    type: Literal["image_generation.partial_image", "image_edit.partial_image"]
    b64_json: str
    partial_image_index: int
    created_at: int
    size: str
    output_format: str
    background: Literal["opaque"] = "opaque"
    quality: Literal["auto"] = "auto"
    image_index: int = 0


class CompletedEvent(BaseModel):
    """The event that carries a finished picture or video, in OpenAI's form."""

    type: Literal["image_generation.completed", "image_edit.completed", "video_generation.completed"]
    b64_json: str
    created_at: int
    size: str
    output_format: str
    background: Literal["opaque"] = "opaque"
    quality: Literal["auto"] = "auto"
    seed: int
    image_index: int = 0

    @property
    def content(self) -> bytes:
        """The file's bytes."""
        return base64.b64decode(self.b64_json)


class ErrorDetail(BaseModel):
    """What went wrong, in OpenAI's form."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """Every answer that is not a success."""

    error: ErrorDetail


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str


class JobAnswer(BaseModel):
    """What pictures' and videos' jobs have in common."""

    id: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    created_at: int
    completed_at: int | None
    expires_at: int | None
    model: str
    size: str
    error: JobError | None
    seed: int


class Video(JobAnswer):
    """OpenAI's video job, with the seed."""

    object: Literal["video"] = "video"
    prompt: str
    seconds: str
    remixed_from_video_id: None = None


class VideoList(BaseModel):
    """`GET /v1/videos`."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedVideo(BaseModel):
    """`DELETE /v1/videos/{id}`."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class ImageJob(JobAnswer):
    """A picture job (`background_job`); `data` is there when it is completed."""

    object: Literal["image.job"] = "image.job"
    data: list[MediaItem] | None = None


class DeletedImageJob(BaseModel):
    """`DELETE /v1/images/jobs/{id}`."""

    id: str
    object: Literal["image.job.deleted"] = "image.job.deleted"
    deleted: Literal[True] = True


class ModelCard(BaseModel):
    """One entry of `GET /v1/models`."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "heliograph"


class ModelList(BaseModel):
    """`GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """`GET /live`."""

    status: Literal["ok", "busy", "unavailable"]
    detail: str = ""


class Queue(BaseModel):
    """What is there for a model's groups, of all ingress replicas.

    Attributes:
        num_running: pictures and videos that groups work on.
        num_waiting: those that wait for a group.
        num_untaken_jobs: accepted jobs that no ingress replica has taken yet; they are in no other number.
        seconds_left: predicted, until the groups are through with what runs and waits; None if nothing predicts it.
    """

    model: str
    num_running: int
    num_waiting: int
    num_untaken_jobs: int
    seconds_left: float | None


class HealthReport(Health):
    """`GET /health`; `queues` has an entry a model, or none where they were not known in time."""

    queues: list[Queue]
