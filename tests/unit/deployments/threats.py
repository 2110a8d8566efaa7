"""Requests that must be refused, as a list: tests send them, `docs/threats.md` shows them.

`python -m tests.unit.deployments.threats` writes the table into the page.
"""

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

GENERATIONS, EDITS, VIDEOS = "/v1/images/generations", "/v1/images/edits", "/v1/videos"
# Stand for what is known only once a service runs.
RESULT, OTHERS_JOB = "{result}", "{others_job}"
JSON = ("content-type", "application/json")
PAGE = Path(__file__).parents[3] / "docs" / "threats.md"
BEGIN, END = "<!-- begin of the table -->\n", "<!-- end of the table -->\n"
_BOUNDARY = "boundary"
_MULTIPART = ("content-type", f"multipart/form-data; boundary={_BOUNDARY}")


@dataclass(frozen=True, slots=True)
class Sent:
    """A request as it goes over the wire. With `is_chunked` no length is announced, with `stalls` the end of the body
    never comes."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    chunks: tuple[bytes, ...] = ()
    is_chunked: bool = False
    stalls: bool = False

    def with_defaults(self, *defaults: tuple[str, str]) -> "Sent":
        """With what every client sends: the headers given, and how long the body is, unless it says it itself."""
        own = {name for name, _ in self.headers}
        if self.is_chunked:
            length = ("transfer-encoding", "chunked")
        else:
            length = ("content-length", str(len(b"".join(self.chunks))))
        if not own & {"content-length", "transfer-encoding"} and (self.chunks or self.method == "POST"):
            defaults = (*defaults, length)
        return replace(self, headers=(*(item for item in defaults if item[0] not in own), *self.headers))

    def to(self, places: Mapping[str, str]) -> "Sent":
        """With what stands in `RESULT` and `OTHERS_JOB` put in."""
        target = self.target
        for name, place in places.items():
            target = target.replace(name, place)
        return replace(self, target=target)


@dataclass(frozen=True, slots=True)
class Threat:
    """One bad request and what becomes of it.

    Attributes:
        area: what kind of badness.
        name: what is sent.
        sent: the request.
        status: of the answer.
        guard: what refuses it.
        needs_keys: it makes sense only where there are API keys.
        may_stop_at_server: HTTP servers refuse it by themselves, before the service, with a page of their own.
    """

    area: str
    name: str
    sent: Sent
    status: int
    guard: str
    needs_keys: bool = False
    may_stop_at_server: bool = False


def post_json(body: object, target: str = GENERATIONS, *headers: tuple[str, str]) -> Sent:
    """A JSON body: bytes as they are, anything else encoded."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Sent("POST", target, (JSON, *headers), (content,))


def get(target: str, *headers: tuple[str, str]) -> Sent:
    return Sent("GET", target, headers)


def post_form(*parts: bytes, target: str = EDITS, content_type: tuple[str, str] = _MULTIPART) -> Sent:
    """A multipart form of finished parts."""
    lines = b"".join(b"--" + _BOUNDARY.encode() + b"\r\n" + part + b"\r\n" for part in parts)
    return Sent("POST", target, (content_type,), (lines + b"--" + _BOUNDARY.encode() + b"--\r\n",))


def text(name: str, value: str = "a") -> bytes:
    """A text part."""
    return f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode()


def file(content: bytes, *, name: str = "image", filename: str = "a.png", media_type: str = "image/png") -> bytes:
    """A file part."""
    head = f'Content-Disposition: form-data; name="{name}"; filename="{filename}"\r\nContent-Type: {media_type}\r\n\r\n'
    return head.encode() + content


def png(*, width: int = 4, height: int = 4, num_rows: int = 4, more: bytes = b"") -> bytes:
    """A PNG that says `width` and `height`, with `num_rows` rows of 4 pixels; `more` are chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * (1 + 12) * num_rows)
    chunks = chunk(b"IHDR", header) + more + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def chunk(name: bytes, content: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _prompt(**fields: object) -> Sent:
    return post_json({"prompt": "a", **fields})


def _edit(content: bytes, **file_fields: str) -> Sent:
    return post_form(text("prompt"), file(content, **file_fields))


_SCHEMA = "strict types and ranges of `deployments/schemas.py`"
_LIMITS = "`limits` of the settings, `deployments/pipeline_call.py`"
_PARSER = "the JSON parser, `deployments/bodies.py`"
_FORM = "`deployments/bodies.py`"
_BODY = "`deployments/body_limit.py`"
_HEAD = "`deployments/header_check.py`"
_IMAGE = "`check_image` of `deployments/media.py`"
_ROUTE = "the routes"
_DESK = "`deployments/jobs/desk.py`"
_KEYS = "`deployments/keys.py`"
_RANGE = "`deployments/content.py`"
_LONG_SEED = b'{"prompt": "a", "seed": ' + b"9" * 1900 + b"}"

_VALUES = [
    Threat("values", "a number as prompt", _prompt(prompt=7), 400, _SCHEMA),
    Threat("values", "a prompt of blanks", _prompt(prompt=" \u2003\t"), 400, _SCHEMA),
    Threat("values", "an endless prompt", _prompt(prompt="a" * 1500), 400, _LIMITS),
    Threat("values", "a text where a count belongs", _prompt(n="2"), 400, _SCHEMA),
    Threat("values", "`true` where a count belongs", _prompt(n=True), 400, _SCHEMA),
    Threat("values", "`NaN` as guidance", _prompt(guidance_scale=float("nan")), 400, _SCHEMA),
    Threat("values", "`Infinity` as guidance", _prompt(guidance_scale=float("inf")), 400, _SCHEMA),
    Threat("values", "`-Infinity` as shift", _prompt(flow_shift=float("-inf")), 400, _SCHEMA),
    Threat("values", "1e400 as guidance", post_json(b'{"prompt": "a", "guidance_scale": 1e400}'), 400, _SCHEMA),
    Threat("values", "a seed of 1900 digits", post_json(_LONG_SEED), 400, _SCHEMA),
    Threat("values", "size 0x64", _prompt(size="0x64"), 400, _SCHEMA),
    Threat("values", "size 64x-64", _prompt(size="64x-64"), 400, _SCHEMA),
    Threat("values", "size 999999x999999", _prompt(size="999999x999999"), 400, _LIMITS),
    Threat("values", "10^9 steps", _prompt(num_inference_steps=10**9), 400, _LIMITS),
    Threat("values", "a million pictures", _prompt(n=10**6), 400, _LIMITS),
    Threat("values", "a video of 9999 s", post_json({"prompt": "a", "seconds": "9999"}, VIDEOS), 400, _LIMITS),
    Threat("values", "10^9 frames", post_json({"prompt": "a", "num_frames": 10**9}, VIDEOS), 400, _LIMITS),
    Threat("values", "an unknown field", _prompt(prompt_embeds=[1.0]), 400, _SCHEMA),
    Threat("values", "a callback among extra_args", _prompt(extra_args={"callback_on_step_end": "os"}), 400,
           "`extra_args` of the settings"),
]  # fmt: skip
_TEXT = [
    Threat("JSON and text", "no body", post_json(b""), 400, _PARSER),
    Threat("JSON and text", "a list", post_json([]), 400, _SCHEMA),
    Threat("JSON and text", "1000 lists in each other", post_json(b'{"prompt": ' + b"[" * 1000 + b"]" * 1000 + b"}"),
           400, _SCHEMA),
    Threat("JSON and text", "2000 lists that never end", post_json(b"[" * 2000), 400, _PARSER),
    Threat("JSON and text", "a field twice", post_json(b'{"prompt": "a", "n": 1, "n": 2}'), 400, _PARSER),
    Threat("JSON and text", "a field twice, further in",
           post_json(b'{"prompt": "a", "extra_args": {"eta": 1, "eta": 2}}', VIDEOS), 400, _PARSER),
    Threat("JSON and text", "half of a surrogate pair", post_json(b'{"prompt": "\\ud800"}'), 400, _SCHEMA),
    Threat("JSON and text", "bytes that are no UTF-8", post_json(b'{"prompt": "\xff\xfe"}'), 400, _PARSER),
    Threat("JSON and text", "full-width digits as size", _prompt(size="\uff16\uff14x\uff16\uff14"), 400, _SCHEMA),
    Threat("JSON and text", "full-width digits as seconds", post_json({"prompt": "a", "seconds": "\uff11"}, VIDEOS),
           400, _SCHEMA),
    Threat("JSON and text", "a gzipped body",
           post_json(zlib.compress(b'{"prompt": "a"}'), GENERATIONS, ("content-encoding", "gzip")), 400, _PARSER),
    Threat("JSON and text", "JSON as text/plain, as a page of any site can send it",
           Sent("POST", VIDEOS, (("content-type", "text/plain"),), (b'{"prompt": "a"}',)), 400, _FORM),
    Threat("JSON and text", "JSON of no stated type", Sent("POST", GENERATIONS, (), (b'{"prompt": "a"}',)), 400, _FORM),
]  # fmt: skip
_BODIES = [
    Threat("bodies", "a body above the limit", post_json(b" " * 5000), 413, _BODY),
    Threat("bodies", "the same in chunks, without a length",
           replace(post_json(b""), chunks=(b" " * 1000,) * 5, is_chunked=True), 413, _BODY),
    Threat("bodies", "a length of 10^12 bytes", post_json(b"{}", GENERATIONS, ("content-length", "1" + "0" * 12)), 413,
           _BODY),
    Threat("bodies", "a length of 10^12 bytes of a form",
           Sent("POST", EDITS, (_MULTIPART, ("content-length", "1" + "0" * 12)), (b"--",)), 413, _BODY),
    Threat("bodies", "a body that stops half way",
           replace(post_json(b'{"prompt": ', GENERATIONS, ("content-length", "100")), stalls=True), 408, _BODY),
    Threat("bodies", "chunks that never end", replace(post_json(b'{"prompt": '), is_chunked=True, stalls=True), 408,
           _BODY),
    Threat("bodies", "a negative length", post_json(b"{}", GENERATIONS, ("content-length", "-1")), 400, _HEAD,
           may_stop_at_server=True),
    Threat("bodies", "a shorter length than the body", post_json(b'{"prompt": "a"}', VIDEOS, ("content-length", "5")),
           400, _BODY),
    Threat("bodies", "a length and chunks at once",
           post_json(b"{}", GENERATIONS, ("content-length", "2"), ("transfer-encoding", "chunked")), 400, _HEAD,
           may_stop_at_server=True),
    Threat("bodies", "two lengths", post_json(b"{}", GENERATIONS, ("content-length", "2"), ("content-length", "1")),
           400, _HEAD, may_stop_at_server=True),
]  # fmt: skip
_HEADERS = [
    Threat("headers", "Authorization twice",
           get("/v1/models", ("authorization", "Bearer a"), ("authorization", "Bearer b")), 400, _HEAD),
    Threat("headers", "Content-Type twice", post_json(b"{}", VIDEOS, ("content-type", "text/plain")), 400, _HEAD),
    Threat("headers", "Host with a path in it", get("/v1/models", ("host", "good.example/evil")), 400, _HEAD,
           may_stop_at_server=True),
    Threat("headers", "a header of 40 KB", get("/v1/models", ("x-request-id", "a" * 40_000)), 431, _HEAD,
           may_stop_at_server=True),
    Threat("headers", "150 headers", get("/v1/models", *((f"x-{i}", "a") for i in range(150))), 431, _HEAD,
           may_stop_at_server=True),
    Threat("headers", "a range behind the end", get(RESULT, ("range", "bytes=99999999999-")), 416, _RANGE),
    Threat("headers", "a range of 5000 digits", get(RESULT, ("range", "bytes=" + "9" * 5000 + "-")), 416, _RANGE),
    Threat("headers", "a range that ends before it begins", get(RESULT, ("range", "bytes=3-2")), 416, _RANGE),
    Threat("headers", "an Idempotency-Key of 300 letters",
           post_json({"prompt": "a"}, VIDEOS, ("idempotency-key", "a" * 300)), 400, "`deployments/jobs/headers.py`"),
    Threat("headers", "a poll of 10^30 videos", get("/v1/videos?limit=1" + "0" * 30), 400, _ROUTE),
]  # fmt: skip
_FORMS = [
    Threat("forms", "no boundary", post_form(text("prompt"), content_type=("content-type", "multipart/form-data")), 400,
           _FORM),
    Threat("forms", "a boundary that is nowhere",
           post_form(text("prompt"), content_type=("content-type", "multipart/form-data; boundary=other")), 400, _FORM),
    Threat("forms", "texts in a codec that decodes nothing",
           post_form(text("prompt"), content_type=(_MULTIPART[0], _MULTIPART[1] + "; charset=undefined")), 400, _FORM),
    Threat("forms", "150 fields", post_form(*(text(f"field{i}") for i in range(150))), 400, _FORM),
    Threat("forms", "a text twice", post_form(text("prompt"), text("prompt", "b"), file(png())), 400, _FORM),
    Threat("forms", "a field that is a text and an object",
           post_form(text("prompt"), text("prompt[a]"), file(png())), 400, _FORM),
    Threat("forms", "a file where a text belongs", post_form(file(b"a", name="prompt"), file(png())), 400, _FORM),
    Threat("forms", "a URL as picture", post_form(text("prompt"), text("image", "http://169.254.169.254/")), 400,
           "`deployments/bodies.py`: nothing is fetched"),
    Threat("forms", "a file id as picture", post_json({"prompt": "a", "input_reference": "file-1"}, VIDEOS), 400,
           "`deployments/bodies.py`: nothing is fetched"),
]  # fmt: skip
_PICTURES = [
    Threat("pictures", "a PNG of 60000x60000 pixels in 60 bytes", _edit(png(width=60_000, height=60_000)), 400, _IMAGE),
    Threat("pictures", "a PNG of 2^31-1 columns", _edit(png(width=2**31 - 1, height=1)), 400, _IMAGE),
    Threat("pictures", "a PNG of 5000x5000 pixels", _edit(png(width=5000, height=5000)), 400, _IMAGE),
    Threat("pictures", "a PNG of no columns", _edit(png(width=0)), 400, _IMAGE),
    Threat("pictures", "80 MB of text in a PNG, compressed",
           _edit(png(more=chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * (80 << 20), 9)))), 400, _IMAGE),
    Threat("pictures", "a PNG that is cut off", _edit(png()[:-20]), 400, _IMAGE),
    Threat("pictures", "a WebP that is cut off",
           _edit(b"RIFF\xff\xff\0\0WEBPVP8L\x10\0\0\0\x2f\x03\xc0\0\0", filename="a.webp"), 400, _IMAGE),
    Threat("pictures", "a JPEG of its first bytes", _edit(b"\xff\xd8\xff\xe0\0\x10JFIF\0", filename="a.jpg"), 400,
           _IMAGE),
    Threat("pictures", "a PNG that is an archive as well", _edit(png() + b"PK\x05\x06" + b"\0" * 18), 400, _IMAGE),
    Threat("pictures", "a page named a.png", _edit(b"<html><script>alert(1)</script>"), 400, _IMAGE),
    Threat("pictures", "a GIF", _edit(b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"), 400,
           _IMAGE),
    Threat("pictures", "an SVG", _edit(b'<svg xmlns="http://www.w3.org/2000/svg"/>', media_type="image/svg+xml"), 400,
           _IMAGE),
    Threat("pictures", "a TIFF", _edit(b"II*\0\x08\0\0\0\0\0\0\0\0\0"), 400, _IMAGE),
    Threat("pictures", "an empty file", _edit(b""), 400, _IMAGE),
    Threat("pictures", "five pictures", post_form(text("prompt"), *[file(png())] * 5), 400, _LIMITS),
    Threat("pictures", "a broken mask", post_form(text("prompt"), file(png()), file(b"PNG", name="mask")), 400, _IMAGE),
]  # fmt: skip
_PLACES = [
    Threat("names and owners", "a model of another name", _prompt(model="dall-e-3"), 404, "`deployments/service.py`"),
    Threat("names and owners", "a path as model", _prompt(model="../../etc/passwd"), 404, "`deployments/service.py`"),
    Threat("names and owners", "a path as result", get("/results/..%2f..%2fetc%2fpasswd"), 404, _ROUTE),
    Threat("names and owners", "a way up behind results", get("/results/../v1/models"), 404, _ROUTE),
    Threat("names and owners", "a guessed result", get("/results/" + "A" * 43), 404, _DESK),
    Threat("names and owners", "a path as job", get("/v1/videos/..%2f..%2fjobs.sqlite/content"), 404, _ROUTE),
    Threat("names and owners", "a zero byte in a job's id", get("/v1/videos/video_%00"), 404, _DESK),
    Threat("names and owners", "a job's id that is no UTF-8", get("/v1/images/jobs/%ff%fe"), 404, _DESK),
    Threat("names and owners", "an SQL condition as job", get("/v1/videos/x'%20OR%20'1'='1"), 404, _DESK),
    Threat("names and owners", "a job that never was", get("/v1/images/jobs/image_" + "0" * 32), 404, _DESK),
    Threat("names and owners", "a picture's job as video", get(f"/v1/videos/{OTHERS_JOB}"), 404, _DESK),
    Threat("names and owners", "a page after a zero byte", get("/v1/videos?after=%00"), 400, _DESK),
    Threat("names and owners", "somebody else's job", get(f"/v1/images/jobs/{OTHERS_JOB}"), 404, _DESK,
           needs_keys=True),
    Threat("names and owners", "somebody else's job, to be deleted", Sent("DELETE", f"/v1/images/jobs/{OTHERS_JOB}"),
           404, _DESK, needs_keys=True),
    Threat("names and owners", "somebody else's job, to be cancelled",
           Sent("POST", f"/v1/images/jobs/{OTHERS_JOB}/cancel"), 404, _DESK, needs_keys=True),
    Threat("names and owners", "an unknown key", get("/v1/models", ("authorization", "Bearer hg-guessed")), 401, _KEYS,
           needs_keys=True),
    Threat("names and owners", "another scheme", get("/v1/models", ("authorization", "Basic YTpi")), 401, _KEYS,
           needs_keys=True),
    Threat("names and owners", "a key that is no ASCII", get("/v1/models", ("authorization", "Bearer \xe9")), 401,
           _KEYS, needs_keys=True),
    Threat("names and owners", "an open route's name in another case", get("/LIVE", ("authorization", "Bearer a")),
           401, _KEYS, needs_keys=True),
]  # fmt: skip
_ROUTES = [
    Threat("routes", "no such route", get("/v1/engines"), 404, _ROUTE),
    Threat("routes", "a slash too many", post_json({"prompt": "a"}, GENERATIONS + "/"), 404,
           "the routes: no redirect repeats the Host"),
    Threat("routes", "two slashes in front", get("//v1/models"), 404, _ROUTE),
    Threat("routes", "GET where POST belongs", get(GENERATIONS), 405, _ROUTE),
    Threat("routes", "PUT of a job", Sent("PUT", "/v1/videos/video_1"), 405, _ROUTE),
    Threat("routes", "TRACE", Sent("TRACE", "/v1/models"), 405, _ROUTE),
]  # fmt: skip
THREATS = [*_VALUES, *_TEXT, *_BODIES, *_HEADERS, *_FORMS, *_PICTURES, *_PLACES, *_ROUTES]


def table() -> str:
    """The list for people."""
    rows = [f"| {t.area} | {t.name} | {t.status} | {t.guard} |\n" for t in THREATS]
    return "| what | sent | status | refused by |\n| --- | --- | --- | --- |\n" + "".join(rows)


def main() -> None:
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.partition(END)[2], "utf-8")


if __name__ == "__main__":
    main()
