"""Seconds that a group needs for a request: the plan's prediction, scaled to it, corrected by what was measured."""

from dataclasses import dataclass

from deployments.errors import BadRequestError
from deployments.pipeline_call import frames_per_second
from deployments.schemas import GenerationRequest, ImageRequest, VideoRequest
from planner.plan import Plan

_SMOOTHING = 0.3
# Most pipelines' own default, and the planner's, where neither a request nor the checkpoint says how many.
_USUAL_NUM_STEPS = 50


@dataclass(frozen=True, slots=True)
class Work:
    """What a request asks for: pictures one after the other, denoising steps of each, pixels times frames of each."""

    num_pictures: int
    num_steps: int
    volume: int


class WorkModel:
    """Seconds of one group. A step, and what comes after the steps, cost the same for each pixel of each frame; where
    attention outweighs the rest, larger shapes cost more than that until they were measured.

    Args:
        plan: predicts a step and a request at its shape; on CPUs nothing, then all is learnt.
        num_planned_steps: steps of the request that the plan predicts, if they were chosen.
    """

    def __init__(self, plan: Plan, *, num_planned_steps: int | None = None) -> None:
        self._plan = plan
        self._step_s: float | None = None
        self._rest_s = 0.0
        predicted, shape = plan.predicted, plan.shape
        if shape is None or predicted.step_s is None:
            return
        volume = shape.width * shape.height * shape.num_frames * shape.batch_size
        self._step_s = predicted.step_s / volume
        if predicted.request_s is not None:
            num_steps = num_planned_steps or plan.defaults.num_inference_steps or _USUAL_NUM_STEPS
            self._rest_s = max(0.0, predicted.request_s - num_steps * predicted.step_s) / volume

    @property
    def knows_seconds(self) -> bool:
        """Whether anything was predicted or measured yet."""
        return self._step_s is not None

    def work_of(self, request: GenerationRequest) -> Work:
        """What a request asks for, with the checkpoint's defaults."""
        width, height, num_frames = _shape_of(request, self._plan)
        return Work(
            num_pictures=request.n if isinstance(request, ImageRequest) else 1,
            num_steps=request.num_inference_steps or self._plan.defaults.num_inference_steps or _USUAL_NUM_STEPS,
            volume=width * height * num_frames,
        )

    def seconds_left(self, work: Work, *, num_done: int = 0, num_steps_done: int = 0) -> float:
        """What is left of a request after finished pictures, and steps of the next; 0 while nothing is known."""
        if self._step_s is None:
            return 0.0
        picture_s = (work.num_steps * self._step_s + self._rest_s) * work.volume
        left_s = (work.num_pictures - num_done) * picture_s - num_steps_done * self._step_s * work.volume
        return max(left_s, 0.0)

    def learn(self, work: Work, *, step_s: float, rest_s: float) -> None:
        """Takes over what one picture really took: a mean step, and what came after the last one."""
        step, rest = step_s / work.volume, rest_s / work.volume
        if self._step_s is None:
            self._step_s, self._rest_s = step, rest
        self._step_s += _SMOOTHING * (step - self._step_s)
        self._rest_s += _SMOOTHING * (rest - self._rest_s)


def check_planned_shape(request: GenerationRequest, plan: Plan) -> None:
    """Refuses what is larger than what the plan has memory for. On CPUs, and where no shape was planned, nothing is.

    Raises:
        BadRequestError: says what is planned, and what to change.
    """
    shape = plan.shape
    if plan.device != "cuda" or shape is None:
        return
    width, height, num_frames = _shape_of(request, plan)
    if width * height * num_frames > shape.width * shape.height * shape.num_frames:
        raise BadRequestError(
            f"size: {width}x{height}, {num_frames} frame(s), is more than the memory planned for, {shape.width}x"
            f"{shape.height}, {shape.num_frames} frame(s): ask for less, or plan for it (width, height, num_frames "
            "under plan), or set beyond_plan: try",
            "size",
            "limit_exceeded",
        )


def _shape_of(request: GenerationRequest, plan: Plan) -> tuple[int, int, int]:
    """Width, height and frames that a request comes to; 1 for a side that nobody knows."""
    planned = (plan.shape.width, plan.shape.height, plan.shape.num_frames) if plan.shape else (1, 1, 1)
    width, height = request.width_and_height or (
        plan.defaults.width or planned[0],
        plan.defaults.height or planned[1],
    )
    if not isinstance(request, VideoRequest):
        return width, height, 1
    num_frames = request.frames_at(frames_per_second(request, plan.defaults))
    return width, height, num_frames or plan.defaults.num_frames or planned[2]
