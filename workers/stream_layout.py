"""How a block's tensors lie in one flat buffer, so that one copy moves the whole block.

A layout is made once a block, from its parameters and buffers; host buffer and device buffers share it. Offsets are
aligned for vectorised kernels. Tensors that other parts of the model use as well are left out: they stay on the device.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workers.errors import WorkerError
from workers.shard_conditions import model_class_name
from workers.stream_engine import HostMemory

ALIGNMENT_BYTES = 256


class StreamingRefusedError(WorkerError):
    """This module cannot be streamed or offloaded; the message says what to choose instead."""


@dataclass(frozen=True, slots=True)
class FlatEntry:
    """One tensor's place in the flat buffer, in bytes; the strides are kept (they are dense)."""

    tensor: Tensor
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize

    def view(self, flat: Tensor) -> Tensor:
        """The tensor in `flat`: (bytes,) uint8, any device; no copy."""
        part = flat[self.offset : self.offset + self.num_bytes].view(self.dtype)
        return part.as_strided(self.shape, self.stride)


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """All streamed tensors of one block.

    Attributes:
        name: the block's qualified name.
        num_bytes: length of the flat buffer.
    """

    name: str
    entries: tuple[FlatEntry, ...]
    num_bytes: int

    def fill(self, flat: Tensor) -> None:
        """Copies the tensors' values into `flat`, except what lies there already."""
        for entry in self.entries:
            target = entry.view(flat)
            if target.data_ptr() != entry.tensor.data_ptr():
                target.copy_(entry.tensor)

    def views(self, flat: Tensor) -> tuple[Tensor, ...]:
        return tuple(entry.view(flat) for entry in self.entries)

    def point_at(self, views: Sequence[Tensor]) -> None:
        """Lets the tensors show the given views; the tensor objects stay, so that ties and compiled code hold."""
        for entry, view in zip(self.entries, views, strict=True):
            entry.tensor.data = view


class FlatPlaces:
    """For loading: the tensors of layouts lie in flat host buffers, all others on the device.

    Host bytes, taken at once: the layouts'.

    Raises:
        HostMemoryError: it would exceed the budget.
    """

    def __init__(
        self, empty: nn.Module, layouts: Iterable[BlockLayout], *, device: torch.device, host: HostMemory
    ) -> None:
        self._device = device
        self._host = host
        places: dict[int, Tensor] = {}
        for layout in layouts:
            views = layout.views(host.take(layout.num_bytes))
            places.update({id(entry.tensor): view for entry, view in zip(layout.entries, views, strict=True)})
        states = [*empty.named_parameters(remove_duplicate=False), *empty.named_buffers(remove_duplicate=False)]
        self._views = {name: places[id(tensor)] for name, tensor in states if id(tensor) in places}

    def allocate(self, name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """The tensor's view of its flat buffer, else memory on the device."""
        view = self._views.get(name)
        return view if view is not None else torch.empty(shape, dtype=dtype, device=self._device)

    def needs_reading(self, name: str) -> bool:
        """False for what a peer reads into the shared buffers."""
        return name not in self._views or not self._host.is_filled_by_peer


def plan_layouts(
    model: nn.Module, block_names: Iterable[str], *, borrowed: Iterable[str] = ()
) -> tuple[BlockLayout, ...]:
    """Plans the flat layout of each block. Tensors may be on meta; no memory is taken.

    Args:
        borrowed: parts of blocks that the model calls past the block; they are left out.

    Raises:
        StreamingRefusedError: a tensor is a quantized or otherwise special kind.
    """
    shared = _shared_tensors(model, tuple(block_names))
    shared |= {id(tensor) for name in borrowed for _, tensor in named_tensors(model.get_submodule(name))}
    return tuple(_plan_block(name, model.get_submodule(name), shared) for name in block_names)


def take_over(layout: BlockLayout, host: HostMemory) -> Tensor:
    """The layout's flat host buffer, filled; the tensors point into it from now on.

    Nothing is copied where the tensors lie there already; otherwise each tensor's own memory goes afterwards.

    Raises:
        HostMemoryError: it would exceed the budget.
    """
    flat = host.find(layout.entries[0].tensor, layout.num_bytes) if layout.entries else None
    if flat is None:
        flat = host.take(layout.num_bytes)
    layout.fill(flat)
    layout.point_at(layout.views(flat))
    return flat


def refuse_moves(module: nn.Module) -> None:
    """Makes `to`, `cuda`, `half`, ... raise: the module's tensors are views that the streaming sets."""

    def refuse(*_arguments: Any, **_keywords: Any) -> nn.Module:
        raise StreamingRefusedError(
            f"{model_class_name(module)} is streamed or offloaded: it cannot be moved or cast; state device and dtype "
            f"when it is loaded"
        )

    module._apply = refuse  # type: ignore[method-assign]


def report_device(module: nn.Module, device: torch.device) -> None:
    """Lets `module.device` name the device that it computes on; pipelines send their inputs there.

    The libraries look at the first parameter, which may wait on the host. Done by a subclass of the same name.
    """
    original = type(module)
    if isinstance(getattr(original, "device", None), property):
        attributes = {"device": property(lambda _self: device), "__module__": original.__module__}
        module.__class__ = type(original.__name__, (original,), attributes)


def named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters and buffers, each object once."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def _plan_block(name: str, block: nn.Module, shared: frozenset[int]) -> BlockLayout:
    tensors = []
    for tensor_name, tensor in named_tensors(block):
        refuse_special(f"{name}.{tensor_name}", tensor)
        if id(tensor) not in shared and tensor.numel():
            tensors.append(tensor)
    return lay_out(name, tensors)


def lay_out(name: str, tensors: Iterable[Tensor]) -> BlockLayout:
    """The tensors one after the other in one flat range; what is not dense is laid row-major."""
    entries: list[FlatEntry] = []
    offset = 0
    for tensor in tensors:
        entry = FlatEntry(tensor, offset, tensor.shape, _dense_stride(tensor), tensor.dtype)
        entries.append(entry)
        offset += -(-entry.num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return BlockLayout(name, tuple(entries), offset)


def refuse_special(name: str, tensor: Tensor) -> None:
    """Raises StreamingRefusedError for tensor subclasses: their values are more than one flat range of bytes."""
    if type(tensor) not in (Tensor, nn.Parameter) or type(tensor.data) is not Tensor or tensor.is_quantized:
        raise StreamingRefusedError(
            f"{name} is a {type(tensor.data).__name__} ({type(tensor).__name__}), which cannot be copied as flat "
            f"bytes: such weights are neither streamed nor sharded; choose resident for this component"
        )


def _shared_tensors(model: nn.Module, block_names: tuple[str, ...]) -> frozenset[int]:
    """Ids of tensors that are used in more than one block, or in a block and outside."""
    users: Counter[int] = Counter()
    inside: set[str] = set()
    for name in block_names:
        block = model.get_submodule(name)
        users.update({id(tensor) for _, tensor in named_tensors(block)})
        inside.update(part for part, _ in block.named_modules(prefix=name, remove_duplicate=False))
    outside = {
        id(tensor)
        for name, module in model.named_modules(remove_duplicate=False)
        if name not in inside
        for tensor in [*module._parameters.values(), *module._buffers.values()]
        if tensor is not None
    }
    return frozenset(key for key, count in users.items() if count > 1 or key in outside)


def _dense_stride(tensor: Tensor) -> tuple[int, ...]:
    """The tensor's strides if they fill its range without gaps (contiguous, transposed, channels last), else plain."""
    expected = 1
    for size, stride in sorted(zip(tensor.shape, tensor.stride(), strict=True), key=lambda pair: (pair[1], pair[0])):
        if size != 1:
            if stride != expected:
                return tuple(torch.empty(tensor.shape, device="meta").stride())
            expected *= size
    return tensor.stride()
