"""Generates `planner/tables/decoders.json`: device memory that diffusers' decoders take for a pixel, by frames.

    python -m tests.tools.make_decoder_table

Each decoder runs in 16 bits on fake tensors (`live_bytes`), in a published configuration. What it takes is proportional
to the pixels of a frame (checked here at two sizes); how it grows with frames depends on how the class cuts time.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

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


@dataclass(frozen=True, slots=True)
class Case:
    """A decoder: how it is built, and how many frames it is asked for."""

    build: Callable[[], Any]
    frames: Sequence[int] = FRAMES
    has_time: bool = True

    @property
    def tiled_frames(self) -> Sequence[int]:
        """Lengths counted in tiles. Autoencoders for pictures have tiles as large as the pictures they make."""
        return TILED_FRAMES if self.frames is FRAMES else ()


CASES: Mapping[str, Case] = {
    "AutoencoderDC": Case(SKELETONS["Sana-1.6B"][1]["vae"], PICTURE, has_time=False),
    "AutoencoderKL": Case(sd_vae(), PICTURE, has_time=False),
    "AutoencoderKLCogVideoX": Case(SKELETONS["CogVideoX-5B"][1]["vae"]),
    "AutoencoderKLFlux2": Case(diffusers.AutoencoderKLFlux2, PICTURE, has_time=False),
    "AutoencoderKLHunyuanVideo": Case(SKELETONS["HunyuanVideo"][1]["vae"]),
    "AutoencoderKLLTX2Video": Case(SKELETONS["LTX-2"][1]["vae"]),
    "AutoencoderKLLTXVideo": Case(diffusers.AutoencoderKLLTXVideo),
    "AutoencoderKLMagvit": Case(diffusers.AutoencoderKLMagvit),
    "AutoencoderKLMochi": Case(diffusers.AutoencoderKLMochi),
    "AutoencoderKLQwenImage": Case(SKELETONS["Qwen-Image"][1]["vae"], PICTURE),
    "AutoencoderKLWan": Case(SKELETONS["Wan2.1-T2V-1.3B"][1]["vae"]),
    "AutoencoderTiny": Case(diffusers.AutoencoderTiny, PICTURE, has_time=False),
}


def main() -> None:
    """Writes the table."""
    torch.set_num_threads(1)
    lines = []
    for name, case in CASES.items():
        decoder = measure(case)
        entry = {
            "top_channels": decoder.top_channels,
            "top_patch": decoder.top_patch,
            "bytes_per_pixel": [[frames, round(value)] for frames, value in decoder.bytes_per_pixel],
            "tile_bytes": [[frames, round(value)] for frames, value in decoder.tile_bytes],
            "tiled_bytes_per_pixel": [[frames, round(value)] for frames, value in decoder.tiled_bytes_per_pixel],
        }
        lines.append(f"  {json.dumps(name)}: {json.dumps(entry)}")
        print(lines[-1], flush=True)
    head = f'{{\n "version": {json.dumps(diffusers.__version__)},\n "decoders": {{\n'
    (TABLES / "decoders.json").write_text(head + ",\n".join(lines) + "\n }\n}\n")


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
        per_pixel = tuple((frames, bytes_of(frames, SIZE) / math.prod(SIZE)) for frames in case.frames)
        frames, value = per_pixel[-1]
        other = bytes_of(frames, OTHER_SIZE) / math.prod(OTHER_SIZE)
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
    )


def _line(bytes_of: Callable[[tuple[int, int]], int]) -> tuple[float, float]:
    """`(bytes of a tile, bytes for each pixel of a frame)` through the two sizes."""
    (small, large), areas = map(bytes_of, TILED_SIZES), [math.prod(size) for size in TILED_SIZES]
    slope = (large - small) / (areas[1] - areas[0])
    return small - slope * areas[0], slope


def _bytes(model: Any, case: Case, compression: tuple[int, int], frames: int, size: tuple[int, int]) -> int:
    (width, height), (spatial, temporal) = size, compression
    latents = _latents(model, case, (frames - 1) // temporal + 1, height // spatial, width // spatial)
    return peak_bytes_of(lambda: model.decode(latents, return_dict=False))


def _compression(model: Any, case: Case) -> tuple[int, int]:
    """Pixels a side of a latent, and frames that a latent frame adds; configurations do not always say."""
    with torch.no_grad():
        pixels = model.decode(_latents(model, case, 5, 8, 8), return_dict=False)[0]
    return pixels.shape[-1] // 8, (pixels.shape[2] - 1) // 4 if case.has_time else 1


def _latents(model: Any, case: Case, frames: int, height: int, width: int) -> torch.Tensor:
    channels = dict(model.config).get("z_dim") or model.config["latent_channels"]
    time = (frames,) if case.has_time else ()
    return torch.randn(1, channels, *time, height, width, dtype=torch.bfloat16)


if __name__ == "__main__":
    main()
