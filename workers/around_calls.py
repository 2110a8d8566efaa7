"""What is done around each call of a module, outside of what is compiled: copying or gathering its weights."""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn


class Around(Protocol):
    """Is told of calls of numbered modules; `leave` also when one fails, but not when `enter` did."""

    def enter(self, index: int) -> None: ...

    def leave(self, index: int) -> None: ...


def put_around_call(module: nn.Module, around: Around, index: int) -> None:
    """Makes `around` enter and leave at each call of the module, in place. Compile the module before, never after.

    `nn.Module.__call__` asks `_compiled_call_impl` first; there, forward hooks would break compiled graphs.
    """
    call = put_around(module._compiled_call_impl or module._call_impl, around, index)
    # Dynamo must not trace into it where somebody compiles the whole model.
    module.__dict__["_compiled_call_impl"] = torch.compiler.disable(call, recursive=False)


def put_around(function: Callable[..., Any], around: Around, index: int) -> Callable[..., Any]:
    """The function, with `around` entering before it and leaving after."""

    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        around.enter(index)
        try:
            return function(*arguments, **keywords)
        finally:
            around.leave(index)

    return call
