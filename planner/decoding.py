"""Device memory that an autoencoder takes while it decodes, from a generated table of diffusers' decoders.

A decoder's peak lies at its last levels and grows with the pixels of a frame, with the channels of its last level, and
with as many frames as its class decodes at once; `tests.tools.make_decoder_table` counts it for some lengths.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Decoder:
    """What a class of autoencoders takes in 16 bits, in the configuration that was counted.

    Attributes:
        top_channels: channels of its last level.
        top_patch: pixels a side that the last level holds as channels.
        bytes_per_pixel: `(frames, bytes)`, by frames; bytes are per pixel of one frame.
    """

    top_channels: int
    top_patch: int
    bytes_per_pixel: tuple[tuple[int, float], ...]

    def at(self, num_frames: int) -> float:
        """Bytes a pixel for a length: between those counted in a straight line, beyond them in the last one's."""
        points = self.bytes_per_pixel
        if len(points) == 1:
            return points[0][1]
        (first, low), (last, high) = next(
            (pair for pair in pairwise(points) if num_frames <= pair[1][0]), (points[-2], points[-1])
        )
        return low + (high - low) * (num_frames - first) / (last - first)


def find_decoder(class_name: str) -> Decoder | None:
    """The decoder of a class of autoencoders; None if it was not counted."""
    return _decoders().get(class_name)


def decode_bytes_per_pixel(class_name: str, config: Mapping[str, Any], *, num_frames: int) -> float | None:
    """Bytes besides weights for each pixel of a frame, in 16 bits; None for classes that were not counted."""
    decoder = find_decoder(class_name)
    channels = top_channels(config)
    if decoder is None or channels is None:
        return None
    scale = channels / decoder.top_channels * (decoder.top_patch / top_patch(config)) ** 2
    return decoder.at(num_frames) * scale


def top_channels(config: Mapping[str, Any]) -> int | None:
    """Channels of the decoder's last level; None if the configuration does not say."""
    base = _positive(config.get("decoder_base_dim") or config.get("base_dim"))
    widths = config.get("decoder_block_out_channels") or config.get("block_out_channels")
    return base or (_positive(widths[0]) if isinstance(widths, list | tuple) and widths else None)


def top_patch(config: Mapping[str, Any]) -> int:
    """Pixels a side that the last level holds as channels; 1 if it works on pixels."""
    patch = config.get("patch_size")
    return _positive(patch[-1] if isinstance(patch, list | tuple) and patch else patch) or 1


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


@cache
def _decoders() -> dict[str, Decoder]:
    table = json.loads((Path(__file__).parent / "tables" / "decoders.json").read_text("utf-8"))
    return {
        name: Decoder(entry["top_channels"], entry["top_patch"], tuple(map(tuple, entry["bytes_per_pixel"])))
        for name, entry in table["decoders"].items()
    }
