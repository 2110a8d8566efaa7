"""Groups come with waiting work and go without it, by the real controller."""

import json
import re
import time

import httpx
import pytest

from tests.serve.conftest import SHAPES
from tests.serve.processes import wait_until
from tests.serve.test_jobs_survive import pids_of

SCALING = {
    "min_replicas": 0, "max_replicas": 2, "target_gpu_seconds": 1.0,
    "up_delay_s": 1.0, "down_delay_s": 2.0, "to_zero_delay_s": 4.0,
}  # fmt: skip


@pytest.mark.full
@pytest.mark.timeout(900)
def test_groups_come_with_waiting_work_and_go_without_it(run_heliograph, tmp_path):
    before = set(groups())
    args = {
        "checkpoint": str(SHAPES), "plan": {"device": "cpu", "num_ranks": 1, "cpus_per_rank": 1},
        "autoscaling": SCALING, "state": {"folder": str(tmp_path / "state")},
    }  # fmt: skip
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"applications": [{"import_path": "deployments.app:build_app", "args": args}]}))
    command = run_heliograph("serve", config, "--port", "0")
    command.wait_for_line("Ctrl-C stops it", timeout_s=150)
    url = re.search(r"http://127\.0\.0\.1:\d+", command.stderr)[0]
    # Serve's controller would have started one by now: it looks at the waiting requests every 2 s.
    assert not becomes_true(lambda: set(groups()) - before, within_s=12), "a deploy alone starts no group"
    jobs = [submit(url, seed) for seed in range(16)]
    wait_until(lambda: len(set(groups()) - before) == 2, "two groups", timeout_s=200)
    for job in jobs:
        wait_until(lambda job=job: state(url, job) == "completed", "all jobs", timeout_s=200)
    wait_until(lambda: not set(groups()) - before, "no group", timeout_s=200)
    assert httpx.get(f"{url}/health", timeout=20).json()["status"] == "busy"
    # Somebody who waits for the answer wakes a group, and is not refused meanwhile.
    body = {"prompt": "a red circle", "seed": 1, "num_inference_steps": 2}
    assert httpx.post(f"{url}/v1/images/generations", json=body, timeout=200).status_code == 200
    wait_until(lambda: not set(groups()) - before, "no group again", timeout_s=200)
    command.interrupt()
    assert command.wait(timeout_s=60) == 130, command.stderr


def becomes_true(condition, *, within_s):
    """Whether it does; the time is how long its absence is watched."""
    end = time.monotonic() + within_s
    while not (result := condition()) and time.monotonic() < end:
        time.sleep(0.1)
    return bool(result)


def groups():
    return pids_of("ray::ServeReplica:heliograph:Group")


def submit(url, seed):
    body = {"prompt": "a red circle", "seed": seed, "num_inference_steps": 100, "background_job": True}
    return httpx.post(f"{url}/v1/images/generations", json=body, timeout=30).raise_for_status().json()["id"]


def state(url, job):
    return httpx.get(f"{url}/v1/images/jobs/{job}", timeout=30).json()["status"]
