"""What is remembered of requests that kill groups."""

from contextlib import aclosing

import pytest

from deployments.answers import CompletedEvent
from deployments.errors import GroupsDiedError, PoisonedRequestError
from deployments.poison import MAX_DEATHS, PoisonMemory, fingerprint
from deployments.schemas import ImageEditRequest, ImageRequest
from tests.unit.deployments.fakes import FakeGroups, make_service, open_client
from workers.errors import GroupDiedError

KILLER = ImageRequest(prompt="a", seed=7)


def deaths(number):
    return [GroupDiedError("gone") for _ in range(number)]


async def test_request_under_which_three_groups_died_is_refused_and_not_tried_again():
    groups = FakeGroups(failures=deaths(3))
    service = make_service(groups)
    with pytest.raises(PoisonedRequestError, match="3 groups died"):
        await service.generate(KILLER)
    with pytest.raises(PoisonedRequestError, match="change its arguments or its seed"):
        await service.generate(KILLER)
    assert len(groups.seeds) == 3
    assert (await service.generate(ImageRequest(prompt="a", seed=8))).data[0].seed == 8


async def test_clients_are_told_by_422_with_a_code(tmp_path):
    async with open_client(make_service(FakeGroups(failures=deaths(3))), tmp_path) as client:
        answer = await client.post("/v1/images/generations", json={"prompt": "a", "seed": 7})
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "request_kills_groups"
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_deaths_are_counted_over_requests_until_one_is_answered():
    groups = FakeGroups(failures=deaths(2))
    service = make_service(groups)
    await service.generate(KILLER)
    groups.failures = deaths(2)
    assert (await service.generate(KILLER)).data[0].seed == 7


async def test_deaths_of_a_request_given_up_count_for_the_next():
    groups = FakeGroups(failures=deaths(1))
    service = make_service(groups)
    async with aclosing(service.stream(KILLER)) as events:
        while not groups.seeds[1:]:
            await anext(events)
    groups.failures = deaths(2)
    with pytest.raises(PoisonedRequestError):
        await service.generate(KILLER)
    assert len(groups.seeds) == 4


async def test_request_that_only_waited_at_groups_that_died_is_not_blamed():
    groups = FakeGroups()
    groups.dies_before_beginning = True
    service = make_service(groups)
    for _ in range(2):
        with pytest.raises(GroupsDiedError, match="3 groups died"):
            await service.generate(KILLER)
    assert len(groups.seeds) == 6


async def test_deaths_are_forgotten_also_when_the_client_leaves_as_soon_as_it_has_the_picture():
    groups = FakeGroups()
    service = make_service(groups)
    for _ in range(MAX_DEATHS + 1):
        groups.failures = deaths(1)
        async with aclosing(service.stream(KILLER)) as events:
            async for event in events:
                if isinstance(event, CompletedEvent):
                    break


async def test_one_poisoned_picture_of_several_is_refused_alone():
    groups = FakeGroups(failures=deaths(3))
    service = make_service(groups)
    with pytest.raises(PoisonedRequestError):
        await service.generate(KILLER)
    with pytest.raises(PoisonedRequestError):
        await service.generate(ImageRequest(prompt="a", seed=6, n=2))
    assert groups.seeds == [7, 7, 7, 6]


def test_memory_expires():
    now = [0.0]
    memory = PoisonMemory(lifetime_s=100.0, clock=lambda: now[0])
    for _ in range(MAX_DEATHS):
        memory.add_death("a")
    now[0] = 99.0
    with pytest.raises(PoisonedRequestError):
        memory.check("a")
    now[0] = 100.0
    memory.check("a")
    assert not len(memory)


def test_memory_is_bounded_and_forgets_the_oldest_death():
    memory = PoisonMemory(max_remembered=2)
    for name in ("old", "old", "old", "new", "newer"):
        memory.add_death(name)
    memory.check("old")
    assert len(memory) == 2


def test_fingerprint_is_of_what_is_made():
    assert fingerprint(KILLER, seed=7) == fingerprint(ImageRequest(prompt="a", seed=6, n=2, stream=True), seed=7)
    assert fingerprint(KILLER, seed=7) != fingerprint(KILLER, seed=8)
    assert fingerprint(KILLER, seed=7) != fingerprint(ImageRequest(prompt="b", seed=7), seed=7)
    edits = [ImageEditRequest(prompt="a", seed=7, images=(image,)) for image in (b"x", b"y")]
    assert fingerprint(edits[0], seed=7) != fingerprint(edits[1], seed=7)


def test_open_seed_does_not_make_a_request_another_one():
    request = ImageRequest(prompt="a")
    assert fingerprint(request, seed=1) == fingerprint(request, seed=2)
