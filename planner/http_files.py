"""Checkpoint files behind an HTTP server, read by ranges with the standard library alone.

A server that ignores `Range` would send gigabytes for eight bytes: its answer's status is looked at before its body,
and at most the bytes asked for are taken from the connection.
"""

import re
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException, HTTPMessage
from typing import IO, Any

from planner.errors import CheckpointNotFoundError

TIMEOUT_S = 30.0
_CONTENT_RANGE = re.compile(r"^bytes (\d+)-(\d+)/(\d+)$")
_ABSENT = frozenset({404, 410})


class HttpFiles:
    """Files below an `http://` or `https://` address. Folders cannot be listed; files are asked for by name."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.query or parts.fragment or not parts.netloc:
            raise CheckpointNotFoundError(
                f"{url}: give the address of a folder, without ? or #; file names are appended to it"
            )
        self._url = url.rstrip("/")
        self._sizes: dict[str, int | None] = {}
        self._opener = urllib.request.build_opener(_WebRedirects())

    @property
    def location(self) -> str:
        """The URL."""
        return self._url

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is no such file.

        Raises:
            CheckpointNotFoundError: the server cannot be reached, or does not say how long a file is.
        """
        if name not in self._sizes:
            self._sizes[name] = self._ask_size(name)
        return self._sizes[name]

    def list_names(self, folder: str) -> list[str]:  # noqa: ARG002
        """Nothing: HTTP has no listing."""
        return []

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Reads a byte range, short at the end of the file.

        Raises:
            CheckpointNotFoundError: the server cannot be reached, or answers a range with something else.
        """
        if length <= 0:
            return b""
        with self._open(name, method="GET", headers={"Range": f"bytes={offset}-{offset + length - 1}"}) as answer:
            if answer.status == 206:
                self._check_range(name, answer.headers, offset)
            elif offset != 0 or self.size(name) != length:
                # A whole file that was wanted whole may come without a range; nothing else may.
                raise CheckpointNotFoundError(
                    f"{self._url}/{name}: the server answers a request for {length} bytes with the whole file (HTTP "
                    f"{answer.status}); headers are read by ranges only: use a server that supports Range requests"
                )
            return _take(answer, length)

    def _ask_size(self, name: str) -> int | None:
        try:
            with self._open(name, method="HEAD") as answer:
                return self._stated_length(name, answer.headers)
        except _AbsentError:
            return None
        except _HeadRefusedError:
            pass
        try:
            with self._open(name, method="GET", headers={"Range": "bytes=0-0"}) as answer:
                found = _CONTENT_RANGE.match(answer.headers.get("Content-Range", ""))
                return int(found.group(3)) if found else self._stated_length(name, answer.headers)
        except _AbsentError:
            return None

    def _stated_length(self, name: str, headers: HTTPMessage) -> int:
        length = headers.get("Content-Length", "")
        if not length.isdigit() or headers.get("Content-Encoding", "identity") != "identity":
            raise CheckpointNotFoundError(
                f"{self._url}/{name}: the server does not say how many bytes the file has (no Content-Length)"
            )
        return int(length)

    def _check_range(self, name: str, headers: HTTPMessage, offset: int) -> None:
        found = _CONTENT_RANGE.match(headers.get("Content-Range", ""))
        if found is None or int(found.group(1)) != offset:
            raise CheckpointNotFoundError(
                f"{self._url}/{name}: asked for bytes from {offset}, the server sent "
                f"{headers.get('Content-Range')!r:.80}"
            )

    def _open(self, name: str, *, method: str, headers: dict[str, str] | None = None) -> Any:
        url = f"{self._url}/{urllib.parse.quote(name)}"
        request = urllib.request.Request(url, method=method, headers={"Accept-Encoding": "identity", **(headers or {})})
        try:
            return self._opener.open(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            with error:
                if error.code in _ABSENT:
                    raise _AbsentError(f"{url} is not there (HTTP {error.code})") from None
                if method == "HEAD" and error.code in {405, 501}:
                    raise _HeadRefusedError(f"{url} does not answer HEAD") from None
                raise CheckpointNotFoundError(f"{url} cannot be read: HTTP {error.code} {error.reason}") from error
        except (OSError, ValueError, HTTPException) as error:  # URLError and timeouts are OSErrors
            raise CheckpointNotFoundError(f"{url} cannot be reached: {error}") from error


class _AbsentError(CheckpointNotFoundError):
    """The server says that there is no such file."""


class _HeadRefusedError(CheckpointNotFoundError):
    """The server answers GET only."""


class _WebRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects within the web; the library's own would also follow them to FTP."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if not newurl.startswith(("http://", "https://")):
            raise urllib.error.HTTPError(newurl, code, "redirect out of the web refused", headers, fp)
        again = super().redirect_request(req, fp, code, msg, headers, newurl)
        if again is not None:
            again.method = req.get_method()  # a HEAD stays a HEAD: a GET would start sending the file
        return again


def _take(answer: Any, length: int) -> bytes:
    """At most `length` bytes of an answer's body, in pieces as they come."""
    pieces: list[bytes] = []
    while length > 0:
        try:
            piece: bytes = answer.read(min(length, 2**20))
        except (OSError, HTTPException) as error:
            raise CheckpointNotFoundError(f"{answer.url}: the connection ended early: {error}") from error
        if not piece:
            break
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)
