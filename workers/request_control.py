"""What watches one running call: cancellation, deadline, progress, and the seconds of each stage."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from workers.calls import Preview, Progress, Stage
from workers.errors import CallCancelledError, DeadlineExceededError

_MAX_CANCELLED_IDS = 256  # cancelled before they began, or after they ended: those must not pile up


class RequestControl:
    """Lives as long as one run of the pipeline. `cancel` may be called from any thread, the rest from one.

    Args:
        deadline_s: seconds from now; None for no deadline.
        predicted_step_s: seconds of a step by the plan, said until the first step has been measured.
        emit: receives the progress events; must not block.
    """

    def __init__(
        self,
        *,
        deadline_s: float | None = None,
        predicted_step_s: float | None = None,
        emit: Callable[[Progress | Preview], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._emit = emit
        self._cancelled = threading.Event()
        self._deadline_s = deadline_s
        self._predicted_step_s = predicted_step_s
        self._stage: Stage = "encode"
        self._stage_start = self._start = clock()
        self._num_steps: int | None = None
        self._step = 0
        self.num_previews = 0
        self.has_called_denoiser = False
        self.stage_seconds: dict[str, float] = {"encode": 0.0, "denoise": 0.0, "decode": 0.0}
        emit(Progress("encode", 0, None, None))

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    @property
    def seconds_to_deadline(self) -> float | None:
        """Never below zero; None without a deadline."""
        if self._deadline_s is None:
            return None
        return max(0.0, self._deadline_s - (self._clock() - self._start))

    def cancel(self) -> None:
        """Ends the call at its next check."""
        self._cancelled.set()

    def check(self) -> None:
        """Raises if the call was cancelled or is past its deadline."""
        if self._cancelled.is_set():
            raise CallCancelledError("the call was cancelled")
        if self._deadline_s is not None and self._clock() - self._start > self._deadline_s:
            raise DeadlineExceededError(f"the call took longer than its deadline of {self._deadline_s:g} s")

    def on_denoiser_call(self, num_steps: int | None) -> None:
        """Called before each denoiser call; the first one after encoding, or after another stage, begins denoising."""
        self.check()
        self.has_called_denoiser = True
        if self._stage != "denoise":
            self._enter("denoise")
            self._num_steps = num_steps
            self._report()

    def on_step(self, step: int, num_steps: int | None) -> None:
        """Called after each step of the schedule, with the steps finished so far and all that are known of."""
        self._step, self._num_steps = step, num_steps
        if self._stage == "encode":  # the pipeline has a denoiser that is not called through the seam
            self._enter("denoise")
        self._report()
        if step == num_steps:
            self._enter("decode")
            self._report()

    def on_preview(self, pixels: Any, *, seconds: float) -> None:
        """Shows a picture of the unfinished work. Its seconds count as decoding, so that a step's stay a step's."""
        self.stage_seconds["decode"] += seconds
        self._stage_start += seconds
        self._emit(Preview(pixels, self.num_previews, self._step))
        self.num_previews += 1

    def on_vae_call(self) -> None:
        """Called in a VAE: where the schedule's length is unknown, that is how decoding begins."""
        self.check()
        if self._stage == "denoise" and self._step and self._num_steps is None:
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
        step_s = self._step_seconds()
        if self._stage == "denoise" and self._num_steps and step_s is not None:
            left = step_s * max(0, self._num_steps - self._step)
        self._emit(Progress(self._stage, self._step, self._num_steps, left))

    def _step_seconds(self) -> float | None:
        """Seconds of a step: measured once there is one, else predicted."""
        if not self._step:
            return self._predicted_step_s
        return (self.stage_seconds["denoise"] + self._clock() - self._stage_start) / self._step


class RunningRequest:
    """The request that a rank works on, if any. `cancel` comes from any thread, also before the request begins."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._request_id: str | None = None
        self._cancelled_ids: deque[str] = deque(maxlen=_MAX_CANCELLED_IDS)
        self.control: RequestControl | None = None

    def begin(self, request_id: str, control: RequestControl) -> None:
        """Takes a request up; one that was cancelled before raises at its first check."""
        with self._lock:
            if request_id in self._cancelled_ids:
                self._cancelled_ids.remove(request_id)
                control.cancel()
            self.control, self._request_id = control, request_id

    def end(self) -> None:
        """The request is over, well or not."""
        with self._lock:
            self.control = self._request_id = None

    def cancel(self, request_id: str) -> None:
        """Ends the request at its next check, or before it begins."""
        with self._lock:
            if self._request_id == request_id and self.control is not None:
                self.control.cancel()
            else:
                self._cancelled_ids.append(request_id)

    def describe(self) -> tuple[str, float | None]:
        """The running request's id and its seconds to the deadline: what another rank has to know of it."""
        control = self.control
        return self._request_id or "", None if control is None else control.seconds_to_deadline

    def check(self) -> None:
        """Raises if the running request was cancelled or is past its deadline; does nothing between requests."""
        control = self.control
        if control is not None:
            control.check()
