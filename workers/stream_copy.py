"""Bytes from files into tensors at their final place: reader threads, and pinned staging where the place is a GPU.

Each byte is read once, with `preadv` (no memory map: mapped pages would count against the container). Into CPU
tensors of the stored dtype it is read in place. Everything else goes through a staging ring: two buffers a thread,
copied asynchronously on the thread's own stream, dtype converted on the device.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workers.errors import LoadError

cuda: Any = torch.cuda  # its classes are untyped in some releases of torch

NUM_READERS = 16
CHUNK_BYTES = 16 * 2**20
BUFFERS_PER_READER = 2


@dataclass(frozen=True, slots=True)
class ReadJob:
    """Bytes of one tensor (or of some rows of it) and where they go.

    Attributes:
        file: the file they lie in.
        offset: absolute, in bytes.
        dtype: as stored.
        destination: (elements,) contiguous, any device, any dtype.
    """

    file: Path
    offset: int
    dtype: torch.dtype
    destination: Tensor

    @property
    def num_bytes(self) -> int:
        return self.destination.numel() * self.dtype.itemsize

    def chunks(self, chunk_bytes: int) -> Iterator["ReadJob"]:
        """The job cut into pieces of at most `chunk_bytes`."""
        step = max(1, chunk_bytes // self.dtype.itemsize)
        for first in range(0, self.destination.numel(), step):
            part = self.destination[first : first + step]
            yield ReadJob(self.file, self.offset + first * self.dtype.itemsize, self.dtype, part)


def staging_bytes(*, num_readers: int = NUM_READERS, chunk_bytes: int = CHUNK_BYTES) -> int:
    """Host bytes that `run_jobs` takes beside the destinations, at most."""
    return num_readers * BUFFERS_PER_READER * chunk_bytes


def run_jobs(
    jobs: Iterable[ReadJob],
    *,
    num_readers: int = NUM_READERS,
    chunk_bytes: int = CHUNK_BYTES,
    on_bytes: Callable[[int], None] | None = None,
) -> int:
    """Executes all jobs; afterwards the destinations hold their values, on every stream.

    Peak host bytes beside CPU destinations: `staging_bytes`. `on_bytes` is told the size of each finished piece, from
    the reader threads.

    Returns:
        Bytes read.

    Raises:
        LoadError: a file cannot be opened or ends early.
    """
    ordered = sorted(jobs, key=lambda job: (job.file, job.offset))
    pieces = [piece for job in ordered for piece in job.chunks(chunk_bytes)]
    with ExitStack() as stack:
        descriptors = {file: _open(file, stack) for file in dict.fromkeys(job.file for job in ordered)}
        queue = _Queue(pieces)
        count = max(1, min(num_readers, len(pieces)))
        with ThreadPoolExecutor(count, thread_name_prefix="weights") as pool:
            readers = [_Reader(descriptors, chunk_bytes, on_bytes) for _ in range(count)]
            futures = [pool.submit(reader.run, queue) for reader in readers]
        return sum(future.result() for future in futures)


class _Queue:
    """Hands out pieces in file order; empty for everybody once one reader has failed."""

    def __init__(self, pieces: Sequence[ReadJob]) -> None:
        self._pieces = iter(pieces)
        self._lock = threading.Lock()
        self._stopped = False

    def next(self) -> ReadJob | None:
        with self._lock:
            return None if self._stopped else next(self._pieces, None)

    def stop(self) -> None:
        self._stopped = True


class _Reader:
    """One thread's share: its staging buffers, its stream, its count of bytes."""

    def __init__(self, descriptors: dict[Path, int], chunk_bytes: int, on_bytes: Callable[[int], None] | None) -> None:
        self._descriptors = descriptors
        self._chunk_bytes = chunk_bytes
        self._on_bytes = on_bytes
        self._lanes: dict[torch.device, _StagingLane] = {}

    def run(self, queue: _Queue) -> int:
        total = 0
        try:
            while (piece := queue.next()) is not None:
                self._execute(piece)
                total += piece.num_bytes
                if self._on_bytes is not None:
                    self._on_bytes(piece.num_bytes)
        except BaseException:
            queue.stop()
            raise
        finally:
            for lane in self._lanes.values():
                lane.finish()
        return total

    def _execute(self, piece: ReadJob) -> None:
        descriptor = self._descriptors[piece.file]
        destination = piece.destination
        if destination.device.type == "cpu" and destination.dtype is piece.dtype:
            _read_into(destination.view(torch.uint8), descriptor, piece)
            return
        lane = self._lanes.get(destination.device)
        if lane is None:
            lane = self._lanes[destination.device] = _StagingLane(destination.device, self._chunk_bytes)
        staging = lane.acquire(piece.num_bytes)
        _read_into(staging, descriptor, piece)
        lane.copy(staging.view(piece.dtype), destination)


class _StagingLane:
    """Two staging buffers in turn; on a GPU pinned, each guarded by the event of its last copy."""

    def __init__(self, device: torch.device, chunk_bytes: int) -> None:
        self._cuda = device.type == "cuda"
        size = max(chunk_bytes, 16)
        self._buffers = [
            torch.empty(size, dtype=torch.uint8, pin_memory=self._cuda)
            for _ in range(BUFFERS_PER_READER if self._cuda else 1)
        ]
        self._turn = 0
        if self._cuda:
            self._stream = cuda.Stream(device)
            # The destinations may reuse memory that earlier work on the default stream still reads.
            self._stream.wait_stream(cuda.default_stream(device))
            self._events = [cuda.Event() for _ in self._buffers]

    def acquire(self, num_bytes: int) -> Tensor:
        """The next buffer's first bytes, once its last copy has ended."""
        self._turn = (self._turn + 1) % len(self._buffers)
        if self._cuda:
            self._events[self._turn].synchronize()
        return self._buffers[self._turn][:num_bytes]

    def copy(self, values: Tensor, destination: Tensor) -> None:
        if not self._cuda:
            destination.copy_(values)
            return
        with cuda.stream(self._stream):
            if values.dtype is not destination.dtype:
                # copy_ would convert on the host, into pageable memory.
                values = values.to(destination.device, non_blocking=True)
            destination.copy_(values, non_blocking=True)
            self._events[self._turn].record(self._stream)

    def finish(self) -> None:
        if self._cuda:
            self._stream.synchronize()


def _open(file: Path, stack: ExitStack) -> int:
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError as error:
        raise LoadError(f"{file} cannot be opened: {error}") from error
    stack.callback(os.close, descriptor)
    return descriptor


def _read_into(target: Tensor, descriptor: int, piece: ReadJob) -> None:
    """Fills `target` ((bytes,) uint8, cpu) from the file.

    Raises:
        LoadError: the file ends before.
    """
    view = memoryview(target.numpy().data)
    done = 0
    while done < len(view):
        try:
            count = os.preadv(descriptor, [view[done:]], piece.offset + done)
        except OSError as error:
            raise LoadError(f"{piece.file} cannot be read at byte {piece.offset + done}: {error}") from error
        if count == 0:
            raise LoadError(
                f"{piece.file} is torn: it ends at byte {piece.offset + done}, {len(view) - done} more were expected"
            )
        done += count
