"""A pipeline on several lanes against itself, serial: the same result, with the denoiser's work divided."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch

from tests.lanes_in_threads import leader_of_threads
from tests.seam.tiny import Case, TinyPipeline
from workers.calls import GenerateCall, GenerateResult
from workers.component_call import num_batch_rows
from workers.leader import Leader
from workers.pipeline_output import normalize_output
from workers.scheduler_watch import watch_scheduler

NUM_STEPS = 4
SEED = 5
BATCHED_TOLERANCE = 1e-4
BFLOAT16_TOLERANCE = 3e-2
"""Relative; matrix products of one row and of two add in different orders (float32)."""


@dataclass(frozen=True)
class Comparison:
    """What one case gave.

    Attributes:
        relative_error: of the second run on lanes against the serial run; 0.0 is equal to the bit.
        serial_rows: calls times batch rows of the serial run.
        fair_rows: the fewest rows that the busiest lane can have: each step's rows divided by the lanes, rounded up.
        rows: the same a rank, of the second run on lanes (the first one learns signatures).
        calls: denoiser calls a rank, of the second run.
        would_show: relative change of the serial result if the rows of each batched result were swapped: what a
            wrong join would do. 0.0 for pipelines that make one call a branch.
    """

    name: str
    relative_error: float
    serial_rows: int
    fair_rows: int
    rows: tuple[int, ...]
    calls: tuple[int, ...]
    would_show: float

    @property
    def is_halved(self) -> bool:
        """Whether no lane did more than its share of each step: of two lanes half, or the larger half."""
        return max(self.rows) <= self.fair_rows


@functools.cache
def compare_on_two_lanes(case: Case) -> Comparison:
    """As `compare`; once a process, as the matrix and its table show the same."""
    return compare(case)


def compare(case: Case, *, num_lanes: int = 2, dtype: torch.dtype = torch.float32) -> Comparison:
    """Runs a case by diffusers alone, then twice on `num_lanes` lanes; one thread each."""
    with one_thread():
        expected, rows_a_step = run_plain(_make(case, dtype))
        tiny = _make(case, dtype)
        with leader_of_threads(tiny.pipeline, num_lanes=num_lanes, denoisers=list(tiny.denoisers)) as leader:
            run_on(leader, tiny)
            result = run_on(leader, tiny)
        swapped, _ = run_plain(_make(case, dtype), swap_rows)
    return Comparison(
        case.name,
        relative_error(result.output, expected),
        sum(rows_a_step),
        sum(-(-rows // num_lanes) for rows in rows_a_step),
        tuple(stats.denoiser_rows for stats in result.ranks),
        tuple(stats.denoiser_calls for stats in result.ranks),
        relative_error(swapped, expected),
    )


def run_plain(tiny: TinyPipeline, change: Callable[[Any], Any] = lambda result: result) -> tuple[Any, list[int]]:
    """The latents that diffusers alone makes, and the denoisers' calls times rows for each scheduler step.

    `change` is applied to each result of a denoiser.
    """
    rows_a_step = [0]

    def count(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows_a_step[-1] += num_batch_rows(args, kwargs)

    hooks = [getattr(tiny.pipeline, name).register_forward_pre_hook(count, with_kwargs=True) for name in tiny.denoisers]
    hooks += [
        getattr(tiny.pipeline, name).register_forward_hook(lambda _, args, result: change(result))
        for name in tiny.denoisers
    ]
    for component in tiny.pipeline.components.values():
        if hasattr(component, "set_timesteps"):
            watch_scheduler(component, lambda *_: rows_a_step.append(0))
    tiny.pipeline.set_progress_bar_config(disable=True)
    torch.manual_seed(SEED)
    with torch.no_grad():
        result = tiny.pipeline(**arguments_of(tiny), generator=torch.Generator().manual_seed(SEED))
    for hook in hooks:
        hook.remove()
    output, _ = normalize_output(result, output_type="latent")
    return output, rows_a_step


def swap_rows(result: Any) -> Any:
    """A denoiser's result with the order of its rows reversed."""
    if isinstance(result, torch.Tensor):
        return result.flip(0)
    if is_dataclass(result):
        return type(result)(**{f.name: swap_rows(getattr(result, f.name)) for f in fields(result)})
    if isinstance(result, list) and len({item.shape for item in result}) == 1:
        return result[::-1]
    return type(result)(map(swap_rows, result)) if isinstance(result, list | tuple) else result


def run_on(leader: Leader, tiny: TinyPipeline) -> GenerateResult:
    """One call on a group's leader."""
    return leader.run(GenerateCall(arguments_of(tiny), seed=SEED), lambda event: None)


def arguments_of(tiny: TinyPipeline) -> dict[str, Any]:
    return {"num_inference_steps": NUM_STEPS, "output_type": "latent", **tiny.arguments}


def relative_error(value: Any, expected: Any) -> float:
    """Of two tensors or arrays; 0.0 exactly when both are equal to the bit."""
    value, expected = torch.as_tensor(value), torch.as_tensor(expected)
    if torch.equal(value, expected):
        return 0.0
    return float((value.double() - expected.double()).norm() / expected.double().norm())


@contextmanager
def one_thread() -> Iterator[None]:
    """Products of matrices add in another order with another number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _make(case: Case, dtype: torch.dtype) -> TinyPipeline:
    torch.manual_seed(0)
    tiny = case.make()
    for name in tiny.denoisers:
        getattr(tiny.pipeline, name).to(dtype).eval()
    if dtype is torch.float32:
        return tiny
    return replace(tiny, arguments={name: _cast(value, dtype) for name, value in tiny.arguments.items()})


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, list):
        return [_cast(item, dtype) for item in value]
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
