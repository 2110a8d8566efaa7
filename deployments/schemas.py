"""What clients send and get, over HTTP and by Python handle alike."""

import base64
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from deployments.choices import parse_size

# Seeds stay exact in clients whose only number is a double; n pictures use seed, seed + 1, ...
MAX_SEED = 2**53 - 1 - 1000

Guidance = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


class GenerationRequest(BaseModel):
    """What pictures and videos have in common. None means: the checkpoint's default."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    prompt: str = Field(min_length=1)
    model: str | None = None
    negative_prompt: str | None = None
    size: str = "auto"
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    num_inference_steps: int | None = Field(default=None, ge=1)
    guidance_scale: Guidance | None = None
    user: str | None = None

    @field_validator("prompt")
    @classmethod
    def _prompt_says_something(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("the prompt is empty")
        return value

    @field_validator("size")
    @classmethod
    def _size_is_readable(cls, value: str) -> str:
        if value != "auto":
            parse_size(value)
        return value

    @property
    def width_and_height(self) -> tuple[int, int] | None:
        """The size asked for; None for `auto`."""
        return None if self.size == "auto" else parse_size(self.size)


class ImageRequest(GenerationRequest):
    """`POST /v1/images/generations`. `n` pictures are made with the seeds seed, seed + 1, ..."""

    n: int = Field(default=1, ge=1)
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png"] = "png"
    stream: bool = False
    # OpenAI's fields whose only supported value is what happens anyway.
    background: Literal["auto", "opaque"] = "auto"
    moderation: Literal["auto", "low"] = "auto"
    quality: Literal["auto"] = "auto"
    partial_images: Literal[0] = 0


class VideoRequest(GenerationRequest):
    """A video; so far by Python handle only."""

    n: Literal[1] = 1
    num_frames: int | None = Field(default=None, ge=1)
    fps: int | None = Field(default=None, ge=1, le=120)
    output_format: Literal["mp4"] = "mp4"


class MediaItem(BaseModel):
    """One picture or video, and the seed that makes it again."""

    b64_json: str
    seed: int

    @property
    def content(self) -> bytes:
        """The file's bytes."""
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

    type: Literal["image_generation.progress", "video_generation.progress"] = "image_generation.progress"
    stage: Literal["queued", "encode", "denoise", "decode"]
    step: int = 0
    num_steps: int | None = None
    seconds_left: float | None = None
    image_index: int = 0


class CompletedEvent(BaseModel):
    """The event that carries a finished picture or video, in OpenAI's form."""

    type: Literal["image_generation.completed", "video_generation.completed"] = "image_generation.completed"
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
    """`GET /live` and `GET /health`."""

    status: Literal["ok", "busy", "unavailable"]
    detail: str = ""
