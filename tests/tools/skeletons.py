"""Checkpoint skeletons of real sizes: true classes, shapes and headers, and holes instead of tensor data.

    python -m tests.tools.skeletons FOLDER [NAME ...]

Classes are built on the meta device from the published checkpoints' configurations, so a skeleton takes seconds to make
and no disk: its files are sparse.
"""

import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import init_empty_weights
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder

from tests.unit.planner.checkpoints import write_json, write_safetensors

Shapes = dict[str, tuple[int, ...]]
DIFFUSERS_MODULES = {"LTX2TextConnectors": "ltx2", "LTX2Vocoder": "ltx2"}
MAX_SHARD_BYTES = 10 * 10**9
T5_XXL = {"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}


def wan_transformer(*, heads: int, layers: int, ffn: int) -> Any:
    return lambda: diffusers.WanTransformer3DModel(num_attention_heads=heads, num_layers=layers, ffn_dim=ffn)


def umt5_xxl() -> Any:
    config = {**T5_XXL, "vocab_size": 256384, "feed_forward_proj": "gated-gelu"}
    return transformers.UMT5EncoderModel(transformers.UMT5Config(**config))


def t5_xxl() -> Any:
    return transformers.T5EncoderModel(transformers.T5Config(**T5_XXL, feed_forward_proj="gated-gelu"))


def clip_l() -> Any:
    return transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP_L))


def clip_l_projection() -> Any:
    return transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**CLIP_L))


def clip_g_projection() -> Any:
    return transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**CLIP_G))


def sd_vae(*, latent_channels: int = 4, quantized: bool = True) -> Any:
    return lambda: diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=latent_channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        use_quant_conv=quantized,
        use_post_quant_conv=quantized,
    )


def qwen_encoder() -> Any:
    text = {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    }
    vision = {"hidden_size": 1280, "intermediate_size": 3420, "depth": 32, "num_heads": 16, "out_hidden_size": 3584}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def sd35_transformer() -> Any:
    return diffusers.SD3Transformer2DModel(
        sample_size=128,
        patch_size=2,
        in_channels=16,
        num_layers=38,
        attention_head_dim=64,
        num_attention_heads=38,
        joint_attention_dim=4096,
        caption_projection_dim=2432,
        pooled_projection_dim=2048,
        out_channels=16,
        pos_embed_max_size=192,
        qk_norm="rms_norm",
    )


def llama_8b() -> Any:
    config = {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128320,
    }
    return transformers.LlamaModel(transformers.LlamaConfig(**config))


def gemma3_12b() -> Any:
    text = {
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "vocab_size": 262208,
    }
    vision = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 896,
        "patch_size": 14,
    }
    return transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(text_config=text, vision_config=vision)
    )


def gemma2_2b() -> Any:
    config = {
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 256000,
    }
    return transformers.Gemma2Model(transformers.Gemma2Config(**config))


def cogvideox_transformer() -> Any:
    return diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=48, num_layers=42, use_rotary_positional_embeddings=True, sample_height=60, sample_width=90
    )


def dc_ae() -> Any:
    return diffusers.AutoencoderDC(
        latent_channels=32,
        attention_head_dim=32,
        encoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        decoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        encoder_block_out_channels=(128, 256, 512, 512, 1024, 1024),
        decoder_block_out_channels=(128, 256, 512, 512, 1024, 1024),
        encoder_layers_per_block=(2, 2, 2, 3, 3, 3),
        decoder_layers_per_block=(3, 3, 3, 3, 3, 3),
        encoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
        decoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
    )


def sdxl_unet() -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
        use_linear_projection=True,
    )


def pixart_transformer() -> Any:
    return diffusers.PixArtTransformer2DModel(
        sample_size=128,
        num_attention_heads=16,
        attention_head_dim=72,
        num_layers=28,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=1152,
        caption_channels=4096,
    )


WAN_14B = wan_transformer(heads=40, layers=40, ffn=13824)
Parts = dict[str, Callable[[], Any]]
SKELETONS: dict[str, tuple[str, Parts]] = {
    "Wan2.1-T2V-1.3B": (
        "WanPipeline",
        {
            "text_encoder": umt5_xxl,
            "transformer": wan_transformer(heads=12, layers=30, ffn=8960),
            "vae": diffusers.AutoencoderKLWan,
        },
    ),
    "Wan2.1-T2V-14B": (
        "WanPipeline",
        {"text_encoder": umt5_xxl, "transformer": WAN_14B, "vae": diffusers.AutoencoderKLWan},
    ),
    "Wan2.2-T2V-A14B": (
        "WanPipeline",
        {"text_encoder": umt5_xxl, "transformer": WAN_14B, "transformer_2": WAN_14B, "vae": diffusers.AutoencoderKLWan},
    ),
    "Qwen-Image": (
        "QwenImagePipeline",
        {
            "text_encoder": qwen_encoder,
            "transformer": diffusers.QwenImageTransformer2DModel,
            "vae": diffusers.AutoencoderKLQwenImage,
        },
    ),
    "FLUX.1-dev": (
        "FluxPipeline",
        {
            "text_encoder": clip_l,
            "text_encoder_2": t5_xxl,
            "transformer": lambda: diffusers.FluxTransformer2DModel(guidance_embeds=True),
            "vae": sd_vae(latent_channels=16, quantized=False),
        },
    ),
    "SD3.5-large": (
        "StableDiffusion3Pipeline",
        {
            "text_encoder": clip_l_projection,
            "text_encoder_2": clip_g_projection,
            "text_encoder_3": t5_xxl,
            "transformer": sd35_transformer,
            "vae": sd_vae(latent_channels=16, quantized=False),
        },
    ),
    "HunyuanVideo": (
        "HunyuanVideoPipeline",
        {
            "text_encoder": llama_8b,
            "text_encoder_2": clip_l,
            "transformer": lambda: diffusers.HunyuanVideoTransformer3DModel(guidance_embeds=True),
            "vae": diffusers.AutoencoderKLHunyuanVideo,
        },
    ),
    "LTX-2": (
        "LTX2Pipeline",
        {
            "text_encoder": gemma3_12b,
            "connectors": LTX2TextConnectors,
            "transformer": diffusers.LTX2VideoTransformer3DModel,
            "vae": diffusers.AutoencoderKLLTX2Video,
            "audio_vae": diffusers.AutoencoderKLLTX2Audio,
            "vocoder": LTX2Vocoder,
        },
    ),
    "CogVideoX-5B": (
        "CogVideoXPipeline",
        {"text_encoder": t5_xxl, "transformer": cogvideox_transformer, "vae": diffusers.AutoencoderKLCogVideoX},
    ),
    "Sana-1.6B": (
        "SanaPipeline",
        {"text_encoder": gemma2_2b, "transformer": diffusers.SanaTransformer2DModel, "vae": dc_ae},
    ),
    "SDXL": (
        "StableDiffusionXLPipeline",
        {"text_encoder": clip_l, "text_encoder_2": clip_g_projection, "unet": sdxl_unet, "vae": sd_vae()},
    ),
    "PixArt-Sigma": (
        "PixArtSigmaPipeline",
        {"text_encoder": t5_xxl, "transformer": pixart_transformer, "vae": sd_vae()},
    ),
}


def write_skeleton(folder: Path, name: str) -> Path:
    """Writes one skeleton into `folder / name` and returns that."""
    return write_parts(folder / name, *SKELETONS[name])


def write_parts(folder: Path, pipeline_class: str, parts: Parts) -> Path:
    """Writes the skeleton of a checkpoint with these components into `folder` and returns that."""
    index: dict[str, Any] = {"_class_name": pipeline_class, "_diffusers_version": diffusers.__version__}
    for part, build in parts.items():
        class_name, config, shapes = describe(build)
        of_transformers = hasattr(transformers, class_name) and not hasattr(diffusers, class_name)
        library = DIFFUSERS_MODULES.get(class_name) or ("transformers" if of_transformers else "diffusers")
        index[part] = [library, class_name]
        write_json(folder / part / "config.json", config)
        _write_weights(folder / part, shapes, stem="model" if of_transformers else "diffusion_pytorch_model")
    index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    write_json(folder / "model_index.json", index)
    return folder


@cache
def describe(build: Callable[[], Any]) -> tuple[str, dict[str, Any], Shapes]:
    """Builds a model on the meta device: its class, configuration and the shapes that its file would hold."""
    with init_empty_weights(), torch.device("meta"):
        model = build()
    config = model.config.to_dict() if isinstance(model, transformers.PreTrainedModel) else dict(model.config)
    tied = getattr(model, "_tied_weights_keys", None)
    shared = set(tied) if isinstance(tied, dict) and getattr(model.config, "tie_word_embeddings", True) else set()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in shared}
    return type(model).__name__, json.loads(json.dumps(config, default=str)), shapes


def _write_weights(folder: Path, shapes: Shapes, *, stem: str) -> None:
    shards: list[Shapes] = [{}]
    size = 0
    for name, shape in shapes.items():
        num_bytes = 2 * torch.Size(shape).numel()
        if size + num_bytes > MAX_SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += num_bytes
    if len(shards) == 1:
        write_safetensors(folder / f"{stem}.safetensors", shards[0])
        return
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards):
        file = f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    write_json(folder / f"{stem}.safetensors.index.json", {"weight_map": weight_map})


if __name__ == "__main__":
    for chosen in sys.argv[2:] or SKELETONS:
        print(write_skeleton(Path(sys.argv[1]), chosen))
