"""Residency `offload`: a whole component waits in host memory and is on the device for its stage only.

One flat host buffer and one copy a component. A component stays in until another one is called, so that a prompt and
its negative are encoded with one copy; before a component that is always there runs, `evict_others` sends it out.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from workers.sharding import is_sharded
from workers.stream_engine import HostMemory
from workers.stream_layout import StreamingRefusedError, plan_whole

logger = logging.getLogger(__name__)
CALLED_METHODS = ("encode", "decode", "get_text_features", "get_image_features")


class Offloads:
    """All offloaded components of a rank: at most one of them is on the device.

    Args:
        device: where they run.
        host: their buffers; pinned where they feed a GPU.
    """

    def __init__(self, device: torch.device, host: HostMemory | None = None) -> None:
        self._device = device
        self._host = host or HostMemory(pin=device.type == "cuda")
        self._present: _Offloaded | None = None

    def add(self, module: nn.Module) -> None:
        """Offloads a module, in place; it must be on the CPU.

        Raises:
            StreamingRefusedError: FSDP manages it, or its tensors are quantized.
            HostMemoryError: over budget, or pinning failed.
        """
        if is_sharded(module):
            raise StreamingRefusedError(f"{type(module).__name__} is sharded by FSDP: offload it or shard it, not both")
        offloaded = _Offloaded(module, self._host, self._device)
        self._host.pin_all()
        enter = functools.partial(self._enter, offloaded)
        module._compiled_call_impl = _preceded_by(enter, module._compiled_call_impl or module._call_impl)
        for name in CALLED_METHODS:
            if hasattr(module, name):
                object.__setattr__(module, name, _preceded_by(enter, getattr(module, name)))
        _report_device(module, self._device)

    def evict_others(self, module: nn.Module | None = None) -> None:
        """Before `module` runs: what else is in goes back, and its device memory is free."""
        if self._present is not None and self._present.module is not module:
            self._present.leave()
            self._present = None

    def _enter(self, offloaded: "_Offloaded") -> None:
        if self._present is not offloaded:
            self.evict_others(offloaded.module)
            offloaded.enter()
            self._present = offloaded


class _Offloaded:
    """One component: its flat host buffer, and the device copy while it is in."""

    def __init__(self, module: nn.Module, host: HostMemory, device: torch.device) -> None:
        self.module = module
        self._layout = plan_whole(module)
        self._flat = host.take(self._layout.num_bytes)
        self._layout.fill(self._flat)
        self._host_views = self._layout.views(self._flat)
        self._layout.point_at(self._host_views)
        self._device = device
        module.requires_grad_(False)

    def enter(self) -> None:
        on_device: Tensor = torch.empty_like(self._flat, device=self._device)
        on_device.copy_(self._flat, non_blocking=True)
        self._layout.point_at(self._layout.views(on_device))

    def leave(self) -> None:
        self._layout.point_at(self._host_views)


def _preceded_by(before: Callable[[], None], inner: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(inner)
    def call(*arguments: Any, **keywords: Any) -> Any:
        before()
        return inner(*arguments, **keywords)

    return call


def _report_device(module: nn.Module, device: torch.device) -> None:
    """Pipelines ask a component where its inputs belong: on the device, wherever its weights are just now."""
    original = type(module)
    module.__class__ = type(
        original.__name__, (original,), {"device": property(lambda _: device), "__module__": original.__module__}
    )
