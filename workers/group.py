"""A group of rank actors, from the coordinator's side: start, generate, watch, stop. No torch here."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from planner.kinds import runs_every_step
from planner.plan import Plan, Residency
from workers.call_pace import CallDeadlines
from workers.calls import ComponentLoaded, GenerateCall, GenerateResult, GroupDescription, Preview, Progress
from workers.errors import GroupDiedError, GroupStartError, WorkerError
from workers.rank_actor import RankActor

logger = logging.getLogger(__name__)
_PING_TIMEOUT_S = 10.0
_WATCH_PERIOD_S = 0.25


class WorkerGroup:
    """One copy of the model on its ranks. Made by `start`; after `GroupDiedError` only `shutdown` is of use.

    Attributes:
        start_seconds: what each part of the start took.
    """

    def __init__(self, plan: Plan, ranks: list[Any], own_placement: PlacementGroup | None) -> None:
        self.plan = plan
        self._ranks = ranks
        self._own_placement = own_placement
        self._follow_refs: list[Any] = []
        self._description: GroupDescription | None = None
        self.start_seconds: dict[str, float] = {}

    @classmethod
    def start(
        cls,
        plan: Plan,
        *,
        first_bundle: int | None = None,
        on_load: Callable[[ComponentLoaded], None] | None = None,
        timeout_s: float = 600.0,
        deadlines: CallDeadlines | None = None,
        name: str | None = None,
    ) -> "WorkerGroup":
        """Starts all ranks, forms the process group and loads the components; returns when calls can be made.

        Args:
            plan: what to start.
            first_bundle: bundle of rank 0 in the caller's own placement group (a Serve replica); None makes a
                placement group for this group alone.
            on_load: told of each component that is in place on a rank.
            timeout_s: for the whole start.
            deadlines: how long calls may take before a rank counts as hung.
            name: with it, ranks that `cancel` tells are Ray actors named `NAME#RANK`, for others to tell them.

        Raises:
            GroupStartError: it did not come up; everything that was started is gone again.
        """
        _refuse_what_cannot_run(plan)
        deadline = _Deadline(timeout_s)
        own, placement = _place(plan, first_bundle, deadline)
        group = cls(plan, [], own)
        phases = _Phases()
        try:
            group._create_ranks(placement, 1 if first_bundle is None else first_bundle, name)
            places = _get([rank.place.remote() for rank in group._ranks], deadline.left())
            phases.end("ranks up")
            group._join(places, deadline)
            phases.end("libraries imported and process group formed")
            load_seconds, bytes_read = group._load(on_load or _ignore, deadline)
            phases.end("loaded")
            group._follow_refs = [rank.follow.remote() for rank in group._ranks[1:]]
            lead = group._ranks[0].lead.remote(load_seconds, bytes_read, deadlines or CallDeadlines())
            group._description = _get(lead, deadline.left())
            phases.end("pipeline built")
        except BaseException as error:
            group.shutdown(timeout_s=2.0)
            if not isinstance(error, Exception):
                raise
            raise GroupStartError(f"the group did not start: {_unwrap(error)}") from error
        group.start_seconds = phases.seconds
        logger.info("group of %d ranks started: %s", plan.group.num_ranks, phases)
        return group

    def describe(self) -> GroupDescription:
        """What the group can do."""
        assert self._description is not None
        return self._description

    def generate(self, call: GenerateCall, *, on_progress: Callable[[Progress], None] | None = None) -> GenerateResult:
        """Runs one call and waits for it; previews are not handed on.

        Raises:
            CallError: the call failed; the group takes the next one.
            GroupDiedError: a rank is gone or hangs.
        """
        try:
            for reference in self._ranks[0].generate.remote(call):
                event = ray.get(reference)
                if isinstance(event, GenerateResult):
                    return event
                if on_progress is not None and isinstance(event, Progress):
                    on_progress(event)
        except RayError as error:
            raise _unwrap(error) from error
        except BaseException:
            self.cancel(call.request_id)
            raise
        raise GroupDiedError("the leader ended a call without a result")

    async def stream(self, call: GenerateCall) -> AsyncGenerator[Progress | Preview | GenerateResult, None]:
        """Runs one call; yields its progress and previews, then its result. Closing the iterator cancels the call."""
        is_finished = False
        try:
            async for reference in self._ranks[0].generate.remote(call):
                event = await reference
                is_finished = isinstance(event, GenerateResult)
                yield event
        except RayError as error:
            is_finished = True
            raise _unwrap(error) from error
        finally:
            if not is_finished:
                self.cancel(call.request_id)

    def cancel(self, request_id: str) -> None:
        """Ends a call at its next check (between blocks, calls and steps); returns at once."""
        for world_rank in self._ranks_to_cancel():
            self._ranks[world_rank].cancel.remote(request_id)

    def check(self) -> None:
        """Raises `GroupDiedError` if a rank is dead, has left its loop, or does not answer."""
        try:
            for reference in self._ended_followers():
                ray.get(reference)
                raise GroupDiedError("a follower left its loop")
            ray.get([rank.ping.remote() for rank in self._ranks], timeout=_PING_TIMEOUT_S)
        except GetTimeoutError as error:
            raise GroupDiedError(f"a rank did not answer within {_PING_TIMEOUT_S:g} s") from error
        except RayError as error:
            raise GroupDiedError(f"a rank is gone: {_unwrap(error)}") from error

    async def wait_for_an_end(self, timeout_s: float) -> None:
        """Returns soon after a follower has left its loop, as it does when any rank ends, or when the time is up."""
        deadline = _Deadline(timeout_s)
        while not self._ended_followers() and not deadline.is_over:
            await asyncio.sleep(min(_WATCH_PERIOD_S, deadline.left()))

    def shutdown(self, timeout_s: float = 10.0) -> None:
        """Ends all ranks and gives the placement group back; returns when the processes are gone or time is up."""
        deadline = _Deadline(timeout_s)
        ranks, self._ranks = self._ranks, []
        if self._description is not None and ranks:
            try:
                ray.get(ranks[0].leave.remote(), timeout=min(deadline.left(), 2.0))
            except (RayError, WorkerError) as error:
                logger.info("the leader did not leave by itself: %s", type(error).__name__)
        pings = [rank.ping.remote() for rank in ranks]
        for rank in ranks:
            ray.kill(rank, no_restart=True)
        ray.wait(pings, num_returns=len(pings), timeout=deadline.left()) if pings else None
        if self._own_placement is not None:
            remove_placement_group(self._own_placement)
            self._own_placement = None

    def _ended_followers(self) -> list[Any]:
        return ray.wait(self._follow_refs, timeout=0)[0] if self._follow_refs else []

    def _ranks_to_cancel(self) -> list[int]:
        return sorted({0, *self.plan.ranks_of_remote_components().values()})

    def _create_ranks(self, placement: PlacementGroup, first_bundle: int, name: str | None) -> None:
        """Ranks have no `runtime_env` of their own, and so the caller's: with one, Ray starts Python twice for each."""
        for world_rank in range(self.plan.group.num_ranks):
            bundle = self.plan.group.bundles[1 + world_rank]
            num_threads = max(1, int(bundle.get("CPU", 1)))
            actor = ray.remote(RankActor).options(
                num_cpus=bundle.get("CPU", 0),
                num_gpus=bundle.get("GPU", 0),
                name=f"{name}#{world_rank}" if name and world_rank in self._ranks_to_cancel() else None,
                max_restarts=0,
                max_concurrency=16,  # control methods must get through while a call runs
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement, placement_group_bundle_index=first_bundle + world_rank
                ),
            )
            self._ranks.append(actor.remote(self.plan.model_dump_json(), world_rank, num_threads))

    def _join(self, places: list[tuple[str, str]], deadline: "_Deadline") -> None:
        rendezvous = None
        if len(self._ranks) > 1:
            is_one_node = len({node_id for node_id, _ in places}) == 1
            host = "127.0.0.1" if is_one_node else places[0][1]
            rendezvous = _get(self._ranks[0].open_door.remote(host, deadline.left()), deadline.left())
        _get([rank.join.remote(rendezvous, deadline.left()) for rank in self._ranks], deadline.left())

    def _load(
        self, on_load: Callable[[ComponentLoaded], None], deadline: "_Deadline"
    ) -> tuple[dict[str, float], tuple[int, ...]]:
        """Loads on all ranks at once; returns the slowest rank's seconds a component and the bytes read a rank."""
        seconds: dict[str, float] = {}
        num_bytes = [0] * len(self._ranks)
        for event in _merge([rank.load.remote() for rank in self._ranks], deadline):
            seconds[event.name] = max(seconds.get(event.name, 0.0), event.seconds)
            num_bytes[event.world_rank] += event.bytes_read
            on_load(event)
        return seconds, tuple(num_bytes)


class _Phases:
    """Seconds of the parts of a start, in their order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def end(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name], self._last = now - self._last, now

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())


class _Deadline:
    def __init__(self, timeout_s: float) -> None:
        self._end = time.monotonic() + timeout_s

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._end

    def left(self) -> float:
        return max(self._end - time.monotonic(), 0.001)


def _refuse_what_cannot_run(plan: Plan) -> None:
    """Only plans made by hand say such things: better an error than ranks that wait for one another."""
    for component in plan.components:
        if 0 in component.ranks:
            continue
        if runs_every_step(component.kind) or len(component.ranks) != 1 or component.residency is Residency.SHARDED:
            raise GroupStartError(
                f"{component.name} is planned for ranks {component.ranks}: away from rank 0, the leader, only a "
                "component called outside the denoising loop can be, whole and on one rank"
            )


def _place(plan: Plan, first_bundle: int | None, deadline: _Deadline) -> tuple[PlacementGroup | None, PlacementGroup]:
    """The placement group of the ranks; first its own one, if one had to be made."""
    if first_bundle is not None:
        current = get_current_placement_group()
        if current is None:
            raise GroupStartError("the coordinator runs in no placement group: deploy it with the plan's bundles")
        return None, current
    own = placement_group(
        list(plan.group.bundles), strategy=plan.group.strategy, bundle_label_selector=plan.label_selectors()
    )
    if not own.wait(deadline.left()):
        remove_placement_group(own)
        raise GroupStartError(
            f"no room for {plan.group.num_ranks} ranks ({plan.group.strategy} of {plan.group.bundles}"
            f"{f' on nodes labelled {plan.group.node_labels}' if plan.group.node_labels else ''}) in time; "
            f"the cluster has {ray.available_resources()} free"
        )
    return own, own


def _merge(generators: list[Any], deadline: _Deadline) -> Iterator[Any]:
    """Values of several streaming calls as they come; the first error ends it."""
    pending = list(generators)
    while pending:
        ready, _ = ray.wait(pending, timeout=deadline.left(), fetch_local=False)
        if not ready:
            raise GroupStartError("loading took longer than the start's time limit")
        for generator in ready:
            try:
                yield _get(next(generator), deadline.left())
            except StopIteration:
                pending.remove(generator)


def _ignore(_: object) -> None:
    pass


def _get(reference: Any, timeout_s: float) -> Any:
    """`ray.get` with a deadline, raising what the actor raised."""
    try:
        return ray.get(reference, timeout=timeout_s)
    except GetTimeoutError as error:
        raise GroupStartError(f"a rank did not answer within {timeout_s:.0f} s") from error
    except RayError as error:
        raise _unwrap(error) from error


def _unwrap(error: BaseException) -> BaseException:
    """The error that an actor raised, as itself; a dead actor as `GroupDiedError`."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, WorkerError):
        return error.cause
    if isinstance(error, RayActorError):
        return GroupDiedError(f"a rank died: {str(error).splitlines()[0]}")
    if isinstance(error, RayTaskError):
        return WorkerError(f"{type(error.cause).__name__}: {error.cause}")
    return error if isinstance(error, WorkerError) else WorkerError(f"{type(error).__name__}: {error}")
