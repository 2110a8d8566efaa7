import asyncio

import pytest
from ray.serve.schema import DeploymentStatus, DeploymentStatusOverview, ReplicaState

from deployments.answers import CompletedEvent
from deployments.errors import BadRequestError, BusyError, GenerationError, RequestTimeoutError
from deployments.group_client import GroupsStatus, read_status
from deployments.schemas import ImageRequest, VideoRequest
from tests.unit.deployments.fakes import FakeGroups, make_service
from workers.errors import CallError, CallOutOfMemoryError, DeadlineExceededError, GroupDiedError, InvalidCallError


async def test_pictures_of_one_request_use_consecutive_seeds():
    groups = FakeGroups()
    answer = await make_service(groups).generate(ImageRequest(prompt="a", n=3, seed=7))
    assert [item.seed for item in answer.data] == [7, 8, 9] == groups.seeds
    assert answer.data[1].content == b"8"


async def test_seed_is_drawn_and_returned_when_none_is_given():
    groups = FakeGroups()
    answer = await make_service(groups).generate(ImageRequest(prompt="a"))
    assert answer.data[0].seed == groups.seeds[0]


@pytest.mark.parametrize("num_deaths", [1, 2])
async def test_request_whose_group_dies_is_tried_again_with_the_same_seed(num_deaths):
    groups = FakeGroups(failures=[GroupDiedError("gone")] * num_deaths)
    answer = await make_service(groups).generate(ImageRequest(prompt="a"))
    assert groups.seeds == [answer.data[0].seed] * (1 + num_deaths)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (InvalidCallError("bad"), BadRequestError),
        (CallError("failed"), GenerationError),
        (CallOutOfMemoryError("out of memory"), GenerationError),
        (DeadlineExceededError("late"), RequestTimeoutError),
    ],
)
async def test_call_errors_become_request_errors_and_are_not_retried(raised, expected):
    groups = FakeGroups(failures=[raised])
    with pytest.raises(expected):
        await make_service(groups).generate(ImageRequest(prompt="a"))
    assert len(groups.seeds) == 1


async def test_request_above_the_queue_is_told_when_to_come_back():
    gate = asyncio.Event()
    service = make_service(FakeGroups(gate=gate), max_queued_requests=1)
    waiting = asyncio.create_task(service.generate(ImageRequest(prompt="a")))
    await asyncio.sleep(0)
    with pytest.raises(BusyError) as caught:
        await service.generate(ImageRequest(prompt="b"))
    assert caught.value.retry_after_s >= 1
    gate.set()
    await waiting
    assert (await service.generate(ImageRequest(prompt="c"))).data


async def test_deadline_ends_a_request_and_its_work():
    groups = FakeGroups(gate=asyncio.Event())
    with pytest.raises(RequestTimeoutError, match="request_timeout_s"):
        await make_service(groups, request_timeout_s=0.05).generate(ImageRequest(prompt="a"))
    assert groups.num_closed == 1


async def test_closing_a_stream_closes_the_call_and_frees_its_place():
    groups = FakeGroups(gate=asyncio.Event())
    service = make_service(groups, max_queued_requests=1)
    events = service.stream(ImageRequest(prompt="a"))
    assert (await anext(events)).stage == "queued"
    assert (await anext(events)).stage == "denoise"
    await events.aclose()
    assert groups.num_closed == 1
    groups.gate.set()
    assert (await service.generate(ImageRequest(prompt="a"))).data


async def test_wrong_size_is_refused_before_a_group_is_asked_once_groups_are_known():
    groups = FakeGroups()
    service = make_service(groups)
    await service.prepare()
    with pytest.raises(BadRequestError, match="multiples of 16"):
        await service.generate(ImageRequest(prompt="a", size="40x32"))
    assert not groups.seeds


async def test_video_events_carry_a_video():
    events = [event async for event in make_service(FakeGroups()).stream(VideoRequest(prompt="a", seed=1))]
    assert isinstance(events[-1], CompletedEvent)
    assert events[-1].type == "video_generation.completed"
    assert events[-1].output_format == "mp4"


@pytest.mark.parametrize(("may_be_none", "expected"), [(False, "unavailable"), (True, "busy")])
async def test_group_that_does_not_answer_and_turns_out_to_be_gone_had_died_or_was_scaled_down(may_be_none, expected):
    groups = FakeGroups()
    groups.probe_answer = "dead"
    known = iter([1, 0])  # Serve finds out while the group is asked

    async def status():
        return GroupsStatus(next(known), may_be_none=may_be_none)

    groups.status = status
    scaling = {"min_replicas": 0, "max_replicas": 2}
    assert (await make_service(groups, autoscaling=scaling).health()).status == expected


@pytest.mark.parametrize(
    ("num_groups", "probe", "status"),
    [(1, "ok", "ok"), (1, "unreached", "busy"), (1, "dead", "unavailable"), (0, "ok", "unavailable")],
)
async def test_health_says_whether_a_request_would_be_answered(num_groups, probe, status):
    groups = FakeGroups()
    groups.num_groups, groups.probe_answer = num_groups, probe
    assert (await make_service(groups).health()).status == status


async def test_model_without_a_group_asks_what_groups_can_do_only_when_a_request_has_started_one():
    groups = FakeGroups()
    service = make_service(groups, autoscaling={"min_replicas": 0, "max_replicas": 1})
    await service.prepare()
    assert groups.num_described == 0, "the question itself would start one"
    await service.generate(ImageRequest(prompt="a"))
    await wait_until(lambda: groups.num_described == 1)
    with pytest.raises(BadRequestError, match="multiples of 16"):
        await service.generate(ImageRequest(prompt="a", size="40x32"))
    assert groups.num_described == 1
    assert len(groups.seeds) == 1


async def test_what_groups_can_do_is_asked_again_after_the_first_question_failed():
    groups = FakeGroups()
    service = make_service(groups)
    groups.describe, working = _fail, groups.describe
    await service.prepare()
    assert groups.num_described == 0
    groups.describe = working
    await service.generate(ImageRequest(prompt="a"))
    await wait_until(lambda: groups.num_described == 1)


async def wait_until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


async def _fail():
    raise GroupDiedError("gone")


async def test_model_that_was_scaled_to_zero_is_not_unavailable():
    groups = FakeGroups()
    groups.num_groups = 0
    assert (await make_service(groups).health()).status == "unavailable"
    scaled = make_service(groups, autoscaling={"min_replicas": 0, "max_replicas": 2})
    assert (await scaled.health()).status == "busy"
    groups.may_be_none = False
    assert (await scaled.health()).status == "unavailable", "a group died: it is replaced, and none answers until then"


@pytest.mark.parametrize(
    ("status", "states", "expected"),
    [
        ("HEALTHY", {"RUNNING": 2}, GroupsStatus(2, may_be_none=False)),
        ("HEALTHY", {}, GroupsStatus(0, may_be_none=True)),
        ("HEALTHY", {"STOPPING": 1}, GroupsStatus(0, may_be_none=True)),
        ("DOWNSCALING", {"STOPPING": 1}, GroupsStatus(0, may_be_none=True)),
        ("UPSCALING", {"STARTING": 1}, GroupsStatus(0, may_be_none=True)),
        ("UNHEALTHY", {"STARTING": 1}, GroupsStatus(0, may_be_none=False)),
        ("UNHEALTHY", {}, GroupsStatus(0, may_be_none=False)),
        ("HEALTHY", {"STARTING": 1}, GroupsStatus(0, may_be_none=False)),
        ("UPDATING", {"STARTING": 1}, GroupsStatus(0, may_be_none=False)),
        ("DEPLOY_FAILED", {}, GroupsStatus(0, may_be_none=False)),
    ],
)
def test_groups_that_died_are_told_from_groups_that_were_scaled_down(status, states, expected):
    overview = DeploymentStatusOverview(
        status=DeploymentStatus(status),
        status_trigger="UNSPECIFIED",
        replica_states={ReplicaState(name): count for name, count in states.items()},
        message="",
    )
    assert read_status(overview) == expected
