"""Every error as OpenAI's error object with the right status."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from deployments.answers import ErrorDetail, ErrorResponse
from deployments.errors import BusyError, KeyRequiredError, RangeError, RequestError, UnavailableError

logger = logging.getLogger(__name__)
ON_ERROR = "heliograph.on_error"  # in the scope: takes the status and the code of an error answer
_MAX_MESSAGE_CHARACTERS = 500
_PARTS_OF_REQUEST = ("body", "query", "path", "header")


class ErrorAnswer(JSONResponse):
    """An error object; whoever left `ON_ERROR` in the scope hears of it when it is sent."""

    def __init__(self, detail: ErrorDetail, *, status: int, headers: dict[str, str]) -> None:
        super().__init__(ErrorResponse(error=detail).model_dump(), status_code=status, headers=headers)
        self._code = detail.code or detail.type

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it."""
        if ON_ERROR in scope:
            scope[ON_ERROR](self.status_code, self._code)
        await super().__call__(scope, receive, send)


def install_error_handlers(app: FastAPI) -> None:
    """Makes every answer that is not a success an `ErrorResponse`."""
    app.add_exception_handler(RequestError, _on_request_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(SQLAlchemyError, _on_database_error)
    app.add_exception_handler(Exception, _on_unexpected)


def error_response(error: RequestError) -> JSONResponse:
    """The HTTP answer for a typed error."""
    headers = {} if error.should_retry else {"x-should-retry": "false"}
    if isinstance(error, BusyError):
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, KeyRequiredError):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, RangeError):
        headers |= {"Content-Range": f"bytes */{error.num_bytes}", "Accept-Ranges": "bytes"}
    return _answer(error.status, error_detail(error), headers)


def error_detail(error: Exception) -> ErrorDetail:
    """The error object for any error; what nobody foresaw is logged and said in general words."""
    if isinstance(error, RequestError):
        return ErrorDetail(message=_shorten(error.message), type=error.error_type, param=error.param, code=error.code)
    logger.error("unexpected error", exc_info=error)
    return ErrorDetail(message="the server failed; its log says how", type="server_error", code="internal_error")


async def _on_request_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestError)
    return error_response(error)


async def _on_validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = _param(first)
    detail = ErrorDetail(
        message=_shorten(_message(first, param)),
        type="invalid_request_error",
        param=param,
        code="unknown_parameter" if first["type"] == "extra_forbidden" else "invalid_value",
    )
    return _answer(400, detail, {"x-should-retry": "false"})


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    words = {
        404: (f"no route {request.method} {request.url.path[:100]}", "not_found"),
        405: (f"{request.url.path[:100]} does not take {request.method}", "method_not_allowed"),
    }
    message, code = words.get(error.status_code, (str(error.detail), "invalid_request"))
    detail = ErrorDetail(message=_shorten(message), type="invalid_request_error", code=code)
    return _answer(error.status_code, detail, {"x-should-retry": "false", **(error.headers or {})})


async def _on_database_error(_: Request, error: Exception) -> JSONResponse:
    logger.error("the database fails", exc_info=error)
    return error_response(UnavailableError("the database does not answer: try again later"))


async def _on_unexpected(_: Request, error: Exception) -> JSONResponse:
    return _answer(500, error_detail(error), {})


def _answer(status: int, detail: ErrorDetail, headers: dict[str, str]) -> JSONResponse:
    return ErrorAnswer(detail, status=status, headers=headers)


def _param(item: dict[str, Any]) -> str | None:
    """The field that is to blame, without the part of the request that it is in."""
    if item["type"] == "json_invalid":
        return None
    parts = [str(part) for part in item["loc"] if part not in _PARTS_OF_REQUEST]
    return ".".join(parts)[:100] or None


def _message(item: dict[str, Any], param: str | None) -> str:
    text = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        return f"unknown parameter {param!r}: leave it out"
    if item["type"] == "json_invalid":
        return "the body is not valid JSON"
    return f"{param}: {text}" if param else text


def _shorten(text: str) -> str:
    printable = text.encode("utf-8", "replace").decode()
    return printable if len(printable) <= _MAX_MESSAGE_CHARACTERS else printable[:_MAX_MESSAGE_CHARACTERS] + "..."
