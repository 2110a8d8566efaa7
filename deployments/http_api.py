"""The HTTP routes, in the shape of OpenAI's API."""

import asyncio
from typing import Any

from fastapi import FastAPI, Response

from deployments.answers import ErrorResponse, Health, HealthReport, ModelList
from deployments.body_limit import BodyLimit
from deployments.header_check import HeaderCheck
from deployments.http_errors import install_error_handlers
from deployments.images_api import images_router
from deployments.jobs.desk import JobDesk
from deployments.keys import KeyGate, KeyRing
from deployments.metrics_api import ErrorCount, Gather, metrics_router, only_this_replica
from deployments.page_api import PAGE_PATHS, page_router
from deployments.queues import read_queues
from deployments.service import Service
from deployments.settings import AppSettings
from deployments.tracing import TraceParent
from deployments.videos_api import videos_router
from planner.plan import Plan

_ERROR_STATUSES = (400, 401, 404, 405, 408, 409, 413, 416, 429, 431, 500, 503, 504)


def build_api(service: Service, desk: JobDesk, keys: KeyRing, *, gather: Gather | None = None) -> FastAPI:
    """The ASGI app that answers for a service; `gather` asks all replicas for their metrics, if there are several."""
    limits = service.settings.limits
    ask_all = gather or only_this_replica(service)
    errors: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in _ERROR_STATUSES}
    app = FastAPI(
        title="Heliograph",
        description="Diffusion models behind OpenAI's image and video API.",
        redirect_slashes=False,  # a redirect would repeat whatever the client sent as Host
    )
    app.add_middleware(BodyLimit, limits=limits)
    # Added later is asked earlier: nothing is read from strangers, and their refusals are counted too.
    app.add_middleware(KeyGate, keys=keys, open_paths=_open_paths(service.settings))
    app.add_middleware(HeaderCheck)
    app.add_middleware(ErrorCount, metrics=service.metrics)
    if service.tracing is not None:
        app.add_middleware(TraceParent)
    install_error_handlers(app)
    app.include_router(images_router(service, desk, errors))
    app.include_router(videos_router(desk, limits, errors))
    app.include_router(metrics_router(service, desk, ask_all), responses={s: errors[s] for s in (400, 401, 431)})
    if service.settings.page:
        app.include_router(page_router())

    @app.get("/v1/models", responses={status: errors[status] for status in (400, 401, 431)})
    async def list_models() -> ModelList:
        """The models served here."""
        return service.list_models()

    @app.get("/live")
    async def live() -> Health:
        """The process is up."""
        return Health(status="ok")

    @app.get("/health", responses={503: {"model": HealthReport}})
    async def health(response: Response) -> HealthReport:
        """200 only when a request would be answered and a job accepted; and what waits for each model's groups."""
        answer, queues = await asyncio.gather(_health_of(service, desk), read_queues(service, desk, ask_all))
        response.status_code = 503 if answer.status == "unavailable" else 200
        return HealthReport(status=answer.status, detail=answer.detail, queues=queues)

    @app.get("/plan", responses={status: errors[status] for status in (400, 401, 404, 431)})
    async def plan(model: str | None = None) -> Plan:
        """What was decided before the groups of a model started, and why."""
        return service.plan(model)

    return app


async def _health_of(service: Service, desk: JobDesk) -> Health:
    problem = await desk.state.problem()
    return await service.health() if problem is None else Health(status="unavailable", detail=problem)


def _open_paths(settings: AppSettings) -> tuple[str, ...]:
    metrics = ("/metrics",) if settings.open_metrics else ()
    return (*metrics, *PAGE_PATHS) if settings.page else metrics
