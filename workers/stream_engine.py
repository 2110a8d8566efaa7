"""Host memory that copies can start from at full speed, and the copies themselves: on a GPU, or on the CPU for tests.

The CPU engine runs the same logic with plain copies in order; the GPU engine copies on a stream of its own, ordered
with the computation by events only (the host never waits).
"""

import contextlib
import mmap
from typing import Any, Protocol

import torch
from torch import Tensor

from workers.errors import WorkerError
from workers.host_map import HostMap, RegistrationError, register
from workers.shared_host import SharedHost, SharingRefusedError

cuda: Any = torch.cuda  # its classes are untyped in some releases of torch


class HostMemoryError(WorkerError):
    """Host memory for streaming is over its budget or cannot be pinned; the message has the numbers."""


class CopyEngine(Protocol):
    """Moves flat blocks to a device. A ticket is whatever orders two actions (an event), or None."""

    @property
    def device(self) -> torch.device: ...

    def start_copy(self, target: Tensor, source: Tensor, *, after: Any) -> Any:
        """Starts copying (bytes,) host to device once the ticket `after` is due; returns the copy's ticket."""

    def wait(self, ticket: Any) -> None:
        """Makes what is computed from now on wait for the ticket."""

    def mark(self) -> Any:
        """A ticket that is due when everything computed so far is done."""


class CpuEngine:
    """Plain copies, done when they are started."""

    device = torch.device("cpu")

    def start_copy(self, target: Tensor, source: Tensor, *, after: Any) -> Any:  # noqa: ARG002
        target.copy_(source)

    def wait(self, ticket: Any) -> None:
        """Copies are done when they are started."""

    def mark(self) -> Any:
        return None


class CudaEngine:
    """Asynchronous copies on one stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = cuda.Stream(device)
        # Device buffers may reuse memory that earlier work still reads.
        self._stream.wait_stream(cuda.current_stream(device))

    def start_copy(self, target: Tensor, source: Tensor, *, after: Any) -> Any:
        with cuda.stream(self._stream):
            if after is not None:
                self._stream.wait_event(after)
            target.copy_(source, non_blocking=True)
            return self._stream.record_event()

    def wait(self, ticket: Any) -> None:
        cuda.current_stream(self.device).wait_event(ticket)

    def mark(self) -> Any:
        return cuda.current_stream(self.device).record_event()


def make_engine(device: torch.device) -> CopyEngine:
    return CudaEngine(device) if device.type == "cuda" else CpuEngine()


class HostMemory:
    """Flat host buffers within a budget, pinned where they feed a GPU.

    Buffers are anonymous maps, filled first and registered afterwards: 0.095 s a GiB on an H100's host, where
    allocating pinned memory took about 1 s a GiB and rounds up to powers of two.

    Args:
        max_bytes: refuse to take more; None for no limit. Memory that a peer has taken does not count.
        pin: register with CUDA.
        shared: take the buffers together with the other ranks of this node that hold the same weights.
    """

    def __init__(self, *, max_bytes: int | None = None, pin: bool = False, shared: SharedHost | None = None) -> None:
        self._max_bytes = max_bytes
        self._pin = pin
        self._shared = shared
        self._buffers: list[tuple[Tensor, HostMap]] = []
        self.taken_bytes = 0

    def take(self, num_bytes: int) -> Tensor:
        """A (num_bytes,) uint8 buffer, page-aligned, not yet touched.

        Raises:
            HostMemoryError: it would exceed the budget, here or on the rank that takes it for all.
        """
        if num_bytes == 0:
            return torch.empty(0, dtype=torch.uint8)
        memory = self._take_shared(num_bytes) or self._take_private(num_bytes)
        with contextlib.suppress(OSError):  # kernels without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
        buffer = torch.frombuffer(memory, dtype=torch.uint8)
        self._buffers.append((buffer, memory))
        return buffer

    @property
    def is_filled_by_peer(self) -> bool:
        """Whether another rank reads the weights into the buffers taken so far."""
        return self._shared is not None and self._shared.is_filled_by_peer

    def finish_filling(self) -> None:
        """After loading, on every rank that shares the buffers: returns when they are filled."""
        if self._shared is not None:
            self._shared.finish()

    def _take_shared(self, num_bytes: int) -> HostMap | None:
        if self._shared is None:
            return None
        if self._shared.is_filler:
            self._check_budget(num_bytes)
        try:
            memory = self._shared.map(num_bytes)
        except SharingRefusedError as error:
            raise HostMemoryError(str(error)) from error
        if memory is not None and self._shared.is_filler:
            self.taken_bytes += num_bytes
        return memory

    def _take_private(self, num_bytes: int) -> HostMap:
        self._check_budget(num_bytes)
        self.taken_bytes += num_bytes
        return HostMap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def _check_budget(self, num_bytes: int) -> None:
        if self._max_bytes is None or self.taken_bytes + num_bytes <= self._max_bytes:
            return
        reason = (
            f"streaming needs {(self.taken_bytes + num_bytes) / 2**30:.2f} GiB of host memory or more, "
            f"{self._max_bytes / 2**30:.2f} GiB are allowed: keep more blocks resident, or raise the host budget"
        )
        if self._shared is not None:
            self._shared.refuse(reason)
        raise HostMemoryError(reason)

    def find(self, first: Tensor, num_bytes: int) -> Tensor | None:
        """The buffer that starts where `first` lies and holds `num_bytes`, if any."""
        for buffer, _ in self._buffers:
            if buffer.data_ptr() == first.data_ptr() and buffer.nbytes >= num_bytes:
                return buffer
        return None

    def pin_all(self) -> None:
        """Registers everything taken so far with CUDA; call it when the buffers are filled.

        Raises:
            HostMemoryError: the system refuses; nothing is streamed from unpinned memory instead (8 times slower).
        """
        if not self._pin:
            return
        total = sum(buffer.nbytes for buffer, _ in self._buffers)
        for buffer, memory in self._buffers:
            try:
                register(memory, address=buffer.data_ptr())
            except RegistrationError as error:
                self.release()
                raise HostMemoryError(
                    f"cannot pin {total / 2**30:.2f} GiB of host memory for streaming ({error}): "
                    f"raise the container's memory or locked-memory limit, or choose resident, sharded or offload"
                ) from error

    def release(self) -> None:
        """Unpins now; the memory goes when its last view goes, which would unpin it too."""
        for _, memory in self._buffers:
            memory.let_go()
        self._buffers.clear()
        self.taken_bytes = 0
