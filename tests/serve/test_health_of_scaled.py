"""What `/health` says of a model whose groups may all be away: dead is not the same as scaled down."""

import json
import os
import re
import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.serve.conftest import SHAPES
from tests.serve.processes import wait_until
from tests.serve.test_jobs_survive import pids_of

SCALING = {
    "min_replicas": 0, "max_replicas": 1, "target_gpu_seconds": 1.0,
    "up_delay_s": 1.0, "down_delay_s": 2.0, "to_zero_delay_s": 60.0,
}  # fmt: skip
BODY = {"prompt": "a red circle", "seed": 1, "num_inference_steps": 2}
RANKS, COORDINATOR = "ray::RankActor", "ray::ServeReplica:heliograph:Group"
_RESTART_TIMEOUT_S = 200.0


class ScaledService:
    """A service of at most one group, as a process; another app of this test run may be up beside it."""

    def __init__(self, start):
        self._others = {*pids_of(RANKS), *pids_of(COORDINATOR)}
        command = start()
        command.wait_for_line("Ctrl-C stops it", timeout_s=150)
        self.url = re.search(r"http://127\.0\.0\.1:\d+", command.stderr)[0]

    def pids(self, name):
        return set(pids_of(name)) - self._others

    def health(self):
        return httpx.get(f"{self.url}/health", timeout=60)

    def picture(self):
        return httpx.post(f"{self.url}/v1/images/generations", json=BODY, timeout=_RESTART_TIMEOUT_S)


def log_folder(service):
    """Where Serve's replicas log; the group that is up has a file open there."""
    (coordinator,) = service.pids(COORDINATOR)
    paths = [Path(file.path) for file in psutil.Process(coordinator).open_files()]
    return next(path.parent for path in paths if path.name.startswith("replica_"))


def num_warm_groups(logs):
    """Groups that have ever been ready to answer."""
    return sum("warm-up (mp4)" in log.read_text(errors="replace") for log in logs.glob("replica_*Group*"))


@pytest.mark.full
@pytest.mark.timeout(900)
def test_health_is_503_from_the_only_groups_death_until_the_next_one_answers(run_heliograph, tmp_path):
    args = {
        "checkpoint": str(SHAPES), "plan": {"device": "cpu", "num_ranks": 2, "cfg_degree": 2, "cpus_per_rank": 0.5},
        "autoscaling": SCALING, "state": {"folder": str(tmp_path / "state")},
    }  # fmt: skip
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"applications": [{"import_path": "deployments.app:build_app", "args": args}]}))
    service = ScaledService(lambda: run_heliograph("serve", config, "--port", "0"))
    assert service.health().status_code == 200, "none is needed yet"
    assert service.picture().status_code == 200
    logs = log_folder(service)
    for victims in (RANKS, COORDINATOR):
        num_warm = num_warm_groups(logs)
        assert num_warm > 0
        kill_all(service, victims)
        assert num_refusals(service) > 0, "it was 503 meanwhile"
        assert num_warm_groups(logs) > num_warm, "no 200 before a new group could answer"
        assert service.picture().status_code == 200
    wait_until(lambda: not service.pids(COORDINATOR), "scaled down to none", timeout_s=_RESTART_TIMEOUT_S)
    away = service.health()
    assert (away.status_code, away.json()["status"]) == (200, "busy")
    assert service.picture().status_code == 200


def kill_all(service, victims):
    """Ends all processes of a name; returns when they are gone."""
    killed = service.pids(victims)
    assert killed
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not killed & service.pids(victims), "their end")


def num_refusals(service):
    """Waits for a 200; how often it was 503 before that."""
    deadline, num_refused = time.monotonic() + _RESTART_TIMEOUT_S, 0
    while (answer := service.health()).status_code != 200:
        assert answer.status_code == 503, answer.text
        assert time.monotonic() < deadline, answer.text
        num_refused += 1
    return num_refused
