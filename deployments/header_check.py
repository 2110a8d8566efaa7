"""Refuses request heads that no honest client sends, before anything reads them twice in different ways."""

import re
from collections import Counter

from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.errors import BadRequestError, HeadersTooLargeError, RequestError
from deployments.http_errors import error_response

_MAX_NUM_HEADERS = 100
_MAX_HEADER_BYTES = 32 << 10
# Two of these would be read differently by a proxy in front of the service and by the service.
_ONCE = frozenset(
    {b"authorization", b"content-length", b"content-type", b"host", b"idempotency-key", b"range", b"transfer-encoding"}
)
_HOST = re.compile(rb"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")


class HeaderCheck:
    """ASGI middleware: an error object for heads that are too large or contradict themselves."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 400 or 431, or passes the request on as it is."""
        error = _error_in(scope["headers"]) if scope["type"] == "http" else None
        if error is None:
            await self._app(scope, receive, send)
        else:
            await error_response(error)(scope, receive, send)


def _error_in(headers: list[tuple[bytes, bytes]]) -> RequestError | None:
    num_bytes = sum(len(name) + len(value) for name, value in headers)
    if len(headers) > _MAX_NUM_HEADERS or num_bytes > _MAX_HEADER_BYTES:
        return HeadersTooLargeError(
            f"{len(headers)} headers of {num_bytes} bytes; at most {_MAX_NUM_HEADERS} of {_MAX_HEADER_BYTES} are read"
        )
    counts = Counter(name for name, _ in headers)
    for name in sorted(_ONCE):
        if counts[name] > 1:
            return BadRequestError(f"{name.decode()} is there {counts[name]} times: send it once", name.decode())
    values = dict(headers)
    length = values.get(b"content-length")
    if length is not None and (b"transfer-encoding" in values or not length.isdigit()):
        return BadRequestError("content-length: send a number, and no transfer-encoding beside it", "content-length")
    if b"host" in values and not _HOST.fullmatch(values[b"host"]):
        return BadRequestError("host: this is no name of a host", "host")
    return None
