"""Every request of `threats.THREATS` is refused with an error object, and the next good one is answered."""

import asyncio
import dataclasses
import json
from urllib.parse import unquote

import pytest
import pytest_asyncio

from deployments.front import open_front
from deployments.http_api import build_api
from deployments.keys import make_key
from deployments.settings import StateSettings
from tests.unit.deployments.fakes import WAN, FakeGroups, make_service
from tests.unit.deployments.test_http_api import LIMITS
from tests.unit.deployments.threats import (
    BEGIN,
    END,
    GENERATIONS,
    OTHERS_JOB,
    PAGE,
    RESULT,
    THREATS,
    Sent,
    post_json,
    table,
)  # fmt: skip

pytestmark = pytest.mark.asyncio(loop_scope="module")

GOOD = {"prompt": "a red circle", "seed": 3}
ALICE, ALICE_KEPT = make_key("alice")
BOB, BOB_KEPT = make_key("bob")
TAKES_EDITS = dataclasses.replace(WAN, accepted_arguments=(*WAN.accepted_arguments, "image", "mask_image"))


@dataclasses.dataclass
class Answer:
    """What an ASGI app answered."""

    status: int = 0
    headers: dict = dataclasses.field(default_factory=dict)
    content: bytes = b""

    def json(self):
        return json.loads(self.content)


async def send_in_process(api, sent: Sent, key: str = BOB) -> Answer:
    """Hands the request to the app as a server would, byte for byte: clients repair much of what is tested here."""
    sent, answer = sent.with_defaults(("host", "test"), ("authorization", f"Bearer {key}")), Answer()
    path, _, query = sent.target.partition("?")
    chunks = list(sent.chunks) or [b""]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": sent.method, "scheme": "http",
        "path": unquote(path), "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in sent.headers],
        "client": ("127.0.0.1", 1), "server": ("test", 80), "state": {},
    }  # fmt: skip

    async def receive():
        if not chunks:
            await asyncio.Event().wait()
        body = chunks.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(chunks) or sent.stalls}

    async def note(message):
        if message["type"] == "http.response.start":
            answer.status, answer.headers = message["status"], dict(message["headers"])
        answer.content += message.get("body", b"")

    async with asyncio.timeout(30):
        await api(scope, receive, note)
    return answer


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(tmp_path_factory):
    state = StateSettings(folder=str(tmp_path_factory.mktemp("state")))
    service = make_service(
        FakeGroups(description=TAKES_EDITS), limits={**LIMITS, "body_timeout_s": 0.2}, state=state,
        api_keys=[ALICE_KEPT.model_dump(), BOB_KEPT.model_dump()],
    )  # fmt: skip
    await service.prepare()
    front = await open_front(service)
    yield build_api(service, front.desk, front.keys)
    await front.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def places(api):
    """A result that anybody may fetch, and a job of Alice's."""
    result = await send_in_process(api, post_json({**GOOD, "response_format": "url"}), ALICE)
    job = await send_in_process(api, post_json({**GOOD, "background_job": True}), ALICE)
    return {RESULT: "/results/" + result.json()["data"][0]["url"].rpartition("/")[2], OTHERS_JOB: job.json()["id"]}


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.name)
async def test_bad_request_gets_its_error_object_and_the_next_good_one_its_picture(api, places, threat):
    answer = await send_in_process(api, threat.sent.to(places))
    assert answer.status == threat.status, answer.content
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.json()["error"]["message"]
    good = await send_in_process(api, post_json(GOOD))
    assert (good.status, good.json()["data"][0]["seed"]) == (200, 3)


async def test_nothing_was_deleted_or_cancelled_for_others(api, places):
    answer = await send_in_process(api, Sent("GET", f"/v1/images/jobs/{places[OTHERS_JOB]}"), ALICE)
    assert answer.status == 200
    assert answer.json()["error"] is None


async def test_good_pictures_pass(api, places):
    """What the cases of broken pictures are made from is taken when it is whole."""
    from tests.unit.deployments.threats import file, png, post_form, text

    whole = post_form(text("prompt"), text("seed", "3"), file(png()), file(png(), name="mask", filename="m.png"))
    answer = await send_in_process(api, whole)
    assert answer.status == 200, answer.content


async def test_page_shows_the_list():
    page = PAGE.read_text("utf-8")
    assert BEGIN + table() + END in page, "run python -m tests.unit.deployments.threats"
    assert len(THREATS) >= 46
    assert len({threat.name for threat in THREATS}) == len(THREATS)
    assert GENERATIONS in {threat.sent.target for threat in THREATS}
