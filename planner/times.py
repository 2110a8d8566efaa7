"""Seconds to load, for a step and for a request, for a given placement of the components."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from planner.checkpoint import Checkpoint, Component
from planner.costs import (
    NETWORK_GB_S,
    NVLINK_GB_S,
    Work,
    Workload,
    call_seconds,
    denoiser_work,
    knee,
    streaming_seconds,
)
from planner.degrees import Degrees
from planner.hardware import Gpu
from planner.memory import Placement
from planner.plan import ComponentKind, PredictedTimes, Residency
from planner.sequence import exchange_seconds

LOAD_GB_S = 20.0
"""Weights in page cache to one GPU: 20 GB in 1.0 s (eight readers, pinned ring; measured on one H100 host)."""
_UNKNOWN = Gpu("unknown", 0, 250.0, 170.0, 26.0, 1.6, "an A100's rates, to rank options where the type is not known")


@dataclass(frozen=True, slots=True)
class Times:
    """Predicted seconds.

    Attributes:
        ranking_s: seconds of a request at the GPU's rates, or an assumed GPU's where the type is unknown.
        knees: fewest resident blocks that hide copying, for each layerwise component.
        known: True if the rates are this GPU's.
        step_known: True if the step was measured.
    """

    load_s: float
    step_s: float
    ranking_s: float
    knees: Mapping[str, int]
    known: bool
    step_known: bool = False

    def predicted(self) -> PredictedTimes:
        """What the plan says: None where the rates are only assumed."""
        if not self.known:
            step_s = round(self.step_s, 6) if self.step_known else None
            return PredictedTimes(load_s=None, step_s=step_s, request_s=None)
        return PredictedTimes(
            load_s=round(self.load_s, 4), step_s=round(self.step_s, 6), request_s=round(self.ranking_s, 4)
        )


def predict_times(
    placements: Sequence[Placement], *, workload: Workload, degrees: Degrees, dtype: str, gpu: Gpu | None,
    spans_nodes: bool, device: str, compute_seconds_of: Callable[[Component], float],
) -> Times:  # fmt: skip
    """Predicts seconds; on CPUs nothing is known and everything ranks equal.

    Args:
        compute_seconds_of: `compute_seconds` of a component, where everything else is fixed.
    """
    if device == "cpu":
        return Times(0.0, 0.0, 0.0, {}, False)
    rates = gpu or _UNKNOWN
    link_gb_s = _link_gb_s(spans_nodes=spans_nodes)
    knees: dict[str, int] = {}
    call_s: list[float] = []
    request_s = 0.0
    for placement in placements:
        component = placement.component
        sizes = component.placed(dtype)
        compute_s = compute_seconds_of(component)
        if placement.residency is Residency.LAYERWISE:
            block, num_blocks = sizes.largest_block, len(sizes.blocks)
            knees[component.name] = knee(
                compute_s=compute_s, block_bytes=block, num_blocks=num_blocks, copy_gb_s=rates.copy_gb_s
            )
            compute_s = streaming_seconds(
                compute_s=compute_s, block_bytes=block, num_blocks=num_blocks,
                num_resident=placement.num_resident_blocks, copy_gb_s=rates.copy_gb_s,
            )  # fmt: skip
        elif placement.residency is Residency.SHARDED:
            gathered = sizes.whole * (degrees.fsdp - 1) / degrees.fsdp / (link_gb_s * 1e9)
            # Gathering the first block, and the root's parameters, hides under nothing.
            compute_s = max(compute_s, gathered) + 0.02 * gathered
        elif placement.residency is Residency.OFFLOAD:
            request_s += sizes.whole / (rates.copy_gb_s * 1e9)
        if component.kind is ComponentKind.DENOISER:
            call_s.append(compute_s)
        else:
            request_s += compute_s
    calls = -(-workload.num_branches // degrees.cfg)
    # Of several denoisers each step runs one; the mean stands for their shares of the steps.
    step_s = calls * sum(call_s) / len(call_s) if call_s else 0.0
    request_s += step_s * workload.num_steps
    read_bytes = [0.0] * degrees.num_ranks
    for placement in placements:
        for rank in placement.ranks:
            shares = degrees.fsdp if placement.residency is Residency.SHARDED else 1
            read_bytes[rank] += placement.component.payload_bytes / shares
    return Times(max(read_bytes) / (LOAD_GB_S * 1e9), step_s, request_s, knees, gpu is not None)


def compute_seconds(
    component: Component, checkpoint: Checkpoint, workload: Workload, degrees: Degrees, gpu: Gpu | None,
    *, spans_nodes: bool, is_compiled: bool,
) -> float:  # fmt: skip
    """Seconds that one call of a component computes and exchanges tokens, wherever its weights lie."""
    computed = _compute_seconds(component, checkpoint, workload, degrees, gpu or _UNKNOWN, is_compiled=is_compiled)
    link_gb_s = _link_gb_s(spans_nodes=spans_nodes)
    return computed + exchange_seconds(component, checkpoint, workload, degree=degrees.sequence, link_gb_s=link_gb_s)


def _link_gb_s(*, spans_nodes: bool) -> float:
    return NETWORK_GB_S if spans_nodes else NVLINK_GB_S


def _compute_seconds(
    component: Component, checkpoint: Checkpoint, workload: Workload, degrees: Degrees, gpu: Gpu, *, is_compiled: bool
) -> float:
    if component.kind is ComponentKind.DENOISER:
        work = denoiser_work(component, checkpoint, workload, is_compiled=is_compiled)
        return call_seconds(work, gpu) / degrees.sequence
    if component.kind in {ComponentKind.TEXT_ENCODER, ComponentKind.IMAGE_ENCODER}:
        # Two prompts (the negative one too) of 512 tokens.
        return call_seconds(Work(2.0 * component.num_parameters * 2 * 512 * workload.batch_size, 0.0, 0.0), gpu)
    if component.kind is ComponentKind.VAE:
        # Convolutions at full resolution: about 1 MFLOP a pixel and frame (AutoencoderKL: 2.5 TFLOP at 1024 x 1024).
        pixels = workload.width * workload.height * workload.num_frames * workload.batch_size
        return 2.5e6 * pixels / (gpu.matrix_tflops * 1e12 * 0.3)
    return 0.0
