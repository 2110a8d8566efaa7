"""What happens to requests when clients or ranks go away, and to deployments that cannot be."""

import asyncio
import os
import signal
from contextlib import ExitStack

import psutil
import pytest
from ray import serve

from deployments.answers import CompletedEvent
from deployments.app import build_app
from deployments.errors import PoisonedRequestError
from deployments.group_client import ServeGroupClient
from deployments.local_serve import APP_NAME
from deployments.schemas import ImageRequest
from deployments.settings import AppSettings
from planner.errors import CheckpointError, PlannerError
from tests.serve.conftest import SHAPES
from tests.serve.processes import wait_until
from workers.errors import CallCancelledError

LONG = {"prompt": "a red circle", "seed": 4, "num_inference_steps": 5000}
MEDIUM = ImageRequest(prompt="a red circle", seed=4, num_inference_steps=60)
LONGER = ImageRequest(prompt="a red circle", seed=6, num_inference_steps=200)  # not over before the signal
QUICK = {"prompt": "a red circle", "seed": 1, "num_inference_steps": 1}


def rank_pids():
    """Processes of the app's ranks; Ray's workers are descendants of this test run."""
    return sorted(
        p.pid for p in psutil.Process().children(recursive=True) if command_line(p).startswith("ray::RankActor")
    )


def coordinator_pids():
    """Processes of the app's groups."""
    children = psutil.Process().children(recursive=True)
    return [p.pid for p in children if command_line(p).startswith("ray::ServeReplica:heliograph:Group")]


def for_each(act, events):
    for event in events:
        act(event)


def command_line(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it ended while we looked
        return ""


def test_only_ranks_have_torch_in_their_memory(app):
    processes = psutil.Process().children(recursive=True)
    starts = ("ray::ServeReplica:heliograph:Group", "ray::ServeReplica:heliograph:Ingress", "ray::RankActor")
    has_torch = {start: set() for start in starts}
    for process in processes:
        for start in starts:
            if command_line(process).startswith(start):
                has_torch[start].add(any("libtorch" in item.path for item in process.memory_maps()))
    assert list(has_torch.values()) == [{False}, {False}, {True}]


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


def test_health_says_at_once_that_all_groups_are_at_work(app):
    stream = app.handle.options(stream=True).stream
    group = ServeGroupClient(serve.get_deployment_handle("Group", APP_NAME), app_name=APP_NAME, num_places=2)
    calls = []

    def one_more_call_is_one_too_many():
        calls.append(stream.remote(ImageRequest(**{**LONG, "seed": len(calls)})))
        # A probe that is let in ends when the ranks have answered; one that is not would wait for hours.
        return asyncio.run(group.probe(timeout_s=3600, num_running=1)) == "unreached"

    try:
        wait_until(one_more_call_is_one_too_many, "all at work")
    finally:
        for call in calls:
            call.cancel()


def test_cancel_reaches_a_group_that_is_full(app):
    group = ServeGroupClient(serve.get_deployment_handle("Group", APP_NAME), app_name=APP_NAME, num_places=2)

    async def read(name):
        request = ImageRequest(**LONG)
        return [event async for event in group.stream(request, seed=0, request_id=name, deadline_s=600)]

    async def cancel_both():
        calls = [asyncio.create_task(read(name)) for name in ("first", "second")]
        while await group.probe(timeout_s=3600, num_running=1) != "unreached":
            assert not any(call.done() for call in calls)
        await group.cancel("first")
        await group.cancel("second")
        async with asyncio.timeout(60):  # each has hours of steps before it
            return await asyncio.gather(*calls, return_exceptions=True)

    ends = asyncio.run(cancel_both())
    assert [type(end) for end in ends] == [CallCancelledError, CallCancelledError]


def test_health_tells_a_group_at_work_from_one_that_died_at_work(http):
    with ExitStack() as stack:
        for seed in range(4):  # more than a group takes at once
            body = {**LONG, "seed": seed, "stream": True}
            stack.enter_context(http.stream("POST", "/v1/images/generations", json=body))
        wait_until(lambda: http.get("/health").json()["status"] == "busy", "all groups at work")
        before = rank_pids()
        for pid in coordinator_pids():
            os.kill(pid, signal.SIGKILL)
        answers = []
        wait_until(lambda: answers.append(http.get("/health")) or answers[-1].is_success, "a 200", timeout_s=90)
        assert len(set(rank_pids()) - set(before)) == 2, "there is a new group"
        assert len(answers) > 1
    wait_until(lambda: http.get("/health").json()["status"] == "ok", "no request is left")


@pytest.mark.full
@pytest.mark.timeout(300)
def test_request_under_which_three_groups_died_is_refused_and_the_next_group_stays_up(app, http):
    poison = ImageRequest(prompt="a red circle", seed=1000, num_inference_steps=60)
    killed = set()

    def kill_each_group(event):
        if not isinstance(event, CompletedEvent) and event.step >= 2 and not killed & set(pids := rank_pids()):
            os.kill(pids[0], signal.SIGKILL)
            killed.update(pids)

    with pytest.raises(PoisonedRequestError, match="3 groups died"):
        for_each(kill_each_group, app.handle.options(stream=True).stream.remote(poison))
    assert len(killed) == 6
    wait_until(lambda: http.get("/health").json()["status"] == "ok", "healthy again", timeout_s=90)
    before = rank_pids()
    # Each ingress replica learns by itself: the other one has the request made.
    body = poison.model_dump(exclude_unset=True)
    wait_until(
        lambda: http.post("/v1/images/generations", json=body).status_code == 422, "refused at once", timeout_s=90
    )
    assert http.post("/v1/images/generations", json=QUICK).status_code == 200
    assert rank_pids() == before


@pytest.mark.full
@pytest.mark.parametrize("victim", [0, -1])
def test_request_whose_rank_stops_gets_its_picture_from_the_next_group(app, http, victim):
    expected = app.handle.generate.remote(LONGER).result(timeout_s=60).data[0].b64_json
    before = rank_pids()
    is_stopped = False
    for event in app.handle.options(stream=True).stream.remote(LONGER):
        if not is_stopped and not isinstance(event, CompletedEvent) and event.step >= 2:
            os.kill(before[victim], signal.SIGSTOP)
            is_stopped = True
    assert isinstance(event, CompletedEvent)
    assert event.b64_json == expected
    wait_until(lambda: not set(before) & set(rank_pids()), "the stopped rank's end", timeout_s=60)


@pytest.mark.full
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
