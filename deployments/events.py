"""Server-sent events."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from deployments.answers import ErrorResponse
from deployments.http_errors import error_detail
from deployments.service import Event

_STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


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


async def stream_events(events: AsyncGenerator[Event, None]) -> EventStream:
    """The response to a streaming request.

    Raises:
        RequestError: what is wrong with the request, while it can still have its own status.
    """
    first = await anext(events)
    return EventStream(_server_sent(first, events))


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
