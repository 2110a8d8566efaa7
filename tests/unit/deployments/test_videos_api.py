"""`/v1/videos` in this process, with groups that answer at once."""

import asyncio
import dataclasses
import io
from contextlib import asynccontextmanager

import pytest
from PIL import Image

from deployments.jobs.results import ResultStorage
from tests.unit.deployments.fakes import WAN, FakeGroups, make_service, open_client, wait_until
from tests.unit.deployments.test_http_api import check_error

GOOD = {"prompt": "a red circle"}
VIDEO_FIELDS = {
    "id", "object", "status", "progress", "created_at", "completed_at", "expires_at", "model", "prompt", "seconds",
    "size", "remixed_from_video_id", "error", "seed",
}  # fmt: skip
TAKES_IMAGES = dataclasses.replace(WAN, accepted_arguments=(*WAN.accepted_arguments, "image"))
PNG = io.BytesIO()
Image.new("RGB", (4, 4)).save(PNG, format="PNG")


@pytest.fixture
def groups():
    return FakeGroups()


@pytest.fixture
async def client(groups, tmp_path):
    async with opened(groups, tmp_path) as client:
        yield client


@asynccontextmanager
async def opened(groups, folder, **settings):
    service = make_service(groups, **settings)
    await service.prepare()
    async with open_client(service, folder) as client:
        yield client


async def finished(client, video_id):
    async def is_over():
        return (await client.get(f"/v1/videos/{video_id}")).json()["status"] in ("completed", "failed")

    await wait_until(is_over)
    return (await client.get(f"/v1/videos/{video_id}")).json()


async def make_video(client, **fields):
    return await finished(client, (await client.post("/v1/videos", json={**GOOD, **fields})).json()["id"])


async def test_video_from_request_to_file(client):
    response = await client.post("/v1/videos", json={**GOOD, "seed": 4, "size": "48x32", "seconds": "2"})
    accepted = response.json()
    assert response.status_code == 200, accepted
    assert set(accepted) == VIDEO_FIELDS
    assert (accepted["status"], accepted["progress"], accepted["model"]) == ("queued", 0, "shapes")
    assert (accepted["seconds"], accepted["size"], accepted["prompt"]) == ("2", "48x32", "a red circle")
    video = await finished(client, accepted["id"])
    assert (video["status"], video["progress"], video["seed"], video["error"]) == ("completed", 100, 4, None)
    assert video["expires_at"] > video["completed_at"] >= video["created_at"]
    content = await client.get(f"/v1/videos/{video['id']}/content")
    assert (content.content, content.headers["content-type"]) == (b"4", "video/mp4")
    thumbnail = await client.get(f"/v1/videos/{video['id']}/content", params={"variant": "thumbnail"})
    assert (thumbnail.content, thumbnail.headers["content-type"]) == (b"thumbnail", "image/webp")


async def test_form_means_the_same_as_json(client, groups):
    form = {"prompt": "a", "seed": "9", "num_frames": "9", "guidance_scale": "2.5", "fps": "8", "size": "32x32"}
    response = await client.post("/v1/videos", files={name: (None, value) for name, value in form.items()})
    assert response.status_code == 200, response.json()
    await finished(client, response.json()["id"])
    request = groups.requests[0]
    assert (request.seed, request.num_frames, request.guidance_scale, request.fps) == (9, 9, 2.5, 8)


async def test_unfinished_video_says_when_to_ask_again(tmp_path):
    async with opened(FakeGroups(gate=asyncio.Event()), tmp_path) as client:
        response = await client.post("/v1/videos", json=GOOD)
        assert int(response.headers["openai-poll-after-ms"]) > 0


async def test_seed_is_drawn_once_and_said_from_the_start(client, groups):
    accepted = (await client.post("/v1/videos", json=GOOD)).json()
    video = await finished(client, accepted["id"])
    assert [accepted["seed"]] == groups.seeds == [video["seed"]]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "seconds": "long"}, "seconds"),
        ({"prompt": "a", "seconds": "0"}, None),
        ({"prompt": "a", "seconds": "4", "num_frames": 9}, None),
        ({"prompt": "a", "seconds": "9999"}, "seconds"),
        ({"prompt": "a", "num_frames": 10**6}, "num_frames"),
        ({"prompt": "a", "fps": 0}, "fps"),
        ({"prompt": "a", "size": "41x32"}, "size"),
        ({"prompt": "a", "model": "sora-2"}, "model"),
        ({"prompt": "a", "input_reference": {"image_url": "http://example.com/a.png"}}, "input_reference"),
        ({"prompt": "a", "input_reference": "/etc/passwd"}, "input_reference"),
        ({"prompt": "a", "n": 2}, "n"),
        ({"prompt": "a", "colour": "red"}, "colour"),
        ([], None),
    ],
)
async def test_wrong_request_is_refused_before_it_is_accepted(client, body, param):
    response = await client.post("/v1/videos", json=body)
    check_error(response, 404 if param == "model" else 400, param)
    assert response.headers["x-should-retry"] == "false"
    assert (await client.get("/v1/videos")).json()["data"] == []


async def test_broken_form_is_a_400(client):
    headers = {"content-type": "multipart/form-data; boundary=x"}
    for content in (b"", b"--x\r\nnonsense"):
        assert (await client.post("/v1/videos", content=content, headers=headers)).status_code == 400


async def test_picture_to_start_from_is_refused_by_a_pipeline_that_takes_none(client):
    response = await client.post("/v1/videos", data=GOOD, files={"input_reference": ("a.png", PNG.getvalue())})
    error = check_error(response, 400, "input_reference")
    assert (error["code"], "WanPipeline" in error["message"]) == ("unsupported", True)


async def test_picture_to_start_from_reaches_a_pipeline_that_takes_one(tmp_path):
    groups = FakeGroups(description=TAKES_IMAGES)
    async with opened(groups, tmp_path) as client:
        broken = await client.post("/v1/videos", data=GOOD, files={"input_reference": ("a.png", b"nonsense")})
        check_error(broken, 400, "input_reference")
        good = await client.post("/v1/videos", data=GOOD, files={"input_reference": ("a.png", PNG.getvalue())})
        await finished(client, good.json()["id"])
    assert groups.requests[0].input_reference == PNG.getvalue()


async def test_idempotency_key_makes_one_video_of_retries_and_refuses_another_request(client, groups):
    headers = {"Idempotency-Key": "once"}
    first, again = [(await client.post("/v1/videos", json=GOOD, headers=headers)).json() for _ in range(2)]
    assert first["id"] == again["id"]
    await finished(client, first["id"])
    assert len(groups.seeds) == 1
    other = await client.post("/v1/videos", json={**GOOD, "seed": 1}, headers=headers)
    assert check_error(other, 409, "Idempotency-Key")["code"] == "idempotency_key_reused"


async def test_list_has_pages(client):
    ids = [(await make_video(client))["id"] for _ in range(3)]
    page = (await client.get("/v1/videos", params={"limit": 2, "order": "asc"})).json()
    assert [video["id"] for video in page["data"]] == ids[:2] == [page["first_id"], page["last_id"]]
    assert page["has_more"] is True
    rest = (await client.get("/v1/videos", params={"after": ids[1], "order": "asc"})).json()
    assert ([video["id"] for video in rest["data"]], rest["has_more"]) == (ids[2:], False)
    newest_first = (await client.get("/v1/videos")).json()
    assert [video["id"] for video in newest_first["data"]] == ids[::-1]
    check_error(await client.get("/v1/videos", params={"after": "video_none"}), 400, "after")
    for params, param in (({"limit": 0}, "limit"), ({"limit": 101}, "limit"), ({"order": "random"}, "order")):
        check_error(await client.get("/v1/videos", params=params), 400, param)


async def test_deleted_video_is_gone_with_its_files(client, tmp_path):
    video = await make_video(client)
    storage = ResultStorage(str(tmp_path / "results"))
    assert await storage.folders() == [video["id"]]
    response = await client.delete(f"/v1/videos/{video['id']}")
    assert response.json() == {"id": video["id"], "object": "video.deleted", "deleted": True}
    assert await storage.folders() == []
    for path in ("", "/content"):
        check_error(await client.get(f"/v1/videos/{video['id']}{path}"), 404, "video_id")
    check_error(await client.delete(f"/v1/videos/{video['id']}"), 404, "video_id")


@pytest.mark.parametrize("method", ["DELETE", "POST"])
async def test_ending_a_running_video_tells_the_group_and_stops_the_work(tmp_path, method):
    groups = FakeGroups(gate=asyncio.Event())
    async with opened(groups, tmp_path) as client:
        video_id = (await client.post("/v1/videos", json=GOOD)).json()["id"]
        await groups.begun.wait()
        path = f"/v1/videos/{video_id}" + ("/cancel" if method == "POST" else "")
        assert (await client.request(method, path)).status_code == 200
        assert groups.cancelled_ids == groups.request_ids
        assert groups.num_closed == 1
        response = await client.get(f"/v1/videos/{video_id}")
    if method == "POST":
        assert (response.json()["status"], response.json()["error"]["code"]) == ("failed", "cancelled")
    else:
        check_error(response, 404, "video_id")


async def test_content_of_an_unfinished_video_is_a_404_that_says_so(tmp_path):
    groups = FakeGroups(gate=asyncio.Event())
    async with opened(groups, tmp_path) as client:
        video_id = (await client.post("/v1/videos", json=GOOD)).json()["id"]
        error = check_error(await client.get(f"/v1/videos/{video_id}/content"), 404)
        assert error["code"] == "content_not_ready"


@pytest.mark.parametrize(
    ("wanted", "status", "content", "content_range"),
    [
        ("bytes=0-1", 206, b"12", "bytes 0-1/6"),
        ("bytes=4-", 206, b"56", "bytes 4-5/6"),
        ("bytes=-2", 206, b"56", "bytes 4-5/6"),
        ("bytes=-99", 206, b"123456", "bytes 0-5/6"),
        ("bytes=2-99", 206, b"3456", "bytes 2-5/6"),
        ("bytes=6-", 416, None, "bytes */6"),
        ("bytes=3-2", 416, None, "bytes */6"),
        ("bytes=-0", 416, None, "bytes */6"),
        ("bytes=" + "9" * 5000 + "-", 416, None, "bytes */6"),
        ("bytes=0-1,3-4", 200, b"123456", None),
        ("bytes=-", 200, b"123456", None),
        ("lines=1-2", 200, b"123456", None),
    ],
)
async def test_ranges_of_a_video(client, wanted, status, content, content_range):
    video = await make_video(client, seed=123456)
    response = await client.get(f"/v1/videos/{video['id']}/content", headers={"Range": wanted})
    assert response.status_code == status
    if status == 416:
        check_error(response, 416, "Range")
    else:
        assert response.content == content
    assert response.headers.get("content-range") == content_range
    assert response.headers["accept-ranges"] == "bytes"


async def test_range_of_another_file_than_was_known_is_the_whole_file(client):
    video = await make_video(client, seed=123456)
    headers = {"Range": "bytes=0-1", "If-Range": '"another"'}
    assert (await client.get(f"/v1/videos/{video['id']}/content", headers=headers)).content == b"123456"


async def test_unknown_variant_is_refused(client):
    video = await make_video(client)
    response = await client.get(f"/v1/videos/{video['id']}/content", params={"variant": "spritesheet"})
    check_error(response, 400, "variant")


async def test_too_many_unfinished_videos_are_refused_with_a_time(tmp_path):
    async with opened(FakeGroups(gate=asyncio.Event()), tmp_path, jobs={"max_queued": 1}) as client:
        await client.post("/v1/videos", json=GOOD)
        response = await client.post("/v1/videos", json=GOOD)
        assert check_error(response, 429)["code"] == "queue_full"
        assert int(response.headers["retry-after"]) > 0


async def test_videos_survive_a_restart_of_the_front(tmp_path):
    async with opened(FakeGroups(gate=asyncio.Event()), tmp_path) as client:
        accepted = (await client.post("/v1/videos", json={**GOOD, "seed": 5})).json()
    async with opened(FakeGroups(), tmp_path) as client:
        assert (await finished(client, accepted["id"]))["status"] == "completed"
        assert (await client.get(f"/v1/videos/{accepted['id']}/content")).content == b"5"
