"""Groups of real rank actors on a real local Ray."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch
from diffusers import WanPipeline
from ray.util.placement_group import placement_group_table

from planner.plan import Plan
from tests.plans import make_wan_plan
from workers.calls import GenerateCall, GenerateResult, Progress, SeamStats
from workers.errors import CallCancelledError, CallOutOfMemoryError, GroupDiedError, GroupStartError, InvalidCallError
from workers.group import WorkerGroup

pytestmark = pytest.mark.usefixtures("ray_cluster")

ARGUMENTS: dict[str, Any] = {
    "prompt": "a red circle",
    "negative_prompt": "blue",
    "height": 32,
    "width": 32,
    "num_frames": 5,
    "num_inference_steps": 3,
}


@pytest.fixture(scope="module")
def pair(tiny_wan: Path, ray_cluster: None) -> Iterator[WorkerGroup]:
    """Two ranks, CFG degree 2, for the tests that leave them alive."""
    group = WorkerGroup.start(make_wan_plan(tiny_wan, num_ranks=2, cfg_degree=2), timeout_s=90)
    yield group
    group.shutdown()


def wait_until(condition: Callable[[], bool], what: str, *, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
        threading.Event().wait(0.02)


def plain_pipeline(checkpoint: Path, **changes: Any) -> Any:
    """The reference: diffusers alone, in this process, with a rank's number of threads.

    `from_pretrained` maps the file, where tensors start at any address; the matrix products of CPUs take other paths
    for unaligned memory and differ by 2e-6. Copied to where the allocator puts them, weights give equal bits.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pipeline = WanPipeline.from_pretrained(checkpoint)
        pipeline.set_progress_bar_config(disable=True)
        for module in (pipeline.transformer, pipeline.text_encoder, pipeline.vae):
            for parameter in module.parameters():
                parameter.data = parameter.data.clone()
        return pipeline(**{**ARGUMENTS, **changes}, generator=torch.Generator().manual_seed(3)).frames
    finally:
        torch.set_num_threads(before)


def weight_bytes(checkpoint: Path, component: str) -> int:
    return sum(file.stat().st_size for file in (checkpoint / component).glob("*.safetensors"))


@pytest.mark.parametrize(
    ("num_ranks", "cfg_degree", "fsdp_degree", "rows"),
    [(1, 1, 1, [6]), (2, 2, 1, [3, 3]), (2, 2, 2, [3, 3]), (2, 1, 2, [6, 6])],
    ids=["one_rank", "cfg2", "cfg2_fsdp2", "fsdp2"],
)
def test_every_degree_gives_the_plain_pipelines_result(
    tiny_wan: Path,
    start_group: Callable[[Plan], WorkerGroup],
    num_ranks: int,
    cfg_degree: int,
    fsdp_degree: int,
    rows: list[int],
) -> None:
    plan = make_wan_plan(tiny_wan, num_ranks=num_ranks, cfg_degree=cfg_degree, fsdp_degree=fsdp_degree)
    group = start_group(plan)
    latents = plain_pipeline(tiny_wan, output_type="latent")
    pixels = plain_pipeline(tiny_wan)
    first = group.generate(GenerateCall({**ARGUMENTS, "output_type": "latent"}, seed=3))
    second = group.generate(GenerateCall(ARGUMENTS, seed=3))
    assert torch.equal(first.output, latents)
    assert np.array_equal(second.output, (pixels * 255).round().astype(np.uint8))
    assert second.output.shape == (1, 5, 32, 32, 3)
    assert [stats.denoiser_rows for stats in second.ranks] == rows
    check_bytes_read(second, tiny_wan, fsdp_degree)
    group.check()


def check_bytes_read(result: GenerateResult, checkpoint: Path, fsdp_degree: int) -> None:
    """Each rank reads what it keeps: the denoiser or its share of it, and the leader the rest."""
    sharded = (1 / fsdp_degree + 0.02) if fsdp_degree > 1 else 1.0
    transformer = weight_bytes(checkpoint, "transformer") * sharded
    encoder = weight_bytes(checkpoint, "text_encoder") * sharded
    limits = {0: transformer + encoder + weight_bytes(checkpoint, "vae")}
    for stats in result.ranks:
        follower_limit = transformer + (encoder if fsdp_degree > 1 else 0)
        assert 0 < stats.weight_bytes_read <= limits.get(stats.world_rank, follower_limit)


def test_tensors_are_allowed_as_arguments(tiny_wan: Path, pair: WorkerGroup) -> None:
    embeddings = torch.randn(1, 512, 32)
    changes = {"prompt": None, "negative_prompt": None, "guidance_scale": 1.0, "prompt_embeds": embeddings}
    expected = plain_pipeline(tiny_wan, **changes, output_type="latent")
    result = pair.generate(GenerateCall({**ARGUMENTS, **changes, "output_type": "latent"}, seed=3))
    assert torch.equal(result.output, expected)


def test_after_a_short_call_of_the_same_shape_both_ranks_make_equal_numbers_of_calls(pair: WorkerGroup) -> None:
    shape = {"height": 48, "width": 32, "num_frames": 5}  # no other test's
    warm_up = pair.generate(GenerateCall({**shape, "prompt": "a", "num_inference_steps": 2}, seed=0))
    assert warm_up.seam.learnt_signatures == 1
    request = {**shape, "prompt": "a red circle", "negative_prompt": "blue star", "num_inference_steps": 20}
    served = pair.generate(GenerateCall(request, seed=3))
    assert served.seam == SeamStats()
    assert [stats.denoiser_calls for stats in served.ranks] == [20, 20]


def test_a_start_says_what_its_parts_took(pair: WorkerGroup) -> None:
    assert [name.split()[-1] for name in pair.start_seconds] == ["up", "formed", "loaded", "built"]
    assert all(seconds > 0 for seconds in pair.start_seconds.values())


def call_on(rank: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs `function(rank, ...)` in the rank's process."""
    return ray.get(rank.__ray_call__.remote(function, *arguments), timeout=60)


def environment(rank: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """A rank's runtime environment, as Ray knows it, and its variables."""
    return dict(ray.get_runtime_context().runtime_env), dict(os.environ)


def num_torch_threads(leader: Any) -> int:
    """Of the compute thread, where torch is used."""
    return int(leader._compute.submit(torch.get_num_threads).result())


def test_ranks_have_no_runtime_environment_of_their_own(pair: WorkerGroup) -> None:
    """With one, Ray starts Python twice for each rank."""
    for rank in pair._ranks:
        runtime_env, variables = call_on(rank, environment)
        assert (runtime_env, variables["OMP_NUM_THREADS"]) == ({}, "1")
    assert call_on(pair._ranks[0], num_torch_threads) == 1


@ray.remote(num_cpus=0)
class Starter:
    """Starts a group in a process whose environment Ray was told."""

    def environment_of_a_rank(self, plan: Plan) -> tuple[dict[str, str], int]:
        group = WorkerGroup.start(plan, timeout_s=90)
        try:
            return call_on(group._ranks[0], environment)[1], call_on(group._ranks[0], num_torch_threads)
        finally:
            group.shutdown()


@pytest.mark.full
def test_ranks_have_the_callers_environment_but_as_many_threads_as_planned(tiny_wan: Path) -> None:
    given = {"HELIOGRAPH_TEST_WORD": "given", "OMP_NUM_THREADS": "7"}
    starter = Starter.options(runtime_env={"env_vars": given}).remote()
    plan = make_wan_plan(tiny_wan, cpus_per_rank=2.0)
    variables, num_threads = ray.get(starter.environment_of_a_rank.remote(plan), timeout=120)
    assert variables["HELIOGRAPH_TEST_WORD"] == "given"
    assert (variables["OMP_NUM_THREADS"], num_threads) == ("2", 2)


def count_trims(rank: Any) -> None:
    """Counts from now on how often this process gives free memory back."""
    from workers import freed_memory

    trim: Any = freed_memory._trim
    calls: list[int] = []
    freed_memory._trim = lambda pad: calls.append(pad) or trim(pad)
    freed_memory.num_trims = lambda: len(calls)  # type: ignore[attr-defined]


def num_trims(rank: Any) -> int:
    from workers import freed_memory

    return freed_memory.num_trims()  # type: ignore[attr-defined, no-any-return]


def test_every_rank_gives_freed_memory_back_after_a_request(pair: WorkerGroup) -> None:
    for rank in pair._ranks:
        call_on(rank, count_trims)
    pair.generate(GenerateCall(ARGUMENTS, seed=3))
    wait_until(lambda: [call_on(rank, num_trims) for rank in pair._ranks] == [1, 1], "one trim a rank")


def test_bad_calls_and_cancelled_calls_leave_the_group_clean(pair: WorkerGroup) -> None:
    expected = pair.generate(GenerateCall(ARGUMENTS, seed=3)).output
    with pytest.raises(InvalidCallError, match="takes no argument colour"):
        pair.generate(GenerateCall({**ARGUMENTS, "colour": 1}))
    with pytest.raises(InvalidCallError, match="divisible by 16"):
        pair.generate(GenerateCall({**ARGUMENTS, "width": 33}))
    long_call = GenerateCall({**ARGUMENTS, "num_inference_steps": 5000}, seed=3)

    def cancel_soon(event: Progress) -> None:
        if event.step == 2:
            pair.cancel(long_call.request_id)

    with pytest.raises(CallCancelledError):
        pair.generate(long_call, on_progress=cancel_soon)
    assert np.array_equal(pair.generate(GenerateCall(ARGUMENTS, seed=3)).output, expected)


def test_a_call_beyond_all_memory_fails_alone(pair: WorkerGroup) -> None:
    """Latents of a pebibyte: more than a process has addresses, so that no machine tries."""
    expected = pair.generate(GenerateCall(ARGUMENTS, seed=3)).output
    pids = ray.get([rank.ping.remote() for rank in pair._ranks])
    with pytest.raises(CallOutOfMemoryError, match="can't allocate memory"):
        pair.generate(GenerateCall({**ARGUMENTS, "width": 2**25, "height": 2**25}, seed=3))
    assert np.array_equal(pair.generate(GenerateCall(ARGUMENTS, seed=3)).output, expected)
    assert ray.get([rank.ping.remote() for rank in pair._ranks]) == pids


async def test_closing_a_stream_cancels_the_call(pair: WorkerGroup) -> None:
    stream = pair.stream(GenerateCall({**ARGUMENTS, "num_inference_steps": 100_000}, seed=3))
    async for event in stream:
        if isinstance(event, Progress) and event.step == 2:
            break
    await stream.aclose()
    events = [event async for event in pair.stream(GenerateCall(ARGUMENTS, seed=3))]
    assert isinstance(events[-1], GenerateResult)
    assert [event.step for event in events[:-1] if event.stage == "denoise"] == [0, 1, 2, 3]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_running_call_at_once(
    tiny_wan: Path, start_group: Callable[[Plan], WorkerGroup], victim: int
) -> None:
    group = start_group(make_wan_plan(tiny_wan, num_ranks=2, cfg_degree=2))
    pids = ray.get([rank.ping.remote() for rank in group._ranks])
    killed_at: list[float] = []

    def kill_once(event: Progress) -> None:
        if event.step >= 2 and not killed_at:
            killed_at.append(time.monotonic())
            os.kill(pids[victim], signal.SIGKILL)

    with pytest.raises(GroupDiedError):
        group.generate(GenerateCall({**ARGUMENTS, "num_inference_steps": 100_000}, seed=3), on_progress=kill_once)
    assert time.monotonic() - killed_at[0] < 30.0  # a hang would last for the deadline of a call, 600 s
    with pytest.raises(GroupDiedError):
        group.check()


def test_a_failed_start_leaves_no_process_and_no_placement_group(tiny_wan: Path, tmp_path: Path) -> None:
    before = remains()
    plan = make_wan_plan(tiny_wan, num_ranks=2, cfg_degree=2).model_copy(update={"checkpoint": str(tmp_path)})
    with pytest.raises(GroupStartError, match=r"did not start: .*transformer"):
        WorkerGroup.start(plan, timeout_s=60)
    wait_until(lambda: remains() <= before, "the tear-down")


def test_a_group_that_finds_no_room_says_what_is_free(tiny_wan: Path) -> None:
    before = remains()
    plan = make_wan_plan(tiny_wan, cpus_per_rank=1000.0)
    with pytest.raises(GroupStartError, match="no room for 1 ranks"):
        WorkerGroup.start(plan, timeout_s=0.5)
    wait_until(lambda: remains() <= before, "the tear-down")


def test_shutdown_leaves_no_process_and_no_placement_group(tiny_wan: Path) -> None:
    before = remains()
    group = WorkerGroup.start(make_wan_plan(tiny_wan, num_ranks=2, cfg_degree=2), timeout_s=90)
    pids = ray.get([rank.ping.remote() for rank in group._ranks])
    group.shutdown()
    wait_until(lambda: not set(pids) & rank_processes() and remains() <= before, "the group's end")


def remains() -> set[str | int]:
    """Placement groups and rank processes that are there now."""
    return {key for key, row in placement_group_table().items() if row["state"] != "REMOVED"} | rank_processes()


def rank_processes() -> set[int]:
    own = psutil.Process().children(recursive=True)
    return {p.pid for p in own if p.is_running() and p.status() != psutil.STATUS_ZOMBIE and "RankActor" in p.name()}
