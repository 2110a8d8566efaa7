"""FSDP2 on block boundaries, for inference: one function composes everything in the order that works.

The order (each step was found to break when moved): freeze, lay contiguous, compile blocks (the caller, before), shard
the blocks from the inside out, shard the rest as the root, chain the prefetches, let methods other than `forward`
gather too, keep loading routines, refuse moves.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from workers.errors import WorkerError
from workers.shard_conditions import READ_DIRECTLY, BlockBoundaries, model_class_name, resolve_boundaries

logger = logging.getLogger(__name__)

FORWARD_METHODS = (
    "encode",
    "decode",
    "quant_conv",
    "encode_image",
    "encode_text",
    "get_image_features",
    "get_text_features",
)

MAX_CHAINED_CONTAINERS = 4


class ShardedModuleError(WorkerError):
    """Something tried to move or cast a module that FSDP manages."""


@dataclass(frozen=True, slots=True)
class Sharding:
    """What `apply_sharding` did.

    Attributes:
        boundaries: the blocks, and which rule decided.
        num_shards: ranks that a parameter is split over.
        whole: names of parameters that every rank keeps whole (scalars, weights tied across blocks, and those that
            pipelines read past the model's call).
    """

    boundaries: BlockBoundaries
    num_shards: int
    whole: tuple[str, ...]


def apply_sharding(
    module: nn.Module,
    *,
    mesh: DeviceMesh,
    boundaries: BlockBoundaries | None = None,
    forward_methods: Sequence[str] = FORWARD_METHODS,
    num_prefetched: int = 1,
) -> Sharding:
    """Shards the module's parameters on dimension 0 over the mesh, in place; its parameters become `DTensor`s.

    Every rank of the mesh must call this on an equal module, and must later run each forward call of it, also the ones
    whose result it does not need: each block gathers its weights from all ranks just before it runs and drops them
    after. Parameters may be on meta (fill them with `set_local_shard`) or on the mesh's device.

    Device bytes afterwards: a 1/N share; in a call additionally `1 + num_prefetched` whole blocks and the root's rest.

    Args:
        module: its parameters are frozen here.
        mesh: one dimension.
        boundaries: resolved for the model when None.
        forward_methods: methods beside `forward` that use the root's own parameters; absent ones are skipped.
        num_prefetched: blocks that are gathered while one computes.

    Raises:
        LoadError: no block boundary is known for the model.
        ShardedModuleError: FSDP manages it already.
    """
    if isinstance(module, FSDPModule):
        raise ShardedModuleError(f"{model_class_name(module)} is sharded already; shard a component once")
    boundaries = boundaries or resolve_boundaries(module)
    module.requires_grad_(False)
    _lay_contiguous(module)
    units = (*boundaries.names, *boundaries.borrowed)
    whole = _parameters_kept_whole(module, units)
    originals = {name: dict(parameter.__dict__) for name, parameter in module.named_parameters()}
    _shard_units(module, mesh, units, set(whole.values()))
    blocks = {name: block for name in boundaries.names if isinstance(block := module.get_submodule(name), FSDPModule)}
    _move_rest(module, mesh, whole.values())
    _chain_prefetches(module, blocks, num_prefetched)
    _register_methods(module, forward_methods)
    _restore_attributes(module, originals)
    _refuse_moves(module)
    sharding = Sharding(boundaries, mesh.size(), tuple(sorted(whole)))
    logger.info(
        "%s: %d blocks (%s) sharded over %d ranks, %d parameters whole",
        model_class_name(module), len(blocks), boundaries, mesh.size(), len(whole),
    )  # fmt: skip
    return sharding


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP manages the module's parameters; then nothing else may move or cast it."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


def shard_rows(num_rows: int, *, num_shards: int, shard_rank: int) -> tuple[int, int]:
    """First row and number of rows of dimension 0 that a rank holds, as `torch.chunk`: the last ranks may hold none."""
    size = -(-num_rows // num_shards)
    first = min(shard_rank * size, num_rows)
    return first, min(size, num_rows - first)


def set_local_shard(module: nn.Module, names: Iterable[str], local: Tensor) -> None:
    """Puts this rank's rows into a sharded parameter.

    Args:
        module: the sharded root.
        names: all names of the parameter (several if tied).
        local: (rows of this rank, ...) on the mesh's device; taken over without a copy.
    """
    replacement: nn.Parameter | None = None
    for name in names:
        owner_name, _, attribute = name.rpartition(".")
        owner = module.get_submodule(owner_name)
        before: Tensor | None = owner._parameters[attribute]
        if not isinstance(before, DTensor):
            raise ShardedModuleError(f"{name} is not sharded")
        if replacement is None:
            sharded = DTensor.from_local(
                local,
                before.device_mesh,
                before.placements,
                run_check=False,
                shape=before.shape,
                stride=before.stride(),
            )
            replacement = nn.Parameter(sharded, requires_grad=False)
            replacement.__dict__.update({key: value for key, value in before.__dict__.items() if key[0] != "_"})
        owner._parameters[attribute] = replacement


def find_weight_loader(parameter: Tensor, original: Tensor | None = None) -> Callable[..., Any] | None:
    """The parameter's own loading routine; the original's where the sharded one has none any more."""
    for candidate in (parameter, original):
        loader = getattr(candidate, "weight_loader", None)
        if loader is not None:
            return loader  # type: ignore[no-any-return]
    return None


def load_parameter(module: nn.Module, name: str, weight: Tensor, *, original: Tensor | None = None) -> None:
    """Loads one parameter, by its own `weight_loader` where it has one, sharded or not.

    A loader is given a whole parameter on the weight's device, as without sharding; of that this rank keeps its rows.
    Peak: one whole parameter beside the weight.
    """
    parameter = module.get_parameter(name)
    loader = find_weight_loader(parameter, original)
    target = torch.empty(parameter.shape, dtype=parameter.dtype, device=weight.device)
    if loader is None:
        target.copy_(weight)
    else:
        stand_in = nn.Parameter(target, requires_grad=False)
        stand_in.__dict__.update(original.__dict__ if original is not None else {})
        stand_in.__dict__.update({key: value for key, value in parameter.__dict__.items() if key[0] != "_"})
        loader(stand_in, weight)
        target = stand_in.data
    if not isinstance(parameter, DTensor):
        parameter.data.copy_(target)
        return
    rank = parameter.device_mesh.get_local_rank()
    first, count = shard_rows(parameter.shape[0], num_shards=parameter.device_mesh.size(), shard_rank=rank)
    parameter.to_local().copy_(target[first : first + count])


def _lay_contiguous(module: nn.Module) -> None:
    for parameter in module.parameters():
        if not parameter.is_contiguous():
            parameter.data = parameter.data.contiguous()


def _parameters_kept_whole(module: nn.Module, block_names: Sequence[str]) -> dict[str, nn.Parameter]:
    """Scalars, which FSDP2 refuses, weights tied across blocks, which it would split, and what pipelines read."""
    read_directly = READ_DIRECTLY.get(model_class_name(module), ())
    units: dict[nn.Parameter, set[str]] = {}
    named = list(module.named_parameters(remove_duplicate=False))
    for name, parameter in named:
        units.setdefault(parameter, set()).add(_unit_of(name, block_names))
    return {
        name: parameter
        for name, parameter in named
        if parameter.ndim == 0 or len(units[parameter]) > 1 or name in read_directly
    }


def _unit_of(parameter_name: str, block_names: Sequence[str]) -> str:
    """The innermost block that holds the parameter; empty for the root."""
    holders = [name for name in block_names if parameter_name.startswith(f"{name}.")]
    return max(holders, key=len, default="")


def _shard_units(module: nn.Module, mesh: DeviceMesh, names: Sequence[str], whole: set[nn.Parameter]) -> None:
    for name in sorted(names, key=lambda name: -name.count(".")):
        fully_shard(module.get_submodule(name), mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=whole)


def _move_rest(module: nn.Module, mesh: DeviceMesh, whole: Iterable[nn.Parameter]) -> None:
    device = _mesh_device(mesh)
    for tensor in [*whole, *module.buffers()]:
        if not tensor.is_meta and tensor.device != device:
            tensor.data = tensor.data.to(device)


def _mesh_device(mesh: DeviceMesh) -> torch.device:
    if mesh.device_type == "cpu":
        return torch.device("cpu")
    return torch.device(mesh.device_type, torch.get_device_module(mesh.device_type).current_device())


def _chain_prefetches(module: nn.Module, blocks: Mapping[str, FSDPModule], num_prefetched: int) -> None:
    """Lets each block gather the next ones; among many containers (UNets, which run in another order) only siblings."""
    if not isinstance(module, FSDPModule) or num_prefetched < 1:
        return
    containers: dict[str, list[FSDPModule]] = {}
    for name, block in blocks.items():
        containers.setdefault(name.rpartition(".")[0], []).append(block)
    runs = [list(blocks.values())] if len(containers) <= MAX_CHAINED_CONTAINERS else list(containers.values())
    if len(runs) == 1:
        module.set_modules_to_forward_prefetch(runs[0][:1])
    for run in runs:
        for position, block in enumerate(run):
            block.set_modules_to_forward_prefetch(run[position + 1 : position + 1 + num_prefetched])


def _register_methods(module: nn.Module, names: Sequence[str]) -> None:
    for name in names:
        if callable(getattr(type(module), name, None)):
            register_fsdp_forward_method(module, name)


def _restore_attributes(module: nn.Module, originals: dict[str, dict[str, Any]]) -> None:
    """Gives the sharded parameters what was attached to the original ones (`weight_loader`, `output_dim`, ...)."""
    for name, parameter in module.named_parameters():
        for key, value in originals.get(name, {}).items():
            if key[0] != "_" and not hasattr(parameter, key):
                setattr(parameter, key, value)


def _refuse_moves(module: nn.Module) -> None:
    """Makes `to`, `cuda`, `half`, ... raise on every unit of the tree, unless they change nothing."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part._apply = _guarded_apply(part)  # type: ignore[method-assign]


def _guarded_apply(part: nn.Module) -> Callable[..., nn.Module]:
    def apply(change: Callable[[Tensor], Tensor], _recurse: bool = True) -> nn.Module:
        states = {(tensor.device, tensor.dtype) for tensor in [*part.parameters(), *part.buffers()]}
        for device, dtype in states:
            probe = change(torch.empty(0, device=device, dtype=dtype))
            if (probe.device, probe.dtype) != (device, dtype):
                raise ShardedModuleError(
                    f"{model_class_name(part)} is sharded by FSDP: moving it from {device} {dtype} to "
                    f"{probe.device} {probe.dtype} would break it; state device and dtype when it is loaded"
                )
        return part

    return apply
