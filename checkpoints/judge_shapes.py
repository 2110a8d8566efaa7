"""Judges the pictures and clips of `checkpoints/shapes` from their pixels alone.

    python checkpoints/judge_shapes.py --checkpoint checkpoints/shapes --num-prompts 200
    python checkpoints/judge_shapes.py --url http://127.0.0.1:8000 --num-prompts 50 --json

The judge reads background, colour, shape and motion with numpy, knowing nothing of the prompt, and only then
compares. All prompts ask for combinations of colour, shape and background that training never showed. It is itself
tested on drawn scenes (`tests/unit/test_judge_shapes.py`).
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from shapes_data import (
    BACKGROUNDS,
    CLIP_FRAMES,
    COLOURS,
    IMAGE_SIZE,
    PALETTE,
    SHAPES,
    Attributes,
    held_out_prompts,
    signed_distance,
)

Pixels = np.ndarray
"""One picture (H, W, 3) or clip (F, H, W, 3); float32 in [0, 1]."""

MAX_COLOUR_DISTANCE = 0.3
"""Farthest a read colour may lie from its palette entry, in RGB space with sides of length 1."""
MIN_CONTRAST = 0.2
POLL_S = 0.2
AREA_RANGE = (60.0, 900.0)
MIN_OVERLAP = 0.8
"""Least soft intersection over union with the best template; drawn scenes reach 0.95 and more."""
MIN_MOTION = 6.0
"""Pixels of travel between first and last frame from which a shape moves; training clips travel 14 to 24."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was read (None: nothing readable) and whether each attribute is what the prompt asked for.

    `motion_right` is None for pictures and for prompts that leave the motion open.
    """

    background: str | None
    colour: str | None
    shape: str | None
    motion: str | None
    background_right: bool
    colour_right: bool
    shape_right: bool
    motion_right: bool | None

    @property
    def accepted(self) -> bool:
        """Whether everything that the prompt asked for is there."""
        return self.background_right and self.colour_right and self.shape_right and self.motion_right is not False


@dataclass(frozen=True, slots=True)
class FrameReading:
    """What one frame shows; the centre (x, y) in pixels is None where no object is."""

    background: str | None
    colour: str | None
    shape: str | None
    centre: tuple[float, float] | None


def judge_picture(pixels: Pixels, attributes: Attributes) -> Verdict:
    """Reads a picture (H, W, 3) and compares it with the attributes of its prompt."""
    reading = read_frame(pixels)
    return _verdict(reading.background, reading.colour, reading.shape, None, attributes)


def judge_video(pixels: Pixels, attributes: Attributes) -> Verdict:
    """Reads a clip (F, H, W, 3): background, colour and shape in the most frames, motion over all of them."""
    inspected = sorted({0, len(pixels) // 2, len(pixels) - 1})
    readings = [read_frame(pixels[index]) for index in inspected]
    return _verdict(
        _majority([reading.background for reading in readings]),
        _majority([reading.colour for reading in readings]),
        _majority([reading.shape for reading in readings]),
        read_motion(pixels),
        attributes,
    )


def _verdict(
    background: str | None, colour: str | None, shape: str | None, motion: str | None, wanted: Attributes
) -> Verdict:
    return Verdict(
        background=background,
        colour=colour,
        shape=shape,
        motion=motion,
        background_right=background == wanted.background,
        colour_right=colour == wanted.colour,
        shape_right=shape == wanted.shape,
        motion_right=None if motion is None or wanted.motion is None else motion == wanted.motion,
    )


def _majority(names: list[str | None]) -> str | None:
    return max(names, key=lambda name: (names.count(name), name is not None))


def read_frame(pixels: Pixels) -> FrameReading:
    """Reads one frame: background from the border, object from what differs, shape from templates."""
    ground = _border_colour(pixels)
    background = _nearest(ground, BACKGROUNDS)
    ink, cover = _object(pixels, ground)
    if ink is None or not AREA_RANGE[0] <= cover.sum() <= AREA_RANGE[1]:
        return FrameReading(background, None, None, None)
    centre = _centroid(cover)
    return FrameReading(background, _nearest(ink, COLOURS), _read_shape(cover, centre), centre)


def read_motion(pixels: Pixels) -> str | None:
    """Direction in which the object's centroid travels, `still`, or None if it is not there throughout."""
    centres = []
    for frame in pixels:
        ink, cover = _object(frame, _border_colour(frame))
        if ink is None or cover.sum() < AREA_RANGE[0]:
            return "none"
        centres.append(_centroid(cover))
    times = np.arange(len(centres)) - (len(centres) - 1) / 2
    slope = (times[:, None] * np.asarray(centres)).sum(axis=0) / (times**2).sum()
    across, down = slope * (len(centres) - 1)
    if max(abs(across), abs(down)) < MIN_MOTION:
        return "still"
    if min(abs(across), abs(down)) > 0.5 * max(abs(across), abs(down)):
        return "none"
    if abs(across) > abs(down):
        return "right" if across > 0 else "left"
    return "down" if down > 0 else "up"


def _border_colour(pixels: Pixels) -> np.ndarray:
    edges = (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:])
    border = np.concatenate([edge.reshape(-1, 3) for edge in edges])
    return np.asarray(np.median(border, axis=0))


def _nearest(colour: np.ndarray, names: tuple[str, ...]) -> str | None:
    distances = [float(np.linalg.norm(colour - np.asarray(PALETTE[name]) / 255.0)) for name in names]
    best = int(np.argmin(distances))
    return names[best] if distances[best] <= MAX_COLOUR_DISTANCE else None


def _object(pixels: Pixels, ground: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """The object's colour, and how much it covers each pixel (H, W); no colour where nothing stands out."""
    difference = np.linalg.norm(pixels - ground, axis=-1)
    peak = float(np.sort(difference, axis=None)[-30])
    if peak < MIN_CONTRAST:
        return None, np.zeros_like(difference)
    inside = difference > 0.6 * peak
    core = inside.copy()
    core[1:] &= inside[:-1]
    core[:-1] &= inside[1:]
    core[:, 1:] &= inside[:, :-1]
    core[:, :-1] &= inside[:, 1:]
    if core.sum() < 10:
        core = inside
    ink = np.median(pixels[core], axis=0)
    direction = ink - ground
    cover = np.clip((pixels - ground) @ direction / (direction @ direction), 0.0, 1.0)
    # Faint ripples of the decoder all over the picture would pull the centroid.
    cover[cover < 0.15] = 0.0
    return ink, cover


def _centroid(cover: np.ndarray) -> tuple[float, float]:
    grid = np.arange(len(cover)) + 0.5
    total = cover.sum()
    return float((cover.sum(axis=0) * grid).sum() / total), float((cover.sum(axis=1) * grid).sum() / total)


def _template_areas() -> list[float]:
    """Area of each shape in squared radii, measured on a large drawing."""
    grid = (np.arange(400) + 0.5) / 100.0 - 2.0
    v, u = np.meshgrid(grid, grid, indexing="ij")
    return [
        float((signed_distance(shape, u, v, np.asarray(1.0), xp=np) < 0).mean() * 16.0) for shape in range(len(SHAPES))
    ]


TEMPLATE_AREAS = _template_areas()
_OFFSETS = [(x, y, r) for r in (0.95, 1.0, 1.05) for x in (-0.6, 0.0, 0.6) for y in (-0.6, 0.0, 0.6)]


def _read_shape(cover: np.ndarray, centre: tuple[float, float]) -> str | None:
    """The template of equal area and centroid that overlaps most, if it overlaps well."""
    area = float(cover.sum())
    offsets = np.asarray(_OFFSETS)[:, :, None, None]
    grid = np.arange(len(cover)) + 0.5
    u = grid[None, None, :] - (centre[0] + offsets[:, 0])
    v = grid[None, :, None] - (centre[1] + offsets[:, 1])
    u, v = np.broadcast_arrays(u, v)
    reach = 1.4 * np.sqrt(area / min(TEMPLATE_AREAS)) + 2.0
    rows = np.abs(grid - centre[1]) < reach
    columns = np.abs(grid - centre[0]) < reach
    u, v = u[:, rows][:, :, columns], v[:, rows][:, :, columns]
    seen = cover[rows][:, columns]
    outside = area - seen.sum()
    overlaps = []
    for index, template_area in enumerate(TEMPLATE_AREAS):
        radius = np.sqrt(area / template_area) * offsets[:, 2]
        drawn = np.clip(0.5 - signed_distance(index, u, v, radius, xp=np), 0.0, 1.0)
        common = np.minimum(drawn, seen).sum(axis=(1, 2))
        either = np.maximum(drawn, seen).sum(axis=(1, 2)) + outside
        overlaps.append(float((common / either).max()))
    best = int(np.argmax(overlaps))
    return SHAPES[best] if overlaps[best] >= MIN_OVERLAP else None


# Where the pictures come from.

Source = Callable[[list[Attributes], int], Iterator[Pixels]]
"""Renders prompts with that many frames; yields (F, H, W, 3) in the order of the prompts."""


def render_with_checkpoint(arguments: argparse.Namespace, settings: dict[str, Any]) -> Source:
    """Loads the pipeline with diffusers and renders in batches."""
    import torch
    from diffusers import WanPipeline

    pipeline = WanPipeline.from_pretrained(arguments.checkpoint, torch_dtype=getattr(torch, arguments.dtype))
    pipeline.to(arguments.device)
    pipeline.set_progress_bar_config(disable=True)

    def render(prompts: list[Attributes], num_frames: int) -> Iterator[Pixels]:
        for first in range(0, len(prompts), arguments.batch):
            batch = prompts[first : first + arguments.batch]
            seeds = [arguments.seed + first + index for index in range(len(batch))]
            frames = pipeline(
                [prompt.prompt() for prompt in batch],
                height=IMAGE_SIZE,
                width=IMAGE_SIZE,
                num_frames=num_frames,
                num_inference_steps=settings["num_inference_steps"],
                guidance_scale=settings["guidance_scale"],
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                output_type="np",
            ).frames
            yield from np.asarray(frames, dtype=np.float32)

    return render


def render_with_server(arguments: argparse.Namespace, settings: dict[str, Any]) -> Source:
    """Pictures by one request each; clips as jobs, all handed in first, then fetched in order."""
    server = _Server(arguments)

    def render(prompts: list[Attributes], num_frames: int) -> Iterator[Pixels]:
        bodies = [
            {
                "prompt": prompt.prompt(),
                "seed": arguments.seed + index,
                "size": f"{IMAGE_SIZE}x{IMAGE_SIZE}",
                **{name: settings[name] for name in settings["given"]},
            }
            for index, prompt in enumerate(prompts)
        ]
        if num_frames == 1:
            yield from (server.picture(body)[None] for body in bodies)
            return
        jobs = [server.begin_clip({**body, "num_frames": num_frames}) for body in bodies]
        yield from (server.clip(job) for job in jobs)

    return render


class _Server:
    """A server's OpenAI-style routes."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._url = f"{arguments.url.rstrip('/')}/v1"
        self._headers = {"Authorization": f"Bearer {arguments.api_key}"} if arguments.api_key else {}
        self._timeout_s = arguments.timeout_s

    def picture(self, body: dict[str, Any]) -> Pixels:
        """(H, W, 3)."""
        from PIL import Image

        answer = json.loads(self._fetch("images/generations", {**body, "response_format": "b64_json"}))
        picture = Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"]))).convert("RGB")
        return np.asarray(picture, dtype=np.float32) / 255.0

    def begin_clip(self, body: dict[str, Any]) -> str:
        """The id of the accepted job."""
        return str(json.loads(self._fetch("videos", body))["id"])

    def clip(self, video_id: str) -> Pixels:
        """(F, H, W, 3), once the job is completed."""
        import av

        end = time.monotonic() + self._timeout_s
        while (video := json.loads(self._fetch(f"videos/{video_id}")))["status"] != "completed":
            if video["status"] == "failed":
                raise SystemExit(f"{video_id} failed: {video['error']['message']}")
            if time.monotonic() > end:
                raise SystemExit(f"{video_id} is not finished after {self._timeout_s:g} s: raise --timeout-s")
            time.sleep(POLL_S)
        with av.open(io.BytesIO(self._fetch(f"videos/{video_id}/content"))) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        return np.stack(frames).astype(np.float32) / 255.0

    def _fetch(self, path: str, body: dict[str, Any] | None = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        headers = self._headers | ({} if data is None else {"Content-Type": "application/json"})
        request = urllib.request.Request(f"{self._url}/{path}", data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as response:
                content: bytes = response.read()
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{path}: {error}: {error.read().decode(errors='replace')[:1000]}") from error
        return content


# The command line.


def score(prompts: list[Attributes], clips: Iterator[Pixels]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Share of prompts for which each attribute is right, and one record a prompt."""
    records: list[dict[str, Any]] = []
    for prompt, clip in zip(prompts, clips, strict=True):
        verdict = judge_picture(clip[0], prompt) if len(clip) == 1 else judge_video(clip, prompt)
        records.append({"prompt": prompt.prompt(), "accepted": verdict.accepted, **asdict(verdict)})
    shares: dict[str, float] = {}
    for name in ("background_right", "colour_right", "shape_right", "motion_right", "accepted"):
        values = [bool(record[name]) for record in records if record[name] is not None]
        if values:
            shares[name.removesuffix("_right")] = sum(values) / len(values)
    return shares, records


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Steps and guidance: the command line's, else the checkpoint's `heliograph.json`."""
    defaults: dict[str, Any] = {"num_inference_steps": 20, "guidance_scale": 4.0}
    file = Path(arguments.checkpoint or ".") / "heliograph.json"
    if arguments.checkpoint and file.exists():
        defaults |= json.loads(file.read_text())["defaults"]
    given = {"num_inference_steps": arguments.steps, "guidance_scale": arguments.guidance_scale}
    given = {name: value for name, value in given.items() if value is not None}
    return defaults | given | {"given": list(given)}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line, with help that says what each number means."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", help="folder to load with diffusers' WanPipeline, without any server")
    source.add_argument(
        "--url", help="address of a server with /v1/images/generations and /v1/videos, e.g. http://127.0.0.1:8000"
    )
    parser.add_argument("--api-key", help="sent as a bearer token with --url")
    parser.add_argument("--timeout-s", type=float, default=120.0, help="longest wait for one answer with --url")
    parser.add_argument(
        "--num-prompts", type=int, default=50, help="prompts of each kind; 200 give about 2 %% of error"
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--pictures", action="store_true", help="judge pictures only")
    only.add_argument("--videos", action="store_true", help="judge clips only, motion included")
    parser.add_argument("--steps", type=int, help="denoising steps (default: what the checkpoint recommends)")
    parser.add_argument("--guidance-scale", type=float, help="1.0 turns guidance off, which should score clearly worse")
    parser.add_argument("--seed", type=int, default=0, help="seed of prompt choice and of the first picture")
    parser.add_argument("--batch", type=int, default=10, help="pictures a call with --checkpoint")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="cpu", help="cpu or cuda, with --checkpoint")
    parser.add_argument("--json", action="store_true", help="print scores and every verdict as JSON")
    return parser.parse_args(argv)


def main() -> int:
    """Prints a table of shares, or JSON."""
    arguments = parse_arguments()
    settings = settings_of(arguments)
    render = (render_with_server if arguments.url else render_with_checkpoint)(arguments, settings)
    kinds = {"pictures": 1, "videos": CLIP_FRAMES}
    if arguments.pictures:
        del kinds["videos"]
    if arguments.videos:
        del kinds["pictures"]
    report: dict[str, Any] = {"settings": {name: settings[name] for name in ("num_inference_steps", "guidance_scale")}}
    for kind, num_frames in kinds.items():
        start = time.monotonic()
        prompts = held_out_prompts(arguments.num_prompts, seed=arguments.seed, with_motion=kind == "videos")
        shares, records = score(prompts, render(prompts, num_frames))
        report[kind] = {
            "num_prompts": len(prompts),
            "scores": shares,
            "seconds_each": (time.monotonic() - start) / len(prompts),
            "verdicts": records,
        }
        if not arguments.json:
            table = "  ".join(f"{name} {share:6.1%}" for name, share in shares.items())
            print(f"{kind:9s} {len(prompts):4d}  {table}  ({report[kind]['seconds_each']:.2f} s each)", flush=True)
    if arguments.json:
        print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
