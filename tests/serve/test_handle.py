"""The real app by Python handle, as programs on the cluster call it."""

import io

import av
import psutil
import pytest
from PIL import Image

from deployments.answers import CompletedEvent
from deployments.errors import BadRequestError
from deployments.exposure import running_http_host
from deployments.schemas import ImageRequest, VideoRequest
from tests.serve.processes import wait_until
from tests.serve.test_failures import QUICK, rank_pids


def test_picture_by_handle(app):
    request = ImageRequest(prompt="a blue square", seed=5, num_inference_steps=2)
    answer = app.handle.generate.remote(request).result(timeout_s=60)
    assert answer.data[0].seed == 5
    assert Image.open(io.BytesIO(answer.data[0].content)).size == (64, 64)


def test_video_by_handle_streams_progress_then_an_mp4(app):
    request = VideoRequest(prompt="a blue square moving left", seed=5, num_frames=9, num_inference_steps=2)
    *progress, last = app.handle.options(stream=True).stream.remote(request)
    assert [event.step for event in progress if event.stage == "denoise"] == [0, 1, 2]
    assert isinstance(last, CompletedEvent)
    with av.open(io.BytesIO(last.content)) as container:
        assert len(list(container.decode(video=0))) == 9


def test_error_by_handle_is_typed(app):
    with pytest.raises(BadRequestError, match="multiples of"):
        app.handle.generate.remote(ImageRequest(prompt="a", size="63x64")).result(timeout_s=60)


async def test_handle_call_can_be_awaited(app):
    answer = await app.handle.generate.remote(ImageRequest(prompt="a blue square", seed=5, num_inference_steps=2))
    assert answer.data[0].seed == 5


def cpu_seconds_of_ranks():
    return sum(psutil.Process(pid).cpu_times().user for pid in rank_pids())


@pytest.mark.parametrize("method", ["generate", "stream"])
def test_cancelling_the_response_frees_the_group(app, http, method):
    before = cpu_seconds_of_ranks()
    handle = app.handle.options(stream=True) if method == "stream" else app.handle
    response = getattr(handle, method).remote(ImageRequest(prompt="a red circle", num_inference_steps=5000))
    try:
        if method == "stream":
            assert any(event.stage == "denoise" for event in response)
        wait_until(lambda: cpu_seconds_of_ranks() > before + 0.5, "the ranks at work", timeout_s=60)
    finally:
        response.cancel()
    # 5000 steps take minutes: an answer within seconds shows that they ended.
    assert http.post("/v1/images/generations", json=QUICK, timeout=20).status_code == 200


def test_serve_tells_where_it_listens(app):
    assert running_http_host() == "127.0.0.1"
