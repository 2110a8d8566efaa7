"""Finished files in a folder or a bucket, by fsspec. Paths are made here, never taken from a request."""

import asyncio
import os
import re
import uuid
from pathlib import Path
from typing import Any

import fsspec

from deployments.errors import StorageError

_FOLDER = re.compile(r"[a-z0-9_]{1,64}")
_PROBE = b"\0" * 4096


class ResultStorage:
    """Files by key `<folder>/<name>`, the folder being the id of a job or a download. Every method runs in a thread.

    Args:
        url: a folder, or anything that fsspec opens (`s3://bucket/prefix`).
    """

    def __init__(self, url: str) -> None:
        self._files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)  # others write there too
        self._root = str(root).rstrip("/")
        self._is_local = isinstance(self._files, fsspec.implementations.local.LocalFileSystem)

    async def write(self, key: str, content: bytes) -> None:
        """Writes a file; it is whole, and on the disk, when this returns.

        Raises:
            StorageError: it cannot be written.
        """
        try:
            await asyncio.to_thread(self._write, self._path(key), content)
        except OSError as error:
            raise StorageError(f"results cannot be stored now ({_reason(error)}): try again later") from error

    async def read(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        """Bytes `start` to `end` (not included) of a file.

        Raises:
            FileNotFoundError: it was removed.
            StorageError: it cannot be read.
        """
        try:
            content = await asyncio.to_thread(self._files.cat_file, self._path(key), start=start, end=end)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageError(f"results cannot be read now ({_reason(error)}): try again later") from error
        return bytes(content)

    async def check(self) -> None:
        """Writes a small file and removes it.

        Raises:
            StorageError: that does not work.
        """
        key = f"check_{uuid.uuid4().hex}/probe"
        await self.write(key, _PROBE)
        await self.remove_folder(key.partition("/")[0])

    async def remove_folder(self, folder: str) -> None:
        """Removes all files of a folder; none is fine."""
        await asyncio.to_thread(self._remove, self._path(folder))

    async def remove(self, key: str) -> None:
        """Removes one file; none is fine."""
        await asyncio.to_thread(self._remove, self._path(key))

    async def folders(self) -> list[str]:
        """All folders there are."""
        return await asyncio.to_thread(self._folders)

    def _path(self, key: str) -> str:
        folder, _, name = key.partition("/")
        assert _FOLDER.fullmatch(folder), folder
        assert "/" not in name, name
        return f"{self._root}/{key}"

    def _write(self, path: str, content: bytes) -> None:
        if self._is_local:
            Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with Path(path).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            return
        self._files.pipe_file(path, content)

    def _remove(self, path: str) -> None:
        try:
            self._files.rm(path, recursive=True)
        except FileNotFoundError:
            return

    def _folders(self) -> list[str]:
        try:
            entries: list[Any] = self._files.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        names = [str(entry).rstrip("/").rpartition("/")[2] for entry in entries]
        return [name for name in names if _FOLDER.fullmatch(name)]


def _reason(error: OSError) -> str:
    """The system's words, without the path; of errors that are not the system's, their kind."""
    return error.strerror or type(error).__name__
