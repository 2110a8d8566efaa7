"""Results in a bucket, by a server that speaks S3 over HTTP."""

import asyncio

import pytest

from deployments.jobs.results import ResultStorage
from tests.unit.deployments.fakes import FakeGroups, make_service, open_client, wait_until

s3fs = pytest.importorskip("s3fs", reason="pip install heliograph[s3-test]")
pytest.importorskip("moto.server", reason="pip install heliograph[s3-test]")
pytestmark = [pytest.mark.full, pytest.mark.timeout(240)]


async def test_files_are_written_read_in_parts_and_removed(bucket):
    storage = ResultStorage(f"s3://{bucket}/results")
    await storage.write("video_1/a.mp4", b"0123456789")
    await storage.write("video_2/a.mp4", bytes(6 << 20))  # more than one part of S3's uploads
    assert await storage.read("video_1/a.mp4", start=2, end=5) == b"234"
    assert len(await storage.read("video_2/a.mp4")) == 6 << 20
    assert sorted(await storage.folders()) == ["video_1", "video_2"]
    await storage.remove_folder("video_2")
    await storage.remove_folder("video_2")
    await storage.remove("video_1/none.mp4")
    assert await storage.folders() == ["video_1"]
    with pytest.raises(FileNotFoundError):
        await storage.read("video_2/a.mp4")


async def test_two_writers_at_once_and_a_reader_that_has_looked_before(bucket):
    """Every replica has a client of its own; none may trust what it listed earlier."""
    first, second = (ResultStorage(f"s3://{bucket}/results") for _ in range(2))
    assert await first.folders() == []
    await asyncio.gather(first.write("video_1/a.mp4", b"a"), second.write("video_2/b.mp4", b"b"))
    assert sorted(await first.folders()) == ["video_1", "video_2"]
    assert await first.read("video_2/b.mp4") == b"b"


async def test_service_keeps_a_job_s_files_in_the_bucket_and_frees_them(bucket, tmp_path):
    service = make_service(FakeGroups())
    state = {"storage": f"s3://{bucket}/results"}
    async with open_client(service, tmp_path, state=state) as client:
        job = (await client.post("/v1/videos", json={"prompt": "a", "seed": 7})).json()

        async def is_completed():
            return (await client.get(f"/v1/videos/{job['id']}")).json()["status"] == "completed"

        await wait_until(is_completed, timeout_s=60)
        whole = await client.get(f"/v1/videos/{job['id']}/content")
        part = await client.get(f"/v1/videos/{job['id']}/content", headers={"Range": "bytes=0-0"})
        assert (whole.content, part.status_code, part.content) == (b"7", 206, b"7")
        there = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
        assert len(there.find(f"{bucket}/results/{job['id']}")) == 2
        await client.delete(f"/v1/videos/{job['id']}")
        assert there.find(f"{bucket}/results/{job['id']}") == []
    assert not list(tmp_path.glob("results/*")), "nothing lies on this disk"
