"""The search: tries every option, keeps what fits, chooses by mode, and says why the others fell. Pure."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner.candidates import assignments, candidate_degrees, check_request, find_options
from planner.checkpoint import Checkpoint, Component, check_loadable
from planner.cluster import Cluster, NodeType, cluster_to_json
from planner.costs import Workload, resolve_workload
from planner.degrees import Degrees
from planner.errors import InfeasiblePlanError, PlanRequestError
from planner.hardware import find_gpu
from planner.load_order import LoadItem, LoadPosition, order_components
from planner.memory import Moments, Placement, gpu_headroom_bytes, host_headroom_bytes, trace_memory
from planner.plan import (
    ComponentKind,
    ComponentPlan,
    GroupPlan,
    InfeasibleReport,
    MemoryPlan,
    Mode,
    Plan,
    PlanRequest,
    RejectedOption,
    Residency,
)
from planner.residents import choose_resident_blocks
from planner.times import Times, predict_times

GIB = 2**30
COORDINATOR_CPUS = 0.1
GPU_RANK_CPUS = 0.1
CPU_RANK_CPUS = 1.0
MIN_CPU_RANK_CPUS = 0.25
SPARE_CPUS = 0.5
"""Left on a node for the ingress and Ray's own actors when ranks share its CPUs."""
DEFAULT_PREFETCH_DEPTH = 1


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One complete option on one node type, with what it needs and how fast it is."""

    degrees: Degrees
    node: NodeType
    placements: tuple[Placement, ...]
    moments: Moments
    times: Times
    gpu_capacity_bytes: int
    spans_nodes: bool

    def label(self) -> str:
        parts = [f"{p.component.name}={_residency_text(p)}" for p in self.placements]
        return f"{self.degrees.label()}, {', '.join(parts)}"


@dataclass(frozen=True, slots=True)
class _Excess:
    """Why a candidate does not fit, and by what factor."""

    option: str
    reason: str
    ratio: float


@dataclass(frozen=True, slots=True)
class _Context:
    checkpoint: Checkpoint
    request: PlanRequest
    workload: Workload
    device: str
    dtype: str
    order: tuple[LoadPosition, ...]


def plan_group(checkpoint: Checkpoint, cluster: Cluster, request: PlanRequest) -> Plan:
    """Decides everything about one group of ranks. Pure: the same input gives the same plan, to the byte.

    Raises:
        InfeasiblePlanError: nothing fits; carries the `InfeasibleReport`.
        PlanRequestError: the request contradicts itself, the checkpoint or the cluster.
        UnsafeCheckpointError: the weights are pickled.
    """
    check_loadable(checkpoint)
    check_request(checkpoint, request)
    context = _resolve(checkpoint, cluster, request)
    rejected: dict[str, RejectedOption] = {}
    feasible: list[_Candidate] = []
    closest: _Excess | None = None
    nodes = _usable_nodes(cluster, device=context.device)
    for degrees in candidate_degrees(checkpoint, request, device=context.device, node_types=nodes):
        options = find_options(checkpoint, request, degrees=degrees, device=context.device)
        for refusal in options.refused:
            _reject(rejected, f"{degrees.label()}, {refusal.component}={refusal.residency}", refusal.reason)
        tried: set[tuple[object, ...]] = set()
        for node in nodes:
            problem = _node_problem(degrees, node, context)
            if problem is not None:
                _reject(rejected, f"{degrees.label()} on {node.name}", problem)
                continue
            if (key := _equivalence(degrees, node, context)) in tried:
                continue
            tried.add(key)
            for assignment in assignments(checkpoint, options):
                candidate = _evaluate(assignment, degrees, node, context)
                excess = _excess(candidate)
                if excess is None:
                    feasible.append(candidate)
                    continue
                if closest is None or excess.ratio < closest.ratio:
                    closest = excess
                _reject(rejected, candidate.label(), excess.reason)
    if not feasible:
        raise _infeasible(context, tuple(rejected.values()), closest)
    chosen = min(feasible, key=lambda candidate: _objective(candidate, request.mode))
    for candidate in feasible:
        if candidate.label() != chosen.label():
            _reject(rejected, candidate.label(), _why_not(candidate, chosen, request.mode))
    return _make_plan(chosen, context, cluster, tuple(rejected.values()))


def _resolve(checkpoint: Checkpoint, cluster: Cluster, request: PlanRequest) -> _Context:
    device = request.device if request.device != "auto" else ("cuda" if cluster.has_gpus else "cpu")
    if device == "cuda" and not cluster.has_gpus:
        raise PlanRequestError(
            f"device cuda is asked for, and no node has a GPU ({cluster.source}); use device cpu or auto"
        )
    if request.share_gpu and device == "cpu":
        raise PlanRequestError(
            "share_gpu puts several ranks on one GPU, and the device is cpu; leave one of the two out"
        )
    items = [LoadItem(c.name, c.kind, c.payload_bytes, c.index_position) for c in checkpoint.components]
    return _Context(
        checkpoint=checkpoint,
        request=request,
        workload=resolve_workload(checkpoint, request),
        device=device,
        dtype=_resolve_dtype(checkpoint, request, device=device),
        order=order_components(items),
    )


def _resolve_dtype(checkpoint: Checkpoint, request: PlanRequest, *, device: str) -> str:
    if request.dtype != "auto":
        return request.dtype
    if device == "cpu":
        return "float32"
    denoisers = [c for c in checkpoint.components if c.kind is ComponentKind.DENOISER]
    stored = denoisers[0].dtype_bytes if denoisers else {}
    main = max(stored, key=lambda name: stored[name], default="BF16")
    return "float16" if main == "F16" else "bfloat16"


def _usable_nodes(cluster: Cluster, *, device: str) -> tuple[NodeType, ...]:
    """Node types that may hold ranks; equal ones are joined, so that the search does not grow with the cluster."""
    joined: dict[tuple[object, ...], NodeType] = {}
    for node in cluster.node_types:
        if device == "cuda" and not node.num_gpus:
            continue
        key = (node.num_cpus, node.num_gpus, node.gpu_type, node.gpu_memory_bytes, node.host_memory_bytes)
        known = joined.get(key)
        joined[key] = replace(known, count=known.count + node.count) if known else node
    return tuple(joined.values())


def _cpus_per_rank(degrees: Degrees, node: NodeType, context: _Context) -> float:
    """CPUs of a rank's bundle: as stated, else one on CPUs, or a smaller share where one node then holds the group."""
    if context.request.cpus_per_rank is not None:
        return context.request.cpus_per_rank
    if context.device == "cuda":
        return GPU_RANK_CPUS
    left = node.num_cpus - COORDINATOR_CPUS - SPARE_CPUS
    share = math.floor(100 * left / degrees.num_ranks) / 100
    return share if MIN_CPU_RANK_CPUS <= share < CPU_RANK_CPUS else CPU_RANK_CPUS


def _ranks_per_node(degrees: Degrees, node: NodeType, context: _Context) -> int:
    """Ranks that one node of this type can hold, beside the coordinator."""
    by_cpu = int((node.num_cpus - COORDINATOR_CPUS) / _cpus_per_rank(degrees, node, context) + 1e-9)
    if context.device == "cpu":
        return by_cpu
    return by_cpu if context.request.share_gpu else min(by_cpu, node.num_gpus)


def _node_problem(degrees: Degrees, node: NodeType, context: _Context) -> str | None:
    per_node = _ranks_per_node(degrees, node, context)
    if per_node < 1:
        cpus = _cpus_per_rank(degrees, node, context)
        return f"a rank needs {cpus:g} CPUs and the coordinator {COORDINATOR_CPUS:g}, the node has {node.num_cpus:g}"
    total = per_node if context.request.share_gpu else per_node * node.count
    if degrees.num_ranks > total:
        return f"{degrees.num_ranks} ranks are needed, {node.count} node(s) of this type hold {per_node} each"
    return None


def _equivalence(degrees: Degrees, node: NodeType, context: _Context) -> tuple[object, ...]:
    """What a group can see of its nodes: two types with the same key give the same candidates, the first is taken."""
    ranks_on_node = min(degrees.num_ranks, _ranks_per_node(degrees, node, context))
    cpus = _cpus_per_rank(degrees, node, context)
    return (ranks_on_node, cpus, node.gpu_type, node.gpu_memory_bytes, node.host_memory_bytes)


def _evaluate(assignment: dict[str, Residency], degrees: Degrees, node: NodeType, context: _Context) -> _Candidate:
    per_node = _ranks_per_node(degrees, node, context)
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
    return _Candidate(degrees, node, placements, trace(placements), times(placements), capacity, spans)


def _place(position: LoadPosition, residency: Residency, degrees: Degrees, context: _Context) -> Placement:
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


def _excess(candidate: _Candidate) -> _Excess | None:
    """Why a candidate does not fit, with the numbers; None if it does."""
    if candidate.gpu_capacity_bytes:
        budget = candidate.gpu_capacity_bytes - gpu_headroom_bytes(candidate.gpu_capacity_bytes)
        peak = max(candidate.moments.gpu_peak_bytes)
        if peak > budget:
            stage = next(m.stage for m in candidate.moments.timeline if max(m.gpu_bytes) == peak)
            reason = f"needs {_gib(peak)} GiB a GPU ({stage}), {_gib(budget)} available after headroom"
            return _Excess(candidate.label(), reason, peak / max(1, budget))
    host_budget = candidate.node.host_memory_bytes - host_headroom_bytes(candidate.node.host_memory_bytes)
    host_peak = candidate.moments.host_peak_bytes
    if host_peak > host_budget:
        reason = f"needs {_gib(host_peak)} GiB of host memory a node, {_gib(host_budget)} available after headroom"
        return _Excess(candidate.label(), reason, host_peak / max(1, host_budget))
    return None


def _objective(candidate: _Candidate, mode: Mode) -> tuple[object, ...]:
    # Host memory breaks ties on CPUs, where no time is known and no GPU is used.
    peak = max(candidate.moments.gpu_peak_bytes)
    size = (candidate.spans_nodes, candidate.degrees.num_ranks)
    seconds = round(candidate.times.ranking_s, 6)
    num_moving = sum(p.residency is not Residency.RESIDENT for p in candidate.placements)
    tail = (candidate.moments.host_peak_bytes, candidate.node.name, candidate.label())
    if mode is Mode.MEMORY:
        return (peak, seconds, *size, num_moving, *tail)
    return (seconds, *size, num_moving, peak, *tail)


def _why_not(candidate: _Candidate, chosen: _Candidate, mode: Mode) -> str:
    peak, best = max(candidate.moments.gpu_peak_bytes), max(chosen.moments.gpu_peak_bytes)
    if mode is Mode.MEMORY and peak > best:
        return f"fits, but peaks at {_gib(peak)} GiB a GPU against {_gib(best)}"
    slower, fastest = candidate.times.ranking_s, chosen.times.ranking_s
    if round(slower, 6) > round(fastest, 6):
        return f"fits, but a request takes {slower:.3g} s against {fastest:.3g} s"
    if candidate.degrees.num_ranks > chosen.degrees.num_ranks:
        ranks, enough = candidate.degrees.num_ranks, chosen.degrees.num_ranks
        return f"fits, but takes {ranks} ranks for the same time, {enough} are enough"
    return f"fits at the same time, with {_gib(peak)} GiB a GPU against {_gib(best)}"


def _reject(rejected: dict[str, RejectedOption], option: str, reason: str) -> None:
    if option not in rejected:
        rejected[option] = RejectedOption(option=option, reason=reason)


def _infeasible(context: _Context, rejected: Sequence[RejectedOption], closest: _Excess | None) -> InfeasiblePlanError:
    checkpoint, request = context.checkpoint, context.request
    reason = f"the closest, {closest.option}, {closest.reason}" if closest else _first_reason(rejected)
    explicit = explicit_choices(request)
    named = f" The explicit choices {', '.join(explicit)} leave nothing else." if explicit else ""
    message = (
        f"no plan fits for {checkpoint.path} ({checkpoint.pipeline_class}, {_gib(checkpoint.payload_bytes)} GiB of "
        f"weights) in mode {request.mode}: {reason}.{named} Ways out: {'; '.join(_ways_out(context))}."
    )
    report = InfeasibleReport(
        checkpoint=checkpoint.path,
        pipeline_class=checkpoint.pipeline_class,
        mode=request.mode,
        payload_bytes=checkpoint.payload_bytes,
        message=message,
        rejected=tuple(rejected),
    )
    return InfeasiblePlanError(message, report.model_dump_json())


def explicit_choices(request: PlanRequest) -> list[str]:
    """The request's explicit choices as a user writes them."""
    stated = [
        f"{name}={getattr(request, name)}"
        for name in ("num_ranks", "cfg_degree", "sequence_degree", "fsdp_degree")
        if getattr(request, name) is not None
    ]
    for name, choice in request.residency.items():
        k = "" if choice.num_resident_blocks is None else f":{choice.num_resident_blocks}"
        stated.append(f"{name}={choice.residency}{k}")
    stated += [f"no {residency} of {name}" for name, residencies in request.forbid.items() for residency in residencies]
    return stated


def _first_reason(rejected: Sequence[RejectedOption]) -> str:
    nodes = [entry for entry in rejected if " on " in entry.option]
    first = (nodes or list(rejected) or [RejectedOption(option="any option", reason="no node can hold a rank")])[0]
    return f"{first.option}: {first.reason}"


def _ways_out(context: _Context) -> list[str]:
    request = context.request
    ways: list[str] = []
    if context.device == "cuda":
        if request.mode is not Mode.MEMORY:
            ways.append("mode memory")
        ways.append(
            "GPUs with more memory" if request.num_ranks or request.fsdp_degree else "more GPUs a node, or larger ones"
        )
        ways.append("a smaller size, fewer frames or a smaller batch")
    else:
        ways += ["nodes with more memory and CPUs", "fewer ranks, or dtype bfloat16"]
    if explicit_choices(request):
        ways.insert(0, "dropping one of the explicit choices")
    return ways


def _make_plan(chosen: _Candidate, context: _Context, cluster: Cluster, rejected: Sequence[RejectedOption]) -> Plan:
    checkpoint, request = context.checkpoint, context.request
    num_ranks = chosen.degrees.num_ranks
    host_capacity = chosen.node.host_memory_bytes
    plan = Plan(
        checkpoint=checkpoint.path,
        checkpoint_fingerprint=checkpoint.fingerprint,
        pipeline_class=checkpoint.pipeline_class,
        mode=request.mode,
        device="cuda" if context.device == "cuda" else "cpu",
        dtype=context.dtype,  # type: ignore[arg-type]
        variant=checkpoint.variant,
        payload_bytes=checkpoint.payload_bytes,
        components=tuple(
            _component_plan(p, position, context) for p, position in zip(chosen.placements, context.order, strict=True)
        ),
        group=GroupPlan(
            num_ranks=num_ranks,
            cfg_degree=chosen.degrees.cfg,
            sequence_degree=chosen.degrees.sequence,
            fsdp_degree=chosen.degrees.fsdp,
            bundles=_bundles(chosen, context, cluster),
            strategy="PACK" if chosen.spans_nodes else "STRICT_PACK",
            share_gpu=request.share_gpu,
        ),
        memory=MemoryPlan(
            gpu_peak_bytes=chosen.moments.gpu_peak_bytes,
            gpu_capacity_bytes=(chosen.gpu_capacity_bytes,) * num_ranks,
            host_peak_bytes=chosen.moments.host_peak_bytes,
            host_capacity_bytes=host_capacity,
            timeline=chosen.moments.timeline,
        ),
        predicted=chosen.times.predicted(),
        defaults=checkpoint.defaults,
        rejected=tuple(rejected),
        fingerprint="",
    )
    return plan.model_copy(update={"fingerprint": _fingerprint(plan, cluster, request)})


def _bundles(chosen: _Candidate, context: _Context, cluster: Cluster) -> tuple[dict[str, float], ...]:
    num_ranks = chosen.degrees.num_ranks
    rank = {"CPU": _cpus_per_rank(chosen.degrees, chosen.node, context)}
    if context.device == "cuda":
        rank["GPU"] = 1.0 / num_ranks if context.request.share_gpu else 1.0
        types = {node.gpu_type for node in cluster.node_types if node.num_gpus}
        if len(types) > 1 and chosen.node.gpu_type:
            # Any GPU would satisfy the bundle otherwise, also one with less memory than was planned for.
            rank[f"accelerator_type:{chosen.node.gpu_type}"] = 0.001
    return ({"CPU": COORDINATOR_CPUS}, *(dict(rank) for _ in range(num_ranks)))


def _component_plan(placement: Placement, position: LoadPosition, context: _Context) -> ComponentPlan:
    component = placement.component
    layerwise = placement.residency is Residency.LAYERWISE
    why = "as stated" if component.name in context.request.residency else f"chosen for mode {context.request.mode}"
    return ComponentPlan(
        name=component.name,
        library=component.library,
        class_name=component.class_name,
        kind=component.kind,
        payload_bytes=component.payload_bytes,
        num_parameters=component.num_parameters,
        num_blocks=len(component.blocks),
        block_rule=component.block_rule.describe() if component.block_rule else None,
        residency=placement.residency,
        num_resident_blocks=placement.num_resident_blocks if layerwise else None,
        prefetch_depth=placement.prefetch_depth if layerwise else None,
        ranks=placement.ranks,
        load_order=position.load_order,
        reason=f"loads {position.reason}; {_residency_text(placement)}: {why}",
    )


def _fingerprint(plan: Plan, cluster: Cluster, request: PlanRequest) -> str:
    # The path is left out: the same checkpoint elsewhere gives the same fingerprint.
    content = plan.model_dump(mode="json", exclude={"fingerprint", "checkpoint"})
    text = json.dumps([content, cluster_to_json(cluster), request.model_dump(mode="json")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _residency_text(placement: Placement) -> str:
    if placement.residency is Residency.LAYERWISE:
        return f"layerwise:{placement.num_resident_blocks}"
    return placement.residency.value


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f}"
