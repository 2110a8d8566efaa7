"""What a rank may do instead where the system refuses to pin host memory: complete assignments that fit as well."""

from collections.abc import Iterable, Sequence

from planner.memory import Placement, idle_bytes
from planner.plan import Residency, ResidencyChoice

MAX_FALLBACKS = 4


def find_fallbacks(
    chosen: Sequence[Placement], others: Iterable[Sequence[Placement]], *, dtype: str, fsdp: int
) -> tuple[dict[str, ResidencyChoice], ...]:
    """Those of `others` (best first, same ranks) that pin less than `chosen`, as choices by component."""
    limit = _pinned_bytes(chosen, dtype=dtype, fsdp=fsdp)
    found: list[dict[str, ResidencyChoice]] = []
    for placements in others:
        choices = {placement.component.name: _choice(placement) for placement in placements}
        if _pinned_bytes(placements, dtype=dtype, fsdp=fsdp) < limit and choices not in found:
            found.append(choices)
    return tuple(found[:MAX_FALLBACKS])


def _pinned_bytes(placements: Sequence[Placement], *, dtype: str, fsdp: int) -> int:
    return sum(idle_bytes(placement, dtype=dtype, fsdp=fsdp)[1] * len(placement.ranks) for placement in placements)


def _choice(placement: Placement) -> ResidencyChoice:
    is_layerwise = placement.residency is Residency.LAYERWISE
    return ResidencyChoice(
        residency=placement.residency, num_resident_blocks=placement.num_resident_blocks if is_layerwise else None
    )
