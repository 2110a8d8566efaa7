"""How far a run has come, counted in steps of its schedules, for pipelines of every kind."""

from collections.abc import Sequence
from typing import Any

import torch

_OWN_COUNT = "_num_timesteps"
"""Two pipelines in three note the length of their schedule there, cut by img2img's strength, before they loop."""


class StepCounter:
    """Counts the steps of one run.

    A pipeline may step several schedulers with one timestep (sound beside video), or one scheduler for several views of
    the picture: that is one step. It may run one schedule after another (a prior, then a decoder): those add up.
    Schedulers of second order have two timesteps a step; each counts, as their schedule's length counts them.

    Args:
        pipeline: about to be run.
        schedulers: its schedulers.
    """

    def __init__(self, pipeline: Any, schedulers: Sequence[Any]) -> None:
        self._pipeline = pipeline
        self._schedulers = schedulers
        self._current: Any = None
        self._companions: list[Any] = []
        self._timestep: Any = None
        self._num_finished = 0
        self._num_steps_here = 0
        self._length: int | None = None
        if getattr(pipeline, _OWN_COUNT, None) is not None:
            setattr(pipeline, _OWN_COUNT, None)  # of the run before

    @property
    def num_steps_done(self) -> int:
        """Steps finished, over all schedules."""
        return self._num_finished + self._num_steps_here

    @property
    def num_steps(self) -> int | None:
        """Steps of all schedules known of so far; None if unknown."""
        if self._current is None:
            only = self._schedulers[0] if len(self._schedulers) == 1 else None
            return self._planned_length(only)
        return None if self._length is None else self._num_finished + self._length

    def on_step(self, scheduler: Any, timestep: Any) -> bool:
        """Called after each `scheduler.step`; returns whether a step of the schedule is finished by it."""
        if any(scheduler is companion for companion in self._companions):
            return False
        if scheduler is self._current and timestep is self._timestep and isinstance(timestep, torch.Tensor):
            return False
        if scheduler is not self._current:
            if self._current is not None and not self._is_finished():
                self._companions.append(scheduler)
                return False
            self._begin(scheduler, timestep)
        elif self._is_finished():
            self._begin(scheduler, timestep)
        self._timestep = timestep
        self._num_steps_here += 1
        return True

    def _is_finished(self) -> bool:
        return self._length is not None and self._num_steps_here >= self._length

    def _begin(self, scheduler: Any, timestep: Any) -> None:
        self._num_finished += self._num_steps_here
        self._num_steps_here = 0
        self._current = scheduler
        self._length = self._planned_length(scheduler)
        if self._length is None or getattr(self._pipeline, _OWN_COUNT, None) is None:
            self._length = _length_from(scheduler, timestep)

    def _planned_length(self, scheduler: Any) -> int | None:
        own = getattr(self._pipeline, _OWN_COUNT, None)
        if own is not None:
            return int(own)
        timesteps = getattr(scheduler, "timesteps", None)
        return None if timesteps is None else len(timesteps) - (getattr(scheduler, "begin_index", None) or 0)


def _length_from(scheduler: Any, timestep: Any) -> int | None:
    """Steps from the first timestep that was taken on: pipelines with a strength skip the schedule's beginning.

    Reads the timestep's value: waits for the device, once a schedule.
    """
    timesteps = getattr(scheduler, "timesteps", None)
    if timesteps is None:
        return None
    first = torch.as_tensor(timestep).flatten()
    if first.numel() == 0:
        return len(timesteps)
    found = (torch.as_tensor(timesteps).cpu() == first[0].cpu()).nonzero()
    return len(timesteps) - (int(found[0]) if len(found) else 0)
