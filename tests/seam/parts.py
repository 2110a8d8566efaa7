"""Parts of tiny pipelines that several families share. Nothing of diffusers is imported before it is built."""

from collections.abc import Sequence
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import torch

from tests.dist.weights.tiny_models import find_model


def build(class_name: str, **arguments: Any) -> Any:
    """An object of one of diffusers' classes."""
    return getattr(diffusers, class_name)(**arguments)


def make_transformer(class_name: str, **changes: Any) -> Any:
    """The class in the tiny configuration of the weights' matrix, with `changes`; random weights, always the same.

    Zero-initialised outputs would hide a mistake: every parameter gets values.
    """
    torch.manual_seed(0)
    return fill_zeros(build(class_name, **{**find_model(class_name).config, **changes})).eval()


def make_unet(**changes: Any) -> Any:
    """A UNet of two levels for 4 latent channels and text embeddings of 16."""
    torch.manual_seed(0)
    config = {
        "block_out_channels": (8, 16), "layers_per_block": 1, "sample_size": 8, "in_channels": 4, "out_channels": 4,
        "norm_num_groups": 4, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 16, "attention_head_dim": 4,
    }  # fmt: skip
    return build("UNet2DConditionModel", **{**config, **changes}).eval()


def fill_zeros(module: torch.nn.Module) -> Any:
    """Gives parameters that are all zero small random values (gates, last layers, parameters without a start)."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point() and not parameter.any():
                parameter.normal_(std=0.2)
    return module


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal values, float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def picture(size: int = 16, *, seed: int = 0) -> PIL.Image.Image:
    """A picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def mask(size: int = 16) -> PIL.Image.Image:
    """White, hence to be painted, in the right half."""
    pixels = np.zeros((size, size), dtype=np.uint8)
    pixels[:, size // 2 :] = 255
    return PIL.Image.fromarray(pixels)


def none_of(*names: str) -> dict[str, None]:
    """Components that a pipeline does without, as embeddings are passed in their place."""
    return dict.fromkeys(names)


def text(
    width: int, *, length: int = 7, pooled: int | None = None, prefix: Sequence[str] = ("", "negative_")
) -> dict[str, Any]:
    """`prompt_embeds` and `negative_prompt_embeds`, (1, length, width) float32; with the pooled ones if asked for."""
    embeddings = {f"{p}prompt_embeds": normal(1, length, width, seed=i) for i, p in enumerate(prefix)}
    if pooled is not None:
        embeddings |= {f"{p}pooled_prompt_embeds": normal(1, pooled, seed=i) for i, p in enumerate(prefix)}
    return embeddings


def text_masks(*, length: int = 7, dtype: torch.dtype = torch.long) -> dict[str, torch.Tensor]:
    """Attention masks of the two prompts; the negative one is shorter."""
    shorter = torch.ones(1, length, dtype=dtype)
    shorter[:, -2:] = 0
    return {"prompt_attention_mask": torch.ones(1, length, dtype=dtype), "negative_prompt_attention_mask": shorter}
