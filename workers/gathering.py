"""Weights that ranks hold in shares: a unit is gathered from all ranks just before it computes, and dropped after it.

Each unit (a block, or what lies outside all blocks) is one flat range of bytes, cut evenly; a rank holds its part.
One collective brings the whole unit to where it is used, without a further copy, while the unit before it computes. So
a rank holds its share, the unit that computes and the next one.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from workers.stream_layout import ALIGNMENT_BYTES, BlockLayout

# The older name warns where there is the newer one (torch 2.13).
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

ROOT = 0
"""The unit of everything outside the blocks; while it is in use the model is inside a call."""


class ShardedUnit:
    """One unit's share, and the whole of it while it is gathered.

    Args:
        layout: its tensors in the flat range; they show nothing usable until the unit is gathered.
        device: where shares and gathered units lie.
        parked: what the tensors show meanwhile, in the layout's order.
    """

    __slots__ = ("gathered", "layout", "parked", "rank_bytes", "share", "uses", "work")

    def __init__(self, layout: BlockLayout, *, num_ranks: int, device: torch.device, parked: Sequence[Tensor]) -> None:
        self.layout = layout
        self.parked = tuple(parked)
        self.rank_bytes = -(-layout.num_bytes // (num_ranks * ALIGNMENT_BYTES)) * ALIGNMENT_BYTES
        self.share = torch.empty(self.rank_bytes, dtype=torch.uint8, device=device)
        self.gathered: Tensor | None = None
        self.work: Any = None
        self.uses = 0


class GatheredModule:
    """Gathers and drops a module's units around their calls; made by `apply_sharding`.

    Every rank must enter and leave the same units in the same order: each gather is a collective.

    Attributes:
        num_misses: gathers of blocks that nothing could hide: what comes next had been guessed wrong.
    """

    def __init__(self, units: Sequence[ShardedUnit], *, group: dist.ProcessGroup) -> None:
        self.units = tuple(units)
        self.num_misses = 0
        self._group = group
        self._num_ranks = group.size()
        # Registration order is a first guess; what really runs after what is learnt from call to call.
        self._next: list[int | None] = [*range(1, len(self.units)), None]
        self._last: int | None = None
        self._held: list[ShardedUnit] = []  # gathered or on their way

    @property
    def share_bytes(self) -> int:
        """Device bytes of this rank's shares."""
        return sum(unit.share.nbytes for unit in self.units)

    @property
    def gathered_bytes(self) -> int:
        """Device bytes of the units that are whole on this rank now."""
        return sum(unit.gathered.nbytes for unit in self._held if unit.gathered is not None)

    def enter(self, index: int) -> None:
        """Before unit `index` computes: its tensors are whole, and the next unit is on its way."""
        unit = self.units[index]
        unit.uses += 1
        if unit.uses > 1:
            return
        try:
            self._gather(index)
        except BaseException:
            self.leave(index)
            raise

    def leave(self, index: int) -> None:
        """After unit `index` was launched: its memory goes back, in the order of the computation."""
        unit = self.units[index]
        unit.uses -= 1
        if unit.uses:
            return
        self._drop(unit)
        if index == ROOT:  # what was gathered for a block that did not come
            self._drop_all_but(())
            self._last = None

    def _gather(self, index: int) -> None:
        if self._last is not None:
            self._next[self._last] = index
        self._last = index
        unit, following = self.units[index], self._following(index)
        self._drop_all_but((unit, following))
        if unit.gathered is None:
            self.num_misses += index != ROOT
            self._start(unit)
        if following is not None and following.gathered is None:
            self._start(following)
        if unit.work is not None:
            unit.work.wait()
            unit.work = None
        if unit.gathered is not None:
            with torch.inference_mode(False):
                unit.layout.point_at(unit.layout.views(unit.gathered))

    def _following(self, index: int) -> ShardedUnit | None:
        at = self._next[index]
        return None if at is None or self.units[at].uses else self.units[at]

    def _start(self, unit: ShardedUnit) -> None:
        """Starts a gather. It runs beside what is launched from now on, and after what was: so its memory may be one
        that earlier work still reads."""
        if not unit.rank_bytes:
            return
        with torch.inference_mode(False):
            unit.gathered = torch.empty(self._num_ranks * unit.rank_bytes, dtype=torch.uint8, device=unit.share.device)
        self._held.append(unit)
        unit.work = _all_gather(unit.gathered, unit.share, group=self._group, async_op=True)

    def _drop_all_but(self, wanted: Sequence[ShardedUnit | None]) -> None:
        for unit in list(self._held):
            if not unit.uses and unit not in wanted:
                self._drop(unit)

    def _drop(self, unit: ShardedUnit) -> None:
        """Lets go of the whole unit; its tensors show nothing usable, so that a use past its call fails, not lies."""
        if unit.gathered is None:
            return
        if unit.work is not None:  # later work that gets this memory must come after the gather
            unit.work.wait()
            unit.work = None
        unit.layout.point_at(unit.parked)
        unit.gathered = None
        self._held.remove(unit)
