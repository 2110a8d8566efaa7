"""What file systems say when a checkpoint's URL cannot be read, in one line, with what to change.

Their packages are optional and their errors have no common base, so that errors are told apart by the names of their
classes and by the codes that servers send.
"""

import re
from collections.abc import Iterator
from typing import Any

_MAX_SAID = 400
_HUB = "hf"
_S3 = ("s3", "s3a")
_GS = ("gs", "gcs")

_CREDENTIALS = {
    **dict.fromkeys(
        _S3,
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, to credentials that may s3:GetObject and "
        "s3:ListBucket there (without the latter a missing object looks like a forbidden one)",
    ),
    **dict.fromkeys(
        _GS,
        "set GOOGLE_APPLICATION_CREDENTIALS to the key file of an account that may storage.objects.get and "
        "storage.objects.list there",
    ),
    _HUB: "check the name (hf://OWNER/NAME); of a private or gated repository, set HF_TOKEN to a token that may read "
    "it",
}
_ENDPOINTS = {
    **dict.fromkeys(_S3, "check the network and AWS_ENDPOINT_URL"),
    **dict.fromkeys(_GS, "check the network and STORAGE_EMULATOR_HOST"),
    _HUB: "check the network and HF_ENDPOINT",
}
_PACKAGES = {
    **dict.fromkeys(_S3, "pip install 'heliograph[s3]'"),
    **dict.fromkeys(_GS, "pip install 'heliograph[gcs]'"),
}
_HUB_FORM = "give hf://OWNER/NAME or hf://OWNER/NAME@REVISION"
_HUB_ADVICE = {
    "OfflineModeIsEnabled": "the hub's offline mode is on: unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE, or give a "
    "folder of this machine",
    "GatedRepoError": "the repository is gated: accept its terms on its page, and set HF_TOKEN to a token of the same "
    "account",
    "RevisionNotFoundError": "what follows @ must be a branch, a tag or a commit of the repository",
    "RepositoryNotFoundError": _CREDENTIALS[_HUB],  # what the hub says of a private one, too
    "BucketNotFoundError": _CREDENTIALS[_HUB],
    "HFValidationError": _HUB_FORM,
    "HfUriError": _HUB_FORM,
    "ValueError": _HUB_FORM,
}
_UNREACHABLE = frozenset({
    "EndpointConnectionError", "ConnectTimeoutError", "ConnectError", "ConnectTimeout", "ClientConnectorError",
    "ConnectionRefusedError",
})  # fmt: skip
"""Of botocore, httpx, aiohttp and Python."""
_NO_CREDENTIALS = frozenset({
    "NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "CredentialRetrievalError",
    "DefaultCredentialsError", "RefreshError", "LocalTokenNotFoundError", "PermissionError",
})  # fmt: skip
"""Of botocore, google-auth, huggingface_hub and Python; s3fs raises the last for all that a server forbids."""


def explain_source_error(error: BaseException, *, url: str) -> str:
    """What went wrong at `url`, in one line without secrets, and what to change where that is known."""
    advice = _find_advice(error, url)
    said = _one_line(error)
    return f"{said}; {advice}" if advice else said


def is_plain_absence(error: BaseException, *, url: str) -> bool:
    """Whether it says only that one file is not there, not that its bucket or repository is not."""
    return isinstance(error, FileNotFoundError) and _find_advice(error, url) is None


def _find_advice(error: BaseException, url: str) -> str | None:
    scheme = url.partition("://")[0]
    for cause in _causes(error):
        advice = _advice_on(cause, scheme)
        if advice is not None:
            return advice
    return None


def _advice_on(error: BaseException, scheme: str) -> str | None:
    names = [kind.__name__ for kind in type(error).__mro__]
    hub = next((_HUB_ADVICE[name] for name in names if name in _HUB_ADVICE), None)
    if scheme == _HUB and hub is not None:
        return hub
    if isinstance(error, ImportError):
        return _PACKAGES.get(scheme, "install the package that reads such URLs")
    if _code(error) == "NoSuchBucket":
        return "there is no such bucket: check its name and region, and AWS_ENDPOINT_URL"
    is_forbidden = scheme in _GS and str(error).startswith("Forbidden")  # gcsfs: an OSError without a code
    if is_forbidden or _NO_CREDENTIALS.intersection(names) or _code(error) in {401, 403}:
        return _CREDENTIALS.get(scheme)
    if _UNREACHABLE.intersection(names):
        return _ENDPOINTS.get(scheme, "check the network and the address")
    return None


def _code(error: BaseException) -> Any:
    """The code in a server's answer: a word of S3's, or an HTTP status."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("Error", {}).get("Code")
    code: Any = getattr(response, "status_code", getattr(error, "code", None))
    return int(code) if str(code).isdigit() else code


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it, the last first."""
    seen: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in seen and len(seen) < 10:
        seen.append(found)
        yield found
        found = found.__cause__ or found.__context__


def _one_line(error: BaseException) -> str:
    """The error's words. Queries go from addresses in it: redirects to object stores carry signatures there."""
    words = re.sub(r"(https?://[^\s?'\"]*)\?[^\s'\"]*", r"\1", " ".join(str(error).split()))
    words = re.sub(r"(://)[^/@\s]+@", r"\1", words)
    return f"{type(error).__name__}: {words[:_MAX_SAID]}" if words else type(error).__name__
