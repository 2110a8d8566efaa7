"""The answer when nothing fits: the closest option with its numbers, the explicit choices, and the ways out."""

from collections.abc import Callable, Iterator, Sequence

from planner.context import PlanContext
from planner.errors import InfeasiblePlanError, PlanRequestError
from planner.evaluation import GIB, Candidate, Excess, format_gib
from planner.plan import Decoding, InfeasibleReport, Mode, PlanRequest, RejectedOption, ResidencyChoice

_DEGREES = ("num_ranks", "cfg_degree", "sequence_degree", "fsdp_degree")
_SINGLE_CHOICES = (*_DEGREES, "step_cache", "cpus_per_rank")
MAX_TRIED = 4
"""Relaxed requests that are planned for, so that a way out that is named is one."""
PlanFor = Callable[[PlanRequest], Candidate | None]


def make_infeasible_error(
    context: PlanContext, rejected: Sequence[RejectedOption], closest: Excess | None, *, plan_for: PlanFor
) -> InfeasiblePlanError:
    """The error for a search without a result; it carries the serialized `InfeasibleReport`.

    Args:
        closest: the option that came closest to fitting.
        plan_for: the best option for another request; None if nothing fits.
    """
    checkpoint, request = context.checkpoint, context.request
    reason = f"the closest, {closest.option}, {closest.reason}" if closest else _first_reason(rejected)
    explicit = explicit_choices(request)
    named = f" The explicit choices {', '.join(explicit)} leave nothing else." if explicit else ""
    message = (
        f"no plan fits for {checkpoint.path} ({checkpoint.pipeline_class}, "
        f"{format_gib(checkpoint.payload_bytes)} GiB of weights) in mode {request.mode}: {reason}.{named} "
        f"Ways out: {'; '.join(_ways_out(context, closest, plan_for))}."
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
    stated = [f"{name}={getattr(request, name)}" for name in _SINGLE_CHOICES if getattr(request, name) is not None]
    stated += [choice_text(name, choice) for name, choice in request.residency.items()]
    stated += [f"{name} on rank {rank}" for name, rank in request.component_ranks.items()]
    stated += [f"decoding={Decoding.WHOLE}"] if request.decoding == Decoding.WHOLE else []
    stated += [f"no {residency} of {name}" for name, residencies in request.forbid.items() for residency in residencies]
    return stated


def choice_text(name: str, choice: ResidencyChoice) -> str:
    """`transformer=layerwise:12`, as on the command line."""
    k = "" if choice.num_resident_blocks is None else f":{choice.num_resident_blocks}"
    return f"{name}={choice.residency}{k}"


def _first_reason(rejected: Sequence[RejectedOption]) -> str:
    nodes = [entry for entry in rejected if " on " in entry.option]
    first = (nodes or list(rejected) or [RejectedOption(option="any option", reason="no node can hold a rank")])[0]
    return f"{first.option}: {first.reason}"


def _ways_out(context: PlanContext, closest: Excess | None, plan_for: PlanFor) -> list[str]:
    """At least two; those that name a choice to drop or a mode were planned for and fit."""
    ways = [f"{what} ({_size_of(candidate)})" for what, candidate in _working_relaxations(context, plan_for)]
    if closest is not None:
        where = "GPUs of" if closest.resource == "GPU memory" else "nodes with host memory of"
        ways.append(f"{where} at least {closest.needed_bytes // GIB} GiB, for the closest option")
    if closest is None:
        ways += ["fewer ranks", "nodes with more GPUs" if context.device == "cuda" else "nodes with more CPUs"]
    elif context.device == "cuda":
        ways.append("a smaller size, fewer frames or a smaller batch")
        ways.append("more GPUs a node")
    else:
        ways += ["nodes with more memory and CPUs", "fewer ranks, or dtype bfloat16"]
    return ways[: max(2, len(ways) - 1)]


def _working_relaxations(context: PlanContext, plan_for: PlanFor) -> Iterator[tuple[str, Candidate]]:
    for what, other in list(_relaxations(context.request))[:MAX_TRIED]:
        try:
            candidate = plan_for(other)
        except PlanRequestError:
            continue  # what is left contradicts itself: no way out
        if candidate is not None:
            yield what, candidate


def _relaxations(request: PlanRequest) -> Iterator[tuple[str, PlanRequest]]:
    """The request with one explicit choice dropped, or all degrees, or in `memory` mode."""
    for name, choice in request.residency.items():
        others = {other: kept for other, kept in request.residency.items() if other != name}
        yield f"drop {choice_text(name, choice)}", request.model_copy(update={"residency": others})
    degrees = [name for name in _DEGREES if getattr(request, name) is not None]
    if len(degrees) > 1:
        yield f"drop {' and '.join(degrees)}", request.model_copy(update=dict.fromkeys(degrees))
    for field in _SINGLE_CHOICES:
        if (value := getattr(request, field)) is not None:
            yield f"drop {field}={value}", request.model_copy(update={field: None})
    for name in request.forbid:
        others_allowed = {other: kept for other, kept in request.forbid.items() if other != name}
        yield f"allow more for {name}", request.model_copy(update={"forbid": others_allowed})
    if request.decoding == Decoding.WHOLE:
        yield f"drop decoding={Decoding.WHOLE}", request.model_copy(update={"decoding": "auto"})
    if request.mode is not Mode.MEMORY:
        yield "mode memory", request.model_copy(update={"mode": Mode.MEMORY})


def _size_of(candidate: Candidate) -> str:
    if not candidate.gpu_capacity_bytes:
        return f"needs {format_gib(candidate.moments.host_peak_bytes)} GiB a node"
    return f"needs {format_gib(max(candidate.moments.gpu_peak_bytes))} GiB a GPU"
