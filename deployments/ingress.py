"""The ingress deployment: HTTP and Python handle calls into the same service."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import TaskCancelledError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.group_client import ServeGroupClient
from deployments.http_api import build_api
from deployments.logs import configure_logging
from deployments.schemas import MediaResponse
from deployments.service import Event, MediaRequest, Service
from deployments.settings import AppSettings
from planner.plan import Plan


class Ingress:
    """One front end. `generate` and `stream` are also there for `serve.get_app_handle(...)`."""

    def __init__(self, settings: AppSettings, plan: Plan, group: Any) -> None:
        configure_logging()
        client = ServeGroupClient(group, app_name=serve.get_replica_context().app_name)
        self._service = Service(settings, plan, client)
        self._preparing: asyncio.Task[None] | None = None

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve once, after `__init__`, on the loop that answers requests."""
        self._preparing = asyncio.create_task(self._service.prepare())
        api = build_api(self._service)
        api.add_middleware(QuietDisconnect)
        return api

    async def generate(self, request: MediaRequest) -> MediaResponse:
        """Makes the pictures or the video that a request asks for.

        Raises:
            RequestError: it cannot be done; says why.
        """
        return await self._service.generate(request)

    async def stream(self, request: MediaRequest) -> AsyncGenerator[Event, None]:
        """Progress as it happens, and each picture or video when it is finished."""
        async with aclosing(self._service.stream(request)) as events:
            async for event in events:
                yield event

    async def plan(self) -> Plan:
        """What was decided before the groups started."""
        return self._service.plan


class QuietDisconnect:
    """ASGI middleware: a client that goes away is a message to the app, not Ray's error, which would be logged."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands everything on, with a `receive` that knows disconnects."""

        async def receive_or_disconnect() -> Message:
            try:
                return await receive()
            except TaskCancelledError:
                return {"type": "http.disconnect"}

        await self._app(scope, receive_or_disconnect, send)
