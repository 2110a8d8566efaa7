"""Parts that the tiny pipelines of one call a branch share: transformers, autoencoders, embeddings."""

from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKLFlux2, AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from tests.dist.weights.tiny_models import find_model, ones, values

TEXT_DIM = 24
"""Width of the text embeddings that the tiny transformers take."""


def make_transformer(class_name: str, *, seed: int = 0, **changes: Any) -> torch.nn.Module:
    """The tiny transformer of that class with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return getattr(diffusers, class_name)(**{**find_model(class_name).config, **changes}).eval()


def make_wan_vae(z_dim: int = 4) -> AutoencoderKLWan:
    """A factor of 8 in space and 4 in time."""
    torch.manual_seed(1)
    return AutoencoderKLWan(
        base_dim=8, z_dim=z_dim, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * z_dim, latents_std=[1.0] * z_dim,
    ).eval()  # fmt: skip


def make_deep_wan_vae() -> AutoencoderKLWan:
    """A factor of 64 in space, for pipelines that scale every picture to 1024 x 1024."""
    torch.manual_seed(1)
    return AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1] * 7, num_res_blocks=1, temperal_downsample=[False] * 6,
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4, scale_factor_spatial=64,
    ).eval()  # fmt: skip


def make_flux2_vae() -> AutoencoderKLFlux2:
    """2 latent channels; patches of 2 x 2 make 8."""
    torch.manual_seed(1)
    return AutoencoderKLFlux2(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, layers_per_block=1,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=2, norm_num_groups=4, use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()  # fmt: skip


def make_flow_scheduler(**changes: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**changes)


def make_unipc_scheduler() -> UniPCMultistepScheduler:
    """The scheduler of published Wan checkpoints: it keeps earlier results."""
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def both_prompts(*, length: int = 7, width: int = TEXT_DIM, negative_length: int | None = None) -> dict[str, Any]:
    """`prompt_embeds` and `negative_prompt_embeds`, (1, length, width) float32."""
    return {
        "prompt_embeds": values(1, length, width),
        "negative_prompt_embeds": -values(1, negative_length or length, width),
    }


def both_masks(name: str, *, length: int = 7, negative_length: int | None = None) -> dict[str, Any]:
    """The masks `{name}` and `negative_{name}` of ones, (1, length) int64."""
    return {name: ones(1, length), f"negative_{name}": ones(1, negative_length or length)}


def make_picture(width: int = 16, height: int = 16) -> Image.Image:
    """Random pixels, always the same."""
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(7), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def make_clip(num_frames: int, width: int = 16, height: int = 16) -> Sequence[Image.Image]:
    return [make_picture(width, height)] * num_frames


def make_image_encoder() -> CLIPVisionModel:
    """Gives (1, 5, 16) for a picture of 32 x 32."""
    torch.manual_seed(2)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    return CLIPVisionModel(config).eval()


def make_image_processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
