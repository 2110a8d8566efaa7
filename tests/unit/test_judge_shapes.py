"""The judge of `checkpoints/shapes` against drawn scenes: right ones pass, wrong ones do not."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "checkpoints"))

import judge_shapes
import shapes_data

NUM_SCENES = 120


@pytest.fixture(scope="module")
def scenes() -> shapes_data.Scenes:
    rng = np.random.default_rng(3)
    table = np.asarray(shapes_data.combinations(held_out=False) + shapes_data.combinations(held_out=True))
    return shapes_data.sample_scenes(NUM_SCENES, table=table, uniform=rng.random, xp=np)


@pytest.fixture(scope="module")
def clips(scenes: shapes_data.Scenes) -> np.ndarray:
    """Drawn clips with the noise of a good decoder."""
    pixels = shapes_data.draw_numpy(scenes, num_frames=shapes_data.CLIP_FRAMES)
    noise = np.random.default_rng(4).normal(scale=0.02, size=pixels.shape)
    return np.clip(pixels + noise, 0.0, 1.0).astype(np.float32)


@pytest.fixture(scope="module")
def prompts(scenes: shapes_data.Scenes) -> list[shapes_data.Attributes]:
    return [shapes_data.attributes_of(scenes, index, with_motion=True) for index in range(NUM_SCENES)]


@pytest.fixture(scope="module")
def verdicts(clips: np.ndarray, prompts: list[shapes_data.Attributes]) -> list[judge_shapes.Verdict]:
    return [judge_shapes.judge_video(clip, prompt) for clip, prompt in zip(clips, prompts, strict=True)]


@pytest.mark.parametrize("attribute", ["background", "colour", "shape", "motion"])
def test_attribute_of_drawn_clips_is_read(attribute: str, verdicts: list[judge_shapes.Verdict]) -> None:
    right = [getattr(verdict, f"{attribute}_right") for verdict in verdicts]
    assert np.mean(right) >= 0.99


def test_drawn_pictures_are_accepted(clips: np.ndarray, prompts: list[shapes_data.Attributes]) -> None:
    accepted = [
        judge_shapes.judge_picture(clip[4], prompt).accepted for clip, prompt in zip(clips, prompts, strict=True)
    ]
    assert np.mean(accepted) >= 0.99


@pytest.mark.parametrize("attribute", ["background", "colour", "shape", "motion"])
def test_prompt_that_contradicts_is_rejected(
    attribute: str, clips: np.ndarray, prompts: list[shapes_data.Attributes]
) -> None:
    names = {
        "background": shapes_data.BACKGROUNDS,
        "colour": shapes_data.COLOURS,
        "shape": shapes_data.SHAPES,
        "motion": shapes_data.MOTIONS,
    }[attribute]
    rng = np.random.default_rng(5)
    accepted = []
    for clip, prompt in list(zip(clips, prompts, strict=True))[:40]:
        others = [name for name in names if name != getattr(prompt, attribute)]
        wrong = replace(prompt, **{attribute: others[rng.integers(len(others))]})
        accepted.append(judge_shapes.judge_video(clip, wrong).accepted)
    assert np.mean(accepted) <= 0.05


def test_noise_and_emptiness_are_rejected() -> None:
    prompt = shapes_data.Attributes("red", "circle", "white", motion="left")
    noise = np.random.default_rng(6).random((9, 64, 64, 3)).astype(np.float32)
    for clip in (noise, np.ones_like(noise), np.zeros_like(noise)):
        assert not judge_shapes.judge_video(clip, prompt).accepted
        assert not judge_shapes.judge_picture(clip[0], prompt).accepted


def test_blob_is_no_shape() -> None:
    grid = np.arange(64) - 32
    blob = np.exp(-(grid[:, None] ** 2 + grid[None] ** 2) / 200.0)[..., None]
    picture = (1 - blob) * np.ones(3) + blob * np.asarray(shapes_data.PALETTE["red"]) / 255.0
    verdict = judge_shapes.judge_picture(picture.astype(np.float32), shapes_data.Attributes("red", "star", "white"))
    assert not verdict.shape_right


def test_held_out_combinations_never_come_up_in_training() -> None:
    trained = {row[:3] for row in shapes_data.combinations(held_out=False)}
    held_out = {row[:3] for row in shapes_data.combinations(held_out=True)}
    assert not trained & held_out
    assert 0.05 <= len(held_out) / (len(trained) + len(held_out)) <= 0.15
    for index, names in enumerate((shapes_data.COLOURS, shapes_data.SHAPES, shapes_data.BACKGROUNDS)):
        assert {row[index] for row in trained} == set(range(len(names)))


def test_prompts_use_known_words_only() -> None:
    for prompt in shapes_data.held_out_prompts(200, seed=0, with_motion=True):
        assert set(prompt.prompt().split()) <= set(shapes_data.VOCABULARY)
