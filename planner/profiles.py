"""Calibration profiles: measurements kept as JSON files, in a folder or behind any fsspec URL.

    FOLDER/v2/CHECKPOINT_FINGERPRINT/KEY.json

One file a measured configuration. Files are written whole or not at all, and there are at most `MAX_PROFILES` a
checkpoint: the one that was updated longest ago goes. What cannot be read is left out, with a warning.
"""

import hashlib
import logging
import os
import tempfile
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from planner.errors import ProfileError
from planner.measurements import Measurement, MeasurementKey, merge_measurements

logger = logging.getLogger(__name__)
PROFILES_VARIABLE = "HELIOGRAPH_PROFILES"
MAX_PROFILES = 256
MAX_PROFILE_BYTES = 64 * 1024
_VERSION = "v2"
_OLD_VERSION = "v1"


class _Folder(Protocol):
    def names(self) -> list[str]: ...

    def read(self, name: str) -> bytes: ...

    def write(self, name: str, content: bytes) -> None: ...

    def remove(self, name: str) -> None: ...


def configured_folder(stated: str | None = None) -> str | None:
    """Where profiles live: as stated, else `HELIOGRAPH_PROFILES`; None means that none are kept."""
    return stated or os.environ.get(PROFILES_VARIABLE) or None


def read_measurements(folder: str | None, *, checkpoint_fingerprint: str) -> tuple[Measurement, ...]:
    """All measurements of a checkpoint, in the order of their names; empty without a folder.

    Raises:
        ProfileError: the folder cannot be reached.
    """
    if folder is None:
        return ()
    opened = _open_folder(folder, checkpoint_fingerprint)
    if old := _profile_names(_open_folder(folder, checkpoint_fingerprint, version=_OLD_VERSION), folder):
        logger.warning(
            "%d profiles of %s in %s/%s say neither attention kernels nor compilation and are not used: remove them",
            len(old), checkpoint_fingerprint, folder, _OLD_VERSION,
        )  # fmt: skip
    found: list[Measurement] = []
    for name in _profile_names(opened, folder)[:MAX_PROFILES]:
        measurement = _read_one(opened, name, folder)
        if measurement is not None and measurement.key.checkpoint_fingerprint == checkpoint_fingerprint:
            found.append(measurement)
    return tuple(found)


def keep_measurement(folder: str, measurement: Measurement) -> Measurement:
    """Merges a measurement with what is kept of the same configuration, and writes the result.

    Raises:
        ProfileError: it cannot be written.
    """
    opened = _open_folder(folder, measurement.key.checkpoint_fingerprint)
    name = f"{key_hash(measurement.key)}.json"
    names = _profile_names(opened, folder)
    before = _read_one(opened, name, folder) if name in names else None
    merged = merge_measurements(before if before and before.key == measurement.key else None, measurement)
    content = merged.model_dump_json(indent=1).encode()
    if len(content) > MAX_PROFILE_BYTES:
        raise ProfileError(f"a profile of {len(content)} bytes is not kept, at most {MAX_PROFILE_BYTES} are")
    try:
        _make_room(opened, [other for other in names if other != name], folder)
        opened.write(name, content)
    except Exception as error:  # each file system has errors of its own
        raise ProfileError(f"{folder}: the profile {name} cannot be written: {error}") from error
    return merged


def key_hash(key: MeasurementKey) -> str:
    """The name of a configuration, 24 hex digits."""
    return hashlib.sha256(key.model_dump_json().encode()).hexdigest()[:24]


def _make_room(opened: _Folder, others: list[str], folder: str) -> None:
    if len(others) < MAX_PROFILES:
        return
    age = {name: (kept.updated_at if (kept := _read_one(opened, name, folder)) else -1.0) for name in others}
    for name in sorted(others, key=lambda name: (age[name], name))[: len(others) - MAX_PROFILES + 1]:
        opened.remove(name)


def _profile_names(opened: _Folder, folder: str) -> list[str]:
    try:
        return sorted(name for name in opened.names() if name.endswith(".json") and not name.startswith("."))
    except Exception as error:  # each file system has errors of its own
        raise ProfileError(f"{folder}: profiles cannot be listed: {error}") from error


def _read_one(opened: _Folder, name: str, folder: str) -> Measurement | None:
    try:
        content = opened.read(name)
        if len(content) > MAX_PROFILE_BYTES:
            raise ValueError(f"more than {MAX_PROFILE_BYTES} bytes")
        return Measurement.model_validate_json(content)
    except Exception as error:  # whatever a file system or a foreign file comes up with: a profile is only a help
        reason = f"{error.error_count()} fields are wrong" if isinstance(error, ValidationError) else str(error)
        logger.warning("profile %s in %s is left out: %s", name, folder, reason)
        return None


def _open_folder(folder: str, fingerprint: str, *, version: str = _VERSION) -> _Folder:
    folder = folder.removeprefix("file://").rstrip("/")
    below = f"{folder}/{version}/{fingerprint}"
    return _RemoteFolder(below) if "://" in folder else _LocalFolder(Path(below).expanduser())


class _LocalFolder:
    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> list[str]:
        return [entry.name for entry in os.scandir(self._path)] if self._path.is_dir() else []

    def read(self, name: str) -> bytes:
        with (self._path / name).open("rb") as file:
            return file.read(MAX_PROFILE_BYTES + 1)

    def write(self, name: str, content: bytes) -> None:
        self._path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._path, prefix=".", delete=False) as file:
            try:
                file.write(content)
                file.close()
                Path(file.name).replace(self._path / name)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise

    def remove(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)


class _RemoteFolder:
    """Behind an fsspec URL; object stores show an object when it is whole."""

    def __init__(self, url: str) -> None:
        import fsspec

        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ProfileError(f"{url}: {error}") from error

    def names(self) -> list[str]:
        self._fs.invalidate_cache()
        try:
            entries: list[Any] = self._fs.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        return [str(entry).rpartition("/")[2] for entry in entries]

    def read(self, name: str) -> bytes:
        content: bytes = self._fs.cat_file(f"{self._root}/{name}", start=0, end=MAX_PROFILE_BYTES + 1)
        return content

    def write(self, name: str, content: bytes) -> None:
        self._fs.makedirs(self._root, exist_ok=True)
        self._fs.pipe_file(f"{self._root}/{name}", content)

    def remove(self, name: str) -> None:
        self._fs.rm_file(f"{self._root}/{name}")
