"""The order in which components load, fixed before anything does (REQUIREMENTS 2)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from planner.plan import ComponentKind

_KIND_ORDER = {kind: position for position, kind in enumerate(ComponentKind)}
_NUMBERED = re.compile(r"_(\d+)$")


@dataclass(frozen=True, slots=True)
class LoadItem:
    """One component to be ranked.

    Attributes:
        name: the name that it is loaded as; an alias, where there is one, not the index's name.
        kind: kind of the component of that name.
        payload_bytes: bytes of its tensors; None if they cannot be inferred, which counts as zero.
        index_position: position in `model_index.json`.
    """

    name: str
    kind: ComponentKind
    payload_bytes: int | None
    index_position: int


@dataclass(frozen=True, slots=True)
class LoadPosition:
    """A component's place in the order, from 0, and the criterion that put it there."""

    item: LoadItem
    load_order: int
    reason: str


def variant_number(name: str) -> int:
    """The number at a component name's end: 2 for `transformer_2`, 1 for `transformer`."""
    match = _NUMBERED.search(name)
    return int(match.group(1)) if match else 1


def order_components(items: Sequence[LoadItem]) -> tuple[LoadPosition, ...]:
    """Ranks components: larger payload, then kind, then higher variant number, then position in the index."""
    ranked = sorted(items, key=_rank)
    return tuple(
        LoadPosition(item, position, _reason(ranked[position - 1] if position else None, item))
        for position, item in enumerate(ranked)
    )


def _rank(item: LoadItem) -> tuple[int, int, int, int]:
    return (-(item.payload_bytes or 0), _KIND_ORDER[item.kind], -variant_number(item.name), item.index_position)


def _reason(before: LoadItem | None, item: LoadItem) -> str:
    size = "size unknown, counted as 0" if item.payload_bytes is None else f"{item.payload_bytes} bytes"
    if before is None:
        return f"first: the largest payload ({size})"
    first, second = _rank(before), _rank(item)
    if first[0] != second[0]:
        return f"after {before.name}: smaller payload ({size})"
    if first[1] != second[1]:
        return f"after {before.name}: equal payload ({size}), {before.kind} loads before {item.kind}"
    if first[2] != second[2]:
        return f"after {before.name}: equal payload and kind, the higher numbered variant loads first"
    return f"after {before.name}: equal payload, kind and variant, later in the index"
