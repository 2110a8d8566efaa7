"""The seam with real diffusers pipelines: equal to serial to the bit, and the work really divided."""

from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig

from tests.lanes_in_threads import leader_of_threads
from tests.tiny_checkpoints import make_tiny_wan_pipeline
from workers.calls import GenerateCall, GenerateResult, Progress
from workers.errors import CallCancelledError, CallError, DeadlineExceededError, InvalidCallError
from workers.leader import Leader

ARGUMENTS: dict[str, Any] = {
    "prompt": "a red circle",
    "negative_prompt": "blue",
    "height": 32,
    "width": 32,
    "num_frames": 5,
    "num_inference_steps": 3,
    "output_type": "latent",
}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(leader: Leader, *, seed: int = 3, **changes: Any) -> GenerateResult:
    return leader.run(GenerateCall({**ARGUMENTS, **changes}, seed=seed), lambda event: None)


def serial(pipeline: Any, *, seed: int = 3, **changes: Any) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    return pipeline(**{**ARGUMENTS, **changes}, generator=generator).frames


def rows(result: GenerateResult) -> list[int]:
    return [stats.denoiser_rows for stats in result.ranks]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_lanes_equal_the_plain_pipeline_to_the_bit_at_half_the_work(dtype: torch.dtype) -> None:
    pipeline = make_tiny_wan_pipeline().to(dtype)
    expected = serial(pipeline)
    with leader_of_threads(pipeline, num_lanes=2) as leader:
        first, second = run(leader), run(leader)
    assert torch.equal(first.output, expected)
    assert torch.equal(second.output, expected)
    assert rows(first) == [4, 2]  # the first call of an unknown signature runs at once
    assert rows(second) == [3, 3]


def test_two_transformers_with_two_scales_equal_serial() -> None:
    pipeline = make_tiny_wan_pipeline(two_transformers=True)
    changes = {"guidance_scale": 4.0, "guidance_scale_2": 3.0, "num_inference_steps": 4}
    expected = serial(pipeline, **changes)
    with leader_of_threads(pipeline, num_lanes=2) as leader:
        run(leader, **changes)
        result = run(leader, **changes)
    assert torch.equal(result.output, expected)
    assert rows(result) == [4, 4]


def test_without_guidance_one_lane_does_all() -> None:
    pipeline = make_tiny_wan_pipeline()
    expected = serial(pipeline, guidance_scale=1.0)
    with leader_of_threads(pipeline, num_lanes=2) as leader:
        result = run(leader, guidance_scale=1.0)
    assert torch.equal(result.output, expected)
    assert rows(result) == [3, 0]


def test_prompt_embeddings_cross_once_a_request() -> None:
    pipeline = make_tiny_wan_pipeline()
    with leader_of_threads(pipeline, num_lanes=2) as leader:
        run(leader)
        link = leader._lanes._links[1]
        before = link.sent_bytes
        result = run(leader, num_inference_steps=6)
    embeddings_bytes = 512 * 32 * 4
    latents_bytes = result.output.nbytes
    assert embeddings_bytes <= link.sent_bytes - before < embeddings_bytes + 6 * (latents_bytes + 64)


def test_progress_counts_real_steps() -> None:
    events: list[Progress] = []
    with leader_of_threads(make_tiny_wan_pipeline(), num_lanes=2) as leader:
        leader.run(GenerateCall(ARGUMENTS, seed=1), events.append)
    assert [(event.stage, event.step) for event in events] == [
        ("encode", 0),
        ("denoise", 0),
        ("denoise", 1),
        ("denoise", 2),
        ("denoise", 3),
        ("decode", 3),
    ]
    assert {event.num_steps for event in events[1:]} == {3}


def test_a_cancelled_call_ends_at_the_next_denoiser_call_and_leaves_no_trace() -> None:
    pipeline = make_tiny_wan_pipeline()
    expected = serial(pipeline)
    with leader_of_threads(pipeline, num_lanes=2) as leader:
        steps = []

        def cancel_in_the_middle(event: Progress) -> None:
            steps.append(event.step)
            if event.step == 1:
                leader.cancel("mine")

        with pytest.raises(CallCancelledError):
            leader.run(GenerateCall(ARGUMENTS, seed=9, request_id="mine"), cancel_in_the_middle)
        assert max(steps) == 1
        assert torch.equal(run(leader).output, expected)


def test_step_caches_begin_each_request_empty() -> None:
    """Pipelines empty them at their end, if they get there."""
    pipeline = make_tiny_wan_pipeline()
    pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=10.0))  # every step but the first is skipped
    expected = serial(pipeline, num_inference_steps=4)
    with leader_of_threads(pipeline, num_lanes=1) as leader:
        run(leader, seed=8)

        def cancel_in_the_middle(event: Progress) -> None:
            if event.step == 2:
                leader.cancel("mine")

        with pytest.raises(CallCancelledError):
            leader.run(GenerateCall(ARGUMENTS, seed=9, request_id="mine"), cancel_in_the_middle)
        assert torch.equal(run(leader, num_inference_steps=4).output, expected)


def test_a_missed_deadline_ends_the_call() -> None:
    with leader_of_threads(make_tiny_wan_pipeline(), num_lanes=2) as leader:
        with pytest.raises(DeadlineExceededError, match="deadline of 0 s"):
            leader.run(GenerateCall(ARGUMENTS, deadline_s=0.0), lambda event: None)
        run(leader)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"colour": 1}, "takes no argument colour"), ({"height": 33}, "divisible by 16"), ({"prompt": 3}, "prompt")],
)
def test_refused_arguments_are_the_callers_error(changes: dict[str, Any], message: str) -> None:
    pipeline = make_tiny_wan_pipeline()
    with leader_of_threads(pipeline, num_lanes=2) as leader:
        with pytest.raises(InvalidCallError, match=message):
            run(leader, **changes)
        run(leader)


def test_a_followers_error_comes_back_with_its_place_and_the_group_goes_on() -> None:
    pipeline = make_tiny_wan_pipeline()
    expected = serial(pipeline)
    with leader_of_threads(pipeline, num_lanes=2) as leader:
        run(leader)
        embeddings = torch.randn(1, 512, 32)
        wrong = torch.randn(1, 512, 31)  # the second branch, on the follower's lane or the leader's
        with pytest.raises(CallError) as caught:
            run(leader, prompt=None, prompt_embeds=embeddings, negative_prompt=None, negative_prompt_embeds=wrong)
        assert "mat1 and mat2" in str(caught.value)
        assert torch.equal(run(leader).output, expected)


def test_the_denoiser_stays_the_real_module() -> None:
    pipeline = make_tiny_wan_pipeline()
    transformer, kind = pipeline.transformer, type(pipeline.transformer)
    with leader_of_threads(pipeline, num_lanes=2):
        assert pipeline.transformer is transformer
        assert type(pipeline.transformer) is kind
        assert pipeline.transformer.config.num_layers == 2


def test_signatures_without_end_fill_no_memory_and_forgotten_ones_are_learnt_again() -> None:
    pipeline = make_tiny_wan_pipeline()
    changes = {"prompt": None, "negative_prompt": None, "num_inference_steps": 1}
    expected = serial(pipeline)
    with leader_of_threads(pipeline, num_lanes=2) as leader:
        leader.seam._specs._max_entries = 4
        for length in (3, 4, 5, 6, 7, 8):
            embeddings = torch.randn(1, length, 32)
            run(leader, prompt_embeds=embeddings, negative_prompt_embeds=embeddings, **changes)
        assert len(leader.seam._specs) == 4
        learnt = leader.seam.counts.learnt_signatures
        assert torch.equal(run(leader).output, expected)
        assert leader.seam.counts.learnt_signatures == learnt + 1
