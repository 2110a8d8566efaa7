"""Whole-component offload: a component waits in host memory and comes to the device for its stage.

One flat host buffer and one copy, as for a streamed block. Components of one group take turns: when one is called, the
one that was there before goes. Text encoders and autoencoders run once a request each, so that this costs one copy.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from workers.shard_conditions import model_class_name
from workers.sharding import FORWARD_METHODS, is_sharded
from workers.stream_engine import CopyEngine, HostMemory, make_engine
from workers.stream_layout import (
    BlockLayout,
    FlatPlaces,
    StreamingRefusedError,
    plan_layouts,
    refuse_moves,
    report_device,
    take_over,
)

logger = logging.getLogger(__name__)


class OffloadGroup:
    """Components that share one device's free memory: at most one is there at a time."""

    def __init__(self) -> None:
        self._members: list[OffloadedModule] = []

    def add(self, member: "OffloadedModule") -> None:
        self._members.append(member)

    def make_room(self, coming: "OffloadedModule") -> None:
        """Sends every other member back to host memory."""
        for member in self._members:
            if member is not coming:
                member.unload()

    def unload_all(self) -> None:
        """Sends all back, e.g. before a denoiser needs the memory."""
        for member in self._members:
            member.unload()


class OffloadedModule:
    """The handle of an offloaded component; made by `apply_offload`."""

    def __init__(self, layout: BlockLayout, host: Tensor, engine: CopyEngine, group: OffloadGroup) -> None:
        self._layout = layout
        self._host = host
        self._host_views = layout.views(host)
        self._engine = engine
        self._group = group
        self._buffer: Tensor | None = None
        self._ready: Any = None
        self.num_copies = 0
        group.add(self)

    @property
    def is_loaded(self) -> bool:
        return self._buffer is not None

    @property
    def host_bytes(self) -> int:
        return self._host.nbytes

    def prefetch(self) -> None:
        """Starts the copy, while something else computes; device bytes: the whole component."""
        if self._buffer is not None:
            return
        self._group.make_room(self)
        with torch.inference_mode(False):
            self._buffer = torch.empty(self._host.nbytes, dtype=torch.uint8, device=self._engine.device)
        # The memory may have been in use a moment ago by what was computed last.
        self._ready = self._engine.start_copy(self._buffer, self._host, after=self._engine.mark())
        self._layout.point_at(self._layout.views(self._buffer))
        self.num_copies += 1

    def load(self) -> None:
        """What is computed from now on finds the component on the device."""
        self.prefetch()
        self._engine.wait(self._ready)

    def unload(self) -> None:
        """Back to host memory (nothing is copied: weights do not change); frees the device memory."""
        if self._buffer is not None:
            self._engine.wait(self._ready)  # the memory must not be reused while a prefetch still writes to it
            self._layout.point_at(self._host_views)
            self._buffer = None


def offload_place(*, host: HostMemory) -> Callable[[nn.Module], FlatPlaces]:
    """For `load_component(place=...)`: reads the whole component into one flat host buffer."""

    def place(empty: nn.Module) -> FlatPlaces:
        return FlatPlaces(empty, plan_layouts(empty, [""]), device=torch.device("cpu"), host=host)

    return place


def apply_offload(
    module: nn.Module,
    *,
    device: torch.device,
    group: OffloadGroup,
    forward_methods: Sequence[str] = FORWARD_METHODS,
    host: HostMemory | None = None,
    engine: CopyEngine | None = None,
) -> OffloadedModule:
    """Offloads the module, in place: it comes to the device when it, a child of it, or one of its methods is called.

    Host bytes: the module once. Device bytes: the module while it is loaded, nothing otherwise.

    Args:
        module: on the CPU; nothing is copied if `offload_place` already put it there.
        group: whose members it takes turns with.
        forward_methods: entry points beside the call (`decode`, `encode`, ...); absent ones are skipped.
        host: buffers and budget; without limit if None.

    Raises:
        StreamingRefusedError: the module is sharded, or its tensors are quantized.
        HostMemoryError: over budget, or pinning failed.
    """
    if is_sharded(module):
        raise StreamingRefusedError(f"{model_class_name(module)} is sharded: offload it or shard it")
    host = host or HostMemory(pin=device.type == "cuda")
    module.requires_grad_(False)
    with torch.inference_mode(False):
        (layout,) = plan_layouts(module, [""])
        flat = take_over(layout, host)
    host.pin_all()
    handle = OffloadedModule(layout, flat, engine or make_engine(device), group)
    for part in (module, *module.children()):
        inner = part._compiled_call_impl or part._call_impl
        part.__dict__["_compiled_call_impl"] = torch.compiler.disable(_loading(handle, inner), recursive=False)
    for name in forward_methods:
        if callable(getattr(type(module), name, None)):
            setattr(module, name, _loading(handle, getattr(module, name)))
    refuse_moves(module)
    report_device(module, device)
    logger.info("%s: %.2f GiB wait in host memory", model_class_name(module), handle.host_bytes / 2**30)
    return handle


def _loading(handle: OffloadedModule, inner: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(inner)
    def call(*arguments: Any, **keywords: Any) -> Any:
        handle.load()
        return inner(*arguments, **keywords)

    return call
