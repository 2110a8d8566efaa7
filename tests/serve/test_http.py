"""The real app over HTTP: client -> proxy -> ingress -> group -> ranks."""

import base64
import io
import json

import numpy as np
import openai
import psutil
import pytest
from openai.types.image_gen_partial_image_event import ImageGenPartialImageEvent
from PIL import Image

from planner.plan import Plan
from tests.unit.deployments.test_http_api import BAD, BAD_BODIES

RED_CIRCLE = "a red circle on a white background"
JSON = {"content-type": "application/json"}
QUICK = {"prompt": "a red circle", "seed": 1, "num_inference_steps": 1}


def decode(b64_json):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64_json))))


def test_openai_client_gets_the_picture_of_its_prompt(app):
    answer = app.client().images.generate(model="shapes", prompt=RED_CIRCLE, size="64x64", extra_body={"seed": 1})
    pixels = decode(answer.data[0].b64_json).astype(int)
    assert pixels.shape == (64, 64, 3)
    assert (pixels[:4, :4] > 200).all(), "the background is white"
    is_red = (pixels[..., 0] > 150) & (pixels[..., 1] < 100) & (pixels[..., 2] < 100)
    assert 50 < is_red.sum() < 3000, "there is something red, and not everywhere"


def test_stream_tells_every_denoising_step_then_the_same_picture(app):
    client = app.client()
    arguments = {"prompt": RED_CIRCLE, "extra_body": {"seed": 3, "num_inference_steps": 5}}
    events = list(client.images.generate(stream=True, **arguments))
    steps = [event.step for event in events if event.type.endswith("progress") and event.stage == "denoise"]
    assert steps == [0, 1, 2, 3, 4, 5]
    assert events[-1].type == "image_generation.completed"
    assert events[-1].b64_json == client.images.generate(**arguments).data[0].b64_json


def test_previews_come_in_openais_events_and_do_not_change_the_picture(app):
    client = app.client()
    arguments = {"prompt": RED_CIRCLE, "extra_body": {"seed": 3, "num_inference_steps": 5}}
    events = list(client.images.generate(stream=True, partial_images=3, **arguments))
    previews = [event for event in events if event.type == "image_generation.partial_image"]
    assert [event.partial_image_index for event in previews] == [0, 1, 2]
    assert {type(event) for event in previews} == {ImageGenPartialImageEvent}
    last = events[-1]
    assert last.b64_json == client.images.generate(**arguments).data[0].b64_json
    picture = decode(last.b64_json).astype(int)
    distances = [np.abs(decode(event.b64_json) - picture).mean() for event in previews]
    assert distances[0] > distances[-1] > 0, "they come closer to the picture"


def test_n_pictures_have_consecutive_seeds_and_each_can_be_made_again(app, http):
    many = http.post("/v1/images/generations", json={**QUICK, "n": 2}).json()["data"]
    again = http.post("/v1/images/generations", json={**QUICK, "seed": 2}).json()["data"]
    assert [item["seed"] for item in many] == [1, 2]
    assert many[1]["b64_json"] == again[0]["b64_json"] != many[0]["b64_json"]


def test_flow_shift_changes_the_picture_of_its_call_only(http):
    body = {**QUICK, "num_inference_steps": 3}
    before, shifted, after = [
        http.post("/v1/images/generations", json={**body, **more}).json()["data"][0]["b64_json"]
        for more in ({}, {"flow_shift": 8.0}, {})
    ]
    assert before == after != shifted


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_formats_and_urls(http, output_format):
    body = {**QUICK, "output_format": output_format, "output_compression": 50}
    inline = http.post("/v1/images/generations", json=body).json()["data"][0]["b64_json"]
    assert Image.open(io.BytesIO(base64.b64decode(inline))).format == output_format.upper()
    url = http.post("/v1/images/generations", json={**body, "response_format": "url"}).json()["data"][0]["url"]
    response = http.get(url)
    assert (response.content, response.headers["content-type"]) == (base64.b64decode(inline), f"image/{output_format}")


def test_models_live_health_and_plan(http, app):
    assert [model.id for model in app.client().models.list()] == ["shapes"]
    assert http.get("/live").json()["status"] == "ok"
    assert http.get("/health").status_code == 200
    plan = Plan.model_validate(http.get("/plan").json())
    assert (plan.group.num_ranks, plan.group.cfg_degree) == (2, 2)


def test_bad_requests_get_error_objects_and_good_ones_still_their_picture(http):
    bodies = [json.dumps(body).encode() for body, _ in BAD] + BAD_BODIES
    for body in bodies:
        response = http.post("/v1/images/generations", content=body, headers=JSON)
        error = response.json()["error"]
        assert response.status_code == 400, (body[:80], error)
        assert set(error) == {"message", "type", "param", "code"}
        good = http.post("/v1/images/generations", json=QUICK)
        assert good.status_code == 200, body[:80]


def test_body_above_the_limit_is_refused(http):
    response = http.post("/v1/images/generations", content=b" " * (2 << 20), headers=JSON)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"


def test_client_sees_typed_errors(app):
    client = app.client()
    with pytest.raises(openai.NotFoundError) as caught:
        client.images.generate(prompt="a", model="dall-e-3")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="multiples of"):
        client.images.generate(prompt="a", size="63x64")
    with pytest.raises(openai.NotFoundError):
        client.get("/nothing", cast_to=object)


def test_http_listens_on_loopback_only(app):
    port = int(app.url.rpartition(":")[2])
    listening = {c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port}
    assert listening == {"127.0.0.1"}
