"""The answer when nothing fits: the closest option with its numbers, the explicit choices, and the ways out."""

from collections.abc import Sequence

from planner.context import PlanContext
from planner.errors import InfeasiblePlanError
from planner.evaluation import Excess, format_gib
from planner.plan import InfeasibleReport, Mode, PlanRequest, RejectedOption


def make_infeasible_error(
    context: PlanContext, rejected: Sequence[RejectedOption], closest: Excess | None
) -> InfeasiblePlanError:
    checkpoint, request = context.checkpoint, context.request
    reason = f"the closest, {closest.option}, {closest.reason}" if closest else _first_reason(rejected)
    explicit = explicit_choices(request)
    named = f" The explicit choices {', '.join(explicit)} leave nothing else." if explicit else ""
    message = (
        f"no plan fits for {checkpoint.path} ({checkpoint.pipeline_class}, "
        f"{format_gib(checkpoint.payload_bytes)} GiB of weights) in mode {request.mode}: {reason}.{named} "
        f"Ways out: {'; '.join(_ways_out(context))}."
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


def _ways_out(context: PlanContext) -> list[str]:
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
