"""A file server on loopback that answers byte ranges, for tests of remote checkpoints."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

from tests.tools.answering import answering


class RangeHandler(SimpleHTTPRequestHandler):
    """A file server that lists folders, answers byte ranges, and counts what it sent."""

    sent: ClassVar[Counter[str]] = Counter()
    spoil: Any = staticmethod(lambda path, data: data)

    def do_GET(self) -> None:
        file = Path(self.translate_path(self.path))
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not file.is_file() or wanted is None:
            super().do_GET()
            return
        first, last = int(wanted[1]), min(int(wanted[2]), file.stat().st_size - 1)
        data = type(self).spoil(file, file.read_bytes()[first : last + 1])
        self.sent[file.name] += len(data)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{file.stat().st_size}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def send_head(self) -> Any:
        self.extensions_map = {**self.extensions_map, "": "application/octet-stream"}
        return super().send_head()

    def end_headers(self) -> None:
        self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serve(folder: Path, spoil: Any = None) -> Iterator[tuple[str, Counter[str]]]:
    """The folder's URL on loopback, and the bytes sent of each file."""
    sent: ClassVar[Counter[str]] = Counter()
    changes = {"sent": sent, **({"spoil": staticmethod(spoil)} if spoil else {})}
    handler = type("Handler", (RangeHandler,), changes)
    with answering(partial(handler, directory=str(folder))) as url:
        yield url, sent
