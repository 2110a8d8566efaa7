"""Tensors whose value is not there yet.

A `DeferredTensor` has the shape, dtype and device of a denoiser call's result before the call has run. Pure operations
on it are deferred too (their shapes come from the meta device); anything that needs a value, mutates, or draws random
numbers waits. So a pipeline may touch a result as early as it likes: it is always right, at worst serial.

One `DeferredScope` belongs to one batch of queued calls. When the calls have run, every operation recorded in the scope
is computed at once, in the order of the program, so nothing can later read an operand that was changed in between. And
while something is pending, a `MutationGuard` sees each operation that writes: a write to memory that a queued call or a
recorded operation still has to read makes the queue run first.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

_WAITING_TAGS = (
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.nondeterministic_seeded,
)

_LEAF_TYPES = frozenset(
    {torch.Tensor, torch.nn.Parameter, type(None), bool, int, float, str, torch.dtype, torch.device}
)
"""Nothing can be pending in these. What is neither one of them nor a plain container goes by PyTorch's own walk, which
takes 20 us even for flat arguments."""


class DeferredScope:
    """What is pending together: leaves that calls will fill, and the operations recorded on them."""

    def __init__(self, run_pending: Callable[[], None]) -> None:
        self._run_pending = run_pending
        self._operations: list[_Operation] = []
        self._read_addresses: set[int] = set()
        self._guard: MutationGuard | None = None
        self.is_done = False

    def open(self, tensors: Iterable[torch.Tensor]) -> None:
        """Notes that a queued call still has to read `tensors`, and starts to guard them."""
        self._read_addresses.update(_address(tensor) for tensor in tensors)
        if self._guard is None:
            self._guard = MutationGuard(self)
            self._guard.__enter__()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Computes everything recorded, in program order. Called once all leaves have their values."""
        self.is_done = True
        self.stop_guarding()
        for operation in self._operations:
            operation.compute()
        self._operations.clear()

    def stop_guarding(self) -> None:
        """Takes the guard off PyTorch's stack of modes.

        Not possible from inside the guard's own dispatch (the stack is in use), as when an operation on a deferred
        tensor made the calls run; there the finished scope makes it let everything pass. Whoever owns the scope asks
        `is_guarding` and calls this again later, before another guard is put on: a mode that stayed on would slow every
        operation down and forbid compiled code.
        """
        if self._guard is not None and not self._guard.is_dispatching:
            self._guard.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._guard = None

    @property
    def is_guarding(self) -> bool:
        """Whether the guard is on PyTorch's stack of modes."""
        return self._guard is not None

    def wait(self) -> None:
        """Runs the pending calls now."""
        if not self.is_done:
            self._run_pending()

    def record(self, operation: "_Operation", operands: Iterable[torch.Tensor]) -> None:
        """Notes an operation to compute when the calls have run; `operands` are what it reads besides."""
        self._operations.append(operation)
        self._read_addresses.update(_address(tensor) for tensor in operands)

    def reads(self, tensor: torch.Tensor) -> bool:
        return _address(tensor) in self._read_addresses


class DeferredTensor(torch.Tensor):
    """A tensor that will have a value: a call's result, or a pure operation on one."""

    _scope: DeferredScope
    _value: torch.Tensor | None

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, meta: torch.Tensor, *, device: torch.device, scope: DeferredScope) -> "DeferredTensor":
        deferred = torch.Tensor._make_wrapper_subclass(
            cls, meta.shape, strides=meta.stride(), storage_offset=0, dtype=meta.dtype, device=device
        )
        deferred._scope = scope
        deferred._value = None
        return deferred

    def fill(self, value: torch.Tensor) -> None:
        """Gives a leaf its value."""
        if value.shape != self.shape or value.dtype != self.dtype:
            raise AssertionError(f"a call returned {value.shape} {value.dtype}, expected {self.shape} {self.dtype}")
        self._value = value

    def wait(self) -> torch.Tensor:
        """The value: runs the pending calls if it is not there yet."""
        if self._value is None:
            self._scope.wait()
        assert self._value is not None, "the call that this tensor waits for has failed"
        return self._value

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        operands = [leaf for leaf in _leaves((*args, *kwargs.values())) if isinstance(leaf, torch.Tensor)]
        pending = [leaf for leaf in operands if isinstance(leaf, DeferredTensor) and leaf._value is None]
        if pending and _can_defer(func):
            recorded = _record(func, args, kwargs, operands, pending[0])
            if recorded is not None:
                return recorded
        return func(*wait_all(args), **wait_all(kwargs))

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        state = "pending" if self._value is None else "done"
        return f"DeferredTensor({state}, shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device})"

    # What reads memory without an operation waits.
    def numpy(self, *, force: bool = False) -> Any:
        return self.wait().numpy(force=force)

    def tolist(self) -> Any:
        return self.wait().tolist()

    def data_ptr(self) -> int:
        return self.wait().data_ptr()

    def untyped_storage(self) -> Any:
        return self.wait().untyped_storage()

    def __array__(self, dtype: Any = None) -> Any:
        return self.wait().__array__(dtype)

    def __dlpack__(self, **options: Any) -> Any:
        return self.wait().__dlpack__(**options)

    def __deepcopy__(self, memo: Any) -> torch.Tensor:
        return self.wait().clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.wait().__reduce_ex__(protocol)


class MutationGuard(TorchDispatchMode):
    """While calls are pending: runs them before an operation writes to memory that they still have to read."""

    def __init__(self, scope: DeferredScope) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._scope = scope
        self.is_dispatching = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.is_dispatching = True
        try:
            is_write = func._schema.is_mutable and not self._scope.is_done
            if is_write and any(_is_read(leaf, self._scope) for leaf in _leaves((*args, *kwargs.values()))):
                self._scope.wait()
            return func(*args, **kwargs)
        finally:
            self.is_dispatching = False


class _Operation:
    """A recorded pure operation; `outputs` are the deferred tensors that stand for its results."""

    def __init__(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._call = (function, args, kwargs)
        self.outputs: list[DeferredTensor] = []

    def compute(self) -> None:
        function, args, kwargs = self._call
        result = function(*wait_all(args), **wait_all(kwargs))
        values = [result] if isinstance(result, torch.Tensor) else list(result)
        for output, value in zip(self.outputs, values, strict=True):
            output.fill(value)


def wait_all(value: Any) -> Any:
    """`value` with every deferred tensor replaced by its value."""
    kind = type(value)
    if kind is DeferredTensor:
        return value.wait()
    if kind in _LEAF_TYPES:
        return value
    if kind is tuple or kind is list:
        return kind([wait_all(item) for item in value])
    if kind is dict:
        return {name: wait_all(item) for name, item in value.items()}
    return tree_map_only(DeferredTensor, DeferredTensor.wait, value)


def has_pending(value: Any) -> bool:
    """Whether a deferred tensor stands anywhere in `value`."""
    kind = type(value)
    if kind in _LEAF_TYPES:
        return False
    if kind is tuple or kind is list:
        return any(map(has_pending, value))
    if kind is dict:
        return any(map(has_pending, value.values()))
    return any(isinstance(leaf, DeferredTensor) for leaf in tree_flatten(value)[0])


def _leaves(values: Iterable[Any]) -> list[Any]:
    """What an operation's arguments hold: it has lists of tensors at most."""
    leaves: list[Any] = []
    for value in values:
        if isinstance(value, list | tuple):
            leaves += _leaves(value)
        else:
            leaves.append(value)
    return leaves


def _is_read(leaf: Any, scope: DeferredScope) -> bool:
    if isinstance(leaf, DeferredTensor):
        return leaf._value is None
    return isinstance(leaf, torch.Tensor) and scope.reads(leaf)


def _can_defer(func: Any) -> bool:
    if func._schema.is_mutable or any(tag in func.tags for tag in _WAITING_TAGS):
        return False
    if len(func._schema.returns) != 1:
        return False
    kind = func._schema.returns[0].type
    return isinstance(kind, torch.TensorType) or (
        isinstance(kind, torch.ListType) and isinstance(kind.getElementType(), torch.TensorType)
    )


def _record(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], operands: list[torch.Tensor], first: DeferredTensor
) -> Any:
    """Records a pure operation on pending tensors; None if its shape cannot be known without a value."""
    scope = first._scope
    if any(isinstance(leaf, DeferredTensor) and leaf._value is None and leaf._scope is not scope for leaf in operands):
        return None
    meta_kwargs = {name: value for name, value in kwargs.items() if name not in ("device", "pin_memory")}
    try:
        metas = func(*tree_map_only(torch.Tensor, _to_meta, args), **tree_map_only(torch.Tensor, _to_meta, meta_kwargs))
    except (RuntimeError, NotImplementedError):
        return None
    operation = _Operation(func, args, kwargs)
    device = kwargs.get("device") or first.device
    meta_list = [metas] if isinstance(metas, torch.Tensor) else list(metas)
    operation.outputs = [DeferredTensor(meta, device=device, scope=scope) for meta in meta_list]
    scope.record(operation, [leaf for leaf in operands if not isinstance(leaf, DeferredTensor)])
    return operation.outputs[0] if isinstance(metas, torch.Tensor) else operation.outputs


def _to_meta(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _address(tensor: torch.Tensor) -> int:
    return 0 if isinstance(tensor, DeferredTensor) else tensor.untyped_storage().data_ptr()
