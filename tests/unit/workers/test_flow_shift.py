"""A call's shift of the schedule: the schedule that a scheduler built with it would have, and no trace afterwards."""

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from workers.flow_shift import flow_shift, takes_flow_shift


def make_uni_pc(shift):
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def make_flow_match(shift):
    return FlowMatchEulerDiscreteScheduler(shift=shift)


def sigmas_of(scheduler):
    scheduler.set_timesteps(8)
    return scheduler.sigmas.clone()


@pytest.mark.parametrize("make", [make_uni_pc])
def test_shifted_schedule_is_that_of_a_scheduler_made_with_it(make):
    scheduler = make(3.0)
    before = sigmas_of(scheduler)
    with flow_shift([scheduler], 7.0):
        assert torch.equal(sigmas_of(scheduler), sigmas_of(make(7.0)))
    assert torch.equal(sigmas_of(scheduler), before)


def test_flow_match_schedule_is_shifted_as_its_own_setter_does():
    scheduler, expected = make_flow_match(3.0), make_flow_match(3.0)
    before = sigmas_of(scheduler)
    expected.set_shift(7.0)
    with flow_shift([scheduler], 7.0):
        assert torch.equal(sigmas_of(scheduler), sigmas_of(expected))
    assert torch.equal(sigmas_of(scheduler), before)


def test_shift_is_taken_back_after_an_error_and_none_changes_nothing():
    scheduler = make_uni_pc(3.0)
    with pytest.raises(RuntimeError), flow_shift([scheduler], 7.0):
        raise RuntimeError
    assert scheduler.config.flow_shift == 3.0
    with flow_shift([scheduler], None):
        assert scheduler.config.flow_shift == 3.0


@pytest.mark.parametrize(
    ("schedulers", "takes"),
    [
        ([make_uni_pc(3.0)], True),
        ([make_flow_match(3.0)], True),
        ([FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)], False),
        ([UniPCMultistepScheduler()], False),
        ([EulerDiscreteScheduler()], False),
        ([make_uni_pc(3.0), DDIMScheduler()], False),
        ([], False),
    ],
)
def test_only_schedules_with_a_fixed_shift_take_one(schedulers, takes):
    assert takes_flow_shift(schedulers) is takes
