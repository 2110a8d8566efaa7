"""A sheet of pictures and video strips with their prompts, to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from shapes_data import CLIP_FRAMES, Attributes, held_out_prompts
from shapes_models import DEFAULTS


def draw_samples(pipeline: Any, target: Path, *, columns: int = 6, rows: int = 3, strips: int = 3) -> None:
    """A sheet of pictures and video strips with their prompts, all of held-out combinations."""
    pictures = held_out_prompts(columns * rows, seed=1, with_motion=False)
    videos = [prompt for prompt in held_out_prompts(40, seed=2, with_motion=True) if prompt.motion != "still"][:strips]
    side, caption, gap = 96, 40, 8
    width = max(columns, CLIP_FRAMES) * (side + gap) + gap
    sheet = Image.new("RGB", (width, (rows + strips) * (side + caption + gap) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (prompt, frames) in enumerate(zip(pictures, _render(pipeline, pictures, num_frames=1), strict=True)):
        step = (width - gap) // columns
        left, top = gap + (index % columns) * step, gap + (index // columns) * (side + caption + gap)
        _paste(sheet, frames[0], left, top, side=side)
        _write(pen, prompt, left, top + side + 2, width=step - gap)
    for row, (prompt, frames) in enumerate(zip(videos, _render(pipeline, videos, num_frames=CLIP_FRAMES), strict=True)):
        top = gap + (rows + row) * (side + caption + gap)
        for column, frame in enumerate(frames):
            left = gap + column * (side + gap)
            _paste(sheet, frame, left, top, side=side)
        _write(pen, prompt, gap, top + side + 2, width=width)
    sheet.save(target, optimize=True)


def _paste(sheet: Image.Image, frame: Image.Image, left: int, top: int, *, side: int) -> None:
    """A frame with a thin outline, without which white backgrounds would vanish."""
    sheet.paste(frame.resize((side, side), Image.Resampling.NEAREST), (left, top))
    ImageDraw.Draw(sheet).rectangle((left - 1, top - 1, left + side, top + side), outline="silver")


def _render(pipeline: Any, prompts: list[Attributes], *, num_frames: int) -> list[list[Image.Image]]:
    videos = pipeline(
        [prompt.prompt() for prompt in prompts],
        height=int(DEFAULTS["height"]),
        width=int(DEFAULTS["width"]),
        num_frames=num_frames,
        num_inference_steps=int(DEFAULTS["num_inference_steps"]),
        guidance_scale=float(DEFAULTS["guidance_scale"]),
        generator=torch.Generator("cpu").manual_seed(7),
        output_type="pil",
    ).frames
    return list(videos)


def _write(pen: ImageDraw.ImageDraw, prompt: Attributes, left: int, top: int, *, width: int) -> None:
    lines, line = [], ""
    for word in prompt.prompt().split():
        if line and pen.textlength(f"{line} {word}") > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    for row, text in enumerate([*lines, line]):
        pen.text((left, top + 12 * row), text, fill="black")
