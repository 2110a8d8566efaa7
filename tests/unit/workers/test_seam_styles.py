"""The styles of guidance: every pipeline equals its serial run on several lanes, with the denoiser's work divided."""

from typing import Any

import pytest
import torch

from tests.lanes_in_threads import leader_of_threads
from tests.tiny_pipelines import MAKERS, TinyPipeline, make_stable_diffusion
from workers.calls import GenerateCall, GenerateResult
from workers.leader import Leader

NUM_STEPS = 4
BATCHED_TOLERANCE = 1e-4
"""Relative; matrix products of one row and of two add in different orders (float32)."""


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def arguments_of(tiny: TinyPipeline) -> dict[str, Any]:
    return {**tiny.arguments, "num_inference_steps": NUM_STEPS, "output_type": "latent"}


def serial(tiny: TinyPipeline) -> torch.Tensor:
    tiny.pipeline.set_progress_bar_config(disable=True)
    return tiny.pipeline(**arguments_of(tiny), generator=torch.Generator().manual_seed(5)).images


def run(leader: Leader, tiny: TinyPipeline) -> GenerateResult:
    return leader.run(GenerateCall(arguments_of(tiny), seed=5), lambda event: None)


@pytest.mark.parametrize("name", MAKERS)
def test_two_lanes_equal_serial_at_half_the_work(name: str) -> None:
    tiny = MAKERS[name]()
    expected = serial(tiny)
    with leader_of_threads(tiny.pipeline, num_lanes=2) as leader:
        first, second = run(leader, tiny), run(leader, tiny)
    for result in (first, second):
        if tiny.is_batched:
            assert (result.output - expected).norm() <= BATCHED_TOLERANCE * expected.norm()
        else:
            assert torch.equal(result.output, expected)
    assert [stats.denoiser_rows for stats in second.ranks] == [NUM_STEPS, NUM_STEPS]


@pytest.mark.parametrize("num_lanes", [3, 4])
def test_more_lanes_than_branches_are_left_idle(num_lanes: int) -> None:
    tiny = make_stable_diffusion()
    expected = serial(tiny)
    with leader_of_threads(tiny.pipeline, num_lanes=num_lanes) as leader:
        run(leader, tiny)
        result = run(leader, tiny)
    assert (result.output - expected).norm() <= BATCHED_TOLERANCE * expected.norm()
    assert [stats.denoiser_rows for stats in result.ranks] == [NUM_STEPS, NUM_STEPS] + [0] * (num_lanes - 2)


def test_a_call_that_cutting_would_change_runs_whole_and_is_counted() -> None:
    tiny = make_stable_diffusion()
    unet = tiny.pipeline.unet
    plain = type(unet).forward

    class Mixing(type(unet)):
        """A denoiser whose rows depend on each other: no cut can be right."""

        def forward(self, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            return plain(self, sample + sample.mean(dim=0, keepdim=True).flip(-1) * len(sample), *args, **kwargs)

    unet.__class__ = Mixing
    expected = serial(tiny)
    with leader_of_threads(tiny.pipeline, num_lanes=2) as leader:
        run(leader, tiny)
        result = run(leader, tiny)
        assert leader.seam.counts.uncut_signatures == 1
    assert torch.equal(result.output, expected)
    assert [stats.denoiser_rows for stats in result.ranks] == [2 * NUM_STEPS, 0]
