"""One option on one node type: where its components lie, what that needs, how long it takes, and whether it fits."""

import bisect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from planner.calibration import Calibration
from planner.cluster import NodeType
from planner.component_ranks import is_whole, spread_encoders, stated_ranks
from planner.context import PlanContext
from planner.degrees import Degrees
from planner.execution import Execution, choose_execution
from planner.hardware import find_gpu
from planner.kinds import runs_every_step
from planner.load_order import LoadPosition
from planner.memory import Moments, Placement, gpu_headroom_bytes, host_headroom_bytes
from planner.nodes import ranks_per_node
from planner.plan import Compilation, ComponentKind, Correction, Decoding, Mode, Residency, ShardUnit
from planner.prediction import Setting
from planner.residents import choose_resident_blocks
from planner.times import Times

GIB = 2**30
DEFAULT_PREFETCH_DEPTH = 1


@dataclass(frozen=True, slots=True)
class Candidate:
    """One complete option on one node type, with what it needs and how fast it is.

    Attributes:
        gpu_capacity_bytes: memory of a rank's share of its GPU; 0 on CPUs.
        knees: fewest resident blocks that hide copying, for each streamed component.
        corrections: what measurements changed.
    """

    degrees: Degrees
    node: NodeType
    execution: Execution
    placements: tuple[Placement, ...]
    moments: Moments
    times: Times
    gpu_capacity_bytes: int
    spans_nodes: bool
    knees: Mapping[str, int]
    corrections: tuple[Correction, ...]

    def label(self) -> str:
        """Short text for rejected options."""
        parts = [f"{p.component.name}={residency_text(p)}{_rank_text(p)}" for p in self.placements]
        if self.execution.decoding is Decoding.TILES:
            parts.append("decoding in tiles")
        return f"{self.degrees.label()}, {', '.join(parts)}"


@dataclass(frozen=True, slots=True)
class Excess:
    """Why a candidate does not fit, and by what factor.

    Attributes:
        resource: what there is too little of.
        needed_bytes: what there would have to be of it, headroom included.
    """

    option: str
    reason: str
    ratio: float
    resource: Literal["GPU memory", "host memory"]
    needed_bytes: int


class Site:
    """Where options are evaluated: some degrees on one node type, with what is the same for all of them there."""

    def __init__(self, degrees: Degrees, node: NodeType, context: PlanContext) -> None:
        self.degrees = degrees
        self.node = node
        self.context = context
        on_gpus = context.device == "cuda"
        capacity = node.gpu_memory_bytes if on_gpus else 0
        self.gpu_capacity_bytes = capacity // degrees.num_ranks if context.request.share_gpu else capacity
        self.execution = choose_execution(
            context.request,
            device=context.device,
            sequence_degree=degrees.sequence,
            denoisers_by_parts=_asks_for_parts(context),
        )
        self.setting = Setting(
            checkpoint=context.checkpoint,
            workload=context.workload,
            degrees=degrees,
            dtype=context.dtype,
            device=context.device,
            gpu=find_gpu(node.gpu_type) if node.gpu_type and on_gpus else None,
            ranks_per_node=ranks_per_node(degrees, node, context),
            execution=self.execution,
        )
        self.calibration = Calibration(
            context.comparisons, gpu_type=node.gpu_type if on_gpus else None, execution=self.execution
        )

    def peak_of(self, placements: tuple[Placement, ...]) -> int:
        """Device bytes of the fullest rank, corrected by measurements."""
        peaks = self.setting.device_peaks(placements)
        return max(self.calibration.correct_peaks(peaks, placements, self.degrees))


def evaluate(assignment: Mapping[str, Residency], site: Site) -> Candidate:
    """Places the components, decides what depends on their peak, and predicts the result, corrected by measurements."""
    degrees, context, setting, calibration = site.degrees, site.context, site.setting, site.calibration
    placements = tuple(_place(position, assignment[position.item.name], degrees, context) for position in context.order)
    placements = _choose_shard_units(_choose_ranks(placements, site), site)
    knees: Mapping[str, int] = {}
    times = setting.times(placements)
    if context.device == "cuda" and any(p.residency is Residency.LAYERWISE for p in placements):
        knees = times.knees
        placements = choose_resident_blocks(
            placements,
            request=context.request,
            budget_bytes=site.gpu_capacity_bytes - gpu_headroom_bytes(site.gpu_capacity_bytes),
            dtype=context.dtype,
            peak_of=site.peak_of,
            knee_of=lambda placement: knees.get(placement.component.name, 0),
        )
        times = setting.times(placements)
    moments, memory_correction = calibration.correct_memory(setting.trace(placements), placements, degrees)
    times, step_correction = calibration.correct_times(times, placements, degrees, num_steps=context.workload.num_steps)
    return Candidate(
        degrees=degrees,
        node=site.node,
        execution=site.execution,
        placements=placements,
        moments=moments,
        times=times,
        gpu_capacity_bytes=site.gpu_capacity_bytes,
        spans_nodes=setting.spans_nodes,
        knees=knees,
        corrections=tuple(c for c in (memory_correction, step_correction) if c is not None),
    )


def _choose_ranks(placements: tuple[Placement, ...], site: Site) -> tuple[Placement, ...]:
    """Puts whole components where the request states, and encoders where that lowers the peak."""
    context, num_ranks = site.context, site.degrees.num_ranks
    placements = stated_ranks(placements, context.request.component_ranks)
    if context.device != "cuda" or num_ranks == 1:
        return placements
    wishes = context.request.component_ranks
    return spread_encoders(placements, num_ranks=num_ranks, wishes=wishes, peak_of=site.peak_of)


def _asks_for_parts(context: PlanContext) -> bool:
    """Whether the request states that a denoiser is sharded by parts."""
    denoisers = {c.name for c in context.checkpoint.components if c.kind is ComponentKind.DENOISER}
    stated = context.request.residency.items()
    return any(name in denoisers and choice.shard_by is ShardUnit.PARTS for name, choice in stated)


def _choose_shard_units(placements: tuple[Placement, ...], site: Site) -> tuple[Placement, ...]:
    """Shards by blocks where that fits, else by parts: those need less memory, and more calls.

    Mode `memory` takes parts at once; what is stated is kept. A compiled denoiser is sharded by blocks.
    """
    wishes = site.context.request.residency
    is_compiled = site.execution.compile is Compilation.BLOCKS
    free = [
        p.component.name
        for p in placements
        if p.residency is Residency.SHARDED
        and ((wish := wishes.get(p.component.name)) is None or wish.shard_by is None)
        and not (is_compiled and p.component.kind is ComponentKind.DENOISER)
        and _parts_save(p, site.context.dtype)
    ]
    if not free or site.context.device != "cuda":
        return placements
    budget = site.gpu_capacity_bytes - gpu_headroom_bytes(site.gpu_capacity_bytes)
    if site.context.request.mode is not Mode.MEMORY and site.peak_of(placements) <= budget:
        return placements
    return tuple(replace(p, shard_by=ShardUnit.PARTS) if p.component.name in free else p for p in placements)


def _parts_save(placement: Placement, dtype: str) -> bool:
    sizes = placement.component.placed(dtype)
    return (sizes.largest_part, sizes.largest_rest_part) != (sizes.largest_block, sizes.rest)


def _place(position: LoadPosition, residency: Residency, degrees: Degrees, context: PlanContext) -> Placement:
    component = context.checkpoint.find(position.item.name)
    assert component is not None
    explicit = context.request.residency.get(component.name)
    k = explicit.num_resident_blocks if explicit is not None else None
    # What runs every step is on every rank; what the leader's pipeline calls itself stays with it, unless sharded.
    on_all = runs_every_step(component.kind) or residency is Residency.SHARDED
    return Placement(
        component=component,
        residency=residency,
        ranks=tuple(range(degrees.num_ranks)) if on_all else (0,),
        num_resident_blocks=k or 0,
        prefetch_depth=context.request.prefetch_depth or DEFAULT_PREFETCH_DEPTH,
        shard_by=(explicit.shard_by if explicit is not None else None) or ShardUnit.BLOCKS,
    )


def find_excess(candidate: Candidate) -> Excess | None:
    """Why a candidate does not fit, with the numbers; None if it does."""
    if candidate.gpu_capacity_bytes:
        budget = candidate.gpu_capacity_bytes - gpu_headroom_bytes(candidate.gpu_capacity_bytes)
        peak = max(candidate.moments.gpu_peak_bytes)
        if peak > budget:
            stage = next(m.stage for m in candidate.moments.timeline if max(m.gpu_bytes) == peak)
            reason = f"needs {format_gib(peak)} GiB a GPU ({stage}), {format_gib(budget)} available after headroom"
            ratio = peak / max(1, budget)
            needed = capacity_for(peak, headroom=gpu_headroom_bytes)
            return Excess(candidate.label(), reason, ratio, "GPU memory", needed)
    host_budget = candidate.node.host_memory_bytes - host_headroom_bytes(candidate.node.host_memory_bytes)
    host_peak = candidate.moments.host_peak_bytes
    if host_peak > host_budget:
        reason = (
            f"needs {format_gib(host_peak)} GiB of host memory a node, "
            f"{format_gib(host_budget)} available after headroom"
        )
        needed = capacity_for(host_peak, headroom=host_headroom_bytes)
        return Excess(candidate.label(), reason, host_peak / max(1, host_budget), "host memory", needed)
    return None


def capacity_for(peak_bytes: int, *, headroom: Callable[[int], int]) -> int:
    """The smallest capacity, in whole GiB, that leaves `peak_bytes` beside its headroom (which grows more slowly)."""

    def suffices(gib: int) -> bool:
        return gib * GIB - headroom(gib * GIB) >= peak_bytes

    lowest = highest = max(1, -(-peak_bytes // GIB))
    while not suffices(highest):
        highest *= 2
    return GIB * bisect.bisect_left(range(highest + 1), True, lo=lowest, key=suffices)


def residency_text(placement: Placement) -> str:
    """`layerwise:12`, `sharded:parts`, `offload`."""
    if placement.residency is Residency.LAYERWISE:
        return f"layerwise:{placement.num_resident_blocks}"
    if placement.residency is Residency.SHARDED and placement.shard_by is ShardUnit.PARTS:
        return f"sharded:{placement.shard_by}"
    return placement.residency.value


def _rank_text(placement: Placement) -> str:
    moved = is_whole(placement) and placement.ranks != (0,)
    return f"@{placement.ranks[0]}" if moved else ""


def format_gib(num_bytes: int) -> str:
    """`12.3`, without the unit."""
    return f"{num_bytes / GIB:.1f}"
