"""Cuts a call whose batch holds several branches (or pictures) into one call a lane, and joins the results.

What is cut is decided by shape alone: tensors whose dimension 0 is the batch, and lists with an entry a row. A rotary
table may look the same by accident, so the seam compares the joined result with the uncut one once a signature.
"""

from dataclasses import fields, is_dataclass
from typing import Any

import torch

from workers.component_call import ComponentCall

MAX_RELATIVE_ERROR = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Norm of the difference over the norm of the result. Kernels choose other summation orders for other batch sizes."""
MAX_RELATIVE_ERROR_LOW_PRECISION = 3e-2


def split_call(call: ComponentCall, num_parts: int) -> list[ComponentCall]:
    """The call cut along its batch into up to `num_parts` calls of nearly equal rows, encoded."""
    num_rows = call.num_rows
    bounds = torch.arange(num_rows).tensor_split(min(num_parts, num_rows))
    parts = []
    for rows in bounds:
        first, last = int(rows[0]), int(rows[-1]) + 1
        part = ComponentCall(
            call.component,
            _cut(call.args, num_rows, first, last),
            _cut(call.kwargs, num_rows, first, last),
            call.context,
        )
        part.encode()
        parts.append(part)
    return parts


def join_results(results: list[Any]) -> Any:
    """One result from those of the parts: tensors and lists joined in order.

    Raises:
        TypeError: the results hold something that has no rows.
    """
    first = results[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(results)
    if isinstance(first, list):
        return [item for result in results for item in result]
    if isinstance(first, tuple):
        return tuple(join_results(list(items)) for items in zip(*results, strict=True))
    if is_dataclass(first) and not isinstance(first, type):
        joined = {f.name: join_results([getattr(r, f.name) for r in results]) for f in fields(first)}
        return type(first)(**joined)
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
    return bool(joined == whole)


def _is_close_tensor(joined: torch.Tensor, whole: torch.Tensor) -> bool:
    if joined.shape != whole.shape or joined.dtype != whole.dtype:
        return False
    limit = MAX_RELATIVE_ERROR.get(whole.dtype, MAX_RELATIVE_ERROR_LOW_PRECISION)
    difference = (joined.double() - whole.double()).norm()
    return bool(difference <= limit * whole.double().norm())


def _cut(value: Any, num_rows: int, first: int, last: int) -> Any:
    if isinstance(value, torch.Tensor):
        is_batch = value.ndim > 0 and value.shape[0] == num_rows
        return value[first:last] if is_batch else value
    if type(value) is dict:
        return {key: _cut(item, num_rows, first, last) for key, item in value.items()}
    if type(value) is list and len(value) == num_rows and not _all_batches(value, num_rows):
        return value[first:last]
    if type(value) in (list, tuple):
        return type(value)(_cut(item, num_rows, first, last) for item in value)
    return value


def _all_batches(items: list[Any], num_rows: int) -> bool:
    return all(isinstance(item, torch.Tensor) and item.ndim > 0 and item.shape[0] == num_rows for item in items)
