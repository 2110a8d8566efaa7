"""What ranks do in test_sharding.py. Imported by spawned ranks."""

import functools
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import AutoencoderKL, DiTTransformer2DModel, PriorTransformer
from diffusers.models.normalization import FP32LayerNorm
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import LlamaConfig, LlamaForCausalLM

from tests.dist.weights.gathering_cases import (
    blocks_and_parts,
    compiled_blocks_in_blocks,
    compiled_by_parts,
    failing_call,
    use_past_the_call,
)
from tests.dist.weights.tiny_models import find_model
from tests.tiny_checkpoints import make_wan_transformer
from workers.direct_load import load_component
from workers.norms import cache_norms
from workers.shard_conditions import BlockBoundaries, BoundaryRule
from workers.sharding import (
    ShardedModuleError,
    apply_sharding,
    find_sharding,
    find_weight_loader,
    held_bytes,
    is_sharded,
    load_parameter,
)


def all_cases(mesh: DeviceMesh, folder: str) -> dict[str, Any]:
    return {
        case.__name__: case(mesh, Path(folder))
        for case in (
            bytes_of_a_wide_model,
            bfloat16_with_float32_islands,
            weight_loaders,
            moves,
            methods_beside_forward,
            tied_across_blocks,
            scalars_and_uneven_rows,
            placed_shards,
            blocks_and_parts,
            failing_call,
            use_past_the_call,
            compiled_by_parts,
            compiled_blocks_in_blocks,
            compiled_blocks,
            borrowed_part_of_a_block,
            read_past_the_call,
            cached_norms,
        )
    }


def bytes_of_a_wide_model(mesh: DeviceMesh, folder: Path) -> dict[str, Any]:
    """One rank's share of a model whose vectors are small beside its matrices, as real ones are."""
    loaded = load_component(
        folder / "wide",
        library="diffusers",
        class_name="WanTransformer3DModel",
        dtype=torch.float32,
        device=torch.device("cpu"),
        mesh=mesh,
    )
    return {"bytes_read": loaded.bytes_read, "held": held_bytes(loaded.module)}


def bfloat16_with_float32_islands(mesh: DeviceMesh, folder: Path) -> dict[str, Any]:
    options: dict[str, Any] = {
        "library": "diffusers",
        "class_name": "WanTransformer3DModel",
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
    }
    whole = load_component(folder / "wide", **options).module
    sharded = load_component(folder / "wide", mesh=mesh, **options).module
    inputs = {
        "hidden_states": torch.ones(1, 4, 1, 4, 4, dtype=torch.bfloat16),
        "timestep": torch.tensor([5]),
        "encoder_hidden_states": torch.ones(1, 3, 24, dtype=torch.bfloat16),
    }
    with torch.no_grad():
        equal = torch.equal(whole(**inputs)[0], sharded(**inputs)[0])
    return {"equal": equal, "dtypes": sorted({str(tensor.dtype) for tensor in sharded.parameters()})}


def weight_loaders(mesh: DeviceMesh, _folder: Path) -> dict[str, Any]:
    """A routine that transposes what it loads, as tensor-parallel layers' do more elaborately."""

    def transposed(parameter: Tensor, weight: Tensor) -> None:
        parameter.data.copy_(weight.T)

    model = Blocks(5)
    original = nn.Parameter(torch.empty(5, 5))
    original.weight_loader = model.layers[0].weight.weight_loader = transposed  # type: ignore[attr-defined, assignment]
    apply_sharding(model, mesh=mesh)
    parameter = model.layers[0].weight
    kept = find_weight_loader(parameter) is transposed
    del parameter.weight_loader
    on_original = find_weight_loader(parameter, original) is transposed
    weight = torch.arange(25.0).view(5, 5)
    load_parameter(model, "layers.0.weight", weight, original=original)
    load_parameter(model, "layers.1.weight", weight)
    return {
        "kept": kept,
        "on_original": on_original,
        "by_loader": torch.equal(_whole(model, "layers.0.weight", mesh), weight.T),
        "plain": torch.equal(_whole(model, "layers.1.weight", mesh), weight),
    }


def moves(mesh: DeviceMesh, _folder: Path) -> dict[str, Any]:
    model = Blocks(4)
    before = is_sharded(model)
    apply_sharding(model, mesh=mesh)
    model.to("cpu")
    model.to(torch.float32)
    refused = []
    for move in (
        lambda: model.to(torch.bfloat16),
        lambda: model.to("meta"),
        lambda: model.half(),
        lambda: model.layers[0].to(torch.float64),
        lambda: nn.Sequential(model).to(torch.bfloat16),
        lambda: apply_sharding(model, mesh=mesh),
    ):
        try:
            move()
            refused.append(False)
        except ShardedModuleError:
            refused.append(True)
    return {"before": before, "after": is_sharded(model), "refused": refused}


def methods_beside_forward(mesh: DeviceMesh, _folder: Path) -> dict[str, Any]:
    """`decode` and `encode` of an autoencoder use the root's own parameters."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip
    latents, image = torch.randn(1, 4, 4, 4), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = vae.decode(latents).sample, vae.encode(image).latent_dist.mean
        names = tuple(name for name, _ in vae.named_modules() if name.endswith((".resnets.0", ".resnets.1")))
        apply_sharding(vae, mesh=mesh, boundaries=BlockBoundaries(BoundaryRule.EXPLICIT, ("resnets",), names))
        equal = [
            torch.equal(expected[0], vae.decode(latents).sample),
            torch.equal(expected[1], vae.encode(image).latent_dist.mean),
            torch.equal(expected[0], vae.decode(latents).sample),
        ]
    return {"equal": equal, "num_blocks": len(names)}


def tied_across_blocks(mesh: DeviceMesh, _folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.model.layers[1].mlp.down_proj.weight = model.model.layers[0].mlp.down_proj.weight
    tokens = torch.arange(6)[None]
    with torch.no_grad():
        expected = model(tokens).logits
        sharding = apply_sharding(model, mesh=mesh)
        equal = torch.equal(expected, model(tokens).logits)
    return {
        "equal": equal,
        "whole": list(sharding.whole),
        "root_tie": model.lm_head.weight is model.model.embed_tokens.weight,
        "block_tie": model.model.layers[1].mlp.down_proj.weight is model.model.layers[0].mlp.down_proj.weight,
    }


def scalars_and_uneven_rows(mesh: DeviceMesh, _folder: Path) -> dict[str, Any]:
    """Five rows and one row over two ranks, and a parameter without rows."""
    torch.manual_seed(0)
    model = Blocks(5)
    model.scale = nn.Parameter(torch.tensor(3.0))
    model.one_row = nn.Parameter(torch.randn(1, 5))
    values = torch.randn(2, 5)
    with torch.no_grad():
        expected = model(values)
        sharding = apply_sharding(model, mesh=mesh)
        equal = [torch.equal(expected, model(values)) for _ in range(2)]
    return {"equal": equal, "whole": list(sharding.whole)}


def placed_shards(mesh: DeviceMesh, _folder: Path) -> dict[str, Any]:
    """Shards put into an empty model are the ones that are gathered, whatever the number of rows."""
    model = make_wan_transformer()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    empty = make_wan_transformer().to("meta")
    for module, real in zip(empty.modules(), make_wan_transformer().modules(), strict=True):
        module._buffers.update(real._buffers)
    sharding = apply_sharding(empty, mesh=mesh)
    unfilled_before = set(sharding.unfilled)
    for name, tensor in state.items():
        piece = sharding.piece(name)
        if piece is not None:
            piece.fill(tensor)
    gathered = {name: _whole(empty, name, mesh) for name in state if name not in sharding.whole}
    return {
        "equal": all(torch.equal(tensor, state[name]) for name, tensor in gathered.items()),
        "told_of_all": unfilled_before == set(state) - set(sharding.whole),
        "unfilled": sorted(sharding.unfilled),
    }


def compiled_blocks(mesh: DeviceMesh, folder: Path) -> dict[str, Any]:
    """Blocks are compiled before they are sharded."""
    import torch._dynamo.testing

    counter = torch._dynamo.testing.CompileCounter()
    options: dict[str, Any] = {
        "library": "diffusers",
        "class_name": "WanTransformer3DModel",
        "dtype": torch.float32,
        "device": torch.device("cpu"),
    }
    whole = load_component(folder / "wide", **options).module
    sharded = load_component(
        folder / "wide",
        mesh=mesh,
        compile_blocks=lambda model: model.compile_repeated_blocks(backend=counter),
        **options,
    ).module
    inputs = {
        "hidden_states": torch.ones(1, 4, 1, 4, 4),
        "timestep": torch.tensor([5]),
        "encoder_hidden_states": torch.ones(1, 3, 24),
    }
    with torch.no_grad():
        expected = whole(**inputs)[0]
        equal = [torch.equal(expected, sharded(**inputs)[0]) for _ in range(3)]
    return {"equal": equal, "num_graphs": counter.frame_count}


def borrowed_part_of_a_block(mesh: DeviceMesh, _folder: Path) -> dict[str, Any]:
    """DiT asks its first block for an embedding before it calls the block."""
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, sample_size=4, num_embeds_ada_norm=4,
        norm_num_groups=4,
    ).eval()  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(1, 4, 4, 4),
        "timestep": torch.tensor([5]),
        "class_labels": torch.tensor([1]),
    }
    model.requires_grad_(False)
    expected = model(**inputs)[0]
    sharding = apply_sharding(model, mesh=mesh)
    equal = [torch.equal(expected, model(**inputs)[0]) for _ in range(2)]
    return {"equal": equal, "borrowed": list(sharding.boundaries.borrowed)}


class Blocks(nn.Module):
    """Two square layers in a container that the common rule knows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width)])
        self.scale: nn.Parameter | None = None
        self.one_row: nn.Parameter | None = None

    def forward(self, values: Tensor) -> Tensor:
        for layer in self.layers:
            values = layer(values)
        if self.scale is not None and self.one_row is not None:
            values = values * self.scale + self.one_row
        return values


def _whole(module: nn.Module, name: str, mesh: DeviceMesh) -> Tensor:
    """All ranks' parts of a sharded parameter put together."""
    sharding = find_sharding(module)
    piece = None if sharding is None else sharding.piece(name)
    assert piece is not None
    parts: list[Any] = [None] * mesh.size()
    dist.all_gather_object(parts, piece, group=mesh.get_group())
    values = torch.cat([part.values for part in sorted(parts, key=lambda part: part.first) if part.values.numel()])
    return values.view(module.get_parameter(name).shape)


def read_past_the_call(mesh: DeviceMesh, folder: Path) -> dict[str, Any]:
    """A prior's pipeline calls `post_process_latents` on the leader only, so nothing may be gathered in it."""
    torch.manual_seed(0)
    prior = PriorTransformer(**find_model("PriorTransformer").config).eval()
    nn.init.normal_(prior.clip_mean)
    nn.init.normal_(prior.clip_std)
    latents = torch.ones(1, 24)
    expected = prior.post_process_latents(latents)
    whole = apply_sharding(prior, mesh=mesh).whole
    if mesh.get_local_rank() != 0:
        return {"equal": True, "whole": list(whole)}
    return {"equal": torch.equal(prior.post_process_latents(latents), expected), "whole": list(whole)}


class NormedBlock(nn.Module):
    """Its norm computes in float32 from bfloat16 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = FP32LayerNorm(8)
        self.linear = nn.Linear(8, 8)

    def forward(self, values: Tensor) -> Tensor:
        return values + self.linear(self.norm(values))


class NormedModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([NormedBlock() for _ in range(3)])

    def forward(self, values: Tensor) -> Tensor:
        return functools.reduce(lambda result, block: block(result), self.blocks, values)


def cached_norms(mesh: DeviceMesh, folder: Path) -> dict[str, Any]:
    """Casts are kept while FSDP gathers and frees the parameters that they were made from."""
    torch.manual_seed(0)
    model = NormedModel().to(torch.bfloat16)
    for parameter in model.parameters():
        parameter.data.normal_()
    values = torch.randn(2, 8, dtype=torch.bfloat16)
    with torch.no_grad():
        expected = model(values)
        count = cache_norms(model)
        apply_sharding(model, mesh=mesh)
        equal = [torch.equal(expected, model(values)) for _ in range(3)]
    return {"equal": equal, "count": count}
