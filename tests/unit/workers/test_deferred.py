from collections.abc import Callable

import numpy as np
import pytest
import torch

from workers.deferred import DeferredScope, DeferredTensor, wait_all


class Pending:
    """One pending call whose result is `value`; it has to read `argument`."""

    def __init__(self, value: torch.Tensor, argument: torch.Tensor | None = None) -> None:
        self.num_runs = 0
        self._value = value
        self.scope = DeferredScope(self._run)
        self.leaf = DeferredTensor(value.to("meta"), device=value.device, scope=self.scope)
        self.scope.open([] if argument is None else [argument])

    def _run(self) -> None:
        self.num_runs += 1
        self.scope.is_done = True
        self.scope.stop_guarding()
        self.leaf.fill(self._value)
        self.scope.close()


@pytest.fixture
def make_pending() -> Callable[..., Pending]:
    made: list[Pending] = []

    def make(value: torch.Tensor, argument: torch.Tensor | None = None) -> Pending:
        made.append(Pending(value, argument))
        return made[-1]

    yield make
    for pending in made:
        pending.scope.is_done = True
        pending.scope.stop_guarding()


def test_pure_operations_wait_for_nobody_and_compute_the_same(make_pending: Callable[..., Pending]) -> None:
    value, other = torch.randn(2, 6), torch.randn(2, 6)
    pending = make_pending(value)
    deferred = pending.leaf
    chunk = torch.cat([deferred, other])[:3].to(torch.float64).chunk(2, dim=1)[1] * 2 + 1
    assert pending.num_runs == 0
    expected = torch.cat([value, other])[:3].to(torch.float64).chunk(2, dim=1)[1] * 2 + 1
    assert torch.equal(wait_all(chunk), expected)
    assert pending.num_runs == 1


@pytest.mark.parametrize(
    "touch",
    [
        lambda tensor: tensor.sum().item(),
        lambda tensor: bool((tensor > 0).all()),
        lambda tensor: tensor.tolist(),
        lambda tensor: tensor.numpy(),
        lambda tensor: np.asarray(tensor),
        lambda tensor: tensor.nonzero(),
        lambda tensor: torch.bernoulli(tensor.abs().clamp(0, 1)),
        lambda tensor: tensor.add_(1),
        lambda tensor: tensor.data_ptr(),
    ],
    ids=["item", "bool", "tolist", "numpy", "asarray", "nonzero", "random", "in_place", "data_ptr"],
)
def test_what_needs_a_value_runs_the_pending_call(
    make_pending: Callable[..., Pending], touch: Callable[[torch.Tensor], object]
) -> None:
    pending = make_pending(torch.randn(3, 3))
    touch(pending.leaf)
    assert pending.num_runs == 1


def test_an_operation_recorded_before_a_write_sees_the_value_before_it(make_pending: Callable[..., Pending]) -> None:
    pending = make_pending(torch.ones(3))
    doubled = pending.leaf * 2
    pending.leaf.add_(10)
    assert torch.equal(wait_all(doubled), torch.full((3,), 2.0))
    assert torch.equal(wait_all(pending.leaf), torch.full((3,), 11.0))


def test_a_write_to_what_a_pending_call_still_reads_runs_it_first(make_pending: Callable[..., Pending]) -> None:
    argument = torch.zeros(4)
    pending = make_pending(torch.ones(3), argument)
    torch.zeros(4).add_(1)
    assert pending.num_runs == 0
    argument[2:].fill_(5)
    assert pending.num_runs == 1


def test_a_write_to_an_operand_of_a_recorded_operation_runs_it_first(make_pending: Callable[..., Pending]) -> None:
    pending, operand = make_pending(torch.ones(3)), torch.full((3,), 2.0)
    total = pending.leaf + operand
    operand.zero_()
    assert torch.equal(wait_all(total), torch.full((3,), 3.0))


def test_a_filled_tensor_gives_plain_tensors(make_pending: Callable[..., Pending]) -> None:
    pending = make_pending(torch.ones(3))
    pending.leaf.wait()
    assert type(pending.leaf + 1) is torch.Tensor
