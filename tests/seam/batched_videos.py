"""Models for videos that get all branches in one call a step."""

from typing import Any

import torch

from tests.seam.basic import make_vae
from tests.seam.parts import build, fill_zeros, make_transformer, none_of, picture, text, text_masks
from tests.seam.tiny import Case, TinyPipeline

FLOW = "FlowMatchEulerDiscreteScheduler"
NO_TEXT = none_of("text_encoder", "tokenizer")


def make_ltx_vae() -> Any:
    return build(
        "AutoencoderKLLTXVideo", latent_channels=4, block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1), spatio_temporal_scaling=(True, False),
        decoder_spatio_temporal_scaling=(True, False), decoder_inject_noise=(False,) * 3, patch_size=4,
        down_block_types=("LTXVideoDownBlock3D",) * 2, upsample_residual=(False, False), upsample_factor=(1, 1),
    )  # fmt: skip


def ltx(class_name: str, **arguments: Any) -> TinyPipeline:
    pipeline = build(
        class_name, transformer=make_transformer("LTXVideoTransformer3DModel"), scheduler=build(FLOW),
        vae=make_ltx_vae().eval(), **NO_TEXT,
    )  # fmt: skip
    size = {"height": 32, "width": 32, "num_frames": 9}
    return TinyPipeline(pipeline, {**text(24), **text_masks(), "guidance_scale": 3.0, **size, **arguments})


def make_ltx() -> TinyPipeline:
    return ltx("LTXPipeline", guidance_rescale=0.7)


def make_ltx_image_to_video() -> TinyPipeline:
    return ltx("LTXImageToVideoPipeline", image=picture(32))


def make_ltx_condition() -> TinyPipeline:
    return ltx("LTXConditionPipeline", image=picture(32))


def cogvideox(class_name: str, *, channels: int = 4, **arguments: Any) -> TinyPipeline:
    transformer = make_transformer(
        "CogVideoXTransformer3DModel", in_channels=channels, use_rotary_positional_embeddings=True
    )
    vae = build(
        "AutoencoderKLCogVideoX", block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1,
        norm_num_groups=4, temporal_compression_ratio=4, down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
    )  # fmt: skip
    pipeline = build(
        class_name, transformer=transformer, scheduler=build("CogVideoXDDIMScheduler"), vae=vae.eval(), **NO_TEXT
    )
    return TinyPipeline(pipeline, {**text(24), "guidance_scale": 6.0, "height": 64, "width": 64, **arguments})


def make_cogvideox() -> TinyPipeline:
    """Two latent frames: two of everything that is not a batch."""
    return cogvideox("CogVideoXPipeline", num_frames=5)


def make_cogvideox_dynamic() -> TinyPipeline:
    return cogvideox("CogVideoXPipeline", num_frames=9, use_dynamic_cfg=True)


def make_cogvideox_image_to_video() -> TinyPipeline:
    return cogvideox("CogVideoXImageToVideoPipeline", channels=8, image=picture(64), num_frames=9)


def make_cogvideox_video_to_video() -> TinyPipeline:
    video = [picture(64, seed=index) for index in range(9)]
    return cogvideox("CogVideoXVideoToVideoPipeline", video=video, strength=0.8)


def make_mochi() -> TinyPipeline:
    pipeline = build(
        "MochiPipeline",
        transformer=make_transformer("MochiTransformer3DModel"),
        scheduler=build(FLOW),
        vae=None,
        **NO_TEXT,
    )
    masks = text_masks(dtype=torch.bool)
    size = {"height": 32, "width": 32, "num_frames": 7}
    return TinyPipeline(pipeline, {**text(24), **masks, "guidance_scale": 4.5, **size})


def make_animatediff(class_name: str = "AnimateDiffPipeline") -> TinyPipeline:
    """Its text embeddings are repeated for each frame: twice the frames, not twice the videos."""
    pipeline = build(
        class_name, vae=make_vae(), unet=make_motion_unet(), motion_adapter=None,
        scheduler=build("DDIMScheduler"), **NO_TEXT,
    )  # fmt: skip
    size = {"height": 16, "width": 16, "num_frames": 3}
    return TinyPipeline(pipeline, {**text(16), "guidance_scale": 7.5, **size}, ("unet",))


def make_motion_unet() -> Any:
    unet = build(
        "UNetMotionModel", sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlockMotion", "CrossAttnDownBlockMotion"), cross_attention_dim=16,
        up_block_types=("CrossAttnUpBlockMotion", "UpBlockMotion"), num_attention_heads=2,
        motion_num_attention_heads=2, motion_max_seq_length=8, use_motion_mid_block=True,
    )  # fmt: skip
    return fill_zeros(unet).eval()


def make_animatediff_video_to_video() -> TinyPipeline:
    tiny = make_animatediff("AnimateDiffVideoToVideoPipeline")
    video = [picture(seed=index) for index in range(3)]
    return TinyPipeline(tiny.pipeline, {**text(16), "guidance_scale": 7.5, "video": video, "strength": 0.8}, ("unet",))


def make_anyflow() -> TinyPipeline:
    """Two time steps for each frame."""
    pipeline = build(
        "AnyFlowPipeline", transformer=make_transformer("AnyFlowTransformer3DModel"), vae=make_wan_vae(),
        scheduler=build("FlowMapEulerDiscreteScheduler"), **NO_TEXT,
    )  # fmt: skip
    return TinyPipeline(pipeline, {**text(24), "guidance_scale": 3.0, "height": 64, "width": 64, "num_frames": 9})


def make_wan_vae() -> Any:
    return build(
        "AutoencoderKLWan", base_dim=4, z_dim=4, dim_mult=[1] * 4, num_res_blocks=1, latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4, temperal_downsample=[False, True, True],
    ).eval()  # fmt: skip


def make_sana_image_to_video() -> TinyPipeline:
    pipeline = build(
        "SanaImageToVideoPipeline", transformer=make_transformer("SanaVideoTransformer3DModel"), vae=make_wan_vae(),
        scheduler=build(FLOW), **NO_TEXT,
    )  # fmt: skip
    arguments = {**text(24), **text_masks(), "negative_prompt": None, "guidance_scale": 6.0, "frames": 9}
    arguments |= {"height": 64, "width": 64, "use_resolution_binning": False, "image": picture(64)}
    return TinyPipeline(pipeline, arguments)


def make_allegro() -> TinyPipeline:
    pipeline = build(
        "AllegroPipeline", transformer=make_transformer("AllegroTransformer3DModel"), vae=None,
        scheduler=build("EulerAncestralDiscreteScheduler"), **NO_TEXT,
    )  # fmt: skip
    size = {"height": 32, "width": 32, "num_frames": 12}
    return TinyPipeline(pipeline, {**text(24), **text_masks(), "negative_prompt": None, "guidance_scale": 7.5, **size})


def make_latte() -> TinyPipeline:
    pipeline = build(
        "LattePipeline", transformer=make_transformer("LatteTransformer3DModel"), vae=make_vae(),
        scheduler=build("DDIMScheduler"), **NO_TEXT,
    )  # fmt: skip
    size = {"height": 16, "width": 16, "video_length": 3}
    return TinyPipeline(
        pipeline, {**text(24), "negative_prompt": None, "guidance_scale": 7.5, "mask_feature": False, **size}
    )


def make_sana_video() -> TinyPipeline:
    pipeline = build(
        "SanaVideoPipeline", transformer=make_transformer("SanaVideoTransformer3DModel"), vae=None,
        scheduler=build("DPMSolverMultistepScheduler", prediction_type="flow_prediction", use_flow_sigmas=True),
        **NO_TEXT,
    )  # fmt: skip
    arguments = {**text(24), **text_masks(), "negative_prompt": None, "guidance_scale": 6.0, "frames": 9}
    return TinyPipeline(pipeline, {**arguments, "height": 64, "width": 64, "use_resolution_binning": False})


def make_easyanimate() -> TinyPipeline:
    vae = build(
        "AutoencoderKLMagvit", block_out_channels=(8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=4,
        down_block_types=("SpatialDownBlock3D", "SpatialTemporalDownBlock3D"),
        up_block_types=("SpatialUpBlock3D", "SpatialTemporalUpBlock3D"),
    )  # fmt: skip
    pipeline = build(
        "EasyAnimatePipeline", transformer=make_transformer("EasyAnimateTransformer3DModel"), vae=vae.eval(),
        scheduler=build(FLOW), **NO_TEXT,
    )  # fmt: skip
    size = {"height": 64, "width": 64, "num_frames": 5}
    return TinyPipeline(pipeline, {**text(24), **text_masks(), "guidance_scale": 5.0, **size})


def make_stable_video_diffusion() -> TinyPipeline:
    """Guidance grows from frame to frame; the branches are the picture's embedding and zeros."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    unet = build(
        "UNetSpatioTemporalConditionModel", sample_size=8, block_out_channels=(32, 32), layers_per_block=1,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"), cross_attention_dim=16,
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), num_attention_heads=(2, 2),
        addition_time_embed_dim=4, projection_class_embeddings_input_dim=12, in_channels=8, out_channels=4,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=16, projection_dim=16, num_hidden_layers=1, num_attention_heads=2, image_size=224,
        intermediate_size=24, patch_size=56,
    )  # fmt: skip
    vae = build(
        "AutoencoderKLTemporalDecoder", block_out_channels=(32, 32), latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
    )  # fmt: skip
    pipeline = build(
        "StableVideoDiffusionPipeline", unet=unet.eval(), image_encoder=CLIPVisionModelWithProjection(vision).eval(),
        scheduler=build("EulerDiscreteScheduler", prediction_type="v_prediction"), vae=vae.eval(),
        feature_extractor=CLIPImageProcessor(),
    )  # fmt: skip
    arguments = {"image": picture(16), "height": 16, "width": 16, "num_frames": 3, "min_guidance_scale": 1.5}
    return TinyPipeline(pipeline, arguments, ("unet",))


def ltx2(class_name: str = "LTX2Pipeline", **arguments: Any) -> TinyPipeline:
    """Video and sound from one transformer. Skipped blocks and separated modalities are calls of their own."""
    from diffusers.pipelines.ltx2 import LTX2TextConnectors

    transformer = make_transformer("LTX2VideoTransformer3DModel")
    torch.manual_seed(1)
    connectors = LTX2TextConnectors(
        caption_channels=24, text_proj_in_factor=2, video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=12, video_connector_num_layers=1, audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=12, audio_connector_num_layers=1, connector_rope_base_seq_len=16,
        video_connector_num_learnable_registers=None, audio_connector_num_learnable_registers=None,
    )  # fmt: skip
    pipeline = build(
        class_name, transformer=transformer, scheduler=build(FLOW), connectors=connectors.eval(), vae=make_ltx2_vae(),
        audio_vae=make_ltx2_audio_vae(), vocoder=None, **NO_TEXT,
    )  # fmt: skip
    calls = {"stg_scale": 0.0, "audio_stg_scale": 0.0, "modality_scale": 1.0, "audio_modality_scale": 1.0}
    size = {"height": 32, "width": 32, "num_frames": 9, "frame_rate": 25.0}
    return TinyPipeline(pipeline, {**text(48), **text_masks(), "guidance_scale": 3.0, **calls, **size, **arguments})


def make_ltx2_vae() -> Any:
    return build(
        "AutoencoderKLLTX2Video", latent_channels=4, block_out_channels=(8, 8), decoder_block_out_channels=(8,),
        down_block_types=("LTX2VideoDownBlock3D",) * 2, layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True, True), decoder_spatio_temporal_scaling=(True,), upsample_factor=(1,),
        decoder_inject_noise=(False, False), downsample_type=("spatial", "temporal"), upsample_residual=(False,),
        upsample_type=("spatiotemporal",), spatial_compression_ratio=8, temporal_compression_ratio=2,
    ).eval()  # fmt: skip


def make_ltx2_audio_vae() -> Any:
    return build(
        "AutoencoderKLLTX2Audio", base_channels=4, ch_mult=(1,), num_res_blocks=1, latent_channels=2, mel_bins=8,
        resolution=8,
    ).eval()  # fmt: skip


def make_ltx2() -> TinyPipeline:
    return ltx2()


STG = {"stg_scale": 1.0, "audio_stg_scale": 1.0, "spatio_temporal_guidance_blocks": [1]}
MODALITY = {"modality_scale": 3.0, "audio_modality_scale": 3.0}


def make_ltx2_image_to_video() -> TinyPipeline:
    return ltx2("LTX2ImageToVideoPipeline", image=picture(32), **STG)


def make_ltx2_condition() -> TinyPipeline:
    from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition

    return ltx2("LTX2ConditionPipeline", conditions=[LTX2VideoCondition(frames=picture(32), index=0, strength=1.0)])


def make_ltx2_stg() -> TinyPipeline:
    return ltx2(**STG)


def make_ltx2_stg_and_modality() -> TinyPipeline:
    return ltx2(**STG, **MODALITY)


CASES = (
    Case("LTXPipeline", "LTX", "batched", make_ltx),
    Case("LTXImageToVideoPipeline", "LTX", "batched", make_ltx_image_to_video),
    Case("LTXConditionPipeline", "LTX", "batched", make_ltx_condition),
    Case("CogVideoXPipeline", "CogVideoX", "batched", make_cogvideox, is_representative=True),
    Case("CogVideoXPipeline dynamic scale", "CogVideoX", "batched", make_cogvideox_dynamic),
    Case("CogVideoXImageToVideoPipeline", "CogVideoX", "batched", make_cogvideox_image_to_video),
    Case("CogVideoXVideoToVideoPipeline", "CogVideoX", "batched", make_cogvideox_video_to_video),
    Case("MochiPipeline", "Mochi", "batched", make_mochi),
    Case("AnimateDiffPipeline", "AnimateDiff", "batched", make_animatediff),
    Case("AnimateDiffVideoToVideoPipeline", "AnimateDiff", "batched", make_animatediff_video_to_video),
    Case("AnyFlowPipeline", "AnyFlow", "batched", make_anyflow),
    Case("SanaImageToVideoPipeline", "Sana", "batched", make_sana_image_to_video),
    Case("AllegroPipeline", "Allegro", "batched", make_allegro),
    Case("LattePipeline", "Latte", "batched", make_latte),
    Case("SanaVideoPipeline", "Sana", "batched", make_sana_video),
    Case("EasyAnimatePipeline", "EasyAnimate", "batched", make_easyanimate),
    Case("StableVideoDiffusionPipeline", "Stable Video Diffusion", "batched", make_stable_video_diffusion),
    Case("LTX2Pipeline", "LTX2", "batched", make_ltx2),
    Case("LTX2Pipeline STG", "LTX2", "mixed", make_ltx2_stg),
    Case("LTX2ImageToVideoPipeline STG", "LTX2", "mixed", make_ltx2_image_to_video),
    Case("LTX2ConditionPipeline", "LTX2", "batched", make_ltx2_condition),
    Case("LTX2Pipeline STG and modality", "LTX2", "mixed", make_ltx2_stg_and_modality, is_representative=True),
)  # fmt: skip
