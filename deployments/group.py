"""The group deployment: one replica is one group's coordinator. It holds no GPU; its ranks do."""

import asyncio
import dataclasses
import logging
import os
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, NoReturn

from ray import serve

from deployments.autoscaling import COST_METRIC
from deployments.detached import detached
from deployments.group_client import GeneratedMedia, GroupEvent, PreviewFile, begin_of_rank_names
from deployments.held_check import HeldCheck
from deployments.logs import configure_logging
from deployments.measuring import make_call_stats, make_measurement, report_to_planner
from deployments.media import encode_image, encode_mp4, encode_thumbnail
from deployments.pipeline_call import build_arguments, frames_per_second
from deployments.schemas import ImageRequest, VideoRequest
from deployments.seam_metrics import SeamMetrics
from deployments.settings import ModelSettings
from deployments.stages import StageReport
from deployments.warm_up import MAX_CALLS_A_SHAPE, WARM_UP_STEPS, warm_up_requests
from planner.plan import Plan
from planner.profiles import configured_folder
from workers.call_pace import CallDeadlines
from workers.calls import GenerateCall, GenerateResult, GroupDescription, Preview
from workers.errors import GroupDiedError
from workers.group import WorkerGroup

logger = logging.getLogger(__name__)
_SMOOTHING = 0.2
_FIRST_RANK_BUNDLE = 1  # bundle 0 of the replica's placement group is the coordinator's own


def _name_for_cancels() -> str:
    """By which clients find this group's ranks."""
    replica = serve.get_replica_context()
    return f"{begin_of_rank_names(replica.app_name, replica.deployment)}{replica.replica_id.unique_id}"


class GroupDeployment:
    """Starts a group, warms it up, and only then is healthy. A dead rank ends the whole replica at once.

    Args:
        settings: the model's settings.
        plan: what to start; the replica's placement group has the plan's bundles.
    """

    def __init__(self, settings: ModelSettings, plan: Plan) -> None:
        configure_logging()
        self._plan = plan
        self._seam_metrics = SeamMetrics()
        self._gpu_seconds_a_request: float | None = None
        self._profiles = configured_folder(settings.profiles)
        stage = StageReport(plan)
        try:
            self._group = self._start(settings, stage)
        finally:
            stage.end()
        self._held_check = HeldCheck(self._check, self._group.wait_for_an_end, num_replicas=settings.max_groups)

    async def describe(self) -> GroupDescription:
        """What the group can do."""
        return dataclasses.replace(self._group.describe(), shows_previews=self._shows_previews)

    async def generate(self, request: ImageRequest | VideoRequest) -> GeneratedMedia:
        """Makes the first picture, or the video, of a request; dividing `n` pictures is the ingress's work."""
        async with aclosing(self.stream(request)) as events:
            async for event in events:
                if isinstance(event, GeneratedMedia):
                    return event
        raise GroupDiedError("the group ended a call without a result")

    async def stream(
        self,
        request: ImageRequest | VideoRequest,
        *,
        seed: int | None = None,
        request_id: str | None = None,
        deadline_s: float | None = None,
    ) -> AsyncGenerator[GroupEvent, None]:
        """Progress and previews of one picture or video, then the file. Cancelling the request cancels the work."""
        description = self._group.describe()
        arguments = await asyncio.to_thread(build_arguments, request, self._plan.defaults, description)
        call = GenerateCall(
            arguments,
            seed=request.seed if seed is None else seed,
            request_id=request_id or uuid.uuid4().hex,
            deadline_s=deadline_s,
            flow_shift=request.flow_shift,
            num_previews=request.partial_images if isinstance(request, ImageRequest) else 0,
        )
        try:
            async with aclosing(detached(self._group.stream(call))) as events:
                async for event in events:
                    if isinstance(event, GenerateResult):
                        self._seam_metrics.record(event.seam)
                        self._learn_cost(event)
                        yield await asyncio.to_thread(_encode, event, request, self._plan)
                    elif isinstance(event, Preview):
                        yield await asyncio.to_thread(_encode_preview, event, request)
                    else:
                        yield event
        except GroupDiedError as error:
            self._end(error)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve every few seconds; the scaling policy weighs waiting requests by it."""
        return {COST_METRIC: self._gpu_seconds_a_request or 0.0}

    async def probe(self) -> AsyncGenerator[str, None]:
        """Says that the group was reached, then, when every rank has answered, that it is well."""
        yield "reached"
        await self._check()
        yield "ok"

    async def check_health(self) -> None:
        """Called by Serve; a failing check alone would keep the broken replica in rotation for seconds."""
        await self._held_check.run()

    def __del__(self) -> None:
        """Called by Serve when the replica is told to stop."""
        group = getattr(self, "_group", None)
        if group is not None:
            group.shutdown(timeout_s=5.0)

    async def _check(self) -> None:
        try:
            await asyncio.to_thread(self._group.check)
        except GroupDiedError as error:
            self._end(error)

    def _start(self, settings: ModelSettings, stage: StageReport) -> WorkerGroup:
        """A group that has run every shape of the warm-up."""
        stage.say("starting ranks")
        self._group = WorkerGroup.start(
            self._plan,
            first_bundle=_FIRST_RANK_BUNDLE,
            on_load=stage.on_load,
            timeout_s=settings.start_timeout_s,
            deadlines=CallDeadlines(factor=settings.step_deadline_factor, floor_s=settings.step_deadline_floor_s),
            name=_name_for_cancels(),
        )
        try:
            requests = warm_up_requests(settings.warm_up, self._plan.defaults, self._group.describe())
            for number, request in enumerate(requests, start=1):
                stage.say(f"warming up, shape {number} of {len(requests)}")
                self._warm_up(request)
            self._shows_previews = self._try_preview(requests)
        except BaseException:
            self._group.shutdown(timeout_s=2.0)
            raise
        return self._group

    def _warm_up(self, request: ImageRequest | VideoRequest) -> None:
        """Compares a first call with the plan's prediction, reports both, and repeats it until nothing is new."""
        arguments = build_arguments(request, self._plan.defaults, self._group.describe())
        start = time.monotonic()
        result = self._group.generate(GenerateCall(arguments, seed=0))
        again = self._repeat_until_known(arguments, result)
        peak = max(rank.peak_bytes for rank in result.ranks) / 2**20
        step_s = result.stage_seconds.get("denoise", 0.0) / WARM_UP_STEPS
        used = max((rank.device_used_bytes or 0 for rank in result.ranks), default=0)
        logger.info(
            "warm-up (%s): %.2f s, a step %.3f s (predicted %s), peak %.0f MiB a rank (predicted %s)%s",
            request.output_format, time.monotonic() - start, step_s, _seconds(self._plan.predicted.step_s),
            peak, _mebibytes(self._plan.memory.gpu_peak_bytes),
            f", {_mebibytes((used,))} in use on its device" if used else "",
        )  # fmt: skip
        if self._profiles is not None:
            # Not the first call: its steps hold what is done only once (kernels, buffers, shapes).
            again = again or self._group.generate(GenerateCall(arguments, seed=0))
            measurement = make_measurement(self._plan, again, num_steps=WARM_UP_STEPS)
            if measurement is not None:
                report_to_planner(measurement, profiles=self._profiles)

    def _try_preview(self, requests: Sequence[ImageRequest | VideoRequest]) -> bool:
        """Whether this pipeline can show a preview: one is made of the first picture. The leader's log says why not."""
        request = next((request for request in requests if isinstance(request, ImageRequest)), None)
        if request is None:
            return False
        arguments = build_arguments(request, self._plan.defaults, self._group.describe())
        result = self._group.generate(GenerateCall(arguments, seed=0, num_previews=1))
        return result.num_previews > 0

    def _repeat_until_known(self, arguments: dict[str, Any], first: GenerateResult) -> GenerateResult | None:
        """Repeats a warm-up call while its calls' shapes are new to the group; the last result, None if none was."""
        result = first
        for _ in range(MAX_CALLS_A_SHAPE - 1):
            if not result.seam.learnt_signatures:
                break
            result = self._group.generate(GenerateCall(arguments, seed=0))
        return None if result is first else result

    def _learn_cost(self, result: GenerateResult) -> None:
        cost = sum(result.stage_seconds.values()) * len(result.ranks)
        known = cost if self._gpu_seconds_a_request is None else self._gpu_seconds_a_request
        self._gpu_seconds_a_request = known + _SMOOTHING * (cost - known)

    def _end(self, error: GroupDiedError) -> NoReturn:
        """Ends every rank and this process: Serve starts a new group, the ingress sends the request elsewhere."""
        logger.error("the group ends: %s", error)
        logging.shutdown()
        try:
            self._group.shutdown(timeout_s=1.0)
        finally:
            os._exit(1)


def _encode(result: GenerateResult, request: ImageRequest | VideoRequest, plan: Plan) -> GeneratedMedia:
    """The file for a result. A picture of a video pipeline is its first frame."""
    pixels = result.output[0]
    height, width = pixels.shape[-3:-1]
    if isinstance(request, VideoRequest):
        content = encode_mp4(pixels, fps=frames_per_second(request, plan.defaults))
        thumbnail = encode_thumbnail(pixels)
    else:
        first = pixels[0] if result.output_kind == "video" else pixels
        content = encode_image(first, output_format=request.output_format, quality=request.output_compression)
        thumbnail = None
    stats = make_call_stats(plan, result)
    return GeneratedMedia(
        content=content, thumbnail=thumbnail, seed=result.seed, width=width, height=height, stats=stats
    )


def _encode_preview(preview: Preview, request: ImageRequest | VideoRequest) -> PreviewFile:
    assert isinstance(request, ImageRequest)
    height, width = preview.pixels.shape[:2]
    content = encode_image(preview.pixels, output_format=request.output_format, quality=request.output_compression)
    return PreviewFile(content, preview.index, width, height)


def _seconds(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f} s"


def _mebibytes(values: tuple[int, ...]) -> str:
    return f"{max(values, default=0) / 2**20:.0f} MiB"
