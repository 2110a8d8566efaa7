"""What watches one running call: cancellation, deadline, progress, and the seconds of each stage."""

import threading
import time
from collections.abc import Callable

from workers.calls import Progress, Stage
from workers.errors import CallCancelledError, DeadlineExceededError


class RequestControl:
    """Lives as long as one run of the pipeline. `cancel` may be called from any thread, the rest from one.

    Args:
        deadline_s: seconds from now; None for no deadline.
        emit: receives the progress events; must not block.
    """

    def __init__(
        self,
        *,
        deadline_s: float | None = None,
        emit: Callable[[Progress], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._emit = emit
        self._cancelled = threading.Event()
        self._deadline_s = deadline_s
        self._stage: Stage = "encode"
        self._stage_start = self._start = clock()
        self._num_steps: int | None = None
        self._step = 0
        self.stage_seconds: dict[str, float] = {"encode": 0.0, "denoise": 0.0, "decode": 0.0}
        emit(Progress("encode", 0, None, None))

    def cancel(self) -> None:
        """Ends the call at its next denoiser call or scheduler step."""
        self._cancelled.set()

    def check(self) -> None:
        """Raises if the call was cancelled or is past its deadline."""
        if self._cancelled.is_set():
            raise CallCancelledError("the call was cancelled")
        if self._deadline_s is not None and self._clock() - self._start > self._deadline_s:
            raise DeadlineExceededError(f"the call took longer than its deadline of {self._deadline_s:g} s")

    @property
    def has_called_denoiser(self) -> bool:
        """Whether the first denoiser call has begun."""
        return self._stage != "encode"

    def on_denoiser_call(self, num_steps: int | None) -> None:
        """Called before each denoiser call."""
        self.check()
        if self._stage == "encode":
            self._enter("denoise")
            self._num_steps = num_steps
            self._report()

    def on_step(self, num_steps: int | None) -> None:
        """Called after each step of the scheduler."""
        self.check()
        if self._stage != "denoise":
            return
        self._step += 1
        self._num_steps = num_steps
        self._report()
        if self._step == num_steps:
            self._enter("decode")
            self._report()

    def finish(self) -> None:
        """Closes the last stage."""
        self._enter(self._stage)

    def _enter(self, stage: Stage) -> None:
        now = self._clock()
        self.stage_seconds[self._stage] += now - self._stage_start
        self._stage, self._stage_start = stage, now

    def _report(self) -> None:
        left = None
        if self._stage == "denoise" and self._step and self._num_steps:
            step_s = (self._clock() - self._stage_start) / self._step
            left = step_s * (self._num_steps - self._step)
        self._emit(Progress(self._stage, self._step, self._num_steps, left))
