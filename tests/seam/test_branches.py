"""Branches that do not match the lanes, half precision, and what a guider keeps between requests."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig

from tests import lanes_in_threads
from tests.lanes_in_threads import leader_of_threads
from tests.seam.branch_image import make_qwen_image
from tests.seam.cases import find_case
from tests.seam.equality import compare, one_thread, relative_error, run_on, run_plain
from tests.seam.guiders import make_guidance_for_a_while, make_skip_layers, make_skip_layers_in_some
from workers.calls import GenerateResult
from workers.errors import GroupStartError
from workers.guiders import Guiders
from workers.lanes import LaneLayout


@pytest.mark.parametrize(
    ("num_lanes", "rows"), [(2, [7, 4]), (3, [4, 4, 3]), pytest.param(4, [4, 4, 3, 0], marks=pytest.mark.full)]
)
def test_three_branches_of_which_one_skips_layers(num_lanes: int, rows: list[int]) -> None:
    """The first of four steps has two branches. The third branch needs the leader's hooks, so it runs there."""
    with one_thread():
        expected, serial_rows = run_plain(make_skip_layers())
        tiny = make_skip_layers()
        with leader_of_threads(tiny.pipeline, num_lanes=num_lanes) as leader:
            run_on(leader, tiny)
            local_before = leader.seam.counts.local_calls
            result = run_on(leader, tiny)
            assert leader.seam.counts.local_calls - local_before == 3
    assert relative_error(result.output, expected) == 0.0
    assert sum(serial_rows) == 11
    assert rows_of(result) == rows


@pytest.mark.full
@pytest.mark.parametrize("num_lanes", [3, 4])
@pytest.mark.parametrize(
    "name",
    [
        "WanPipeline two transformers",
        "WanVACEPipeline",
        "QwenImagePipeline",
        "Lumina2Pipeline with guidance that stops",
        "CosmosTextToWorldPipeline",
        "HunyuanVideo15Pipeline skip layers in some steps",
        "MotifVideoPipeline auto guidance",
    ],
)
def test_more_lanes_than_branches(name: str, num_lanes: int) -> None:
    result = compare(find_case(name), num_lanes=num_lanes)
    assert result.relative_error == 0.0
    assert sum(result.rows) == result.serial_rows
    assert result.is_halved


BFLOAT16_REPRESENTATIVE = "QwenImagePipeline"
BFLOAT16_CASES = (
    "WanPipeline two transformers",
    "WanVACEPipeline",
    "FluxPipeline true CFG",
    "ChromaPipeline",
    "CogView4Pipeline",
    "Lumina2Pipeline",
    "JoyImageEditPipeline",
    "HunyuanVideoPipeline true CFG",
    "Kandinsky6TI2VAPipeline",
    "CosmosTextToWorldPipeline",
    "HunyuanVideo15Pipeline skip layers in some steps",
    "HunyuanImagePipeline",
    "MotifVideoPipeline",
)


@pytest.mark.parametrize(
    "name", [BFLOAT16_REPRESENTATIVE, *(pytest.param(name, marks=pytest.mark.full) for name in BFLOAT16_CASES)]
)
def test_bfloat16_equals_serial_to_the_bit(name: str) -> None:
    result = compare(find_case(name), dtype=torch.bfloat16)
    assert result.relative_error == 0.0
    assert result.is_halved


CACHE = FirstBlockCacheConfig(threshold=100.0)
"""After a request's first step only the first block is computed; the rest is taken from that step."""


def copy_and_enable_cache(modules: dict[str, Any]) -> dict[str, Any]:
    """The followers' modules; the cache comes after the copy, since copied hooks would share their state."""
    copies = copy.deepcopy(modules)
    for module in (*modules.values(), *copies.values()):
        module.enable_cache(CACHE)
    return copies


def test_a_cache_context_is_opened_where_its_call_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step cache keeps a state a context, on the rank that runs it, and begins each request without one."""
    monkeypatch.setattr(lanes_in_threads, "copy", SimpleNamespace(deepcopy=copy_and_enable_cache))
    with one_thread():
        tiny = make_qwen_image(num_inference_steps=6)
        uncached, _ = run_plain(tiny)
        tiny.pipeline.transformer.enable_cache(CACHE)
        expected, _ = run_plain(tiny)
        tiny = make_qwen_image(num_inference_steps=6)
        with leader_of_threads(tiny.pipeline, num_lanes=2) as leader:
            results = [run_on(leader, tiny) for _ in range(3)]
    assert not torch.equal(uncached, expected), "the cache had no effect"
    assert rows_of(results[1]) == rows_of(results[2]) == [6, 6]
    assert torch.equal(results[1].output, expected)
    assert torch.equal(results[2].output, expected)


def test_a_guider_does_not_remember_the_last_requests_steps() -> None:
    """A guider past its window would tell the pipeline not to encode the negative prompt."""
    with one_thread():
        expected, _ = run_plain(make_guidance_for_a_while())
        tiny = make_guidance_for_a_while()
        with leader_of_threads(tiny.pipeline, num_lanes=2) as leader:
            run_on(leader, tiny)
            learnt = leader.seam.counts.learnt_signatures
            result = run_on(leader, tiny)
            assert leader.seam.counts.learnt_signatures == learnt
    assert torch.equal(result.output, expected)
    assert rows_of(result) == [4, 2]


@pytest.mark.parametrize(
    "layout", [LaneLayout(num_ranks=4, num_lanes=2), LaneLayout(num_ranks=2, num_lanes=2, all_take_part=True)]
)
def test_a_guider_that_hooks_blocks_is_refused_where_a_call_runs_on_several_ranks(layout: LaneLayout) -> None:
    components: dict[str, Any] = make_skip_layers_in_some().pipeline.components
    with pytest.raises(GroupStartError, match="SkipLayerGuidance hooks the denoiser's blocks"):
        Guiders(components).check_layout(layout)
    Guiders(components).check_layout(LaneLayout(num_ranks=2, num_lanes=2))
    Guiders(make_guidance_for_a_while().pipeline.components).check_layout(layout)


def rows_of(result: GenerateResult) -> list[int]:
    return [stats.denoiser_rows for stats in result.ranks]
