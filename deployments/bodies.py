"""Request bodies that come as JSON or as a form with files: one model for both."""

import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile

from deployments.errors import BadRequestError

_Model = TypeVar("_Model", bound=BaseModel)
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
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if content_type in _FORMS:
            values = await _read_form(request, max_bytes=max_bytes, files=files, lists=lists)
            return model.model_validate(values, strict=False)
        return model.model_validate(_read_json(await request.body(), files))
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from error


def _read_json(body: bytes, files: Mapping[str, str]) -> Any:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestValidationError([{"type": "json_invalid", "loc": (), "msg": "", "input": None}]) from error
    for name in files:
        if isinstance(values, dict) and values.get(name) is not None:
            raise _must_be_a_file(name)
    return values


async def _read_form(
    request: Request, *, max_bytes: int, files: Mapping[str, str], lists: frozenset[str]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    async with request.form(max_files=_MAX_FIELDS, max_fields=_MAX_FIELDS, max_part_size=max_bytes) as form:
        for name, value in form.multi_items():
            plain = name.removesuffix("[]")
            field = files.get(plain)
            if field is not None:
                if not isinstance(value, UploadFile):
                    raise _must_be_a_file(plain)
                content = await value.read()
                values[field] = (*values.get(field, ()), content) if field in lists else content
            elif isinstance(value, UploadFile):
                raise BadRequestError(f"{name[:100]}: no file is wanted here", name[:100])
            elif nested := _NESTED.fullmatch(name):
                values.setdefault(nested[1], {})[nested[2]] = _scalar(value)
            else:
                values[name] = value
    return values


def _scalar(text: str) -> Any:
    """A nested value, whose type no model knows: what JSON would read, or else the text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, bool | int | float) else text


def _must_be_a_file(name: str) -> BadRequestError:
    return BadRequestError(f"{name}: send a file in a multipart form; no URL or id is fetched", name)
