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
from tests.tools.private_postgres import private_postgres
from tests.unit.deployments.test_http_api import LIMITS

NUM_JOBS = 20
PICTURE = {"prompt": "a red circle on a white background", "seed": 9, "num_inference_steps": 30}
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


def ingress_replica():
    return pids_of("ray::ServeReplica:heliograph:Ingress")[0]


def group_coordinator():
    return pids_of("ray::ServeReplica:heliograph:Group")[0]


def group_leader():
    return rank_pids()[0]


def serve_controller():
    return pids_of("ray::ServeController")[0]


@pytest.mark.full
@pytest.mark.timeout(500)
@pytest.mark.parametrize("victim", [ingress_replica, group_coordinator, group_leader, serve_controller])
def test_twenty_jobs_are_all_made_and_stored_once_whoever_is_killed(app, victim):
    expected = httpx.post(f"{app.url}/v1/images/generations", json=PICTURE, timeout=100).json()["data"][0]["b64_json"]
    accepted = [
        httpx.post(f"{app.url}/v1/images/generations", json={**PICTURE, "background_job": True}, timeout=30)
        for _ in range(NUM_JOBS)
    ]
    ids = [response.raise_for_status().json()["id"] for response in accepted]
    wait_until(lambda: count(app.url, ids, "completed") >= 2, "the first jobs", timeout_s=100)
    os.kill(victim(), signal.SIGKILL)
    assert count(app.url, ids, "completed") < NUM_JOBS, "there was work left when it was killed"
    wait_until(lambda: count(app.url, ids, "completed") == NUM_JOBS, "all jobs", timeout_s=300)
    for job_id in ids:
        job = picture_job(app.url, job_id)
        assert [item["b64_json"] for item in job["data"]] == [expected], "the same seed, the same picture"
    stored = {job_id: len(list((app.results / job_id).iterdir())) for job_id in ids}
    assert stored == dict.fromkeys(ids, 1)


@pytest.mark.full
@pytest.mark.timeout(400)
def test_ingress_replicas_on_postgres_take_over_from_one_that_is_killed(run_heliograph, tmp_path):
    with private_postgres() as database:
        args = {
            "checkpoint": str(SHAPES), "plan": {"device": "cpu", "num_ranks": 1, "cpus_per_rank": 1},
            "state": {"database": database.url, "storage": str(tmp_path / "results")}, "jobs": {"lease_s": 3.0},
        }  # fmt: skip
        config = tmp_path / "config.yaml"
        config.write_text(json.dumps({"applications": [{"import_path": "deployments.app:build_app", "args": args}]}))
        command = run_heliograph("serve", config, "--port", "0")
        command.wait_for_line("Ctrl-C stops it", timeout_s=150)
        url = re.search(r"http://127\.0\.0\.1:\d+", command.stderr)[0]
        body = {**PICTURE, "background_job": True}
        ids = [httpx.post(f"{url}/v1/images/generations", json=body, timeout=30).json()["id"] for _ in range(10)]
        wait_until(lambda: count(url, ids, "completed") >= 1, "the first job", timeout_s=100)
        replicas = [
            p for p in command.left_over() if command_line(p).startswith("ray::ServeReplica:heliograph:Ingress")
        ]
        assert len(replicas) == 2
        replicas[0].kill()
        wait_until(lambda: count(url, ids, "completed") == len(ids), "all jobs", timeout_s=200)
        stored = {job_id: len(list((tmp_path / "results" / job_id).iterdir())) for job_id in ids}
        assert stored == dict.fromkeys(ids, 1)
        command.interrupt()
        assert command.wait(timeout_s=60) == 130


def picture_job(url, job_id):
    """The job, or None while nobody answers."""
    try:
        response = httpx.get(f"{url}/v1/images/jobs/{job_id}", timeout=30)
    except httpx.HTTPError:
        return None
    return response.json() if response.status_code == 200 else None


def count(url, ids, status):
    jobs = [picture_job(url, job_id) for job_id in ids]
    return sum(job is not None and job["status"] == status for job in jobs)


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
