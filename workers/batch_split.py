"""Cuts a call whose batch holds several branches (or pictures) into one call a lane, and joins the results.

What is cut is decided by shape alone: tensors whose dimension 0 is the batch, and lists with an entry a row. Shapes may
mislead: a rotary table of two rows looks like a batch of two, and some arguments hold each row several times over or
keep the batch in dimension 1. So there are several plans; the seam takes the first one whose joined result is the uncut
one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from itertools import islice
from typing import Any

import torch

from workers.component_call import ComponentCall, num_batch_rows

MAX_RELATIVE_ERROR = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Norm of the difference over the norm of the result. Kernels choose other summation orders for other batch sizes."""
MAX_RELATIVE_ERROR_LOW_PRECISION = 3e-2
MAX_PLANS = 16
"""Plans tried for a signature; each costs a call on the lanes, once."""

ArgumentKey = int | str


class CutRule(StrEnum):
    """How an argument is cut.

    Tensors with the batch in dimension 0, lists with an entry a row and dictionaries with rows for keys are cut by all
    rules but `WHOLE`.
    """

    ROWS = "rows"
    MULTIPLES = "multiples"  # tensors of k times the batch too: each row k times in succession (frames of a video)
    SECOND = "second"  # tensors with the batch in dimension 1 too (hidden states of several layers, stacked)
    WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class CutPlan:
    """The rule for each argument, by position or name: `default` but for the `exceptions`."""

    default: CutRule = CutRule.ROWS
    exceptions: tuple[tuple[ArgumentKey, CutRule], ...] = ()

    def rule_of(self, key: ArgumentKey) -> CutRule:
        return dict(self.exceptions).get(key, self.default)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows `first` to `last` (exclusive) of `count`.

    `owners` are the rows of the entries of a list that has no entry for each row: OmniGen gets its pictures as one
    list, beside a dictionary from row to the places of that row's pictures.
    """

    first: int
    last: int
    count: int
    owners: tuple[int, ...]

    def __contains__(self, row: int) -> bool:
        return self.first <= row < self.last


def cut_plans(call: ComponentCall, num_parts: int) -> Iterator[CutPlan]:
    """Plans in the order to try them.

    Those that would cut the call as one before did are left out.
    """
    return islice(_distinct_plans(call, num_parts), MAX_PLANS)


def split_call(call: ComponentCall, num_parts: int, plan: CutPlan) -> list[ComponentCall]:
    """The call cut along its batch into up to `num_parts` calls of nearly equal rows, encoded."""
    num_rows = call.num_rows
    owners = _owners((*call.args, *call.kwargs.values()), num_rows)
    parts = []
    for indices in torch.arange(num_rows).tensor_split(min(num_parts, num_rows)):
        rows = _Rows(int(indices[0]), int(indices[-1]) + 1, num_rows, owners)
        part = ComponentCall(
            call.component,
            tuple(_cut(value, rows, plan.rule_of(index)) for index, value in enumerate(call.args)),
            {name: _cut(value, rows, plan.rule_of(name)) for name, value in call.kwargs.items()},
            call.context,
        )
        part.encode()
        parts.append(part)
    return parts


def join_results(results: list[Any], *, like: Any) -> Any:
    """One result from those of the parts, with the structure and shapes of the uncut one.

    Args:
        results: the parts' results, in order.
        like: the uncut result; its tensors may be on the meta device. It tells a list with an entry a row (joined end
            to end) from a list of batches (joined entry by entry), and which dimension is the batch.

    Raises:
        TypeError, ValueError: the parts do not add up to `like`.
    """
    first = results[0]
    if isinstance(like, torch.Tensor):
        return _join_tensors(results, like)
    if isinstance(like, list | tuple):
        return type(like)(_join_sequences(results, like))
    if is_dataclass(like) and not isinstance(like, type):  # before dict: diffusers' outputs are both
        names = [field.name for field in fields(like)]
        joined = {name: join_results([getattr(r, name) for r in results], like=getattr(like, name)) for name in names}
        return type(like)(**joined)
    if isinstance(like, dict):
        return type(like)((key, join_results([r[key] for r in results], like=item)) for key, item in like.items())
    if first is None or isinstance(first, bool | int | float | str):
        return first
    raise TypeError(f"a {type(first).__name__} cannot be joined")


def is_close(joined: Any, whole: Any) -> bool:
    """Whether a joined result is the uncut one, up to the rounding of another batch size."""
    if isinstance(whole, torch.Tensor):
        return isinstance(joined, torch.Tensor) and _is_close_tensor(joined, whole)
    if isinstance(whole, list | tuple):
        return len(joined) == len(whole) and all(is_close(a, b) for a, b in zip(joined, whole, strict=True))
    if is_dataclass(whole) and not isinstance(whole, type):
        return all(is_close(getattr(joined, f.name), getattr(whole, f.name)) for f in fields(whole))
    if isinstance(whole, dict):
        return all(is_close(joined[key], item) for key, item in whole.items())
    return bool(joined == whole)


def _distinct_plans(call: ComponentCall, num_parts: int) -> Iterator[CutPlan]:
    seen = set()
    for plan in _all_plans(_keys_beside_the_batch(call)):
        first = split_call(call, num_parts, plan)[0]
        assert first.flat is not None
        effect = first.signature(), tuple(first.flat.floats)
        if effect not in seen:
            seen.add(effect)
            yield plan


def _all_plans(keys: list[ArgumentKey]) -> Iterator[CutPlan]:
    """Leaving an argument whole comes first: it cannot fail in a harmful way, whereas a table that is cut although its
    indices are not makes a GPU kernel read out of bounds."""
    yield CutPlan()
    yield from (CutPlan(exceptions=((key, CutRule.WHOLE),)) for key in keys)
    others = (CutRule.MULTIPLES, CutRule.SECOND)
    yield from (CutPlan(rule) for rule in others)
    yield from (CutPlan(exceptions=((key, rule),)) for key in keys for rule in others)
    for default in others:
        for key in keys:
            yield from (CutPlan(default, ((key, rule),)) for rule in CutRule if rule is not default)


def _keys_beside_the_batch(call: ComponentCall) -> list[ArgumentKey]:
    """All arguments but the first one with rows: that one is cut in any case."""
    arguments: list[tuple[ArgumentKey, Any]] = [*enumerate(call.args), *call.kwargs.items()]
    batch = next((key for key, value in arguments if num_batch_rows((value,), {}) > 1), None)
    return [key for key, _ in arguments if key != batch]


def _join_tensors(parts: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    if any(part.ndim != like.ndim for part in parts):
        raise ValueError(f"results of {[part.ndim for part in parts]} dimensions instead of {like.ndim}")
    if all(part.shape == like.shape for part in parts):
        return parts[0]  # it has no rows
    for dim, size in enumerate(like.shape):
        others = [*like.shape[:dim], *like.shape[dim + 1 :]]
        if sum(part.shape[dim] for part in parts) == size and all(
            [*part.shape[:dim], *part.shape[dim + 1 :]] == others for part in parts
        ):
            return torch.cat(parts, dim)
    raise ValueError(f"results of {[tuple(part.shape) for part in parts]} do not add up to {tuple(like.shape)}")


def _join_sequences(parts: list[Any], like: Any) -> list[Any]:
    lengths = [len(part) for part in parts]
    if all(length == len(like) for length in lengths):
        return [join_results(list(items), like=item) for *items, item in zip(*parts, like, strict=True)]
    if sum(lengths) == len(like):
        return [item for part in parts for item in part]
    raise ValueError(f"results of {lengths} entries do not add up to {len(like)}")


def _is_close_tensor(joined: torch.Tensor, whole: torch.Tensor) -> bool:
    if joined.shape != whole.shape or joined.dtype != whole.dtype:
        return False
    limit = MAX_RELATIVE_ERROR.get(whole.dtype, MAX_RELATIVE_ERROR_LOW_PRECISION)
    difference = (joined.double() - whole.double()).norm()
    return bool(difference <= limit * whole.double().norm())


def _cut(value: Any, rows: _Rows, rule: CutRule) -> Any:
    if rule is CutRule.WHOLE:
        return value
    if isinstance(value, torch.Tensor):
        return _cut_tensor(value, rows, rule)
    if _has_row_keys(value, rows.count):
        return {row - rows.first: item for row, item in value.items() if row in rows}
    if type(value) is dict:
        return {key: _cut(item, rows, rule) for key, item in value.items()}
    if type(value) is list and value and len(value) == len(rows.owners):
        return [item for item, owner in zip(value, rows.owners, strict=True) if owner in rows]
    if type(value) is list and len(value) == rows.count and not _all_batches(value, rows.count):
        return value[rows.first : rows.last]
    if type(value) in (list, tuple):
        return type(value)(_cut(item, rows, rule) for item in value)
    return value


def _cut_tensor(tensor: torch.Tensor, rows: _Rows, rule: CutRule) -> torch.Tensor:
    size = tensor.shape[0] if tensor.ndim > 0 else 0
    if size == rows.count:
        return tensor[rows.first : rows.last]
    if rule is CutRule.SECOND and tensor.ndim > 1 and tensor.shape[1] == rows.count:
        return tensor[:, rows.first : rows.last]
    if rule is CutRule.MULTIPLES and size > 0 and size % rows.count == 0:
        times = size // rows.count
        return tensor[rows.first * times : rows.last * times]
    return tensor


def _owners(arguments: tuple[Any, ...], num_rows: int) -> tuple[int, ...]:
    """The row of each entry, as told by the first dictionary from rows to lists of entries."""
    for value in arguments:
        if _has_row_keys(value, num_rows):
            return tuple(row for row, entries in value.items() for _ in entries)
    return ()


def _has_row_keys(value: Any, num_rows: int) -> bool:
    """Whether `value` is a dictionary from some of the rows to a list each."""
    return (
        type(value) is dict
        and len(value) > 0
        and all(type(key) is int and 0 <= key < num_rows and type(item) is list for key, item in value.items())
    )


def _all_batches(items: list[Any], num_rows: int) -> bool:
    return all(isinstance(item, torch.Tensor) and item.ndim > 0 and item.shape[0] == num_rows for item in items)
