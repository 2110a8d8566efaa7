"""Refuses request bodies above a size, before they are held in memory, and those that do not come."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import BadRequestError, BodyTimeoutError, BodyTooLargeError, RequestError
from deployments.http_errors import error_response
from deployments.settings import Limits


class BodyLimit:
    """ASGI middleware: 413 for a body above the limit, whether its length is announced or not, 408 for one that is
    not sent in time, 400 for one of another length than announced.

    Args:
        app: gets what is small enough.
        limits: of bodies, and of forms with files.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reads the body up to the limit, then hands it on in one piece; everything after it as it comes."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        max_bytes = self._limits.max_upload_bytes if _is_form(scope) else self._limits.max_body_bytes
        try:
            last, body = await self._read(receive, announced=_announced(scope), max_bytes=max_bytes)
        except RequestError as error:
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, _replay(last, body, receive), send)

    async def _read(self, receive: Receive, *, announced: int | None, max_bytes: int) -> tuple[Message, bytes]:
        """The last message of the body, and the body."""
        if announced is not None and announced > max_bytes:
            raise _too_large(max_bytes)
        body = bytearray()
        message: Message = {"type": "http.request", "more_body": True}
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                while message.get("more_body"):
                    message = await receive()
                    body += message.get("body", b"")
                    if len(body) > max_bytes:
                        raise _too_large(max_bytes)
        except TimeoutError:
            raise BodyTimeoutError(f"the body did not come within {self._limits.body_timeout_s:g} s") from None
        if message["type"] == "http.request" and announced is not None and announced != len(body):
            raise BadRequestError(f"content-length: {announced} bytes, {len(body)} came", "content-length")
        return message, bytes(body)


def _too_large(max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the body is larger than {max_bytes} bytes")


def _is_form(scope: Scope) -> bool:
    return any(
        name == b"content-type" and value.lower().startswith(b"multipart/form-data") for name, value in scope["headers"]
    )


def _announced(scope: Scope) -> int | None:
    """Bytes that the client says it sends. More digits than any limit has mean no more than many."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value[:20])
    return None


def _replay(last: Message, body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body first; a client that went away while sending is passed on as it is."""
    first: Message | None = {**last, "body": body, "more_body": False} if last["type"] == "http.request" else last

    async def replay() -> Message:
        nonlocal first
        message, first = first, None
        return message if message is not None else await receive()

    return replay
