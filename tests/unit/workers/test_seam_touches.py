"""What a pipeline may do between two calls of a real denoiser: the result is plain PyTorch's, at worst serially."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.dist.weights.tiny_models import values, video
from tests.lanes_in_threads import lanes_of_threads
from tests.tiny_checkpoints import make_wan_transformer
from workers.deferred import DeferredTensor, wait_all
from workers.lanes import Lanes
from workers.seam import Seam

Denoiser = Callable[..., Any]


@dataclass
class Attached:
    """A denoiser on two lanes, and the very same weights in a plain module."""

    denoiser: torch.nn.Module
    plain: torch.nn.Module
    seam: Seam
    lanes: Lanes

    def follower_calls(self) -> int:
        return self.lanes.stats()[1]["denoiser_calls"]


@pytest.fixture(scope="module")
def attached() -> Iterator[Attached]:
    denoiser = make_wan_transformer(num_layers=1).eval()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with lanes_of_threads(SimpleNamespace(transformer=denoiser), num_lanes=2) as lanes:
        seam = Seam(lanes)
        seam.attach("transformer", denoiser)
        yield Attached(denoiser, make_wan_transformer(num_layers=1).eval(), seam, lanes)
    torch.set_num_threads(before)


def predict(denoiser: Denoiser, latents: torch.Tensor, prompt: torch.Tensor, *, step: float = 5.0) -> torch.Tensor:
    timestep = torch.tensor([step])
    return denoiser(hidden_states=latents, timestep=timestep, encoder_hidden_states=prompt, return_dict=False)[0]


def on_lanes(attached: Attached, run: Callable[[Denoiser], Any]) -> tuple[Any, int]:
    """The result of the second run on lanes (the first learns), and the follower's calls in it."""
    for _ in range(2):
        attached.lanes.start_request()
        with torch.no_grad():
            result = wait_all(run(attached.denoiser))
        attached.seam.run_pending()
        attached.seam.end_step()
        attached.seam.reset()
    return result, attached.follower_calls()


def between_branches(touch: Callable[[torch.Tensor], Any]) -> Callable[[Denoiser], tuple[Any, ...]]:
    """Conditional call, `touch` on its result, unconditional call."""

    def run(denoiser: Denoiser) -> tuple[Any, ...]:
        latents = video(4, frames=2)
        first = predict(denoiser, latents, values(1, 7, 32))
        touched = touch(first)
        second = predict(denoiser, latents, values(1, 6, 32))
        return touched, first, second

    return run


def assert_same(result: Any, expected: Any) -> None:
    for value, wanted in zip(result, expected, strict=True):
        assert type(value) is type(wanted)
        assert torch.equal(value, wanted) if isinstance(wanted, torch.Tensor) else value == wanted


PURE: dict[str, Callable[[torch.Tensor], Any]] = {
    "slice": lambda first: first[:, :, 1:],
    "index": lambda first: first[0],
    "cast": lambda first: first.to(torch.float64),
    "compute": lambda first: 0.5 * first - first.square(),
    "norm": lambda first: torch.norm(first, dim=-1, keepdim=True),
    "clone": lambda first: first.clone(),
    "reshape": lambda first: first.permute(0, 2, 1, 3, 4).reshape(1, 2, -1),
    "detach": lambda first: first.detach(),
    "rows": lambda first: next(iter(first)),
    "split": lambda first: first.split([1, 3], dim=1)[1],
    "stack": lambda first: torch.stack([first, first + 1]),
    "cat": lambda first: torch.cat([first, first.new_ones(1, 4, 2, 8, 8)], dim=1),
    "pad": lambda first: torch.nn.functional.pad(first, (1, 1)),
    "where": lambda first: torch.where(first > 0, first, torch.zeros_like(first)),
    "mean": lambda first: first.mean(dim=(1, 2), keepdim=True).expand_as(first),
}


@pytest.mark.parametrize("touch", PURE.values(), ids=PURE)
def test_pure_operations_on_a_result_leave_the_branches_parallel(
    attached: Attached, touch: Callable[[torch.Tensor], Any]
) -> None:
    with torch.no_grad():
        expected = between_branches(touch)(attached.plain)
    result, follower_calls = on_lanes(attached, between_branches(touch))
    assert_same(result, expected)
    assert follower_calls == 1


def add_into_buffer(first: torch.Tensor) -> torch.Tensor:
    buffer = torch.zeros(1, 4, 2, 8, 8)
    torch.add(first, 1, out=buffer)
    return buffer


def copy_into_buffer(first: torch.Tensor) -> torch.Tensor:
    buffer = torch.zeros(2, 4, 2, 8, 8)
    buffer[1:] = first
    return buffer


def set_item(first: torch.Tensor) -> torch.Tensor:
    first[:, :, 0] = 0.0
    return first[:, :, :1].clone()


def write_through_a_view(first: torch.Tensor) -> torch.Tensor:
    view = first[:, 1:]
    view *= 3
    return first.clone()


def add_in_place(first: torch.Tensor) -> torch.Tensor:
    before = first * 2
    first += 1
    return before


WAITING: dict[str, Callable[[torch.Tensor], Any]] = {
    "item": lambda first: first.sum().item(),
    "is_nonzero": lambda first: torch.is_nonzero(first.sum()),
    "float": lambda first: float(first.mean()),
    "if": lambda first: bool((first > 0).any()),
    "allclose": lambda first: torch.allclose(first, first + 1),
    "isnan": lambda first: first.isnan().any().item(),
    "nonzero": lambda first: (first > 1).nonzero(),
    "mask": lambda first: first[first > 1],
    "max_with_index": lambda first: first.max(dim=1).values,
    "random": lambda first: first + torch.randn_like(first, memory_format=torch.preserve_format) * 0,
    "deepcopy": lambda first: copy.deepcopy(first),
    "numpy": lambda first: float(first.numpy().sum()),
    "tolist": lambda first: first.flatten()[:3].tolist(),
    "out": add_into_buffer,
    "buffer": copy_into_buffer,
    "set_item": set_item,
    "view": write_through_a_view,
    "in_place": add_in_place,
}


@pytest.mark.parametrize("touch", WAITING.values(), ids=WAITING)
def test_what_needs_the_value_of_a_result_waits_for_it(
    attached: Attached, touch: Callable[[torch.Tensor], Any]
) -> None:
    with torch.no_grad():
        expected = between_branches(touch)(attached.plain)
    result, follower_calls = on_lanes(attached, between_branches(touch))
    assert_same(result, expected)
    assert follower_calls == 0


def scale_latents(denoiser: Denoiser) -> tuple[torch.Tensor, ...]:
    latents = video(4, frames=2)
    first = predict(denoiser, latents, values(1, 7, 32))
    latents.mul_(0.5)
    return first, predict(denoiser, latents, values(1, 6, 32)), latents


def fill_a_frame(denoiser: Denoiser) -> tuple[torch.Tensor, ...]:
    latents = video(4, frames=2)
    first = predict(denoiser, latents, values(1, 7, 32))
    latents[:, :, 0] = 0.25
    return first, predict(denoiser, latents, values(1, 6, 32)), latents


def copy_the_first_result_into_the_latents(denoiser: Denoiser) -> tuple[torch.Tensor, ...]:
    latents = video(4, frames=2)
    first = predict(denoiser, latents, values(1, 7, 32))
    latents.copy_(first)
    return first, predict(denoiser, latents, values(1, 6, 32)), latents


def write_to_the_large_prompt(denoiser: Denoiser) -> tuple[torch.Tensor, ...]:
    """Large enough to be remembered as sent."""
    latents, prompt = video(4, frames=2), values(1, 64, 32)
    first = predict(denoiser, latents, prompt)
    prompt.neg_()
    second = predict(denoiser, latents, prompt)
    prompt[:, :9] = 0
    return first, second, predict(denoiser, latents, prompt), predict(denoiser, latents, prompt[:, :32])


@pytest.mark.parametrize(
    "run", [scale_latents, fill_a_frame, copy_the_first_result_into_the_latents, write_to_the_large_prompt]
)
def test_arguments_that_change_between_the_calls(
    attached: Attached, run: Callable[[Denoiser], tuple[torch.Tensor, ...]]
) -> None:
    with torch.no_grad():
        expected = run(attached.plain)
    result, _ = on_lanes(attached, run)
    assert_same(result, expected)


def test_a_result_is_an_argument_of_the_next_call(attached: Attached) -> None:
    def run(denoiser: Denoiser) -> tuple[torch.Tensor, ...]:
        first = predict(denoiser, video(4, frames=2), values(1, 7, 32))
        return first, predict(denoiser, first * 2, values(1, 6, 32))

    with torch.no_grad():
        expected = run(attached.plain)
    assert_same(on_lanes(attached, run)[0], expected)


def test_a_call_that_waits_does_not_see_hooks_that_come_after_it(attached: Attached) -> None:
    """A queued call runs elsewhere than on the module that has been changed meanwhile."""

    def run(denoiser: torch.nn.Module) -> tuple[Any, ...]:
        latents, prompt = video(4, frames=2), values(1, 7, 32)
        before = predict(denoiser, latents, prompt)
        hook = denoiser.blocks[0].register_forward_hook(lambda module, args, output: output * 2)
        total = float(before.sum())
        doubled = predict(denoiser, latents, prompt)
        hook.remove()
        queued = predict(denoiser, latents, values(1, 6, 32))
        hook = denoiser.blocks[0].register_forward_hook(lambda module, args, output: output * 3)
        beside = predict(denoiser, latents, prompt)
        hook.remove()
        return total, before, doubled, queued, beside

    with torch.no_grad():
        expected = run(attached.plain)
    result, follower_calls = on_lanes(attached, run)
    assert_same(result, expected)
    assert not torch.equal(result[1], result[2])
    assert follower_calls == 2


def test_a_result_that_nobody_needs_costs_nothing(attached: Attached) -> None:
    def run(denoiser: Denoiser) -> None:
        predict(denoiser, video(4, frames=2), values(1, 7, 32))

    on_lanes(attached, run)
    attached.lanes.start_request()
    with torch.no_grad():
        run(attached.denoiser)
    attached.seam.reset()
    assert attached.lanes.local["transformer"].num_calls == 0


def test_a_result_left_from_a_request_that_ended_cannot_be_read(attached: Attached) -> None:
    def run(denoiser: Denoiser) -> torch.Tensor:
        return predict(denoiser, video(4, frames=2), values(1, 7, 32))

    on_lanes(attached, run)
    with torch.no_grad():
        left = run(attached.denoiser)
    attached.seam.reset()
    assert isinstance(left, DeferredTensor)
    with pytest.raises(AssertionError, match="has failed"):
        left.wait()
