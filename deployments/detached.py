"""Work that must outlive the cancellation of whoever asked for it by exactly one message: its own cancelling."""

import asyncio
import contextvars
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Item(Generic[_T]):
    value: _T


async def detached(events: AsyncGenerator[_T, None]) -> AsyncGenerator[_T, None]:
    """The same events, consumed by a task in a context of its own; ends with this generator or the task that reads it.

    Why: Serve cancels a request by `ray.cancel`, which also drops every Ray call made in the request's context that has
    not begun, so that the message that tells a rank to stop may never arrive (seen once in about ten disconnects). And
    a generator that is suspended when its reader is cancelled is closed by nobody.
    """
    queue: asyncio.Queue[_Item[_T] | Exception | None] = asyncio.Queue()
    task = asyncio.create_task(_pump(events, queue), context=contextvars.Context())
    reader = asyncio.current_task()
    assert reader is not None
    reader.add_done_callback(lambda _: task.cancel())
    try:
        while (item := await queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item.value
    finally:
        task.cancel()


async def _pump(events: AsyncGenerator[_T, None], queue: "asyncio.Queue[_Item[_T] | Exception | None]") -> None:
    try:
        async with aclosing(events):
            async for event in events:
                queue.put_nowait(_Item(event))
        queue.put_nowait(None)
    except Exception as error:  # goes to the reader
        queue.put_nowait(error)
