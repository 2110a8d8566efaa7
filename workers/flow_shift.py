"""The shift of a flow-matching schedule for one call: how much of the steps goes to high noise."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any


def takes_flow_shift(schedulers: Sequence[Any]) -> bool:
    """Whether every scheduler of a pipeline can be given a shift that holds from its next `set_timesteps` on."""
    return bool(schedulers) and all(_has_fixed_shift(scheduler) for scheduler in schedulers)


@contextmanager
def flow_shift(schedulers: Sequence[Any], value: float | None) -> Iterator[None]:
    """Sets the shift for the calls inside, and what was there before afterwards; None changes nothing."""
    if value is None:
        yield
        return
    with ExitStack() as stack:
        for scheduler in schedulers:
            stack.callback(_set, scheduler, _get(scheduler))
            _set(scheduler, value)
        yield


def _has_fixed_shift(scheduler: Any) -> bool:
    """Schedulers that work the shift out of each picture's size (`use_dynamic_shifting`) ignore the one that is set."""
    config = scheduler.config
    if getattr(config, "use_dynamic_shifting", False):
        return False
    is_uni_pc_like = getattr(config, "use_flow_sigmas", False) and "flow_shift" in config
    return is_uni_pc_like or hasattr(scheduler, "set_shift")


def _get(scheduler: Any) -> float:
    return float(scheduler.shift if hasattr(scheduler, "set_shift") else scheduler.config.flow_shift)


def _set(scheduler: Any, value: float) -> None:
    if hasattr(scheduler, "set_shift"):
        scheduler.set_shift(value)
    else:
        scheduler.register_to_config(flow_shift=value)
