"""What happens to requests when clients or ranks go away, and to deployments that cannot be."""

import os
import signal

import psutil
import pytest

from deployments.answers import CompletedEvent
from deployments.app import build_app
from deployments.schemas import ImageRequest
from deployments.settings import AppSettings
from planner.errors import CheckpointError, PlannerError
from tests.serve.conftest import SHAPES
from tests.serve.processes import wait_until

LONG = {"prompt": "a red circle", "seed": 4, "num_inference_steps": 5000}
MEDIUM = ImageRequest(prompt="a red circle", seed=4, num_inference_steps=60)
QUICK = {"prompt": "a red circle", "seed": 1, "num_inference_steps": 1}


def rank_pids():
    """Processes of the app's ranks; Ray's workers are descendants of this test run."""
    return sorted(
        p.pid for p in psutil.Process().children(recursive=True) if command_line(p).startswith("ray::RankActor")
    )


def command_line(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it ended while we looked
        return ""


def test_disconnecting_frees_the_group(http):
    with http.stream("POST", "/v1/images/generations", json={**LONG, "stream": True}) as response:
        for line in response.iter_lines():
            if '"denoise"' in line:
                break
    assert http.post("/v1/images/generations", json=QUICK, timeout=20).status_code == 200


@pytest.mark.parametrize("victim", [-1, pytest.param(0, marks=pytest.mark.full)])
def test_request_whose_rank_dies_gets_its_picture_from_the_next_group(app, http, victim):
    expected = app.handle.generate.remote(MEDIUM).result(timeout_s=60).data[0].b64_json
    before = rank_pids()
    assert len(before) == 2
    is_killed = False
    for event in app.handle.options(stream=True).stream.remote(MEDIUM):
        if not is_killed and not isinstance(event, CompletedEvent) and event.step >= 2:
            os.kill(before[victim], signal.SIGKILL)
            is_killed = True
    assert isinstance(event, CompletedEvent)
    assert event.b64_json == expected
    assert not set(before) & set(rank_pids()), "the whole group is new"
    wait_until(lambda: http.get("/health").status_code == 200, "healthy again")


def test_idle_group_that_loses_a_rank_is_replaced(http):
    before = rank_pids()
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: len(set(rank_pids()) - set(before)) == 2, "a new group", timeout_s=90)
    assert http.post("/v1/images/generations", json=QUICK).status_code == 200


def test_plan_that_cannot_be_fails_the_deploy_with_numbers(app):
    settings = AppSettings.model_validate({"checkpoint": str(SHAPES), "plan": {"device": "cpu", "num_ranks": 512}})
    with pytest.raises(PlannerError, match="512"):
        build_app(settings)


def test_missing_checkpoint_fails_the_deploy(app, tmp_path):
    with pytest.raises(CheckpointError, match="nothing_here"):
        build_app(AppSettings(checkpoint=str(tmp_path / "nothing_here")))
