"""Several models in one app, and the one-model form beside it."""

import pytest
from pydantic import ValidationError

from deployments.settings import AppSettings, explain_validation
from tests.unit.deployments.fakes import FakeGroups, make_service, open_client, wait_until
from tests.unit.deployments.test_http_api import check_error

MODELS = [{"checkpoint": "/models/shapes"}, {"checkpoint": "/models/big", "name": "other"}]
GOOD = {"prompt": "a", "seed": 1}


@pytest.fixture
def groups():
    return FakeGroups(), FakeGroups()


@pytest.fixture
async def client(groups, tmp_path):
    async with open_client(make_service(*groups, models=MODELS), tmp_path) as client:
        yield client


@pytest.mark.parametrize(("name", "index"), [("shapes", 0), ("other", 1)])
async def test_request_goes_to_the_groups_of_its_model(client, groups, name, index):
    response = await client.post("/v1/images/generations", json={**GOOD, "model": name})
    assert response.json()["model"] == name
    assert [len(some.seeds) for some in groups] == [1 - index, index]


async def test_video_goes_to_the_groups_of_its_model(client, groups):
    video_id = (await client.post("/v1/videos", json={**GOOD, "model": "other"})).json()["id"]

    async def is_completed():
        return (await client.get(f"/v1/videos/{video_id}")).json()["status"] == "completed"

    await wait_until(is_completed)
    assert [len(some.seeds) for some in groups] == [0, 1]


async def test_model_must_be_said_and_known(client):
    response = await client.post("/v1/images/generations", json=GOOD)
    error = check_error(response, 400, "model")
    assert "shapes, other" in error["message"]
    check_error(await client.post("/v1/images/generations", json={**GOOD, "model": "third"}), 404, "model")
    check_error(await client.get("/plan"), 400, "model")
    assert (await client.get("/plan", params={"model": "other"})).json()["pipeline_class"] == "WanPipeline"


async def test_models_and_health_are_of_all(client, groups):
    assert [model["id"] for model in (await client.get("/v1/models")).json()["data"]] == ["shapes", "other"]
    assert (await client.get("/health")).json()["status"] == "ok"
    groups[1].num_groups = 0
    response = await client.get("/health")
    assert (response.status_code, response.json()["detail"].partition(":")[0]) == (503, "other")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "checkpoint"),
        ({"models": []}, "checkpoint"),
        ({"models": MODELS, "checkpoint": "/models/shapes"}, "belongs into each"),
        ({"models": MODELS, "num_replicas": 2}, "num_replicas"),
        ({"models": [MODELS[0], MODELS[0]]}, "twice"),
        ({"models": [{"chekpoint": "a"}]}, "did you mean 'checkpoint'"),
        ({"checkpoint": "a", "extra_args": ["generator"]}, "generator"),
        ({"checkpoint": "a", "extra_args": ["num_videos_per_prompt"]}, "num_videos_per_prompt"),
        ({"checkpoint": "a", "extra_args": ["callback_on_step_end"]}, "callback_on_step_end"),
    ],
)
def test_settings_that_contradict_themselves_are_explained(values, message):
    with pytest.raises(ValidationError) as caught:
        AppSettings.model_validate(values)
    assert message in explain_validation(caught.value)


def test_one_model_form_is_one_model():
    settings = AppSettings(checkpoint="/models/shapes", num_replicas=2)
    assert [(model.served_name, model.num_replicas) for model in settings.served_models] == [("shapes", 2)]
