"""The page at `/`: static files of this package, and a policy that keeps the browser from asking anybody else."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

_FOLDER = Path(__file__).parent / "page"
_FILES = {
    "/": ("index.html", "text/html"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
    "/page/style.css": ("style.css", "text/css"),
    "/page/api.js": ("api.js", "text/javascript"),
    "/page/snippets.js": ("snippets.js", "text/javascript"),
    "/page/plan.js": ("plan.js", "text/javascript"),
    "/page/app.js": ("app.js", "text/javascript"),
}
PAGE_PATHS = tuple(_FILES)
_HEADERS = {
    # Pictures are shown from blobs; scripts, styles and requests are this server's own.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob:; "
        "media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def page_router() -> APIRouter:
    """The page and its files; not in the OpenAPI document, since no program asks for them."""
    router = APIRouter(include_in_schema=False)
    for path, (name, media_type) in _FILES.items():
        router.add_api_route(path, _answer(_FOLDER / name, media_type), response_class=FileResponse)
    return router


def _answer(file: Path, media_type: str) -> Callable[[], Awaitable[FileResponse]]:
    async def send() -> FileResponse:
        return FileResponse(file, media_type=media_type, headers=_HEADERS)

    return send
