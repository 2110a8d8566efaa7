"""On which rank a component lives that is not part of the denoiser's parallel work: encoders and autoencoders."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from planner.kinds import runs_every_step
from planner.memory import Placement
from planner.plan import ComponentKind, Residency

MIN_SAVING_BYTES = 64 * 2**20
"""A smaller saving is not worth the way between ranks."""
_MOVABLE = frozenset({ComponentKind.TEXT_ENCODER, ComponentKind.IMAGE_ENCODER})


def stated_ranks(placements: tuple[Placement, ...], wishes: Mapping[str, int]) -> tuple[Placement, ...]:
    """Puts components on the ranks that the request states."""
    return tuple(
        replace(p, ranks=(wishes[p.component.name],)) if p.component.name in wishes and is_whole(p) else p
        for p in placements
    )


def spread_encoders(
    placements: tuple[Placement, ...],
    *,
    num_ranks: int,
    wishes: Mapping[str, int],
    peak_of: Callable[[tuple[Placement, ...]], int],
) -> tuple[Placement, ...]:
    """Moves encoders, the heaviest first, off the leader where that lowers the highest peak of any rank.

    The autoencoder stays: what it decodes is wanted on the leader.
    """
    chosen = list(placements)
    for i, placement in enumerate(chosen):  # in load order: larger payloads first
        if placement.component.kind not in _MOVABLE or not is_whole(placement) or placement.component.name in wishes:
            continue
        best = peak_of(tuple(chosen)) - MIN_SAVING_BYTES
        for rank in range(1, num_ranks):
            moved = replace(placement, ranks=(rank,))
            peak = peak_of((*chosen[:i], moved, *chosen[i + 1 :]))
            if peak < best:
                best, chosen[i] = peak, moved
    return tuple(chosen)


def is_whole(placement: Placement) -> bool:
    """True for a component that one rank holds alone."""
    component = placement.component
    return not runs_every_step(component.kind) and placement.residency is not Residency.SHARDED
