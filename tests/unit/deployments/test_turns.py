import asyncio

import pytest

from deployments.schemas import ImageRequest
from deployments.settings import ModelSettings
from deployments.turns import Turns, share_of_calls
from tests.unit.deployments.fakes import FakeGroups, make_service
from workers.errors import GroupDiedError


@pytest.mark.parametrize(
    ("num_replicas", "max_ongoing_requests", "num_ingress_replicas", "share"),
    [(1, 2, 2, 1), (1, 2, 1, 2), (3, 2, 2, 3), (30, 2, 3, 30), (1, 8, 3, 3)],
)
def test_ingress_replicas_share_the_groups_places_and_each_can_keep_all_groups_busy(
    num_replicas: int, max_ongoing_requests: int, num_ingress_replicas: int, share: int
) -> None:
    model = ModelSettings(checkpoint="/m", num_replicas=num_replicas, max_ongoing_requests=max_ongoing_requests)
    assert share_of_calls(model, num_ingress_replicas=num_ingress_replicas) == share


def test_requests_for_groups_that_come_and_go_are_not_held_back() -> None:
    model = ModelSettings.model_validate({"checkpoint": "/m", "autoscaling": {"max_replicas": 4}})
    assert share_of_calls(model, num_ingress_replicas=2) is None


async def test_turns_come_in_order_and_a_wait_that_is_given_up_is_passed_over() -> None:
    turns, served, gates = Turns(1), [], [asyncio.Event() for _ in range(4)]

    async def call(number: int) -> None:
        async with turns.turn():
            served.append(number)
            await gates[number].wait()

    tasks = []
    for number in range(4):
        tasks.append(asyncio.create_task(call(number)))
        await asyncio.sleep(0)
    tasks[1].cancel()
    for gate in gates:
        gate.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert served == [0, 2, 3]


async def test_replica_sends_its_share_to_the_groups_and_the_rest_in_order_later() -> None:
    groups = FakeGroups(gate=asyncio.Event())
    service = make_service(groups, max_calls=1)
    tasks = [asyncio.create_task(service.generate(ImageRequest(prompt="a", seed=seed))) for seed in range(4)]
    await groups.begun.wait()
    for _ in range(10):
        await asyncio.sleep(0)
    assert groups.seeds == [0]
    assert groups.gate is not None
    groups.gate.set()
    await asyncio.gather(*tasks)
    assert groups.seeds == [0, 1, 2, 3]


async def test_request_whose_group_died_keeps_its_turn() -> None:
    groups = FakeGroups(failures=[GroupDiedError("gone")])
    service = make_service(groups, max_calls=1)
    await asyncio.gather(*(service.generate(ImageRequest(prompt="a", seed=seed)) for seed in range(3)))
    assert groups.seeds == [0, 0, 1, 2]
