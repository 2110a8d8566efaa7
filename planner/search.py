"""The search: tries every option, keeps what fits, chooses by mode, and says why the others fell. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner.assembly import make_plan
from planner.bundles import select_node, smallest_of_each_type
from planner.candidates import (
    assignments,
    candidate_degrees,
    check_request,
    find_options,
    find_unreachable_rank,
)
from planner.checkpoint import Checkpoint, check_loadable
from planner.choice import objective, why_not
from planner.cluster import Cluster, NodeType
from planner.context import PlanContext, resolve_context
from planner.decoding import TILES_ONLY, can_tile
from planner.degrees import Degrees
from planner.errors import PlanRequestError
from planner.evaluation import Candidate, Excess, Site, evaluate, find_excess
from planner.measurements import Measurement
from planner.nodes import equivalence, node_problem, usable_nodes
from planner.plan import ComponentKind, Decoding, Plan, PlanRequest, RejectedOption
from planner.refusal import make_infeasible_error


def plan_group(
    checkpoint: Checkpoint,
    cluster: Cluster,
    request: PlanRequest,
    *,
    measurements: Sequence[Measurement] = (),
) -> Plan:
    """Decides everything about one group of ranks. Pure: the same input gives the same plan, to the byte.

    Args:
        measurements: what running groups measured (see `planner.profiles`); those of other things are passed over.

    Raises:
        InfeasiblePlanError: nothing fits; carries the `InfeasibleReport`.
        PlanRequestError: the request contradicts itself, the checkpoint or the cluster.
        UnsafeCheckpointError: the weights are pickled.
    """
    check_loadable(checkpoint)

    def search(other: PlanRequest) -> _Found:
        check_request(checkpoint, other)
        other = _with_tiles_if_needed(checkpoint, other)
        context = resolve_context(checkpoint, cluster, other, measurements=measurements)
        nodes = usable_nodes(cluster, device=context.device)
        found = _search(context, nodes)
        if found.chosen is not None or other.decoding != "auto" or not _can_tile(checkpoint):
            return found
        # Tiles change the picture a little, so they are for what does not fit otherwise.
        in_tiles = other.model_copy(update={"decoding": Decoding.TILES})
        tiled = _search(replace(context, request=in_tiles), nodes)
        return replace(tiled, rejected=found.rejected | tiled.rejected)

    found = search(request)
    context, rejected = found.context, found.rejected
    if found.chosen is None:
        raise make_infeasible_error(
            context, tuple(rejected.values()), found.closest, plan_for=lambda other: search(other).chosen
        )
    return make_plan(found.chosen, context, cluster, tuple(rejected.values()), others=found.others)


def _with_tiles_if_needed(checkpoint: Checkpoint, request: PlanRequest) -> PlanRequest:
    """The request, decoding in tiles where the autoencoder has no other way.

    Raises:
        PlanRequestError: it states that frames are decoded whole.
    """
    name = next((c.class_name for c in checkpoint.components if c.class_name in TILES_ONLY), None)
    if name is None or request.decoding == Decoding.TILES:
        return request
    if request.decoding == Decoding.WHOLE:
        raise PlanRequestError(f"{name} decodes in tiles only: drop decoding={Decoding.WHOLE}")
    return request.model_copy(update={"decoding": Decoding.TILES})


def _can_tile(checkpoint: Checkpoint) -> bool:
    return any(c.kind is ComponentKind.VAE and can_tile(c.class_name) for c in checkpoint.components)


@dataclass(frozen=True, slots=True)
class _Found:
    """The best option, or the one that came closest; and why the others fell, by option.

    `others` are those that fit on the chosen one's ranks, best first.
    """

    context: PlanContext
    chosen: Candidate | None
    closest: Excess | None
    rejected: dict[str, RejectedOption]
    others: tuple[Candidate, ...] = ()


def _search(context: PlanContext, nodes: Sequence[NodeType]) -> _Found:
    checkpoint, request = context.checkpoint, context.request
    rejected: dict[str, RejectedOption] = {}
    feasible: list[Candidate] = []
    closest: Excess | None = None
    for degrees in candidate_degrees(checkpoint, request, device=context.device, node_types=nodes):
        options = find_options(checkpoint, request, degrees=degrees, device=context.device)
        for refusal in options.refused:
            _reject(rejected, f"{degrees.label()}, {refusal.component}={refusal.residency}", refusal.reason)
        if (unreachable := find_unreachable_rank(request, degrees)) is not None:
            _reject(rejected, degrees.label(), unreachable)
            continue
        for node in _distinct_nodes(degrees, nodes, context, rejected):
            site = Site(degrees, node, context)
            for assignment in assignments(checkpoint, options):
                candidate = evaluate(assignment, site)
                excess = find_excess(candidate)
                if excess is None:
                    feasible.append(candidate)
                    continue
                if closest is None or excess.ratio < closest.ratio:
                    closest = excess
                _reject(rejected, candidate.label(), excess.reason)
    if not feasible:
        return _Found(context, None, closest, rejected)
    chosen = min(feasible, key=lambda candidate: objective(candidate, request.mode))
    for candidate in feasible:
        if candidate.label() != chosen.label():
            _reject(rejected, candidate.label(), why_not(candidate, chosen, request.mode))
    others = [c for c in feasible if (c.degrees, c.node) == (chosen.degrees, chosen.node)]
    others.sort(key=lambda candidate: objective(candidate, request.mode))
    return _Found(context, chosen, closest, rejected, tuple(others))


def _distinct_nodes(
    degrees: Degrees, nodes: Sequence[NodeType], context: PlanContext, rejected: dict[str, RejectedOption]
) -> list[NodeType]:
    """Node types that can hold the group: one of those that are the same to it, the one with the most memory.

    Whatever fits a node fits the same node with more memory, and is no slower there; so the search does not grow with
    the sizes of memory in the cluster.
    """
    largest: dict[tuple[object, ...], list[NodeType]] = {}
    others = smallest_of_each_type(nodes)
    for node in nodes:
        problem = node_problem(degrees, node, context) or select_node(node, others).problem
        if problem is not None:
            _reject(rejected, f"{degrees.label()} on {node.name}", problem)
            continue
        rivals = largest.setdefault(equivalence(degrees, node, context), [])
        if not any(_has_as_much(rival, node) for rival in rivals):
            rivals[:] = [rival for rival in rivals if not _has_as_much(node, rival)] + [node]
    return [node for rivals in largest.values() for node in rivals]


def _has_as_much(node: NodeType, other: NodeType) -> bool:
    return node.gpu_memory_bytes >= other.gpu_memory_bytes and node.host_memory_bytes >= other.host_memory_bytes


def _reject(rejected: dict[str, RejectedOption], option: str, reason: str) -> None:
    if option not in rejected:
        rejected[option] = RejectedOption(option=option, reason=reason)
