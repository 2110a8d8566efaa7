"""Checksums that a checkpoint lists of its own files, as `sha256sum` writes them."""

import hashlib
from pathlib import Path, PurePosixPath

from workers.errors import LoadError

CHECKSUMS = "checksums.sha256"
"""Optional, beside `model_index.json`."""


def check_checksums(folder: Path, listed: str) -> int:
    """Compares files with lines of `sha256sum`; returns how many were compared.

    Raises:
        LoadError: a file differs, or a line is not of this kind.
    """
    count = 0
    for line in filter(None, listed.splitlines()):
        expected, _, name = line.partition(" ")
        name = name.strip().lstrip("*").removeprefix("./")
        parts = PurePosixPath(name).parts
        if len(expected) != 64 or not parts or ".." in parts or PurePosixPath(name).is_absolute():
            raise LoadError(f"{folder / CHECKSUMS}: {line[:100]!r} is not a line of sha256sum")
        if not (folder / name).is_file():
            continue  # files that are not needed are not fetched
        with (folder / name).open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != expected.lower():
            raise LoadError(f"{folder / name} is damaged: its SHA-256 is {found}, {CHECKSUMS} says {expected}")
        count += 1
    return count
