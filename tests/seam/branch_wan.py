"""Wan and what descends from it: a call a branch, two transformers with two scales, conditions from pictures."""

from typing import Any

from diffusers import (
    ChronoEditPipeline,
    LucyEditPipeline,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Pipeline,
    WanImageToVideoPipeline,
    WanPipeline,
    WanVACEPipeline,
    WanVideoToVideoPipeline,
)

from tests.seam.branch_parts import (
    both_prompts,
    make_clip,
    make_flow_scheduler,
    make_image_encoder,
    make_image_processor,
    make_picture,
    make_transformer,
    make_unipc_scheduler,
    make_wan_vae,
)
from tests.seam.tiny import Case, TinyPipeline

SIZE = {"height": 16, "width": 16, "num_frames": 5}


def make_wan(**changes: Any) -> TinyPipeline:
    pipeline = WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=make_unipc_scheduler(),
        transformer=make_transformer("WanTransformer3DModel"),
    )  # fmt: skip
    return TinyPipeline(pipeline, {**both_prompts(), **SIZE, "guidance_scale": 5.0, **changes})


def make_wan_unguided() -> TinyPipeline:
    return make_wan(guidance_scale=1.0)


def make_wan_two_transformers() -> TinyPipeline:
    pipeline = WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=make_unipc_scheduler(),
        transformer=make_transformer("WanTransformer3DModel"),
        transformer_2=make_transformer("WanTransformer3DModel", seed=1), boundary_ratio=0.8,
    )  # fmt: skip
    arguments = {**both_prompts(), **SIZE, "guidance_scale": 4.0, "guidance_scale_2": 3.0}
    return TinyPipeline(pipeline, arguments, ("transformer", "transformer_2"))


def make_wan_expanded_timesteps() -> TinyPipeline:
    """Wan 2.2 5B: a timestep a token."""
    tiny = make_wan()
    tiny.pipeline.register_to_config(expand_timesteps=True)
    return tiny


def make_wan_image_to_video() -> TinyPipeline:
    pipeline = WanImageToVideoPipeline(
        tokenizer=None, text_encoder=None, vae=make_wan_vae(), scheduler=make_unipc_scheduler(),
        image_processor=make_image_processor(), image_encoder=make_image_encoder(),
        transformer=make_transformer("WanTransformer3DModel", in_channels=12, image_dim=16),
    )  # fmt: skip
    return TinyPipeline(pipeline, {**both_prompts(), **SIZE, "guidance_scale": 5.0, "image": make_picture()})


def make_wan_video_to_video() -> TinyPipeline:
    pipeline = WanVideoToVideoPipeline(
        tokenizer=None, text_encoder=None, vae=make_wan_vae(), scheduler=make_unipc_scheduler(),
        transformer=make_transformer("WanTransformer3DModel"),
    )  # fmt: skip
    arguments = {**both_prompts(), "height": 16, "width": 16, "guidance_scale": 5.0, "video": make_clip(5)}
    return TinyPipeline(pipeline, {**arguments, "strength": 0.8})


def make_wan_vace() -> TinyPipeline:
    pipeline = WanVACEPipeline(
        tokenizer=None, text_encoder=None, vae=make_wan_vae(), scheduler=make_unipc_scheduler(),
        transformer=make_transformer("WanVACETransformer3DModel", vace_in_channels=2 * 4 + 64),
    )  # fmt: skip
    return TinyPipeline(pipeline, {**both_prompts(), **SIZE, "guidance_scale": 5.0, "video": make_clip(5)})


def make_skyreels() -> TinyPipeline:
    pipeline = SkyReelsV2Pipeline(
        tokenizer=None, text_encoder=None, vae=make_wan_vae(), scheduler=make_unipc_scheduler(),
        transformer=make_transformer("SkyReelsV2Transformer3DModel"),
    )  # fmt: skip
    return TinyPipeline(pipeline, {**both_prompts(), **SIZE, "guidance_scale": 5.0})


def make_skyreels_forcing(**changes: Any) -> TinyPipeline:
    """A noise level a frame."""
    pipeline = SkyReelsV2DiffusionForcingPipeline(
        tokenizer=None, text_encoder=None, vae=make_wan_vae(), scheduler=make_unipc_scheduler(),
        transformer=make_transformer("SkyReelsV2Transformer3DModel"),
    )  # fmt: skip
    arguments = {**both_prompts(), "prompt": None, "height": 16, "width": 16, "num_frames": 13, "guidance_scale": 5.0}
    return TinyPipeline(pipeline, {**arguments, "base_num_frames": 13, **changes})


def make_skyreels_forcing_in_blocks() -> TinyPipeline:
    """The pipeline writes the size of its blocks into the transformer's configuration."""
    return make_skyreels_forcing(causal_block_size=2, ar_step=1)


def make_chrono_edit() -> TinyPipeline:
    pipeline = ChronoEditPipeline(
        tokenizer=None, text_encoder=None, vae=make_wan_vae(), scheduler=make_flow_scheduler(),
        image_processor=make_image_processor(), image_encoder=make_image_encoder(),
        transformer=make_transformer("ChronoEditTransformer3DModel", in_channels=12, image_dim=16),
    )  # fmt: skip
    return TinyPipeline(pipeline, {**both_prompts(), **SIZE, "guidance_scale": 5.0, "image": make_picture()})


def make_lucy_edit() -> TinyPipeline:
    pipeline = LucyEditPipeline(
        tokenizer=None, text_encoder=None, vae=make_wan_vae(), scheduler=make_unipc_scheduler(),
        transformer=make_transformer("WanTransformer3DModel", in_channels=8),
    )  # fmt: skip
    return TinyPipeline(pipeline, {**both_prompts(), **SIZE, "guidance_scale": 5.0, "video": make_clip(5)})


CASES = (
    Case("WanPipeline", "Wan", "branch", make_wan),
    Case("WanPipeline without guidance", "Wan", "branch", make_wan_unguided),
    Case("WanPipeline two transformers", "Wan 2.2", "branch", make_wan_two_transformers),
    Case("WanPipeline expanded timesteps", "Wan 2.2", "branch", make_wan_expanded_timesteps),
    Case("WanImageToVideoPipeline", "Wan", "branch", make_wan_image_to_video),
    Case("WanVideoToVideoPipeline", "Wan", "branch", make_wan_video_to_video),
    Case("WanVACEPipeline", "Wan VACE", "branch", make_wan_vace, is_representative=True),
    Case("SkyReelsV2Pipeline", "SkyReels V2", "branch", make_skyreels),
    Case("SkyReelsV2DiffusionForcingPipeline", "SkyReels V2", "branch", make_skyreels_forcing),
    Case(
        "SkyReelsV2DiffusionForcingPipeline in blocks", "SkyReels V2", "branch", make_skyreels_forcing_in_blocks,
        is_representative=True,
    ),
    Case("ChronoEditPipeline", "ChronoEdit", "branch", make_chrono_edit),
    Case("LucyEditPipeline", "Lucy", "branch", make_lucy_edit),
)  # fmt: skip
