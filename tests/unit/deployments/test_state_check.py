"""What `/health` and requests say while jobs cannot be accepted or results not be stored."""

import sqlite3
from contextlib import closing

import pytest

from deployments.jobs import state_check
from deployments.jobs.results import ResultStorage
from deployments.jobs.state_check import StateCheck
from tests.unit.deployments.fakes import FakeGroups, make_service, open_client
from tests.unit.deployments.jobs import open_store

BODY = {"prompt": "a", "seed": 1}


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(state_check, "_PERIOD_S", 0.0)
    return tmp_path / "results"


@pytest.fixture
async def client(tmp_path, results):
    async with open_client(make_service(FakeGroups()), tmp_path) as client:
        yield client


async def test_storage_that_fails_makes_health_503_with_the_reason_until_it_works_again(client, results):
    assert (await client.get("/health")).status_code == 200
    assert not any(results.iterdir()), "the probe is removed"
    results.rmdir()
    results.write_text("in the way of the folder")
    answer = await client.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
    assert "results cannot be stored" in answer.json()["detail"]
    results.unlink()
    assert (await client.get("/health")).status_code == 200


async def test_picture_by_url_is_refused_clearly_and_one_in_the_answer_is_made(client, results):
    results.write_text("in the way of the folder")
    refused = await client.post("/v1/images/generations", json={**BODY, "response_format": "url"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
    assert (await client.post("/v1/images/generations", json=BODY)).status_code == 200


async def test_database_that_fails_makes_health_503_with_the_reason(client, tmp_path):
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as connection:
        connection.execute("ALTER TABLE downloads RENAME TO elsewhere")
    answer = await client.get("/health")
    assert (answer.status_code, "the database takes no jobs" in answer.json()["detail"]) == (503, True)
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as connection:
        connection.execute("ALTER TABLE elsewhere RENAME TO downloads")
    assert (await client.get("/health")).status_code == 200


async def test_what_was_found_is_said_again_for_some_seconds_without_a_new_try(tmp_path):
    async with open_store(f"sqlite:///{tmp_path}/jobs.sqlite") as store:
        now = [0.0]
        check = StateCheck(store, ResultStorage(str(tmp_path / "results")), timeout_s=5, clock=lambda: now[0])
        assert await check.problem() is None
        (tmp_path / "results").rmdir()
        (tmp_path / "results").write_text("in the way of the folder")
        assert await check.problem() is None
        now[0] += 3.0
        assert "results cannot be stored" in (await check.problem() or "")
