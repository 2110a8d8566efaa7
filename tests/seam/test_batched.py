"""Batched guidance beyond two lanes in float32: more lanes, bfloat16, schedulers that draw random numbers."""

import pytest
import torch

from tests.lanes_in_threads import leader_of_threads
from tests.seam.cases import find_case
from tests.seam.equality import (
    BATCHED_TOLERANCE,
    BFLOAT16_TOLERANCE,
    compare,
    one_thread,
    relative_error,
    run_on,
    run_plain,
)

MORE_LANES = [
    ("StableDiffusionPipeline two pictures", 4, (4, 4, 4, 4)),
    ("StableDiffusionPipeline two pictures", 3, (8, 4, 4)),
    ("StableDiffusionInstructPix2PixPipeline", 3, (4, 4, 4)),
    ("OmniGenPipeline with a picture", 3, (4, 4, 4)),
    ("OmniGenPipeline with a picture", 4, (4, 4, 4, 0)),
    ("StableDiffusion3Pipeline skip layers", 3, (6, 6, 4)),
    ("LTX2Pipeline STG and modality", 3, (8, 4, 4)),
    ("LTX2Pipeline STG and modality", 4, (4, 4, 4, 4)),
    ("ZImagePipeline", 4, (4, 4, 0, 0)),
    ("StableDiffusion3ControlNetPipeline", 4, (8, 8, 0, 0)),
]
BFLOAT16 = ["StableDiffusionXLPipeline", "PixArtSigmaPipeline", "LTXPipeline", "HiDreamImagePipeline"]


@pytest.mark.full
@pytest.mark.parametrize(("name", "num_lanes", "rows"), MORE_LANES)
def test_more_lanes_share_the_rows_of_a_step(name: str, num_lanes: int, rows: tuple[int, ...]) -> None:
    result = compare(find_case(name), num_lanes=num_lanes)
    assert result.relative_error <= BATCHED_TOLERANCE
    assert result.rows == rows


@pytest.mark.full
@pytest.mark.parametrize("name", BFLOAT16)
def test_bfloat16_differs_by_its_rounding_only(name: str) -> None:
    result = compare(find_case(name), dtype=torch.bfloat16)
    assert result.is_halved
    assert result.relative_error <= BFLOAT16_TOLERANCE < result.would_show


@pytest.mark.full
@pytest.mark.parametrize("name", ["StableDiffusionPipeline ancestral", "StableDiffusionPipeline DDIM eta 1"])
def test_a_seed_means_the_same_picture_on_one_two_and_four_lanes(name: str) -> None:
    case = find_case(name)
    with one_thread():
        expected, _ = run_plain(case.make())
        for num_lanes in (1, 2, 4):
            tiny = case.make()
            with leader_of_threads(tiny.pipeline, num_lanes=num_lanes, denoisers=list(tiny.denoisers)) as leader:
                pictures = [run_on(leader, tiny).output for _ in range(3)]
            for picture in pictures:
                assert relative_error(picture, expected) <= (0.0 if num_lanes == 1 else BATCHED_TOLERANCE)
