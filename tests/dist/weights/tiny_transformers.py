"""Tiny configurations of the remaining transformer classes of diffusers; they run in the full matrix only."""

from typing import Any

import torch

from tests.dist.weights.tiny_models import (
    FLUX,
    LTX,
    ROPE_3D,
    TWO_D,
    WAN,
    TinyModel,
    flux_inputs,
    ones,
    positions,
    step,
    values,
    video,
    wan_inputs,
)


def _text(**more: Any) -> dict[str, Any]:
    return {"encoder_hidden_states": values(1, 7, 24), "timestep": step(), **more}


def _image(**more: Any) -> dict[str, Any]:
    return {"hidden_states": values(1, 4, 8, 8), **_text(**more)}


def _hunyuan_video(channels: int = 4, **more: Any) -> dict[str, Any]:
    return {"hidden_states": video(channels), **_text(encoder_attention_mask=ones(1, 7), **more)}


_HUNYUAN = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2,
    "num_refiner_layers": 1, "text_embed_dim": 24, "rope_axes_dim": ROPE_3D,
}  # fmt: skip
_JOY = {
    "patch_size": [1, 2, 2], "in_channels": 4, "hidden_size": 32, "num_attention_heads": 2, "text_dim": 24,
    "num_layers": 2, "rope_dim_list": [4, 6, 6],
}  # fmt: skip
_COGVIDEO = {
    "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "time_embed_dim": 8,
    "text_embed_dim": 24, "num_layers": 2, "sample_width": 8, "sample_height": 8, "sample_frames": 9,
    "max_text_seq_length": 7,
}  # fmt: skip


def _sizes() -> dict[str, Any]:
    return {name: torch.tensor([[8, 8]]) for name in ("original_size", "target_size", "crop_coords")}


MORE = (
    TinyModel(
        "diffusers", "AceStepTransformer1DModel",
        {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 16, "in_channels": 12, "audio_acoustic_hidden_dim": 4,
            "sliding_window": 4, "encoder_hidden_size": 24,
        },
        lambda: {
            "hidden_states": values(1, 8, 4), "timestep": torch.tensor([0.5]), "timestep_r": torch.tensor([0.4]),
            "encoder_hidden_states": values(1, 7, 24), "context_latents": values(1, 8, 8),
        },
    ),
    TinyModel(
        "diffusers", "AllegroTransformer3DModel",
        {
            "num_attention_heads": 2, "attention_head_dim": 24, "num_layers": 2, "cross_attention_dim": 48,
            "sample_height": 4, "sample_width": 4, "sample_frames": 3, "caption_channels": 24,
        },
        lambda: {
            "hidden_states": video(4, size=4), **_text(), "attention_mask": torch.ones(1, 3, 4, 4),
            "encoder_attention_mask": ones(1, 7),
            "image_rotary_emb": _allegro_rope(),
        },
    ),
    TinyModel("diffusers", "AnyFlowTransformer3DModel", WAN, lambda: _anyflow()),
    TinyModel(
        "diffusers", "AnyFlowFARTransformer3DModel", {**WAN, "chunk_partition": (1, 2), "full_chunk_limit": 2},
        lambda: {**_anyflow(), "chunk_partition": (1, 2)},
    ),
    TinyModel(
        "diffusers", "AuraFlowTransformer2DModel",
        {
            "sample_size": 8, "in_channels": 4, "num_mmdit_layers": 1, "num_single_dit_layers": 2,
            "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 24,
            "caption_projection_dim": 32, "pos_embed_max_size": 16,
        },
        lambda: _image(timestep=torch.tensor([0.5])),
    ),
    TinyModel(
        "diffusers", "BriaTransformer2DModel",
        {**FLUX, "axes_dims_rope": [4, 4, 8]}, flux_inputs,
    ),
    TinyModel(
        "diffusers", "BriaFiboTransformer2DModel", {**FLUX, "axes_dims_rope": [4, 4, 8], "text_encoder_dim": 12},
        lambda: flux_inputs(text_encoder_layers=[values(1, 7, 12) for _ in range(4)]),
    ),
    TinyModel(
        "diffusers", "BriaFibo2Transformer2DModel",
        {
            "in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "cap_feat_dim": 24,
            "injection_layer_ids": (1,), "perceiver_num_layers": 1, "min_num_gist_tokens": 2,
            "max_num_gist_tokens": 4, "gist_step": 2, "gist_min_text_len": 2, "gist_max_text_len": 16,
            "axes_dims": (4, 6, 6), "axes_lens": (64, 16, 16),
        },
        lambda: {
            "hidden_states": values(1, 4, 8, 8), "timestep": torch.tensor([0.5]),
            "encoder_hidden_states": values(1, 2, 7, 24),
        },
    ),
    TinyModel("diffusers", "ChronoEditTransformer3DModel", WAN, wan_inputs),
    TinyModel(
        "diffusers", "CogView3PlusTransformer2DModel",
        {
            "in_channels": 4, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "out_channels": 4,
            "text_embed_dim": 24, "time_embed_dim": 8, "condition_dim": 4, "pos_embed_max_size": 8, "sample_size": 8,
        },
        lambda: _image(**_sizes()),
    ),
    TinyModel(
        "diffusers", "CogView4Transformer2DModel",
        {
            "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
            "text_embed_dim": 24, "time_embed_dim": 8, "condition_dim": 4, "pos_embed_max_size": 8, "sample_size": 8,
            "rope_axes_dim": (8, 8),
        },
        lambda: _image(**_sizes()),
    ),
    TinyModel(
        "diffusers", "ConsisIDTransformer3DModel", _COGVIDEO,
        lambda: {"hidden_states": values(1, 3, 4, 8, 8), **_text()},
    ),
    TinyModel(
        "diffusers", "CosmosTransformer3DModel",
        {
            "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2,
            "mlp_ratio": 2.0, "text_embed_dim": 24, "adaln_lora_dim": 4, "max_size": (4, 8, 8),
            "concat_padding_mask": False,
        },
        lambda: {
            "hidden_states": video(4), **_text(), "fps": 16,
        },
    ),
    TinyModel(
        "diffusers", "DiTTransformer2DModel", {**TWO_D, "norm_num_groups": 4, "num_embeds_ada_norm": 8},
        lambda: {"hidden_states": values(1, 4, 8, 8), "timestep": step(), "class_labels": torch.tensor([3])},
    ),
    TinyModel(
        "diffusers", "DreamLiteTransformer2DModel",
        {
            "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 32, "num_layers": 2,
            "norm_num_groups": 4, "cross_attention_dim": 24,
        },
        lambda: {"hidden_states": values(1, 32, 4, 4), "encoder_hidden_states": values(1, 7, 24)},
    ),
    TinyModel(
        "diffusers", "EasyAnimateTransformer3DModel",
        {
            "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "patch_size": 2,
            "sample_width": 8, "sample_height": 8, "num_layers": 2, "mmdit_layers": 1, "time_embed_dim": 8,
            "text_embed_dim": 24, "add_norm_text_encoder": True,
        },
        lambda: {"hidden_states": video(4), **_text()},
    ),
    TinyModel(
        "diffusers", "ErnieImageTransformer2DModel",
        {
            "hidden_size": 32, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 48, "in_channels": 4,
            "out_channels": 4, "text_in_dim": 24, "rope_axes_dim": (4, 6, 6),
        },
        lambda: {
            "hidden_states": values(1, 4, 8, 8), "timestep": step(), "text_bth": values(1, 7, 24),
            "text_lens": torch.tensor([7]),
        },
    ),
    TinyModel(
        "diffusers", "Flux2Transformer2DModel",
        {**FLUX, "axes_dims_rope": (4, 4, 4, 4), "timestep_guidance_channels": 16},
        lambda: flux_inputs(id_axes=4, guidance=torch.tensor([3.5])),
    ),
    TinyModel(
        "diffusers", "Flux3Transformer2DModel",
        {
            "in_channels": 8, "cond_in_channels": 8, "num_layers": 2, "num_single_layers": 2,
            "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 24, "timestep_channels": 16,
            "axes_dims_rope": (4, 4, 4, 4),
        },
        lambda: flux_inputs(id_axes=4),
    ),
    TinyModel(
        "diffusers", "GlmImageTransformer2DModel",
        {
            "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
            "text_embed_dim": 24, "time_embed_dim": 8, "condition_dim": 4, "prior_vq_quantizer_codebook_size": 16,
        },
        lambda: _image(
            prior_token_id=torch.arange(16)[None] % 16, prior_token_drop=torch.zeros(1, 16, dtype=torch.bool),
            target_size=torch.tensor([[8.0, 8.0]]), crop_coords=torch.tensor([[0.0, 0.0]]),
        ),
    ),
    TinyModel(
        "diffusers", "HeliosTransformer3DModel",
        {name: value for name, value in WAN.items() if name != "rope_max_seq_len"} | {"rope_dim": ROPE_3D},
        wan_inputs,
    ),
    TinyModel(
        "diffusers", "HiDreamImageTransformer2DModel",
        {
            "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 1, "num_single_layers": 2,
            "attention_head_dim": 16, "num_attention_heads": 2, "caption_channels": [24, 24], "text_emb_dim": 12,
            "num_routed_experts": 2, "num_activated_experts": 1, "axes_dims_rope": (4, 6, 6),
            "max_resolution": (8, 8), "llama_layers": [0, 1], "force_inference_output": True,
        },
        lambda: {
            "hidden_states": values(1, 4, 8, 8), "timesteps": step(), "encoder_hidden_states_t5": values(1, 7, 24),
            "encoder_hidden_states_llama3": values(3, 1, 7, 24), "pooled_embeds": values(1, 12),
        },
    ),
    TinyModel(
        "diffusers", "HunyuanDiT2DModel",
        {
            "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "patch_size": 2, "sample_size": 8,
            "hidden_size": 32, "num_layers": 4, "cross_attention_dim": 16, "cross_attention_dim_t5": 24,
            "pooled_projection_dim": 12, "text_len": 4, "text_len_t5": 7,
        },
        lambda: {
            "hidden_states": values(1, 4, 8, 8), "timestep": step().float(), "encoder_hidden_states": values(1, 4, 16),
            "text_embedding_mask": torch.ones(1, 4), "encoder_hidden_states_t5": values(1, 7, 24),
            "text_embedding_mask_t5": torch.ones(1, 7), "image_meta_size": torch.ones(1, 6),
            "style": torch.zeros(1, dtype=torch.long),
            "image_rotary_emb": [values(16, 16), values(16, 16)],
        },
    ),
    TinyModel(
        "diffusers", "HunyuanImageTransformer2DModel",
        {**_HUNYUAN, "num_single_layers": 2, "rope_axes_dim": (8, 8)},
        lambda: _image(encoder_attention_mask=ones(1, 7), timestep=step().float()),
    ),
    TinyModel(
        "diffusers", "HunyuanVideo15Transformer3DModel",
        {**_HUNYUAN, "text_embed_2_dim": 12, "image_embed_dim": 16, "target_size": 16},
        lambda: _hunyuan_video(
            encoder_hidden_states_2=values(1, 5, 12), encoder_attention_mask_2=ones(1, 5),
            image_embeds=values(1, 4, 16), timestep=step().float(),
        ),
    ),
    TinyModel(
        "diffusers", "HunyuanVideoFramepackTransformer3DModel",
        {
            **_HUNYUAN, "num_single_layers": 2, "pooled_projection_dim": 12, "has_image_proj": True,
            "image_proj_dim": 16, "has_clean_x_embedder": True,
        },
        lambda: _hunyuan_video(
            pooled_projections=values(1, 12), image_embeds=values(1, 4, 16), guidance=torch.tensor([6000.0]),
            indices_latents=torch.arange(3),
            latents_clean=video(4, frames=2), indices_latents_clean=torch.arange(2),
            latents_history_2x=video(4, frames=2), indices_latents_history_2x=torch.arange(2),
            latents_history_4x=video(4, frames=4), indices_latents_history_4x=torch.arange(4),
        ),
    ),
    TinyModel(
        "diffusers", "Ideogram4Transformer2DModel",
        {
            "in_channels": 4, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
            "intermediate_size": 48, "adaln_dim": 8, "llm_features_dim": 24, "mrope_section": (4, 2, 2),
        },
        lambda: {
            "hidden_states": values(1, 12, 4), "timestep": torch.tensor([0.5]),
            "encoder_hidden_states": values(1, 12, 24), "position_ids": torch.arange(12)[None, :, None].repeat(1, 1, 3),
            "segment_ids": ones(1, 12), "indicator": torch.tensor([[3] * 4 + [2] * 8]),
        },
    ),
    TinyModel(
        "diffusers", "JoyImageEditTransformer3DModel", _JOY,
        lambda: {"hidden_states": values(1, 2, 4, 1, 8, 8), **_text()},
    ),
    TinyModel(
        "diffusers", "JoyImageEditPlusTransformer3DModel", _JOY,
        lambda: {
            "hidden_states": values(1, 16, 4, 1, 2, 2), **_text(encoder_hidden_states_mask=ones(1, 7)),
            "shape_list": [[(1, 4, 4)]],
        },
    ),
    TinyModel(
        "diffusers", "Kandinsky5Transformer3DModel",
        {
            "in_text_dim": 24, "in_text_dim2": 12, "time_dim": 16, "model_dim": 32, "ff_dim": 48,
            "num_text_blocks": 1, "num_visual_blocks": 2, "axes_dims": (4, 6, 6),
        },
        lambda: {
            "hidden_states": values(1, 1, 8, 8, 4), **_text(), "pooled_projections": values(1, 12),
            "visual_rope_pos": [torch.arange(1), torch.arange(4), torch.arange(4)],
            "text_rope_pos": torch.arange(7),
        },
    ),
    TinyModel(
        "diffusers", "Kandinsky6Transformer3DModel",
        {
            "in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 24, "in_text_dim2": 12, "time_dim": 16,
            "model_dim": 32, "ff_dim": 48, "num_text_blocks": 1, "num_visual_blocks": 2, "axes_dims": (4, 6, 6),
            "visual_cond": False, "in_audio_dim": 4, "out_audio_dim": 4,
        },
        lambda: {
            "hidden_states": values(1, 1, 8, 8, 4), **_text(), "pooled_projections": values(1, 12),
            "audio_hidden_states": values(1, 5, 4),
        },
    ),
    TinyModel(
        "diffusers", "Krea2Transformer2DModel",
        {
            "in_channels": 4, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
            "num_key_value_heads": 1, "intermediate_size": 48, "timestep_embed_dim": 8, "text_hidden_dim": 24,
            "num_text_layers": 3, "text_num_attention_heads": 2, "text_num_key_value_heads": 1,
            "text_intermediate_size": 24, "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1,
            "axes_dims_rope": (4, 6, 6),
        },
        lambda: {
            "hidden_states": values(1, 16, 4), "encoder_hidden_states": values(1, 7, 3, 24),
            "timestep": torch.tensor([0.5]), "position_ids": positions(23, 3),
        },
    ),
    TinyModel(
        "diffusers", "LTX2VideoTransformer3DModel",
        {
            **LTX, "audio_in_channels": 4, "audio_out_channels": 4, "audio_num_attention_heads": 2,
            "audio_attention_head_dim": 8, "audio_cross_attention_dim": 16,
        },
        lambda: {
            "hidden_states": values(1, 16, 4), "audio_hidden_states": values(1, 5, 4),
            "encoder_hidden_states": values(1, 7, 24), "audio_encoder_hidden_states": values(1, 7, 24),
            "timestep": step()[:, None].float(), "num_frames": 1, "height": 4, "width": 4, "fps": 24.0,
            "audio_num_frames": 5, "encoder_attention_mask": ones(1, 7), "audio_encoder_attention_mask": ones(1, 7),
        },
    ),
    TinyModel(
        "diffusers", "LatteTransformer3DModel",
        {
            "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 8, "num_layers": 2,
            "cross_attention_dim": 32, "attention_bias": True, "sample_size": 8, "patch_size": 2,
            "activation_fn": "gelu-approximate", "num_embeds_ada_norm": 1000, "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False, "caption_channels": 24, "video_length": 3,
        },
        lambda: {"hidden_states": video(4), **_text()},
    ),
    TinyModel(
        "diffusers", "LongCatAudioDiTTransformer",
        {"dit_dim": 32, "dit_depth": 2, "dit_heads": 2, "dit_text_dim": 24, "latent_dim": 4},
        lambda: {
            "hidden_states": values(1, 8, 4), "encoder_hidden_states": values(1, 7, 24),
            "encoder_attention_mask": torch.ones(1, 7, dtype=torch.bool), "timestep": torch.tensor([0.5]),
            "attention_mask": torch.ones(1, 8, dtype=torch.bool), "latent_cond": values(1, 8, 4),
        },
    ),
    TinyModel(
        "diffusers", "LongCatImageTransformer2DModel",
        {**FLUX, "axes_dims_rope": [4, 4, 8], "pooled_projection_dim": 12}, flux_inputs,
    ),
    TinyModel(
        "diffusers", "LuminaNextDiT2DModel",
        {
            "sample_size": 8, "in_channels": 4, "hidden_size": 32, "num_layers": 2, "num_attention_heads": 2,
            "num_kv_heads": 1, "multiple_of": 8, "cross_attention_dim": 24,
        },
        lambda: _image(
            timestep=torch.tensor([0.5]), encoder_mask=torch.ones(1, 7, dtype=torch.bool),
            image_rotary_emb=_lumina_rope(),
            cross_attention_kwargs={},
        ),
    ),
    TinyModel(
        "diffusers", "MiniMaxMusic3RVQDepthDecoder",
        {
            "hidden_size": 32, "num_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
            "audio_vocab_size": 16, "num_codebooks": 4,
        },
        lambda: {"inputs_embeds": values(1, 4, 32)},
    ),
    TinyModel(
        "diffusers", "MiniMaxMusic3Transformer1DModel",
        {
            "in_channels": 4, "condition_dim": 24, "num_layers": 2, "num_attention_heads": 2,
            "attention_head_dim": 16, "ff_inner_dim": 48, "rotary_dim": 8, "fourier_embedding_dim": 16,
        },
        lambda: {
            "hidden_states": values(1, 4, 8), "timestep": torch.tensor([0.5]),
            "encoder_hidden_states": values(1, 8, 24),
        },
    ),
    TinyModel(
        "diffusers", "MochiTransformer3DModel",
        {
            "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "pooled_projection_dim": 16,
            "in_channels": 4, "text_embed_dim": 24, "time_embed_dim": 8, "max_sequence_length": 7,
        },
        lambda: {"hidden_states": video(4), **_text(encoder_attention_mask=torch.ones(1, 7, dtype=torch.bool))},
    ),
    TinyModel(
        "diffusers", "MotifVideoTransformer3DModel",
        {
            "in_channels": 9, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2,
            "num_single_layers": 2, "text_embed_dim": 24, "rope_axes_dim": ROPE_3D,
        },
        lambda: _hunyuan_video(9),
    ),
    TinyModel(
        "diffusers", "NucleusMoEImageTransformer2DModel",
        {
            "in_channels": 16, "out_channels": 4, "num_layers": 5, "attention_head_dim": 16, "num_attention_heads": 2,
            "num_key_value_heads": 1, "joint_attention_dim": 24, "axes_dims_rope": (4, 6, 6), "num_experts": 2,
            "moe_intermediate_dim": 16, "capacity_factors": [1.0] * 5,
        },
        lambda: {
            "hidden_states": values(1, 16, 16), "img_shapes": [(1, 4, 4)],
            "encoder_hidden_states": values(1, 7, 24), "encoder_hidden_states_mask": ones(1, 7).bool(),
            "timestep": torch.tensor([0.5]),
        },
    ),
    TinyModel(
        "diffusers", "OmniGenTransformer2DModel",
        {
            "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 48,
            "num_layers": 2, "pad_token_id": 0, "vocab_size": 32, "pos_embed_max_size": 8, "time_step_dim": 16,
            "rope_scaling": {"long_factor": [1.0] * 8, "short_factor": [1.0] * 8},
        },
        lambda: {
            "hidden_states": values(1, 4, 8, 8), "timestep": step(), "input_ids": torch.arange(1, 8)[None],
            "input_img_latents": [], "input_image_sizes": {}, "attention_mask": torch.ones(1, 24, 24),
            "position_ids": torch.arange(24)[None],
        },
    ),
    TinyModel("diffusers", "OvisImageTransformer2DModel", {**FLUX, "out_channels": 8}, flux_inputs),
    TinyModel(
        "diffusers", "PRXTransformer2DModel",
        {
            "in_channels": 4, "context_in_dim": 24, "hidden_size": 32, "num_heads": 2, "depth": 2, "axes_dim": [8, 8],
        },
        lambda: _image(timestep=torch.tensor([0.5])),
    ),
    TinyModel(
        "diffusers", "PriorTransformer",
        {
            "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "embedding_dim": 24,
            "num_embeddings": 7,
        },
        lambda: {
            "hidden_states": values(1, 24), "timestep": step(), "proj_embedding": values(1, 24),
            "encoder_hidden_states": values(1, 7, 24),
        },
    ),
    TinyModel(
        "diffusers", "QwenImage21Transformer2DModel",
        {
            "in_channels": 8, "out_channels": 8, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
            "context_in_dim": 24, "axes_dims_rope": (4, 6, 6),
        },
        lambda: {
            "hidden_states": values(1, 16, 8), "encoder_hidden_states": values(1, 7, 24),
            "timestep": torch.tensor([0.5]), "img_shapes": [[(1, 4, 4)]], "img_mask": torch.arange(11)[None] >= 7,
            "encoder_hidden_states_mask": ones(1, 7).bool(),
        },
    ),
    TinyModel(
        "diffusers", "SanaVideoTransformer3DModel",
        {
            "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2,
            "num_cross_attention_heads": 2, "cross_attention_head_dim": 12, "cross_attention_dim": 24,
            "caption_channels": 24, "sample_size": 8, "rope_max_seq_len": 32,
        },
        lambda: {"hidden_states": video(4), **_text()},
    ),
    TinyModel("diffusers", "SkyReelsV2Transformer3DModel", WAN, wan_inputs),
    TinyModel(
        "diffusers", "StableAudio3DiTModel",
        {
            "io_channels": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "cond_token_dim": 24,
            "global_cond_dim": 12, "local_add_cond_dim": 5, "timestep_features_dim": 16, "ff_mult": 2.0,
            "num_memory_tokens": 3,
        },
        lambda: {
            "hidden_states": values(1, 4, 8), "timestep": torch.tensor([0.5]),
            "encoder_hidden_states": values(1, 7, 24), "global_hidden_states": values(1, 12),
            "local_add_cond": values(1, 5, 8),
        },
    ),
    TinyModel(
        "diffusers", "StableAudioDiTModel",
        {
            "sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16,
            "num_attention_heads": 2, "num_key_value_attention_heads": 1, "cross_attention_dim": 16,
            "time_proj_dim": 16, "global_states_input_dim": 12, "cross_attention_input_dim": 24,
        },
        lambda: {
            "hidden_states": values(1, 4, 8), "timestep": torch.tensor([0.5]),
            "encoder_hidden_states": values(1, 7, 24), "global_hidden_states": values(1, 1, 12),
            "rotary_embedding": (values(9, 8), values(9, 8)),
        },
    ),
    TinyModel(
        "diffusers", "T5FilmDecoder",
        {"input_dims": 4, "targets_length": 8, "d_model": 32, "num_layers": 2, "num_heads": 2, "d_kv": 16, "d_ff": 48},
        lambda: {
            "encodings_and_masks": [(values(1, 7, 32), torch.ones(1, 7))], "decoder_input_tokens": values(1, 8, 4),
            "decoder_noise_time": torch.tensor([0.5]),
        },
    ),
    TinyModel(
        "diffusers", "Transformer2DModel",
        {
            "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 32, "num_layers": 2,
            "norm_num_groups": 4, "cross_attention_dim": 24,
        },
        lambda: {"hidden_states": values(1, 32, 4, 4), "encoder_hidden_states": values(1, 7, 24)},
    ),
    TinyModel(
        "diffusers", "TransformerTemporalModel",
        {
            "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 32, "num_layers": 2,
            "norm_num_groups": 4,
        },
        lambda: {"hidden_states": values(3, 32, 4, 4), "num_frames": 3},
    ),
    TinyModel(
        "diffusers", "WanVACETransformer3DModel",
        {**WAN, "num_layers": 3, "vace_layers": [0, 2], "vace_in_channels": 6},
        lambda: wan_inputs(control_hidden_states=video(6)),
    ),
    TinyModel(
        "diffusers", "WanAnimateTransformer3DModel",
        {
            **WAN, "in_channels": 12, "latent_channels": 4, "image_dim": 4, "motion_encoder_size": 16,
            "motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16}, "motion_style_dim": 8, "motion_dim": 4,
            "motion_encoder_dim": 16, "face_encoder_hidden_dim": 16, "face_encoder_num_heads": 2,
            "inject_face_latents_blocks": 2,
        },
        lambda: {
            "hidden_states": video(12, frames=5), **_text(), "encoder_hidden_states_image": values(1, 9, 4),
            "pose_hidden_states": video(4, frames=4), "face_pixel_values": video(3, frames=13, size=16),
        },
    ),
)  # fmt: skip


def _anyflow() -> dict[str, Any]:
    return {
        "hidden_states": values(1, 3, 4, 8, 8),
        "timestep": torch.full((1, 3), 5.0),
        "r_timestep": torch.full((1, 3), 2.0),
        "encoder_hidden_states": values(1, 7, 24),
    }


def _lumina_rope() -> torch.Tensor:
    return torch.view_as_complex(values(4, 4, 8, 2))


def _allegro_rope() -> Any:
    from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

    tables = get_3d_rotary_pos_embed_allegro(
        embed_dim=24, crops_coords=((0, 0), (2, 2)), grid_size=(2, 2), temporal_size=3,
        interpolation_scale=(2.2, 2.0, 2.0), device=torch.device("cpu"),
    )  # fmt: skip
    places = torch.cartesian_prod(*(grid.long() for grid in tables[3:])).T[:, None]  # (3, 1, tokens)
    return tables[:3], tuple(places)
