"""Sees every scheduler step of every pipeline, whether or not it has callbacks."""

from collections.abc import Callable
from typing import Any

from workers.deferred import wait_all

RunStep = Callable[[Any, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Runs a scheduler's step: the scheduler, its own step, and the arguments."""


def run_plainly(_: Any, step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The step and nothing else."""
    return step(*args, **kwargs)


def watch_scheduler(scheduler: Any, on_step: Callable[[Any, Any], None], *, run_step: RunStep = run_plainly) -> None:
    """Makes `scheduler.step` wait for deferred arguments and call `on_step(scheduler, timestep)` afterwards.

    The step itself is run by `run_step`.

    A scheduler keeps state and draws random numbers, so deferral stops here. The class stays what it is: some pipelines
    compare it (`type(scheduler) != FlowMatchEulerDiscreteScheduler`).
    """
    if hasattr(scheduler, "step"):
        scheduler.step = _WatchedStep(scheduler, on_step, run_step)


class _WatchedStep:
    """Stands in a scheduler instance in place of its method.

    `__wrapped__` keeps the signature, because pipelines inspect it (`eta`, `generator`). A deep copy of the scheduler,
    which some pipelines make, gets a watched step of its own.
    """

    def __init__(self, scheduler: Any, on_step: Callable[[Any, Any], None], run_step: RunStep) -> None:
        self._scheduler = scheduler
        self._on_step = on_step
        self._run_step = run_step
        self.__wrapped__ = type(scheduler).step.__get__(scheduler)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = wait_all((args, kwargs))
        result = self._run_step(self._scheduler, self.__wrapped__, args, kwargs)
        self._on_step(self._scheduler, _timestep_of(args, kwargs))
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> "_WatchedStep":
        return _WatchedStep(memo[id(self._scheduler)], self._on_step, self._run_step)


def _timestep_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Every scheduler's second argument, after the model's output."""
    return kwargs["timestep"] if "timestep" in kwargs else (args[1] if len(args) > 1 else None)
