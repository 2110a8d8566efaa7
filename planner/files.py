"""A checkpoint's files: a local folder or any fsspec URL, read by name and byte range, never outside the folder."""

import itertools
import os
from pathlib import Path, PurePosixPath
from typing import Protocol

from planner.errors import CheckpointNotFoundError, UnsafeCheckpointError

MAX_NAMES = 10_000
"""Files of a folder that are looked at."""


class CheckpointFiles(Protocol):
    """What the reader needs of a folder. Names are relative, with `/`."""

    @property
    def location(self) -> str:
        """The folder, as errors name it."""

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is no such file."""

    def list_names(self, folder: str) -> list[str]:
        """Names of the files in a component's folder, sorted; empty if it cannot be listed."""

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Reads a byte range, short at the end of the file."""


def open_files(checkpoint: str) -> CheckpointFiles:
    """Opens a folder (a path or a URL).

    Raises:
        CheckpointNotFoundError: no such folder, or a URL whose file system is not installed.
    """
    if checkpoint.startswith("file://"):
        checkpoint = checkpoint.removeprefix("file://")
    if checkpoint.startswith(("http://", "https://")):
        from planner.http_files import HttpFiles

        return HttpFiles(checkpoint)
    if "://" in checkpoint:
        from planner.remote_files import RemoteFiles

        return RemoteFiles(checkpoint)
    return LocalFiles(checkpoint)


def check_name(name: str, *, where: str) -> str:
    """Returns `name` if it is one plain file or folder name; an index must not lead elsewhere.

    Raises:
        UnsafeCheckpointError: it holds a path separator, `..`, a drive or control characters.
    """
    if (
        not name
        or len(name) > 255
        or name in {".", ".."}
        or "/" in name
        or "\\" in name
        or ":" in name
        or not name.isprintable()
    ):
        raise UnsafeCheckpointError(
            f"{where} names {name!r:.200}, which is not a plain name inside the checkpoint's folder"
        )
    return name


class LocalFiles:
    """Files of a local folder. Links may lead inside the folder, or to the blobs of the same hub cache entry."""

    def __init__(self, folder: str) -> None:
        path = Path(folder).expanduser()
        if not path.exists():
            raise CheckpointNotFoundError(f"{folder}: no such folder; give the folder that holds model_index.json")
        if not path.is_dir():
            raise CheckpointNotFoundError(f"{folder} is a file, not a folder in diffusers layout; {SINGLE_FILE_ADVICE}")
        self._root = Path(os.path.realpath(path))
        self._allowed = [self._root]
        if (
            self._root.parent.name == "snapshots"
        ):  # the hub cache's layout: snapshots/<revision>/x -> ../../blobs/<hash>
            self._allowed.append(self._root.parent.parent / "blobs")
        self._location = str(path)
        self._resolved: dict[str, Path] = {}

    @property
    def location(self) -> str:
        """The folder, as errors name it."""
        return self._location

    def _resolve(self, name: str) -> Path:
        if name not in self._resolved:
            self._resolved[name] = self._find_real(name)
        return self._resolved[name]

    def _find_real(self, name: str) -> Path:
        path = self._root.joinpath(*PurePosixPath(name).parts)
        real = Path(os.path.realpath(path))
        if not any(real.is_relative_to(root) for root in self._allowed):
            raise UnsafeCheckpointError(f"{self._location}/{name} is a link to {real}, outside the checkpoint's folder")
        return real

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is no such file."""
        path = self._resolve(name)
        return path.stat().st_size if path.is_file() else None

    def list_names(self, folder: str) -> list[str]:
        """Names of the files in a component's folder, sorted."""
        path = self._resolve(folder)
        if not path.is_dir():
            return []
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in itertools.islice(entries, MAX_NAMES))

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Reads a byte range, short at the end of the file."""
        with self._resolve(name).open("rb") as file:
            file.seek(offset)
            return file.read(length)


SINGLE_FILE_ADVICE = (
    "convert single-file checkpoints first, in diffusers: "
    "DiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
)
NOTHING_THERE_ADVICE = "no file can be seen there; check the address, down to the folder that holds model_index.json"
