"""What a rank may do instead where the system refuses to pin host memory: complete assignments that fit as well."""

from collections.abc import Callable, Iterable, Sequence

from planner.memory import Placement
from planner.plan import Residency, ResidencyChoice

MAX_FALLBACKS = 4


def find_fallbacks(
    chosen: Sequence[Placement],
    others: Iterable[Sequence[Placement]],
    *,
    pinned_bytes_of: Callable[[Sequence[Placement]], int],
) -> tuple[dict[str, ResidencyChoice], ...]:
    """Those of `others` (best first, same ranks) that pin less than `chosen`, as choices by component."""
    limit = pinned_bytes_of(chosen)
    found: list[dict[str, ResidencyChoice]] = []
    for placements in others:
        choices = {placement.component.name: _choice(placement) for placement in placements}
        if pinned_bytes_of(placements) < limit and choices not in found:
            found.append(choices)
    return tuple(found[:MAX_FALLBACKS])


def _choice(placement: Placement) -> ResidencyChoice:
    is_layerwise = placement.residency is Residency.LAYERWISE
    return ResidencyChoice(
        residency=placement.residency,
        num_resident_blocks=placement.num_resident_blocks if is_layerwise else None,
        shard_by=placement.shard_by if placement.residency is Residency.SHARDED else None,
    )
