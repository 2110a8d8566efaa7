"""Runs component calls on the group's lanes: one call a lane, all lanes at once, results back on the leader."""

import contextlib
import math
import select
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from workers.call_pace import CallDeadlines, CallPace
from workers.call_watch import CallWatch
from workers.component_call import ComponentCall, LocalComponent
from workers.encoding import UnencodableError, flatten
from workers.errors import CallCancelledError, CallError, CallOutOfMemoryError, DeadlineExceededError, GroupDiedError
from workers.link import Link, Received
from workers.out_of_memory import is_out_of_memory
from workers.wire import Wire

FAILURE_GRACE_S = 30.0

_STOPPED = {kind.__name__: kind for kind in (CallCancelledError, DeadlineExceededError)}
"""What a follower's own check raises: the request was told to stop, nothing failed."""


@dataclass(frozen=True, slots=True)
class LaneLayout:
    """Which ranks form which lane: lane `i` is the ranks from `i * lane_size`; the leader is rank 0 of lane 0.

    Attributes:
        num_ranks: ranks of the group.
        num_lanes: the CFG degree.
        all_take_part: weights are sharded over more than one lane, so a lane without a call must run a dummy one.
    """

    num_ranks: int
    num_lanes: int
    all_take_part: bool = False

    @property
    def lane_size(self) -> int:
        return self.num_ranks // self.num_lanes

    def lane_of(self, world_rank: int) -> int:
        return world_rank // self.lane_size

    def meets(self, world_rank: int, other: int) -> bool:
        """Whether two ranks meet in collectives during a call, so that one that fails alone leaves the other waiting.

        All ranks of a lane count as meeting, and all ranks of the group where shards span lanes.
        """
        return self.all_take_part or self.lane_of(world_rank) == self.lane_of(other)

    def answers(self, world_rank: int) -> bool:
        """Whether this rank sends its lane's result: the first of the lane does."""
        return world_rank % self.lane_size == 0


class Lanes:
    """The leader's view of all ranks.

    Args:
        layout: ranks and lanes.
        local: the leader's own components by name.
        links: one link a follower, by world rank.
        pace: says each call's deadline, on the leader and on followers; a miss is a dead group.
        failure_grace_s: where ranks meet in collectives, how long after one of them failed the others may take to end
            the call as well. Those that fail for the same reason do so at once; those that wait for the one that
            failed never do, and the group is dead.
        on_death: told when the group is dead while the leader itself is inside a call, from another thread.
    """

    def __init__(
        self,
        layout: LaneLayout,
        *,
        local: Mapping[str, LocalComponent],
        links: Mapping[int, Link],
        pace: CallPace | None = None,
        failure_grace_s: float = FAILURE_GRACE_S,
        on_death: Callable[[GroupDiedError], None] = lambda _: None,
    ) -> None:
        self.layout = layout
        self.local = local
        self._links = links
        self._pace = pace or CallPace(CallDeadlines())
        self._failure_grace_s = failure_grace_s
        self._watch = CallWatch(failure_grace_s=failure_grace_s, on_death=on_death)
        self._next_id = 0

    @property
    def num_lanes(self) -> int:
        return self.layout.num_lanes

    def run(self, calls: Sequence[ComponentCall | None]) -> list[Any]:
        """Runs up to one call a lane and returns their results in order; None in the first place spares the leader.

        Every rank of a lane gets the lane's call. Raises `CallError` if a rank's call failed (all ranks are in step
        again), `GroupDiedError` if a rank is gone.
        """
        assert 1 <= len(calls) <= self.num_lanes
        kinds = {call.kind for call in calls if call is not None}
        timeout_s = max(self._pace.deadline_s(kind) for kind in kinds)
        start = time.monotonic()
        involved = self._send(calls, timeout_s=timeout_s)
        error: Exception | None = None
        result = None
        with self._watch.during(self._wires(involved), timeout_s=timeout_s):
            try:
                if calls[0] is not None:
                    result = self.local[calls[0].component].run(calls[0])
            except Exception as caught:  # followers' answers are read before anything is raised
                error = caught
        results = [result, *([None] * (len(calls) - 1))]
        error = self._collect_all(involved, results, error, end=start + timeout_s)
        if error is not None:
            raise error
        for kind in kinds:
            self._pace.add(kind, time.monotonic() - start)
        return results

    def run_at(self, world_rank: int, call: ComponentCall) -> Any:
        """Runs a call on one follower, on behalf of none of the lanes, and returns its result.

        Raises as `run` does.
        """
        self._next_id += 1
        timeout_s, start = self._pace.deadline_s(call.kind), time.monotonic()
        self._send_one(world_rank, call, wants="result", timeout_s=timeout_s)
        results: list[Any] = [None] * self.num_lanes
        self._collect(world_rank, results, timeout_s=timeout_s)
        self._pace.add(call.kind, time.monotonic() - start)
        return results[self.layout.lane_of(world_rank)]

    def during_request(self, deadline_s: float | None) -> AbstractContextManager[None]:
        """Around a request: one that is not over long after its own deadline has hung, wherever that is."""
        wires = {rank: link.wire for rank, link in self._links.items()}
        return self._watch.during_request(wires, None if deadline_s is None else deadline_s + self._pace.floor_s)

    def start_request(self) -> None:
        """Followers forget the last request's tensors and start to count anew."""
        for local in self.local.values():
            local.start_request()
        for link in self._links.values():
            link.send({"op": "start"}, timeout_s=self._pace.floor_s)
            link.forget()

    def configure(self, component: str, config: dict[str, Any]) -> None:
        """Gives every follower's model new entries of its configuration.

        Raises:
            CallError: the entries are more than plain data.
        """
        try:
            entries = flatten(config)
        except UnencodableError as error:
            raise CallError(f"{component}: its new configuration stays on the leader: {error}") from error
        for link in self._links.values():
            link.send({"op": "configure", "component": component}, entries, timeout_s=self._pace.floor_s)

    def stats(self) -> dict[int, dict[str, Any]]:
        """Counts of each follower since `start_request`, by world rank."""
        counts = {}
        for world_rank, link in self._links.items():
            link.send({"op": "stats"}, timeout_s=self._pace.floor_s)
            header = self._receive(world_rank, timeout_s=self._pace.floor_s).header
            if header["op"] != "stats":
                raise self._out_of_step(world_rank, header)
            counts[world_rank] = dict(header["stats"])
        return counts

    def close(self) -> None:
        """Tells the followers to leave; safe on a broken group."""
        self._watch.close()
        for link in self._links.values():
            with contextlib.suppress(GroupDiedError):
                link.send({"op": "bye"}, timeout_s=1.0)
            link.wire.close()

    def _send(self, calls: Sequence[ComponentCall | None], *, timeout_s: float) -> list[int]:
        """Sends each lane's call to its followers; returns the followers that will answer."""
        self._next_id += 1
        involved = []
        for world_rank in self._links:
            lane = self.layout.lane_of(world_rank)
            is_dummy = lane >= len(calls)
            if is_dummy and not self.layout.all_take_part:
                continue
            call = calls[0] if is_dummy else calls[lane]
            assert call is not None, "only the leader's lane, where it is one rank, can be spared"
            wants = "nothing" if is_dummy else ("result" if self.layout.answers(world_rank) else "done")
            self._send_one(world_rank, call, wants=wants, timeout_s=timeout_s)
            involved.append(world_rank)
        return involved

    def _send_one(self, world_rank: int, call: ComponentCall, *, wants: str, timeout_s: float) -> None:
        header = {
            "op": "call",
            "id": self._next_id,
            "component": call.component,
            "context": call.context_tree,
            "wants": wants,
        }
        self._links[world_rank].send(header, call.flat, timeout_s=timeout_s)

    def _wires(self, involved: Sequence[int]) -> dict[int, Wire]:
        """Connections to watch while the leader is inside a call: those of the ranks that it meets in it."""
        return {rank: self._links[rank].wire for rank in involved if self.layout.meets(0, rank)}

    def _collect_all(
        self, involved: Sequence[int], results: list[Any], error: Exception | None, *, end: float
    ) -> Exception | None:
        """Takes the answers as they come until `end`; returns the first error, the leader's before others'.

        The ranks that one that failed would have met get `failure_grace_s` from then on, all others the whole time.
        """
        start = time.monotonic()
        deadlines = dict.fromkeys(involved, end)
        if error is not None:
            self._hasten(deadlines, failed_rank=0)
        while deadlines:
            ready = self._wait_readable(deadlines)
            late = sorted(rank for rank, deadline in deadlines.items() if deadline <= time.monotonic())
            if late and not ready:
                for world_rank in late:
                    self._links[world_rank].wire.close()  # an answer that still comes would be taken for the next one
                raise _missing(late, time.monotonic() - start, error)
            for world_rank in ready:
                del deadlines[world_rank]
                try:
                    self._collect(world_rank, results, timeout_s=max(end - time.monotonic(), self._pace.floor_s))
                except CallError as caught:
                    error = error or caught
                    self._hasten(deadlines, failed_rank=world_rank)
        return error

    def _hasten(self, deadlines: dict[int, float], *, failed_rank: int) -> None:
        soon = time.monotonic() + self._failure_grace_s
        for world_rank, deadline in deadlines.items():
            if self.layout.meets(failed_rank, world_rank):
                deadlines[world_rank] = min(deadline, soon)

    def _wait_readable(self, deadlines: Mapping[int, float]) -> list[int]:
        """Ranks of which a message is here; none when the first deadline has passed."""
        by_descriptor = {self._links[world_rank].wire.fileno(): world_rank for world_rank in deadlines}
        poll = select.poll()
        for descriptor in by_descriptor:
            poll.register(descriptor, select.POLLIN)
        left_s = max(min(deadlines.values()) - time.monotonic(), 0.0)
        return [by_descriptor[descriptor] for descriptor, _ in poll.poll(math.ceil(left_s * 1000))]

    def _collect(self, world_rank: int, results: list[Any], *, timeout_s: float) -> None:
        reply = self._receive(world_rank, timeout_s=timeout_s)
        header = reply.header
        if header.get("id") != self._next_id:
            raise self._out_of_step(world_rank, header)
        if header["op"] == "error":
            if header["type"] in _STOPPED:
                raise _STOPPED[header["type"]](header["message"])
            kind = CallOutOfMemoryError if header["is_out_of_memory"] else CallError
            raise kind(
                f"{header['type']} in {header['component']} on rank {world_rank}: {header['message']}\n"
                f"{header['traceback']}"
            )
        if header["op"] == "result":
            results[self.layout.lane_of(world_rank)] = reply.value

    def _receive(self, world_rank: int, *, timeout_s: float) -> Received:
        return self._links[world_rank].receive(timeout_s=timeout_s)

    def _out_of_step(self, world_rank: int, header: Mapping[str, Any]) -> GroupDiedError:
        self._links[world_rank].wire.close()
        answer = f"{header.get('op')} {header.get('id')}"
        return GroupDiedError(f"rank {world_rank} is out of step: it answered {answer} after call {self._next_id}")


def _missing(ranks: Sequence[int], seconds: float, error: Exception | None) -> GroupDiedError:
    names = f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
    because = "" if error is None else f"; it failed on a rank that they meet in it: {error}"
    return GroupDiedError(f"{names} did not end a call within {seconds:.0f} s{because}")


def describe_error(error: BaseException, *, component: str, call_id: int) -> dict[str, Any]:
    """An error as a message header: type, message, component and traceback text."""
    return {
        "op": "error",
        "id": call_id,
        "component": component,
        "type": type(error).__name__,
        "is_out_of_memory": is_out_of_memory(error),
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error))[-8000:],
    }
