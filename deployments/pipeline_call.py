"""From a client's request to a call of the pipeline: defaults, what this pipeline can do, ceilings."""

from typing import Any

from deployments.errors import BadRequestError
from deployments.schemas import GenerationRequest, ImageRequest, VideoRequest
from deployments.settings import Limits
from planner.plan import ServingDefaults
from workers.calls import GroupDescription

DEFAULT_FPS = 16


def check_limits(request: GenerationRequest, limits: Limits) -> None:
    """Refuses what no checkpoint would be asked to do.

    Raises:
        BadRequestError: a ceiling of the settings is passed.
    """
    _at_most(len(request.prompt), limits.max_prompt_characters, "prompt", "characters")
    _at_most(len(request.negative_prompt or ""), limits.max_prompt_characters, "negative_prompt", "characters")
    _at_most(request.num_inference_steps, limits.max_steps, "num_inference_steps", "steps")
    _at_most(request.n if isinstance(request, ImageRequest) else 1, limits.max_images, "n", "pictures")
    if isinstance(request, VideoRequest):
        _at_most(request.num_frames, limits.max_frames, "num_frames", "frames")
    if request.width_and_height is not None:
        width, height = request.width_and_height
        _at_most(width * height, limits.max_pixels, "size", "pixels")


def build_arguments(
    request: GenerationRequest, defaults: ServingDefaults, description: GroupDescription
) -> dict[str, Any]:
    """The pipeline's keyword arguments for a request; what neither says is left to the pipeline.

    Raises:
        BadRequestError: this pipeline cannot do what is asked.
    """
    width, height = request.width_and_height or (defaults.width, defaults.height)
    arguments: dict[str, Any] = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "width": width,
        "height": height,
        "num_inference_steps": request.num_inference_steps or defaults.num_inference_steps,
        "guidance_scale": defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale,
        "num_frames": _num_frames(request, defaults, description),
    }
    for side in ("width", "height"):
        _check_multiple(arguments[side], description.size_multiple)
    asked = {name for name in request.model_fields_set if getattr(request, name) is not None}
    return _accepted(arguments, description, asked=asked)


def _num_frames(request: GenerationRequest, defaults: ServingDefaults, description: GroupDescription) -> int | None:
    if isinstance(request, VideoRequest):
        if not description.makes_video:
            raise BadRequestError(f"{description.pipeline_class} makes no videos: ask for a picture", "model")
        return request.num_frames or defaults.num_frames
    return 1 if description.makes_video else None


def _accepted(arguments: dict[str, Any], description: GroupDescription, *, asked: set[str]) -> dict[str, Any]:
    """Drops defaults that the pipeline does not know; refuses wishes that it does not know."""
    known = {}
    for name, value in arguments.items():
        if value is None:
            continue
        if name in description.accepted_arguments:
            known[name] = value
        elif name in asked:
            raise BadRequestError(f"{description.pipeline_class} takes no {name}: leave it out", name, "unsupported")
    return known


def _check_multiple(pixels: int | None, multiple: int) -> None:
    if pixels is not None and pixels % multiple:
        near = max(multiple, round(pixels / multiple) * multiple)
        raise BadRequestError(
            f"width and height must be multiples of {multiple} pixels; {pixels} is not, {near} would be", "size"
        )


def _at_most(value: int | None, ceiling: int, param: str, unit: str) -> None:
    if value is not None and value > ceiling:
        raise BadRequestError(f"{param}: {value} {unit}, at most {ceiling} are allowed here", param, "limit_exceeded")
