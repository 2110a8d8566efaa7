"""One option on one node type: where its components lie, what that needs, how long it takes, and whether it fits."""

from dataclasses import dataclass

from planner.checkpoint import Component
from planner.cluster import NodeType
from planner.context import PlanContext
from planner.degrees import Degrees
from planner.hardware import find_gpu
from planner.load_order import LoadPosition
from planner.memory import Moments, Placement, gpu_headroom_bytes, host_headroom_bytes, trace_memory
from planner.nodes import ranks_per_node
from planner.plan import ComponentKind, Residency
from planner.residents import choose_resident_blocks
from planner.times import Times, predict_times

GIB = 2**30
DEFAULT_PREFETCH_DEPTH = 1


@dataclass(frozen=True, slots=True)
class Candidate:
    """One complete option on one node type, with what it needs and how fast it is."""

    degrees: Degrees
    node: NodeType
    placements: tuple[Placement, ...]
    moments: Moments
    times: Times
    gpu_capacity_bytes: int
    spans_nodes: bool

    def label(self) -> str:
        parts = [f"{p.component.name}={residency_text(p)}" for p in self.placements]
        return f"{self.degrees.label()}, {', '.join(parts)}"


@dataclass(frozen=True, slots=True)
class Excess:
    """Why a candidate does not fit, and by what factor."""

    option: str
    reason: str
    ratio: float


def evaluate(assignment: dict[str, Residency], degrees: Degrees, node: NodeType, context: PlanContext) -> Candidate:
    per_node = ranks_per_node(degrees, node, context)
    capacity = node.gpu_memory_bytes if context.device == "cuda" else 0
    if context.request.share_gpu:
        capacity //= degrees.num_ranks
    spans = degrees.num_ranks > per_node
    placements = tuple(_place(position, assignment[position.item.name], degrees, context) for position in context.order)
    gpu = find_gpu(node.gpu_type) if node.gpu_type and context.device == "cuda" else None

    def trace(current: tuple[Placement, ...]) -> Moments:
        return trace_memory(
            current,
            checkpoint=context.checkpoint,
            workload=context.workload,
            degrees=degrees,
            dtype=context.dtype,
            device=context.device,
            ranks_on_node=min(per_node, degrees.num_ranks),
        )

    def times(current: tuple[Placement, ...]) -> Times:
        return predict_times(
            current,
            checkpoint=context.checkpoint,
            workload=context.workload,
            degrees=degrees,
            dtype=context.dtype,
            gpu=gpu,
            spans_nodes=spans,
            device=context.device,
        )

    if context.device == "cuda" and any(p.residency is Residency.LAYERWISE for p in placements):
        budget = capacity - gpu_headroom_bytes(capacity)
        placements = choose_resident_blocks(
            placements,
            request=context.request,
            budget_bytes=budget,
            dtype=context.dtype,
            peak_of=lambda current: max(trace(current).gpu_peak_bytes),
            knee_of=lambda placement: times(placements).knees.get(placement.component.name, 0),
        )
    return Candidate(degrees, node, placements, trace(placements), times(placements), capacity, spans)


def _place(position: LoadPosition, residency: Residency, degrees: Degrees, context: PlanContext) -> Placement:
    component = context.checkpoint.find(position.item.name)
    assert component is not None
    explicit = context.request.residency.get(component.name)
    k = explicit.num_resident_blocks if explicit is not None else None
    on_all = component.kind is ComponentKind.DENOISER or component.kind is ComponentKind.OTHER
    if residency is Residency.SHARDED:
        on_all = True
    return Placement(
        component=component,
        residency=residency,
        ranks=tuple(range(degrees.num_ranks)) if on_all and _feeds_denoiser(component, residency) else (0,),
        num_resident_blocks=k or 0,
        prefetch_depth=context.request.prefetch_depth or DEFAULT_PREFETCH_DEPTH,
    )


def _feeds_denoiser(component: Component, residency: Residency) -> bool:
    """Denoisers run on every rank; what the leader's pipeline calls itself stays with the leader, unless sharded."""
    return component.kind is ComponentKind.DENOISER or residency is Residency.SHARDED


def find_excess(candidate: Candidate) -> Excess | None:
    """Why a candidate does not fit, with the numbers; None if it does."""
    if candidate.gpu_capacity_bytes:
        budget = candidate.gpu_capacity_bytes - gpu_headroom_bytes(candidate.gpu_capacity_bytes)
        peak = max(candidate.moments.gpu_peak_bytes)
        if peak > budget:
            stage = next(m.stage for m in candidate.moments.timeline if max(m.gpu_bytes) == peak)
            reason = f"needs {format_gib(peak)} GiB a GPU ({stage}), {format_gib(budget)} available after headroom"
            return Excess(candidate.label(), reason, peak / max(1, budget))
    host_budget = candidate.node.host_memory_bytes - host_headroom_bytes(candidate.node.host_memory_bytes)
    host_peak = candidate.moments.host_peak_bytes
    if host_peak > host_budget:
        reason = (
            f"needs {format_gib(host_peak)} GiB of host memory a node, "
            f"{format_gib(host_budget)} available after headroom"
        )
        return Excess(candidate.label(), reason, host_peak / max(1, host_budget))
    return None


def residency_text(placement: Placement) -> str:
    if placement.residency is Residency.LAYERWISE:
        return f"layerwise:{placement.num_resident_blocks}"
    return placement.residency.value


def format_gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f}"
