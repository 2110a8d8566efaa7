"""An HTTP server between a client and a real server: notes what passes, and may spoil it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from typing import Literal
from urllib.parse import unquote, urlsplit

from tests.tools.answering import answering

_OWN_HEADERS = frozenset({"connection", "transfer-encoding", "content-length", "keep-alive", "date", "server"})
Outcome = Literal["pass", "cut"]


@dataclass(frozen=True, slots=True)
class Passed:
    """One request and its answer. `path` is decoded and has no query."""

    method: str
    path: str
    byte_range: str
    status: int
    num_body_bytes: int


@dataclass
class Recording:
    """The proxy's address, and what went through it.

    `before` is called with each request before it is passed on; `instead` may give status and body of an answer without
    passing it on.
    """

    url: str = ""
    passed: list[Passed] = field(default_factory=list)
    most_at_once: int = 0
    before: Callable[[str, str], Outcome] = lambda method, path: "pass"
    instead: Callable[[str, str], tuple[int, bytes] | None] = lambda method, path: None

    def body_bytes(self, ending: str) -> int:
        """Bytes of all bodies that answered GETs of paths with this ending."""
        return sum(one.num_body_bytes for one in self.passed if one.method == "GET" and one.path.endswith(ending))


@contextmanager
def recording_proxy(upstream: str) -> Iterator[Recording]:
    """Passes GET and HEAD on to `upstream` until the end of the block."""
    recording = Recording()
    lock = threading.Lock()
    active = 0
    host, port = urlsplit(upstream).hostname, urlsplit(upstream).port
    assert host is not None

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            nonlocal active
            with lock:
                active += 1
                recording.most_at_once = max(recording.most_at_once, active)
            try:
                self._pass_on()
            finally:
                with lock:
                    active -= 1

        def _pass_on(self) -> None:
            path = unquote(self.path.partition("?")[0])
            laid = recording.instead(self.command, path)
            if laid is not None:
                self.send_response(laid[0])
                self.send_header("Content-Length", str(len(laid[1])))
                self.end_headers()
                self.wfile.write(laid[1])
                return
            outcome = recording.before(self.command, path)
            connection = HTTPConnection(host, port, timeout=60)
            connection.request(self.command, self.path, headers=dict(self.headers.items()))
            answer = connection.getresponse()
            body = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in _OWN_HEADERS:
                    self.send_header(name, value)
            stated = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(body))
            self.send_header("Content-Length", stated or "0")
            self.end_headers()
            connection.close()
            if outcome == "cut":
                body = body[: len(body) // 2]
                self.close_connection = True
            if self.command == "GET":
                self.wfile.write(body)
            byte_range = self.headers.get("Range", "")
            with lock:
                recording.passed.append(Passed(self.command, path, byte_range, answer.status, len(body)))

        def log_message(self, format: str, *args: object) -> None:
            pass

    with answering(Handler) as recording.url:
        yield recording
