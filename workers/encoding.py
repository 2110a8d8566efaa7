"""Argument and result trees as JSON, with tensors taken out: what crosses the wire, and what names a call's signature.

Containers are tagged lists so that tuples stay tuples and dictionaries keep keys that are no strings:
`["l", ...]`, `["t", ...]`, `["d", [key, value], ...]`, `["T", index]` a tensor, `["F", index]` a float,
`["dtype", name]`, `["size", ...]`, `["out", module, class, [[field, value], ...]]` an output dataclass of diffusers or
transformers.

A value is flattened into its `Structure` (everything but tensors' values and floats), its tensors and its floats. A
denoiser's calls have the same structure step after step, so its tree, layouts and name are worked out once.
"""

import functools
import hashlib
import importlib
import itertools
import json
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch

from workers.errors import WorkerError

Tree = Any
_OUTPUT_LIBRARIES = ("diffusers", "transformers")
_KNOWN_TO_NUMPY = frozenset(
    {torch.float32, torch.float16, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool}
)
_MAX_STRUCTURES = 512  # random shapes make new ones for ever


class UnencodableError(WorkerError):
    """The value holds something that has no place in a message (an object, a tensor subclass)."""


@dataclass(frozen=True, slots=True)
class Structure:
    """What decides how a call runs and what its result looks like.

    Attributes:
        name: the same for equal structures, on every rank.
        tree: the value as JSON, tensors and floats as indices.
        layouts: one `tensor_layout` a tensor.
    """

    name: str
    tree: Tree
    layouts: tuple[list[Any], ...]


@dataclass(frozen=True, slots=True)
class Flat:
    """A value taken apart."""

    structure: Structure
    tensors: list[torch.Tensor]
    floats: list[float]


def flatten(value: Any) -> Flat:
    """Takes a value apart.

    Raises:
        UnencodableError: for a leaf that is neither plain data nor a plain tensor.
    """
    tensors: list[torch.Tensor] = []
    floats: list[float] = []
    key = _key(value, tensors, floats)
    return Flat(_structure(key), tensors, floats)


def encode_tree(value: Any, tensors: list[torch.Tensor]) -> Tree:
    """`value` as a tree with its floats in place; its tensors are appended to `tensors`.

    Raises:
        UnencodableError: for a leaf that is neither plain data nor a plain tensor.
    """
    floats: list[float] = []
    num_before = len(tensors)
    key = _key(value, tensors, floats)
    return _TreeBuilder(first_tensor=num_before, floats=floats).build(key)


def decode_tree(tree: Tree, tensors: Sequence[torch.Tensor], floats: Sequence[float] = ()) -> Any:
    """The value of a tree: the inverse of `encode_tree`, and with `floats` that of `flatten`."""
    if not isinstance(tree, list):
        return tree
    tag, *items = tree
    match tag:
        case "T":
            return tensors[items[0]]
        case "F":
            return floats[items[0]]
        case "l":
            return [decode_tree(item, tensors, floats) for item in items]
        case "t":
            return tuple(decode_tree(item, tensors, floats) for item in items)
        case "d":
            return {decode_tree(key, tensors, floats): decode_tree(item, tensors, floats) for key, item in items}
        case "size":
            return torch.Size(items)
        case "dtype":
            return _dtype(items[0])
        case "out":
            return _decode_output(items[0], items[1], items[2], tensors, floats)
    raise UnencodableError(f"unknown tag {tag!r} in a message")


def tensor_layout(tensor: torch.Tensor) -> list[Any]:
    """Shape, dtype, device type and order of dimensions in memory: all that a receiver needs, and plain JSON."""
    return [list(tensor.shape), _dtype_name(tensor.dtype), tensor.device.type, dim_order(tensor)]


def dim_order(tensor: torch.Tensor) -> list[int] | None:
    """Dimensions from the slowest to the fastest for a permuted tensor; None for one in order, and for expanded ones.

    A kernel may add in another order for another memory format, so a permuted tensor arrives permuted; gaps (half of
    the channels of a channels-last tensor) are closed.
    """
    strides = tensor.stride()
    if tensor.is_contiguous() or 0 in strides:
        return None
    order = sorted(range(tensor.ndim), key=lambda dim: (-strides[dim], dim))
    return None if order == list(range(tensor.ndim)) else order


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor in its memory order, on the CPU; without a copy where it is already dense there."""
    order = dim_order(tensor)
    dense = (tensor if order is None else tensor.permute(order)).contiguous().cpu()
    return memory_of(dense)


def memory_of(dense: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, as bytes; writable."""
    num_elements = dense.numel()
    if num_elements == 0:
        return memoryview(b"")
    if dense.dtype not in _KNOWN_TO_NUMPY:
        dense = dense.as_strided((num_elements,), (1,)).view(torch.uint8)
    return memoryview(dense.numpy().data).cast("B")


def empty_like_layout(layout: list[Any], *, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """New memory for a tensor of this layout: its dense storage as a contiguous tensor, and the tensor itself."""
    shape, dtype_name, _, order = layout
    if order is None:
        dense = torch.empty(shape, dtype=_dtype(dtype_name), device=device)
        return dense, dense
    dense = torch.empty([shape[dim] for dim in order], dtype=_dtype(dtype_name), device=device)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return dense, dense.permute(inverse)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@functools.cache
def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise UnencodableError(f"unknown dtype {name!r} in a message")
    return dtype


def _key(value: Any, tensors: list[torch.Tensor], floats: list[float]) -> Hashable:
    """A value's structure as something to look up by; types are part of it, since `1 == True == 1.0`."""
    kind = type(value)
    if kind is torch.Tensor or kind is torch.nn.Parameter:
        if value.layout is not torch.strided:
            raise UnencodableError(f"a tensor of layout {value.layout} cannot be sent to another rank")
        tensors.append(value.detach() if value.requires_grad else value)
        return torch.Tensor, value.shape, value.stride(), value.dtype, value.device.type
    if value is None or kind is int or kind is str:
        return value  # type: ignore[no-any-return]
    if kind is bool:
        return bool, value
    if kind is float:
        floats.append(value)
        return float
    if kind is dict or kind is OrderedDict:
        return dict, *[(_key(name, tensors, floats), _key(item, tensors, floats)) for name, item in value.items()]
    if kind is list or kind is tuple:
        return kind, *[_key(item, tensors, floats) for item in value]
    if kind is torch.Size:
        return torch.Size, *value
    if kind is torch.dtype:
        return value  # type: ignore[no-any-return]
    if is_dataclass(value) and kind.__module__.split(".")[0] in _OUTPUT_LIBRARIES:
        return kind, *[(field.name, _key(getattr(value, field.name), tensors, floats)) for field in fields(value)]
    for plain in (int, float, str):  # a subclass, such as numpy's float64: sent as what it stands for
        if isinstance(value, plain):
            return _key(plain(value), tensors, floats)
    raise UnencodableError(f"a {kind.__module__}.{kind.__qualname__} cannot be sent to another rank")


@functools.lru_cache(maxsize=_MAX_STRUCTURES)
def _structure(key: Hashable) -> Structure:
    builder = _TreeBuilder()
    tree = builder.build(key)
    name = hashlib.blake2b(json.dumps([tree, builder.layouts]).encode(), digest_size=16).hexdigest()
    return Structure(name, tree, tuple(builder.layouts))


class _TreeBuilder:
    """Makes a tree of what `_key` made of a value.

    Args:
        first_tensor: index of the value's first tensor.
        floats: the value's floats, to stand in the tree; None leaves indices in their places.
    """

    def __init__(self, *, first_tensor: int = 0, floats: list[float] | None = None) -> None:
        self.layouts: list[list[Any]] = []
        self._next_tensor = itertools.count(first_tensor)
        self._floats: Iterator[Tree] = (["F", index] for index in itertools.count()) if floats is None else iter(floats)

    def build(self, key: Any) -> Tree:
        if key is float:
            return next(self._floats)
        if isinstance(key, torch.dtype):
            return ["dtype", _dtype_name(key)]
        if not isinstance(key, tuple):
            return key
        kind, *items = key
        if kind is torch.Tensor:
            return self._tensor(*items)
        if kind is bool:
            return items[0]
        if kind is torch.Size:
            return ["size", *items]
        if kind is dict:
            return ["d", *([self.build(name), self.build(item)] for name, item in items)]
        if kind is list or kind is tuple:
            return ["l" if kind is list else "t", *map(self.build, items)]
        return ["out", kind.__module__, kind.__qualname__, [[name, self.build(item)] for name, item in items]]

    def _tensor(self, shape: Any, strides: Any, dtype: torch.dtype, device_type: str) -> Tree:
        order = dim_order(torch.empty_strided(shape, strides, device="meta"))
        self.layouts.append([list(shape), _dtype_name(dtype), device_type, order])
        return ["T", next(self._next_tensor)]


def _decode_output(
    module_name: str, class_name: str, items: list[Any], tensors: Sequence[torch.Tensor], floats: Sequence[float]
) -> Any:
    if module_name.split(".")[0] not in _OUTPUT_LIBRARIES:
        raise UnencodableError(f"{module_name}.{class_name} is not an output of diffusers or transformers")
    output_class: Any = getattr(importlib.import_module(module_name), class_name)
    if not is_dataclass(output_class):
        raise UnencodableError(f"{module_name}.{class_name} is not an output of diffusers or transformers")
    return output_class(  # type: ignore[operator]
        **{name: decode_tree(item, tensors, floats) for name, item in items}
    )
