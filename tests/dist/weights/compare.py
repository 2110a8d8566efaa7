"""Compares a sharded, directly loaded model with the library's own on each rank. Imported by spawned ranks."""

import dataclasses
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from planner.plan import ShardUnit
from tests.dist.weights.tiny_models import TinyModel, find_model
from workers.direct_load import LoadedComponent, load_component
from workers.sharding import apply_sharding


def write_checkpoint(model: TinyModel, folder: Path) -> None:
    """Saves the model with random weights; nothing is left at zero or one, where a lost tensor would not show."""
    torch.manual_seed(0)
    module = build(model)
    generator = torch.Generator().manual_seed(1)
    for tensor in [*module.parameters(), *(buffer for _, buffer in module.named_buffers())]:
        if tensor.is_floating_point() and isinstance(tensor, nn.Parameter):
            tensor.data.normal_(0, 0.2, generator=generator)
    module.save_pretrained(folder)


def build(model: TinyModel) -> Any:
    """The class with its tiny configuration, float32."""
    library = diffusers if model.library == "diffusers" else transformers
    model_class = getattr(library, model.class_name)
    if model.library == "diffusers":
        return model_class(**model.config).eval()
    return model_class(model_class.config_class(**model.config)).eval()


def load_by_library(model: TinyModel, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    library = diffusers if model.library == "diffusers" else transformers
    keyword = "torch_dtype" if model.library == "diffusers" else "dtype"
    module = getattr(library, model.class_name).from_pretrained(folder, **{keyword: dtype}).eval()
    module.requires_grad_(False)  # some products on CPU take another path, with another rounding, if it is set
    for tensor in module.parameters():
        # The library leaves weights in the mapped file at any address; matrix products on CPU depend on alignment.
        tensor.data = tensor.data.clone()
    return module


def compare_all(mesh: DeviceMesh, models: list[str], folder: str) -> list[dict[str, Any]]:
    """Each model in turn; every rank runs both, so that a failure on one is seen on each."""
    return [compare_one(mesh, find_model(name), Path(folder) / name) for name in models]


def compare_one(mesh: DeviceMesh, model: TinyModel, folder: Path) -> dict[str, Any]:
    """Loads one model both ways and calls each twice (the second call knows which block comes next)."""
    reference = load_by_library(model, folder)
    loaded = load_component(
        folder,
        library=model.library,
        class_name=model.class_name,
        dtype=torch.float32,
        device=torch.device("cpu"),
        mesh=mesh,
    )
    assert loaded.sharding is not None
    with torch.no_grad():
        expected = leaves(reference(**model.inputs()))
        results = [leaves(loaded.module(**model.inputs())) for _ in range(2)]
    return {
        "name": model.class_name,
        "rule": str(loaded.sharding.boundaries),
        "num_blocks": len(loaded.sharding.boundaries.names),
        "loaded_by": loaded.loaded_by,
        "equal": all(_equal(expected, result) for result in results),
        "meaningful": all(bool(leaf.isfinite().all()) and float(leaf.std()) > 0 for leaf in expected),
        "bytes_read": loaded.bytes_read,
        "whole_bytes": _whole_bytes(loaded),
    }


def compare_by_parts(mesh: DeviceMesh, models: list[str], folder: str) -> list[str]:
    """Names of the models whose result differs when each child of a block is gathered by itself, whatever its size."""
    return [name for name in models if not _is_equal_by_parts(mesh, find_model(name), Path(folder) / name)]


def _is_equal_by_parts(mesh: DeviceMesh, model: TinyModel, folder: Path) -> bool:
    module = load_by_library(model, folder)
    with torch.no_grad():
        expected = leaves(module(**model.inputs()))
        sharding = apply_sharding(module, mesh=mesh, shard_by=ShardUnit.PARTS, cut_from_bytes=0)
        results = [leaves(module(**model.inputs())) for _ in range(2)]
    is_cut = len(sharding.gathered.units) > 1 + len(sharding.boundaries.names)
    return is_cut and all(_equal(expected, result) for result in results)


def _whole_bytes(loaded: LoadedComponent) -> int:
    """Bytes of the file that every rank needs: persistent buffers and parameters that are not sharded."""
    assert loaded.sharding is not None
    kept = {
        id(tensor): tensor
        for name, tensor in loaded.module.state_dict(keep_vars=True).items()
        if loaded.sharding.piece(name) is None
    }
    return sum(tensor.nbytes for tensor in kept.values())


def leaves(output: Any) -> list[Tensor]:
    """All floating tensors of an output, in order."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return leaves([getattr(output, field.name) for field in dataclasses.fields(output)])
    if isinstance(output, dict):
        return leaves(list(output.values()))
    if isinstance(output, (list, tuple)):
        return [leaf for entry in output for leaf in leaves(entry)]
    return []


def _equal(expected: list[Tensor], result: list[Tensor]) -> bool:
    return len(expected) == len(result) > 0 and all(
        torch.equal(one, other) for one, other in zip(expected, result, strict=True)
    )
