"""How many blocks of a layerwise component stay on the device."""

from collections.abc import Callable
from dataclasses import replace

from planner.memory import Placement
from planner.plan import ComponentKind, Mode, PlanRequest, Residency


def choose_resident_blocks(
    placements: tuple[Placement, ...],
    *,
    request: PlanRequest,
    budget_bytes: int,
    dtype: str,
    peak_of: Callable[[tuple[Placement, ...]], int],
    knee_of: Callable[[Placement], int],
) -> tuple[Placement, ...]:
    """Sets the number of resident blocks of each layerwise component.

    An explicit `layerwise:k` is k; an explicit `layerwise` is the knee; `memory` mode takes 0; otherwise as many as fit
    the budget, denoisers first (text encoders work once a request, and get what is left).
    """
    chosen = list(placements)
    order = sorted(range(len(chosen)), key=lambda i: chosen[i].component.kind is not ComponentKind.DENOISER)
    for i in order:
        placement = chosen[i]
        if placement.residency is not Residency.LAYERWISE:
            continue
        explicit = request.residency.get(placement.component.name)
        if explicit is not None:
            k = explicit.num_resident_blocks
            chosen[i] = replace(placement, num_resident_blocks=knee_of(placement) if k is None else k)
        elif request.mode is Mode.MEMORY:
            chosen[i] = replace(placement, num_resident_blocks=0)
    automatic = [
        i for i in order
        if chosen[i].residency is Residency.LAYERWISE
        and chosen[i].component.name not in request.residency
        and request.mode is not Mode.MEMORY
    ]  # fmt: skip
    for i in automatic:
        slack = budget_bytes - peak_of(tuple(chosen))
        if slack <= 0:
            continue
        chosen[i] = _fill(chosen, i, budget_bytes=budget_bytes, slack=slack, dtype=dtype, peak_of=peak_of)
    return tuple(chosen)


def _fill(
    chosen: list[Placement],
    i: int,
    *,
    budget_bytes: int,
    slack: int,
    dtype: str,
    peak_of: Callable[[tuple[Placement, ...]], int],
) -> Placement:
    placement = chosen[i]
    blocks = placement.component.blocks
    largest = max(block.tally.placed_bytes(dtype) for block in blocks)
    k = min(len(blocks), slack // largest)  # A safe start: every block counted as the largest.
    best = replace(placement, num_resident_blocks=k)
    while k < len(blocks):
        more = replace(placement, num_resident_blocks=k + 1)
        if peak_of((*chosen[:i], more, *chosen[i + 1 :])) > budget_bytes:
            break
        k, best = k + 1, more
    return best
