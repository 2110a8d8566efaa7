"""What the service does, without HTTP and without Ray: admit, divide into calls, retry once, keep the deadline."""

import asyncio
import base64
import logging
import secrets
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Literal, TypeVar

from deployments.admission import Admission
from deployments.errors import (
    BadRequestError,
    GenerationError,
    RequestTimeoutError,
    UnavailableError,
    UnknownModelError,
)
from deployments.group_client import GeneratedMedia, GroupClient
from deployments.pipeline_call import build_arguments, check_limits
from deployments.schemas import (
    CompletedEvent,
    GenerationRequest,
    Health,
    ImageRequest,
    MediaItem,
    MediaResponse,
    ModelCard,
    ModelList,
    ProgressEvent,
    VideoRequest,
)
from deployments.settings import AppSettings
from planner.plan import Plan
from workers.calls import GroupDescription, Progress
from workers.errors import CallCancelledError, CallError, DeadlineExceededError, GroupDiedError, InvalidCallError

logger = logging.getLogger(__name__)
MediaRequest = ImageRequest | VideoRequest
Event = ProgressEvent | CompletedEvent
_T = TypeVar("_T")
_NUM_ATTEMPTS = 2


class Service:
    """Answers requests by way of the groups.

    Args:
        settings: the app's settings.
        plan: what the groups run.
        group: the way to the groups.
    """

    def __init__(self, settings: AppSettings, plan: Plan, group: GroupClient) -> None:
        self.settings = settings
        self.plan = plan
        self._group = group
        self._description: GroupDescription | None = None
        self._created = int(time.time())
        self._admission = Admission(settings.max_queued_requests, num_servers=settings.num_replicas)

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
            model=self.settings.served_name,
            size=done[0].size,
            output_format=request.output_format,
            data=[MediaItem(b64_json=event.b64_json, seed=event.seed) for event in done],
        )

    async def stream(self, request: MediaRequest) -> AsyncGenerator[Event, None]:
        """Progress as it happens and each picture or video when it is finished. Closing it cancels the work.

        The first event comes at once when the request is admitted; before it, what is wrong is raised.
        """
        self._check(request)
        deadline = _Deadline(self.settings.request_timeout_s)
        with self._admission.admitted():
            if self._description is not None:
                build_arguments(request, self.plan.defaults, self._description)
            yield ProgressEvent(type=_event_type(request), stage="queued")
            first_seed = secrets.randbits(31) if request.seed is None else request.seed
            for index in range(request.n):
                async with aclosing(_within(self._one(request, first_seed + index, deadline), deadline)) as events:
                    async for event in events:
                        yield _as_event(event, request, index)

    async def prepare(self) -> None:
        """Learns what the groups can do as soon as one is up, so that wrong requests are refused without queueing."""
        self._description = await self._group.describe()

    async def health(self) -> Health:
        """Whether a request would be answered now."""
        try:
            async with asyncio.timeout(2 * self.settings.health_timeout_s):
                if await self._group.num_running() == 0:
                    return Health(status="unavailable", detail="no group is up yet")
                probe = await self._group.probe(timeout_s=self.settings.health_timeout_s)
        except TimeoutError:
            return Health(status="unavailable", detail="Serve does not say which groups are up")
        if probe == "dead":
            return Health(status="unavailable", detail="a group does not answer")
        return Health(status="ok") if probe == "ok" else Health(status="busy", detail="all groups are at work")

    def models(self) -> ModelList:
        """The models served here."""
        return ModelList(data=[ModelCard(id=self.settings.served_name, created=self._created)])

    def _check(self, request: GenerationRequest) -> None:
        name = self.settings.served_name
        if request.model not in (None, name):
            raise UnknownModelError(f"no model {request.model!r} here; there is {name!r}", "model")
        check_limits(request, self.settings.limits)

    async def _one(
        self, request: MediaRequest, seed: int, deadline: "_Deadline"
    ) -> AsyncGenerator[Progress | GeneratedMedia, None]:
        """One picture or video. When its group dies it is made again, once, elsewhere, with the same seed."""
        for attempt in range(1, _NUM_ATTEMPTS + 1):
            request_id = uuid.uuid4().hex
            events = self._group.stream(request, seed=seed, request_id=request_id, deadline_s=deadline.left())
            try:
                async with aclosing(events):
                    async for event in events:
                        yield event
                return
            except GroupDiedError as error:
                logger.warning("request %s: attempt %d: %s", request_id, attempt, error)
            except CallError as error:
                raise _as_request_error(error) from error
        raise UnavailableError("the group died under the request, and so did the next one")


class _Deadline:
    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._end = time.monotonic() + timeout_s

    def left(self) -> float:
        return max(self._end - time.monotonic(), 0.001)


async def _within(events: AsyncGenerator[_T, None], deadline: _Deadline) -> AsyncGenerator[_T, None]:
    """The same events, until the deadline. Waits event by event, since each may be awaited in another task."""
    async with aclosing(events):
        while True:
            try:
                event = await asyncio.wait_for(anext(events), deadline.left())
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise RequestTimeoutError(
                    f"not finished after {deadline.timeout_s:g} s: ask for less, or raise request_timeout_s"
                ) from None
            yield event


def _as_event(event: Progress | GeneratedMedia, request: MediaRequest, index: int) -> Event:
    if isinstance(event, Progress):
        return ProgressEvent(
            type=_event_type(request), stage=event.stage, step=event.step, num_steps=event.num_steps,
            seconds_left=event.seconds_left, image_index=index,
        )  # fmt: skip
    return CompletedEvent(
        b64_json=base64.b64encode(event.content).decode(),
        created_at=int(time.time()),
        type="image_generation.completed" if isinstance(request, ImageRequest) else "video_generation.completed",
        size=f"{event.width}x{event.height}",
        output_format=request.output_format,
        seed=event.seed,
        image_index=index,
    )


def _event_type(request: MediaRequest) -> Literal["image_generation.progress", "video_generation.progress"]:
    return "image_generation.progress" if isinstance(request, ImageRequest) else "video_generation.progress"


def _as_request_error(error: CallError) -> Exception:
    if isinstance(error, InvalidCallError):
        return BadRequestError(str(error))
    if isinstance(error, DeadlineExceededError):
        return RequestTimeoutError(str(error))
    if isinstance(error, CallCancelledError):
        return UnavailableError("the request was cancelled by the service: send it again")
    return GenerationError(str(error))
