"""Scenes of one flat shape, their prompts and their pixels: the data of `checkpoints/shapes`.

Everything is drawn from a handful of numbers, so there is no data set. The functions take the array
library as `xp` (`numpy` or `torch`): the judge and the tests draw with numpy, training draws
thousands of clips at once on the GPU with torch, and both run the same lines.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

Array = Any
"""A `numpy.ndarray` or a `torch.Tensor`."""

IMAGE_SIZE = 64
CLIP_FRAMES = 9

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (225, 45, 45),
    "orange": (245, 140, 30),
    "yellow": (250, 225, 60),
    "green": (40, 160, 80),
    "cyan": (60, 205, 225),
    "blue": (45, 85, 215),
    "purple": (135, 55, 175),
    "pink": (250, 140, 195),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
}
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
BACKGROUNDS = ("white", "black", "gray", "yellow", "green", "blue")
SHAPES = ("circle", "square", "triangle", "star", "cross")
MOTIONS = ("left", "right", "up", "down", "still")
SIZES = ("small", "large")
POSITIONS = ("left", "right", "top", "bottom", "center")

MOTION_VECTORS = ((-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0), (0.0, 0.0))
"""Direction (x, y) of each of `MOTIONS`; y grows downwards."""

RADIUS_RANGE = (8.0, 14.0)
SMALL_BELOW, LARGE_ABOVE = 9.75, 12.0
TRAVEL_RANGE = (14.0, 24.0)
"""Pixels travelled between the first and the ninth frame of a moving clip."""
MARGIN_RADII = 1.3
"""Room a shape needs around its centre, in radii: the star's tips reach 1.25."""
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a prompt asks for; `None` means that the prompt leaves it open."""

    colour: str
    shape: str
    background: str
    motion: str | None = None
    size: str | None = None
    position: str | None = None

    def prompt(self) -> str:
        """The prompt in the grammar that the checkpoint was trained on."""
        words = [self.size, self.colour, self.shape]
        if self.position is not None:
            words += [_POSITION_PHRASES[self.position]]
        if self.motion is not None:
            words += [_MOTION_PHRASES[self.motion]]
        text = " ".join(word for word in words if word)
        article = "an" if text[0] in "aeiou" else "a"
        return f"{article} {text} on a {self.background} background"


_POSITION_PHRASES = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "center": "in the center",
}
_MOTION_PHRASES = {
    "left": "moving left",
    "right": "moving right",
    "up": "moving up",
    "down": "moving down",
    "still": "standing still",
}

_FILLERS = ("a", "an", "the", "on", "in", "at", "of", "background", "moving", "standing", "still")
_WORDS = (*_FILLERS, "picture", "video", *PALETTE, *SHAPES, *MOTIONS, *SIZES, *POSITIONS)
VOCABULARY: tuple[str, ...] = ("<pad>", "</s>", "<unk>", *dict.fromkeys(_WORDS))
TOKEN_IDS: dict[str, int] = {word: index for index, word in enumerate(VOCABULARY)}
PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
PROMPT_TOKENS = 23
"""Longest prompt of the grammar with every option and the end mark, rounded up."""


def is_held_out(colour: str, shape: str, background: str) -> bool:
    """Whether training never shows this combination, in any motion, size or position.

    The rule is a hash, so that the judge can ask for combinations that the weights have not seen.
    """
    digest = hashlib.sha256(f"{colour} {shape} on {background}".encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def combinations(*, held_out: bool) -> list[tuple[int, int, int, int]]:
    """Index tuples (colour, shape, background, motion) on one side of the held-out rule."""
    return [
        (COLOURS.index(colour), SHAPES.index(shape), BACKGROUNDS.index(background), motion)
        for colour, shape, background in product(COLOURS, SHAPES, BACKGROUNDS)
        if colour != background and is_held_out(colour, shape, background) == held_out
        for motion in range(len(MOTIONS))
    ]


@dataclass(frozen=True, slots=True)
class Scenes:
    """A batch of scenes; every field is an array of shape (B,).

    `colour`, `shape`, `background` and `motion` are indices into the tuples above; `x` and `y` are
    the centre in the first frame, `radius` and `travel` are in pixels.
    """

    colour: Array
    shape: Array
    background: Array
    motion: Array
    x: Array
    y: Array
    radius: Array
    travel: Array


def sample_scenes(num_scenes: int, *, table: Array, uniform: Callable[[int], Array], xp: Any) -> Scenes:
    """Draws scenes whose shape stays inside the picture in every frame.

    Args:
        num_scenes: How many.
        table: (N, 4) integers, the rows of `combinations`.
        uniform: Returns that many numbers in [0, 1), on the device of `table`.
        xp: `numpy` or `torch`.
    """
    picked = xp.floor(uniform(num_scenes) * len(table))
    rows = table[picked.astype(np.int64) if xp is np else picked.long()]
    radius = _between(uniform(num_scenes), *RADIUS_RANGE)
    travel = _between(uniform(num_scenes), *TRAVEL_RANGE)
    motion = rows[:, 3]
    step_x, step_y = _directions(motion, xp=xp)
    low = MARGIN_RADII * radius
    high = IMAGE_SIZE - low
    reach_x, reach_y = step_x * travel, step_y * travel
    x = _inside(uniform(num_scenes), low, high, reach_x, xp=xp)
    y = _inside(uniform(num_scenes), low, high, reach_y, xp=xp)
    return Scenes(rows[:, 0], rows[:, 1], rows[:, 2], motion, x, y, radius, travel)


def _between(unit: Array, low: float, high: float) -> Array:
    return low + (high - low) * unit


def _inside(unit: Array, low: Array, high: Array, reach: Array, *, xp: Any) -> Array:
    """A start between `low` and `high` from where `start + reach` lies there too."""
    zero = reach * 0.0
    first = low - xp.minimum(reach, zero)
    last = high - xp.maximum(reach, zero)
    return first + (last - first) * unit


def _directions(motion: Array, *, xp: Any) -> tuple[Array, Array]:
    step_x = xp.where(motion == 1, 1.0, 0.0) - xp.where(motion == 0, 1.0, 0.0)
    step_y = xp.where(motion == 3, 1.0, 0.0) - xp.where(motion == 2, 1.0, 0.0)
    return step_x, step_y


def _circle(u: Array, v: Array, radius: Array, xp: Any) -> Array:
    return xp.sqrt(u * u + v * v) - 0.9 * radius


def _square(u: Array, v: Array, radius: Array, xp: Any) -> Array:
    return xp.maximum(xp.abs(u), xp.abs(v)) - 0.82 * radius


def _triangle(u: Array, v: Array, radius: Array, xp: Any) -> Array:
    return xp.maximum(v, 0.8660254 * xp.abs(u) - 0.5 * v) - 0.6 * radius


def _star(u: Array, v: Array, radius: Array, xp: Any) -> Array:
    """Five points: fold the angle into one half point, then measure to that edge."""
    tip, notch, wedge = 1.25, 0.58, 2 * math.pi / 5
    angle = xp.arctan2(u, -v)
    folded = xp.abs(angle - wedge * xp.round(angle / wedge))
    distance = xp.sqrt(u * u + v * v)
    along, aside = distance * xp.cos(folded), distance * xp.sin(folded)
    edge_x, edge_y = notch * math.cos(wedge / 2) - tip, notch * math.sin(wedge / 2)
    return ((along - tip * radius) * edge_y - aside * edge_x) / math.hypot(edge_x, edge_y)


def _cross(u: Array, v: Array, radius: Array, xp: Any) -> Array:
    across, down = xp.abs(u), xp.abs(v)
    arm, half_width = 1.08 * radius, 0.38 * radius
    return xp.minimum(xp.maximum(across - arm, down - half_width), xp.maximum(across - half_width, down - arm))


_DISTANCES = (_circle, _square, _triangle, _star, _cross)


def signed_distance(shape: int, u: Array, v: Array, radius: Array, *, xp: Any) -> Array:
    """Distance to the outline of `SHAPES[shape]` (negative inside), in pixels.

    `u` and `v` are offsets from the centre (v grows downwards). Areas are alike (1.9 to 2.7 squared radii), so that
    size does not give the shape away.
    """
    return _DISTANCES[shape](u, v, radius, xp)


def coverage(scenes: Scenes, *, num_frames: int, xp: Any) -> Array:
    """How much of every pixel the shape covers: (B, F, H, W) float32 in [0, 1], anti-aliased."""
    kwargs = {} if xp is np else {"device": scenes.x.device}
    frames = xp.arange(num_frames, **kwargs) / (CLIP_FRAMES - 1)
    grid = xp.arange(IMAGE_SIZE, **kwargs) + 0.5
    step_x, step_y = _directions(scenes.motion, xp=xp)
    centre_x = scenes.x[:, None] + (step_x * scenes.travel)[:, None] * frames
    centre_y = scenes.y[:, None] + (step_y * scenes.travel)[:, None] * frames
    u = grid[None, None, None, :] - centre_x[:, :, None, None]
    v = grid[None, None, :, None] - centre_y[:, :, None, None]
    u, v = xp.broadcast_arrays(u, v) if xp is np else xp.broadcast_tensors(u, v)
    radius = scenes.radius[:, None, None, None]
    shape = scenes.shape[:, None, None, None]
    chosen = u * 0.0
    for index in range(len(SHAPES)):
        chosen = xp.where(shape == index, signed_distance(index, u, v, radius, xp=xp), chosen)
    return xp.clip(0.5 - chosen, 0.0, 1.0)


def palette_table(names: tuple[str, ...]) -> np.ndarray:
    """(N, 3) float32 in [-1, 1]."""
    return np.asarray([PALETTE[name] for name in names], dtype=np.float32) / 127.5 - 1.0


def paint(scenes: Scenes, cover: Array, *, colours: Array, backgrounds: Array) -> Array:
    """Pixels (B, 3, F, H, W) in [-1, 1] of shapes that cover `cover` of each pixel.

    `colours` and `backgrounds` are `palette_table`s of the same array library as `cover`.
    """
    ink = colours[scenes.colour][:, :, None, None, None]
    ground = backgrounds[scenes.background][:, :, None, None, None]
    return ground + (ink - ground) * cover[:, None]


def draw_numpy(scenes: Scenes, *, num_frames: int) -> np.ndarray:
    """Ground-truth clips, (B, F, H, W, 3) float32 in [0, 1]."""
    cover = coverage(scenes, num_frames=num_frames, xp=np)
    pixels = paint(
        scenes,
        cover,
        colours=palette_table(COLOURS),
        backgrounds=palette_table(BACKGROUNDS),
    )
    return np.asarray((pixels.transpose(0, 2, 3, 4, 1) + 1.0) / 2.0, dtype=np.float32)


def attributes_of(scenes: Scenes, index: int, *, with_motion: bool) -> Attributes:
    """The attributes of one scene, without the optional words."""
    return Attributes(
        colour=COLOURS[int(scenes.colour[index])],
        shape=SHAPES[int(scenes.shape[index])],
        background=BACKGROUNDS[int(scenes.background[index])],
        motion=MOTIONS[int(scenes.motion[index])] if with_motion else None,
    )


def held_out_prompts(num_prompts: int, *, seed: int, with_motion: bool) -> list[Attributes]:
    """Prompts of combinations that training never showed, every one as often as every other."""
    rng = np.random.default_rng(seed)
    rows = combinations(held_out=True)
    order: list[int] = []
    while len(order) < num_prompts:
        order += [int(index) for index in rng.permutation(len(rows))]
    prompts = []
    for colour, shape, background, motion in (rows[index] for index in order[:num_prompts]):
        prompts.append(
            Attributes(
                colour=COLOURS[colour],
                shape=SHAPES[shape],
                background=BACKGROUNDS[background],
                motion=MOTIONS[motion] if with_motion else None,
            )
        )
    return prompts
