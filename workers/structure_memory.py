"""Which structures the other side already has, so that a denoiser's call names its arguments' tree by a number."""

from collections import OrderedDict
from typing import Any

from workers.encoding import Structure, Tree

NUM_STRUCTURES = 256


class SentStructures:
    """The sender's side: the last `NUM_STRUCTURES` structures sent to one peer, least recently used first."""

    def __init__(self, num_slots: int = NUM_STRUCTURES) -> None:
        self._slots: OrderedDict[str, int] = OrderedDict()
        self._num_slots = num_slots

    def entry(self, structure: Structure) -> list[Any]:
        """What a message says about a structure: `[slot]` if the peer has it, else `[slot, tree, layouts]`."""
        slot = self._slots.get(structure.name)
        if slot is not None:
            self._slots.move_to_end(structure.name)
            return [slot]
        slot = len(self._slots) if len(self._slots) < self._num_slots else self._slots.popitem(last=False)[1]
        self._slots[structure.name] = slot
        return [slot, structure.tree, structure.layouts]


class ReceivedStructures:
    """The receiver's side; a slot holds what was sent for it last."""

    def __init__(self) -> None:
        self._structures: dict[int, tuple[Tree, list[list[Any]]]] = {}

    def look_up(self, entry: list[Any]) -> tuple[Tree, list[list[Any]]]:
        """Tree and layouts of an entry of `SentStructures.entry`; `KeyError` for a slot that holds nothing."""
        slot, *structure = entry
        if structure:
            if not 0 <= slot < NUM_STRUCTURES:
                raise KeyError(f"no slot {slot}")
            tree, layouts = structure
            self._structures[slot] = tree, layouts
        return self._structures[slot]
