"""What clients ask for, over HTTP and by Python handle alike."""

import json
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from deployments.choices import parse_size

# Seeds stay exact in clients whose only number is a double; n pictures use seed, seed + 1, ...
MAX_SEED = 2**53 - 1 - 1000
_ATTACHMENTS = frozenset({"images", "mask", "input_reference"})
_EXTENSIONS = {"jpeg": "jpg"}

Scale = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Side = Annotated[int, Field(ge=1, le=999_999)]
ExtraArgument = bool | int | Annotated[float, Field(allow_inf_nan=False)] | Annotated[str, Field(max_length=1000)]


class GenerationRequest(BaseModel):
    """What pictures and videos have in common. None means: the checkpoint's default."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64"
    )

    prompt: str = Field(min_length=1)
    model: str | None = None
    negative_prompt: str | None = None
    size: str = "auto"
    width: Side | None = None
    height: Side | None = None
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    num_inference_steps: int | None = Field(default=None, ge=1)
    guidance_scale: Scale | None = None
    guidance_scale_2: Scale | None = None
    true_cfg_scale: Scale | None = None
    flow_shift: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = None
    extra_args: dict[str, ExtraArgument] = Field(default_factory=dict, max_length=32)
    user: str | None = None
    safety_identifier: str | None = None

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

    @model_validator(mode="after")
    def _size_is_said_once(self) -> "GenerationRequest":
        if (self.width is None) != (self.height is None):
            raise ValueError("width and height come together")
        if self.width is not None and self.size != "auto":
            raise ValueError("say either size, or width and height")
        return self

    @property
    def width_and_height(self) -> tuple[int, int] | None:
        """The size asked for; None for `auto`."""
        if self.width is not None and self.height is not None:
            return self.width, self.height
        return None if self.size == "auto" else parse_size(self.size)

    @property
    def input_images(self) -> tuple[bytes, ...]:
        """Files of the pictures that the pipeline is to start from."""
        return ()

    @property
    def input_mask(self) -> bytes | None:
        """File of the mask that says where to paint."""
        return None

    def dump_parts(self) -> tuple[str, str | None]:
        """The request as JSON without its images, and those as JSON, if there are any."""
        attachments = {name for name in _ATTACHMENTS if getattr(self, name, None)}
        rest = self.model_dump_json(exclude=set(_ATTACHMENTS), exclude_unset=True)
        return rest, self.model_dump_json(include=attachments) if attachments else None

    @classmethod
    def load_parts(cls, rest: str, attachments: str | None) -> "GenerationRequest":
        """The request that `dump_parts` was called on, as it was."""
        return cls.model_validate_json(json.dumps({**json.loads(rest), **json.loads(attachments or "{}")}))


class ImageRequest(GenerationRequest):
    """`POST /v1/images/generations`. `n` pictures are made with the seeds seed, seed + 1, ..."""

    n: int = Field(default=1, ge=1)
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int | None = Field(default=None, ge=0, le=100)
    stream: bool = False
    background_job: bool = False
    # OpenAI's fields whose only supported value is what happens anyway.
    background: Literal["auto", "opaque"] = "auto"
    moderation: Literal["auto", "low"] = "auto"
    quality: Literal["auto"] = "auto"
    partial_images: int = Field(default=0, ge=0, le=3)

    @model_validator(mode="after")
    def _fields_fit_together(self) -> "ImageRequest":
        if self.output_compression is not None and self.output_format == "png":
            raise ValueError("output_compression is for jpeg and webp; png has no loss")
        if self.stream and self.response_format == "url":
            raise ValueError("events carry b64_json: leave response_format out")
        if self.stream and self.background_job:
            raise ValueError("a background_job has no stream: ask for its state")
        if self.partial_images and not self.stream:
            raise ValueError("partial_images come in a stream: set stream to true")
        return self

    @property
    def media_type(self) -> str:
        """What the finished files are."""
        return f"image/{self.output_format}"


class ImageEditRequest(ImageRequest):
    """`POST /v1/images/edits`: pictures to start from, and a mask whose transparent parts are painted anew."""

    images: tuple[bytes, ...] = Field(min_length=1)
    mask: bytes | None = None

    @property
    def input_images(self) -> tuple[bytes, ...]:
        """See the base class."""
        return self.images

    @property
    def input_mask(self) -> bytes | None:
        """See the base class."""
        return self.mask


class VideoRequest(GenerationRequest):
    """`POST /v1/videos`. The length is `seconds` or `num_frames`, or the checkpoint's default."""

    n: Literal[1] = 1
    seconds: (
        Annotated[str, BeforeValidator(lambda value: str(value) if type(value) in (int, float) else value)] | None
    ) = Field(default=None, pattern=r"^[0-9]{1,4}(\.[0-9]{1,3})?$")
    num_frames: int | None = Field(default=None, ge=1)
    fps: int | None = Field(default=None, ge=1, le=120)
    input_reference: bytes | None = None
    output_format: Literal["mp4"] = "mp4"

    @model_validator(mode="after")
    def _length_is_said_once(self) -> "VideoRequest":
        if self.seconds is not None and self.num_frames is not None:
            raise ValueError("say either seconds or num_frames")
        if self.seconds is not None and float(self.seconds) <= 0:
            raise ValueError("seconds must be more than 0")
        return self

    def frames_at(self, fps: int) -> int | None:
        """Frames asked for. One more than seconds times rate: both ends count in what video models make."""
        return self.num_frames if self.seconds is None else round(float(self.seconds) * fps) + 1

    @property
    def input_images(self) -> tuple[bytes, ...]:
        """See the base class."""
        return () if self.input_reference is None else (self.input_reference,)

    @property
    def media_type(self) -> str:
        """What the finished file is."""
        return "video/mp4"
