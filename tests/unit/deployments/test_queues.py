"""What `/health` says of the work that runs and waits."""

import asyncio
import math

import httpx

from deployments.front import open_front
from deployments.http_api import build_api
from deployments.metrics import ServiceMetrics
from deployments.metrics_api import ReplicaMetrics
from deployments.settings import StateSettings
from tests.unit.deployments.fakes import FakeGroups, make_service, open_client, wait_until

GOOD = {"prompt": "a very secret prompt", "seed": 3}
PICTURES, JOBS = "/v1/images/generations", "/v1/videos"
MODELS = [{"checkpoint": "/models/shapes"}, {"checkpoint": "/models/big", "name": "other"}]


class OneAtATime(FakeGroups):
    """A group that makes the others wait, as a real one does."""

    def __init__(self, gate):
        super().__init__(gate=gate)
        self._lock = asyncio.Lock()

    async def stream(self, request, **call):
        async with self._lock:
            async for event in super().stream(request, **call):
                yield event


async def queues_of(client):
    answer = (await client.get("/health")).json()
    return {queue.pop("model"): queue for queue in answer["queues"]}


async def test_running_and_waiting_work_of_each_model_is_told(tmp_path):
    gate = asyncio.Event()
    service = make_service(OneAtATime(gate), FakeGroups(), models=MODELS, jobs={"num_slots": 1})
    async with open_client(service, tmp_path) as client:
        nothing = {"num_running": 0, "num_waiting": 0, "num_untaken_jobs": 0, "seconds_left": 0.0}
        assert await queues_of(client) == {"shapes": nothing, "other": nothing}
        body = {**GOOD, "model": "shapes"}
        pictures = [asyncio.create_task(client.post(PICTURES, json=body)) for _ in range(3)]
        for _ in range(3):
            assert (await client.post(JOBS, json=body)).status_code == 200
        told = {}

        async def all_are_counted():
            told.update(await queues_of(client))
            return told["shapes"]["num_running"] + told["shapes"]["num_waiting"] == 4

        await wait_until(all_are_counted)
        # Nothing was finished yet on this CPU: nobody knows how long it takes.
        expected = {"num_running": 1, "num_waiting": 3, "num_untaken_jobs": 2, "seconds_left": None}
        assert told == {"shapes": expected, "other": nothing}
        assert "secret" not in (await client.get("/health")).text
        gate.set()
        assert [response.status_code for response in await asyncio.gather(*pictures)] == [200] * 3


def replica(name, *, running, waiting, seconds):
    metrics = ServiceMetrics()
    metrics.num_running.labels("shapes").inc(running)
    metrics.num_waiting.labels("shapes").inc(waiting)
    metrics.queued_seconds.labels("shapes").set(seconds)
    return ReplicaMetrics(name, metrics.collect())


async def ask(service, folder, gather):
    service.settings = service.settings.model_copy(update={"state": StateSettings(folder=str(folder))})
    front = await open_front(service)
    try:
        transport = httpx.ASGITransport(build_api(service, front.desk, front.keys, gather=gather))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            response = await client.get("/health")
            return response.status_code, response.json()
    finally:
        await front.close()


async def test_queue_is_that_of_all_ingress_replicas(tmp_path):
    async def gather():
        return [replica("0", running=1, waiting=2, seconds=7.5), replica("1", running=0, waiting=4, seconds=5.0)]

    _, answer = await ask(make_service(FakeGroups()), tmp_path, gather)
    (queue,) = answer["queues"]
    assert queue == {
        "model": "shapes", "num_running": 1, "num_waiting": 6, "num_untaken_jobs": 0, "seconds_left": 12.5,
    }  # fmt: skip


async def test_seconds_are_unknown_where_one_replica_does_not_know_them(tmp_path):
    async def gather():
        return [replica("0", running=1, waiting=0, seconds=7.5), replica("1", running=1, waiting=0, seconds=math.nan)]

    _, answer = await ask(make_service(FakeGroups()), tmp_path, gather)
    assert [queue["seconds_left"] for queue in answer["queues"]] == [None]


async def test_health_is_told_also_where_the_queues_are_not_known(tmp_path):
    async def gather():
        await asyncio.Event().wait()

    status, answer = await ask(make_service(FakeGroups(), health_timeout_s=0.05), tmp_path, gather)
    assert (status, answer) == (200, {"status": "ok", "detail": "", "queues": []})


async def test_group_that_is_away_leaves_its_queue_to_be_seen(tmp_path):
    groups = FakeGroups()
    groups.num_groups = 0
    async with open_client(make_service(groups), tmp_path) as client:
        response = await client.get("/health")
        assert response.status_code == 503
        assert [queue["model"] for queue in response.json()["queues"]] == ["shapes"]
        assert "queues" not in (await client.get("/live")).json()
