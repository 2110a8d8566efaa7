"""Real architectures, by their published configurations, with random weights; and tiny ones of the same classes.

Nothing is downloaded: times and memory do not depend on what the weights are, as long as they are not zero (a GPU
clocks higher on zeros).
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from workers.direct_load import TensorPlaces
from workers.sharding import find_sharding
from workers.stream_build import build_empty, component_class

BF16 = torch.bfloat16


@dataclass(frozen=True, slots=True)
class Architecture:
    """One component: its class, its configuration, and where that is published."""

    name: str
    library: Literal["diffusers", "transformers"]
    class_name: str
    config: Mapping[str, Any]
    source: str

    def scaled(self, **changes: Any) -> "Architecture":
        """The same class with another configuration, e.g. fewer layers."""
        return replace(self, config={**self.config, **changes})


_WAN = {
    "patch_size": [1, 2, 2], "attention_head_dim": 128, "in_channels": 16, "out_channels": 16, "text_dim": 4096,
    "freq_dim": 256, "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "eps": 1e-6, "rope_max_seq_len": 1024,
}  # fmt: skip
WAN_1_3B = Architecture(
    "Wan 1.3B", "diffusers", "WanTransformer3DModel",
    {**_WAN, "num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers, transformer/config.json",
)  # fmt: skip
WAN_14B = Architecture(
    "Wan 14B", "diffusers", "WanTransformer3DModel",
    {**_WAN, "num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
    "Wan-AI/Wan2.1-T2V-14B-Diffusers and both transformers of Wan-AI/Wan2.2-T2V-A14B-Diffusers, config.json",
)  # fmt: skip
FLUX_DEV = Architecture(
    "FLUX.1-dev", "diffusers", "FluxTransformer2DModel",
    {
        "patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
        "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True,
        "axes_dims_rope": [16, 56, 56],
    },
    "black-forest-labs/FLUX.1-dev, transformer/config.json",
)  # fmt: skip
QWEN_IMAGE = Architecture(
    "Qwen-Image", "diffusers", "QwenImageTransformer2DModel",
    {
        "patch_size": 2, "in_channels": 64, "out_channels": 16, "num_layers": 60, "attention_head_dim": 128,
        "num_attention_heads": 24, "joint_attention_dim": 3584, "guidance_embeds": False,
        "axes_dims_rope": [16, 56, 56],
    },
    "Qwen/Qwen-Image, transformer/config.json",
)  # fmt: skip
UMT5_XXL = Architecture(
    "UMT5-XXL encoder", "transformers", "UMT5EncoderModel",
    {
        "vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
    },
    "google/umt5-xxl, config.json",
)  # fmt: skip
T5_XXL = Architecture(
    "T5-XXL encoder", "transformers", "T5EncoderModel",
    {
        "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
    },
    "google/t5-v1_1-xxl, config.json",
)  # fmt: skip
QWEN25_VL = Architecture(
    "Qwen2.5-VL 7B", "transformers", "Qwen2_5_VLForConditionalGeneration",
    {
        "text_config": {
            "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
            "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 128000,
            "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
        },
        "vision_config": {
            "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
            "patch_size": 14, "spatial_merge_size": 2, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
        },
        "tie_word_embeddings": False,
    },
    "Qwen/Qwen-Image, text_encoder/config.json (Qwen2.5-VL-7B-Instruct)",
)  # fmt: skip
FLUX_VAE = Architecture(
    "FLUX.1 autoencoder", "diffusers", "AutoencoderKL",
    {
        "in_channels": 3, "out_channels": 3, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
        "latent_channels": 16, "norm_num_groups": 32, "sample_size": 1024, "use_quant_conv": False,
        "use_post_quant_conv": False, "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "black-forest-labs/FLUX.1-dev, vae/config.json",
)  # fmt: skip
WAN_VAE = Architecture(
    "Wan autoencoder", "diffusers", "AutoencoderKLWan",
    {"base_dim": 96, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2,
     "temperal_downsample": [False, True, True]},
    "Wan-AI/Wan2.1-T2V-14B-Diffusers, vae/config.json",
)  # fmt: skip
QWEN_VAE = Architecture(
    "Qwen-Image autoencoder", "diffusers", "AutoencoderKLQwenImage",
    {"base_dim": 96, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2,
     "temperal_downsample": [False, True, True]},
    "Qwen/Qwen-Image, vae/config.json",
)  # fmt: skip

_SMALL_WAN = {"num_attention_heads": 2, "attention_head_dim": 32, "ffn_dim": 64, "num_layers": 4, "text_dim": 32,
              "freq_dim": 32}  # fmt: skip
SMALL_WAN = replace(WAN_1_3B.scaled(**_SMALL_WAN), name="small Wan")
SMALL_FLUX = replace(
    FLUX_DEV.scaled(
        num_layers=2, num_single_layers=2, attention_head_dim=32, num_attention_heads=2, joint_attention_dim=32,
        pooled_projection_dim=16, axes_dims_rope=[8, 12, 12],
    ),
    name="small FLUX",
)  # fmt: skip
SMALL_QWEN = replace(
    QWEN_IMAGE.scaled(
        num_layers=3, attention_head_dim=32, num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=[8, 12, 12]
    ),
    name="small Qwen-Image",
)
SMALL_T5 = replace(
    T5_XXL.scaled(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4), name="small T5"
)
SMALL_UMT5 = replace(
    UMT5_XXL.scaled(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4), name="small UMT5"
)
SMALL_QWEN25_VL = replace(
    QWEN25_VL.scaled(
        text_config={
            "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4},
        },
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
        },
    ),
    name="small Qwen2.5-VL",
)  # fmt: skip
_SMALL_VAE = {"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
SMALL_WAN_VAE = replace(WAN_VAE.scaled(**_SMALL_VAE), name="small Wan autoencoder")
SMALL_QWEN_VAE = replace(QWEN_VAE.scaled(**_SMALL_VAE), name="small Qwen-Image autoencoder")
SMALL_FLUX_VAE = replace(
    FLUX_VAE.scaled(block_out_channels=[8, 8, 8, 8], norm_num_groups=4, layers_per_block=1),
    name="small FLUX autoencoder",
)


@dataclass(frozen=True, slots=True)
class Shape:
    """What is made: pixels, frames, and prompt tokens."""

    width: int
    height: int
    num_frames: int = 1
    text_tokens: int = 512

    @property
    def latent_frames(self) -> int:
        return (self.num_frames - 1) // 4 + 1


VIDEO_480P = {frames: Shape(832, 480, frames) for frames in (81, 17, 9)}
PICTURE = Shape(1024, 1024, text_tokens=512)


def denoiser_inputs(
    architecture: Architecture, shape: Shape, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """Arguments of one call of one branch; equal seeds give equal values on every device."""
    config = architecture.config
    latent_height, latent_width = shape.height // 8, shape.width // 8

    def values(*size: int) -> Tensor:
        return torch.randn(size, generator=torch.Generator().manual_seed(sum(size))).to(device, dtype)

    if architecture.class_name == "WanTransformer3DModel":
        return {
            "hidden_states": values(1, config["in_channels"], shape.latent_frames, latent_height, latent_width),
            "timestep": torch.tensor([500], device=device),
            "encoder_hidden_states": values(1, shape.text_tokens, config["text_dim"]),
        }
    tokens = (latent_height // 2) * (latent_width // 2)
    arguments: dict[str, Any] = {
        "hidden_states": values(1, tokens, config["in_channels"]),
        "encoder_hidden_states": values(1, shape.text_tokens, config["joint_attention_dim"]),
        "timestep": torch.tensor([0.5], device=device, dtype=dtype),
    }
    if architecture.class_name == "QwenImageTransformer2DModel":
        return {**arguments, "img_shapes": [[(1, latent_height // 2, latent_width // 2)]]}
    return {
        **arguments,
        "pooled_projections": values(1, config["pooled_projection_dim"]),
        "guidance": torch.tensor([3.5], device=device),
        "img_ids": _picture_ids(latent_height // 2, latent_width // 2).to(device, dtype),
        "txt_ids": torch.zeros(shape.text_tokens, 3, device=device, dtype=dtype),
    }


def _picture_ids(height: int, width: int) -> Tensor:
    ids = torch.zeros(height, width, 3)
    ids[..., 1] += torch.arange(height)[:, None]
    ids[..., 2] += torch.arange(width)[None]
    return ids.reshape(-1, 3)


def write_config(architecture: Architecture, folder: Path) -> None:
    """`config.json`, as `save_pretrained` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    if architecture.library == "diffusers":
        document = {"_class_name": architecture.class_name, **architecture.config}
        (folder / "config.json").write_text(json.dumps(document))
    else:
        model_class = component_class(architecture.library, architecture.class_name)
        model_class.config_class(**architecture.config, architectures=[architecture.class_name]).save_pretrained(folder)


def build_random(
    architecture: Architecture,
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype = BF16,
    seed: int = 0,
    place: Callable[[nn.Module], TensorPlaces] | None = None,
) -> nn.Module:
    """The model with random weights made on `device`; peak: the model and its largest tensor.

    Args:
        folder: where `config.json` is written.
        place: where the tensors are to lie; on the device if None. Their values are the same wherever they lie.
    """
    write_config(architecture, folder)
    module = build_empty(component_class(architecture.library, architecture.class_name), folder, dtype=dtype)
    places = None if place is None else place(module)
    for name, parameter in list(module.named_parameters()):
        owner_name, _, attribute = name.rpartition(".")
        if places is None:
            values = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
        else:
            values = places.allocate(name, parameter.shape, parameter.dtype)
        module.get_submodule(owner_name)._parameters[attribute] = nn.Parameter(values, requires_grad=False)
    for owner in module.modules():
        for name, buffer in owner._buffers.items():
            owner._buffers[name] = None if buffer is None else buffer.to(device)
    fill_random(module, seed=seed, device=device)
    return module.eval()


def fill_random(module: nn.Module, *, seed: int, device: torch.device) -> None:
    """New values for all parameters, wherever they lie, made on `device` and scaled so that activations keep size.

    Of a sharded parameter this rank's part gets its part of the same values. Peak: the largest parameter, whole.
    """
    sharding = find_sharding(module)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            piece = None if sharding is None else sharding.piece(name)
            own = parameter.data if piece is None else piece.values
            if parameter.ndim < 2:
                own.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            scale = 1.0 / math.sqrt(math.prod(parameter.shape[1:]))
            values = torch.randn(parameter.shape, generator=generator, device=device, dtype=parameter.dtype)
            if piece is None:
                own.copy_(values.mul_(scale))
            else:
                piece.fill(values.mul_(scale))


@dataclass(frozen=True, slots=True)
class Request:
    """A whole request: components by their names in `model_index.json`, and the shape to make."""

    name: str
    pipeline_class: str
    components: Mapping[str, Architecture]
    shape: Shape
    num_steps: int
    num_branches: int = 1

    @property
    def denoisers(self) -> tuple[str, ...]:
        return tuple(name for name in self.components if name.startswith("transformer"))


def flux_request(*, is_small: bool) -> Request:
    parts = {
        "text_encoder_2": SMALL_T5 if is_small else T5_XXL,
        "transformer": SMALL_FLUX if is_small else FLUX_DEV,
        "vae": SMALL_FLUX_VAE if is_small else FLUX_VAE,
    }
    shape = Shape(64, 64, text_tokens=8) if is_small else PICTURE
    return Request("FLUX.1-dev", "FluxPipeline", parts, shape, num_steps=2 if is_small else 8)


def qwen_request(*, is_small: bool) -> Request:
    parts = {
        "text_encoder": SMALL_QWEN25_VL if is_small else QWEN25_VL,
        "transformer": SMALL_QWEN if is_small else QWEN_IMAGE,
        "vae": SMALL_QWEN_VAE if is_small else QWEN_VAE,
    }
    shape = Shape(64, 64, text_tokens=8) if is_small else Shape(1024, 1024, text_tokens=128)
    return Request("Qwen-Image", "QwenImagePipeline", parts, shape, num_steps=2 if is_small else 4, num_branches=2)


def wan22_request(*, is_small: bool) -> Request:
    denoiser = SMALL_WAN if is_small else WAN_14B
    parts = {
        "text_encoder": SMALL_UMT5 if is_small else UMT5_XXL,
        "transformer": denoiser,
        "transformer_2": denoiser,
        "vae": SMALL_WAN_VAE if is_small else WAN_VAE,
    }
    shape = Shape(64, 64, 5, text_tokens=8) if is_small else VIDEO_480P[81]
    return Request("Wan2.2-A14B", "WanPipeline", parts, shape, num_steps=2, num_branches=2)


def write_sparse_checkpoint(request: Request, folder: Path, *, dtype: torch.dtype) -> Path:
    """A checkpoint with real headers and no data: the files are holes, which take no room and read as zeros.

    Planning and loading see a real checkpoint; `fill_random` gives the loaded weights values.
    """
    index: dict[str, Any] = {"_class_name": request.pipeline_class, "_diffusers_version": "0.42.1"}
    for name, architecture in request.components.items():
        index[name] = [architecture.library, architecture.class_name]
        write_config(architecture, folder / name)
        _write_holes(architecture, folder / name, dtype=dtype)
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


_STORED = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}


def _write_holes(architecture: Architecture, folder: Path, *, dtype: torch.dtype) -> None:
    empty = build_empty(component_class(architecture.library, architecture.class_name), folder, dtype=dtype)
    header: dict[str, Any] = {}
    offset, seen = 0, set()
    for name, tensor in empty.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _STORED[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, offset + size]
        }  # fmt: skip
        offset += size
    stem = "diffusion_pytorch_model" if architecture.library == "diffusers" else "model"
    encoded = json.dumps(header).encode()
    with (folder / f"{stem}.safetensors").open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + offset)
