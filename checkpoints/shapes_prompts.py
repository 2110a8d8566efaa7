"""Prompts of the shapes grammar as token ids, drawn for whole batches on the training device.

A prompt is a row of slots, each holding a word or nothing; squeezing the empty slots out gives what the
tokenizer makes of the same sentence. Every visit of a clip draws its optional words anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from shapes_data import (
    BACKGROUNDS,
    COLOURS,
    EOS_ID,
    IMAGE_SIZE,
    LARGE_ABOVE,
    MOTIONS,
    PAD_ID,
    PROMPT_TOKENS,
    SHAPES,
    SMALL_BELOW,
    TOKEN_IDS,
    UNK_ID,
    VOCABULARY,
    Scenes,
)
from torch import Tensor

PROMPT_DROPOUT = 0.1
"""Share of empty prompts: the unconditional model that guidance subtracts."""
MISNAMED = 0.3
"""Share of prompts that belong to another scene. Alone, the model then errs about as often; guidance, which multiplies
what the prompt changes, must put it right. So a lost branch or guidance switched off can be seen."""
SHOW_SIZE, SHOW_POSITION, SHOW_PREFIX, SHOW_UNKNOWN = 0.3, 0.2, 0.15, 0.04
MOTION_LAST = 0.25


@dataclass(frozen=True, slots=True)
class PromptTables:
    """Word ids of each attribute, on the training device."""

    colour: Tensor
    shape: Tensor
    background: Tensor
    motion: Tensor
    position: Tensor


def build_tables(device: torch.device) -> PromptTables:
    """Rows of ids: one word for most attributes, two for motion, three for position."""

    def ids(*phrases: str) -> Tensor:
        return torch.tensor([[TOKEN_IDS[word] for word in phrase.split()] for phrase in phrases], device=device)

    motions = tuple(f"standing {name}" if name == "still" else f"moving {name}" for name in MOTIONS)
    return PromptTables(
        colour=ids(*COLOURS)[:, 0],
        shape=ids(*SHAPES)[:, 0],
        background=ids(*BACKGROUNDS)[:, 0],
        motion=ids(*motions),
        position=ids("on the left", "on the right", "at the top", "at the bottom", "in the center"),
    )


def position_index(x: Tensor, y: Tensor) -> Tensor:
    """Index into `POSITIONS` of a first-frame centre, or -1 where no word fits well."""
    across, down = x - IMAGE_SIZE / 2, y - IMAGE_SIZE / 2
    far = torch.maximum(across.abs(), down.abs())
    sideways = across.abs() > down.abs()
    side = torch.where(sideways, (across > 0).long(), 2 + (down > 0).long())
    return torch.where(far > 8.0, side, torch.where(far < 5.0, 4, -1))


def sample_prompts(scenes: Scenes, *, show_motion: Tensor, tables: PromptTables) -> Tensor:
    """Token ids (B, PROMPT_TOKENS) of one prompt for every scene.

    Args:
        scenes: What to describe.
        show_motion: (B,) probability that the motion is named.
        tables: From `build_tables`.
    """
    num, device = scenes.x.shape[0], scenes.x.device

    def chance(probability: float | Tensor) -> Tensor:
        return torch.rand(num, device=device) < probability

    def word(name: str, shown: Tensor | None = None) -> Tensor:
        ids = torch.full((num, 1), TOKEN_IDS[name], device=device)
        return ids if shown is None else torch.where(shown[:, None], ids, PAD_ID)

    def when(shown: Tensor, ids: Tensor) -> Tensor:
        return torch.where(shown[:, None], ids, PAD_ID)

    prefix, unknown, terse = chance(SHOW_PREFIX), chance(SHOW_UNKNOWN), chance(0.08)
    kind = torch.where(chance(0.5), TOKEN_IDS["picture"], TOKEN_IDS["video"])[:, None]
    sized = chance(SHOW_SIZE) & ((scenes.radius < SMALL_BELOW) | (scenes.radius > LARGE_ABOVE))
    size = torch.where(scenes.radius < SMALL_BELOW, TOKEN_IDS["small"], TOKEN_IDS["large"])[:, None]
    vowel = (scenes.colour == COLOURS.index("orange")) & ~sized & ~unknown
    article = torch.where(vowel, TOKEN_IDS["an"], TOKEN_IDS["a"])[:, None]
    place = position_index(scenes.x, scenes.y)
    placed = chance(SHOW_POSITION) & (place >= 0)
    moving, last = chance(show_motion), chance(MOTION_LAST)
    motion = tables.motion[scenes.motion]
    slots = torch.cat(
        [
            word("a", prefix),
            when(prefix, kind),
            word("of", prefix),
            article,
            torch.where(unknown[:, None], UNK_ID, PAD_ID),
            when(sized, size),
            tables.colour[scenes.colour][:, None],
            tables.shape[scenes.shape][:, None],
            when(placed, tables.position[place.clamp(min=0)]),
            when(moving & ~last, motion),
            word("on"),
            word("a", ~terse),
            tables.background[scenes.background][:, None],
            word("background", ~terse),
            when(moving & last, motion),
            torch.full((num, 1), EOS_ID, device=device),
        ],
        dim=1,
    )
    empty = chance(PROMPT_DROPOUT)[:, None] & (slots != EOS_ID)
    slots = slots.masked_fill(empty, PAD_ID)
    order = (slots == PAD_ID).int().argsort(dim=1, stable=True)
    tokens = slots.gather(1, order)
    return torch.nn.functional.pad(tokens, (0, PROMPT_TOKENS - tokens.shape[1]), value=PAD_ID)


def misname(tokens: Tensor) -> Tensor:
    """Gives a share of the scenes their neighbour's prompt; tokens (B, PROMPT_TOKENS)."""
    wrong = torch.rand(len(tokens), 1, device=tokens.device) < MISNAMED
    return torch.where(wrong, tokens.roll(1, dims=0), tokens)


def words_of(tokens: Tensor) -> str:
    """The sentence behind one row of ids, for the log and the checks."""
    return " ".join(VOCABULARY[int(token)] for token in tokens if int(token) not in (PAD_ID, EOS_ID))
