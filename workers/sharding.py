"""Sharding on block boundaries (fully sharded data parallelism, FSDP) for inference: each rank holds an equal share.

Our own and not FSDP2: that held three to four gathered blocks at once, where one computes and one comes, and spent
2.5 ms of the CPU a block (docs/decisions/0003-sharding.md). Set-up order: compile blocks (the caller), then shard.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from planner.boundaries import CUT_FROM_BYTES
from planner.plan import ShardUnit
from workers.around_calls import put_around, put_around_call
from workers.errors import WorkerError
from workers.gathering import ROOT, GatheredModule, ShardedUnit
from workers.shard_conditions import BlockBoundaries, model_class_name, resolve_boundaries
from workers.shard_units import in_order, members, names_by_parameter, parameters_kept_whole, parts_to_cut
from workers.stream_layout import FlatEntry, lay_out, refuse_special, report_device

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

_HANDLE = "_heliograph_sharding"


class ShardedModuleError(WorkerError):
    """Something tried to move, cast or shard again a module that is sharded."""


@dataclass(frozen=True, slots=True)
class Piece:
    """This rank's part of one parameter: `values`, (elements,) in its share, from element `first` of the row-major
    parameter on; empty where all of it lies on other ranks. `name` is the first of the parameter's names."""

    name: str
    first: int
    values: Tensor

    def fill(self, whole: Tensor) -> None:
        """Takes this rank's part of the parameter's values."""
        self.values.copy_(whole.reshape(-1)[self.first : self.first + self.values.numel()])


@dataclass(frozen=True, slots=True, eq=False)
class Sharding:
    """What `apply_sharding` did.

    Attributes:
        boundaries: the blocks, and which rule decided.
        whole: names of parameters that every rank keeps whole: vectors and scalars, weights tied across blocks, and
            those that pipelines read past the model's call.
        gathered: gathers the blocks around their calls.
        unfilled: names of parameters that were made without values and that nobody has asked the piece of yet.
    """

    boundaries: BlockBoundaries
    whole: tuple[str, ...]
    gathered: GatheredModule
    unfilled: set[str]
    _pieces: Mapping[str, Piece] = field(repr=False)

    def piece(self, name: str) -> Piece | None:
        """This rank's part of a parameter, by any of its names; None if it is whole on every rank. To be filled by
        the caller, on every rank, while no call runs."""
        piece = self._pieces.get(name)
        if piece is not None:
            self.unfilled.discard(piece.name)
        return piece


def apply_sharding(
    module: nn.Module,
    *,
    mesh: DeviceMesh,
    boundaries: BlockBoundaries | None = None,
    shard_by: ShardUnit = ShardUnit.BLOCKS,
    cut_from_bytes: int = CUT_FROM_BYTES,
) -> Sharding:
    """Splits the module's weights over the mesh, in place, block by block.

    Every rank of the mesh must call this on an equal module, and must later run each forward call of it, also the ones
    whose result it does not need: each block gathers its weights from all ranks just before it runs and drops them
    after. Parameters may be on meta (fill them by `Sharding.piece`) or have values already.

    Device bytes afterwards: a 1/N share; in a call additionally two whole blocks (or parts) and what lies outside
    the blocks.

    Args:
        module: its parameters are frozen here.
        mesh: one dimension.
        boundaries: resolved for the model when None.
        shard_by: what is gathered at once: blocks, or the children of large ones, where the boundaries allow it; not
            for compiled blocks, whose code does not make its parts' calls.
        cut_from_bytes: which blocks are large.

    Raises:
        LoadError: no block boundary is known for the model.
        ShardedModuleError: it is sharded already, or is compiled and to be sharded by parts.
        StreamingRefusedError: its weights are quantized.
    """
    if is_sharded(module):
        raise ShardedModuleError(f"{model_class_name(module)} is sharded already; shard a component once")
    boundaries = boundaries or resolve_boundaries(module)
    module.requires_grad_(False)
    device = _mesh_device(mesh)
    units, whole = _choose_units(module, boundaries, shard_by, cut_from_bytes)
    names_of = names_by_parameter(module)
    with torch.inference_mode(False):
        sharded, pieces, unfilled = [], dict[str, Piece](), set[str]()
        for name, parameters in members(names_of, units, whole).items():
            shard = _shard_unit(module, name, parameters, names_of=names_of, mesh=mesh, device=device)
            sharded.append(shard.unit)
            pieces.update(shard.pieces)
            unfilled |= shard.unfilled
        _move_rest(module, device, whole.values())
    gathered = GatheredModule(sharded, group=mesh.get_group())
    sharding = Sharding(boundaries, tuple(sorted(whole)), gathered, unfilled, pieces)
    for index, unit in enumerate(sharded):
        put_around_call(module.get_submodule(unit.layout.name), gathered, index)
    for name in FORWARD_METHODS:
        if callable(getattr(type(module), name, None)):
            setattr(module, name, put_around(getattr(module, name), gathered, ROOT))
    for part in (module.get_submodule(unit) for unit in units):
        part._apply = _guarded_apply(part, device)  # type: ignore[method-assign]
        part.__dict__[_HANDLE] = sharding
    report_device(module, device)
    logger.info(
        "%s: %d blocks (%s) sharded over %d ranks in %d units, %.2f GiB here, %d parameters whole",
        model_class_name(module), len(boundaries.names), boundaries, mesh.size(), len(sharded),
        gathered.share_bytes / 2**30, len(whole),
    )  # fmt: skip
    return sharding


def is_sharded(module: nn.Module) -> bool:
    """Whether the module's weights are shared with other ranks; then nothing else may move or cast it."""
    return any(_HANDLE in part.__dict__ for part in module.modules())


def find_sharding(module: nn.Module) -> Sharding | None:
    """What `apply_sharding` returned for the module; None if it is not sharded."""
    found: Sharding | None = module.__dict__.get(_HANDLE)
    return found


def held_bytes(module: nn.Module) -> int:
    """Bytes of the module's parameters on this rank, sharded or not, beside what is gathered right now."""
    sharding = find_sharding(module)
    whole = module.parameters() if sharding is None else {module.get_parameter(name) for name in sharding.whole}
    share_bytes = 0 if sharding is None else sharding.gathered.share_bytes
    return share_bytes + sum(parameter.nbytes for parameter in whole)


def find_weight_loader(parameter: Tensor, original: Tensor | None = None) -> Callable[..., Any] | None:
    """The parameter's own loading routine; the original's where the sharded one has none any more."""
    for candidate in (parameter, original):
        loader = getattr(candidate, "weight_loader", None)
        if loader is not None:
            return loader  # type: ignore[no-any-return]
    return None


def load_parameter(module: nn.Module, name: str, weight: Tensor, *, original: Tensor | None = None) -> None:
    """Loads one parameter, by its own `weight_loader` where it has one, sharded or not.

    A loader is given a whole parameter on the weight's device, as without sharding; of that this rank keeps its part.
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
        stand_in.__dict__.update(parameter.__dict__)
        loader(stand_in, weight)
        target = stand_in.data
    sharding = find_sharding(module)
    piece = None if sharding is None else sharding.piece(name)
    if piece is None:
        parameter.data.copy_(target)
    else:
        piece.fill(target)


def _choose_units(
    module: nn.Module, boundaries: BlockBoundaries, shard_by: ShardUnit, cut_from_bytes: int
) -> tuple[tuple[str, ...], dict[str, nn.Parameter]]:
    """Names of what is gathered at once, the root (empty) first; and what every rank keeps whole.

    Raises:
        ShardedModuleError: parts of compiled blocks.
    """
    is_compiled = any(module.get_submodule(name)._compiled_call_impl is not None for name in boundaries.names)
    if is_compiled and shard_by is ShardUnit.PARTS:
        raise ShardedModuleError(
            f"{model_class_name(module)}'s blocks are compiled: their code does not call their parts, around which "
            f"weights would be gathered; shard by blocks, or do not compile"
        )
    parts = parts_to_cut(module, boundaries, cut_from_bytes) if shard_by is ShardUnit.PARTS else frozenset[str]()
    # Compiled code makes no calls inside of a block: there nothing is gathered.
    inside = () if is_compiled else (*boundaries.names, *boundaries.borrowed)
    units = in_order(module, ("", *boundaries.outermost(), *inside, *parts))
    return units, parameters_kept_whole(module, units, parts, shared=boundaries.borrowed if is_compiled else ())


@dataclass(frozen=True, slots=True)
class _Shard:
    """A unit on this rank, the parts of its parameters by name, and the names of those that still have no values."""

    unit: ShardedUnit
    pieces: dict[str, Piece]
    unfilled: set[str]


def _shard_unit(
    module: nn.Module,
    name: str,
    parameters: Sequence[nn.Parameter],
    *,
    names_of: Mapping[nn.Parameter, list[str]],
    mesh: DeviceMesh,
    device: torch.device,
) -> _Shard:
    """Lays the unit's parameters in one flat range and keeps this rank's part; they show nothing usable afterwards."""
    for parameter in parameters:
        refuse_special(names_of[parameter][0], parameter)
    unfilled = {names_of[parameter][0] for parameter in parameters if parameter.is_meta}
    values = [parameter.data for parameter in parameters]
    parked = [_park(value) for value in values]
    shown = [_show(module, one, names_of[one], nothing) for one, nothing in zip(parameters, parked, strict=True)]
    layout = lay_out(name, shown)
    sharded = ShardedUnit(layout, num_ranks=mesh.size(), device=device, parked=parked)
    pieces: dict[str, Piece] = {}
    for entry, parameter, value in zip(layout.entries, parameters, values, strict=True):
        piece = _piece(names_of[parameter][0], entry, sharded, rank=mesh.get_local_rank())
        if not value.is_meta:
            piece.fill(value)
        pieces.update(dict.fromkeys(names_of[parameter], piece))
    return _Shard(sharded, pieces, unfilled)


def _park(values: Tensor) -> Tensor:
    """What a parameter shows while it is not gathered: its shape and dtype, without memory of its own.

    On the CPU, so that a GPU's kernels refuse it, and without a number, so that no result of a CPU looks right.
    """
    is_float = values.dtype.is_floating_point or values.dtype.is_complex
    nothing = torch.full((), float("nan") if is_float else 1, dtype=torch.float32 if is_float else torch.int64)
    return nothing.to(values.dtype).expand(values.shape)


def _show(module: nn.Module, parameter: nn.Parameter, names: Iterable[str], parked: Tensor) -> nn.Parameter:
    """Lets the parameter show `parked`; one on meta, which cannot show anything else, is replaced under all names."""
    if not parameter.is_meta:
        parameter.data = parked
        return parameter
    replacement = nn.Parameter(parked, requires_grad=False)
    replacement.__dict__.update(parameter.__dict__)
    for name in names:
        owner, _, attribute = name.rpartition(".")
        module.get_submodule(owner)._parameters[attribute] = replacement
    return replacement


def _piece(name: str, entry: FlatEntry, unit: ShardedUnit, *, rank: int) -> Piece:
    """Items divide `ALIGNMENT_BYTES`, which divides offsets and shares, so the cut falls between two elements."""
    begin = rank * unit.rank_bytes
    first = min(max(begin - entry.offset, 0), entry.num_bytes)
    end = min(max(begin + unit.rank_bytes - entry.offset, first), entry.num_bytes)
    start = entry.offset + first - begin if end > first else 0
    values = unit.share[start : start + end - first].view(entry.dtype)
    return Piece(name, first // entry.dtype.itemsize, values)


def _move_rest(module: nn.Module, device: torch.device, whole: Iterable[nn.Parameter]) -> None:
    for tensor in [*whole, *module.buffers()]:
        if not tensor.is_meta and tensor.device != device:
            tensor.data = tensor.data.to(device)


def _mesh_device(mesh: DeviceMesh) -> torch.device:
    if mesh.device_type == "cpu":
        return torch.device("cpu")
    return torch.device(mesh.device_type, torch.get_device_module(mesh.device_type).current_device())


def _guarded_apply(part: nn.Module, device: torch.device) -> Callable[..., nn.Module]:
    """Makes `to`, `cuda`, `half`, ... raise, unless they change nothing."""

    def apply(change: Callable[[Tensor], Tensor], _recurse: bool = True) -> nn.Module:
        for dtype in _dtypes(part):
            probe = change(torch.empty(0, device=device, dtype=dtype))
            if (probe.device, probe.dtype) != (device, dtype):
                raise ShardedModuleError(
                    f"{model_class_name(part)} is sharded: moving it from {device} {dtype} to "
                    f"{probe.device} {probe.dtype} would break it; state device and dtype when it is loaded"
                )
        return part

    return apply


def _dtypes(part: nn.Module) -> Iterator[torch.dtype]:
    yield from {tensor.dtype for tensor in [*part.parameters(), *part.buffers()]}
