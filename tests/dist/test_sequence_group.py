"""Groups whose ranks share a lane's tokens: real rank actors on a real local Ray."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from planner.plan import Plan
from tests.dist.test_group import ARGUMENTS, check_bytes_read, plain_pipeline
from tests.plans import make_wan_plan
from workers.calls import GenerateCall, GenerateResult, Progress
from workers.errors import CallCancelledError, CallError, GroupDiedError, GroupStartError
from workers.group import WorkerGroup

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(300)]
LATENT = {**ARGUMENTS, "output_type": "latent"}


@pytest.fixture(scope="module")
def quad(tiny_wan: Path, ray_cluster: None) -> Iterator[WorkerGroup]:
    """Four ranks, two lanes of two that share their lane's tokens, for the tests that leave them alive."""
    group = WorkerGroup.start(make_wan_plan(tiny_wan, num_ranks=4, cfg_degree=2, sequence_degree=2), timeout_s=240)
    yield group
    group.shutdown()


@pytest.fixture(scope="module")
def latents(tiny_wan: Path) -> torch.Tensor:
    expected = plain_pipeline(tiny_wan, output_type="latent")
    assert isinstance(expected, torch.Tensor)
    return expected


def generate_twice(group: WorkerGroup) -> list[GenerateResult]:
    """The first call learns the calls' signatures, on one lane; the second uses all lanes."""
    return [group.generate(GenerateCall(LATENT, seed=3)) for _ in range(2)]


def call_on(group: WorkerGroup, rank: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a function on a rank's actor, beside its compute thread."""
    return ray.get(group._ranks[rank].__ray_call__.remote(function, *arguments), timeout=30)


def fail_once(actor: Any) -> None:
    """The rank's next denoiser call fails between two blocks' exchanges."""
    block = actor._components.modules["transformer"].blocks[1]

    def fail(*_: Any, **__: Any) -> None:
        del block.forward
        raise RuntimeError("made to fail")

    block.forward = fail


def shorten_grace(actor: Any, seconds: float) -> None:
    lanes = actor._leader._lanes
    lanes._failure_grace_s = lanes._watch._failure_grace_s = seconds


def test_two_lanes_of_two_ranks_give_the_plain_pipelines_latents(quad: WorkerGroup, latents: torch.Tensor) -> None:
    """To the bit: attention computes whole heads, and these products over half the tokens round alike."""
    results = generate_twice(quad)
    for result in results:
        assert torch.equal(result.output, latents)
    # Each rank of a lane counts its lane's rows, whatever share of their tokens it computes: three steps, one branch.
    assert [(stats.denoiser_calls, stats.denoiser_rows) for stats in results[1].ranks] == [(3, 3)] * 4
    assert all(stats.peak_bytes > 2**20 for stats in results[1].ranks)
    assert [stats.device_used_bytes for stats in results[1].ranks] == [None] * 4
    quad.check()


def test_lengths_that_do_not_divide_give_the_plain_pipelines_latents(tiny_wan: Path, quad: WorkerGroup) -> None:
    """48 x 48 pixels in one frame are 9 tokens."""
    odd = {"height": 48, "width": 48, "num_frames": 1}
    expected = plain_pipeline(tiny_wan, output_type="latent", **odd)
    result = quad.generate(GenerateCall({**LATENT, **odd}, seed=3))
    assert torch.allclose(result.output, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_a_cancelled_call_leaves_the_lanes_clean(quad: WorkerGroup, latents: torch.Tensor) -> None:
    long_call = GenerateCall({**LATENT, "num_inference_steps": 5000}, seed=3)

    def cancel_soon(event: Progress) -> None:
        if event.step == 2:
            quad.cancel(long_call.request_id)

    with pytest.raises(CallCancelledError):
        quad.generate(long_call, on_progress=cancel_soon)
    assert torch.equal(quad.generate(GenerateCall(LATENT, seed=3)).output, latents)


@pytest.mark.parametrize("lane", [0, 1])
def test_an_error_on_all_ranks_of_a_lane_is_that_calls_error(
    quad: WorkerGroup, latents: torch.Tensor, lane: int
) -> None:
    generate_twice(quad)  # both lanes are used from the first step on
    for rank in (2 * lane, 2 * lane + 1):
        call_on(quad, rank, fail_once)
    with pytest.raises(CallError, match="made to fail"):
        quad.generate(GenerateCall(LATENT, seed=3))
    assert torch.equal(quad.generate(GenerateCall(LATENT, seed=3)).output, latents)
    quad.check()


@pytest.mark.full
@pytest.mark.parametrize(("victim", "message"), [(0, "rank 1 did not end a call"), (1, "failed on rank 1 alone")])
def test_an_error_on_one_rank_of_a_lane_ends_the_group_within_the_grace(
    tiny_wan: Path, start_group: Callable[[Plan], WorkerGroup], victim: int, message: str
) -> None:
    """The other rank waits in an exchange that nobody ends; without the watch the call would hang for half an hour."""
    group = start_group(make_wan_plan(tiny_wan, num_ranks=2, sequence_degree=2))
    generate_twice(group)
    call_on(group, 0, shorten_grace, 3.0)
    call_on(group, victim, fail_once)
    start = time.monotonic()
    with pytest.raises(GroupDiedError, match=message):
        group.generate(GenerateCall(LATENT, seed=3))
    assert 3.0 <= time.monotonic() - start < 60.0
    with pytest.raises(GroupDiedError):
        group.check()
    with pytest.raises(GroupDiedError):
        group.generate(GenerateCall(LATENT, seed=3))


@pytest.mark.full
@pytest.mark.parametrize(
    ("num_ranks", "cfg_degree", "fsdp_degree", "rows"),
    [(2, 1, 1, [6] * 2), (4, 2, 4, [3] * 4), (4, 2, 2, [3] * 4), (4, 1, 4, [6] * 4)],
    ids=["sequence2", "cfg2_sequence2_fsdp4", "cfg2_sequence2_fsdp2", "sequence2_fsdp4"],
)
def test_every_combination_gives_the_plain_pipelines_latents(
    tiny_wan: Path,
    start_group: Callable[[Plan], WorkerGroup],
    latents: torch.Tensor,
    num_ranks: int,
    cfg_degree: int,
    fsdp_degree: int,
    rows: list[int],
) -> None:
    plan = make_wan_plan(
        tiny_wan, num_ranks=num_ranks, cfg_degree=cfg_degree, sequence_degree=2, fsdp_degree=fsdp_degree
    )
    group = start_group(plan)
    results = generate_twice(group)
    for result in results:
        assert torch.equal(result.output, latents)
    assert [stats.denoiser_rows for stats in results[1].ranks] == rows
    check_bytes_read(results[1], tiny_wan, fsdp_degree)
    group.check()


@pytest.mark.full
def test_a_model_without_a_plan_is_refused_at_start(tiny_wan: Path) -> None:
    """The planner refuses it before; a plan from elsewhere must not run with tokens that nobody splits."""
    plan = make_wan_plan(tiny_wan, num_ranks=2, sequence_degree=2)
    wrong = plan.components[0].model_copy(update={"name": "vae", "class_name": "AutoencoderKLWan"})
    plan = plan.model_copy(update={"components": (wrong,)})
    with pytest.raises(GroupStartError, match="AutoencoderKLWan has no sequence parallel plan"):
        WorkerGroup.start(plan, timeout_s=120)
