"""What the service does, without HTTP and without Ray: choose the model, admit, divide, keep the deadline."""

import asyncio
import base64
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Literal, TypeVar

from deployments.answers import (
    CompletedEvent,
    Health,
    MediaItem,
    MediaResponse,
    ModelCard,
    ModelList,
    PartialImageEvent,
    ProgressEvent,
)
from deployments.errors import BadRequestError, RequestTimeoutError, UnknownModelError
from deployments.group_client import GroupEvent, GroupsStatus, PreviewFile
from deployments.metrics import RequestMeter, ServiceMetrics
from deployments.schemas import GenerationRequest, ImageEditRequest, ImageRequest, VideoRequest
from deployments.served_model import ServedModel
from deployments.settings import AppSettings
from deployments.tracing import Kind, Tracing
from planner.plan import Plan
from workers.calls import Progress

MediaRequest = ImageRequest | VideoRequest
Event = ProgressEvent | PartialImageEvent | CompletedEvent
_ProgressType = Literal["image_generation.progress", "image_edit.progress", "video_generation.progress"]
_CompletedType = Literal["image_generation.completed", "image_edit.completed", "video_generation.completed"]
_PARTIAL: Literal["image_generation.partial_image"] = "image_generation.partial_image"
_T = TypeVar("_T")


class Service:
    """Answers requests by way of the groups.

    Args:
        settings: the app's settings.
        models: what is served.
        tracing: makes spans of what is made, if it is on.
    """

    def __init__(self, settings: AppSettings, models: Sequence[ServedModel], *, tracing: Tracing | None = None) -> None:
        self.settings = settings
        self.tracing = tracing
        self.models = {model.name: model for model in models}
        self.metrics = ServiceMetrics()
        for model in models:
            self.metrics.watch(
                model.name,
                model.plan,
                num_wanted=model.settings.num_replicas,
                queued_seconds=model.queued_seconds,
            )

    async def generate(self, request: MediaRequest) -> MediaResponse:
        """Makes all that is asked for.

        Raises:
            RequestError: it cannot be done; says why.
        """
        done = []
        async with aclosing(self.stream(request)) as events:
            async for event in events:
                if isinstance(event, CompletedEvent):
                    done.append(event)
        return MediaResponse(
            created=int(time.time()),
            model=self.model(request.model).name,
            size=done[0].size,
            output_format=request.output_format,
            data=[MediaItem(b64_json=event.b64_json, seed=event.seed) for event in done],
        )

    async def stream(self, request: MediaRequest) -> AsyncGenerator[Event, None]:
        """Progress and previews as they happen, each picture or video when it is finished. Closing it cancels the work.

        The first event comes at once when the request is admitted; before it, what is wrong is raised.
        """
        model = self.check(request)
        deadline = _Deadline(self.settings.request_timeout_s)
        with model.admission.admitted(model.work.work_of(request)) as ticket:
            yield ProgressEvent(type=_event_types(request)[0], stage="queued")
            first_seed = draw_seed() if request.seed is None else request.seed
            for index in range(request.n):
                with self._meter(model, request) as meter:
                    calls = model.one(request, seed=first_seed + index, deadline_s=deadline.left(), meter=meter)
                    async with aclosing(_within(calls, deadline)) as events:
                        async for event in events:
                            ticket.note(event)
                            yield _as_event(event, request, index)

    async def run(self, request: MediaRequest, *, request_id: str) -> AsyncGenerator[GroupEvent, None]:
        """A job's work: as `stream`, but waits for a group as long as it takes; its time begins with its first step.

        Raises:
            RequestError: it cannot be done; says why.
        """
        model = self.check(request)
        assert request.seed is not None
        with model.admission.held(model.work.work_of(request)) as ticket:
            for index in range(request.n):
                async with aclosing(self._run_one(model, request, request.seed + index, request_id)) as events:
                    async for event in events:
                        ticket.note(event)
                        yield event

    async def prepare(self) -> None:
        """Learns what the groups of each model can do, each as soon as one is up."""
        async with asyncio.TaskGroup() as tasks:
            for model in self.models.values():
                tasks.create_task(model.prepare())

    def model(self, name: str | None) -> ServedModel:
        """The model of a request.

        Raises:
            UnknownModelError: there is none of that name.
            BadRequestError: none is named, and there are several.
        """
        if name is None:
            if len(self.models) > 1:
                raise BadRequestError(f"say which model: {', '.join(self.models)}", "model", "model_required")
            return next(iter(self.models.values()))
        if name not in self.models:
            there = ", ".join(repr(known) for known in self.models)
            raise UnknownModelError(f"no model {name[:100]!r} here; there is {there}", "model")
        return self.models[name]

    def check(self, request: GenerationRequest) -> ServedModel:
        """The model of a request that may be tried.

        Raises:
            RequestError: the request must change.
        """
        model = self.model(request.model)
        model.check(request, self.settings.limits)
        return model

    def plan(self, name: str | None = None) -> Plan:
        """What was decided before the model's groups started."""
        return self.model(name).plan

    async def health(self) -> Health:
        """Whether a request would be answered now; with several models, for the worst of them."""
        answers = await asyncio.gather(*(self._health_of(model) for model in self.models.values()))
        order = ("unavailable", "busy", "ok")
        worst = min(range(len(answers)), key=lambda index: order.index(answers[index].status))
        if len(answers) == 1 or answers[worst].status == "ok":
            return answers[worst]
        return Health(status=answers[worst].status, detail=f"{list(self.models)[worst]}: {answers[worst].detail}")

    def list_models(self) -> ModelList:
        """The models served here."""
        return ModelList(data=[ModelCard(id=model.name, created=model.created) for model in self.models.values()])

    async def _run_one(
        self, model: ServedModel, request: MediaRequest, seed: int, request_id: str
    ) -> AsyncGenerator[GroupEvent, None]:
        """One picture or video of a job; the wait for its first event has no end, the rest has `run_timeout_s`."""
        timeout_s = self.settings.jobs.run_timeout_s
        with self._meter(model, request) as meter:
            calls = model.one(request, seed=seed, deadline_s=timeout_s, request_id=request_id, meter=meter)
            async with aclosing(calls):
                yield await anext(calls)
                async with aclosing(_within(calls, _Deadline(timeout_s))) as events:
                    async for event in events:
                        yield event

    def _meter(self, model: ServedModel, request: MediaRequest) -> RequestMeter:
        kind: Kind = "video" if isinstance(request, VideoRequest) else "picture"
        trace = None if self.tracing is None else self.tracing.follow(model=model.name, kind=kind)
        return RequestMeter(self.metrics, model.name, model.plan, trace=trace)

    async def _health_of(self, model: ServedModel) -> Health:
        timeout_s = self.settings.health_timeout_s
        try:
            async with asyncio.timeout(2 * timeout_s):
                groups = await model.group.status()
                if groups.num_running == 0:
                    return _without_group(model, groups)
                probe = await model.group.probe(timeout_s=timeout_s, num_running=groups.num_running)
                if probe != "ok" and (groups := await model.group.status()).num_running == 0:
                    # It had gone, and Serve had not found out when it was asked first.
                    return _without_group(model, groups)
        except TimeoutError:
            return Health(status="unavailable", detail="Serve does not say which groups are up")
        if probe == "dead":
            return Health(status="unavailable", detail="a group does not answer")
        return Health(status="ok") if probe == "ok" else Health(status="busy", detail="all groups are at work")


def _without_group(model: ServedModel, groups: GroupsStatus) -> Health:
    if model.may_be_down and groups.may_be_none:
        return Health(status="busy", detail="no group is up: the next request starts one")
    return Health(status="unavailable", detail="no group is up")


def draw_seed() -> int:
    """A seed for a request that says none."""
    return secrets.randbits(31)


class _Deadline:
    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._end = time.monotonic() + timeout_s

    def left(self) -> float:
        return max(self._end - time.monotonic(), 0.001)


async def _within(events: AsyncGenerator[_T, None], deadline: _Deadline) -> AsyncGenerator[_T, None]:
    """The same events, until the deadline. Waits event by event, since each may be awaited in another task; not by
    `wait_for`, which in Python 3.11 swallows a cancellation that comes together with an event."""
    async with aclosing(events):
        while True:
            try:
                async with asyncio.timeout(deadline.left()):
                    event = await anext(events)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise RequestTimeoutError(
                    f"not finished after {deadline.timeout_s:g} s: ask for less, or raise request_timeout_s or, for "
                    "jobs, jobs.run_timeout_s"
                ) from None
            yield event


def _as_event(event: GroupEvent, request: MediaRequest, index: int) -> Event:
    if isinstance(event, Progress):
        return ProgressEvent(
            type=_event_types(request)[0], stage=event.stage, step=event.step, num_steps=event.num_steps,
            seconds_left=event.seconds_left, image_index=index,
        )  # fmt: skip
    if isinstance(event, PreviewFile):
        return PartialImageEvent(
            type="image_edit.partial_image" if isinstance(request, ImageEditRequest) else _PARTIAL,
            b64_json=base64.b64encode(event.content).decode(),
            partial_image_index=event.index,
            created_at=int(time.time()),
            size=f"{event.width}x{event.height}",
            output_format=request.output_format,
            image_index=index,
        )
    return CompletedEvent(
        type=_event_types(request)[1],
        b64_json=base64.b64encode(event.content).decode(),
        created_at=int(time.time()),
        size=f"{event.width}x{event.height}",
        output_format=request.output_format,
        seed=event.seed,
        image_index=index,
    )


def _event_types(request: MediaRequest) -> tuple[_ProgressType, _CompletedType]:
    if isinstance(request, VideoRequest):
        return "video_generation.progress", "video_generation.completed"
    if isinstance(request, ImageEditRequest):
        return "image_edit.progress", "image_edit.completed"
    return "image_generation.progress", "image_generation.completed"
