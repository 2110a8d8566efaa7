"""Runs component calls on the group's lanes: one call a lane, all lanes at once, results back on the leader."""

import contextlib
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from workers.component_call import ComponentCall, LocalComponent
from workers.encoding import decode_tree
from workers.errors import CallError, DeadlineExceededError, GroupDiedError
from workers.link import Link


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

    def answers(self, world_rank: int) -> bool:
        """Whether this rank sends its lane's result: the first of the lane does."""
        return world_rank % self.lane_size == 0


class Lanes:
    """The leader's view of all ranks.

    Args:
        layout: ranks and lanes.
        local: the leader's own components by name.
        links: one link a follower, by world rank.
        call_timeout_s: deadline of one call on a follower; a miss is a dead group.
    """

    def __init__(
        self,
        layout: LaneLayout,
        *,
        local: Mapping[str, LocalComponent],
        links: Mapping[int, Link],
        call_timeout_s: float = 600.0,
    ) -> None:
        self.layout = layout
        self.local = local
        self._links = links
        self._call_timeout_s = call_timeout_s
        self._next_id = 0

    @property
    def num_lanes(self) -> int:
        return self.layout.num_lanes

    def run(self, calls: Sequence[ComponentCall]) -> list[Any]:
        """Runs up to one call a lane and returns their results in order.

        Every rank of a lane gets the lane's call. Raises `CallError` if a rank's call failed (all ranks are in step
        again), `GroupDiedError` if a rank is gone.
        """
        assert 1 <= len(calls) <= self.num_lanes
        involved = self._send(calls)
        error: Exception | None = None
        result = None
        try:
            result = self.local[calls[0].component].run(calls[0])
        except Exception as caught:  # followers have answers on the wire: those are read before anything is raised
            error = caught
        results = [result, *([None] * (len(calls) - 1))]
        for world_rank in involved:
            try:
                self._collect(world_rank, results)
            except CallError as caught:
                error = error or caught
        if error is not None:
            raise error
        return results

    def start_request(self) -> None:
        """Followers forget the last request's tensors and start to count anew."""
        for local in self.local.values():
            local.num_calls = local.num_rows = 0
        for link in self._links.values():
            link.send({"op": "start"}, [], timeout_s=self._call_timeout_s)
            link.forget()

    def stats(self) -> dict[int, dict[str, int]]:
        """Counts of each follower since `start_request`, by world rank."""
        counts = {}
        for world_rank, link in self._links.items():
            link.send({"op": "stats"}, [], timeout_s=self._call_timeout_s)
            counts[world_rank] = dict(self._receive(world_rank)[0]["stats"])
        return counts

    def close(self) -> None:
        """Tells the followers to leave; safe on a broken group."""
        for link in self._links.values():
            with contextlib.suppress(GroupDiedError, DeadlineExceededError):
                link.send({"op": "bye"}, [], timeout_s=1.0)
            link.wire.close()

    def _send(self, calls: Sequence[ComponentCall]) -> list[int]:
        """Sends each lane's call to its followers; returns the followers that will answer."""
        self._next_id += 1
        involved = []
        for world_rank, link in self._links.items():
            lane = self.layout.lane_of(world_rank)
            is_dummy = lane >= len(calls)
            if is_dummy and not self.layout.all_take_part:
                continue
            call = calls[0] if is_dummy else calls[lane]
            wants = "nothing" if is_dummy else ("result" if self.layout.answers(world_rank) else "done")
            header = {"op": "call", "id": self._next_id, "component": call.component, "tree": call.tree, "wants": wants}
            link.send(header, call.tensors, timeout_s=self._call_timeout_s)
            involved.append(world_rank)
        return involved

    def _collect(self, world_rank: int, results: list[Any]) -> None:
        header, tensors = self._receive(world_rank)
        if header["op"] == "error":
            raise CallError(
                f"{header['type']} in {header['component']} on rank {world_rank}: {header['message']}\n"
                f"{header['traceback']}"
            )
        if header["id"] != self._next_id:
            raise GroupDiedError(f"rank {world_rank} answered call {header['id']} instead of {self._next_id}")
        if header["op"] == "result":
            results[self.layout.lane_of(world_rank)] = decode_tree(header["tree"], tensors)

    def _receive(self, world_rank: int) -> tuple[dict[str, Any], list[torch.Tensor]]:
        try:
            return self._links[world_rank].receive(timeout_s=self._call_timeout_s)
        except DeadlineExceededError as error:
            raise GroupDiedError(f"rank {world_rank} did not answer within {self._call_timeout_s:g} s") from error


def describe_error(error: BaseException, *, component: str, call_id: int) -> dict[str, Any]:
    """An error as a message header: type, message, component and traceback text."""
    return {
        "op": "error",
        "id": call_id,
        "component": component,
        "type": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error))[-8000:],
    }
