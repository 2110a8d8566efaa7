"""The ingress deployment: HTTP and Python handle calls into the same service."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import TaskCancelledError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.answers import MediaResponse
from deployments.front import Front, open_front
from deployments.group_client import ServeGroupClient
from deployments.http_api import build_api
from deployments.logs import configure_logging
from deployments.metrics_api import PeerMetrics, ReplicaMetrics
from deployments.served_model import ServedModel
from deployments.service import Event, MediaRequest, Service
from deployments.settings import AppSettings
from deployments.tracing import open_tracing
from deployments.turns import share_of_calls
from planner.plan import Plan

logger = logging.getLogger(__name__)


class Ingress:
    """One front end. `generate` and `stream` are also there for `serve.get_app_handle(...)`.

    Args:
        settings: the app's settings.
        plans: one a model, in the settings' order.
        groups: the handles of the models' groups, likewise.
    """

    def __init__(self, settings: AppSettings, plans: Sequence[Plan], *groups: Any) -> None:
        configure_logging()
        context = serve.get_replica_context()
        self._app_name, self._replica = context.app_name, str(context.rank.rank)
        self._deployment = context.deployment
        models = [
            ServedModel(
                model,
                plan,
                ServeGroupClient(group, app_name=self._app_name, num_places=model.max_ongoing_requests),
                max_queued_requests=settings.max_queued_requests,
                max_queued_seconds=settings.queue_ceiling_s,
                max_calls=share_of_calls(model, num_ingress_replicas=settings.num_ingress_replicas),
            )
            for model, plan, group in zip(settings.served_models, plans, groups, strict=True)
        ]
        self._service = Service(settings, models, tracing=open_tracing(settings.tracing))
        self._preparing: asyncio.Task[None] | None = None
        self._front: Front | None = None

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve once, after `__init__`, on the loop that answers requests."""
        self._front = await open_front(self._service)
        self._preparing = asyncio.create_task(self._service.prepare())
        gather = PeerMetrics(
            serve.get_deployment_handle(self._deployment, self._app_name), self._own_metrics, self._service.metrics
        )
        api = build_api(self._service, self._front.desk, self._front.keys, gather=gather)
        api.add_middleware(QuietDisconnect)
        return api

    async def __del__(self) -> None:
        """Called by Serve when the replica is told to stop: others take over its jobs at once."""
        front = getattr(self, "_front", None)
        if front is not None:
            await front.close()
        if self._service.tracing is not None:
            await asyncio.to_thread(self._service.tracing.close)

    async def generate(self, request: MediaRequest) -> MediaResponse:
        """Makes the pictures or the video that a request asks for. Cancelling the response cancels the work.

        Raises:
            RequestError: it cannot be done; says why.
        """
        return await self._service.generate(request)

    async def stream(self, request: MediaRequest) -> AsyncGenerator[Event, None]:
        """Progress as it happens, and each picture or video when it is finished."""
        async with aclosing(self._service.stream(request)) as events:
            async for event in events:
                yield event

    async def replica_metrics(self) -> ReplicaMetrics:
        """What this replica counted; asked by whichever replica answers a scrape."""
        return self._own_metrics()

    def _own_metrics(self) -> ReplicaMetrics:
        return ReplicaMetrics(self._replica, self._service.metrics.collect())

    async def plan(self, model: str | None = None) -> Plan:
        """What was decided before a model's groups started."""
        return self._service.plan(model)


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
