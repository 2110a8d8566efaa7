"""Sees every scheduler step of every pipeline, whether or not it has callbacks."""

from collections.abc import Callable
from typing import Any

from workers.deferred import wait_all


def watch_scheduler(scheduler: Any, on_step: Callable[[Any, Any], None]) -> None:
    """Makes `scheduler.step` wait for deferred arguments and call `on_step(scheduler, timestep)` afterwards.

    A scheduler keeps state and draws random numbers, so deferral stops here. The class stays what it is: some pipelines
    compare it (`type(scheduler) != FlowMatchEulerDiscreteScheduler`).
    """
    if hasattr(scheduler, "step"):
        scheduler.step = _WatchedStep(scheduler, on_step)


class _WatchedStep:
    """Stands in a scheduler instance in place of its method.

    `__wrapped__` keeps the signature, because pipelines inspect it (`eta`, `generator`). A deep copy of the scheduler,
    which some pipelines make, gets a watched step of its own.
    """

    def __init__(self, scheduler: Any, on_step: Callable[[Any, Any], None]) -> None:
        self._scheduler = scheduler
        self._on_step = on_step
        self.__wrapped__ = type(scheduler).step.__get__(scheduler)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = wait_all((args, kwargs))
        result = self.__wrapped__(*args, **kwargs)
        self._on_step(self._scheduler, _timestep_of(args, kwargs))
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> "_WatchedStep":
        return _WatchedStep(memo[id(self._scheduler)], self._on_step)


def _timestep_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Every scheduler's second argument, after the model's output."""
    return kwargs["timestep"] if "timestep" in kwargs else (args[1] if len(args) > 1 else None)
