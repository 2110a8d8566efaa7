"""The rules of the jobs' table, on SQLite and on PostgreSQL."""

import asyncio

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from deployments.errors import SettingsError
from deployments.jobs.database import migrate, open_database
from deployments.jobs.records import Download, JobState
from deployments.jobs.tables import metadata
from tests.tools.private_postgres import private_postgres
from tests.unit.deployments.jobs import FILE, expire_leases, make_job, open_store, set_all

MINE = {"owner": "alice", "kind": "video"}


@pytest.fixture(scope="session")
def postgres():
    with private_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.full)])
async def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/jobs.sqlite"
    url = request.getfixturevalue("postgres").url
    engine = open_database(url)
    async with engine.connect() as connection:
        await connection.execute(text("DROP SCHEMA public CASCADE"))
        await connection.execute(text("CREATE SCHEMA public"))
    await engine.dispose()
    return url


@pytest.fixture
async def store(url):
    async with open_store(url) as store:
        yield store


async def take(store, token, *, models=("shapes",)):
    return await store.take(models=models, token=token, lease_s=1000)


async def test_migrations_by_several_processes_at_once_make_the_tables_as_they_are_declared(url):
    engines = [open_database(url) for _ in range(3)]
    await asyncio.gather(*(migrate(engine) for engine in engines))
    async with engines[0].connect() as connection:
        differences = await connection.run_sync(lambda c: compare_metadata(MigrationContext.configure(c), metadata))
    for engine in engines:
        await engine.dispose()
    assert differences == []


async def test_accepted_job_is_there_for_every_replica_and_after_a_restart(url):
    async with open_store(url) as store, open_store(url) as other:
        job = await store.add(make_job("video_1"))
        assert await other.get("video_1", **MINE) == job
    async with open_store(url) as after_restart:
        job = await after_restart.get("video_1", **MINE)
    assert (job.state, job.progress, job.seed) == (JobState.QUEUED, 0, 7)


async def test_idempotency_key_gives_the_first_job_again_but_only_to_its_owner(store):
    await store.add(make_job("video_1", key="once"))
    assert (await store.add(make_job("video_2", key="once"))).id == "video_1"
    assert (await store.add(make_job("video_3", owner="bob", key="once"))).id == "video_3"
    assert await store.get("video_2", **MINE) is None


async def test_idempotency_key_of_an_expired_job_is_free(url):
    async with open_store(url, retention_s=-1.0) as store:
        await store.add(make_job("video_1", key="once"))
        await take(store, "a")
        await store.complete("video_1", token="a", files=[FILE])
        assert (await store.add(make_job("video_2", key="once"))).id == "video_2"


async def test_each_job_is_taken_by_one_of_many_replicas(url):
    async with open_store(url) as store, open_store(url) as other:
        for index in range(4):
            await store.add(make_job(f"video_{index}"))
        takes = [take(some, f"{index}") for index in range(6) for some in (store, other)]
        taken = [leased.job.id for leased in await asyncio.gather(*takes) if leased is not None]
        while (leased := await take(store, "rest")) is not None:
            taken.append(leased.job.id)
    assert sorted(taken) == [f"video_{index}" for index in range(4)]


async def test_oldest_job_of_a_served_model_comes_first(store):
    await store.add(make_job("video_b", model="other"))
    await store.add(make_job("video_c"))
    await store.add(make_job("video_a"))
    assert (await take(store, "1")).job.id == "video_c"
    assert (await take(store, "2")).job.id == "video_a"
    assert await take(store, "3") is None


async def test_jobs_of_nobody_are_counted_by_model_those_of_a_dead_replica_among_them(store):
    for job_id, model in (("video_1", "shapes"), ("video_2", "shapes"), ("video_3", "other")):
        await store.add(make_job(job_id, model=model))
    await take(store, "first")
    assert await store.num_untaken() == {"shapes": 1, "other": 1}
    await expire_leases(store)
    assert await store.num_untaken() == {"shapes": 2, "other": 1}
    await take(store, "second", models=("other",))
    await store.complete("video_3", token="second", files=[FILE])
    assert await store.num_untaken() == {"shapes": 2}


async def test_job_of_a_dead_replica_begins_again_and_the_dead_one_can_write_nothing_more(store):
    await store.add(make_job("video_1"))
    await take(store, "first")
    assert await store.report("video_1", token="first", progress=60)
    assert await take(store, "second") is None
    await expire_leases(store)
    again = await take(store, "second")
    assert (again.job.state, again.job.progress, again.job.num_attempts) == (JobState.QUEUED, 0, 2)
    assert not await store.renew("video_1", token="first", lease_s=1000)
    assert not await store.report("video_1", token="first", progress=70)
    assert not await store.complete("video_1", token="first", files=[FILE])
    assert not await store.fail("video_1", token="first", code="x", message="x")
    assert await store.complete("video_1", token="second", files=[FILE])
    assert not await store.complete("video_1", token="second", files=[FILE])


async def test_completed_job_has_its_files_its_size_and_an_end(store):
    await store.add(make_job("video_1"))
    await take(store, "a")
    await store.complete("video_1", token="a", files=[FILE])
    job = await store.get("video_1", **MINE)
    assert (job.state, job.progress, job.files, job.size) == (JobState.COMPLETED, 100, (FILE,), "32x32")
    assert job.expires_at == pytest.approx(job.completed_at + 1000, abs=1)
    assert await take(store, "b") is None


async def test_given_back_job_waits_and_counts_only_its_own_failures(store):
    await store.add(make_job("video_1"))
    await take(store, "a")
    await store.give_back("video_1", token="a", delay_s=0.0, counts=False)
    assert (await take(store, "b")).job.num_attempts == 1
    await store.give_back("video_1", token="b", delay_s=1000.0, counts=True)
    assert await take(store, "c") is None
    await set_all(store._engine, "not_before = 1")
    assert (await take(store, "c")).job.num_attempts == 2


async def test_cancelled_job_is_failed_with_a_code_and_names_who_works_on_it(store):
    await store.add(make_job("video_1"))
    await take(store, "worker")
    assert await store.cancel("video_1", owner="bob", kind="video") is None
    assert await store.cancel("video_1", **MINE) == "worker"
    assert await store.cancel("video_1", **MINE) is None
    job = await store.get("video_1", **MINE)
    assert (job.state, job.error_code) == (JobState.FAILED, "cancelled")
    assert not await store.report("video_1", token="worker", progress=1)


async def test_jobs_are_seen_by_their_owner_only(store):
    await store.add(make_job("video_1"))
    assert await store.get("video_1", owner="bob", kind="video") is None
    assert (await store.page(owner="bob", kind="video", after=None, limit=5, order="asc")).jobs == ()
    assert await store.delete("video_1", owner="bob", kind="video") is None
    assert await store.delete("video_1", **MINE) == ""


async def test_cancelled_statements_lock_nobody_out(url):
    async with open_store(url) as store, open_store(url) as other:
        await store.add(make_job("video_1"))
        await take(store, "a")
        for attempt in range(60):  # cancels at many points of a statement's way
            write = asyncio.create_task(store.report("video_1", token="a", progress=attempt))
            await asyncio.sleep(attempt * 1e-4)
            write.cancel()
            async with asyncio.timeout(10):  # SQLite waits 30 s for a lock
                assert await other.report("video_1", token="a", progress=1)


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages_hold_every_job_once_also_of_the_same_moment(store, order):
    for index in range(5):
        await store.add(make_job(f"video_{index}"))
    await set_all(store._engine, "created_at = 5")
    seen, after, has_more = [], None, True
    while has_more:
        page = await store.page(**MINE, after=after, limit=2, order=order)
        seen += [job.id for job in page.jobs]
        after, has_more = seen[-1], page.has_more
    assert seen == sorted((f"video_{index}" for index in range(5)), reverse=order == "desc")
    assert await store.page(**MINE, after="video_none", limit=2, order=order) is None


async def test_expired_jobs_and_files_are_gone_for_clients_at_once_and_then_removed(url):
    async with open_store(url, retention_s=-1.0) as store:
        await store.add(make_job("video_1"))
        await take(store, "a")
        await store.complete("video_1", token="a", files=[FILE])
        await store.add_download("old", Download("file_1", "image/png", 3), lifetime_s=-1)
        await store.add_download("new", Download("file_2", "image/png", 3), lifetime_s=1000)
        assert await store.get("video_1", **MINE) is None
        assert await store.get_download("old") is None
        assert await store.get_download("new") == Download("file_2", "image/png", 3)
        assert await store.existing(["video_1", "file_1", "file_2", "file_3"]) == {"video_1", "file_1", "file_2"}
        assert sorted(await store.delete_expired()) == ["file_1", "video_1"]
        assert await store.existing(["video_1", "file_1", "file_2"]) == {"file_2"}


@pytest.mark.parametrize("url", ["mysql://u:secret@h/d", "nonsense", "postgresql://u:secret@h:port/d"])
def test_database_that_cannot_be_is_refused_without_its_password(url):
    with pytest.raises(SettingsError) as caught:
        open_database(url)
    assert "secret" not in str(caught.value)


@pytest.mark.full
async def test_database_that_goes_away_and_comes_back_fails_in_one_way_and_works_again(postgres):
    async with open_store(postgres.url) as store:
        await store.check()
        postgres.stop()
        try:
            for _ in range(2):  # the connection that broke, and a new one
                with pytest.raises(SQLAlchemyError):
                    await store.check()
        finally:
            postgres.start()
        await store.check()


@pytest.mark.full
async def test_database_that_takes_no_writes_is_found_out(postgres):
    async with open_store(postgres.url) as store:
        async with store._engine.connect() as connection:
            await connection.execute(text("ALTER ROLE heliograph SET default_transaction_read_only = on"))
        await store._engine.dispose()
        try:
            with pytest.raises(SQLAlchemyError, match="read-only"):
                await store.check()
        finally:
            async with store._engine.connect() as connection:
                await connection.execute(text("SET default_transaction_read_only = off"))
                await connection.execute(text("ALTER ROLE heliograph RESET default_transaction_read_only"))
