"""Pictures of a call that still runs.

How latents become pixels (unpacked, scaled, decoded, cut) is written in each pipeline's `__call__` and nowhere else. So
a preview runs that code: a copy of the pipeline is called with the same arguments, while encoders and denoisers answer
with blanks (`replay.py`) and each scheduler step with the latents of the real run (`early_finish.py`). What is
left of such a run is the pipeline's own way from latents to pixels. It happens inside a step of the real run, on the
leader, between two denoiser calls; it has random generators, schedulers and guiders of its own.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.guiders import BaseGuidance

from workers.early_finish import finish_early
from workers.errors import WorkerError
from workers.out_of_memory import free_memory_of, is_out_of_memory
from workers.pipeline_output import normalize_output
from workers.replay import CannotReplayError, Replay
from workers.schedule_progress import StepCounter

logger = logging.getLogger(__name__)


def evenly_spread(num_previews: int, num_steps: int) -> frozenset[int]:
    """After which steps (from 1) previews are shown; fewer than asked for where there are fewer steps before the last.

    >>> sorted(evenly_spread(3, 20))
    [5, 10, 15]
    """
    spread = (round(num_steps * index / (num_previews + 1)) for index in range(1, num_previews + 1))
    return frozenset(step for step in spread if 0 < step < num_steps)


class Previews:
    """Makes the previews of one call after the other. Used from the compute thread only.

    Args:
        pipeline: the leader's.
        replay: stands before its components.
        choose: after which of so many steps that many previews are shown.
    """

    def __init__(
        self, pipeline: Any, replay: Replay, *, choose: Callable[[int, int], frozenset[int]] = evenly_spread
    ) -> None:
        self.choose = choose
        self.num_failed = 0
        self._pipeline = pipeline
        self._replay = replay
        self._call: _PreviewedCall | None = None

    @contextmanager
    def during(self, arguments: dict[str, Any], *, seed: int, num_previews: int, steps: StepCounter) -> Iterator[None]:
        """For one run of the pipeline with these arguments; without previews it costs nothing."""
        self.num_failed = 0
        if not num_previews:
            yield
            return
        self._call = _PreviewedCall(arguments, seed, num_previews, steps)
        try:
            with self._replay.recording():
                yield
        finally:
            self._call = None

    def run_step(self, scheduler: Any, step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs a scheduler's step; keeps what a preview after it has to show."""
        call = self._call
        if call is None:
            return step(*args, **kwargs)
        if self._replay.is_replaying:  # a pipeline inside of the pipeline, whose scheduler was not replaced
            raise CannotReplayError("it is made of several pipelines")
        call.finished = None
        if not call.is_wanted_next(self.choose):
            return step(*args, **kwargs)
        try:
            with _own_randomness():
                call.finished = finish_early(scheduler, args, kwargs)
        except Exception as error:
            self._note_failure(error)
        return step(*args, **kwargs)

    def refuse_parts(self) -> None:
        """Called where a step of the schedule takes several steps of schedulers: one of them is not the picture."""
        if self._call is not None:
            self._call = None
            self._note_failure(ValueError("its steps are made of several parts"))

    def show(self) -> Any:
        """The picture after the step that has just been counted, (H, W, 3) uint8; None if none is wanted or possible.

        Raises:
            WorkerError: the call was cancelled, is past its deadline, or a rank is gone.
        """
        call = self._call
        if call is None or call.finished is None:
            return None
        finished, call.finished = call.finished, None
        try:
            with self._replay.replaying(), _own_randomness():
                torch.manual_seed(call.seed)
                return _first_picture(self._run_again(call.arguments, finished))
        except WorkerError:
            raise
        except Exception as error:  # a pipeline's code may raise anything; the call itself goes on
            self._note_failure(error)
            return None

    def _run_again(self, arguments: dict[str, Any], finished: Any) -> Any:
        again = _copy_for_preview(self._pipeline, finished)
        arguments = dict(arguments)
        if "generator" in arguments:  # the same draws again: what is kept of a picture to start from holds noise
            arguments["generator"] = torch.Generator("cpu").manual_seed(arguments["generator"].initial_seed())
        if "output_type" in arguments:
            arguments["output_type"] = "np"
        return normalize_output(again(**arguments), output_type="np")[0]

    def _note_failure(self, error: Exception) -> None:
        self.num_failed += 1
        if is_out_of_memory(error):
            free_memory_of(error)
        logger.warning("%s: no preview: %s: %s", type(self._pipeline).__name__, type(error).__name__, error)


class _PreviewedCall:
    """One call that shows previews."""

    def __init__(self, arguments: dict[str, Any], seed: int, num_previews: int, steps: StepCounter) -> None:
        self.arguments = arguments
        self.seed = seed
        self.finished: Any = None
        self._num_previews = num_previews
        self._steps = steps

    def is_wanted_next(self, choose: Callable[[int, int], frozenset[int]]) -> bool:
        num_steps = self._steps.num_steps
        return num_steps is not None and self._steps.num_steps_done + 1 in choose(self._num_previews, num_steps)


def _copy_for_preview(pipeline: Any, finished: Any) -> Any:
    """The pipeline with schedulers and guiders of its own, whose steps all return `finished`."""
    again = copy.copy(pipeline)
    # The original would reset step caches, which the real run still needs.
    vars(again)["maybe_free_model_hooks"] = lambda: None
    for name, component in pipeline.components.items():
        if hasattr(component, "step") and hasattr(component, "set_timesteps"):
            scheduler = copy.deepcopy(component)
            scheduler.step = _ReplayedStep(scheduler, finished)
            vars(again)[name] = scheduler
        elif isinstance(component, BaseGuidance):
            vars(again)[name] = copy.deepcopy(component)
    return again


class _ReplayedStep:
    """A scheduler's step that is done already; `__wrapped__` keeps the signature, which pipelines inspect."""

    def __init__(self, scheduler: Any, finished: Any) -> None:
        self._finished = finished
        self.__wrapped__ = type(scheduler).step.__get__(scheduler)

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self._finished


def _first_picture(pixels: Any) -> Any:
    return pixels[0] if pixels.ndim == 4 else pixels[0][0]


@contextmanager
def _own_randomness() -> Iterator[None]:
    """What is drawn inside does not change what is drawn afterwards."""
    devices: Sequence[int] = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        yield
