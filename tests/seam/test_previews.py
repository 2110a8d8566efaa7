"""Previews of every pipeline of the matrix: shown, true, and without any effect on what is made."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from tests.lanes_in_threads import leader_of_threads
from tests.seam.cases import ALL_CASES, find_case
from tests.seam.equality import SEED, arguments_of, one_thread, relative_error
from tests.seam.tiny import Case, TinyPipeline
from workers.calls import GenerateCall, GenerateResult, Preview
from workers.errors import CallError
from workers.leader import Leader
from workers.previews import evenly_spread

IN_SHORT = ("StableDiffusionPipeline ancestral", "StableDiffusionInpaintPipeline", "FluxPipeline true CFG")
NO_PREVIEWS = {
    "StableCascadePriorPipeline": "it makes no pictures",
    "StableCascadeDecoderPipeline": "its scheduler looks one step ahead",
    "SkyReelsV2DiffusionForcingPipeline": "a step of its schedule is made of several",
    "SkyReelsV2DiffusionForcingPipeline in blocks": "a step of its schedule is made of several",
}


def marked(case: Case) -> object:
    return pytest.param(case, id=case.name, marks=() if case.name in IN_SHORT else pytest.mark.full)


@contextmanager
def leading(case: Case, *, num_lanes: int) -> Iterator[tuple[Leader, TinyPipeline]]:
    torch.manual_seed(0)
    tiny = case.make()
    for name in tiny.denoisers:
        getattr(tiny.pipeline, name).eval()
    with one_thread(), leader_of_threads(tiny.pipeline, num_lanes=num_lanes, denoisers=list(tiny.denoisers)) as leader:
        yield leader, tiny


def run(leader: Leader, tiny: TinyPipeline, *, output_type: str = "latent", num_previews: int = 0) -> Any:
    events: list[Any] = []
    arguments = {**arguments_of(tiny), "output_type": output_type}
    result = leader.run(GenerateCall(arguments, seed=SEED, num_previews=num_previews), events.append)
    return result, [event for event in events if isinstance(event, Preview)]


def every_step(_: int, num_steps: int) -> frozenset[int]:
    return frozenset(range(1, num_steps + 1))


@pytest.mark.parametrize("num_lanes", [1, 2])
@pytest.mark.parametrize("case", [marked(case) for case in ALL_CASES])
def test_result_is_the_same_with_previews_at_every_step(case: Case, num_lanes: int) -> None:
    with leading(case, num_lanes=num_lanes) as (leader, tiny):
        run(leader, tiny)  # learns signatures
        plain, _ = run(leader, tiny)
    with leading(case, num_lanes=num_lanes) as (leader, tiny):
        leader.previews.choose = every_step
        run(leader, tiny, num_previews=3)
        result, previews = run(leader, tiny, num_previews=3)
    assert relative_error(result.output, plain.output) == 0.0
    assert calls_of(result) == calls_of(plain), "a preview asks no rank for anything"
    assert len(previews) + result.num_failed_previews > 0


@pytest.mark.parametrize("case", [marked(case) for case in ALL_CASES if case.name not in NO_PREVIEWS])
def test_preview_after_the_last_step_is_the_picture(case: Case) -> None:
    """So the way from latents to pixels is the pipeline's own, whatever it packs, scales and mixes in."""
    with leading(case, num_lanes=1) as (leader, tiny):
        try:
            run(leader, tiny, output_type="np")
        except CallError:
            pytest.skip("this tiny pipeline has no autoencoder")
        leader.previews.choose = every_step
        result, previews = run(leader, tiny, output_type="np", num_previews=3)
    picture = result.output[0] if result.output.ndim == 4 else result.output[0][0]
    np.testing.assert_array_equal(previews[-1].pixels, picture)
    assert [preview.index for preview in previews] == list(range(len(previews)))
    assert result.num_failed_previews == 0


def test_previews_come_closer_to_the_picture() -> None:
    with leading(find_case("FluxPipeline true CFG"), num_lanes=1) as (leader, tiny):
        leader.previews.choose = every_step
        result, previews = run(leader, tiny, output_type="np", num_previews=3)
    distances = [np.abs(result.output[0].astype(int) - preview.pixels).mean() for preview in previews]
    assert distances[0] > distances[-2] > distances[-1] == 0.0


def test_failing_preview_is_logged_and_counted_and_the_call_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    with leading(find_case("FluxPipeline true CFG"), num_lanes=1) as (leader, tiny):
        plain, _ = run(leader, tiny)
        decode = tiny.pipeline.vae.decode

        def break_once(*args: Any, **kwargs: Any) -> Any:
            tiny.pipeline.vae.decode = decode
            raise RuntimeError("a broken decoder")

        tiny.pipeline.vae.decode = break_once
        with caplog.at_level(logging.WARNING):
            result, previews = run(leader, tiny, num_previews=2)
        _, after = run(leader, tiny, num_previews=2)
    assert (result.num_failed_previews, len(previews), len(after)) == (1, 1, 2)
    assert "no preview: RuntimeError: a broken decoder" in caplog.text
    assert relative_error(result.output, plain.output) == 0.0


@pytest.mark.parametrize(
    ("num_previews", "num_steps", "steps"),
    [(1, 2, {1}), (3, 20, {5, 10, 15}), (3, 3, {1, 2}), (2, 1, set()), (3, 2, {1}), (1, 1, set())],
)
def test_previews_are_spread_evenly_before_the_last_step(num_previews: int, num_steps: int, steps: set[int]) -> None:
    assert evenly_spread(num_previews, num_steps) == steps


def calls_of(result: GenerateResult) -> list[int]:
    return [stats.denoiser_calls for stats in result.ranks]
