"""Lets a second run of a pipeline's code pass without the work of its encoders and denoisers.

While a call records, the structure of each component call's result is noted; while it is replayed, a call of that
component with arguments of those shapes gets zeros of that structure at once. No value is kept, so nothing is held in
memory, and no rank but this one is asked.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils._pytree import tree_leaves, tree_map


class CannotReplayError(Exception):
    """A component is called in another way than in the run that was recorded."""


@dataclass(frozen=True, slots=True)
class _Blank:
    """A tensor without its values."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def fill(self) -> torch.Tensor:
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device)


class Replay:
    """Stands before the calls of a pipeline's components. Made after all else that changes how they are called.

    Args:
        modules: by name; each call of one of them passes here from now on.
        costly: those of them that must not run while replaying.
    """

    def __init__(self, modules: Mapping[str, torch.nn.Module], *, costly: frozenset[str]) -> None:
        self._costly = costly
        self._state: Literal["off", "recording", "replaying"] = "off"
        self._results: dict[tuple[Any, ...], Any] = {}
        for name, module in modules.items():
            inner: Any = module._compiled_call_impl or module._call_impl
            module.__dict__["_compiled_call_impl"] = self._standing_before(name, inner)

    @property
    def is_replaying(self) -> bool:
        """Whether blanks are given out now."""
        return self._state == "replaying"

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Notes what the components return; forgets it at the end."""
        self._state = "recording"
        try:
            yield
        finally:
            self._state = "off"
            self._results.clear()

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Answers in the components' place, inside of `recording`."""
        before, self._state = self._state, "replaying"
        try:
            yield
        finally:
            self._state = before

    def _standing_before(self, name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._state == "off":
                return inner(*args, **kwargs)
            key = (name, *_shapes((args, kwargs)))
            if self._state == "recording":
                result = inner(*args, **kwargs)
                if key not in self._results:
                    self._results[key] = tree_map(_blank, result)
                return result
            if key in self._results:
                return tree_map(_filled, self._results[key])
            if name in self._costly:
                raise CannotReplayError(f"{name} is called with other shapes than before")
            return inner(*args, **kwargs)

        return call


def _shapes(arguments: Any) -> Iterator[torch.Size]:
    return (leaf.shape for leaf in tree_leaves(arguments) if isinstance(leaf, torch.Tensor))


def _blank(leaf: Any) -> Any:
    """Shape, dtype and device are known of deferred tensors too: none is waited for."""
    return _Blank(leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, torch.Tensor) else leaf


def _filled(leaf: Any) -> Any:
    return leaf.fill() if isinstance(leaf, _Blank) else leaf
