"""Whatever fits the OpenAPI document, and what nearly does, gets an answer that the document knows, and no failure."""

import asyncio
import dataclasses
from datetime import timedelta

import httpx
import pytest
import requests
import schemathesis.openapi
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from deployments.front import open_front
from deployments.http_api import build_api
from deployments.settings import StateSettings
from tests.unit.deployments.fakes import WAN, FakeGroups, make_service
from tests.unit.deployments.test_threats import send_in_process
from tests.unit.deployments.threats import Sent

_TAKES_ALL = dataclasses.replace(
    WAN,
    accepted_arguments=(*WAN.accepted_arguments, "image", "mask_image", "guidance_scale_2", "true_cfg_scale"),
    size_multiple=1,
    takes_flow_shift=True,
)
_OPERATIONS = (
    "POST /v1/images/generations", "POST /v1/images/edits", "GET /v1/images/jobs/{image_id}",
    "DELETE /v1/images/jobs/{image_id}", "POST /v1/images/jobs/{image_id}/cancel", "GET /results/{name}",
    "POST /v1/videos", "GET /v1/videos", "GET /v1/videos/{video_id}", "DELETE /v1/videos/{video_id}",
    "POST /v1/videos/{video_id}/cancel", "GET /v1/videos/{video_id}/content", "GET /v1/models", "GET /live",
    "GET /health", "GET /plan", "GET /metrics",
)  # fmt: skip
CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance]

# Those whose input can be wrong: any text is an id.
_TYPED = (
    "POST /v1/images/generations", "POST /v1/images/edits", "POST /v1/videos", "GET /v1/videos",
    "GET /v1/videos/{video_id}/content",
)  # fmt: skip


@pytest.fixture(scope="module")
def loop():
    """The loop that the service lives on; it runs while a request does."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def api(loop, tmp_path_factory):
    service = make_service(
        FakeGroups(description=_TAKES_ALL), state=StateSettings(folder=str(tmp_path_factory.mktemp("state")))
    )
    loop.run(service.prepare())
    front = loop.run(open_front(service))
    yield build_api(service, front.desk, front.keys)
    loop.run(front.close())


@pytest.fixture(scope="module")
def schema(api):
    return schemathesis.openapi.from_dict(api.openapi())


def send(loop, api, case) -> httpx.Response:
    """One generated request, as the client that schemathesis has in mind would write it."""
    prepared = requests.Request(**case.as_transport_kwargs(base_url="http://test")).prepare()
    content = prepared.body.encode() if isinstance(prepared.body, str) else prepared.body
    headers = tuple((name.lower(), _text(value)) for name, value in prepared.headers.items())
    sent = Sent(prepared.method, prepared.path_url, headers, (content,) if content else ())
    answer = loop.run(send_in_process(api, sent))
    request = httpx.Request(prepared.method, prepared.url)
    response = httpx.Response(answer.status, headers=[*answer.headers.items()], content=answer.content, request=request)
    response.elapsed = timedelta(0)  # which the checks want to know, and only httpx's own transports set
    return response


def _text(value) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def test_every_route_is_tried(schema):
    assert sorted(result.ok().label for result in schema.get_all_operations()) == sorted(_OPERATIONS)


def test_form_of_edits_is_documented_by_the_names_that_are_read(api):
    body = api.openapi()["paths"]["/v1/images/edits"]["post"]["requestBody"]
    schema = body["content"]["multipart/form-data"]["schema"]
    assert {"image", "mask"} < set(schema["properties"])
    assert "images" not in schema["properties"]
    assert schema["required"] == ["prompt", "image"]


@pytest.mark.parametrize(
    ("label", "mode"),
    [(label, GenerationMode.POSITIVE) for label in _OPERATIONS]
    + [(label, GenerationMode.NEGATIVE) for label in _TYPED],
    ids=str,
)
def test_any_request_gets_a_documented_answer(loop, api, schema, label, mode):
    operation = schema.find_operation_by_label(label)

    @settings(
        max_examples=12, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case):
        case.validate_response(send(loop, api, case), checks=CHECKS)

    check()
