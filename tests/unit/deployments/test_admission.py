"""Who may wait, by predicted and by measured seconds; with a clock of its own."""

import asyncio
from contextlib import nullcontext
from pathlib import Path

import pytest

from deployments.admission import Admission
from deployments.errors import BadRequestError, BusyError
from deployments.group_client import GeneratedMedia
from deployments.schemas import ImageRequest, VideoRequest
from deployments.settings import AppSettings, Limits
from deployments.work import WorkModel, check_planned_shape
from planner.plan import PlannedShape, PredictedTimes, ServingDefaults
from tests.plans import make_wan_plan
from tests.unit.deployments.fakes import FakeGroups, make_service
from workers.calls import Progress

# 10 steps of a second and two more seconds for a picture of 64x64.
TIMES = PredictedTimes(load_s=None, step_s=1.0, request_s=12.0)
SHAPE = PlannedShape(width=64, height=64, num_frames=1, batch_size=1)
DEFAULTS = ServingDefaults(width=64, height=64, num_inference_steps=10, num_frames=5, fps=8)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def make_plan(**fields):
    known = {"predicted": TIMES, "shape": SHAPE, "defaults": DEFAULTS}
    return make_wan_plan(Path("/models/shapes")).model_copy(update={**known, **fields})


def make_admission(clock=None, *, plan=None, max_requests=64, max_seconds=30.0, num_servers=1):
    model = WorkModel(plan or make_plan())
    admission = Admission(
        model, max_requests=max_requests, max_seconds=max_seconds, num_servers=num_servers, clock=clock or Clock()
    )
    return admission, model


def picture(**fields):
    return ImageRequest(prompt="a", **fields)


def denoise(step):
    return Progress(stage="denoise", step=step, num_steps=10, seconds_left=None)


MEDIA = GeneratedMedia(content=b"", seed=0, width=64, height=64)


@pytest.mark.parametrize(
    ("request_", "seconds"),
    [
        (picture(), 12.0),
        (picture(num_inference_steps=20), 22.0),
        (picture(size="128x64"), 24.0),
        (picture(n=3), 36.0),
        (VideoRequest(prompt="a"), 60.0),
        (VideoRequest(prompt="a", num_frames=2), 24.0),
        (VideoRequest(prompt="a", seconds="1"), 108.0),
    ],
)
def test_prediction_grows_with_steps_pixels_frames_and_pictures(request_, seconds):
    model = WorkModel(make_plan())
    assert model.seconds_left(model.work_of(request_)) == pytest.approx(seconds)


def test_prediction_knows_the_steps_that_were_planned():
    model = WorkModel(make_plan(defaults=ServingDefaults()), num_planned_steps=10)
    assert model.seconds_left(model.work_of(picture(num_inference_steps=10, size="64x64"))) == pytest.approx(12.0)


def test_work_above_the_queue_is_told_when_there_is_room():
    admission, model = make_admission()
    work = model.work_of(picture())
    with admission.admitted(work), admission.admitted(work):
        with pytest.raises(BusyError, match="24 s, at most 30 s") as caught, admission.admitted(work):
            pass
        assert caught.value.retry_after_s == 6, "36 s with this one, 30 s are allowed"
    with admission.admitted(work):
        assert admission.queued_seconds == pytest.approx(12.0)


def test_retry_after_follows_the_progress_of_what_runs():
    clock = Clock()
    admission, model = make_admission(clock, max_seconds=20.0)
    work = model.work_of(picture())
    with admission.admitted(work) as ticket:
        answers = []
        for step in (0, 2, 3):
            ticket.note(denoise(step))
            with pytest.raises(BusyError) as caught, admission.admitted(work):
                pass
            answers.append(caught.value.retry_after_s)
        ticket.note(denoise(4))
        with admission.admitted(work):
            pass
    assert answers == [4, 2, 1]


def test_groups_share_the_work():
    admission, model = make_admission(num_servers=2)
    work = model.work_of(picture(n=2))
    with admission.admitted(work):
        assert admission.queued_seconds == pytest.approx(12.0)
        with admission.admitted(work), pytest.raises(BusyError), admission.admitted(work):
            pass


def test_request_larger_than_the_queue_is_let_in_alone():
    admission, model = make_admission()
    large = model.work_of(picture(n=5))
    with admission.admitted(large), pytest.raises(BusyError) as caught, admission.admitted(large):
        pass
    assert caught.value.retry_after_s == 60, "not before the queue is empty"


def test_jobs_count_but_are_not_refused():
    admission, model = make_admission()
    work = model.work_of(picture(n=2))
    with admission.held(work), admission.held(work):
        assert admission.queued_seconds == pytest.approx(48.0)
        with pytest.raises(BusyError), admission.admitted(work):
            pass


def test_number_of_requests_is_bounded_too():
    admission, model = make_admission(max_requests=2, max_seconds=1000.0)
    work = model.work_of(picture())
    with admission.admitted(work), admission.admitted(work):
        with pytest.raises(BusyError, match="2 requests") as caught, admission.admitted(work):
            pass
        assert caught.value.retry_after_s == 12, "until one of them is through"


def run_picture(admission, model, clock, *, step_s, rest_s, work=None):
    with admission.admitted(work or model.work_of(picture())) as ticket:
        for step in range(11):
            ticket.note(denoise(step))
            clock.now += step_s if step < 10 else rest_s
        ticket.note(MEDIA)


def test_measured_steps_correct_the_prediction():
    clock = Clock()
    admission, model = make_admission(clock)
    seconds = []
    for _ in range(20):
        run_picture(admission, model, clock, step_s=3.0, rest_s=5.0)
        seconds.append(model.seconds_left(model.work_of(picture())))
    assert 12.0 < seconds[0] < seconds[1] < 35.0
    assert seconds[-1] == pytest.approx(35.0, rel=0.01)


def test_without_a_prediction_the_first_picture_tells():
    clock = Clock()
    nothing = PredictedTimes(load_s=None, step_s=None, request_s=None)
    admission, model = make_admission(clock, plan=make_plan(predicted=nothing, shape=None))
    work = model.work_of(picture())
    with admission.admitted(work), admission.admitted(work), admission.admitted(work):
        assert admission.queued_seconds == 0.0, "nothing is known yet"
        assert admission.known_seconds is None
    run_picture(admission, model, clock, step_s=2.0, rest_s=1.0)
    assert model.seconds_left(work) == pytest.approx(21.0)


def test_waiting_for_a_group_and_a_repetition_after_its_death_are_no_steps():
    clock = Clock()
    admission, model = make_admission(clock)
    with admission.admitted(model.work_of(picture())) as ticket:
        clock.now += 500.0
        ticket.note(denoise(0))
        clock.now += 4.0
        ticket.note(denoise(4))
        clock.now += 300.0
        for step in range(11):
            ticket.note(denoise(step))
            clock.now += 1.0 if step < 10 else 2.0
        ticket.note(MEDIA)
    assert model.seconds_left(model.work_of(picture())) == pytest.approx(12.0)


def test_place_is_given_back_when_the_work_fails():
    admission, model = make_admission()
    with pytest.raises(ZeroDivisionError), admission.admitted(model.work_of(picture(n=2))):
        raise ZeroDivisionError
    assert admission.queued_seconds == 0.0


async def test_refusal_comes_without_waiting_for_anything():
    """A coroutine that raises at its first step has given the loop no chance to run anything else."""
    service = make_service(FakeGroups(), max_queued_seconds=20.0)
    (model,) = service.models.values()
    model.work.learn(model.work.work_of(picture()), step_s=6.0, rest_s=0.0)
    running = service.stream(picture())
    await anext(running)
    for answer in (service.generate(picture()), anext(service.stream(picture(stream=True)))):
        with pytest.raises(BusyError) as caught:
            answer.__await__().__next__()
        assert caught.value.retry_after_s == 4, "two of two steps of 6 s, and 20 s are allowed"
    await running.aclose()
    await service.generate(picture())


@pytest.mark.parametrize("way", ["stream", "run"])
async def test_queue_shrinks_with_the_steps_of_requests_and_jobs(way):
    service = make_service(FakeGroups(gate=asyncio.Event()))
    (model,) = service.models.values()
    model.work.learn(model.work.work_of(picture()), step_s=6.0, rest_s=0.0)
    asked = picture(seed=1, n=2)
    events = service.stream(asked) if way == "stream" else service.run(asked, request_id="job")
    event = await anext(events)
    while event.stage == "queued":
        assert model.admission.queued_seconds == pytest.approx(24.0)
        event = await anext(events)
    assert (event.stage, event.step) == ("denoise", 1)
    assert model.admission.queued_seconds == pytest.approx(18.0), "one of two steps of the first of two pictures"
    await events.aclose()
    assert model.admission.queued_seconds == 0.0


@pytest.mark.parametrize(
    "request_", [picture(size="128x64"), VideoRequest(prompt="a"), VideoRequest(prompt="a", size="64x64", seconds="1")]
)
def test_more_than_the_planned_shape_is_refused_on_gpus(request_):
    with pytest.raises(BadRequestError, match=r"64x64, 1 frame.*beyond_plan: try"):
        check_planned_shape(request_, make_plan(device="cuda"))


def test_planned_shape_bounds_nothing_on_cpus_or_where_there_is_none():
    large = picture(size="1024x1024")
    check_planned_shape(large, make_plan(device="cpu"))
    check_planned_shape(large, make_plan(device="cuda", shape=None))
    check_planned_shape(picture(size="32x128"), make_plan(device="cuda"))


def test_settings_say_whether_more_than_planned_is_tried():
    for beyond_plan in ("try", "refuse"):
        (model,) = make_service(FakeGroups(), beyond_plan=beyond_plan).models.values()
        model.plan = make_plan(device="cuda")
        with nullcontext() if beyond_plan == "try" else pytest.raises(BadRequestError, match="planned"):
            model.check(picture(size="128x128"), Limits())


def test_settings_bound_the_queue_by_default():
    assert AppSettings(checkpoint="/models/shapes").queue_ceiling_s == 300.0
