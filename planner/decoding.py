"""Device memory that an autoencoder takes while it decodes, from a generated table of diffusers' decoders.

A decoder's peak lies at its last levels and grows with the pixels of a frame, with the channels of its last level, and
with as many frames as its class decodes at once; `tests.tools.make_decoder_table` counts it for some lengths.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

from planner.plan import Decoding
from planner.tables import counted_decoders

ByFrames = tuple[tuple[int, float], ...]
"""`(frames, bytes)`, by frames."""
_BY_FRAMES = ("bytes_per_pixel", "tile_bytes", "tiled_bytes_per_pixel", "bytes_per_pixel_squared")
TILES_ONLY = frozenset({"AutoencoderKLAllegro"})
"""Classes that diffusers (0.42) decodes in tiles only; `decode` of whole frames is not written yet."""
_WIDTHS = ("decoder_block_out_channels", "decode_block_out_channels", "up_block_out_channels", "block_out_channels")
"""Where configurations keep the channels of a decoder's levels, the last level first."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """What a class of autoencoders takes in 16 bits, in the configuration that was counted.

    Attributes:
        top_channels: channels of its last level.
        top_patch: pixels a side that the last level holds as channels.
        bytes_per_pixel: by frames; per pixel of one frame.
        bytes_per_pixel_squared: by frames; of attention among all positions of a frame, or of all frames, where the
            class holds it as a matrix. It is gone before the last levels run: the larger of the two counts.
        tile_bytes, tiled_bytes_per_pixel: by frames, decoding in tiles: for a tile, and for the tiles that are done.
            Empty where tiles were not counted.
    """

    top_channels: int
    top_patch: int
    bytes_per_pixel: ByFrames
    tile_bytes: ByFrames = ()
    tiled_bytes_per_pixel: ByFrames = ()
    bytes_per_pixel_squared: ByFrames = ()


def find_decoder(class_name: str) -> Decoder | None:
    """The decoder of a class of autoencoders; None if it was not counted."""
    return _decoders().get(class_name)


def decode_bytes(
    class_name: str, config: Mapping[str, Any], *, pixels: int, num_frames: int, decoding: Decoding = Decoding.WHOLE
) -> float | None:
    """Bytes besides weights in 16 bits for frames of so many pixels; None for classes that were not counted."""
    decoder = find_decoder(class_name)
    channels = top_channels(config)
    if decoder is None or channels is None:
        return None
    scale = channels / decoder.top_channels * (decoder.top_patch / top_patch(config)) ** 2
    whole = at_length(decoder.bytes_per_pixel, num_frames) * scale * pixels
    if decoder.bytes_per_pixel_squared:
        whole = max(whole, at_length(decoder.bytes_per_pixel_squared, num_frames) * pixels**2)
    if decoding is Decoding.WHOLE or not decoder.tile_bytes:
        return whole
    done = at_length(decoder.tiled_bytes_per_pixel, num_frames) * pixels
    return min(whole, at_length(decoder.tile_bytes, num_frames) * scale + done)


def can_tile(class_name: str) -> bool:
    """Whether what the class takes in tiles was counted."""
    decoder = find_decoder(class_name)
    return decoder is not None and bool(decoder.tile_bytes)


def at_length(points: ByFrames, num_frames: int) -> float:
    """The value for a length: between those counted in a straight line, beyond them in the last one's."""
    if len(points) == 1:
        return points[0][1]
    (first, low), (last, high) = next(
        (pair for pair in pairwise(points) if num_frames <= pair[1][0]), (points[-2], points[-1])
    )
    return low + (high - low) * (num_frames - first) / (last - first)


def top_channels(config: Mapping[str, Any]) -> int | None:
    """Channels of the decoder's last level; None if the configuration does not say."""
    base = _positive(config.get("decoder_base_dim") or config.get("base_dim"))
    widths = next((config[key] for key in _WIDTHS if config.get(key)), None)
    return base or (_positive(widths[0]) if isinstance(widths, list | tuple) and widths else None)


def top_patch(config: Mapping[str, Any]) -> int:
    """Pixels a side that the last level holds as channels; 1 if it works on pixels."""
    patch = config.get("patch_size")
    return _positive(patch[-1] if isinstance(patch, list | tuple) and patch else patch) or 1


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


@cache
def _decoders() -> dict[str, Decoder]:
    return {
        name: Decoder(
            entry["top_channels"],
            entry["top_patch"],
            *(tuple(map(tuple, entry[field])) for field in _BY_FRAMES),
        )
        for name, entry in counted_decoders().items()
    }
