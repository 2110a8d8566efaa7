"""The seam's cost on a started group: its denoiser's forward is replaced by one small operation, all else is real.

What is left of a step of two calls is hooking, the queue, deferral, the messages and the tensors' way over the process
group (NCCL on GPUs) there and back.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import ray
import torch
import torch.distributed as dist

from benchmarks.rank_probes import probe, start
from workers.deferred import wait_all
from workers.group import WorkerGroup

NUM_WARM = 20
LATENTS = {"Wan 480p, 81 frames": (1, 16, 21, 60, 104), "Qwen-Image 1024 x 1024": (1, 4096, 64)}
EMBEDDINGS = (1, 512, 4096)


def measure_seam(group: WorkerGroup, *, num_steps: int) -> list[dict[str, Any]]:
    """One row a shape: milliseconds of a plain call, of a step of two calls on two ranks, and of the bare transfer."""
    probe(group, replace_forward)
    rows = []
    for what, shape in LATENTS.items():
        leader, follower = group._ranks
        times = ray.get(start(leader, time_steps, shape, num_steps), timeout=120.0)
        answering = start(follower, answer_transfers, shape, num_steps)
        transfer = ray.get(start(leader, time_transfers, shape, num_steps), timeout=120.0)
        ray.get(answering, timeout=120.0)
        added = times["seam_ms"] - times["plain_ms"]
        rows.append(
            {
                "latents": what,
                **times,
                "transfer_ms": transfer,
                "added_us_a_step": 1e3 * added,
                "added_us_a_call": 1e3 * added / 2,
                "above_transfer_us_a_call": 1e3 * (added - transfer) / 2,
            }
        )
    probe(group, restore_forward)
    return rows


# What follows runs in the ranks' processes.


def replace_forward(rank: Any) -> None:
    """The transformer returns its latents plus a little, whatever the model is."""

    def forward(hidden_states: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor) -> Any:
        return (hidden_states * timestep + encoder_hidden_states[0, 0, 0],)

    rank._components.modules["transformer"].forward = forward


def restore_forward(rank: Any) -> None:
    del rank._components.modules["transformer"].forward


def time_steps(rank: Any, shape: tuple[int, ...], num_steps: int) -> dict[str, float]:
    """Leader: median milliseconds of a step of one call without the seam, and of two calls through it."""
    return dict(rank._compute.submit(_time_steps, rank, shape, num_steps).result())


def _time_steps(rank: Any, shape: tuple[int, ...], num_steps: int) -> dict[str, float]:
    device, dtype = rank._device(), _dtype(rank)
    module, seam = rank._components.modules["transformer"], rank._leader.seam
    latents = torch.randn(shape, device=device, dtype=dtype)
    positive, negative = (torch.randn(EMBEDDINGS, device=device, dtype=dtype) for _ in range(2))
    timestep = torch.ones(1, device=device, dtype=dtype)

    def arguments() -> dict[str, Any]:
        return {"hidden_states": latents + 0.0, "timestep": timestep + 0.0}

    def plain() -> None:
        first = module.forward(**arguments(), encoder_hidden_states=positive)[0]
        first + 4.0 * (first - first)

    def through_seam() -> None:
        given = arguments()
        first = module(**given, encoder_hidden_states=positive)[0]
        second = module(**given, encoder_hidden_states=negative)[0]
        seam.end_step()
        wait_all(second + 4.0 * (first - second))

    with torch.no_grad():
        seconds = {"plain_ms": _times(plain, num_steps, device), "seam_ms": _times(through_seam, num_steps, device)}
    seam.reset()
    return seconds


def time_transfers(rank: Any, shape: tuple[int, ...], num_rounds: int) -> float:
    """Leader: median milliseconds of latents sent to the follower and back, by the process group alone."""
    return float(rank._compute.submit(_exchange, rank, shape, num_rounds, is_first=True).result())


def answer_transfers(rank: Any, shape: tuple[int, ...], num_rounds: int) -> None:
    """Follower: on a thread of its own, since its loop waits for the leader's next message."""
    _exchange(rank, shape, num_rounds, is_first=False)


def _exchange(rank: Any, shape: tuple[int, ...], num_rounds: int, *, is_first: bool) -> float:
    device = rank._device()
    latents = torch.ones(shape, device=device, dtype=_dtype(rank))
    peer = 1 if is_first else 0

    def there_and_back() -> None:
        if is_first:
            dist.send(latents, dst=peer)
            dist.recv(latents, src=peer)
        else:
            dist.recv(latents, src=peer)
            dist.send(latents, dst=peer)

    return _times(there_and_back, num_rounds, device)


def _dtype(rank: Any) -> torch.dtype:
    """Of the latents, as large models have it; whatever dtype the group's own model has."""
    return torch.bfloat16 if rank._plan.device == "cuda" else torch.float32


def _times(action: Callable[[], None], count: int, device: torch.device) -> float:
    seconds = []
    for index in range(NUM_WARM + count):
        began = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if index >= NUM_WARM:
            seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds)
