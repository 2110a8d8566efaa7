"""Many requests on one real group, some cancelled, some failing: no hang, the last result right, memory flat."""

import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch

from tests.plans import make_wan_plan
from workers.calls import GenerateCall, Progress
from workers.errors import CallCancelledError, CallError, InvalidCallError
from workers.group import WorkerGroup

pytestmark = pytest.mark.usefixtures("ray_cluster")

REFERENCE: dict[str, Any] = {
    "prompt": "a red circle",
    "negative_prompt": "blue",
    "height": 32,
    "width": 32,
    "num_frames": 5,
    "num_inference_steps": 3,
    "output_type": "latent",
}
EXPECTED_ERRORS = {"cancelled": CallCancelledError, "refused": InvalidCallError, "failed": CallError, "done": ()}


@pytest.fixture
def pair(tiny_wan: Path, ray_cluster: None) -> Iterator[WorkerGroup]:
    group = WorkerGroup.start(make_wan_plan(tiny_wan, num_ranks=2, cfg_degree=2), timeout_s=90)
    yield group
    group.shutdown()


def random_arguments(rng: random.Random) -> dict[str, Any]:
    """Sizes and lengths of prompt embeddings at random: nearly every request has signatures of its own."""
    embeddings = torch.randn(1, rng.randint(1, 512), 32)
    return {
        **REFERENCE,
        "prompt": None,
        "negative_prompt": None,
        "prompt_embeds": embeddings,
        "negative_prompt_embeds": torch.randn_like(embeddings),
        "height": 16 * rng.randint(1, 4),
        "width": 16 * rng.randint(1, 4),
        "num_frames": rng.choice([1, 5, 9]),
        "num_inference_steps": rng.randint(1, 4),
    }


def run_one(group: WorkerGroup, rng: random.Random) -> str:
    """One request, and what became of it; an end of another kind than it asked for is an error."""
    arguments = random_arguments(rng)
    kind = rng.choices(["done", "cancelled", "refused", "failed"], weights=[80, 10, 5, 5])[0]
    if kind == "cancelled":
        arguments["num_inference_steps"] = 1000
    if kind == "refused":
        arguments["width"] = 33
    if kind == "failed":  # the second branch's embeddings fit no weight: an error at the first step
        arguments["negative_prompt_embeds"] = torch.randn(1, 7, 31)
    call = GenerateCall(arguments, seed=1)

    def cancel_at_second_step(event: Progress) -> None:
        if kind == "cancelled" and event.step == 2:
            group.cancel(call.request_id)

    try:
        group.generate(call, on_progress=cancel_at_second_step)
    except EXPECTED_ERRORS[kind]:
        return kind
    assert kind == "done", f"a request that should be {kind} came to a result"
    return kind


def rank_processes(group: WorkerGroup) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in ray.get([rank.ping.remote() for rank in group._ranks])]


def soak(group: WorkerGroup, *, num_requests: int, deadline_s: float) -> dict[int, list[int]]:
    """Runs the requests; returns each rank's resident bytes by number of requests done (every 100)."""
    rng, kinds, start = random.Random(5), Counter[str](), time.monotonic()
    processes = rank_processes(group)
    expected = group.generate(GenerateCall(REFERENCE, seed=3)).output
    resident: dict[int, list[int]] = {}
    for index in range(num_requests):
        progress = f"after {index} requests in {time.monotonic() - start:.0f} s: {dict(kinds)}, resident {resident}"
        assert time.monotonic() - start < deadline_s, progress
        try:
            kinds[run_one(group, rng)] += 1
        except Exception as error:
            raise AssertionError(f"{progress}; then {type(error).__name__}") from error
        if (index + 1) % 100 == 0:
            resident[index + 1] = [process.memory_info().rss for process in processes]
    assert torch.equal(group.generate(GenerateCall(REFERENCE, seed=3)).output, expected), "the last result is wrong"
    assert min(kinds[kind] for kind in EXPECTED_ERRORS) > 0, kinds
    group.check()
    return resident


def test_sixty_requests_with_cancels_and_failures_end_as_asked(pair: WorkerGroup) -> None:
    soak(pair, num_requests=60, deadline_s=60)


@pytest.mark.full
@pytest.mark.timeout(660)
def test_a_thousand_requests_leave_memory_flat(pair: WorkerGroup) -> None:
    resident = soak(pair, num_requests=1000, deadline_s=600)
    print(resident)
    for early, late in zip(resident[300], resident[1000], strict=True):
        assert late <= 1.02 * early, resident
