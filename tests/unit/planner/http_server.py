"""A real HTTP server on loopback that serves a folder and counts what it is asked for and what it sends."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Literal

from tests.tools.answering import answering

Behaviour = Literal["ranges", "no ranges", "no HEAD", "no length", "wrong range", "redirects", "redirects to a file"]


@dataclass
class Served:
    """The server's address and counts."""

    url: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    body_bytes: dict[str, int] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        return sum(self.body_bytes.values())


@contextmanager
def serve_folder(folder: Path, *, behaviour: Behaviour = "ranges") -> Iterator[Served]:
    """Serves `folder` until the end of the block."""
    served = Served()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            if behaviour == "no HEAD":
                self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)
                return
            self._answer(send_body=False)

        def do_GET(self) -> None:
            self._answer(send_body=True)

        def _answer(self, *, send_body: bool) -> None:
            served.requests.append((self.command, self.path))
            if behaviour.startswith("redirects") and not self.path.startswith("/moved"):
                self.send_response(HTTPStatus.FOUND)
                target = "file:///etc/hostname" if behaviour.endswith("file") else f"{served.url}/moved{self.path}"
                self.send_header("Location", target)
                self.end_headers()
                return
            path = folder / self.path.removeprefix("/moved").lstrip("/")
            if not path.is_file():
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            start, end = 0, path.stat().st_size
            asked = self.headers.get("Range")
            if asked and behaviour != "no ranges":
                first, _, last = asked.removeprefix("bytes=").partition("-")
                total = end
                start, end = int(first), min(total, int(last) + 1)
                shift = 1 if behaviour == "wrong range" else 0
                self.send_response(HTTPStatus.PARTIAL_CONTENT)
                self.send_header("Content-Range", f"bytes {start + shift}-{end - 1 + shift}/{total}")
            else:
                self.send_response(HTTPStatus.OK)
            if behaviour != "no length":
                self.send_header("Content-Length", str(end - start))
            self.end_headers()
            if send_body:
                self._send(path, start, end)

        def _send(self, path: Path, start: int, end: int) -> None:
            with path.open("rb") as file:
                file.seek(start)
                while start < end and (piece := file.read(min(65536, end - start))):
                    try:
                        self.wfile.write(piece)
                    except OSError:  # the client has seen enough
                        return
                    start += len(piece)
                    key = path.relative_to(folder).as_posix()
                    served.body_bytes[key] = served.body_bytes.get(key, 0) + len(piece)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with answering(Handler) as served.url:
        yield served
