"""Files in a folder, and in a storage that is none."""

import uuid

import pytest

from deployments.jobs.results import ResultStorage


@pytest.fixture(params=["folder", "memory"])
def storage(request, tmp_path):
    return ResultStorage(str(tmp_path / "results") if request.param == "folder" else f"memory://{uuid.uuid4().hex}")


async def test_written_file_is_read_whole_and_in_parts(storage):
    await storage.write("video_1/a.mp4", b"0123456789")
    assert await storage.read("video_1/a.mp4") == b"0123456789"
    assert await storage.read("video_1/a.mp4", start=2, end=5) == b"234"


async def test_removed_folders_and_files_are_gone_and_nothing_else(storage):
    for key in ("video_1/a.mp4", "video_1/b.webp", "video_2/a.mp4"):
        await storage.write(key, b"x")
    await storage.remove("video_1/b.webp")
    assert sorted(await storage.folders()) == ["video_1", "video_2"]
    await storage.remove_folder("video_1")
    assert await storage.folders() == ["video_2"]
    with pytest.raises(FileNotFoundError):
        await storage.read("video_1/a.mp4")


async def test_removing_what_is_not_there_is_fine(storage):
    await storage.remove_folder("video_1")
    await storage.remove("video_1/a.mp4")
    assert await storage.folders() == []


@pytest.mark.parametrize("key", ["../a", "/etc/passwd", "video_1/../../a", "VIDEO/a", "/a", ""])
async def test_paths_that_lead_elsewhere_are_impossible(storage, key):
    with pytest.raises(AssertionError):
        await storage.write(key, b"x")


async def test_folder_is_readable_by_its_owner_only(tmp_path):
    await ResultStorage(str(tmp_path / "results")).write("video_1/a.mp4", b"x")
    assert (tmp_path / "results" / "video_1").stat().st_mode & 0o077 == 0
