"""What a redeploy changes, and what it costs: nothing for the same configuration, no request for another one."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from ray import serve

from benchmarks.chaos_site import deploy, status_of
from deployments.settings import AppSettings
from tests.serve.conftest import SHAPES
from tests.serve.processes import wait_until
from tests.serve.test_jobs_survive import pids_of

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]
NAME = "rolling"
PLAN = {"device": "cpu", "num_ranks": 1, "cpus_per_rank": 1}
BODY = {"prompt": "a red circle", "seed": 1, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def url(app, tmp_path_factory):
    """A second app on the Ray of this test run."""
    folder = tmp_path_factory.mktemp("rolling")

    def make(**plan):
        return AppSettings.model_validate(
            {"checkpoint": str(SHAPES), "plan": {**PLAN, **plan}, "state": {"folder": str(folder)}}
        )

    redeploy(make())
    yield f"{app.url}/{NAME}", make
    serve.delete(NAME, _blocking=False)


def redeploy(settings):
    deploy(settings, app_name=NAME, route_prefix=f"/{NAME}")
    wait_until(lambda: status_of(NAME).status == "RUNNING", "the app runs", timeout_s=200)


def replicas():
    return {kind: pids_of(f"ray::ServeReplica:{NAME}:{kind}") for kind in ("Group", "Ingress")}


def test_same_configuration_again_changes_nothing(url):
    address, make = url
    before = replicas()
    redeploy(make())
    assert httpx.post(f"{address}/v1/images/generations", json=BODY, timeout=60).status_code == 200
    assert replicas() == before


def test_another_plan_replaces_groups_and_ingress_without_a_failed_request(url):
    address, make = url
    before = {pid for pids in replicas().values() for pid in pids}

    def ask(_):
        return httpx.post(f"{address}/v1/images/generations", json=BODY, timeout=120).status_code

    def is_replaced():
        with ThreadPoolExecutor(4) as pool:
            statuses.extend(pool.map(ask, range(4)))
        left = before & {pid for pids in replicas().values() for pid in pids}
        return not left and status_of(NAME).status == "RUNNING"

    statuses = []
    deploy(make(num_ranks=2, cfg_degree=2), app_name=NAME, route_prefix=f"/{NAME}")
    wait_until(is_replaced, "all replicas replaced", timeout_s=300)
    assert set(statuses) == {200}
    assert {kind: len(pids) for kind, pids in replicas().items()} == {"Group": 1, "Ingress": 2}
    assert httpx.get(f"{address}/plan", timeout=30).json()["group"]["cfg_degree"] == 2


def test_plan_that_cannot_be_leaves_the_running_app_as_it_is(url):
    address, make = url
    before = replicas()
    with pytest.raises(RuntimeError, match="512"):
        redeploy(make(num_ranks=512))
    assert httpx.post(f"{address}/v1/images/generations", json=BODY, timeout=120).status_code == 200
    assert replicas() == before


def test_without_room_the_old_groups_go_on_and_the_status_says_why(url):
    address, make = url
    before = replicas()["Group"]
    deploy(make(cpus_per_rank=7), app_name=NAME, route_prefix=f"/{NAME}")

    def says_why():
        assert httpx.post(f"{address}/v1/images/generations", json=BODY, timeout=120).status_code == 200
        return "taken more than" in status_of(NAME).deployments["Group"].message

    wait_until(says_why, "a message", timeout_s=120)
    assert status_of(NAME).status == "DEPLOYING"
    assert set(before) <= set(replicas()["Group"])
