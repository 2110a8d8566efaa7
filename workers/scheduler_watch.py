"""Sees every scheduler step of every pipeline, whether or not it has callbacks."""

import functools
from collections.abc import Callable
from typing import Any

from workers.deferred import wait_all


def watch_scheduler(scheduler: Any, on_step: Callable[[Any], None]) -> None:
    """Makes `scheduler.step` wait for deferred arguments and call `on_step(scheduler)` afterwards.

    A scheduler keeps state and draws random numbers, so deferral stops here. The instance gets a subclass of its own
    class (not an instance attribute), because some pipelines deep-copy their scheduler; `functools.wraps` keeps the
    signature, because pipelines inspect it (`eta`, `generator`).
    """
    original = type(scheduler)
    if "step" not in dir(original):
        return
    original_step = original.step

    @functools.wraps(original_step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = wait_all((args, kwargs))
        result = original_step(self, *args, **kwargs)
        on_step(self)
        return result

    scheduler.__class__ = type(original.__name__, (original,), {"step": step, "__module__": original.__module__})


def num_scheduler_steps(scheduler: Any) -> int | None:
    """Steps of the schedule that is set, or None where the scheduler does not say."""
    timesteps = getattr(scheduler, "timesteps", None)
    return None if timesteps is None else len(timesteps)
