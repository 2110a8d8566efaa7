"""What a benchmark asks of ranks: each function here runs in a rank's process, between requests.

Ray runs them there with the rank as their first argument (`probe`), so that a group needs no methods for benchmarks.
"""

import os
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import ray
import torch

from benchmarks.architectures import fill_random
from workers.group import WorkerGroup
from workers.sharding import held_bytes


def probe(group: WorkerGroup, function: Callable[..., Any], *arguments: Any, timeout_s: float = 120.0) -> list[Any]:
    """Runs `function(rank, *arguments)` on every rank of the group at once; returns the results by world rank."""
    return list(ray.get([start(rank, function, *arguments) for rank in group._ranks], timeout=timeout_s))


def start(rank: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs `function(rank, *arguments)` on one rank; returns Ray's reference to the result."""
    return rank.__ray_call__.remote(function, *arguments)


def fill_weights(rank: Any) -> None:
    """Gives all components random weights, equal on all ranks and for every number of ranks; forgets the peak."""
    for name, module in rank._components.modules.items():
        fill_random(module, seed=zlib.crc32(name.encode()), device=rank._device())
    forget_peak(rank)


def forget_peak(rank: Any) -> None:
    """Begins the rank's peak of device memory anew, at what is allocated now."""
    if rank._plan.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def allocated_bytes(rank: Any) -> tuple[int, int]:
    """Device bytes in tensors: now, and the peak; zeros on a CPU."""
    if rank._plan.device != "cuda":
        return 0, 0
    return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()


def denoiser_bytes(rank: Any) -> int:
    """Bytes of the denoisers' weights that this rank holds."""
    total = 0
    for name, module in rank._components.modules.items():
        if name.startswith("transformer"):
            total += held_bytes(module)
    return total


def environment(rank: Any, names: Sequence[str]) -> dict[str, str | None]:  # noqa: ARG001
    """Variables of the rank's process."""
    return {name: os.environ.get(name) for name in names}


def is_device_busy(rank: Any) -> bool:
    """Whether work that was given to the device has not ended: a rank inside a collective has such work."""
    return rank._plan.device == "cuda" and not torch.cuda.default_stream().query()
