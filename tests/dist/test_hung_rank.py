"""A rank that hangs: its process is there, but a call does not end."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tests.dist.test_group import ARGUMENTS, rank_processes
from tests.plans import make_wan_plan
from tests.serve.processes import wait_until
from workers.call_pace import CallDeadlines
from workers.calls import GenerateCall, Progress
from workers.errors import GroupDiedError
from workers.group import WorkerGroup

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(300)]
DEADLINES = CallDeadlines(factor=20.0, floor_s=4.0, first_s=120.0)
CALL = GenerateCall({**ARGUMENTS, "num_inference_steps": 100_000}, seed=3)
LAYOUTS = {"lanes": {"cfg_degree": 2}, "shards": {"fsdp_degree": 2}}


@pytest.fixture
def group(request: pytest.FixtureRequest, tiny_wan: Path) -> Iterator[WorkerGroup]:
    plan = make_wan_plan(tiny_wan, num_ranks=2, **LAYOUTS[request.param])
    group = WorkerGroup.start(plan, timeout_s=180, deadlines=DEADLINES)
    yield group
    group.shutdown()


# In collectives the leader waits inside of the call, between lanes outside of it.
@pytest.mark.parametrize("group", ["lanes", pytest.param("shards", marks=pytest.mark.full)], indirect=True)
def test_a_stopped_follower_is_a_dead_group_once_its_call_misses_its_deadline(group: WorkerGroup) -> None:
    pids = ray.get([rank.ping.remote() for rank in group._ranks])

    def stop_in_third_step(event: Progress) -> None:
        if event.stage == "denoise" and event.step == 3:
            os.kill(pids[1], signal.SIGSTOP)

    with pytest.raises(GroupDiedError, match="did not end"):
        group.generate(CALL, on_progress=stop_in_third_step)
    group.shutdown()
    wait_until(lambda: not set(pids) & rank_processes(), "the end of all ranks, the stopped one too", timeout_s=60)
