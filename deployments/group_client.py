"""How an ingress talks to the groups: the seam between HTTP and Ray Serve handles."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import ray
from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError, RequestCancelledError
from ray.serve.schema import DeploymentStatus, DeploymentStatusOverview, ReplicaState
from ray.util import list_named_actors

from deployments.errors import DeploymentError, UnavailableError
from deployments.schemas import GenerationRequest
from workers.calls import GroupDescription, Progress
from workers.errors import CallCancelledError, GroupDiedError, WorkerError

logger = logging.getLogger(__name__)
_CANCEL_TIMEOUT_S = 10.0
_FIRST_LOOK_S = 0.1  # a group with a free place has answered by then
_SERVE_NAMESPACE = "serve"
_REPLICA = "SERVE_REPLICA::"  # how Serve begins the names of its replicas' actors; app and deployment follow
_RANK = "HELIOGRAPH_RANK::"
Probe = Literal["ok", "unreached", "dead"]


@dataclass(frozen=True, slots=True)
class CallStats:
    """What a group says of one finished call.

    Attributes:
        stage_seconds: wall seconds of encode, denoise and decode.
        gpu_peak_bytes: a rank each, since the group's start; empty on CPU groups.
        num_gpus: GPUs that the group holds.
        num_frames: 1 for a picture.
        num_serial_calls: denoiser calls that ran serially though the group has several lanes.
        batch_size: pictures or clips that the pipeline's call made.
        num_failed_previews: asked for, and not shown.
        gpu_used_bytes: a rank each, of its whole GPU when the call ended; empty on CPU groups.
    """

    stage_seconds: Mapping[str, float]
    gpu_peak_bytes: tuple[int, ...]
    num_gpus: float
    num_frames: int
    num_serial_calls: int
    batch_size: int
    num_failed_previews: int = 0
    gpu_used_bytes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class GeneratedMedia:
    """One finished file from a group, and how it was made; a video has a thumbnail as well."""

    content: bytes
    seed: int
    width: int
    height: int
    thumbnail: bytes | None = None
    stats: CallStats | None = None


@dataclass(frozen=True, slots=True)
class PreviewFile:
    """A picture of unfinished work, as a file of the requested format; `index` counts a picture's previews from 0."""

    content: bytes
    index: int
    width: int
    height: int


GroupEvent = Progress | PreviewFile | GeneratedMedia


@dataclass(frozen=True, slots=True)
class GroupsStatus:
    """Which groups a model has.

    Attributes:
        num_running: those that are up.
        may_be_none: nothing is wrong if none is: they were scaled down, or are being scaled up again. A group that
            died, or could not start, is neither.
    """

    num_running: int
    may_be_none: bool


class GroupClient(Protocol):
    """What the service needs of the groups."""

    def stream(
        self, request: GenerationRequest, *, seed: int, request_id: str, deadline_s: float
    ) -> AsyncGenerator[GroupEvent, None]:
        """Makes one picture or video on some group: progress and previews, then the file.

        Raises:
            GroupDiedError: the group went away under the request; another may do it.
            CallError: the call failed.
            RequestError: the request is refused.
        """
        ...

    async def cancel(self, request_id: str) -> None:
        """Ends a call at its next denoiser call, whichever group has it and whoever asked for it."""
        ...

    async def describe(self) -> GroupDescription:
        """What the groups can do."""
        ...

    async def status(self) -> "GroupsStatus":
        """Which groups there are, as Serve says."""
        ...

    async def probe(self, *, timeout_s: float, num_running: int) -> Probe:
        """Asks a group whether all its ranks answer; "unreached" if every running one is too busy to be asked, which is
        said at once."""
        ...


class ServeGroupClient:
    """The groups behind a Serve deployment handle.

    Args:
        handle: of their deployment.
        app_name: Serve's name of the app.
        num_places: calls that a group takes at once.
    """

    def __init__(self, handle: Any, *, app_name: str, num_places: int) -> None:
        self._handle = handle
        self._app_name = app_name
        self._num_places = num_places

    async def stream(
        self, request: GenerationRequest, *, seed: int, request_id: str, deadline_s: float
    ) -> AsyncGenerator[GroupEvent, None]:
        """See `GroupClient.stream`. Closing the iterator cancels the work."""
        method = self._handle.options(stream=True).stream
        response = method.remote(request, seed=seed, request_id=request_id, deadline_s=deadline_s)
        is_finished = False
        try:
            async for event in response:
                yield event
            is_finished = True
        except (RayError, DeploymentUnavailableError, RequestCancelledError) as error:
            is_finished = True
            raise _unwrap(error) from error
        finally:
            if not is_finished:
                response.cancel()

    async def cancel(self, request_id: str) -> None:
        """See `GroupClient.cancel`. A group that is gone by then has nothing left to end.

        The ranks are told: a call to their coordinator would wait for a place there while the group is full.
        """
        failed: list[BaseException]
        try:
            async with asyncio.timeout(_CANCEL_TIMEOUT_S):
                telling = (_cancel(rank, request_id) for rank in await asyncio.to_thread(self._ranks_to_cancel))
                failed = [error for error in await asyncio.gather(*telling, return_exceptions=True) if error]
        except (RayError, TimeoutError) as error:
            failed = [error]
        if failed:
            logger.warning("cancel %s: not all groups answered: %s", request_id, type(failed[0]).__name__)

    async def describe(self) -> GroupDescription:
        """See `GroupClient.describe`."""
        try:
            description: GroupDescription = await self._handle.describe.remote()
        except (RayError, DeploymentUnavailableError) as error:
            raise _unwrap(error) from error
        return description

    async def status(self) -> GroupsStatus:
        """See `GroupClient.status`."""
        status = await asyncio.to_thread(serve.status)
        app = status.applications.get(self._app_name)
        deployment = app.deployments.get(self._handle.deployment_name) if app else None
        return read_status(deployment) if deployment else GroupsStatus(num_running=0, may_be_none=False)

    async def probe(self, *, timeout_s: float, num_running: int) -> Probe:
        """See `GroupClient.probe`. A group answers at once that it was reached, and again when its ranks answered.

        One that is full lets the call wait for a place: the coordinators are asked meanwhile how many calls they have.
        One whose death Serve has not found out yet looks to a call like one that does not answer: Ray is asked then.
        """
        response = self._handle.options(stream=True).probe.remote()
        words: list[str] = []
        reading = asyncio.create_task(_read(response, words))
        try:
            async with asyncio.timeout(timeout_s):
                pause_s = _FIRST_LOOK_S
                while not (await asyncio.wait([reading], timeout=pause_s))[0]:
                    if not words and await self._num_full() >= num_running:
                        response.cancel()
                        return "unreached"
                    pause_s *= 2
                await reading
            return "ok"
        except TimeoutError:
            response.cancel()
            return "dead" if words or not await asyncio.to_thread(self._coordinators) else "unreached"
        except (RayError, DeploymentUnavailableError):
            return "dead"
        finally:
            reading.cancel()

    def _ranks_to_cancel(self) -> list[dict[str, str]]:
        begin = begin_of_rank_names(self._app_name, self._handle.deployment_name)
        return [actor for actor in list_named_actors(all_namespaces=True) if actor["name"].startswith(begin)]

    async def _num_full(self) -> int:
        """Groups whose coordinators say that they have as many calls as they take."""
        names = await asyncio.to_thread(self._coordinators)
        counts = await asyncio.gather(*map(_num_calls, names), return_exceptions=True)
        return sum(isinstance(count, int) and count >= self._num_places for count in counts)

    def _coordinators(self) -> list[str]:
        """Names of coordinators that live, starting ones too: Ray knows of a death before Serve does."""
        start = f"{_REPLICA}{self._app_name}#{self._handle.deployment_name}#"
        names = (actor["name"] for actor in list_named_actors(all_namespaces=True))
        return [name for name in names if name.startswith(start)]


def begin_of_rank_names(app_name: str, deployment: str) -> str:
    """How the names of ranks that take cancels begin."""
    return f"{_RANK}{app_name}#{deployment}#"


async def _cancel(rank: dict[str, str], request_id: str) -> None:
    actor = await asyncio.to_thread(ray.get_actor, rank["name"], namespace=rank["namespace"])
    await actor.cancel.remote(request_id)


async def _read(response: Any, words: list[str]) -> None:
    async for word in response:
        words.append(word)


async def _num_calls(coordinator: str) -> int:
    """Calls at a group. Serve's routers ask the same of their replicas, which answer however full they are."""
    replica = await asyncio.to_thread(ray.get_actor, coordinator, namespace=_SERVE_NAMESPACE)
    return int(await replica.get_num_ongoing_requests.remote())


def read_status(deployment: DeploymentStatusOverview) -> GroupsStatus:
    """What Serve's word for a deployment means. It stays unhealthy from a replica's death until all are there again."""
    states = {ReplicaState(state): count for state, count in deployment.replica_states.items() if count}
    is_at_rest = deployment.status is DeploymentStatus.HEALTHY and set(states) <= {ReplicaState.STOPPING}
    return GroupsStatus(
        num_running=states.get(ReplicaState.RUNNING, 0),
        may_be_none=is_at_rest or deployment.status in (DeploymentStatus.UPSCALING, DeploymentStatus.DOWNSCALING),
    )


def _unwrap(error: Exception) -> Exception:
    """The error that a group raised, as itself; a dead group as `GroupDiedError`."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, WorkerError | DeploymentError):
        return error.cause
    if isinstance(error, RayActorError):
        return GroupDiedError("the group went away under the request")
    if isinstance(error, DeploymentUnavailableError):
        return UnavailableError("no group is up: its start failed")
    if isinstance(error, RequestCancelledError):
        return CallCancelledError("the request was cancelled")
    return error
