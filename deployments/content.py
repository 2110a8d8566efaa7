"""Stored files over HTTP, whole or in ranges."""

import hashlib
import re
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from deployments.errors import NotFoundError, RangeError
from deployments.jobs.results import ResultStorage

FILE: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file", "content": {"application/octet-stream": {}}},
    206: {"description": "The range of it that was asked for", "content": {"application/octet-stream": {}}},
}
_CHUNK_BYTES = 1 << 20
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


async def content_response(
    request: Request, storage: ResultStorage, *, key: str, media_type: str, num_bytes: int
) -> Response:
    """A file, or the one range of it that is asked for; several ranges at once are answered with the whole file.

    Raises:
        NotFoundError: the file was removed meanwhile.
        RangeError: nothing of the range is in it.
    """
    etag = f'"{hashlib.sha256(key.encode()).hexdigest()[:32]}"'
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": etag,
        "Cache-Control": "private, no-store",
        "X-Content-Type-Options": "nosniff",
        "Content-Disposition": f'inline; filename="{key.partition("/")[0]}.{media_type.rpartition("/")[2]}"',
    }
    wanted = request.headers.get("range", "")
    if request.headers.get("if-range", etag) != etag:
        wanted = ""
    match = _RANGE.fullmatch(wanted.strip())
    start, end, status = 0, num_bytes, 200
    if match and (match[1] or match[2]):
        found = _resolve(match[1], match[2], num_bytes)
        if found is None:
            raise RangeError(num_bytes)
        (start, end), status = found, 206
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{num_bytes}"
    headers["Content-Length"] = str(end - start)
    try:
        first = await storage.read(key, start=start, end=min(end, start + _CHUNK_BYTES))
    except FileNotFoundError as error:
        raise NotFoundError("the file is gone") from error
    chunks = _chunks(first, storage, key=key, start=start + len(first), end=end)
    return StreamingResponse(chunks, status_code=status, media_type=media_type, headers=headers)


def _resolve(first: str, last: str, num_bytes: int) -> tuple[int, int] | None:
    """Start and end (not included) of `first-last`; None if nothing of it is in the file. Digits come from a client."""
    if max(len(first), len(last)) > 18:
        return None
    if not first:
        start, end = max(num_bytes - int(last), 0), num_bytes
    else:
        start, end = int(first), min(int(last) + 1, num_bytes) if last else num_bytes
    return (start, end) if start < end else None


async def _chunks(
    first: bytes, storage: ResultStorage, *, key: str, start: int, end: int
) -> AsyncGenerator[bytes, None]:
    yield first
    while start < end:
        chunk = await storage.read(key, start=start, end=min(end, start + _CHUNK_BYTES))
        if not chunk:
            return
        start += len(chunk)
        yield chunk
