"""Progress of real tiny pipelines: schedulers of second order, strengths, several schedulers, no callbacks."""

import copy
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)

from tests.lanes_in_threads import leader_of_threads
from tests.seam.basic import make_stable_diffusion, make_vae
from workers.calls import GenerateCall, Progress
from workers.leader import Leader
from workers.request_control import RequestControl
from workers.schedule_progress import StepCounter


def events_of(leader: Leader, arguments: dict[str, Any]) -> list[Progress]:
    events: list[Progress] = []
    leader.run(GenerateCall(arguments, seed=1), events.append)
    return events


def check_course(events: list[Progress], num_steps: int) -> None:
    """Encoding, every step once from 0 to the last, then decoding; and nobody waits after the last step."""
    assert [event.stage for event in events] == ["encode"] + ["denoise"] * (num_steps + 1) + ["decode"]
    denoising = events[1:-1]
    assert [event.step for event in denoising] == list(range(num_steps + 1))
    assert {event.num_steps for event in denoising} == {num_steps}
    assert all(event.seconds_left is not None and event.seconds_left > 0 for event in denoising[1:-1])
    assert denoising[-1].seconds_left == 0


@pytest.mark.parametrize(
    ("scheduler", "num_steps"),
    [
        (DDIMScheduler, 4),
        (PNDMScheduler, 13),  # Runge-Kutta: three steps of the schedule, four timesteps each
        (HeunDiscreteScheduler, 7),  # two timesteps a step, except for the last
        (KDPM2DiscreteScheduler, 7),
        (UniPCMultistepScheduler, 4),
    ],
)
def test_every_step_of_the_schedule_is_told(scheduler: Any, num_steps: int) -> None:
    tiny = make_stable_diffusion(scheduler())
    with leader_of_threads(tiny.pipeline, num_lanes=2) as leader:
        arguments = {**tiny.arguments, "num_inference_steps": 4, "output_type": "latent"}
        check_course(events_of(leader, arguments), num_steps)
        assert len(tiny.pipeline.scheduler.timesteps) == num_steps


@pytest.mark.parametrize(
    ("scheduler", "num_steps"), [(DDIMScheduler, 3), (DPMSolverMultistepScheduler, 3), (HeunDiscreteScheduler, 5)]
)
def test_a_strength_shortens_the_schedule(scheduler: Any, num_steps: int) -> None:
    tiny = make_stable_diffusion(scheduler())
    pipeline = StableDiffusionImg2ImgPipeline(
        **{**tiny.pipeline.components, "image_encoder": None}, requires_safety_checker=False
    )
    arguments = {name: value for name, value in tiny.arguments.items() if name not in ("height", "width")}
    arguments |= {"image": torch.rand(1, 3, 16, 16), "strength": 0.5, "num_inference_steps": 6, "output_type": "latent"}
    with leader_of_threads(pipeline, num_lanes=2) as leader:
        events_of(leader, {**arguments, "strength": 1.0})
        check_course(events_of(leader, arguments), num_steps)


def test_the_counter_finds_the_beginning_by_itself_where_a_pipeline_keeps_no_count() -> None:
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(10)
    counter = StepCounter(object(), [scheduler])
    assert counter.num_steps == 10
    for timestep in scheduler.timesteps[6:]:
        assert counter.on_step(scheduler, timestep)
    assert (counter.num_steps_done, counter.num_steps) == (4, 4)


def test_a_second_scheduler_beside_the_first_does_not_count() -> None:
    """Sound beside video: each loop steps the scheduler and its copy."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(3)
    companion = copy.deepcopy(scheduler)
    counter = StepCounter(object(), [scheduler])
    counted = [counter.on_step(which, t) for t in scheduler.timesteps for which in (scheduler, companion)]
    assert counted == [True, False] * 3
    assert (counter.num_steps_done, counter.num_steps) == (3, 3)


def test_views_of_one_step_count_once() -> None:
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(3)
    counter = StepCounter(object(), [scheduler])
    assert sum(counter.on_step(scheduler, t) for t in scheduler.timesteps for _ in range(4)) == 3


def test_schedules_one_after_the_other_add_up() -> None:
    prior, decoder = DDIMScheduler(), DDIMScheduler()
    prior.set_timesteps(2)
    decoder.set_timesteps(3)
    counter = StepCounter(object(), [prior, decoder])
    assert counter.num_steps is None
    totals = []
    for scheduler in (prior, decoder, decoder):
        for timestep in scheduler.timesteps:
            assert counter.on_step(scheduler, timestep)
            totals.append((counter.num_steps_done, counter.num_steps))
    assert totals == [(1, 2), (2, 2), (3, 5), (4, 5), (5, 5), (6, 8), (7, 8), (8, 8)]


def test_time_left_is_predicted_until_a_step_is_measured() -> None:
    now = 0.0
    events: list[Progress] = []
    control = RequestControl(predicted_step_s=2.0, emit=events.append, clock=lambda: now)
    control.on_denoiser_call(4)
    now = 3.0
    control.on_step(1, 4)
    now = 8.0
    control.on_step(2, 4)
    assert [event.seconds_left for event in events] == [None, 8.0, 9.0, 8.0]


def test_a_vae_begins_decoding_where_the_length_is_unknown() -> None:
    events: list[Progress] = []
    control = RequestControl(emit=events.append)
    control.on_vae_call()  # encodes a picture
    control.on_denoiser_call(None)
    control.on_step(1, None)
    control.on_vae_call()
    control.on_denoiser_call(None)  # a second stage
    assert [event.stage for event in events] == ["encode", "denoise", "denoise", "decode", "denoise"]


def make_pix2pix() -> tuple[Any, dict[str, Any]]:
    """A pipeline that keeps no count of its own; three branches in one batch."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=8, out_channels=4, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16, attention_head_dim=4, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64, transformer_layers_per_block=1,
    )  # fmt: skip
    pipeline = StableDiffusionXLInstructPix2PixPipeline(
        vae=make_vae(), text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None, unet=unet.eval(),
        scheduler=HeunDiscreteScheduler(),
    )  # fmt: skip
    embeddings = {
        "prompt_embeds": torch.randn(1, 7, 16), "negative_prompt_embeds": torch.randn(1, 7, 16),
        "pooled_prompt_embeds": torch.randn(1, 16), "negative_pooled_prompt_embeds": torch.randn(1, 16),
    }  # fmt: skip
    return pipeline, {**embeddings, "image": torch.rand(1, 3, 16, 16), "height": 16, "width": 16}


def test_a_pipeline_without_a_count_is_followed_by_its_scheduler() -> None:
    pipeline, arguments = make_pix2pix()
    assert not hasattr(pipeline, "_num_timesteps")
    with leader_of_threads(pipeline, num_lanes=2) as leader:
        check_course(events_of(leader, {**arguments, "num_inference_steps": 3, "output_type": "latent"}), 5)
