"""What a request costs: activations in bytes, compute and copies in seconds, from configurations alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from planner.checkpoint import Checkpoint, Component
from planner.decoding import decode_bytes, top_channels
from planner.hardware import Gpu
from planner.plan import ComponentKind, Decoding, PlanRequest
from planner.weights import DTYPE_BYTES

DEFAULT_TEXT_TOKENS = 512
"""Prompt tokens of the largest text encoder in most pipelines (T5: 512)."""
HIDDEN_COPIES = 8.8
"""Hidden-state tensors alive at a transformer block's peak, besides the feed-forward's own.

Wan 14B, 81 frames 480p, resident: 30.2 GiB peak less 26.6 GiB of weights is 11.5 tensors of (32,760, 5,120) bf16, of
which its feed-forward (13,824 wide) is 2.7 (measured on one H100)."""
ELEMENTWISE_COPIES, COMPILED_ELEMENTWISE_COPIES = 145.0, 58.0
"""Hidden states read or written a block by norms, modulations, rotary embeddings and casts; fewer where the block is
compiled (fitted, see `hardware`)."""
UNET_RATE = 0.37
"""Share of the matrix rate that a UNet reaches: convolutions in a contiguous layout, and what lies between them (SDXL,
1024 x 1024, two rows, eager: 73 ms on one H100)."""
DECODE_COPIES = 5.0
"""Feature maps alive where a decoder widens to full resolution, of twice the last level's channels: norm, convolution's
input and output, and cuDNN's copies of both (counted for AutoencoderKL: 2,435 bytes a pixel at 128 channels)."""
VIDEO_CHUNK_FRAMES = 4
"""Frames that causal video autoencoders decode at once (one latent frame)."""
MAX_LEVELS = 16
"""Levels of an autoencoder that are believed."""
NVLINK_GB_S = 300.0
"""Bandwidth of an all-gather between GPUs of a node, GB/s: two thirds of NVLink 4's 450 GB/s a direction."""
NETWORK_GB_S = 10.0
"""Between nodes: a 100 Gbit/s network card at 80 %."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The shapes to serve, resolved: pixels, frames, steps, requests in a batch, branches of guidance."""

    width: int
    height: int
    num_frames: int
    num_steps: int
    batch_size: int
    num_branches: int


def resolve_workload(checkpoint: Checkpoint, request: PlanRequest) -> Workload:
    """Takes the request's shapes, else the checkpoint's defaults, else what the denoiser's configuration says."""
    defaults = checkpoint.defaults
    denoiser = main_denoiser(checkpoint)
    config = denoiser.config if denoiser else {}
    spatial, _ = _compression(checkpoint)
    native = _integer(config, "sample_size", default=0) * spatial
    native = native if 0 < native <= 2048 else 1024
    is_video = is_video_checkpoint(checkpoint)
    return Workload(
        width=request.width or defaults.width or (832 if is_video else native),
        height=request.height or defaults.height or (480 if is_video else native),
        num_frames=(request.num_frames or defaults.num_frames or 81) if is_video else 1,
        num_steps=request.num_inference_steps
        or defaults.num_inference_steps
        or (28 if config.get("guidance_embeds") else 50),
        batch_size=request.batch_size,
        num_branches=1 if not uses_guidance(checkpoint) else 2,
    )


def uses_guidance(checkpoint: Checkpoint) -> bool:
    """False if guidance is embedded in the denoiser, or switched off by the defaults: then lanes do not help."""
    scale = checkpoint.defaults.guidance_scale
    if scale is not None and scale <= 1.0:
        return False
    denoiser = main_denoiser(checkpoint)
    return not (denoiser is not None and denoiser.config.get("guidance_embeds") is True)


ONE_CALL_A_BRANCH = (
    "Wan", "QwenImage", "Flux", "Chroma", "HunyuanVideo", "CogView4", "Lumina2", "Kandinsky5", "Kandinsky6", "JoyImage",
    "Cosmos", "SkyReels",
)  # fmt: skip
"""Prefixes of pipelines that call the denoiser once a branch; the others put all branches into one batch."""


def rows_per_call(checkpoint: Checkpoint, workload: Workload, *, cfg_degree: int) -> int:
    """Rows of the batch in one denoiser call on one lane."""
    if checkpoint.pipeline_class.startswith(ONE_CALL_A_BRANCH):
        return workload.batch_size
    return workload.batch_size * -(-workload.num_branches // cfg_degree)


def main_denoiser(checkpoint: Checkpoint) -> Component | None:
    """The first denoiser in the index."""
    return next((c for c in checkpoint.components if c.kind is ComponentKind.DENOISER), None)


def is_video_checkpoint(checkpoint: Checkpoint) -> bool:
    """True if the autoencoder compresses time."""
    return _compression(checkpoint)[1] > 1


def denoiser_tokens(component: Component, checkpoint: Checkpoint, workload: Workload) -> int:
    """Tokens of one latent, without the prompt's: the latent grid over the patch size."""
    spatial, temporal = _compression(checkpoint)
    patch_t, patch = _patch(component.config, latent_channels=_latent_channels(checkpoint))
    height = math.ceil(workload.height / (spatial * patch))
    width = math.ceil(workload.width / (spatial * patch))
    frames = math.ceil(((workload.num_frames - 1) // temporal + 1) / patch_t)
    return max(1, height * width * frames)


def denoiser_activation_bytes(
    component: Component, checkpoint: Checkpoint, workload: Workload, *, dtype: str, rows: int, sequence_degree: int
) -> int:
    """Peak bytes besides weights in one denoiser call of `rows` latents, on one of `sequence_degree` ranks."""
    tokens = denoiser_tokens(component, checkpoint, workload) / sequence_degree + DEFAULT_TEXT_TOKENS
    if _is_unet(component):
        channels = _widths(component.config)
        latent = image_tokens_of_unet(checkpoint, workload)
        return int(16 * rows * latent * (channels[0] if channels else 320) * DTYPE_BYTES[dtype])
    hidden = _hidden(component.config)
    ratio = _feed_forward(component.config, hidden) / hidden
    return int(rows * tokens * hidden * (HIDDEN_COPIES + ratio) * DTYPE_BYTES[dtype])


@dataclass(frozen=True, slots=True)
class Work:
    """What one denoiser call of one branch computes: operations of matrix products and attention, elementwise bytes."""

    product_flops: float
    attention_flops: float
    elementwise_bytes: float


def denoiser_work(
    component: Component, checkpoint: Checkpoint, workload: Workload, *, is_compiled: bool = False
) -> Work:
    """Counts a call of one branch, in 16 bits.

    Products: 2 a parameter and token that it sees. Attention: 4 x tokens^2 x hidden a block (query x key, weights x
    value). Elementwise: `ELEMENTWISE_COPIES` hidden states a block.
    """
    image_tokens = denoiser_tokens(component, checkpoint, workload)
    batch = workload.batch_size
    if _is_unet(component):
        # A level's resolution halves: parameters concentrate where a quarter or a sixteenth of the positions are left.
        latent = image_tokens_of_unet(checkpoint, workload)
        return Work(2.0 * component.num_parameters * latent / 8 * batch / UNET_RATE, 0.0, 0.0)
    tokens = image_tokens + (DEFAULT_TEXT_TOKENS if _is_joint(component) else 0)
    blocks = len(component.blocks) or 1
    hidden = _hidden(component.config)
    # Of a block with two streams half the weights see the prompt's tokens, half the picture's.
    tokens_of_half = (image_tokens + DEFAULT_TEXT_TOKENS) / 2
    products = 0.0
    for block in component.blocks:
        seen = tokens_of_half if _has_two_streams(component, block.name) else tokens
        products += (block.tally.num_parameters - block.tally.num_modulation) * seen
    # Sana's attention is linear in the tokens, its products are counted with the parameters.
    attention = 0.0 if component.class_name.startswith("Sana") else 4.0 * tokens * tokens * hidden * blocks
    copies = COMPILED_ELEMENTWISE_COPIES if is_compiled else ELEMENTWISE_COPIES
    elementwise = copies * tokens * hidden * DTYPE_BYTES["bfloat16"] * blocks
    return Work(2.0 * (products or component.num_parameters * tokens) * batch, attention * batch, elementwise * batch)


def hidden_size(component: Component) -> int:
    """Width of the component's hidden states, as its configuration says."""
    return _hidden(component.config)


def image_tokens_of_unet(checkpoint: Checkpoint, workload: Workload) -> int:
    """Positions of the latent that a UNet sees at its first level."""
    spatial, _ = _compression(checkpoint)
    return (workload.height // spatial) * (workload.width // spatial)


def decode_workspace_bytes(component: Component, workload: Workload, *, dtype: str, decoding: Decoding) -> int:
    """Peak bytes besides weights of the autoencoder's decoder, at full resolution, for all latents of the batch.

    As counted for its class (`decoding`); elsewhere a few feature maps of its last level, and the pixels.
    """
    pixels = workload.width * workload.height
    counted = decode_bytes(
        component.class_name, component.config, pixels=pixels, num_frames=workload.num_frames, decoding=decoding
    )
    if counted is not None:
        return int(counted * DTYPE_BYTES[dtype] / 2) * workload.batch_size
    channels = top_channels(component.config) or 128
    frames = min(workload.num_frames, VIDEO_CHUNK_FRAMES)
    chunk = DECODE_COPIES * 2 * channels * pixels * frames * DTYPE_BYTES[dtype]
    output = 2 * 3 * pixels * workload.num_frames * 4
    return int(chunk + output) * workload.batch_size


def encode_workspace_bytes(component: Component, *, dtype: str, batch_size: int) -> int:
    """Peak bytes besides weights of a text or image encoder: hidden states and one layer's attention weights."""
    hidden = _hidden(component.config)
    heads = _integer(component.config, "num_attention_heads", "num_heads", default=16)
    tokens = DEFAULT_TEXT_TOKENS
    return int(2 * batch_size * (tokens * hidden * 12 + 3 * heads * tokens * tokens) * DTYPE_BYTES[dtype])


def call_seconds(work: Work, gpu: Gpu) -> float:
    """Seconds of compute at the rates the GPU reaches; 16-bit types, float32 is not modelled."""
    products = work.product_flops / (gpu.matrix_tflops * 1e12)
    attention = work.attention_flops / (gpu.attention_tflops * 1e12)
    return products + attention + work.elementwise_bytes / (gpu.memory_tb_s * 1e12)


def streaming_seconds(
    *, compute_s: float, block_bytes: int, num_blocks: int, num_resident: int, copy_gb_s: float
) -> float:
    """Seconds of one call when the blocks that are not resident are copied in beside the computation.

    Copies run on their own stream without a pause, so the call takes the longer of the two, and one block's copy is
    never hidden (the first). Measured: Wan 14B with 4,680 tokens, all streamed 1.66x, 20 of 40 resident 1.02x.
    """
    streamed = max(0, num_blocks - num_resident)
    if not streamed:
        return compute_s
    copy_s = block_bytes / (copy_gb_s * 1e9)
    return max(compute_s, streamed * copy_s) + (copy_s if num_resident == 0 else 0.0) * 0.02


def knee(*, compute_s: float, block_bytes: int, num_blocks: int, copy_gb_s: float) -> int:
    """The fewest resident blocks for which copying hides under compute."""
    copy_s = block_bytes / (copy_gb_s * 1e9)
    if copy_s <= 0:
        return 0
    return max(0, num_blocks - math.floor(compute_s / copy_s))


def _compression(checkpoint: Checkpoint) -> tuple[int, int]:
    vae = next((c for c in checkpoint.components if c.kind is ComponentKind.VAE), None)
    if vae is None:
        return 8, 1
    config = vae.config
    temporal = _integer(config, "scale_factor_temporal", "temporal_compression_ratio", default=0)
    if not temporal:
        down = config.get("temperal_downsample")
        temporal = 2 ** min(sum(bool(x) for x in down), MAX_LEVELS) if isinstance(down, list) else 1
    spatial = _integer(config, "scale_factor_spatial", "spatial_compression_ratio", default=0)
    if not spatial:
        levels = config.get("dim_mult") or config.get("decoder_block_out_channels") or config.get("block_out_channels")
        spatial = 2 ** min(len(levels) - 1, MAX_LEVELS) if isinstance(levels, list) and levels else 8
    if vae.class_name.startswith("AutoencoderKLLTX"):
        return 32, 8
    if vae.class_name == "AutoencoderKLQwenImage":
        temporal = 1  # pictures are its one-frame videos
    if vae.class_name == "AutoencoderKLCogVideoX":
        temporal = 4
    return spatial, temporal


def _latent_channels(checkpoint: Checkpoint) -> int | None:
    vae = next((c for c in checkpoint.components if c.kind is ComponentKind.VAE), None)
    return _integer(vae.config, "latent_channels", "z_dim", default=0) or None if vae else None


def _patch(config: Mapping[str, Any], *, latent_channels: int | None) -> tuple[int, int]:
    size = config.get("patch_size", 1)
    temporal = _integer(config, "patch_size_t", default=1)
    if isinstance(size, list) and len(size) == 3 and all(isinstance(s, int) for s in size):
        temporal, spatial = size[0], size[1]
    else:
        spatial = size if isinstance(size, int) and size > 0 else 1
    # Pipelines such as Flux's pack 2 x 2 latents into channels before the denoiser sees them.
    if latent_channels and config.get("in_channels") == 4 * latent_channels:
        spatial = max(spatial, 2)
    return max(1, temporal), max(1, spatial)


def _hidden(config: Mapping[str, Any]) -> int:
    heads, dim = _integer(config, "num_attention_heads", default=0), _integer(config, "attention_head_dim", default=0)
    if heads and dim:
        return heads * dim
    return _integer(config, "hidden_size", "d_model", "inner_dim", "dim", default=0) or _text_hidden(config)


def _text_hidden(config: Mapping[str, Any]) -> int:
    nested = config.get("text_config")
    return _integer(nested, "hidden_size", default=1024) if isinstance(nested, Mapping) else 1024


def _feed_forward(config: Mapping[str, Any], hidden: int) -> float:
    return float(_integer(config, "ffn_dim", "intermediate_size", default=0) or 4 * hidden)


def _is_unet(component: Component) -> bool:
    return "UNet" in component.class_name


def _is_joint(component: Component) -> bool:
    return not component.class_name.startswith(("Wan", "LTX", "Sana", "PixArt", "SkyReels"))


def _has_two_streams(component: Component, block: str) -> bool:
    is_of_family = component.class_name.startswith(("QwenImage", "SD3", "HunyuanVideo", "Flux", "Chroma"))
    return is_of_family and block.startswith("transformer_blocks.")


def _widths(config: Mapping[str, Any]) -> list[int]:
    value = config.get("decoder_block_out_channels") or config.get("block_out_channels") or []
    return [v for v in value if isinstance(v, int)] if isinstance(value, list) else []


def _integer(config: Mapping[str, Any], *names: str, default: int) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return default
