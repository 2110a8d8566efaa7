"""Counts, for Ray's metrics, what a group ran serially though it has several lanes."""

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Protocol

from ray.util.metrics import Counter

from workers.calls import SeamStats

logger = logging.getLogger(__name__)

_DESCRIPTIONS = {
    "learnt_signatures": "denoiser calls that ran serially because their shape was new",
    "local_calls": "denoiser calls that could not leave the leader",
    "uncut_signatures": "shapes of batched denoiser calls that cannot be divided among the lanes",
}


class Incrementable(Protocol):
    """The part of a counter that is used here."""

    def inc(self, value: int | float = 1.0) -> None: ...


def _make_counter(name: str, description: str) -> Incrementable:
    counter: Incrementable = Counter(name, description=description)
    return counter


class SeamMetrics:
    """`heliograph_seam_*` counters of this process."""

    def __init__(self, make_counter: Callable[[str, str], Incrementable] = _make_counter) -> None:
        self._counters = {
            name: make_counter(f"heliograph_seam_{name}", description) for name, description in _DESCRIPTIONS.items()
        }

    def record(self, stats: SeamStats) -> None:
        """Adds what one served request ran serially; says so, since warm-up should have seen its shape."""
        counts = asdict(stats)
        if any(counts.values()):
            logger.warning("a request ran calls serially, see docs/serving.md on warm_up: %s", counts)
        for name, count in counts.items():
            if count:
                self._counters[name].inc(count)
