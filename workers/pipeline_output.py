"""What a pipeline returns, in one form: uint8 pictures or videos, or the latents as they are."""

from typing import Any

import numpy as np
import torch

from workers.calls import OutputKind


def normalize_output(result: Any, *, output_type: str | None) -> tuple[Any, OutputKind]:
    """Turns a pipeline's output object into one array.

    Returns:
        `(B, H, W, 3)` uint8 and "image", `(B, F, H, W, 3)` uint8 and "video", or for `output_type="latent"` the
        tensor on the CPU and "latent".
    """
    frames = getattr(result, "frames", None)
    media = frames if frames is not None else getattr(result, "images", None)
    if media is None:
        media = result[0]
    if output_type == "latent":
        return (media.detach().cpu() if isinstance(media, torch.Tensor) else media), "latent"
    pixels = _to_uint8(_stack(media))
    if pixels.ndim == 3:
        pixels = pixels[None]
    return pixels, "video" if pixels.ndim == 5 else "image"


def _stack(media: Any) -> np.ndarray:
    if isinstance(media, torch.Tensor):  # (..., 3, H, W) in [0, 1]
        return media.detach().float().cpu().movedim(-3, -1).numpy()
    if isinstance(media, np.ndarray):
        return media
    if isinstance(media, list):
        return np.stack([_stack(item) for item in media])
    return np.asarray(media.convert("RGB"))  # a PIL image


def _to_uint8(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    scaled: np.ndarray = (np.clip(pixels, 0.0, 1.0) * 255.0).round().astype(np.uint8)
    return scaled
