"""Videos of the real app by the real client: from `create` to a file that plays."""

import io

import av
import httpx
import openai
import pytest
from PIL import Image

from tests.serve.processes import wait_until
from tests.serve.test_failures import QUICK

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
MOVING = {"prompt": "a blue square moving left", "extra_body": {"seed": 5, "num_inference_steps": 2, "num_frames": 9}}
LONG = {"prompt": "a blue square moving left", "extra_body": {"num_inference_steps": 5000, "num_frames": 9}}


def poll(client, video, timeout_s=90):
    wait_until(
        lambda: client.videos.retrieve(video.id).status in ("completed", "failed"), "a video", timeout_s=timeout_s
    )
    return client.videos.retrieve(video.id)


def test_client_creates_polls_lists_downloads_and_deletes(app):
    client = app.client()
    video = client.videos.create_and_poll(model="shapes", size="64x64", poll_interval_ms=200, **MOVING)
    assert (video.status, video.progress, video.size, video.seconds) == ("completed", 100, "64x64", "1.12")
    content = client.videos.download_content(video.id).read()
    with av.open(io.BytesIO(content)) as container:
        assert len(list(container.decode(video=0))) == 9
    thumbnail = client.videos.download_content(video.id, variant="thumbnail").read()
    assert Image.open(io.BytesIO(thumbnail)).size == (64, 64)
    again = poll(client, client.videos.create(**MOVING))
    assert client.videos.download_content(again.id).read() == content, "the same seed, the same file"
    assert [v.id for v in client.videos.list(limit=1)][:2] == [again.id, video.id], "the client turns pages"
    deleted = client.videos.delete(video.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (video.id, True, "video.deleted")
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)


async def test_async_client_creates_and_downloads(app):
    async with openai.AsyncOpenAI(base_url=f"{app.url}/v1", api_key="none", max_retries=0) as client:
        video = await client.videos.create_and_poll(poll_interval_ms=200, **MOVING)
        assert video.status == "completed"
        assert len((await client.videos.download_content(video.id)).content) > 500


def test_player_gets_ranges(app, http):
    video = poll(app.client(), app.client().videos.create(**MOVING))
    path = f"/v1/videos/{video.id}/content"
    whole = http.get(path).content
    part = http.get(path, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(whole)}"


def test_progress_is_true_and_deleting_a_running_video_frees_the_group(app, http):
    client = app.client()
    video = client.videos.create(**LONG)
    wait_until(lambda: client.videos.retrieve(video.id).progress >= 1, "the first percent", timeout_s=90)
    running = client.videos.retrieve(video.id)
    assert (running.status, running.progress < 99) == ("in_progress", True)
    client.videos.delete(video.id)
    # The next call must not wait for the thousands of steps that were left; 5000 steps take minutes.
    assert http.post("/v1/images/generations", json=QUICK, timeout=20).status_code == 200


def test_cancelled_video_is_failed_with_a_code(app, http):
    client = app.client()
    video = client.videos.create(**LONG)
    wait_until(lambda: client.videos.retrieve(video.id).status == "in_progress", "a beginning", timeout_s=90)
    assert http.post(f"/v1/videos/{video.id}/cancel").status_code == 200
    ended = client.videos.retrieve(video.id)
    assert (ended.status, ended.error.code) == ("failed", "cancelled")
    assert http.post("/v1/images/generations", json=QUICK, timeout=20).status_code == 200


def test_idempotency_key_holds_over_replicas(app):
    """Two ingress replicas answer in turn; whichever gets the retry knows the first."""
    headers = {"Idempotency-Key": "one-video"}
    ids = {app.client().videos.create(extra_headers=headers, **MOVING).id for _ in range(6)}
    assert len(ids) == 1


def test_client_sees_typed_errors_of_videos(app):
    client = app.client()
    with pytest.raises(openai.NotFoundError) as missing:
        client.videos.retrieve("video_none")
    assert missing.value.code == "not_found"
    with pytest.raises(openai.NotFoundError) as model:
        client.videos.create(prompt="a", model="sora-2")
    assert model.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as image:
        client.videos.create(prompt="a", input_reference=("a.png", b"x", "image/png"))
    assert image.value.param == "input_reference"
    with pytest.raises(openai.BadRequestError):
        client.videos.create(prompt="a", seconds="-1")


def test_every_answer_echoes_the_request_id_once(http):
    for method, path in (("GET", "/live"), ("GET", "/v1/videos/video_none"), ("POST", "/v1/images/generations")):
        response = http.request(method, path, headers={"x-request-id": "req-123"})
        assert response.headers.get_list("x-request-id") == ["req-123"], path
    assert httpx.get(f"{http.base_url}/live").headers["x-request-id"]
