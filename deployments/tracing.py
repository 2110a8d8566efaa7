"""OpenTelemetry spans of each picture and video: its wait, encoding, denoising and decoding.

Needs `pip install heliograph[otel]`, and is off unless `tracing.endpoint` is set. Spans hold the model's name, sizes
and counts; no prompts. A client's `traceparent` header becomes the parent, so that its own trace goes on here.
"""

from typing import TYPE_CHECKING, Literal

from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.errors import SettingsError
from deployments.group_client import GeneratedMedia, GroupEvent, PreviewFile
from deployments.settings import TracingSettings
from workers.calls import Progress

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

PREFIX = "heliograph"
Kind = Literal["picture", "video"]


class Tracing:
    """Makes the spans of a service. Belongs to one event loop; sending happens in a thread.

    Args:
        provider: where spans go; of this service alone, whatever else in the process traces.
    """

    def __init__(self, provider: "TracerProvider") -> None:
        self._provider = provider
        self.tracer = provider.get_tracer(PREFIX)

    def follow(self, *, model: str, kind: Kind) -> "RequestTrace":
        """The trace of one picture or video, from now on."""
        return RequestTrace(self, model=model, kind=kind)

    def close(self) -> None:
        """Sends what is left; blocks while it does."""
        self._provider.shutdown()


class RequestTrace:
    """Spans of one picture or video: one for all of it, and in it one a stage."""

    def __init__(self, tracing: Tracing, *, model: str, kind: Kind) -> None:
        self._tracer = tracing.tracer
        self._whole = self._tracer.start_span(kind, attributes={f"{PREFIX}.model": model})
        self._stage_name = "queue"
        self._stage = self._start_stage()

    def on_event(self, event: GroupEvent) -> None:
        """A group's word: another stage, a preview, or the file."""
        if isinstance(event, Progress):
            if event.stage != self._stage_name:
                self._enter(event.stage)
            if event.num_steps is not None:
                self._whole.set_attribute(f"{PREFIX}.num_steps", event.num_steps)
        elif isinstance(event, PreviewFile):
            self._whole.add_event("preview", {f"{PREFIX}.index": event.index})
        else:
            self._describe(event)

    def on_group_death(self) -> None:
        """What the group had begun is lost; the request waits for another one."""
        from opentelemetry.trace import Status, StatusCode

        self._stage.set_status(Status(StatusCode.ERROR, "the group died"))
        self._whole.add_event("group died")
        self._enter("queue")

    def end(self, error: BaseException | None) -> None:
        """It is over. An error is named by its code or class: its message may hold what a client wrote."""
        from opentelemetry.trace import Status, StatusCode

        self._stage.end()
        if error is not None:
            name = getattr(error, "code", None) or type(error).__name__
            self._whole.set_status(Status(StatusCode.ERROR, name))
        self._whole.end()

    def _describe(self, media: GeneratedMedia) -> None:
        self._whole.set_attribute(f"{PREFIX}.width", media.width)
        self._whole.set_attribute(f"{PREFIX}.height", media.height)
        if media.stats is not None:
            self._whole.set_attribute(f"{PREFIX}.num_frames", media.stats.num_frames)
            self._whole.set_attribute(f"{PREFIX}.num_gpus", media.stats.num_gpus)

    def _enter(self, stage: str) -> None:
        self._stage.end()
        self._stage_name = stage
        self._stage = self._start_stage()

    def _start_stage(self) -> "Span":
        from opentelemetry.trace import set_span_in_context

        return self._tracer.start_span(self._stage_name, context=set_span_in_context(self._whole))


class TraceParent:
    """ASGI middleware: what is made for a request belongs to its client's trace, if it names one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands everything on inside of the client's context."""
        from opentelemetry.context import attach, detach
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope.get("headers", ())}
        token = attach(TraceContextTextMapPropagator().extract(headers))
        try:
            await self._app(scope, receive, send)
        finally:
            detach(token)


def open_tracing(settings: TracingSettings) -> Tracing | None:
    """Spans sent by OTLP over HTTP; None if no endpoint is set.

    Raises:
        SettingsError: what it needs is not installed.
    """
    if not settings.endpoint:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise SettingsError("tracing.endpoint: pip install heliograph[otel] on every node") from error
    return Tracing(make_provider(OTLPSpanExporter(endpoint=settings.endpoint), service_name=settings.service_name))


def make_provider(exporter: "SpanExporter", *, service_name: str) -> "TracerProvider":
    """Hands finished spans to the exporter in batches, by a thread; what it cannot send is logged and dropped."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": service_name}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider
