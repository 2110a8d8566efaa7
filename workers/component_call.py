"""One component on one rank: how its calls are named, run and counted, the same on the leader and on followers."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from workers.encoding import Flat, Tree, UnencodableError, decode_tree, encode_tree, flatten


@dataclass(frozen=True, slots=True)
class CacheContext:
    """Arguments of the `cache_context` that a pipeline opened around a call; step caches key their state by it.

    No part of a call's signature: some pipelines name each step's context anew.
    """

    name: str
    options: dict[str, Any]

    def encode(self) -> Tree:
        """As plain JSON; raises `UnencodableError` if an option cannot leave this rank."""
        tensors: list[torch.Tensor] = []
        tree = encode_tree((self.name, self.options), tensors)
        if tensors:
            raise UnencodableError("a cache context with tensors cannot be sent to another rank")
        return tree


@dataclass(slots=True)
class ComponentCall:
    """A call that can run on any rank: its arguments, and the same taken apart for a message."""

    component: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    context: CacheContext | None
    flat: Flat | None = None
    context_tree: Tree = None

    def encode(self) -> None:
        """Fills `flat` and `context_tree`; raises `UnencodableError` if the call cannot leave this rank."""
        self.context_tree = None if self.context is None else self.context.encode()
        self.flat = flatten((self.args, self.kwargs))

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensors among the arguments; none before `encode`."""
        return [] if self.flat is None else self.flat.tensors

    def fresh(self) -> "ComponentCall":
        """The encoded call with containers of its own: some models empty the lists that they are given."""
        assert self.flat is not None, "encode comes first"
        args, kwargs = decode_tree(self.flat.structure.tree, self.flat.tensors, self.flat.floats)
        return ComponentCall(self.component, args, kwargs, self.context, self.flat, self.context_tree)

    def signature(self) -> str:
        """Names everything that decides the structure of the result: all but tensors' values, floats and context."""
        assert self.flat is not None, "encode comes first"
        return f"{self.component}:{self.flat.structure.name}"

    @property
    def kind(self) -> tuple[Any, ...]:
        """What decides about how long the call takes: component and shapes."""
        values = (*self.args, *self.kwargs.values()) if self.flat is None else self.flat.tensors
        return self.component, *(value.shape for value in values if isinstance(value, torch.Tensor))

    @property
    def num_rows(self) -> int:
        return num_batch_rows(self.args, self.kwargs)


@dataclass(slots=True)
class LocalComponent:
    """A component whose weights (or shards of them) this rank holds and whose calls the leader sends.

    `make_room` runs before each call: a resident component needs the memory of those that take turns on the device.
    """

    name: str
    module: torch.nn.Module
    run_module: Callable[..., Any]
    is_denoiser: bool = True
    num_calls: int = 0
    num_rows: int = 0
    make_room: Callable[[], None] = lambda: None

    @classmethod
    def wrap(cls, name: str, module: torch.nn.Module, *, is_denoiser: bool) -> "LocalComponent":
        """Must be made before the seam is attached: keeps the module's own (possibly compiled) call."""
        return cls(name, module, module._compiled_call_impl or module._call_impl, is_denoiser)

    def start_request(self) -> None:
        """Counts anew, and drops what step caches keep: a pipeline resets those of its own module only."""
        self.num_calls = self.num_rows = 0
        reset_cache = getattr(self.module, "_reset_stateful_cache", None)
        if reset_cache is not None and getattr(self.module, "is_cache_enabled", False):
            reset_cache()

    def run(self, call: ComponentCall) -> Any:
        """Runs a call and counts it."""
        self.num_calls += 1
        self.num_rows += call.num_rows
        self.make_room()
        with _open_context(self.module, call.context):
            return self.run_module(*call.args, **call.kwargs)

    def run_and_drop(self, call: ComponentCall) -> None:
        """Takes part in a call's collectives without needing its result."""
        self.make_room()
        with _open_context(self.module, call.context):
            self.run_module(*call.args, **call.kwargs)


def count_work(components: Iterable[LocalComponent]) -> dict[str, Any]:
    """What a rank's components did since `start_request`, as fields of `RankStats`."""
    counted = list(components)
    denoisers = [component for component in counted if component.is_denoiser]
    return {
        "denoiser_calls": sum(component.num_calls for component in denoisers),
        "denoiser_rows": sum(component.num_rows for component in denoisers),
        "component_rows": {component.name: component.num_rows for component in counted},
    }


def num_batch_rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Rows of a denoiser call: dimension 0 of its first tensor, or the length of its first list of tensors."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor) and value.ndim > 0:
            return int(value.shape[0])
        if isinstance(value, list | tuple) and value and isinstance(value[0], torch.Tensor):
            return len(value)
    return 1


def _open_context(module: torch.nn.Module, context: CacheContext | None) -> Any:
    if context is None:
        return nullcontext()
    model_class: Any = type(module)  # not the instance: there the seam's recorder stands in its place
    return model_class.cache_context(module, context.name, **context.options)
