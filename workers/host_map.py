"""Mapped host memory that CUDA may have registered: unregistered before it is unmapped, whoever lets go of it last.

A range that is unmapped while it is registered stays known to the driver, and whatever the system maps at its address
next can neither be pinned nor copied from ("resource already mapped").
"""

import contextlib
import mmap
from collections.abc import Callable
from typing import Any

import torch

cuda: Any = torch.cuda  # its classes are untyped in some releases of torch


class HostMap(mmap.mmap):
    """A map that calls `before_unmap` once, when its last view is gone and its bytes are still there."""

    before_unmap: Callable[[], None] | None = None

    def __del__(self) -> None:
        self.let_go()

    def let_go(self) -> None:
        """Does now what would be done before unmapping."""
        callback, self.before_unmap = self.before_unmap, None
        if callback is not None:
            callback()


class RegistrationError(Exception):
    """CUDA refused to register host memory."""


def register(memory: HostMap, *, address: int) -> None:
    """Pins the whole map, until it is let go of.

    Raises:
        RegistrationError: the system refuses; the error is not left behind for whatever CUDA is asked next.
    """
    if memory.before_unmap is not None:
        return
    runtime: Any = cuda.cudart()
    code = int(runtime.cudaHostRegister(address, len(memory), 0))
    if code != 0:
        _forget_last_error()
        raise RegistrationError(f"CUDA error {code}")
    memory.before_unmap = lambda: runtime.cudaHostUnregister(address)


def _forget_last_error() -> None:
    """CUDA keeps the code of a refused call, and PyTorch's next kernel would raise it as its own."""
    if cuda.is_available():
        with contextlib.suppress(RuntimeError):
            torch.zeros(1, device="cuda")
