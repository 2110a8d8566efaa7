"""The routes of a model hub that its own client uses to look at a repository and to read it, on loopback.

    GET /api/models/OWNER/NAME[/revision/REVISION]      does it exist
    GET /api/models/OWNER/NAME/tree/REVISION[/FOLDER]   its files, by pages (`Link: <...>; rel="next"`)
    GET /OWNER/NAME/resolve/REVISION/FILE               small files; weights are redirected to another server by a
                                                        signed address, as the hub does with large files

Answers, status codes and `X-Error-Code` are those that `huggingface_hub` reads (`hf_api.py`, `utils/_http.py`).
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.tools.answering import answering

TOKEN = "hf_reader"
"""The one token that is known; it may read private and gated repositories."""
_SIGNATURE = "Signature=secret"
_LARGE = ".safetensors"


@dataclass(frozen=True, slots=True)
class Repository:
    """Folders by revision. Who may look at it: everybody, everybody but not at files, or the known token alone."""

    revisions: dict[str, Path]
    access: Literal["open", "gated", "private"] = "open"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request and its answer; `server` is that of the large files or the hub itself."""

    server: Literal["hub", "large files"]
    path: str
    byte_range: str
    token: str
    status: int
    num_body_bytes: int


@dataclass
class Hub:
    """The hub's address, its repositories by `OWNER/NAME`, and what it was asked."""

    url: str = ""
    large_files_url: str = ""
    page_size: int = 3
    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    def body_bytes(self, ending: str) -> int:
        """Bytes sent of files with this ending."""
        return sum(one.num_body_bytes for one in self.asked if "/api/" not in one.path and one.path.endswith(ending))


class _Refusal(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@contextmanager
def local_hub() -> Iterator[Hub]:
    """Answers until the end of the block."""
    hub = Hub()
    with (
        answering(_handler(hub, "hub")) as hub.url,
        answering(_handler(hub, "large files")) as hub.large_files_url,
    ):
        yield hub


def _handler(hub: Hub, server: Literal["hub", "large files"]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._num_body_bytes = 0
            try:
                status = self._answer()
            except _Refusal as refusal:
                status = refusal.status
                headers = {"X-Error-Message": refusal.message, "X-Error-Code": refusal.code}
                self._send(status, b"", {name: value for name, value in headers.items() if value})
            asked_range = self.headers.get("Range", "")
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(Asked(server, path, asked_range, self._token(), status, self._num_body_bytes))

        def _answer(self) -> int:
            address = urlsplit(self.path)
            parts = address.path.strip("/").split("/")
            if server == "large files":
                if _SIGNATURE not in address.query:
                    raise _Refusal(403, "the address is not signed")
                return self._send_file(self._folder("/".join(parts[:2]), unquote(parts[2])) / "/".join(parts[3:]))
            if parts[:2] == ["api", "models"]:
                return self._answer_api("/".join(parts[2:4]), parts[4:], parse_qs(address.query))
            if len(parts) < 5 or parts[2] != "resolve":
                raise _Refusal(404, "no such route")  # the client asks for more in the background
            return self._resolve("/".join(parts[:2]), unquote(parts[3]), "/".join(parts[4:]))

        def _answer_api(self, name: str, rest: list[str], query: dict[str, list[str]]) -> int:
            folder = self._folder(name, unquote(rest[1]) if len(rest) > 1 else "main")
            if rest[:1] != ["tree"]:
                return self._send_json({"id": name, "sha": _digest(str(folder).encode()), "siblings": []})
            below = folder / unquote(rest[2]) if len(rest) > 2 else folder
            if not below.is_dir():
                raise _Refusal(404, "Entry not found", "EntryNotFound")
            is_recursive = query.get("recursive", [""])[0].lower() == "true"
            entries = sorted(below.rglob("*") if is_recursive else below.iterdir())
            start = int(query.get("cursor", ["0"])[0])
            page = [_entry(folder, path) for path in entries[start : start + hub.page_size]]
            headers = {}
            if start + hub.page_size < len(entries):
                tail = f"recursive={is_recursive}&expand=False&cursor={start + hub.page_size}"
                headers = {"Link": f'<{hub.url}{urlsplit(self.path).path}?{tail}>; rel="next"'}
            return self._send_json(page, headers)

        def _resolve(self, name: str, revision: str, file: str) -> int:
            path = self._folder(name, revision) / unquote(file)
            if hub.repositories[name].access == "gated" and self._token() != TOKEN:
                message = f"Access to model {name} is restricted."
                raise _Refusal(403 if self._token() else 401, message, "GatedRepo")
            if not path.is_file():
                raise _Refusal(404, "Entry not found", "EntryNotFound")
            if path.suffix != _LARGE:
                return self._send_file(path)
            target = f"{hub.large_files_url}/{name}/{quote(revision, safe='')}/{file}?{_SIGNATURE}"
            return self._send(302, b"", {"Location": target})

        def _folder(self, name: str, revision: str) -> Path:
            if server == "hub" and self._token() not in ("", TOKEN):
                raise _Refusal(401, "Invalid credentials in Authorization header")
            repository = hub.repositories.get(name)
            hidden = server == "hub" and repository is not None and repository.access == "private"
            if repository is None or (hidden and self._token() != TOKEN):
                if self._token():
                    raise _Refusal(404, "Repository not found", "RepoNotFound")
                raise _Refusal(401, "Invalid username or password.")
            if revision not in repository.revisions:
                raise _Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return repository.revisions[revision]

        def _token(self) -> str:
            return str(self.headers.get("Authorization", "")).removeprefix("Bearer ")

        def _send_file(self, path: Path) -> int:
            content = path.read_bytes()
            asked = self.headers.get("Range", "").removeprefix("bytes=")
            if not asked:
                return self._send(200, content, {})
            first, _, last = asked.partition("-")
            piece = content[int(first) : int(last) + 1]
            end = int(first) + len(piece) - 1
            return self._send(206, piece, {"Content-Range": f"bytes {first}-{end}/{len(content)}"})

        def _send_json(self, document: Any, headers: dict[str, str] | None = None) -> int:
            return self._send(
                200, json.dumps(document).encode(), {"Content-Type": "application/json", **(headers or {})}
            )

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> int:
            self.send_response(status)
            for header, value in headers.items():
                self.send_header(header, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            self._num_body_bytes = len(body)
            return status

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def _entry(folder: Path, path: Path) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "oid": _digest(name.encode()), "size": 0, "path": name}
    content = path.read_bytes()
    entry = {"type": "file", "oid": _digest(content), "size": len(content), "path": name}
    if path.suffix == _LARGE:
        pointer = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return {**entry, "lfs": pointer, "xetHash": hashlib.sha256(b"xet" + content).hexdigest()}
    return entry


def _digest(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
