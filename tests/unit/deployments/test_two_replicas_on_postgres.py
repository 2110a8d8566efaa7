"""Front ends that share a real PostgreSQL: whichever is asked knows every job, and takes over what another left."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from tests.tools.private_postgres import private_postgres
from tests.unit.deployments.fakes import FakeGroups, make_service, open_client, wait_until

pytestmark = [pytest.mark.full, pytest.mark.timeout(170)]
VIDEO = {"prompt": "a", "seed": 7}
QUICK = {"poll_s": 0.05, "lease_s": 5.0, "num_slots": 1}  # a busy machine must find time to renew


@pytest.fixture(scope="module")
def database():
    with private_postgres() as server:
        yield server.url


@pytest.fixture
async def open_replica(database, tmp_path):
    """Opens front ends that share the database and the results' folder."""
    async with AsyncExitStack() as stack:

        async def open_one(groups, **headers):
            service = make_service(groups, jobs=QUICK)
            state = {"database": database, "storage": str(tmp_path / "results")}
            return await stack.enter_async_context(open_client(service, tmp_path, state=state, **headers))

        yield open_one


async def status_of(client, job_id):
    return (await client.get(f"/v1/videos/{job_id}")).json()["status"]


async def wait_for(client, job_id, status):
    async def is_there():
        return await status_of(client, job_id) == status

    await wait_until(is_there, timeout_s=100)


async def test_either_replica_answers_for_every_job(open_replica):
    groups = [FakeGroups(), FakeGroups()]
    first, second = [await open_replica(each) for each in groups]
    ids = [
        (await client.post("/v1/videos", json={**VIDEO, "seed": seed})).json()["id"]
        for seed, client in enumerate([first, second] * 5)
    ]
    for job_id in ids:
        for client in (first, second):
            await wait_for(client, job_id, "completed")
    contents = [
        [(await client.get(f"/v1/videos/{job_id}/content")).content for job_id in ids] for client in (first, second)
    ]
    assert contents[0] == contents[1] == [str(seed).encode() for seed in range(10)]
    assert sorted(groups[0].seeds + groups[1].seeds) == list(range(10)), "each was made once"
    for client in (first, second):
        listed = (await client.get("/v1/videos", params={"limit": 100, "order": "asc"})).json()["data"]
        assert [video["id"] for video in listed if video["id"] in ids] == ids


async def test_key_holds_over_replicas_also_at_the_same_moment(open_replica):
    first, second = [await open_replica(FakeGroups()) for _ in range(2)]
    headers = {"Idempotency-Key": "the same"}
    answers = await asyncio.gather(
        *(client.post("/v1/videos", json=VIDEO, headers=headers) for client in (first, second) * 5)
    )
    assert len({answer.json()["id"] for answer in answers}) == 1


async def test_job_deleted_at_one_replica_ends_at_the_other(open_replica):
    groups = FakeGroups(gate=asyncio.Event())
    first = await open_replica(groups)
    job_id = (await first.post("/v1/videos", json=VIDEO)).json()["id"]
    await wait_for(first, job_id, "in_progress")
    second = await open_replica(FakeGroups())
    assert (await second.delete(f"/v1/videos/{job_id}")).status_code == 200

    async def is_closed():
        return groups.num_closed == 1

    await wait_until(is_closed)
    assert (await first.get(f"/v1/videos/{job_id}")).status_code == 404


async def test_job_of_a_replica_that_stopped_renewing_is_taken_over_and_stored_once(open_replica, monkeypatch):
    """The first one hangs as a stopped process does: it renews nothing, and comes back with a result too late."""
    stuck = FakeGroups(gate=asyncio.Event())
    first = await open_replica(stuck)
    job_id = (await first.post("/v1/videos", json=VIDEO)).json()["id"]
    await wait_for(first, job_id, "in_progress")
    monkeypatch.setattr("deployments.jobs.runner.JobRunner._keep_lease", never_renew)
    hanging = FakeGroups(gate=asyncio.Event())
    third = await open_replica(hanging)
    other = (await third.post("/v1/videos", json={**VIDEO, "seed": 8})).json()["id"]
    await wait_for(third, other, "in_progress")
    monkeypatch.undo()
    rescuer = FakeGroups()
    second = await open_replica(rescuer)
    await wait_for(second, other, "completed")
    assert rescuer.seeds == [8]
    hanging.gate.set()  # its own result comes now, and is nobody's

    async def is_closed():
        return hanging.num_closed == 1

    await wait_until(is_closed)
    assert (await third.get(f"/v1/videos/{other}/content")).content == b"8"
    assert await status_of(second, job_id) == "in_progress", "the one whose lease is renewed stays where it is"
    stuck.gate.set()
    await wait_for(second, job_id, "completed")


async def never_renew(_runner, _leased, work):
    await asyncio.wait({work})
