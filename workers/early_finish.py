"""What a scheduler's step would give if the schedule ended with it: the picture as the model sees it by now."""

import copy
from typing import Any

import torch


class CannotFinishError(Exception):
    """This scheduler's schedule cannot be cut short."""


def finish_early(scheduler: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of `scheduler.step(*args, **kwargs)` as if this were the last step; `scheduler` stays as it is.

    A copy of the scheduler gets a schedule that ends here: its own code for a last step then removes all the noise
    that the model sees. Nothing about noise levels is worked out here, so this holds for schedulers of every kind.

    Args:
        scheduler: just before its step.
        args, kwargs: of the step; a generator among them is not advanced.

    Raises:
        CannotFinishError: the copy gives no finite result.
    """
    ending = _copy_with_own_step(scheduler)
    _end_after_next_step(ending, _timestep(args, kwargs))
    kwargs = {name: _copy_of_generator(value) for name, value in kwargs.items()}
    result = ending.step(*args, **kwargs)
    latents = result[0] if isinstance(result, tuple) else result.prev_sample
    if not bool(torch.isfinite(latents).all()):
        raise CannotFinishError(f"{type(scheduler).__name__} gives no finite latents where its schedule is cut short")
    return result


def _copy_with_own_step(scheduler: Any) -> Any:
    """A deep copy in which `step` is the class's method again, whatever watches it in the original."""
    watched = vars(scheduler).get("step")
    ending = copy.copy(scheduler)
    for name, value in vars(scheduler).items():
        if value is not watched or watched is None:
            vars(ending)[name] = copy.deepcopy(value)
    vars(ending).pop("step", None)
    return ending


def _end_after_next_step(scheduler: Any, timestep: Any) -> None:
    index = _index_of(scheduler, timestep)
    scheduler.timesteps = scheduler.timesteps[: index + 1]
    scheduler.num_inference_steps = index + 1
    sigmas = getattr(scheduler, "sigmas", None)
    if isinstance(sigmas, torch.Tensor) and sigmas.ndim == 1:
        scheduler.sigmas = torch.cat([sigmas[: index + 1], sigmas.new_zeros(1)])
    elif not isinstance(sigmas, torch.Tensor):
        scheduler.num_inference_steps = 1  # such a step spans the training schedule divided by their number


def _index_of(scheduler: Any, timestep: Any) -> int:
    index = getattr(scheduler, "step_index", None)
    if index is not None:
        return int(index)
    found = (scheduler.timesteps.cpu() == torch.as_tensor(timestep).flatten()[:1].cpu()).nonzero()
    if not len(found):
        raise CannotFinishError(f"{type(scheduler).__name__}: a step is at no timestep of its schedule")
    return int(found[0])


def _timestep(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return kwargs["timestep"] if "timestep" in kwargs else args[1]


def _copy_of_generator(value: Any) -> Any:
    if isinstance(value, list):
        return [_copy_of_generator(item) for item in value]
    if not isinstance(value, torch.Generator):
        return value
    generator = torch.Generator(value.device)
    generator.set_state(value.get_state())
    return generator
