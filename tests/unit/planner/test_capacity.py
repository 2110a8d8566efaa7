"""The capacity that an error names: the smallest that fits, found at once however large."""

import time

import pytest

from planner.evaluation import GIB, capacity_for
from planner.memory import gpu_headroom_bytes, host_headroom_bytes


@pytest.mark.parametrize("headroom", [gpu_headroom_bytes, host_headroom_bytes])
@pytest.mark.parametrize("peak_bytes", [0, 1, GIB - 1, GIB, 37 * GIB + 5, 700 * GIB])
def test_it_fits_and_one_gib_less_does_not(headroom, peak_bytes):
    capacity = capacity_for(peak_bytes, headroom=headroom)
    assert capacity - headroom(capacity) >= peak_bytes
    less = capacity - GIB
    assert less == 0 or less - headroom(less) < peak_bytes


def test_absurd_sizes_take_no_time():
    start = time.process_time()
    capacity_for(2**80, headroom=gpu_headroom_bytes)
    assert time.process_time() - start < 0.1
