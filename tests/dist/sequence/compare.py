"""Compares a model whose tokens are split over ranks with the same one unsplit. Imported by spawned ranks."""

import copy
import hashlib
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from tests.dist.sequence.cases import find_case
from tests.dist.weights.compare import build, leaves
from workers.sequence import UNSPLIT_CLASSES, apply_sequence, sequence_config
from workers.sharding import apply_sharding
from workers.streaming import apply_streaming

TOLERANCE = 1e-5
"""Of the largest value, in float32. Attention computes whole heads in the unsplit order; matrix products over a share
of the tokens are cut otherwise by the CPU's libraries, which rounds otherwise (2e-7 a product, a few products deep)."""


def make_config(mesh: DeviceMesh) -> Any:
    """One sequence group of all ranks."""
    ranks = torch.arange(mesh.size()).reshape(-1, 1, mesh.size())
    return sequence_config(DeviceMesh("cpu", ranks, mesh_dim_names=("groups", "ring", "ulysses")))


def build_random(name: str) -> nn.Module:
    """The case's model; no weight is left at zero or one, where a lost part would not show."""
    torch.manual_seed(0)
    module: nn.Module = build(find_case(name).model)
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.2, generator=generator)
    return module.requires_grad_(False)


def compare_all(mesh: DeviceMesh, names: list[str]) -> list[dict[str, Any]]:
    """Each case with even and uneven lengths: relative errors, or the error's text where it fails on all ranks."""
    config = make_config(mesh)
    return [{"name": name, **compare_one(name, config)} for name in names]


def compare_one(name: str, config: Any) -> dict[str, Any]:
    case = find_case(name)
    module = build_random(name)
    sizes = {"even": case.even, "uneven": case.uneven}
    with torch.no_grad():
        expected = {size: leaves(module(**make())) for size, make in sizes.items()}
        with patch.dict(UNSPLIT_CLASSES, clear=True):  # also what is refused is tried
            apply_sequence(module, config=config)
        found: dict[str, Any] = {}
        for size, make in (*sizes.items(), *sizes.items()):  # twice: one call must not change the next
            try:
                found[size] = judge(expected[size], leaves(module(**make())))
            except RuntimeError as error:
                found[size] = {"error": f"{type(error).__name__}: {error}"}
            found[size]["padded"] = config.context_parallel_config.ulysses_anything
    return found


def compare_placements(mesh: DeviceMesh, name: str) -> dict[str, dict[str, Any]]:
    """The case's tokens split while its weights are sharded over the same ranks, or streamed from host memory.

    Sharding comes before the hooks in a group; after them it gives the same.
    """
    config = make_config(mesh)
    found = {}
    for placement in ("sharded before", "sharded after", "streamed"):
        module = build_random(name)
        inputs = find_case(name).uneven()
        with torch.no_grad():
            expected = leaves(module(**copy.deepcopy(inputs)))
            if placement == "sharded before":
                apply_sharding(module, mesh=mesh)
            elif placement == "streamed":
                apply_streaming(module, device=torch.device("cpu"), num_resident_blocks=1, prefetch_depth=1)
            apply_sequence(module, config=config)
            if placement == "sharded after":
                apply_sharding(module, mesh=mesh)
            found[placement] = [judge(expected, leaves(module(**copy.deepcopy(inputs)))) for _ in range(2)][-1]
    return found


def call_too_short(mesh: DeviceMesh, name: str) -> dict[str, Any]:
    """A prompt of one token for two ranks, then a good call."""
    module = build_random(name)
    inputs = find_case(name).even()
    with torch.no_grad():
        expected = leaves(module(**copy.deepcopy(inputs)))
        apply_sequence(module, config=make_config(mesh))
        prompt = inputs["encoder_hidden_states"][:, :1]
        short = {**inputs, "encoder_hidden_states": prompt, "txt_ids": torch.zeros(1, 3)}
        try:
            module(**short)
            text = ""
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
        return {"refusal": text, **judge(expected, leaves(module(**inputs)))}


def judge(expected: list[Tensor], result: list[Tensor]) -> dict[str, Any]:
    """Largest error relative to the largest value, and a digest by which ranks can be compared."""
    assert len(expected) == len(result) > 0
    assert all(one.shape == other.shape and type(other) is Tensor for one, other in zip(expected, result, strict=True))
    errors = [float((one - other).abs().max() / one.abs().max()) for one, other in zip(expected, result, strict=True)]
    digest = hashlib.sha256(b"".join(leaf.contiguous().numpy().tobytes() for leaf in result)).hexdigest()
    return {"relative": max(errors), "digest": digest, "meaningful": all(float(leaf.std()) > 0 for leaf in expected)}
