"""The search: tries every option, keeps what fits, chooses by mode, and says why the others fell. Pure."""

from collections.abc import Sequence

from planner.assembly import make_plan
from planner.candidates import (
    assignments,
    candidate_degrees,
    check_request,
    find_options,
    find_unreachable_rank,
)
from planner.checkpoint import Checkpoint, check_loadable
from planner.choice import objective, why_not
from planner.cluster import Cluster
from planner.component_ranks import COMPONENT_PLACEMENT, ComponentPlacement
from planner.context import resolve_context
from planner.evaluation import Candidate, Excess, evaluate, find_excess
from planner.measurements import Measurement
from planner.nodes import equivalence, node_problem, usable_nodes
from planner.plan import Plan, PlanRequest, RejectedOption
from planner.refusal import make_infeasible_error


def plan_group(
    checkpoint: Checkpoint,
    cluster: Cluster,
    request: PlanRequest,
    *,
    measurements: Sequence[Measurement] = (),
    component_placement: ComponentPlacement = COMPONENT_PLACEMENT,
) -> Plan:
    """Decides everything about one group of ranks. Pure: the same input gives the same plan, to the byte.

    Args:
        measurements: what running groups measured (see `planner.profiles`); those of other things are passed over.
        component_placement: what may be done with components outside the denoiser.

    Raises:
        InfeasiblePlanError: nothing fits; carries the `InfeasibleReport`.
        PlanRequestError: the request contradicts itself, the checkpoint or the cluster.
        UnsafeCheckpointError: the weights are pickled.
    """
    check_loadable(checkpoint)
    check_request(checkpoint, request, component_placement=component_placement)
    context = resolve_context(
        checkpoint, cluster, request, measurements=measurements, component_placement=component_placement
    )
    rejected: dict[str, RejectedOption] = {}
    feasible: list[Candidate] = []
    closest: Excess | None = None
    nodes = usable_nodes(cluster, device=context.device)
    for degrees in candidate_degrees(checkpoint, request, device=context.device, node_types=nodes):
        options = find_options(checkpoint, request, degrees=degrees, device=context.device)
        for refusal in options.refused:
            _reject(rejected, f"{degrees.label()}, {refusal.component}={refusal.residency}", refusal.reason)
        if (unreachable := find_unreachable_rank(request, degrees)) is not None:
            _reject(rejected, degrees.label(), unreachable)
            continue
        tried: set[tuple[object, ...]] = set()
        for node in nodes:
            problem = node_problem(degrees, node, context)
            if problem is not None:
                _reject(rejected, f"{degrees.label()} on {node.name}", problem)
                continue
            if (key := equivalence(degrees, node, context)) in tried:
                continue
            tried.add(key)
            for assignment in assignments(checkpoint, options):
                candidate = evaluate(assignment, degrees, node, context)
                excess = find_excess(candidate)
                if excess is None:
                    feasible.append(candidate)
                    continue
                if closest is None or excess.ratio < closest.ratio:
                    closest = excess
                _reject(rejected, candidate.label(), excess.reason)
    if not feasible:
        raise make_infeasible_error(context, tuple(rejected.values()), closest)
    chosen = min(feasible, key=lambda candidate: objective(candidate, request.mode))
    for candidate in feasible:
        if candidate.label() != chosen.label():
            _reject(rejected, candidate.label(), why_not(candidate, chosen, request.mode))
    return make_plan(chosen, context, cluster, tuple(rejected.values()))


def _reject(rejected: dict[str, RejectedOption], option: str, reason: str) -> None:
    if option not in rejected:
        rejected[option] = RejectedOption(option=option, reason=reason)
