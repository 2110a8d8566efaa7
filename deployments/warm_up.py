"""What a group runs before it serves: one short call of each shape that it will be asked for.

A call whose shape is new runs serially once, and compiled code and kernels are chosen then; no request should pay that.
"""

from collections.abc import Sequence

from deployments.schemas import ImageRequest, VideoRequest
from deployments.settings import WarmUpShape
from planner.plan import ServingDefaults
from workers.calls import GroupDescription

WARM_UP_STEPS = 2
MAX_CALLS_A_SHAPE = 4
"""Two transformers that share the steps may not both run in so few of them: a shape is run until nothing is new."""


def warm_up_requests(
    shapes: Sequence[WarmUpShape], defaults: ServingDefaults, description: GroupDescription
) -> list[ImageRequest | VideoRequest]:
    """One request a shape; without shapes a picture, and a video where the model makes one by default."""
    if not shapes:
        makes_video = description.makes_video and (defaults.num_frames or 1) > 1
        shapes = [WarmUpShape(num_frames=1), *([WarmUpShape()] if makes_video else [])]
    return [_request(shape, description) for shape in shapes]


def _request(shape: WarmUpShape, description: GroupDescription) -> ImageRequest | VideoRequest:
    if shape.num_frames == 1 or not description.makes_video:
        return ImageRequest(prompt="a", size=shape.size, num_inference_steps=WARM_UP_STEPS)
    return VideoRequest(prompt="a", size=shape.size, num_frames=shape.num_frames, num_inference_steps=WARM_UP_STEPS)
