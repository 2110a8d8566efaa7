"""What a group's warm-up measured, as the planner's profiles keep it."""

import logging
import time
from collections.abc import Callable

from deployments.group_client import CallStats
from planner.actor import report_measurement
from planner.errors import PlannerError
from planner.measurements import Measurement, measurement_key
from planner.plan import Plan, PlannedShape
from workers.calls import GenerateResult

logger = logging.getLogger(__name__)
REPORT_TIMEOUT_S = 30.0


def make_measurement(
    plan: Plan, result: GenerateResult, *, num_steps: int, clock: Callable[[], float] = time.time
) -> Measurement | None:
    """Peaks and the step's seconds of one call; None for latents, and for plans made by hand."""
    if result.output_kind == "latent":
        return None
    batch_size, *frames, height, width, _ = result.output.shape
    shape = PlannedShape(width=width, height=height, num_frames=frames[0] if frames else 1, batch_size=batch_size)
    key = measurement_key(plan, shape=shape)
    if key is None:
        return None
    step_s = result.stage_seconds.get("denoise", 0.0) / num_steps
    peaks = tuple(rank.peak_bytes for rank in result.ranks) if plan.device == "cuda" else ()
    return Measurement(
        key=key,
        gpu_peak_bytes=peaks,
        step_samples_s=(step_s,) if step_s > 0 else (),
        updated_at=clock(),
    )


def make_call_stats(plan: Plan, result: GenerateResult) -> CallStats:
    """What the service's metrics show of a finished call."""
    seam = result.seam
    return CallStats(
        stage_seconds=dict(result.stage_seconds),
        gpu_peak_bytes=tuple(rank.peak_bytes for rank in result.ranks) if plan.device == "cuda" else (),
        num_gpus=sum(bundle.get("GPU", 0) for bundle in plan.group.bundles),
        num_frames=result.output.shape[1] if result.output_kind == "video" else 1,
        num_serial_calls=seam.learnt_signatures + seam.local_calls + seam.uncut_signatures,
        batch_size=result.output.shape[0],
        num_failed_previews=result.num_failed_previews,
        gpu_used_bytes=tuple(rank.device_used_bytes for rank in result.ranks if rank.device_used_bytes is not None),
    )


def report_to_planner(measurement: Measurement, *, profiles: str | None) -> None:
    """Sends it to the planner actor; a group serves also where profiles cannot be kept."""
    try:
        kept = report_measurement(measurement, profiles=profiles, timeout_s=REPORT_TIMEOUT_S)
    except PlannerError as error:
        logger.warning("what the warm-up measured is not kept: %s", error)
        return
    if kept is not None:
        logger.info("kept what the warm-up measured (report %d of this configuration)", kept.num_reports)
