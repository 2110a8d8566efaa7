"""Cancels a call while a component of a rank computes: one of its blocks waits until the cancellation has arrived."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray

from workers.calls import GenerateCall, GenerateResult
from workers.errors import CallCancelledError
from workers.group import WorkerGroup

_BLOCKS = {"encode": ("text_encoder", "encoder.block"), "decode": ("vae", "decoder.up_blocks")}
WAIT_S = 150.0


def cancel_inside(group: WorkerGroup, call: GenerateCall, stage: str, *, world_rank: int) -> int:
    """Cancels the call inside the first block of the stage's component; returns how many later blocks ran all the same.

    Raises:
        AssertionError: the call ended with a result.
    """
    rank = group._ranks[world_rank]
    ray.get(rank.__ray_call__.remote(_install, stage), timeout=WAIT_S)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(_end_of, group, call)
        ray.get(rank.__ray_call__.remote(_wait_until_held), timeout=WAIT_S)
        group.cancel(call.request_id)
        assert isinstance(running.result(timeout=WAIT_S), CallCancelledError)
    return int(ray.get(rank.__ray_call__.remote(_remove), timeout=WAIT_S))


def _end_of(group: WorkerGroup, call: GenerateCall) -> GenerateResult | CallCancelledError:
    try:
        return group.generate(call)
    except CallCancelledError as error:
        return error


# What follows runs in the rank's process.


def _install(rank: Any, stage: str) -> None:
    component, path = _BLOCKS[stage]
    first, *others = rank._components.modules[component].get_submodule(path)
    rank._held_count = 0
    rank._is_held = threading.Event()

    def hold() -> None:
        rank._is_held.set()
        assert rank._request.control._cancelled.wait(WAIT_S), "nobody cancelled"

    def count() -> None:
        rank._held_count += 1

    _run_after(first, hold)
    for block in others:
        _run_after(block, count)
    rank._held_blocks = [first, *others]


def _run_after(block: Any, action: Callable[[], None]) -> None:
    """Not by a hook: a call of a module that has got hooks since the start is refused where it is sharded."""
    forward = block.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        result = forward(*args, **kwargs)
        action()
        return result

    block.forward = run


def _wait_until_held(rank: Any) -> None:
    assert rank._is_held.wait(WAIT_S), "the block was not reached"


def _remove(rank: Any) -> int:
    for block in rank._held_blocks:
        del block.forward
    return int(rank._held_count)
