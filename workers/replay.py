"""Lets a second run of a pipeline's code pass without the work of its encoders and denoisers.

While a call records, the structure of each component call's result is noted; while it is replayed, a call of that
component gets zeros of that structure at once: of the call with arguments of the same shapes, if there was one. No
value is kept, so nothing is held in memory, and no rank but this one is asked.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch.utils._pytree import tree_leaves, tree_map

from workers.component_call import num_batch_rows


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
            key = (name, num_batch_rows(args, kwargs), *_shapes((args, kwargs)))
            if self._state == "recording":
                result = inner(*args, **kwargs)
                if key not in self._results:
                    self._results[key] = tree_map(_blank, result)
                return result
            if key in self._results:
                return tree_map(_filled, self._results[key])
            if name not in self._costly:
                return inner(*args, **kwargs)
            return tree_map(_filled, self._like_another(name, num_batch_rows(args, kwargs)))

        return call

    def _like_another(self, name: str, num_rows: int) -> Any:
        """The structure of a call that has not been seen: a later step has other branches, thus another batch."""
        for (known, known_rows, *_), result in self._results.items():
            if known == name:
                return _with_rows(result, known_rows, num_rows)
        raise CannotReplayError(f"{name} has not been called before")


def _with_rows(result: Any, known_rows: int, num_rows: int) -> Any:
    """Blanks with another batch: as dimension 0, or as a list with an entry a row."""

    def is_batch(node: Any) -> bool:
        return isinstance(node, list) and len(node) == known_rows and all(isinstance(each, _Blank) for each in node)

    def change(node: Any) -> Any:
        if isinstance(node, list):
            return [node[index % known_rows] for index in range(num_rows)]
        if isinstance(node, _Blank) and node.shape[:1] == (known_rows,):
            return replace(node, shape=torch.Size((num_rows, *node.shape[1:])))
        return node

    return tree_map(change, result, is_leaf=is_batch)


def _shapes(arguments: Any) -> Iterator[torch.Size]:
    return (leaf.shape for leaf in tree_leaves(arguments) if isinstance(leaf, torch.Tensor))


def _blank(leaf: Any) -> Any:
    """Shape, dtype and device are known of deferred tensors too: none is waited for."""
    return _Blank(leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, torch.Tensor) else leaf


def _filled(leaf: Any) -> Any:
    return leaf.fill() if isinstance(leaf, _Blank) else leaf
