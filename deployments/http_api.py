"""The HTTP routes, in the shape of OpenAI's API."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from deployments.body_limit import BodyLimit
from deployments.http_errors import error_detail, install_error_handlers
from deployments.schemas import ErrorResponse, Health, ImageRequest, MediaResponse, ModelList
from deployments.service import Event, Service
from planner.plan import Plan

_ERROR_STATUSES = (400, 404, 413, 429, 500, 503, 504)
_STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def build_api(service: Service) -> FastAPI:
    """The ASGI app that answers for a service."""
    errors: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in _ERROR_STATUSES}
    app = FastAPI(title="Heliograph", description="Diffusion models behind OpenAI's image API.")
    app.add_middleware(BodyLimit, max_bytes=service.settings.limits.max_body_bytes)
    install_error_handlers(app)

    @app.post("/v1/images/generations", response_model=MediaResponse, responses=errors)
    async def generate_images(request: ImageRequest) -> Response | MediaResponse:
        """Makes `n` pictures; with `stream` true, server-sent events tell the progress and carry each picture."""
        if not request.stream:
            return await service.generate(request)
        events = service.stream(request)
        first = await anext(events)  # what is wrong with the request is raised here, with its own status
        return EventStream(_server_sent(first, events))

    @app.get("/v1/models")
    async def list_models() -> ModelList:
        """The models served here."""
        return service.models()

    @app.get("/live")
    async def live() -> Health:
        """The process is up."""
        return Health(status="ok")

    @app.get("/health", responses={503: {"model": Health}})
    async def health(response: Response) -> Health:
        """200 only when a request would be answered."""
        answer = await service.health()
        response.status_code = 503 if answer.status == "unavailable" else 200
        return answer

    @app.get("/plan")
    async def plan() -> Plan:
        """What was decided before the groups started, and why."""
        return service.plan

    return app


class EventStream(StreamingResponse):
    """Server-sent events. Closes their source when the client is gone, wherever the response stood by then."""

    def __init__(self, frames: AsyncGenerator[str, None]) -> None:
        super().__init__(frames, media_type="text/event-stream", headers=_STREAM_HEADERS)
        self._frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the frames; a generator left suspended by a cancellation would go on working."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._frames.aclose()


async def _server_sent(first: Event, events: AsyncGenerator[Event, None]) -> AsyncGenerator[str, None]:
    """Events as `text/event-stream`; an error on the way is the last event."""
    async with aclosing(events):
        try:
            yield _frame(first.type, first.model_dump_json())
            async for event in events:
                yield _frame(event.type, event.model_dump_json())
        except Exception as error:  # the status is already sent: the stream's end has to say it
            yield _frame("error", ErrorResponse(error=error_detail(error)).model_dump_json())


def _frame(name: str, data: str) -> str:
    return f"event: {name}\ndata: {data}\n\n"
