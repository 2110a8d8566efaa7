"""Lets a running call be ended between the blocks of a component, and not only between components.

An autoencoder that decodes a video, or a large text encoder, computes for seconds in one call. A hook before each of
its blocks looks whether the request still stands.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

_NEVER_CALLED = (nn.ModuleList, nn.ModuleDict)
_CONTAINERS = (*_NEVER_CALLED, nn.Sequential)


def add_block_checks(module: nn.Module, check: Callable[[], None]) -> int:
    """Makes `check` run before each block of the module, and before the module itself; returns how many those are.

    Blocks are parts that have parts themselves: children of the module, and entries of containers at any depth.
    Compiled parts are left alone, since a hook would become part of their graph. Not for sharded modules:
    their ranks compute in step, and one that stops alone would leave the others waiting.
    """

    def before(_module: nn.Module, _args: Any) -> None:
        check()

    blocks = [] if _is_compiled(module) else [module, *_blocks(module, is_container=True)]
    for block in blocks:
        block.register_forward_pre_hook(before)
    return len(blocks)


def _blocks(module: nn.Module, *, is_container: bool) -> Iterator[nn.Module]:
    """Blocks inside `module`; its direct children count as such if it `is_container`."""
    for child in module.children():
        if _is_compiled(child):
            continue
        has_parts = next(child.children(), None) is not None
        if is_container and has_parts and not isinstance(child, _NEVER_CALLED):
            yield child
        yield from _blocks(child, is_container=isinstance(child, _CONTAINERS))


def _is_compiled(module: nn.Module) -> bool:
    call = module._compiled_call_impl
    return hasattr(call, "_torchdynamo_orig_callable") and not getattr(call, "_torchdynamo_disable", False)
