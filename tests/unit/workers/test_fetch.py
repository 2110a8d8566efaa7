"""Fetching checkpoints: once, whole or not at all, within the cache's bytes; from memory and by HTTP."""

import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import save_file

from tests.range_server import serve
from workers import fetch
from workers.checkpoint_cache import COMPLETE, CacheSettings, beside, locked
from workers.checksums import CHECKSUMS
from workers.errors import LoadError
from workers.fetch import FetchProgress, fetch_checkpoint, list_remote, open_checkpoint

LARGE = 10**9


def write_checkpoint(folder: Path, *, numbers: int = 50_000, value: float = 1.0) -> Path:
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    (folder / "transformer" / "config.json").write_text("{}")
    save_file({"weight": torch.full((numbers,), value)}, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    (folder / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"pickled")
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "source")


@pytest.fixture
def memory_url(source: Path) -> Iterator[str]:
    filesystem = fsspec.filesystem("memory")
    root = f"/{source.parent.name}"
    for file in source.rglob("*"):
        if file.is_file():
            filesystem.pipe(f"{root}/{file.relative_to(source)}", file.read_bytes())
    yield f"memory:/{root}"
    filesystem.rm(root, recursive=True)


def get(url: str, cache: Path, **changes: Any) -> Path:
    options: dict[str, Any] = {"max_bytes": LARGE, "timeout_s": 20, "range_bytes": 4096, **changes}
    return fetch_checkpoint(url, cache=cache, **options)


def same_files(fetched: Path, source: Path) -> bool:
    wanted = [f for f in source.rglob("*") if f.is_file() and f.suffix != ".bin"]
    return all((fetched / f.relative_to(source)).read_bytes() == f.read_bytes() for f in wanted)


def test_files_come_in_ranges_and_pickles_do_not(memory_url: str, source: Path, tmp_path: Path) -> None:
    reports: list[FetchProgress] = []
    fetched = get(memory_url, tmp_path / "cache", on_progress=reports.append)
    assert same_files(fetched, source)
    assert not list(fetched.rglob("*.bin"))
    assert reports[-1].done_bytes == reports[-1].total_bytes > 200_000
    assert len(reports) > 40
    assert reports[-1].gb_s > 0


def test_http_is_read_once_by_ranges_and_found_the_next_time(source: Path, tmp_path: Path) -> None:
    with serve(source) as (url, sent):
        first = get(url, tmp_path / "cache")
        assert same_files(first, source)
        size = (source / "transformer" / "diffusion_pytorch_model.safetensors").stat().st_size
        assert sent["diffusion_pytorch_model.safetensors"] == size
        assert get(url, tmp_path / "cache") == first
        assert sent["diffusion_pytorch_model.safetensors"] == size


def test_ranks_that_come_together_fetch_once(source: Path, tmp_path: Path) -> None:
    with serve(source) as (url, sent), ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: get(url, tmp_path / "cache"), range(4)))
        assert len(set(folders)) == 1
        size = (source / "transformer" / "diffusion_pytorch_model.safetensors").stat().st_size
        assert sent["diffusion_pytorch_model.safetensors"] == size


def test_a_changed_checkpoint_is_another_one(source: Path, tmp_path: Path) -> None:
    with serve(source) as (url, _):
        before = get(url, tmp_path / "cache")
        (source / "transformer" / "config.json").write_text('{"changed": true}')
        after = get(url, tmp_path / "cache")
        assert before != after
        assert same_files(after, source)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file, data: data[:-1] if len(data) < 4096 else data, "is short|cannot be read"),
        (lambda file, data: bytes(8) + data[8:] if file.suffix == ".safetensors" else data, "header|torn"),
    ],
    ids=["short", "damaged_header"],
)
def test_what_is_not_whole_is_never_used(source: Path, tmp_path: Path, spoil: Any, message: str) -> None:
    with serve(source, spoil) as (url, _), pytest.raises(LoadError, match=message):
        get(url, tmp_path / "cache")
    assert [entry.name for entry in (tmp_path / "cache").iterdir() if entry.is_dir()] == []


def test_the_checkpoints_own_checksums_are_compared(source: Path, tmp_path: Path) -> None:
    weights = source / "transformer" / "diffusion_pytorch_model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    (source / CHECKSUMS).write_text(f"{digest}  transformer/{weights.name}\n{'0' * 64}  transformer/not_fetched.bin\n")
    with serve(source) as (url, _):
        assert same_files(get(url, tmp_path / "cache"), source)
    flip = lambda file, data: data[:-1] + bytes([data[-1] ^ 1]) if file.suffix == ".safetensors" else data  # noqa: E731
    with serve(source, flip) as (url, _), pytest.raises(LoadError, match="is damaged: its SHA-256 is"):
        get(url, tmp_path / "other")


def test_least_recently_used_checkpoints_make_room(tmp_path: Path) -> None:
    sources = [write_checkpoint(tmp_path / name / "model", value=float(i)) for i, name in enumerate("abc")]
    cache = tmp_path / "cache"
    with serve(tmp_path) as (url, _):
        urls = [f"{url}/{source.relative_to(tmp_path)}" for source in sources]
        first, second = get(urls[0], cache), get(urls[1], cache)
        os.utime(second / COMPLETE, (1, 1))
        third = get(urls[2], cache, max_bytes=450_000)
        assert first.is_dir()
        assert not second.exists()
        assert same_files(third, sources[2])


def test_a_checkpoint_that_is_read_stays(tmp_path: Path) -> None:
    one, other = (write_checkpoint(tmp_path / name / "model") for name in "ab")
    cache = CacheSettings(tmp_path / "cache", 250_000)
    with serve(tmp_path) as (url, _):
        with open_checkpoint(f"{url}/a/model", timeout_s=20, cache=cache) as folder:
            with pytest.raises(LoadError, match="full of checkpoints in use"):
                get(f"{url}/b/model", cache.folder, max_bytes=cache.max_bytes)
            assert same_files(folder, one)
        assert same_files(get(f"{url}/b/model", cache.folder, max_bytes=cache.max_bytes), other)
        assert not folder.exists()


def test_readers_do_not_wait_for_one_another(source: Path, tmp_path: Path) -> None:
    cache = CacheSettings(tmp_path / "cache", LARGE)
    with (
        serve(source) as (url, _),
        open_checkpoint(url, timeout_s=5, cache=cache) as first,
        open_checkpoint(url, timeout_s=5, cache=cache) as second,
    ):
        assert first == second


def test_more_than_the_cache_may_hold_is_refused_with_the_numbers(memory_url: str, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="may hold"):
        get(memory_url, tmp_path / "cache", max_bytes=1000)


def test_the_rest_of_a_killed_fetch_is_not_used_and_goes(memory_url: str, source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    rest = cache / f"{fetch._key(memory_url, list_remote(memory_url))}.part"
    other = cache / "other-0000.part"
    for folder in (rest, other):
        (folder / "transformer").mkdir(parents=True)
        (folder / "transformer" / "left_over.safetensors").write_bytes(b"half")
    fetched = get(memory_url, cache)
    assert same_files(fetched, source)
    assert not list(cache.rglob("left_over.safetensors"))


def test_waiting_for_another_fetch_ends_in_time(memory_url: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    lock = cache / f"{fetch._key(memory_url, list_remote(memory_url))}.lock"
    with locked(lock, timeout_s=1, what="test"), pytest.raises(LoadError, match="still being fetched"):
        get(memory_url, cache, timeout_s=0.2)


@pytest.mark.parametrize("url", ["memory://nowhere", "http://127.0.0.1:1/model", "nosuch://bucket/model"])
def test_what_cannot_be_reached_is_named(url: str) -> None:
    with pytest.raises(LoadError, match=re.escape(url)):
        list_remote(url)


def test_local_folders_are_used_where_they_are(source: Path) -> None:
    for name in (str(source), f"file://{source}"):
        with open_checkpoint(name, timeout_s=1) as folder:
            assert folder == source


def test_cache_settings_come_from_the_environment(tmp_path: Path) -> None:
    named = CacheSettings.read(
        {"HELIOGRAPH_CHECKPOINT_CACHE": str(tmp_path / "here"), "HELIOGRAPH_CHECKPOINT_CACHE_GIB": "1.5"}
    )
    assert named == CacheSettings(tmp_path / "here", 3 * 2**29)
    default = CacheSettings.read({"XDG_CACHE_HOME": str(tmp_path)})
    assert default.folder == tmp_path / "heliograph" / "checkpoints"
    assert default.max_bytes > 0


def test_a_rank_that_reads_what_it_fetched_keeps_no_other_waiting(
    memory_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that fetched holds the lock until all ranks have loaded: who waits must see that the folder is whole."""
    folder = get(memory_url, tmp_path / "cache")
    (folder / COMPLETE).unlink()
    waits, sleep = threading.Event(), time.sleep

    def note_and_sleep(seconds: float) -> None:
        waits.set()
        sleep(seconds)

    monkeypatch.setattr("workers.checkpoint_cache.time.sleep", note_and_sleep)
    with ThreadPoolExecutor(1) as pool, locked(beside(folder, ".lock"), timeout_s=5, what="the test"):
        other = pool.submit(get, memory_url, tmp_path / "cache")
        assert waits.wait(20), "nobody waited for the lock"
        (folder / COMPLETE).touch()
        assert other.result(timeout=15) == folder
