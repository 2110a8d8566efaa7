"""One model as an ingress replica knows it: its plan, its groups, and what those can do once one is up."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing

from deployments.admission import Admission
from deployments.errors import BadRequestError, GenerationError, GroupsDiedError, RequestTimeoutError, UnavailableError
from deployments.group_client import GeneratedMedia, GroupClient, GroupEvent
from deployments.metrics import RequestMeter
from deployments.pipeline_call import check_call, check_limits
from deployments.poison import PoisonMemory, fingerprint
from deployments.schemas import GenerationRequest
from deployments.settings import Limits, ModelSettings
from deployments.turns import Turns
from deployments.work import WorkModel, check_planned_shape
from planner.plan import Plan
from workers.calls import GroupDescription
from workers.errors import (
    CallCancelledError,
    CallError,
    CallOutOfMemoryError,
    DeadlineExceededError,
    GroupDiedError,
    InvalidCallError,
)

logger = logging.getLogger(__name__)
_NUM_ATTEMPTS = 3


class ServedModel:
    """A model, by way of its groups.

    Args:
        settings: the model's settings.
        plan: what its groups run.
        group: the way to them.
        max_queued_requests: interactive requests that may wait here at once.
        max_queued_seconds: predicted work that may wait here at once.
        max_calls: that may be at the groups at once; None for all.
    """

    def __init__(
        self,
        settings: ModelSettings,
        plan: Plan,
        group: GroupClient,
        *,
        max_queued_requests: int,
        max_queued_seconds: float,
        max_calls: int | None,
    ) -> None:
        self.settings = settings
        self.plan = plan
        self.group = group
        self.work = WorkModel(plan, num_planned_steps=settings.plan.num_inference_steps)
        self.admission = Admission(
            self.work,
            max_requests=max_queued_requests,
            max_seconds=max_queued_seconds,
            num_servers=settings.max_groups,
        )
        self._turns = Turns(max_calls)
        self._poison = PoisonMemory()
        self.created = int(time.time())
        self._description: GroupDescription | None = None
        self._learning: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """What clients pass as `model`."""
        return self.settings.served_name

    @property
    def may_be_down(self) -> bool:
        """Whether it is normal that no group is up."""
        return self.settings.autoscaling is not None and self.settings.autoscaling.min_replicas == 0

    def queued_seconds(self) -> float | None:
        """Predicted seconds until the groups are through with what this replica has for them; None if unknown."""
        return self.admission.known_seconds

    async def prepare(self) -> None:
        """Learns what the groups can do as soon as one is up, so that wrong requests are refused without queueing.

        Where none needs to be up, the question itself would start one: it is asked when a request has.
        """
        if not self.may_be_down:
            await self._learn()

    async def _learn(self) -> None:
        try:
            self._description = await self.group.describe()
        except Exception as error:  # a group's, or of the way to it: requests are served without, and it is asked again
            logger.warning("%s: what the groups can do is not known yet: %s", self.name, error)

    def _learn_of_running_group(self) -> None:
        """Asks in the background, unless it is known or asked already."""
        if self._description is None and (self._learning is None or self._learning.done()):
            self._learning = asyncio.create_task(self._learn())

    def check(self, request: GenerationRequest, limits: Limits) -> None:
        """Refuses what cannot be, as far as it is known by now.

        Raises:
            BadRequestError: the request must change.
        """
        check_limits(request, limits)
        if self.settings.beyond_plan == "refuse":
            check_planned_shape(request, self.plan)
        if self._description is not None:
            check_call(
                request, self.plan.defaults, self._description, limits=limits, extra_args=self.settings.extra_args
            )

    async def one(
        self,
        request: GenerationRequest,
        *,
        seed: int,
        deadline_s: float,
        meter: RequestMeter,
        request_id: str | None = None,
    ) -> AsyncGenerator[GroupEvent, None]:
        """One picture or video. When its group dies it is made again elsewhere, with the same seed, up to three tries.

        Only deaths after its first event are laid at its door: before it, it waited behind somebody else's request.

        Raises:
            RequestError: it cannot be done; says why.
        """
        end = time.monotonic() + deadline_s
        async with self._turns.turn():
            attempts = self._attempts(request, seed=seed, end=end, meter=meter, request_id=request_id)
            async with aclosing(attempts) as events:
                async for event in events:
                    yield event

    async def _attempts(
        self, request: GenerationRequest, *, seed: int, end: float, meter: RequestMeter, request_id: str | None
    ) -> AsyncGenerator[GroupEvent, None]:
        request_id = request_id or uuid.uuid4().hex
        name = fingerprint(request, seed=seed)
        for attempt in range(1, _NUM_ATTEMPTS + 1):
            self._poison.check(name)
            left_s = max(end - time.monotonic(), 0.001)
            events = self.group.stream(request, seed=seed, request_id=request_id, deadline_s=left_s)
            has_begun = False
            try:
                async with aclosing(events):
                    async for event in events:
                        has_begun = True
                        self._learn_of_running_group()
                        meter.on_event(event)
                        if isinstance(event, GeneratedMedia):  # now: who has the file may not ask for the end
                            self._poison.clear(name)
                        yield event
                return
            except GroupDiedError as error:
                meter.on_group_death()
                logger.warning("request %s: attempt %d: %s", request_id, attempt, error)
                if has_begun:
                    self._poison.add_death(name)
            except CallError as error:
                raise _as_request_error(error) from error
        self._poison.check(name)
        raise GroupsDiedError(f"{_NUM_ATTEMPTS} groups died, one after the other, with this request on them")


def _as_request_error(error: CallError) -> Exception:
    if isinstance(error, InvalidCallError):
        return BadRequestError(str(error))
    if isinstance(error, DeadlineExceededError):
        return RequestTimeoutError(str(error))
    if isinstance(error, CallCancelledError):
        return UnavailableError("the request was cancelled by the service: send it again")
    if isinstance(error, CallOutOfMemoryError):
        return GenerationError(f"{error}; ask for fewer pixels or frames", None, "out_of_memory")
    return GenerationError(str(error))
