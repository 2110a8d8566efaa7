"""JSON of a checkpoint, parsed within bounds of time and memory, whoever wrote it."""

import json
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from planner.errors import CheckpointFormatError


@dataclass(frozen=True, slots=True)
class JsonLimits:
    """Bounds of one document, counted in its bytes before it is parsed.

    Counting first bounds time and memory: `[],[],...` costs 60 bytes of objects a byte pair, and a list of 5 MB of
    short numbers takes 100 ms.
    """

    num_bytes: int
    num_objects: int
    num_lists: int
    num_values: int


CONFIG_LIMITS = JsonLimits(num_bytes=2**20, num_objects=20_000, num_lists=20_000, num_values=100_000)
"""`model_index.json`, `config.json`, `heliograph.json`: the largest seen has 150 KB."""
WEIGHT_INDEX_LIMITS = JsonLimits(num_bytes=4 * 2**20, num_objects=64, num_lists=64, num_values=40_000)
"""Indexes of sharded weights: a line a tensor; the largest seen has 400 KB."""


def parse_object(
    raw: bytes, *, where: str, what: str, limits: JsonLimits, duplicates: Literal["refused", "last wins"]
) -> dict[str, Any]:
    """Parses one JSON object.

    Args:
        where: the file, for messages.
        what: what the bytes are, for messages: `it`, or `its header`.
        duplicates: whether a name may appear twice in an object.

    Raises:
        CheckpointFormatError: not JSON, not an object, too large, or a name appears twice.
    """
    _check_counts(raw, where=where, what=what, limits=limits)
    try:
        text = raw.decode("utf-8")
        document = json.loads(text, parse_constant=_refuse_constant)
        if duplicates == "refused" and not _has_as_many_names_as_colons(document, raw):
            json.loads(text, object_pairs_hook=_unique)
    except _DuplicateNameError as error:
        _fail(where, f"the name {error.args[0][:200]!r} appears twice in {what}")
    except RecursionError:
        _fail(where, f"{what} is nested too deeply")
    except (ValueError, OverflowError) as error:
        _fail(where, f"{what} is not valid JSON ({str(error)[:120]})")
    if not isinstance(document, dict):
        _fail(where, f"{what} is a JSON {type(document).__name__}, an object is needed")
    return document


def check_numbers(document: dict[str, Any], *, where: str) -> None:
    """Refuses numbers that no configuration holds, before anything computes with them.

    Raises:
        CheckpointFormatError: an integer past 64 bits.
    """
    waiting: list[Any] = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting.extend([inner for inner in value.values() if type(inner) is not str])
        elif isinstance(value, list):
            waiting.extend([inner for inner in value if type(inner) is not str])
        elif type(value) is int and not -(2**63) <= value < 2**63:
            _fail(where, f"it holds an integer of {value.bit_length()} bits, at most 64 are allowed")


def _check_counts(raw: bytes, *, where: str, what: str, limits: JsonLimits) -> None:
    if len(raw) > limits.num_bytes:
        _fail(where, f"{what} has {len(raw)} bytes, at most {limits.num_bytes} are read")
    for byte, limit, name in (
        (b"{", limits.num_objects, "objects"),
        (b"[", limits.num_lists, "lists"),
        (b",", limits.num_values, "values"),
    ):
        if raw.count(byte) > limit:
            _fail(where, f"{what} has more than {limit} {name}")


class _DuplicateNameError(Exception):
    pass


def _has_as_many_names_as_colons(document: Any, raw: bytes) -> bool:
    """True if the first two levels hold as many names as `raw` has colons: then no name was there twice.

    Each name was followed by a colon, also one that a later, equal name replaced. Colons inside strings and names
    further down make this False for a document without duplicates, which then has to be parsed pair by pair: that
    takes half as long again, and real headers and indexes do not need it.
    """
    if not isinstance(document, dict):
        return False
    below = sum([len(value) for value in document.values() if type(value) is dict])
    return len(document) + below == raw.count(b":")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _DuplicateNameError(name)
            seen.add(name)
    return result


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _fail(where: str, offence: str) -> NoReturn:
    raise CheckpointFormatError(f"{where}: {offence}")
