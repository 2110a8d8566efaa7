"""Generates `planner/tables/decoders.json`: device memory that diffusers' decoders take for a pixel, by frames.

    python -m tests.tools.make_decoder_table

Each decoder runs in 16 bits on fake tensors (`live_bytes`), in a published configuration. What it takes is proportional
to the pixels of a frame (checked here at two sizes); how it grows with frames depends on how the class cuts time.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import diffusers
import torch

from planner.decoding import Decoder, top_channels, top_patch
from tests.tools.live_bytes import fake_tensors, peak_bytes_of
from tests.tools.make_tables import TABLES
from tests.tools.skeletons import SKELETONS, sd_vae

PICTURE = (1,)
FRAMES = (1, 9, 17, 33, 81)
SIZE, OTHER_SIZE = (1024, 768), (832, 480)
MAX_NONLINEARITY = 0.06
TILED_FRAMES = (1, 17, 81)
TILED_SIZES = (640, 384), (1024, 768)


Layout = Literal["video", "picture", "frames as batch"]


def hunyuan_video_15() -> Any:
    """Its causal mask is made at once: row by row, as in diffusers, the same bytes take 64,512 operations."""

    def mask(n_frame: int, n_hw: int, dtype: torch.dtype, device: Any, batch_size: int = 1) -> torch.Tensor:
        side = n_frame * n_hw
        return torch.zeros(side, side, dtype=dtype, device=device).unsqueeze(0).expand(batch_size, -1, -1)

    model = diffusers.AutoencoderKLHunyuanVideo15()
    for module in model.modules():
        if hasattr(module, "prepare_causal_attention_mask"):
            module.prepare_causal_attention_mask = mask
    return model


@dataclass(frozen=True, slots=True)
class Case:
    """A decoder: how it is built, and how many frames it is asked for.

    Attributes:
        layout: of its latents: with frames, without, or with the frames where pictures have their batch.
        attention: class of the modules that hold the attention among all positions as a matrix, if any does.
        has_tiles: whether the class decodes in tiles.
        arguments: of `decode`, as its pipelines give them.
    """

    build: Callable[[], Any]
    frames: Sequence[int] = FRAMES
    layout: Layout = "video"
    attention: str = ""
    has_tiles: bool = True
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tiled_frames(self) -> Sequence[int]:
        """Lengths counted in tiles. Autoencoders for pictures have tiles as large as the pictures they make."""
        return TILED_FRAMES if self.frames is not PICTURE and self.has_tiles else ()


FOUR_LEVELS = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}
# Configurations that are not the class's own defaults, after those of stabilityai/stable-video-diffusion-img2vid,
# hunyuanvideo-community/HunyuanImage-2.1-Diffusers, cross-attention/asymmetric-autoencoder-kl-x-1-5 and
# kandinsky-community/kandinsky-2-2-decoder. They are not verified against those repositories' files.
SVD = partial(diffusers.AutoencoderKLTemporalDecoder, **FOUR_LEVELS, latent_channels=4, sample_size=768)
HUNYUAN_IMAGE = partial(
    diffusers.AutoencoderKLHunyuanImage, in_channels=3, out_channels=3, latent_channels=64,
    block_out_channels=(128, 256, 512, 512, 1024, 1024), layers_per_block=2, spatial_compression_ratio=32,
    sample_size=384,
)  # fmt: skip
ASYMMETRIC = partial(
    diffusers.AsymmetricAutoencoderKL, down_block_types=("DownEncoderBlock2D",) * 4,
    down_block_out_channels=(128, 256, 512, 512), layers_per_down_block=2, up_block_types=("UpDecoderBlock2D",) * 4,
    up_block_out_channels=(192, 384, 768, 768), layers_per_up_block=3, sample_size=256,
)  # fmt: skip
MOVQ = partial(
    diffusers.VQModel, down_block_types=(*("DownEncoderBlock2D",) * 3, "AttnDownEncoderBlock2D"),
    up_block_types=("AttnUpDecoderBlock2D", *("UpDecoderBlock2D",) * 3), block_out_channels=(128, 256, 256, 512),
    layers_per_block=2, latent_channels=4, num_vq_embeddings=16384, vq_embed_dim=4, norm_type="spatial",
)  # fmt: skip

CASES: Mapping[str, Case] = {
    "AsymmetricAutoencoderKL": Case(ASYMMETRIC, PICTURE, layout="picture"),
    "AutoencoderDC": Case(SKELETONS["Sana-1.6B"][1]["vae"], PICTURE, layout="picture"),
    "AutoencoderKL": Case(sd_vae(), PICTURE, layout="picture"),
    "AutoencoderKLCosmos": Case(diffusers.AutoencoderKLCosmos, attention="CosmosCausalAttention", has_tiles=False),
    "AutoencoderKLCogVideoX": Case(SKELETONS["CogVideoX-5B"][1]["vae"]),
    "AutoencoderKLFlux2": Case(diffusers.AutoencoderKLFlux2, PICTURE, layout="picture"),
    "AutoencoderKLHunyuanImage": Case(HUNYUAN_IMAGE, PICTURE, layout="picture"),
    "AutoencoderKLHunyuanImageRefiner": Case(diffusers.AutoencoderKLHunyuanImageRefiner, PICTURE),
    "AutoencoderKLHunyuanVideo15": Case(hunyuan_video_15, (*FRAMES, 121), attention="HunyuanVideo15AttnBlock"),
    "AutoencoderKLHunyuanVideo": Case(SKELETONS["HunyuanVideo"][1]["vae"]),
    "AutoencoderKLLTX2Video": Case(SKELETONS["LTX-2"][1]["vae"]),
    "AutoencoderKLLTXVideo": Case(diffusers.AutoencoderKLLTXVideo),
    "AutoencoderKLMagvit": Case(diffusers.AutoencoderKLMagvit),
    "AutoencoderKLMochi": Case(diffusers.AutoencoderKLMochi),
    "AutoencoderKLQwenImage": Case(SKELETONS["Qwen-Image"][1]["vae"], PICTURE),
    "AutoencoderKLQwenImage21": Case(diffusers.AutoencoderKLQwenImage21, PICTURE),
    "AutoencoderKLTemporalDecoder": Case(SVD, (1, 14, 25), layout="frames as batch", has_tiles=False),
    "AutoencoderKLWan": Case(SKELETONS["Wan2.1-T2V-1.3B"][1]["vae"]),
    "AutoencoderTiny": Case(diffusers.AutoencoderTiny, PICTURE, layout="picture"),
    "Kandinsky6SRVAE": Case(diffusers.Kandinsky6SRVAE, has_tiles=False),
    "VQModel": Case(MOVQ, PICTURE, layout="picture", arguments={"force_not_quantize": True}),
}


def main() -> None:
    """Writes the table."""
    torch.set_num_threads(1)
    lines = []
    for name, case in CASES.items():
        entry = describe(measure(case))
        lines.append(f"  {json.dumps(name)}: {json.dumps(entry)}")
        print(lines[-1], flush=True)
    head = f'{{\n "version": {json.dumps(diffusers.__version__)},\n "decoders": {{\n'
    (TABLES / "decoders.json").write_text(head + ",\n".join(lines) + "\n }\n}\n")


def describe(decoder: Decoder) -> dict[str, Any]:
    """A decoder's entry in the table."""
    return {
        "top_channels": decoder.top_channels,
        "top_patch": decoder.top_patch,
        "bytes_per_pixel": [[frames, round(value)] for frames, value in decoder.bytes_per_pixel],
        "tile_bytes": [[frames, round(value)] for frames, value in decoder.tile_bytes],
        "tiled_bytes_per_pixel": [[frames, round(value)] for frames, value in decoder.tiled_bytes_per_pixel],
        "bytes_per_pixel_squared": [
            [frames, float(f"{value:.4g}")] for frames, value in decoder.bytes_per_pixel_squared
        ],
    }


def measure(case: Case) -> Decoder:
    """What a decoder takes.

    Raises:
        ValueError: It does not grow with the pixels of a frame.
    """
    with fake_tensors():
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = case.build().eval()
        finally:
            torch.set_default_dtype(torch.float32)
        bytes_of = partial(_bytes, model, case, _compression(model, case))
        with _without(model, case.attention):
            per_pixel = tuple((frames, bytes_of(frames, SIZE) / math.prod(SIZE)) for frames in case.frames)
            frames, value = per_pixel[-1]
            other = bytes_of(frames, OTHER_SIZE) / math.prod(OTHER_SIZE)
        squared = tuple((frames, _squared(partial(bytes_of, frames), a)) for frames, a in per_pixel if case.attention)
        if case.tiled_frames:
            model.enable_tiling()
        lines = [(frames, *_line(partial(bytes_of, frames))) for frames in case.tiled_frames]
    if abs(other / value - 1.0) > MAX_NONLINEARITY:
        raise ValueError(f"{type(model).__name__}: {value:.0f} bytes a pixel at {SIZE}, {other:.0f} at {OTHER_SIZE}")
    config = dict(model.config)
    return Decoder(
        top_channels(config) or 0,
        top_patch(config),
        per_pixel,
        tuple((frames, start) for frames, start, _ in lines),
        tuple((frames, slope) for frames, _, slope in lines),
        squared,
    )


@contextmanager
def _without(model: Any, class_name: str) -> Iterator[None]:
    """Within it the modules of a class hand on what they are given."""
    modules = [module for module in model.modules() if type(module).__name__ == class_name]
    for module in modules:
        module.forward = lambda hidden_states, *_, **__: hidden_states
    yield
    for module in modules:
        del module.forward


def _squared(bytes_of: Callable[[tuple[int, int]], int], per_pixel: float) -> float:
    """Bytes of attention for a pixel and a pixel, at a size where they are plainly more than all else."""
    width, height = SIZE
    while bytes_of((width, height)) < 2.0 * per_pixel * width * height:
        width, height = 2 * width, 2 * height
    return bytes_of((width, height)) / (width * height) ** 2


def _line(bytes_of: Callable[[tuple[int, int]], int]) -> tuple[float, float]:
    """`(bytes of a tile, bytes for each pixel of a frame)` through the two sizes."""
    (small, large), areas = map(bytes_of, TILED_SIZES), [math.prod(size) for size in TILED_SIZES]
    slope = (large - small) / (areas[1] - areas[0])
    return small - slope * areas[0], slope


def _bytes(model: Any, case: Case, compression: tuple[int, int], frames: int, size: tuple[int, int]) -> int:
    (width, height), (spatial, temporal) = size, compression
    latents = _latents(model, case, (frames - 1) // temporal + 1, height // spatial, width // spatial)
    return peak_bytes_of(lambda: _decode(model, case, latents))


def _compression(model: Any, case: Case) -> tuple[int, int]:
    """Pixels a side of a latent, and frames that a latent frame adds; configurations do not always say."""
    with torch.no_grad():
        pixels = _decode(model, case, _latents(model, case, 1 if case.frames is PICTURE else 5, 8, 8))
    has_frames = case.layout == "video" and case.frames is not PICTURE
    return pixels.shape[-1] // 8, (pixels.shape[2] - 1) // 4 if has_frames else 1


def _decode(model: Any, case: Case, latents: torch.Tensor) -> torch.Tensor:
    lengths = {"num_frames": latents.shape[0]} if case.layout == "frames as batch" else {}
    pixels: torch.Tensor = model.decode(latents, return_dict=False, **lengths, **case.arguments)[0]
    return pixels


def _latents(model: Any, case: Case, frames: int, height: int, width: int) -> torch.Tensor:
    channels = dict(model.config).get("z_dim") or model.config["latent_channels"]
    time = (frames,) if case.layout == "video" else ()
    batch = frames if case.layout == "frames as batch" else 1
    return torch.randn(batch, channels, *time, height, width, dtype=torch.bfloat16)


if __name__ == "__main__":
    main()
