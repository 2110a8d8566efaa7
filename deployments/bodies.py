"""Request bodies that come as JSON or as a form with files: one model for both."""

import json
import re
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile

from deployments.errors import BadRequestError

_Model = TypeVar("_Model", bound=BaseModel)
_JSON = "application/json"
_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
_NESTED = re.compile(r"(\w+)\[(\w+)\]")
_MAX_FIELDS = 100


async def read_body(
    request: Request,
    model: type[_Model],
    *,
    max_bytes: int,
    files: Mapping[str, str],
    lists: frozenset[str] = frozenset(),
) -> _Model:
    """The body as `model`. A form's texts are read as the types that the model wants; JSON is taken as it is.

    Args:
        request: its body is not read yet.
        model: what it must be.
        max_bytes: of one part of a form.
        files: names of the form's files, and the model's fields that they become.
        lists: fields that take several files.

    Raises:
        RequestValidationError: a field is wrong.
        BadRequestError: a field that must be a file is none.
    """
    if _content_type(request) not in _FORMS:
        return await read_json(request, model, files=files)
    values = await _read_form(request, max_bytes=max_bytes, files=files, lists=lists)
    try:
        return model.model_validate(values, strict=False)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from error


async def read_json(request: Request, model: type[_Model], *, files: Iterable[str] = ()) -> _Model:
    """The JSON body as `model`. Another content type is refused: a page of any site can make a browser send those.

    Args:
        request: its body is not read yet.
        model: what it must be.
        files: fields that only a form can have.

    Raises:
        RequestValidationError: a field is wrong.
        BadRequestError: it is not sent as JSON, says a field twice, or has a field that must be a file.
    """
    if _content_type(request) != _JSON:
        raise BadRequestError(f"send the body as {_JSON}, and say so in content-type", "content-type")
    values = _parse(await request.body())
    for name in files:
        if isinstance(values, dict) and values.get(name) is not None:
            raise _must_be_a_file(name)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from error


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise RequestValidationError([{"type": "json_invalid", "loc": (), "msg": "", "input": None}]) from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are there once: which of two counts differs from parser to parser."""
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)[:100]
        raise BadRequestError(f"{twice}: is there twice", twice)
    return values


async def _read_form(
    request: Request, *, max_bytes: int, files: Mapping[str, str], lists: frozenset[str]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    async with _open_form(request, max_bytes) as form:
        for name, value in form.multi_items():
            plain = name.removesuffix("[]")
            field = files.get(plain)
            if field is not None:
                if not isinstance(value, UploadFile):
                    raise _must_be_a_file(plain)
                content = await value.read()
                if field in lists:
                    values[field] = (*values.get(field, ()), content)
                else:
                    _add(values, field, content, plain)
            elif isinstance(value, UploadFile):
                raise BadRequestError(f"{name[:100]}: no file is wanted here", name[:100])
            elif nested := _NESTED.fullmatch(name):
                _add(values.setdefault(nested[1], {}), nested[2], _scalar(value), name)
            else:
                _add(values, name, value, name)
    return values


@asynccontextmanager
async def _open_form(request: Request, max_bytes: int) -> AsyncGenerator[FormData, None]:
    try:
        form = await request.form(max_files=_MAX_FIELDS, max_fields=_MAX_FIELDS, max_part_size=max_bytes)
    except UnicodeError as error:  # the client names the codec
        raise BadRequestError("the form's texts cannot be decoded: send them as utf-8", "content-type") from error
    try:
        yield form
    finally:
        await request.close()


def _add(values: Any, key: str, value: Any, name: str) -> None:
    if not isinstance(values, dict) or key in values:
        raise BadRequestError(f"{name[:100]}: is there twice", name[:100])
    values[key] = value


def _scalar(text: str) -> Any:
    """A nested value, whose type no model knows: what JSON would read, or else the text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, bool | int | float) else text


def _must_be_a_file(name: str) -> BadRequestError:
    return BadRequestError(f"{name}: send a file in a multipart form; no URL or id is fetched", name)
