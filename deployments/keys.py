"""API keys: only their SHA-256 is known here. A key is 256 random bits, so that a plain hash cannot be searched."""

import hashlib
import hmac
import secrets
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request
from pydantic import ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.errors import KeyRequiredError, SettingsError
from deployments.http_errors import error_response
from deployments.settings import ApiKey, AppSettings, explain_validation

_PREFIX = "hg-"
_NUM_BYTES = 32
_OWNER = "heliograph.owner"
_NOBODY = ""
# Everything else needs a key. What is behind a result's name is open to whoever was given that name.
_OPEN_PATHS = ("/live",)
_OPEN_PREFIXES = ("/results/",)


def make_key(name: str) -> tuple[str, ApiKey]:
    """A new key, to be shown once, and what is kept of it."""
    key = _PREFIX + secrets.token_urlsafe(_NUM_BYTES)
    return key, ApiKey(name=name, sha256=_hash(key))


def read_keys(settings: AppSettings) -> tuple[ApiKey, ...]:
    """All keys of the settings and of the file that they name.

    Raises:
        SettingsError: the file cannot be read, or a line of it is no key, or a name is there twice.
    """
    keys = settings.api_keys
    if settings.api_keys_file:
        keys += _read_file(Path(settings.api_keys_file).expanduser())
    if settings.has_keys and not keys:
        raise SettingsError(f"{settings.api_keys_file} holds no key: nobody could use the service")
    names = [key.name for key in keys]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"there are two API keys named {name!r}: owners must differ")
    return keys


class KeyRing:
    """Tells whose a key is, in a time that does not depend on the key."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self._keys = tuple(keys)

    @property
    def is_empty(self) -> bool:
        """Whether everybody is let in."""
        return not self._keys

    def owner_of(self, key: str) -> str | None:
        """The name of a key, or None."""
        digest, owner = _hash(key), None
        for known in self._keys:
            if hmac.compare_digest(known.sha256, digest):
                owner = known.name
        return owner


class KeyGate:
    """ASGI middleware: lets nothing through without a key, except what is listed as open.

    Args:
        keys: who is let in; everybody if there are none.
        open_paths: paths, beyond the ones that are always open, that need no key.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing, open_paths: Collection[str] = ()) -> None:
        self._app = app
        self._keys = keys
        self._open_paths = frozenset((*_OPEN_PATHS, *open_paths))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 401, or passes the request on with its owner."""
        if scope["type"] == "lifespan" or self._keys.is_empty or self._is_open(scope["path"]):
            await self._app({**scope, _OWNER: _NOBODY}, receive, send)
            return
        owner = self._keys.owner_of(_bearer(scope))
        if owner is None:
            error = KeyRequiredError("a valid API key is needed: send it as Authorization: Bearer KEY")
            await error_response(error)(scope, receive, send)
            return
        await self._app({**scope, _OWNER: owner}, receive, send)

    def _is_open(self, path: str) -> bool:
        return path in self._open_paths or path.startswith(_OPEN_PREFIXES)


def _owner(request: Request) -> str:
    return str(request.scope[_OWNER])


Owner = Annotated[str, Depends(_owner)]


def _bearer(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, key = value.decode("latin-1").partition(" ")
            return key.strip() if scheme.lower() == "bearer" else ""
    return ""


def _read_file(path: Path) -> tuple[ApiKey, ...]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"api_keys_file: cannot read {path}: {type(error).__name__}") from error
    keys = []
    for number, line in enumerate(lines, start=1):
        name, _, sha256 = line.strip().rpartition(" ")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            keys.append(ApiKey(name=name.strip(), sha256=sha256))
        except ValidationError as error:
            raise SettingsError(f"{path}, line {number}: {explain_validation(error)}; write NAME SHA256") from None
    return tuple(keys)


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()
