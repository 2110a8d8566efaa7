"""Guider objects: HunyuanVideo 1.5, HunyuanImage, Motif; two branches, three, and guidance for a while."""

from typing import Any

import torch
from diffusers import (
    AdaptiveProjectedGuidance,
    AutoGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    HunyuanImagePipeline,
    HunyuanVideo15Pipeline,
    LayerSkipConfig,
    MotifVideoPipeline,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
)
from diffusers.guiders.adaptive_projected_guidance_mix import AdaptiveProjectedMixGuidance
from diffusers.models import AutoencoderKLHunyuanVideo15

from tests.dist.weights.tiny_models import ones, values
from tests.seam.branch_parts import both_masks, both_prompts, make_flow_scheduler, make_transformer, make_wan_vae
from tests.seam.tiny import Case, TinyPipeline

SKIPPED_BLOCK = LayerSkipConfig([1], fqn="transformer_blocks")
SKIPPED_FEED_FORWARD = LayerSkipConfig([1], fqn="transformer_blocks", skip_attention=False)
"""diffusers can skip only this part of HunyuanVideo 1.5's blocks."""


def make_hunyuan_video_15(guider: Any = None) -> TinyPipeline:
    transformer = make_transformer("HunyuanVideo15Transformer3DModel", in_channels=2 * 4 + 1)
    pipeline = HunyuanVideo15Pipeline(
        text_encoder=None, tokenizer=None, transformer=transformer, vae=make_hunyuan_video_15_vae(),
        scheduler=make_flow_scheduler(), text_encoder_2=None, tokenizer_2=None,
        guider=guider or ClassifierFreeGuidance(guidance_scale=4.0),
    )  # fmt: skip
    arguments = {
        **both_prompts(), **both_masks("prompt_embeds_mask"), **both_masks("prompt_embeds_mask_2", length=5),
        "prompt_embeds_2": values(1, 5, 12), "negative_prompt_embeds_2": -values(1, 5, 12),
        "height": 32, "width": 32, "num_frames": 5,
    }  # fmt: skip
    return TinyPipeline(pipeline, arguments)


def make_hunyuan_video_15_vae() -> AutoencoderKLHunyuanVideo15:
    """The pipeline takes its number of latent channels from it."""
    torch.manual_seed(1)
    return AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, spatial_compression_ratio=8
    ).eval()


def make_skip_layers() -> TinyPipeline:
    """Three branches; in the third a block of the transformer is skipped by a hook."""
    return make_hunyuan_video_15(
        SkipLayerGuidance(
            guidance_scale=4.0,
            skip_layer_config=SKIPPED_FEED_FORWARD,
            skip_layer_guidance_start=0.0,
            skip_layer_guidance_stop=1.0,
        )
    )


def make_skip_layers_in_some() -> TinyPipeline:
    """Guidance from the second step on, the skipped block until the third: one, two and three branches."""
    return make_hunyuan_video_15(
        SkipLayerGuidance(
            guidance_scale=4.0,
            skip_layer_config=SKIPPED_FEED_FORWARD,
            skip_layer_guidance_start=0.0,
            skip_layer_guidance_stop=0.5,
            start=0.25,
        )
    )


def make_projected() -> TinyPipeline:
    """Keeps a running average from step to step."""
    return make_hunyuan_video_15(
        AdaptiveProjectedGuidance(guidance_scale=4.0, adaptive_projected_guidance_momentum=0.5)
    )


def make_zero_star() -> TinyPipeline:
    return make_hunyuan_video_15(ClassifierFreeZeroStarGuidance(guidance_scale=4.0))


def make_guidance_for_a_while() -> TinyPipeline:
    return make_hunyuan_video_15(ClassifierFreeGuidance(guidance_scale=4.0, start=0.25, stop=0.75))


def make_hunyuan_image(guider: Any = None) -> TinyPipeline:
    projected = AdaptiveProjectedMixGuidance(guidance_scale=4.0, adaptive_projected_guidance_start_step=2)
    pipeline = HunyuanImagePipeline(
        scheduler=make_flow_scheduler(), vae=None, text_encoder=None, tokenizer=None, text_encoder_2=None,
        tokenizer_2=None, transformer=make_transformer("HunyuanImageTransformer2DModel", text_embed_2_dim=12),
        ocr_guider=guider or projected,
    )  # fmt: skip
    arguments = {
        **both_prompts(), **both_masks("prompt_embeds_mask"), **both_masks("prompt_embeds_mask_2", length=5),
        "prompt_embeds_2": values(1, 5, 12), "negative_prompt_embeds_2": -values(1, 5, 12),
        "height": 64, "width": 64,
    }  # fmt: skip
    return TinyPipeline(pipeline, arguments)


def make_perturbed_attention() -> TinyPipeline:
    """Three branches; in the third a block's attention attends to nothing."""
    config = LayerSkipConfig(
        [1], fqn="transformer_blocks", skip_attention=False, skip_attention_scores=True, skip_ff=False
    )
    return make_hunyuan_image(
        PerturbedAttentionGuidance(
            guidance_scale=4.0,
            perturbed_guidance_config=config,
            perturbed_guidance_start=0.0,
            perturbed_guidance_stop=1.0,
        )
    )


def make_motif(guider: Any = None) -> TinyPipeline:
    pipeline = MotifVideoPipeline(
        scheduler=make_flow_scheduler(), vae=make_wan_vae(), text_encoder=None, tokenizer=None,
        transformer=make_transformer("MotifVideoTransformer3DModel"),
        guider=guider or AdaptiveProjectedGuidance(guidance_scale=4.0),
    )  # fmt: skip
    masks = {"prompt_attention_mask": ones(1, 7), "negative_prompt_attention_mask": ones(1, 7)}
    return TinyPipeline(pipeline, {**both_prompts(), **masks, "height": 32, "width": 32, "num_frames": 5})


def make_auto_guidance() -> TinyPipeline:
    """The second of two branches runs a worse model: the same without a block."""
    return make_motif(AutoGuidance(guidance_scale=4.0, auto_guidance_config=SKIPPED_BLOCK))


CASES = (
    Case("HunyuanVideo15Pipeline", "HunyuanVideo 1.5", "guider", make_hunyuan_video_15),
    Case("HunyuanVideo15Pipeline skip layers", "HunyuanVideo 1.5", "guider", make_skip_layers),
    Case("HunyuanVideo15Pipeline skip layers in some steps", "HunyuanVideo 1.5", "guider", make_skip_layers_in_some),
    Case("HunyuanVideo15Pipeline projected", "HunyuanVideo 1.5", "guider", make_projected),
    Case("HunyuanVideo15Pipeline zero star", "HunyuanVideo 1.5", "guider", make_zero_star),
    Case("HunyuanVideo15Pipeline guidance for a while", "HunyuanVideo 1.5", "guider", make_guidance_for_a_while),
    Case("HunyuanImagePipeline", "HunyuanImage", "guider", make_hunyuan_image),
    Case("MotifVideoPipeline", "Motif", "guider", make_motif),
    Case("HunyuanImagePipeline perturbed attention", "HunyuanImage", "guider", make_perturbed_attention),
    Case("MotifVideoPipeline auto guidance", "Motif", "guider", make_auto_guidance, is_representative=True),
)  # fmt: skip
