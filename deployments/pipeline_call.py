"""From a client's request to a call of the pipeline: defaults, what this pipeline can do, ceilings."""

from collections.abc import Sequence
from typing import Any

from deployments.errors import BadRequestError
from deployments.media import check_image, decode_image, decode_mask
from deployments.schemas import GenerationRequest, ImageEditRequest, ImageRequest, VideoRequest
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
    _at_most(len(request.input_images), limits.max_input_images, _image_param(request), "pictures")
    for content in request.input_images:
        check_image(content, max_pixels=limits.max_input_pixels, param=_image_param(request))
    if request.input_mask is not None:
        check_image(request.input_mask, max_pixels=limits.max_input_pixels, param="mask")


def check_call(
    request: GenerationRequest,
    defaults: ServingDefaults,
    description: GroupDescription,
    *,
    limits: Limits,
    extra_args: Sequence[str] = (),
) -> None:
    """Refuses what this pipeline cannot do, without decoding pictures.

    Raises:
        BadRequestError: says what it cannot do, or what the settings do not allow.
    """
    for name in request.extra_args:
        if name not in extra_args:
            allowed = f"allowed are {', '.join(extra_args)}" if extra_args else "none are allowed here"
            raise BadRequestError(f"extra_args: {name[:100]!r} is not allowed; {allowed}", "extra_args", "unsupported")
    arguments = _scalar_arguments(request, defaults, description)
    if isinstance(request, VideoRequest):
        _at_most(arguments.get("num_frames"), limits.max_frames, "seconds", "frames")
    _check_flow_shift(request, description)
    _check_previews(request, description)
    _check_images(request, description)


def build_arguments(
    request: GenerationRequest, defaults: ServingDefaults, description: GroupDescription
) -> dict[str, Any]:
    """The pipeline's keyword arguments for a request; what neither says is left to the pipeline.

    Raises:
        BadRequestError: this pipeline cannot do what is asked.
    """
    arguments = _scalar_arguments(request, defaults, description)
    _check_images(request, description)
    images = [decode_image(content, param=_image_param(request)) for content in request.input_images]
    if images:
        arguments["image"] = images[0] if len(images) == 1 else images
    if request.input_mask is not None:
        arguments["mask_image"] = decode_mask(request.input_mask)
    return arguments


def frames_per_second(request: VideoRequest, defaults: ServingDefaults) -> int:
    """The rate of a video."""
    return request.fps or defaults.fps or DEFAULT_FPS


def _scalar_arguments(
    request: GenerationRequest, defaults: ServingDefaults, description: GroupDescription
) -> dict[str, Any]:
    width, height = request.width_and_height or (defaults.width, defaults.height)
    arguments: dict[str, Any] = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "width": width,
        "height": height,
        "num_inference_steps": request.num_inference_steps or defaults.num_inference_steps,
        "guidance_scale": defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale,
        "guidance_scale_2": request.guidance_scale_2,
        "true_cfg_scale": request.true_cfg_scale,
        "num_frames": _num_frames(request, defaults, description),
        **request.extra_args,
    }
    for side in ("width", "height"):
        _check_multiple(arguments[side], description.size_multiple)
    asked = {name for name in request.model_fields_set if getattr(request, name) is not None} | set(request.extra_args)
    return _accepted(arguments, description, asked=asked)


def _num_frames(request: GenerationRequest, defaults: ServingDefaults, description: GroupDescription) -> int | None:
    if isinstance(request, VideoRequest):
        if not description.makes_video:
            raise BadRequestError(f"{description.pipeline_class} makes no videos: ask for a picture", "model")
        return request.frames_at(frames_per_second(request, defaults)) or defaults.num_frames
    return 1 if description.makes_video else None


def _check_flow_shift(request: GenerationRequest, description: GroupDescription) -> None:
    if request.flow_shift is not None and not description.takes_flow_shift:
        name = description.pipeline_class
        raise BadRequestError(f"{name} has no schedule with a shift to set: leave it out", "flow_shift", "unsupported")


def _check_previews(request: GenerationRequest, description: GroupDescription) -> None:
    if isinstance(request, ImageRequest) and request.partial_images and not description.shows_previews:
        name = description.pipeline_class
        raise BadRequestError(f"{name} shows no previews: leave it out", "partial_images", "unsupported")


def _check_images(request: GenerationRequest, description: GroupDescription) -> None:
    takes, name = description.accepted_arguments, description.pipeline_class
    param = _image_param(request)
    if request.input_images and "image" not in takes:
        raise BadRequestError(f"{name} takes no picture to start from: leave {param} out", param, "unsupported")
    if request.input_mask is not None and "mask_image" not in takes:
        raise BadRequestError(f"{name} takes no mask: leave it out", "mask", "unsupported")


def _image_param(request: GenerationRequest) -> str:
    return "image" if isinstance(request, ImageEditRequest) else "input_reference"


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
