import copy
import inspect

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from workers.scheduler_watch import num_scheduler_steps, watch_scheduler


def test_signature_and_class_stay() -> None:
    scheduler = DDIMScheduler()
    before = inspect.signature(scheduler.step)
    watch_scheduler(scheduler, lambda _: None)
    assert inspect.signature(scheduler.step) == before
    assert type(scheduler) is DDIMScheduler  # BriaPipeline asks so


def test_a_deep_copy_is_watched_too() -> None:
    steps: list[int | None] = []
    scheduler = FlowMatchEulerDiscreteScheduler()
    watch_scheduler(scheduler, lambda which: steps.append(num_scheduler_steps(which)))
    other = copy.deepcopy(scheduler)
    other.set_timesteps(4)
    other.step(torch.zeros(1), other.timesteps[0], torch.zeros(1))
    assert steps == [4]
    assert other.step_index == 1
    assert scheduler.step_index is None
