"""A module without weights in place of a component that lies on another rank.

It is the real class with the real configuration, so that a pipeline may ask for its type, attributes, dtype and device.
Its calls, those of its parts and its methods go to where the weights are.
"""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from planner.plan import Plan
from workers.errors import LoadError, WorkerError
from workers.shard_conditions import model_class_name
from workers.sharding import FORWARD_METHODS
from workers.stream_build import Library, NotOneToOneError, build_empty, component_class, map_keys
from workers.stream_files import find_weight_files, read_headers
from workers.stream_layout import report_device

logger = logging.getLogger(__name__)

REMOTE_METHODS = (*FORWARD_METHODS, "generate")
"""What pipelines call of encoders and autoencoders besides the module itself and its parts."""


class RemoteComponentError(WorkerError):
    """Something tried to move or cast a component that lies on another rank."""


def build_stand_ins(plan: Plan, *, device: torch.device, call: Callable[..., Any]) -> dict[str, nn.Module]:
    """The stand-ins of all components that the plan puts on other ranks than the leader."""
    remote = plan.ranks_of_remote_components()
    return {
        component.name: build_stand_in(
            Path(plan.checkpoint) / component.name,
            name=component.name,
            library=component.library,
            class_name=component.class_name,
            dtype=getattr(torch, plan.dtype),
            device=device,
            call=call,
            variant=plan.variant,
        )
        for component in plan.components
        if component.name in remote
    }


def build_stand_in(
    folder: Path,
    *,
    name: str,
    library: Library,
    class_name: str,
    dtype: torch.dtype,
    device: torch.device,
    call: Callable[..., Any],
    variant: str | None = None,
) -> nn.Module:
    """Builds the stand-in of the component in `folder`. Device bytes: its buffers (statistics of a batch norm).

    Args:
        name: the component's; entries are named by it (`vae.decode`).
        device: this rank's; the stand-in says that it computes there, since arguments and results are.
        call: carries a call out: `call(entry, *args, **kwargs)`.

    Raises:
        LoadError: the checkpoint's folder does not fit the class.
    """
    module = build_empty(component_class(library, class_name), folder, dtype=dtype)
    _load_buffers(module, folder, library=library, variant=variant, device=device)
    for path, part in module.named_modules():
        part._compiled_call_impl = functools.partial(call, f"{name}.{path}" if path else name)
    for method in REMOTE_METHODS:
        if callable(getattr(type(module), method, None)):
            setattr(module, method, functools.partial(call, f"{name}.{method}"))
    _refuse_changes(module, name)
    report_device(module, device)
    return module


def is_stand_in(module: nn.Module) -> bool:
    """Whether the module's weights are somewhere else."""
    return any(parameter.is_meta for parameter in module.parameters())


def _load_buffers(
    module: nn.Module, folder: Path, *, library: Library, variant: str | None, device: torch.device
) -> None:
    """Gives the buffers that the checkpoint holds their values: pipelines read such statistics themselves."""
    files = find_weight_files(folder, library=library, variant=variant)
    stored = read_headers(files.files)
    try:
        keys = map_keys(module, stored, indexed=files.indexed)
    except NotOneToOneError as reason:
        logger.info("%s: its buffers keep their initial values: %s", folder, reason)
        keys = {}
    for buffer_name, buffer in list(module.named_buffers()):
        owner_name, _, attribute = buffer_name.rpartition(".")
        value = buffer
        if buffer_name in keys:
            entry = stored[keys[buffer_name]]
            with safe_open(entry.file, framework="pt") as file:
                value = file.get_tensor(keys[buffer_name]).to(buffer.dtype)
            if value.shape != buffer.shape:
                raise LoadError(f"{entry.file}: {buffer_name} has shape {list(value.shape)}, not {list(buffer.shape)}")
        module.get_submodule(owner_name)._buffers[attribute] = value.to(device)


def _refuse_changes(module: nn.Module, name: str) -> None:
    """Makes `to`, `half`, ... raise unless they change no dtype: the weights elsewhere would not follow."""
    dtypes = {tensor.dtype for tensor in [*module.parameters(), *module.buffers()]}

    def apply(change: Callable[[torch.Tensor], torch.Tensor], _recurse: bool = True) -> nn.Module:
        for dtype in dtypes:
            changed = change(torch.empty(0, dtype=dtype)).dtype
            if changed != dtype:
                raise RemoteComponentError(
                    f"{name} ({model_class_name(module)}) lies on another rank: it cannot be cast from {dtype} to "
                    f"{changed}; state the dtype in the plan"
                )
        return module

    module._apply = apply  # type: ignore[method-assign]
