import json

import pytest
import pytest_asyncio

from tests.unit.deployments.fakes import FakeGroups, make_service, open_client
from workers.errors import CallError

pytestmark = pytest.mark.asyncio(loop_scope="module")

GOOD = {"prompt": "a red circle", "seed": 3}
LIMITS = {"max_steps": 5000, "max_pixels": 4096, "max_images": 2, "max_prompt_characters": 100, "max_body_bytes": 2048}

BAD = [
    ({}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": "   "}, "prompt"),
    ({"prompt": 7}, "prompt"),
    ({"prompt": "a" * 101}, "prompt"),
    ({"prompt": "a", "n": 0}, "n"),
    ({"prompt": "a", "n": 3}, "n"),
    ({"prompt": "a", "n": "2"}, "n"),
    ({"prompt": "a", "n": True}, "n"),
    ({"prompt": "a", "size": "big"}, "size"),
    ({"prompt": "a", "size": "0x64"}, "size"),
    ({"prompt": "a", "size": "64x-1"}, "size"),
    ({"prompt": "a", "size": "41x32"}, "size"),
    ({"prompt": "a", "size": "999999x999999"}, "size"),
    ({"prompt": "a", "size": 64}, "size"),
    ({"prompt": "a", "seed": -1}, "seed"),
    ({"prompt": "a", "seed": 2**80}, "seed"),
    ({"prompt": "a", "seed": 1.5}, "seed"),
    ({"prompt": "a", "num_inference_steps": 0}, "num_inference_steps"),
    ({"prompt": "a", "num_inference_steps": 5001}, "num_inference_steps"),
    ({"prompt": "a", "guidance_scale": "high"}, "guidance_scale"),
    ({"prompt": "a", "guidance_scale": float("nan")}, "guidance_scale"),
    ({"prompt": "a", "guidance_scale": float("inf")}, "guidance_scale"),
    ({"prompt": "a", "guidance_scale": -1}, "guidance_scale"),
    ({"prompt": "a", "response_format": "link"}, "response_format"),
    ({"prompt": "a", "output_compression": 101, "output_format": "jpeg"}, "output_compression"),
    ({"prompt": "a", "output_compression": 50}, None),
    ({"prompt": "a", "partial_images": 2}, None),
    ({"prompt": "a", "partial_images": 4}, "partial_images"),
    ({"prompt": "a", "background": "transparent"}, "background"),
    ({"prompt": "a", "stream": True, "response_format": "url"}, None),
    ({"prompt": "a", "stream": True, "background_job": True}, None),
    ({"prompt": "a", "width": 32}, None),
    ({"prompt": "a", "width": 32, "height": 32, "size": "32x32"}, None),
    ({"prompt": "a", "width": 0, "height": 32}, "width"),
    ({"prompt": "a", "true_cfg_scale": 4.0}, "true_cfg_scale"),
    ({"prompt": "a", "guidance_scale_2": 4.0}, "guidance_scale_2"),
    ({"prompt": "a", "flow_shift": 0}, "flow_shift"),
    ({"prompt": "a", "extra_args": {"eta": 1.0}}, "extra_args"),
    ({"prompt": "a", "extra_args": {"callback": "x"}}, "extra_args"),
    ({"prompt": "a", "extra_args": {"eta": [1]}}, "extra_args.eta.bool"),
    ({"prompt": "a", "output_format": "gif"}, "output_format"),
    ({"prompt": "a", "stream": "yes"}, "stream"),
    ({"prompt": "a", "colour": "red"}, "colour"),
    ([], None),
    ("a", None),
    (None, None),
]
BAD_BODIES = [
    b"",
    b"{",
    b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}",
    b"[" * 2000,
    b'{"prompt": "\\ud800"}',
    b'{"prompt": "a", "seed": 1e400}',
    b'{"prompt": "a", "seed": ' + b"9" * 1900 + b"}",
    b"\xff\xfe",
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory):
    service = make_service(FakeGroups(), limits=LIMITS)
    await service.prepare()
    async with open_client(service, tmp_path_factory.mktemp("state")) as client:
        yield client


def check_error(response, status, param=None):
    error = response.json()["error"]
    assert response.status_code == status, error
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert error["message"]
    return error


async def check_good(client):
    response = await client.post("/v1/images/generations", json=GOOD)
    assert response.status_code == 200
    assert response.json()["data"][0]["seed"] == 3


@pytest.mark.parametrize(("body", "param"), BAD)
async def test_bad_request_gets_an_error_object_and_the_next_good_one_its_picture(client, body, param):
    content = json.dumps(body)
    headers = {"content-type": "application/json"}
    check_error(await client.post("/v1/images/generations", content=content, headers=headers), 400, param)
    await check_good(client)


@pytest.mark.parametrize("body", BAD_BODIES)
async def test_unreadable_body_gets_a_400(client, body):
    headers = {"content-type": "application/json"}
    response = await client.post("/v1/images/generations", content=body, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    await check_good(client)


async def test_body_of_another_type_gets_a_400(client):
    response = await client.post("/v1/images/generations", content=b"prompt=a", headers={"content-type": "text/plain"})
    check_error(response, 400, "content-type")


@pytest.mark.parametrize("announced", [True, False])
async def test_body_above_the_limit_gets_a_413(client, announced):
    async def chunks():
        for _ in range(5):
            yield b" " * 1000

    content = b" " * 5000 if announced else chunks()
    response = await client.post("/v1/images/generations", content=content)
    assert check_error(response, 413)["code"] == "body_too_large"
    await check_good(client)


async def test_size_error_names_the_multiple(client):
    response = await client.post("/v1/images/generations", json={**GOOD, "size": "40x32"})
    assert "multiples of 16" in check_error(response, 400, "size")["message"]


async def test_unknown_model_route_and_method_get_error_objects(client):
    response = await client.post("/v1/images/generations", json={**GOOD, "model": "dall-e-3"})
    assert check_error(response, 404, "model")["code"] == "model_not_found"
    check_error(await client.get("/v1/nothing"), 404)
    check_error(await client.get("/v1/images/generations"), 405)


async def test_stream_tells_progress_then_the_picture_then_ends(client):
    response = await client.post("/v1/images/generations", json={**GOOD, "stream": True, "n": 2})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]
    kinds = [event["type"].removeprefix("image_generation.") for event in events]
    assert kinds == ["progress", "progress", "completed", "progress", "completed"]
    assert [event["seed"] for event in events if "seed" in event] == [3, 4]
    assert "[DONE]" not in response.text


async def test_error_in_the_middle_of_a_stream_is_its_last_event(tmp_path):
    service = make_service(FakeGroups(failures=[CallError("broken")]))
    async with open_client(service, tmp_path) as client:
        response = await client.post("/v1/images/generations", json={**GOOD, "stream": True})
    *_, name, data = [line for line in response.text.splitlines() if line]
    assert name == "event: error"
    assert json.loads(data[6:])["error"]["code"] == "generation_failed"


async def test_wrong_stream_request_gets_its_own_status(client):
    check_error(await client.post("/v1/images/generations", json={**GOOD, "stream": True, "size": "1x1"}), 400, "size")


async def test_unexpected_error_says_nothing_of_the_inside(tmp_path):
    service = make_service(FakeGroups(failures=[RuntimeError("/secret/path")]))
    async with open_client(service, tmp_path) as client:
        response = await client.post("/v1/images/generations", json=GOOD)
    assert "secret" not in check_error(response, 500)["message"]


async def test_models_plan_live_and_health(client):
    assert [model["id"] for model in (await client.get("/v1/models")).json()["data"]] == ["shapes"]
    assert (await client.get("/plan")).json()["pipeline_class"] == "WanPipeline"
    assert (await client.get("/live")).status_code == 200
    assert (await client.get("/health")).json()["status"] == "ok"


async def test_health_is_503_without_a_group(tmp_path):
    groups = FakeGroups()
    groups.num_groups = 0
    async with open_client(make_service(groups), tmp_path) as client:
        assert (await client.get("/health")).status_code == 503
        assert (await client.get("/live")).status_code == 200
