"""A checkpoint behind a URL comes to a node once, into a bounded cache of folders that are whole or not there.

    CACHE/KEY/          a whole checkpoint (KEY names URL, sizes and versions of its files)
    CACHE/KEY.lock      held by the rank that fetches; the others of the node wait for it
    CACHE/KEY.part/     what is being fetched; renamed when all is there, checked and synced

The lock is the kernel's (`flock`): it goes with its process, so a killed rank blocks nobody, and what it left is
fetched anew. Folders are given up least recently used first.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from planner.files import NOTHING_THERE_ADVICE
from planner.remote_files import open_file_system, read_range
from planner.source_errors import explain_source_error, is_plain_absence
from workers.checkpoint_cache import COMPLETE, CacheSettings, beside, locked, make_room, reading, sync, sync_folder
from workers.checksums import CHECKSUMS, check_checksums
from workers.errors import LoadError
from workers.stream_files import read_headers

logger = logging.getLogger(__name__)

NUM_STREAMS = 8
RANGE_BYTES = 32 * 2**20
REPORT_EVERY_S = 5.0
_VERSIONS = ("ETag", "etag", "blob_id", "xet_hash", "mtime", "LastModified", "uploaded_at", "created")
"""What file systems call that which changes with a file's content: S3, GCS and HTTP, the hub, others."""
_WANTED = (".json", ".safetensors", ".txt", ".model", ".jinja", ".sha256")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a remote checkpoint. `name` is relative to it; `version` is an etag or time, where there is one."""

    name: str
    path: str
    num_bytes: int
    version: str


@dataclass(frozen=True, slots=True)
class FetchProgress:
    """How far a fetch is."""

    done_bytes: int
    total_bytes: int
    seconds: float

    @property
    def gb_s(self) -> float:
        return self.done_bytes / 1e9 / max(self.seconds, 1e-9)


def is_remote(checkpoint: str) -> bool:
    """Whether it is a URL and not a folder of this machine."""
    return "://" in checkpoint and not checkpoint.startswith("file://")


@contextlib.contextmanager
def open_checkpoint(checkpoint: str, *, timeout_s: float, cache: CacheSettings | None = None) -> Iterator[Path]:
    """The checkpoint's folder on this machine; a remote one is fetched first, and stays in the cache meanwhile.

    Raises:
        LoadError: see `fetch_checkpoint`.
    """
    if not is_remote(checkpoint):
        yield Path(checkpoint.removeprefix("file://"))
        return
    cache = cache or CacheSettings.read()
    while True:
        folder = fetch_checkpoint(checkpoint, cache=cache.folder, max_bytes=cache.max_bytes, timeout_s=timeout_s)
        with reading(folder) as is_there:
            if is_there:
                yield folder
                return


def fetch_checkpoint(
    url: str,
    *,
    cache: Path,
    max_bytes: int,
    timeout_s: float,
    num_streams: int = NUM_STREAMS,
    range_bytes: int = RANGE_BYTES,
    on_progress: Callable[[FetchProgress], None] | None = None,
) -> Path:
    """The local folder of a remote checkpoint; one process of the node fetches it, the others wait.

    Host bytes: `num_streams * range_bytes`. Only configuration, tokenizer and safetensors files are fetched.

    Args:
        cache: one folder a node; may be on a disk that other nodes do not see.
        max_bytes: of all checkpoints in the cache; those that nobody reads go, used longest ago first.
        timeout_s: for a fetch by another process.
        on_progress: told of each finished range; the log gets a line every few seconds.

    Raises:
        LoadError: it cannot be reached, does not fit the cache, or what came is not whole.
    """
    filesystem, files = _list(url)
    total = sum(file.num_bytes for file in files)
    if total > max_bytes:
        raise LoadError(f"{url} has {total / 2**30:.2f} GiB, the cache {cache} may hold {max_bytes / 2**30:.2f} GiB")
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / _key(url, files)
    is_complete = (folder / COMPLETE).is_file
    if not is_complete():
        with locked(beside(folder, ".lock"), timeout_s=timeout_s, what=url, unless=is_complete) as is_ours:
            if is_ours and not is_complete():
                with locked(cache / ".room.lock", timeout_s=timeout_s, what="the cache's room"):
                    make_room(cache, max_bytes - total, keep=folder)
                    _reserve(beside(folder, ".part"), files)
                _fetch_all(url, filesystem, files, folder, num_streams, range_bytes, on_progress)
    with contextlib.suppress(FileNotFoundError):
        os.utime(folder / COMPLETE)
    return folder


def list_remote(url: str) -> tuple[RemoteFile, ...]:
    """The files that a checkpoint needs: of its top folder and its components' folders.

    Raises:
        LoadError: it cannot be listed, has no `model_index.json`, or a file's size or name is not usable.
    """
    return _list(url)[1]


def _list(url: str) -> tuple[Any, tuple[RemoteFile, ...]]:
    try:
        filesystem, root = open_file_system(url)
        found = _find(filesystem, root, url)
        found = {path: info if info.get("size") is not None else filesystem.info(path) for path, info in found.items()}
    except Exception as error:  # each file system has errors of its own
        raise LoadError(f"{url} cannot be listed: {explain_source_error(error, url=url)}") from error
    files = [_remote_file(url, root, path, info) for path, info in sorted(found.items()) if path.endswith(_WANTED)]
    if not any(file.name == "model_index.json" for file in files):
        advice = "give the folder of a checkpoint in diffusers layout" if found else NOTHING_THERE_ADVICE
        raise LoadError(f"{url} has no model_index.json: {advice}")
    return filesystem, tuple(files)


def _find(filesystem: Any, root: str, url: str) -> dict[str, dict[str, Any]]:
    try:
        found: dict[str, dict[str, Any]] = filesystem.find(root, maxdepth=2, detail=True)
        if not found:
            filesystem.ls(root)  # some find nothing in a bucket that is not there; listing it raises the reason
    except FileNotFoundError as error:
        if not is_plain_absence(error, url=url):
            raise
        return {}
    return found


def _remote_file(url: str, root: str, path: str, info: dict[str, Any]) -> RemoteFile:
    name = PurePosixPath(path.removeprefix(root.rstrip("/")).lstrip("/"))
    if name.is_absolute() or ".." in name.parts or not 1 <= len(name.parts) <= 2 or not str(name).isprintable():
        raise LoadError(f"{url} lists {path!r}, which is not a name inside it")
    if info.get("size") is None:
        raise LoadError(f"{url}: the size of {name} is not known; the server must state it")
    version = next((str(info[key]) for key in _VERSIONS if info.get(key)), "")
    return RemoteFile(str(name), path, int(info["size"]), version)


def _key(url: str, files: Sequence[RemoteFile]) -> str:
    content = json.dumps([url.rstrip("/"), [(file.name, file.num_bytes, file.version) for file in files]])
    return f"{PurePosixPath(url.rstrip('/')).name[:40]}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def _fetch_all(
    url: str,
    filesystem: Any,
    files: Sequence[RemoteFile],
    folder: Path,
    num_streams: int,
    range_bytes: int,
    on_progress: Callable[[FetchProgress], None] | None,
) -> None:
    part = beside(folder, ".part")
    progress = _Progress(url, sum(file.num_bytes for file in files), on_progress)
    ranges = [(file, offset) for file in files for offset in range(0, file.num_bytes, range_bytes)]
    try:
        with ThreadPoolExecutor(num_streams, thread_name_prefix="fetch") as pool:
            futures = [pool.submit(_fetch_range, url, filesystem, part, *piece, range_bytes) for piece in ranges]
            try:
                for future in futures:
                    progress.add(future.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        _check_unchanged(url, files)
        _check_whole(part, url)
        sync(part)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    sync_folder(folder.parent)
    progress.report_end()


def _reserve(part: Path, files: Sequence[RemoteFile]) -> None:
    """Lays the files out at their full length, without their contents: their sizes count for the cache from now on."""
    shutil.rmtree(part, ignore_errors=True)
    for file in files:
        target = part / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as stream:
            stream.truncate(file.num_bytes)


def _fetch_range(url: str, filesystem: Any, part: Path, file: RemoteFile, offset: int, range_bytes: int) -> int:
    length = min(range_bytes, file.num_bytes - offset)
    where = f"{url.rstrip('/')}/{file.name}"
    try:
        data = read_range(filesystem, file.path, offset=offset, length=length)
    except Exception as error:  # each file system has errors of its own
        raise LoadError(f"{where} cannot be read at byte {offset}: {explain_source_error(error, url=url)}") from error
    if len(data) != length:
        raise LoadError(f"{where} is short at byte {offset}: {len(data)} bytes of {length} came")
    try:
        with (part / file.name).open("r+b") as stream:
            stream.seek(offset)
            stream.write(data)
    except OSError as error:
        raise LoadError(f"{part / file.name} cannot be written: {error}") from error
    return length


def _check_unchanged(url: str, files: Sequence[RemoteFile]) -> None:
    """Ranges that were read before and after a change would make a file of both.

    Raises:
        LoadError: names a file that is not the one that was listed first.
    """
    changed = sorted({file.name for file in set(files) ^ set(list_remote(url))})
    if changed:
        raise LoadError(f"{url} was changed while it was fetched ({', '.join(changed[:3])}): fetch it again")


def _check_whole(part: Path, url: str) -> None:
    """Every safetensors file against its header, and every file against the checkpoint's own checksums, if it has any.

    Raises:
        LoadError: names the file, by its URL.
    """
    try:
        for file in sorted(part.rglob("*.safetensors")):
            read_headers([file])
        listed = part / CHECKSUMS
        if listed.is_file():
            check_checksums(part, listed.read_text("utf-8"))
    except LoadError as error:
        what = str(error).replace(str(part), url.rstrip("/"))
        raise LoadError(f"{what} (all of its bytes came: if that happens twice, upload the file again)") from error


class _Progress:
    def __init__(self, url: str, total: int, on_progress: Callable[[FetchProgress], None] | None) -> None:
        self._url = url
        self._total = total
        self._on_progress = on_progress
        self._start = self._reported = time.monotonic()
        self._done = 0

    def add(self, num_bytes: int) -> None:
        self._done += num_bytes
        now = time.monotonic()
        state = self._state(now)
        if self._on_progress is not None:
            self._on_progress(state)
        if now - self._reported >= REPORT_EVERY_S:
            self._reported = now
            logger.info(
                "fetching %s: %.2f of %.2f GB, %.2f GB/s",
                self._url,
                state.done_bytes / 1e9,
                self._total / 1e9,
                state.gb_s,
            )

    def report_end(self) -> None:
        state = self._state(time.monotonic())
        logger.info("fetched %s: %.2f GB in %.2f s, %.2f GB/s", self._url, self._total / 1e9, state.seconds, state.gb_s)

    def _state(self, now: float) -> FetchProgress:
        return FetchProgress(self._done, self._total, now - self._start)
