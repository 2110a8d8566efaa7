"""What one ingress replica and the groups that it talked to did, as Prometheus metrics in base units.

Labels are models, stages, ranks and words of fixed lists: nothing that a client wrote, and no ids.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric

from deployments.group_client import CallStats, GeneratedMedia, GroupEvent
from deployments.tracing import RequestTrace
from planner.plan import Plan
from workers.calls import Progress

PREFIX = "heliograph"
# From a step of a small model to a long video; the same for all, so that panels can be laid side by side.
_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 600.0, 1800.0, 3600.0)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)


class ServiceMetrics:
    """All metrics of a service: `registry` is of this replica, `shared` of what all replicas see alike."""

    def __init__(self) -> None:
        self.registry, self.shared = CollectorRegistry(), CollectorRegistry()
        self.num_running = self._gauge("num_requests_running", "pictures and videos that a group works on", "model")
        self.num_waiting = self._gauge("num_requests_waiting", "pictures and videos that wait for a group", "model")
        self.queued_seconds = self._gauge(
            "queued_work_seconds", "predicted, until the groups are through with what waits and runs", "model"
        )
        self.success = self._counter(
            "request_success", "finished pictures and videos: completed, or cancelled by their client",
            "model", "finished_reason",
        )  # fmt: skip
        self.failure = self._counter(
            "request_failure", "pictures and videos that failed, by the error's code", "model", "code"
        )
        self.latency = self._histogram(
            "e2e_request_latency_seconds", "from admission to the file, a picture or video each", "model"
        )
        self.queue_time = self._histogram(
            "request_queue_time_seconds", "from admission to a group's first word", "model"
        )
        self.stage_time = self._histogram(
            "stage_time_seconds", "encode, denoise and decode of a call, as its group measured them", "model", "stage"
        )
        self.step_time = self._histogram("step_time_seconds", "a denoising step, on average of its call", "model")
        self.batch_size = self._histogram(
            "batch_size", "pictures or clips that one call of the pipeline made", "model", buckets=_BATCH_BUCKETS
        )
        self.num_steps = self._counter("denoising_steps", "finished denoising steps of finished calls", "model")
        self.gpu_seconds = self._counter("gpu_seconds", "seconds of stages times the group's GPUs", "model")
        self.serial_calls = self._counter(
            "seam_serial_calls", "denoiser calls that ran serially though the group has several lanes", "model"
        )
        self.failed_previews = self._counter(
            "failed_previews", "previews that were asked for and could not be made; the leader's log says why", "model"
        )
        self.group_deaths = self._counter(
            "group_deaths", "calls that lost their group to its death; the request is sent to another once", "model"
        )
        self.gpu_peak = self._gauge(
            "gpu_peak_bytes", "a rank's peak since its group's start, of the last call", "model", "rank"
        )
        self.gpu_used = self._gauge(
            "gpu_used_bytes",
            "in use on a rank's whole GPU when the last call ended, as the driver says",
            "model",
            "rank",
        )
        self.gpu_peak_predicted = self._gauge("gpu_peak_predicted_bytes", "the plan's figure", "model", "rank")
        self.gpu_peak_ratio = self._gauge(
            "gpu_peak_predicted_to_measured_ratio", "the plan's peak over the measured one, fullest ranks", "model"
        )
        self.step_predicted = self._gauge("step_time_predicted_seconds", "the plan's figure", "model")
        self.step_ratio = self._gauge(
            "step_time_predicted_to_measured_ratio", "of the last call that had the plan's shape and steps", "model"
        )
        self.num_groups = self._shared(
            "num_groups", "groups by state: running, as Serve says, and wanted", "model", "state"
        )
        self.num_jobs = self._shared("num_jobs_unfinished", "accepted jobs in the database", "model")
        self.replicas_left_out = self._counter(
            "metrics_replicas_left_out", "ingress replicas that a scrape or /health missed"
        )
        self.http_errors = self._counter(
            "http_errors", "answers that are errors, by status and the error's code: all refusals", "status", "code"
        )

    def collect(self) -> list[Metric]:
        """This replica's own, as it stands now."""
        return list(self.registry.collect())

    def watch(self, model: str, plan: Plan, *, num_wanted: int, queued_seconds: Callable[[], float | None]) -> None:
        """Makes a model's series stand from the start, so that rates know their zero, and sets the plan's figures.

        `queued_seconds` is asked at each collection; its None is shown as NaN.
        """
        for metric in (self.num_running, self.num_waiting, self.num_steps, self.gpu_seconds, self.group_deaths):
            metric.labels(model)
        for reason in ("completed", "cancelled"):
            self.success.labels(model, reason)
        self.num_groups.labels(model, "wanted").set(num_wanted)
        self.queued_seconds.labels(model).set_function(lambda: _number(queued_seconds()))
        if plan.device == "cuda":
            for rank, num_bytes in enumerate(plan.memory.gpu_peak_bytes):
                self.gpu_peak_predicted.labels(model, str(rank)).set(num_bytes)
        if plan.predicted.step_s is not None:
            self.step_predicted.labels(model).set(plan.predicted.step_s)

    def _shared(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", text, labels, registry=self.shared)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str, buckets: Sequence[float] = _BUCKETS) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", text, labels, registry=self.registry, buckets=buckets)


class RequestMeter:
    """Follows one picture or video from admission to its end. Belongs to one event loop.

    Args:
        metrics: where it is counted.
        model: the model's name.
        plan: what was predicted for it.
        clock: monotonic seconds.
        trace: hears the same, if tracing is on.
    """

    def __init__(
        self,
        metrics: ServiceMetrics,
        model: str,
        plan: Plan,
        *,
        clock: Callable[[], float] = time.monotonic,
        trace: RequestTrace | None = None,
    ) -> None:
        self._trace = trace
        self._metrics, self._model, self._plan, self._clock = metrics, model, plan, clock
        self._start = clock()
        self._is_running = False
        self._is_finished = False
        self._num_steps = 0

    def __enter__(self) -> "RequestMeter":
        """Counts it as waiting."""
        self._metrics.num_waiting.labels(self._model).inc()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Counts its end: finished, cancelled (nobody waits for it any more), or failed with a code."""
        if self._trace is not None:
            self._trace.end(None if self._is_finished else error)
        here = self._metrics.num_running if self._is_running else self._metrics.num_waiting
        here.labels(self._model).dec()
        if error is None or self._is_finished:
            self._metrics.success.labels(self._model, "completed").inc()
        elif not isinstance(error, Exception):  # CancelledError or GeneratorExit
            self._metrics.success.labels(self._model, "cancelled").inc()
        else:
            self._metrics.failure.labels(self._model, getattr(error, "code", None) or "internal_error").inc()

    def on_event(self, event: GroupEvent) -> None:
        """A group's word: the first ends the wait, the file ends the request."""
        if self._trace is not None:
            self._trace.on_event(event)
        if not self._is_running:
            self._move(is_running=True)
            self._metrics.queue_time.labels(self._model).observe(self._clock() - self._start)
        if isinstance(event, Progress):
            self._num_steps = event.num_steps or self._num_steps
        if not isinstance(event, GeneratedMedia):
            return
        self._is_finished = True
        self._metrics.latency.labels(self._model).observe(self._clock() - self._start)
        if event.stats is not None:
            self._record(event.stats, event)

    def on_group_death(self) -> None:
        """The group is gone; the request waits for another."""
        if self._trace is not None:
            self._trace.on_group_death()
        self._metrics.group_deaths.labels(self._model).inc()
        if self._is_running:
            self._move(is_running=False)

    def _move(self, *, is_running: bool) -> None:
        self._is_running = is_running
        self._metrics.num_running.labels(self._model).inc(1 if is_running else -1)
        self._metrics.num_waiting.labels(self._model).inc(-1 if is_running else 1)

    def _record(self, stats: CallStats, media: GeneratedMedia) -> None:
        metrics, model = self._metrics, self._model
        for stage, seconds in stats.stage_seconds.items():
            metrics.stage_time.labels(model, stage).observe(seconds)
        metrics.batch_size.labels(model).observe(stats.batch_size)
        metrics.gpu_seconds.labels(model).inc(sum(stats.stage_seconds.values()) * stats.num_gpus)
        metrics.serial_calls.labels(model).inc(stats.num_serial_calls)
        metrics.failed_previews.labels(model).inc(stats.num_failed_previews)
        for rank, num_bytes in enumerate(stats.gpu_peak_bytes):
            metrics.gpu_peak.labels(model, str(rank)).set(num_bytes)
        for rank, num_bytes in enumerate(stats.gpu_used_bytes):
            metrics.gpu_used.labels(model, str(rank)).set(num_bytes)
        measured, predicted = max(stats.gpu_peak_bytes, default=0), max(self._plan.memory.gpu_peak_bytes, default=0)
        if measured and predicted:
            metrics.gpu_peak_ratio.labels(model).set(predicted / measured)
        if self._num_steps and "denoise" in stats.stage_seconds:
            self._record_steps(
                stats.stage_seconds["denoise"] / self._num_steps, (media.width, media.height, stats.num_frames)
            )

    def _record_steps(self, step_s: float, shape: tuple[int, int, int]) -> None:
        self._metrics.num_steps.labels(self._model).inc(self._num_steps)
        self._metrics.step_time.labels(self._model).observe(step_s)
        planned, predicted_s = self._plan.shape, self._plan.predicted.step_s
        if predicted_s is None or planned is None or step_s <= 0:
            return
        if shape == (planned.width, planned.height, planned.num_frames):
            self._metrics.step_ratio.labels(self._model).set(predicted_s / step_s)


def _number(known: float | None) -> float:
    return math.nan if known is None else known


def merge(replicas: Iterable[tuple[str, Iterable[Metric]]]) -> list[Metric]:
    """One family a name from several replicas' metrics, whose series carry a `replica` label."""
    families: dict[str, Metric] = {}
    for replica, metrics in replicas:
        for metric in metrics:
            family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            for sample in metric.samples:
                family.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value, sample.timestamp)
    return list(families.values())
