"""Pictures beyond the plain request: formats, URLs, background jobs, edits, what pipelines cannot do."""

import asyncio
import base64
import dataclasses
import io
import json
from contextlib import asynccontextmanager

import pytest
from PIL import Image

from tests.unit.deployments.fakes import WAN, FakeGroups, make_service, open_client, wait_until
from tests.unit.deployments.test_http_api import check_error
from workers.errors import CallOutOfMemoryError, GroupDiedError, InvalidCallError

GOOD = {"prompt": "a red circle", "seed": 3}
PNG = io.BytesIO()
Image.new("RGB", (4, 4)).save(PNG, format="PNG")
FILE = ("a.png", PNG.getvalue(), "image/png")


def describe(*more):
    return dataclasses.replace(WAN, accepted_arguments=(*WAN.accepted_arguments, *more))


@asynccontextmanager
async def opened(groups, folder, **settings):
    service = make_service(groups, **settings)
    await service.prepare()
    async with open_client(service, folder) as client:
        yield client


@pytest.fixture
def groups():
    return FakeGroups(description=describe("image", "mask_image", "guidance_scale_2", "true_cfg_scale", "eta"))


@pytest.fixture
async def client(groups, tmp_path):
    async with opened(groups, tmp_path, extra_args=["eta"]) as client:
        yield client


async def generate(client, **fields):
    response = await client.post("/v1/images/generations", json={**GOOD, **fields})
    assert response.status_code in (200, 202), response.json()
    return response.json()


async def finished(client, job_id):
    async def is_over():
        return (await client.get(f"/v1/images/jobs/{job_id}")).json()["status"] in ("completed", "failed")

    await wait_until(is_over)
    return (await client.get(f"/v1/images/jobs/{job_id}")).json()


async def test_format_and_compression_reach_the_group_and_are_said(client, groups):
    answer = await generate(client, output_format="webp", output_compression=30)
    assert answer["output_format"] == "webp"
    assert (groups.requests[0].output_format, groups.requests[0].output_compression) == ("webp", 30)


async def test_url_serves_the_picture_by_a_name_that_tells_nothing(client):
    urls = [(await generate(client, response_format="url", output_format="jpeg"))["data"][0]["url"] for _ in range(2)]
    assert urls[0] != urls[1]
    assert urls[0].startswith("http://test/results/")
    assert len(urls[0].rpartition("/")[2]) >= 43, "256 random bits"
    response = await client.get(urls[0])
    assert (response.content, response.headers["content-type"]) == (b"3", "image/jpeg")
    check_error(await client.get("/results/guessed"), 404)


async def test_url_ends(tmp_path):
    async with opened(FakeGroups(), tmp_path, jobs={"url_lifetime_s": 0.001}) as client:
        url = (await generate(client, response_format="url"))["data"][0]["url"]

        async def is_gone():
            return (await client.get(url)).status_code == 404

        await wait_until(is_gone)


async def test_url_is_made_of_the_public_address_where_one_is_set(tmp_path):
    async with opened(FakeGroups(), tmp_path, public_url="https://pictures.example/") as client:
        url = (await generate(client, response_format="url"))["data"][0]["url"]
    assert url.startswith("https://pictures.example/results/")


@pytest.mark.parametrize("response_format", ["b64_json", "url"])
async def test_background_job_has_the_same_pictures_later(client, groups, response_format):
    response = await client.post(
        "/v1/images/generations", json={**GOOD, "n": 2, "background_job": True, "response_format": response_format}
    )
    accepted = response.json()
    assert (response.status_code, accepted["object"], accepted["status"]) == (202, "image.job", "queued")
    assert accepted["data"] is None
    job = await finished(client, accepted["id"])
    assert [item["seed"] for item in job["data"]] == [3, 4] == groups.seeds
    if response_format == "url":
        contents = [(await client.get(item["url"])).content for item in job["data"]]
    else:
        contents = [base64.b64decode(item["b64_json"]) for item in job["data"]]
    assert contents == [b"3", b"4"]
    assert (await client.delete(f"/v1/images/jobs/{job['id']}")).json()["deleted"] is True
    check_error(await client.get(f"/v1/images/jobs/{job['id']}"), 404, "image_id")


async def test_background_job_can_be_cancelled(tmp_path):
    groups = FakeGroups(gate=asyncio.Event())
    async with opened(groups, tmp_path) as client:
        accepted = await generate(client, background_job=True)
        await groups.begun.wait()
        job = (await client.post(f"/v1/images/jobs/{accepted['id']}/cancel")).json()
        assert (job["status"], job["error"]["code"]) == ("failed", "cancelled")
        assert groups.cancelled_ids == groups.request_ids


async def test_edit_sends_pictures_and_mask_to_the_group(client, groups):
    files = [("image[]", FILE), ("image[]", FILE), ("mask", FILE)]
    response = await client.post("/v1/images/edits", data={"prompt": "a", "seed": "5", "n": "1"}, files=files)
    assert response.status_code == 200, response.json()
    assert response.json()["data"][0]["seed"] == 5
    assert (groups.requests[0].images, groups.requests[0].mask) == ((FILE[1], FILE[1]), FILE[1])


async def test_edit_as_a_job_keeps_its_pictures(client, groups):
    data = {"prompt": "a", "background_job": "true"}
    response = await client.post("/v1/images/edits", data=data, files={"image": FILE})
    assert response.status_code == 202, response.json()
    assert (await finished(client, response.json()["id"]))["status"] == "completed"
    assert groups.requests[0].images == (FILE[1],)


async def test_edit_streams_events_of_its_own_names(client):
    response = await client.post("/v1/images/edits", data={"prompt": "a", "stream": "true"}, files={"image": FILE})
    names = [line[7:] for line in response.text.splitlines() if line.startswith("event: ")]
    assert (names[0], names[-1]) == ("image_edit.progress", "image_edit.completed")


@pytest.mark.parametrize(
    ("data", "files", "param"),
    [
        ({"prompt": "a"}, None, "images"),
        ({"prompt": "a"}, {"image": ("a.png", b"nonsense")}, "image"),
        ({"prompt": "a", "image": "http://example.com/a.png"}, None, "image"),
        ({"prompt": "a"}, [("image", FILE)] * 5, "image"),
        ({"prompt": "a", "seed": "many"}, {"image": FILE}, "seed"),
        ({"prompt": "a"}, {"image": FILE, "video": FILE}, "video"),
        ({}, {"image": FILE}, "prompt"),
    ],
)
async def test_wrong_edit_is_a_400(client, data, files, param):
    check_error(await client.post("/v1/images/edits", data=data, files=files), 400, param)


@pytest.mark.parametrize(("files", "param"), [({"image": FILE}, "image"), ({"image": FILE, "mask": FILE}, "image")])
async def test_edit_is_refused_by_a_pipeline_that_takes_no_pictures(tmp_path, files, param):
    async with opened(FakeGroups(), tmp_path) as client:
        error = check_error(await client.post("/v1/images/edits", data={"prompt": "a"}, files=files), 400, param)
    assert "WanPipeline takes no picture" in error["message"]


async def test_mask_is_refused_by_a_pipeline_that_takes_pictures_only(tmp_path):
    async with opened(FakeGroups(description=describe("image")), tmp_path) as client:
        response = await client.post("/v1/images/edits", data={"prompt": "a"}, files={"image": FILE, "mask": FILE})
    assert "takes no mask" in check_error(response, 400, "mask")["message"]


async def test_extension_fields_reach_the_group(client, groups):
    fields = {
        "width": 48, "height": 32, "guidance_scale": 2.0, "guidance_scale_2": 3.0, "true_cfg_scale": 4.0,
        "extra_args": {"eta": 0.5}, "negative_prompt": "blue",
    }  # fmt: skip
    await generate(client, **fields)
    sent = groups.requests[0].model_dump()
    assert {name: sent[name] for name in fields} == fields


async def test_extra_args_are_those_that_the_settings_allow_and_the_pipeline_takes(client):
    response = await client.post("/v1/images/generations", json={**GOOD, "extra_args": {"callback_on_step_end": "x"}})
    error = check_error(response, 400, "extra_args")
    assert "eta" in error["message"]


async def test_flow_shift_is_refused_where_no_schedule_has_one(client, tmp_path):
    response = await client.post("/v1/images/generations", json={**GOOD, "flow_shift": 3.0})
    assert "no schedule with a shift" in check_error(response, 400, "flow_shift")["message"]
    groups = FakeGroups(description=dataclasses.replace(WAN, takes_flow_shift=True))
    async with opened(groups, tmp_path / "other") as client:
        await generate(client, flow_shift=3.0)
    assert groups.requests[0].flow_shift == 3.0


@pytest.mark.parametrize(("route", "kind"), [("generations", "image_generation"), ("edits", "image_edit")])
async def test_previews_are_events_of_openais_names_before_each_picture(tmp_path, route, kind):
    groups = FakeGroups(description=dataclasses.replace(describe("image"), shows_previews=True))
    fields = {**GOOD, "partial_images": 2, "stream": True, "n": 2, "output_format": "webp"}
    as_form = {"data": {name: str(value).lower() for name, value in fields.items()}, "files": {"image": FILE}}
    async with opened(groups, tmp_path) as client:
        response = await client.post(f"/v1/images/{route}", **(as_form if route == "edits" else {"json": fields}))
    frames = [frame.split("\n") for frame in response.text.split("\n\n") if "partial_image\n" in frame]
    assert {name for name, _ in frames} == {f"event: {kind}.partial_image"}
    events = [json.loads(data.removeprefix("data: ")) for _, data in frames]
    places = [(event["image_index"], event["partial_image_index"]) for event in events]
    assert places == [(0, 0), (0, 1), (1, 0), (1, 1)]
    shown = {"b64_json": "cHJldmlldw==", "size": "32x32", "output_format": "webp", "background": "opaque"}
    assert {name: events[0][name] for name in shown} == shown
    assert events[0]["type"] == f"{kind}.partial_image"


async def test_previews_are_refused_by_a_pipeline_that_shows_none(client):
    response = await client.post("/v1/images/generations", json={**GOOD, "partial_images": 2, "stream": True})
    assert "WanPipeline shows no previews" in check_error(response, 400, "partial_images")["message"]


async def test_previews_need_a_stream(client):
    response = await client.post("/v1/images/generations", json={**GOOD, "partial_images": 2})
    assert "stream" in check_error(response, 400)["message"]


KEYED = {"Idempotency-Key": "once"}


async def ask_once(client, **fields):
    return await client.post("/v1/images/generations", json={"prompt": "a red circle", **fields}, headers=KEYED)


async def test_request_sent_again_under_its_key_is_made_once_and_answered_alike(client, groups):
    first, second = await asyncio.gather(ask_once(client), ask_once(client))
    third = await ask_once(client)
    assert [answer.status_code for answer in (first, second, third)] == [200, 200, 200]
    assert first.json()["data"] == second.json()["data"] == third.json()["data"]
    assert len(groups.seeds) == 1
    assert first.json()["data"][0]["seed"] == groups.seeds[0]
    assert (await ask_once(client, n=2)).status_code == 409


async def test_request_whose_connection_is_gone_is_there_under_its_key(tmp_path):
    gate = asyncio.Event()
    groups = FakeGroups(gate=gate)
    async with opened(groups, tmp_path) as client:
        leaver = asyncio.create_task(ask_once(client))
        await groups.begun.wait()
        leaver.cancel()
        await asyncio.wait({leaver})
        gate.set()
        answer = await ask_once(client)
    assert (answer.status_code, len(groups.seeds)) == (200, 1)


@pytest.mark.parametrize(
    ("failures", "status", "code"),
    [
        ([CallOutOfMemoryError("no memory")], 500, "out_of_memory"),
        ([InvalidCallError("takes no argument")], 400, "invalid_value"),
        ([GroupDiedError("gone") for _ in range(3)], 422, "request_kills_groups"),
    ],
)
async def test_failure_under_a_key_has_its_own_status_and_stays(tmp_path, failures, status, code):
    async with opened(FakeGroups(failures=failures), tmp_path) as client:
        for _ in range(2):
            answer = await ask_once(client)
            assert check_error(answer, status)["code"] == code
            assert answer.headers["x-should-retry"] == "false"


async def test_what_takes_longer_than_a_request_may_goes_on_under_its_key(tmp_path):
    gate = asyncio.Event()
    async with opened(FakeGroups(gate=gate), tmp_path, request_timeout_s=0.1) as client:
        answer = await ask_once(client)
        assert check_error(answer, 504)["code"] == "still_running"
        assert "x-should-retry" not in answer.headers
        gate.set()

        async def is_there():
            return (await ask_once(client)).status_code == 200

        await wait_until(is_there)


async def test_events_cannot_be_had_twice(client, groups):
    check_error(await ask_once(client, stream=True), 400, "stream")
    assert groups.seeds == []
