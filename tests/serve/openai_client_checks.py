"""What the official client does with the service, for any version of it: `python openai_client_checks.py URL`.

A program of its own, so that it can run with a client other than the installed one.
"""

import asyncio
import base64
import io
import sys
import time

import av
import openai
import pytest
from PIL import Image

PICTURE = {"prompt": "a red circle", "model": "shapes", "extra_body": {"seed": 3, "num_inference_steps": 4}}
VIDEO = {
    "prompt": "a blue square moving left", "model": "shapes", "size": "64x64",
    "extra_body": {"seed": 5, "num_inference_steps": 2, "num_frames": 5},
}  # fmt: skip


def check_pictures(client: openai.OpenAI) -> str:
    answer = client.images.generate(**PICTURE)
    picture = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json)))
    assert (picture.size, answer.size, answer.data[0].seed) == ((64, 64), "64x64", 3)
    twice = client.images.generate(**PICTURE, n=2, output_format="webp", response_format="url")
    assert [item.url.startswith("http") for item in twice.data] == [True, True]
    return answer.data[0].b64_json


def check_stream(client: openai.OpenAI, expected: str) -> None:
    events = list(client.images.generate(**PICTURE, stream=True, partial_images=2))
    previews = [event for event in events if event.type == "image_generation.partial_image"]
    assert [event.partial_image_index for event in previews] == [0, 1]
    assert (events[-1].type, events[-1].b64_json) == ("image_generation.completed", expected)


def check_retry(client: openai.OpenAI) -> None:
    """The same POST again, as a client sends it that heard no answer: no other seed is drawn, nothing is made twice."""
    once = {"prompt": "a red circle", "extra_body": {"num_inference_steps": 2}}
    headers = {"Idempotency-Key": f"picture of {openai.__version__} {time.time_ns()}"}
    first, second = (client.images.generate(**once, extra_headers=headers) for _ in range(2))
    assert (first.data[0].seed, first.data[0].b64_json) == (second.data[0].seed, second.data[0].b64_json)


def check_videos(client: openai.OpenAI) -> None:
    video = client.videos.create_and_poll(**VIDEO, poll_interval_ms=100)
    assert (video.status, video.progress, video.error) == ("completed", 100, None)
    content = client.videos.download_content(video.id).read()
    with av.open(io.BytesIO(content)) as container:
        assert len(list(container.decode(video=0))) == 5
    assert client.videos.download_content(video.id, variant="thumbnail").read()[8:12] == b"WEBP"
    assert video.id in [each.id for each in client.videos.list(limit=5)]
    assert client.videos.delete(video.id).deleted


def check_errors(client: openai.OpenAI) -> None:
    cases = [
        (openai.NotFoundError, "model_not_found", lambda: client.images.generate(prompt="a", model="dall-e-3")),
        (openai.BadRequestError, None, lambda: client.images.generate(prompt="a", size="63x64")),
        (openai.NotFoundError, "not_found", lambda: client.videos.retrieve("video_none")),
        (openai.BadRequestError, "limit_exceeded", lambda: client.images.generate(prompt="a", n=1000)),
    ]
    for kind, code, call in cases:
        with pytest.raises(kind) as caught:
            call()
        assert code in (None, caught.value.code), caught.value
        assert caught.value.response.headers["x-should-retry"] == "false"


def check_edit(client: openai.OpenAI) -> None:
    """This pipeline takes no picture; the client's form is read all the same, and the answer says so."""
    picture = io.BytesIO()
    Image.new("RGB", (64, 64)).save(picture, format="PNG")
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(image=("a.png", picture.getvalue(), "image/png"), prompt="a")
    assert caught.value.param == "image"


async def check_async(url: str, expected: str) -> None:
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=100) as client:
        answer = await client.images.generate(**PICTURE)
        assert answer.data[0].b64_json == expected
        stream = await client.images.generate(**PICTURE, stream=True)
        assert [event async for event in stream][-1].b64_json == expected
        video = await client.videos.create_and_poll(**VIDEO, poll_interval_ms=100)
        assert (await client.videos.download_content(video.id)).content[4:8] == b"ftyp"


def main() -> None:
    """All checks; says the client's version at the end."""
    url = f"{sys.argv[1]}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=2, timeout=100) as client:
        assert [model.id for model in client.models.list()] == ["shapes"]
        picture = check_pictures(client)
        check_stream(client, picture)
        check_retry(client)
        check_videos(client)
        check_errors(client)
        check_edit(client)
    asyncio.run(check_async(url, picture))
    print(openai.__version__)


if __name__ == "__main__":
    main()
