"""The options that are tried: degrees, and residencies a component, explicit choices first."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from planner.checkpoint import Checkpoint, Component
from planner.cluster import NodeType
from planner.costs import uses_guidance
from planner.degrees import Degrees, has_explicit_degrees, resolve_degrees
from planner.errors import PlanRequestError
from planner.incompatibilities import Situation, find_incompatibility
from planner.kinds import runs_every_step
from planner.plan import ComponentKind, Mode, PlanRequest, Residency
from planner.sequence import check_sequence, split_instead

MAX_AUTOMATIC_FSDP = 8
"""Ranks of a group that the planner chooses by itself; more must be asked for."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A residency that a component cannot have, and why."""

    component: str
    residency: Residency
    reason: str


@dataclass(frozen=True, slots=True)
class Options:
    """Residencies that each component may have under some degrees, the preferred first; and those refused."""

    by_component: Mapping[str, tuple[Residency, ...]]
    refused: tuple[Refusal, ...]


def check_request(checkpoint: Checkpoint, request: PlanRequest) -> None:
    """Refuses choices that contradict the checkpoint or one another.

    Raises:
        PlanRequestError: an unknown component, a choice that is also forbidden, or k that does not fit the blocks.
    """
    names = [component.name for component in checkpoint.components]
    for name in [*request.residency, *request.forbid, *request.component_ranks]:
        if name not in names:
            raise PlanRequestError(
                f"{name!r} is no component with weights of {checkpoint.path}; it has {', '.join(names)}"
            )
    for name, choice in request.residency.items():
        if choice.residency in request.forbid.get(name, ()):
            raise PlanRequestError(f"{name}={choice.residency} is both asked for and forbidden; drop one of the two")
        component = checkpoint.find(name)
        assert component is not None
        k = choice.num_resident_blocks
        if k is not None and choice.residency is not Residency.LAYERWISE:
            raise PlanRequestError(f"{name}={choice.residency}:{k}: only layerwise takes a number of resident blocks")
        if k is not None and k > len(component.blocks):
            raise PlanRequestError(
                f"{name}=layerwise:{k}: it has {len(component.blocks)} blocks, at most that many can be resident"
            )
    for name in request.component_ranks:
        _check_is_whole(checkpoint, request, name)


def _check_is_whole(checkpoint: Checkpoint, request: PlanRequest, name: str) -> None:
    component, choice = checkpoint.find(name), request.residency.get(name)
    assert component is not None
    if runs_every_step(component.kind) or (choice and choice.residency is Residency.SHARDED):
        raise PlanRequestError(f"component_ranks: {name} lives on every rank; only whole components can be put on one")


def find_unreachable_rank(request: PlanRequest, degrees: Degrees) -> str | None:
    """Why these degrees cannot hold a component where the request wants it; None if they can."""
    for name, rank in request.component_ranks.items():
        if rank >= degrees.num_ranks:
            return f"{name} is wanted on rank {rank}, the last rank is {degrees.num_ranks - 1}"
    return None


def candidate_degrees(
    checkpoint: Checkpoint, request: PlanRequest, *, device: str, node_types: Sequence[NodeType]
) -> tuple[Degrees, ...]:
    """Degrees to try: what is stated, else one rank on a CPU, else lanes and shards within one node.

    Raises:
        PlanRequestError: stated degrees contradict each other, or the denoisers' tokens cannot be split so.
    """
    if has_explicit_degrees(request):
        stated = resolve_degrees(request)
        check_sequence(checkpoint, degree=stated.sequence)
        return (stated, *split_instead(checkpoint, request, stated, device=device))
    if device == "cpu":
        return (Degrees(1, 1, 1, 1, "one rank: a CPU group has more only when asked"),)
    slots = max((node.num_gpus for node in node_types), default=1)
    lanes = (1, 2) if uses_guidance(checkpoint) else (1,)
    # Without a node of several GPUs, or where those do not suffice, a group may span nodes of the same type.
    total = max((node.num_gpus * node.count for node in node_types), default=1)
    found: list[Degrees] = []
    for cfg, fsdp in itertools.product(lanes, (1, 2, 4, 8, 16, 32)):
        num_ranks = max(cfg, fsdp)
        if num_ranks <= min(slots, MAX_AUTOMATIC_FSDP) or (slots < num_ranks <= total and num_ranks % slots == 0):
            found.append(Degrees(num_ranks, cfg, 1, fsdp, "chosen by the planner"))
    return tuple(found)


def find_options(checkpoint: Checkpoint, request: PlanRequest, *, degrees: Degrees, device: str) -> Options:
    """Residencies that are possible and allowed, a component."""
    allowed: dict[str, tuple[Residency, ...]] = {}
    refused: list[Refusal] = []
    for component in checkpoint.components:
        possible: list[Residency] = []
        for residency in _wanted(component, request, degrees=degrees):
            if residency in request.forbid.get(component.name, ()):
                refused.append(Refusal(component.name, residency, "forbidden by the request"))
                continue
            situation = Situation(component, residency, device, degrees, request.step_cache, checkpoint.pipeline_class)
            found = find_incompatibility(situation)
            if found is None:
                possible.append(residency)
            else:
                refused.append(Refusal(component.name, residency, found.reason))
        allowed[component.name] = tuple(possible)
    return Options(allowed, tuple(refused))


def _wanted(component: Component, request: PlanRequest, *, degrees: Degrees) -> tuple[Residency, ...]:
    explicit = request.residency.get(component.name)
    if explicit is not None:
        return (explicit.residency,)
    if component.kind is ComponentKind.DENOISER and degrees.fsdp > 1:
        # Where no block is found a denoiser stays whole: small, or refused below by its size.
        return (Residency.SHARDED,) if component.blocks else (Residency.SHARDED, Residency.RESIDENT)
    if request.mode is Mode.SPEED:
        return (Residency.RESIDENT,)
    if component.kind is ComponentKind.DENOISER:
        return (Residency.RESIDENT, Residency.LAYERWISE, Residency.OFFLOAD)
    if component.kind is ComponentKind.TEXT_ENCODER:
        return (Residency.RESIDENT, Residency.OFFLOAD, Residency.LAYERWISE)
    return (Residency.RESIDENT, Residency.OFFLOAD)


def assignments(checkpoint: Checkpoint, options: Options) -> Iterator[dict[str, Residency]]:
    """Combinations to try. Components of one kind move together, unless one of them has fewer possibilities.

    The number of combinations stays under 40 whatever the number of components.
    """
    groups: dict[tuple[ComponentKind, tuple[Residency, ...]], list[str]] = {}
    for component in checkpoint.components:
        possible = options.by_component[component.name]
        kind = component.kind
        if kind in {ComponentKind.VAE, ComponentKind.IMAGE_ENCODER}:
            kind = ComponentKind.VAE
        groups.setdefault((kind, possible), []).append(component.name)
    for choice in itertools.product(*(possible for _, possible in groups)):
        yield {name: residency for names, residency in zip(groups.values(), choice, strict=True) for name in names}
