"""Jobs are worked on exactly as long as somebody holds their lease, whatever dies meanwhile."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from deployments.errors import UnavailableError
from deployments.jobs import runner as runner_module
from deployments.jobs.records import JobState
from deployments.jobs.results import ResultStorage
from deployments.jobs.runner import JobRunner
from deployments.jobs.sweeper import Sweeper
from tests.unit.deployments.fakes import FakeGroups, make_service, wait_until
from tests.unit.deployments.jobs import FILE, expire_leases, make_job, open_store
from workers.errors import CallError, GroupDiedError, InvalidCallError

MINE = {"owner": "alice", "kind": "video"}


@pytest.fixture
async def store(tmp_path):
    async with open_store(f"sqlite:///{tmp_path}/jobs.sqlite") as store:
        yield store


@pytest.fixture
def storage(tmp_path):
    return ResultStorage(str(tmp_path / "results"))


@pytest.fixture(autouse=True)
def _no_pause_before_a_retry(monkeypatch):
    monkeypatch.setattr(runner_module, "_RETRY_DELAY_S", 0.0)


@asynccontextmanager
async def running(store, storage, groups, *, num_slots=1, **jobs):
    """One replica's runner."""
    service = make_service(groups, jobs={"poll_s": 0.02, **jobs})
    runner = JobRunner(
        store, storage, lambda request, request_id: service.run(request, request_id=request_id),
        models=list(service.models), num_slots=num_slots, settings=service.settings.jobs,
    )  # fmt: skip
    runner.start()
    try:
        yield runner
    finally:
        await runner.close()


async def wait_for(store, state, job_id="video_1"):
    async def is_there():
        return (await store.get(job_id, **MINE)).state is state

    await wait_until(is_there)
    return await store.get(job_id, **MINE)


async def test_job_is_made_with_its_seed_and_its_files_are_stored(store, storage):
    groups = FakeGroups()
    await store.add(make_job("video_1"))
    async with running(store, storage, groups):
        job = await wait_for(store, JobState.COMPLETED)
    assert groups.seeds == [7]
    assert [(file.variant, file.media_type, file.seed) for file in job.files] == [
        ("video", "video/mp4", 7), ("thumbnail", "image/webp", 7),
    ]  # fmt: skip
    assert await storage.read(job.file("video").key) == b"7"


async def test_job_is_in_progress_once_a_group_has_begun_it_with_true_progress(store, storage):
    gate = asyncio.Event()
    await store.add(make_job("video_1"))
    await store.add(make_job("video_2"))
    async with running(store, storage, FakeGroups(gate=gate)):
        job = await wait_for(store, JobState.IN_PROGRESS)
        assert job.progress == 49  # one of two steps
        assert (await store.get("video_2", **MINE)).state is JobState.QUEUED  # there is one slot
        gate.set()
        await wait_for(store, JobState.COMPLETED, "video_2")


async def test_replica_that_stops_hands_its_job_to_another_at_once(store, storage):
    await store.add(make_job("video_1"))
    stopped = FakeGroups(gate=asyncio.Event())
    async with running(store, storage, stopped):
        await wait_for(store, JobState.IN_PROGRESS)
    assert stopped.num_closed == 1
    assert (await store.get("video_1", **MINE)).state is JobState.QUEUED
    async with running(store, storage, FakeGroups()):
        job = await wait_for(store, JobState.COMPLETED)
    assert job.num_attempts == 1
    assert job.seed == 7


async def test_job_of_a_dead_replica_is_taken_up_and_its_late_result_is_dropped(store, storage):
    """The first replica is not dead, only believed so: the worst case."""
    gate = asyncio.Event()
    await store.add(make_job("video_1"))
    slow = FakeGroups(gate=gate)
    async with running(store, storage, slow):
        await wait_for(store, JobState.IN_PROGRESS)
        await expire_leases(store)
        async with running(store, storage, FakeGroups()):
            job = await wait_for(store, JobState.COMPLETED)
        gate.set()

        async def has_ended():
            return slow.num_closed == 1 and len(await asyncio.to_thread(storage._files.ls, _folder(storage))) == 2

        await wait_until(has_ended)
        assert await store.get("video_1", **MINE) == job
    assert await storage.read(job.file("video").key) == b"7"


async def test_work_ends_at_the_next_renewal_when_the_lease_is_lost(store, storage):
    groups = FakeGroups(gate=asyncio.Event())
    await store.add(make_job("video_1"))
    async with running(store, storage, groups, lease_s=0.3):
        await wait_for(store, JobState.IN_PROGRESS)
        await store.delete("video_1", **MINE)

        async def has_ended():
            return groups.num_closed == 1

        await wait_until(has_ended)


async def test_dropped_job_ends_at_once(store, storage):
    groups = FakeGroups(gate=asyncio.Event())
    await store.add(make_job("video_1"))
    async with running(store, storage, groups) as runner:
        await wait_for(store, JobState.IN_PROGRESS)
        await store.cancel("video_1", **MINE)
        runner.drop("video_1")

        async def has_ended():
            return groups.num_closed == 1

        await wait_until(has_ended)
        await store.add(make_job("video_2"))
        groups.gate.set()
        await wait_for(store, JobState.COMPLETED, "video_2")
    assert (await store.get("video_1", **MINE)).error_code == "cancelled"


@pytest.mark.parametrize(
    ("error", "code"), [(InvalidCallError("no"), "invalid_value"), (CallError("oom"), "generation_failed")]
)
async def test_job_that_cannot_be_done_fails_with_the_reason_and_is_not_tried_again(store, storage, error, code):
    groups = FakeGroups(failures=[error])
    await store.add(make_job("video_1"))
    async with running(store, storage, groups):
        job = await wait_for(store, JobState.FAILED)
    assert (job.error_code, len(groups.seeds)) == (code, 1)
    assert str(error) in job.error_message


async def test_dead_groups_do_not_lose_a_job(store, storage):
    groups = FakeGroups(failures=[GroupDiedError("gone")] * 2)
    await store.add(make_job("video_1"))
    async with running(store, storage, groups):
        await wait_for(store, JobState.COMPLETED)
    assert groups.seeds == [7, 7, 7]


async def test_job_under_which_three_groups_died_fails_and_kills_no_more(store, storage):
    groups = FakeGroups(failures=[GroupDiedError("gone")] * 100)
    await store.add(make_job("video_1"))
    async with running(store, storage, groups):
        job = await wait_for(store, JobState.FAILED)
    assert (job.error_code, len(groups.seeds)) == ("request_kills_groups", 3)


async def test_job_fails_in_the_end_when_every_group_dies_that_it_waits_at(store, storage):
    groups = FakeGroups()
    groups.dies_before_beginning = True
    await store.add(make_job("video_1"))
    async with running(store, storage, groups, max_attempts=2):
        job = await wait_for(store, JobState.FAILED)
    assert (job.error_code, len(groups.seeds)) == ("attempts_exhausted", 6)  # each attempt tries three groups


async def test_job_waits_without_limit_while_no_group_is_up(store, storage):
    groups = FakeGroups(failures=[UnavailableError("no group is up")] * 20)
    await store.add(make_job("video_1"))
    async with running(store, storage, groups, max_attempts=2):
        job = await wait_for(store, JobState.COMPLETED)
    assert job.num_attempts == 1


async def test_storage_that_fails_is_tried_again(store, storage, monkeypatch):
    write, failures = ResultStorage.write, [OSError("disk full")]

    async def fail_once(self, key, content):
        if failures:
            raise failures.pop()
        await write(self, key, content)

    monkeypatch.setattr(ResultStorage, "write", fail_once)
    await store.add(make_job("video_1"))
    async with running(store, storage, FakeGroups()):
        await wait_for(store, JobState.COMPLETED)


async def test_job_that_takes_too_long_fails(store, storage):
    await store.add(make_job("video_1"))
    async with running(store, storage, FakeGroups(gate=asyncio.Event()), run_timeout_s=0.05):
        job = await wait_for(store, JobState.FAILED)
    assert job.error_code == "timeout"


async def test_sweeping_frees_what_expired_and_what_nobody_owns(tmp_path, storage):
    async with open_store(f"sqlite:///{tmp_path}/short.sqlite", retention_s=-1.0) as store:
        sweeper = Sweeper(store, storage)
        for job_id in ("video_1", "video_2"):
            await store.add(make_job(job_id))
            await storage.write(f"{job_id}/a.mp4", b"abc")
        await storage.write("video_3/a.mp4", b"orphan")
        await store.take(models=["shapes"], token="a", lease_s=1000)
        await store.complete("video_1", token="a", files=[FILE])
        await sweeper.remove_expired()
        assert sorted(await storage.folders()) == ["video_2", "video_3"]
        await sweeper.remove_orphans()
        assert await storage.folders() == ["video_2"]


def _folder(storage):
    return storage._path("video_1")


async def test_job_waits_while_results_cannot_be_stored_and_is_not_made_over_and_over(store, storage, tmp_path):
    groups = FakeGroups()
    (tmp_path / "results").write_text("in the way of the folder")
    await store.add(make_job("video_1"))
    async with running(store, storage, groups, max_attempts=1) as runner:

        async def is_given_back():
            return runner._storage_failed

        await wait_until(is_given_back)
        for _ in range(3):
            runner.wake()
            await asyncio.sleep(0)
        assert (await store.get("video_1", **MINE)).state is not JobState.FAILED
        (tmp_path / "results").unlink()
        job = await wait_for(store, JobState.COMPLETED)
    assert len(groups.seeds) == 2
    assert job.num_attempts == 1
