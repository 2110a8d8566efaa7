"""Device memory that decoders take, whole and in tiles, against what the planner counts for them; seconds beside it.

    python -m benchmarks.decoding [--small]

Random weights in the published configurations. Bytes are the peak of allocated memory less what lay there before.
"""

import gc
import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.measuring import GIB, Options, free, peak_gib, read_options, synchronize
from benchmarks.predicted_against_measured import build_random
from benchmarks.record import keep
from planner.decoding import can_tile, decode_bytes
from planner.plan import Decoding
from tests.tools.make_decoder_table import CASES, Case

NAME = "decoding"
VIDEO, PICTURE = (832, 480, 81), (1024, 1024, 1)
SMALL = (64, 64, 9)
SHAPES = {
    "AutoencoderKLWan": VIDEO,
    "AutoencoderKLHunyuanVideo": VIDEO,
    "AutoencoderKLCogVideoX": VIDEO,
    "AutoencoderKLQwenImage": PICTURE,
    "AutoencoderKL": PICTURE,
    "AutoencoderDC": PICTURE,
}


def run(options: Options) -> list[dict[str, Any]]:
    """One row a decoder and way."""
    names = ["AutoencoderKLWan"] if options.is_small else list(SHAPES)
    return [row for name in names for row in _compare(name, options)]


@torch.no_grad()
def _compare(name: str, options: Options) -> Iterator[dict[str, Any]]:
    case, shape = CASES[name], SMALL if options.is_small else SHAPES[name]
    model: Any = build_random(case.build, device=options.device, dtype=options.dtype)
    for decoding in Decoding:
        if decoding is Decoding.TILES and not can_tile(name):
            continue
        if decoding is Decoding.TILES:
            model.enable_tiling()
        predicted = decode_bytes(
            name, dict(model.config), pixels=shape[0] * shape[1], num_frames=shape[2], decoding=decoding
        )
        latents = _latents(model, case, shape, options)
        free(options.device)
        before = peak_gib(options.device)
        seconds = []
        for _ in range(2):  # the first one chooses kernels
            start = time.perf_counter()
            pixels = model.decode(latents, return_dict=False)[0]
            synchronize(options.device)
            seconds.append(time.perf_counter() - start)
            size = tuple(pixels.shape)
            del pixels
        measured = peak_gib(options.device) - before
        yield {
            "decoder": name, "size": f"{shape[0]}x{shape[1]}x{shape[2]}", "decoding": str(decoding),
            "predicted_gib": (predicted or 0.0) / GIB, "measured_gib": measured, "s": seconds[-1], "pixels": str(size),
        }  # fmt: skip
    del model
    gc.collect()


def _latents(model: Any, case: Case, shape: tuple[int, int, int], options: Options) -> torch.Tensor:
    """Latents of which the decoder makes the shape."""
    width, height, frames = shape
    config = dict(model.config)
    spatial = 32 if type(model).__name__ == "AutoencoderDC" else 8
    channels = config.get("z_dim") or config["latent_channels"]
    length = ((frames - 1) // 4 + 1,) if case.layout == "video" else ()
    return torch.randn(1, channels, *length, height // spatial, width // spatial).to(options.device, options.dtype)


if __name__ == "__main__":
    keep(NAME, run(read_options(__doc__)))
