"""When the official client tries again by itself, and when not: as the service tells it."""

import asyncio
from contextlib import asynccontextmanager

import httpx2  # the client's own HTTP library
import openai
import pytest

from deployments.schemas import ImageRequest
from tests.unit.deployments.fakes import FakeGroups, make_service, open_client
from workers.errors import CallError


@asynccontextmanager
async def official_client(service, folder, seen):
    """The client in front of the app in this process; `seen` gets the status of each answer."""
    async with open_client(service, folder) as opened:

        async def note(response):
            seen.append(response.status_code)

        transport = httpx2.ASGITransport(opened._transport.app, raise_app_exceptions=False)
        http = openai.DefaultAsyncHttpxClient(transport=transport, event_hooks={"response": [note]})
        async with openai.AsyncOpenAI(
            base_url="http://test/v1", api_key="none", http_client=http, max_retries=3
        ) as client:
            yield client


async def test_full_queue_is_tried_again_after_the_time_that_the_service_says(tmp_path):
    gate, seen = asyncio.Event(), []
    service = make_service(FakeGroups(gate=gate), max_queued_requests=1)
    async with official_client(service, tmp_path, seen) as client:
        first = asyncio.create_task(service.generate(ImageRequest(prompt="a")))
        await asyncio.sleep(0)
        second = asyncio.create_task(client.images.generate(prompt="b", extra_body={"seed": 2}))
        async with asyncio.timeout(60):
            while not seen:
                await asyncio.sleep(0.01)
            gate.set()
            answer = await second
            await first
    assert answer.data[0].seed == 2
    assert seen[0] == 429
    assert (seen[-1], set(seen[:-1])) == (200, {429})


@pytest.mark.parametrize(
    ("failure", "arguments", "status", "error"),
    [
        (None, {"prompt": " "}, 400, openai.BadRequestError),
        (None, {"prompt": "a", "model": "none"}, 404, openai.NotFoundError),
        (CallError("the model broke"), {"prompt": "a"}, 500, openai.InternalServerError),
    ],
)
async def test_what_a_retry_cannot_help_is_asked_once(tmp_path, failure, arguments, status, error):
    seen = []
    service = make_service(FakeGroups(failures=[failure] if failure else []))
    async with official_client(service, tmp_path, seen) as client:
        with pytest.raises(error):
            await client.images.generate(**arguments)
    assert seen == [status]
