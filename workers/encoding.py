"""Argument and result trees as JSON, with tensors taken out: what crosses the wire, and what names a call's signature.

Containers are tagged lists so that tuples stay tuples and dictionaries keep keys that are no strings:
`["l", ...]`, `["t", ...]`, `["d", [key, value], ...]`, `["T", index]` a tensor, `["dtype", name]`, `["size", ...]`,
`["out", module, class, [[field, value], ...]]` an output dataclass of diffusers or transformers.
"""

import importlib
from collections import OrderedDict
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from workers.errors import WorkerError

Tree = Any
_OUTPUT_LIBRARIES = ("diffusers", "transformers")


class UnencodableError(WorkerError):
    """The value holds something that has no place in a message (an object, a tensor subclass)."""


def encode_tree(value: Any, tensors: list[torch.Tensor]) -> Tree:
    """Encodes `value`; its tensors are appended to `tensors` and stand as indices in the tree.

    Raises:
        UnencodableError: for a leaf that is neither plain data nor a plain tensor.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value if type(value) in (type(None), bool, int, float, str) else _encode_number(value)
    if isinstance(value, torch.Tensor):
        if type(value) not in (torch.Tensor, torch.nn.Parameter) or value.layout != torch.strided:
            raise UnencodableError(f"a {type(value).__name__} cannot be sent to another rank")
        tensors.append(value.detach())
        return ["T", len(tensors) - 1]
    if isinstance(value, torch.Size):
        return ["size", *value]
    if type(value) in (list, tuple):
        return ["l" if type(value) is list else "t", *(encode_tree(item, tensors) for item in value)]
    if type(value) in (dict, OrderedDict):
        return ["d", *([encode_tree(k, tensors), encode_tree(v, tensors)] for k, v in value.items())]
    if isinstance(value, torch.dtype):
        return ["dtype", str(value).removeprefix("torch.")]
    if is_dataclass(value) and type(value).__module__.split(".")[0] in _OUTPUT_LIBRARIES:
        items = [[field.name, encode_tree(getattr(value, field.name), tensors)] for field in fields(value)]
        return ["out", type(value).__module__, type(value).__qualname__, items]
    raise UnencodableError(f"a {type(value).__module__}.{type(value).__qualname__} cannot be sent to another rank")


def decode_tree(tree: Tree, tensors: list[torch.Tensor]) -> Any:
    """The inverse of `encode_tree`."""
    if not isinstance(tree, list):
        return tree
    tag, *items = tree
    match tag:
        case "T":
            return tensors[items[0]]
        case "l":
            return [decode_tree(item, tensors) for item in items]
        case "t":
            return tuple(decode_tree(item, tensors) for item in items)
        case "d":
            return {decode_tree(key, tensors): decode_tree(item, tensors) for key, item in items}
        case "size":
            return torch.Size(items)
        case "dtype":
            return _dtype(items[0])
        case "out":
            return _decode_output(items[0], items[1], items[2], tensors)
    raise UnencodableError(f"unknown tag {tag!r} in a message")


def tensor_layout(tensor: torch.Tensor) -> list[Any]:
    """Shape, dtype, device type and order of dimensions in memory: all that a receiver needs, and plain JSON."""
    return [list(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.device.type, dim_order(tensor)]


def dim_order(tensor: torch.Tensor) -> list[int] | None:
    """Dimensions from the slowest to the fastest for a dense but permuted tensor; None for everything else.

    A kernel may add in another order for another memory format, so a permuted tensor arrives permuted.
    """
    if tensor.is_contiguous():
        return None
    order = sorted(range(tensor.ndim), key=lambda dim: (-tensor.stride()[dim], dim))
    return order if tensor.permute(order).is_contiguous() else None


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor in its memory order, on the CPU; without a copy where it is already dense there."""
    order = dim_order(tensor)
    dense = (tensor if order is None else tensor.permute(order)).contiguous().cpu()
    flat = dense.as_strided((dense.numel(),), (1,))  # a one-element expanded tensor counts as contiguous, at stride 0
    return memoryview(flat.view(torch.uint8).numpy().data)


def empty_like_layout(layout: list[Any], *, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """New memory for a tensor of this layout: its dense storage as a contiguous tensor, and the tensor itself."""
    shape, dtype_name, _, order = layout
    if order is None:
        dense = torch.empty(shape, dtype=_dtype(dtype_name), device=device)
        return dense, dense
    dense = torch.empty([shape[dim] for dim in order], dtype=_dtype(dtype_name), device=device)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return dense, dense.permute(inverse)


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise UnencodableError(f"unknown dtype {name!r} in a message")
    return dtype


def _encode_number(value: Any) -> Tree:
    for plain in (int, float, str):
        if isinstance(value, plain):
            return plain(value)
    raise UnencodableError(f"a {type(value).__name__} cannot be sent to another rank")


def _decode_output(module_name: str, class_name: str, items: list[Any], tensors: list[torch.Tensor]) -> Any:
    if module_name.split(".")[0] not in _OUTPUT_LIBRARIES:
        raise UnencodableError(f"{module_name}.{class_name} is not an output of diffusers or transformers")
    output_class: Any = getattr(importlib.import_module(module_name), class_name)
    if not is_dataclass(output_class):
        raise UnencodableError(f"{module_name}.{class_name} is not an output of diffusers or transformers")
    return output_class(  # type: ignore[operator]
        **{name: decode_tree(item, tensors) for name, item in items}
    )
