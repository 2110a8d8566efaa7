"""A checkpoint's files behind an fsspec URL (`s3://`, `gs://`, `hf://`, `memory://`, ...), read by ranges."""

from typing import Any

from planner.errors import CheckpointNotFoundError
from planner.files import MAX_NAMES
from planner.source_errors import explain_source_error, is_plain_absence


def open_file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path there. What it listed before is forgotten: fsspec keeps one for long.

    Raises:
        Exception: each file system has errors of its own; `explain_source_error` puts them into words.
    """
    import fsspec

    filesystem, root = fsspec.core.url_to_fs(url.rstrip("/"))
    filesystem.invalidate_cache()
    return filesystem, str(root).rstrip("/")


def read_range(filesystem: Any, path: str, *, offset: int, length: int) -> bytes:
    """Reads a byte range, short at the end of the file; no byte more is asked for.

    Raises:
        OSError: more came than was asked for.
        Exception: see `open_file_system`.
    """
    if length <= 0:
        return b""
    # Without a range read of its own a file system opens a file, whose cache would fetch megabytes ahead.
    exactly = {} if _reads_ranges(filesystem) else {"cache_type": "none"}
    data: bytes = filesystem.cat_file(path, start=offset, end=offset + length, **exactly)
    if len(data) > length:
        raise OSError(f"{len(data)} bytes came where {length} were asked for: the server does not answer ranges")
    return data


def _reads_ranges(filesystem: Any) -> bool:
    from fsspec import AbstractFileSystem
    from fsspec.asyn import AsyncFileSystem

    if isinstance(filesystem, AsyncFileSystem):  # these get `cat_file` on the instance, made of their own `_cat_file`
        return True
    return type(filesystem).cat_file is not AbstractFileSystem.cat_file


class RemoteFiles:
    """Files behind an fsspec URL, read by ranges."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        try:
            self._fs, self._root = open_file_system(url)
        except Exception as error:  # each file system has errors of its own
            raise self._error("", "cannot be opened", error) from error
        self._sizes: dict[str, int | None] = {}

    @property
    def location(self) -> str:
        """The URL."""
        return self._url

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is no such file.

        Raises:
            CheckpointNotFoundError: there is no such bucket or repository, or it cannot be reached.
        """
        if name not in self._sizes:
            self._sizes[name] = self._ask_size(name)
        return self._sizes[name]

    def _ask_size(self, name: str) -> int | None:
        try:
            info: dict[str, Any] = self._fs.info(self._path(name))
        except Exception as error:  # each file system has errors of its own: credentials, permissions, network
            if is_plain_absence(error, url=self._url):
                return None
            raise self._error(name, "cannot be reached", error) from error
        size = info.get("size")
        return int(size) if info.get("type") == "file" and size is not None else None

    def list_names(self, folder: str) -> list[str]:
        """Names of the files in a component's folder (`.`: the checkpoint's), sorted; empty if it cannot be listed."""
        try:
            entries: list[dict[str, Any]] = self._fs.ls(self._path(folder), detail=True)
        except Exception:  # listing only improves advice; a size or a read names what is wrong
            return []
        names: list[str] = []
        for entry in entries[:MAX_NAMES]:
            name = str(entry["name"]).rstrip("/").rpartition("/")[2]
            names.append(name)
            if entry.get("type") == "file" and entry.get("size") is not None:
                self._sizes[name if folder == "." else f"{folder}/{name}"] = int(entry["size"])
        return sorted(names)

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Reads a byte range, short at the end of the file.

        Raises:
            CheckpointNotFoundError: it cannot be read; says why, and what to change.
        """
        try:
            return read_range(self._fs, self._path(name), offset=offset, length=length)
        except Exception as error:  # each file system has errors of its own
            raise self._error(name, "cannot be read", error) from error

    def _path(self, name: str) -> str:
        return self._root if name == "." else f"{self._root}/{name}"

    def _error(self, name: str, what: str, error: Exception) -> CheckpointNotFoundError:
        where = f"{self._url}/{name}" if name else self._url
        return CheckpointNotFoundError(f"{where} {what}: {explain_source_error(error, url=self._url)}")
