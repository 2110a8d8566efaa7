"""Refuses request bodies above a size, before they are held in memory."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.http_errors import body_too_large


class BodyLimit:
    """ASGI middleware: 413 for a body above `max_bytes`, whether its length is announced or not.

    Args:
        app: gets what is small enough.
        max_bytes: of any body.
        max_upload_bytes: of a form with files.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_upload_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_upload_bytes = max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reads the body up to the limit, then hands it on in one piece; everything after it as it comes."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = bytearray()
        max_bytes = self._max_upload_bytes if _is_form(scope) else self._max_bytes
        message: Message = {"type": "http.request", "more_body": not _is_too_long(scope, max_bytes)}
        is_too_long = not message["more_body"]
        while message.get("more_body") and not is_too_long:
            message = await receive()
            body += message.get("body", b"")
            is_too_long = len(body) > max_bytes
        if is_too_long:
            await body_too_large(max_bytes)(scope, receive, send)
            return
        await self._app(scope, _replay(message, bytes(body), receive), send)


def _is_form(scope: Scope) -> bool:
    return any(
        name == b"content-type" and value.lower().startswith(b"multipart/form-data") for name, value in scope["headers"]
    )


def _is_too_long(scope: Scope, max_bytes: int) -> bool:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return not value.isdigit() or int(value) > max_bytes
    return False


def _replay(last: Message, body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body first; a client that went away while sending is passed on as it is."""
    first: Message | None = {**last, "body": body, "more_body": False} if last["type"] == "http.request" else last

    async def replay() -> Message:
        nonlocal first
        message, first = first, None
        return message if message is not None else await receive()

    return replay
