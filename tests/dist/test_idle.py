"""A follower that dies while nothing runs is seen by the group's check, and by the next call at once."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import ray

from tests.plans import make_wan_plan
from workers.calls import GenerateCall
from workers.errors import GroupDiedError
from workers.group import WorkerGroup

pytestmark = pytest.mark.usefixtures("ray_cluster")

CALL = GenerateCall({"prompt": "a star", "height": 32, "width": 32, "num_frames": 1, "num_inference_steps": 1}, seed=3)


def check_until_dead(group: WorkerGroup, *, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        group.check()
        threading.Event().wait(0.05)


def test_a_follower_that_dies_while_idle_is_seen_by_the_check_and_the_next_call(tiny_wan: Path) -> None:
    group = WorkerGroup.start(make_wan_plan(tiny_wan, num_ranks=2, cfg_degree=2), timeout_s=90)
    try:
        group.generate(CALL)
        group.check()
        follower = ray.get(group._ranks[1].ping.remote())
        os.kill(follower, signal.SIGKILL)
        with pytest.raises(GroupDiedError):
            check_until_dead(group)
        start = time.monotonic()
        with pytest.raises(GroupDiedError):
            group.generate(CALL)
        assert time.monotonic() - start < 30.0, "the call waited for its deadline"
    finally:
        group.shutdown()
