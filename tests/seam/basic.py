"""The basic cases: a tiny random pipeline a style of guidance, without text encoders; prompts come as embeddings."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

from tests.seam.tiny import Case, TinyPipeline


def make_vae(latent_channels: int = 4) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8), in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=latent_channels, norm_num_groups=4,
        use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0, scaling_factor=1.0,
    )  # fmt: skip


def make_stable_diffusion(scheduler: Any = None) -> TinyPipeline:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16, attention_head_dim=4,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=make_vae(), text_encoder=None, tokenizer=None, unet=unet.eval(), scheduler=scheduler or DDIMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    arguments = {"prompt_embeds": torch.randn(1, 7, 16), "negative_prompt_embeds": torch.randn(1, 7, 16)}
    return TinyPipeline(pipeline, {**arguments, "height": 16, "width": 16, "guidance_scale": 5.0}, ("unet",))


def make_ancestral_stable_diffusion() -> TinyPipeline:
    return make_stable_diffusion(EulerAncestralDiscreteScheduler())


def make_stable_diffusion_3() -> TinyPipeline:
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=16, out_channels=4,
        pos_embed_max_size=16,
    )  # fmt: skip
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer.eval(), scheduler=FlowMatchEulerDiscreteScheduler(), vae=make_vae(), text_encoder=None,
        tokenizer=None, text_encoder_2=None, tokenizer_2=None, text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    arguments = {
        "prompt_embeds": torch.randn(1, 7, 32), "negative_prompt_embeds": torch.randn(1, 7, 32),
        "pooled_prompt_embeds": torch.randn(1, 16), "negative_pooled_prompt_embeds": torch.randn(1, 16),
        "height": 16, "width": 16, "guidance_scale": 5.0,
    }  # fmt: skip
    return TinyPipeline(pipeline, arguments)


def make_flux_true_cfg() -> TinyPipeline:
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=False,
    )  # fmt: skip
    pipeline = FluxPipeline(
        transformer=transformer.eval(), scheduler=FlowMatchEulerDiscreteScheduler(), vae=make_vae(), text_encoder=None,
        tokenizer=None, text_encoder_2=None, tokenizer_2=None,
    )  # fmt: skip
    arguments = {
        "prompt_embeds": torch.randn(1, 7, 32), "negative_prompt_embeds": torch.randn(1, 7, 32),
        "pooled_prompt_embeds": torch.randn(1, 16), "negative_pooled_prompt_embeds": torch.randn(1, 16),
        "height": 16, "width": 16, "true_cfg_scale": 4.0,
    }  # fmt: skip
    return TinyPipeline(pipeline, arguments)


def make_chroma() -> TinyPipeline:
    torch.manual_seed(0)
    transformer = ChromaTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 4, 8), approximator_hidden_dim=32, approximator_layers=1,
        approximator_num_channels=16,
    )  # fmt: skip
    pipeline = ChromaPipeline(
        transformer=transformer.eval(), scheduler=FlowMatchEulerDiscreteScheduler(), vae=make_vae(), text_encoder=None,
        tokenizer=None,
    )  # fmt: skip
    mask = torch.ones(1, 7, dtype=torch.bool)
    arguments = {
        "prompt_embeds": torch.randn(1, 7, 32), "negative_prompt_embeds": torch.randn(1, 7, 32),
        "prompt_attention_mask": mask, "negative_prompt_attention_mask": mask, "height": 16, "width": 16,
        "guidance_scale": 4.0,
    }  # fmt: skip
    return TinyPipeline(pipeline, arguments)


CASES = (
    Case("StableDiffusionPipeline", "Stable Diffusion", "batched", make_stable_diffusion, is_representative=True),
    Case(
        "StableDiffusionPipeline ancestral", "Stable Diffusion", "batched", make_ancestral_stable_diffusion,
        is_representative=True,
    ),
    Case("StableDiffusion3Pipeline", "Stable Diffusion 3", "batched", make_stable_diffusion_3, is_representative=True),
    Case("FluxPipeline true CFG", "Flux", "branch", make_flux_true_cfg, is_representative=True),
    Case("ChromaPipeline", "Chroma", "branch", make_chroma, is_representative=True),
)  # fmt: skip
