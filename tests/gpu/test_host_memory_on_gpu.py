"""Pinned host memory on a real driver: given back in time, and a refusal leaves nothing behind.

python -m pytest -c tests/gpu/pytest.ini tests/gpu/test_host_memory_on_gpu.py
"""

import gc

import pytest
import torch

from workers.host_map import HostMap, RegistrationError, register
from workers.stream_engine import HostMemory

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

NUM_BYTES = 64 * 2**20


def test_memory_that_was_dropped_can_be_pinned_again() -> None:
    for value in range(3):
        host = HostMemory(pin=True)
        buffer = host.take(NUM_BYTES).fill_(value)
        host.pin_all()
        assert buffer.is_pinned()
        assert int(buffer.to("cuda", non_blocking=True).float().mean()) == value
        del host, buffer  # the system gives the next round the same addresses
        gc.collect()
        assert torch.zeros(NUM_BYTES, dtype=torch.uint8).pin_memory().is_pinned()


def test_refused_registration_leaves_no_error_behind() -> None:
    memory = HostMap(-1, NUM_BYTES)
    address = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
    register(memory, address=address)
    callback, memory.before_unmap = memory.before_unmap, None
    with pytest.raises(RegistrationError, match="CUDA error"):
        register(memory, address=address)
    memory.before_unmap = callback
    assert int(torch.ones(3, device="cuda").sum()) == 3
