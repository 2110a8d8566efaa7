"""The denoiser seam: every call of a denoiser passes here, and independent calls run on different lanes.

A call whose result's structure is known (it ran once before with the same signature) returns deferred tensors and
waits in the queue. When there is a call for each lane, or when somebody needs a value, the queue runs, one call a lane.
A pipeline that makes one call a step, with all branches in its batch, has that call cut along the batch instead.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from workers.batch_split import CutPlan, cut_plans, is_close, join_results, split_call
from workers.calls import SeamStats
from workers.component_call import CacheContext, ComponentCall
from workers.deferred import DeferredScope, DeferredTensor, has_pending, wait_all
from workers.encoding import Flat, Tree, UnencodableError, decode_tree, flatten
from workers.errors import CallError
from workers.lanes import Lanes
from workers.module_watch import ModuleWatch
from workers.recently_used import RecentlyUsed
from workers.step_profile import StepProfile

logger = logging.getLogger(__name__)
MAX_SIGNATURES = 256
"""What is known of a signature that has not been used for so many others is learnt again: one serial call."""


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """Structure of a signature's result: its tree, and shape, dtype, strides of each tensor (on the meta device)."""

    tree: Tree
    metas: tuple[torch.Tensor, ...]
    device: torch.device
    floats: list[float]

    def matches(self, result: Flat) -> bool:
        """Whether this is the result that was expected, so that tensors can go to their places."""
        return (
            result.structure.tree == self.tree
            and result.floats == self.floats
            and all(
                tensor.shape == meta.shape and tensor.dtype == meta.dtype
                for tensor, meta in zip(result.tensors, self.metas, strict=True)
            )
        )

    def rebuild(self, tensors: Sequence[torch.Tensor]) -> Any:
        """A result of this structure that holds `tensors`."""
        return decode_tree(self.tree, tensors, self.floats)


@dataclass(frozen=True, slots=True)
class _Queued:
    """A call that waits: what runs in its place (itself, or its parts), and the deferred tensors to fill."""

    call: ComponentCall
    parts: list[ComponentCall]
    spec: OutputSpec
    leaves: list[DeferredTensor]


@dataclass(slots=True)
class SeamCounts:
    """What the seam did since the group's start.

    Attributes:
        learnt_signatures: calls that ran serially because their signature was new.
        local_calls: calls that could not leave the leader: unencodable or stateful arguments, or the pipeline has
            changed the module (hooks of guiders).
        uncut_signatures: batched calls that run whole, because cutting them did not give the same result.
    """

    learnt_signatures: int = 0
    local_calls: int = 0
    uncut_signatures: int = 0

    def snapshot(self) -> SeamStats:
        """The counts as they are now."""
        return SeamStats(self.learnt_signatures, self.local_calls, self.uncut_signatures)

    def since(self, before: SeamStats) -> SeamStats:
        """What was counted after `before`."""
        return SeamStats(
            self.learnt_signatures - before.learnt_signatures,
            self.local_calls - before.local_calls,
            self.uncut_signatures - before.uncut_signatures,
        )


class Seam:
    """All denoiser calls of the leader. Used from the compute thread only."""

    def __init__(self, lanes: Lanes, *, before_call: Callable[[str], None] = lambda _: None) -> None:
        self._lanes = lanes
        self._before_call = before_call
        self._queue: list[_Queued] = []
        self._scope: DeferredScope | None = None
        self._left_guarding: DeferredScope | None = None
        self._specs: RecentlyUsed[str, OutputSpec | None] = RecentlyUsed(MAX_SIGNATURES)
        self._contexts: dict[str, CacheContext] = {}
        self._watches: dict[str, ModuleWatch] = {}
        self._is_running = False
        self._profile = StepProfile()
        self._plans: RecentlyUsed[str, CutPlan | None] = RecentlyUsed(MAX_SIGNATURES)
        self.counts = SeamCounts()

    def attach(self, name: str, module: torch.nn.Module) -> None:
        """Sends every call of `module` through the seam.

        `Module.__call__` prefers `_compiled_call_impl`, so the instance stays the real module in every other respect.
        """
        module._compiled_call_impl = functools.partial(self._call, name)
        if hasattr(module, "cache_context"):
            # An instance attribute shadows the method, and only notes the context: it is opened where the call runs.
            object.__setattr__(module, "cache_context", functools.partial(self._cache_context, name))
        self._watches[name] = ModuleWatch(module)

    def reset(self) -> None:
        """Drops what a finished or failed request left in the queue."""
        self._queue.clear()
        self._contexts.clear()
        self._profile.forget_step()
        if self._scope is not None:
            self._scope.is_done = True
            self._scope.stop_guarding()
            self._scope = None
        self._stop_guarding()

    def end_step(self) -> None:
        """Called after each scheduler step: which calls a step consists of decides how they are divided."""
        self._stop_guarding()
        self._profile.end_step()

    def run_pending(self) -> None:
        """Runs the queued calls, one a lane, and fills their results in."""
        if self._scope is None:
            return
        watches = [self._watches[queued.call.component] for queued in self._queue]
        is_changed = any(watch.change() or watch.has_new_config() for watch in watches)
        self._run_queue([None] if is_changed else [])  # queued before the change: not for the leader

    def _run_queue(self, first: list[ComponentCall | None]) -> list[Any]:
        """Runs `first` and the queued calls, one a lane; fills the queued ones' results in, returns those of `first`.

        There is a lane for one call beside a queue: a queue that is as long as the lanes are many has run already.
        """
        scope, queue = self._scope, self._queue
        self._scope, self._queue = None, []
        if scope is None:
            return self._run(first)
        scope.is_done = True
        scope.stop_guarding()
        if scope.is_guarding:
            self._left_guarding = scope
        results = self._run([*first, *(part for queued in queue for part in queued.parts)])
        of_parts = iter(results[len(first) :])
        for queued in queue:
            self._fill(queued, self._join(queued.call, [next(of_parts) for _ in queued.parts], queued.spec))
        scope.close()
        return results[: len(first)]

    def _stop_guarding(self) -> None:
        """Takes off the guard of a scope that was finished from inside the guard's own dispatch."""
        if self._left_guarding is not None:
            self._left_guarding.stop_guarding()
            self._left_guarding = None

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
        self._stop_guarding()
        self._before_call(component)
        if has_pending((args, kwargs)):
            args, kwargs = wait_all((args, kwargs))
        call = ComponentCall(component, args, kwargs, self._contexts.get(component))
        if self._lanes.layout.num_ranks == 1:
            return self._run([call])[0]
        try:
            call.encode()
        except UnencodableError as error:
            self.run_pending()  # an object may hold deferred tensors
            return self._run_on_leader(call, str(error))
        self._send_new_config(component)
        change = self._watches[component].change()
        if change is not None:
            return self._run_on_leader(call, f"the pipeline has changed {change}")
        self._profile.record(component, call.num_rows)
        signature = call.signature()
        if signature not in self._specs:
            return self._learn(call, signature)
        spec = self._specs[signature]
        if spec is None or self._lanes.num_lanes == 1:
            self.run_pending()
            return self._run([call])[0]
        num_parts = self._num_parts(call)
        if num_parts == 1:
            return self._defer(call, [call], spec)
        if signature not in self._plans:  # it was not to be cut when it was learnt
            self.run_pending()
            whole = self._run([call.fresh()])[0]
            self._find_plan(call, signature, spec, whole)
            return whole
        plan = self._plans[signature]
        if plan is None:  # on the leader: what a pipeline changes in its denoiser (attention processors) is there only
            self.run_pending()
            return self._run([call])[0]
        return self._defer(call, split_call(call, num_parts, plan), spec)

    def _num_parts(self, call: ComponentCall) -> int:
        return self._profile.num_parts(call.component, num_rows=call.num_rows, num_lanes=self._lanes.num_lanes)

    def _find_plan(self, call: ComponentCall, signature: str, spec: OutputSpec, whole: Any) -> None:
        """Runs a batched call in parts by one plan after the other until the result is that of the `whole` call."""
        num_parts = self._num_parts(call)
        plans = (plan for plan in cut_plans(call, num_parts) if self._cuts_right(call, num_parts, plan, spec, whole))
        self._plans[signature] = next(plans, None)
        if self._plans[signature] is None:
            self.counts.uncut_signatures += 1
            logger.warning("%s: its batched calls run whole, on one lane: cut, the result differs", call.component)

    def _cuts_right(self, call: ComponentCall, num_parts: int, plan: CutPlan, spec: OutputSpec, whole: Any) -> bool:
        try:
            return is_close(_joined(self._run(split_call(call, num_parts, plan)), spec), whole)
        except (CallError, RuntimeError, ValueError, TypeError, IndexError, KeyError, AssertionError) as error:
            logger.info("%s cannot be cut by %s: %s", call.component, plan, error)
            return False

    def _defer(self, call: ComponentCall, parts: list[ComponentCall], spec: OutputSpec) -> Any:
        """Queues a call (or the parts it is cut into); runs the queue once every lane has something to do."""
        if not self._fits(parts):
            self.run_pending()
        if not self._queue and len(parts) == self._lanes.num_lanes:
            return self._join(call, self._run(parts), spec)
        if self._scope is None:
            self._scope = DeferredScope(self.run_pending)
        scope = self._scope
        leaves = [DeferredTensor(meta, device=spec.device, scope=scope) for meta in spec.metas]
        self._queue.append(_Queued(call, parts, spec, leaves))
        if sum(len(queued.parts) for queued in self._queue) < self._lanes.num_lanes:
            scope.open(call.tensors)
            return spec.rebuild(leaves)
        if all(queued.call.component == call.component for queued in self._queue):
            self._run_queue([])  # this call has just seen that its component is not changed
        else:
            self.run_pending()
        return spec.rebuild([leaf.wait() for leaf in leaves])

    def _fits(self, parts: list[ComponentCall]) -> bool:
        """Whether `parts` can run beside the queue: a lane each, and one component where shards span the lanes."""
        if self._lanes.layout.all_take_part and any(q.call.component != parts[0].component for q in self._queue):
            return False
        return sum(len(queued.parts) for queued in self._queue) + len(parts) <= self._lanes.num_lanes

    def _learn(self, call: ComponentCall, signature: str) -> Any:
        """Runs a call of a new signature at once; remembers the structure of its result, and how to cut such calls."""
        self.run_pending()
        versions = [None if tensor.is_inference() else tensor._version for tensor in call.tensors]
        result = self._run([call.fresh()])[0]
        self.counts.learnt_signatures += 1
        writes = versions != [None if tensor.is_inference() else tensor._version for tensor in call.tensors]
        spec = self._specs[signature] = None if writes else _spec_of(result)
        if spec is None:
            logger.warning("%s: calls of this kind stay serial (%s)", call.component, _serial_reason(writes))
        elif self._num_parts(call) > 1:
            self._find_plan(call, signature, spec, result)
        return result

    def _send_new_config(self, component: str) -> None:
        """What the pipeline has written to the leader's model (SkyReels V2 the size of its causal blocks)."""
        if self._watches[component].has_new_config():
            self.run_pending()
            self._lanes.configure(component, self._watches[component].take_new_config())

    def _run_on_leader(self, call: ComponentCall, reason: str) -> Any:
        """Runs a call that no follower can; what is queued runs on the followers meanwhile."""
        if self._lanes.layout.all_take_part or self._lanes.layout.lane_size > 1:
            raise CallError(f"{call.component} runs on several ranks, but {reason}")
        if self.counts.local_calls == 0:
            logger.warning("%s: calls stay on the leader: %s", call.component, reason)
        self.counts.local_calls += 1
        return self._run_queue([call])[0]

    def _run(self, calls: Sequence[ComponentCall | None]) -> list[Any]:
        self._is_running = True
        try:
            return self._lanes.run(calls)
        finally:
            self._is_running = False

    def _join(self, call: ComponentCall, results: list[Any], spec: OutputSpec) -> Any:
        try:
            return _joined(results, spec)
        except (ValueError, TypeError, RuntimeError) as error:
            raise self._other_structure(call) from error

    def _fill(self, queued: _Queued, result: Any) -> None:
        flat = flatten(result)
        if not queued.spec.matches(flat):
            raise self._other_structure(queued.call)
        for leaf, tensor in zip(queued.leaves, flat.tensors, strict=True):
            leaf.fill(tensor)

    def _other_structure(self, call: ComponentCall) -> CallError:
        self._specs[call.signature()] = None
        return CallError(
            f"{call.component} returned another structure than for the same arguments before; "
            "its calls run serially from now on: send the request again"
        )


def _joined(results: list[Any], spec: OutputSpec) -> Any:
    """The result of a call from those of its parts; of a call that was not cut, its result."""
    return results[0] if len(results) == 1 else join_results(results, like=spec.rebuild(spec.metas))


def _spec_of(result: Any) -> OutputSpec | None:
    try:
        flat = flatten(result)
    except UnencodableError:
        return None
    if not flat.tensors:
        return None
    metas = tuple(torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta") for t in flat.tensors)
    return OutputSpec(flat.structure.tree, metas, flat.tensors[0].device, flat.floats)


def _serial_reason(writes: bool) -> str:
    return "the model writes to its arguments" if writes else "its result holds more than tensors"
