import asyncio
import contextvars

import pytest

from deployments.detached import detached

WHO = contextvars.ContextVar("who", default="nobody")


class Source:
    """Events 0, 1, ... up to `stop`; knows in which context it was read and whether it was closed."""

    def __init__(self, stop, error=None):
        self.stop, self.error = stop, error
        self.who = None
        self.closed = asyncio.Event()

    async def events(self):
        self.who = WHO.get()
        try:
            for number in range(self.stop):
                yield number
                await asyncio.sleep(0)
            if self.error:
                raise self.error
            await asyncio.Event().wait() if self.stop == 1 else None
        finally:
            self.closed.set()


async def test_events_come_in_order_from_a_context_of_their_own():
    WHO.set("a request")
    source = Source(3)
    assert [event async for event in detached(source.events())] == [0, 1, 2]
    assert source.who == "nobody"


async def test_error_of_the_source_reaches_the_reader():
    with pytest.raises(ValueError, match="broken"):
        _ = [event async for event in detached(Source(2, ValueError("broken")).events())]


async def test_closing_ends_the_source():
    source = Source(1)
    events = detached(source.events())
    assert await anext(events) == 0
    await events.aclose()
    await asyncio.wait_for(source.closed.wait(), 1)


async def test_source_ends_with_its_reader_even_if_nobody_closes_the_generator():
    source = Source(1)
    events = detached(source.events())

    async def read_one():
        await anext(events)

    await asyncio.create_task(read_one())
    await asyncio.wait_for(source.closed.wait(), 1)
