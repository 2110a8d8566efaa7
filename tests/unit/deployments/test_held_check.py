import asyncio

import pytest

from deployments.held_check import HELD_CHECK_S, MAX_HELD_CHECKS, HeldCheck


class Group:
    """Counts checks; a wait ends when somebody says so."""

    def __init__(self) -> None:
        self.num_checks = 0
        self.waits: list[float] = []
        self.may_have_ended = asyncio.Event()
        self.problem: Exception | None = None

    async def check(self) -> None:
        self.num_checks += 1
        if self.problem is not None:
            raise self.problem

    async def wait_for_an_end(self, timeout_s: float) -> None:
        self.waits.append(timeout_s)
        await self.may_have_ended.wait()


async def test_first_check_is_answered_at_once_and_later_ones_stay_open() -> None:
    group = Group()
    check = HeldCheck(group.check, group.wait_for_an_end, num_replicas=1)
    await check.run()
    assert group.waits == []
    second = asyncio.create_task(check.run())
    while not group.waits:
        await asyncio.sleep(0)
    assert not second.done()
    assert group.waits == [HELD_CHECK_S]
    group.may_have_ended.set()
    await second


async def test_open_check_fails_when_the_group_ends_meanwhile() -> None:
    group = Group()
    check = HeldCheck(group.check, group.wait_for_an_end, num_replicas=1)
    await check.run()
    group.problem = RuntimeError("a rank is gone")
    group.may_have_ended.set()
    with pytest.raises(RuntimeError, match="a rank is gone"):
        await check.run()


async def test_checks_of_very_many_groups_are_answered_at_once() -> None:
    group = Group()
    check = HeldCheck(group.check, group.wait_for_an_end, num_replicas=MAX_HELD_CHECKS + 1)
    await check.run()
    await check.run()
    assert group.num_checks == 2
    assert group.waits == []
