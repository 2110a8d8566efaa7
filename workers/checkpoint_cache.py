"""The folder that fetched checkpoints are kept in on a node: its settings, its locks, its limit.

Locks are the kernel's (`flock`): they go with their process, so a killed rank blocks nobody.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from workers.errors import LoadError

logger = logging.getLogger(__name__)

LOCK_POLL_S = 0.1
COMPLETE = ".heliograph-complete"
"""In every whole checkpoint; its time is that of the last use."""


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """Where fetched checkpoints are kept on a node, and how many bytes of them."""

    folder: Path
    max_bytes: int

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> "CacheSettings":
        """`HELIOGRAPH_CHECKPOINT_CACHE` (a folder) and `HELIOGRAPH_CHECKPOINT_CACHE_GIB`.

        Without them: a folder under the user's cache folder, and four fifths of the disk that it lies on.
        """
        base = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = Path(environment.get("HELIOGRAPH_CHECKPOINT_CACHE") or base / "heliograph" / "checkpoints")
        folder.mkdir(parents=True, exist_ok=True)
        limit = environment.get("HELIOGRAPH_CHECKPOINT_CACHE_GIB")
        return cls(folder, int(float(limit) * 2**30) if limit else shutil.disk_usage(folder).total * 4 // 5)


def beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(folder.name + suffix)


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[bool]:
    """Within it the checkpoint stays in the cache; False if it had left before. Any number may read at once."""
    with beside(folder, ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield (folder / COMPLETE).is_file()


@contextlib.contextmanager
def locked(file: Path, *, timeout_s: float, what: str, unless: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Within it this process alone holds the lock; False, without it, as soon as `unless` makes it needless.

    `unless` is no mere short cut: who has fetched a checkpoint reads it at once and may hold the lock for as long as
    the others take to load it too.
    """
    deadline = time.monotonic() + timeout_s
    with file.open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if unless():
                    yield False
                    return
                if time.monotonic() > deadline:
                    raise LoadError(f"{what} is still being fetched by another process after {timeout_s:g} s") from None
                time.sleep(LOCK_POLL_S)
        yield True


def sync(part: Path) -> None:
    (part / COMPLETE).touch()
    for file in part.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    for folder in [*(entry for entry in part.rglob("*") if entry.is_dir()), part]:
        sync_folder(folder)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def make_room(cache: Path, room_bytes: int, *, keep: Path) -> None:
    """Removes the checkpoints used longest ago until the others take `room_bytes` at most; used ones are spared."""
    sizes: dict[Path, int] = {}
    for entry in cache.iterdir():
        if not entry.is_dir() or entry in (keep, beside(keep, ".part")):
            continue
        is_rest = entry.suffix == ".part" or not (entry / COMPLETE).is_file()
        if not (is_rest and remove_unlocked(entry)):
            sizes[entry] = sum(file.stat().st_size for file in entry.rglob("*") if file.is_file())
    held = sum(sizes.values())
    whole = [entry for entry in sizes if entry.suffix != ".part"]
    for entry in sorted(whole, key=lambda entry: (entry / COMPLETE).stat().st_mtime):
        if held > room_bytes and remove_unlocked(entry):
            held -= sizes[entry]
            logger.info("%s leaves the cache: %.2f GiB", entry.name, sizes[entry] / 2**30)
    if held > room_bytes:
        raise LoadError(
            f"{cache} is full of checkpoints in use: they take {held / 2**30:.2f} GiB, and "
            f"{max(0, room_bytes) / 2**30:.2f} GiB would leave room for this one; give the cache more bytes"
        )


def remove_unlocked(entry: Path) -> bool:
    """Removes a checkpoint, or the rest of a fetch, unless somebody holds its lock."""
    name = entry.name.removesuffix(".part")
    with entry.with_name(f"{name}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        (entry / COMPLETE).unlink(missing_ok=True)  # first: whatever happens now, it is not taken for whole
        shutil.rmtree(entry, ignore_errors=True)
        return True
