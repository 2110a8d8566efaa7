"""When blocks and their parts are gathered, and what they are before and after. Imported by spawned ranks."""

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from planner.plan import ShardUnit
from tests.dist.weights.compare import build, leaves
from tests.dist.weights.tiny_models import find_model
from workers.compilation import compile_blocks
from workers.gathering import GatheredModule
from workers.shard_conditions import BlockBoundaries, BoundaryRule, parts_of
from workers.sharding import ShardedModuleError, apply_sharding


def blocks_and_parts(mesh: DeviceMesh, _folder: Path) -> dict[str, Any]:
    """The most that is whole at once, beside the shares, as a share of one block; and what is left after the call."""
    found: dict[str, Any] = {}
    for shard_by in ShardUnit:
        model = make_wide_blocks()
        values = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = model(values)
            block_bytes = sum(parameter.nbytes for parameter in model.blocks[0].parameters())
            names = tuple(f"blocks.{index}" for index in range(4))
            boundaries = BlockBoundaries(BoundaryRule.CLASSES, ("WideBlock",), names, parts=parts_of(model, names))
            sharding = apply_sharding(model, mesh=mesh, boundaries=boundaries, shard_by=shard_by, cut_from_bytes=0)
            most = Most(sharding.gathered)
            equal = [torch.equal(expected, model(values)) for _ in range(3)]
        found[shard_by] = {
            "equal": equal,
            "blocks_at_once": most.num_bytes / block_bytes,
            "left": sharding.gathered.gathered_bytes,
            "misses": sharding.gathered.num_misses,
        }
    return found


def failing_call(mesh: DeviceMesh, _folder: Path) -> dict[str, Any]:
    """All ranks fail in the same block; the next call is right, and nothing stays gathered."""
    model = make_wide_blocks()
    values = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(values)
        sharding = apply_sharding(model, mesh=mesh)
        message = ""
        try:
            model(values[:, :8])
        except RuntimeError as error:
            message = str(error)
        left = sharding.gathered.gathered_bytes
        return {"failed": "shapes" in message, "left": left, "equal": torch.equal(expected, model(values))}


def use_past_the_call(mesh: DeviceMesh, _folder: Path) -> dict[str, Any]:
    """Weights of a block that is not in its call are no numbers."""
    model = make_wide_blocks()
    apply_sharding(model, mesh=mesh)
    weight = model.blocks[1].get_submodule("grow").get_parameter("weight")
    with torch.no_grad():
        model(torch.ones(1, 64))
        return {
            "shape": list(weight.shape),
            "numbers": int(torch.nn.functional.linear(torch.ones(1, 64), weight).isfinite().sum()),
        }


def compiled_blocks_in_blocks(mesh: DeviceMesh, _folder: Path) -> dict[str, bool]:
    """Compiled code makes no calls inside of its block: neither to inner blocks, nor to what the model borrows."""
    equal = {}
    for name in ("UNet2DConditionModel", "DiTTransformer2DModel"):
        tiny = find_model(name)
        torch.manual_seed(0)
        module = build(tiny).requires_grad_(False)
        with torch.no_grad():
            expected = leaves(module(**tiny.inputs()))
            compile_blocks(module, backend="eager")
            apply_sharding(module, mesh=mesh)
            results = [leaves(module(**tiny.inputs())) for _ in range(2)]
        equal[name] = all(torch.equal(a, b) for result in results for a, b in zip(expected, result, strict=True))
    return equal


class Most:
    """The most bytes that were gathered at once."""

    def __init__(self, gathered: GatheredModule) -> None:
        self.num_bytes = 0
        enter = gathered.enter

        def watched(index: int) -> None:
            enter(index)
            self.num_bytes = max(self.num_bytes, gathered.gathered_bytes)

        gathered.enter = watched  # type: ignore[method-assign]


class WideBlock(nn.Module):
    """Two parts, the second twice as large as the first."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(64, 64)
        self.grow = nn.Linear(64, 128)

    def forward(self, values: Tensor) -> Tensor:
        return values + self.grow(self.mix(values))[..., :64]


class WideBlocks(nn.Module):
    """Four blocks, and nothing around them."""

    _repeated_blocks = ("WideBlock",)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([WideBlock() for _ in range(4)])

    def forward(self, values: Tensor) -> Tensor:
        return functools.reduce(lambda result, block: block(result), self.blocks, values)


def make_wide_blocks() -> WideBlocks:
    """Equal on all ranks; frozen, since some products on CPU round otherwise if gradients are wanted."""
    torch.manual_seed(0)
    return WideBlocks().requires_grad_(False)


def compiled_by_parts(mesh: DeviceMesh, _folder: Path) -> str:
    """What compiled blocks say to being sharded by parts."""
    model = make_wide_blocks()
    for block in model.blocks:
        block.compile(backend="eager")
    try:
        apply_sharding(model, mesh=mesh, shard_by=ShardUnit.PARTS)
    except ShardedModuleError as error:
        return str(error)
    return ""
