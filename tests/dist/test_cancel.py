"""After a call was cancelled, in whatever stage, the group is as new: the next result is equal to the bit."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from planner.plan import Residency
from tests.dist.holding import cancel_inside
from tests.dist.test_group import ARGUMENTS, plain_pipeline
from tests.plans import make_wan_plan
from workers.calls import GenerateCall, Progress
from workers.errors import CallCancelledError, DeadlineExceededError, InvalidCallError
from workers.group import WorkerGroup

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(400)]

OFFLOADED = {"text_encoder": Residency.OFFLOAD, "vae": Residency.OFFLOAD}
GROUPS = {
    "cfg2_fsdp2": {"num_ranks": 2, "cfg_degree": 2, "fsdp_degree": 2},
    "resident": {"num_ranks": 1},
    "offload": {"num_ranks": 1, "residency": OFFLOADED},
    "fsdp2": {"num_ranks": 2, "fsdp_degree": 2},
}


def marked(name: str) -> object:
    return pytest.param(name, id=name, marks=() if name == "cfg2_fsdp2" else pytest.mark.full)


@pytest.fixture
def group(request: pytest.FixtureRequest, tiny_wan: Path) -> Iterator[WorkerGroup]:
    group = WorkerGroup.start(make_wan_plan(tiny_wan, **GROUPS[request.param]), timeout_s=180)
    yield group
    group.shutdown()


@pytest.fixture(scope="module")
def expected(tiny_wan: Path) -> np.ndarray:
    return (plain_pipeline(tiny_wan) * 255).round().astype(np.uint8)


@pytest.mark.parametrize("group", [marked(name) for name in GROUPS], indirect=True)
def test_no_stage_leaves_a_trace(group: WorkerGroup, expected: np.ndarray) -> None:
    is_sharded = group.plan.group.fsdp_degree > 1
    for stage in ("encode", "denoise", "decode"):
        num_blocks = cancel_in(group, stage)
        # Ranks that share a sharded encoder compute in step: there the call goes on to its end (one block more).
        assert num_blocks == (1 if stage == "encode" and is_sharded else 0), stage
        assert np.array_equal(group.generate(GenerateCall(ARGUMENTS, seed=3)).output, expected), stage
    with pytest.raises(DeadlineExceededError):
        group.generate(GenerateCall({**ARGUMENTS, "num_inference_steps": 100_000}, seed=3, deadline_s=1.0))
    with pytest.raises(InvalidCallError):
        group.generate(GenerateCall({**ARGUMENTS, "prompt": 3}, seed=3))
    assert np.array_equal(group.generate(GenerateCall(ARGUMENTS, seed=3)).output, expected)
    group.check()


def cancel_in(group: WorkerGroup, stage: str) -> int:
    """Cancels a call while the leader is in that stage; returns how many of the stage's blocks still ran."""
    if stage != "denoise":
        return cancel_inside(group, GenerateCall(ARGUMENTS, seed=9), stage, world_rank=0)
    call = GenerateCall({**ARGUMENTS, "num_inference_steps": 100_000}, seed=9)

    def cancel(event: Progress) -> None:
        if event.step == 2:
            group.cancel(call.request_id)

    with pytest.raises(CallCancelledError):
        group.generate(call, on_progress=cancel)
    return 0
