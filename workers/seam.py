"""The denoiser seam: every call of a denoiser passes here, and independent calls run on different lanes.

A call whose result's structure is known (it ran once before with the same signature) returns deferred tensors and
waits in the queue. When there is a call for each lane, or when somebody needs a value, the queue runs, one call a lane.
A pipeline that makes one call a step, with all branches in its batch, has that call cut along the batch instead.
"""

import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from workers.batch_split import is_close, join_results, split_call
from workers.component_call import CacheContext, ComponentCall
from workers.deferred import DeferredScope, DeferredTensor, has_pending, wait_all
from workers.encoding import Tree, UnencodableError, decode_tree, encode_tree
from workers.errors import CallError
from workers.lanes import Lanes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """Structure of a signature's result: its tree, and shape, dtype, strides of each tensor (on the meta device)."""

    tree: Tree
    metas: tuple[torch.Tensor, ...]
    device: torch.device


@dataclass(slots=True)
class SeamCounts:
    """What the seam did since the group's start.

    Attributes:
        learnt_signatures: calls that ran serially because their signature was new.
        local_calls: calls that could not leave the leader (unencodable or stateful arguments).
        uncut_signatures: batched calls that run whole, because cutting them did not give the same result.
    """

    learnt_signatures: int = 0
    local_calls: int = 0
    uncut_signatures: int = 0


class Seam:
    """All denoiser calls of the leader. Used from the compute thread only."""

    def __init__(self, lanes: Lanes, *, before_call: Callable[[str], None] = lambda _: None) -> None:
        self._lanes = lanes
        self._before_call = before_call
        self._queue: list[tuple[ComponentCall, OutputSpec, list[DeferredTensor]]] = []
        self._scope: DeferredScope | None = None
        self._specs: dict[str, OutputSpec | None] = {}
        self._contexts: dict[str, CacheContext] = {}
        self._is_running = False
        self._calls_this_step: Counter[str] = Counter()
        self._calls_a_step: dict[str, int] = {}
        self._can_cut: dict[str, bool] = {}
        self.counts = SeamCounts()

    def attach(self, name: str, module: torch.nn.Module) -> None:
        """Sends every call of `module` through the seam.

        `Module.__call__` prefers `_compiled_call_impl`, so the instance stays the real module in every other respect.
        """
        module._compiled_call_impl = functools.partial(self._call, name)
        if hasattr(module, "cache_context"):
            # An instance attribute shadows the method, and only notes the context: it is opened where the call runs.
            object.__setattr__(module, "cache_context", functools.partial(self._cache_context, name))

    def reset(self) -> None:
        """Drops what a finished or failed request left in the queue."""
        self._queue.clear()
        self._contexts.clear()
        self._calls_this_step.clear()
        if self._scope is not None:
            self._scope.is_done = True
            self._scope.stop_guarding()
            self._scope = None

    def end_step(self) -> None:
        """Called after each scheduler step: how many calls a step a component gets decides how they are divided."""
        self._calls_a_step.update(self._calls_this_step)
        self._calls_this_step.clear()

    def run_pending(self) -> None:
        """Runs the queued calls, one a lane, and fills their results in."""
        scope, queue = self._scope, self._queue
        if scope is None:
            return
        self._scope, self._queue = None, []
        scope.is_done = True
        scope.stop_guarding()
        results = self._run([call for call, _, _ in queue])
        for (call, spec, leaves), result in zip(queue, results, strict=True):
            self._fill(call, spec, leaves, result)
        scope.close()

    @contextmanager
    def _cache_context(self, component: str, name: str, **options: Any) -> Iterator[None]:
        self._contexts[component] = CacheContext(name, options)
        try:
            yield
        finally:
            self._contexts.pop(component, None)

    def _call(self, component: str, *args: Any, **kwargs: Any) -> Any:
        if self._is_running:  # a component inside a running call: part of that call
            return self._lanes.local[component].run_module(*args, **kwargs)
        self._before_call(component)
        if has_pending((args, kwargs)):
            args, kwargs = wait_all((args, kwargs))
        call = ComponentCall(component, args, kwargs, self._contexts.get(component))
        if self._lanes.layout.num_ranks == 1:
            return self._run([call])[0]
        try:
            call.encode()
        except UnencodableError as error:
            return self._run_on_leader(call, error)
        self._calls_this_step[component] += 1
        signature = call.signature()
        if signature not in self._specs:
            return self._learn(call, signature)
        spec = self._specs[signature]
        if spec is None or self._lanes.num_lanes == 1:
            self.run_pending()
            return self._run([call])[0]
        if call.num_rows > 1 and self._calls_a_step.get(component, 1) == 1:
            return self._run_cut(call, signature)
        return self._defer(call, spec)

    def _run_cut(self, call: ComponentCall, signature: str) -> Any:
        """Runs a batched call in parts on all lanes; the first time also whole, to see that the result is the same."""
        self.run_pending()
        if self._can_cut.get(signature) is False:
            return self._run([call])[0]
        parts = split_call(call, self._lanes.num_lanes)
        if signature in self._can_cut:
            return join_results(self._run(parts))
        whole = self._run([call])[0]
        self._can_cut[signature] = self._cuts_right(parts, whole)
        if not self._can_cut[signature]:
            self.counts.uncut_signatures += 1
            logger.warning("%s: its batched calls run whole, on one lane: cut, the result differs", call.component)
        return whole

    def _cuts_right(self, parts: list[ComponentCall], whole: Any) -> bool:
        try:
            return is_close(join_results(self._run(parts)), whole)
        except (CallError, RuntimeError, ValueError, TypeError, IndexError) as error:
            logger.info("%s cannot be cut along its batch: %s", parts[0].component, error)
            return False

    def _defer(self, call: ComponentCall, spec: OutputSpec) -> Any:
        if self._scope is None:
            self._scope = DeferredScope(self.run_pending)
        scope = self._scope
        leaves = [DeferredTensor(meta, device=spec.device, scope=scope) for meta in spec.metas]
        self._queue.append((call, spec, leaves))
        if len(self._queue) < self._lanes.num_lanes:
            scope.open(call.tensors)
            return decode_tree(spec.tree, list(leaves))
        self.run_pending()
        return decode_tree(spec.tree, [leaf.wait() for leaf in leaves])

    def _learn(self, call: ComponentCall, signature: str) -> Any:
        """Runs a call of a new signature at once and remembers the structure of its result."""
        self.run_pending()
        versions = [None if tensor.is_inference() else tensor._version for tensor in call.tensors]
        result = self._run([call])[0]
        self.counts.learnt_signatures += 1
        writes = versions != [None if tensor.is_inference() else tensor._version for tensor in call.tensors]
        self._specs[signature] = None if writes else _spec_of(result)
        if self._specs[signature] is None:
            logger.warning("%s: calls of this kind stay serial (%s)", call.component, _serial_reason(writes))
        return result

    def _run_on_leader(self, call: ComponentCall, error: UnencodableError) -> Any:
        if self._lanes.layout.all_take_part or self._lanes.layout.lane_size > 1:
            raise CallError(f"{call.component} runs on several ranks, but {error}") from error
        self.run_pending()
        if self.counts.local_calls == 0:
            logger.warning("%s: calls stay on the leader: %s", call.component, error)
        self.counts.local_calls += 1
        return self._run([call])[0]

    def _run(self, calls: list[ComponentCall]) -> list[Any]:
        self._is_running = True
        try:
            return self._lanes.run(calls)
        finally:
            self._is_running = False

    def _fill(self, call: ComponentCall, spec: OutputSpec, leaves: list[DeferredTensor], result: Any) -> None:
        tensors: list[torch.Tensor] = []
        if encode_tree(result, tensors) != spec.tree or any(
            tensor.shape != meta.shape or tensor.dtype != meta.dtype
            for tensor, meta in zip(tensors, spec.metas, strict=True)
        ):
            self._specs[call.signature()] = None
            raise CallError(
                f"{call.component} returned another structure than for the same arguments before; "
                "its calls run serially from now on: send the request again"
            )
        for leaf, tensor in zip(leaves, tensors, strict=True):
            leaf.fill(tensor)


def _spec_of(result: Any) -> OutputSpec | None:
    tensors: list[torch.Tensor] = []
    try:
        tree = encode_tree(result, tensors)
    except UnencodableError:
        return None
    if not tensors:
        return None
    metas = tuple(torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta") for t in tensors)
    return OutputSpec(tree, metas, tensors[0].device)


def _serial_reason(writes: bool) -> str:
    return "the model writes to its arguments" if writes else "its result holds more than tensors"
