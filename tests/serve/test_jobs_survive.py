"""What was accepted is made, whatever dies meanwhile."""

import json
import os
import re
import signal

import httpx
import psutil
import pytest

from tests.serve.conftest import SHAPES
from tests.serve.processes import wait_until
from tests.serve.test_failures import command_line, rank_pids
from tests.unit.deployments.test_http_api import LIMITS

VIDEO = {"prompt": "a blue square moving left", "seed": 5, "num_frames": 5, "num_inference_steps": 100}


def pids_of(start):
    """Processes of the app whose command line begins so; Ray's workers are descendants of this test run."""
    children = psutil.Process().children(recursive=True)
    return sorted(process.pid for process in children if command_line(process).startswith(start))


def state_of(url, video_id):
    """The job, or None while nobody answers."""
    try:
        response = httpx.get(f"{url}/v1/videos/{video_id}", timeout=10)
    except httpx.HTTPError:
        return None
    return response.json() if response.status_code == 200 else None


def begin(url, **fields):
    video_id = httpx.post(f"{url}/v1/videos", json={**VIDEO, **fields}, timeout=30).raise_for_status().json()["id"]
    wait_until(lambda: state_of(url, video_id)["status"] == "in_progress", "a beginning", timeout_s=60)
    return video_id


def check_completed(url, video_id, *, timeout_s=100):
    states = []

    def is_over():
        states.append(state_of(url, video_id))
        return states[-1] is not None and states[-1]["status"] in ("completed", "failed")

    try:
        wait_until(is_over, "the end", timeout_s=timeout_s)
    except AssertionError as error:
        raise AssertionError(f"{error}; the last state: {states[-1]}") from error
    state = states[-1]
    assert (state["status"], state["error"], state["seed"]) == ("completed", None, 5)
    assert len(httpx.get(f"{url}/v1/videos/{video_id}/content", timeout=30).raise_for_status().content) > 500


@pytest.mark.full
def test_video_whose_group_dies_is_made_by_the_next_one(app):
    video_id = begin(app.url)
    os.kill(rank_pids()[0], signal.SIGKILL)
    check_completed(app.url, video_id)


def test_video_whose_ingress_replicas_all_die_is_made_by_their_successors(app):
    video_id = begin(app.url)
    before = pids_of("ray::ServeReplica:heliograph:Ingress")
    assert len(before) == 2
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    check_completed(app.url, video_id)
    assert not set(before) & set(pids_of("ray::ServeReplica:heliograph:Ingress"))


@pytest.mark.full
def test_video_survives_the_death_of_the_controller(app):
    video_id = begin(app.url)
    (controller,) = pids_of("ray::ServeController")
    os.kill(controller, signal.SIGKILL)
    check_completed(app.url, video_id)


@pytest.mark.full
@pytest.mark.timeout(400)
def test_videos_survive_a_restart_of_the_whole_cluster(run_heliograph, tmp_path):
    args = {"checkpoint": str(SHAPES), "state": {"folder": str(tmp_path / "state")}, "limits": LIMITS}
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"applications": [{"import_path": "deployments.app:build_app", "args": args}]}))

    def start():
        command = run_heliograph("serve", config, "--port", "0")
        command.wait_for_line("Ctrl-C stops it", timeout_s=150)
        return command, re.search(r"http://127\.0\.0\.1:\d+", command.stderr)[0]

    first, url = start()
    running = begin(url, num_inference_steps=300)
    waiting = httpx.post(f"{url}/v1/videos", json={**VIDEO, "num_inference_steps": 2}, timeout=30).json()["id"]
    first.kill_all()  # as if the machine had lost its power: nobody could say goodbye
    second, url = start()
    for video_id in (running, waiting):
        check_completed(url, video_id)
    second.interrupt()
    assert second.wait(timeout_s=40) == 130
