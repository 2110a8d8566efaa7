"""Tiny configurations and inputs of models, to compare a sharded one with the library's own.

Inputs are functions, so that each process makes its own; `values` is seeded by the shape.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TinyModel:
    """One class: how to build it and how to call it. `quick` ones run in `make test`, all in the full matrix."""

    library: Literal["diffusers", "transformers"]
    class_name: str
    config: dict[str, Any]
    inputs: Callable[[], dict[str, Any]]
    quick: bool = False


def values(*shape: int) -> Tensor:
    """Normal values, (shape) float32; equal shapes give equal values."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.long)


def positions(count: int, num_axes: int) -> Tensor:
    """(count, num_axes) float32, distinct."""
    return torch.arange(count, dtype=torch.float32)[:, None].repeat(1, num_axes)


def step() -> Tensor:
    return torch.tensor([5])


def video(channels: int, frames: int = 3, size: int = 8) -> Tensor:
    return values(1, channels, frames, size, size)


WAN = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4,
    "text_dim": 24, "freq_dim": 32, "ffn_dim": 48, "num_layers": 2, "rope_max_seq_len": 32,
}  # fmt: skip
FLUX = {
    "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "in_channels": 8,
    "joint_attention_dim": 24, "axes_dims_rope": (4, 4, 8),
}  # fmt: skip
TWO_D = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "num_layers": 2, "sample_size": 8}
LTX = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32,
    "num_layers": 2, "caption_channels": 24,
}  # fmt: skip
ROPE_3D = (4, 6, 6)


def wan_inputs(**more: Any) -> dict[str, Any]:
    return {"hidden_states": video(4), "timestep": step(), "encoder_hidden_states": values(1, 7, 24), **more}


def flux_inputs(*, id_axes: int = 3, **more: Any) -> dict[str, Any]:
    image_ids, text_ids = positions(16, id_axes), positions(7, id_axes)
    return {
        "hidden_states": values(1, 16, 8), "encoder_hidden_states": values(1, 7, 24), "timestep": torch.tensor([0.5]),
        "img_ids": image_ids, "txt_ids": text_ids, **more,
    }  # fmt: skip


QUICK = (
    TinyModel("diffusers", "WanTransformer3DModel", WAN, wan_inputs, quick=True),
    TinyModel(
        "diffusers", "FluxTransformer2DModel", {**FLUX, "pooled_projection_dim": 12, "guidance_embeds": True},
        lambda: flux_inputs(pooled_projections=values(1, 12), guidance=torch.tensor([3.5])), quick=True,
    ),
    TinyModel(
        "diffusers", "SanaTransformer2DModel",
        {
            "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3,
            "num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16,
            "caption_channels": 24, "sample_size": 8, "guidance_embeds": True, "qk_norm": "rms_norm_across_heads",
        },
        lambda: {
            "hidden_states": values(1, 4, 8, 8), "encoder_hidden_states": values(1, 7, 24), "timestep": step(),
            "guidance": torch.tensor([4.0]), "encoder_attention_mask": ones(1, 7),
        },
        quick=True,
    ),
    TinyModel(
        "diffusers", "SD3Transformer2DModel",
        {
            **TWO_D, "joint_attention_dim": 24, "caption_projection_dim": 32, "pooled_projection_dim": 12,
            "out_channels": 4, "pos_embed_max_size": 8, "dual_attention_layers": (0,), "qk_norm": "rms_norm",
        },
        lambda: {
            "hidden_states": values(1, 4, 8, 8), "encoder_hidden_states": values(1, 7, 24),
            "pooled_projections": values(1, 12), "timestep": step(),
        },
        quick=True,
    ),
    TinyModel(
        "diffusers", "QwenImageTransformer2DModel",
        {
            "in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
            "joint_attention_dim": 24, "axes_dims_rope": (4, 6, 6),
        },
        lambda: {
            "hidden_states": values(1, 16, 16), "encoder_hidden_states": values(1, 7, 24),
            "encoder_hidden_states_mask": ones(1, 7), "timestep": torch.tensor([0.5]), "img_shapes": [(1, 4, 4)],
        },
        quick=True,
    ),
    TinyModel(
        "diffusers", "PixArtTransformer2DModel",
        {**TWO_D, "out_channels": 8, "cross_attention_dim": 32, "caption_channels": 24, "norm_num_groups": 4},
        lambda: {
            "hidden_states": values(1, 4, 8, 8), "encoder_hidden_states": values(1, 7, 24), "timestep": step(),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
        quick=True,
    ),
    TinyModel(
        "diffusers", "LTXVideoTransformer3DModel", LTX,
        lambda: {
            "hidden_states": values(1, 16, 4), "encoder_hidden_states": values(1, 7, 24), "timestep": step(),
            "encoder_attention_mask": ones(1, 7), "num_frames": 1, "height": 4, "width": 4,
        },
        quick=True,
    ),
    TinyModel(
        "diffusers", "CogVideoXTransformer3DModel",
        {
            "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4,
            "time_embed_dim": 8, "text_embed_dim": 24, "num_layers": 2, "sample_width": 8, "sample_height": 8,
            "sample_frames": 9, "max_text_seq_length": 7,
        },
        lambda: {
            "hidden_states": values(1, 3, 4, 8, 8), "encoder_hidden_states": values(1, 7, 24), "timestep": step(),
        },
        quick=True,
    ),
    TinyModel(
        "diffusers", "HunyuanVideoTransformer3DModel",
        {
            "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2,
            "num_single_layers": 2, "num_refiner_layers": 1, "text_embed_dim": 24, "pooled_projection_dim": 12,
            "rope_axes_dim": ROPE_3D,
        },
        lambda: {
            "hidden_states": video(4), "timestep": step(), "encoder_hidden_states": values(1, 7, 24),
            "encoder_attention_mask": ones(1, 7), "pooled_projections": values(1, 12),
            "guidance": torch.tensor([6000.0]),
        },
        quick=True,
    ),
    TinyModel(
        "diffusers", "ChromaTransformer2DModel",
        {**FLUX, "approximator_num_channels": 16, "approximator_hidden_dim": 24, "approximator_layers": 2},
        lambda: flux_inputs(attention_mask=torch.ones(1, 23)), quick=True,
    ),
    TinyModel(
        "diffusers", "ZImageTransformer2DModel",
        {
            "in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
            "cap_feat_dim": 24, "axes_dims": [4, 6, 6], "axes_lens": [64, 16, 16],
        },
        lambda: {"x": [values(4, 1, 8, 8)], "t": torch.tensor([0.5]), "cap_feats": [values(7, 24)]}, quick=True,
    ),
    TinyModel(
        "diffusers", "Lumina2Transformer2DModel",
        {
            "sample_size": 8, "in_channels": 4, "hidden_size": 32, "num_layers": 2, "num_refiner_layers": 1,
            "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 8, "axes_dim_rope": ROPE_3D,
            "axes_lens": (32, 8, 8), "cap_feat_dim": 24,
        },
        lambda: {
            "hidden_states": values(1, 4, 8, 8), "timestep": torch.tensor([0.5]),
            "encoder_hidden_states": values(1, 7, 24), "encoder_attention_mask": torch.ones(1, 7, dtype=torch.bool),
        },
        quick=True,
    ),
    TinyModel(
        "diffusers", "UNet2DConditionModel",
        {
            "sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
            "cross_attention_dim": 24, "attention_head_dim": 4,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        },
        lambda: {"sample": values(1, 4, 8, 8), "timestep": step(), "encoder_hidden_states": values(1, 7, 24)},
        quick=True,
    ),
)  # fmt: skip

_T5 = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
_CAUSAL = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64,
}  # fmt: skip


def _tokens() -> dict[str, Any]:
    return {"input_ids": torch.arange(1, 8)[None], "attention_mask": ones(1, 7)}


ENCODERS = (
    TinyModel("transformers", "T5EncoderModel", _T5, _tokens, quick=True),
    TinyModel("transformers", "UMT5EncoderModel", _T5, _tokens, quick=True),
    TinyModel(
        "transformers", "CLIPTextModel",
        {
            "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 7,
        },
        _tokens, quick=True,
    ),
    TinyModel("transformers", "LlamaModel", _CAUSAL, _tokens, quick=True),
    TinyModel("transformers", "Gemma2Model", _CAUSAL, _tokens, quick=True),
    TinyModel("transformers", "Qwen3Model", _CAUSAL, _tokens),
    TinyModel(
        "transformers", "Qwen2_5_VLForConditionalGeneration",
        {
            "text_config": {
                **_CAUSAL, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
            },
            "vision_config": {
                "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 16,
                "fullatt_block_indexes": [1],
            },
            "tie_word_embeddings": False,
        },
        _tokens, quick=True,
    ),
)  # fmt: skip


def all_models() -> tuple[TinyModel, ...]:
    """Every model that has a tiny configuration."""
    from tests.dist.weights.tiny_transformers import MORE

    return (*QUICK, *MORE, *ENCODERS)


def find_model(class_name: str) -> TinyModel:
    return next(model for model in all_models() if model.class_name == class_name)
