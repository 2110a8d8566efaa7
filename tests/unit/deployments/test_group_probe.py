"""Whether a group that takes no more calls is at work, or gone."""

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace

import pytest

from deployments import group_client
from deployments.group_client import ServeGroupClient

_TIMEOUT_S = 0.05


class Handle:
    """A Serve handle whose `probe` yields `says` and then waits, or ends."""

    deployment_name = "Group"

    def __init__(self, *, says: list[str], ends: bool = False) -> None:
        self.probe = SimpleNamespace(remote=lambda: _Response(says, ends=ends))

    def options(self, *, stream: bool) -> "Handle":
        assert stream
        return self


class _Response:
    def __init__(self, says: list[str], *, ends: bool) -> None:
        self._says = says
        self._ends = ends

    def cancel(self) -> None:
        pass

    async def __aiter__(self) -> AsyncGenerator[str, None]:
        for word in self._says:
            yield word
        if not self._ends:
            await asyncio.Event().wait()


async def probe(handle: Handle, monkeypatch: pytest.MonkeyPatch, *, actors: list[str]) -> str:
    named = [{"name": name, "namespace": "serve"} for name in actors]
    monkeypatch.setattr(group_client, "list_named_actors", lambda *, all_namespaces: named if all_namespaces else [])
    return await ServeGroupClient(handle, app_name="app").probe(timeout_s=_TIMEOUT_S)


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
