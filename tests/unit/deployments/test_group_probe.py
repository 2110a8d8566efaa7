"""Whether a group that takes no more calls is at work, or gone."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from types import MappingProxyType, SimpleNamespace

import pytest
from ray.exceptions import RayActorError

from deployments import group_client
from deployments.group_client import ServeGroupClient

_TIMEOUT_S = 0.05


class Handle:
    """A Serve handle whose `probe` yields `says`, from the first look at the coordinators on if it `begins_when_asked`,
    and then waits, or ends."""

    deployment_name = "Group"

    def __init__(self, *, says: list[str], ends: bool = False, begins_when_asked: bool = False) -> None:
        self.begin = asyncio.Event()
        if not begins_when_asked:
            self.begin.set()
        self.probe = SimpleNamespace(remote=lambda: _Response(says, begin=self.begin, ends=ends))

    def options(self, *, stream: bool) -> "Handle":
        assert stream
        return self


class _Response:
    def __init__(self, says: list[str], *, begin: asyncio.Event, ends: bool) -> None:
        self._says = says
        self._begin = begin
        self._ends = ends

    def cancel(self) -> None:
        pass

    async def __aiter__(self) -> AsyncGenerator[str, None]:
        await self._begin.wait()
        for word in self._says:
            yield word
        if not self._ends:
            await asyncio.Event().wait()


async def probe(
    handle: Handle,
    monkeypatch: pytest.MonkeyPatch,
    *,
    actors: list[str],
    num_calls: Mapping[str, int] = MappingProxyType({}),
    num_running: int = 1,
    timeout_s: float = _TIMEOUT_S,
) -> str:
    """The answer when Ray knows of these actors, of which some say how many calls they have and others are dead."""
    named = [{"name": name, "namespace": "serve"} for name in actors]
    monkeypatch.setattr(group_client, "list_named_actors", lambda *, all_namespaces: named if all_namespaces else [])

    async def ask(name: str) -> int:
        handle.begin.set()
        if name not in num_calls:
            raise RayActorError
        return num_calls[name]

    monkeypatch.setattr(group_client, "_num_calls", ask)
    client = ServeGroupClient(handle, app_name="app", num_places=2)
    return await client.probe(timeout_s=timeout_s, num_running=num_running)


async def test_group_that_says_that_it_is_full_is_unreached_long_before_the_time_is_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    num_calls = {"SERVE_REPLICA::app#Group#b": 2}
    full = probe(Handle(says=[]), monkeypatch, actors=[*num_calls], num_calls=num_calls, timeout_s=3600)
    assert await full == "unreached"


async def test_group_with_a_free_place_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    num_calls = {"SERVE_REPLICA::app#Group#a": 2, "SERVE_REPLICA::app#Group#b": 1}
    handle = Handle(says=["reached", "ok"], ends=True, begins_when_asked=True)
    free = probe(handle, monkeypatch, actors=[*num_calls], num_calls=num_calls, num_running=2, timeout_s=3600)
    assert await free == "ok"


async def test_group_that_takes_no_call_is_unreached_while_its_process_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    actors = ["SERVE_REPLICA::app#Ingress#a", "SERVE_REPLICA::app#Group#b"]
    assert await probe(Handle(says=[]), monkeypatch, actors=actors) == "unreached"


async def test_group_that_takes_no_call_is_dead_when_its_process_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    others = ["SERVE_REPLICA::app#Ingress#a", "SERVE_REPLICA::app#Group-1-b#c", "SERVE_REPLICA::other#Group#d"]
    assert await probe(Handle(says=[]), monkeypatch, actors=others) == "dead"


async def test_group_that_was_reached_and_whose_ranks_do_not_answer_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    actors = ["SERVE_REPLICA::app#Group#b"]
    assert await probe(Handle(says=["reached"]), monkeypatch, actors=actors) == "dead"


async def test_group_whose_ranks_answer_is_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await probe(Handle(says=["reached", "ok"], ends=True), monkeypatch, actors=[]) == "ok"
