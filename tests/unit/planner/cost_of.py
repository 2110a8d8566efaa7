"""What refusing something costs, in CPU seconds and bytes; other work on the machine is not counted."""

import contextlib
import time
import tracemalloc
from collections.abc import Callable

import pytest

from planner.errors import PlannerError

MAX_CPU_S = 0.1
MAX_BYTES = 50 * 2**20
_RUNS = 5


def assert_cheap(run: Callable[[], object]) -> None:
    """Whatever comes of it, a typed error too: a run takes under 100 ms of CPU and 50 MB."""
    seconds: list[float] = []
    while not seconds or (seconds[-1] >= MAX_CPU_S and len(seconds) < _RUNS):
        started = time.process_time()
        with contextlib.suppress(PlannerError):
            run()
        seconds.append(time.process_time() - started)
    assert min(seconds) < MAX_CPU_S
    tracemalloc.start()
    try:
        with contextlib.suppress(PlannerError):
            run()
        assert tracemalloc.get_traced_memory()[1] < MAX_BYTES
    finally:
        tracemalloc.stop()


def assert_refused_cheaply(run: Callable[[], object], *, error: type[PlannerError]) -> str:
    """Runs until a run takes under 100 ms of CPU (a busy machine slows single ones), then once under tracemalloc."""
    seconds: list[float] = []
    while not seconds or (seconds[-1] >= MAX_CPU_S and len(seconds) < _RUNS):
        started = time.process_time()
        with pytest.raises(error):
            run()
        seconds.append(time.process_time() - started)
    assert min(seconds) < MAX_CPU_S
    tracemalloc.start()
    try:
        with pytest.raises(error) as caught:
            run()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MAX_BYTES
    message = str(caught.value)
    assert len(message) < 1500
    return message
