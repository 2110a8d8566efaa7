import copy
import inspect

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from workers.deferred import DeferredScope, DeferredTensor
from workers.scheduler_watch import watch_scheduler


def test_signature_and_class_stay() -> None:
    scheduler = DDIMScheduler()
    before = inspect.signature(scheduler.step)
    watch_scheduler(scheduler, lambda *_: None)
    assert inspect.signature(scheduler.step) == before
    assert type(scheduler) is DDIMScheduler  # BriaPipeline asks so


def test_a_deep_copy_is_watched_too() -> None:
    steps: list[tuple[object, float]] = []
    scheduler = FlowMatchEulerDiscreteScheduler()
    watch_scheduler(scheduler, lambda which, timestep: steps.append((which, float(timestep))))
    other = copy.deepcopy(scheduler)
    other.set_timesteps(4)
    other.step(torch.zeros(1), other.timesteps[0], torch.zeros(1))
    assert steps == [(other, float(other.timesteps[0]))]
    assert other.step_index == 1
    assert scheduler.step_index is None


def test_a_step_gets_the_values_of_deferred_results() -> None:
    """A scheduler keeps what it is given and may draw random numbers, so it must not hold anything pending."""
    value = torch.ones(2, 3)
    scope = DeferredScope(lambda: leaf.fill(value))
    leaf = DeferredTensor(value.to("meta"), device=value.device, scope=scope)
    scheduler = FlowMatchEulerDiscreteScheduler()
    seen: list[type] = []
    plain_step = FlowMatchEulerDiscreteScheduler.step

    class Looking(FlowMatchEulerDiscreteScheduler):
        def step(self, model_output: torch.Tensor, *args: object, **kwargs: object) -> object:
            seen.append(type(model_output))
            return plain_step(self, model_output, *args, **kwargs)

    scheduler.__class__ = Looking
    watch_scheduler(scheduler, lambda *_: None)
    scheduler.set_timesteps(2)
    scheduler.step(leaf, scheduler.timesteps[0], torch.zeros(2, 3))
    assert seen == [torch.Tensor]
