"""`GET /metrics`: what every ingress replica knows, in Prometheus' text format, whichever of them is asked.

Serve's proxy sends each scrape to some replica. Were it to show its own counters only, every series would jump between
the replicas' values; so the one that is asked gathers the others' and tells them apart by their rank.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, Metric, generate_latest
from prometheus_client.registry import Collector
from ray.exceptions import RayError
from ray.serve.exceptions import DeploymentUnavailableError
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.group_client import GroupClient
from deployments.http_errors import ON_ERROR
from deployments.jobs.desk import JobDesk
from deployments.metrics import ServiceMetrics, merge
from deployments.service import Service

logger = logging.getLogger(__name__)
_GATHER_TIMEOUT_S = 5.0
_UNKNOWN = float("nan")


@dataclass(frozen=True, slots=True)
class ReplicaMetrics:
    """One ingress replica's metrics; pickles."""

    replica: str
    metrics: Sequence[Metric]


Gather = Callable[[], Awaitable[Sequence[ReplicaMetrics]]]


class PeerMetrics:
    """Gathers the metrics of all ingress replicas by a broadcast.

    Args:
        handle: the ingress deployment's own handle.
        own: this replica's metrics, for when the others cannot be asked.
        metrics: counts what was left out.
    """

    def __init__(self, handle: Any, own: Callable[[], ReplicaMetrics], metrics: ServiceMetrics) -> None:
        self._handle = handle
        self._own = own
        self._metrics = metrics

    async def __call__(self) -> Sequence[ReplicaMetrics]:
        """One entry a replica; this replica's own is always there."""
        try:
            answers = await self._handle.broadcast("replica_metrics").results_async(
                timeout_s=_GATHER_TIMEOUT_S, return_exceptions=True
            )
        except (RayError, DeploymentUnavailableError, TimeoutError) as error:
            answers = [error]
        found = {answer.replica: answer for answer in answers if isinstance(answer, ReplicaMetrics)}
        num_missing = sum(not isinstance(answer, ReplicaMetrics) for answer in answers)
        if num_missing:
            self._metrics.replicas_left_out.inc(num_missing)
            logger.warning("%d ingress replicas did not say their metrics", num_missing)
        own = self._own()
        return list({**found, own.replica: own}.values())


class ErrorCount:
    """ASGI middleware, the outermost: counts answers that are errors, by status and code."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands everything on; an error answer that is sent on the way says so."""

        def count(status: int, code: str) -> None:
            self._metrics.http_errors.labels(str(status), code).inc()

        await self._app({**scope, ON_ERROR: count}, receive, send)


def only_this_replica(service: Service) -> Gather:
    """Where there is this process alone."""

    async def gather() -> Sequence[ReplicaMetrics]:
        return [ReplicaMetrics("0", service.metrics.collect())]

    return gather


def metrics_router(service: Service, desk: JobDesk, gather: Gather) -> APIRouter:
    """`/metrics`."""
    router = APIRouter()

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus metrics of all ingress replicas and the groups that they talked to."""
        await _refresh(service, desk)
        merged = merge((one.replica, one.metrics) for one in await gather())
        return Response(
            generate_latest(_Collected([*merged, *service.metrics.shared.collect()])), media_type=CONTENT_TYPE_LATEST
        )

    return router


async def _refresh(service: Service, desk: JobDesk) -> None:
    """Asks for what is not counted here; what does not answer in time is shown as unknown (NaN)."""
    timeout_s = service.settings.health_timeout_s
    for name, model in service.models.items():
        running, jobs = await asyncio.gather(
            _within(_num_running(model.group), timeout_s), _within(desk.num_unfinished(name), timeout_s)
        )
        service.metrics.num_groups.labels(name, "running").set(running)
        service.metrics.num_jobs.labels(name).set(jobs)


async def _num_running(group: GroupClient) -> int:
    return (await group.status()).num_running


async def _within(number: Awaitable[int], timeout_s: float) -> float:
    try:
        async with asyncio.timeout(timeout_s):
            return await number
    except Exception as error:  # a scrape shows what is known, also while Serve or the database is away
        logger.warning("/metrics: a number is not known: %s", type(error).__name__)
        return _UNKNOWN


class _Collected(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics
