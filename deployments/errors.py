"""Errors of the service and the command line.

    DeploymentError
    ├── SettingsError              the app's settings or a command's options cannot be used
    ├── LocalServiceError          a Ray or Serve that we started on this machine did not come up
    └── RequestError               one request cannot be answered; carries what HTTP needs
        ├── BadRequestError            400: the caller must change the request
        ├── KeyRequiredError           401: no key, or an unknown one
        ├── UnknownModelError          404: no such model here
        ├── NotFoundError              404: no such job, file or variant
        ├── BodyTimeoutError           408: the body did not come in time
        ├── ConflictError              409: the idempotency key was used for another request
        ├── BodyTooLargeError          413: the body is above the limit
        ├── RangeError                 416: nothing of the range is in the file; says how long the file is
        ├── PoisonedRequestError       422: several groups died while they worked on it
        ├── BusyError                  429: the queue is full; says when to come back
        ├── HeadersTooLargeError       431: the headers are above the limit
        ├── GenerationError            500: the request was fine, the work failed
        ├── UnavailableError           503: no group can take the request now
        │   ├── GroupsDiedError            503: the groups that tried it died, one after the other
        │   └── StorageError               503: results cannot be stored or read
        └── RequestTimeoutError        504: it took longer than the service allows
            └── StillRunningError          504: its job goes on, and can be waited for again

All of them pickle: their constructor's arguments are their `args`.
"""

from typing import ClassVar


class DeploymentError(Exception):
    """Base of everything that this package raises on purpose."""


class SettingsError(DeploymentError):
    """The app's settings, or the options of a command, cannot be used as they are."""


class LocalServiceError(DeploymentError):
    """A Ray or Serve that was started on this machine did not come up, or went away."""


class RequestError(DeploymentError):
    """One request cannot be answered.

    Attributes:
        status: HTTP status.
        error_type: OpenAI's error type.
        message: what happened and what to change.
        param: the request's field that is to blame.
        code: a word for programs.
        should_retry: whether sending the same request again can help.
    """

    status: ClassVar[int] = 500
    error_type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None
    should_retry: ClassVar[bool] = False

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param, code)
        self.message = message
        self.param = param
        self.code = code or self.default_code

    def __str__(self) -> str:
        return self.message


class BadRequestError(RequestError):
    """The caller must change the request."""

    status = 400
    error_type = "invalid_request_error"
    default_code = "invalid_value"


class KeyRequiredError(RequestError):
    """No API key, or one that nobody has."""

    status = 401
    error_type = "invalid_request_error"
    default_code = "invalid_api_key"


class NotFoundError(RequestError):
    """There is no such thing, or it is somebody else's."""

    status = 404
    error_type = "invalid_request_error"
    default_code = "not_found"


class ConflictError(RequestError):
    """The request contradicts an earlier one."""

    status = 409
    error_type = "invalid_request_error"
    default_code = "idempotency_key_reused"


class BodyTimeoutError(RequestError):
    """The client did not send its body in time."""

    status = 408
    error_type = "invalid_request_error"
    default_code = "body_timeout"
    should_retry = True


class BodyTooLargeError(RequestError):
    """The body is above the limit."""

    status = 413
    error_type = "invalid_request_error"
    default_code = "body_too_large"


class RangeError(RequestError):
    """Nothing of the range that is asked for is in the file."""

    status = 416
    error_type = "invalid_request_error"
    default_code = "range_not_satisfiable"

    def __init__(self, num_bytes: int) -> None:
        super().__init__(f"the file has {num_bytes} bytes: nothing of this range is in it", "Range")
        self.args = (num_bytes,)
        self.num_bytes = num_bytes


class HeadersTooLargeError(RequestError):
    """The request's headers are above the limit."""

    status = 431
    error_type = "invalid_request_error"
    default_code = "headers_too_large"


class UnknownModelError(RequestError):
    """No model of that name is served here."""

    status = 404
    error_type = "invalid_request_error"
    default_code = "model_not_found"


class PoisonedRequestError(RequestError):
    """Groups die of this request: it is refused, so that they stay up for others."""

    status = 422
    error_type = "invalid_request_error"
    default_code = "request_kills_groups"


class BusyError(RequestError):
    """The queue is full."""

    status = 429
    error_type = "rate_limit_error"
    default_code = "queue_full"
    should_retry = True

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.args = (message, retry_after_s)
        self.retry_after_s = retry_after_s


class GenerationError(RequestError):
    """The request was fine, the work on it failed."""

    default_code = "generation_failed"


class UnavailableError(RequestError):
    """No group can take the request now."""

    status = 503
    error_type = "server_error"
    default_code = "unavailable"
    should_retry = True


class GroupsDiedError(UnavailableError):
    """Every group that tried the request died, not always by its doing."""

    default_code = "unavailable"


class StorageError(UnavailableError):
    """The results' storage is full, read-only or gone; nothing is wrong with the request."""

    default_code = "storage_unavailable"


class RequestTimeoutError(RequestError):
    """The request took longer than the service allows."""

    status = 504
    error_type = "server_error"
    default_code = "timeout"


class StillRunningError(RequestTimeoutError):
    """Somebody waited for a job as long as the service allows; it goes on."""

    default_code = "still_running"
    should_retry = True


_OF_JOBS: dict[str, type[RequestError]] = {
    "invalid_value": BadRequestError,
    "unsupported": BadRequestError,
    "limit_exceeded": BadRequestError,
    "invalid_image": BadRequestError,
    "request_kills_groups": PoisonedRequestError,
    "timeout": RequestTimeoutError,
    "cancelled": ConflictError,
}


def request_error(code: str, message: str) -> RequestError:
    """The error of a job that failed, for somebody who waited for its answer. It does not help to ask for it again."""
    return _OF_JOBS.get(code, GenerationError)(message, None, code)
