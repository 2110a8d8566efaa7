"""Tiny random Stable Diffusion checkpoints with a ControlNet: what feeds the denoiser at each step."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel

from tests.tiny_checkpoints import make_word_tokenizer

CONTROL_ARGUMENTS: dict[str, Any] = {
    "prompt": "a red circle",
    "negative_prompt": "blue",
    "height": 16,
    "width": 16,
    "guidance_scale": 5.0,
    "num_inference_steps": 4,
}


def make_control_image() -> torch.Tensor:
    """The picture that controls: (1, 3, 16, 16) in [0, 1]."""
    return torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def make_tiny_controlnet_pipeline(*, num_controlnets: int = 1) -> StableDiffusionControlNetPipeline:
    """A pipeline of random models whose ControlNets have an effect (their zero convolutions are not zero)."""
    torch.manual_seed(0)
    tokenizer = make_word_tokenizer()
    tokenizer.model_max_length = 16
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, pad_token_id=0, bos_token_id=2, eos_token_id=1,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16, attention_head_dim=4,
    )  # fmt: skip
    controlnets = [_make_controlnet() for _ in range(num_controlnets)]
    return StableDiffusionControlNetPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
        ).eval(),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        controlnet=controlnets[0] if num_controlnets == 1 else controlnets,
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def make_tiny_controlnet(folder: Path) -> Path:
    """Writes a tiny random checkpoint with a ControlNet into `folder` and returns it."""
    make_tiny_controlnet_pipeline().save_pretrained(folder)
    return folder


def _make_controlnet() -> ControlNetModel:
    controlnet = ControlNetModel(
        block_out_channels=(8, 16), layers_per_block=1, in_channels=4, norm_num_groups=4, cross_attention_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=4,
        conditioning_embedding_out_channels=(8, 16),
    )  # fmt: skip
    for name, parameter in controlnet.named_parameters():
        if name.startswith(("controlnet_down_blocks", "controlnet_mid_block", "controlnet_cond_embedding.conv_out")):
            torch.nn.init.normal_(parameter, std=0.1)
    return controlnet.eval()
