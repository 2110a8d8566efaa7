"""Pipelines without guidance, or with guidance that is built into the model: they simply run, on one lane."""

import torch
from diffusers import (
    Flux2Pipeline,
    FluxPipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    SanaSprintPipeline,
    SCMScheduler,
    UNet2DConditionModel,
)

from tests.dist.weights.tiny_models import ones, values
from tests.seam.basic import make_vae
from tests.seam.branch_parts import make_flow_scheduler, make_flux2_vae, make_transformer
from tests.seam.tiny import Case, TinyPipeline


def make_flux_embedded() -> TinyPipeline:
    pipeline = FluxPipeline(
        transformer=make_transformer("FluxTransformer2DModel"), scheduler=make_flow_scheduler(), vae=None,
        text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
    )  # fmt: skip
    arguments = {"prompt_embeds": values(1, 7, 24), "pooled_prompt_embeds": values(1, 12), "guidance_scale": 3.5}
    return TinyPipeline(pipeline, {**arguments, "height": 32, "width": 32})


def make_flux2() -> TinyPipeline:
    pipeline = Flux2Pipeline(
        scheduler=make_flow_scheduler(), vae=make_flux2_vae(), text_encoder=None, tokenizer=None,
        transformer=make_transformer("Flux2Transformer2DModel"),
    )  # fmt: skip
    return TinyPipeline(pipeline, {"prompt_embeds": values(1, 7, 24), "height": 32, "width": 32})


def make_sana_sprint() -> TinyPipeline:
    """Its scheduler draws noise at each step."""
    pipeline = SanaSprintPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=make_transformer("SanaTransformer2DModel"),
        scheduler=SCMScheduler(),
    )  # fmt: skip
    arguments = {
        "prompt_embeds": values(1, 7, 24), "prompt_attention_mask": ones(1, 7), "height": 256, "width": 256,
        "use_resolution_binning": False, "intermediate_timesteps": None,
    }  # fmt: skip
    return TinyPipeline(pipeline, arguments)


def make_latent_consistency() -> TinyPipeline:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16, attention_head_dim=4, time_cond_proj_dim=32,
    )  # fmt: skip
    pipeline = LatentConsistencyModelPipeline(
        vae=make_vae(), text_encoder=None, tokenizer=None, unet=unet.eval(), scheduler=LCMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return TinyPipeline(pipeline, {"prompt_embeds": values(1, 7, 16), "height": 16, "width": 16}, ("unet",))


CASES = (
    Case("FluxPipeline", "Flux", "none", make_flux_embedded),
    Case("Flux2Pipeline", "Flux 2", "none", make_flux2, is_representative=True),
    Case("SanaSprintPipeline", "Sana Sprint", "none", make_sana_sprint),
    Case("LatentConsistencyModelPipeline", "Latent Consistency", "none", make_latent_consistency),
)  # fmt: skip
