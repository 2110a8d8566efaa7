"""How many blocks of a layerwise component stay on the device."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from planner.memory import Placement
from planner.plan import ComponentKind, Mode, PlanRequest, Residency

PeakOf = Callable[[tuple[Placement, ...]], int]
KneeOf = Callable[[Placement], int]


def choose_resident_blocks(
    placements: tuple[Placement, ...],
    *,
    request: PlanRequest,
    budget_bytes: int,
    dtype: str,
    peak_of: PeakOf,
    knee_of: KneeOf,
) -> tuple[Placement, ...]:
    """Sets the number of resident blocks of each layerwise component.

    An explicit `layerwise:k` is k; an explicit `layerwise` is the knee; `memory` mode takes 0. Otherwise every denoiser
    gets its knee, the fewest blocks for which copying hides under compute, and then all of them get one more in turn
    while memory allows; text encoders work once a request, and get what is left. Where not even the knee fits, as many
    as do.
    """
    chosen = list(placements)
    automatic: list[int] = []
    for i, placement in enumerate(chosen):
        if placement.residency is not Residency.LAYERWISE:
            continue
        explicit = request.residency.get(placement.component.name)
        if explicit is not None:
            k = explicit.num_resident_blocks
            chosen[i] = replace(placement, num_resident_blocks=knee_of(placement) if k is None else k)
        elif request.mode is Mode.MEMORY:
            chosen[i] = replace(placement, num_resident_blocks=0)
        else:
            automatic.append(i)
    denoisers = [i for i in automatic if chosen[i].component.kind is ComponentKind.DENOISER]
    others = [i for i in automatic if i not in denoisers]
    knees = {i: knee_of(chosen[i]) for i in automatic}
    blocks = {i: len(chosen[i].component.blocks) for i in automatic}
    for members in (denoisers, others):
        for limits in (knees, blocks):
            _fill(chosen, members, limits, budget_bytes=budget_bytes, dtype=dtype, peak_of=peak_of)
    return tuple(chosen)


def _fill(
    chosen: list[Placement],
    members: Sequence[int],
    limits: dict[int, int],
    *,
    budget_bytes: int,
    dtype: str,
    peak_of: PeakOf,
) -> None:
    """Raises the members' resident blocks evenly up to their limits, while the peak stays within the budget."""
    growing = [i for i in members if chosen[i].num_resident_blocks < limits[i]]
    slack = budget_bytes - peak_of(tuple(chosen)) if growing else 0
    if slack <= 0:
        return
    # A safe start, with every block counted as the largest; then one by one.
    largest = {i: chosen[i].component.placed(dtype).largest_block for i in growing}
    each = slack // sum(largest.values())
    for i in growing:
        chosen[i] = _grow(chosen[i], min(each, limits[i] - chosen[i].num_resident_blocks))
    while growing:
        for i in list(growing):
            before = chosen[i]
            if before.num_resident_blocks < limits[i]:
                chosen[i] = _grow(before, 1)
                if peak_of(tuple(chosen)) <= budget_bytes:
                    continue
                chosen[i] = before
            growing.remove(i)


def _grow(placement: Placement, count: int) -> Placement:
    return replace(placement, num_resident_blocks=placement.num_resident_blocks + count)
