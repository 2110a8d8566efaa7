"""Layerwise residency: blocks wait in host memory and are copied to the device just before they run.

Each block is one flat host buffer and one copy. `prefetch_depth + 1` device buffers form a ring: while one block
computes, the next ones are copied, and after the last block come the first ones of the next step. Some blocks may stay
on the device, spread evenly, so that the copies of the others hide behind their computation.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from workers.around_calls import put_around_call
from workers.shard_conditions import BlockBoundaries, model_class_name, resolve_boundaries
from workers.sharding import is_sharded
from workers.stream_engine import CopyEngine, HostMemory, make_engine
from workers.stream_layout import (
    BlockLayout,
    FlatPlaces,
    StreamingRefusedError,
    named_tensors,
    plan_layouts,
    refuse_moves,
    refuse_special,
    report_device,
    take_over,
)

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class StreamCounts:
    """What the streaming did so far; `misses` are copies that nothing could hide (wrong guess of the next block)."""

    calls: int = 0
    copies: int = 0
    misses: int = 0
    copied_bytes: int = 0


@dataclass(slots=True, eq=False)
class _Slot:
    """One device buffer of the ring: what is in it, when that is there, and when it may be overwritten."""

    number: int
    buffer: Tensor
    block: int | None = None
    ready: Any = None
    free: Any = None
    last_use: int = 0


@dataclass(slots=True, eq=False)
class _Block:
    """One streamed block: its layout, its host buffer, and its tensors' views of the host and of each slot."""

    layout: BlockLayout
    host: Tensor
    host_views: tuple[Tensor, ...]
    slot_views: list[tuple[Tensor, ...]] = field(default_factory=list)


class StreamedModule:
    """The handle of a module whose blocks are streamed; made by `apply_streaming`."""

    def __init__(self, module: nn.Module, blocks: list[_Block], engine: CopyEngine, depth: int) -> None:
        self.module = module
        self.counts = StreamCounts()
        self._blocks = blocks
        self._engine = engine
        self._depth = min(depth, max(len(blocks) - 1, 0))
        self._slots: list[_Slot] = []
        # Registration order is a first guess; what really runs after what is learnt in the first call.
        self._next = [(index + 1) % len(blocks) for index in range(len(blocks))]
        self._last: int | None = None
        self._clock = 0
        self._first = 0
        self._allocate_ring()

    @property
    def ring_bytes(self) -> int:
        """Device bytes of the ring."""
        return sum(slot.buffer.nbytes for slot in self._slots)

    @property
    def host_bytes(self) -> int:
        return sum(block.host.nbytes for block in self._blocks)

    def prefetch(self) -> None:
        """Starts copying the blocks that the next call needs first; call it while something else computes."""
        wanted: list[int] = []
        index = self._first
        while self._blocks and len(wanted) < len(self._slots) and index not in wanted:
            wanted.append(index)
            index = self._next[index]
        self._start_copies(wanted, keep=wanted)

    def enter(self, index: int) -> None:
        """Before block `index` computes: its tensors are on the device, and the next blocks are on their way."""
        self._learn(index)
        slot = self._find(index)
        if slot is None:
            self.counts.misses += 1
            (slot,) = self._start_copies([index], keep=[index])
        self._engine.wait(slot.ready)
        self._clock += 1
        slot.last_use = self._clock
        block = self._blocks[index]
        block.layout.point_at(block.slot_views[slot.number])
        following = self._following(index)
        self._start_copies(following, keep=[index, *following])

    def leave(self, index: int) -> None:
        """After block `index` was launched: its buffer may be overwritten once it has computed."""
        slot = self._find(index)
        if slot is not None:
            slot.free = self._engine.mark()

    def forget(self) -> None:
        """After a call that ended early: the next call starts again with the first block."""
        self._last = None

    def _learn(self, index: int) -> None:
        self.counts.calls += 1
        if self._last is None:
            self._first = index
        else:
            self._next[self._last] = index
        self._last = index

    def _following(self, index: int) -> list[int]:
        following: list[int] = []
        for _ in range(self._depth):
            index = self._next[index]
            if index in following:
                break
            following.append(index)
        return following

    def _find(self, index: int) -> _Slot | None:
        return next((slot for slot in self._slots if slot.block == index), None)

    def _start_copies(self, wanted: list[int], *, keep: list[int]) -> list[_Slot]:
        """Copies the wanted blocks that are not there into the buffers used longest ago, sparing those in `keep`."""
        started = []
        for index in wanted:
            if self._find(index) is not None:
                continue
            spare = [slot for slot in self._slots if slot.block not in keep]
            slot = min(spare, key=lambda slot: slot.last_use)
            self._evict(slot)
            block = self._blocks[index]
            slot.block = index
            slot.ready = self._engine.start_copy(slot.buffer[: block.host.nbytes], block.host, after=slot.free)
            self._clock += 1
            slot.last_use = self._clock
            self.counts.copies += 1
            self.counts.copied_bytes += block.host.nbytes
            started.append(slot)
        return started

    def _evict(self, slot: _Slot) -> None:
        """Points the old block's tensors at host memory, so that a call past the hooks fails instead of lying."""
        if slot.block is not None:
            evicted = self._blocks[slot.block]
            evicted.layout.point_at(evicted.host_views)
            slot.block = None

    def _allocate_ring(self) -> None:
        if not self._blocks:
            return
        largest = max(block.host.nbytes for block in self._blocks)
        for number in range(self._depth + 1):
            slot = _Slot(number, torch.empty(largest, dtype=torch.uint8, device=self._engine.device))
            self._slots.append(slot)
            for block in self._blocks:
                block.slot_views.append(block.layout.views(slot.buffer))


@torch.inference_mode(False)
def apply_streaming(
    module: nn.Module,
    *,
    device: torch.device,
    num_resident_blocks: int = 0,
    prefetch_depth: int = 1,
    boundaries: BlockBoundaries | None = None,
    host: HostMemory | None = None,
    engine: CopyEngine | None = None,
) -> StreamedModule:
    """Streams the module's blocks to the device, in place. Compile blocks before (`block.compile()`), never after.

    Device bytes afterwards: everything outside the blocks, the resident blocks, and `prefetch_depth + 1` times the
    largest streamed block. Host bytes: the streamed blocks once (beside what the module held on the CPU, which is
    freed as it is taken over; nothing is copied if `streaming_place` already put it there).

    Args:
        module: on the CPU, or loaded with `streaming_place`.
        num_resident_blocks: stay on the device, spread evenly.
        prefetch_depth: blocks that are copied ahead.
        host: buffers and budget; without limit if None.
        engine: how copies are made; by the device if None.

    Raises:
        StreamingRefusedError: the module is sharded, or its tensors are quantized.
        HostMemoryError: over budget, or pinning failed.
        LoadError: no block boundary is known.
    """
    if is_sharded(module):
        raise StreamingRefusedError(
            f"{model_class_name(module)} is sharded, and so are its weights: stream it or shard it"
        )
    boundaries = boundaries or resolve_boundaries(module)
    names = boundaries.outermost()
    resident = resident_blocks(len(names), num_resident_blocks)
    streamed = [name for index, name in enumerate(names) if index not in resident]
    host = host or HostMemory(pin=device.type == "cuda")
    module.requires_grad_(False)
    layouts = plan_layouts(module, streamed, borrowed=boundaries.borrowed)
    blocks = [_Block(layout, flat := take_over(layout, host), layout.views(flat)) for layout in layouts]
    _move_rest(module, layouts, device)
    host.pin_all()
    handle = StreamedModule(module, blocks, engine or make_engine(device), prefetch_depth)
    for index, name in enumerate(streamed):
        put_around_call(module.get_submodule(name), handle, index)
    refuse_moves(module)
    report_device(module, device)
    logger.info(
        "%s: %d of %d blocks (%s) streamed, %.2f GiB on the host, ring of %.2f GiB",
        model_class_name(module), len(streamed), len(names), boundaries, handle.host_bytes / 2**30,
        handle.ring_bytes / 2**30,
    )  # fmt: skip
    return handle


def resident_blocks(num_blocks: int, num_resident: int) -> frozenset[int]:
    """Indices of the blocks that stay, spread evenly; all of them if `num_resident` is `num_blocks` or more."""
    count = min(max(num_resident, 0), num_blocks)
    return frozenset(int((position + 0.5) * num_blocks / count) for position in range(count))


def streaming_place(
    *,
    device: torch.device,
    num_resident_blocks: int,
    host: HostMemory,
    boundaries: BlockBoundaries | None = None,
) -> Callable[[nn.Module], FlatPlaces]:
    """For `load_component(place=...)`: reads streamed blocks into their flat host buffers, the rest to the device."""

    def place(empty: nn.Module) -> FlatPlaces:
        found = boundaries or resolve_boundaries(empty)
        names = found.outermost()
        resident = resident_blocks(len(names), num_resident_blocks)
        streamed = [name for index, name in enumerate(names) if index not in resident]
        layouts = plan_layouts(empty, streamed, borrowed=found.borrowed)
        return FlatPlaces(empty, layouts, device=device, host=host)

    return place


def _move_rest(module: nn.Module, layouts: tuple[BlockLayout, ...], device: torch.device) -> None:
    streamed = {id(entry.tensor) for layout in layouts for entry in layout.entries}
    for name, tensor in named_tensors(module):
        refuse_special(name, tensor)
        if id(tensor) not in streamed and tensor.device != device:
            tensor.data = tensor.data.to(device)
